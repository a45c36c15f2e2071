"""Wires of three and more levels on qubits: the same matrix on the states that are used, of real gates where it is."""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from qcircuit_peft.circuit import Affine, Circuit, Op
from qcircuit_peft.gates import GATES
from qcircuit_peft.interop.reading import MAX_GATES, MAX_QUBITS
from qcircuit_peft.qasm import Angles, vector_of

_TINY = 1e-15  # an angle in radians that turns nothing


def lower(circuit: Circuit, angles: Angles) -> Circuit:
    """The circuit at these angles on qubits alone, its angles fixed: simulators, OpenQASM and devices take it.

    ``angles`` is one vector, (n_angles,), in radians. A wire of dimension d becomes m qubits, 2^m the next power of two
    of d, which hold its digit with the most significant bit first. Row ``places(circuit.dims)[i]`` of the result's
    matrix is row i of the circuit's, columns alike; the states that are not used stay among themselves. CZ becomes one
    CZ, of the last bits. A rotation of SO(d) becomes RY and CZ by cosine-sine decompositions in Gray codes, at most
    (2^m + m - 2) 2^(m-1) of each: 8 for d = 3, 36 for 7, 2,176 for 43.
    Raises ValueError for angles of another shape or not finite, or a result of more than 1,024 qubits or 100,000 gates.
    Source: Shende, Bullock, Markov, quant-ph/0406176 (multiplexors); Möttönen et al., quant-ph/0404089.

    >>> from qcircuit_peft import load
    >>> wide = load("simplified_two_design").circuit(dim=384, layers=1)
    >>> qubits = lower(wide, [0.1] * wide.n_angles)
    >>> wide.dims[:2], len(qubits.dims), qubits.n_angles
    ((3, 2), 9, 0)
    """
    values = vector_of(circuit, angles)
    bits = [_bits(d) for d in circuit.dims]
    starts = [sum(bits[:wire]) for wire in range(len(bits))]
    if sum(bits) > MAX_QUBITS:
        raise ValueError(f"a circuit that is lowered has at most {MAX_QUBITS} qubits, got {sum(bits)}")
    made = [one(values) for one in circuit.made]
    ops: list[tuple[str, tuple[int, ...], tuple[float, ...], bool]] = []
    for op in circuit.ops:
        given = tuple(made[a] for a in op.angles or ())
        last = tuple(starts[wire] + bits[wire] - 1 for wire in op.wires)
        if GATES[op.gate].skew and circuit.dims[op.wires[0]] > 2:
            turned = GATES[op.gate].matrix(given, (circuit.dims[op.wires[0]],))
            qubits = range(starts[op.wires[0]], last[0] + 1)
            ops += ((gate, tuple(qubits[w] for w in on), at, False) for gate, on, at in _real(turned, op.adjoint))
        else:  # of the other gates only CZ has more levels: its sign is that of the last bits
            ops.append((op.gate, last, given, op.adjoint))
        if len(ops) > MAX_GATES:
            raise ValueError(
                f"a circuit that is lowered has at most {MAX_GATES:,} gates, but wires of dimension "
                f"{max(circuit.dims)} need more"
            )
    slots: dict[float, int] = {}
    named = [Op(gate, on, tuple(slots.setdefault(at, len(slots)) for at in given), adj) for gate, on, given, adj in ops]
    return Circuit((2,) * sum(bits), named, [Affine(shift=at) for at in slots])


def places(dims: Sequence[int]) -> NDArray[np.int64]:
    """Where the basis states of wires of these dimensions are among those of the qubits of ``lower``, (N,).

    >>> places((3, 2)).tolist(), places((2, 3)).tolist()
    ([0, 1, 2, 3, 4, 5], [0, 1, 2, 4, 5, 6])
    """
    found = np.zeros(1, dtype=np.int64)
    for d in dims:
        found = (found[:, None] * (1 << _bits(d)) + np.arange(d)).ravel()
    return found


