"""Hot-swapping: numbers of another adapter of the same circuits in place, for "svd" also of one of a smaller rank.

U and V of fewer columns are the first columns of wider ones of the same angles, so that lambda is padded by zeros.
"""

import copy
import functools
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import hotswap, load_peft_weights, set_peft_model_state_dict
from torch import Tensor, nn
from torch.nn.functional import pad

from qcircuit_peft.checks import one_of, whole_number
from qcircuit_peft.factorizations.parts import frames
from qcircuit_peft.text import shown
from qcircuit_peft.tuner.config import QCircuitConfig
from qcircuit_peft.tuner.layer import QCircuitLinear, adapted_layers
from qcircuit_peft.tuner.meaning import meaning, of_ours, with_configuration
from qcircuit_peft.tuner.names import PREFIX, base_name
from qcircuit_peft.tuner.plan import Planned, Plans
from qcircuit_peft.tuner.register import check_unmerged, replace_in_place

_RANKS = ("r", "alpha", "rank_pattern", "alpha_pattern")


def _differ_in_ranks(mine: Any, stored: Any) -> bool:
    """Whether two configurations mean the same but for ranks and scalings, and not these."""
    if not (isinstance(mine, QCircuitConfig) and isinstance(stored, QCircuitConfig)):
        return False
    one, other = (meaning(config.to_dict(), config.incidental) for config in (mine, stored))
    differ = {field for field in {*one, *other} if one.get(field) != other.get(field)}
    return bool(differ) and differ <= {*_RANKS}


def _check_can_pad(config: Any, adapter: str) -> None:
    """Raise ValueError for an adapter whose rank is no number of zeros at the end of a lambda."""
    if not isinstance(config, QCircuitConfig) or config.factorization != "svd" or config.terms is not None:
        raise ValueError(
            "another rank or alpha is swapped in where every update is one 'svd', whose lambda is padded by zeros, and "
            f"those of {shown(adapter)} are not; load it under another name"
        )
    if config.quantization is not None:
        raise ValueError(
            f"the adapter {shown(adapter)} is quantized, and its lambda would be rounded once more at another rank or "
            "alpha; load it under another name"
        )


def _planned(config: QCircuitConfig, model: nn.Module, adapter: str) -> Iterator[tuple[str, QCircuitLinear, Planned]]:
    """Every layer of an adapter, with what it would get by another configuration of the same circuits.

    Raises ValueError where frames of fewer columns are not the first columns of wider ones.
    """
    plans = Plans(config)
    for path, layer in adapted_layers(model, adapter):
        held: Any = layer.factors[adapter]
        name = base_name(layer.patterned(path))
        planned = plans.plan(name, held.n_in, held.n_out, experts=getattr(held, "experts", None))
        mine, other = ({part: f.family for part, f in frames(each).items()} for each in (held, planned.factors))
        if mine != other:
            raise ValueError(
                f"frames of {name!r} have other parameters at another rank, so that none is swapped in; adapt with "
                "circuits, of which fewer columns are the first of more, and one width"
            )
        yield path, layer, planned


def _padded(numbers: Tensor, wide: Any) -> Tensor:
    """lambda, of every expert, with zeros up to the rank of a wider factorization."""
    rows = numbers.view(getattr(wide, "experts", 1), -1)
    return pad(rows, (0, wide.rank - rows.shape[-1])).flatten()


def _at_held_rank(
    model: nn.Module, adapter: str, stored: QCircuitConfig, state: dict[str, Tensor]
) -> dict[str, Tensor]:
    """A state dict of an adapter of another rank, with lambda as layers hold it; raises ValueError for a larger one."""
    keys, found = {base_name(key): key for key in state}, dict(state)
    planned_all = list(_planned(stored, model, adapter))
    most = max((planned.factors.rank or 0 for _, _, planned in planned_all), default=0)
    for path, layer, planned in planned_all:
        held: Any = layer.factors[adapter]
        other: Any = planned.factors
        name = base_name(layer.patterned(path))
        if other.rank > held.rank:
            raise ValueError(
                f"the update of {name!r} has rank {other.rank}, but that of {shown(adapter)}, which is in use, has "
                f"rank {held.rank}; call prepare_model_for_compiled_hotswap(model, target_rank={most}) before "
                "the model is compiled, or load it under another name"
            )
        if not held.scaling:
            raise ValueError(f"alpha of {shown(adapter)} is 0 for {name!r}, so nothing is swapped in; delete it first")
        for part, encoding in planned.encodings.items():
            key = keys.get(f"{base_name(path)}.{PREFIX}{part}")
            if key is None:  # shared, or lacking, as the model will say
                continue
            value = state[key]
            if value.dtype == torch.uint8:
                value = encoding.decoded(base_name(key), value)
            if part == "lambda" and value.shape == (encoding.part.size,):
                value = _padded(value, held) * (other.scaling / held.scaling)
            found[key] = value
    return found


