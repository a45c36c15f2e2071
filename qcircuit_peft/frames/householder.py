"""Orthogonal matrices as products of Householder reflections, on a few columns."""

import torch
from torch import Tensor


def householder(b: Tensor, x: Tensor) -> Tensor:
    """H_1 ... H_K' X, where H_j = 1 - 2 v v^T / v^T v reflects along v = e_j + the j-th column of ``b``.

    All reflections at once: 1 - V T V^T, where T^-1 is the upper triangle of V^T V with half its diagonal (the compact
    form of Schreiber and Van Loan 1989).
    b (*batch, N, K') is strictly lower-triangular, x (*batch, N, m).
    """
    v = b + torch.eye(b.shape[-2], b.shape[-1], dtype=b.dtype, device=b.device)
    gram = v.mT @ v
    inverse = gram.triu(1) + torch.diag_embed(gram.diagonal(dim1=-2, dim2=-1) / 2)
    return x - v @ torch.linalg.solve_triangular(inverse, v.mT @ x, upper=True)
