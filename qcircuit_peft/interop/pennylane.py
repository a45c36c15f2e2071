"""PennyLane's operations, in and out; a function is traced often, so that what is not affine in its arguments shows."""

from collections.abc import Callable, Iterator, Sequence
from math import isclose, isfinite, prod
from typing import Any

import numpy as np
import sympy
import torch
from numpy.typing import NDArray
from torch import Tensor

from qcircuit_peft.backends import find_backend
from qcircuit_peft.backends.simulator import check
from qcircuit_peft.circuit import Affine, Circuit
from qcircuit_peft.gates import GATES
from qcircuit_peft.interop.reading import Reading, check_size, needed, said
from qcircuit_peft.qasm import names_of

_MOST_DIFFERENCES = 500  # numbers among the arguments of a function that takes no tensors
Step = tuple[str, tuple[int, ...], bool, list[Any]]  # a gate of ours or "phase", its wires, adjoint, what it takes


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
    device = source.device.wires if isinstance(source, qml.QNode) else None
    sizes: list[int] = []
    _leaves((args, kwargs), lambda shape: sizes.append(prod(shape)))
    size = sum(sizes)
    draw = np.random.default_rng(0)

    def traced(point: NDArray, leaf: Callable[[NDArray], Any]) -> tuple[Reading, list[Step]]:
        parts = iter(np.split(point, np.cumsum(sizes)))
        given, named = _leaves((args, kwargs), lambda shape: leaf(next(parts).reshape(shape)))
        tape = qml.tape.make_qscript(function)(*given, **named)
        wires = _wires(tape, device)
        return Reading(len(wires)), _steps(qml, tape.operations, wires)

    # eighths first, so that differences are exact; other signs and sizes, so that what is affine only in places shows
    points = [draw.integers(4, 13, size) / 8, *(scale * draw.uniform(0.5, 1.5, size) for scale in (-10, 30))]
    try:
        return _by_slopes(traced, points)
    except Exception as error:  # of what takes no tensors of torch
        if size > _MOST_DIFFERENCES or isinstance(error, _NotAffineError):
            raise
        try:
            return _by_differences(traced, points)
        except ValueError:
            raise
        except Exception:  # of what takes nothing else
            raise error from None


Traced = Callable[[NDArray, Callable[[NDArray], Any]], tuple[Reading, list[Step]]]


def _by_slopes(traced: Traced, points: list[NDArray]) -> Circuit:
    """The circuit of a function of tensors, by their gradients."""
    frees: list[list[Tensor]] = []

    def leaf(values: NDArray) -> Tensor:
        frees[-1].append(torch.tensor(values, dtype=torch.float64).requires_grad_())
        return frees[-1][-1]

    traces = []
    for point in points:
        frees.append([])
        traces.append(traced(point, leaf))
    (found, _), steps = traces[0], [steps for _, steps in traces]
    for gate, on, adjoint, values in _alike(steps):
        _add(found, gate, on, adjoint, [_traced(several, frees, gate) for several in values])
    return found.circuit(_names(points[0]))


def _by_differences(traced: Traced, points: list[NDArray]) -> Circuit:
    """The circuit of a function of numbers, from a trace more than there are numbers."""

    def leaf(values: NDArray) -> Any:
        return values if values.ndim else values.item()

    first, *others = points
    moved = [first + unit for unit in np.eye(len(first))]
    found, _ = (traces := [traced(point, leaf) for point in (first, *moved, *others)])[0]
    for gate, on, adjoint, values in _alike([steps for _, steps in traces]):
        angles = []
        for several in values:
            numbers = np.array([_number(value, gate) for value in several])
            at, there = numbers[0], numbers[1 : 1 + len(first)]
            near = 8 * np.finfo(float).eps * (abs(at) + np.abs(there))
            slopes = np.where(np.abs(there - at) > near, there - at, 0.0)
            shift = at - slopes @ first
            angles.append(_affine(slopes, 0.0 if abs(shift) <= near.sum() and slopes.any() else shift))
            wanted = [shift + slopes @ point for point in others]
            if not np.allclose(numbers[1 + len(first) :], wanted, rtol=1e-9, atol=1e-9 * (1 + np.abs(slopes).sum())):
                raise _NotAffineError(gate)
        _add(found, gate, on, adjoint, angles)
    return found.circuit(_names(first))


