"""Qiskit's ``QuantumCircuit``, in and out; Qiskit's own transpiler takes apart what is not one of our gates."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isfinite, pi
from typing import Any

from qcircuit_peft.backends import find_backend
from qcircuit_peft.backends.simulator import check
from qcircuit_peft.circuit import Affine, Circuit
from qcircuit_peft.gates import GATES
from qcircuit_peft.interop.reading import MAX_DEPTH, Reading, check_size, needed, said
from qcircuit_peft.qasm import Angles, vector_of

_OURS = {gate.names.qiskit: (name, False) for name, gate in GATES.items() if gate.names.qiskit}
_OURS |= {gate.names.dagger: (name, True) for name, gate in GATES.items() if gate.names.dagger}
_MORE = ("u", "u1", "u2", "u3", "id", "global_phase")  # which Reading can say as they are
_NO_GATES = ("measure", "reset", "delay")  # among those that Qiskit calls standard gates


@dataclass(frozen=True)
class _Known:
    """What Qiskit has a row for: its standard gates by name, evolutions, and what only its transpiler takes apart."""

    standard: Mapping[str, Any]
    evolution: type
    synthesized: tuple[type, ...]


def from_qiskit(circuit: Any) -> Circuit:
    """A Qiskit ``QuantumCircuit`` as a circuit: its qubit w is wire w, its parameters are the angles.

    The angles are in the order of ``circuit.parameters``, in which Qiskit binds a list of values. Barriers are passed
    over, a global phase becomes gates on wire 0. Raises ValueError for whatever is not a gate (measurement, reset,
    classical control), an angle that is not a sum of multiples of parameters, a parameter that no gate takes, or more
    than 1,024 qubits or 100,000 gates; ModuleNotFoundError without Qiskit.

    >>> from qiskit.circuit import Parameter, QuantumCircuit
    >>> theirs, t = QuantumCircuit(2), Parameter("t")
    >>> for angle, qubit in ((t, 0), (2 * t + 0.5, 1)):
    ...     _ = theirs.ry(angle, qubit)
    >>> print(from_qiskit(theirs))
    wires 2 2
    RY[0] 0
    RY[1] 1
    [0] = t0
    [1] = 2*t0 + 0.5
    """
    qiskit = needed("qiskit", "from_qiskit", "qiskit")
    if not isinstance(circuit, qiskit.QuantumCircuit):
        raise ValueError(f"a Qiskit QuantumCircuit is wanted, got {type(circuit).__name__}")
    return read(circuit, circuit.parameters)


def read(circuit: Any, parameters: Iterable[Any]) -> Circuit:
    """A QuantumCircuit whose free parameters are these, in this order."""
    qiskit = needed("qiskit", "from_qiskit", "qiskit")
    check_size(circuit.num_qubits, 0)
    plain = qiskit.QuantumCircuit(circuit.num_qubits)
    library, info = (needed(f"qiskit.{name}", "from_qiskit", "qiskit") for name in ("circuit.library", "quantum_info"))
    gates = library.get_standard_gate_name_mapping()
    known = _Known(gates, library.PauliEvolutionGate, (library.PermutationGate, info.Clifford))
    _write(circuit, plain.qubits, plain, known, [0])
    positions = {parameter: position for position, parameter in enumerate(parameters)}
    try:
        if not {*_OURS, *_MORE}.issuperset(plain.count_ops()):
            plain = qiskit.transpile(plain, basis_gates=[*_OURS, *_MORE], optimization_level=0)
    except (qiskit.exceptions.QiskitError, RecursionError) as error:
        raise ValueError(
            f"Qiskit cannot take this circuit apart into gates that are known here: {said(error)}"
        ) from None
    found = Reading(circuit.num_qubits)
    for instruction in plain.data:
        name = instruction.operation.name
        wires = [plain.find_bit(qubit).index for qubit in instruction.qubits]
        angles = [_affine(p, positions, name) for p in instruction.operation.params]
        if name in _OURS:
            gate, adjoint = _OURS[name]
            found.add(gate, wires, angles, adjoint)
        elif name == "u1":
            found.add("P", wires, angles)
        elif name == "u2":
            found.add_u(wires[0], Affine(shift=pi / 2), *angles)
        elif name in ("u", "u3"):
            found.add_u(wires[0], *angles)
        elif name == "global_phase":
            found.add_phase(*angles)
        elif name != "id":
            raise ValueError(f"{name} is not made of gates that are known here")
    found.add_phase(_affine(plain.global_phase, positions, "the global phase"))
    return found.circuit([str(parameter) for parameter in positions])


def _write(
    circuit: Any, qubits: list[Any], into: Any, known: _Known, seen: list[int], deep: int = 0, top: int | None = None
) -> None:
    """Write a circuit on these qubits, with the definitions of all but Qiskit's standard gates written out.

    A gate is standard by its class: Qiskit's transpiler goes by names, which any other gate may have too. ``top`` is
    the instruction of the whole circuit that is written.
    """
    into.global_phase += circuit.global_phase
    for position, instruction in enumerate(circuit.data):
        operation = instruction.operation
        seen[0] += 1
        check_size(into.num_qubits, seen[0])
        on = [qubits[circuit.find_bit(qubit).index] for qubit in instruction.qubits]
        bare = getattr(operation, "base_op", operation)  # without the modifiers of an annotated operation
        place = position if top is None else top
        where = f"{said(bare.name[:50])} (instruction {place})"
        if bare.name == "barrier":
            continue
        if deep > MAX_DEPTH:
            raise ValueError(f"{where} is defined more than {MAX_DEPTH} deep")
        if isinstance(bare, known.evolution):
            _check_evolution(bare, where)
        standard = known.standard.get(bare.name)
        if standard is not None and bare.base_class is standard.base_class and bare.name not in _NO_GATES:
            for value in bare.params:
                _affine(value, {one: number for number, one in enumerate(getattr(value, "parameters", ()))}, where)
            into.append(operation, on)
            continue
        if isinstance(bare, known.synthesized):
            into.append(operation, on)
            continue
        definition = None if getattr(bare, "blocks", None) else _definition(bare, where)
        if definition is None:
            raise ValueError(f"{where} is not a gate: only gates make a matrix")
        if bare is operation:
            _write(definition, on, into, known, seen, deep + 1, place)
        else:
            inner = type(into)(definition.num_qubits)
            _write(definition, inner.qubits, inner, known, seen, deep + 1, place)
            into.append(type(operation)(inner.to_gate(), operation.modifiers), on)


def _definition(operation: Any, where: str) -> Any:
    try:
        return getattr(operation, "definition", None)
    except Exception as error:  # whatever makes a definition, in a gate of anyone's
        raise ValueError(f"Qiskit cannot take {where} apart: {said(error)}") from None


def _check_evolution(gate: Any, where: str) -> None:
    """Raise ValueError for an evolution whose definition is not its matrix, but a product near it."""
    synthesis, info = (needed(f"qiskit.{name}", "from_qiskit", "qiskit") for name in ("synthesis", "quantum_info"))
    if isinstance(gate.synthesis, synthesis.MatrixExponential):
        return
    parts = gate.operator if isinstance(gate.operator, list) else [gate.operator]
    pauli, sparse = info.SparsePauliOp, info.SparseObservable
    terms = pauli.sum([pauli.from_sparse_observable(x) if isinstance(x, sparse) else pauli(x) for x in parts])
    if len(terms.group_commuting()) > 1 or isinstance(gate.synthesis, synthesis.QDrift):
        raise ValueError(
            f"{where} has a definition that is only near its matrix; if that is meant, read circuit.decompose(), once "
            "for every definition that it stands in"
        )


def _affine(value: Any, positions: Mapping[Any, int], where: str) -> Affine:
    """A number, or an expression in parameters, as a sum of multiples of angles."""
    terms = []
    for parameter in getattr(value, "parameters", ()):
        slope = value.gradient(parameter)
        if getattr(slope, "parameters", None):
            raise ValueError(f"{where} takes {said(str(value)[:80])}, which is not a sum of multiples of parameters")
        terms.append((positions[parameter], _real(slope, where)))
    shift = value.bind(dict.fromkeys(value.parameters, 0.0)) if terms else value
    return Affine(tuple(terms), _real(shift, where))


def _real(value: Any, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{where} takes a real number, got {said(str(value)[:80])}") from None
    if not isfinite(number):
        raise ValueError(f"{where} takes an angle that is not finite: {number}")
    return number


def to_qiskit(circuit: Circuit, angles: Angles | None = None) -> Any:
    """The circuit as a Qiskit ``QuantumCircuit``: wire w is its qubit w, which Qiskit takes as less significant.

    ``angles`` is one vector, (n_angles,), in radians; without it they are the elements of a ParameterVector ``theta``,
    which Qiskit binds in their order. ``reverse_bits()`` of the result has our matrix. Raises ValueError for a wire
    that is not a qubit, a gate that Qiskit lacks, or angles of another shape or not finite; ModuleNotFoundError
    without Qiskit.

    >>> from qcircuit_peft import load
    >>> to_qiskit(load("simplified_two_design").circuit(qubits=3)).num_parameters
    7
    """
    qiskit = needed("qiskit.circuit", "to_qiskit", "qiskit")
    backend = find_backend("qiskit")
    check(circuit, backend)
    given: Any = qiskit.ParameterVector("theta", circuit.n_angles) if angles is None else vector_of(circuit, angles)
    values = [one(given) for one in circuit.made]
    made = qiskit.QuantumCircuit(len(circuit.dims))
    for op in circuit.ops:
        made.append(backend.module().gate_of(op, [values[a] for a in op.angles or ()]), op.wires)
    return made
