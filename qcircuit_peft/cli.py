"""The ``qcircuit-peft`` command: look at circuits and export them."""

from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from qcircuit_peft.ansatz import Ansatz, load, names
from qcircuit_peft.circuit import Circuit
from qcircuit_peft.drawing import draw as draw_text
from qcircuit_peft.drawing import draw_mpl
from qcircuit_peft.qasm import to_qasm

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)
console = Console()

Source = Annotated[
    str, typer.Argument(metavar="CIRCUIT", help="the name of a shipped circuit, or the path of a .toml file")
]
Qubits = Annotated[int | None, typer.Option(help="number of qubits; 4 if no dim is given")]
Dim = Annotated[
    int | None, typer.Option(help="dimension of the matrix, such as 768; odd prime factors are wires of their own")
]
Layers = Annotated[int, typer.Option(help="number of layers L")]


def _load(source: str) -> Ansatz:
    try:
        return load(source)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _circuit(source: str, qubits: int | None, dim: int | None, layers: int) -> Circuit:
    qubits = 4 if qubits is None and dim is None else qubits
    try:
        return _load(source).circuit(qubits=qubits, dim=dim, layers=layers)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


@app.command("list")
def list_circuits() -> None:
    """List the circuits that come with the library."""
    table = Table("circuit", "real", "angles at 8 qubits, L = 1", "about")
    for name in names():
        circuit = load(name).circuit(qubits=8, layers=1)
        table.add_row(name, "yes" if circuit.is_real else "no", str(circuit.n_angles), load(name).about)
    console.print(table)


@app.command()
def show(source: Source) -> None:
    """Print a circuit file as TOML: a start for one of your own."""
    print(_load(source).to_toml(), end="")


@app.command()
def draw(
    source: Source,
    qubits: Qubits = None,
    dim: Dim = None,
    layers: Layers = 1,
    plot: Annotated[
        str | None, typer.Option(help="write a picture (PNG, PDF or SVG by its ending) instead of text")
    ] = None,
) -> None:
    """Draw a circuit: qcircuit-peft draw simplified_two_design --qubits 5 --layers 2"""
    circuit = _circuit(source, qubits, dim, layers)
    if plot is None:
        print(draw_text(circuit))
        size = f"matrix {circuit.dim} x {circuit.dim}"
        console.print(f"{circuit.n_angles} angles, {len(circuit.ops)} gates, depth {circuit.depth}, {size}")
    else:
        try:
            draw_mpl(circuit).savefig(plot, dpi=150)
        except (OSError, ValueError) as error:
            raise typer.BadParameter(f"{plot} cannot be written: {error}") from None
        console.print(f"drawn in {plot}")


@app.command()
def qasm(
    source: Source,
    qubits: Qubits = None,
    layers: Layers = 1,
    version: Annotated[int, typer.Option(help="OpenQASM version: 3 or 2")] = 3,
    seed: Annotated[int, typer.Option(help="seed of the random angles")] = 0,
) -> None:
    """Print a circuit with random angles as OpenQASM."""
    circuit = _circuit(source, qubits, None, layers)
    angles = (
        2 * torch.pi * torch.rand(circuit.n_angles, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    )
    try:
        print(to_qasm(circuit, angles, version=version), end="")
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


if __name__ == "__main__":
    app()
