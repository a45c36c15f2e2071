"""Orthogonal matrices of any width from qubit circuits: the cosine-sine recursion of Quantum-PEFT, Eq. (4).

With N = N1 + N2, N1 >= N2,

    Q = [U1 0; 0 U2] [C -S 0; 0 0 I; S C 0] [V1 0; 0 V2],   C = diag(cos t), S = diag(sin t), N2 angles t,

where U1, V2 are of width N1 and U2, V1 of width N2, made the same way down to powers of two, which are circuits of
qubits. N1 is the largest power of two in N, unless ``splits`` says otherwise. Rows split N1 | N2, columns N2 | N1. Q
acts on the few columns asked for; it is never built. Parameters are in time order: V1, V2, t, U1, U2.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from qcircuit_peft import backends
from qcircuit_peft.ansatz import Ansatz, adapter_gates
from qcircuit_peft.checks import whole_number, whole_numbers
from qcircuit_peft.circuit import Circuit
from qcircuit_peft.text import shown

Splits = tuple[tuple[int, int], ...]  # widths N and the N1 that each is split into, in place of the usual one

MAX_LEAVES = 1 << 16  # about 1.5 N where all binary digits of N are one


@lru_cache(maxsize=4096)
def _leaf(n: int, ansatz: Ansatz, layers: int) -> Circuit | None:
    return ansatz.circuit(qubits=n.bit_length() - 1, layers=layers, max_gates=adapter_gates()) if n > 1 else None


@torch.compiler.assume_constant_result
def leaf(n: int, ansatz: Ansatz, layers: int) -> Circuit | None:
    """The circuit of a power of two ``n``; None for n = 1, where the matrix is the number 1."""
    return _leaf(n, ansatz, layers)


def split(n: int, splits: Splits = ()) -> tuple[int, int]:
    """``(N1, N2)``: what ``splits`` says, else N1 is the largest power of two in ``n`` and N2 the rest, which may be 0.

    >>> split(768), split(97), split(64), split(64, splits=((64, 40),))
    ((512, 256), (64, 33), (64, 0), (40, 24))
    """
    n1 = dict(splits).get(n) or 1 << (n.bit_length() - 1)
    return n1, n - n1


@lru_cache(maxsize=4096)
def n_parameters(n: int, ansatz: Ansatz, layers: int, splits: Splits = ()) -> int:
    """The number of parameters at width N: 2 n(N1) + 2 n(N2) + N2; for a power of two the ansatz's own, for 1 none.

    >>> from qcircuit_peft import load
    >>> [n_parameters(n, load("simplified_two_design"), 1) for n in (1, 257, 768, 3072)]
    [0, 45, 350, 1142]
    """
    n1, n2 = split(n, splits)
    if n2:
        return 2 * n_parameters(n1, ansatz, layers, splits) + 2 * n_parameters(n2, ansatz, layers, splits) + n2
    circuit = leaf(n, ansatz, layers)
    return circuit.n_angles if circuit else 0


@lru_cache(maxsize=4096)
def widths(n: int, splits: Splits) -> Mapping[int, int]:
    """Every width that is met from ``n`` down, with the number of blocks at the end of the recursion that it takes.

    >>> dict(widths(97, ()))
    {97: 10, 64: 1, 33: 4, 32: 1, 1: 1}
    """
    n1, n2 = split(n, splits)
    if not n2:
        return {n: 1}
    below = dict(widths(n1, splits)) | dict(widths(n2, splits))
    return {n: 2 * below[n1] + 2 * below[n2]} | below


def read_splits(n: int, splits: object) -> Splits:
    """Splits from a table of widths N to N1, whose keys may be texts as in JSON, or from pairs.

    Raises ValueError for what is not a whole number, N1 not from N/2 to N - 1, a width that is not met from ``n`` down,
    or more than ``MAX_LEAVES`` blocks at the end, whose number doubles with every level.
    """
    try:
        pairs = splits.items() if isinstance(splits, Mapping) else tuple(splits)  # type: ignore[arg-type]
        found = tuple(sorted((int(width) if isinstance(width, str) else width, n1) for width, n1 in pairs))
        whole_numbers("shannon: widths", [width for width, _ in found], 2, least=0)
    except (TypeError, ValueError):
        raise ValueError(f"shannon: splits maps widths N to their larger part N1, got {shown(splits)}") from None
    for width, n1 in found:
        whole_number(f"shannon: the larger part N1 of {width}", n1, (width + 1) // 2, width - 1)
    try:
        met = widths(n, found)
    except RecursionError:
        raise ValueError(f"shannon: these {len(found)} splits of width {n} are nested too deeply") from None
    unmet = [width for width, _ in found if width not in met]
    if unmet:
        raise ValueError(f"shannon: splits has the width {unmet[0]}, but from {n} down there are {[*met]}")
    if met[n] > MAX_LEAVES:
        raise ValueError(
            f"shannon: width {n} would be put together of {met[n]} blocks, more than {MAX_LEAVES}; "
            "choose other splits, or width='qudit'"
        )
    return found


@dataclass(frozen=True)
class Recursion:
    """The matrices Q of all widths, on a backend.

    >>> from qcircuit_peft import load
    >>> recursion = Recursion(load("simplified_two_design"), layers=1)
    >>> recursion.columns(97, torch.zeros(24, 119), k=4).shape
    torch.Size([24, 97, 4])
    """

    ansatz: Ansatz
    layers: int
    splits: Splits = ()
    backend: str = "native"

    def n_parameters(self, n: int) -> int:
        """The number of parameters at width ``n``."""
        return n_parameters(n, self.ansatz, self.layers, self.splits)

    def leaves(self, n: int, name: str = "", start: int = 0) -> Iterator[tuple[str, Circuit, slice]]:
        """Every circuit in time order: its name, such as "u2.v1", itself, and its part of the parameters."""
        n1, n2 = split(n, self.splits)
        if not n2:
            circuit = leaf(n, self.ansatz, self.layers)
            if circuit:
                yield name, circuit, slice(start, start + circuit.n_angles)
            return
        dot = f"{name}." if name else ""
        for part, size in (("v1", n2), ("v2", n1), ("", n2), ("u1", n1), ("u2", n2)):
            if part:
                yield from self.leaves(size, dot + part, start)
                start += self.n_parameters(size)
            else:
                start += n2

    def columns(self, n: int, angles: Float[Tensor, "*batch P"], k: int) -> Float[Tensor, "*batch n k"]:
        """The first ``k`` columns of Q for parameters in radians; k is 1 to n."""
        n1, n2 = split(n, self.splits)
        if not n2:
            circuit = leaf(n, self.ansatz, self.layers)
            if circuit is None:
                return angles.new_ones(*angles.shape[:-1], 1, 1)
            return backends.columns(circuit, angles, k, backend=self.backend)
        v1, v2, t, u1, u2 = self._parts(n, angles)
        a = pad(self.columns(n2, v1, min(k, n2)), (0, max(0, k - n2)))
        b = pad(self.columns(n1, v2, k - n2), (n2, 0)) if k > n2 else None
        return self._rotate(n, a, b, t, u1, u2)

    def apply(self, n: int, angles: Float[Tensor, "*batch P"], x: Float[Tensor, "... n m"]) -> Float[Tensor, "... n m"]:
        """Q on the columns of ``x``, for parameters in radians."""
        n1, n2 = split(n, self.splits)
        if not n2:
            circuit = leaf(n, self.ansatz, self.layers)
            return x if circuit is None else backends.apply(circuit, angles, x, backend=self.backend)
        v1, v2, t, u1, u2 = self._parts(n, angles)
        return self._rotate(n, self.apply(n2, v1, x[..., :n2, :]), self.apply(n1, v2, x[..., n2:, :]), t, u1, u2)

    def _parts(self, n: int, angles: Tensor) -> tuple[Tensor, ...]:
        n1, n2 = split(n, self.splits)
        small, large = self.n_parameters(n2), self.n_parameters(n1)
        return torch.split(angles, [small, large, n2, large, small], dim=-1)

    def _rotate(self, n: int, a: Tensor, b: Tensor | None, t: Tensor, u1: Tensor, u2: Tensor) -> Tensor:
        """The middle and the left factor on [a; b]; ``b`` None stands for zeros."""
        n1, n2 = split(n, self.splits)
        c, s = torch.cos(t)[..., None], torch.sin(t)[..., None]
        if b is None:
            top, bottom = pad(c * a, (0, 0, 0, n1 - n2)), s * a
        else:
            top, bottom = torch.cat([c * a - s * b[..., :n2, :], b[..., n2:, :]], dim=-2), s * a + c * b[..., :n2, :]
        return torch.cat([self.apply(n1, u1, top), self.apply(n2, u2, bottom)], dim=-2)
