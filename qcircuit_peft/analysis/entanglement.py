"""Entanglement of pure states: batched, differentiable, on any device and any wire dimensions.

A state is a tensor (*batch, N), real or complex, of norm 1. ``dims`` are its wire dimensions, wire 0 first; left out,
they are those of ``qcircuit_peft.ansatz.wire_dims``: the odd primes of N, then qubits. ``wires`` is one side of a cut;
left out, the first half of the wires. Entropies are in bits. Every function raises ValueError, in one sentence, for a
state that is not normalized, dims that do not multiply to N, or a cut outside the register. Gradients are finite
everywhere, product states included.
"""

from collections.abc import Sequence
from itertools import combinations
from math import comb, inf, log, prod

import torch
from jaxtyping import Float, Inexact, Int
from torch import Tensor

from qcircuit_peft.analysis.cuts import check_state, check_wires, group
from qcircuit_peft.checks import whole_number

Dims = Sequence[int] | None
Wires = Sequence[int] | None


def entropy_of(p: Float[Tensor, "*batch k"], alpha: float = 1.0) -> Float[Tensor, " *batch"]:
    """Rényi entropy of probabilities, in bits: log2(sum p^alpha) / (1 - alpha); alpha = 1 is Shannon's.

    Raises ValueError unless alpha is above 0; ``math.inf`` gives the min-entropy.

    >>> entropy_of(torch.tensor([0.5, 0.25, 0.25]))
    tensor(1.5000)
    """
    if not alpha > 0:
        raise ValueError(f"the order alpha of an entropy is above 0, got {alpha!r}")
    if alpha == inf:
        return -p.amax(-1).log2()
    positive = p > torch.finfo(p.dtype).tiny
    safe = torch.where(positive, p, 1)
    if alpha == 1:
        return -(p * safe.log2()).sum(-1)
    if 0.5 < alpha < 1.5:  # near 1 the sum is too near to that of p, whose rounding 1 - alpha would magnify
        return (p * torch.expm1((alpha - 1) * safe.log())).sum(-1).log1p() / ((1 - alpha) * log(2))
    most = p.detach().amax(-1, keepdim=True)  # a factor taken out, lest p^alpha be below the smallest number
    total = ((safe / most).pow(alpha) * positive).sum(-1)
    return (total.log2() + alpha * most.squeeze(-1).log2()) / (1 - alpha)


def _schmidt(state: Tensor, dims: Sequence[int], wires: Sequence[int]) -> Tensor:
    return torch.linalg.svdvals(group(state, dims, wires))


def schmidt_values(
    state: Inexact[Tensor, "*batch N"], wires: Wires = None, dims: Dims = None
) -> Float[Tensor, "*batch k"]:
    """The Schmidt coefficients of a cut, descending; their squares add up to 1.

    >>> bell = torch.tensor([1.0, 0, 0, 1]) / 2**0.5
    >>> schmidt_values(bell)
    tensor([0.7071, 0.7071])
    """
    state, sizes = check_state(state, dims)
    return _schmidt(state, sizes, check_wires(wires, len(sizes)))


def schmidt_rank(
    state: Inexact[Tensor, "*batch N"], wires: Wires = None, dims: Dims = None, tolerance: float | None = None
) -> Int[Tensor, " *batch"]:
    """The number of Schmidt coefficients above ``tolerance`` times the largest; left out, N times the precision."""
    values = schmidt_values(state, wires, dims)
    limit = state.shape[-1] * torch.finfo(values.dtype).eps if tolerance is None else tolerance
    return (values > limit * values[..., :1]).sum(-1)


def schmidt_gap(state: Inexact[Tensor, "*batch N"], wires: Wires = None, dims: Dims = None) -> Float[Tensor, " *batch"]:
    """The difference of the two largest Schmidt probabilities: 1 for a product state, 0 for a Bell pair."""
    p = schmidt_values(state, wires, dims).square()
    return p[..., 0] - p[..., 1]


def entropy(
    state: Inexact[Tensor, "*batch N"], wires: Wires = None, dims: Dims = None, alpha: float = 1.0
) -> Float[Tensor, " *batch"]:
    """Entanglement entropy across a cut, in bits: von Neumann for alpha = 1, else Rényi's of that order.

    >>> entropy(torch.tensor([1.0, 0, 0, 1]) / 2**0.5).round(decimals=4)
    tensor(1.)
    """
    return entropy_of(schmidt_values(state, wires, dims).square(), alpha)


