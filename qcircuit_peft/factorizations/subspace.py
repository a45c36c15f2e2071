"""delta W = scaling * A (U diag(lambda) V^T) B^T: frames that act inside a few fixed directions of a weight."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse.linalg import svds
from torch import Tensor

from qcircuit_peft.checks import one_of, whole_number
from qcircuit_peft.factorizations.parts import Factorization, FrameOf, Kept, LowRank, Part
from qcircuit_peft.factorizations.shared_core import shared_core
from qcircuit_peft.factorizations.svd import SVD

CORES = ("diagonal", "full")
STARTS = ("svd", "random")
_DENSE = 4  # from this share of all directions on, all of them are found at once


@dataclass(frozen=True)
class Subspace(LowRank):
    """delta W = scaling * A (delta of ``inner``) B^T, where A (n_out, m) and B (n_in, m) are kept as they start.

    ``inner`` is the update of an m x m weight. Parts: those of ``inner``, and "basis_out" and "basis_in", the entries
    of A and B, which are not trained but stored. ``start``: what they are at first, "svd", the ``directions`` of the
    weight, or "random" ones.
    Source: LoRA-XS (arXiv 2405.17604), whose core of plain numbers lies in W's singular directions; the circuits in
    its place are ours.

    >>> from qcircuit_peft.factorizations.parts import sizes
    >>> from qcircuit_peft.frames.circuit import CircuitFrame
    >>> sizes(subspace(96, 64, 6, CircuitFrame))
    {'u': 7, 'v': 7, 'lambda': 6, 'basis_out': 768, 'basis_in': 512}
    """

    n_out: int
    n_in: int
    inner: Factorization
    start: str = "svd"
    scaling: float = 1.0
    parts: dict[str, Part] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        drawn = self.start == "random"
        bases = {
            "basis_out": Kept(self.n_out, self.inner.n_out, "left", drawn),
            "basis_in": Kept(self.n_in, self.inner.n_in, "right", drawn),
        }
        object.__setattr__(self, "parts", {**self.inner.parts, **bases})

    @property
    def rank(self) -> int | None:
        """That of ``inner``."""
        return self.inner.rank

    def lora(self, made: Mapping[str, Tensor]) -> tuple[Float[Tensor, "r in"], Float[Tensor, "out r"]]:
        """LoRA's factors ``(A, B)`` of the same update, with LoRA's own scaling 1: delta W = B A, exactly."""
        a, b = self.inner.lora(made)
        left, right = made["basis_out"].unflatten(0, (self.n_out, -1)), made["basis_in"].unflatten(0, (self.n_in, -1))
        return a @ right.mT, left @ (b * self.scaling)


def subspace(
    n_out: int,
    n_in: int,
    r: int,
    frame: FrameOf,
    scaling: float = 1.0,
    *,
    size: int | None = None,
    core: str = "diagonal",
    start: str = "svd",
) -> Subspace:
    """An update of rank r inside ``size`` directions of a weight (n_out, n_in), with frames (size, r) on either side.

    size: left out, the least power of two that is r or more, or the smaller width. core: between the frames,
    "diagonal", r numbers as in "svd", or "full", r x r as in "shared_core". start: the directions are those of the
    weight's first singular values ("svd"), or drawn at "random", the control. Raises ValueError for another core or
    start, or a size that is not from r to the smaller width.
    """
    most = min(n_out, n_in)
    whole_number("subspace: r", r, 1, most)
    size = min(max(2, 1 << (r - 1).bit_length()), most) if size is None else size
    whole_number("subspace: size", size, r, most)
    one_of("subspace: core", core, CORES)
    one_of("subspace: start", start, STARTS)
    full = core == "full"
    inner = shared_core((size,), (size,), r, frame) if full else SVD.of(size, size, r, frame)
    return Subspace(n_out, n_in, inner, start, scaling)


def directions(weight: Float[Tensor, "*experts out in"], k: int) -> tuple[Tensor, Tensor]:
    """The first k left and right singular vectors of a weight, (out, k) and (in, k), or of each of a stack.

    Found in float64, for a few of many by Lanczos' method from a fixed start; of each pair the largest entry on the
    left is positive. Another machine's differ by their rounding, or where singular values are equal altogether. Raises
    ValueError for a weight that is not finite.

    >>> left, right = directions(torch.diag(torch.tensor([1.0, -3.0, 2.0])), 2)
    >>> left.abs().argmax(0), (left.mT @ torch.diag(torch.tensor([1.0, -3.0, 2.0])) @ right).diagonal()
    (tensor([1, 2]), tensor([3., 2.]))
    """
    if not weight.isfinite().all():
        raise ValueError("a weight with NaN or infinite entries has no singular directions; start from 'random' ones")
    if weight.ndim > 2:
        pairs = [directions(one, k) for one in weight]
        return torch.stack([left for left, _ in pairs]), torch.stack([right for _, right in pairs])
    matrix = weight.detach().cpu().double()
    if _DENSE * k < min(matrix.shape) and matrix.any():
        start = np.random.default_rng(0).standard_normal(min(matrix.shape))
        u, sizes, v = (torch.from_numpy(np.array(part)) for part in svds(matrix.numpy(), k, v0=start))
        order = sizes.argsort(descending=True)
        left, right = u[:, order], v[order].mT
    else:
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        left, right = u[:, :k], v[:k].mT
    signs = left.gather(0, left.abs().argmax(0, keepdim=True)).sign()
    dtype = torch.promote_types(weight.dtype, torch.float32)
    return (left * signs).to(dtype), (right * signs).to(dtype)


def kept_of(parts: Mapping[str, Part], weight: Callable[[], Tensor]) -> dict[str, Tensor]:
    """Of these parts those that are singular vectors of a weight, (*experts, out, in), which is asked for if any is.

    None of a weight on the meta device. Raises ValueError for a weight that is not finite.
    """
    wanted = {name: part for name, part in parts.items() if isinstance(part, Kept) and not part.drawn}
    if not wanted or (matrix := weight()).is_meta:
        return {}
    found = {k: directions(matrix, k) for k in {part.columns for part in wanted.values()}}
    return {name: found[part.columns][part.side == "right"].flatten() for name, part in wanted.items()}
