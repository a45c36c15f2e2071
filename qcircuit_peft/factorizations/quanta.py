"""QuanTA: gates on all pairs of axes of a width, a trained copy minus a frozen one; of full rank."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import combinations
from math import prod
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear, pad

from qcircuit_peft.checks import whole_number
from qcircuit_peft.factorizations.axes import balanced, given
from qcircuit_peft.factorizations.parts import Base, Part, Vector


def _pairs(axes: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """Every pair of axes in the order in which its gates act, the last axis first, and the size of the gate."""
    order = range(len(axes) - 1, -1, -1)
    return [(i, j, axes[i] * axes[j]) for i, j in combinations(order, 2)]


def _entries(axes: tuple[int, ...]) -> int:
    return sum(size * size for _, _, size in _pairs(axes))


def _nearly_equal(width: int, order: int) -> tuple[int, ...]:
    """The smallest product of ``order`` axes b or b + 1 that is not below ``width``.

    >>> _nearly_equal(50257, 4), _nearly_equal(97, 2)
    ((15, 15, 15, 15), (10, 10))
    """
    b = next(b for b in range(1, width + 1) if (b + 1) ** order >= width)
    longer = next(j for j in range(order + 1) if (b + 1) ** j * b ** (order - j) >= width)
    return (b + 1,) * longer + (b,) * (order - longer)


@lru_cache(maxsize=64)
def _drawn(axes: tuple[int, ...], seed: int) -> Tensor:
    random = np.random.RandomState(seed)  # the one stream that numpy promises never to change
    gates = [random.uniform(-1, 1, size * size) * (3 / size) ** 0.5 for _, _, size in _pairs(axes)]
    with torch.inference_mode(False):
        return torch.from_numpy(np.concatenate(gates).astype(np.float32))


@torch.compiler.assume_constant_result
def _frozen(axes: tuple[int, ...], seed: int) -> Tensor:
    """The entries of the frozen gates, uniform with variance 1 / (rows of the gate), in every version the same."""
    return _drawn(axes, seed)


@dataclass(frozen=True)
class Quanta:
    """delta W = scaling * (T - S): the inputs as a tensor of ``axes``, gates on all its pairs of axes one by one.

    S is the product of frozen gates, drawn from ``seed`` and never stored; T that of the same gates plus the trained
    "gates", which start at 0, all entries in one vector. So all layers of one shape share S, and weight decay pulls
    towards delta W = 0. Inputs are padded with zeros, or cropped, to the product of the axes, and outputs from it.
    T x - S x is not taken as the difference of two near vectors: with a = S x and e = T x - S x so far, the gate
    S_j + D_j makes S_j e + D_j (a + e) of e, which loses no digits for small D.
    Source: QuanTA (arXiv 2406.00132); the seed, the form of the difference, and the start of the gates are ours.

    >>> Quanta(4096, 4096, (16, 8, 8, 4)).parts
    {'gates': Vector(size=43008, start=0.0)}
    """

    n_out: int
    n_in: int
    axes: tuple[int, ...]
    seed: int = 0
    scaling: float = 1.0
    parts: dict[str, Part] = field(init=False, repr=False, compare=False)

    uses_base: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", {"gates": Vector(_entries(self.axes))})

    @property
    def rank(self) -> None:
        """Full."""

    def forward(self, x: Tensor, made: Mapping[str, Tensor], base: Base | None = None) -> Tensor:
        """delta W applied to ``x``, (*rows, in), gate by gate: (*rows, out)."""
        trained = made["gates"]
        frozen = _frozen(self.axes, self.seed).to(trained)
        width, rows = prod(self.axes), x.shape[:-1]
        a = pad(x, (0, width - self.n_in)).reshape(-1, *self.axes)  # a negative pad crops
        e, start = None, 0
        for i, j, size in _pairs(self.axes):
            where = slice(start, start := start + size * size)
            still, moved = frozen[where].view(size, size), trained[where].view(size, size)
            e = _gate(a, moved, i, j) if e is None else _gate(e, still, i, j) + _gate(a + e, moved, i, j)
            a = _gate(a, still, i, j)
        assert e is not None  # there are two axes or more
        return pad(e.reshape(*rows, width), (0, self.n_out - width)) * self.scaling

    def delta(self, made: Mapping[str, Tensor], weight: Tensor | None = None) -> Float[Tensor, "out in"]:
        """delta W itself, to merge and to export."""
        gates = made["gates"]
        return self.forward(torch.eye(self.n_in, dtype=gates.dtype, device=gates.device), made).mT

    def lora(self, made: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Refused with ValueError: the update has full rank."""
        raise ValueError(f"quanta: the update has full rank, at most {min(self.n_out, self.n_in)}, and is no LoRA")


def _gate(x: Tensor, gate: Tensor, i: int, j: int) -> Tensor:
    """A gate on the axes i and j of x, (rows, *axes)."""
    last = x.movedim((i + 1, j + 1), (-2, -1))
    return linear(last.flatten(-2), gate).view(last.shape).movedim((-2, -1), (i + 1, j + 1))


def quanta(
    n_out: int,
    n_in: int,
    r: int,
    frame: Callable[[int, int], Any],
    scaling: float = 1.0,
    *,
    axes: Any = None,
    order: int = 4,
    seed: int = 0,
) -> Quanta:
    """QuanTA for a weight (n_out, n_in); it has no rank and no frames, so ``r`` and ``frame`` are not looked at.

    ``axes`` multiply to one of both widths; a table from widths to axes is asked for the larger width. Left out, the
    larger width has ``order`` balanced axes, or the next product of ``order`` nearly equal ones where this halves the
    gates, since the width has a large prime. Parameters: the sum over pairs of axes of (d_i d_j)^2.
    Raises ValueError for other axes, for one axis alone, for gates that have more entries than the weight, or a seed
    outside 0..2^32 - 1.

    >>> quanta(4096, 4096, 1, None, axes=[16, 8, 8, 4]).axes, quanta(3072, 768, 1, None).axes
    ((16, 8, 8, 4), (8, 8, 8, 6))
    >>> quanta(97, 97, 1, None).axes  # of 108
    (4, 3, 3, 3)
    """
    whole_number("quanta: seed", seed, 0, 2**32 - 1)
    whole_number("quanta: order", order, 2, 12)
    width = max(n_out, n_in)
    if isinstance(axes, dict):
        axes = {str(key): value for key, value in axes.items()}.get(str(width))
    if axes is None:
        chosen, padded = balanced(width, order), _nearly_equal(width, order)
        if len(chosen) < 2 or _entries(chosen) > 2 * _entries(padded):
            chosen = padded
    else:
        chosen = given("quanta", (width, min(n_out, n_in)), axes)
    if len(chosen) < 2:
        raise ValueError(f"quanta: gates act on pairs of axes, but {chosen} is only one")
    if _entries(chosen) > n_out * n_in:
        raise ValueError(
            f"quanta: gates on the axes {chosen} have {_entries(chosen)} entries, more than the {n_out * n_in} of "
            f"the weight; name smaller axes or leave the module out"
        )
    return Quanta(n_out, n_in, chosen, seed, scaling)
