"""The updates of all experts that one parameter holds, each of the same factorization."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from qcircuit_peft.factorizations.parts import Acting, Base, Built, Factorization, Kept, Part, Vector
from qcircuit_peft.frames.stacked import Stacked


@dataclass(frozen=True)
class Fused:
    """``experts`` updates like ``factors``, (experts, n_out, n_in), with numbers, and kept directions, of its own each.

    shared: whether all experts have one set of frames; else each has its own. Raises ValueError for a factorization
    whose updates have full rank.

    >>> from qcircuit_peft.factorizations import FACTORIZATIONS
    >>> from qcircuit_peft.factorizations.parts import sizes
    >>> from qcircuit_peft.frames import FRAMES
    >>> svd = FACTORIZATIONS["svd"](96, 64, 4, FRAMES["circuit"].spec)
    >>> sizes(Fused(svd, 8)), sizes(Fused(svd, 8, shared=True))
    ({'u': 160, 'v': 128, 'lambda': 32}, {'u': 20, 'v': 16, 'lambda': 32})
    """

    uses_base: ClassVar[bool] = False

    factors: Factorization
    experts: int
    shared: bool = False
    parts: dict[str, Part] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.factors.rank is None:
            raise ValueError("the update of a fused parameter has a rank, but those of this factorization are full")
        found: dict[str, Part] = {}
        for name, part in self.factors.parts.items():
            if isinstance(part, Vector):
                found[name] = Vector(self.experts * part.size, part.start)
            elif isinstance(part, Kept):
                found[name] = replace(part, count=self.experts * part.count)
            else:
                found[name] = part if self.shared else Built(Stacked(part.frame, self.experts))
        object.__setattr__(self, "parts", found)

    @property
    def n_out(self) -> int:
        """Rows of each update."""
        return self.factors.n_out

    @property
    def n_in(self) -> int:
        """Columns of each update."""
        return self.factors.n_in

    @property
    def scaling(self) -> float:
        """A constant factor of all of them."""
        return self.factors.scaling

    @property
    def rank(self) -> int | None:
        """A bound of the rank of each."""
        return self.factors.rank

    def _is_shared(self, part: str) -> bool:
        return self.shared and isinstance(self.parts[part], Built | Acting)

    def each(self, values: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        """The parameters of every expert, from those of all."""
        for index in range(self.experts):
            yield {
                name: value if self._is_shared(name) else value.unflatten(0, (self.experts, -1))[index]
                for name, value in values.items()
            }

    def lora(self, made: Mapping[str, Tensor]) -> tuple[Float[Tensor, "experts r in"], Float[Tensor, "experts out r"]]:
        """The factors ``(A, B)`` of every expert, with LoRA's own scaling 1."""
        stacks = {
            name: value.unflatten(0, (self.experts, -1)) if isinstance(self.parts[name], Vector | Kept) else value
            for name, value in made.items()
        }
        axes = ({name: None if self._is_shared(name) else 0 for name in made},)
        a, b = torch.vmap(self.factors.lora, in_dims=axes)(stacks)
        return a, b

    def forward(self, x: Tensor, made: Mapping[str, Tensor], base: Base | None = None) -> Tensor:
        """The updates applied to the inputs of every expert, (experts, rows, n_in): (experts, rows, n_out)."""
        a, b = self.lora(made)
        return x @ a.mT @ b.mT

    def delta(self, made: Mapping[str, Tensor], weight: Tensor | None = None) -> Float[Tensor, "experts out in"]:
        """All updates."""
        a, b = self.lora(made)
        return b @ a
