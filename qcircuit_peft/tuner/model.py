"""The tuner: puts circuit adapters into a model, on PEFT's ``BaseTuner``."""

import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, _maybe_include_all_linear_layers
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.other import AuxiliaryTrainingWrapper, get_pattern_key
from peft.utils.quantization_utils import get_quantization_kwargs, resolve_quantization_backend
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from qcircuit_peft.ansatz import Ansatz, load
from qcircuit_peft.factorizations import FACTORIZATIONS
from qcircuit_peft.factorizations.parts import Factorization, frames, groups, sizes
from qcircuit_peft.frames import FRAMES
from qcircuit_peft.lie import told_surplus
from qcircuit_peft.quantization import Quantization, schemes
from qcircuit_peft.rates import watch
from qcircuit_peft.tuner.bank import FrameBank
from qcircuit_peft.tuner.checkpoint import (
    PREFIX,
    Packed,
    bare,
    check_adapter_name,
    check_values,
    is_ours,
    open_packed,
    own_names,
    packed_form,
    state_loading,
    unfiltered,
)
from qcircuit_peft.tuner.config import QCircuitConfig
from qcircuit_peft.tuner.fast_path import inside_attention, keep_off_fast_path
from qcircuit_peft.tuner.heads import unload_heads
from qcircuit_peft.tuner.layer import QCircuitLayer, QCircuitLinear, adapted_layers, adapters, features
from qcircuit_peft.tuner.sparse import thinned


def _of_module(pattern: dict[str, Any], name: str, otherwise: Any) -> Any:
    return pattern.get(get_pattern_key(list(pattern), name), otherwise)


def _warn_of_fused_experts(model: nn.Module) -> None:
    """Say which experts "all-linear" leaves as they are: transformers keeps them in one parameter, not in layers."""
    fused = [
        f"{name}.{key}"
        for name, module in model.named_modules()
        if "Expert" in type(module).__name__
        for key, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3
    ]
    if fused:
        warnings.warn(
            f'target_modules="all-linear" leaves {len(fused)} fused parameters of experts as they are, the first of '
            f"them {fused[0]!r}: they are no linear layers",
            stacklevel=2,
        )


def make_factors(config: QCircuitConfig, name: str, n_in: int, n_out: int) -> Factorization:
    """The factorization that ``config`` gives to the module of this name; raises ValueError if it cannot have one."""
    r = _of_module(config.rank_pattern, name, config.r)
    alpha = _of_module(config.alpha_pattern, name, config.alpha)
    if r > min(n_in, n_out):
        raise ValueError(
            f"r is at most the smaller width of a module, {min(n_in, n_out)} for {name!r} ({n_in} in, {n_out} out), "
            f"got {r}; name the module in exclude_modules, or give it a smaller r in rank_pattern"
        )
    fields = {"ansatz": load(config.ansatz), **{key: getattr(config, key) for key in ("layers", "width", "backend")}}
    options = {key: value for key, value in fields.items() if key in FRAMES[config.frame].options}
    options |= config.frame_options
    intrinsic = _of_module(config.intrinsic_rank_pattern, name, None)
    if intrinsic is not None:
        options = {**options, "intrinsic_rank": intrinsic}
    frame = partial(FRAMES[config.frame].spec, **options)
    make = FACTORIZATIONS[config.factorization]
    try:
        factors = make(n_out, n_in, r, frame, scaling=alpha / r, **config.factorization_options)
    except ValueError as error:
        raise ValueError(f"module {name!r}: {error}") from None
    if not config.train_angles and len(frames(factors)) == len(factors.parts):
        raise ValueError(f"module {name!r}: train_angles=False leaves nothing to train in {config.factorization!r}")
    return factors


def _surplus(ansatz: Ansatz, all_factors: Iterable[Factorization]) -> str | None:
    """What is to be said of the first circuit that has more angles than directions to move in, if one has."""
    found = {
        circuit for factors in all_factors for frame in frames(factors).values() for _, circuit, _ in frame.circuits()
    }
    return next(filter(None, (told_surplus(ansatz, circuit) for circuit in found)), None)


def kind_of(name: str) -> str:
    """The name of a module without the numbers of blocks: the same for, say, all query projections."""
    return ".".join(part for part in name.split(".") if not part.isdigit())


