"""A circuit as the native engine sees it: levels of one-wire matrices and signed permutations. No tensors here.

Every gate is a one-wire matrix, a fixed two-wire signed permutation, or made of these (``Gate.parts``). Each op goes
into the earliest level its wires allow; a level is one matrix a wire, then signed permutations in time order:

    U = P_T (m_T,0 x m_T,1 x ...) ... P_0 (m_0,0 x m_0,1 x ...)

Over a cut of the wires into a left and a right half, the permutation of a level is a short sum of Kronecker products
(``halves``): two terms for every CZ or CX that crosses. A shallow circuit is therefore a short sum of Kronecker
products.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import numpy as np
from numpy.typing import NDArray

from qcircuit_peft.circuit import Circuit, Op
from qcircuit_peft.gates import GATES, signed_permutation


@dataclass(frozen=True)
class Factor:
    """A one-wire gate at ``scale`` times the angles at these positions (``scale`` is 1 for a gate without angles)."""

    gate: str
    angles: tuple[int, ...]
    scale: float
    adjoint: bool


@dataclass(frozen=True)
class Monomial:
    """A signed permutation on two wires: ``y[i] = phase[i] x[index[i]]`` on the basis states of the two digits."""

    wires: tuple[int, int]
    dims: tuple[int, int]
    index: tuple[int, ...]
    phase: tuple[complex, ...]

    @property
    def diagonal(self) -> bool:
        """Whether it only changes signs or phases."""
        return self.index == tuple(range(len(self.index)))


@dataclass(frozen=True)
class Level:
    """The factors of each wire in time order, then the signed permutations in time order."""

    factors: tuple[tuple[Factor, ...], ...]
    monomials: tuple[Monomial, ...]


def _parts(op: Op) -> Iterator[tuple[str, tuple[int, ...], tuple[int, ...], float, bool]]:
    """``(gate, wires, angles, scale, adjoint)`` of the one-wire gates and signed permutations an op is made of."""
    gate, angles = GATES[op.gate], op.angles or ()
    if gate.elementary:
        yield op.gate, op.wires, angles, -1.0 if op.adjoint and angles else 1.0, op.adjoint and not angles
        return
    for part, adjoint in gate.steps(op.adjoint):
        wires = tuple(op.wires[w] for w in part.wires)
        yield part.gate, wires, () if part.scale is None else angles, part.scale or 1.0, adjoint


@lru_cache(maxsize=4096)
def _monomial(gate: str, wires: tuple[int, int], dims: tuple[int, int], adjoint: bool) -> Monomial:
    matrix = GATES[gate].matrix((), dims)
    index, phase = signed_permutation(matrix.conj().T if adjoint else matrix)
    return Monomial(wires, dims, tuple(index.tolist()), tuple(phase.tolist()))


@lru_cache(maxsize=512)
def levels(circuit: Circuit) -> tuple[Level, ...]:
    """The levels of a circuit, at least one."""
    n = len(circuit.dims)
    factors: list[list[list[Factor]]] = []
    monomials: list[list[Monomial]] = []
    level, closed = [0] * n, [False] * n  # where a wire's next op goes; whether a permutation stands there already

    def at(index: int) -> None:
        while len(factors) <= index:
            factors.append([[] for _ in range(n)])
            monomials.append([])

    at(0)
    for op in circuit.ops:
        for gate, wires, angles, scale, adjoint in _parts(op):
            if len(wires) == 1:
                (w,) = wires
                taken = circuit.dims[w] > 2 and bool(factors[level[w]][w])  # a qubit takes several factors, a qudit one
                level[w], closed[w] = level[w] + (closed[w] or taken), False
                at(level[w])
                factors[level[w]][w].append(Factor(gate, angles, scale, adjoint))
            else:
                a, b = wires
                level[a] = level[b] = max(level[a], level[b])
                closed[a] = closed[b] = True
                monomials[level[a]].append(_monomial(gate, (a, b), (circuit.dims[a], circuit.dims[b]), adjoint))
    return tuple(Level(tuple(map(tuple, f)), tuple(m)) for f, m in zip(factors, monomials, strict=True))


Gather = tuple[NDArray[np.int64], NDArray]  # (index, coefficient): y[i] = coefficient[i] x[index[i]]


def _after(first: Gather, then: Gather) -> Gather:
    return first[0][then[0]], then[1] * first[1][then[0]]


def _lift(gather: Gather, wires: tuple[int, ...], dims: tuple[int, ...]) -> Gather:
    """A gather on the digits of ``wires`` as a gather on the whole register."""
    digits = np.array(np.unravel_index(np.arange(prod(dims)), dims))
    own = tuple(dims[w] for w in wires)
    at = np.ravel_multi_index(tuple(digits[list(wires)]), own)
    source = digits.copy()
    source[list(wires)] = np.unravel_index(gather[0][at], own)
    return np.asarray(np.ravel_multi_index(tuple(source), dims)), gather[1][at]


def identity(n: int) -> Gather:
    """Every row from its own place."""
    return np.arange(n), np.ones(n)


def _gather(monomial: Monomial) -> Gather:
    phase = np.array(monomial.phase)
    return np.array(monomial.index), phase if np.imag(phase).any() else np.real(phase)


@lru_cache(maxsize=512)
def permutation(monomials: tuple[Monomial, ...], dims: tuple[int, ...]) -> Gather:
    """The product of signed permutations on a register, as one gather."""
    total = identity(prod(dims))
    for monomial in monomials:
        total = _after(total, _lift(_gather(monomial), monomial.wires, dims))
    return total


def _schmidt(monomial: Monomial) -> list[tuple[Gather, Gather]]:
    """A two-wire signed permutation as a sum of products of one-digit gathers: equal blocks share a term."""
    a, b = monomial.dims
    index, phase = _gather(monomial)
    blocks: dict[tuple, tuple[Gather, Gather]] = {}
    for i in range(a):
        rows = index[i * b : (i + 1) * b]
        for j in np.unique(rows // b):
            inside = rows // b == j
            right = np.where(inside, rows % b, 0), np.where(inside, phase[i * b : (i + 1) * b], 0)
            key = (right[0].tobytes(), right[1].tobytes())
            left = blocks.setdefault(key, ((np.zeros(a, np.int64), np.zeros(a)), right))[0]
            left[0][i], left[1][i] = j, 1
    return list(blocks.values())


@lru_cache(maxsize=512)
def halves(monomials: tuple[Monomial, ...], dims: tuple[int, ...], cut: int) -> list[tuple[Gather, Gather]]:
    """The signed permutations of a level as a sum over terms of (gather on wires < cut) x (gather on the others)."""
    left_dims, right_dims = dims[:cut], dims[cut:]
    n_left, n_right = prod(left_dims), prod(right_dims)
    if all(m.diagonal for m in monomials):
        signs = permutation(monomials, dims)[1].reshape(n_left, n_right)
        own = signs[:, :1]  # what the left half does when the right one is at 0; rows that agree up to it share a term
        rows, group = np.unique(np.round(signs / own, 12), axis=0, return_inverse=True)
        group = group.reshape(-1)
        keep_left, keep_right = np.arange(n_left), np.arange(n_right)
        return [((keep_left, own[:, 0] * (group == s)), (keep_right, row)) for s, row in enumerate(rows)]
    terms = [(identity(n_left), identity(n_right))]
    for monomial in monomials:
        a, b = monomial.wires
        if max(a, b) < cut:
            step = _lift(_gather(monomial), (a, b), left_dims)
            terms = [(_after(left, step), right) for left, right in terms]
        elif min(a, b) >= cut:
            step = _lift(_gather(monomial), (a - cut, b - cut), right_dims)
            terms = [(left, _after(right, step)) for left, right in terms]
        else:
            pairs = _schmidt(monomial)
            if a >= cut:
                a, b, pairs = b, a, [(second, first) for first, second in pairs]
            lifted = [(_lift(u, (a,), left_dims), _lift(v, (b - cut,), right_dims)) for u, v in pairs]
            terms = [(_after(left, u), _after(right, v)) for left, right in terms for u, v in lifted]
    return terms


def n_terms(monomials: tuple[Monomial, ...], dims: tuple[int, ...], cut: int, limit: int) -> int:
    """``len(halves(...))``, or ``limit + 1`` without building a sum that has more than ``limit`` terms."""
    if not all(m.diagonal for m in monomials):
        bound = prod(len(_schmidt(m)) for m in monomials if min(m.wires) < cut <= max(m.wires))
        return min(bound, limit + 1)
    return min(len(halves(monomials, dims, cut)), limit + 1)


def blocks(dims: tuple[int, ...], largest: int) -> tuple[tuple[int, ...], ...]:
    """Neighbouring wires in groups, each of dimension at most ``largest`` where a single wire allows it."""
    groups: list[list[int]] = [[0]]
    for w in range(1, len(dims)):
        if prod(dims[v] for v in groups[-1]) * dims[w] <= largest:
            groups[-1].append(w)
        else:
            groups.append([w])
    return tuple(map(tuple, groups))
