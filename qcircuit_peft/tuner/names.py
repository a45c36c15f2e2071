"""How checkpoints name the parameters of an adapter, and how these are told from the parameters of a model itself."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import chain
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import Tensor, nn

from qcircuit_peft.text import shown

PREFIX = "qcircuit_"
GENERATORS = "base_model.qpa_generators."
_complete: ContextVar[bool] = ContextVar("complete", default=False)
_given: ContextVar[Mapping[str, Tensor] | None] = ContextVar("given", default=None)


def base_name(key: str) -> str:
    """The name of a parameter in the base model: transformers leaves out the prefix that PEFT writes."""
    return key.removeprefix("base_model.model.")


def is_ours(key: str) -> bool:
    """Whether a key of a checkpoint looks like a parameter of a circuit adapter or of a generator.

    A parameter of the model itself may look so, too: those are the ``own_names``.
    """
    return key.startswith(GENERATORS) or key.rpartition(".")[2].startswith(PREFIX)


def tuner_layers(model: nn.Module) -> dict[str, Any]:
    """The layers that tuners, PEFT's and ours, have put into a model, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}


def exactly(names: Iterable[str], model: nn.Module) -> list[str] | str:
    """Targets that are these modules and no others: PEFT takes a name in a list for the end of longer ones too.

    The last words of the names where they say enough, which is what programs that serve a LoRA look for.
    """
    wanted, inside = set(names), tuple(f"{name}." for name in tuner_layers(model))
    known = {base_name(name) for name, _ in model.named_modules() if not name.startswith(inside)}
    for ends in ({name.rpartition(".")[2] for name in wanted}, wanted):
        if {name for name in known if name in ends or name.endswith(tuple(f".{end}" for end in ends))} <= wanted:
            return sorted(ends)
    return "|".join(re.escape(name) for name in sorted(wanted))


def stripped(key: str) -> str:
    """The name of an entry of a state dict without steps into what layers of tuners wrap.

    >>> stripped("query.base_layer.bias")
    'query.bias'
    """
    return re.sub(r"\.base_layer(?=\.)", "", key)


def _named_without(model: nn.Module, keys: Iterable[str], but: str | None = None) -> Iterator[tuple[str, str]]:
    """Keys of a model's state dict, each after its name if layers of tuners were not there, except those of ``but``."""
    layers = [(path, layer) for path, layer in tuner_layers(model).items() if but not in _adapters_of(layer)]
    steps = [f"{path.replace('_fsdp_wrapped_module.', '')}." for path, _ in reversed(layers)]  # those inside first
    for key in keys:
        name = key
        for step in steps if ".base_layer." in key else ():
            if name.startswith(f"{step}base_layer."):
                name = step + name.removeprefix(f"{step}base_layer.")
        yield name, key


def _adapters_of(layer: Any) -> set[str]:
    return {adapter for name in layer.adapter_layer_names for adapter in getattr(layer, name)}


def alone(model: nn.Module, adapter: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of this model with the names that its entries have where there is no other adapter."""
    return {name: state[key] for name, key in _named_without(model, state, adapter)}


def placed(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a checkpoint has of the model itself, such as biases, by the names of this model's state dict.

    PEFT's names tell which layers adapters had put around a module, and another model has others there.
    """
    found = chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
    own = {name.replace("_fsdp_wrapped_module.", "") for name, _ in found}
    places = {base_name(name): key for name, key in _named_without(model, own)}
    return {key if key in own else places.get(stripped(base_name(key)), key): value for key, value in state.items()}


def trained_biases(model: nn.Module, config: Any, adapter: str) -> list[str]:
    """The model's own biases that an adapter trains, as this model's state dict names them; those of heads are not."""
    kind, layers = getattr(config, "bias", "none"), tuner_layers(model)
    heads = tuple(f"{path}." for path, module in model.named_modules() if isinstance(module, AuxiliaryTrainingWrapper))
    own = {f"{path}.base_layer.bias" for path, layer in layers.items() if adapter in _adapters_of(layer)}
    names = (name for name, _ in model.named_parameters() if kind == "all" or name in own)
    wanted = [name for name in names if name.endswith(".bias") and not name.startswith(heads)]
    return [] if kind == "none" else [name.replace("_fsdp_wrapped_module.", "") for name in wanted]


def own_names(model: nn.Module) -> set[str]:
    """How a checkpoint would name the parameters and buffers that a model has itself, adapted or not."""
    found = chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
    names = {base_name(name) for name, _ in found}
    for path, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            names |= {f"{base_name(path)}.{name}" for name in module.original_module.state_dict()}
    return names


@contextmanager
def complete() -> Iterator[None]:
    """Within it, ``entry`` refuses a state dict that lacks an entry of an adapter: a file is written of it."""
    token = _complete.set(True)
    try:
        yield
    finally:
        _complete.reset(token)


def entry(state: Mapping[str, Tensor], key: str) -> Tensor | None:
    """An adapter's entry of a state dict; None where there is none, as in processes that save nothing."""
    if key not in state and _complete.get():
        raise ValueError(f"the state dict lacks {key}, so that nobody could load what is saved; nothing was changed")
    return state.get(key)


@contextmanager
def following(state: Mapping[str, Tensor] | None) -> Iterator[None]:
    """Within it, ``unfiltered`` takes a model's entries from this state dict, in the place of the model's own."""
    token = _given.set(state)
    try:
        yield
    finally:
        _given.reset(token)


def unfiltered(model: nn.Module, state: dict[str, Tensor], adapters: Collection[str]) -> dict[str, Tensor]:
    """PEFT's choice of entries for one adapter, right also where it took the name of a module for one of ``adapters``.

    Entries that it dropped so are put back into ``state``, from which PEFT goes on to take heads: they are the model's
    own. Those that it kept of other adapters are left out of what is returned.
    """
    holders = [path for path, m in model.named_modules() if isinstance(m, BaseTunerLayer | AuxiliaryTrainingWrapper)]

    def of_another(key: str) -> bool:
        holder = max((path for path in holders if key.startswith(f"{path}.")), key=len, default=None)
        parts = [] if holder is None else key.removeprefix(f"{holder}.").split(".")
        return len(parts) > 1 and parts[0] not in ("base_layer", "original_module") and parts[1] in adapters

    found = chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
    rest = {key for key, _ in found if not of_another(key)}
    if any(f".{name}." in f"{key}." for key in rest for name in adapters):
        whole = _given.get()
        for key, value in (model.state_dict() if whole is None else whole).items():
            if key in rest:
                state.setdefault(key, value)
    return {key: value for key, value in state.items() if not of_another(key)}


def check_adapter_name(name: str) -> None:
    """Raise ValueError for a name that torch's containers, in which PEFT keeps adapters, or folders cannot hold."""
    taken = hasattr(nn.ModuleDict(), name) or hasattr(nn.ParameterDict(), name)
    if not name or "." in name or "\\" in name or name.startswith("/") or taken or name == "__base__":
        raise ValueError(
            "an adapter's name has no dot or backslash, no slash in front, and is no attribute of torch's ModuleDict "
            f"or ParameterDict, nor __base__, which stands for none, got {shown(name)}"
        )
