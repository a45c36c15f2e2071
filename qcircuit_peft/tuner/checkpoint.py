"""Checks of saved adapters that run before a model is changed."""

import copy
import functools
import inspect
import os
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from contextvars import ContextVar
from itertools import chain
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME, load_peft_weights
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from safetensors import SafetensorError
from torch import Tensor, nn

from qcircuit_peft.quantization import Quantization, pack, unpack
from qcircuit_peft.text import printable, shortened, shown
from qcircuit_peft.tuner.saving import check_signed, current, is_kind
from qcircuit_peft.tuner.sparse import filled

PREFIX = "qcircuit_"
GENERATORS = "base_model.qpa_generators."

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# The kind and the state of the checkpoint that is being loaded, for its tuner to look at before it touches the model.
_loading: ContextVar[tuple[str, dict[str, Tensor]] | None] = ContextVar("loading", default=None)


class Packed(NamedTuple):
    """A quantized or pruned parameter as a file holds it, and the values that this stands for."""

    data: Tensor
    values: Tensor


def bare(key: str) -> str:
    """The name of a parameter in the base model: transformers leaves out the prefix that PEFT writes."""
    return key.removeprefix("base_model.model.")


def is_ours(key: str) -> bool:
    """Whether a key of a checkpoint looks like a parameter of a circuit adapter or of a generator.

    A parameter of the model itself may look so, too: those are the ``own_names``.
    """
    return key.startswith(GENERATORS) or key.rpartition(".")[2].startswith(PREFIX)


def own_names(model: nn.Module) -> set[str]:
    """How a checkpoint would name the parameters and buffers that a model has itself, adapted or not."""
    found = chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
    names = {bare(name) for name, _ in found}
    for path, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            names |= {f"{bare(path)}.{name}" for name in module.original_module.state_dict()}
    return names


def unfiltered(model: nn.Module, state: dict[str, Tensor], adapters: Collection[str]) -> None:
    """Put entries back of which PEFT's choice of an adapter has taken the name of a module for one of ``adapters``."""
    holders = [path for path, m in model.named_modules() if isinstance(m, BaseTunerLayer | AuxiliaryTrainingWrapper)]

    def of_another(key: str) -> bool:
        holder = max((path for path in holders if key.startswith(f"{path}.")), key=len, default=None)
        parts = [] if holder is None else key.removeprefix(f"{holder}.").split(".")
        return len(parts) > 1 and parts[0] not in ("base_layer", "original_module") and parts[1] in adapters

    found = chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
    rest = {key for key, _ in found if not of_another(key)}
    if any(f".{name}." in f"{key}." for key in rest for name in adapters):
        state |= {key: value for key, value in model.state_dict().items() if key in rest}


def check_adapter_name(name: str) -> None:
    """Raise ValueError for a name that torch's containers, in which PEFT keeps adapters, cannot hold."""
    taken = (
        hasattr(nn.ModuleDict(), name) or hasattr(nn.ParameterDict(), name) or name == "__base__"
    )  # of mixed batches
    if not name or "." in name or taken:
        raise ValueError(
            "an adapter's name has no dot and is no attribute of torch's ModuleDict or ParameterDict, "
            f"got {shown(name)}"
        )


def check_finite(name: str, value: Tensor) -> None:
    """Raise ValueError if a tensor has NaN or infinite entries (meta tensors have none)."""
    if not value.is_meta and not torch.isfinite(value).all():
        raise ValueError(
            f"{name} has {int((~torch.isfinite(value)).sum())} entries that are NaN or infinite; all must be finite"
        )


