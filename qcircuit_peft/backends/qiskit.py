"""Qiskit, forward only and in complex128: an independent check that counts wires the other way.

Columns come from ``quantum_info``, shots and noise from Aer.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from math import pi
from typing import Any

import numpy as np
import torch
from qiskit import QuantumCircuit, transpile
from qiskit.circuit import library
from qiskit.quantum_info import Operator
from qiskit_aer import AerSimulator
from qiskit_aer.noise import amplitude_damping_error, depolarizing_error, phase_damping_error
from torch import Tensor

from qcircuit_peft.backends.noise import Noise
from qcircuit_peft.backends.simulator import identity, simulate
from qcircuit_peft.circuit import Circuit, Op

# Our names of gates in Qiskit: constructors that take angles.
GATES: dict[str, Callable[..., Any]] = {
    "RY": library.RYGate, "RX": library.RXGate, "RZ": library.RZGate, "P": library.PhaseGate,
    "H": library.HGate, "X": library.XGate, "Y": library.YGate, "Z": library.ZGate,
    "S": library.SGate, "T": library.TGate, "CZ": library.CZGate, "CX": library.CXGate, "SWAP": library.SwapGate,
    "CRX": library.CRXGate, "CRY": library.CRYGate, "CRZ": library.CRZGate,
    "RXX": library.RXXGate, "RYY": library.RYYGate, "RZZ": library.RZZGate,
    "GIVENS": partial(library.XXPlusYYGate, beta=-pi / 2),
}  # fmt: skip


def gate_of(op: Op, angles: list[float]) -> Any:
    """The gate of an op for one row of angles (n_angles,), in radians."""
    gate = GATES[op.gate](*(angles[a] for a in op.angles or ()))
    return gate.inverse() if op.adjoint else gate


def _run(circuit: Circuit, angles: Tensor, x: Tensor) -> Tensor:
    last = len(circuit.dims) - 1
    found = []
    for row, start in zip(angles.tolist(), x.detach().cpu().numpy(), strict=True):
        columns = Operator(start, input_dims=(start.shape[1],), output_dims=circuit.dims)
        for op in circuit.ops:
            columns = columns.compose(Operator(gate_of(op, row)), qargs=[last - w for w in op.wires])
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
        made.append(gate_of(op, angles), qubits)
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


def apply(circuit: Circuit, angles: Tensor, x: Tensor) -> Tensor:
    """U x for the columns of x, (*batch, N, K)."""
    return simulate(_run, "qiskit", circuit, angles, x, gradients=False)


def columns(circuit: Circuit, angles: Tensor, k: int) -> Tensor:
    """The first k columns of the circuit's matrix, (*batch, N, k)."""
    return apply(circuit, angles, identity(circuit, angles, k))
