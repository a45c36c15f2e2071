"""The sum of several updates of one weight, each of a factorization of its own."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from qcircuit_peft.factorizations.parts import Factorization, LowRank, Part

_OF = "_of_"


def part_of(part: str, term: int) -> str:
    """The name of a part of a term: "u_of_0"."""
    return f"{part}{_OF}{term}"


def part_itself(part: str) -> str:
    """The name that a part has in its own term: "u"."""
    return part.partition(_OF)[0]


@dataclass(frozen=True)
class Combined(LowRank):
    """The sum of updates of one size; its rank is at most the sum of theirs.

    terms: the summands, with the numbers by which their parts are named; raises ValueError unless each has a rank and
    all are of one size.

    >>> from qcircuit_peft.factorizations import FACTORIZATIONS
    >>> from qcircuit_peft.factorizations.parts import sizes
    >>> from qcircuit_peft.frames import FRAMES
    >>> one, two = (FACTORIZATIONS["svd"](96, 64, r, FRAMES["circuit"].spec) for r in (2, 3))
    >>> both = Combined(((0, one), (1, two)))
    >>> both.rank, sizes(both)["lambda_of_1"]
    (5, 3)
    """

    terms: tuple[tuple[int, Factorization], ...]
    parts: dict[str, Part] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if any(factors.rank is None for _, factors in self.terms):
            raise ValueError("updates that are added up have a rank, but one of them has the full one")
        if len(found := {(factors.n_out, factors.n_in) for _, factors in self.terms}) != 1:
            raise ValueError(f"updates that are added up are of one size, got {sorted(found)}")
        parts = {part_of(name, at): part for at, factors in self.terms for name, part in factors.parts.items()}
        object.__setattr__(self, "parts", parts)

    @property
    def n_out(self) -> int:
        """Rows of the update."""
        return self.terms[0][1].n_out

    @property
    def n_in(self) -> int:
        """Columns of the update."""
        return self.terms[0][1].n_in

    @property
    def scaling(self) -> float:
        """1: each term has its own."""
        return 1.0

    @property
    def rank(self) -> int:
        """The sum of the ranks."""
        return sum(factors.rank or 0 for _, factors in self.terms)

    def lora(self, made: Mapping[str, Tensor]) -> tuple[Float[Tensor, "r in"], Float[Tensor, "out r"]]:
        """LoRA's factors of the sum, those of the terms behind each other: delta W = B A, exactly."""
        pairs = [factors.lora({name: made[part_of(name, at)] for name in factors.parts}) for at, factors in self.terms]
        return torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs], 1)
