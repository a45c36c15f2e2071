"""A circuit adapter as a plain LoRA, with all else that it trained: what PEFT's ``save_as_lora`` writes of ours."""

import copy
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.import_utils import is_transformers_ge_v5
from peft.tuners.lora import conversion
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import pad

from qcircuit_peft.checks import whole_number
from qcircuit_peft.text import shortened, shown
from qcircuit_peft.tuner.attention import QCircuitAttention
from qcircuit_peft.tuner.layer import QCircuitLinear, adapted_layers
from qcircuit_peft.tuner.names import alone, base_name, exactly
from qcircuit_peft.tuner.parameter import QCircuitParameter
from qcircuit_peft.tuner.register import replace_in_place
from qcircuit_peft.tuner.saving import replaced_at_once

_PREFIX = "base_model.model."


def _of_energy(singular: Tensor, share: float) -> int:
    """How many of the largest singular values, (*experts, r), have this share of the sum of their squares, in each."""
    energy = singular.square().cumsum(-1)
    return int((energy < share * energy[..., -1:]).sum(-1).max()) + 1


@torch.no_grad()
def _thin(layer: QCircuitLinear, name: str, adapter: str, rank: int | float | None) -> tuple[Tensor, Tensor]:
    """LoRA's factors of an update, or of a stack: of ``rank`` rows, as many as have that share of its energy, or all.

    Raises ValueError if a rank is above a width, or leaves out a part of the update that is more than a rounding.
    """
    layer.check_parameters(adapter)
    a, b = layer.factors[adapter].lora(layer.made_now(adapter))
    b = layer.scaled(adapter, b)
    rows, kind = min(layer.in_features, layer.out_features), a.dtype
    (left, p), (right, q) = (torch.linalg.qr(factor.double()) for factor in (b, a.mT))
    u, singular, v = torch.linalg.svd(p @ q.mT)
    found = singular.shape[-1]
    if rank is None or isinstance(rank, float):
        wanted = found if rank is None else min(_of_energy(singular, rank), found)
    elif rank > rows:
        raise ValueError(f"rank is at most the smaller width of a module, {rows} for {name!r}, got {rank}")
    elif rank < found and (singular[..., rank] > torch.finfo(kind).eps * found * singular[..., 0]).any():
        raise ValueError(
            f"the update of {name!r} has rank {found}, of which rank={rank} would leave out a part; take "
            f"{found}, or a number such as 0.99, the share of an update's energy that an approximation keeps"
        )
    else:
        wanted = rank
    kept = min(wanted, found)
    lora_a, lora_b = a.new_zeros(*a.shape[:-2], wanted, a.shape[-1]), b.new_zeros(*b.shape[:-1], wanted)
    lora_a[..., :kept, :] = (right @ v[..., :kept, :].mT).mT
    lora_b[..., :kept] = left @ (u[..., :kept] * singular[..., None, :kept])
    return lora_a, lora_b


