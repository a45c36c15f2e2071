"""What the engine asks of an array library: torch, or numpy, whose calls on small arrays cost a fifth of torch's.

Formulas are written once, with what tensors and arrays have in common and with these functions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from qcircuit_peft.precision import wide

Array = Any  # a Tensor or an NDArray


@dataclass(frozen=True)
class Constants:
    """How a plan's arrays become constants of one library: real numbers, numbers of the circuit, positions."""

    real: Callable[[NDArray], Array]
    work: Callable[[NDArray], Array]
    index: Callable[[NDArray], Array]


def tensors(dtype: torch.dtype, real_circuit: bool, device: torch.device) -> Constants:
    """Constants as tensors; ``dtype`` is that of the angles."""
    work = dtype if real_circuit else dtype.to_complex()
    return Constants(
        real=lambda array: torch.tensor(array, dtype=dtype, device=device),
        work=lambda array: torch.tensor(np.real(array) if real_circuit else array, dtype=work, device=device),
        index=lambda array: torch.tensor(array, dtype=torch.int32, device=device),
    )


def arrays(dtype: torch.dtype, real_circuit: bool) -> Constants:
    """Constants as arrays; ``dtype`` is that of the angles."""
    real = np.dtype(np.float64 if dtype == torch.float64 else np.float32)
    work = real if real_circuit else np.result_type(real, np.complex64)
    return Constants(
        real=lambda array: np.ascontiguousarray(array, real),
        work=lambda array: np.ascontiguousarray(np.real(array) if real_circuit else array, work),
        index=lambda array: np.ascontiguousarray(array, np.intp),
    )


def take(x: Array, index: Array, axis: int = 1) -> Array:
    """What stands at these positions of an axis."""
    return x.index_select(axis, index) if isinstance(x, Tensor) else x.take(index, axis)


def bmm(x: Array, y: Array) -> Array:
    """(b, n, m), (b, m, k) -> (b, n, k)."""
    return torch.bmm(x, y) if isinstance(x, Tensor) else np.matmul(x, y)


def cat(parts: Sequence[Array], axis: int) -> Array:
    """Arrays one behind the other; a single one as it is."""
    if len(parts) == 1:
        return parts[0]
    return torch.cat(tuple(parts), axis) if isinstance(parts[0], Tensor) else np.concatenate(parts, axis)


def pieces(x: Array, sizes: Sequence[int], axis: int) -> Sequence[Array]:
    """Parts of these sizes; all of ``x`` as it is."""
    if len(sizes) == 1:
        return (x,)
    if isinstance(x, Tensor):
        return x.split(sizes, axis)
    found, start, before = [], 0, (slice(None),) * axis
    for size in sizes:
        found.append(x[(*before, slice(start, start + size))])
        start += size
    return found


def unbind(x: Array) -> Sequence[Array]:
    """x[:, 0], x[:, 1], ..."""
    return x.unbind(1) if isinstance(x, Tensor) else [x[:, i] for i in range(x.shape[1])]


def stack(parts: Sequence[Array]) -> Array:
    """What ``unbind`` takes apart."""
    return torch.stack(tuple(parts), 1) if isinstance(parts[0], Tensor) else np.stack(parts, 1)


def permute(x: Array, axes: tuple[int, ...]) -> Array:
    """The axes in another order."""
    return x.permute(axes) if isinstance(x, Tensor) else x.transpose(axes)


def filled(x: Array, shape: tuple[int, ...]) -> Array:
    """``x`` in the first corner of zeros of this shape."""
    if tuple(x.shape) == shape:
        return x
    if isinstance(x, Tensor):
        return F.pad(x, [n for size, to in zip(x.shape[::-1], shape[::-1], strict=True) for n in (0, to - size)])
    out = np.zeros(shape, x.dtype)
    out[tuple(map(slice, x.shape))] = x
    return out


def added(x: Array, index: Array, size: int) -> Array:
    """(f, m) -> (f, size): every column of ``x`` is added at its position."""
    if isinstance(x, Tensor):
        return x.new_zeros(len(x), size).index_add(1, index, x)
    at = (np.arange(len(x))[:, None] * size + index).ravel()
    return np.bincount(at, x.ravel(), len(x) * size).reshape(len(x), size).astype(x.dtype)


def circle(angles: Array, radius: Array, like: Array) -> Array:
    """cos and sin of every angle, (..., 2), in the dtype of ``like``; ``radius`` is all ones."""
    if isinstance(angles, Tensor):
        found = torch.view_as_real(torch.polar(radius, angles))
        return found.to(like.dtype) if like.is_complex() else found
    found = np.empty((*angles.shape, 2), like.dtype)
    found[..., 0], found[..., 1] = np.cos(angles), np.sin(angles)
    return found


def expm(x: Array) -> Array:
    """The exponential of square matrices."""
    return torch.linalg.matrix_exp(x) if isinstance(x, Tensor) else torch.linalg.matrix_exp(torch.from_numpy(x)).numpy()


def conj(x: Array) -> Array:
    """The complex conjugate: for real numbers no operation."""
    return x.conj() if is_complex(x) else x


def real_part(x: Array) -> Array:
    """The real part: for real numbers no operation."""
    return x.real if is_complex(x) else x


def is_complex(x: Array) -> bool:
    """Whether the numbers are complex."""
    return x.is_complex() if isinstance(x, Tensor) else x.dtype.kind == "c"


def widened(x: Array) -> Array:
    """The numbers in double precision, where the device has it."""
    return wide(x) if isinstance(x, Tensor) else x.astype(np.result_type(x, np.float64))


def cast(x: Array, like: Array) -> Array:
    """The numbers in the dtype of ``like``."""
    return x.to(like.dtype) if isinstance(x, Tensor) else x.astype(like.dtype, copy=False)


def contiguous(x: Array) -> Array:
    """The numbers in the order in which they are read."""
    return x.contiguous() if isinstance(x, Tensor) else np.ascontiguousarray(x)
