"""Makes PEFT know circuit adapters. PEFT has no plug-in interface, so this is the one place that reaches into it."""

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from types import FunctionType
from typing import Any

from peft import (
    PeftConfig,
    PeftModel,
    PeftModelForQuestionAnswering,
    PeftModelForTokenClassification,
    helpers,
    mixed_model,
)
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners import tuners_utils
from peft.tuners.lora import LoraLayer
from peft.tuners.mixed import COMPATIBLE_TUNER_TYPES
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import PeftType, register_peft_method, save_and_load
from peft.utils.other import AuxiliaryTrainingWrapper
from transformers import PreTrainedModel
from transformers.integrations import PeftAdapterMixin

from qcircuit_peft.checks import number
from qcircuit_peft.text import did_you_mean, printable, shortened, shown
from qcircuit_peft.tuner.guard import whole_or_nothing
from qcircuit_peft.tuner.incoming import Incoming, look_first
from qcircuit_peft.tuner.meaning import check_means, configuration_of, is_kind, of_ours, with_configuration
from qcircuit_peft.tuner.names import following, placed, trained_biases
from qcircuit_peft.tuner.saving import (
    check_known,
    check_signed,
    located,
    ours_in,
    uploaded_when_saved,
    where_it_is,
    whole_or_not,
    with_digest,
)


def extend_peft_type(name: str) -> None:
    """Add a name to PEFT's closed enumeration of adapter types."""
    if name not in PeftType.__members__:
        member: Any = str.__new__(PeftType, name)
        member._name_, member._value_ = name, name
        PeftType._member_names_.append(name)
        PeftType._member_map_[name] = member
        PeftType._value2member_map_[name] = member
        type.__setattr__(PeftType, name, member)


def register(name: str, config_cls: Any, model_cls: type) -> None:
    """Register a tuner with PEFT under a name in small letters, once in a process.

    A configuration's ``incidental`` fields are those that do not change what the numbers of an adapter mean.
    """
    kind = name.upper()
    if kind in PeftType.__members__:
        raise ImportError("qcircuit_peft has been imported before in this process, and PEFT holds its classes; restart")
    extend_peft_type(kind)
    register_peft_method(name=name, config_cls=config_cls, model_cls=model_cls)


def _template(*args: Any, **kwargs: Any) -> Any:
    return REPLACED(*args, **kwargs)  # type: ignore[name-defined]


