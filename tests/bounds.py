"""Where the bounds of the tests come from: the arithmetic, never what one machine printed.

Machines differ in LAPACK, in BLAS kernels and in vector width: in the order of additions. Two ways to one number differ
by no more than their roundings.
"""

from math import pi
from typing import Any

import torch
from torch import Tensor

from qcircuit_peft import Circuit


def rounding(dtype: torch.dtype, operations: float, size: float | Tensor = 1.0) -> float:
    """How far two ways to one number may lie apart: 4 x eps x operations x size.

    A rounding moves a number by eps/2 of it at most: eps for both ways. The 4 leaves room for functions that are right
    to a few units in the last place.

    Args:
        operations: the roundings that add up in one number. A sum of n terms has n of the size of a term, which is
            n ** 0.5 of the size of the sum where terms have either sign; an angle has one a radian.
        size: the largest magnitude of what is added on the way; where numbers cancel, of those that do.
    """
    return 4 * torch.finfo(dtype).eps * operations * float(torch.as_tensor(size).detach())


def gates(circuit: Circuit) -> float:
    """The roundings in an entry of a circuit's matrix, of either sign: a few a gate, 2 pi of an angle up to 4 pi."""
    return 2 * pi * (1 + len(circuit.ops) + circuit.n_angles) ** 0.5


def close(
    actual: Any,
    expected: Any,
    operations: float,
    size: float | Tensor | None = None,
    dtype: torch.dtype | None = None,
    where: Any = "",
) -> None:
    """Assert that no entry differs by more than ``rounding``.

    Args:
        actual, expected: tensors, arrays or numbers of one shape.
        operations, size: those of ``rounding``; the size is that of the largest entry of ``expected`` if not named.
        dtype: what was computed in; by default that of ``actual``.
        where: what a failure names.
    """
    number = (torch.float64 if isinstance(x, float) else None for x in (actual, expected))
    found, wanted = (torch.as_tensor(x, dtype=d).detach() for x, d in zip((actual, expected), number, strict=True))
    dtype = dtype or found.dtype
    found, wanted = (x.to(torch.complex128 if x.is_complex() else torch.float64) for x in (found, wanted))
    assert found.shape == wanted.shape, f"shapes {tuple(found.shape)} and {tuple(wanted.shape)} {where}"
    if not found.numel():
        return
    size = float(wanted.abs().max() if size is None else torch.as_tensor(size).detach())
    apart, bound = (found - wanted).abs(), rounding(dtype, operations, size)
    worst = torch.unravel_index(apart.nan_to_num(torch.inf).argmax(), apart.shape)
    assert apart[worst] <= bound, (
        f"{found[worst].item()} and {wanted[worst].item()} at {tuple(map(int, worst))} are {apart[worst]:.2g} apart: "
        f"{where} above {bound:.2g} = 4 x eps({dtype}) x {operations:.4g} operations x {size:.3g}"
    )
