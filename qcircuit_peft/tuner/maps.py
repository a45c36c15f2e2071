"""The modules that circuits adapt, each as a linear map: how its weight is a matrix, and what an update gives.

An entry of ``LINEAR_MAPS`` is all that has to be known of a kind of module.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from operator import attrgetter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.pytorch_utils import Conv1D

from qcircuit_peft.factorizations.parts import Base, Factorization
from qcircuit_peft.tuner.pruning import DTYPES


@dataclass(frozen=True)
class LinearMap:
    """A kind of module whose weight is a matrix (out, in).

    widths: the module -> (in, out). matrix: a weight -> the matrix, a view. weight: the module and a matrix -> the
    weight. update: the module, x, a factorization, what it works on, and the module without its bias -> the update
    applied to x. lora: the module, LoRA's A, (r, in), and B, (out, r) -> the entries of LoRA's state dict. dense:
    whether x is multiplied by the matrix as it is; where not, an update has to have LoRA's form. No function is
    a lambda, so that a layer can be pickled.
    """

    widths: Callable[[Any], tuple[int, int]]
    matrix: Callable[[Tensor], Tensor]
    weight: Callable[[Any, Tensor], Tensor]
    update: Callable[[Any, Tensor, Factorization, Mapping[str, Tensor], Base], Tensor]
    lora: Callable[[Any, Tensor, Tensor], dict[str, Tensor]]
    dense: bool = False


def _multiplied(module: Any, x: Tensor, factors: Factorization, made: Mapping[str, Tensor], base: Base) -> Tensor:
    return factors.forward(x, made, base)


def _looked_up(module: Any, x: Tensor, factors: Factorization, made: Mapping[str, Tensor], base: Base) -> Tensor:
    """A row of A^T for every index, times B^T; scaled where the module scales what it looks up."""
    a, b = factors.lora(made)
    found = F.linear(F.embedding(x, a.mT, module.padding_idx), b)
    scale = getattr(module, "embed_scale", None)
    return found if scale is None else found * scale


_CONVOLUTIONS = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}


def _convolved(module: Any, x: Tensor, factors: Factorization, made: Mapping[str, Tensor], base: Base) -> Tensor:
    """A convolution with A, as the module's own, then one with B, of width 1; each group of channels by itself."""
    a, b = factors.lora(made)
    once = a.reshape(-1, *module.weight.shape[1:])
    narrow = module._conv_forward(x, torch.cat([once] * module.groups), None)
    wide = next(function for kind, function in _CONVOLUTIONS.items() if isinstance(module, kind))
    return wide(narrow, b.reshape(*b.shape, *[1] * len(module.kernel_size)), groups=module.groups)


def _plain_lora(module: Any, a: Tensor, b: Tensor, inside: str = "") -> dict[str, Tensor]:
    return {f"{inside}lora_A.weight": a, f"{inside}lora_B.weight": b}


def _conv_lora(module: Any, a: Tensor, b: Tensor) -> dict[str, Tensor]:
    """Raises ValueError for a convolution that PEFT's LoRA does not follow."""
    if {*module.dilation, module.groups} != {1} or module.padding_mode != "zeros":
        raise ValueError(
            "a plain LoRA of a convolution has no dilation, no groups and padding by zeros, but a module here has "
            f"dilation={module.dilation}, groups={module.groups} and padding_mode={module.padding_mode!r}; merge it"
        )
    wide = b.reshape(*b.shape, *[1] * len(module.kernel_size))
    return {"lora_A.weight": a.reshape(-1, *module.weight.shape[1:]), "lora_B.weight": wide}


def _embedding_lora(module: Any, a: Tensor, b: Tensor) -> dict[str, Tensor]:
    return {"lora_embedding_A": a, "lora_embedding_B": b}


def _linear_widths(module: Any) -> tuple[int, int]:
    return module.in_features, module.out_features


def _conv1d_widths(module: Any) -> tuple[int, int]:
    return module.nx, module.nf


def _embedding_widths(module: Any) -> tuple[int, int]:
    return module.num_embeddings, module.embedding_dim


def _conv_widths(module: Any) -> tuple[int, int]:
    return prod(module.weight.shape[1:]), module.weight.shape[0]


def _as_it_is(weight: Tensor) -> Tensor:
    return weight


def _turned(weight: Tensor) -> Tensor:
    return weight.mT


def _flattened(weight: Tensor) -> Tensor:
    return weight.flatten(1)


def _from_matrix(module: Any, matrix: Tensor) -> Tensor:
    return matrix


def _from_turned(module: Any, matrix: Tensor) -> Tensor:
    return matrix.mT


