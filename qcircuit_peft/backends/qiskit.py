"""Qiskit, forward only and in complex128: an independent check that counts wires the other way.

Columns come from ``quantum_info``, shots and noise from Aer.
"""

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from qiskit import QuantumCircuit, transpile
from qiskit.circuit.library import get_standard_gate_name_mapping
from qiskit.quantum_info import Operator
from qiskit_aer import AerSimulator
from qiskit_aer.noise import amplitude_damping_error, depolarizing_error, phase_damping_error
from torch import Tensor

from qcircuit_peft.backends.noise import Noise
from qcircuit_peft.backends.simulator import calls
from qcircuit_peft.backends.table import BACKENDS
from qcircuit_peft.circuit import Circuit, Op
from qcircuit_peft.gates import GATES

_STANDARD: dict[str, Any] = get_standard_gate_name_mapping()


def gate_of(op: Op, values: Sequence[Any]) -> Any:
    """The gate of an op whose angles have these values, in radians; made of its parts where Qiskit lacks it."""
    found = list(calls(op, tuple(values), BACKENDS["qiskit"].name_of))
    gates = [_STANDARD[call.name].base_class(*call.angles) for call in found]
    gates = [gate.inverse() if call.adjoint else gate for gate, call in zip(gates, found, strict=True)]
    if GATES[op.gate].names.qiskit:
        return gates[0]
    made = QuantumCircuit(len(op.wires), name=op.gate + "†" * op.adjoint)
    for gate, call in zip(gates, found, strict=True):
        made.append(gate, [op.wires.index(wire) for wire in call.wires])
    return made.to_gate()


def _valued(op: Op, angles: list[float]) -> list[float]:
    return [angles[a] for a in op.angles or ()]


def run(circuit: Circuit, angles: Tensor, x: Tensor) -> Tensor:
    """U x, (B, N, K)."""
    last = len(circuit.dims) - 1
    found = []
    for row, start in zip(angles.tolist(), x.detach().cpu().numpy(), strict=True):
        columns = Operator(start, input_dims=(start.shape[1],), output_dims=circuit.dims)
        for op in circuit.ops:
            columns = columns.compose(Operator(gate_of(op, _valued(op, row))), qargs=[last - w for w in op.wires])
        found.append(columns.data)
    return torch.as_tensor(np.stack(found), device=x.device)


def circuit_of(circuit: Circuit, angles: list[float], after: Sequence[Any] = ()) -> QuantumCircuit:
    """The circuit for one row of angles as Qiskit's; wire 0 is its last qubit, so that basis indices agree.

    ``after`` are one-qubit instructions that follow every gate on each of its wires.
    """
    last = len(circuit.dims) - 1
    made = QuantumCircuit(len(circuit.dims))
    for op in circuit.ops:
        qubits = [last - w for w in op.wires]
        made.append(gate_of(op, _valued(op, angles)), qubits)
        for qubit, instruction in product(qubits, after):
            made.append(instruction, [qubit])
    return made


def density(circuit: Circuit, angles: Tensor, noise: Noise) -> Tensor:
    """Density matrices after the noisy circuit on |0...0>, (B, N, N), by Aer."""
    errors = (
        depolarizing_error(4 * noise.depolarizing / 3, 1),  # Aer's parameter is the weight of the mixed state
        amplitude_damping_error(noise.amplitude_damping),
        phase_damping_error(noise.phase_damping),
    )
    after = [error.to_instruction() for error in errors]
    simulator = AerSimulator(method="density_matrix")
    circuits: list[Any] = [circuit_of(circuit, row, after) for row in angles.tolist()]
    for made in circuits:
        made.save_density_matrix()
    result = simulator.run(transpile(circuits, simulator, optimization_level=0)).result()
    return torch.as_tensor(np.stack([np.asarray(result.data(row)["density_matrix"]) for row in range(len(circuits))]))


def frequencies(circuit: Circuit, angles: Tensor, shots: int, seed: int) -> Tensor:
    """Relative frequencies of the basis states, (B, N), in ``shots`` measurements of U|0...0> by Aer."""
    simulator = AerSimulator(method="statevector", seed_simulator=seed)
    circuits = [circuit_of(circuit, row) for row in angles.tolist()]
    for measured in circuits:
        measured.measure_all()
    result = simulator.run(transpile(circuits, simulator, optimization_level=0), shots=shots).result()
    found = torch.zeros(len(circuits), circuit.dim, dtype=torch.float64)
    for row in range(len(circuits)):
        for outcome, count in result.get_counts(row).items():
            found[row, int(outcome, 2)] = count / shots
    return found
