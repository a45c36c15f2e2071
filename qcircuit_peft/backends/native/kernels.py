"""What runs behind the operators: the operations of a circuit in torch, and with numpy where calls are what costs."""

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from math import prod
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qcircuit_peft.backends.native import fused
from qcircuit_peft.backends.native.arrays import Array, arrays, contiguous, tensors
from qcircuit_peft.backends.native.prefix import Prefix, make_prefix, split
from qcircuit_peft.backends.native.whole import Whole, make_whole
from qcircuit_peft.circuit import Circuit, Op
from qcircuit_peft.precision import full_precision

SMALL = 1 << 17  # numbers of a result up to which numpy is faster than torch, on a CPU
_T = TypeVar("_T")
_Program = tuple[Prefix | None, Whole | None]
_OP = re.compile(r"(\w+)(†?)(?:\[([\d ]*)\])? ([\d ]+)")


@lru_cache(maxsize=256)
def read(text: str) -> Circuit:
    """The circuit that is written so: ``str(circuit)``."""
    first, *ops = text.split("\n")
    found = []
    for line in ops:
        gate, adjoint, angles, wires = _OP.fullmatch(line).groups()  # type: ignore[union-attr]
        found.append(Op(gate, tuple(map(int, wires.split())), tuple(map(int, (angles or "").split())), bool(adjoint)))
    return Circuit(map(int, first.split()[1:]), found)


@contextmanager
def _untraced() -> Iterator[None]:
    """``torch.jit.trace`` does not see what is done within."""
    state = torch._C._get_tracing_state()
    if state is not None:
        torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        if state is not None:
            torch._C._set_tracing_state(state)  # type: ignore[attr-defined]


@lru_cache(maxsize=256)
def _program(text: str, k: int | None, dtype: torch.dtype, device: torch.device | None) -> _Program:
    """What to run for ``columns`` (k columns) or ``apply`` (k is None): on a device, or, None, with numpy."""
    circuit = read(text)
    make = arrays(dtype, circuit.is_real) if device is None else tensors(dtype, circuit.is_real, device)

    def program() -> _Program:
        if k is None:
            return None, make_whole(circuit, None, make)
        rest = make_whole(circuit, split(circuit, k)[1], make)
        return make_prefix(circuit, k, make), rest if rest.steps else None

    return _kept(program, device)


@lru_cache(maxsize=256)
def _fused(text: str, k: int, device: torch.device) -> fused.Plan:
    """What the fused kernels need."""
    return _kept(lambda: fused.make_plan(read(text), k, device), device)


def _kept(make: Callable[[], _T], device: torch.device | None) -> _T:
    """What is made once and kept: plain tensors, whoever asks first.

    On a GPU another thread makes them: this one may be warming up a CUDA graph, in whose memory nothing may be kept.
    """

    def plain() -> _T:
        with torch.inference_mode(False), torch._C._DisableFuncTorch(), _untraced():
            return make()

    def apart() -> _T:
        found = plain()
        torch.cuda.current_stream(device).synchronize()  # other streams will read them
        return found

    if device is None or device.type != "cuda":
        return plain()
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(apart).result()


def _rows(angles: Tensor) -> Tensor:
    """(*batch, n_angles) -> (F, n_angles), with an angle that nothing uses if there is none."""
    if not angles.shape[-1]:
        return angles.new_zeros(prod(angles.shape[:-1]), 1)
    return angles if angles.ndim == 2 else angles.reshape(-1, angles.shape[-1])


def _dtype(circuit: Circuit, dtype: torch.dtype) -> torch.dtype:
    return dtype if circuit.is_real else dtype.to_complex()


# --- the operations themselves, differentiable by torch -----------------------------------------------------


@full_precision()
def columns(angles: Tensor, text: str, k: int) -> Tensor:
    """(*batch, n_angles) -> (*batch, N, k)."""
    if not prod(angles.shape[:-1]):
        return like_columns(angles, text, k)
    out = _columns_of(_program(text, k, angles.dtype, angles.device), _rows(angles))
    return out if angles.ndim == 2 else out.view(*angles.shape[:-1], *out.shape[1:])


@full_precision()
def columns_backward(g: Tensor, angles: Tensor, y: Tensor | None, text: str, k: int) -> Tensor:
    """The gradient of the angles from that of the result, which is ``y`` itself where ``is_deep``."""
    if not angles.numel():
        return torch.zeros_like(angles)
    program = _program(text, k, angles.dtype, angles.device)
    return _columns_pull(program, _rows(angles), _matrices(g), _matrices(y)).view(angles.shape)


