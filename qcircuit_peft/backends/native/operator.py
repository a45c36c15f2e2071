"""The engine as registered torch operators: one node a call for compilers, exporters and whoever shards a model.

``qcircuit_peft::columns`` and ``qcircuit_peft::apply`` take the circuit as text, so that an exported program can be
loaded in another process. Each has an operator for its backward pass, whose own derivative is torch's, of the same
operations. Forward mode and ``torch.jit.trace`` see the operations themselves.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.library import Library
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

from qcircuit_peft.backends.native import kernels
from qcircuit_peft.backends.native.prefix import is_deep
from qcircuit_peft.precision import no_autocast

_LIBRARY = Library("qcircuit_peft", "DEF")


def _operator(schema: str, kernel: Callable, like: Callable) -> Any:
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"qcircuit_peft::{name}", like, lib=_LIBRARY)
    return getattr(torch.ops.qcircuit_peft, name).default


_COLUMNS = _operator("columns(Tensor angles, str circuit, int k) -> Tensor", kernels.fast_columns, kernels.like_columns)
_COLUMNS_BACKWARD = _operator(
    "columns_backward(Tensor g, Tensor angles, Tensor? y, str circuit, int k) -> Tensor",
    kernels.fast_columns_backward,
    lambda g, angles, y, text, k: torch.empty_like(angles, memory_format=torch.contiguous_format),
)
_APPLY = _operator("apply(Tensor angles, Tensor x, str circuit) -> Tensor", kernels.apply, kernels.like_apply)
_APPLY_BACKWARD = _operator(
    "apply_backward(Tensor g, Tensor angles, Tensor y, str circuit) -> (Tensor, Tensor)",
    kernels.apply_backward,
    lambda g, angles, y, text: tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in (angles, y)),
)


def _counts(operator: Any, form: Callable) -> None:
    """Let ``FlopCounterMode`` see the products that an operator makes: those of its torch form."""

    def flops(*args: Any, out_val: Any) -> int:
        given = [torch.zeros(x.shape, dtype=x.dtype) if isinstance(x, Tensor) else x for x in args]
        with FlopCounterMode(display=False) as counter:
            form(*given)
        return counter.get_total_flops()

    register_flop_formula(operator, get_raw=True)(flops)


for _operation, _form in (
    (_COLUMNS, kernels.columns),
    (_COLUMNS_BACKWARD, kernels.columns_backward),
    (_APPLY, kernels.apply),
    (_APPLY_BACKWARD, kernels.apply_backward),
):
    _counts(_operation.overloadpacket, _form)

_KERNELS = {_COLUMNS: kernels.fast_columns, _COLUMNS_BACKWARD: kernels.fast_columns_backward}


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
        ctx.save_for_backward(angles, output.detach() if is_deep(kernels.read(ctx.text), ctx.k) else None)

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
            y = kernels.columns(angles, ctx.text, ctx.k) if is_deep(kernels.read(ctx.text), ctx.k) else None
            return kernels.columns_backward(g, angles, y, ctx.text, ctx.k)

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
            return kernels.apply_backward(g, angles, kernels.apply(angles, x, ctx.text), ctx.text)

        with torch.no_grad():
            x = kernels.apply(angles, y, str(kernels.read(ctx.text).inverse()))
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
        return kernels.columns(angles, text, k)
    if torch._C._are_functorch_transforms_active():  # they know functions, and not operators
        return _Columns.apply(angles, text, k)
    return _COLUMNS(angles, text, k) if _is_watched(angles) else _columns_autograd(angles, text, k)


def run_apply(angles: Tensor, x: Tensor, text: str) -> Tensor:
    """(*batch, n_angles), (*batch, N, K) -> (*batch, N, K)."""
    if _plain():
        return kernels.apply(angles, x, text)
    if torch._C._are_functorch_transforms_active():
        return _Apply.apply(angles, x, _Link.apply(x), text)
    return _APPLY(angles, x, text)
