"""The one shape of all tensor networks here: two sides of orthonormal cores, and numbers where they meet."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from math import prod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from qcircuit_peft.checks import whole_number
from qcircuit_peft.factorizations.axes import split
from qcircuit_peft.factorizations.parts import Built, FrameOf, LowRank, Part, Vector
from qcircuit_peft.frames.kind import Spec

Axes = tuple[int, ...]
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
class Network(LowRank):
    """A weight update scaling * U M V^T, (n_out, n_in), U and V contracted from orthonormal cores by ``side``.

    left, right: the frame specs of U's and of V's cores, from the outermost to the one where the sides meet.
    side: how cores become one matrix: ``khatri_rao``, ``kronecker`` or ``chain``.
    core: M is a full matrix of numbers ("core", row by row) rather than a diagonal ("lambda").
    bonds: a trainable diagonal lies on every bond between two cores of a chain, and on the closing one ("bond_...").
    loop: the size of the bond that closes a ring from the first core of U to the first of V; 1 for none.

    Parts: the cores "u1", "u2", ..., "v1", ..., from the outermost, "u" or "v" where there is only one; "core" or
    "lambda"; the other bonds. M is 0 at the start and all bonds are 1, so that delta W is 0 and the gradient of M is
    not.
    """

    n_out: int
    n_in: int
    left: tuple[Spec, ...]
    right: tuple[Spec, ...]
    side: Side
    scaling: float = 1.0
    core: bool = False
    bonds: bool = False
    loop: int = 1
    parts: dict[str, Part] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        found: dict[str, Part] = {}
        for letter, cores in (("u", self.left), ("v", self.right)):
            found |= {name: Built(core) for name, core in zip(_names(letter, cores), cores, strict=True)}
        found |= {"core": Vector(self.rank**2)} if self.core else {"lambda": Vector(self.left[-1].k)}
        if self.bonds:
            found |= {"bond": Vector(self.loop, 1.0)} if self.loop > 1 else {}
            for letter, cores in (("u", self.left), ("v", self.right)):
                found |= {f"bond_{letter}{m}": Vector(core.k, 1.0) for m, core in enumerate(cores[:-1], 1)}
        object.__setattr__(self, "parts", found)

    @property
    def rank(self) -> int:
        """The number of columns of U, which bounds the rank of delta W."""
        ends = self.left if self.side is kronecker else self.left[-1:]
        return prod(core.k for core in ends) * self.loop

    def lora(self, made: Mapping[str, Tensor]) -> tuple[Float[Tensor, "r in"], Float[Tensor, "out r"]]:
        """LoRA's factors ``(A, B)`` of the same update, with LoRA's own scaling 1: delta W = B A, exactly."""
        u, v = self._side(made, "u", self.left), self._side(made, "v", self.right)
        if self.core:
            return v.mT, u @ (made["core"] * self.scaling).unflatten(0, (self.rank, self.rank))
        return v.mT, u * (made["lambda"] * self.scaling).repeat(self.loop)

    def _side(self, made: Mapping[str, Tensor], letter: str, cores: tuple[Spec, ...]) -> Tensor:
        closing = made.get("bond") if letter == "u" else None
        bonds = [closing, *(made.get(f"bond_{letter}{m}") for m in range(1, len(cores)))]
        return self.side([made[name] for name in _names(letter, cores)], bonds, self.loop)


def _names(letter: str, cores: tuple[Spec, ...]) -> list[str]:
    return [letter] if len(cores) == 1 else [f"{letter}{m}" for m in range(1, len(cores) + 1)]


def network(
    layout: Callable[[Axes, Axes, int, FrameOf, float], Network],
    n_out: int,
    n_in: int,
    r: int,
    frame: FrameOf,
    scaling: float = 1.0,
    *,
    axes: Any = None,
    order: int = 2,
    wide: bool = False,
) -> Network:
    """The network that ``layout`` makes of the axes of both sides, r, ``frame(n, k)`` and scaling.

    ``axes`` and ``order`` (axes on either side) as in ``split``; ``wide``: automatic axes are at least r. Raises
    ValueError unless r is 1 to the smaller width, for axes that do not multiply to the width, and what ``layout``
    refuses.
    """
    name = layout.__name__
    whole_number(f"{name}: r", r, 1, min(n_out, n_in))
    out, into = (split(name, n, side, axes, order, max(r, 2) if wide else 2) for side, n in enumerate((n_out, n_in)))
    return layout(out, into, r, frame, scaling)
