"""PennyLane: ``default.qubit`` with backpropagation, or any other of its devices by name, which runs forward only.

All columns, of all rows of angles, are one broadcast. PennyLane computes in complex128 whatever the angles are.
"""

from collections.abc import Callable
from difflib import get_close_matches
from functools import lru_cache, partial
from importlib.metadata import entry_points
from typing import Any

import pennylane as qml
import torch
from pennylane.tape import QuantumScript
from torch import Tensor

from qcircuit_peft.backends.noise import Noise
from qcircuit_peft.backends.simulator import angles_of, identity, simulate
from qcircuit_peft.circuit import Circuit

DEFAULT_DEVICE = "default.qubit"

# Our names of gates in PennyLane: constructors that take angles, then wires.
GATES: dict[str, Callable[..., Any]] = {
    "RY": qml.RY, "RX": qml.RX, "RZ": qml.RZ, "P": qml.PhaseShift,
    "H": qml.Hadamard, "X": qml.X, "Y": qml.Y, "Z": qml.Z, "S": qml.S, "T": qml.T,
    "CZ": qml.CZ, "CX": qml.CNOT, "SWAP": qml.SWAP, "CRX": qml.CRX, "CRY": qml.CRY, "CRZ": qml.CRZ,
    "RXX": qml.IsingXX, "RYY": qml.IsingYY, "RZZ": qml.IsingZZ, "GIVENS": qml.SingleExcitation,
}  # fmt: skip


@lru_cache
def _known() -> list[str]:
    return sorted(entry.name for entry in entry_points(group="pennylane.plugins"))


def _device(name: str, qubits: int, **settings: Any) -> Any:
    if name not in _known():
        near = get_close_matches(name, _known(), n=3) or _known()
        raise ValueError(f"PennyLane has no device {name!r} here; did you mean one of {', '.join(near)}")
    if name == "null.qubit":
        raise ValueError("PennyLane's device 'null.qubit' computes nothing; choose another")
    try:
        return qml.device(name, wires=qubits, **settings)
    except (TypeError, ImportError, qml.exceptions.DeviceError) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"PennyLane's device {name!r} cannot be used here: {said}") from error


def operations(circuit: Circuit, angles: Tensor) -> list[Any]:
    """The gates of a circuit as PennyLane's, for one row of angles (n_angles,) or a broadcast of rows."""
    gates = [GATES[op.gate](*angles_of(op, angles), wires=op.wires) for op in circuit.ops]
    return [qml.adjoint(gate) if op.adjoint else gate for gate, op in zip(gates, circuit.ops, strict=True)]


def _execute(tapes: list[QuantumScript], device: Any, gradients: bool = False) -> list[Tensor]:
    try:
        results = qml.execute(tapes, device, diff_method="backprop" if gradients else None)
    except (
        qml.exceptions.DeviceError,
        qml.exceptions.DecompositionError,
        NotImplementedError,
        ImportError,
    ) as error:
        raise ValueError(f"PennyLane's device {device.name!r} cannot run this circuit: {error}") from error
    return [torch.as_tensor(result) for result in results]


def _run(device: str, circuit: Circuit, angles: Tensor, x: Tensor) -> Tensor:
    b, n, k = x.shape
    row = angles[0] if b == 1 else angles.repeat_interleave(k, 0)
    wires = range(len(circuit.dims))
    rows = x.mT.reshape(b * k, n)
    start = qml.StatePrep(rows, wires=wires, validate_norm=False)  # type: ignore[arg-type]
    tape = QuantumScript([start, *operations(circuit, row)], [qml.state()])
    gradients = device == DEFAULT_DEVICE and torch.is_grad_enabled()
    (states,) = _execute([tape], _device(device, len(circuit.dims)), gradients)
    if states.numel() != rows.numel():
        raise ValueError(
            f"PennyLane's device {device!r} gives no statevectors of shape {tuple(rows.shape)}, "
            f"but a result of shape {tuple(states.shape)}"
        )
    return states.reshape(b, k, n).mT


def frequencies(circuit: Circuit, angles: Tensor, shots: int, seed: int, device: str = DEFAULT_DEVICE) -> Tensor:
    """Relative frequencies of the basis states, (B, N), in ``shots`` measurements of U|0...0> by the device."""
    measured = [qml.probs(wires=range(len(circuit.dims)))]
    tapes = [QuantumScript(operations(circuit, row), measured, shots=shots) for row in angles.detach()]
    return torch.stack(_execute(tapes, _device(device, len(circuit.dims), seed=seed)))


def density(circuit: Circuit, angles: Tensor, noise: Noise) -> Tensor:
    """Density matrices after the noisy circuit on |0...0>, (B, N, N), by ``default.mixed``."""
    wires = range(len(circuit.dims))
    tapes = []
    for row in angles.detach():
        noisy: list[Any] = []
        for gate, op in zip(operations(circuit, row), circuit.ops, strict=True):
            noisy.append(gate)
            for wire in op.wires:
                noisy += [
                    qml.DepolarizingChannel(noise.depolarizing, wire),
                    qml.AmplitudeDamping(noise.amplitude_damping, wire),
                    qml.PhaseDamping(noise.phase_damping, wire),
                ]
        tapes.append(QuantumScript(noisy, [qml.density_matrix(wires)]))
    return torch.stack(_execute(tapes, _device("default.mixed", len(circuit.dims))))


def apply(circuit: Circuit, angles: Tensor, x: Tensor, device: str = DEFAULT_DEVICE) -> Tensor:
    """U x for the columns of x, (*batch, N, K); raises ValueError for a device that is not there or lacks a gate."""
    _device(device, len(circuit.dims))
    name = "pennylane" if device == DEFAULT_DEVICE else f"pennylane:{device}"
    return simulate(partial(_run, device), name, circuit, angles, x, gradients=device == DEFAULT_DEVICE)


def columns(circuit: Circuit, angles: Tensor, k: int, device: str = DEFAULT_DEVICE) -> Tensor:
    """The first k columns of the circuit's matrix, (*batch, N, k)."""
    return apply(circuit, angles, identity(circuit, angles, k), device)