class _Sharing:
    """Which layer holds a part that layers share: the first that asks for it."""

    def __init__(self, share: str | None) -> None:
        self._share = share
        self._holders: dict[tuple[Any, ...], Any] = {}

    def lenders(self, name: str, factors: Factorization, holder: Any) -> dict[str, Any]:
        """The holders of the parts of a module that others hold; for the rest ``holder`` is one from now on."""
        if self._share is None:
            return {}
        group = kind_of(name) if self._share == "kind" else ""
        shared = frames(factors)
        if not shared:
            raise ValueError(f"share={self._share!r}: module {name!r} has no circuit or other frame to share")
        keys = {part: (group, part, frame.family) for part, frame in shared.items()}
        found = {part: self._holders.setdefault(key, holder) for part, key in keys.items()}
        return {part: other for part, other in found.items() if other is not holder}


def check_untied(model: nn.Module, adapted: type[BaseTunerLayer]) -> None:
    """Raise ValueError if the weight of an adapted module is also that of another one, which merging would change."""
    paths = dict(model.named_modules(remove_duplicate=False))
    owners: dict[int, list[tuple[str, nn.Module]]] = {}
    for path, module in paths.items():
        name = re.sub(r"(\.base_layer)+$", "", path)  # an adapted layer and what it wraps own the weight together
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append((name, paths[name]))
    for name, module in paths.items():
        weight = getattr(module.get_base_layer(), "weight", None) if isinstance(module, adapted) else None
        others = [other for other, owner in owners.get(id(weight), []) if owner is not module]
        if weight is not None and others:
            raise ValueError(
                f"module {name!r} shares its weight with {others[0]!r}, which merging would change too; "
                "give it a weight of its own before adapting it (load with tie_word_embeddings=False), "
                "or do not merge"
            )


