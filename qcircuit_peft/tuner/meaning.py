"""What of a stored configuration gives the numbers of an adapter their meaning, and what does not."""

import json
from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import Any

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import Tensor

from qcircuit_peft import files
from qcircuit_peft.text import shown

_CONFIGURATION = "_qcircuit_peft_configuration"  # an attribute of a state dict, which torch.save keeps, too

# PEFT's notes, and which modules are adapted, which the names of the parameters tell.
INCIDENTAL = {
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "library", "peft_version", "revision", "task_type"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
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
    setattr(known, _CONFIGURATION, json.dumps(data, default=sorted))
    return known


def configuration_of(state: Any) -> Any:
    """The configuration that a state dict knows; None if it knows none, as after it was rebuilt entry by entry."""
    text = getattr(state, _CONFIGURATION, None)
    if not isinstance(text, str):
        return None
    data = files.parse_json("a state dict", "configuration", text.encode())
    kind = data.get("peft_type") if isinstance(data, dict) else None
    if not is_kind(kind):
        return None
    config_cls: Any = PEFT_TYPE_TO_CONFIG_MAPPING[kind]  # type: ignore[index]
    return config_cls(**config_cls.check_kwargs(**data))


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
