"""Orthogonal matrices as products of Givens rotations, on a few columns."""

import torch
from torch import Tensor


def givens(b: Tensor, x: Tensor) -> Tensor:
    """G_1 ... G_K' X, where G_j turns e_j into any unit vector of rows j to N, by N - j rotations of two rows each.

    The rotations of G_j are a binary tree: one of rows j and j + s for the largest power of two s, then all of rows
    j + 2is and j + (2i+1)s for s/2, s/4, ..., 1. So there are log2 N steps for each j instead of the N of a chain, and
    the angles are spherical coordinates of nearly equal weight. Column j of ``b`` (*batch, N, K') holds the angles in
    radians in this order, below its diagonal; x (*batch, N, m). The choice of the tree is ours.
    """
    x = x.expand(*torch.broadcast_shapes(b.shape[:-2], x.shape[:-2]), *x.shape[-2:])
    for j in reversed(range(b.shape[-1])):
        x = torch.cat([x[..., :j, :], _tree(b[..., j + 1 :, j, None], x[..., j:, :])], -2)
    return x


def _tree(angles: Tensor, x: Tensor) -> Tensor:
    """The rotations of one tree on all rows of ``x``; angles (*batch, rows - 1, 1)."""
    cos, sin = torch.cos(angles), torch.sin(angles)
    rows, used = x.shape[-2], 0
    done, stride = x[..., :1, :], 1 << (rows - 1).bit_length()
    while stride > 1:
        stride //= 2
        fresh = x[..., stride :: 2 * stride, :]
        count = fresh.shape[-2]
        c, s = cos[..., used : used + count, :], sin[..., used : used + count, :]
        used += count
        old = done[..., :count, :]
        turned = torch.stack([c * old - s * fresh, s * old + c * fresh], -2).flatten(-3, -2)
        done = turned if count == done.shape[-2] else torch.cat([turned, done[..., count:, :]], -2)
    return done
