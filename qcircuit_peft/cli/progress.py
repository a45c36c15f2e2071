"""How far a command is: a bar in a terminal, a line a minute in a log, nothing if it is to be quiet."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from qcircuit_peft.cli.program import errors
from qcircuit_peft.text import printable

SECONDS = 60.0  # between two lines of a log
Advance = Callable[..., None]


@contextmanager
def progress(what: str, quiet: bool = False) -> Iterator[Advance]:
    """Within it ``advance(done, total, said)`` tells how much of ``what`` is done, and what is under way.

    The total may be None, where it is not known.
    """
    if quiet:
        yield lambda done, total=None, said="": None
    elif errors.is_terminal:
        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}", markup=False))
        with Progress(*columns, TimeRemainingColumn(), console=errors, transient=True) as bars:
            bar = bars.add_task("", total=None)
            yield lambda done, total=None, said="": bars.update(
                bar, completed=done, total=total, description=printable(said)
            )
    else:
        last = time.monotonic()

        def line(done: float, total: float | None = None, said: str = "") -> None:
            nonlocal last
            if time.monotonic() - last >= SECONDS:
                last = time.monotonic()
                of = "" if total is None else f" of {total:,g}"
                errors.print(printable(f"{what}: {done:,g}{of} {said}").rstrip(), soft_wrap=True)

        yield line