def _widened(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """LoRA's factors of the same update with more rows."""
    more = rank - a.shape[-2]
    return pad(a, (0, 0, 0, more)), pad(b, (0, more))


@functools.cache
def _attention_is_right() -> bool:
    """Whether PEFT's LoRA adds the update of an attention's out_proj once, as it ought to (huggingface/peft#3774)."""
    with torch.random.fork_rng(devices=[]):
        config = LoraConfig(r=1, target_modules=["a"], init_lora_weights=False)
        model: Any = get_peft_model(nn.ModuleDict({"a": nn.MultiheadAttention(2, 1)}), config).get_base_model()
    out = model["a"].base_layer.out_proj
    expected = (out.weight + out.get_delta_weight("default")).detach()
    model["a"].merge()
    return torch.allclose(out.weight, expected)


def _module(name: str, layer: QCircuitLinear) -> str | None:
    """The module by which LoRA would target what a layer adapts; None for a parameter.

    Raises ValueError for one that the installed PEFT would not run right.
    """
    if isinstance(layer, QCircuitAttention) and layer.is_whole:
        if not _attention_is_right():
            raise ValueError(
                f"PEFT {peft.__version__} adds a LoRA's update of an nn.MultiheadAttention's out_proj twice "
                f"(huggingface/peft#3774), so that a plain LoRA of {layer.placed(name)!r} would be another adapter "
                "there; merge it instead"
            )
        return layer.placed(name)
    return None if isinstance(layer, QCircuitParameter) else name


def _check_taken(lora: LoraConfig, model: nn.Module) -> None:
    """Raise ValueError if PEFT, in a model of transformers, would take targets of a LoRA for those of experts.

    It does so with the names that experts had in transformers 4, also where other layers have them now.
    """
    if not is_transformers_ge_v5:
        return
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers  # which asks for that

    taken, wanted = copy.deepcopy(lora), {*(lora.target_parameters or ())}
    try:
        convert_peft_config_for_transformers(taken, model, None)
        added = {*(taken.target_parameters or ())} - wanted
    except ValueError as error:
        added = {str(error)}
    if added:
        raise ValueError(
            f"PEFT {peft.__version__} takes the names of modules in a plain LoRA of a {type(model).__name__} for those "
            f"of its experts ({shortened(', '.join(sorted(added)))}), so that it would be another adapter there; merge "
            "it instead, or leave such modules out when the model is adapted"
        )


def convert_to_lora(
    model: nn.Module, rank: int | float | None, adapter_name: str = "default", uniform: bool = False
) -> tuple[LoraConfig, Any]:
    """The configuration and state dict of the plain LoRA that equals a circuit adapter.

    ``rank`` is the number of LoRA's rows, at least the rank of every update, or as a float the share of an update's
    energy that an approximation keeps; None: of every update its own. ``uniform``: all modules have as many rows as the
    one with the most, which programs that serve a LoRA want. Trained heads, embeddings and biases come along, and the
    task. Raises ValueError for a rank that is too small or too large, TypeError, as PEFT's, for updates of full rank.
    """
    if isinstance(rank, float):
        if not 0 < rank <= 1:
            raise ValueError(f"a rank that is a float is a share of energy in (0, 1], got {rank}")
    elif rank is not None:
        whole_number("rank", rank, 1)
    config: Any = model.peft_config[adapter_name]  # type: ignore[index]
    layers = {base_name(name): layer for name, layer in adapted_layers(model, adapter_name)}
    modules = {name: _module(name, layer) for name, layer in layers.items()}
    parameters = {name: layer for name, layer in layers.items() if modules[name] is None}
    if not all(layer.supports_lora_conversion(adapter_name) for layer in layers.values()):
        raise TypeError(
            f"updates of full rank, as {config.factorization!r} has them, do not support LoRA conversion; "
            "merge them instead"
        )
    thin = {name: _thin(layer, name, adapter_name, rank) for name, layer in layers.items()}
    alike = thin.keys() if uniform else parameters.keys()  # for parameters PEFT knows no patterns
    widest = max((thin[name][0].shape[-2] for name in alike), default=0)
    thin |= {name: _widened(*thin[name], widest) for name in alike}
    ranks: dict[str, int] = {}
    for name, module in modules.items():  # LoRA knows one rank for both weights of an attention
        key = module or layers[name].named(name)
        ranks[key] = max(ranks.get(key, 0), thin[name][0].shape[-2])
    thin |= {name: _widened(*thin[name], ranks[module]) for name, module in modules.items() if module is not None}
    r = widest or max(ranks.values())
    pattern = {f"^{re.escape(name)}": found for name, found in ranks.items() if found != r}
    adapted: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    of, mapping = type(adapted), None
    if config.task_type is None:  # AutoPeftModel asks for one of both
        mapping = {"base_model_class": of.__name__, "parent_library": of.__module__}
    lora = LoraConfig(
        r=r,
        lora_alpha=r,
        rank_pattern=pattern,
        alpha_pattern=dict(pattern),
        target_modules=exactly(filter(None, modules.values()), model),
        target_parameters=sorted(layer.named(name) for name, layer in parameters.items()) or None,
        modules_to_save=config.modules_to_save,
        trainable_token_indices=config.trainable_token_indices,
        layer_replication=config.layer_replication,
        ensure_weight_tying=config.ensure_weight_tying,
        bias=config.bias.replace("qcircuit", "lora"),
        task_type=config.task_type,
        auto_mapping=mapping,
        base_model_name_or_path=config.base_model_name_or_path or vars(adapted).get("name_or_path"),
        revision=config.revision,
    )
    _check_taken(lora, adapted)
    ours = {f"{name}.{part}" for name, layer in layers.items() for part in layer.adapter_layer_names}
    rest = alone(model, adapter_name, get_peft_model_state_dict(model, adapter_name=adapter_name)).items()
    state = {_PREFIX + base_name(key): value.detach().clone() for key, value in rest if base_name(key) not in ours}
    for name, (a, b) in thin.items():
        entries = layers[name].map.lora(layers[name].get_base_layer(), a, b)
        state |= {f"{_PREFIX}{name}.{key}": value for key, value in entries.items()}
    return lora, {key: value.contiguous() for key, value in state.items()}


def _converts(model: Any, adapter: str) -> bool:
    """Whether an adapter is one of circuits; raises ValueError for one that is generated, or that is not there."""
    configs = getattr(model, "peft_config", None) or {}
    kinds = {name: getattr(config.peft_type, "value", config.peft_type) for name, config in configs.items()}
    if not {"QCIRCUIT", "QPA"} & set(kinds.values()):
        return False
    if adapter not in kinds:
        raise ValueError(f"there is no adapter {shown(adapter)} to convert; there are {', '.join(map(shown, kinds))}")
    if kinds[adapter] == "QPA":
        raise ValueError("a generated adapter is not converted; save_base_adapter writes the one of its base method")
    return kinds[adapter] == "QCIRCUIT"


def _converting(stock: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(stock)
    def convert(model: Any, rank: Any, adapter_name: str = "default", *args: Any, **kwargs: Any) -> Any:
        if _converts(model, adapter_name):
            return convert_to_lora(model, rank, adapter_name)
        return stock(model, rank, adapter_name, *args, **kwargs)

    return convert


def _saving(stock: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(stock)
    def save(path: Any, model: Any, rank: Any, adapter_name: str = "default", *args: Any, **kwargs: Any) -> None:
        if not _converts(model, adapter_name):
            return stock(path, model, rank, adapter_name, *args, **kwargs)
        config, state = convert_to_lora(model, rank, adapter_name)
        with replaced_at_once(Path(path)) as draft:
            save_file(state, draft / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
            config.save_pretrained(str(draft))
        return None

    return save


def hook_conversion() -> None:
    """Let PEFT's ``convert_to_lora`` and ``save_as_lora`` convert circuit adapters as this module does."""
    replace_in_place(conversion.convert_to_lora, _converting)
    replace_in_place(conversion.save_as_lora, _saving)
