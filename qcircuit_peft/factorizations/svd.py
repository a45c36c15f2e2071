"""delta W = scaling * U diag(lambda) V^T, from two frames and a vector (Quantum-PEFT, arXiv 2503.05431, sec. 3)."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from qcircuit_peft.factorizations.parts import Built, FrameOf, LowRank, Part, Vector
from qcircuit_peft.frames.kind import Spec


@dataclass(frozen=True)
class SVD(LowRank):
    """A weight update of rank r from a frame ``u`` (n_out, r), a frame ``v`` (n_in, r) and r numbers lambda.

    lambda, which may be negative, starts at zero. Raises ValueError if the two frames differ in their number of
    columns.

    >>> import torch
    >>> from qcircuit_peft.factorizations.parts import initial, make, sizes
    >>> from qcircuit_peft.frames import FRAMES
    >>> svd = SVD.of(96, 64, 4, FRAMES["circuit"].spec, scaling=8.0)
    >>> sizes(svd)
    {'u': 20, 'v': 16, 'lambda': 4}
    >>> made = make(svd, initial(svd) | {"lambda": torch.ones(4)})
    >>> svd.delta(made).shape, svd.forward(torch.ones(2, 5, 64), made).shape
    (torch.Size([96, 64]), torch.Size([2, 5, 96]))
    """

    u: Spec
    v: Spec
    scaling: float = 1.0
    parts: dict[str, Part] = field(init=False, repr=False, compare=False)

    @classmethod
    def of(cls, n_out: int, n_in: int, r: int, frame: FrameOf, scaling: float = 1.0) -> "SVD":
        """The factorization of rank ``r`` of a weight, with frames made by ``frame(n, k)``."""
        return cls(frame(n_out, r), frame(n_in, r), scaling)

    def __post_init__(self) -> None:
        if self.u.k != self.v.k:
            raise ValueError(f"svd: both frames have the same number of columns, got {self.u.k} and {self.v.k}")
        parts = {"u": Built(self.u), "v": Built(self.v), "lambda": Vector(self.rank)}
        object.__setattr__(self, "parts", parts)

    @property
    def n_out(self) -> int:
        """Rows of the update."""
        return self.u.n

    @property
    def n_in(self) -> int:
        """Columns of the update."""
        return self.v.n

    @property
    def rank(self) -> int:
        """r."""
        return self.u.k

    def lora(self, made: Mapping[str, Tensor]) -> tuple[Float[Tensor, "r in"], Float[Tensor, "out r"]]:
        """LoRA's factors ``(A, B)`` of the same update, with LoRA's own scaling 1: delta W = B A, exactly."""
        return made["v"].mT, made["u"] * (made["lambda"] * self.scaling)
