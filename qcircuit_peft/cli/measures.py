"""``qcircuit-peft entanglement``, ``expressibility`` and ``compare``: what circuits can do, and what they cost."""

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib import import_module
from typing import Annotated, Any

import torch
import typer

from qcircuit_peft import compare as comparison
from qcircuit_peft.analysis import METRICS, capacity, saturation, tables
from qcircuit_peft.analysis import expressibility as expressibility_of
from qcircuit_peft.ansatz import load
from qcircuit_peft.cli.program import (
    AsCsv,
    AsJson,
    Depths,
    OutFile,
    Plot,
    Quiet,
    Rows,
    Seed,
    Source,
    console,
    errors,
    numbers,
    save,
    table,
)
from qcircuit_peft.cli.progress import progress
from qcircuit_peft.text import label, printable, shortened, shown

_SCALARS = ", ".join(name for name, metric in METRICS.items() if metric.of == "state" and metric.scalar)
METRIC_HELP = f"{_SCALARS}; or module:function, states (samples, N) to one number for each"
Ensemble = Annotated[
    str | None, typer.Option(help="random states to compare with: real or complex; by default the circuit's kind")
]


def metric_named(text: str) -> str | Callable[..., Any]:
    """A metric by its name, or a function of a module, which is looked for in the current folder first."""
    module, colon, name = text.partition(":")
    if not colon:
        return text
    before = [*sys.path]
    sys.path.insert(0, os.getcwd())
    try:
        found = getattr(import_module(module), name)
    except (Exception, SystemExit) as error:  # whatever a user's module does
        raise ValueError(f"the metric {shown(text)} cannot be had: {shortened(printable(str(error)))}") from None
    finally:
        sys.path[:] = before
    if not callable(found):
        raise ValueError(f"the metric {shown(text)} is a function, got {shown(found)}")
    return found


