"""The tuner: puts circuit adapters into a model, on PEFT's ``BaseTuner``."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate import init_empty_weights
from peft import LoraModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, _maybe_include_all_linear_layers
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING, _get_submodules
from peft.utils.other import AuxiliaryTrainingWrapper
from peft.utils.quantization_utils import get_quantization_kwargs, resolve_quantization_backend
from torch import Tensor, nn

from qcircuit_peft.rates import watch
from qcircuit_peft.text import printable
from qcircuit_peft.tuner.attention import QCircuitAttention, attention_targets, is_attention
from qcircuit_peft.tuner.bank import FrameBank
from qcircuit_peft.tuner.config import QCircuitConfig
from qcircuit_peft.tuner.encoding import Encoding
from qcircuit_peft.tuner.fast_path import inside_attention, keep_off_fast_path
from qcircuit_peft.tuner.guard import injecting, merging, unloading, whole_or_nothing
from qcircuit_peft.tuner.heads import is_target, watch_heads
from qcircuit_peft.tuner.incoming import Incoming
from qcircuit_peft.tuner.layer import QCircuitLayer, QCircuitLinear, adapted_layers, targets
from qcircuit_peft.tuner.maps import LINEAR_MAPS, LinearMap, is_linear, map_of, parameter_map
from qcircuit_peft.tuner.mixed import handed_out
from qcircuit_peft.tuner.names import PREFIX, base_name, check_adapter_name, entry, is_ours, own_names, unfiltered
from qcircuit_peft.tuner.parameter import (
    ParameterTarget,
    QCircuitParameter,
    check_apart,
    excludes_parameters,
    fused_experts,
    parameter_targets,
)
from qcircuit_peft.tuner.plan import Planned, Plans, Sharing, surplus_of
from qcircuit_peft.tuner.replication import check_tokens, replicated
from qcircuit_peft.tuner.weighted import weighted


def _warn_of_fused_experts(model: nn.Module, targeted: set[str]) -> None:
    """Say which experts "all-linear" leaves as they are: transformers keeps them in one parameter, not in layers."""
    left = {name: end for name, end in fused_experts(model).items() if name not in targeted}
    if left:
        warnings.warn(
            f'target_modules="all-linear" leaves {len(left)} fused parameters of experts as they are, the first of '
            f"them {next(iter(left))!r}: they are no linear layers; adapt them too with "
            f"target_parameters={sorted(set(left.values()))}",
            stacklevel=2,
        )


def _warn_of_routers(model: nn.Module, left: list[str]) -> None:
    """Say which linear layers "all-linear" leaves as they are: such as routers, which give a choice of experts."""
    if left:
        kinds = sorted({type(model.get_submodule(name)).__name__ for name in left})
        ends = sorted({f"{name.rpartition('.')[2]}.weight" for name in left})
        warnings.warn(
            f'target_modules="all-linear" leaves {len(left)} modules as they are, the first of them {left[0]!r}: '
            f"{', '.join(kinds)} gives something else than a linear layer; adapt them too with "
            f"target_parameters={ends}",
            stacklevel=2,
        )


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
        inside, _, adapts = getattr(module, "parameter_name", "weight").rpartition(".")
        holder = module.get_base_layer().get_submodule(inside) if isinstance(module, adapted) else None
        weight = getattr(holder, adapts, None)
        outermost = paths[re.sub(r"(\.base_layer)+$", "", name)]
        own = (outermost, holder) if inside else (outermost,)
        others = [other for other, owner in owners.get(id(weight), []) if not any(owner is one for one in own)]
        if weight is not None and others:
            raise ValueError(
                f"module {name!r} shares its weight with {others[0]!r}, which merging would change too; "
                "give it a weight of its own before adapting it (load with tie_word_embeddings=False), "
                "or do not merge"
            )


class QCircuitModel(BaseTuner):
    """A model with circuit adapters; made by ``get_peft_model(model, QCircuitConfig(...))``.

    Raises ValueError, before anything in the model has changed, for a target that is not one of ``LINEAR_MAPS``, a
    parameter that ``parameter_targets`` or ``parameter_map`` refuses, an r above a width, a width that does not suit
    the ansatz, or a checkpoint whose parameters do not fit.
    """

    prefix: str = PREFIX
    tuner_layer_cls = QCircuitLayer
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    _add_modules_to_save_to_tie = LoraModel._add_modules_to_save_to_tie
    _check_target_module_exists = staticmethod(is_target)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """PEFT's; raises ValueError before anything else for a name that no adapter can have."""
        check_adapter_name(adapter_name)
        try:
            with injecting(self, adapter_name), self._knowing_parameters(model, adapter_name):
                super().inject_adapter(model, adapter_name, *args, **kwargs)
                watch_heads(model)
        finally:
            for name in ("_plans", "_planned", "_sharing", "_wrapped", "_attention"):
                vars(self).pop(name, None)

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict[str, Any]) -> Any:
        """PEFT's, which wants target_modules; parameters alone are enough."""
        known = self.target_module_mapping.get(str(model_config.get("model_type")))
        if peft_config.target_modules is None and peft_config.target_parameters and known is None:
            return peft_config
        return super()._prepare_adapter_config(peft_config, model_config)

    @contextmanager
    def _knowing_parameters(self, model: nn.Module, adapter_name: str) -> Iterator[None]:
        """Within it, PEFT does not warn of patterns and exclusions that match no module but parameters."""
        config: Any = self.peft_config[adapter_name]
        if not config.target_parameters:
            yield
            return
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys did not match any")
            if excludes_parameters(config, model):
                warnings.filterwarnings("ignore", "You have passed exclude_modules")
            yield
        for kind in ("rank_pattern", "alpha_pattern"):
            keys = getattr(config, kind)
            names = {*self._planned, *self._attention}
            matched = {key for key in keys for name in names if re.match(rf"(.*\.)?({key})$", name)}
            if unmatched := sorted(set(keys) - matched):
                told = f"The following {kind} keys match no targeted module or parameter and are ignored: {unmatched}."
                warnings.warn(told, RuntimeWarning, stacklevel=2)

    def _prepare_model(self, peft_config: QCircuitConfig, model: nn.Module) -> None:
        """Look at every target before the first one is replaced; share the bank of earlier adapters, if any."""
        peft_config.layer_replication = replicated(model, peft_config.layer_replication)
        self.bank = next((layer.bank for _, layer in adapted_layers(model)), None) or FrameBank()
        parameters = parameter_targets(peft_config, model)
        if peft_config.wants_all_linear():
            _maybe_include_all_linear_layers(peft_config, model)
            targeted = {target.key for target in parameters}
            _warn_of_fused_experts(model, targeted)
            found = {name: model.get_submodule(name) for name in peft_config.target_modules or ()}
            found = {name: module for name, module in found.items() if not inside_attention(module)}
            rest = [name for name in sorted(found) if self._row(found[name]) is None]
            wanted = (name for name in rest if self._check_target_module_exists(peft_config, name))
            _warn_of_routers(model, [name for name in wanted if f"{name}.weight" not in targeted])
            peft_config.target_modules = found.keys() - rest
        self._plans, self._planned = Plans(peft_config), dict[str, Planned]()
        sharing, self._sharing = Sharing(peft_config), Sharing(peft_config)
        held: dict[str, Encoding] = {}
        devices: dict[str, Any] = {}
        whole = {name: module for name, module in targets(self, peft_config, model)}
        others = [config for config in self.peft_config.values() if config is not peft_config]
        check_tokens(model, peft_config, others, whole | dict(adapted_layers(model)))
        self._attention = {
            name: attention_targets(peft_config, name, module) for name, module in whole.items() if is_attention(module)
        }
        self._wrapped = {target.key: target.layer for found in self._attention.values() for target in found}
        for target in parameters:
            if target.module in whole.values():
                raise ValueError(
                    f"{target.key!r} is among target_parameters and its module among target_modules; name one of both"
                )
        weights = [target for found in self._attention.values() for target in found]
        layers = {name: module for name, module in whole.items() if name not in self._attention}
        check_apart(
            peft_config,
            model,
            layers,
            [*weights, *parameters],
            lambda name: self._check_target_module_exists(peft_config, name),
        )
        places: list[tuple[str, str, nn.Module, ParameterTarget | None]] = []
        for name, module in whole.items():
            found = self._attention.get(name)
            places += [(t.key, t.path, t.module, t) for t in found] if found else [(name, name, module, None)]
        places += [(target.key, target.path, target.module, target) for target in parameters]
        for name, path, module, parameter in places:
            planned = self._planned[name] = self._plan(name, module, parameter)
            lenders = sharing.lenders(name, planned.factors, name)
            own = ((part, encoding) for part, encoding in planned.encodings.items() if part not in lenders)
            held |= {f"{path}.{PREFIX}{part}": encoding for part, encoding in own}
            devices[name] = next((p.device for p in module.parameters()), None)
            for part, holder in lenders.items():
                if devices[name] != devices[holder]:
                    raise ValueError(
                        f"modules that share a circuit are on one device, but {part} of {name!r} on {devices[name]} "
                        f"would be that of {holder!r} on {devices[holder]}; leave out share, or use one device"
                    )
        if (incoming := Incoming.loading("QCIRCUIT")) is not None:
            try:
                incoming.decode(held)
            except ValueError as error:
                raise ValueError(f"the adapter does not fit this model: {error}") from None
        elif peft_config.terms is None:
            ansatz: Any = peft_config.ansatz
            if told := surplus_of(ansatz, (planned.factors for planned in self._planned.values())):
                warnings.warn(told, stacklevel=2)

    def _add_targets_to_tie(self, peft_config: QCircuitConfig, tied_weight_keys: list[str]) -> None:
        raise ValueError(
            "ensure_weight_tying is for modules_to_save and trainable_token_indices; of modules that share a weight, "
            f"such as {tied_weight_keys[0]!r}, circuits adapt one alone: leave ensure_weight_tying out"
        )

    def _inject_parameters(
        self, peft_config: QCircuitConfig, model: nn.Module, adapter_name: str, low_cpu_mem_usage: bool
    ) -> list[str]:
        """PEFT's, for target_parameters: by the ends of their names, and by what holds for modules."""
        found = parameter_targets(peft_config, model)
        self._wrapped |= {target.key: target.layer for target in found}
        for target in found:
            parent, occupant, last = _get_submodules(model, target.outer)
            with init_empty_weights() if low_cpu_mem_usage else nullcontext():
                self._create_and_replace(
                    peft_config, adapter_name, occupant, last, parent, target.key, parameter_name=target.name
                )
        return [target.key for target in found]

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        """PEFT's, which reads a weight; a module of which a parameter is adapted may have none."""
        if isinstance(child, QCircuitParameter) or isinstance(new_module, QCircuitParameter):
            setattr(parent, child_name, new_module)
        else:
            super()._replace_module(parent, child_name, new_module, child)

    def _post_injection_hook(self, model: nn.Module, config: QCircuitConfig, adapter_name: str) -> None:
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

    def _row(self, module: nn.Module) -> LinearMap | None:
        """What is known of a kind of module, adapted or not; None for one that circuits do not adapt."""
        base = module.get_base_layer() if isinstance(module, QCircuitLayer) else module
        return map_of(base, resolve_quantization_backend(base, **get_quantization_kwargs(self)) is not None)

    def _plan(self, name: str, module: nn.Module, parameter: ParameterTarget | None = None) -> Planned:
        if parameter is not None:
            shape = module.get_parameter(parameter.name).shape
            widths = parameter_map(module, parameter.name).widths(module)
            patterned = parameter.place if parameter.place in self._attention else name  # of an attention, its name
            planned = self._plans.plan(patterned, *widths, experts=shape[0] if len(shape) == 3 else None)
            if planned.factors.rank is None:
                raise ValueError(
                    f"the update of the parameter {name!r} has a rank, but those of "
                    f"{self._plans.config.factorization!r} have the full one; choose another factorization"
                )
            return planned
        if isinstance(module, QCircuitParameter):
            raise ValueError(
                f"target module {name!r} has its parameter {module.parameter_name!r} adapted; adapt it by "
                "target_parameters, or in a model of its own"
            )
        base = module.get_base_layer() if isinstance(module, QCircuitLayer) else module
        row = self._row(base)
        if row is None or inside_attention(base):
            weight = f", or adapt its weight by target_parameters={[f'{name}.weight']}" if is_linear(base, True) else ""
            raise ValueError(
                f"target module {name!r} is a {type(base).__module__}.{type(base).__name__}; a circuit adapter takes "
                f"{', '.join(kind.__name__ for kind in LINEAR_MAPS)}, MultiheadAttention as a whole and quantized "
                "linear layers, of embeddings and convolutions those with torch's own forward and without max_norm, of "
                f"linear layers those that give nothing but their product; leave it out with exclude_modules{weight}"
            )
        planned = self._plans.plan(name, *row.widths(base))
        if not row.dense and planned.factors.rank is None:
            raise ValueError(
                f"target module {name!r} is a {type(base).__name__}, for which an update has a rank, but those of "
                f"{self._plans.config.factorization!r} have the full one; choose another factorization"
            )
        return planned

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
        for weight in self._attention.get(current_key, []):
            outermost = getattr(parent, target_name)
            self._create_and_replace(
                peft_config, adapter_name, outermost, target_name, parent, weight.key, parameter_name=weight.name
            )
        if current_key in self._attention:
            return
        planned = self._planned.get(current_key) or self._plan(current_key, target)
        adapted: Any = target
        if parameter_name is not None:
            wrapped = self._wrapped.get(current_key)
            kind = QCircuitAttention if is_attention(target) else QCircuitParameter
            place = current_key.removesuffix(f".{parameter_name}")
            adapted = wrapped or kind(target, adapter_name, self.bank, place, parameter_name)
            target = wrapped or target
        elif not isinstance(target, QCircuitLayer):
            adapted = QCircuitLinear(target, adapter_name, self.bank, **get_quantization_kwargs(self))
        factors, encodings = planned
        lenders = self._sharing.lenders(current_key, factors, adapted)
        brought = Incoming.loading("QCIRCUIT") is not None  # a checkpoint has its own; one of a generator has none
        kept = {} if brought else adapted.directions(current_key, factors)
        adapted.update_layer(adapter_name, current_key, factors, encodings, peft_config, lenders, kept)
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
        with handed_out(self, QCircuitLayer, kwargs):
            yield

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
                broken = f"The adapter {printable(', '.join(wanted))} seems to be broken"  # PEFT's words for it
                told = f"NaNs detected in the merged weights. {broken}: " if safe else ""
                raise ValueError(f"{told}module {name!r}: {error}") from None

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Add delta W to the base weights.

        Raises ValueError for a shared weight, a parameter that is NaN or infinite, or with ``safe_merge`` such a
        merged weight; nothing is merged then.
        """
        self._check_before_merge(adapter_names, safe_merge)
        with merging(self.model):
            super().merge_adapter(adapter_names=adapter_names, safe_merge=safe_merge)

    def unmerge_adapter(self) -> None:
        """Take all that is merged out of the base weights."""
        with merging(self.model):
            super().unmerge_adapter()

    def delete_adapter(self, adapter_name: str) -> None:
        """PEFT's, whole or not at all."""
        with whole_or_nothing(self):
            super().delete_adapter(adapter_name)

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> Any:
        if merge:
            self._check_before_merge(adapter_names, safe_merge)
        with unloading(self.model, merge=merge, safe_merge=safe_merge, adapter_names=adapter_names):
            model = super()._unload_and_optionally_merge(merge, progressbar, safe_merge, adapter_names)
            self.bank.passes.unwatch(self.model)
        return model

    def add_weighted_adapter(
        self,
        adapters: list[str],
        weights: list[float],
        adapter_name: str,
        combination_type: str = "cat",
        **others: Any,
    ) -> None:
        """Add an adapter whose update is the weighted sum of those of others, exactly; it is not trained at first.

        combination_type: "cat" puts U, lambda and V of the adapters behind each other, so that ranks add up, and any
        adapters with a rank will do; "linear" adds their numbers up, for adapters of the same circuits with the
        same angles, and the rank stays. Others of PEFT's, such as "svd", end in factors that no circuit has. Raises
        ValueError for these, and for adapters that are not there, merged, used at another strength, adapt parameters
        or train the same head.

        >>> from peft import get_peft_model
        >>> from qcircuit_peft import QCircuitConfig
        >>> model = get_peft_model(nn.Sequential(nn.Linear(16, 8)), QCircuitConfig(r=2, target_modules=["0"]))
        >>> model.add_adapter("other", QCircuitConfig(r=3, target_modules=["0"]))
        >>> model.add_weighted_adapter(["default", "other"], [0.5, 2.0], "both")
        >>> model.peft_config["both"].r
        5
        """
        if others:
            raise ValueError(
                f"add_weighted_adapter of circuits has no {next(iter(others))}, which is for an SVD or TIES"
            )
        known: Any = self.peft_config
        config, copied = weighted(self.model, known, adapters, weights, adapter_name, combination_type)
        self.peft_config[adapter_name] = config
        self.inject_adapter(self.model, adapter_name)
        try:
            with torch.no_grad():
                for layer, values, encodings in copied:
                    for part, parameter in layer.own_parameters(adapter_name).items():
                        parameter.copy_(values[part])
                        parameter.requires_grad_(False)
                        known, mine = encodings[part], layer.encodings[adapter_name][part]
                        mine.loaded, mine.pruned = known.loaded, known.pruned
        except BaseException:  # Ctrl-C too: half a sum is none
            self.delete_adapter(adapter_name)
            raise
        self.bank.clear()

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: Any, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """PEFT's renaming; what comes in is looked at before anything is loaded."""
        held: dict[str, Encoding] = {}
        keys: dict[str, str] = {}
        for name, module in adapted_layers(model, adapter_name):
            for part, encoding in module.encodings[adapter_name].items():
                named = f"{base_name(name)}.{PREFIX}{part}"
                held[named], keys[named] = encoding, f"{name}.{PREFIX}{part}.{adapter_name}"
        ours = {key: value for key, value in state_dict.items() if base_name(key) in held or is_ours(key)}
        incoming = Incoming("the checkpoint", "QCIRCUIT", ours, own_names(model))
        incoming.decode(held)
        for _, module in adapted_layers(model, adapter_name):
            module.bank.clear()
        return {keys.get(base_name(key), key): incoming.state.get(key, value) for key, value in state_dict.items()}

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
        state_dict = unfiltered(model, state_dict, unwanted_adapter_names)
        heads = tuple(f"{path}." for path, m in model.named_modules() if isinstance(m, AuxiliaryTrainingWrapper))
        biases = cls._get_learnable_bias_state_dict(model, state_dict, config)
        found = {key: value for key, value in biases.items() if not key.startswith(heads)}  # PEFT adds heads itself
        for name, module in adapted_layers(model, adapter_name):
            module.warn_of_norms(adapter_name)
            for part, encoding in module.encodings[adapter_name].items():
                key = f"{name}.{PREFIX}{part}"
                if (value := entry(state_dict, f"{key}.{adapter_name}")) is not None:
                    found[key] = encoding.stored(key, value)
        return found

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """Keys have none any more: PEFT would take a module of that name for it."""
        return key
