"""The weighted sum of adapters as an adapter: what ``add_weighted_adapter`` makes."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from qcircuit_peft.checks import number
from qcircuit_peft.factorizations.combined import Combined, part_of
from qcircuit_peft.factorizations.parts import Factorization, Vector
from qcircuit_peft.text import shown
from qcircuit_peft.tuner.config import TERM, QCircuitConfig
from qcircuit_peft.tuner.encoding import Encoding
from qcircuit_peft.tuner.layer import QCircuitLinear, adapted_layers
from qcircuit_peft.tuner.names import base_name, check_adapter_name, exactly
from qcircuit_peft.tuner.parameter import QCircuitParameter

TYPES = ("cat", "linear")


class Copied(NamedTuple):
    """What the parameters of a layer's new adapter are, by part, and how they are encoded."""

    layer: QCircuitLinear
    values: dict[str, Tensor]
    encodings: dict[str, Encoding]


def weighted(
    model: nn.Module,
    configs: Mapping[str, QCircuitConfig],
    adapters: Sequence[str],
    weights: Sequence[float],
    name: str,
    kind: str,
) -> tuple[QCircuitConfig, list[Copied]]:
    """The configuration of the sum, and what its parameters are; raises ValueError for what has no exact sum."""
    _check(model, configs, adapters, weights, name, kind)
    layers = {base_name(path): layer for path, layer in adapted_layers(model)}
    having = {at: [path for path, layer in layers.items() if a in layer.factors] for at, a in enumerate(adapters)}
    targets = sorted({path for paths in having.values() for path in paths})
    if kind == "linear":
        config = copy.deepcopy(configs[adapters[0]])
        return config, [_added(path, layers[path], adapters, weights) for path in targets]
    terms: list[dict[str, Any]] = []
    copied = {path: Copied(layers[path], {}, {}) for path in targets}
    for at, (adapter, weight) in enumerate(zip(adapters, weights, strict=True)):
        config, start = configs[adapter], len(terms)
        for term in config.term_configs() or [config]:
            data = {key: value for key, value in term.to_dict().items() if key in TERM}
            data["alpha"] = weight * data["alpha"]
            data["alpha_pattern"] = {key: weight * alpha for key, alpha in data["alpha_pattern"].items()}
            data["target_modules"] = exactly(having[at], model) if config.terms is None else term.target_modules
            terms.append(data)
        for path in having[at]:
            layer = layers[path]
            for part, value in layer.intrinsic_parameters(adapter).items():
                own, _, old = part.partition("_of_")
                new = part_of(own, start + int(old or 0))
                copied[path].values[new] = value
                copied[path].encodings[new] = layer.encoding(adapter, part)
    first = configs[adapters[0]]
    config = QCircuitConfig(
        r=sum(term["r"] for term in terms),
        target_modules=exactly(targets, model),
        terms=terms,
        bias="none",
        task_type=first.task_type,
        base_model_name_or_path=first.base_model_name_or_path,
        revision=first.revision,
        inference_mode=first.inference_mode,
    )
    return config, list(copied.values())


def _check(
    model: nn.Module,
    configs: Mapping[str, QCircuitConfig],
    adapters: Sequence[str],
    weights: Sequence[float],
    name: str,
    kind: str,
) -> None:
    if kind not in TYPES:
        raise ValueError(
            f"combination_type is 'cat', or 'linear' for adapters of the same circuits, got {shown(kind)}, whose "
            "factors no circuit has; take 'cat', which is exact, and of that save_as_lora(..., rank=0.99)"
        )
    check_adapter_name(name)
    if name in configs:
        raise ValueError(f"there is an adapter {shown(name)} already; name the sum otherwise")
    if not adapters or len(adapters) != len(weights):
        raise ValueError(
            f"there is a weight for every adapter, got {len(adapters)} adapters and {len(weights)} weights"
        )
    if unknown := [adapter for adapter in adapters if adapter not in configs]:
        raise ValueError(f"Adapter {shown(unknown[0])} does not exist; there are {', '.join(map(shown, configs))}")
    for weight in weights:
        number("a weight", weight)
    for path, layer in adapted_layers(model):
        for adapter in [adapter for adapter in adapters if adapter in layer.factors]:
            if isinstance(layer, QCircuitParameter):
                raise ValueError(
                    "add_weighted_adapter does not support targeting nn.Parameter, but "
                    f"{shown(adapter)} adapts {layer.named(path)!r}"
                )
            if adapter in layer.merged_adapters:
                raise ValueError(f"the adapter {shown(adapter)} is merged; call unmerge_adapter, then add it up")
            if layer.scales.get(adapter, 1.0) != 1:
                raise ValueError(
                    f"the adapter {shown(adapter)} is used at the strength {layer.scales[adapter]:g}; give that as a "
                    "part of its weight, after unscale_layer"
                )
            if layer.factors[adapter].rank is None:
                raise ValueError(
                    f"updates that are added up have a rank, but those of {shown(adapter)} have the full one; "
                    "merge them"
                )
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper) and any(a in module.modules_to_save for a in adapters):
            raise ValueError(
                "an adapter that trains modules whole (modules_to_save) is not added up, since these have no sum; "
                "add up adapters without them"
            )
    for adapter in adapters:
        if configs[adapter].bias != "none":
            raise ValueError(f"the adapter {shown(adapter)} trains biases, which are not added up; leave it out")
        if configs[adapter].trainable_token_indices:
            raise ValueError(f"the adapter {shown(adapter)} trains tokens, which are not added up; leave it out")


def _added(path: str, layer: QCircuitLinear, adapters: Sequence[str], weights: Sequence[float]) -> Copied:
    """The first adapter of a layer with other numbers, the weighted sum; raises ValueError unless all else is equal."""
    lacking = [adapter for adapter in adapters if adapter not in layer.factors]
    first = adapters[0]
    if lacking:
        raise ValueError(
            f"adapters that are added up as 'linear' have the same modules, but {shown(lacking[0])} lacks {path!r}; "
            "take 'cat'"
        )
    factors, values = layer.factors[first], layer.intrinsic_parameters(first)
    free = [part for part, kind in factors.parts.items() if isinstance(kind, Vector) and not kind.start]
    if isinstance(factors, Combined) or len(free) != 1:
        raise ValueError(f"the update of {path!r} is not linear in one part, as 'linear' wants it; take 'cat'")
    total = torch.zeros_like(values[free[0]])
    for adapter, weight in zip(adapters, weights, strict=True):
        others, mine = layer.factors[adapter], layer.intrinsic_parameters(adapter)
        encodings = [layer.encoding(name, part) for name in (first, adapter) for part in mine]
        if any(own.quantization is not None for own in encodings):
            raise ValueError(
                f"{shown(adapter)} is quantized, and a sum of its numbers would be rounded once more; take 'cat'"
            )
        same = _unscaled(others) == _unscaled(factors) and all(
            torch.equal(mine[part], value) for part, value in values.items() if part != free[0]
        )
        if not same:
            raise ValueError(
                f"adapters that are added up as 'linear' have the same circuits and angles, but those of "
                f"{shown(adapter)} in {path!r} are others than those of {shown(first)}; take 'cat'"
            )
        if not factors.scaling:
            raise ValueError(f"the scaling of {shown(first)} is 0; put another adapter first, or take 'cat'")
        total = total + weight * others.scaling / factors.scaling * mine[free[0]]
    return Copied(layer, {**values, free[0]: total}, {part: layer.encoding(first, part) for part in values})


def _unscaled(factors: Factorization) -> Any:
    return replace(factors, scaling=1.0)  # type: ignore[type-var]
