"""The checks of plain values, each once: every one raises ValueError in a sentence with the name, or gives the value.

True is no number here, and a number is no truth: what a file or a caller meant is not guessed.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from qcircuit_peft.text import did_you_mean, shown

T = TypeVar("T")

LARGEST = 3.4e38  # of a number, so that float32 holds it


def whole_number(name: str, value: object, low: int, high: int | None = None) -> int:
    """A whole number from ``low`` to ``high`` (None: any).

    >>> whole_number("r", 8, 1), whole_number("r", True, 1)
    Traceback (most recent call last):
    ValueError: r is a whole number >= 1, got True
    """
    if not is_whole(value, low, high):
        raise ValueError(f"{name} is a whole number {_range(low, high)}, got {shown(value)}")
    return value  # type: ignore[return-value]


def is_whole(value: object, low: int, high: int | None = None) -> bool:
    """Whether it is a whole number from ``low`` to ``high`` (None: any)."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value and (high is None or value <= high)


def _range(low: int, high: int | None) -> str:
    return f">= {low}" if high is None else f"{low} to {high}"


def whole_numbers(name: str, values: object, low: int, high: int | None = None, least: int = 1) -> tuple[int, ...]:
    """A list of ``least`` or more whole numbers from ``low`` to ``high``, as a tuple.

    >>> whole_numbers("seeds", [0, 1], 0)
    (0, 1)
    """
    if not isinstance(values, list | tuple) or len(values) < least:
        raise ValueError(f"{name} is a list of whole numbers {_range(low, high)}, got {shown(values)}")
    for value in values:
        if not is_whole(value, low, high):
            raise ValueError(f"{name} has whole numbers {_range(low, high)}, got {shown(value)}")
    return tuple(values)


def number(name: str, value: object, low: float = -LARGEST, high: float = LARGEST, below: float | None = None) -> float:
    """A finite number from ``low`` to ``high``; less than ``below``, if that is given.

    >>> number("dropout", 0.1, 0, below=1)
    0.1
    >>> number("alpha", float("nan"))
    Traceback (most recent call last):
    ValueError: alpha is a finite number, of size 3.4e+38 at most, got nan
    """
    if not is_number(value, low, high) or (below is not None and value >= below):  # type: ignore[operator]
        allowed = f"a number from {low:g} to {high:g}" if below is None else f"a number from {low:g} to below {below:g}"
        allowed = f"a finite number, of size {high:g} at most" if (low, high) == (-LARGEST, LARGEST) else allowed
        raise ValueError(f"{name} is {allowed}, got {shown(value)}")
    return float(value)  # type: ignore[arg-type]


def is_number(value: object, low: float = -LARGEST, high: float = LARGEST) -> bool:
    """Whether it is a finite number from ``low`` to ``high``."""
    return not isinstance(value, bool) and isinstance(value, int | float) and low <= value <= high


def version(where: str, value: object, known: int) -> int:
    """The version of a format, the one that is known.

    >>> version("ansatz", True, 1)
    Traceback (most recent call last):
    ValueError: ansatz: format version True is not known; this library reads version 1
    """
    if not is_whole(value, known, known):
        raise ValueError(f"{where}: format version {shown(value)} is not known; this library reads version {known}")
    return known


def boolean(name: str, value: object) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} is true or false, got {shown(value)}")
    return value


def one_of(name: str, value: object, allowed: Iterable[str]) -> str:
    """One of these names.

    >>> one_of("side", "up", ["in", "out"])
    Traceback (most recent call last):
    ValueError: side is one of in, out, got 'up'
    """
    known = tuple(allowed)
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name} is one of {', '.join(known)}, got {shown(value)}")
    return value


def text(name: str, value: object) -> str:
    """A text."""
    if not isinstance(value, str):
        raise ValueError(f"{name} is a text, got {shown(value)}")
    return value


def label(name: str, value: object) -> str:
    """A text that can be the name of a file on any system."""
    if not isinstance(value, str) or not re.fullmatch(r"[\w-]{1,64}", value, re.ASCII):
        raise ValueError(f"{name} is 1 to 64 letters, digits, - and _, got {shown(value)}")
    return value


def texts(name: str, value: T, single: bool = False) -> T:
    """None, or a list, tuple or set of texts; with ``single``, one text too."""
    if value is None or (single and isinstance(value, str)):
        return value
    if not isinstance(value, list | tuple | set) or not all(isinstance(entry, str) for entry in value):
        raise ValueError(f"{name} is {'a text or ' if single else ''}a list of texts, got {shown(value)}")
    return value


def pattern(name: str, value: str) -> str:
    """A regular expression for the end of a module's name, as PEFT matches it."""
    try:
        re.compile(rf"(.*\.)?({value})$")
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{name} has {shown(value)}, which is not a regular expression: {error}") from None
    return value


def options(name: str, of: str, given: object, allowed: Iterable[str]) -> dict[str, Any]:
    """A table of plain data, as JSON has it, whose keys are the options of ``of``.

    >>> options("frame_options", "taylor", {"orde": 3}, ["order"])
    Traceback (most recent call last):
    ValueError: frame_options has 'orde', which is not an option of 'taylor'; did you mean one of order
    """
    if not isinstance(given, dict):
        raise ValueError(f"{name} is a table of options, got {shown(given)}")
    known = sorted(allowed)
    for key in given:
        if key not in known:
            told = did_you_mean(key, known) if known else "it has none"
            raise ValueError(f"{name} has {shown(key)}, which is not an option of {of!r}; {told}")
    try:
        json.dumps(given, allow_nan=False)
    except RecursionError:
        raise ValueError(f"{name} is a table of options, got one that is nested too deeply") from None
    except (TypeError, ValueError):
        raise ValueError(f"{name} holds plain data, as JSON has it, got {shown(given)}") from None
    return given


def keys(where: str, found: Mapping[str, object], known: Iterable[str], needed: Iterable[str] = ()) -> None:
    """A table with no keys but those that are known, and all that are needed.

    >>> keys("study", {"name": "a"}, ["name", "task"], needed=["task"])
    Traceback (most recent call last):
    ValueError: study: the key 'task' is missing
    """
    allowed = list(known)
    for key in found:
        if key not in allowed:
            raise ValueError(f"{where}: unknown key {shown(key)}; {did_you_mean(key, allowed)}")
    for key in needed:
        if key not in found:
            raise ValueError(f"{where}: the key {key!r} is missing")
