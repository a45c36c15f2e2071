"""The matrices of blocks of wires, of all levels at once: angles in, a few batches of small matrices out."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import groupby
from math import pi, prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qcircuit_peft.backends.native import plan
from qcircuit_peft.circuit import Circuit
from qcircuit_peft.gates import GATES
from qcircuit_peft.precision import wide

Job = tuple[int, tuple[int, ...]]  # a level, and neighbouring wires: the Kronecker product of their matrices is wanted
ToTensor = Callable[[NDArray], Tensor]


@dataclass(frozen=True)
class Matrices:
    """Products of one-wire gates on wires of one dimension d, as a function of the angles.

    A qubit gate with scaled angle t is ``constant + (cos t, sin t) @ basis``; on d > 2 it is the exponential of the
    skew-symmetric matrix whose entries are found in (t, -t, 0) at the positions ``basis``.
    Factors without an angle, and those that fill up short products, have scale 0. The r-th factors of all products
    stand together.
    """

    d: int
    length: int
    count: int
    angles: Tensor
    scales: Tensor
    constant: Tensor | None
    basis: Tensor

    def __call__(self, angles: Tensor) -> Tensor:
        """(F, n_angles) -> (F, count, d, d)."""
        f, d = angles.shape[0], self.d
        t = angles.index_select(1, self.angles) * self.scales
        if d == 2:
            turn = torch.stack((t.cos(), t.sin()), -1).to(self.basis.dtype)
            rows = turn @ self.basis if self.basis.ndim == 2 else (turn.unsqueeze(-2) @ self.basis).squeeze(-2)
            rows = rows if self.constant is None else rows + self.constant
        else:
            t = t.unflatten(1, (-1, d * (d - 1) // 2))
            skew = torch.cat((t, -t, torch.zeros_like(t[..., :1])), -1).index_select(-1, self.basis)
            rows = torch.linalg.matrix_exp(wide(skew).unflatten(-1, (d, d))).to(t.dtype)
        first, *others = rows.view(f, self.length, self.count, d, d).unbind(1)
        return reduce(lambda product, factor: factor @ product, others, first)


def _harmonics(factor: plan.Factor | None, turn: str) -> tuple[NDArray, NDArray]:
    """``(C0, (C1, C2))``: the matrix is C0 + C1 cos(t) + C2 sin(t) at the scaled angle t. Read off at three angles.

    Nothing stands for the identity: the gate ``turn`` at t = 0.
    """
    gate = GATES[factor.gate if factor else turn]
    if not gate.angles:
        matrix = gate.matrix().ravel()
        return matrix.conj().reshape(2, 2).T.ravel() if factor and factor.adjoint else matrix, np.zeros((2, 4))
    at = [gate.matrix((x / gate.frequency,)).ravel() for x in (0, pi, pi / 2)]
    constant = (at[0] + at[1]) / 2
    return constant, np.array([(at[0] - at[1]) / 2, at[2] - constant])


def _matrices(
    d: int, products: Sequence[tuple[plan.Factor, ...]], real: ToTensor, work: ToTensor, index: ToTensor
) -> Matrices:
    length = max(1, *map(len, products))
    factors = [product[r] if r < len(product) else None for r in range(length) for product in products]
    constant = None
    if d == 2:
        turn = next((g.gate for g in factors if g and g.angles), "RY")
        angles = [g.angles[0] if g and g.angles else 0 for g in factors]
        scales = [g.scale * GATES[g.gate].frequency if g and g.angles else 0.0 for g in factors]
        constants, bases = map(np.array, zip(*(_harmonics(g, turn) for g in factors), strict=True))
        constant = work(constants) if constants.any() else None
        basis = bases[0] if (bases == bases[0]).all() else bases
    else:
        rows, cols = np.tril_indices(d, -1)
        each = np.arange(len(rows))
        angles = [a for g in factors for a in (g.angles if g else np.zeros_like(each))]
        scales = np.repeat([g.scale / 2 if g else 0.0 for g in factors], len(rows))
        basis = np.full((d, d), 2 * len(rows))
        basis[rows, cols], basis[cols, rows] = each, len(rows) + each
        basis = basis.ravel()
    basis = work(basis) if d == 2 else index(basis)
    return Matrices(d, length, len(products), index(np.array(angles)), real(np.array(scales)), constant, basis)


def _kron(factors: Sequence[Tensor]) -> Tensor:
    """The Kronecker product of (..., n, n), (..., m, m), ...: (..., n m ..., n m ...)."""
    if len(factors) == 1:
        return factors[0]
    lead, sizes = factors[0].shape[:-2], [factor.shape[-1] for factor in factors]
    axes = [[n if at == own else 1 for at in range(len(sizes))] for own, n in enumerate(sizes)]
    spread = [factor.view(*lead, *own, *own) for factor, own in zip(factors, axes, strict=True)]
    return reduce(torch.mul, spread).view(*lead, prod(sizes), prod(sizes))


def _kron_all(wires: Tensor) -> Tensor:
    """(F, w, J, d, d) -> (F, J, d^w, d^w), wire 0 first; groups of three or two wires go in one batch."""
    f, w, j, d, _ = wires.shape
    each = next((e for e in (3, 2) if w > e and w % e == 0), None)
    if each is None:
        return _kron(wires.unbind(1))
    return _kron_all(_kron(wires.view(f, w // each, each, j, d, d).unbind(2)))


def _runs(dims: tuple[int, ...]) -> list[tuple[int, int]]:
    """Neighbouring wires of equal dimension: ``(dimension, how many)``."""
    return [(d, len(list(group))) for d, group in groupby(dims)]


@dataclass(frozen=True)
class Blocks:
    """The matrices of many jobs: for each tuple of wire dimensions, all its jobs in one batch."""

    kinds: tuple[Matrices, ...]
    groups: tuple[tuple[tuple[int, ...], int], ...]  # (wire dimensions, number of jobs)
    sizes: tuple[tuple[int, ...], ...]  # per kind, how its matrices are dealt out to the runs of the groups
    dtype: torch.dtype

    def __call__(self, angles: Tensor) -> tuple[Tensor, ...]:
        """(F, n_angles) -> for each group (F, jobs, n, n)."""
        f = angles.shape[0]
        dealt = zip(self.kinds, self.sizes, strict=True)
        tables = {kind.d: iter(kind(angles).split(sizes, 1)) for kind, sizes in dealt}
        out = []
        for dims, jobs in self.groups:
            runs = [_kron_all(next(tables[d]).view(f, w, jobs, d, d)) for d, w in _runs(dims)]
            out.append(_kron(runs).to(self.dtype) if runs else angles.new_ones(f, jobs, 1, 1, dtype=self.dtype))
        return tuple(out)


def make_blocks(
    circuit: Circuit, jobs: Sequence[Job], real: ToTensor, work: ToTensor, index: ToTensor
) -> tuple[Blocks, list[tuple[int, int]]]:
    """The blocks of these jobs, and for each job ``(group, place in the group)``."""
    levels = plan.levels(circuit)
    groups: dict[tuple[int, ...], list[Job]] = defaultdict(list)
    places = []
    for level, wires in jobs:
        dims = tuple(circuit.dims[w] for w in wires)
        groups[dims].append((level, wires))
        places.append((list(groups).index(dims), len(groups[dims]) - 1))
    products: dict[int, list[tuple[plan.Factor, ...]]] = defaultdict(list)
    sizes: dict[int, list[int]] = defaultdict(list)
    for dims, members in groups.items():
        position = 0
        for d, w in _runs(dims):
            products[d] += [
                levels[lv].factors[wires[p]] for p in range(position, position + w) for lv, wires in members
            ]
            sizes[d].append(w * len(members))
            position += w
    kinds = tuple(_matrices(d, products[d], real, work, index) for d in products)
    counted = tuple((dims, len(members)) for dims, members in groups.items())
    return Blocks(kinds, counted, tuple(tuple(sizes[d]) for d in products), work(np.ones(0)).dtype), places
