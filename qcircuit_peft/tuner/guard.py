"""What surrounds PEFT at work on a model: it is left as it was if the work fails, or is interrupted by Ctrl-C."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, onload_layer
from torch import nn
from transformers import PreTrainedConfig

from qcircuit_peft.tuner.heads import check_heads_apart, passed_by, unload_heads
from qcircuit_peft.tuner.meaning import know_configurations
from qcircuit_peft.tuner.names import base_name, stripped

_CONTAINERS = (dict, list, set)


def _containers(module: nn.Module) -> Iterator[Any]:
    """What a module holds in containers of Python's, the settings of transformers among them."""
    for held in vars(module).values():
        if isinstance(held, PreTrainedConfig):
            yield vars(held)
        elif isinstance(held, _CONTAINERS):
            yield held


def _copied(container: Any) -> list[Any]:
    return list(container.items() if isinstance(container, dict) else container)


def _refill(container: Any, contents: list[Any]) -> None:
    if isinstance(container, dict):  # as it is by itself, whatever its kind does of writing
        dict.clear(container)
        dict.update(container, contents)
    else:
        container.clear()
        container.extend(contents) if isinstance(container, list) else container.update(contents)


@contextmanager
def whole_or_nothing(model: nn.Module, adapter: str | None = None, keys: Collection[str] = ()) -> Iterator[None]:
    """A model is as it was if what is done within does not come to its end.

    That is: its modules, all their attributes, what containers among these hold, and what is trainable; and the values
    of an ``adapter``, and of the model's own that checkpoints name by these ``keys``, such as biases.
    """
    own = {stripped(base_name(key)) for key in keys}  # adapters are put around modules within
    before = [
        (
            module,
            dict(vars(module)),
            [(held, _copied(held)) for held in _containers(module)],
            [(held, dict(held.generated)) for held in vars(module).values() if hasattr(type(held), "generated")],
            [(own, dict(vars(own))) for parts in _encodings(module).values() for own in parts.values()],
        )
        for module in _held_by(model)
    ]
    named = chain(model.named_parameters(), model.named_buffers())
    tensors = [(name, tensor, tensor.requires_grad) for name, tensor in named]
    values = [
        (tensor, tensor.detach().clone())
        for name, tensor, _ in tensors
        if _is_of(name, adapter) or stripped(base_name(name)) in own
    ]
    try:
        yield
    except BaseException:
        for module, attributes, containers, generated, encodings in before:
            vars(module).clear()
            vars(module).update(attributes)
            for held, contents in containers:
                _refill(held, contents)
            for held, contents in generated:
                held.generated = contents
            for encoding, was in encodings:
                vars(encoding).update(was)
        for _, tensor, wanted in tensors:
            tensor.requires_grad_(wanted)
        with torch.no_grad():
            for tensor, value in values:
                tensor.copy_(value)
        raise


@contextmanager
def merging(model: nn.Module) -> Iterator[None]:
    """``whole_or_nothing`` for weights, too: what layers had merged is merged, and no more, up to rounding."""
    layers = [(m, list(m.merged_adapters)) for m in model.modules() if isinstance(m, BaseTunerLayer)]
    with whole_or_nothing(model):
        try:
            yield
        except BaseException:
            for layer, names in layers:
                if list(layer.merged_adapters) != names:
                    _merge_again(layer, names)
            raise


@contextmanager
def unloading(model: nn.Module, **how: Any) -> Iterator[None]:
    """``merging`` for a tuner that unloads a model: heads have been, and what the user calls as PEFT does is not.

    ``how`` is what the tuner is told of merging. Until it has come to its end, base weights that are replaced, as
    quantized ones and those before a rotation are, are held beside the merged ones.
    """
    with merging(model):
        unload_heads(model, **how)
        with passed_by(model):
            yield


def _merge_again(layer: Any, names: list[str]) -> None:
    with onload_layer(layer):
        if layer.merged_adapters:
            layer.unmerge()
        if names:
            layer.merge(adapter_names=names)


def _encodings(module: nn.Module) -> dict[str, Any]:
    """Those that a layer of a circuit adapter has; the user's modules may have something else of the name."""
    return vars(module).get("encodings", {}) if isinstance(module, BaseTunerLayer) else {}


def _held_by(model: nn.Module) -> list[nn.Module]:
    """The modules of a model, with those that they hold beside their submodules."""
    found: dict[nn.Module, None] = {}
    todo = [model]
    while todo:
        for module in todo.pop().modules():
            if module not in found:
                found[module] = None
                todo += [held for held in vars(module).values() if isinstance(held, nn.Module)]
    return list(found)


@contextmanager
def injecting(tuner: Any, adapter: str) -> Iterator[None]:
    """``whole_or_nothing`` for a tuner that puts an adapter into its model; if it does not, it forgets the name."""
    try:
        with whole_or_nothing(tuner):
            yield
            check_heads_apart(tuner)
            for module in (tuner, tuner.model):  # transformers keeps no tuner
                know_configurations(module)
    except BaseException:
        tuner.peft_config.pop(adapter, None)
        raise


def _is_of(name: str, adapter: str | None) -> bool:
    """Whether a tensor of this name is an adapter's."""
    return adapter is not None and adapter in name.split(".")