def _swapping(stock: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(stock)
    def hotswap_adapter(
        model: Any, model_name_or_path: Any, adapter_name: str, torch_device: str | None = None, **kwargs: Any
    ) -> None:
        whole = getattr(model, "_orig_mod", model)  # of torch.compile
        mine = of_ours(whole, adapter_name)
        if mine is None:
            return stock(model, model_name_or_path, adapter_name, torch_device, **kwargs)
        layers = [module for module in whole.modules() if isinstance(module, BaseTunerLayer)]
        check_unmerged(whole, adapter_name, "swapped")
        modes = {module: module.training for module in whole.modules()}
        stored = None
        with suppress(ValueError, KeyError, TypeError, OSError):  # loading says what is wrong
            stored: Any = PeftConfig.from_pretrained(str(model_name_or_path), **kwargs)
        try:
            if _differ_in_ranks(mine, stored):
                _check_can_pad(mine, adapter_name)
                state = load_peft_weights(str(model_name_or_path), device=torch_device or "cpu", **kwargs)
                state = _at_held_rank(whole, adapter_name, stored, state)
                set_peft_model_state_dict(whole, with_configuration(state, mine.to_dict()), adapter_name)
            else:
                whole.load_adapter(model_name_or_path, adapter_name, torch_device=torch_device, **kwargs)
            for module in layers:
                getattr(module, "scales", {}).pop(adapter_name, None)  # a strength was that of the old numbers
        finally:
            for module, mode in modes.items():
                module.training = mode

    return hotswap_adapter


def _refusing(stock: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(stock)
    def hotswap_adapter_from_state_dict(model: Any, state_dict: Any, adapter_name: str, *args: Any, **more: Any) -> Any:
        if of_ours(model, adapter_name) is not None:
            raise ValueError(
                f"a state dict does not say what the numbers of {shown(adapter_name)} mean, so they are not swapped by "
                "it; use hotswap_adapter with a saved adapter, or set_peft_model_state_dict"
            )
        return stock(model, state_dict, adapter_name, *args, **more)

    return hotswap_adapter_from_state_dict


def _wide(config: QCircuitConfig, scalings: dict[str, float], rank: int) -> QCircuitConfig:
    """A configuration of one rank everywhere, with the same scalings of all modules."""
    wide = copy.deepcopy(config)
    usual = Counter(scalings.values()).most_common(1)[0][0]
    wide.r, wide.rank_pattern, wide.alpha = rank, {}, usual * rank
    wide.alpha_pattern = {
        f"^{re.escape(name)}": scaling * rank for name, scaling in scalings.items() if scaling != usual
    }
    return wide


def _widened(model: Any, adapter: str, rank: int) -> tuple[QCircuitConfig, list[tuple[QCircuitLinear, Planned]]]:
    """An adapter with this rank for every update: its configuration and layers; raises ValueError if one has more."""
    config = model.peft_config[adapter]
    _check_can_pad(config, adapter)
    check_unmerged(model, adapter, "widened")
    layers = {base_name(layer.patterned(path)): layer for path, layer in adapted_layers(model, adapter)}
    for name, layer in layers.items():
        held: Any = layer.factors[adapter]
        if held.rank > rank:
            raise ValueError(f"target_rank is at least the rank of every update, {held.rank} for {name!r}, got {rank}")
    wide = _wide(config, {name: layer.factors[adapter].scaling for name, layer in layers.items()}, rank)
    return wide, [(layer, planned) for _, layer, planned in _planned(wide, model, adapter)]


@torch.no_grad()
def _widen(model: Any, adapter: str, wide: QCircuitConfig, layers: list[tuple[QCircuitLinear, Planned]]) -> None:
    for layer, planned in layers:
        lambdas: Any = layer.qcircuit_lambda
        old = lambdas[adapter]
        lambdas[adapter] = nn.Parameter(_padded(old, planned.factors), requires_grad=old.requires_grad)
        layer.factors[adapter] = planned.factors
        for part, encoding in layer.encodings[adapter].items():
            encoding.part = planned.encodings[part].part
        layer.bank.clear()
    for field in _RANKS:
        setattr(model.peft_config[adapter], field, getattr(wide, field))


def _preparing(stock: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(stock)
    def prepare_model_for_compiled_hotswap(
        model: Any, *, target_rank: int | None = None, config: Any = None, check_compiled: str = "error"
    ) -> None:
        ours = dict.fromkeys(adapter for _, layer in adapted_layers(model) for adapter in layer.factors)
        if not ours:
            return stock(model, target_rank=target_rank, config=config, check_compiled=check_compiled)
        one_of("check_compiled", check_compiled, ("error", "warn", "ignore"))
        if target_rank is not None:
            whole_number("target_rank", target_rank, 1)
        if hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", False):
            told = "prepare_model_for_compiled_hotswap comes before torch.compile, but the model is compiled already"
            if check_compiled == "error":
                raise ValueError(f"{told}; compile it afterwards")
            if check_compiled == "warn":
                warnings.warn(f"{told}, and will be once more", stacklevel=2)
        if target_rank is not None:
            whole = getattr(model, "_orig_mod", model)
            for adapter, found in {adapter: _widened(whole, adapter, target_rank) for adapter in ours}.items():
                _widen(whole, adapter, *found)
        return None

    return prepare_model_for_compiled_hotswap


def hook_hotswap() -> None:
    """Let PEFT's hot-swapping put the numbers of another adapter of the same circuits in place, of another rank too."""
    replace_in_place(hotswap.hotswap_adapter, _swapping)
    replace_in_place(hotswap.hotswap_adapter_from_state_dict, _refusing)
    replace_in_place(hotswap.prepare_model_for_compiled_hotswap, _preparing)
