"""What circuits cost elsewhere: gates, depth, T gates, shots and seconds, as they are or on a device."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil, isclose, log2, pi, sqrt
from typing import Any

import torch
from torch import nn

from qcircuit_peft.analysis.adapters import measured_adapters
from qcircuit_peft.backends import Backend, find_backend
from qcircuit_peft.backends.hadamard import hadamard_test
from qcircuit_peft.checks import is_whole, number, whole_number
from qcircuit_peft.circuit import Circuit, Op
from qcircuit_peft.factorizations.parts import Built
from qcircuit_peft.frames.kind import made_of, whole_circuit
from qcircuit_peft.gates import GATES
from qcircuit_peft.interop import lower, places, to_qiskit
from qcircuit_peft.interop.reading import needed
from qcircuit_peft.text import shown

COUPLINGS = ("line", "ring", "full")
_MOST = 1 << 16  # qubits of a coupling


@dataclass(frozen=True)
class Resources:
    """What one run of a circuit costs, and how many runs there are.

    ``gates`` by name, those of the device if there is one. ``two_qubit``: how many of them are on two qubits, and
    ``two_qubit_depth`` the depth if no other counted. ``rotations``: gates on one qubit whose angle is no multiple of
    pi/4; a fault-tolerant machine makes each of about 3 log2(1/precision) T gates, which ``t_count`` adds to those of
    the circuit. ``shots``: runs for each of ``columns``. ``seconds``: of one run, with its readout. What nobody asked
    for, or nothing tells, is None.
    """

    qubits: int
    gates: Mapping[str, int]
    two_qubit: int
    depth: int
    two_qubit_depth: int
    rotations: int
    t_count: int | None = None
    shots: int | None = None
    columns: int = 1
    seconds: float | None = None

    @property
    def runs(self) -> int | None:
        """Shots for all columns together."""
        return None if self.shots is None else self.shots * self.columns

    @property
    def seconds_in_all(self) -> float | None:
        """Seconds of all runs, one after the other, without what lies between them."""
        return None if self.runs is None or self.seconds is None else self.runs * self.seconds


def resources(
    circuit: Circuit,
    basis: Iterable[str] | None = None,
    coupling: Any = None,
    error: float | None = None,
    *,
    times: Mapping[str, float] | None = None,
    backend: Any = None,
    columns: int | None = None,
    precision: float | None = None,
) -> Resources:
    """What a circuit costs: as it is, or transpiled by Qiskit to a basis and a coupling, or to a device.

    Wires of several levels go onto qubits (``interop.lower``), at random angles.
    ``basis`` are names of Qiskit's gates; ``coupling`` pairs of qubits, Qiskit's ``CouplingMap``, or "line", "ring" or
    "full" for as many qubits as the circuit has; ``times`` the seconds that a gate of each name and "measure" take.
    ``backend`` is a ``BackendV2`` or the name of one ("qiskit:fake_fez"), which knows all three. ``error`` asks for the
    shots for which estimated columns are off by this share of their norm: (N - 1) / error^2 for each of ``columns``,
    one if left out, where N rows are on n qubits ((N + 2^n) / 2 - 1) / error^2; the circuit is then the Hadamard test
    of the last of them. ``precision`` is the operator error that all rotations together may add where T gates make
    them, 1e-3 if left out. Raises ValueError for bad input, or what Qiskit cannot transpile; ModuleNotFoundError
    without Qiskit, where it is needed.
    Source: Ross and Selinger, arXiv 1403.2975 for the T gates.

    >>> from qcircuit_peft import load
    >>> found = resources(load("simplified_two_design").circuit(qubits=5, layers=2))
    >>> dict(found.gates), found.two_qubit, found.depth, found.rotations
    ({'RY': 21, 'CZ': 8}, 8, 9, 21)
    """
    if not isinstance(circuit, Circuit):
        raise ValueError(f"a Circuit is wanted, got {type(circuit).__name__}; for a model there is adapter_resources")
    k = 1 if columns is None else whole_number("columns", columns, 1, circuit.dim)
    fine = number("precision", 1e-3 if precision is None else precision, 1e-15, 1)
    shots = None
    if error is not None:
        (shots,) = _shots([_spread(circuit)], number("error", error, 1e-9, 1), svd=False)
    run = _lowered(circuit) if error is None else _test_of(circuit, k - 1)
    device = _device(basis, coupling, times, None if backend is None else find_backend(backend), len(run.dims))
    return replace(_counted(run, device, fine), shots=shots, columns=k)


@dataclass(frozen=True, eq=False)
class _Device:
    """What a transpiler aims at, and the seconds of a gate by name, where the target does not know them."""

    target: Any
    basis: tuple[str, ...] | None
    coupling: Any
    times: Mapping[str, float] | None


def _device(basis: Any, coupling: Any, times: Any, row: Backend | None, qubits: int) -> _Device | None:
    if row is not None:
        if basis is not None or coupling is not None or times is not None:
            raise ValueError("a backend knows its basis, coupling and times: give it, or them")
        if not row.measures:
            raise ValueError(f"resources on a device are those of a BackendV2 of Qiskit, got {row.called!r}")
        if row.device.num_qubits is not None and row.device.num_qubits < qubits:
            raise ValueError(f"{row.called!r} has {row.device.num_qubits} qubits, but the circuit has {qubits}")
        return _Device(row.device.target, None, None, None)
    if basis is None and coupling is None and times is None:
        return None
    known = needed("qiskit.circuit.library", "resources", "qiskit").get_standard_gate_name_mapping()
    wanted = "a basis has names of Qiskit's gates such as 'cz', 'rz' and 'sx', got"
    if basis is not None and not isinstance(basis, Iterable):
        raise ValueError(f"{wanted} {shown(basis)}")
    names = None if basis is None else tuple(basis) if not isinstance(basis, str) else (basis,)
    for name in names or ():
        if not isinstance(name, str) or name not in known:
            raise ValueError(f"{wanted} {shown(name)}")
    if times is not None and (not isinstance(times, Mapping) or not all(isinstance(name, str) for name in times)):
        raise ValueError(f"times has the seconds of each gate by its name, got {shown(times)}")
    for name, seconds in (times or {}).items():
        number(f"times: the seconds of {shown(name)}", seconds, 0, 1e6)
    return _Device(None, names, _coupling(coupling, qubits), times)


def _coupling(coupling: Any, qubits: int) -> Any:
    if coupling is None:
        return None
    kind = needed("qiskit.transpiler", "resources", "qiskit").CouplingMap
    if isinstance(coupling, kind):
        found = coupling
    elif isinstance(coupling, str) and coupling in COUPLINGS:
        found = getattr(kind, f"from_{coupling}")(qubits)
    elif isinstance(coupling, str) or not isinstance(coupling, Iterable):
        raise ValueError(f"a coupling is pairs of qubits or one of {', '.join(COUPLINGS)}, got {shown(coupling)}")
    else:
        pairs = [tuple(pair) if isinstance(pair, Sequence) else (pair,) for pair in coupling]
        for pair in pairs:
            if len(pair) != 2 or not all(is_whole(q, 0, _MOST) for q in pair) or pair[0] == pair[1]:
                raise ValueError(f"a coupling is pairs of two qubits such as (0, 1), got {shown(pair)}")
        found = kind([*pairs, *(pair[::-1] for pair in pairs)])
    if found.size() < qubits:
        raise ValueError(f"the coupling has {found.size()} qubits, but the circuit has {qubits}")
    return found


def _counted(circuit: Circuit, device: _Device | None, precision: float) -> Resources:
    rotations, t_gates = _clifford_and_t(circuit)
    t_count = t_gates + rotations * ceil(3 * log2(max(rotations, 1) / precision))
    if device is None:
        two = [op for op in circuit.ops if len(op.wires) == 2]
        gates = Counter(op.gate for op in circuit.ops)
        alone = [Op("CZ", op.wires) for op in two]
        return Resources(
            len(circuit.dims),
            dict(gates),
            len(two),
            circuit.depth,
            Circuit(circuit.dims, alone).depth,
            rotations,
            t_count,
        )
    made, gates, two, depth, two_depth = _transpiled(circuit, device)
    return Resources(
        len(circuit.dims), dict(gates), two, depth, two_depth, rotations, t_count, seconds=_seconds(made, device)
    )


@lru_cache(maxsize=256)
def _transpiled(circuit: Circuit, device: _Device) -> tuple[Any, Mapping[str, int], int, int, int]:
    qiskit = needed("qiskit", "resources", "qiskit")
    theirs = to_qiskit(circuit)
    theirs.measure_all()
    settings: dict[str, Any] = {"optimization_level": 3, "seed_transpiler": 0}
    if device.target is not None:
        settings["target"] = device.target
    else:
        settings |= {"basis_gates": device.basis and [*device.basis], "coupling_map": device.coupling}
    try:
        made = qiskit.transpile(theirs, **settings)
    except qiskit.exceptions.QiskitError as fault:
        said = " ".join(str(fault.message).split())
        raise ValueError(f"Qiskit cannot transpile this circuit to these gates: {said}") from None
    silent = ("barrier", "measure", "delay")
    gates = {name: count for name, count in made.count_ops().items() if name not in silent}

    def counts(instruction: Any) -> bool:
        return instruction.operation.name not in silent

    def two(instruction: Any) -> bool:
        return counts(instruction) and len(instruction.qubits) > 1

    return made, gates, made.size(two), made.depth(counts), made.depth(two)


def _seconds(made: Any, device: _Device) -> float | None:
    """How long the longest chain of gates takes, with the measurement."""
    ready = [0.0] * made.num_qubits
    if device.target is None and device.times is None:
        return None
    for instruction in made.data:
        name = instruction.operation.name
        qubits = tuple(made.find_bit(qubit).index for qubit in instruction.qubits)
        if name == "barrier":
            taken = 0.0
        elif device.target is not None:
            properties = device.target[name].get(qubits) if name in device.target else None
            if properties is None or properties.duration is None:
                return None
            taken = properties.duration
        else:
            assert device.times is not None
            if name not in device.times:
                raise ValueError(f"times has no seconds for {name!r}, got those of {', '.join(device.times) or 'none'}")
            taken = device.times[name]
        end = max(ready[q] for q in qubits) + taken
        for q in qubits:
            ready[q] = end
    return max(ready)


def _clifford_and_t(circuit: Circuit) -> tuple[int, int]:
    """How many rotations by other angles than multiples of pi/4 a circuit has, and how many T gates beside them."""
    rotations = t_gates = 0
    waiting = [(op.gate, [circuit.made[a] for a in op.angles or ()], 1.0) for op in circuit.ops]
    while waiting:
        name, angles, scale = waiting.pop()
        gate = GATES[name]
        if name == "T":
            t_gates += 1
        elif gate.wires == 1 and gate.angles:
            turns = scale * angles[0].shift / (pi / 4)
            if angles[0].terms or not isclose(turns, round(turns), abs_tol=1e-9):
                rotations += 1
            else:
                t_gates += round(turns) % 2
        elif gate.wires == 2 and gate.angles:
            waiting += [(p.gate, angles if p.scale is not None else [], scale * (p.scale or 1.0)) for p in gate.parts]
    return rotations, t_gates


@dataclass(frozen=True)
class AdapterResources:
    """What measuring the weight updates of a trained adapter costs: ``tests`` by the circuit's name, and in all.

    ``runs`` and ``seconds`` are those of all shots of all columns; a circuit that modules share counts once.
    """

    tests: Mapping[str, Resources]
    qubits: int
    columns: int
    two_qubit: int
    runs: int
    seconds: float | None


def adapter_resources(
    model: nn.Module,
    basis: Iterable[str] | None = None,
    coupling: Any = None,
    error: float = 0.1,
    *,
    times: Mapping[str, float] | None = None,
    backend: Any = None,
    adapter: str | None = None,
) -> AdapterResources:
    """What a device needs to find all weight updates of an adapter by Hadamard tests, to a share ``error`` of each.

    For "svd" with n shots a column, the mean squared error of delta W = s U diag(lambda) V^T is (a + b) / n + a b / n^2
    of its squared norm, whatever lambda is, with a and b the two widths less one. Of another factorization every
    frame is found to ``error`` by itself. ``two_qubit`` is the largest number of two-qubit gates of a test. Wires of
    several levels go onto qubits (``interop.lower``), at random angles. All else as in ``resources``; the model may be
    on the meta device. Raises ValueError for a model without such an adapter, or a frame that is not one real circuit.

    >>> from peft import get_peft_model
    >>> from qcircuit_peft import QCircuitConfig
    >>> net = torch.nn.Sequential(torch.nn.Linear(16, 8))
    >>> found = adapter_resources(get_peft_model(net, QCircuitConfig(r=2, target_modules=["0"])), error=0.1)
    >>> found.qubits, found.columns, found.runs, list(found.tests)
    (5, 4, 8820, ['base_model.model.0.u', 'base_model.model.0.v'])
    """
    error = number("error", error, 1e-9, 1)
    row = None if backend is None else find_backend(backend)
    tests: dict[str, Resources] = {}
    named: dict[tuple[int, str], str] = {}  # of a part that layers share, the name under which it counts
    devices: dict[int, _Device | None] = {}
    for name, module, key in measured_adapters(model, adapter):
        factors = module.factors[key]
        built = {part: kind.frame for part, kind in factors.parts.items() if isinstance(kind, Built)}
        if not built:
            raise ValueError(f"{name}: what is measured are columns of circuits, but its factorization builds none")
        circuits = [_circuit_of(f"{name}.{part}", frame) for part, frame in built.items()]
        shots = _shots([_spread(circuit) for circuit in circuits], error, set(built) == {"u", "v"})
        for (part, frame), circuit, most in zip(built.items(), circuits, shots, strict=True):
            mine = f"{name}.{part}"
            counted = named.setdefault((id(module.lenders[key].get(part, module)), part), mine)
            if counted != mine:
                known = tests[counted]
                columns, most = max(known.columns, frame.k), max(known.shots or 0, most)
                tests[counted] = replace(known, shots=most, columns=columns)
                continue
            test = _test_of(circuit, frame.k - 1)
            n = len(test.dims)
            devices[n] = devices[n] if n in devices else _device(basis, coupling, times, row, n)
            tests[mine] = replace(_counted(test, devices[n], 1e-3), shots=most, columns=frame.k)
    seconds = [one.seconds_in_all for one in tests.values()]
    return AdapterResources(
        tests,
        max(one.qubits for one in tests.values()),
        sum(one.columns for one in tests.values()),
        max(one.two_qubit for one in tests.values()),
        sum(one.runs or 0 for one in tests.values()),
        None if None in seconds else sum(one for one in seconds if one is not None),
    )


def _spread(circuit: Circuit) -> float:
    """The squared error of one estimated column times its shots: N - 1 on qubits.

    On wires of other dimensions the n rows are among the N states of the qubits of ``lower``, over all of which the
    reference of the test is spread: (n + N) / 2 - 1.
    """
    return (circuit.dim + 2 ** sum((d - 1).bit_length() for d in circuit.dims)) / 2 - 1


def _shots(free: Sequence[float], error: float, svd: bool) -> list[int]:
    """Shots a column of each frame for this relative error: of delta W, or of the frame alone."""
    if not svd:
        return [max(1, ceil(one / error**2)) for one in free]
    total, both = sum(free), free[0] * free[1]
    return [max(1, ceil((total + sqrt(total**2 + 4 * both * error**2)) / (2 * error**2)))] * 2


def _circuit_of(name: str, frame: Any) -> Circuit:
    """The one real circuit that a frame is columns of."""
    circuit = whole_circuit(frame)
    if circuit is None or circuit.dim != frame.n:
        told = f"made of {made_of(frame)}" if circuit is None else "that of a complex one"
        raise ValueError(
            f"{name}: what is measured are the columns of one real circuit, but this frame of width {frame.n} is {told}"
        )
    return circuit


def _test_of(circuit: Circuit, column: int) -> Circuit:
    """The Hadamard test of a column, on qubits."""
    return hadamard_test(_lowered(circuit), int(places(circuit.dims)[column]))[0]


@lru_cache(maxsize=64)
def _lowered(circuit: Circuit) -> Circuit:
    """A circuit on qubits: itself, or with wires of several levels at random angles."""
    if set(circuit.dims) == {2}:
        return circuit
    random = torch.Generator().manual_seed(0)
    return lower(circuit, 2 * pi * torch.rand(circuit.n_angles, dtype=torch.float64, generator=random))
