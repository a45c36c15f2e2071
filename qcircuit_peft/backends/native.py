"""The native engine: plan a circuit once, run it as a few batched products, keep only the angles for the backward pass.

``columns`` cuts the wires into two halves. As long as that pays, the circuit is a short sum of Kronecker products
(``plan.halves``), so each half runs on its own space of dimension about sqrt(N) and one product joins them. The levels
left over, and ``apply``, run on the whole state: a product for each block of wires, then a sign or a permutation.

The backward pass recomputes. The short sum is small and is differentiated as it stands; the levels on the whole state
are undone one by one, since their matrices are unitary. What is kept in between does not grow with the depth.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, reduce
from itertools import groupby
from math import ceil, pi, prod
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch._guards import detect_fake_mode
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _disable_current_modes

from qcircuit_peft.backends import plan
from qcircuit_peft.circuit import Circuit
from qcircuit_peft.gates import GATES

_BLOCK = 64  # largest dimension of a block of wires on the whole state
_TERMS = 256  # most Kronecker products that are added up

Job = tuple[int, tuple[int, ...]]  # a level, and neighbouring wires: the Kronecker product of their matrices is wanted
ToTensor = Callable[[NDArray], Tensor]


# --- matrices of blocks of wires, all levels at once ------------------------------------------------------------------


@dataclass(frozen=True)
class _Matrices:
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
            rows = torch.linalg.matrix_exp(skew.unflatten(-1, (d, d)))
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
) -> _Matrices:
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
    return _Matrices(d, length, len(products), index(np.array(angles)), real(np.array(scales)), constant, basis)


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
class _Blocks:
    """The matrices of many jobs: for each tuple of wire dimensions, all its jobs in one batch."""

    kinds: tuple[_Matrices, ...]
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


def _blocks(
    circuit: Circuit, jobs: Sequence[Job], real: ToTensor, work: ToTensor, index: ToTensor
) -> tuple[_Blocks, list[tuple[int, int]]]:
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
    return _Blocks(kinds, counted, tuple(tuple(sizes[d]) for d in products), work(np.ones(0)).dtype), places


# --- the first levels: a sum of Kronecker products over a cut ---------------------------------------------------------


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
class _Prefix:
    """The first k columns of the first levels of a circuit. The jobs are the left half's levels, then the right's."""

    blocks: _Blocks
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
def _split(circuit: Circuit, k: int) -> tuple[int, int]:
    """``(cut, done)``: where to cut, and how many levels' permutations the prefix takes; counts multiplications."""
    dims, levels = circuit.dims, plan.levels(circuit)
    n = circuit.dim
    cut = min(range(len(dims)), key=lambda c: (prod(dims[:c]) + prod(dims[c:]), c))
    n_left, n_right = prod(dims[:cut]), prod(dims[cut:])
    k_left, k_right = ceil(k / n_right), min(k, n_right)
    whole = n * k * (sum(prod(dims[w] for w in block) for block in plan.blocks(dims, _BLOCK)) + 4)
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


def _prefix(circuit: Circuit, k: int, real: ToTensor, work: ToTensor, index: ToTensor) -> _Prefix:
    cut, done = _split(circuit, k)
    dims, levels = circuit.dims, plan.levels(circuit)
    used = range(min(done + 1, len(levels)))
    wires = tuple(range(cut)), tuple(range(cut, len(dims)))
    blocks, places = _blocks(circuit, [(level, half) for half in wires for level in used], real, work, index)
    terms = [plan.halves(levels[level].monomials if level < done else (), dims, cut) for level in used]
    gathers: dict[int, list[list[plan.Gather]]] = defaultdict(list)
    for job, (group, _) in enumerate(places):
        side, level = divmod(job, len(used))
        gathers[group].append([term[side] for term in terms[level]])
    n_left, n_right = prod(dims[:cut]), prod(dims[cut:])
    sizes = [prod(dims_) for dims_, _ in blocks.groups]
    return _Prefix(
        blocks=blocks,
        steps=tuple(_steps(gathers[group], n, work, index) for group, n in enumerate(sizes)),
        levels=len(used),
        sides=((n_left, ceil(k / n_right)), (n_right, min(k, n_right))),
        k=k,
    )