class QCircuitModel(BaseTuner):
    """A model with circuit adapters; made by ``get_peft_model(model, QCircuitConfig(...))``.

    Raises ValueError, before anything in the model has changed, for a target that is not a linear layer, an r above
    a width, a width that does not suit the ansatz, or a checkpoint whose parameters do not fit.
    """

    prefix: str = PREFIX
    tuner_layer_cls = QCircuitLayer
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """PEFT's; raises ValueError before anything else for a name that no adapter can have."""
        check_adapter_name(adapter_name)
        super().inject_adapter(model, adapter_name, *args, **kwargs)

    def _prepare_model(self, peft_config: QCircuitConfig, model: nn.Module) -> None:
        """Look at every target before the first one is replaced; share the bank of earlier adapters, if any."""
        self.bank = next((layer.bank for _, layer in adapted_layers(model)), None) or FrameBank()
        state, self._packed = state_loading("QCIRCUIT"), {}
        if peft_config.wants_all_linear():
            _maybe_include_all_linear_layers(peft_config, model)
            _warn_of_fused_experts(model)
            attention = {name for name, module in model.named_modules() if inside_attention(module)}
            peft_config.target_modules = set(peft_config.target_modules or ()) - attention
        inside = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, BaseTunerLayer))
        wanted: dict[str, tuple[int, ...]] = {}
        found: dict[str, Quantization] = {}
        owners: dict[str, tuple[Factorization, str]] = {}
        sharing, self._sharing = _Sharing(peft_config.share), _Sharing(peft_config.share)
        devices: dict[str, Any] = {}
        for name, module in model.named_modules():
            if not name or name.startswith(inside) or not self._check_target_module_exists(peft_config, name):
                continue
            factors = self._factors(peft_config, name, module)
            lenders = sharing.lenders(name, factors, name)
            held = {part: size for part, size in sizes(factors).items() if part not in lenders}
            wanted |= {f"{name}.{PREFIX}{part}": (size,) for part, size in held.items()}
            owners |= {f"{name}.{PREFIX}{part}": (factors, part) for part in held}
            quantized = schemes(peft_config.quantization, sizes(factors)).items()
            found |= {f"{name}.{PREFIX}{part}": scheme for part, scheme in quantized if part in held}
            devices[name] = next((p.device for p in module.parameters()), None)
            for part, holder in lenders.items():
                if devices[name] != devices[holder]:
                    raise ValueError(
                        f"modules that share a circuit are on one device, but {part} of {name!r} on {devices[name]} "
                        f"would be that of {holder!r} on {devices[holder]}; leave out share, or use one device"
                    )
        if state is not None:
            try:
                self._packed = open_packed(state, wanted, found, lambda key: _owner(*owners[key]), own_names(model))
            except ValueError as error:
                raise ValueError(f"the adapter does not fit this model: {error}") from None
        elif told := _surplus(peft_config.ansatz, (factors for factors, _ in owners.values())):  # type: ignore[arg-type]
            warnings.warn(told, stacklevel=2)

    def _post_injection_hook(self, model: nn.Module, config: QCircuitConfig, adapter_name: str) -> None:
        _remember(model, adapter_name, self._packed)
        self.bank.passes.watch(model)
        watch(model)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The adapted model's output; BaseTuner passes by the hooks of the model, which begin and end a pass."""
        self.bank.passes.begin(self)
        try:
            return super().forward(*args, **kwargs)
        finally:
            self.bank.passes.end()

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """PEFT's option ``autocast_adapter_dtype``: without it, parameters are in the half precision of the base."""
        if not autocast_adapter_dtype:
            for _, module in adapted_layers(self.model, adapter_name):
                module.cast(adapter_name, wide=False)
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)

    def _factors(self, config: QCircuitConfig, name: str, module: nn.Module) -> Factorization:
        base = module.get_base_layer() if isinstance(module, QCircuitLayer) else module
        quantized = resolve_quantization_backend(base, **get_quantization_kwargs(self)) is not None
        if not (isinstance(base, nn.Linear | Conv1D) or quantized) or inside_attention(base):
            raise ValueError(
                f"target module {name!r} is a {type(base).__module__}.{type(base).__name__}; "
                "a circuit adapter takes torch.nn.Linear (also quantized) and transformers' Conv1D, "
                "outside nn.MultiheadAttention; leave it out with exclude_modules"
            )
        return make_factors(config, name, *features(base))

    def _create_and_replace(
        self,
        peft_config: QCircuitConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        factors = self._factors(peft_config, current_key, target)
        adapted: Any = target
        if not isinstance(target, QCircuitLayer):
            adapted = QCircuitLinear(target, adapter_name, self.bank, **get_quantization_kwargs(self))
        lenders = self._sharing.lenders(current_key, factors, adapted)
        adapted.update_layer(adapter_name, current_key, factors, peft_config, lenders)
        if adapted is target:
            return
        if isinstance(parent, nn.TransformerEncoderLayer):
            keep_off_fast_path(self.model, parent, adapted)
        if adapter_name not in self.active_adapters:
            adapted.requires_grad_(False)
        self._replace_module(parent, target_name, adapted, target)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Hand ``adapter_names`` of a call to every adapted layer, for batches of several adapters."""
        names = kwargs.pop("adapter_names", None)
        if names is None:
            yield
            return
        if self.training:
            raise ValueError(
                "adapter_names is for inference only, but the model is in training mode; call model.eval()"
            )
        known = {name for _, layer in adapted_layers(self) for name in layer.factors}
        unknown = sorted(set(names) - known - {"__base__"})
        if unknown:
            raise ValueError(
                f"adapter_names has the unknown adapter {unknown[0]!r}; there are "
                f"{', '.join(sorted(known))} and __base__"
            )
        beams = kwargs.get("num_beams")
        repeated = (
            [name for name in names for _ in range(beams)] if isinstance(beams, int) and beams > 1 else list(names)
        )
        is_pair = getattr(getattr(self.model, "config", None), "is_encoder_decoder", False)
        encoder = self.model.get_encoder() if is_pair else None
        in_encoder = set(encoder.modules()) if encoder is not None else set()

        def hand(module: nn.Module, args: Any, kwargs: dict[str, Any], given: list[str]) -> tuple[Any, dict[str, Any]]:
            return args, {**kwargs, "adapter_names": given}

        hooks = [
            module.register_forward_pre_hook(
                partial(hand, given=list(names) if module in in_encoder else repeated), with_kwargs=True
            )
            for module in self.modules()
            if isinstance(module, QCircuitLayer | AuxiliaryTrainingWrapper)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _check_merge_allowed(self) -> None:
        """Refuse to merge into a weight that another module shares, such as a head tied to the embedding."""
        check_untied(self.model, QCircuitLayer)

    def _check_before_merge(self, adapter_names: list[str] | None, safe: bool) -> None:
        """Refuse a merge that would fail halfway; a safe one is computed once to see its outcome."""
        self._check_merge_allowed()
        for name, module in adapted_layers(self.model):
            wanted = [a for a in adapter_names or module.active_adapters if a in module.factors]
            try:
                for adapter in wanted:
                    module.check_parameters(adapter)
                if safe:
                    module.merged_weight([a for a in wanted if a not in module.merged_adapters], check=True)
            except ValueError as error:
                broken = f"The adapter {', '.join(wanted)} seems to be broken"  # PEFT's words for it
                told = f"NaNs detected in the merged weights. {broken}: " if safe else ""
                raise ValueError(f"{told}module {name!r}: {error}") from None

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Add delta W to the base weights.

        Raises ValueError for a shared weight, a parameter that is NaN or infinite, or with ``safe_merge`` such a
        merged weight; nothing is merged then.
        """
        self._check_before_merge(adapter_names, safe_merge)
        super().merge_adapter(adapter_names=adapter_names, safe_merge=safe_merge)

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> Any:
        if merge:
            self._check_before_merge(adapter_names, safe_merge)
        unload_heads(self.model, merge=merge, safe_merge=safe_merge, adapter_names=adapter_names)
        model = super()._unload_and_optionally_merge(merge, progressbar, safe_merge, adapter_names)
        self.bank.passes.unwatch(self.model)
        return model

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Refused: a weighted sum of circuit parameters is not the weighted sum of the updates."""
        raise ValueError(
            "circuit adapters cannot be combined by add_weighted_adapter, since angles do not add up; "
            "activate several at once, or convert each with peft's save_as_lora and combine those"
        )

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: Any, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """PEFT's renaming, and the checks of ``check_values`` and ``open_packed`` before anything is loaded."""
        held = {
            f"{bare(name)}.{PREFIX}{part}": (f"{name}.{PREFIX}{part}.{adapter_name}", found, module, part)
            for name, module in adapted_layers(model, adapter_name)
            for part, found in module.held(adapter_name).items()
        }
        own = own_names(model)
        ours = {key: value for key, value in state_dict.items() if bare(key) in held or is_ours(key)}
        check_values("the checkpoint", ours, own)
        wanted = {key: tuple(found.parameter.shape) for key, (_, found, _, _) in held.items()}
        schemes = {key: found.scheme for key, (_, found, _, _) in held.items() if found.scheme is not None}
        packed = open_packed(
            ours, wanted, schemes, lambda key: _owner(held[key][2].factors[adapter_name], held[key][3]), own
        )
        _remember(model, adapter_name, packed)
        return {held[bare(key)][0] if bare(key) in held else key: ours.get(key, state_dict[key]) for key in state_dict}

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: Any,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        """The entries of an adapter as checkpoints name them, with those packed that are quantized or pruned."""
        unfiltered(model, state_dict, unwanted_adapter_names)
        found = cls._get_learnable_bias_state_dict(model, state_dict, config)
        for name, module in adapted_layers(model, adapter_name):
            module.warn_of_norms(adapter_name)
            for part, (_, scheme, loaded) in module.held(adapter_name).items():
                key = f"{name}.{PREFIX}{part}"
                value = state_dict.get(f"{key}.{adapter_name}")
                if value is None:
                    continue
                if scheme is not None and scheme.packed and not value.is_meta:
                    value = packed_form(key, value, scheme, loaded)
                elif module.sparse[adapter_name] and not value.is_meta:
                    value = thinned(value, _owner(module.factors[adapter_name], part))
                found[key] = value
        return found

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """Keys have none any more: PEFT would take a module of that name for it."""
        return key


def _owner(factors: Factorization, part: str) -> Tensor:
    return groups(factors)[part]


def _remember(model: nn.Module, adapter: str, packed: dict[str, Packed]) -> None:
    """Tell layers with which packed values an adapter is being loaded, and whether it is pruned."""
    for name, module in adapted_layers(model, adapter):
        keys = {part: f"{bare(name)}.{PREFIX}{part}" for part in module.held(adapter)}
        found = {part: packed[key] for part, key in keys.items() if key in packed}
        module.packed[adapter] = {part: found[part] for part in found if part in module.schemes[adapter]}
        module.sparse[adapter] |= len(module.packed[adapter]) < len(found)
        module.bank.clear()


def circuits(model: nn.Module, adapter: str | None = None) -> Iterator[tuple[str, Any, Tensor]]:
    """Every circuit in an adapted model: its name, the ``Circuit``, and a detached copy of its angles (radians).

    The name is the module's, then the frame's part, for "svd" "u" or "v"; where a width is reached by the cosine-sine
    recursion, one part of it such as "u1.v2" follows for each circuit. A circuit that modules share comes once for
    each. ``adapter`` picks an adapter; left out, those that are active.

    >>> import torch
    >>> from peft import get_peft_model
    >>> from qcircuit_peft import QCircuitConfig
    >>> model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(64, 32)), QCircuitConfig(r=4, target_modules=["0"]))
    >>> [(name, circuit.dim, len(angles)) for name, circuit, angles in circuits(model)]
    [('base_model.model.0.u', 32, 13), ('base_model.model.0.v', 64, 16)]
    """
    for name, module, chosen in adapters(model, adapter):
        factors, values = module.factors[chosen], module.values(chosen)
        for part, frame in frames(factors).items():
            for leaf, circuit, where in frame.circuits():
                named = ".".join(filter(None, (name, part, leaf)))
                yield named, circuit, values[part].detach()[where].clone()
