"""What all factorizations have in common: the parts they are made of, and how these become matrices.

A part is a frame, whose parameters are angles or the like, or a plain vector of numbers. Each is one parameter of an
adapted layer, ``qcircuit_<part>``.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

Base = Callable[[Tensor], Tensor]


class Factorization(Protocol):
    """A weight update (n_out, n_in) made from parts; frozen and hashable, it holds no tensors.

    ``uses_base`` tells whether the update depends on the weight that is adapted.
    """

    uses_base: ClassVar[bool]

    @property
    def n_out(self) -> int:
        """Rows of the update."""
        ...

    @property
    def n_in(self) -> int:
        """Columns of the update."""
        ...

    @property
    def scaling(self) -> float:
        """A constant factor of the update."""
        ...

    @property
    def frames(self) -> Mapping[str, Any]:
        """The frames, by part."""
        ...

    @property
    def acting(self) -> Mapping[str, Any]:
        """Frames that are applied and never built, by the part of ``numbers`` that holds their parameters."""
        ...

    @property
    def numbers(self) -> Mapping[str, int]:
        """The lengths of the plain vectors, by part."""
        ...

    @property
    def weights(self) -> Mapping[str, str]:
        """Frames whose columns are multiplied by scaling times a vector: the part of the frame and of the vector."""
        ...

    @property
    def rank(self) -> int | None:
        """A bound of the update's rank that holds for all parameters; None if it has none below full."""
        ...

    def start(self, part: str, generator: torch.Generator | None) -> Tensor:
        """The vector of ``numbers`` at the start; with it the update is zero, bit for bit."""
        ...

    def forward(self, x: Tensor, made: Mapping[str, Tensor], base: Base | None = None) -> Tensor:
        """The update applied to ``x``, (*rows, n_in), without building it: (*rows, n_out).

        ``base`` is the adapted layer without its bias, for those that use it.
        """
        ...

    def delta(self, made: Mapping[str, Tensor], weight: Tensor | None = None) -> Tensor:
        """The update itself, (n_out, n_in), to merge and to export; ``weight``, of that shape, is the adapted one."""
        ...

    def lora(self, made: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """LoRA's factors ``(A, B)``, (rank, n_in) and (n_out, rank), with its scaling 1: the update is B A, exactly."""
        ...


def sizes(factors: Factorization) -> dict[str, int]:
    """The number of entries of every part.

    >>> from qcircuit_peft.factorizations import FACTORIZATIONS
    >>> from qcircuit_peft.frames import FRAMES
    >>> sizes(FACTORIZATIONS["svd"](96, 64, 4, FRAMES["circuit"].spec))
    {'u': 20, 'v': 16, 'lambda': 4}
    """
    return {part: frame.n_parameters for part, frame in factors.frames.items()} | dict(factors.numbers)


def groups(factors: Factorization) -> dict[str, Tensor]:
    """The group, counted from 0, of every entry of every part that adaptive rank prunes together; -1 if it never does.

    Those of a frame are its ``groups``; of a plain vector each entry is one.

    >>> from qcircuit_peft.factorizations import FACTORIZATIONS
    >>> from qcircuit_peft.frames import FRAMES
    >>> groups(FACTORIZATIONS["svd"](4, 4, 2, FRAMES["circuit"].spec))
    {'u': tensor([-1, -1,  0,  0]), 'v': tensor([-1, -1,  0,  0]), 'lambda': tensor([0, 1])}
    """
    found = {part: torch.arange(size, device="cpu") for part, size in factors.numbers.items()}
    for part, frame in {**factors.frames, **factors.acting}.items():
        found[part] = torch.full((frame.n_parameters,), -1, device="cpu")
        for index, where in enumerate(frame.groups):
            found[part][where] = index
    return {part: found[part] for part in sizes(factors)}


def initial(
    factors: Factorization,
    init: str = "uniform",
    generators: Mapping[str, torch.Generator] | None = None,
    zero: bool = True,
) -> dict[str, Tensor]:
    """Fresh parameters of every part; ``init`` says how frames start (``INITS``). The update is zero.

    Without ``zero`` it is not: standard normal numbers, divided by the scaling, are added to the vectors.

    Frames do not start at zero angles: +-unit columns would let the first step move a corner of the weight only.
    ``generators`` may give a random generator for each part; without it the global one is used.
    """
    given = generators or {}
    frames = {part: frame.initial(init, given.get(part)) for part, frame in factors.frames.items()}
    vectors = {part: factors.start(part, given.get(part)) for part in factors.numbers}
    if not zero:
        for part, start in vectors.items():
            noise = torch.randn(len(start), generator=given.get(part)) / (factors.scaling or 1.0)
            vectors[part] = start + noise
    return frames | vectors


def weighted(frame: Float[Tensor, "*batch n k"], numbers: Float[Tensor, "*batch k"], scaling: float) -> Tensor:
    """scaling * U diag(numbers)."""
    return frame * (numbers * scaling).unsqueeze(-2)


def make(factors: Factorization, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What ``forward`` and ``delta`` take: frames as matrices, weighted if the factorization says so, and vectors."""
    return assemble(factors, {part: frame.columns(values[part]) for part, frame in factors.frames.items()}, values)


def assemble(factors: Factorization, columns: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``make`` for columns that are given."""
    made = dict(columns)
    for part, vector in factors.weights.items():
        made[part] = weighted(made[part], values[vector], factors.scaling)
    return made | {part: values[part] for part in loose(factors)}


def loose(factors: Factorization) -> list[str]:
    """The vectors that are handed over as they are, being no weights of a frame."""
    return [part for part in factors.numbers if part not in factors.weights.values()]
