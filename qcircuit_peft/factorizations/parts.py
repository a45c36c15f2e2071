"""What all factorizations have in common: the parts they are made of, the contract, and a ``Kind`` for each.

Each part is one parameter of an adapted layer, ``qcircuit_<part>``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn.functional import linear

from qcircuit_peft.frames.kind import Spec
from qcircuit_peft.text import did_you_mean

Base = Callable[[Tensor], Tensor]
FrameOf = Callable[[int, int], Spec]  # the frame of n rows and k columns


@dataclass(frozen=True)
class Built:
    """A frame that is handed over as its matrix, (n, k); ``initial`` draws its parameters."""

    frame: Spec

    @property
    def size(self) -> int:
        """The number of parameters."""
        return self.frame.n_parameters


@dataclass(frozen=True)
class Acting:
    """A frame that is never built: its parameters, zero at the start, are handed over, to be applied with."""

    frame: Spec

    @property
    def size(self) -> int:
        """The number of parameters."""
        return self.frame.n_parameters


@dataclass(frozen=True)
class Vector:
    """``size`` plain numbers, handed over as they are; all of them are ``start`` at the start."""

    size: int
    start: float = 0.0


@dataclass(frozen=True)
class Kept:
    """``count`` matrices (rows, columns) of orthonormal columns, handed over as one vector: stored, but never trained.

    side: "left" for directions of what the weight gives, "right" of what it takes. drawn: at random, rather than the
    weight's singular vectors.
    """

    rows: int
    columns: int
    side: str
    drawn: bool = False
    count: int = 1

    @property
    def size(self) -> int:
        """The number of entries."""
        return self.count * self.rows * self.columns

    def initial(self, generator: torch.Generator | None = None) -> Tensor:
        """Random directions, (size,)."""
        drawn = torch.randn(self.count, self.rows, self.columns, generator=generator)
        return torch.linalg.qr(drawn)[0].flatten()


Part = Built | Acting | Vector | Kept


class Factorization(Protocol):
    """A weight update (n_out, n_in) made from parts; frozen and hashable, it holds no tensors.

    n_out, n_in: rows and columns of the update. scaling: a constant factor of it.
    uses_base: whether the update depends on the weight that is adapted.
    parts: what it is made of, by name, in the order of the parameters; as they start, the update is zero, bit for bit.
    rank: a bound of the update's rank that holds for all parameters; None if it has none below full.
    """

    uses_base: ClassVar[bool]

    @property
    def n_out(self) -> int: ...
    @property
    def n_in(self) -> int: ...
    @property
    def scaling(self) -> float: ...
    @property
    def parts(self) -> Mapping[str, Part]: ...
    @property
    def rank(self) -> int | None: ...

    def forward(self, x: Tensor, made: Mapping[str, Tensor], base: Base | None = None) -> Tensor:
        """The update applied to ``x``, (*rows, n_in), without building it: (*rows, n_out).

        ``made`` holds every part as it is handed over, all in the dtype of the products. ``base`` is the adapted layer
        without its bias, for those that use it.
        """
        ...

    def delta(self, made: Mapping[str, Tensor], weight: Tensor | None = None) -> Tensor:
        """The update itself, (n_out, n_in), to merge and to export; ``weight``, of that shape, is the adapted one."""
        ...

    def lora(self, made: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """LoRA's factors ``(A, B)``, (rank, n_in) and (n_out, rank), with its scaling 1: the update is B A, exactly.

        Raises ValueError where the rank is full.
        """
        ...


class LowRank(ABC):
    """What all factorizations have in common whose update is a product of two thin matrices, those of ``lora``."""

    uses_base: ClassVar[bool] = False

    @abstractmethod
    def lora(self, made: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """LoRA's factors ``(A, B)``, (rank, n_in) and (n_out, rank), with its scaling 1: the update is B A, exactly."""

    def forward(self, x: Tensor, made: Mapping[str, Tensor], base: Base | None = None) -> Tensor:
        """The update applied to ``x``, (*rows, n_in) or nested, by the two thin products: (*rows, n_out)."""
        a, b = self.lora(made)
        return linear(linear(x, a), b)

    def delta(self, made: Mapping[str, Tensor], weight: Tensor | None = None) -> Tensor:
        """The update itself, (n_out, n_in), to merge and to export."""
        a, b = self.lora(made)
        return b @ a


