"""The first levels of a circuit: a short sum of Kronecker products over a cut of the wires."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, prod

from qcircuit_peft.backends.native import plan
from qcircuit_peft.backends.native.arrays import (
    Array,
    Constants,
    bmm,
    cat,
    conj,
    contiguous,
    filled,
    permute,
    pieces,
    stack,
    unbind,
)
from qcircuit_peft.backends.native.matrices import Blocks, make_blocks, together
from qcircuit_peft.backends.native.whole import BLOCK
from qcircuit_peft.circuit import Circuit

_TERMS = 256  # most Kronecker products that are added up
_CALLS = 1_000_000, 100_000  # multiplications in the time it takes to call what runs on the whole state, and a level


@dataclass(frozen=True)
class _Chain:
    """One or both sides of the cut, (F sides, ...): a level is its transposed matrix, once for each of its terms."""

    sides: int
    n: int  # the dimension of a side, filled up to the larger one
    k: int  # the columns of a side, likewise
    terms: tuple[int, ...]  # for each level

    def states(self, steps: Sequence[Array]) -> list[Array]:
        """The levels (F sides, n, terms n) -> the columns behind each, (F sides, k terms so far, n)."""
        state = steps[0] if self.k == self.n else steps[0][:, : self.k]
        states = [state.reshape(len(state), -1, self.n) if self.terms[0] > 1 else state]
        for step, terms in zip(steps[1:], self.terms[1:], strict=True):
            state = bmm(states[-1], step)
            states.append(state.reshape(len(state), -1, self.n) if terms > 1 else state)
        return states

    def undo(self, steps: Sequence[Array], states: Sequence[Array], g: Array) -> Array:
        """The gradient of the levels, side by side, from that of the last columns."""
        found = []
        for step, before, terms in [*zip(steps[1:], states, self.terms[1:], strict=False)][::-1]:
            g = g.reshape(len(g), -1, terms * self.n) if terms > 1 else g
            found.append(bmm(conj(before).mT, g))
            g = bmm(g, conj(step).mT)
        g = g.reshape(len(g), self.k, -1) if self.terms[0] > 1 else g
        found.append(filled(g, (len(g), self.n, g.shape[2])))
        return cat(found[::-1], 2)


@dataclass(frozen=True)
class Prefix:
    """The first k columns of the first levels of a circuit: one chain for both sides, or one for each."""

    blocks: Blocks
    chains: tuple[_Chain, ...]
    sides: tuple[tuple[int, int], tuple[int, int]]  # (dimension, columns) of the left and of the right half
    k: int

    def __call__(self, angles: Array) -> Array:
        """(F, n_angles) -> (F, N, k)."""
        _, rows = self.blocks.rows(angles)
        left, right = self._halves([states[-1] for _, states in self._run(rows)])
        if left.ndim == 3:
            return bmm(left.mT, right).reshape(len(left), -1, self.k)
        out = (left @ right).reshape(len(left), self.sides[0][0] * self.sides[1][0], -1)
        return out if out.shape[2] == self.k else contiguous(out[:, :, : self.k])

    def undo(self, angles: Array, g: Array) -> Array:
        """The gradient of the angles from that of the result, which need not be made again."""
        skews, rows = self.blocks.rows(angles)
        runs = self._run(rows)
        halves = self._part(*self._halves([states[-1] for _, states in runs]), g)
        gradients = []
        for chain, (steps, states) in zip(self.chains, runs, strict=True):
            own = [_fill(half, chain.k, chain.n) for half in halves[: chain.sides]]
            halves = halves[chain.sides :]
            last = stack(own) if chain.sides > 1 else own[0]
            gradients.append(chain.undo(steps, states, last.reshape(states[-1].shape)))
        return self.blocks.undo(angles, skews, rows, gradients)

    def _run(self, rows: tuple[Array, ...]) -> list[tuple[tuple[Array, ...], list[Array]]]:
        """For each chain its levels, and the columns behind each."""
        runs = []
        for chain, blocks in zip(self.chains, self.blocks.matrices(rows), strict=True):
            steps = pieces(blocks, [chain.n * terms for terms in chain.terms], 2)
            runs.append((steps, chain.states(steps)))
        return runs

    def _halves(self, last: Sequence[Array]) -> tuple[Array, Array]:
        """The last columns of the chains -> the halves, laid out so that their product is the result as it is written.

        If the left half has one column: (F, terms, a) and (F, terms, b k). Else (F, a, 1, ka, terms) and
        (F, 1, b, terms, kb).
        """
        halves = []
        for chain, state in zip(self.chains, last, strict=True):
            halves += unbind(state.reshape(-1, chain.sides, chain.k, prod(chain.terms), chain.n))
        (n_left, k_left), (n_right, k_right) = self.sides
        left, right = halves
        right = _cut(right, k_right, n_right)
        if k_left == 1:
            left = left[:, 0] if left.shape[3] == n_left else left[:, 0, :, :n_left]
            return left, permute(right, (0, 2, 3, 1)).reshape(len(right), right.shape[2], -1)
        left = permute(_cut(left, k_left, n_left), (0, 3, 1, 2))
        return left[:, :, None], permute(right, (0, 3, 2, 1))[:, None]

    def _part(self, left: Array, right: Array, g: Array) -> tuple[Array, Array]:
        """The gradients of the halves, (F, k, terms, n), from that of the result."""
        (n_left, k_left), (n_right, k_right) = self.sides
        if k_left == 1:
            g = g.reshape(-1, n_left, n_right * self.k)
            of_right = bmm(conj(left), g).reshape(len(g), -1, n_right, self.k)
            return bmm(conj(right), g.mT)[:, None], permute(of_right, (0, 3, 1, 2))
        g = filled(g, (*g.shape[:2], k_left * k_right)).reshape(-1, n_left, n_right, k_left, k_right)
        of_left, of_right = (g @ conj(right).mT).sum(2), (conj(left).mT @ g).sum(1)
        return permute(of_left, (0, 2, 3, 1)), permute(of_right, (0, 3, 2, 1))


def _cut(half: Array, k: int, n: int) -> Array:
    """(F, columns, terms, rows) -> (F, k, terms, n)."""
    return half if half.shape[1::2] == (k, n) else half[:, :k, :, :n]


def _fill(half: Array, k: int, n: int) -> Array:
    """(F, some columns, terms, some rows) -> (F, k, terms, n), with zeros."""
    return filled(half, (len(half), k, half.shape[2], n))


@lru_cache(maxsize=1024)
def split(circuit: Circuit, k: int) -> tuple[int, int]:
    """``(cut, done)``: where to cut, and how many levels' permutations the prefix takes; counts multiplications."""
    dims, levels = circuit.dims, plan.levels(circuit)
    n = circuit.dim
    cut = min(range(len(dims)), key=lambda c: (prod(dims[:c]) + prod(dims[c:]), c))
    n_left, n_right = prod(dims[:cut]), prod(dims[cut:])
    k_left, k_right = ceil(k / n_right), min(k, n_right)
    whole = n * k * (sum(prod(dims[w] for w in block) for block in plan.blocks(dims, BLOCK)) + 4)
    terms, halves, best = 1, 0.0, (float("inf"), 0)
    for done in range(len(levels) + 1):
        if done:
            terms *= plan.n_terms(levels[done - 1].monomials, dims, cut, _TERMS)
            if terms > _TERMS:
                break
        if done < len(levels):
            halves += terms * (n_left**2 * k_left + n_right**2 * k_right)
        left_over = max(0, len(levels) - 1 - done) * (whole + _CALLS[1])
        left_over += n * k * 4 + _CALLS[0] if done < len(levels) else 0
        best = min(best, (n * k * (terms + 4) + halves + left_over, -done))
    return cut, -best[1]


