"""``qcircuit-peft circuits``: list, show, draw and export circuits."""

from collections.abc import Iterable
from typing import Annotated

import torch
import typer

from qcircuit_peft import files
from qcircuit_peft.ansatz import load, names
from qcircuit_peft.cli.program import (
    AsCsv,
    AsJson,
    Dim,
    Layers,
    OutFile,
    Qubits,
    Quiet,
    Rows,
    Seed,
    Source,
    console,
    save,
    table,
    the_circuit,
)
from qcircuit_peft.cli.progress import progress
from qcircuit_peft.drawing import draw as draw_text
from qcircuit_peft.drawing import draw_mpl
from qcircuit_peft.explorer import page
from qcircuit_peft.lie import directions, told_surplus
from qcircuit_peft.qasm import to_qasm
from qcircuit_peft.text import printable

app = typer.Typer(no_args_is_help=True, help="List, show, draw and export circuits.")
_AT = 8  # qubits


def _written(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


@app.command("list")
def list_circuits(as_csv: AsCsv = False, as_json: AsJson = False, out: OutFile = None, quiet: Quiet = False) -> None:
    """List the circuits that come with the library; angles are those at 8 qubits and L = 1.

    qcircuit-peft circuits list

    qcircuit-peft circuits list --csv
    """
    rows = Rows(as_csv, as_json, out)
    listed = []
    with progress("circuits", quiet) as advance:
        for done, name in enumerate(every := names()):
            advance(done, len(every), name)
            family = load(name)
            circuit = family.circuit(qubits=_AT, layers=1)
            real = "yes" if circuit.is_real else "no"
            listed.append({"circuit": family.name, "real": real, "angles": circuit.n_angles, "about": family.about})
    if not rows.tell(listed):
        table(tuple(listed[0]), ([str(value) for value in row.values()] for row in listed), left=(0, 1, 3))


@app.command()
def show(source: Source) -> None:
    """Print a circuit file as TOML: a start for one of your own.

    qcircuit-peft circuits show ring_ry_cz > mine.toml
    """
    family = load(source)
    print(family.to_toml(), end="")
    if found := directions(family):
        print(f"\n# at L = 12 it moves in {_written(found.values())} directions on {_written(found)} qubits")


def explore(
    source: Annotated[
        str | None, typer.Argument(metavar="[CIRCUIT]", help="a circuit to begin with, by name or path of a .toml file")
    ] = None,
    out: Annotated[str, typer.Option(help="where the page is written")] = "explore.html",
) -> None:
    """Write a page on which circuits of up to 8 qubits are chosen, edited and looked at; it needs no network.

    qcircuit-peft explore

    qcircuit-peft explore mine.toml --out mine.html
    """
    files.write(out, page(None if source is None else load(source)))
    console.print(f"written to {printable(out)}; open it in a browser", soft_wrap=True)


@app.command()
def draw(
    source: Source,
    qubits: Qubits = None,
    dim: Dim = None,
    layers: Layers = 1,
    plot: Annotated[str | None, typer.Option(help="write a picture instead: .png, .pdf or .svg")] = None,
) -> None:
    """Draw a circuit.

    qcircuit-peft circuits draw simplified_two_design --qubits 5 --layers 2

    qcircuit-peft circuits draw mine.toml --dim 768 --plot mine.svg
    """
    circuit = the_circuit(source, qubits, dim, layers)
    if plot is not None:
        save(draw_mpl(circuit), plot)
        console.print(f"drawn in {printable(plot)}")
        return
    print(draw_text(circuit))
    size = f"matrix {circuit.dim} x {circuit.dim}"
    console.print(f"{circuit.n_angles} angles, {len(circuit.ops)} gates, depth {circuit.depth}, {size}")
    if told := told_surplus(load(source), circuit):
        console.print(printable(told))


@app.command()
def qasm(
    source: Source,
    qubits: Qubits = None,
    layers: Layers = 1,
    version: Annotated[int, typer.Option(help="OpenQASM version: 3 or 2")] = 3,
    seed: Seed = 0,
) -> None:
    """Print a circuit with random angles as OpenQASM.

    qcircuit-peft circuits qasm tree --qubits 4 --layers 2 > tree.qasm
    """
    circuit = the_circuit(source, qubits, None, layers)
    angles = (
        2 * torch.pi * torch.rand(circuit.n_angles, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    )
    print(to_qasm(circuit, angles, version=version), end="")
