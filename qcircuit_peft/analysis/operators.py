"""Entanglement of matrices: of a circuit, of a frame, and of a weight update.

A matrix is (*batch, M, N), real or complex. ``dims`` are the wire dimensions of its rows and columns: one sequence for
both, or a pair of sequences of equal length whose products are M and N (a dimension may be 1). Left out, they are
those of ``wire_dims``, the shorter one with wires of dimension 1 in front. ``wires`` is one side of a cut; left out,
the first half. Entropies are in bits. Every function raises ValueError, in one sentence, for a zero matrix, dims that
do not multiply to the shape, or a cut outside the register.
"""

from collections.abc import Sequence
from itertools import chain
from math import prod

import torch
from jaxtyping import Float, Inexact, Int
from torch import Tensor

from qcircuit_peft.analysis.cuts import check_dims, check_tensor, check_wires, group
from qcircuit_peft.analysis.entanglement import Dims, Wires, entropy_of

MatrixDims = Sequence[int] | tuple[Sequence[int], Sequence[int]] | None


def matrix_dims(shape: tuple[int, int], dims: MatrixDims = None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The wire dimensions of the rows and of the columns, of equal length.

    >>> matrix_dims((12, 4))
    ((3, 2, 2), (1, 2, 2))
    """
    pair = dims if dims is not None and any(isinstance(d, Sequence) for d in dims) else (dims, dims)
    rows, columns = (check_dims(n, d, least=1) for n, d in zip(shape, pair, strict=True))  # type: ignore[arg-type]
    if dims is None:
        n = max(len(rows), len(columns))
        return (1,) * (n - len(rows)) + rows, (1,) * (n - len(columns)) + columns
    if len(rows) != len(columns):
        raise ValueError(f"rows and columns have equally many wires, got dimensions {rows} and {columns}")
    return rows, columns


def _checked(matrix: object, dims: MatrixDims) -> tuple[Tensor, tuple[int, ...]]:
    """The matrix with norm 1 as a state (*batch, M N) on wires of dimension (row, column), and their dimensions."""
    matrix = check_tensor(matrix, "matrix", 2)
    rows, columns = matrix_dims((matrix.shape[-2], matrix.shape[-1]), dims)
    norm = torch.linalg.matrix_norm(matrix)[..., None, None]
    if not bool(((norm > 0) & norm.isfinite()).all()):
        raise ValueError("an operator-Schmidt decomposition needs a finite matrix that is not zero, got one that is")
    batch, n = matrix.shape[:-2], len(rows)
    paired = (matrix / norm).reshape(*batch, *rows, *columns)
    order = [*range(len(batch)), *(len(batch) + k for k in chain.from_iterable((w, n + w) for w in range(n)))]
    sizes = tuple(r * c for r, c in zip(rows, columns, strict=True))
    return paired.permute(order).reshape(*batch, prod(sizes)), sizes


def operator_schmidt(
    matrix: Inexact[Tensor, "*batch M N"], wires: Wires = None, dims: MatrixDims = None
) -> Float[Tensor, "*batch k"]:
    """The operator-Schmidt coefficients of a cut, descending, squares adding up to 1: a sum of Kronecker products.

    >>> operator_schmidt(torch.diag(torch.tensor([1.0, 1, 1, -1])))[:2]  # CZ
    tensor([0.7071, 0.7071])
    """
    state, sizes = _checked(matrix, dims)
    return torch.linalg.svdvals(group(state, sizes, check_wires(wires, len(sizes))))


def operator_rank(
    matrix: Inexact[Tensor, "*batch M N"], wires: Wires = None, dims: MatrixDims = None, tolerance: float | None = None
) -> Int[Tensor, " *batch"]:
    """The operator-Schmidt rank: how many coefficients are above ``tolerance`` times the largest.

    For the cut {0..k} it is the tensor-train rank of the matrix there. A circuit with c CZ across the cut has at most
    2^c. Left out, the tolerance is max(M, N) times the precision.
    """
    values = operator_schmidt(matrix, wires, dims)
    limit = max(matrix.shape[-2:]) * torch.finfo(values.dtype).eps if tolerance is None else tolerance
    return (values > limit * values[..., :1]).sum(-1)


def operator_entropy(
    matrix: Inexact[Tensor, "*batch M N"], wires: Wires = None, dims: MatrixDims = None, alpha: float = 1.0
) -> Float[Tensor, " *batch"]:
    """Operator entanglement of a cut, in bits: the entropy of the squared operator-Schmidt coefficients.

    Source: Zanardi, quant-ph/0010074 (there with the linear entropy). CZ has 1, SWAP 2.
    """
    return entropy_of(operator_schmidt(matrix, wires, dims).square(), alpha)


def operator_profile(
    matrix: Inexact[Tensor, "*batch M N"], dims: MatrixDims = None, alpha: float = 1.0
) -> Float[Tensor, "*batch cuts"]:
    """``operator_entropy`` of every cut into the wires before and after a place, in bits: n - 1 cuts."""
    state, sizes = _checked(matrix, dims)
    check_wires(None, len(sizes))
    cuts = [torch.linalg.svdvals(group(state, sizes, range(k))).square() for k in range(1, len(sizes))]
    return torch.stack([entropy_of(p, alpha) for p in cuts], dim=-1)


def entangling_power(
    matrix: Inexact[Tensor, "*batch N N"], wires: Wires = None, dims: Dims = None
) -> Float[Tensor, " *batch"]:
    """The mean linear entropy 1 - Tr rho^2 that a unitary makes of Haar-random complex product states of two sides.

    1 - (a b^2 + a^2 b + S + S') / (a (a+1) b (b+1)), a and b the dimensions of the sides, S and S' the sums of the
    fourth powers of the operator-Schmidt coefficients of U and of U with the sides of its columns exchanged. CZ on two
    qubits has 2/9. Source: Zanardi,
    Zalka, Faoro, quant-ph/0005031, here for unequal sides. Raises ValueError if the matrix is not unitary.
    """
    matrix = check_tensor(matrix, "matrix", 2)
    n = matrix.shape[-1]
    one = torch.eye(n, dtype=matrix.dtype, device=matrix.device)
    fixed = matrix.detach()
    if matrix.shape[-2] != n or not bool(((fixed.mH @ fixed - one).abs() <= 1e-3).all()):  # also for NaN
        raise ValueError(
            f"the entangling power is that of a unitary matrix, got one of shape {tuple(matrix.shape)} that is not"
        )
    sizes = check_dims(n, dims)
    side = check_wires(wires, len(sizes))
    u = group(group(matrix, sizes, side).movedim(-3, -1), sizes, side)  # (*batch, a in, b in, a out, b out)
    a, b = u.shape[-2:]
    straight, crossed = (torch.einsum(f"...abxy->...{order}", u) for order in ("xayb", "xbya"))
    both = _fourth_powers(straight.flatten(-4, -3).flatten(-2)) + _fourth_powers(crossed.flatten(-4, -3).flatten(-2))
    return 1 - (a * b * b + a * a * b + both) / (a * (a + 1) * b * (b + 1))


def _fourth_powers(m: Tensor) -> Tensor:
    """The sum of the fourth powers of the singular values."""
    return torch.linalg.matrix_norm(m @ m.mH).square()


def effective_rank(matrix: Inexact[Tensor, "*batch M N"]) -> Float[Tensor, " *batch"]:
    """exp of the entropy of the singular values divided by their sum: from 1 to min(M, N).

    Source: Roy, Vetterli, EUSIPCO 2007.

    >>> effective_rank(torch.eye(4))
    tensor(4.)
    """
    _checked(matrix, None)
    values = torch.linalg.svdvals(matrix)
    return entropy_of(values / values.sum(-1, keepdim=True)).exp2()