def is_deep(circuit: Circuit, k: int) -> bool:
    """Whether some levels act on the whole state, so that the backward pass starts from the result."""
    done, levels = split(circuit, k)[1], plan.levels(circuit)
    return done < len(levels) - 1 or (done < len(levels) and bool(levels[-1].monomials))


def make_prefix(circuit: Circuit, k: int, make: Constants) -> Prefix:
    """The first levels of a circuit for k columns."""
    cut, done = split(circuit, k)
    dims, levels = circuit.dims, plan.levels(circuit)
    used = range(min(done + 1, len(levels)))
    terms = [plan.halves(levels[level].monomials if level < done else (), dims, cut) for level in used]
    sides = dims[:cut], dims[cut:]
    n_left, n_right = map(prod, sides)
    columns = ceil(k / n_right), min(k, n_right)
    wires = tuple(range(cut)), tuple(range(cut, len(dims)))
    groups = [(0, 1)] if together(sides) else [(0,), (1,)]
    wanted = [
        [[((level, wires[side]), term[side]) for level in used for term in terms[level]] for side in group]
        for group in groups
    ]
    blocks = make_blocks(circuit, wanted, make)
    count = tuple(len(terms[level]) for level in used)
    chains = tuple(
        _Chain(len(group), batch.n, max(columns[side] for side in group), count)
        for batch, group in zip(blocks.batches, groups, strict=True)
    )
    return Prefix(blocks, chains, ((n_left, columns[0]), (n_right, columns[1])), k)
