"""The engine as registered torch operators: one node a call for compilers, exporters and whoever shards a model.

``qcircuit_peft::columns`` and ``qcircuit_peft::apply`` take the circuit as text, so that an exported program can be
loaded in another process. Each has an operator for its backward pass, whose own derivative is torch's, of the same
operations. Forward mode and ``torch.jit.trace`` see the operations themselves.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.library import Library

from qcircuit_peft.backends.native import plan
from qcircuit_peft.backends.native.arrays import Array, arrays, contiguous, tensors
from qcircuit_peft.backends.native.prefix import Prefix, make_prefix, split
from qcircuit_peft.backends.native.whole import Whole, make_whole
from qcircuit_peft.circuit import Circuit, Op
from qcircuit_peft.precision import full_precision, no_autocast

_SMALL = 1 << 17  # numbers of a result up to which numpy is faster than torch, on a CPU
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
    with torch.inference_mode(False), torch._C._DisableFuncTorch(), _untraced():  # plain, whoever asks for them first
        if k is None:
            return None, make_whole(circuit, None, make)
        done = split(circuit, k)[1]
        rest = make_whole(circuit, done, make)
        return make_prefix(circuit, k, make), rest if rest.steps else None


def _deep(circuit: Circuit, k: int) -> bool:
    """Whether some levels act on the whole state, so that the backward pass starts from the result."""
    done, levels = split(circuit, k)[1], plan.levels(circuit)
    return done < len(levels) - 1 or (done < len(levels) and bool(levels[-1].monomials))


def _rows(angles: Tensor) -> Tensor:
    """(*batch, n_angles) -> (F, n_angles), with an angle that nothing uses if there is none."""
    if not angles.shape[-1]:
        return angles.new_zeros(prod(angles.shape[:-1]), 1)
    return angles if angles.ndim == 2 else angles.reshape(-1, angles.shape[-1])


def _dtype(circuit: Circuit, dtype: torch.dtype) -> torch.dtype:
    return dtype if circuit.is_real else dtype.to_complex()


# --- the operations themselves, differentiable by torch -----------------------------------------------------


@full_precision()
def _columns(angles: Tensor, text: str, k: int) -> Tensor:
    """(*batch, n_angles) -> (*batch, N, k)."""
    if not prod(angles.shape[:-1]):
        return _like_columns(angles, text, k)
    out = _columns_of(_program(text, k, angles.dtype, angles.device), _rows(angles))
    return out if angles.ndim == 2 else out.view(*angles.shape[:-1], *out.shape[1:])


@full_precision()
def _columns_backward(g: Tensor, angles: Tensor, y: Tensor | None, text: str, k: int) -> Tensor:
    """The gradient of the angles from that of the result, which is ``y`` itself where ``_deep``."""
    if not angles.numel():
        return torch.zeros_like(angles)
    program = _program(text, k, angles.dtype, angles.device)
    return _columns_pull(program, _rows(angles), _matrices(g), _matrices(y)).view(angles.shape)


@full_precision()
def _apply(angles: Tensor, x: Tensor, text: str) -> Tensor:
    """(*batch, n_angles), (*batch, N, K) -> (*batch, N, K)."""
    if not x.numel():
        return torch.empty_like(x, memory_format=torch.contiguous_format)
    _, whole = _program(text, None, angles.dtype, angles.device)
    assert whole is not None
    return whole(_rows(angles), x.reshape(-1, *x.shape[-2:])).reshape(x.shape).contiguous()


@full_precision()
def _apply_backward(g: Tensor, angles: Tensor, y: Tensor, text: str) -> tuple[Tensor, Tensor]:
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


def _like_columns(angles: Tensor, text: str, k: int) -> Tensor:
    circuit = read(text)
    return angles.new_empty(*angles.shape[:-1], circuit.dim, k, dtype=_dtype(circuit, angles.dtype))


def _like_apply(angles: Tensor, x: Tensor, text: str) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


# --- with numpy, where nobody records what is done ----------------------------------------------------------


def _is_small(angles: Tensor, text: str, k: int, *others: Tensor | None) -> bool:
    """Whether numpy makes k columns faster."""
    if angles.device.type != "cpu" or angles.dtype not in (torch.float32, torch.float64):
        return False
    if not all(type(x) in (Tensor, nn.Parameter) for x in (angles, *others) if x is not None):
        return False
    return 0 < prod(angles.shape[:-1]) * read(text).dim * k <= _SMALL and angles.shape[-1] > 0


def _array(x: Tensor) -> NDArray:
    """A copy: memory that numpy has seen cannot be resized any more, as FSDP does with its parameters'."""
    return x.detach().clone().resolve_conj().resolve_neg().numpy()


