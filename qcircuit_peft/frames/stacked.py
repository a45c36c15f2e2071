"""Several frames of one kind as one part: their parameters lie behind each other."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from qcircuit_peft.circuit import Circuit
from qcircuit_peft.frames.kind import Spec, check_count


@dataclass(frozen=True)
class Stacked:
    """``count`` frames like ``frame``, each with parameters of its own; ``columns`` has one axis more, (count, n, k).

    >>> from qcircuit_peft.frames import FRAMES
    >>> stacked = Stacked(FRAMES["circuit"].spec(64, 4), 3)
    >>> stacked.n_parameters, stacked.columns(stacked.initial()).shape
    (48, torch.Size([3, 64, 4]))
    """

    frame: Spec
    count: int

    @property
    def n(self) -> int:
        """Rows of each."""
        return self.frame.n

    @property
    def k(self) -> int:
        """Columns of each."""
        return self.frame.k

    @property
    def n_parameters(self) -> int:
        """Those of all frames."""
        return self.count * self.frame.n_parameters

    def _starts(self) -> range:
        return range(0, self.n_parameters, self.frame.n_parameters) if self.frame.n_parameters else range(0)

    @property
    def groups(self) -> tuple[slice, ...]:
        """Those of every frame."""
        return tuple(slice(at + g.start, at + g.stop) for at in self._starts() for g in self.frame.groups)

    @property
    def family(self) -> tuple[object, int]:
        """The same for stacks that differ in ``k`` only."""
        return self.frame.family, self.count

    @property
    def apply(self) -> Callable[[Tensor, Tensor], Tensor] | None:
        """None: it is a stack of matrices."""
        return None

    def initial(self, init: str = "uniform", generator: Generator | None = None) -> Float[Tensor, "P"]:
        """Fresh parameters of every frame, drawn one after the other."""
        return torch.cat([self.frame.initial(init, generator) for _ in range(self.count)])

    def columns(self, parameters: Float[Tensor, "*batch P"]) -> Float[Tensor, "*batch count n k"]:
        """All frames, in one call of the one that is stacked."""
        check_count(parameters, self.n_parameters)
        return self.frame.columns(parameters.unflatten(-1, (self.count, self.frame.n_parameters)))

    def flaw(self, parameters: Float[Tensor, "P"]) -> str | None:
        """The first that a frame has."""
        each = parameters.unflatten(-1, (self.count, self.frame.n_parameters))
        return next(filter(None, map(self.frame.flaw, each)), None)

    def circuits(self) -> Iterator[tuple[str, Circuit, slice]]:
        """Those of every frame, whose names begin with its number."""
        for index, at in enumerate(self._starts()):
            for name, circuit, where in self.frame.circuits():
                yield ".".join(filter(None, (str(index), name))), circuit, slice(at + where.start, at + where.stop)
