"""Frames whose parameters are the first K' columns of a strictly lower-triangular matrix B: the classical maps."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from math import inf, sqrt
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.nn.functional import pad

from qcircuit_peft.checks import whole_number
from qcircuit_peft.circuit import Circuit
from qcircuit_peft.frames.givens import givens
from qcircuit_peft.frames.householder import householder
from qcircuit_peft.frames.kind import check_count, draw, draw_angles
from qcircuit_peft.frames.lie import (
    TOLERANCE,
    cayley,
    exponential,
    neumann,
    neumann_series,
    taylor,
    taylor_series,
    truncation_error,
)
from qcircuit_peft.precision import wide

MAX_ORDER = 256


class Series(NamedTuple):
    """What a truncated series makes of an eigenvalue of A, and the order it has if none is given; 0: as A asks for."""

    value: Callable[[complex, int], complex]
    order: int


@dataclass(frozen=True)
class Map:
    """How B (*batch, N, K') acts on X (*batch, N, m), what that is, and where a "uniform" start draws B from.

    Entries are uniform with standard deviation ``spread`` / sqrt(N), or ``spread`` / (sqrt(N) + sqrt(K')) for a
    ``bounded`` map; without a spread they are angles uniform in [0, 2 pi). ``series`` is for a truncated one.
    """

    act: Callable[..., Tensor]
    about: str
    spread: float | None
    series: Series | None = None
    bounded: bool = False

    @property
    def options(self) -> tuple[str, ...]:
        """The names of its options."""
        return ("intrinsic_rank",) if self.series is None else ("intrinsic_rank", "order")


# Spreads by measurement (N = 64 and 768, K = 1 to 64): at these a column of the frame keeps no more of its weight in
# the first K rows, and has no larger entries, than one of a random frame. Neumann diverges there, at a norm of 2.
MAPS: dict[str, Map] = {
    "taylor": Map(
        taylor,
        "the exponential of a low-rank skew-symmetric matrix, as a series (Q_T)",
        torch.pi / 2,
        Series(taylor_series, 0),
    ),
    "exponential": Map(exponential, "the same through the whole N x N matrix, as a reference", torch.pi / 2),
    "cayley": Map(cayley, "(1 - A/2)^-1 (1 + A/2) of a low-rank skew-symmetric A", 2.0),
    "neumann": Map(
        neumann, "cayley with its inverse as a truncated series", 1.4, Series(neumann_series, 32), bounded=True
    ),
    "householder": Map(householder, "a product of reflections", 1.0),
    "givens": Map(givens, "a product of plane rotations, in trees of log2 N steps", None),
}


@dataclass(frozen=True)
class LowerFrame:
    """The first ``k`` columns of the orthogonal matrix that ``map`` makes of B, strictly lower-triangular.

    ``intrinsic_rank`` K' is k if left out. The parameters are the n K' - K' (K' + 1) / 2 entries of B below its
    diagonal, column by column, so that a smaller K' is a beginning of the vector. K' < k moves less: the frame then
    differs from the first columns of 1 by a rank of 2 K' at most (K' for "householder").

    map: a name in ``MAPS``. order: of a truncated series, "neumann" (32 if left out) or "taylor" (left out: chosen from
    the norm of A, with scaling, so that |U^T U - 1| <= 1e-6 always).
    Raises ValueError for sizes out of range, K' above k, an order for another map, or an order too low for the start.
    Source: Quantum-PEFT (arXiv 2503.05431), secs. 3 and A; the starts and the order are ours.

    >>> frame = LowerFrame("taylor", 768, 8, intrinsic_rank=2)
    >>> frame.n_parameters, frame.columns(frame.initial()).shape
    (1533, torch.Size([768, 8]))
    """

    map: str
    n: int
    k: int
    intrinsic_rank: Any = None
    order: Any = None

    def __post_init__(self) -> None:
        if self.map not in MAPS:
            raise ValueError(f"frame: map is one of {', '.join(MAPS)}, got {self.map!r}")
        whole_number(f"{self.map}: n", self.n, 1)
        whole_number(f"{self.map}: k", self.k, 1, self.n)
        if self.intrinsic_rank is None:
            object.__setattr__(self, "intrinsic_rank", self.k)
        whole_number(f"{self.map}: intrinsic_rank", self.intrinsic_rank, 1, self.k)
        series = MAPS[self.map].series
        if series is None and self.order is not None:
            known = " and ".join(name for name, row in MAPS.items() if row.series is not None)
            raise ValueError(f"{self.map}: order is for the truncated series {known}, got {self.order!r}")
        if series is not None and self.order is None:
            object.__setattr__(self, "order", series.order or None)
        if self.order is not None:
            whole_number(f"{self.map}: order", self.order, 1, MAX_ORDER)
            self._check_order()

    @property
    def n_parameters(self) -> int:
        """The number of parameters, n K' - K' (K' + 1) / 2: all that a frame has if K' = k, up to signs."""
        return self.n * self.intrinsic_rank - self.intrinsic_rank * (self.intrinsic_rank + 1) // 2

    @property
    def groups(self) -> tuple[slice, ...]:
        """The columns of B: without one of them the frame is that of a smaller K'."""
        ends = [(j + 1) * self.n - (j + 1) * (j + 2) // 2 for j in range(self.intrinsic_rank)]
        return tuple(slice(start, end) for start, end in pairwise([0, *ends]))

    @property
    def family(self) -> "LowerFrame":
        """The same for all frames that can be generated in one call: those that differ in ``k`` only."""
        return replace(self, k=self.intrinsic_rank)

    @cached_property
    def radius(self) -> float:
        """The spectral norm of A up to which |U^T U - 1| <= 1e-6; infinite for all but a truncated series."""
        if self.order is None:
            return inf
        low, high = 0.0, float(MAX_ORDER)
        for _ in range(40):
            middle = (low + high) / 2
            inside = self._error(self.order, middle) <= TOLERANCE
            low, high = (middle, high) if inside else (low, middle)
        return low

    def flaw(self, parameters: Float[Tensor, "P"]) -> str | None:
        """What is said of a truncated series whose A has grown beyond its ``radius``."""
        if self.radius == inf or not parameters.isfinite().all() or (norm := self.norm(parameters)) <= self.radius:
            return None
        return (
            f"a {self.map} series of order {self.order} is orthonormal to {TOLERANCE:g} up to a norm of "
            f"{self.radius:.3g}, but A has {norm:.3g}; others always are"
        )

    def norm(self, parameters: Float[Tensor, "P"]) -> float:
        """The spectral norm of A, for comparison with ``radius``; from a (2K', 2K') matrix that A is on its range."""
        lower, c = wide(self.lower(parameters.detach())).split([self.intrinsic_rank, self.n - self.intrinsic_rank])
        upper = torch.linalg.qr(c, mode="r").R
        half = torch.cat([lower, upper])
        square = pad(half, (0, len(half) - self.intrinsic_rank))
        return torch.linalg.matrix_norm(square - square.mT, 2).item()

    def _spread(self) -> float | None:
        kind = MAPS[self.map]
        return kind.spread and kind.spread / (sqrt(self.n) + sqrt(self.intrinsic_rank) * kind.bounded)

    def _error(self, order: int, norm: float) -> float:
        """|U^T U - 1| of the truncated series at this norm of A."""
        series = MAPS[self.map].series
        assert series is not None
        return truncation_error(series.value, order, norm)

    def _check_order(self) -> None:
        """Raise ValueError if the series, at the norm that A has at a uniform start, leaves ``TOLERANCE``."""
        random = sqrt(self.n) + sqrt(self.intrinsic_rank)  # the norm of a random B of unit deviation
        norm = 1.15 * (self._spread() or 0.0) * random
        orders = (p for p in range(1, MAX_ORDER + 1) if self._error(p, norm) <= TOLERANCE)
        if self._error(self.order, norm) > TOLERANCE:
            raise ValueError(
                f"{self.map}: a series of order {self.order} leaves |U^T U - 1| above {TOLERANCE:g} at a norm of "
                f"{norm:.3g}, where A starts; the least order is {next(orders)}"
            )

    def initial(self, init: str = "uniform", generator: Generator | None = None) -> Float[Tensor, "P"]:
        """Fresh parameters: "uniform" is the map's own random start (``Map``), or standard "normal", or "zeros".

        Raises ValueError for another init, and for "normal" with a truncated series: at a norm of sqrt(N) or more.
        """
        if init == "normal" and self.order is not None:
            raise ValueError(
                f"{self.map}: init='normal' is not for a truncated series, which is orthogonal up to a norm of "
                f"{self.radius:.3g} of A; take 'uniform', or a map without an order"
            )
        spread = self._spread()
        if spread is None:
            return draw_angles(init, self.n_parameters, generator)
        return draw(init, self.n_parameters, generator, spread)

    def columns(self, parameters: Float[Tensor, "*batch P"]) -> Float[Tensor, "*batch n k"]:
        """The frame of each row of parameters, in their dtype; raises ValueError for a wrong number of them."""
        return self.apply(parameters, torch.eye(self.n, self.k, dtype=parameters.dtype, device=parameters.device))

    def apply(self, parameters: Float[Tensor, "*batch P"], x: Float[Tensor, "... n m"]) -> Float[Tensor, "... n m"]:
        """The whole orthogonal matrix, whose first ``k`` columns the frame is, on the columns of ``x``: O(n K' m)."""
        check_count(parameters, self.n_parameters)
        act, b = MAPS[self.map].act, wide(self.lower(parameters))
        return (act(b, wide(x)) if self.order is None else act(b, wide(x), self.order)).to(x.dtype)

    def lower(self, parameters: Float[Tensor, "*batch P"]) -> Float[Tensor, "*batch n r"]:
        """The K' columns of B."""
        place = torch.triu_indices(self.intrinsic_rank, self.n, 1, device=parameters.device)
        flat = parameters.new_zeros(*parameters.shape[:-1], self.intrinsic_rank * self.n)
        return flat.index_copy(-1, place[0] * self.n + place[1], parameters).unflatten(-1, (-1, self.n)).mT

    def circuits(self) -> Iterator[tuple[str, Circuit, slice]]:
        """None: this frame has no circuit."""
        return iter(())
