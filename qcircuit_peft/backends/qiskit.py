"""Qiskit, forward only and in complex128: an independent check that counts wires the other way.

Columns come from ``quantum_info``, shots and noise from Aer; any other ``BackendV2`` is a device, which is measured.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
import torch
from qiskit import QuantumCircuit, transpile
from qiskit.circuit import ParameterVector
from qiskit.circuit.library import get_standard_gate_name_mapping
from qiskit.exceptions import QiskitError
from qiskit.primitives import BackendSamplerV2
from qiskit.quantum_info import Operator
from qiskit.transpiler import generate_preset_pass_manager
from qiskit_aer import AerSimulator
from qiskit_aer.noise import amplitude_damping_error, depolarizing_error, phase_damping_error
from torch import Tensor

from qcircuit_peft.backends.noise import Noise
from qcircuit_peft.backends.shots import TO_NONE
from qcircuit_peft.backends.simulator import calls
from qcircuit_peft.backends.table import BACKENDS
from qcircuit_peft.circuit import Circuit, Op
from qcircuit_peft.gates import GATES
from qcircuit_peft.text import did_you_mean, shown

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


def frequencies(circuit: Circuit, angles: Tensor, shots: int, seed: int, device: Any = None) -> Tensor:
    """Relative frequencies of the basis states, (B, N), in ``shots`` measurements of U|0...0> by Aer or a device."""
    if device is not None:
        return measured([circuit], angles[None], shots, seed, device)[0][0]
    simulator = AerSimulator(method="statevector", seed_simulator=seed)
    circuits = [circuit_of(circuit, row) for row in angles.tolist()]
    for measured_one in circuits:
        measured_one.measure_all()
    result = simulator.run(transpile(circuits, simulator, optimization_level=0), shots=shots).result()
    found = torch.zeros(len(circuits), circuit.dim, dtype=torch.float64)
    for row in range(len(circuits)):
        for outcome, count in result.get_counts(row).items():
            found[row, int(outcome, 2)] = count / shots
    return found


def device_named(name: str) -> Any:
    """``aer_simulator``, or a fake backend of ``qiskit_ibm_runtime`` with the noise of the device that it copies."""
    if name == "aer_simulator":
        return AerSimulator()
    try:
        from qiskit_ibm_runtime import fake_provider
    except ModuleNotFoundError as error:
        message = f"device {name!r} needs qiskit_ibm_runtime, which is not installed; "
        raise ModuleNotFoundError(f"{message}run: pip install 'qcircuit-peft[devices]'", name=error.name) from error
    classes = [kind for kind in vars(fake_provider).values() if getattr(kind, "backend_name", None)]
    known: dict[str, Any] = {"aer_simulator": AerSimulator} | {kind.backend_name: kind for kind in classes}
    if name not in known:
        raise ValueError(f"Qiskit has no device {shown(name)} here; {did_you_mean(name, known)}")
    return known[name]()


def measured(
    circuits: Sequence[Circuit], angles: Tensor, shots: int, seed: int, device: Any, mitigation: Sequence[str] = ()
) -> tuple[Tensor, Tensor]:
    """Relative frequencies, (C, B, N), of C circuits with B rows of angles each, (C, B, P), measured on a BackendV2.

    The circuits are transpiled to the device's basis and coupling. With mitigation they are quasi-probabilities:
    "zne" also runs U U^-1 U, where the noise is three times as strong, and extrapolates to none by a line; "readout"
    undoes the confusion of each qubit, found by as many shots of |0...0> and |1...1> on it. The second result are the
    standard errors of p(0, i) - p(1, i), (C, B, N / 2), of the first wire: those of the counts, calibration included.
    Raises ValueError for a circuit that does not fit the device, or where it fails.
    """
    try:
        ready = [_transpiled(circuit, device) for circuit in circuits]
        folds = (1, 3) if "zne" in mitigation else (1,)
        jobs = [_folded(one, fold, device) for fold in folds for one in ready]
        found = _sampled(
            jobs, [row.double().numpy() for row in angles.detach().cpu()] * len(folds), shots, seed, device
        )
        rates = _readout(jobs, shots, seed, device) if "readout" in mitigation else [[]] * len(jobs)
    except QiskitError as error:
        said = " ".join(str(error.message).split())
        raise ValueError(f"the device {device.name!r} does not run this circuit: {said}") from error
    weights = TO_NONE if len(folds) == 2 else (1.0,)
    both = [
        _mitigated(found[at :: len(circuits)], weights, one, shots) for at, one in enumerate(rates[: len(circuits)])
    ]
    shares, errors = (torch.from_numpy(np.stack(each)).to(angles.device) for each in zip(*both, strict=True))
    return shares, errors


@lru_cache(maxsize=256)
def _transpiled(circuit: Circuit, device: Any) -> QuantumCircuit:
    """A circuit with free angles, measured, in the device's gates and on its qubits."""
    free: Any = ParameterVector("theta", circuit.n_angles)
    values = [one(free) for one in circuit.made]
    made = circuit_of(circuit.plain, values)
    made.measure_all()
    return _manager(device, 3).run(made)


