"""What all commands have in common: the door of the program, options that mean the same everywhere, tables."""

import os
import sys
from collections.abc import Iterable, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from qcircuit_peft import files
from qcircuit_peft.ansatz import load, names
from qcircuit_peft.circuit import Circuit
from qcircuit_peft.text import printable, shortened, shown

_LONGEST, _MOST_NUMBERS = 1000, 10_000  # characters of a message, numbers of a list
_REFUSED = (ValueError, ImportError, OSError, OverflowError, RecursionError)
_WRONG: Any = typer.BadParameter.mro()[2]  # click's ClickException, of which typer has a copy in some versions


class _Console(Console):
    """Prints what it is given: names from files are no markup, and a closed pipe is for ``Program`` to meet."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


console = _Console()
errors = _Console(stderr=True)


class Program(TyperGroup):
    """The door of the program: whatever happens, one sentence and an exit code, and no traceback.

    0: done, also if the reader of the output has gone. 2: what was asked for cannot be done. 130: Ctrl-C. 1 is a fault
    of the program itself; with QCIRCUIT_PEFT_TRACEBACK set it shows where.
    """

    def main(self, *args: Any, standalone_mode: bool = True, **options: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")  # a terminal without Unicode shows what it can
        try:
            code = super().main(*args, standalone_mode=False, **options)
            sys.stdout.flush()
        except typer.Abort:  # Ctrl-C, in older versions of typer
            code = 130
        except (SystemExit, BrokenPipeError):  # the first is typer's answer to a pipe that is closed
            code = _gone()
        except _WRONG as error:
            code = _say(2, error.format_message())
        except Exception as error:
            code = _refused(error)
        if not standalone_mode:
            return code
        sys.exit(code if isinstance(code, int) else 0)


def _refused(error: Exception) -> int:
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "alloc" in str(error)):  # torch's
        return _say(2, "there is not enough memory for this; ask for fewer qubits, layers or samples")
    if isinstance(error, OSError) and error.strerror:
        return _say(2, f"{shown(error.filename)}: {error.strerror}" if error.filename else error.strerror)
    if isinstance(error, _REFUSED):
        return _say(2, str(error) or type(error).__name__)
    if os.environ.get("QCIRCUIT_PEFT_TRACEBACK"):
        raise error
    told = f"{type(error).__name__}: {error}; QCIRCUIT_PEFT_TRACEBACK=1 shows where"
    return _say(1, f"a fault of qcircuit-peft itself, {told}")


def _say(code: int, message: str) -> int:
    try:
        print(f"Error: {shortened(printable(message), _LONGEST)}", file=sys.stderr, flush=True)
    except OSError:
        _gone()
    return code


def _gone() -> int:
    """The reader of the output has gone, which is no error; what is still buffered goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in filter(None, (sys.__stdout__, sys.__stderr__)):
        try:
            stream.flush()
        except (OSError, ValueError):
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
    return 0


Source = Annotated[
    str,
    typer.Argument(
        metavar="CIRCUIT", help="the name of a shipped circuit, or the path of a .toml file", autocompletion=names
    ),
]
Qubits = Annotated[int | None, typer.Option(help="number of qubits; 4 if no dim is given")]
Dim = Annotated[
    int | None, typer.Option(help="dimension of the matrix, such as 768; odd prime factors are wires of their own")
]
Layers = Annotated[int, typer.Option(help="number of layers L")]
Depths = Annotated[str, typer.Option(help="numbers of layers L: 4, 1:8 (both included) or 1,2,4")]
Seed = Annotated[int, typer.Option(min=0, max=(1 << 63) - 1, help="seed of what is drawn at random")]
AsCsv = Annotated[bool, typer.Option("--csv", help="print comma-separated values")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
OutFile = Annotated[str | None, typer.Option(help="also write the table: .csv or .json")]
Plot = Annotated[str | None, typer.Option(help="also write a picture: .png, .pdf or .svg")]
Quiet = Annotated[bool, typer.Option("--quiet", help="no progress and no notes, only results and errors")]


def the_circuit(source: str, qubits: int | None, dim: int | None, layers: int) -> Circuit:
    """The circuit that the options of a command name."""
    qubits = 4 if qubits is None and dim is None else qubits
    return load(source).circuit(qubits=qubits, dim=dim, layers=layers)


def numbers(text: str) -> Sequence[int]:
    """The whole numbers of a list such as "1,2,4", or of a range with both ends such as "4:12" or "4:12:2"."""
    found: Sequence[int] = ()
    try:
        if ":" not in text:
            found = [int(part) for part in text.split(",", _MOST_NUMBERS)]
        else:
            first, last, step = map(int, text.split(":", 3) if text.count(":") > 1 else [*text.split(":"), 1])
            found = range(first, last + 1, step) if step > 0 else ()
    except ValueError:
        pass
    if not found or found[_MOST_NUMBERS:]:
        wanted = f"1 to {_MOST_NUMBERS:,} numbers such as 1,2,4 or a range such as 4:12"
        raise typer.BadParameter(f"wanted {wanted}, got {shown(text)}")
    return found


def save(figure: Any, path: str) -> None:
    """Write a figure of matplotlib; raises ValueError, naming the file, where that fails."""
    try:
        files.write_figure(path, figure)
    except OSError as error:
        raise ValueError(f"{shown(path)} cannot be written: {error.strerror}") from None


def table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None, left: Sequence[int] = (0,)
) -> None:
    """Print rows, a line each; a terminal gets only as much of a last column of texts as it is wide.

    ``left`` are the columns of texts; all others are numbers, which stand to the right.
    """
    lines = [list(heads), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    if title is not None:
        console.print(printable(title), style="bold")
    for number, line in enumerate(lines):
        placed = [
            cell.ljust(width) if at in left else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        text = "  ".join(placed).rstrip()
        if console.is_terminal and len(heads) - 1 in left and len(text) > console.width:
            text = f"{text[: console.width - 1]}…"
        console.print(text, style="bold" if number == 0 else None, soft_wrap=True)


class Rows:
    """Where the rows of a command go, by its options: ``Rows(as_csv, as_json, out)``, before any work is done.

    Raises ValueError for two forms at once, and for a file that is neither .csv nor .json.
    """

    def __init__(self, as_csv: bool = False, as_json: bool = False, out: str | None = None) -> None:
        if as_csv and as_json:
            raise ValueError("the output is one of --json and --csv, got both")
        self.form = "csv" if as_csv else "json" if as_json else None
        self.out = None if out is None else Path(out)
        if self.out is not None and self.out.suffix.lower() not in (".csv", ".json"):
            raise ValueError(f"a table's name ends in .csv or .json, got {shown(out)}")

    def tell(self, rows: Sequence[Any]) -> bool:
        """Write the rows (dataclasses) and print them in the form that was asked for; whether one was."""
        from qcircuit_peft.analysis.tables import to_csv, to_json

        forms = {"csv": to_csv, "json": lambda rows: to_json(rows) + "\n"}
        if self.out is not None:
            files.write(self.out, forms[self.out.suffix.lower()[1:]](rows))
        if self.form is not None:
            print(forms[self.form](rows), end="")
        return self.form is not None
