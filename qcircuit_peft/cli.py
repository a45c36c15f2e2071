"""The ``qcircuit-peft`` command: look at circuits, export them, measure how much they entangle, compare backends."""

import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn, track
from rich.table import Table
from typer.core import TyperGroup

from qcircuit_peft import commands, files
from qcircuit_peft import compare as comparison
from qcircuit_peft.analysis import METRICS, capacity, saturation, tables
from qcircuit_peft.analysis.plots import capacity_figure
from qcircuit_peft.ansatz import load, names
from qcircuit_peft.circuit import Circuit
from qcircuit_peft.drawing import draw as draw_text
from qcircuit_peft.drawing import draw_mpl
from qcircuit_peft.lie import directions, told_surplus
from qcircuit_peft.qasm import to_qasm
from qcircuit_peft.text import printable, shortened, shown

_LONGEST, _MOST_NUMBERS = 1000, 10_000  # characters of a message, numbers of a list
_REFUSED = (ValueError, ImportError, OSError, OverflowError, RecursionError)
_WRONG: Any = typer.BadParameter.mro()[2]  # click's ClickException, of which typer has a copy in some versions


class _Console(Console):
    """Prints what it is given: names from files are no markup, and a closed pipe is for ``_Command`` to meet."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class _Command(TyperGroup):
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


app = typer.Typer(
    cls=_Command, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__
)
circuits = typer.Typer(no_args_is_help=True, help="List, show, draw and export circuits.")
app.add_typer(circuits, name="circuits")
console = _Console()
errors = _Console(stderr=True)

Source = Annotated[
    str, typer.Argument(metavar="CIRCUIT", help="the name of a shipped circuit, or the path of a .toml file")
]
Qubits = Annotated[int | None, typer.Option(help="number of qubits; 4 if no dim is given")]
Dim = Annotated[
    int | None, typer.Option(help="dimension of the matrix, such as 768; odd prime factors are wires of their own")
]
Layers = Annotated[int, typer.Option(help="number of layers L")]
Seed = Annotated[int, typer.Option(min=0, max=(1 << 63) - 1, help="seed of the random angles")]


def _circuit(source: str, qubits: int | None, dim: int | None, layers: int) -> Circuit:
    qubits = 4 if qubits is None and dim is None else qubits
    return load(source).circuit(qubits=qubits, dim=dim, layers=layers)


def _numbers(text: str) -> Sequence[int]:
    """The whole numbers of a list such as "1,2,4", or of a range with both ends such as "4:12" or "4:12:2"."""
    numbers: Sequence[int] = ()
    try:
        if ":" not in text:
            numbers = [int(part) for part in text.split(",", _MOST_NUMBERS)]
        else:
            first, last, step = map(int, text.split(":", 3) if text.count(":") > 1 else [*text.split(":"), 1])
            numbers = range(first, last + 1, step)
    except ValueError:
        pass
    if not numbers or numbers[_MOST_NUMBERS:]:
        wanted = f"1 to {_MOST_NUMBERS:,} numbers such as 1,2,4 or a range such as 4:12"
        raise typer.BadParameter(f"wanted {wanted}, got {shown(text)}")
    return numbers


def _save(figure: Figure, path: str) -> None:
    try:
        files.write_figure(path, figure)
    except OSError as error:
        raise ValueError(f"{shown(path)} cannot be written: {error.strerror}") from None


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


@circuits.command("list")
def list_circuits() -> None:
    """List the circuits that come with the library."""
    table = Table("circuit", "real", "angles at 8 qubits, L = 1", "about")
    for name in names():
        circuit = load(name).circuit(qubits=8, layers=1)
        table.add_row(name, "yes" if circuit.is_real else "no", str(circuit.n_angles), load(name).about)
    console.print(table)


@circuits.command()
def show(source: Source) -> None:
    """Print a circuit file as TOML: a start for one of your own."""
    family = load(source)
    print(family.to_toml(), end="")
    if found := directions(family):
        print(f"\n# at L = 12 it moves in {_listed(found.values())} directions on {_listed(found)} qubits")


@circuits.command()
def draw(
    source: Source,
    qubits: Qubits = None,
    dim: Dim = None,
    layers: Layers = 1,
    plot: Annotated[
        str | None, typer.Option(help="write a picture (PNG, PDF or SVG by its ending) instead of text")
    ] = None,
) -> None:
    """Draw a circuit: qcircuit-peft circuits draw simplified_two_design --qubits 5 --layers 2"""
    circuit = _circuit(source, qubits, dim, layers)
    if plot is None:
        print(draw_text(circuit))
        size = f"matrix {circuit.dim} x {circuit.dim}"
        console.print(f"{circuit.n_angles} angles, {len(circuit.ops)} gates, depth {circuit.depth}, {size}")
        if told := told_surplus(load(source), circuit):
            console.print(printable(told))
    else:
        _save(draw_mpl(circuit), plot)
        console.print(f"drawn in {printable(plot)}")


@circuits.command()
def qasm(
    source: Source,
    qubits: Qubits = None,
    layers: Layers = 1,
    version: Annotated[int, typer.Option(help="OpenQASM version: 3 or 2")] = 3,
    seed: Seed = 0,
) -> None:
    """Print a circuit with random angles as OpenQASM."""
    circuit = _circuit(source, qubits, None, layers)
    angles = (
        2 * torch.pi * torch.rand(circuit.n_angles, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    )
    print(to_qasm(circuit, angles, version=version), end="")


_SCALARS = ", ".join(name for name, metric in METRICS.items() if metric.of == "state" and metric.scalar)


@app.command()
def entanglement(
    source: Source,
    qubits: Annotated[int, typer.Option(help="number of qubits")] = 8,
    layers: Annotated[str, typer.Option(help="numbers of layers L: 4, 1:8 (both included) or 1,2,4")] = "1:8",
    metric: Annotated[str, typer.Option(help=_SCALARS)] = "meyer_wallach",
    samples: Annotated[int, typer.Option(help="random circuits for each L")] = 1000,
    exact: Annotated[
        bool, typer.Option("--exact", help="no sampling; for meyer_wallach, scott_2 and purity only")
    ] = False,
    ensemble: Annotated[
        str | None, typer.Option(help="random states to compare with: real or complex; by default the circuit's kind")
    ] = None,
    seed: Seed = 0,
    plot: Annotated[str | None, typer.Option(help="also write a picture (PNG, PDF or SVG by its ending)")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="print comma-separated values")] = False,
) -> None:
    """How much a circuit with random angles entangles at each number of layers, against random states.

    qcircuit-peft entanglement simplified_two_design --qubits 8 --layers 1:8 --exact --plot curve.png

    qcircuit-peft entanglement mine.toml --qubits 6 --layers 1,2,4 --metric entropy --samples 500 --csv > mine.csv
    """
    family, generator = load(source), torch.Generator().manual_seed(seed)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        if as_json and as_csv:
            raise ValueError("the output is one of --json and --csv, got both")
        depths = track(_numbers(layers), "layers", console=errors, transient=True, disable=not errors.is_terminal)
        rows = capacity(family, qubits, depths, metric, samples, generator, exact, ensemble)
    for warning in said:
        errors.print(f"note: {printable(str(warning.message))}")
    if plot is not None:
        _save(capacity_figure({family.name: rows}, metric), plot)
    form: Callable[..., str] = tables.to_json if as_json else tables.to_csv if as_csv else tables.to_text
    print(form(rows).rstrip())
    if not (as_json or as_csv):
        depth = saturation(rows)
        unit = METRICS[metric].unit
        console.print(f"{metric}{'' if unit == '1' else f' in {unit}'}; within 5 % of random states ", end="")
        console.print("at no L given" if depth is None else f"from L = {depth}")


@app.command()
def compare(
    source: Source,
    qubits: Annotated[str, typer.Option(help="numbers of qubits: 4,8 or 4:12, with both ends")] = "4:10:2",
    layers: Annotated[str, typer.Option(help="numbers of layers L: 1,2,4")] = "1",
    columns: Annotated[int, typer.Option(help="number of columns of the matrix")] = 8,
    full: Annotated[bool, typer.Option("--full", help="the whole matrix instead")] = False,
    batch: Annotated[int, typer.Option(help="number of circuits at once")] = 1,
    backends: Annotated[
        str, typer.Option(help="names, and PennyLane's devices: native,pennylane:lightning.qubit")
    ] = "native,pennylane,torchquantum",
    repeats: Annotated[int, typer.Option(help="number of timed runs of each size")] = 7,
    budget: Annotated[float, typer.Option(help="seconds that one size of one backend may take")] = 10.0,
    csv: Annotated[str | None, typer.Option(help="write the table to this file")] = None,
    plot: Annotated[str | None, typer.Option(help="write a log-log picture of the times (PNG, PDF or SVG)")] = None,
) -> None:
    """Compare backends: agreement with native, process time on one thread, memory.

    qcircuit-peft compare simplified_two_design --qubits 4:12:2 --backends native,qiskit --csv t.csv
    """
    ansatz, names = load(source), backends.split(",")
    sizes = _numbers(qubits), _numbers(layers)
    settings = {"columns": None if full else columns, "batch": batch, "repeats": repeats, "budget": budget}
    with Progress(console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task("measuring", total=len(names) * len(set(sizes[0])) * len(set(sizes[1])))
        table = comparison.compare(ansatz, *sizes, backends=names, progress=lambda row: bar.advance(task), **settings)
    if csv:
        comparison.write_csv(table, csv)
    if plot:
        _save(comparison.plot(table), plot)
    title = printable(shortened(ansatz.name))
    console.print(_compared(table, f"{title}, {'whole matrix' if full else f'first {columns} columns'}"))


def _milliseconds(seconds: float | None) -> str:
    if not seconds:
        return "-"
    return f"{1000 * seconds:,.0f} ms" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def _compared(rows: list[comparison.Row], title: str) -> Table:
    table = Table(title=f"{title}, {rows[0]['batch']} at once, float32, one thread, medians of process time")
    for name in ("backend", "qubits", "L", "forward", "and backward", "times native", "memory", "agrees to"):
        left = name == "backend"
        table.add_column(name, justify="left" if left else "right", no_wrap=left, overflow="fold")
    native = {(row["qubits"], row["layers"]): row["both"] for row in rows if row["backend"] == "native"}
    for row in rows:
        start = row["backend"], str(row["qubits"]), str(row["layers"])
        if row["status"] != "ok":
            table.add_row(*start, printable(row["status"]))
            continue
        mine = native.get((row["qubits"], row["layers"]))
        forward, both = (_milliseconds(row[what]) for what in ("forward", "both"))
        ratio = f"{row['both'] / mine:.3g}" if mine and row["both"] else "-"
        memory = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:,.1f} MiB"
        table.add_row(*start, forward, both, ratio, memory, f"{row['agreement']:.0e}")
    return table


@app.command()
def study(
    file: Annotated[str, typer.Argument(metavar="FILE", help="a study file, such as studies/digits.toml")],
    out: Annotated[Path | None, typer.Option(help="folder of the results; by default study-output/NAME")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the study that the folder holds")] = False,
    executor: Annotated[str, typer.Option(help="local: one run after the other; ray: on a Ray cluster")] = "local",
    hours: Annotated[float | None, typer.Option(help="of methods: after this time no run begins")] = None,
    export: Annotated[
        str | None, typer.Option(help="of methods: peft, experiments for PEFT's method_comparison, and no run")
    ] = None,
) -> None:
    """Train what a plan lists on a task: circuits against entanglement, or methods against each other.

    A CSV and an HTML report are written.

    qcircuit-peft study studies/digits.toml --out digits

    qcircuit-peft study studies/digits.toml --out digits --resume --executor ray

    qcircuit-peft study studies/trec_900.toml --out methods --hours 2
    """
    from qcircuit_peft.study import Study, field, report, runs  # these take a second to import
    from qcircuit_peft.tasks import quiet

    quiet()
    if field.is_one(file):
        if executor != "local":
            raise ValueError(f"a comparison of methods runs locally, got the executor {shown(executor)}")
        return _methods(file, out, resume, hours, export)
    if hours is not None or export is not None:
        raise ValueError("--hours and --export are for comparisons of methods, files with [[method]]")
    plan = Study.from_file(file)
    folder = out or Path("study-output") / plan.name
    with _bar(file, folder) as progress:
        runs.run(plan, folder, resume=resume, executor=executor, progress=progress)
    results = list(runs.finished(plan, folder).values())
    if results:
        report.write(plan, results, folder)
        print(tables.to_text(report.settings(results)))
        console.print(printable(f"table {folder / 'runs.csv'}, report {folder / 'report.html'}"))
    if len(results) < len(plan.points):
        raise typer.Exit(130)


@contextmanager
def _bar(file: str, folder: Path) -> Iterator[Callable[[float, int, str], None]]:
    """Shows how many runs are done and which is under way; when it is stopped, how to go on."""
    columns = (TextColumn("runs"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, TimeRemainingColumn(), console=errors, disable=not errors.is_terminal) as bars:
        bar = bars.add_task("")
        try:
            yield lambda done, total, what: bars.update(bar, completed=done, total=total, description=what)
        except KeyboardInterrupt:
            again = f"qcircuit-peft study {shlex.quote(file)} --out {shlex.quote(str(folder))} --resume"
            errors.print(f"stopped; go on with: {printable(again)}", soft_wrap=True)


def _methods(file: str, out: Path | None, resume: bool, hours: float | None, export: str | None) -> None:
    """The command for a comparison of methods."""
    from qcircuit_peft.study import export_peft, field, front

    plan = field.Field.from_file(file)
    folder = out or Path("study-output") / plan.name
    if export is not None:
        if export != "peft":
            raise ValueError(f"what is exported for is peft, got {shown(export)}")
        for path in export_peft(plan, folder):
            console.print(printable(str(path)))
        return
    with _bar(file, folder) as progress:
        field.run(plan, folder, resume=resume, hours=hours, progress=progress)
    results = list(field.finished(plan, folder).values())
    if rows := front.lines(plan, results):
        front.write(plan, results, folder)
        print(tables.to_text(rows))
        console.print(printable(f"table {folder / 'runs.csv'}, report {folder / 'report.html'}"))
    if len(results) < len(plan.search()) + len(plan.method) * len(plan.seeds):
        raise typer.Exit(130)


app.command()(commands.train)
app.command()(commands.predict)

if __name__ == "__main__":
    app()
