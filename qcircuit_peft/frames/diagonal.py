"""Circuits with one generalized entangling layer: a trainable diagonal node on all N levels instead of CZ gates."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from qcircuit_peft.ansatz import Ansatz, Step
from qcircuit_peft.circuit import Circuit
from qcircuit_peft.frames.circuit import CircuitFrame
from qcircuit_peft.frames.kind import check_count, draw
from qcircuit_peft.precision import wide

NODES = ("signs", "real")
_ROTATIONS = Ansatz("rotations", first=(Step("RY", "each"),))


def signs(w: Tensor) -> Tensor:
    """+1 where ``w`` >= 0, else -1, with the gradient of the identity (straight-through)."""
    return torch.where(w >= 0, 1.0, -1.0).to(w.dtype) + (w - w.detach())


def orthonormal(z: Float[Tensor, "*batch n k"]) -> Float[Tensor, "*batch n k"]:
    """The columns of ``z`` after Gram and Schmidt, by the Cholesky factor of Z^T Z in float64, twice."""
    high = wide(z)
    for _ in range(2):  # the second takes away what the first leaves of a large condition number
        factor = torch.linalg.cholesky(high.mT @ high)
        high = torch.linalg.solve_triangular(factor.mT, high, upper=True, left=False)
    return high.to(z.dtype)


@dataclass(frozen=True)
class DiagonalFrame:
    """``R D Q[:, :k]``: the first ``k`` columns of a circuit Q, a diagonal D of N trainable entries, RY on every wire.

    ``node`` "signs": D in O(1)^N, forward the signs of N numbers, backward straight-through; orthonormal as it stands.
    ``node`` "real": D = 1 + the numbers, in R^N. D Q is not orthonormal then, so its columns pass through Gram and
    Schmidt before R: what is left of D is what the span of the columns shows of it.
    The other options are those of ``CircuitFrame``. Parameters: the angles of Q, the N numbers, the angles of R.
    Raises ValueError for another node, or what ``CircuitFrame`` refuses.
    Source: Quantum-PEFT (arXiv 2503.05431), Eq. (3) and Fig. 3b; where the node stands, R and the estimator are ours.

    >>> frame = DiagonalFrame(768, 8)
    >>> frame.n_parameters, frame.columns(frame.initial()).shape
    (808, torch.Size([768, 8]))
    """

    n: int
    k: int
    node: str = "signs"
    ansatz: Any = "simplified_two_design"
    layers: int = 1
    width: str = "auto"
    backend: str = "native"
    inner: CircuitFrame = field(init=False, repr=False, compare=False)  # Q

    def __post_init__(self) -> None:
        if self.node not in NODES:
            raise ValueError(f"diagonal: node is one of {', '.join(NODES)}, got {self.node!r}")
        inner = CircuitFrame(self.n, self.k, self.ansatz, self.layers, self.width, self.backend)
        for name, value in (("inner", inner), ("ansatz", inner.ansatz), ("width", inner.width)):
            object.__setattr__(self, name, value)

    @cached_property
    def outer(self) -> CircuitFrame:
        """R."""
        return CircuitFrame(self.n, 1, _ROTATIONS, 0, self.width, self.backend)

    @property
    def n_parameters(self) -> int:
        """The angles of both circuits and N."""
        return self.inner.n_parameters + self.n + self.outer.n_parameters

    @property
    def groups(self) -> tuple[slice, ...]:
        """The entangling layers of Q; the numbers and R are in none."""
        return self.inner.groups

    @property
    def family(self) -> "DiagonalFrame":
        """The same for all frames that can be generated in one call: those that differ in ``k`` only."""
        return replace(self, k=1)

    def _parts(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        check_count(parameters, self.n_parameters)
        inner, numbers, outer = parameters.split([self.inner.n_parameters, self.n, self.outer.n_parameters], -1)
        return inner, (signs(numbers) if self.node == "signs" else 1 + numbers)[..., None], outer

    def initial(self, init: str = "uniform", generator: Generator | None = None) -> Float[Tensor, "P"]:
        """Fresh parameters: angles as in ``CircuitFrame``; numbers uniform in [-1/2, 1/2), standard normal or zero."""
        inner = self.inner.initial(init, generator)
        numbers = draw(init, self.n, generator, 12**-0.5)
        return torch.cat([inner, numbers, self.outer.initial(init, generator)])

    def columns(self, parameters: Float[Tensor, "*batch P"]) -> Float[Tensor, "*batch n k"]:
        """The frame of each row of parameters, orthonormal; raises ValueError for a wrong number of them."""
        inner, diagonal, outer = self._parts(parameters)
        columns = diagonal * self.inner.columns(inner)
        return self.outer.apply(outer, orthonormal(columns) if self.node == "real" else columns)

    @property
    def apply(self) -> Callable[[Tensor, Tensor], Tensor] | None:
        """R D Q on the columns of x, (*batch, n, m); None for a "real" node, with which it is not orthogonal."""
        return None if self.node == "real" else self._apply

    def _apply(self, parameters: Float[Tensor, "*batch P"], x: Float[Tensor, "... n m"]) -> Float[Tensor, "... n m"]:
        inner, diagonal, outer = self._parts(parameters)
        return self.outer.apply(outer, diagonal * self.inner.apply(inner, x))

    def flaw(self, parameters: Float[Tensor, "P"]) -> None:
        """None: its columns are orthonormal at any parameters."""

    def circuits(self) -> Iterator[tuple[str, Circuit, slice]]:
        """The circuits of Q and R, named "inner" and "outer", each with its part of the parameters."""
        for part, frame, start in (("inner", self.inner, 0), ("outer", self.outer, self.inner.n_parameters + self.n)):
            for name, circuit, where in frame.circuits():
                yield ".".join(filter(None, (part, name))), circuit, slice(start + where.start, start + where.stop)
