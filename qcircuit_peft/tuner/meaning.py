"""What of a stored configuration gives the numbers of an adapter their meaning, and what does not."""

import json
from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import Any

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import Tensor, nn

from qcircuit_peft import files
from qcircuit_peft.text import shown

_CONFIGURATION = "_qcircuit_peft_configuration"  # an attribute of a state dict, which torch.save keeps, too
_HEADS = "modules_to_save"  # where PEFT keeps what is trained whole, a part of the names of its parameters
_NOTE = "qcircuit_peft"  # a key in what a state dict of torch's notes of a module beside its version

WHICH = {"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"}  # modules are adapted
# PEFT's notes, and which modules are adapted, which the names of the parameters tell.
INCIDENTAL = {
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "library", "peft_version", "revision", "task_type"),
    *WHICH,
}
# Fields that older configurations of circuits, and the digests in their weights, lack; None or False means the same.
_LATER = ("trainable_token_indices", "layer_replication", "ensure_weight_tying")


def is_kind(peft_type: Any) -> bool:
    """Whether a type of adapter is one of this package."""
    return isinstance(peft_type, str) and hasattr(PEFT_TYPE_TO_CONFIG_MAPPING.get(peft_type), "incidental")  # type: ignore[call-overload]


def of_ours(model: Any, adapter: str) -> Any:
    """The configuration that a model has for an adapter of this package; None for others."""
    config = (getattr(getattr(model, "_orig_mod", model), "peft_config", None) or {}).get(adapter)
    return config if config is not None and is_kind(config.peft_type) else None


def with_configuration(state: Mapping[str, Tensor], data: Mapping[str, Any]) -> OrderedDict[str, Tensor]:
    """A state dict of an adapter that knows the adapter's configuration, which is plain data."""
    known = OrderedDict(state)
    setattr(known, _CONFIGURATION, _text(data))
    return known


def _text(data: Mapping[str, Any]) -> str:
    return json.dumps(data, default=lambda value: sorted(value) if isinstance(value, set | frozenset) else str(value))


def configuration_of(state: Any) -> Any:
    """The configuration that a state dict knows; None if it knows none, as after it was rebuilt entry by entry."""
    return _configuration(getattr(state, _CONFIGURATION, None))


def _configuration(text: Any) -> Any:
    if not isinstance(text, str):
        return None
    data = files.parse_json("a state dict", "configuration", text.encode())
    kind = data.get("peft_type") if isinstance(data, dict) else None
    if not is_kind(kind):
        return None
    config_cls: Any = PEFT_TYPE_TO_CONFIG_MAPPING[kind]  # type: ignore[index]
    return config_cls(**config_cls.check_kwargs(**data))


def know_configurations(model: nn.Module) -> None:
    """Have a state dict of a whole model, which torch makes and loads, know the configurations of its adapters."""
    if _tell not in model._state_dict_hooks.values():
        model.register_state_dict_post_hook(_tell)
        model.register_load_state_dict_pre_hook(_look)


def forget_configurations(model: nn.Module) -> None:
    """Leave no hook of ours for state dicts."""
    for hooks in (model._state_dict_hooks, model._load_state_dict_pre_hooks):
        for key in [key for key, hook in hooks.items() if getattr(hook, "hook", hook) in (_tell, _look)]:
            del hooks[key]


def _tell(module: Any, state: Mapping[str, Any], prefix: str, notes: dict[str, Any]) -> None:
    configs = getattr(module, "peft_config", None) or {}
    if known := {name: _text(config.to_dict()) for name, config in configs.items() if is_kind(config.peft_type)}:
        notes[_NOTE] = known


def _look(module: Any, state: Mapping[str, Any], prefix: str, notes: Mapping[str, Any], *_: Any) -> None:
    known, keys = notes.get(_NOTE), [key.split(".") for key in state if key.startswith(prefix)]
    for name, text in known.items() if isinstance(known, Mapping) else ():
        mine, stored = of_ours(module, name), _configuration(text)
        brought = any(
            name in parts and _HEADS not in parts for parts in keys
        )  # state dicts are also cut down to a part
        if brought and mine is not None and stored is not None and mine.peft_type == stored.peft_type:
            for told in ("modules_to_save", "bias"):  # by the keys
                if hasattr(mine, told):
                    setattr(stored, told, getattr(mine, told))
            check_means(mine, stored, f"the adapter {shown(name)}")


def _named(kind: Any) -> str:
    """The name of a type of adapter, which PEFT has as an enum or as text."""
    return str(getattr(kind, "value", kind))


def check_means(mine: Any, stored: Any, whose: str) -> None:
    """Raise ValueError if the numbers of a ``stored`` configuration mean something else by another one."""
    if mine.peft_type != stored.peft_type:
        raise ValueError(
            f"the checkpoint holds an adapter of type {_named(stored.peft_type)}, but {whose} is of type "
            f"{_named(mine.peft_type)}; load it under another name"
        )
    mine.check_takes(stored, whose)


def meaning(data: Mapping[str, Any], incidental: Collection[str]) -> dict[str, Any]:
    """A configuration's fields that give numbers their meaning, as JSON would hold them; tables are opened.

    >>> meaning({"alpha": 8.0, "circuit": {"layers": 1, "seed": None}, "revision": None}, {*INCIDENTAL, "seed"})
    {'alpha': 8.0, 'circuit.layers': 1}
    """
    found = {}
    for key, value in data.items():
        if key in incidental or "dropout" in key:  # which has a name of its own in every method
            continue
        if key in _LATER and not value and data.get("peft_type") == "QCIRCUIT":
            continue
        if isinstance(value, Mapping) and key in ("circuit", "generator", "base"):
            found |= {f"{key}.{inner}": entry for inner, entry in meaning(value, incidental).items()}
        else:
            if key == "quantization" and isinstance(value, Mapping):  # how bits are stored, not which
                value = {name: entry for name, entry in value.items() if name != "packed"}
            if key.endswith("_pattern") and isinstance(value, Mapping) and list(value) != sorted(value):
                value = list(value.items())  # the first that matches counts; files of version 0.1 have them sorted
            if key == "modules_to_save" and value:
                value = set(value)  # PEFT adds the heads of a task each time that it takes a configuration
            unordered = isinstance(value, set)
            found[key] = json.loads(json.dumps(sorted(value) if unordered else value, default=str))
    return found


def check_same(adapter: str, mine: Mapping[str, Any], stored: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the first field that differs, unless two meanings are one."""
    for field in sorted({*mine, *stored}):
        ours, theirs = mine.get(field), stored.get(field)
        if ours != theirs:
            raise ValueError(
                f"the checkpoint was made with {field.removeprefix('circuit.')} = {shown(theirs)}, but {adapter} has "
                f"{shown(ours)}; load it under another name, or delete the adapter of this name first"
            )
