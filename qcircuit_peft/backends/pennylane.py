"""PennyLane: ``default.qubit`` with backpropagation, or any other of its devices by name, which runs forward only.

All columns, of all rows of angles, are one broadcast. PennyLane computes in complex128 whatever the angles are.
"""

from collections.abc import Sequence
from difflib import get_close_matches
from functools import lru_cache
from importlib.metadata import entry_points
from typing import Any

import pennylane as qml
import torch
from pennylane.noise import fold_global
from pennylane.tape import QuantumScript
from torch import Tensor

from qcircuit_peft.backends.noise import Noise
from qcircuit_peft.backends.shots import TO_NONE
from qcircuit_peft.backends.simulator import angles_of, calls, plain
from qcircuit_peft.backends.table import BACKENDS
from qcircuit_peft.circuit import Circuit, Op


@lru_cache
def _known() -> list[str]:
    return sorted(entry.name for entry in entry_points(group="pennylane.plugins"))


def check_device(name: str) -> None:
    """Raise ValueError for a device that is not installed here, or computes nothing."""
    if name not in _known():
        near = get_close_matches(name, _known(), n=3) or _known()
        raise ValueError(f"PennyLane has no device {name!r} here; did you mean one of {', '.join(near)}")
    if name == "null.qubit":
        raise ValueError("PennyLane's device 'null.qubit' computes nothing; choose another")


def _device(name: Any, qubits: int, **settings: Any) -> Any:
    if not isinstance(name, str):  # a device with settings of its own
        if name.wires is not None and not set(range(qubits)) <= set(name.wires):
            raise ValueError(
                f"PennyLane's device {name.name!r} has the wires {list(name.wires)}, but this circuit is on 0 to "
                f"{qubits - 1}"
            )
        return name
    try:
        return qml.device(name, wires=qubits, **settings)
    except (TypeError, ImportError, qml.exceptions.DeviceError) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"PennyLane's device {name!r} cannot be used here: {said}") from error


def gates_of(op: Op, values: tuple[Any, ...]) -> list[Any]:
    """An op whose angles have these values, in radians, as PennyLane's operations; several where it has only parts."""
    found = []
    for call in calls(op, values, BACKENDS["pennylane"].name_of):
        gate = getattr(qml, call.name)(*call.angles, wires=call.wires)
        found.append(qml.adjoint(gate) if call.adjoint else gate)
    return found


def operations(circuit: Circuit, angles: Tensor) -> list[Any]:
    """The gates of a circuit as PennyLane's, for one row of angles (n_angles,) or a broadcast of rows."""
    return [gate for op in circuit.ops for gate in gates_of(op, angles_of(op, angles))]


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


def run(circuit: Circuit, angles: Tensor, x: Tensor, device: Any) -> Tensor:
    """U x, (B, N, K), on a device; raises ValueError for one that is not there, lacks a gate or gives no states."""
    b, n, k = x.shape
    row = angles[0] if b == 1 else angles.repeat_interleave(k, 0)
    wires = range(len(circuit.dims))
    rows = x.mT.reshape(b * k, n)
    start = qml.StatePrep(rows, wires=wires, validate_norm=False)  # type: ignore[arg-type]
    tape = QuantumScript([start, *operations(circuit, row)], [qml.state()])
    gradients = isinstance(device, str) and device == BACKENDS["pennylane"].device and torch.is_grad_enabled()
    (states,) = _execute([tape], _device(device, len(circuit.dims)), gradients)
    if states.numel() != rows.numel():
        raise ValueError(
            f"PennyLane's device {_name(device)!r} gives no statevectors of shape {tuple(rows.shape)}, "
            f"but a result of shape {tuple(states.shape)}"
        )
    return states.reshape(b, k, n).mT


def measured(
    circuits: Sequence[Circuit], angles: Tensor, shots: int, seed: int, device: Any, mitigation: Sequence[str] = ()
) -> tuple[Tensor, Tensor]:
    """Relative frequencies, (C, B, N), of C circuits with B rows of angles each, (C, B, P), measured on a device.

    The second result are the standard errors of p(0, i) - p(1, i), (C, B, N / 2), of the first wire.

    With mitigation "zne" they are quasi-probabilities: U U^-1 U runs as well, by PennyLane's ``fold_global``, where the
    noise is three times as strong, and a line is extrapolated to none. Raises ValueError for any other mitigation.
    """
    for name in mitigation:
        if name != "zne":
            raise ValueError(f"PennyLane's devices are mitigated by 'zne', got {name!r}; Qiskit's by 'readout' too")
    found = []
    for circuit, rows in zip(circuits, angles.detach(), strict=True):
        wires = range(len(circuit.dims))
        simple, values = plain(circuit, rows.double())
        tapes = [QuantumScript(operations(simple, row), [qml.probs(wires=wires)], shots=shots) for row in values]
        on = _device(device, len(circuit.dims), seed=seed)
        fold: Any = fold_global
        folds = [tapes, [fold(tape, 3)[0][0] for tape in tapes]] if mitigation else [tapes]
        weights = torch.tensor(TO_NONE if mitigation else (1.0,), dtype=torch.float64)
        shares = torch.stack([torch.stack(_execute(each, on)) for each in folds], -1)
        plus, minus = shares.chunk(2, 1)
        variance = (plus + minus - (plus - minus).square()).clamp_min(1 / shots) / shots
        found.append((shares @ weights, (variance @ weights.square()).sqrt()))
    shares, errors = map(torch.stack, zip(*found, strict=True))
    return shares, errors


def _name(device: Any) -> str:
    return device if isinstance(device, str) else device.name


def frequencies(circuit: Circuit, angles: Tensor, shots: int, seed: int, device: Any) -> Tensor:
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
        for op in circuit.ops:
            noisy += gates_of(op, angles_of(op, row))
            for wire in op.wires:
                noisy += [
                    qml.DepolarizingChannel(noise.depolarizing, wire),
                    qml.AmplitudeDamping(noise.amplitude_damping, wire),
                    qml.PhaseDamping(noise.phase_damping, wire),
                ]
        tapes.append(QuantumScript(noisy, [qml.density_matrix(wires)]))
    return torch.stack(_execute(tapes, _device("default.mixed", len(circuit.dims))))
