"""In which precision orthogonal matrices are computed."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """``x`` in double precision; in single precision on Apple's GPUs, which have no other."""
    real = torch.float32 if x.device.type == "mps" else torch.float64
    return x.to(real.to_complex() if x.is_complex() else real)


_may_autocast = cache(torch.amp.is_autocast_available)


def is_autocast(kind: str) -> bool:
    """Whether autocast is on for a kind of device."""
    return _may_autocast(kind) and torch.is_autocast_enabled(kind)


def no_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Autocast off on the device of ``x``, for what would not stay orthonormal in few digits."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if is_autocast(kind) else nullcontext()


@contextmanager
def full_precision() -> Iterator[None]:
    """float32 products in float32, whatever torch is set to: TF32 or bfloat16 would not leave a frame orthonormal."""
    units: Any = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [unit.fp32_precision for unit in units]
    if not {*before} - {"none", "ieee"}:
        yield
        return
    for unit in units:
        unit.fp32_precision = "ieee"
    try:
        yield
    finally:
        for unit, precision in zip(units, before, strict=True):
            unit.fp32_precision = precision
