"""PennyLane's operations, in and out; a function is traced twice, so that what is not affine in its arguments shows."""

from collections.abc import Callable, Sequence
from math import isclose
from typing import Any

import numpy as np
import sympy
import torch
from torch import Tensor

from qcircuit_peft.backends import find_backend
from qcircuit_peft.backends.simulator import check
from qcircuit_peft.circuit import Affine, Circuit
from qcircuit_peft.gates import GATES
from qcircuit_peft.interop.reading import Reading, check_size, needed
from qcircuit_peft.qasm import names_of


def from_pennylane(source: Any, *args: Any, **kwargs: Any) -> Circuit:
    """A QNode, quantum function, template, operation, tape or list of operations as a circuit.

    ``args`` and ``kwargs`` are what the source is called with. Every real number in them (a float, or an array, tensor
    or list of floats) is a free parameter of which only the shape counts: the angles are these numbers in their order.
    All other numbers are fixed. In a tape or a list, sympy's symbols are the free parameters, in the order of their
    names. Wires are those of the QNode's device, else sorted if they are whole numbers, else as they first appear.
    Raises ValueError for what is not a gate (measurements amid the circuit, conditions), for an angle that is not a sum
    of multiples of parameters, or more than 1,024 wires or 100,000 gates; ModuleNotFoundError without PennyLane.

    >>> import pennylane as qml
    >>> def theirs(t):
    ...     qml.RY(t[0], 0)
    ...     qml.CRX(2 * t[0] + t[1], [0, 1])
    >>> print(from_pennylane(theirs, [0.0, 0.0]))
    wires 2 2
    RY[0] 0
    CRX[1] 0 1
    [0] = t0
    [1] = 2*t0 + t1
    """
    qml = needed("pennylane", "from_pennylane", "pennylane")
    if isinstance(source, list | tuple | qml.tape.QuantumScript | qml.operation.Operator):
        if args or kwargs:
            raise ValueError("a tape, an operation or a list of them takes no arguments; they are for functions")
        return _from_operations(qml, source)
    if not callable(source):
        found = type(source).__name__
        raise ValueError(f"a QNode, function, template, tape or list of operations is wanted, got {found}")
    function = source.func if isinstance(source, qml.QNode) else source

    def traced(draw: Callable[[int], Sequence[float]]) -> tuple[Any, list[Tensor]]:
        free: list[Tensor] = []
        made = [_leaves(value, free, draw) for value in (args, kwargs)]
        return qml.tape.make_qscript(function)(*made[0], **made[1]), free

    random = np.random.default_rng(0)
    traces = [traced(lambda n: random.uniform(0.5, 1.5, n).tolist()) for _ in range(2)]
    wires = _wires(traces[0][0], source.device.wires if isinstance(source, qml.QNode) else None)
    here, there = (_steps(qml, tape.operations, wires) for tape, _ in traces)
    if [step[:3] for step in here] != [step[:3] for step in there]:
        raise ValueError("the gates of a circuit that is read are the same for all values of its parameters")
    found = Reading(len(wires))
    for (gate, on, adjoint, first), (*_, second) in zip(here, there, strict=True):
        pairs = zip(first, second, strict=True)
        _add(found, gate, on, adjoint, [_traced(pair, [free for _, free in traces], gate) for pair in pairs])
    size = sum(leaf.numel() for leaf in traces[0][1])
    return found.circuit([f"number {position} of the arguments" for position in range(size)])


def _from_operations(qml: Any, source: Any) -> Circuit:
    tape = source if isinstance(source, qml.tape.QuantumScript) else None
    if tape is None:
        operations = [source] if isinstance(source, qml.operation.Operator) else list(source)
        if not all(isinstance(one, qml.operation.Operator) for one in operations):
            raise ValueError("a list that is read holds PennyLane's operations, but one of its entries is none")
        tape = qml.tape.QuantumScript(operations)
    wires = _wires(tape, None)
    steps = _steps(qml, tape.operations, wires)
    values = [sympy.sympify(value) for *_, params in steps for value in params if isinstance(value, sympy.Expr)]
    symbols = sorted({symbol for value in values for symbol in value.free_symbols}, key=str)
    found = Reading(len(wires))
    for gate, on, adjoint, params in steps:
        _add(found, gate, on, adjoint, [_symbolic(value, symbols, gate) for value in params])
    return found.circuit(list(map(str, symbols)))


Step = tuple[str, tuple[int, ...], bool, list[Any]]  # a gate of ours or "phase", its wires, adjoint, what it takes


def _steps(qml: Any, operations: Sequence[Any], wires: dict[Any, int]) -> list[Step]:
    """The operations as our gates, taken apart as PennyLane does where they are not."""
    ours = {getattr(qml, gate.names.pennylane): name for name, gate in GATES.items() if gate.names.pennylane}
    found: list[Step] = []
    waiting = list(reversed(operations))
    while waiting:
        operation = waiting.pop()
        adjoint = isinstance(operation, qml.ops.Adjoint)
        base = operation.base if adjoint else operation
        on = tuple(wires[wire] for wire in operation.wires)
        if isinstance(base, qml.Identity | qml.Barrier | qml.Snapshot):
            continue
        if type(base) in ours:
            found.append((ours[type(base)], on, adjoint, base.parameters))
        elif isinstance(base, qml.GlobalPhase):
            found.append(("phase", (), not adjoint, base.parameters))  # e^(-i phi)
        elif isinstance(operation, qml.ops.MidMeasure | qml.ops.Conditional) or not operation.has_decomposition:
            raise ValueError(f"{operation.name} is not a gate, nor made of gates that are known here")
        else:
            waiting += reversed(operation.decomposition())
        check_size(len(wires), max(len(found), len(waiting)))
    return found


