"""The one shape of all tensor networks here: two sides of orthonormal cores, and numbers where they meet."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear

from qcircuit_peft.factorizations.parts import Base

Side = Callable[[Sequence[Tensor], Sequence[Tensor | None], int], Tensor]


def khatri_rao(cores: Sequence[Tensor], bonds: Sequence[Tensor | None], loop: int) -> Tensor:
    """Cores (n_m, r) to (n_1 n_2 ..., r): column k is the Kronecker product of the columns k of all cores."""
    return reduce(lambda left, right: (left[:, None] * right).flatten(0, 1), cores)


def kronecker(cores: Sequence[Tensor], bonds: Sequence[Tensor | None], loop: int) -> Tensor:
    """Cores (n_m, r_m) to (n_1 n_2 ..., r_1 r_2 ...)."""
    return reduce(lambda left, right: (left[:, None, :, None] * right[:, None]).flatten(2).flatten(0, 1), cores)


def chain(cores: Sequence[Tensor], bonds: Sequence[Tensor | None], loop: int) -> Tensor:
    """Cores (b_{m-1} n_m, b_m) to (n_1 n_2 ..., loop * b_last), where b_0 = loop stays open.

    ``bonds`` are diagonals, each on the bond before its core, or None.
    """
    made = torch.eye(loop, dtype=cores[0].dtype, device=cores[0].device)[:, None]  # (loop, rows, bond)
    for core, bond in zip(cores, bonds, strict=True):
        made = made if bond is None else made * bond
        made = (made @ core.reshape(made.shape[-1], -1)).reshape(loop, -1, core.shape[-1])
    return made.movedim(0, 1).flatten(1)


@dataclass(frozen=True)
class Network:
    """A weight update scaling * U M V^T, (n_out, n_in), U and V contracted from orthonormal cores by ``side``.

    left, right: the frame specs of U's and of V's cores, from the outermost to the one where the sides meet.
    side: how cores become one matrix: ``khatri_rao``, ``kronecker`` or ``chain``.
    core: M is a full matrix of numbers ("core", row by row) rather than a diagonal ("lambda").
    bonds: a trainable diagonal lies on every bond between two cores of a chain, and on the closing one ("bond_...").
    loop: the size of the bond that closes a ring from the first core of U to the first of V; 1 for none.

    M is 0 at the start and all bonds are 1, so that delta W is 0 and the gradient of M is not.
    """

    n_out: int
    n_in: int
    left: tuple[Any, ...]
    right: tuple[Any, ...]
    side: Side
    scaling: float = 1.0
    core: bool = False
    bonds: bool = False
    loop: int = 1

    uses_base: ClassVar[bool] = False

    @property
    def frames(self) -> dict[str, Any]:
        """The cores: "u1", "u2", ..., "v1", ..., from the outermost; "u" or "v" where there is only one."""
        return dict([*self._named("u", self.left), *self._named("v", self.right)])

    def _named(self, letter: str, cores: tuple[Any, ...]) -> Iterator[tuple[str, Any]]:
        for m, core in enumerate(cores, 1):
            yield letter if len(cores) == 1 else f"{letter}{m}", core

    @property
    def numbers(self) -> dict[str, int]:
        """ "core" or "lambda", and the diagonals on the other bonds."""
        meet = self.left[-1].k
        found = {"core": self.rank**2} if self.core else {"lambda": meet}
        if self.bonds:
            found |= {"bond": self.loop} if self.loop > 1 else {}
            for cores, letter in ((self.left, "u"), (self.right, "v")):
                found |= {f"bond_{letter}{m}": core.k for m, core in enumerate(cores[:-1], 1)}
        return found

    @property
    def acting(self) -> dict[str, Any]:
        """None."""
        return {}

    @property
    def weights(self) -> dict[str, str]:
        """No frame is weighted before it is contracted."""
        return {}

    @property
    def rank(self) -> int:
        """The number of columns of U, which bounds the rank of delta W."""
        ends = self.left if self.side is kronecker else self.left[-1:]
        return prod(core.k for core in ends) * self.loop

    def start(self, part: str, generator: torch.Generator | None = None) -> Tensor:
        """M = 0, and all other diagonals 1."""
        return torch.full((self.numbers[part],), float(part.startswith("bond")))

    def lora(self, made: Mapping[str, Tensor]) -> tuple[Float[Tensor, "r in"], Float[Tensor, "out r"]]:
        """LoRA's factors ``(A, B)`` of the same update, with LoRA's own scaling 1: delta W = B A, exactly."""
        u, v = self._side(made, "u", self.left), self._side(made, "v", self.right)
        if self.core:
            return v.mT, u @ (made["core"] * self.scaling).unflatten(0, (self.rank, self.rank))
        return v.mT, u * (made["lambda"] * self.scaling).repeat(self.loop)

    def _side(self, made: Mapping[str, Tensor], letter: str, cores: tuple[Any, ...]) -> Tensor:
        closing = made.get("bond") if letter == "u" else None
        bonds = [closing, *(made.get(f"bond_{letter}{m}") for m in range(1, len(cores)))]
        return self.side([made[name] for name, _ in self._named(letter, cores)], bonds, self.loop)

    def forward(self, x: Tensor, made: Mapping[str, Tensor], base: Base | None = None) -> Tensor:
        """delta W applied to ``x``, (*rows, in), without building delta W: (*rows, out)."""
        a, b = self.lora(made)
        return linear(linear(x, a), b)

    def delta(self, made: Mapping[str, Tensor], weight: Tensor | None = None) -> Float[Tensor, "out in"]:
        """delta W itself, to merge and to export."""
        a, b = self.lora(made)
        return b @ a