def check_shapes(found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ValueError, naming a key, unless a checkpoint has exactly the wanted adapter parameters and shapes."""
    for key, shape in wanted.items():
        if key not in found:
            raise ValueError(f"the checkpoint lacks {key} of shape {shape}, which its circuit and this model need")
        if tuple(found[key]) != tuple(shape):
            raise ValueError(
                f"the checkpoint's {key} has shape {tuple(found[key])}, but its circuit and this model need {shape}"
            )
    extra = sorted(key for key in found if is_ours(key) and key not in wanted)
    if extra:
        raise ValueError(
            f"the checkpoint has {printable(shortened(extra[0]))}, but no adapted module of this model takes it"
        )


def state_loading(kind: str) -> dict[str, Tensor] | None:
    """The checkpoint of this kind that is now being loaded, by its own keys; None if none is."""
    found = _loading.get()
    return found[1] if found is not None and found[0] == kind else None


def check_values(where: str, state: Mapping[str, Tensor], own: Collection[str] = ()) -> dict[str, tuple[int, ...]]:
    """The shapes of our parameters in a state dict, those but of the ``own_names`` of a model.

    Raises ValueError for a dtype or an entry that they cannot have.
    """
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{where}: the weights of an adapter are a table of tensors, got {shown(state)}")
    ours = {key: value for key, value in state.items() if is_ours(key) and bare(key) not in own}
    for key, value in ours.items():
        allowed = _DTYPES if key.startswith(GENERATORS) else (*_DTYPES, torch.uint8)  # the last: packed bits
        if value.dtype not in allowed:
            raise ValueError(
                f"{where}: {printable(key)} holds {value.dtype}; allowed are {', '.join(map(str, allowed))}"
            )
        check_finite(f"{where}: {printable(key)}", value)
    return {bare(key): tuple(value.shape) for key, value in ours.items()}


def open_packed(
    state: dict[str, Tensor],
    wanted: Mapping[str, tuple[int, ...]],
    schemes: Mapping[str, Quantization],
    owner: Callable[[str], Tensor],
    own: Collection[str],
) -> dict[str, Packed]:
    """Replace packed parameters by their values in a state dict, and return them by the names of ``wanted``.

    ``schemes`` are those of the parameters that are quantized; others are packed if they are pruned, by the groups that
    ``owner`` gives. Raises ValueError, naming a key and changing nothing, for bits that are not as promised, or unless
    the parameters and shapes, but of the ``own_names`` of the model, are exactly those wanted.
    """
    opened: dict[str, tuple[str, Packed]] = {}
    for key, value in state.items():
        name = bare(key)
        if value.dtype == torch.uint8 and name in wanted:
            scheme = schemes.get(name)
            try:
                found = filled(value, owner(name)) if scheme is None else unpack(value, wanted[name][0], scheme)
            except ValueError as error:
                told = " holds bytes, but the configuration does not quantize it" if scheme is None else ""
                raise ValueError(f"the checkpoint's {name}{told}: {error}") from None
            opened[name] = key, Packed(value, found)
    values = state | {key: packed.values for key, packed in opened.values()}
    ours = {bare(key): tuple(value.shape) for key, value in values.items() if is_ours(key)}
    check_shapes({key: shape for key, shape in ours.items() if key in wanted or key not in own}, wanted)
    state.update(values)
    return {name: packed for name, (_, packed) in opened.items()}


def packed_form(name: str, value: Tensor, scheme: Quantization, loaded: Packed | None) -> Tensor:
    """The packed bits of a parameter; those that were loaded, if it has not changed since.

    Raises ValueError for an entry that is NaN or infinite.
    """
    if loaded is not None and torch.equal(value.detach().cpu().to(loaded.values.dtype), loaded.values):
        return loaded.data
    check_finite(name, value)
    return pack(value.detach(), scheme)


def _read(source: str, names: dict[str, str] | None, hub: dict[str, Any]) -> dict[str, Tensor]:
    """The weights in a folder or a Hub repository, as PEFT reads them; raises ValueError if a folder has none whole."""
    folder = Path(source, hub.get("subfolder") or "")
    files = [folder / name for name in (SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME)]
    if folder.is_dir() and not any(file.is_file() for file in files):
        raise ValueError(f"{folder} holds no adapter weights; {' or '.join(file.name for file in files)} is wanted")
    try:
        return load_peft_weights(source, device="cpu", key_mapping=names, **hub)
    except (SafetensorError, UnpicklingError, RuntimeError, OSError, AttributeError, TypeError) as error:
        if not folder.is_dir():
            raise
        told = str(error).partition("\n")[0]
        raise ValueError(f"{folder}: not a whole weights file ({told}); save or copy the checkpoint again") from None


def _named(kind: Any) -> str:
    """The name of a type of adapter, which PEFT has as an enum or as text."""
    return str(getattr(kind, "value", kind))


def _check_meaning(source: str, given: dict[str, Any], config: Any, hub: dict[str, Any]) -> None:
    """Raise ValueError if what is stored means something else by the configuration that it would be loaded with."""
    name = given.get("adapter_name") or "default"
    loaded = (getattr(given.get("self"), "peft_config", None) or {}).get(name)
    if loaded is None and config is None:
        return
    try:
        stored = PEFT_TYPE_TO_CONFIG_MAPPING[PeftConfig._get_peft_type(source, **hub)].from_pretrained(source, **hub)
    except (ValueError, KeyError, TypeError, OSError):
        if config is None:
            raise
        return  # there is none that could be compared
    if config is not None and hasattr(config, "modules_to_save"):  # PEFT adds the heads of a task as it loads
        config = copy.copy(config)
        config.modules_to_save = getattr(stored, "modules_to_save", None)
    for mine, whose in ((config, "the configuration that is given"), (loaded, f"the adapter {name!r}")):
        if mine is None:
            continue
        if mine.peft_type != stored.peft_type:
            raise ValueError(
                f"the checkpoint holds an adapter of type {_named(stored.peft_type)}, but {whose} is of type "
                f"{_named(mine.peft_type)}; load it under another name"
            )
        mine.check_takes(stored, whose)


def where_it_is(load: Callable[..., Any]) -> Callable[..., Any]:
    """A function of PEFT or transformers that reads a checkpoint, and amid a save the whole one (``current``)."""
    signature = inspect.signature(load)
    names = ("model_id", "peft_model_id", "pretrained_model_name_or_path")
    source = next(name for name in names if name in signature.parameters)

    @functools.wraps(load)
    def loader(*args: Any, **kwargs: Any) -> Any:
        call = signature.bind(*args, **kwargs)
        given = call.arguments
        tables = [name for name in ("kwargs", "hf_hub_download_kwargs", "adapter_kwargs") if given.get(name)]
        holders = [table for table in (given, *(given[name] for name in tables)) if table.get("subfolder")]
        place, inside = given.get(source), holders[0]["subfolder"] if holders else ""
        if place is not None and (found := current(Path(place, inside))) != Path(place, inside):
            given[source] = str(found)
            given.pop("subfolder", None)
            for name in tables:
                given[name] = {key: value for key, value in given[name].items() if key != "subfolder"}
        return load(*call.args, **call.kwargs)

    return loader


def look_first(load: Callable[..., Any]) -> Callable[..., Any]:
    """A loading function of PEFT or transformers that reads and checks a checkpoint of ours before it goes to work.

    It raises ValueError for a weights file that is damaged or not finite, and if its numbers would get another
    meaning by a configuration that is given, or that an adapter of this name has; whether names and shapes fit is
    asked by the tuner, which knows the model but not the file. What is not ours is loaded as ever.
    """
    signature = inspect.signature(load)

    @functools.wraps(load)
    def loader(*args: Any, **kwargs: Any) -> Any:
        call = signature.bind(*args, **kwargs)
        given = dict(call.arguments)
        options = getattr(given.get("load_config"), "download_kwargs", None) or {}
        given = {**options, **given.pop("kwargs", {}), **(given.pop("adapter_kwargs", None) or {}), **given}
        source = given.get("model_id", given.get("peft_model_id"))
        config, state = given.get("config", given.get("peft_config")), given.get("adapter_state_dict")
        hub = PeftConfig._split_kwargs(given)[0]
        found = getattr(config, "peft_type", None)
        if source is not None and config is None:
            with suppress(ValueError, KeyError, TypeError, OSError):  # the loading function says what is wrong
                found = PeftConfig._get_peft_type(os.fspath(source), **hub)
        if not is_kind(found) or (source is None and state is None):
            return load(*args, **kwargs)
        if source is not None:
            _check_meaning(os.fspath(source), given, config, hub)
        if state is None:
            names = given.get("key_mapping") or getattr(given.get("model"), "_checkpoint_conversion_mapping", None)
            state = _read(str(source), names, hub)
        if source is not None:
            check_signed(Path(source, hub.get("subfolder") or ""))
        model = given.get("model", given.get("self"))
        own = own_names(model) if isinstance(model, nn.Module) else ()
        check_values(str(source or "adapter_state_dict"), state, own)
        state = dict(state)
        if "adapter_state_dict" in signature.parameters and any(value.dtype == torch.uint8 for value in state.values()):
            call.arguments["adapter_state_dict"] = state  # the tuner opens what is packed in it before it is loaded
        token = _loading.set((str(getattr(found, "value", found)), state))
        try:
            return load(*call.args, **call.kwargs)
        finally:
            _loading.reset(token)

    return loader