@lru_cache(maxsize=16)
def _manager(device: Any, level: int) -> Any:
    """Qiskit's transpiler for a device; at level 0 a circuit stays on the qubits that it names."""
    where: Any = {"initial_layout": list(range(device.num_qubits))} if level == 0 and device.num_qubits else {}
    return generate_preset_pass_manager(optimization_level=level, target=device.target, seed_transpiler=0, **where)


def _folded(circuit: QuantumCircuit, fold: int, device: Any) -> QuantumCircuit:
    """U (U^-1 U)^((fold - 1) / 2) in the place of a transpiled U, measured as it was."""
    if fold == 1:
        return circuit
    body, measure = circuit.copy_empty_like(), circuit.copy_empty_like()
    for instruction in circuit.data:
        name = instruction.operation.name
        if name != "barrier":
            (measure if name == "measure" else body)._append(instruction)  # type: ignore[call-overload]
    whole = body.copy()
    for _ in range((fold - 1) // 2):
        for part in (body.inverse(), body):
            whole.barrier()
            whole.compose(part, inplace=True)
    whole.barrier()
    whole.compose(measure, whole.qubits, whole.clbits, inplace=True)
    return generate_preset_pass_manager(
        optimization_level=0, target=device.target, initial_layout=list(range(whole.num_qubits)), seed_transpiler=0
    ).run(whole)


def _is_remote(device: Any) -> bool:
    """Whether it is one of an account at IBM, which has no ``run`` of its own."""
    return type(device).__module__.startswith("qiskit_ibm_runtime.ibm_backend")


def _sampled(circuits: Sequence[Any], values: Iterable[Any], shots: int, seed: int, device: Any) -> list[np.ndarray]:
    """Frequencies, (B, 2^n), of each circuit with its rows of values."""
    if _is_remote(device):
        from qiskit_ibm_runtime.executor_sampler import Sampler

        sampler: Any = Sampler(mode=device)
    else:
        sampler = BackendSamplerV2(backend=device, options={"seed_simulator": seed})
    pubs = []
    for circuit, rows in zip(circuits, values, strict=True):  # a transpiler takes out what no measurement sees
        pubs.append((circuit, rows[:, [one.index for one in circuit.parameters]]))
    results = sampler.run(pubs, shots=shots).result()
    found = []
    for (_, rows), result in zip(pubs, results, strict=True):
        (bits,) = result.data.values()
        shares = np.zeros((len(rows), 1 << bits.num_bits))
        for row in range(len(rows)):
            counts: Mapping[int, int] = bits.get_int_counts(row)
            shares[row, list(counts)] = np.array(list(counts.values())) / shots
        found.append(shares)
    return found


Rates = list[tuple[float, float]]  # of each bit: how often a 0, and a 1, is read as 1


def _readout(circuits: Sequence[QuantumCircuit], shots: int, seed: int, device: Any) -> list[Rates]:
    """How the bits of each circuit are read, as the device shows it."""
    where = [_measured_qubits(circuit) for circuit in circuits]
    rates: dict[tuple[int, ...], Rates] = {}
    for qubits in dict.fromkeys(where):
        both = []
        for excited in (False, True):
            known = QuantumCircuit(device.num_qubits or 1 + max(qubits), len(qubits))
            if excited:
                known.x(list(qubits))
            known.measure(list(qubits), range(len(qubits)))
            both.append(_manager(device, 0).run(known))
        shares = _sampled(both, [np.zeros((1, 0))] * 2, shots, seed, device)
        rates[qubits] = list(zip(*(_ones(row[0]) for row in shares), strict=True))
    return [rates[qubits] for qubits in where]


def _mitigated(
    found: Sequence[np.ndarray], weights: Sequence[float], rates: Rates, shots: int
) -> tuple[np.ndarray, np.ndarray]:
    """The weighted sum of frequencies, (B, N), read without error, and standard errors of p(0, i) - p(1, i).

    Counts are multinomial, so that a sum of a_j p_j has the variance (sum of a_j^2 p_j - its square) / shots; the rates
    of the readout are binomial. They are those of all that is added.
    """
    undone = {bit: np.linalg.inv([[1 - low, 1 - high], [low, high]]) for bit, (low, high) in enumerate(rates)}
    top = found[0].shape[1].bit_length() - 2
    first = undone.get(top, np.eye(2))
    squares = {**{bit: each**2 for bit, each in undone.items()}, top: (first[:1] - first[1:]) ** 2}
    shares = _along(undone, np.tensordot(weights, np.stack(found), 1))
    variance = np.zeros_like(_contrast(shares))
    for weight, each in zip(weights, found, strict=True):
        own = _along(squares, each) - _contrast(_along(undone, each)) ** 2
        variance += weight**2 * np.maximum(own, 1 / shots) / shots
    for bit, pair in enumerate(rates):
        for value, rate in enumerate(pair):
            moved = np.zeros((2, 2))
            moved[:, value] = np.array([1, -1]) / (pair[1] - pair[0])  # how the shares follow the rate
            variance += _contrast(_along({bit: moved}, shares)) ** 2 * rate * (1 - rate) / shots
    return shares, np.sqrt(variance)


def _along(matrices: Mapping[int, np.ndarray], shares: np.ndarray) -> np.ndarray:
    """Shares of outcomes, (B, 2^n), with each matrix applied to its bit, of which the first is the last axis."""
    n = shares.shape[1].bit_length() - 1
    tensor = shares.reshape(len(shares), *(2,) * n)
    for bit, matrix in matrices.items():
        tensor = np.moveaxis(np.tensordot(matrix, tensor, (1, n - bit)), 0, n - bit)
    return tensor.reshape(len(shares), -1)


def _contrast(shares: np.ndarray) -> np.ndarray:
    return np.subtract(*np.split(shares, 2, axis=1))


def _measured_qubits(circuit: QuantumCircuit) -> tuple[int, ...]:
    """The physical qubit behind each classical bit."""
    found = {}
    for instruction in circuit.data:
        if instruction.operation.name == "measure":
            found[circuit.find_bit(instruction.clbits[0]).index] = circuit.find_bit(instruction.qubits[0]).index
    return tuple(found[bit] for bit in range(len(found)))


def _ones(shares: np.ndarray) -> list[float]:
    """How often each bit, the least significant first, was 1."""
    bits = len(shares).bit_length() - 1
    outcomes = np.arange(len(shares))
    return [float(shares[(outcomes >> bit) & 1 == 1].sum()) for bit in range(bits)]
