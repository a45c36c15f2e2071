"""The backward pass of the engine, which recomputes or undoes what it needs, so that little is kept."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from qcircuit_peft.backends.native.prefix import Prefix
from qcircuit_peft.backends.native.whole import Whole
from qcircuit_peft.precision import full_precision


class _Recompute(torch.autograd.Function):
    """``prefix(angles)``, keeping only the angles for the backward pass."""

    @staticmethod
    @full_precision()
    def forward(prefix: Prefix, angles: Tensor) -> Tensor:
        return prefix(angles)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.prefix, angles = inputs
        ctx.save_for_backward(angles)

    @staticmethod
    @full_precision()
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        (angles,) = ctx.saved_tensors
        halves, pull, *_ = torch.func.vjp(ctx.prefix.halves, angles)
        return None, pull(ctx.prefix.undo(*halves, grads[0]))[0]

    @staticmethod
    def vmap(info: Any, in_dims: tuple, prefix: Prefix, angles: Tensor) -> tuple[Tensor, int]:
        angles = _batch_first(info, angles, in_dims[1])
        return _Recompute.apply(prefix, angles.flatten(0, 1)).unflatten(0, angles.shape[:2]), 0


class _Reversible(torch.autograd.Function):
    """``whole(angles, x)``, keeping only the angles and the result for the backward pass."""

    @staticmethod
    @full_precision()
    def forward(whole: Whole, angles: Tensor, x: Tensor) -> Tensor:
        return whole(angles, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.whole, angles, _ = inputs
        ctx.save_for_backward(angles, output)

    @staticmethod
    @full_precision()
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, Tensor]:
        angles, output = ctx.saved_tensors
        if not ctx.whole.blocks.groups:  # permutations only
            return None, torch.zeros_like(angles), ctx.whole.undo((), output, grads[0])[1]
        matrices, pull, *_ = torch.func.vjp(ctx.whole.matrices, angles)
        gradients, x = ctx.whole.undo(matrices, output, grads[0])
        return None, pull(gradients)[0], x

    @staticmethod
    def vmap(info: Any, in_dims: tuple, whole: Whole, angles: Tensor, x: Tensor) -> tuple[Tensor, int]:
        angles, x = _batch_first(info, angles, in_dims[1]), _batch_first(info, x, in_dims[2])
        return _Reversible.apply(whole, angles.flatten(0, 1), x.flatten(0, 1)).unflatten(0, angles.shape[:2]), 0


def _batch_first(info: Any, tensor: Tensor, dim: int | None) -> Tensor:
    """The vmapped dimension in front, made where there is none."""
    return tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _plain() -> bool:
    """Whether torch does the backward pass itself: a compiler plans it better, forward mode needs the operations."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or forward_ad._current_level >= 0


def run_prefix(prefix: Prefix, angles: Tensor) -> Tensor:
    """(F, n_angles) -> (F, N, k), differentiable."""
    return prefix(angles) if _plain() else _Recompute.apply(prefix, angles)


def run_whole(whole: Whole, angles: Tensor, x: Tensor) -> Tensor:
    """(F, n_angles), (F, N, K) -> (F, N, K), differentiable."""
    return whole(angles, x) if _plain() else _Reversible.apply(whole, angles, x)