@full_precision()
def apply(angles: Tensor, x: Tensor, text: str) -> Tensor:
    """(*batch, n_angles), (*batch, N, K) -> (*batch, N, K)."""
    if not x.numel():
        return torch.empty_like(x, memory_format=torch.contiguous_format)
    _, whole = _program(text, None, angles.dtype, angles.device)
    assert whole is not None
    return whole(_rows(angles), x.reshape(-1, *x.shape[-2:])).reshape(x.shape).contiguous()


@full_precision()
def apply_backward(g: Tensor, angles: Tensor, y: Tensor, text: str) -> tuple[Tensor, Tensor]:
    """The gradients of the angles and of x from the result y and its gradient."""
    if not y.numel():
        return torch.zeros_like(angles), torch.zeros_like(y)
    _, whole = _program(text, None, angles.dtype, angles.device)
    assert whole is not None
    g = g.reshape(-1, *g.shape[-2:])
    slope, g, _ = whole.undo(_rows(angles), y.reshape(g.shape), g)
    slope = slope.view(angles.shape) if angles.numel() else torch.zeros_like(angles)
    return slope, g.reshape(y.shape).contiguous()


def _columns_of(program: _Program, rows: Array) -> Array:
    """(F, n_angles) -> (F, N, k), in the library of the program."""
    prefix, whole = program
    assert prefix is not None
    out = prefix(rows)
    return out if whole is None else contiguous(whole(rows, out))


def _columns_pull(program: _Program, rows: Array, g: Array, y: Array | None) -> Array:
    """The gradient of the rows (F, n_angles) from that of the result (F, N, k)."""
    prefix, whole = program
    assert prefix is not None
    if whole is None:
        return prefix.undo(rows, g)
    late, g, _ = whole.undo(rows, y, g)
    return prefix.undo(rows, g) + late


def _matrices(x: Any) -> Any:
    """(*batch, N, k) -> (F, N, k)."""
    return x if x is None or x.ndim == 3 else x.reshape(-1, *x.shape[-2:])


def like_columns(angles: Tensor, text: str, k: int) -> Tensor:
    """An empty result of ``columns``."""
    circuit = read(text)
    return angles.new_empty(*angles.shape[:-1], circuit.dim, k, dtype=_dtype(circuit, angles.dtype))


def like_apply(angles: Tensor, x: Tensor, text: str) -> Tensor:
    """An empty result of ``apply``."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)


# --- with numpy, or with fused kernels, where nobody records what is done -----------------------------------


def is_small(angles: Tensor, text: str, k: int, *others: Tensor | None) -> bool:
    """Whether numpy makes k columns faster."""
    if angles.device.type != "cpu" or angles.dtype not in (torch.float32, torch.float64):
        return False
    if not all(type(x) in (Tensor, nn.Parameter) for x in (angles, *others) if x is not None):
        return False
    return 0 < prod(angles.shape[:-1]) * read(text).dim * k <= SMALL and angles.shape[-1] > 0


def _plain(x: Tensor) -> Tensor:
    """The numbers in the order in which they are read, with their signs."""
    return x.detach().resolve_neg().contiguous()


def _array(x: Tensor) -> NDArray:
    """A copy: memory that numpy has seen cannot be resized any more, as FSDP does with its parameters'."""
    x = x.detach().clone()
    return (x.resolve_conj().resolve_neg() if x.is_conj() or x.is_neg() else x).numpy()


def _tensor(x: NDArray) -> Tensor:
    return torch.from_numpy(x).clone()


def fast_columns(angles: Tensor, text: str, k: int) -> Tensor:
    """``columns``, where nobody records what is done: with the fused kernels, or with numpy, if that is faster."""
    if fused.serves(angles, read(text), k):
        made = fused.columns(_fused(text, k, angles.device), _plain(_rows(angles)))
        return made.view(*angles.shape[:-1], *made.shape[1:])
    if not is_small(angles, text, k):
        return columns(angles, text, k)
    with np.errstate(all="ignore"):  # as torch is
        out = _tensor(_columns_of(_program(text, k, angles.dtype, None), _array(_rows(angles))))
    return out if angles.ndim == 2 else out.view(*angles.shape[:-1], *out.shape[1:])


def fast_columns_backward(g: Tensor, angles: Tensor, y: Tensor | None, text: str, k: int) -> Tensor:
    """``columns_backward``, likewise."""
    if fused.serves(angles, read(text), k, g) and angles.numel():
        own = _fused(text, k, angles.device)
        return fused.columns_backward(own, _plain(_rows(angles)), _plain(_matrices(g))).view(angles.shape)
    if not is_small(angles, text, k, g, y):
        return columns_backward(g, angles, y, text, k)
    rows, of_result = _array(_rows(angles)), _array(_matrices(g))
    result = None if y is None else _array(_matrices(y))
    with np.errstate(all="ignore"):  # as torch is
        found = _columns_pull(_program(text, k, angles.dtype, None), rows, of_result, result)
    return _tensor(found).view(angles.shape)