# --- the other levels: on the whole state -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Step:
    """A level on the whole state: its blocks' matrices as (group, place), then a gather and its inverse."""

    blocks: tuple[tuple[int, int], ...]
    index: Tensor | None
    inverse: Tensor | None
    weights: Tensor | None


@dataclass(frozen=True)
class _Whole:
    """Some levels of a circuit on a state (F, N, K). A block's product moves its digits to the other end for free."""

    blocks: _Blocks
    steps: tuple[_Step, ...]

    def __call__(self, angles: Tensor, x: Tensor) -> Tensor:
        """(F, n_angles), (F, N, K) -> (F, N, K)."""
        return self.run(self.matrices(angles), x)

    def matrices(self, angles: Tensor) -> tuple[Tensor, ...]:
        """The block matrices in the order of the steps, each (F, n, n)."""
        groups = [group.unbind(1) for group in self.blocks(angles)]
        return tuple(groups[group][place] for step in self.steps for group, place in step.blocks)

    def run(self, matrices: tuple[Tensor, ...], x: Tensor) -> Tensor:
        """The levels with these matrices on x."""
        f, n, k = x.shape
        todo, rows_first = iter(matrices), True
        for step in self.steps:
            if step.blocks:
                own = [next(todo) for _ in step.blocks]
                if rows_first:
                    for m in own:
                        x = torch.bmm(x.reshape(f, m.shape[1], n * k // m.shape[1]).transpose(1, 2), m.transpose(1, 2))
                    x = x.reshape(f, k, n)
                else:
                    for m in reversed(own):
                        x = torch.bmm(m, x.reshape(f, n * k // m.shape[1], m.shape[1]).transpose(1, 2))
                    x = x.reshape(f, n, k)
                rows_first = not rows_first
            x = _gather(x, step.index, step.weights, 1 if rows_first else 2)
        return x if rows_first else x.transpose(1, 2)

    def undo(self, matrices: tuple[Tensor, ...], y: Tensor, g: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """Gradients of the matrices and of x, from the result y and its gradient g; x is recovered on the way."""
        f, n, k = y.shape
        rows_first = sum(bool(step.blocks) for step in self.steps) % 2 == 0
        both = torch.cat((y, g)) if rows_first else torch.cat((y, g)).transpose(1, 2)
        left, gradients = list(matrices), []
        for step in reversed(self.steps):
            both = _scatter(both, step.inverse, step.weights, 1 if rows_first else 2)
            if not step.blocks:
                continue
            own = [left.pop() for _ in step.blocks]
            rows_first, here = not rows_first, []
            for m in own if rows_first else reversed(own):
                d, twice = m.shape[1], torch.cat((m, m))
                if rows_first:  # it was: out (R, d) = in (d, R)^T m^T
                    out = both.reshape(2 * f, n * k // d, d)
                    both = torch.bmm(twice.mH, out.transpose(1, 2))
                    here.append(torch.bmm(out[f:].transpose(1, 2), both[:f].mH))
                else:  # it was: out (d, R) = m in (R, d)^T
                    out = both.reshape(2 * f, d, n * k // d)
                    both = torch.bmm(out.transpose(1, 2), twice.conj())
                    here.append(torch.bmm(out[f:], both[:f].conj()))
            gradients += here if rows_first else here[::-1]
            both = both.reshape(2 * f, n, k) if rows_first else both.reshape(2 * f, k, n)
        return tuple(reversed(gradients)), both[f:]


def _gather(x: Tensor, index: Tensor | None, weights: Tensor | None, dim: int) -> Tensor:
    if index is not None:
        x = x.index_select(dim, index)
    return x if weights is None else x * (weights if dim == 2 else weights.unsqueeze(-1))


def _scatter(y: Tensor, inverse: Tensor | None, weights: Tensor | None, dim: int) -> Tensor:
    if weights is not None:
        y = y * (weights if dim == 2 else weights.unsqueeze(-1)).conj()
    return y if inverse is None else y.index_select(dim, inverse)


def _whole(circuit: Circuit, done: int | None, real: ToTensor, work: ToTensor, index: ToTensor) -> _Whole:
    """All levels (``done`` is None), or those after a prefix that took the permutations of ``done`` levels."""
    dims, levels = circuit.dims, plan.levels(circuit)
    wires = plan.blocks(dims, _BLOCK)
    first = done or 0
    turning = range(first if done is None else first + 1, len(levels))
    blocks, places = _blocks(circuit, [(level, block) for level in turning for block in wires], real, work, index)
    steps = []
    for level in range(first, len(levels)):
        at = (level - turning.start) * len(wires)
        rows, weights = plan.permutation(levels[level].monomials, dims)
        moved = not np.array_equal(rows, np.arange(len(rows)))
        steps.append(
            _Step(
                blocks=tuple(places[at : at + len(wires)]) if level in turning else (),
                index=index(rows) if moved else None,
                inverse=index(np.argsort(rows)) if moved else None,
                weights=None if (weights == 1).all() else work(weights),
            )
        )
    acts = (step for step in steps if step.blocks or step.index is not None or step.weights is not None)
    return _Whole(blocks, tuple(acts))


# --- differentiation --------------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def _cached(
    circuit: Circuit, k: int | None, dtype: torch.dtype, device: torch.device
) -> tuple[_Prefix | None, _Whole | None]:
    """What to run for ``columns`` (k columns) or ``apply`` (k is None), with its constants on the device."""
    complex_dtype = torch.complex64 if dtype is torch.float32 else torch.complex128
    work_dtype = dtype if circuit.is_real else complex_dtype

    def real(array: NDArray) -> Tensor:
        return torch.tensor(array, dtype=dtype, device=device)

    def work(array: NDArray) -> Tensor:
        return torch.tensor(np.real(array) if circuit.is_real else array, dtype=work_dtype, device=device)

    def index(array: NDArray) -> Tensor:
        return torch.tensor(array, dtype=torch.int64, device=device)

    # plain tensors, whoever asks for them first
    with torch.inference_mode(False), torch._C._DisableFuncTorch():
        if k is None:
            return None, _whole(circuit, None, real, work, index)
        done = _split(circuit, k)[1]
        rest = _whole(circuit, done, real, work, index)
        return _prefix(circuit, k, real, work, index), rest if rest.steps else None


_COMPILED = SimpleNamespace()  # the programs in compiled graphs: a compiler can read attributes, but not a cache
_NAMES: dict[tuple, str] = {}


@torch.compiler.assume_constant_result
def _name(circuit: Circuit, k: int | None, dtype: torch.dtype, device: torch.device) -> str:
    name = _NAMES.setdefault((circuit, k, dtype, device), f"program_{len(_NAMES)}")
    with _disable_current_modes():
        setattr(_COMPILED, name, _cached(circuit, k, dtype, device))
    return name


def _program(circuit: Circuit, k: int | None, angles: Tensor) -> tuple[_Prefix | None, _Whole | None]:
    """The program, made once; under a fake mode it is made anew, since its constants would be fake."""
    if torch.compiler.is_compiling():
        return getattr(_COMPILED, _name(circuit, k, angles.dtype, angles.device))
    make = _cached if detect_fake_mode() is None else _cached.__wrapped__
    return make(circuit, k, angles.dtype, angles.device)


@contextmanager
def _full_precision() -> Iterator[None]:
    """float32 products in float32, whatever torch is set to: TF32 or bfloat16 would not leave a frame orthonormal."""
    units: Any = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [unit.fp32_precision for unit in units]
    if not {*before} - {"none", "ieee"}:
        yield
        return
    for unit in units:
        unit.fp32_precision = "ieee"
    try:
        yield
    finally:
        for unit, precision in zip(units, before, strict=True):
            unit.fp32_precision = precision


class _Recompute(torch.autograd.Function):
    """``prefix(angles)``, keeping only the angles for the backward pass."""

    @staticmethod
    @_full_precision()
    def forward(prefix: _Prefix, angles: Tensor) -> Tensor:
        return prefix(angles)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.prefix, angles = inputs
        ctx.save_for_backward(angles)

    @staticmethod
    @_full_precision()
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        (angles,) = ctx.saved_tensors
        halves, pull, *_ = torch.func.vjp(ctx.prefix.halves, angles)
        return None, pull(ctx.prefix.undo(*halves, grads[0]))[0]

    @staticmethod
    def vmap(info: Any, in_dims: tuple, prefix: _Prefix, angles: Tensor) -> tuple[Tensor, int]:
        angles = _batch_first(info, angles, in_dims[1])
        return _Recompute.apply(prefix, angles.flatten(0, 1)).unflatten(0, angles.shape[:2]), 0


class _Reversible(torch.autograd.Function):
    """``whole(angles, x)``, keeping only the angles and the result for the backward pass."""

    @staticmethod
    @_full_precision()
    def forward(whole: _Whole, angles: Tensor, x: Tensor) -> Tensor:
        return whole(angles, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.whole, angles, _ = inputs
        ctx.save_for_backward(angles, output)

    @staticmethod
    @_full_precision()
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, Tensor]:
        angles, output = ctx.saved_tensors
        if not ctx.whole.blocks.groups:  # permutations only
            return None, torch.zeros_like(angles), ctx.whole.undo((), output, grads[0])[1]
        matrices, pull, *_ = torch.func.vjp(ctx.whole.matrices, angles)
        gradients, x = ctx.whole.undo(matrices, output, grads[0])
        return None, pull(gradients)[0], x

    @staticmethod
    def vmap(info: Any, in_dims: tuple, whole: _Whole, angles: Tensor, x: Tensor) -> tuple[Tensor, int]:
        angles, x = _batch_first(info, angles, in_dims[1]), _batch_first(info, x, in_dims[2])
        return _Reversible.apply(whole, angles.flatten(0, 1), x.flatten(0, 1)).unflatten(0, angles.shape[:2]), 0


def _batch_first(info: Any, tensor: Tensor, dim: int | None) -> Tensor:
    """The vmapped dimension in front, made where there is none."""
    return tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _plain() -> bool:
    """Whether torch does the backward pass itself: a compiler plans it better, forward mode needs the operations."""
    return torch.compiler.is_compiling() or forward_ad._current_level >= 0


def _run_prefix(prefix: _Prefix, angles: Tensor) -> Tensor:
    return prefix(angles) if _plain() else _Recompute.apply(prefix, angles)


def _run_whole(whole: _Whole, angles: Tensor, x: Tensor) -> Tensor:
    return whole(angles, x) if _plain() else _Reversible.apply(whole, angles, x)


# --- the contract of a backend ----------------------------------------------------------------------------------------


def _flat(circuit: Circuit, angles: Tensor, batch: Sequence[int]) -> Tensor:
    """(*batch, n_angles) -> (F, n_angles), with an angle that nothing uses if there is none."""
    if circuit.n_angles == 0:
        return angles.new_zeros(prod(batch), 1)
    return angles.expand(*batch, circuit.n_angles).reshape(prod(batch), circuit.n_angles)


def columns(circuit: Circuit, angles: Tensor, k: int) -> Tensor:
    """The first k columns of the circuit's matrix, (*batch, N, k)."""
    prefix, whole = _program(circuit, k, angles)
    assert prefix is not None
    flat = _flat(circuit, angles, angles.shape[:-1])
    out = _run_prefix(prefix, flat)
    if whole is not None:
        out = _run_whole(whole, flat, out)
    return out.reshape(*angles.shape[:-1], circuit.dim, k)


def apply(circuit: Circuit, angles: Tensor, x: Tensor) -> Tensor:
    """U x for the columns of x, (*batch, N, K)."""
    _, whole = _program(circuit, None, angles)
    assert whole is not None
    batch = torch.broadcast_shapes(angles.shape[:-1], x.shape[:-2])
    dtype = (
        angles.dtype if circuit.is_real and not x.is_complex() else torch.promote_types(angles.dtype, torch.complex64)
    )
    x = x.to(dtype).expand(*batch, *x.shape[-2:]).reshape(prod(batch), *x.shape[-2:])
    flat = _flat(circuit, angles, batch)
    if x.is_complex() and circuit.is_real:  # a real circuit acts on real and imaginary parts as on more columns
        parts = _run_whole(whole, flat, torch.cat((x.real, x.imag), -1))
        out = torch.complex(*parts.split(x.shape[-1], -1))
    else:
        out = _run_whole(whole, flat, x)
    return out.reshape(*batch, circuit.dim, x.shape[-1])
