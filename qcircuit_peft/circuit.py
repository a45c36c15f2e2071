"""A circuit: gates on wires, in time order. The conventions of the whole library are these.

* Ops are in time order: the first op acts first.
* Wire 0 is the most significant digit of a basis index; a wire has a dimension d >= 2 (a qubit is d = 2).
* Column k of the matrix of a circuit is U|k>.
* Angles are in radians, ``RY(t) = [[cos t/2, -sin t/2], [sin t/2, cos t/2]]``.
* Angles carry batch dimensions first, ``(*batch, n_angles)``; matrices are ``(*batch, N, K)``.

PennyLane and TorchQuantum agree with this; Qiskit, Qulacs and Stim are little-endian.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

from qcircuit_peft.checks import whole_numbers
from qcircuit_peft.gates import GATES
from qcircuit_peft.text import did_you_mean, shown


def _integers(values: object, what: str) -> tuple[int, ...]:
    several = (values,) if isinstance(values, int) else values
    several = tuple(several) if isinstance(several, Iterable) else several
    return whole_numbers(what, several, 0, least=0)


MAX_ANGLES = 1 << 24  # of a circuit


@dataclass(frozen=True)
class Op:
    """A gate on wires.

    ``angles`` are positions in the circuit's angle vector; left out, the circuit numbers them in time order.
    ``adjoint`` applies the conjugate transpose.

    Raises ValueError for an unknown gate, a wrong number of wires or a repeated wire.

    >>> Op("CZ", (0, 1))
    Op('CZ', (0, 1))
    """

    gate: str
    wires: tuple[int, ...]
    angles: tuple[int, ...] | None = None
    adjoint: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.gate, str) or self.gate not in GATES:
            raise ValueError(f"unknown gate {shown(self.gate)}; {did_you_mean(self.gate, GATES)}")
        object.__setattr__(self, "wires", _integers(self.wires, "wires"))
        if self.angles is not None:
            object.__setattr__(self, "angles", _integers(self.angles, "positions of angles"))
        elif not GATES[self.gate].angles:
            object.__setattr__(self, "angles", ())
        wanted = GATES[self.gate].wires
        if len(self.wires) != wanted or len(set(self.wires)) != wanted:
            raise ValueError(f"{self.gate} acts on {wanted} different wire(s), got {self.wires}")

    def __repr__(self) -> str:
        angles = "" if not self.angles else f", {self.angles}"
        return f"Op({self.gate!r}, {self.wires}{angles}{', adjoint=True' if self.adjoint else ''})"

    def __str__(self) -> str:
        angles = "" if not self.angles else f"[{' '.join(map(str, self.angles))}]"
        return f"{self.gate}{'†' if self.adjoint else ''}{angles} {' '.join(map(str, self.wires))}"


@dataclass(frozen=True)
class Circuit:
    """Ops on wires of the given dimensions: immutable, hashable, checked when it is made.

    ``dims`` has one dimension a wire, wire 0 first. An op without ``angles`` takes the next free positions.
    ``a + b`` runs a, then b, with the angles of b behind those of a.

    Raises ValueError for a wire outside the register, a dimension below 2, a gate that a wire's dimension does not
    allow, a wrong number of angles, or an angle position that no op uses.

    >>> circuit = Circuit((2, 2), [Op("RY", (0,)), Op("RY", (1,)), Op("CZ", (0, 1))])
    >>> circuit.dim, circuit.n_angles, circuit.depth, circuit.is_real
    (4, 2, 2, True)
    >>> eval(repr(circuit)) == circuit
    True
    >>> print(circuit)
    wires 2 2
    RY[0] 0
    RY[1] 1
    CZ 0 1
    """

    dims: tuple[int, ...]
    ops: tuple[Op, ...] = ()

    def __init__(self, dims: Iterable[int], ops: Iterable[Op] = ()) -> None:
        dims = whole_numbers("dims of a circuit", tuple(dims) if isinstance(dims, Iterable) else dims, 2)
        if isinstance(ops, str | bytes | Op) or not isinstance(ops, Iterable):
            raise ValueError(f"ops is a sequence of Op, got {shown(ops)}")
        object.__setattr__(self, "dims", dims)
        numbered: list[Op] = []
        free = 0
        for op in ops:
            if not isinstance(op, Op):
                raise ValueError(f"ops is a sequence of Op, got {shown(op)} in it")
            if any(w >= len(dims) for w in op.wires):
                raise ValueError(f"{op} acts on a wire that is not there; the wires are 0 to {len(dims) - 1}")
            gate, on = GATES[op.gate], tuple(dims[w] for w in op.wires)
            if gate.qudit_matrix is None and any(d != 2 for d in on):
                allowed = ", ".join(g.name for g in GATES.values() if g.qudit_matrix)
                raise ValueError(
                    f"{op} acts on wires of dimension {on}, but {op.gate} is for qubits; any dimension: {allowed}"
                )
            wanted = gate.n_angles(on)
            if free + wanted > MAX_ANGLES:
                raise ValueError(f"a circuit has at most {MAX_ANGLES} angles, but {op} alone takes {wanted} on {on}")
            if op.angles is None:
                op = replace(op, angles=tuple(range(free, free + wanted)))
            if len(op.angles or ()) != wanted:
                raise ValueError(f"{op} takes {wanted} angle(s) on wires of dimension {on}, got {len(op.angles or ())}")
            free = max(free, *(a + 1 for a in op.angles or ()), 0)
            numbered.append(op)
        used = {angle for op in numbered for angle in op.angles or ()}
        if len(used) != free:
            missing = next(angle for angle in range(free) if angle not in used)
            raise ValueError(f"every angle up to the largest is used by some op, but angle {missing} of {free} is not")
        object.__setattr__(self, "ops", tuple(numbered))
        for made_now in ("dim", "n_angles", "is_real", "text"):  # a compiler cannot trace the lock of a cached property
            getattr(self, made_now)

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.dims, self.ops))

    def __reduce__(self) -> tuple:  # without what is cached: a hash of text differs in another process
        return Circuit, (self.dims, self.ops)

    @cached_property
    def dim(self) -> int:
        """The dimension N of the space: the product of the wire dimensions."""
        return prod(self.dims)

    @cached_property
    def n_angles(self) -> int:
        """The number of angles (radians) of the circuit."""
        return max((a + 1 for op in self.ops for a in op.angles or ()), default=0)

    @cached_property
    def is_real(self) -> bool:
        """Whether every gate has a real matrix, so that the circuit is orthogonal."""
        return all(GATES[op.gate].real for op in self.ops)

    @cached_property
    def depth(self) -> int:
        """The number of time steps when every op runs as early as its wires allow."""
        front = [0] * len(self.dims)
        for op in self.ops:
            step = 1 + max(front[w] for w in op.wires)
            for w in op.wires:
                front[w] = step
        return max(front)

    def inverse(self) -> "Circuit":
        """The circuit of the conjugate transpose, with the same angle vector."""
        return Circuit(self.dims, (replace(op, adjoint=not op.adjoint) for op in reversed(self.ops)))

    def __add__(self, other: "Circuit") -> "Circuit":
        if not isinstance(other, Circuit):
            return NotImplemented
        if self.dims != other.dims:
            raise ValueError(
                f"circuits run one after the other on the same wires, got dims {self.dims} and {other.dims}"
            )
        shift = self.n_angles
        moved = (replace(op, angles=tuple(a + shift for a in op.angles or ())) for op in other.ops)
        return Circuit(self.dims, (*self.ops, *moved))

    def __repr__(self) -> str:
        return f"Circuit({self.dims}, {self.ops})"

    @cached_property
    def text(self) -> str:
        """A line for the wires, then a line for each op: what ``print`` shows."""
        return "\n".join([f"wires {' '.join(map(str, self.dims))}", *map(str, self.ops)])

    def __str__(self) -> str:
        return self.text
