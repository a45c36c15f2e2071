"""torch's own transformer layers: keeping them from the fast path, which reads weights and passes adapters by."""

from typing import Any

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear


def inside_attention(module: nn.Module) -> bool:
    """Whether a module is the projection of nn.MultiheadAttention, which reads its weight and never calls it."""
    return isinstance(module, NonDynamicallyQuantizableLinear)


def keep_off_fast_path(model: nn.Module, parent: nn.TransformerEncoderLayer, adapted: nn.Module) -> None:
    """Have the layers of an encoder called, with ``adapted`` among them, also in eval and with a padding mask."""
    adapted.register_forward_pre_hook(_called)
    for encoder in model.modules():
        if isinstance(encoder, nn.TransformerEncoder) and any(layer is parent for layer in encoder.layers):
            known = _nests in encoder._forward_pre_hooks.values()
            if encoder.use_nested_tensor and not known:
                encoder.register_forward_pre_hook(_nests)


def _called(module: nn.Module, args: Any) -> None:
    """A hook that nn.TransformerEncoderLayer sees, and takes its slow path for."""


def _nests(encoder: Any, args: Any) -> None:
    """A hook that keeps nn.TransformerEncoder from nested tensors where only the fast path would take them."""
    encoder.use_nested_tensor = not torch.is_grad_enabled()
