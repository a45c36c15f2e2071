"""Frames from circuits that keep the number of ones: compound matrices of a small rotation, on all rows of any width.

A circuit of Givens rotations between neighbouring qubits turns the m states with a single one by a rotation R of
SO(m), and the states with k ones by the k-th compound matrix of R, its minors of k rows and k columns: orthogonal, of
width C(m, k), from the m (m - 1) / 2 angles of R. No width of a transformer is such a number, so a compound matrix
stands on the first rows, and a second one, counted from the last row, on the last: both are orthogonal, and together
they reach all rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import combinations
from math import comb, gcd
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Generator, Tensor

from qcircuit_peft.backends.estimation import SWITCH
from qcircuit_peft.checks import whole_number, whole_numbers
from qcircuit_peft.circuit import MAX_ANGLES, Circuit, Op
from qcircuit_peft.frames.circuit import MAX_LAYERS
from qcircuit_peft.frames.kind import check_count, draw_angles
from qcircuit_peft.precision import wide

MAX_ORDER = 6
_USUAL_ORDER = 3


def pyramid(modes: int) -> Iterator[range]:
    """The pairs (i, i + 1) that the steps of a pyramid circuit turn, each step as the range of its i.

    In time order; 2 m - 3 steps, m (m - 1) / 2 pairs.

    >>> [list(step) for step in pyramid(4)]
    [[2], [1], [0, 2], [1], [2]]
    """
    last = modes - 2
    return (range(abs(last - step), last + 1, 2) for step in range(2 * modes - 3))


def rotation(angles: Float[Tensor, "*batch P"], modes: int) -> Float[Tensor, "*batch m m"]:
    """What a pyramid circuit of GIVENS gates does to the states with a single one, which wire it is on in order.

    The angles (radians) are those of its gates in time order; every rotation of SO(m) has some.
    Source: Kerenidis, Landman, Mathur (arXiv 2106.07198).
    """
    steps = list(pyramid(modes))
    x = torch.eye(modes, dtype=angles.dtype, device=angles.device).expand(*angles.shape[:-1], modes, modes)
    half, sizes = angles[..., None] / 2, [len(step) for step in steps]
    for step, cos, sin in zip(steps, half.cos().split(sizes, -2), half.sin().split(sizes, -2), strict=True):
        start, stop = step.start, step[-1] + 2
        one, next_one = x[..., start:stop:2, :], x[..., start + 1 : stop : 2, :]
        turned = torch.stack([cos * one + sin * next_one, cos * next_one - sin * one], -2).flatten(-3, -2)
        x = torch.cat([x[..., :start, :], turned, x[..., stop:, :]], -2)
    return x


@lru_cache(maxsize=64)
def _joined(modes: int, k: int) -> tuple[NDArray, NDArray]:
    """For each mode a and set C of k - 1 modes: which set of k modes {a} + C is, and the sign of putting a in order.

    Sets are in lexicographic order; the sign is 0 where a is in C. Both are (m C(m, k - 1),).
    """
    number = {found: place for place, found in enumerate(combinations(range(modes), k))}
    place, sign = np.zeros((2, modes, comb(modes, k - 1)), np.int64)
    for column, others in enumerate(combinations(range(modes), k - 1)):
        for mode in sorted({*range(modes)} - {*others}):
            before = sum(other < mode for other in others)
            place[mode, column] = number[(*others[:before], mode, *others[before:])]
            sign[mode, column] = (-1) ** before
    return place.ravel(), sign.ravel()


@lru_cache(maxsize=64)
def _grown(modes: int, k: int) -> NDArray:
    """Where, among all pairs of a mode and a set of k - 1 modes, those are whose mode is above all of the set.

    In the lexicographic order of the sets of k modes that they make.
    """
    number = {found: place for place, found in enumerate(combinations(range(modes), k - 1))}
    sets = combinations(range(modes), k)
    return np.array([found[-1] * len(number) + number[found[:-1]] for found in sets], np.int64)


@torch.compiler.assume_constant_result
def _tables(modes: int, k: int, grown: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    place, sign = _joined(modes, k)
    return (
        torch.tensor(place, device=device),
        torch.tensor(sign, dtype=dtype, device=device)[:, None, None],
        torch.tensor(_grown(modes, grown), device=device),
    )


def compound(r: Float[Tensor, "*batch m m"], x: Float[Tensor, "... N c"], k: int) -> Float[Tensor, "... N c"]:
    """The k-th compound matrix of ``r`` on the columns of ``x``, N = C(m, k), sets of modes in lexicographic order.

    Entry (S, A) is the minor of rows S and columns A. It is never built: the expansion of the minors, one row after
    the other, is k products with ``r``.

    >>> r = torch.tensor([[0.6, -0.8], [0.8, 0.6]])
    >>> compound(r, torch.ones(1, 1), 2)  # the determinant
    tensor([[1.]])
    """
    modes = r.shape[-1]
    z = x[..., None, :]  # (sets of what is left, rows that are chosen, columns)
    for done in range(k):
        place, sign, grown = _tables(modes, k - done, done + 1, x.dtype, x.device)
        joined = (z.index_select(-3, place) * sign).unflatten(-3, (modes, -1))  # (mode, sets, rows, columns)
        turned = (r @ joined.flatten(-3)).unflatten(-1, joined.shape[-3:])
        z = turned.transpose(-4, -3).flatten(-3, -2).index_select(-2, grown)
    return z[..., 0, :, :]


@dataclass(frozen=True)
class CompoundFrame:
    """``k`` columns of the product of compound matrices on the first and on the last rows of width ``n``.

    orders: a whole number up to ``MAX_ORDER`` or several, the numbers of ones k. Of several, all with the same R, the
    compound matrices follow each other on the diagonal, the highest order first. If left out 3, lower below a width of
    10. The modes m are as many as fit: the sum M of C(m, k) is at most n. Rows that are left over are as they were.
    layers: L times a matrix on the first M rows and one on the last, in mirrored order; if M = n, L matrices,
    alternately. Each has m (m - 1) / 2 angles. At zero angles it is the identity.
    Columns are taken from all rows, at steps of about 0.618 n, so that a few of them already depend on all modes.
    Raises ValueError for an order out of range or with M < n / 2, layers that are no number, or too many angles.
    Source: Kerenidis, Prakash (arXiv 2202.00054); adapters: QuIC (arXiv 2502.06916), which has one matrix, orders up to
    some k, and leaves the other rows as they were. The second matrix, and where the columns are taken, are ours.

    >>> frame = CompoundFrame(768, 8)
    >>> frame.modes, frame.reached, frame.n_parameters, frame.columns(frame.initial()).shape
    (17, 680, 272, torch.Size([768, 8]))
    """

    n: int
    k: int
    orders: Any = None
    layers: int = 1

    def __post_init__(self) -> None:
        whole_number("compound: n", self.n, 1)
        whole_number("compound: k", self.k, 1, self.n)
        whole_number("compound: layers", self.layers, 0, MAX_LAYERS)
        orders = self.orders
        if orders is None:
            orders = next(order for order in range(_USUAL_ORDER, 0, -1) if comb(2 * order - 1, order) <= self.n)
        orders = whole_numbers("compound: orders", [orders] if isinstance(orders, int) else orders, 1, MAX_ORDER)
        if len(set(orders)) < len(orders):
            raise ValueError(f"compound: orders has every order once, got {list(orders)}")
        object.__setattr__(self, "orders", tuple(sorted(orders, reverse=True)))
        if 2 * self.reached < self.n:
            raise ValueError(
                f"compound: orders {list(orders)} reach {self.reached} of {self.n} rows, less than half; "
                "take lower ones"
            )
        if self.modes < self.orders[0]:
            raise ValueError(
                f"compound: an order is at most the {self.modes} modes, got {list(orders)} at width {self.n}; "
                "take lower ones"
            )
        if self.n_parameters > MAX_ANGLES:
            raise ValueError(
                f"a frame has at most {MAX_ANGLES} angles, but a compound of orders {list(orders)} at width {self.n} "
                f"takes {self.n_parameters}; take higher ones"
            )

    @cached_property
    def modes(self) -> int:
        """The modes m of R, and so the qubits of the circuits."""
        modes = self.orders[0] - 1
        while self._width(modes + 1) <= self.n:
            modes += 1
        return modes

    def _width(self, modes: int) -> int:
        return sum(comb(modes, order) for order in self.orders)

    @cached_property
    def reached(self) -> int:
        """The rows M that one matrix turns."""
        return self._width(self.modes)

    @property
    def _blocks(self) -> int:
        return self.layers * (1 if self.reached == self.n else 2)

    @property
    def _once(self) -> int:
        return self.modes * (self.modes - 1) // 2

    @property
    def n_parameters(self) -> int:
        """The angles of all matrices, m (m - 1) / 2 each, in radians; it does not depend on ``k``."""
        return self._blocks * self._once

    @property
    def groups(self) -> tuple[slice, ...]:
        """The angles of each matrix: without them it is the identity."""
        return tuple(slice(at * self._once, (at + 1) * self._once) for at in range(self._blocks) if self._once)

    @property
    def family(self) -> "CompoundFrame":
        """The same for all frames that can be generated in one call: those that differ in ``k`` only."""
        return replace(self, k=1)

    def initial(self, init: str = "uniform", generator: Generator | None = None) -> Float[Tensor, "P"]:
        """Fresh angles in radians: "uniform" makes every R uniform over rotations (Haar's measure), up to signs.

        They are then the spherical coordinates of normal vectors; "normal" and "zeros" are the angles' own.
        """
        if init != "uniform" or not self._once:
            return draw_angles(init, self.n_parameters, generator)
        vectors = torch.randn(self._blocks, self.modes, self.modes, generator=generator)
        rest = vectors.square().flip(-1).cumsum(-1).flip(-1)[..., 1:].sqrt()
        angles = 2 * torch.atan2(rest, vectors[..., :-1])  # of the gate of each pair, in each of m - 1 chains
        chains = [
            (pair - step + self.modes - 2) // 2 for step, pairs in enumerate(pyramid(self.modes)) for pair in pairs
        ]
        return angles[:, chains, [pair for pairs in pyramid(self.modes) for pair in pairs]].flatten()

    def columns(self, parameters: Float[Tensor, "*batch P"]) -> Float[Tensor, "*batch n k"]:
        """The frame of each row of angles, in their dtype; raises ValueError for a wrong number of them."""
        return self.apply(parameters, torch.eye(self.n, self.k, dtype=parameters.dtype, device=parameters.device))

    def apply(self, parameters: Float[Tensor, "*batch P"], x: Float[Tensor, "... n c"]) -> Float[Tensor, "... n c"]:
        """The whole orthogonal matrix, whose first ``k`` columns the frame is, on the columns of ``x``."""
        check_count(parameters, self.n_parameters)
        if SWITCH.estimator is not None:
            raise ValueError(
                "hardware estimates the first columns of one circuit, but those of a compound frame are of other "
                "states; adapt with frame='circuit'"
            )
        angles = wide(parameters).reshape(*parameters.shape[:-1], self._blocks, self._once)
        every = rotation(angles, self.modes)
        stride = next(q for q in range(round(0.618 * self.n), 2 * self.n) if gcd(q, self.n) == 1)
        rows = torch.arange(self.n, device=x.device) * pow(stride, -1, self.n) % self.n
        y = wide(x).index_select(-2, rows)
        y = y.expand(*torch.broadcast_shapes(every.shape[:-3], y.shape[:-2]), *y.shape[-2:])
        for block, r in enumerate(every.unbind(-3)):
            y = self._turn(r, y.flip(-2)).flip(-2) if block % 2 else self._turn(r, y)
        return y.to(x.dtype)

    def _turn(self, r: Tensor, y: Tensor) -> Tensor:
        sizes = [comb(self.modes, order) for order in self.orders]
        *parts, rest = y.split([*sizes, self.n - self.reached], -2)
        return torch.cat([*map(compound, [r] * len(parts), parts, self.orders), rest], -2)

    def flaw(self, parameters: Float[Tensor, "P"]) -> None:
        """None: its columns are orthonormal at any angles."""

    def circuits(self) -> Iterator[tuple[str, Circuit, slice]]:
        """A circuit for each matrix: it stands in its states with k ones, wires in the order of modes."""
        ops = [Op("GIVENS", (pair, pair + 1)) for pairs in pyramid(self.modes) for pair in pairs]
        circuit = Circuit((2,) * self.modes, ops)
        for index, where in enumerate(self.groups):
            yield str(index), circuit, where
