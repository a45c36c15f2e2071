"""How a parameter of an adapter is encoded: with few bits, or without what is pruned; in a file, and as it is used."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from qcircuit_peft.factorizations.parts import Kept, Part, owner
from qcircuit_peft.quantization import Quantization, pack, quantized, unpack
from qcircuit_peft.tuner import pruning


class Loaded(NamedTuple):
    """The bytes that a file held of a quantized parameter, and the values that they stand for."""

    data: Tensor
    values: Tensor


@dataclass
class Encoding:
    """How one parameter is encoded; as it is, if nothing is said.

    part: what it is a parameter of. quantization: the bits it is used with, and stored with if that is ``packed``.
    pruned: whether files leave out its groups that are 0. loaded: what it was loaded from.
    """

    part: Part
    quantization: Quantization | None = None
    pruned: bool = False
    loaded: Loaded | None = None

    def used(self, x: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        """The parameter as an update uses it; gradients pass straight through."""
        rounding = rounding_of([self])
        return x if rounding is None else rounding(x[None])[0]

    def stored(self, name: str, value: Tensor) -> Tensor:
        """The parameter as a file holds it; raises ValueError, with its name, for an entry that has no few bits."""
        if value.is_meta:
            return value
        if self.quantization is None or not self.quantization.packed:
            return pruning.pack(value, owner(self.part)) if self.pruned else value
        loaded = self.loaded
        if loaded is not None and torch.equal(value.detach().cpu(), loaded.values.to(value.dtype)):
            return loaded.data
        check_finite(name, value)
        return pack(value.detach(), self.quantization)

    def decoded(self, name: str, data: Tensor) -> Tensor:
        """The values of the bytes in a file; raises ValueError, with the name, for bytes that are not as promised."""
        try:
            if self.quantization is None:
                return pruning.unpack(data, owner(self.part))
            return unpack(data, self.part.size, self.quantization)
        except ValueError as error:
            told = " holds bytes, but the configuration does not quantize it" if self.quantization is None else ""
            raise ValueError(f"the checkpoint's {name}{told}: {error}") from None


def encodings(parts: Mapping[str, Part], quantization: Quantization | None) -> dict[str, Encoding]:
    """How a configuration has the parameters of these parts; raises ValueError for bits of a part that is not there.

    What is kept has full precision unless it is named.
    """
    if quantization is None:
        return {name: Encoding(part) for name, part in parts.items()}
    quantization.check_parts(parts)
    full = {name for name, part in parts.items() if isinstance(part, Kept) and name not in quantization.parts}
    return {name: Encoding(part, None if name in full else quantization.of(name)) for name, part in parts.items()}


def rounding_of(encodings: Sequence[Encoding]) -> Callable[[Tensor], Tensor] | None:
    """What makes the values in use of a stack of vectors that have the same bits; None if they are used as they are."""
    quantization, loaded = encodings[0].quantization, [own.loaded and own.loaded.values for own in encodings]
    if quantization is None:
        return None
    known = next((values for values in loaded if values is not None), None)
    if known is None:
        return partial(quantized, quantization=quantization)
    unknown = torch.full_like(known, torch.nan)  # equal to nothing
    stack = torch.stack([unknown if values is None else values for values in loaded])
    return partial(_rounded, quantization=quantization, loaded=stack)


def _rounded(x: Float[Tensor, "f n"], quantization: Quantization, loaded: Tensor) -> Float[Tensor, "f n"]:
    """The values in use; a vector that is as it was loaded is used as it is.

    Quantized values span other ranges than those that they were made of, so quantizing once more would change them: a
    loaded adapter would not be the one that was saved.
    """
    halves = [loaded.to(dtype).to(x) for dtype in (torch.bfloat16, torch.float16)]  # of a parameter that is one
    same = torch.stack([(x == values).all(-1, keepdim=True) for values in (loaded.to(x), *halves)]).any(0)
    straight = x + (loaded.to(x) - x).detach()
    return torch.where(same, straight, quantized(x, quantization))


def check_finite(name: str, value: Tensor) -> None:
    """Raise ValueError if a tensor has NaN or infinite entries (meta tensors have none)."""
    if not value.is_meta and not torch.isfinite(value).all():
        raise ValueError(
            f"{name} has {int((~torch.isfinite(value)).sum())} entries that are NaN or infinite; all must be finite"
        )
