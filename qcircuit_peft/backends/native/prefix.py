"""The first levels of a circuit: a short sum of Kronecker products over a cut of the wires."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, prod

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from qcircuit_peft.backends.native import plan
from qcircuit_peft.backends.native.matrices import Blocks, ToTensor, make_blocks
from qcircuit_peft.backends.native.whole import BLOCK
from qcircuit_peft.circuit import Circuit

_TERMS = 256  # most Kronecker products that are added up


@dataclass(frozen=True)
class _Steps:
    """The matrices of a group of jobs with the terms of each level put in: ``terms n`` rows a level instead of n."""

    rows: Tensor | None  # which rows of the group's matrices, one under the other; None: all as they stand
    weights: Tensor | None
    sizes: tuple[int, ...]  # how many rows each job has

    def __call__(self, group: Tensor) -> tuple[Tensor, ...]:
        """(F, jobs, n, n) -> for each job (F, terms n, n)."""
        f, jobs, n, _ = group.shape
        rows = group.view(f, jobs * n, n)
        rows = rows if self.rows is None else rows.index_select(1, self.rows)
        rows = rows if self.weights is None else rows * self.weights
        return rows.split(self.sizes, 1)


def _steps(gathers: Sequence[Sequence[plan.Gather]], n: int, work: ToTensor, index: ToTensor) -> _Steps:
    """``gathers[job][term]`` acts behind the matrix of the job."""
    rows = np.concatenate([gather[0] + job * n for job, terms in enumerate(gathers) for gather in terms])
    weights = np.concatenate([gather[1] for terms in gathers for gather in terms])
    return _Steps(
        rows=None if np.array_equal(rows, np.arange(len(gathers) * n)) else index(rows),
        weights=None if (weights == 1).all() else work(weights.reshape(-1, 1)),
        sizes=tuple(n * len(terms) for terms in gathers),
    )


def _run_half(steps: Sequence[Tensor], k: int) -> Tensor:
    """One side of the cut: its levels (F, terms n, n) -> the first k columns for every term, (F, k, terms, n)."""
    f, rows, n = steps[0].shape
    state = steps[0][:, :, :k].transpose(1, 2).reshape(f, k * (rows // n), n)
    for step in steps[1:]:
        state = torch.bmm(state, step.transpose(1, 2)).view(f, state.shape[1] * (step.shape[1] // n), n)
    return state.view(f, k, state.shape[1] // k, n)


@dataclass(frozen=True)
class Prefix:
    """The first k columns of the first levels of a circuit. The jobs are the left half's levels, then the right's."""

    blocks: Blocks
    steps: tuple[_Steps, ...]  # one a group
    levels: int
    sides: tuple[tuple[int, int], tuple[int, int]]  # (dimension, columns) of the left and of the right half
    k: int

    def __call__(self, angles: Tensor) -> Tensor:
        """(F, n_angles) -> (F, N, k)."""
        left, right = self.halves(angles)
        (n_left, k_left), (n_right, k_right) = self.sides
        out, n = left @ right, n_left * n_right
        if self.k == n:
            return out.view(len(out), n, n)
        out = out.view(len(out), k_left * k_right, n)
        return (out if self.k == k_left * k_right else out[:, : self.k]).transpose(1, 2)

    def halves(self, angles: Tensor) -> tuple[Tensor, Tensor]:
        """(F, n_angles) -> the halves, so that their product is the result in the order it is written in."""
        jobs = [job for steps, group in zip(self.steps, self.blocks(angles), strict=True) for job in steps(group)]
        (n_left, k_left), (n_right, k_right) = self.sides
        left, right = _run_half(jobs[: self.levels], k_left), _run_half(jobs[self.levels :], k_right)
        if self.k == n_left * n_right:  # write the square matrix row by row: (a, b, ka, kb)
            return left.permute(0, 3, 1, 2).unsqueeze(2), right.permute(0, 3, 2, 1).unsqueeze(1)
        return left.transpose(2, 3).unsqueeze(2), right.unsqueeze(1)  # (ka, kb, a, b)

    def undo(self, left: Tensor, right: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of the halves from that of the result, which need not be made again."""
        (n_left, k_left), (n_right, k_right) = self.sides
        if self.k == n_left * n_right:
            g = g.reshape(-1, n_left, n_right, n_left, n_right)
        else:
            unwanted = k_left * k_right - self.k
            g = F.pad(g, (0, unwanted)) if unwanted else g
            g = g.transpose(1, 2).reshape(-1, k_left, k_right, n_left, n_right)
        return (g @ right.mH).sum_to_size(left.shape), (left.mH @ g).sum_to_size(right.shape)


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
        left_over = max(0, len(levels) - 1 - done) * whole + (n * k * 4 if done < len(levels) else 0)
        best = min(best, (n * k * (terms + 4) + halves + left_over, -done))
    return cut, -best[1]


def make_prefix(circuit: Circuit, k: int, real: ToTensor, work: ToTensor, index: ToTensor) -> Prefix:
    """The first levels of a circuit for k columns, with their constants made by the three functions."""
    cut, done = split(circuit, k)
    dims, levels = circuit.dims, plan.levels(circuit)
    used = range(min(done + 1, len(levels)))
    wires = tuple(range(cut)), tuple(range(cut, len(dims)))
    blocks, places = make_blocks(circuit, [(level, half) for half in wires for level in used], real, work, index)
    terms = [plan.halves(levels[level].monomials if level < done else (), dims, cut) for level in used]
    gathers: dict[int, list[list[plan.Gather]]] = defaultdict(list)
    for job, (group, _) in enumerate(places):
        side, level = divmod(job, len(used))
        gathers[group].append([term[side] for term in terms[level]])
    n_left, n_right = prod(dims[:cut]), prod(dims[cut:])
    sizes = [prod(dims_) for dims_, _ in blocks.groups]
    return Prefix(
        blocks=blocks,
        steps=tuple(_steps(gathers[group], n, work, index) for group, n in enumerate(sizes)),
        levels=len(used),
        sides=((n_left, ceil(k / n_right)), (n_right, min(k, n_right))),
        k=k,
    )