def _tensor(x: NDArray) -> Tensor:
    return torch.from_numpy(x).clone()


def _columns_kernel(angles: Tensor, text: str, k: int) -> Tensor:
    if not _is_small(angles, text, k):
        return _columns(angles, text, k)
    with np.errstate(all="ignore"):  # as torch is
        out = _tensor(_columns_of(_program(text, k, angles.dtype, None), _array(_rows(angles))))
    return out if angles.ndim == 2 else out.view(*angles.shape[:-1], *out.shape[1:])


def _columns_backward_kernel(g: Tensor, angles: Tensor, y: Tensor | None, text: str, k: int) -> Tensor:
    if not _is_small(angles, text, k, g, y):
        return _columns_backward(g, angles, y, text, k)
    rows, of_result = _array(_rows(angles)), _array(_matrices(g))
    result = None if y is None else _array(_matrices(y))
    with np.errstate(all="ignore"):  # as torch is
        found = _columns_pull(_program(text, k, angles.dtype, None), rows, of_result, result)
    return _tensor(found).view(angles.shape)


# --- the operators ------------------------------------------------------------------------------------------

_LIBRARY = Library("qcircuit_peft", "DEF")


def _operator(schema: str, kernel: Callable, like: Callable) -> Any:
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"qcircuit_peft::{name}", like, lib=_LIBRARY)
    return getattr(torch.ops.qcircuit_peft, name).default


_COLUMNS = _operator("columns(Tensor angles, str circuit, int k) -> Tensor", _columns_kernel, _like_columns)
_COLUMNS_BACKWARD = _operator(
    "columns_backward(Tensor g, Tensor angles, Tensor? y, str circuit, int k) -> Tensor",
    _columns_backward_kernel,
    lambda g, angles, y, text, k: torch.empty_like(angles, memory_format=torch.contiguous_format),
)
_APPLY = _operator("apply(Tensor angles, Tensor x, str circuit) -> Tensor", _apply, _like_apply)
_APPLY_BACKWARD = _operator(
    "apply_backward(Tensor g, Tensor angles, Tensor y, str circuit) -> (Tensor, Tensor)",
    _apply_backward,
    lambda g, angles, y, text: tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in (angles, y)),
)


_KERNELS = {_COLUMNS: _columns_kernel, _COLUMNS_BACKWARD: _columns_backward_kernel}


def _is_watched(*tensors: Tensor) -> bool:
    """Whether someone wants to see which operators are called: a compiler, an exporter, a kind of tensor, a mode."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or not all(type(x) in (Tensor, nn.Parameter) for x in tensors)
    )


def _below(operator: Any, *args: Any) -> Any:
    """The operator without its derivative: called, or, where nobody would see the call, its kernel."""
    kernel = _KERNELS.get(operator)
    with torch._C._AutoDispatchBelowAutograd(), no_autocast(args[0]):  # a backward pass may be called under it
        if kernel is None or _is_watched(*(x for x in args if isinstance(x, Tensor))):
            return operator(*args)
        return kernel(*args)


def _batch_first(info: Any, in_dims: tuple, args: tuple) -> tuple:
    """The vmapped dimension of every tensor in front, made where there is none."""
    return tuple(
        arg if not isinstance(arg, Tensor)
        else arg.expand(info.batch_size, *arg.shape) if dim is None
        else arg.movedim(dim, 0)
        for arg, dim in zip(args, in_dims, strict=True)
    )  # fmt: skip


def _recorded() -> bool:
    """Whether someone differentiates or transforms a backward pass."""
    return torch.is_grad_enabled() or torch._C._are_functorch_transforms_active()


class _Columns(torch.autograd.Function):
    """Keeps only the angles, and for a deep circuit the result."""

    @staticmethod
    def forward(angles: Tensor, text: str, k: int) -> Tensor:
        return _below(_COLUMNS, angles, text, k)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        angles, ctx.text, ctx.k = inputs
        ctx.save_for_backward(angles, output.detach() if _deep(read(ctx.text), ctx.k) else None)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        run = _ColumnsBackward.apply if _recorded() else partial(_below, _COLUMNS_BACKWARD)
        return run(grads[0], *ctx.saved_tensors, ctx.text, ctx.k), None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple[Tensor, int]:
        return _Columns.apply(*_batch_first(info, in_dims, args)), 0


class _ColumnsBackward(torch.autograd.Function):
    """A function of the cotangent and the angles; ``y``, which follows from them, only spares it work."""

    @staticmethod
    def forward(g: Tensor, angles: Tensor, y: Tensor | None, text: str, k: int) -> Tensor:
        return _below(_COLUMNS_BACKWARD, g, angles, y, text, k)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        g, angles, _, ctx.text, ctx.k = inputs
        ctx.save_for_backward(g, angles)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        def first(g: Tensor, angles: Tensor) -> Tensor:
            y = _columns(angles, ctx.text, ctx.k) if _deep(read(ctx.text), ctx.k) else None
            return _columns_backward(g, angles, y, ctx.text, ctx.k)

        _, pull, *_ = torch.func.vjp(first, *ctx.saved_tensors)
        return *pull(grads[0]), None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple[Tensor, int]:
        return _ColumnsBackward.apply(*_batch_first(info, in_dims, args)), 0


class _Link(torch.autograd.Function):
    """Zeros in the place of x, in the memory of one number, with the gradient of x."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.new_zeros(()).expand(x.shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class _Apply(torch.autograd.Function):
    """Keeps the angles and the result, from which x is recovered: what is kept does not lead back to this node."""

    @staticmethod
    def forward(angles: Tensor, x: Tensor, link: Tensor, text: str) -> Tensor:
        return _below(_APPLY, angles, x, text)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        angles, _, link, ctx.text = inputs
        ctx.save_for_backward(angles, link, output.detach())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        return *_ApplyBackward.apply(grads[0], *ctx.saved_tensors, ctx.text), None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple[Tensor, int]:
        return _Apply.apply(*_batch_first(info, in_dims, args)), 0


