"""A circuit: gates on wires, in time order. The conventions of the whole library are these.

* Ops are in time order: the first op acts first.
* Wire 0 is the most significant digit of a basis index; a wire has a dimension d >= 2 (a qubit is d = 2).
* Column k of the matrix of a circuit is U|k>.
* Angles are in radians, ``RY(t) = [[cos t/2, -sin t/2], [sin t/2, cos t/2]]``.
* Angles carry batch dimensions first, ``(*batch, n_angles)``; matrices are ``(*batch, N, K)``.

PennyLane and TorchQuantum agree with this; Qiskit, Qulacs and Stim are little-endian.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from sys import float_info
from typing import Any

from qcircuit_peft.checks import is_number, whole_numbers
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
class Affine:
    """An angle made of others: ``shift`` plus the sum of scale times angle over ``terms``, (position, scale).

    Without terms it is a fixed number of radians. Raises ValueError for a position that is not a whole number >= 0 or
    stands twice, or a number that is not finite.

    >>> Affine(((0, 2.0),), 0.3)([0.5])
    1.3
    >>> print(-Affine(((0, 2.0),), 0.3))
    -2*t0 - 0.3
    """

    terms: tuple[tuple[int, float], ...] = ()
    shift: float = 0.0

    def __post_init__(self) -> None:
        terms = tuple(self.terms) if isinstance(self.terms, Iterable) else ()
        pairs = [term for term in terms if isinstance(term, tuple | list) and len(term) == 2]
        if len(pairs) != len(terms) or not isinstance(self.terms, Iterable):
            raise ValueError(f"the terms of an angle are pairs of a position and a scale, got {shown(self.terms)}")
        positions = _integers(tuple(position for position, _ in pairs), "positions of angles")
        if len(set(positions)) != len(positions):
            raise ValueError(f"an angle takes every position once, got {positions}")
        for number in (self.shift, *(scale for _, scale in pairs)):
            if not is_number(number, -float_info.max, float_info.max):
                raise ValueError(f"the numbers of an angle are finite, got {shown(number)}")
        kept = sorted((position, float(scale)) for position, scale in pairs if scale)
        object.__setattr__(self, "terms", tuple(kept))
        object.__setattr__(self, "shift", float(self.shift))

    def __call__(self, angles: Any) -> Any:
        """The value for these angles: a sequence of whatever can be multiplied with numbers and added, or a tensor."""
        scaled = [angles[position] if scale == 1 else scale * angles[position] for position, scale in self.terms]
        if not scaled:
            return self.shift
        total = scaled[0]
        for term in scaled[1:]:
            total = total + term
        return total + self.shift if self.shift else total

    def __neg__(self) -> "Affine":
        return Affine(tuple((position, -scale) for position, scale in self.terms), -self.shift)

    def moved(self, by: int) -> "Affine":
        """The same of the angles ``by`` positions further on."""
        return replace(self, terms=tuple((position + by, scale) for position, scale in self.terms))

    def text(self, names: Sequence[str], number: Callable[[float], str] = "{:g}".format, times: str = "*") -> str:
        """The sum as text, with these names of the angles and this form of numbers."""
        parts = []
        for position, scale in self.terms:
            factor = "" if abs(scale) == 1 else number(abs(scale)) + times
            parts.append(("-" if scale < 0 else "+", factor + names[position]))
        if self.shift or not parts:
            parts.append(("-" if self.shift < 0 else "+", number(abs(self.shift))))
        (sign, first), *rest = parts
        return ("-" if sign == "-" else "") + first + "".join(f" {sign} {part}" for sign, part in rest)

    def __str__(self) -> str:
        return self.text([f"t{position}" for position in range(1 + max((p for p, _ in self.terms), default=-1))])


@dataclass(frozen=True)
class Circuit:
    """Ops on wires of the given dimensions: immutable, hashable, checked when it is made.

    ``dims`` has one dimension a wire, wire 0 first. An op without ``angles`` takes the next free positions.
    ``affine``, one for each position, says what the angles of the ops are made of, where they are not the circuit's
    own: multiples, sums and fixed numbers. ``a + b`` runs a, then b, with the angles of b behind those of a.

    Raises ValueError for a wire outside the register, a dimension below 2, a gate that a wire's dimension does not
    allow, a wrong number of angles or of ``affine``, or an angle position that no op uses.

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
    >>> shared = Circuit((2,), [Op("RY", (0,)), Op("RX", (0,))], [Affine(((0, 1),)), Affine(((0, 2),), 0.3)])
    >>> shared.n_angles, shared.plain.n_angles
    (1, 2)
    """

    dims: tuple[int, ...]
    ops: tuple[Op, ...] = ()
    affine: tuple[Affine, ...] = ()

    def __init__(self, dims: Iterable[int], ops: Iterable[Op] = (), affine: Iterable[Affine] = ()) -> None:
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
        _check_used({angle for op in numbered for angle in op.angles or ()}, "op")
        object.__setattr__(self, "ops", tuple(numbered))
        made = tuple(affine) if isinstance(affine, Iterable) else (affine,)
        if made and (len(made) != free or not all(isinstance(one, Affine) for one in made)):
            raise ValueError(f"affine has an Affine for each of the {free} angles of the ops, got {shown(affine)}")
        _check_used({position for one in made for position, _ in one.terms}, "Affine")
        own = tuple(Affine(((position, 1.0),)) for position in range(free))
        object.__setattr__(self, "affine", () if made == own else made)
        made_now = ("dim", "n_angles", "is_real", "text", "_stripped")
        for name in made_now:  # a compiler cannot trace the lock of a cached property
            getattr(self, name)

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.dims, self.ops, self.affine))

    def __reduce__(self) -> tuple:  # without what is cached: a hash of text differs in another process
        return Circuit, (self.dims, self.ops, self.affine)

    @cached_property
    def dim(self) -> int:
        """The dimension N of the space: the product of the wire dimensions."""
        return prod(self.dims)

    @cached_property
    def n_angles(self) -> int:
        """The number of angles (radians) of the circuit."""
        if self.affine:
            return max((position + 1 for one in self.affine for position, _ in one.terms), default=0)
        return max((a + 1 for op in self.ops for a in op.angles or ()), default=0)

    @property
    def plain(self) -> "Circuit":
        """The same ops with angles of their own: those that ``affine`` makes of the circuit's angles."""
        return self._stripped or self

    @cached_property
    def _stripped(self) -> "Circuit | None":  # never itself, which would be a circle
        return Circuit(self.dims, self.ops) if self.affine else None

    @cached_property
    def made(self) -> tuple[Affine, ...]:
        """What each angle of the ops is, also where it is one of the circuit's."""
        return self.affine or tuple(Affine(((position, 1.0),)) for position in range(self.n_angles))

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

    @classmethod
    def from_qasm(cls, text: str, drop_measurements: bool = False) -> "Circuit":
        """A circuit from OpenQASM 2 or 3, as ``qcircuit_peft.interop.from_qasm`` reads it."""
        from qcircuit_peft.interop import from_qasm

        return from_qasm(text, drop_measurements)

    def inverse(self) -> "Circuit":
        """The circuit of the conjugate transpose, with the same angle vector."""
        return Circuit(self.dims, (replace(op, adjoint=not op.adjoint) for op in reversed(self.ops)), self.affine)

    def __add__(self, other: "Circuit") -> "Circuit":
        if not isinstance(other, Circuit):
            return NotImplemented
        if self.dims != other.dims:
            raise ValueError(
                f"circuits run one after the other on the same wires, got dims {self.dims} and {other.dims}"
            )
        shift = self.plain.n_angles
        moved = (replace(op, angles=tuple(a + shift for a in op.angles or ())) for op in other.ops)
        return Circuit(self.dims, (*self.ops, *moved), (*self.made, *(one.moved(self.n_angles) for one in other.made)))

    def __repr__(self) -> str:
        return f"Circuit({self.dims}, {self.ops}{f', {self.affine}' if self.affine else ''})"

    @cached_property
    def text(self) -> str:
        """A line for the wires, one for each op and one for each angle that is made of others: what ``print`` shows."""
        angles = (f"[{position}] = {one}" for position, one in enumerate(self.affine))
        return "\n".join([f"wires {' '.join(map(str, self.dims))}", *map(str, self.ops), *angles])

    def __str__(self) -> str:
        return self.text


def _check_used(positions: set[int], by: str) -> None:
    free = max(positions, default=-1) + 1
    if len(positions) != free:
        missing = next(angle for angle in range(free) if angle not in positions)
        raise ValueError(f"every angle up to the largest is used by some {by}, but angle {missing} of {free} is not")
