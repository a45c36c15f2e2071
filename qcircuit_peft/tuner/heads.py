"""Heads, and other modules that are trained whole: how they are unloaded, and that checkpoints run the same ones."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

from peft.tuners.tuners_utils import (
    BaseTunerLayer,
    _ExcludedModule,
    check_target_module_exists,
    onload_layer,
)
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from qcircuit_peft.recomputation import InUse, check_unchanged, may_run_again
from qcircuit_peft.text import shown
from qcircuit_peft.tuner.meaning import forget_configurations
from qcircuit_peft.tuner.names import tuner_layers

_HIDDEN = "base_layer of the model"


def is_target(peft_config: Any, key: str) -> Any:
    """PEFT's answer, which is no for what is trained whole, and for modules inside: it takes them by ends of names."""
    heads = tuple(getattr(peft_config, "modules_to_save", None) or ())
    words = key.split(".")
    places = (".".join(words[:n]) for n in range(1, len(words) + 1))
    whole = any(place.endswith(heads) for place in places)
    return _ExcludedModule() if whole else check_target_module_exists(peft_config, key)


def unload_heads(model: nn.Module, **how: Any) -> None:
    """Put what was trained whole where the model had it; its state dicts know of no adapter any more.

    PEFT does so when it unloads a model, and asks each for a weight; a head of several layers has none. ``how`` is what
    a tuner is told of merging.
    """
    forget_configurations(model)
    adapted = tuple(f"{name}." for name in tuner_layers(model))
    for name, module in list(model.named_modules()):
        if isinstance(module, AuxiliaryTrainingWrapper) and not name.startswith(adapted):
            parent, _, last = name.rpartition(".")
            with onload_layer(module), passed_by(module):
                setattr(model.get_submodule(parent), last, module.unload_and_optionally_merge_module(**how))


def check_heads_apart(model: nn.Module) -> None:
    """Raise ValueError if a module that is trained whole is inside another one: PEFT could not save what it trains."""
    whole = [path for path, module in model.named_modules() if isinstance(module, AuxiliaryTrainingWrapper)]
    for outer in whole:
        if inner := next((path for path in whole if path.startswith(f"{outer}.")), None):
            names = [path.rpartition(".")[2] for path in (inner, outer)]
            raise ValueError(
                f"{names[0]!r} is inside {names[1]!r}, and only one of both is trained whole in a model; name one of "
                "them in modules_to_save"
            )


@contextmanager
def passed_by(model: nn.Module) -> Iterator[None]:
    """Within it, PEFT unloads no module of the user's that has a ``base_layer``, by which it knows a tuner's."""
    ours = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    holders = (m for m in model.modules() if isinstance(m, ours))  # of adapters, which may have the name, too
    held = {id(m) for holder in holders for m in holder._modules.values() if m not in _wrapped(holder)}
    named = [m for m in model.modules() if not isinstance(m, ours) and "base_layer" in m._modules and id(m) not in held]
    for module in named:
        _rename(module, "base_layer", _HIDDEN)
    try:
        yield
    finally:
        for module in named:
            _rename(module, _HIDDEN, "base_layer")


def _wrapped(holder: nn.Module) -> list[nn.Module | None]:
    """What a tuner's layer or a head has been put around."""
    return [holder._modules.get(name) for name in ("base_layer", "original_module")]


def _rename(module: nn.Module, old: str, new: str) -> None:
    children = {new if name == old else name: child for name, child in module._modules.items()}
    module._modules.clear()
    module._modules.update(children)


def in_use(
    module: Any, adapters: Any, names: Sequence[str] | None = None, scales: Mapping[str, float] = MappingProxyType({})
) -> InUse:
    """Which of its ``adapters``, by name, a layer or a head works with, and how much it scales them.

    ``names`` are those that were given for every input.
    """
    if module.disable_adapters:
        return InUse()
    chosen = [name for name in names or module.merged_adapters or module.active_adapters if name in adapters]
    strengths = [scales.get(name, 1.0) for name in chosen]
    scaled = f"scaled by {', '.join(map(shown, strengths))}" if any(value != 1 for value in strengths) else ""
    if names is not None:
        how = " ".join(filter(None, ("for every input", scaled)))
        return InUse(tuple(names), how, tuple(adapters[name] for name in chosen))
    how = "merged" if module.merged_adapters else scaled
    return InUse(tuple(chosen), how if chosen else "", tuple(adapters[name] for name in chosen))


def head_in_use(head: Any, names: Sequence[str] | None = None) -> InUse:
    """``in_use`` of a head, or of another module that is trained whole."""
    return in_use(head, getattr(head, "modules_to_save", None) or dict.fromkeys(head._adapters), names)


def _look(head: Any, args: Any, kwargs: dict[str, Any]) -> None:
    if may_run_again():
        check_unchanged(head, head_in_use(head, kwargs.get("adapter_names")))


def watch_heads(model: nn.Module) -> None:
    """Have every head look whether it runs again with the adapter that it ran with before."""
    for module in model.modules():
        if isinstance(module, AuxiliaryTrainingWrapper) and _look not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_look, with_kwargs=True)
