"""Quantized parameters of an adapter as its update uses them."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from qcircuit_peft.quantization import Quantization, quantized


class Grid(NamedTuple):
    """How a parameter is quantized, and the values that it was loaded with, if these came packed.

    A vector that is as it was loaded is used as it is. Quantized values span other ranges than those that they were
    made of, so quantizing once more would change them: a loaded adapter would not be the one that was saved.
    """

    scheme: Quantization
    loaded: Tensor | None = None

    def __call__(self, x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
        """The vectors as they are used; gradients pass straight through."""
        found = quantized(x, self.scheme)
        if self.loaded is None:
            return found
        same = (x == self.loaded.to(x)).all(-1, keepdim=True)
        return torch.where(same, x, found)


def stacked(grids: list[Grid | None]) -> Grid | None:
    """One grid for a stack of vectors of one scheme, from that of each; None if they are not quantized."""
    first, loaded = grids[0], [grid.loaded if grid else None for grid in grids]
    known = next((values for values in loaded if values is not None), None)
    if first is None or known is None:
        return first
    unknown = torch.full_like(known, torch.nan)  # equal to nothing
    return Grid(first.scheme, torch.stack([unknown if values is None else values for values in loaded]))