def _wires(tape: Any, device: Any) -> dict[Any, int]:
    labels = list(device if device is not None and set(tape.wires) <= set(device) else tape.wires)
    whole = device is None and all(isinstance(label, int) for label in labels)
    return {label: wire for wire, label in enumerate(sorted(labels) if whole else labels)}


def _leaves(value: Any, free: list[Tensor], draw: Callable[[int], Sequence[float]]) -> Any:
    """An argument with every real number in it replaced by a drawn one that wants a gradient, put into ``free``."""
    if isinstance(value, list | tuple):
        return type(value)(_leaves(one, free, draw) for one in value)
    if isinstance(value, dict):
        return {key: _leaves(one, free, draw) for key, one in value.items()}
    if isinstance(value, Tensor):
        real, shape = value.is_floating_point(), value.shape
    else:
        real = isinstance(value, float | np.floating | np.ndarray) and np.asarray(value).dtype.kind == "f"
        shape = np.shape(value) if real else ()
    if not real:
        return value
    drawn = torch.tensor(draw(torch.Size(shape).numel()), dtype=torch.float64).reshape(shape)
    free.append(drawn.requires_grad_())
    return free[-1]


def _traced(values: tuple[Any, Any], free: list[list[Tensor]], gate: str) -> Affine:
    """A parameter of a gate as a sum of multiples of arguments: its slopes are those of both traces, and its shift."""
    found = []
    for value, leaves in zip(values, free, strict=True):
        slopes = [torch.zeros(leaf.numel(), dtype=torch.float64) for leaf in leaves]
        if isinstance(value, Tensor) and value.requires_grad and value.ndim == 0:
            given = torch.autograd.grad(value, leaves, allow_unused=True, retain_graph=True)
            slopes = [zero if g is None else g.reshape(-1) for zero, g in zip(slopes, given, strict=True)]
        flat = [torch.cat([x.detach().reshape(-1) for x in part]) for part in (slopes, leaves)] if leaves else []
        terms = (flat[0] * flat[1]).tolist() if flat else []
        number = _number(value, gate)
        shift, noise = number - sum(terms), 8 * np.finfo(float).eps * (abs(number) + sum(map(abs, terms)))
        found.append((flat[0].numpy() if flat else np.zeros(0), 0.0 if abs(shift) <= noise and terms else shift))
    (slopes, shift), (others, other) = found
    if not np.allclose(slopes, others, rtol=1e-9, atol=1e-12) or not isclose(shift, other, rel_tol=1e-9, abs_tol=1e-9):
        raise ValueError(f"{gate} takes an angle that is not a sum of multiples of the arguments and a number")
    return Affine(tuple((position, float(slope)) for position, slope in enumerate(slopes) if slope), shift)


def _symbolic(value: Any, symbols: Sequence[Any], gate: str) -> Affine:
    """A parameter of a gate as a sum of multiples of symbols."""
    if not isinstance(value, sympy.Expr):
        return Affine(shift=_number(value, gate))
    slopes = [(position, sympy.diff(value, symbol)) for position, symbol in enumerate(symbols) if value.has(symbol)]
    if any(slope.free_symbols for _, slope in slopes):
        raise ValueError(f"{gate} takes {str(value)[:80]}, which is not a sum of multiples of symbols and a number")
    terms = tuple((position, _number(slope, gate)) for position, slope in slopes)
    return Affine(terms, _number(value.subs(dict.fromkeys(symbols, 0)), gate))


def _number(value: Any, gate: str) -> float:
    value = value.detach() if isinstance(value, Tensor) else value
    if np.shape(value) != ():
        raise ValueError(f"{gate} takes one angle in a circuit that is read, got several at once (a broadcast)")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{gate} takes a real number, got {str(value)[:80]}") from None


def _add(found: Reading, gate: str, on: tuple[int, ...], adjoint: bool, angles: Sequence[Affine]) -> None:
    if gate == "phase":
        found.add_phase(-angles[0] if adjoint else angles[0])
    else:
        found.add(gate, on, angles, adjoint)


def to_pennylane(circuit: Circuit, angles: Any = None) -> list[Any]:
    """The circuit as a list of PennyLane's operations on the wires 0 ... n-1, wire 0 the most significant as here.

    ``angles`` is one vector, (n_angles,), in radians, of any interface of PennyLane: within a QNode or quantum
    function the operations are queued and differentiable. Without it they are sympy's symbols ``theta0``, ``theta1``,
    ..., padded with zeros from eleven on. Raises ValueError for a wire that is not a qubit, a gate that PennyLane
    lacks, or angles of another shape; ModuleNotFoundError without PennyLane.

    >>> from qcircuit_peft import load
    >>> to_pennylane(load("line_ry_cz").circuit(qubits=2, layers=1), [0.1, 0.2, 0.3, 0.4])[0]
    RY(0.1, wires=[0])
    """
    needed("pennylane", "to_pennylane", "pennylane")
    backend = find_backend("pennylane")
    check(circuit, backend)
    if angles is None:
        angles = sympy.symbols(names_of(circuit))
    elif (found := np.shape(angles.detach() if isinstance(angles, Tensor) else angles)) != (circuit.n_angles,):
        raise ValueError(f"angles have shape {(circuit.n_angles,)} for this circuit, got {found}")
    values = [one(angles) for one in circuit.made]  # type: ignore[arg-type]
    gates_of = backend.module().gates_of
    return [gate for op in circuit.ops for gate in gates_of(op, tuple(values[a] for a in op.angles or ()))]