def _bits(d: int) -> int:
    return (d - 1).bit_length()


Gate = tuple[str, tuple[int, ...], tuple[float, ...]]  # its name, qubits and angles
Rotation = tuple[int, NDArray]  # its wire, and an angle for every setting of the other wires, 1 long on its own axis


def _real(rotation: NDArray, adjoint: bool) -> Iterator[Gate]:
    """RY and CZ, in time order, that make an orthogonal matrix of determinant 1 on the first of 2^m basis states."""
    m = _bits(len(rotation))
    whole = np.eye(1 << m)
    whole[: len(rotation), : len(rotation)] = rotation.T if adjoint else rotation
    signs, found = np.ones((2,) * m), list[Rotation]()
    for factor in _factors(whole[None], m):  # signs that stand left of a rotation go through it
        if isinstance(factor, tuple):
            wire, at = factor
            found.append((wire, at * signs.prod(axis=wire, keepdims=True)))
        else:
            signs = signs * factor
    ops: list[Gate] = []
    (_, extra), *others = _signs(signs)  # the first is on the last wire, as the rightmost rotation is
    found[-1] = (found[-1][0], found[-1][1] + extra)
    for wire, at in (*others, *reversed(found)):
        for op in _multiplexed(wire, at, m):
            if ops and op[0] == "CZ" and ops[-1] == op:
                ops.pop()
            else:
                ops.append(op)
    yield from ops


def _factors(blocks: NDArray, m: int) -> Iterator[Rotation | NDArray]:
    """The factors of a block-diagonal matrix, (blocks, size, size), from left to right: rotations, and signs."""
    from scipy.linalg import cossin  # half a second, which only who lowers waits for

    count, size, _ = blocks.shape
    if size == 1:
        yield np.sign(blocks).reshape((2,) * m)
        return
    left, middle, right = [], [], []
    for block in blocks:
        us, theta, vs = cossin(block, p=size // 2, q=size // 2, separate=True)
        left.extend(us)  # type: ignore[arg-type]
        right.extend(vs)  # type: ignore[arg-type]
        middle.append(2 * theta)
    wire = count.bit_length() - 1
    yield from _factors(np.array(left), m)
    yield wire, np.array(middle).reshape((2,) * wire + (1,) + (2,) * (m - wire - 1))
    yield from _factors(np.array(right), m)


def _signs(signs: NDArray) -> Iterator[Rotation]:
    """Rotations by 2 pi whose product is a diagonal of signs, of which an even number are negative."""
    rest = signs.copy()
    for wire in reversed(range(signs.ndim)):
        first = rest.take([0], axis=wire)
        yield wire, np.where(first < 0, 2 * np.pi, 0.0)
        rest = rest * first  # what is left is at 1 on this wire


def _multiplexed(wire: int, at: NDArray, m: int) -> Iterator[Gate]:
    """RY on a wire by angles that the other wires choose: RY and CZ in turns, in the order of a Gray code."""
    others = [w for w in range(m) if w != wire]
    if np.abs(at).max() < _TINY:
        return
    signs, changed = _gray(len(others))
    for angle, bit in zip((signs @ at.ravel() / at.size).tolist(), changed, strict=True):
        if abs(angle) > _TINY:
            yield "RY", (wire,), (angle,)
        if others:
            yield "CZ", tuple(sorted((wire, others[-1 - bit]))), ()


@lru_cache
def _gray(bits: int) -> tuple[NDArray, list[int]]:
    """Of a Gray code, a row of signs (-1)^(code . setting) for every code, and the bit that changes after it."""
    codes = [step ^ (step >> 1) for step in range(1 << bits)]
    signs = [[1 - 2 * ((code & setting).bit_count() & 1) for setting in range(len(codes))] for code in codes]
    return np.array(signs), [(a ^ b).bit_length() - 1 for a, b in zip(codes, [*codes[1:], 0], strict=True)]
