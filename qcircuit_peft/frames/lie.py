"""Orthogonal matrices f(A) of a skew-symmetric A = B - B^T of low rank, on a few columns.

B (N, N) is strictly lower-triangular with K' columns that are not zero, B = [L; C] with L (K', K'). For any invertible
T (K', K') and Q = C T^-1, A maps the span of W = [E, P], E = [1; 0] and P = [0; Q], into itself: A W = W M, where

    M = [[S, -C^T Q], [T, 0]],   S = L - L^T,

and A X = W Y for every X, Y = [S X' - C^T X''; T X'] with X = [X'; X'']. So, for every power series f = 1 + z phi(z),

    f(A) X = X + W phi(M) Y,

which needs the small M (2K', 2K') only: O(N K' m) for m columns, and A is never built. The result does not depend on T,
nor does a derivative, so T is a constant: the Cholesky factor of C^T C + d, which makes the columns of Q orthonormal
and M skew but for d, so that f(M) is as well-conditioned as f(A) however large or near to each other the columns of C
are. The derivation is ours.
"""

from collections.abc import Callable
from functools import lru_cache
from math import factorial, inf

import torch
from torch import Tensor
from torch.nn.functional import pad

TOLERANCE = 1e-6  # of |U^T U - 1|, for the truncated series


def _on_subspace(b: Tensor, x: Tensor, phi: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """x + W phi(M) Y; b (*batch, N, K'), x (*batch, N, m)."""
    rank = b.shape[-1]
    lower, c = b[..., :rank, :], b[..., rank:, :]
    top, bottom = x[..., :rank, :], x[..., rank:, :]
    skew, one = lower - lower.mT, torch.eye(rank, dtype=b.dtype, device=b.device)
    gram = (c.mT @ c).detach()
    trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    d = 1 + 4096 * torch.finfo(b.dtype).eps * trace  # above the rounding of C^T C
    t = torch.linalg.cholesky_ex(gram + d * one).L.mT
    q = torch.linalg.solve_triangular(t, c, upper=True, left=False)
    m = torch.cat([torch.cat([skew, -c.mT @ q], -1), torch.cat([t, torch.zeros_like(t)], -1)], -2)
    first, second = phi(m, torch.cat([skew @ top - c.mT @ bottom, t @ top], -2)).split(rank, -2)
    return torch.cat([top + first, bottom + q @ second], -2)


def _phi_exponential(m: Tensor, y: Tensor) -> Tensor:
    """((e^M - 1) / M) Y, a block of the exponential of a larger matrix."""
    size = m.shape[-1]
    m = m.expand(*y.shape[:-2], size, size)
    right = y if y.shape[-1] <= size else torch.eye(size, dtype=m.dtype, device=m.device).expand_as(m)
    block = torch.matrix_exp(pad(torch.cat([m, right], -1), (0, 0, 0, right.shape[-1])))[..., :size, size:]
    return block if right is y else block @ y


def taylor(b: Tensor, x: Tensor, order: int | None = None) -> Tensor:
    """e^A X; with ``order`` P the sum of A^p / p! up to P, else the order and the scaling that the norm of A asks for.

    The latter is torch.matrix_exp on M: Taylor polynomials up to order 18 with scaling and squaring, chosen by norm
    (Bader, Blanes and Casas 2019). One operation, so torch.func sees no shape that depends on data.
    """
    if order is None:
        return _on_subspace(b, x, _phi_exponential)

    def phi(m: Tensor, y: Tensor) -> Tensor:
        term = total = y
        for p in range(2, order + 1):
            term = m @ term / p
            total = total + term
        return total

    return _on_subspace(b, x, phi)


def cayley(b: Tensor, x: Tensor) -> Tensor:
    """(1 - A/2)^-1 (1 + A/2) X; the inverse is that of a (2K', 2K') matrix (Woodbury)."""

    def phi(m: Tensor, y: Tensor) -> Tensor:
        return torch.linalg.solve(torch.eye(m.shape[-1], dtype=m.dtype, device=m.device) - m / 2, y)

    return _on_subspace(b, x, phi)


def neumann(b: Tensor, x: Tensor, order: int) -> Tensor:
    """(1 + A/2) (1 + A/2 + ... + (A/2)^P) X with P = ``order``: Cayley's inverse as a truncated series."""

    def phi(m: Tensor, y: Tensor) -> Tensor:
        term = total = y
        for p in range(1, order + 1):
            term = m @ term / 2
            total = total + (term if p < order else term / 2)
        return total

    return _on_subspace(b, x, phi)


def exponential(b: Tensor, x: Tensor) -> Tensor:
    """e^A X from the whole N x N matrix: a reference, O(N^3)."""
    full = pad(b, (0, b.shape[-2] - b.shape[-1]))
    return torch.matrix_exp(full - full.mT) @ x


def taylor_series(z: complex, order: int) -> complex:
    """What ``taylor`` makes of an eigenvalue z of A."""
    return sum(z**p / factorial(p) for p in range(order + 1))


def neumann_series(z: complex, order: int) -> complex:
    """What ``neumann`` makes of an eigenvalue z of A."""
    return (1 + z / 2) * sum((z / 2) ** p for p in range(order + 1))


@lru_cache(maxsize=1 << 14)
def truncation_error(series: Callable[[complex, int], complex], order: int, norm: float) -> float:
    """The largest |U^T U - 1| of a truncated ``series`` at a skew A of spectral norm ``norm``.

    A is normal with eigenvalues i t, so this is the largest ||f(i t)|^2 - 1| for t in [0, norm]. For Neumann, with
    z = norm / 2, it is z^(2P+2) if the order P is even, but 2 z^(P+1) + z^(2P+2) if P is odd.

    >>> [f"{truncation_error(neumann_series, order, 1.0):.0e}" for order in (4, 5, 16)]
    ['1e-03', '3e-02', '6e-11']
    """
    try:
        return max(abs(abs(series(1j * norm * step / 8, order)) ** 2 - 1) for step in range(1, 9))
    except OverflowError:
        return inf
