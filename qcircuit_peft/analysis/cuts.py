"""Registers, subsets of wires and bipartitions: what every measure checks and reshapes first."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from qcircuit_peft.ansatz import wire_dims
from qcircuit_peft.checks import whole_numbers
from qcircuit_peft.text import shown

_TOLERANCE = {torch.float32: 1e-4, torch.complex64: 1e-4, torch.float64: 1e-8, torch.complex128: 1e-8}


def check_dims(n: int, dims: Sequence[int] | None, least: int = 2) -> tuple[int, ...]:
    """The wire dimensions of a register of dimension ``n``; left out, those of ``wire_dims``: odd primes, then qubits.

    Raises ValueError if they do not multiply to ``n``, or one is below ``least``.

    >>> check_dims(12, None), check_dims(12, (2, 3, 2))
    ((3, 2, 2), (2, 3, 2))
    """
    if dims is None:
        return wire_dims(n) if n > 1 else (1,)
    dims = whole_numbers("wire dimensions", tuple(dims), least)
    if prod(dims) != n:
        raise ValueError(f"wire dimensions multiply to the register's dimension {n}, got {shown(dims)}")
    return dims


def check_tensor(x: object, what: str, ndim: int) -> Tensor:
    """``x`` itself; raises ValueError unless it is a real or complex tensor of at least ``ndim`` dimensions."""
    if not isinstance(x, Tensor) or x.dtype not in _TOLERANCE or x.ndim < ndim:
        found = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(
            f"a {what} is a float32, float64, complex64 or complex128 tensor of {ndim} or more dimensions, got {found}"
        )
    return x


def check_state(state: object, dims: Sequence[int] | None) -> tuple[Tensor, tuple[int, ...]]:
    """States (*batch, N) and their wire dimensions; raises ValueError unless all are normalized and dims fit."""
    state = check_tensor(state, "state", 1)
    dims = check_dims(state.shape[-1], dims)
    off = (torch.linalg.vector_norm(state.detach(), dim=-1) - 1).abs()
    if not bool((off <= _TOLERANCE[state.dtype]).all()):  # also for NaN
        raise ValueError(f"a state has norm 1, got a norm that is off by {float(off.max()):.3g}; divide by the norm")
    return state, dims


def check_wires(wires: Sequence[int] | None, n_wires: int) -> tuple[int, ...]:
    """One side of a bipartition; left out, the first half of the wires.

    Raises ValueError for an empty side, the whole register, a wire that is not there or is there twice.

    >>> check_wires(None, 5), check_wires([3], 5)
    ((0, 1), (3,))
    """
    if n_wires < 2:
        raise ValueError(f"a cut divides a register of two or more wires, got {n_wires}")
    if wires is None:
        return tuple(range(n_wires // 2))
    side = whole_numbers("one side of a cut", tuple(wires), 0, n_wires - 1)
    if not len(set(side)) == len(side) < n_wires:
        raise ValueError(
            f"one side of a cut has some but not all of the wires 0 to {n_wires - 1}, once each, got {shown(side)}"
        )
    return side


def group(x: Tensor, dims: Sequence[int], *groups: Sequence[int]) -> Tensor:
    """The last axis of ``x`` as one axis a group of wires, and one for all other wires: (*batch, D_1, ..., D_rest)."""
    batch, taken = x.shape[:-1], [w for wires in groups for w in wires]
    rest = [w for w in range(len(dims)) if w not in taken]
    order = [*range(len(batch)), *(len(batch) + w for w in (*taken, *rest))]
    sizes = [prod(dims[w] for w in wires) for wires in (*groups, rest)]
    return x.reshape(*batch, *dims).permute(order).reshape(*batch, *sizes)
