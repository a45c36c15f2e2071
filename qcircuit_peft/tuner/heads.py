"""Heads, and other modules that are trained whole, when a model is unloaded."""

from typing import Any

from peft.tuners.tuners_utils import onload_layer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from qcircuit_peft.tuner.names import tuner_layers


def unload_heads(model: nn.Module, **how: Any) -> None:
    """Put what was trained whole where the model had it.

    PEFT does so when it unloads a model, and asks each for a weight; a head of several layers has none. ``how`` is what
    a tuner is told of merging.
    """
    adapted = tuple(f"{name}." for name in tuner_layers(model))
    for name, module in list(model.named_modules()):
        if isinstance(module, AuxiliaryTrainingWrapper) and not name.startswith(adapted):
            parent, _, last = name.rpartition(".")
            with onload_layer(module):
                setattr(model.get_submodule(parent), last, module.unload_and_optionally_merge_module(**how))
