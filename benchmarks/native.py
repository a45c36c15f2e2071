"""The native engine against the cost of writing its result and against other simulators.

Forward and backward with respect to all angles, simplified two-design, float32, one thread, medians of process time:

    python benchmarks/native.py [--quick]
"""

import sys
from collections.abc import Callable
from importlib import import_module

import torch
from _timing import Dispatched, in_fresh_process, medians, memory  # first: it sets the number of threads
from rich.console import Console
from rich.table import Table
from torch import Tensor

from qcircuit_peft import Circuit, columns, load

Columns = Callable[[Tensor], Tensor]  # angles -> the first columns of the circuit's matrix


def two_design(q: int, layers: int) -> Circuit:
    return load("simplified_two_design").circuit(qubits=q, layers=layers)


def pennylane(q: int, layers: int, k: int) -> Columns:
    """PennyLane's ``default.qubit`` with backpropagation, all columns in one broadcast."""
    import pennylane as qml

    start = torch.eye(2**q, dtype=torch.complex64)[:k]

    @qml.qnode(qml.device("default.qubit", wires=q), interface="torch", diff_method="backprop")
    def state(initial, weights):
        qml.StatePrep(start, wires=range(q), validate_norm=False)
        qml.SimplifiedTwoDesign(initial, weights, wires=range(q))
        return qml.state()

    return lambda angles: state(angles[:q], angles[q:].reshape(layers, q - 1, 2)).T


def torchquantum(q: int, layers: int, k: int) -> Columns:
    """TorchQuantum's gates on its ``QuantumDevice``, all columns in one batch."""
    import_module("qcircuit_peft.backends.torchquantum")
    circuit = two_design(q, layers)
    return lambda angles: columns(circuit, angles, k, backend="torchquantum")


# Other simulators by their name in the table: (qubits, layers, columns) -> a function of one angle vector. One that is
# not installed is left out.
PEERS: dict[str, Callable[[int, int, int], Columns]] = {"PennyLane": pennylane, "TorchQuantum": torchquantum}

# What they are measured on, L = 1: columns (None is the whole matrix), qubits, our factors at once, the least ratio by
# peer, repeats, warm-ups.
PEER_RUNS = (
    (None, 10, None, {"PennyLane": 100, "TorchQuantum": 30}, 7, 1),
    (None, 12, None, {"TorchQuantum": 60}, 1, 0),
    (8, 12, None, {"PennyLane": 40, "TorchQuantum": 20}, 50, 2),
    (8, 12, 24, {"PennyLane": 40, "TorchQuantum": 20}, 50, 2),
)

# Circuits whose torch operations are counted, with the most of all operations and of those that are not views.
OPERATIONS = (
    ("q=12, L=1", two_design(12, 1), 100, 45),
    ("q=11, L=1", two_design(11, 1), 100, 45),
    ("N=768, L=1", load("simplified_two_design").circuit(dim=768, layers=1), 130, 60),
    ("q=12, L=2", two_design(12, 2), 125, 55),
    ("q=12, L=3", two_design(12, 3), 150, 65),
    ("q=12, L=4", two_design(12, 4), 175, 75),
)


def step(
    circuit: Circuit, k: int, factors: int | None = None, columns_of: Columns | None = None
) -> Callable[[], Tensor]:
    """Forward and backward: the gradient of the angles of one factor, or of several, for a fixed cotangent."""
    lead = () if factors is None else (factors,)
    angles = torch.rand(*lead, circuit.n_angles).requires_grad_()
    cotangent = torch.randn(*lead, circuit.dim, k)
    run = columns_of or (lambda angles: columns(circuit, angles, k))

    def forward_and_backward() -> Tensor:
        out = run(angles)
        return torch.autograd.grad(out.real, angles, cotangent)[0]

    return forward_and_backward


def peak_bytes(q: int, layers: int) -> int:
    """What forward and backward of the full matrix add to the memory of this process at most."""
    circuit, small = two_design(q, layers), two_design(4, layers)
    step(small, small.dim)()
    run = step(circuit, circuit.dim)
    before = memory()[0]
    run()
    return memory()[1] - before


def peer(name: str, q: int, layers: int, k: int) -> Columns | None:
    try:
        return PEERS[name](q, layers, k)
    except ModuleNotFoundError as error:
        print(f"{name} is left out: {error}", file=sys.stderr)
        return None


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:,.3g} ms" if seconds < 1 else f"{1000 * seconds:,.0f} ms"


def main(quick: bool) -> None:
    table = Table(title="native engine: forward and backward, simplified two-design, float32, one thread")
    for name in ("what", "target", "measured", "ratio"):
        table.add_column(name, justify="left" if name == "what" else "right", no_wrap=True)

    for layers in (1,) if quick else (1, 2, 4):  # before anything large lives here
        floor = 4 * 4**12
        peak = int(in_fresh_process("--peak", str(layers)))
        measured = f"{peak / 2**20:.0f} MiB / {floor / 2**20:.0f} MiB"
        table.add_row(
            f"full matrix, q=12, L={layers}: peak bytes / bytes of U", "<= 4", measured, f"{peak / floor:.2f}"
        )
    table.add_section()

    for layers in (1,) if quick else (1, 2, 4):
        circuit = two_design(12, layers)
        made = torch.randn(circuit.dim, circuit.dim)
        took = medians({"ours": step(circuit, circuit.dim), "clone": made.clone}, 3 if quick else 15)
        measured = f"{milliseconds(took['ours'])} / {milliseconds(took['clone'])}"
        what = f"full matrix, q=12, L={layers}: time / one U.clone()"
        table.add_row(what, "<= 6", measured, f"{took['ours'] / took['clone']:.2f}")
    table.add_section()

    for k, q, factors, least, repeats, warmups in PEER_RUNS:
        circuit = two_design(q, 1)
        k = k or circuit.dim
        for name, target in least.items():
            run = peer(name, q, 1, k)
            if run is None or (quick and q == 12 and k == circuit.dim):
                continue
            runs = {"ours": step(circuit, k, factors), "theirs": step(circuit, k, columns_of=run)}
            took = medians(runs, min(repeats, 5) if quick else repeats, warmups)
            ours = took["ours"] / (factors or 1)
            what = f"{'full matrix' if k == circuit.dim else f'{k} columns'}, q={q}, L=1: {name} / ours"
            what += f", {factors} factors, per factor" if factors else ""
            measured = f"{milliseconds(took['theirs'])} / {milliseconds(ours)}"
            table.add_row(what, f">= {target}", measured, f"{took['theirs'] / ours:.0f}")
    table.add_section()

    for what, circuit, most, most_beside in OPERATIONS[:2] if quick else OPERATIONS:
        for factors in (1, 24):
            run = step(circuit, 8, factors)
            run()
            with Dispatched() as ops:
                run()
            for kind, count, limit in (("all", ops.count, most), ("no views", ops.count - ops.views, most_beside)):
                row = f"8 columns, {what}, {factors} factor(s): torch operations, {kind}"
                table.add_row(row, f"<= {limit}", str(count), f"{count / limit:.2f}")

    Console(width=None if sys.stdout.isatty() else 120).print(table)


if __name__ == "__main__":
    torch.manual_seed(0)
    if sys.argv[1:2] == ["--peak"]:
        print(peak_bytes(12, int(sys.argv[2])))
    else:
        main(quick="--quick" in sys.argv)