@dataclass(frozen=True)
class Kind:
    """An entry of ``FACTORIZATIONS``: what makes it, and what the documentation says of it.

    make: a function of n_out, n_in, r, ``frame(n, k)``, scaling and options. about: what it is, in one line.
    update: delta W / scaling, as text. count: the number of its parameters, as text, where f(n, k) are those of a
    frame. options: their names. share: what ``QCircuitConfig.share`` is where it is left out. own: whether an
    update has parameters beside its frames, which a layer has of its own where these are shared.

    ``FACTORIZATIONS[name](n_out, n_in, r, frame, scaling, **options)`` is a ``Factorization``; raises ValueError for an
    option that is not known, and what ``make`` refuses.
    """

    make: Callable[..., Factorization]
    about: str
    update: str
    count: str
    options: tuple[str, ...] = ()
    share: str | None = None
    own: bool = True

    def __call__(
        self, n_out: int, n_in: int, r: int, frame: FrameOf, scaling: float = 1.0, **options: Any
    ) -> Factorization:
        for name in options:
            if name not in self.options:
                raise ValueError(f"factorization: unknown option {name!r}; {did_you_mean(name, self.options)}")
        return self.make(n_out, n_in, r, frame, scaling, **options)


def frames(factors: Factorization) -> dict[str, Spec]:
    """The frames by part, those that are built and those that act.

    >>> from qcircuit_peft.factorizations import FACTORIZATIONS
    >>> from qcircuit_peft.frames import FRAMES
    >>> {part: frame.n for part, frame in frames(FACTORIZATIONS["svd"](96, 64, 4, FRAMES["circuit"].spec)).items()}
    {'u': 96, 'v': 64}
    """
    return {name: part.frame for name, part in factors.parts.items() if isinstance(part, Built | Acting)}


def sizes(factors: Factorization) -> dict[str, int]:
    """The number of entries of every part.

    >>> from qcircuit_peft.factorizations import FACTORIZATIONS
    >>> from qcircuit_peft.frames import FRAMES
    >>> sizes(FACTORIZATIONS["svd"](96, 64, 4, FRAMES["circuit"].spec))
    {'u': 20, 'v': 16, 'lambda': 4}
    """
    return {name: part.size for name, part in factors.parts.items()}


def trained_sizes(factors: Factorization) -> dict[str, int]:
    """The number of entries of every part but those that are kept as they start.

    >>> from qcircuit_peft.factorizations import FACTORIZATIONS
    >>> from qcircuit_peft.frames import FRAMES
    >>> trained_sizes(FACTORIZATIONS["subspace"](96, 64, 4, FRAMES["circuit"].spec))
    {'u': 4, 'v': 4, 'lambda': 4}
    """
    return {name: part.size for name, part in factors.parts.items() if not isinstance(part, Kept)}


def owner(part: Part) -> Tensor:
    """The group, counted from 0, of every entry of a part that adaptive rank prunes together; -1 if it never does.

    Those of a frame are its ``groups``; of a plain vector each entry is one. What is kept is not pruned.

    >>> from qcircuit_peft.frames import FRAMES
    >>> owner(Built(FRAMES["circuit"].spec(4, 2))), owner(Vector(2))
    (tensor([-1, -1,  0,  0]), tensor([0, 1]))
    """
    if isinstance(part, Vector):
        return torch.arange(part.size, device="cpu")
    found = torch.full((part.size,), -1, device="cpu")
    for index, where in enumerate(part.frame.groups if isinstance(part, Built | Acting) else ()):
        found[where] = index
    return found


def initial(
    factors: Factorization,
    init: str = "uniform",
    generators: Mapping[str, torch.Generator] | None = None,
    zero: bool = True,
) -> dict[str, Tensor]:
    """Fresh parameters of every part; ``init`` says how frames that are built start (``INITS``). The update is zero.

    Without ``zero`` it is not: standard normal numbers, divided by the scaling, are added to all other parts.

    Frames do not start at zero angles: +-unit columns would let the first step move a corner of the weight only.
    Directions that are kept are random ones; ``subspace.kept_of`` says what they are of a weight.
    ``generators`` may give a random generator for each part; without it the global one is used.
    """
    found = {}
    for name, part in factors.parts.items():
        generator = (generators or {}).get(name)
        if isinstance(part, Built | Kept):
            found[name] = part.initial(generator) if isinstance(part, Kept) else part.frame.initial(init, generator)
            continue
        found[name] = torch.full((part.size,), part.start if isinstance(part, Vector) else 0.0)
        if not zero:
            found[name] += torch.randn(part.size, generator=generator) / (factors.scaling or 1.0)
    return found


def make(factors: Factorization, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What ``forward`` and ``delta`` take, from the parameters: the matrices of built frames, all else as it is."""
    return {
        name: part.frame.columns(values[name]) if isinstance(part, Built) else values[name]
        for name, part in factors.parts.items()
    }