def entropy_profile(
    state: Inexact[Tensor, "*batch N"], dims: Dims = None, alpha: float = 1.0
) -> Float[Tensor, "*batch cuts"]:
    """Entanglement entropy, in bits, of every cut into the wires before and after a place: n - 1 cuts."""
    state, sizes = check_state(state, dims)
    check_wires(None, len(sizes))
    cuts = [_schmidt(state, sizes, range(k)).square() for k in range(1, len(sizes))]
    return torch.stack([entropy_of(p, alpha) for p in cuts], dim=-1)


def _purity(state: Tensor, dims: Sequence[int], wires: Sequence[int]) -> Tensor:
    m = group(state, dims, wires)
    rho = m @ m.mH if m.shape[-2] <= m.shape[-1] else m.mH @ m
    return torch.linalg.vector_norm(rho, dim=(-2, -1)).square()


def purity(state: Inexact[Tensor, "*batch N"], wires: Wires = None, dims: Dims = None) -> Float[Tensor, " *batch"]:
    """Tr rho^2 of the reduced state of ``wires``: 1 for a product state, at least 1 / (dimension of the smaller side).

    >>> purity(torch.tensor([1.0, 0, 0, 1]) / 2**0.5).round(decimals=4)
    tensor(0.5000)
    """
    state, sizes = check_state(state, dims)
    return _purity(state, sizes, check_wires(wires, len(sizes)))


def check_subset_size(m: int, n_wires: int) -> None:
    """Raise ValueError unless m is a number of wires that is above 0 and leaves out some of the register."""
    if n_wires < 2:
        raise ValueError(f"Q is for a register of two or more wires, got {n_wires}")
    whole_number("m of Q_m", m, 1, n_wires - 1)


def scott(state: Inexact[Tensor, "*batch N"], m: int = 2, dims: Dims = None) -> Float[Tensor, " *batch"]:
    """Scott's Q_m: the mean over subsets of m wires, of dimension D, of the linear entropy D / (D - 1) (1 - Tr rho^2).

    0 for product states, 1 if every such subset is maximally mixed. Source: Scott, quant-ph/0310137, Eq. (10), here
    for any wire dimensions. Raises ValueError unless m is 1 to n - 1.
    """
    state, sizes = check_state(state, dims)
    check_subset_size(m, len(sizes))
    total = state.new_zeros(state.shape[:-1], dtype=state.real.dtype)
    for wires in combinations(range(len(sizes)), m):
        d = prod(sizes[w] for w in wires)
        total = total + (1 - _purity(state, sizes, wires)) * (d / (d - 1))
    return total / comb(len(sizes), m)


def meyer_wallach(state: Inexact[Tensor, "*batch N"], dims: Dims = None) -> Float[Tensor, " *batch"]:
    """Meyer-Wallach Q, from 0 to 1: the mean over wires of d / (d - 1) (1 - Tr rho_k^2).

    Source: Meyer, Wallach, J. Math. Phys. 43, 4273 (2002), in the form of Brennen, quant-ph/0305094, Eq. (6).

    >>> meyer_wallach(torch.tensor([1.0, 0, 0, 0, 0, 0, 0, 1]) / 2**0.5).round(decimals=4)
    tensor(1.)
    """
    return scott(state, 1, dims)


def mutual_information(state: Inexact[Tensor, "*batch N"], dims: Dims = None) -> Float[Tensor, "*batch n n"]:
    """S_i + S_j - S_ij of all pairs of wires, in bits: symmetric, with zeros on the diagonal."""
    state, sizes = check_state(state, dims)
    n = len(sizes)
    check_wires(None, n)
    one = [entropy_of(_schmidt(state, sizes, [w]).square()) for w in range(n)]
    pairs = {
        (i, j): one[i] + one[j] - entropy_of(_schmidt(state, sizes, [i, j]).square())
        for i, j in combinations(range(n), 2)
    }
    return _symmetric(pairs, n)


def _symmetric(pairs: dict[tuple[int, int], Tensor], n: int) -> Tensor:
    zero = torch.zeros_like(pairs[0, 1])
    rows = [torch.stack([zero if i == j else pairs[min(i, j), max(i, j)] for j in range(n)], dim=-1) for i in range(n)]
    return torch.stack(rows, dim=-2)


