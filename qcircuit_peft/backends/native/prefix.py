"""The first levels of a circuit: a short sum of Kronecker products over a cut of the wires."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, prod

import torch
import torch.nn.functional as F
from torch import Tensor

from qcircuit_peft.backends.native import plan
from qcircuit_peft.backends.native.matrices import Blocks, conj, make_blocks, together
from qcircuit_peft.backends.native.table import Constants
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

    def states(self, steps: Sequence[Tensor]) -> list[Tensor]:
        """The levels (F sides, n, terms n) -> the columns behind each, (F sides, k terms so far, n)."""
        state = steps[0] if self.k == self.n else steps[0][:, : self.k]
        states = [state.reshape(len(state), -1, self.n) if self.terms[0] > 1 else state]
        for step, terms in zip(steps[1:], self.terms[1:], strict=True):
            state = torch.bmm(states[-1], step)
            states.append(state.view(len(state), -1, self.n) if terms > 1 else state)
        return states

    def undo(self, steps: Sequence[Tensor], states: Sequence[Tensor], g: Tensor) -> Tensor:
        """The gradient of the levels, side by side, from that of the last columns."""
        found = []
        for step, before, terms in [*zip(steps[1:], states, self.terms[1:], strict=False)][::-1]:
            g = g.view(len(g), -1, terms * self.n) if terms > 1 else g
            found.append(torch.bmm(conj(before).transpose(1, 2), g))
            g = torch.bmm(g, conj(step).transpose(1, 2))
        g = g.view(len(g), self.k, -1) if self.terms[0] > 1 else g
        found.append(F.pad(g, (0, 0, 0, self.n - self.k)) if self.k < self.n else g)
        return torch.cat(found[::-1], 2) if len(found) > 1 else found[0]


@dataclass(frozen=True)
class Prefix:
    """The first k columns of the first levels of a circuit: one chain for both sides, or one for each."""

    blocks: Blocks
    chains: tuple[_Chain, ...]
    sides: tuple[tuple[int, int], tuple[int, int]]  # (dimension, columns) of the left and of the right half
    k: int

    def __call__(self, angles: Tensor) -> Tensor:
        """(F, n_angles) -> (F, N, k)."""
        _, rows = self.blocks.rows(angles)
        left, right = self._halves([states[-1] for _, states in self._run(rows)])
        if left.ndim == 3:
            return torch.bmm(left.transpose(1, 2), right).view(len(left), -1, self.k)
        out = (left @ right).view(len(left), self.sides[0][0] * self.sides[1][0], -1)
        return out if out.shape[2] == self.k else out[:, :, : self.k].contiguous()

    def undo(self, angles: Tensor, g: Tensor) -> Tensor:
        """The gradient of the angles from that of the result, which need not be made again."""
        skews, rows = self.blocks.rows(angles)
        runs = self._run(rows)
        halves = self._part(*self._halves([states[-1] for _, states in runs]), g)
        gradients = []
        for chain, (steps, states) in zip(self.chains, runs, strict=True):
            own = [_fill(half, chain.k, chain.n) for half in halves[: chain.sides]]
            halves = halves[chain.sides :]
            last = torch.stack(own, 1) if chain.sides > 1 else own[0]
            gradients.append(chain.undo(steps, states, last.reshape(states[-1].shape)))
        return self.blocks.undo(angles, skews, rows, gradients)

    def _run(self, rows: tuple[Tensor, ...]) -> list[tuple[tuple[Tensor, ...], list[Tensor]]]:
        """For each chain its levels, and the columns behind each."""
        runs = []
        for chain, blocks in zip(self.chains, self.blocks.matrices(rows), strict=True):
            steps = blocks.split([chain.n * terms for terms in chain.terms], 2)
            runs.append((steps, chain.states(steps)))
        return runs

    def _halves(self, last: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The last columns of the chains -> the halves, laid out so that their product is the result as it is written.

        If the left half has one column: (F, terms, a) and (F, terms, b k). Else (F, a, 1, ka, terms) and
        (F, 1, b, terms, kb).
        """
        halves = []
        for chain, state in zip(self.chains, last, strict=True):
            halves += state.view(-1, chain.sides, chain.k, prod(chain.terms), chain.n).unbind(1)
        (n_left, k_left), (n_right, k_right) = self.sides
        left, right = halves
        right = _cut(right, k_right, n_right)
        if k_left == 1:
            left = left[:, 0] if left.shape[3] == n_left else left[:, 0, :, :n_left]
            return left, right.permute(0, 2, 3, 1).reshape(len(right), right.shape[2], -1)
        return _cut(left, k_left, n_left).permute(0, 3, 1, 2).unsqueeze(2), right.permute(0, 3, 2, 1).unsqueeze(1)

    def _part(self, left: Tensor, right: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of the halves, (F, k, terms, n), from that of the result."""
        (n_left, k_left), (n_right, k_right) = self.sides
        if k_left == 1:
            g = g.reshape(-1, n_left, n_right * self.k)
            of_right = torch.bmm(conj(left), g).view(len(g), -1, n_right, self.k)
            return torch.bmm(conj(right), g.transpose(1, 2)).unsqueeze(1), of_right.permute(0, 3, 1, 2)
        unwanted = k_left * k_right - self.k
        g = (F.pad(g, (0, unwanted)) if unwanted else g).reshape(-1, n_left, n_right, k_left, k_right)
        return (g @ right.mH).sum(2).permute(0, 2, 3, 1), (left.mH @ g).sum(1).permute(0, 3, 2, 1)


def _cut(half: Tensor, k: int, n: int) -> Tensor:
    """(F, columns, terms, rows) -> (F, k, terms, n)."""
    return half if half.shape[1::2] == (k, n) else half[:, :k, :, :n]


def _fill(half: Tensor, k: int, n: int) -> Tensor:
    """(F, some columns, terms, some rows) -> (F, k, terms, n), with zeros."""
    rows, columns = n - half.shape[3], k - half.shape[1]
    return F.pad(half, (0, rows, 0, 0, 0, columns)) if rows or columns else half


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


def make_prefix(circuit: Circuit, k: int, dtype: torch.dtype, make: Constants) -> Prefix:
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
    blocks = make_blocks(circuit, wanted, dtype, make)
    count = tuple(len(terms[level]) for level in used)
    chains = tuple(
        _Chain(len(group), batch.n, max(columns[side] for side in group), count)
        for batch, group in zip(blocks.batches, groups, strict=True)
    )
    return Prefix(blocks, chains, ((n_left, columns[0]), (n_right, columns[1])), k)