def _names(point: NDArray) -> list[str]:
    return [f"number {position} of the arguments" for position in range(len(point))]


def _alike(traces: list[list[Step]]) -> Iterator[tuple[str, tuple[int, ...], bool, list[tuple[Any, ...]]]]:
    """The gates of all traces, with what each takes in each; raises ValueError if they are not the same."""
    if any([step[:3] for step in steps] != [step[:3] for step in traces[0]] for steps in traces):
        raise ValueError("the gates of a circuit that is read are the same for all values of its parameters")
    for several in zip(*traces, strict=True):
        gate, on, adjoint, _ = several[0]
        yield gate, on, adjoint, list(zip(*(step[3] for step in several), strict=True))


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
            raise ValueError(f"{said(operation.name)} is not a gate, nor made of gates that are known here")
        else:
            waiting += reversed(operation.decomposition())
        check_size(len(wires), max(len(found), len(waiting)))
    return found


def _wires(tape: Any, device: Any) -> dict[Any, int]:
    labels = list(device if device is not None and set(tape.wires) <= set(device) else tape.wires)
    whole = device is None and all(isinstance(label, int) for label in labels)
    return {label: wire for wire, label in enumerate(sorted(labels) if whole else labels)}


def _leaves(value: Any, make: Callable[[tuple[int, ...]], Any]) -> Any:
    """An argument with every real number or array of them in it replaced by what is made of its shape."""
    if isinstance(value, list | tuple):
        return type(value)(_leaves(one, make) for one in value)
    if isinstance(value, dict):
        return {key: _leaves(one, make) for key, one in value.items()}
    if isinstance(value, Tensor):
        return make(tuple(value.shape)) if value.is_floating_point() else value
    if isinstance(value, float | np.floating | np.ndarray) and np.asarray(value).dtype.kind == "f":
        return make(np.shape(value))
    return value


def _traced(values: tuple[Any, ...], free: list[list[Tensor]], gate: str) -> Affine:
    """A parameter of a gate as a sum of multiples of arguments: its slopes are those of all traces, and its shift."""
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
    slopes, shift = found[0]
    for others, other in found[1:]:
        same = np.allclose(slopes, others, rtol=1e-9, atol=1e-12)
        if not same or not isclose(shift, other, rel_tol=1e-9, abs_tol=1e-9 * (1 + np.abs(slopes).sum())):
            raise _NotAffineError(gate)
    return _affine(slopes, shift)


def _affine(slopes: NDArray, shift: float) -> Affine:
    return Affine(tuple((position, float(slope)) for position, slope in enumerate(slopes) if slope), float(shift))


class _NotAffineError(ValueError):
    def __init__(self, gate: str) -> None:
        super().__init__(f"{gate} takes an angle that is not a sum of multiples of the arguments and a number")


def _symbolic(value: Any, symbols: Sequence[Any], gate: str) -> Affine:
    """A parameter of a gate as a sum of multiples of symbols."""
    if not isinstance(value, sympy.Expr):
        return Affine(shift=_number(value, gate))
    slopes = [(position, sympy.diff(value, symbol)) for position, symbol in enumerate(symbols) if value.has(symbol)]
    if any(slope.free_symbols for _, slope in slopes):
        raise ValueError(
            f"{gate} takes {said(str(value)[:80])}, which is not a sum of multiples of symbols and a number"
        )
    terms = tuple((position, _number(slope, gate)) for position, slope in slopes)
    return Affine(terms, _number(value.subs(dict.fromkeys(symbols, 0)), gate))


def _number(value: Any, gate: str) -> float:
    value = value.detach() if isinstance(value, Tensor) else value
    if np.shape(value) != ():
        raise ValueError(f"{gate} takes one angle in a circuit that is read, got several at once (a broadcast)")
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise ValueError(f"{gate} takes a real number, got {said(str(value)[:80])}") from None
    if not isfinite(number):
        raise ValueError(f"{gate} takes an angle that is not finite: {number}")
    return number


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