def negativity(
    state: Inexact[Tensor, "*batch N"], wires: Wires = None, others: Wires = None, dims: Dims = None
) -> Float[Tensor, " *batch"]:
    """Minus the sum of the negative eigenvalues of the partial transpose, between ``wires`` and ``others``.

    Without ``others`` it is between ``wires`` and all the rest; with them, the rest is traced out. A Bell pair has 1/2.
    Source: Vidal, Werner, quant-ph/0102117. Raises ValueError if the two sides overlap.
    """
    return (_trace_norm(state, wires, others, dims) - 1) / 2


def log_negativity(
    state: Inexact[Tensor, "*batch N"], wires: Wires = None, others: Wires = None, dims: Dims = None
) -> Float[Tensor, " *batch"]:
    """log2 of the trace norm of the partial transpose, in bits; sides as in ``negativity``. A Bell pair has 1."""
    return _trace_norm(state, wires, others, dims).log2()


def _trace_norm(state: Tensor, wires: Wires, others: Wires, dims: Dims) -> Tensor:
    state, sizes = check_state(state, dims)
    a = check_wires(wires, len(sizes))
    if others is None:
        return _schmidt(state, sizes, a).sum(-1).square()
    b = check_wires(others, len(sizes))
    if set(a) & set(b):
        raise ValueError(f"the two sides have no wire in common, got {a} and {b}")
    m = group(state, sizes, a, b)
    transposed = torch.einsum("...abr,...xyr->...xbay", m, m.conj())
    d = m.shape[-3] * m.shape[-2]
    return torch.linalg.eigvalsh(transposed.reshape(*m.shape[:-3], d, d)).abs().sum(-1)


def concurrence(state: Inexact[Tensor, "*batch N"], dims: Dims = None) -> Float[Tensor, "*batch n n"]:
    """Wootters' concurrence of every pair of qubits, from 0 to 1: symmetric, with zeros on the diagonal.

    Source: Wootters, quant-ph/9709029, with the singular values of psi^T (Y x Y) psi for psi of shape (4, rest).
    Raises ValueError if a wire is not a qubit.

    >>> concurrence(torch.tensor([1.0, 0, 0, 1]) / 2**0.5)[0, 1].round(decimals=4)
    tensor(1.)
    """
    state, sizes = check_state(state, dims)
    n = len(sizes)
    check_wires(None, n)
    _check_qubits(sizes, "concurrence")
    flip = torch.tensor([-1, 1, 1, -1], dtype=state.dtype, device=state.device)[:, None]
    pairs = {}
    for i, j in combinations(range(n), 2):
        psi = group(state, sizes, [i, j])
        values = torch.linalg.svdvals(psi.mT @ (flip * psi.flip(-2)))
        pairs[i, j] = (2 * values[..., 0] - values.sum(-1)).clamp_min(0)
    return _symmetric(pairs, n)


def stabilizer_entropy(
    state: Inexact[Tensor, "*batch N"], alpha: float = 2.0, dims: Dims = None
) -> Float[Tensor, " *batch"]:
    """Stabilizer Rényi entropy ("magic") of qubits, in bits: 0 for stabilizer states; N Walsh transforms of length N.

    The Rényi entropy of the distribution <P>^2 / N over Pauli strings P, less log2 N. Source: Leone, Oliviero, Hamma,
    arXiv 2106.12587, Eq. (4). Raises ValueError if a wire is not a qubit.

    >>> round(float(stabilizer_entropy(torch.tensor([1.0, 2**-0.5 * (1 + 1j)]) / 2**0.5)), 4)  # log2(4/3)
    0.415
    """
    state, sizes = check_state(state, dims)
    _check_qubits(sizes, "stabilizer entropy")
    n = state.shape[-1]
    index = torch.arange(n, device=state.device)
    weights = [_walsh(state * state[..., index ^ shift].conj()).abs().square() / n for shift in range(n)]
    return entropy_of(torch.stack(weights, dim=-2).flatten(-2), alpha) - len(sizes)


def _walsh(x: Tensor) -> Tensor:
    n = x.shape[-1]
    for h in (1 << k for k in range(n.bit_length() - 1)):
        pairs = x.reshape(*x.shape[:-1], n // (2 * h), 2, h)
        x = torch.stack([pairs.sum(-2), pairs[..., 0, :] - pairs[..., 1, :]], dim=-2).reshape(x.shape)
    return x


def _check_qubits(dims: Sequence[int], what: str) -> None:
    if any(d != 2 for d in dims):
        raise ValueError(f"{what} is defined on qubits, got wires of dimensions {tuple(dims)}")
