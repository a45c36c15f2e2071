"""What a checkpoint brings in: read, checked and decoded before a model is changed."""

import copy
import functools
import inspect
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from peft import PeftConfig, set_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME, load_peft_weights
from safetensors import SafetensorError
from torch import Tensor, nn

from qcircuit_peft.text import printable, shortened, shown
from qcircuit_peft.tuner.encoding import Encoding, Loaded, check_finite
from qcircuit_peft.tuner.guard import whole_or_nothing
from qcircuit_peft.tuner.meaning import check_means, configuration_of, is_kind
from qcircuit_peft.tuner.names import GENERATORS, base_name, is_ours, own_names
from qcircuit_peft.tuner.pruning import DTYPES
from qcircuit_peft.tuner.saving import check_known, located

_GIVEN = "the configuration that is given"
_loading: ContextVar["Incoming | None"] = ContextVar("loading", default=None)


@dataclass(frozen=True)
class Incoming:
    """What a checkpoint of one kind of adapter brings in, by its own keys; looked at before a model is changed.

    ``own`` are the ``own_names`` of the model. Raises ValueError for a parameter of ours with a dtype or an entry that
    it cannot have.
    """

    where: str
    kind: str
    state: dict[str, Tensor]
    own: Collection[str] = ()

    def __post_init__(self) -> None:
        rows = self.state.items() if isinstance(self.state, Mapping) else [(None, None)]
        if not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in rows):
            raise ValueError(f"{self.where}: the weights of an adapter are a table of tensors, got {shown(self.state)}")
        for key, value in self.state.items():
            if not is_ours(key) or base_name(key) in self.own:
                continue
            allowed = DTYPES if key.startswith(GENERATORS) else (*DTYPES, torch.uint8)  # the last: encoded
            if value.dtype not in allowed:
                raise ValueError(
                    f"{self.where}: {printable(key)} holds {value.dtype}; allowed are {', '.join(map(str, allowed))}"
                )
            check_finite(f"{self.where}: {printable(key)}", value)
        object.__setattr__(self, "state", dict(self.state))

    @staticmethod
    def is_loading() -> bool:
        """Whether a checkpoint is now being loaded."""
        return _loading.get() is not None

    @staticmethod
    def loading(kind: str) -> "Incoming | None":
        """The checkpoint of this kind that is now being loaded; None if none is."""
        found = _loading.get()
        return found if found is not None and found.kind == kind else None

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Within it, this is being loaded: its tuner looks at it before it touches the model."""
        token = _loading.set(self)
        try:
            yield
        finally:
            _loading.reset(token)

    def check_shapes(self, wanted: Mapping[str, tuple[int, ...]], state: Mapping[str, Tensor] | None = None) -> None:
        """Raise ValueError, naming one, unless these are exactly the parameters of ours, by name in the base model.

        ``state`` may stand in the place of what the checkpoint has.
        """
        names = ((base_name(key), value) for key, value in (state or self.state).items() if is_ours(key))
        found = {name: tuple(value.shape) for name, value in names if name in wanted or name not in self.own}
        for name, shape in wanted.items():
            if name not in found:
                raise ValueError(f"the checkpoint lacks {name} of shape {shape}, which its circuit and this model need")
            if found[name] != shape:
                raise ValueError(
                    f"the checkpoint's {name} has shape {found[name]}, but its circuit and this model need {shape}"
                )
        if extra := sorted(set(found) - set(wanted)):
            raise ValueError(
                f"the checkpoint has {printable(shortened(extra[0]))}, but no adapted module of this model takes it"
            )

    def decode(self, encodings: Mapping[str, Encoding]) -> None:
        """Put the values of encoded parameters into the state; their encodings remember what was loaded.

        Raises ValueError, naming one and changing nothing, for bytes that are not as promised, or unless the parameters
        and shapes are exactly those of the encodings, by name in the base model.
        """
        bytes_of = {base_name(key): key for key, value in self.state.items() if value.dtype == torch.uint8}
        found = {
            name: Loaded(self.state[key], encodings[name].decoded(name, self.state[key]))
            for name, key in bytes_of.items()
            if name in encodings
        }
        state = self.state | {bytes_of[name]: loaded.values for name, loaded in found.items()}
        self.check_shapes({name: (encoding.part.size,) for name, encoding in encodings.items()}, state)
        self.state.update(state)
        for name, encoding in encodings.items():
            is_quantized = encoding.quantization is not None
            encoding.loaded = found.get(name) if is_quantized else None
            encoding.pruned |= name in found and not is_quantized


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
        unsafe = isinstance(error, UnpicklingError)  # of which torch says how to run it
        told = "it has more than tensors" if unsafe else printable(shortened(str(error).partition("\n")[0]))
        raise ValueError(f"{folder}: not a whole weights file ({told}); save or copy the checkpoint again") from None


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
        if (weights := located(source, hub)[1]) is not None:  # there is none that could be compared but their digest
            check_known(weights, config, _GIVEN)
        return
    if config is not None and hasattr(config, "modules_to_save"):  # PEFT adds the heads of a task as it loads
        config = copy.copy(config)
        config.modules_to_save = getattr(stored, "modules_to_save", None)
    for mine, whose in ((config, _GIVEN), (loaded, f"the adapter {name!r}")):
        if mine is not None:
            check_means(mine, stored, whose)


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
        elif config is not None and (known := configuration_of(state)) is not None:
            check_means(config, known, _GIVEN)
        model = given.get("model", given.get("self"))
        own = own_names(model) if isinstance(model, nn.Module) else ()
        incoming = Incoming(str(source or "adapter_state_dict"), str(getattr(found, "value", found)), state, own)
        takes_state = "adapter_state_dict" in signature.parameters
        if takes_state and any(value.dtype == torch.uint8 for value in state.values()):
            call.arguments["adapter_state_dict"] = incoming.state  # the tuner decodes it before it is loaded
        if not isinstance(model, nn.Module):
            with incoming.under_way():
                return load(*call.args, **call.kwargs)
        adapter = given.get("adapter_name") or "default"
        with incoming.under_way(), whole_or_nothing(model, adapter, state):
            told = load(*call.args, **call.kwargs)
            if takes_state:  # transformers looks for marks of ours in keys, which names of the user's may have, too
                set_peft_model_state_dict(model, {base_name(key): value for key, value in state.items()}, adapter)
            return told

    return loader
