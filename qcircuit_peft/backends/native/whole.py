"""Levels of a circuit on the whole state: a product for each block of wires, then a sign or a permutation."""

from dataclasses import dataclass

import numpy as np

from qcircuit_peft.backends.native import plan
from qcircuit_peft.backends.native.arrays import Array, Constants, bmm, cat, conj, pieces, take
from qcircuit_peft.backends.native.matrices import Blocks, Job, make_blocks
from qcircuit_peft.circuit import Circuit

BLOCK = 64  # largest dimension of a block of wires on the whole state


@dataclass(frozen=True)
class _Step:
    """A level on the whole state: its blocks' matrices as (group, place), then a gather and its inverse."""

    blocks: tuple[tuple[int, int], ...]
    index: Array | None
    inverse: Array | None
    weights: Array | None


@dataclass(frozen=True)
class Whole:
    """Some levels of a circuit on a state (F, N, K). A block's product moves its digits to the other end for free."""

    blocks: Blocks
    steps: tuple[_Step, ...]

    def __call__(self, angles: Array, x: Array) -> Array:
        """(F, n_angles), (F, N, K) -> (F, N, K)."""
        return self._run(self._matrices(self.blocks.rows(angles)[1]), x)

    def undo(self, angles: Array, y: Array, g: Array) -> tuple[Array, Array, Array]:
        """From the result y and its gradient g: the gradients of the angles and of x, and x."""
        skews, rows = self.blocks.rows(angles)
        found, x, g = self._back(self._matrices(rows), y, g)
        if not found:
            return 0 * angles, g, x
        each: list[list[Array]] = [[] for _ in self.blocks.batches]
        for (group, _), own in zip((block for step in self.steps for block in step.blocks), found, strict=True):
            each[group].append(own)
        gradients = [cat(own, 2) for own in each]
        return self.blocks.undo(angles, skews, rows, gradients), g, x

    def _matrices(self, rows: tuple[Array, ...]) -> tuple[Array, ...]:
        """The transposed block matrices in the order of the steps, each (F, n, n)."""
        groups = [
            pieces(group, [group.shape[1]] * (group.shape[2] // group.shape[1]), 2)
            for group in self.blocks.matrices(rows)
        ]
        return tuple(groups[group][place] for step in self.steps for group, place in step.blocks)

    def _run(self, matrices: tuple[Array, ...], x: Array) -> Array:
        """The levels with these matrices on x."""
        f, n, k = x.shape
        todo, rows_first = iter(matrices), True
        for step in self.steps:
            if step.blocks:
                own = [next(todo) for _ in step.blocks]
                if rows_first:
                    for m in own:
                        x = bmm(x.reshape(f, m.shape[1], n * k // m.shape[1]).mT, m)
                    x = x.reshape(f, k, n)
                else:
                    for m in reversed(own):
                        x = bmm(m.mT, x.reshape(f, n * k // m.shape[1], m.shape[1]).mT)
                    x = x.reshape(f, n, k)
                rows_first = not rows_first
            x = _gather(x, step.index, step.weights, 1 if rows_first else 2)
        return x if rows_first else x.mT

    def _back(self, matrices: tuple[Array, ...], y: Array, g: Array) -> tuple[list[Array], Array, Array]:
        """The gradients of the matrices, x, and its gradient, from the result y and its gradient g."""
        f, n, k = y.shape
        rows_first = sum(bool(step.blocks) for step in self.steps) % 2 == 0
        both = cat((y, g), 0) if rows_first else cat((y, g), 0).mT
        left, gradients = list(matrices), []
        for step in reversed(self.steps):
            both = _scatter(both, step.inverse, step.weights, 1 if rows_first else 2)
            if not step.blocks:
                continue
            own = [left.pop() for _ in step.blocks]
            rows_first, here = not rows_first, []
            for m in own if rows_first else reversed(own):
                d, twice = m.shape[1], cat((m, m), 0)
                if rows_first:  # it was: out (R, d) = in (d, R)^T m^T
                    out = both.reshape(2 * f, n * k // d, d)
                    both = bmm(conj(twice), out.mT)
                    here.append(bmm(conj(both[:f]), out[f:]))
                else:  # it was: out (d, R) = m in (R, d)^T
                    out = both.reshape(2 * f, d, n * k // d)
                    both = bmm(out.mT, conj(twice).mT)
                    here.append(bmm(conj(both[:f]).mT, out[f:].mT))
            gradients += here if rows_first else here[::-1]
            both = both.reshape(2 * f, n, k) if rows_first else both.reshape(2 * f, k, n)
        return gradients[::-1], both[:f], both[f:]


def _gather(x: Array, index: Array | None, weights: Array | None, dim: int) -> Array:
    if index is not None:
        x = take(x, index, dim)
    return x if weights is None else x * (weights if dim == 2 else weights[:, None])


def _scatter(y: Array, inverse: Array | None, weights: Array | None, dim: int) -> Array:
    if weights is not None:
        y = y * conj(weights if dim == 2 else weights[:, None])
    return y if inverse is None else take(y, inverse, dim)


def make_whole(circuit: Circuit, done: int | None, make: Constants) -> Whole:
    """All levels (``done`` is None), or those after a prefix that took the permutations of ``done`` levels."""
    dims, levels = circuit.dims, plan.levels(circuit)
    wires = plan.blocks(dims, BLOCK)
    first = done or 0
    turning = range(first if done is None else first + 1, len(levels))
    groups: dict[tuple[int, ...], list[Job]] = {}
    places = {}
    for job in ((level, block) for level in turning for block in wires):
        own = tuple(dims[w] for w in job[1])
        groups.setdefault(own, []).append(job)
        places[job] = list(groups).index(own), len(groups[own]) - 1
    steps = []
    for level in range(first, len(levels)):
        rows, weights = plan.permutation(levels[level].monomials, dims)
        moved = not np.array_equal(rows, np.arange(len(rows)))
        steps.append(
            _Step(
                blocks=tuple(places[level, block] for block in wires) if level in turning else (),
                index=make.index(rows) if moved else None,
                inverse=make.index(np.argsort(rows)) if moved else None,
                weights=None if (weights == 1).all() else make.work(weights),
            )
        )
    acts = (step for step in steps if step.blocks or step.index is not None or step.weights is not None)
    batches = [[[(job, None) for job in jobs]] for jobs in groups.values()]
    return Whole(make_blocks(circuit, batches, make), tuple(acts))