def replace_in_place(function: Any, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Have a function do what ``make`` makes of it, wherever it has been imported to: it stays the same object."""
    function = inspect.unwrap(function)  # within its decorators
    stock = FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__)
    stock.__kwdefaults__ = function.__kwdefaults__
    name = f"_qcircuit_peft_{function.__name__}"
    while name in function.__globals__:  # replaced before
        name += "_"
    function.__globals__[name] = make(functools.wraps(function)(stock))
    function.__signature__ = inspect.signature(function)
    function.__code__ = inspect.unwrap(_template).__code__.replace(co_names=(name,), co_name=function.__name__)
    function.__defaults__ = function.__kwdefaults__ = None


def _passing_none_by(delete: Callable[..., Any]) -> Callable[..., Any]:
    """PEFT's ``delete_adapter``, which passes by modules whose names have the tuner's prefix in them, the user's too.

    Inside of adapted layers there are no further ones.
    """

    @functools.wraps(delete)
    def delete_adapter(model: Any, adapter_name: str, prefix: str, *args: Any, **kwargs: Any) -> Any:
        return delete(model, adapter_name, "\0", *args, **kwargs)

    return delete_adapter


def hook_deletion() -> None:
    """Let PEFT delete adapters from modules of any name."""
    replace_in_place(tuners_utils.delete_adapter, _passing_none_by)


def hook_checkpoints() -> None:
    """Let PEFT and transformers look at a checkpoint of ours before it changes a model, and replace one whole."""
    peft: Any = PeftModel
    mixin: Any = PeftAdapterMixin
    peft.from_pretrained = classmethod(look_first(peft.from_pretrained.__func__))
    for loaded in (peft, mixin):
        loaded.load_adapter = where_it_is(look_first(loaded.load_adapter))

    def has_ours(model: Any) -> bool:
        return any(is_kind(config.peft_type) for config in (getattr(model, "peft_config", None) or {}).values())

    saved: Any
    for saved in (peft, PreTrainedModel):
        saved.save_pretrained = whole_or_not(saved.save_pretrained, has_ours)
        saved._upload_modified_files = uploaded_when_saved(saved._upload_modified_files)
    for owner, name in ((PeftConfig, "from_pretrained"), (PeftConfig, "_get_peft_type"), (peft, "from_pretrained")):
        setattr(owner, name, classmethod(where_it_is(getattr(owner, name).__func__)))


def _known(kind: Any) -> Any:
    if not isinstance(kind, str) or kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        known = did_you_mean(str(kind), (str(name.value) for name in PEFT_TYPE_TO_CONFIG_MAPPING))
        raise ValueError(f"PEFT knows no adapters of type {shown(kind)}, which an adapter_config.json says; {known}")
    return kind


def hook_kinds() -> None:
    """Let PEFT say what is wrong with a configuration that is no table, or of a type that it takes for a key."""
    config: Any = PeftConfig
    read, make, parse = (getattr(config, n).__func__ for n in ("_get_peft_type", "from_peft_type", "from_json_file"))

    @functools.wraps(parse)
    def from_json_file(cls: Any, path_json_file: Any, **kwargs: Any) -> Any:
        data = parse(cls, path_json_file, **kwargs)
        if not isinstance(data, dict):
            told = shortened(printable(str(path_json_file)))
            raise ValueError(f"{told}: an adapter configuration is a table, got {type(data).__name__}")
        return data

    @functools.wraps(read)
    def _get_peft_type(cls: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            kind = read(cls, *args, **kwargs)
        except KeyError:  # it says none
            kind = None
        return _known(kind)

    @functools.wraps(make)
    def from_peft_type(cls: Any, **kwargs: Any) -> Any:
        if "peft_type" in kwargs:
            _known(kwargs["peft_type"])
        return make(cls, **kwargs)

    for made in (from_json_file, _get_peft_type, from_peft_type):
        setattr(config, made.__name__, classmethod(made))


def _with_heads(stock: Callable[..., None], heads: Sequence[str]) -> Callable[..., None]:
    @functools.wraps(stock)
    def __init__(self: Any, model: Any, peft_config: Any = None, *args: Any, **kwargs: Any) -> None:
        if not is_kind(getattr(peft_config, "peft_type", None)) or "modules_to_save" not in vars(peft_config):
            stock(self, model, peft_config, *args, **kwargs)
            return
        before = peft_config.modules_to_save
        peft_config.modules_to_save = [*(before or ()), *heads]
        try:
            stock(self, model, peft_config, *args, **kwargs)
        except BaseException:
            peft_config.modules_to_save = before
            raise
        peft_config.modules_to_save = list(dict.fromkeys(peft_config.modules_to_save))

    return __init__


def hook_heads() -> None:
    """Let the heads of a task that PEFT trains whole be named before an adapter is put in, not after it."""
    for cls, heads in (
        (PeftModelForTokenClassification, ("classifier", "score")),
        (PeftModelForQuestionAnswering, ("qa_outputs",)),
    ):
        cls.__init__ = _with_heads(cls.__init__, heads)  # type: ignore[method-assign]


def hook_scales(layer_cls: type) -> None:
    """Let PEFT's ``rescale_adapter_scale`` scale layers of this class, beside those of LoRA."""

    def make(stock: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(stock)
        def rescale_adapter_scale(model: Any, multiplier: float) -> Iterator[None]:
            ours = [module for module in model.modules() if isinstance(module, layer_cls)]
            if not ours:
                with contextmanager(stock)(model, multiplier):
                    yield
                return
            before = {module: dict(module.scales) for module in ours}
            loras = any(isinstance(module, LoraLayer) for module in model.modules())
            try:
                for module in ours:
                    for adapter in module.factors:
                        module.set_scale(adapter, module.scales.get(adapter, 1.0) * number("multiplier", multiplier))
                with contextmanager(stock)(model, multiplier) if loras else nullcontext():
                    yield
            finally:
                for module, scales in before.items():
                    module.scales = {name: scale for name, scale in scales.items() if name in module.factors}

        return rescale_adapter_scale

    replace_in_place(helpers.rescale_adapter_scale, make)


def _telling(stock: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(stock)
    def _check_config_compatible(peft_config: Any) -> None:
        if is_kind(peft_config.peft_type):
            mine: str = peft_config.peft_type.value
            lora = "write the adapter as a plain LoRA by peft.save_as_lora and mix that"
            known = ", ".join(kind.value for kind in COMPATIBLE_TUNER_TYPES)
            raise ValueError(
                f"PEFT's mixed models know {known} by name and can be told of no other, so that {mine} is not "
                f"mixed with these; {lora if mine == 'QCIRCUIT' else 'merge it'}"
            )
        stock(peft_config)

    return _check_config_compatible


def hook_mixed() -> None:
    """Let PEFT's ``PeftMixedModel``, whose kinds of adapters nobody can add to, say what to do with one of ours."""
    replace_in_place(mixed_model._check_config_compatible, _telling)


def check_unmerged(model: Any, adapter: str, what: str) -> None:
    """Raise ValueError if an adapter is merged: other numbers would be taken out of the weights than were put in."""
    layers = (module for module in model.modules() if isinstance(module, BaseTunerLayer))
    if any(adapter in module.merged_adapters for module in layers):
        raise ValueError(f"the adapter {shown(adapter)} is merged, so it is not {what}; call unmerge_adapter first")


def _knowing(stock: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(stock)

    @functools.wraps(stock)
    def get_peft_model_state_dict(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        config = of_ours(given["model"], given.get("adapter_name", "default"))
        if config is None:
            return stock(*args, **kwargs)
        with following(given.get("state_dict")):
            return with_configuration(stock(*args, **kwargs), config.to_dict())

    return get_peft_model_state_dict


def _check_whole(wanted: Iterable[str], state: Mapping[str, Any]) -> None:
    if lacking := next((key for key in wanted if key not in state), None):
        raise ValueError(f"the checkpoint lacks {lacking}, which this model trains whole")


def _checking(stock: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(stock)
    def set_peft_model_state_dict(
        model: Any, peft_model_state_dict: Any, adapter_name: str = "default", *args: Any, **kwargs: Any
    ) -> Any:
        mine = (getattr(model, "peft_config", None) or {}).get(adapter_name)
        stored = configuration_of(peft_model_state_dict)
        if mine is not None and stored is not None:
            if Incoming.is_loading() and hasattr(mine, "modules_to_save"):  # PEFT adds the heads of a task as it loads
                stored.modules_to_save = mine.modules_to_save
            if getattr(mine, "bias", None) == "none":  # trained biases are taken as they come
                stored.bias = "none"
            check_means(mine, stored, f"the adapter {shown(adapter_name)}")
        elif of_ours(model, adapter_name) is not None:
            check_known(peft_model_state_dict, mine, f"the adapter {shown(adapter_name)}")
        if of_ours(model, adapter_name) is not None:
            check_unmerged(model, adapter_name, "loaded over")
            for name, module in model.named_modules():
                if isinstance(module, AuxiliaryTrainingWrapper):
                    whole = name.removeprefix("_fsdp_wrapped_module.")  # as PEFT does
                    wanted = (f"{whole}.{key}" for key in module.adapter_state_dict_load_map(adapter_name))
                    _check_whole(wanted, peft_model_state_dict)
            peft_model_state_dict = placed(model, peft_model_state_dict)
            _check_whole(trained_biases(model, mine, adapter_name), peft_model_state_dict)
            if not Incoming.is_loading():  # which is whole or nothing by itself
                with whole_or_nothing(model, adapter_name, peft_model_state_dict):
                    return stock(model, peft_model_state_dict, adapter_name, *args, **kwargs)
        return stock(model, peft_model_state_dict, adapter_name, *args, **kwargs)

    return set_peft_model_state_dict


def _signed(stock: Callable[..., Any]) -> Callable[..., Any]:
    @where_it_is
    @functools.wraps(stock)
    def load_peft_weights(model_id: Any, *args: Any, **hf_hub_download_kwargs: Any) -> Any:
        state = stock(model_id, *args, **hf_hub_download_kwargs)
        config, weights = located(str(model_id), hf_hub_download_kwargs)
        data = None if config is None else ours_in(config)
        if config is None and weights is not None and isinstance(state, Mapping):
            return with_digest(state, weights)
        if config is None or weights is None or data is None or not isinstance(state, Mapping):
            return state
        check_signed(config, weights)
        return with_configuration(state, data)

    return load_peft_weights


def hook_state_dicts() -> None:
    """Let state dicts and weights of ours know their configuration, which is compared where they are put to use."""
    replace_in_place(save_and_load.get_peft_model_state_dict, _knowing)
    replace_in_place(save_and_load.set_peft_model_state_dict, _checking)
    replace_in_place(save_and_load.load_peft_weights, _signed)
