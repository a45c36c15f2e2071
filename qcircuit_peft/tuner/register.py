"""Makes PEFT know circuit adapters. PEFT has no plug-in interface, so this is the one place that reaches into it."""

from typing import Any

from peft import PeftModel
from peft.utils import PeftType, register_peft_method
from transformers import PreTrainedModel
from transformers.integrations import PeftAdapterMixin

from qcircuit_peft.tuner.checkpoint import look_first, whole_or_not


def extend_peft_type(name: str) -> None:
    """Add a name to PEFT's closed enumeration of adapter types."""
    if name not in PeftType.__members__:
        member: Any = str.__new__(PeftType, name)
        member._name_, member._value_ = name, name
        PeftType._member_names_.append(name)
        PeftType._member_map_[name] = member
        PeftType._value2member_map_[name] = member
        type.__setattr__(PeftType, name, member)


def register(name: str, config_cls: type, model_cls: type) -> None:
    """Register a tuner with PEFT under a name in small letters, once in a process.

    Loading also looks at a checkpoint of ours before it changes a model, and saving replaces one whole or not at all.
    """
    kind = name.upper()
    if kind in PeftType.__members__:
        raise ImportError("qcircuit_peft has been imported before in this process, and PEFT holds its classes; restart")
    extend_peft_type(kind)
    register_peft_method(name=name, config_cls=config_cls, model_cls=model_cls)
    peft: Any = PeftModel
    peft.from_pretrained = classmethod(look_first(peft.from_pretrained.__func__, kind))
    peft.load_adapter = look_first(peft.load_adapter, kind)
    peft.save_pretrained = whole_or_not(
        peft.save_pretrained, applies=lambda model: isinstance(model.base_model, model_cls)
    )
    mixin: Any = PeftAdapterMixin
    mixin.load_adapter = look_first(mixin.load_adapter, kind)

    def has_ours(model: Any) -> bool:
        return any(config.peft_type == kind for config in (getattr(model, "peft_config", None) or {}).values())

    whole: Any = PreTrainedModel
    whole.save_pretrained = whole_or_not(whole.save_pretrained, applies=has_ours)
