"""Orthogonal matrices of any width from qubit circuits: the cosine-sine recursion of Quantum-PEFT, Eq. (4).

With N = N1 + N2 and N1 the largest power of two in N,

    Q = [U1 0; 0 U2] [C -S 0; 0 0 I; S C 0] [V1 0; 0 V2],   C = diag(cos t), S = diag(sin t), N2 angles t,

where U1, V2 are circuits on log2(N1) qubits and U2, V1 are of width N2, made the same way. Rows split N1 | N2, columns
N2 | N1. Q acts on the few columns asked for; it is never built. Parameters are in time order: V1, V2, t, U1, U2.
"""

from collections.abc import Iterator
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from qcircuit_peft import backends
from qcircuit_peft.ansatz import Ansatz
from qcircuit_peft.circuit import Circuit


@lru_cache(maxsize=4096)
def leaf(n: int, ansatz: Ansatz, layers: int) -> Circuit | None:
    """The circuit of a power of two ``n``; None for n = 1, where the matrix is the number 1."""
    return ansatz.circuit(qubits=n.bit_length() - 1, layers=layers) if n > 1 else None


def split(n: int) -> tuple[int, int]:
    """``(N1, N2)`` with N1 the largest power of two in ``n`` and N2 the rest, 0 if ``n`` is a power of two.

    >>> split(768), split(97), split(64)
    ((512, 256), (64, 33), (64, 0))
    """
    n1 = 1 << (n.bit_length() - 1)
    return n1, n - n1


@lru_cache(maxsize=4096)
def n_parameters(n: int, ansatz: Ansatz, layers: int) -> int:
    """The number of parameters at width N: 2 n(N1) + 2 n(N2) + N2; for a power of two the ansatz's own, for 1 none.

    >>> from qcircuit_peft import load
    >>> [n_parameters(n, load("simplified_two_design"), 1) for n in (1, 257, 768, 3072)]
    [0, 45, 350, 1142]
    """
    n1, n2 = split(n)
    if n2:
        return 2 * n_parameters(n1, ansatz, layers) + 2 * n_parameters(n2, ansatz, layers) + n2
    circuit = leaf(n, ansatz, layers)
    return circuit.n_angles if circuit else 0


def leaves(n: int, ansatz: Ansatz, layers: int, name: str = "", start: int = 0) -> Iterator[tuple[str, Circuit, slice]]:
    """Every circuit in time order: its name, such as "u2.v1", itself, and its part of the parameters."""
    n1, n2 = split(n)
    if not n2:
        circuit = leaf(n, ansatz, layers)
        if circuit:
            yield name, circuit, slice(start, start + circuit.n_angles)
        return
    dot = f"{name}." if name else ""
    for part, size in (("v1", n2), ("v2", n1), ("", n2), ("u1", n1), ("u2", n2)):
        if part:
            yield from leaves(size, ansatz, layers, dot + part, start)
            start += n_parameters(size, ansatz, layers)
        else:
            start += n2


def columns(
    n: int, ansatz: Ansatz, layers: int, angles: Float[Tensor, "*batch P"], k: int, backend: str = "native"
) -> Float[Tensor, "*batch n k"]:
    """The first ``k`` columns of Q for parameters in radians; k is 1 to n."""
    n1, n2 = split(n)
    if not n2:
        circuit = leaf(n, ansatz, layers)
        if circuit is None:
            return angles.new_ones(*angles.shape[:-1], 1, 1)
        return backends.columns(circuit, angles, k, backend=backend)
    v1, v2, t, u1, u2 = _parts(n, ansatz, layers, angles)
    a = pad(columns(n2, ansatz, layers, v1, min(k, n2), backend), (0, max(0, k - n2)))
    b = pad(columns(n1, ansatz, layers, v2, k - n2, backend), (n2, 0)) if k > n2 else None
    return _rotate(n, ansatz, layers, a, b, t, u1, u2, backend)


def _parts(n: int, ansatz: Ansatz, layers: int, angles: Tensor) -> tuple[Tensor, ...]:
    n1, n2 = split(n)
    small, large = n_parameters(n2, ansatz, layers), n_parameters(n1, ansatz, layers)
    return torch.split(angles, [small, large, n2, large, small], dim=-1)


def _rotate(
    n: int, ansatz: Ansatz, layers: int, a: Tensor, b: Tensor | None, t: Tensor, u1: Tensor, u2: Tensor, backend: str
) -> Tensor:
    """The middle and the left factor on [a; b]; ``b`` None stands for zeros."""
    n1, n2 = split(n)
    c, s = torch.cos(t)[..., None], torch.sin(t)[..., None]
    if b is None:
        top, bottom = pad(c * a, (0, 0, 0, n1 - n2)), s * a
    else:
        top, bottom = torch.cat([c * a - s * b[..., :n2, :], b[..., n2:, :]], dim=-2), s * a + c * b[..., :n2, :]
    parts = [apply(n1, ansatz, layers, u1, top, backend), apply(n2, ansatz, layers, u2, bottom, backend)]
    return torch.cat(parts, dim=-2)


def apply(
    n: int, ansatz: Ansatz, layers: int, angles: Float[Tensor, "*batch P"], x: Float[Tensor, "*batch n m"], backend: str
) -> Float[Tensor, "*batch n m"]:
    """Q on the columns of ``x``, for parameters in radians."""
    n1, n2 = split(n)
    if not n2:
        circuit = leaf(n, ansatz, layers)
        return x if circuit is None else backends.apply(circuit, angles, x, backend=backend)
    v1, v2, t, u1, u2 = _parts(n, ansatz, layers, angles)
    a = apply(n2, ansatz, layers, v1, x[..., :n2, :], backend)
    b = apply(n1, ansatz, layers, v2, x[..., n2:, :], backend)
    return _rotate(n, ansatz, layers, a, b, t, u1, u2, backend)