class _ApplyBackward(torch.autograd.Function):
    """A function of the cotangent, the angles and x, which is recovered from ``y`` and linked by ``link``."""

    @staticmethod
    def forward(g: Tensor, angles: Tensor, link: Tensor, y: Tensor, text: str) -> tuple[Tensor, Tensor]:
        return _below(_APPLY_BACKWARD, g, angles, y, text)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        *saved, ctx.text = inputs
        ctx.save_for_backward(*saved)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        g, angles, link, y = ctx.saved_tensors

        def first(g: Tensor, angles: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            return _apply_backward(g, angles, _apply(angles, x, ctx.text), ctx.text)

        with torch.no_grad():
            x = _apply(angles, y, str(read(ctx.text).inverse()))
        _, pull, *_ = torch.func.vjp(first, g, angles, x + link)
        return *pull(grads), None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        return _ApplyBackward.apply(*_batch_first(info, in_dims, args)), (0, 0)


def _columns_autograd(angles: Tensor, text: str, k: int) -> Tensor:
    needed = angles.requires_grad and torch.is_grad_enabled()
    return _Columns.apply(angles, text, k) if needed else _below(_COLUMNS, angles, text, k)


def _apply_autograd(angles: Tensor, x: Tensor, text: str) -> Tensor:
    if torch.is_grad_enabled() and (angles.requires_grad or x.requires_grad):
        return _Apply.apply(angles, x, _Link.apply(x), text)
    return _below(_APPLY, angles, x, text)


_LIBRARY.impl("columns", _columns_autograd, "Autograd")
_LIBRARY.impl("apply", _apply_autograd, "Autograd")


def _plain() -> bool:
    """Whether torch wants the operations themselves: for forward-mode differentiation, and to trace them."""
    return forward_ad._current_level >= 0 or torch.jit.is_tracing()


def run_columns(angles: Tensor, text: str, k: int) -> Tensor:
    """(*batch, n_angles) -> (*batch, N, k), the first columns of the circuit that ``text`` writes."""
    if _plain():
        return _columns(angles, text, k)
    if torch._C._are_functorch_transforms_active():  # they know functions, and not operators
        return _Columns.apply(angles, text, k)
    return _COLUMNS(angles, text, k) if _is_watched(angles) else _columns_autograd(angles, text, k)


def run_apply(angles: Tensor, x: Tensor, text: str) -> Tensor:
    """(*batch, n_angles), (*batch, N, K) -> (*batch, N, K)."""
    if _plain():
        return _apply(angles, x, text)
    if torch._C._are_functorch_transforms_active():
        return _Apply.apply(angles, x, _Link.apply(x), text)
    return _APPLY(angles, x, text)
