"""What all frames share: a ``Kind`` for each entry of ``FRAMES``, the module ``Frame``, how parameters start."""

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from qcircuit_peft.circuit import Circuit
from qcircuit_peft.precision import no_autocast
from qcircuit_peft.text import did_you_mean

INITS = ("uniform", "normal", "zeros")


class Spec(Protocol):
    """The whole contract of a frame, without its parameters: what every factorization, the tuner and all measures ask.

    It is immutable, hashable and equal to another of the same n, k and options, also after pickling.

    n, k: rows and columns. n_parameters: the length of the one vector that it is made from.
    groups: the ranges of parameters that can be zero together and leave a smaller frame of the same kind.
    family: the same for all frames of the same parameters, which differ in k only: one of k columns is the first k
    of any wider one, and layers can share their parameters.
    apply: the whole orthogonal matrix (n, n), of which the frame is the first k columns, on the columns of x,
    (*batch, n, m), without building it; None where there is no such matrix.
    """

    @property
    def n(self) -> int: ...
    @property
    def k(self) -> int: ...
    @property
    def n_parameters(self) -> int: ...
    @property
    def groups(self) -> tuple[slice, ...]: ...
    @property
    def family(self) -> Hashable: ...
    @property
    def apply(self) -> Callable[[Tensor, Tensor], Tensor] | None: ...

    def initial(self, init: str = "uniform", generator: Generator | None = None) -> Tensor:
        """Fresh parameters, (n_parameters,), all 0 for "zeros"; raises ValueError for an init that it does not take."""
        ...

    def columns(self, parameters: Tensor, /) -> Tensor:
        """The frame of each row of parameters, (*batch, n_parameters): (*batch, n, k) with orthonormal columns."""
        ...

    def circuits(self) -> Iterator[tuple[str, Circuit, slice]]:
        """The circuits that it is made of: a name, the circuit, its part of parameters.

        The name is empty if the frame is the first columns of this one, or of its real form if it is complex.
        """
        ...

    def flaw(self, parameters: Tensor, /) -> str | None:
        """What keeps the columns from being orthonormal at these parameters, in some words; None where they are."""
        ...


class Frame(nn.Module):
    """A frame with its parameters: one flat vector ``theta``; calling it returns the orthonormal (n, k) matrix.

    ``spec`` says which map; ``init`` is one of ``INITS``. Made by ``FRAMES[name](n, k, **options)``.

    >>> from qcircuit_peft.frames import FRAMES
    >>> frame = FRAMES["circuit"](768, 8)
    >>> frame.theta.shape, frame().shape
    (torch.Size([29]), torch.Size([768, 8]))
    """

    def __init__(self, spec: Spec, init: str = "uniform", generator: Generator | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.theta = nn.Parameter(spec.initial(init, generator))

    def forward(self) -> Float[Tensor, "n k"]:
        """The frame, in the dtype and on the device of ``theta``, also under autocast; no less than float32 inside."""
        theta = self.theta
        with no_autocast(theta):
            return self.spec.columns(theta.to(torch.promote_types(theta.dtype, torch.float32))).to(theta.dtype)

    def extra_repr(self) -> str:
        """The map and its options, as print(frame) shows them."""
        return str(self.spec)


def whole_circuit(frame: Spec) -> Circuit | None:
    """The circuit whose first columns a frame is, or the real form of whose; None if it is made otherwise."""
    return next((circuit for name, circuit, _ in frame.circuits() if not name), None)


def made_of(frame: Spec) -> str:
    """What a frame that is no ``whole_circuit`` is made of: the number of circuits, in words for a message."""
    count = len(list(frame.circuits()))
    return "none" if not count else "other columns of one" if count == 1 else str(count)


@dataclass(frozen=True)
class Kind:
    """An entry of ``FRAMES``: what makes its specs, what it is in one line, and the names of its options.

    ``FRAMES[name](n, k, **options)`` is a ``Frame``; ``.spec(n, k, **options)`` says what it is, without parameters;
    ``.n_parameters(n, k, **options)`` how many it takes. Each raises ValueError for an option that is not known, or a
    size or value that the map does not take.

    >>> from qcircuit_peft.frames import FRAMES
    >>> FRAMES["circuit"].n_parameters(768, 8, layers=2)
    47
    """

    made_by: Callable[..., Spec]
    about: str
    options: tuple[str, ...] = ()

    def __call__(
        self, n: int, k: int, *, init: str = "uniform", generator: Generator | None = None, **options: Any
    ) -> Frame:
        return Frame(self.spec(n, k, **options), init, generator)

    def spec(self, n: int, k: int, **options: Any) -> Spec:
        """The frozen, hashable record of a frame, from which the tuner works."""
        for name in options:
            if name not in self.options:
                raise ValueError(f"frame: unknown option {name!r}; {did_you_mean(name, self.options)}")
        return self.made_by(n, k, **options)

    def n_parameters(self, n: int, k: int, **options: Any) -> int:
        """The number of parameters of a frame."""
        return self.spec(n, k, **options).n_parameters


def draw(init: str, size: int, generator: Generator | None, spread: float) -> Float[Tensor, "P"]:
    """Fresh numbers about 0: uniform with this standard deviation, standard normal, or zeros.

    Raises ValueError for an init that is not in ``INITS``.
    """
    if init not in INITS:
        raise ValueError(f"frame: init is one of {', '.join(INITS)}, got {init!r}")
    if init == "zeros":
        return torch.zeros(size)
    if init == "normal":
        return torch.randn(size, generator=generator)
    return (2 * torch.rand(size, generator=generator) - 1) * (3**0.5 * spread)


def draw_angles(init: str, size: int, generator: Generator | None) -> Float[Tensor, "P"]:
    """Fresh angles in radians: uniform in [0, 2 pi), standard normal or zeros; raises ValueError for another init."""
    if init == "uniform":
        return torch.rand(size, generator=generator) * (2 * torch.pi)
    return draw(init, size, generator, 1.0)


def check_count(parameters: Tensor, count: int) -> None:
    """Raise ValueError if the last axis is not ``count`` long."""
    if parameters.dim() == 0 or parameters.shape[-1] != count:
        raise ValueError(f"parameters have shape (*batch, {count}) for this frame, got {tuple(parameters.shape)}")
