"""LoReFT: what a block gives is moved within a few directions."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qcircuit_peft.methods.method import Method, blocks


class LoReFT(nn.Module):
    """h -> h + R^T (W h + b - R h), where the rows of R (r, n) are orthonormal; W starts at R and b at zero.

    So it starts as the identity; as published W and b start like any linear layer. Source: Wu et al. 2024, ReFT, arXiv
    2404.03592, equation 2.
    """

    def __init__(self, n: int, r: int) -> None:
        super().__init__()
        self.directions = nn.Parameter(torch.empty(n, r))
        nn.init.orthogonal_(self.directions)
        self.source = nn.Linear(n, r)
        with torch.no_grad():
            self.source.weight.copy_(self.rotation().T)
            self.source.bias.zero_()

    def rotation(self) -> Tensor:
        """R^T (n, r): the trained directions made orthonormal."""
        q, triangle = torch.linalg.qr(self.directions)
        return q * triangle.diagonal().sign()

    def forward(self, h: Tensor) -> Tensor:
        """Hidden states (..., n), moved."""
        rotation = self.rotation()
        return h + (self.source(h) - h @ rotation) @ rotation.T


def _intervene(module: Any, args: Any, output: Any) -> Any:
    """A hook on a block, which gives hidden states, or a tuple that begins with them."""
    if isinstance(output, tuple):
        return (module.loreft(output[0]), *output[1:])
    return module.loreft(output)


def _width(model: Any) -> int:
    return model.config.hidden_size


def _attach(model: nn.Module, targets: Sequence[str], size: int) -> nn.Module:
    width = _width(model)
    if size > width:
        raise ValueError(f"LoReFT has a rank of the model's width, {width}, at most, got {size}")
    model.requires_grad_(False)
    for block in blocks(model)[1]:
        first = next(block.parameters())
        block.add_module("loreft", LoReFT(width, size).to(first.device, first.dtype))
        block.register_forward_hook(_intervene)
    return model


def _count(model: nn.Module, targets: Sequence[str], size: int) -> int:
    return len(blocks(model)[1]) * size * (2 * _width(model) + 1)


LOREFT = Method(
    "LoReFT",
    "what every block gives is moved in r directions, at every token, not at chosen ones as published",
    "Wu et al. 2024, arXiv 2404.03592",
    (1e-3, 4e-3, 1e-2),
    _attach,
    _count,
)
