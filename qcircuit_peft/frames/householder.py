"""Orthogonal matrices as products of Householder reflections, on a few columns."""

import torch
from torch import Tensor


def householder(b: Tensor, x: Tensor) -> Tensor:
    """H_1 ... H_K' X, where H_j = 1 - 2 v v^T / v^T v reflects along v = e_j + the j-th column of ``b``.

    All reflections at once: 1 - V T V^T, where T^-1 is the upper triangle of V^T V with half its diagonal (the compact
    form of Schreiber and Van Loan 1989). V^T V and the triangular solve are in float64.
    b (*batch, N, K') is strictly lower-triangular, x (*batch, N, m).
    """
    wide = torch.float32 if b.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    v = b + torch.eye(b.shape[-2], b.shape[-1], dtype=b.dtype, device=b.device)
    gram = v.mT.to(wide) @ v.to(wide)
    inverse = gram.triu(1) + torch.diag_embed(gram.diagonal(dim1=-2, dim2=-1) / 2)
    inner = torch.linalg.solve_triangular(inverse, v.mT.to(wide) @ x.to(wide), upper=True)
    return x - v @ inner.to(x.dtype)