def _from_flattened(module: Any, matrix: Tensor) -> Tensor:
    return matrix.reshape(module.weight.shape)


LINEAR = LinearMap(_linear_widths, _as_it_is, _from_matrix, _multiplied, _plain_lora, dense=True)
_EMBEDDING = LinearMap(_embedding_widths, _turned, _from_turned, _looked_up, _embedding_lora)
_CONVOLUTION = LinearMap(_conv_widths, _flattened, _from_flattened, _convolved, _conv_lora)
LINEAR_MAPS: dict[type[nn.Module], LinearMap] = {
    nn.Linear: LINEAR,
    Conv1D: LinearMap(_conv1d_widths, _turned, _from_turned, _multiplied, _plain_lora, dense=True),
    nn.Embedding: _EMBEDDING,
    **dict.fromkeys(_CONVOLUTIONS, _CONVOLUTION),
}


def _fused_lora(module: Any, a: Tensor, b: Tensor) -> dict[str, Tensor]:
    """Those of all experts, (experts, r, in) and (experts, out, r), in the two matrices in which PEFT keeps them."""
    return {"lora_A.weight": a.flatten(0, 1), "lora_B.weight": b.permute(1, 2, 0).flatten(1)}


def is_turned(module: nn.Module, name: str) -> bool:
    """Whether a parameter is a stack of matrices (in, out): transformers says so of a module, as PEFT reads it."""
    return attrgetter(name)(module).ndim == 3 and bool(getattr(module, "is_transposed", False))


def _parameter_widths(module: Any, name: str) -> tuple[int, int]:
    first, second = attrgetter(name)(module).shape[-2:]
    return (first, second) if is_turned(module, name) else (second, first)


def parameter_map(module: nn.Module, name: str) -> LinearMap:
    """What is known of a parameter of a module: a matrix (out, in), or a stack of those of fused experts.

    The name of one that is a child's has a dot. Raises ValueError for a parameter of other axes, or of numbers that are
    no plain floats.
    """
    parameter = attrgetter(name)(module)
    if parameter.ndim not in (2, 3) or parameter.dtype not in DTYPES:
        raise ValueError(
            f"a parameter that circuits adapt is a matrix or a stack of matrices of {', '.join(map(str, DTYPES))}, but "
            f"{name!r} of a {type(module).__name__} has shape {tuple(parameter.shape)} and {parameter.dtype}"
        )
    fused, turned = parameter.ndim == 3, is_turned(module, name)
    return LinearMap(
        partial(_parameter_widths, name=name),
        _turned if turned else _as_it_is,
        _from_turned if turned else _from_matrix,
        _multiplied,
        _fused_lora if fused else partial(_plain_lora, inside=name[: name.rfind(".") + 1]),
    )


def _multiplies(module: Any, kind: type[Any]) -> bool:
    """Whether a linear layer gives, of vectors (in,), as many vectors (out,), and not a router's choice of experts.

    One with a forward of its own is asked, without arithmetic; one that cannot be asked so is taken to.
    """
    if type(module).forward is kind.forward:
        return True
    into, out = LINEAR_MAPS[kind].widths(module)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            x = torch.empty(2, into, dtype=module.weight.dtype, device=module.weight.device)
            found = type(module).forward(copy.copy(module), x)
            return isinstance(found, Tensor) and found.shape == (2, out)
    except Exception:  # whatever code it is
        return True


def map_of(module: nn.Module, quantized: bool = False) -> LinearMap | None:
    """The kind of a module, LINEAR for one of a quantized weight; None for one that circuits do not adapt.

    Embeddings and convolutions that do something else with their weight than torch's own are not adapted, and linear
    layers that do something else with their outputs.
    """
    kind = next((kind for kind in LINEAR_MAPS if isinstance(module, kind)), None)
    if kind is None:
        return LINEAR if quantized else None
    if LINEAR_MAPS[kind].dense:
        return LINEAR_MAPS[kind] if quantized or _multiplies(module, kind) else None
    own: Any = module
    plain = type(own).forward is kind.forward or hasattr(own, "embed_scale")
    plain = plain and getattr(own, "max_norm", None) is None
    return LINEAR_MAPS[kind] if plain and own.weight.is_floating_point() else None


def is_linear(module: nn.Module, quantized: bool = False) -> bool:
    """Whether a module multiplies its inputs by its weight, as ``map_of`` knows it."""
    row = map_of(module, quantized)
    return row is not None and row.dense


def features(module: nn.Module) -> tuple[int, int]:
    """``(in, out)`` of a module; what is of no kind above is taken for a quantized linear layer."""
    return (map_of(module) or LINEAR).widths(module)
