"""delta W = (R - I) W or W (R - I): an orthogonal circuit turns what a layer gives or takes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from qcircuit_peft.factorizations.parts import Acting, Base, FrameOf, Part
from qcircuit_peft.frames.kind import Spec
from qcircuit_peft.precision import no_autocast

SIDES = ("out", "in")


def _act(spec: Spec) -> Callable[[Tensor, Tensor], Tensor]:
    """``spec.apply``; raises ValueError if there is none."""
    if spec.apply is None:
        raise ValueError(f"rotation: the frame has to act without being built, which this cannot: {spec}")
    return spec.apply


@lru_cache(maxsize=256)
def _at_zero(spec: Spec) -> tuple[Tensor, Tensor]:
    """What undoes the signed permutation C(0) that a map is at zero parameters: (C(0)^T z)_j = signs_j z_{sources_j}.

    Raises ValueError if it is none.
    """
    with torch.inference_mode(False), torch.no_grad():
        probe = torch.stack([torch.ones(spec.n, device="cpu"), torch.arange(spec.n, device="cpu") + 1.0], dim=-1)
        signs, places = _act(spec)(torch.zeros(spec.n_parameters, device="cpu"), probe).unbind(-1)
        found, sources = (signs * places).sort()
        if not (torch.equal(signs.abs(), probe[:, 0]) and torch.equal(found, probe[:, 1])):
            raise ValueError(
                "rotation: at zero angles the circuit has to be a permutation with signs, as one of rotations, CZ, "
                f"CNOT and SWAP is, but this frame is not: {spec}"
            )
    return sources, signs[sources, None]


@dataclass(frozen=True)
class Rotation:
    """delta W = (R - I) W on the ``side`` "out", W (R - I) on "in"; R = C(angles) C(0)^T for the circuit C, ``spec``.

    C(0) is a permutation with signs, so that R = I exactly where all angles are 0, and that is the start: a random one
    would turn the pretrained weights. R is applied, never built. The merged weight has the singular values of W.
    Needs the base layer: ``base`` in ``forward`` maps (*rows, in) to (*rows, out) without a bias, and ``delta`` takes
    the weight.
    Source: orthogonal fine-tuning (arXiv 2306.07280) with the circuits of Quantum-PEFT (arXiv 2503.05431).
    """

    n_out: int
    n_in: int
    spec: Spec
    side: str = "out"
    parts: dict[str, Part] = field(init=False, repr=False, compare=False)
    start: tuple[Tensor, Tensor] = field(init=False, repr=False, compare=False)  # here, where torch.compile finds it

    uses_base: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.side not in SIDES:
            raise ValueError(f"rotation: side is one of {', '.join(SIDES)}, got {self.side!r}")
        object.__setattr__(self, "start", _at_zero(self.spec))
        object.__setattr__(self, "parts", {"angles": Acting(self.spec)})

    @property
    def scaling(self) -> float:
        """1: a rotation has no size."""
        return 1.0

    @property
    def rank(self) -> None:
        """Full."""

    def turn(self, z: Tensor, angles: Tensor) -> Tensor:
        """(R - I) z for (*rows, n), in float32 or float64 also under autocast, since R z is near z."""
        dtype = torch.promote_types(torch.promote_types(z.dtype, angles.dtype), torch.float32)
        with no_autocast(z):
            columns = z.reshape(-1, self.spec.n).mT.to(dtype)
            sources, signs = (part.to(z.device) for part in self.start)
            back = columns.index_select(0, sources) * signs.to(dtype)  # C(0)^T z
            turned = _act(self.spec)(angles.to(dtype), back) - columns
        return turned.mT.reshape(z.shape).to(z.dtype)

    def forward(self, x: Tensor, made: Mapping[str, Tensor], base: Base | None = None) -> Tensor:
        """delta W applied to ``x``, (*rows, in): (*rows, out). One more product with W on the side "in"."""
        if base is None:
            raise ValueError("rotation: forward needs the base layer, a map from (*rows, in) to (*rows, out), got None")
        if self.side == "out":
            return self.turn(base(x), made["angles"])
        return base(self.turn(x, made["angles"]))

    def delta(self, made: Mapping[str, Tensor], weight: Tensor | None = None) -> Float[Tensor, "out in"]:
        """delta W of a base weight (out, in), to merge and to export."""
        if weight is None:
            raise ValueError("rotation: delta needs the base weight, (out, in), got None")
        if self.side == "out":
            return self.turn(weight.mT, made["angles"]).mT
        whole = torch.eye(self.n_in, dtype=weight.dtype, device=weight.device)
        return weight @ self.turn(whole, made["angles"]).mT

    def lora(self, made: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Refused with ValueError: the update has full rank."""
        raise ValueError(f"rotation: the update has full rank, {min(self.n_out, self.n_in)}, and is no LoRA; merge it")


def rotation(n_out: int, n_in: int, r: int, frame: FrameOf, scaling: float = 1.0, *, side: str = "out") -> Rotation:
    """Orthogonal fine-tuning of a weight (n_out, n_in) by a circuit of one width; ``r`` and ``scaling`` are not used.

    ``side`` is "out" or "in"; parameters: those of the circuit of that width. Raises ValueError for another side, or a
    map that cannot act or is not a permutation with signs at zero parameters.

    >>> from qcircuit_peft.frames.circuit import CircuitFrame
    >>> from qcircuit_peft.factorizations.parts import sizes
    >>> sizes(rotation(768, 3072, 1, CircuitFrame))
    {'angles': 29}
    """
    width = n_in if side == "in" else n_out
    return Rotation(n_out, n_in, frame(width, width), side)
