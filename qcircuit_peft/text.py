"""Text on its way out: what a message repeats is short, and what comes from a file cannot steer a terminal."""

import reprlib
from collections.abc import Iterable
from difflib import get_close_matches
from itertools import islice

_MOST = 200  # characters of a value in a message
_BITS = 256  # of a whole number that is written out


class _Short(reprlib.Repr):
    """Python's own short ``repr``, which counts the bits of a number that has thousands of digits."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother, self.maxlong = 4, 100, _MOST, _BITS
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = 8

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() <= _BITS else f"a number of {x.bit_length()} bits"


_SHORT = _Short()


def shown(value: object) -> str:
    """The ``repr`` of a value for a message: at most some 200 characters, of which none is a control character.

    >>> shown("\\x1b[31m"), shown(10**5000), len(shown([["x" * 10**6] * 100])) < 300
    ("'\\\\x1b[31m'", 'a number of 16610 bits', True)
    """
    return shortened(printable(_SHORT.repr(value)))


def shortened(text: str, most: int = _MOST) -> str:
    """A text without its middle if it has more than ``most`` characters.

    >>> shortened("a" * 50 + "b" * 50, 13)
    'aaaaa...bbbbb'
    """
    half = (most - 3) // 2
    return text if len(text) <= most else f"{text[:half]}...{text[-half:]}"


def printable(text: str) -> str:
    """A text in which all that could steer a terminal or turn lines around is written as Python writes it.

    That is what Unicode calls control, format (bidi marks among them), surrogate, private or separator, but spaces.

    >>> print(printable("na\\x9b31mme\\u202e"))
    na\\x9b31mme\\u202e
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def label(name: str) -> str:
    """A name for a legend or an axis of matplotlib, which shows it as it is: no mathematics, none left out.

    >>> print(label("$x$"), label("_x"))
    \\$x\\$  _x
    """
    text = shortened(printable(name), 60).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def did_you_mean(name: object, table: Iterable[str]) -> str:
    """The end of an error message about a name that is not in a table: those near to it, else all there are.

    Names of a file are escaped and shortened, as ``shown`` does.

    >>> did_you_mean("ry", ["RY", "RYY", "H"]), did_you_mean("grid", ["ring", "line"])
    ('did you mean one of RY, RYY', 'allowed are ring, line')
    """
    known = {key.casefold(): key for key in table}
    near = [known[key] for key in get_close_matches(str(name)[:100].casefold(), known, n=3)]
    told = shortened(", ".join(shortened(printable(key), 100) for key in near or islice(known.values(), 100)), 900)
    return f"{'did you mean one of' if near else 'allowed are'} {told}"
