"""``qcircuit-peft search`` and ``resources``: which circuit to take, and what one costs on a quantum computer."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Annotated, Any

import typer

from qcircuit_peft.analysis import resources as resources_of
from qcircuit_peft.analysis import search as rank
from qcircuit_peft.analysis.search import ORDERS
from qcircuit_peft.ansatz import names
from qcircuit_peft.cli.measures import METRIC_HELP, metric_named
from qcircuit_peft.cli.program import (
    AsCsv,
    AsJson,
    Depths,
    Dim,
    Layers,
    OutFile,
    Qubits,
    Quiet,
    Rows,
    Seed,
    Source,
    console,
    numbers,
    table,
    the_circuit,
)
from qcircuit_peft.cli.progress import progress
from qcircuit_peft.text import printable, shortened


def search(
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CIRCUIT]...", help="these names, or .toml files beside the shipped ones"),
    ] = None,
    qubits: Annotated[int, typer.Option(help="number of qubits")] = 4,
    layers: Depths = "1",
    metric: Annotated[str, typer.Option(help=METRIC_HELP)] = "meyer_wallach",
    by: Annotated[str, typer.Option(help=", ".join(ORDERS))] = "capacity",
    samples: Annotated[int, typer.Option(help="random circuits for each mean")] = 500,
    seed: Seed = 0,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
    out: OutFile = None,
    quiet: Quiet = False,
) -> None:
    """Rank circuits by what they reach and cost: the shipped ones, and files of your own.

    qcircuit-peft search --qubits 6 --layers 1,2 --metric entropy --by expressibility mine.toml

    qcircuit-peft search tree butterfly --metric mine:my_metric
    """
    form, given, measure = Rows(as_csv, as_json, out), list(files or ()), metric_named(metric)
    own = [name for name in given if name not in names()]
    sources = given if len(own) < len(given) else [*names(), *own]
    with progress("circuits", quiet) as advance:

        def track(points: Iterable[Any]) -> Iterator[Any]:
            every = list(points)
            for done, point in enumerate(every):
                advance(done, len(every), point[0].name)
                yield point

        found = rank(qubits, numbers(layers), measure, sources, by=by, samples=samples, seed=seed, track=track)
    if form.tell(found):
        return
    cells = []
    for row in found:
        share = f"{row.capacity / row.haar:.2f}" if row.haar else "-"
        start = shortened(row.circuit, 40), row.layers, "yes" if row.real else "no", row.angles, row.independent
        cost = f"{row.expressibility:.3g}", row.two_qubit, row.depth
        cells.append([str(cell) for cell in (*start, f"{row.capacity:.3g}", share, *cost)])
    heads = ("circuit", "L", "real", "angles", "indep.", "mean", "/Haar", "KL", "2-qubit", "depth")
    table(heads, cells, title=f"{qubits} qubits, mean {shortened(metric, 40)}, by {by}", left=(0, 2))


def resources(
    source: Source,
    qubits: Qubits = None,
    dim: Dim = None,
    layers: Layers = 1,
    basis: Annotated[str | None, typer.Option(help="Qiskit's names of the gates to transpile to: cz,rz,sx,x")] = None,
    coupling: Annotated[str | None, typer.Option(help="which qubits meet: line, ring or full")] = None,
    backend: Annotated[
        str | None, typer.Option(help="a device with its gates, coupling and times, such as qiskit:fake_fez")
    ] = None,
    error: Annotated[
        float | None, typer.Option(help="cost of estimated columns, off by this share of their norm")
    ] = None,
    columns: Annotated[int | None, typer.Option(help="of how many columns; 1 if not given")] = None,
    precision: Annotated[float, typer.Option(help="error of all rotations together where T gates make them")] = 1e-3,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
    out: OutFile = None,
    quiet: Quiet = False,
) -> None:
    """What a circuit costs on a quantum computer: gates, depth, T gates, shots and seconds.

    qcircuit-peft resources simplified_two_design --qubits 12 --backend qiskit:fake_fez --error 0.1 --columns 64

    Wires of several levels (--dim 768) go onto qubits, at random angles.
    """
    form = Rows(as_csv, as_json, out)
    with progress("circuits", quiet) as advance:
        advance(0, 1, source)
        found = resources_of(
            the_circuit(source, qubits, dim, layers),
            None if basis is None else basis.split(","),
            coupling,
            error,
            backend=backend if backend is None or ":" in backend else f"qiskit:{backend}",
            columns=columns,
            precision=precision,
        )
    if form.tell([{**asdict(found), "runs": found.runs, "seconds_in_all": found.seconds_in_all}]):
        return
    gates = ", ".join(f"{count:,} {name}" for name, count in sorted(found.gates.items()))
    seconds = [None if s is None else f"{s:.3g}" for s in (found.seconds, found.seconds_in_all)]
    lines: dict[str, object] = {
        "qubits": found.qubits,
        "gates": gates or "none",
        "on two qubits": f"{found.two_qubit:,}",
        "depth": f"{found.depth:,}, of those on two qubits {found.two_qubit_depth:,}",
        "rotations": f"{found.rotations:,}",
        "T gates": f"{found.t_count:,}",
        "shots": None if found.shots is None else f"{found.shots:,} for each of {found.columns} columns",
        "seconds of one": seconds[0],
        "seconds of all": seconds[1],
    }
    for name, value in lines.items():
        if value is not None:
            console.print(printable(f"{name:15} {value}"), soft_wrap=True)
