"""delta W = scaling * U diag(lambda) V^T with orthonormal frames U and V (Quantum-PEFT, sec. 3)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear

from qcircuit_peft.frames.circuit import CircuitFrame


@dataclass(frozen=True)
class SVD:
    """A weight update of rank r, (out, in), from a frame ``u`` (out, r), a frame ``v`` (in, r) and r numbers lambda.

    Everything works on ``weighted`` U, which is scaling * U diag(lambda). delta W is 0 at the start because lambda is;
    the angles are not 0 then, since +-unit columns would let the first step move a corner of the weight only.
    Raises ValueError if the two frames differ in their number of columns.

    >>> from qcircuit_peft import load
    >>> frames = [CircuitFrame(n, 4, load("simplified_two_design")) for n in (96, 64)]
    >>> svd = SVD(*frames, scaling=8.0)
    >>> svd.sizes
    {'u': 20, 'v': 16, 'lambda': 4}
    >>> u, v = (frame.columns(torch.rand(frame.n_parameters)) for frame in frames)
    >>> weighted = svd.weighted(u, torch.ones(4))
    >>> svd.delta(weighted, v).shape, svd.forward(torch.ones(2, 5, 64), weighted, v).shape
    (torch.Size([96, 64]), torch.Size([2, 5, 96]))
    """

    u: CircuitFrame
    v: CircuitFrame
    scaling: float = 1.0

    def __post_init__(self) -> None:
        if self.u.k != self.v.k:
            raise ValueError(f"svd: both frames have the same number of columns, got {self.u.k} and {self.v.k}")

    @property
    def sizes(self) -> dict[str, int]:
        """The number of entries of each parameter: the angles of both frames (radians), and lambda."""
        return {"u": self.u.n_parameters, "v": self.v.n_parameters, "lambda": self.u.k}

    def initial(self, init: str = "uniform", generators: dict[str, torch.Generator] | None = None) -> dict[str, Tensor]:
        """Fresh parameters: those of the frames as ``init`` says (``INITS``), lambda zero.

        ``generators`` may give a random generator for "u" and "v"; without it the global one is used.
        Raises ValueError for an init that is not in ``INITS``.
        """
        given = generators or {}
        frames = {"u": self.u, "v": self.v}
        values = {name: frame.initial(init, given.get(name)) for name, frame in frames.items()}
        return values | {"lambda": torch.zeros(self.u.k)}

    def weighted(
        self, u: Float[Tensor, "*batch out r"], lam: Float[Tensor, "*batch r"]
    ) -> Float[Tensor, "*batch out r"]:
        """scaling * U diag(lambda)."""
        return u * (lam * self.scaling).unsqueeze(-2)

    def forward(self, x: Tensor, weighted: Float[Tensor, "out r"], v: Float[Tensor, "in r"]) -> Tensor:
        """delta W applied to ``x``, (*rows, in) or nested, without building delta W: (*rows, out)."""
        return linear(linear(x, v.mT), weighted)

    def delta(self, weighted: Float[Tensor, "out r"], v: Float[Tensor, "in r"]) -> Float[Tensor, "out in"]:
        """delta W itself, to merge and to export."""
        return weighted @ v.mT

    def lora(
        self, weighted: Float[Tensor, "out r"], v: Float[Tensor, "in r"]
    ) -> tuple[Float[Tensor, "r in"], Float[Tensor, "out r"]]:
        """LoRA's factors ``(A, B)`` of the same update, with LoRA's own scaling 1: delta W = B A, exactly."""
        return v.mT, weighted