@contextmanager
def _notes(quiet: bool) -> Iterator[None]:
    """Warnings of what is done within are notes on stderr."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        yield
    for warning in () if quiet else said:
        errors.print(f"note: {printable(str(warning.message))}", soft_wrap=True)


def entanglement(
    source: Source,
    qubits: Annotated[int, typer.Option(help="number of qubits")] = 8,
    layers: Depths = "1:8",
    metric: Annotated[str, typer.Option(help=METRIC_HELP)] = "meyer_wallach",
    samples: Annotated[int, typer.Option(help="random circuits for each L")] = 1000,
    exact: Annotated[
        bool, typer.Option("--exact", help="no sampling; for meyer_wallach, scott_2 and purity only")
    ] = False,
    ensemble: Ensemble = None,
    seed: Seed = 0,
    plot: Plot = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
    out: OutFile = None,
    quiet: Quiet = False,
) -> None:
    """How much a circuit with random angles entangles at each number of layers, against random states.

    qcircuit-peft entanglement simplified_two_design --qubits 8 --layers 1:8 --exact --plot curve.png

    qcircuit-peft entanglement mine.toml --qubits 6 --layers 1,2,4 --metric entropy --samples 500 --csv > mine.csv
    """
    family, generator, measure = load(source), torch.Generator().manual_seed(seed), metric_named(metric)
    form, depths = Rows(as_csv, as_json, out), numbers(layers)

    def counted() -> Iterator[int]:
        for done, depth in enumerate(depths):
            advance(done, len(depths), f"L = {depth}")
            yield depth

    with _notes(quiet), progress("layers", quiet) as advance:
        rows = capacity(family, qubits, counted(), measure, samples, generator, exact, ensemble)
    if plot is not None:
        from qcircuit_peft.analysis.plots import capacity_figure

        save(capacity_figure({family.name: rows}, measure, f"{qubits} qubits"), plot)
    if not form.tell(rows):
        print(tables.to_text(rows))
        depth = saturation(rows)
        unit = METRICS[metric].unit if isinstance(measure, str) else "1"
        named = f"{printable(metric)}{'' if unit == '1' else f' in {unit}'}"
        console.print(f"{named}; within 5 % of random states ", end="")
        console.print("at no L given" if depth is None else f"from L = {depth}")


def expressibility(
    source: Source,
    qubits: Annotated[int, typer.Option(help="number of qubits")] = 4,
    layers: Depths = "1:4",
    samples: Annotated[int, typer.Option(help="pairs of random circuits for each L")] = 5000,
    bins: Annotated[int, typer.Option(help="bins of the histogram of fidelities")] = 75,
    ensemble: Ensemble = None,
    seed: Seed = 0,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
    out: OutFile = None,
    quiet: Quiet = False,
) -> None:
    """How far a circuit's states are from random ones at each number of layers, in nats (Sim et al.); 0 is as random.

    qcircuit-peft expressibility sim01 --qubits 4 --layers 1 --ensemble complex
    """
    family, generator = load(source), torch.Generator().manual_seed(seed)
    form, depths, rows = Rows(as_csv, as_json, out), numbers(layers), []
    with _notes(quiet), progress("layers", quiet) as advance:
        for done, depth in enumerate(depths):
            advance(done, len(depths), f"L = {depth}")
            found = expressibility_of(family, qubits, depth, samples, bins, ensemble, generator)
            rows.append({"layers": depth, **asdict(found)})
    if not form.tell(rows):
        print(tables.to_text(rows))


def compare(
    source: Source,
    qubits: Annotated[str, typer.Option(help="numbers of qubits: 4,8 or 4:12, with both ends")] = "4:10:2",
    layers: Depths = "1",
    columns: Annotated[int, typer.Option(help="number of columns of the matrix")] = 8,
    full: Annotated[bool, typer.Option("--full", help="the whole matrix instead")] = False,
    batch: Annotated[int, typer.Option(help="number of circuits at once")] = 1,
    backends: Annotated[
        str, typer.Option(help="names, and PennyLane's devices: native,pennylane:lightning.qubit")
    ] = "native,pennylane,torchquantum",
    repeats: Annotated[int, typer.Option(help="number of timed runs of each size")] = 7,
    budget: Annotated[float, typer.Option(help="seconds that one size of one backend may take")] = 10.0,
    plot: Plot = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
    out: OutFile = None,
    quiet: Quiet = False,
) -> None:
    """Compare backends: agreement with native, process time on one thread, memory.

    qcircuit-peft compare simplified_two_design --qubits 4:12:2 --backends native,qiskit --out times.csv
    """
    ansatz, names, form = load(source), backends.split(","), Rows(as_csv, as_json, out)
    sizes = numbers(qubits), numbers(layers)
    settings = {"columns": None if full else columns, "batch": batch, "repeats": repeats, "budget": budget}
    total, done = len(names) * len(set(sizes[0])) * len(set(sizes[1])), 0
    with progress("sizes", quiet) as advance:

        def told(row: comparison.Row) -> None:
            nonlocal done
            done += 1
            advance(done, total, f"{row['backend']}, {row['qubits']} qubits")

        found = comparison.compare(ansatz, *sizes, backends=names, progress=told, **settings)
    title = f"{printable(shortened(ansatz.name))}, {'whole matrix' if full else f'first {columns} columns'}"
    if plot:
        save(comparison.plot(found, title=label(f"{title}, one thread")), plot)
    if not form.tell(found):
        show_comparison(found, title)


def _milliseconds(seconds: float | None) -> str:
    if not seconds:
        return "-"
    return f"{1000 * seconds:,.0f}" if seconds >= 1 else f"{1000 * seconds:.3g}"


def show_comparison(rows: list[comparison.Row], title: str) -> None:
    """Print what ``compare`` found; below it, the sizes that were not measured."""
    native = {(row["qubits"], row["layers"]): row["both"] for row in rows if row["backend"] == "native"}
    cells, lost = [], []
    for row in rows:
        start = row["backend"], str(row["qubits"]), str(row["layers"])
        if row["status"] != "ok":
            lost.append(f"{row['backend']}, {row['qubits']} qubits, L = {row['layers']}: {row['status']}")
            continue
        mine = native.get((row["qubits"], row["layers"]))
        ratio = f"{row['both'] / mine:.3g}" if mine and row["both"] else "-"
        memory = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:,.1f}"
        agrees = f"{row['agreement']:.0e}"
        cells.append((*start, _milliseconds(row["forward"]), _milliseconds(row["both"]), ratio, memory, agrees))
    heads = ("backend", "qubits", "L", "forward", "both", "to native", "MiB", "agrees")
    table(heads, cells, title=f"{title}, {rows[0]['batch']} at once, float32")
    console.print("ms of process time on one thread, medians; both: forward and backward")
    for line in lost:
        console.print(printable(line), soft_wrap=True)
