"""The adapted layer: a frozen linear map plus an update that is made of circuits or other few-parameter frames."""

import hashlib
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from accelerate.utils import align_module_device, has_offloaded_params
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_adapters_to_merge
from peft.utils.quantization_utils import quantization_extra_repr, resolve_quantization_backend
from torch import Tensor, nn
from torch.nn.functional import dropout

from qcircuit_peft.backends.estimation import SWITCH
from qcircuit_peft.checks import number
from qcircuit_peft.factorizations.combined import part_itself
from qcircuit_peft.factorizations.parts import (
    Acting,
    Base,
    Built,
    Factorization,
    Kept,
    Vector,
    frames,
    initial,
    make,
    sizes,
)
from qcircuit_peft.factorizations.subspace import kept_of
from qcircuit_peft.precision import is_autocast, no_autocast
from qcircuit_peft.recomputation import check_unchanged, may_run_again, unhooked
from qcircuit_peft.tuner.bank import FrameBank, Want
from qcircuit_peft.tuner.encoding import Encoding, check_finite
from qcircuit_peft.tuner.heads import in_use
from qcircuit_peft.tuner.maps import LINEAR, LinearMap, is_linear, map_of
from qcircuit_peft.tuner.mixed import rows_of
from qcircuit_peft.tuner.names import PREFIX, tuner_layers


def generators(seed: int | None, name: str, parts: Iterable[str]) -> dict[str, torch.Generator] | None:
    """Random generators for the parts of a module: the same for the same seed and module name, on any machine."""
    if seed is None:
        return None
    digests = {part: hashlib.blake2b(f"{seed}/{name}/{part}".encode(), digest_size=7).digest() for part in parts}
    return {part: torch.Generator().manual_seed(int.from_bytes(digest)) for part, digest in digests.items()}


def _check_exact() -> None:
    """Raise ValueError where columns are estimated: what is merged could not be taken out again."""
    if SWITCH.estimator is not None:
        raise ValueError("within noise_aware columns are estimated, so nothing is merged or unmerged; leave it first")


def is_sharded(parameter: Tensor) -> bool:
    """Whether this process has a part of a tensor: FSDP2's are DTensors, FSDP1 marks those that it flattened."""
    return hasattr(parameter, "placements") or getattr(parameter, "_fsdp_flattened", False)


def _parameter(layer: Any, part: str, adapter: str) -> nn.Parameter:
    """A layer's own parameter, looked up where modules keep theirs: attributes take longer, and every pass asks."""
    held = layer._modules[PREFIX + part]
    found = held._parameters.get(adapter)
    return held[adapter] if found is None else found  # a parametrized one is not kept there


class QCircuitLayer(BaseTunerLayer):
    """What is common to adapted layers: parameters by adapter name, and what is made of them.

    Parameters are flat, one vector for each part of the factorization. For "svd", ``qcircuit_u`` and ``qcircuit_v``
    are the frames' parameters (angles in radians for circuits), ``qcircuit_lambda`` the r singular values before
    scaling. A part that layers share is held by the first of them; the others find it through ``lenders``.
    """

    parameter_name = "weight"  # of what is adapted, in the base layer
    adapter_layer_names: tuple[str, ...] = ()  # of an instance: those of its adapters' parts
    cast_input_dtype_enabled = True  # for PEFT's ``disable_input_dtype_casting``: inputs are taken as they are
    other_param_names = ("factors", "rates", "scales", "lenders", "encodings")

    def __init__(self, base_layer: nn.Module, bank: FrameBank, **kwargs: Any) -> None:
        self.base_layer = base_layer
        self.quantization_backend = resolve_quantization_backend(
            self.get_base_layer(), get_apply_tensor_subclass=kwargs.get("get_apply_tensor_subclass")
        )
        self.factors: dict[str, Factorization] = {}
        self.rates: dict[str, float] = {}
        self.scales: dict[str, float] = {}  # of the adapters whose strength has been changed
        self.lenders: dict[str, dict[str, QCircuitLayer]] = {}
        self.encodings: dict[str, dict[str, Encoding]] = {}  # of the parts that this layer holds
        self.frozen_peft_weight_names: dict[str, tuple[str, ...]] = {}
        self.map: LinearMap = kwargs.get("linear_map") or (
            map_of(self.get_base_layer(), self.quantization_backend is not None) or LINEAR
        )
        self.in_features, self.out_features = self.map.widths(self.get_base_layer())
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._unmerged: Tensor | None = None
        self.bank = bank
        bank.register(self)

    def update_layer(
        self,
        adapter_name: str,
        name: str,
        factors: Factorization,
        encodings: Mapping[str, Encoding],
        config: Any,
        lenders: Mapping[str, Any],
        kept: Mapping[str, Tensor],
    ) -> None:
        """Add an adapter; ``name`` is the module's name in the base model, by which a seed is told apart.

        ``encodings`` are those of the parts; ``lenders`` the layers that hold the parts which this one shares; ``kept``
        what parts are that are not drawn.
        """
        self.factors[adapter_name] = factors
        self.rates[adapter_name] = float(config.dropout)
        self.lenders[adapter_name] = dict(lenders)
        self.encodings[adapter_name] = {part: own for part, own in encodings.items() if part not in lenders}
        still = Kept if config.train_angles else (Kept, Built, Acting)
        if frozen := tuple(PREFIX + name for name, part in factors.parts.items() if isinstance(part, still)):
            self.frozen_peft_weight_names[adapter_name] = frozen
        random = generators(config.seed, name, sizes(factors))
        start = initial(factors, config.init, random, zero=config.init_weights)
        for part, value in {**start, **kept}.items():
            if part not in lenders:
                if (attribute := PREFIX + part) not in self.adapter_layer_names:
                    setattr(self, attribute, nn.ParameterDict({}))
                    self.adapter_layer_names = (*self.adapter_layer_names, attribute)
                getattr(self, attribute)[adapter_name] = nn.Parameter(value)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)
        self.bank.clear()

    def named(self, path: str) -> str:
        """The name of what this layer adapts, where the layer is at ``path``."""
        return path

    def patterned(self, path: str) -> str:
        """The name by which ``rank_pattern`` and the like know what this layer adapts, where it is at ``path``."""
        return self.named(path)

    def intrinsic_parameters(self, adapter: str) -> dict[str, Tensor]:
        """The parameters of an adapter by part, shared ones too."""
        lenders = self.lenders[adapter]
        return {part: _parameter(lenders.get(part, self), part, adapter) for part in self.factors[adapter].parts}

    def wants(self, adapter: str) -> dict[str, Want]:
        """What this layer wants of the parameters of an adapter, by part; nothing if it does not have the adapter."""
        if adapter not in self.factors:
            return {}
        found, parts = {}, self.factors[adapter].parts  # a lender's frame may have another number of columns
        for name, parameter in self.intrinsic_parameters(adapter).items():
            part = parts[name]
            frame = part.frame if isinstance(part, Built) else None
            found[name] = Want(parameter, frame, self.encoding(adapter, name))
        return found

    def own_parameters(self, adapter: str) -> dict[str, Tensor]:
        """The parameters of an adapter by part, without those that other layers hold."""
        return {part: getattr(self, PREFIX + part)[adapter] for part in self.encodings[adapter]}

    def encoding(self, adapter: str, part: str) -> Encoding:
        """How a parameter of an adapter is encoded, a shared one too."""
        return self.lenders[adapter].get(part, self).encodings[adapter][part]

    def kinds_of_parameters(self) -> Iterator[tuple[Tensor, str]]:
        """The trained parameters of this layer, of all adapters, and how each learns, a key of ``RATES``."""
        for adapter, factors in self.factors.items():
            for name, parameter in self.own_parameters(adapter).items():
                part = factors.parts[name]
                if isinstance(part, Vector):
                    yield parameter, "lambdas" if part_itself(name) == "lambda" else "cores"
                elif not isinstance(part, Kept):
                    yield parameter, "angles" if any(True for _ in part.frame.circuits()) else "frames"

    def values(self, adapter: str) -> dict[str, Tensor]:
        """The parameters of an adapter as its update uses them: in float32 or float64, quantized if it is."""
        found = self.intrinsic_parameters(adapter).items()
        wide = {part: p if p.dtype == torch.float64 else p.float() for part, p in found}
        return {part: self.encoding(adapter, part).used(p) for part, p in wide.items()}

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter, as PEFT asks for on every layer."""
        super().delete_adapter(adapter_name)
        self.bank.clear()

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        self.cast(adapter_name, device=device)

    def cast(self, adapter: str, wide: bool = True, device: torch.device | None = None) -> None:
        """Bring an adapter to the device of the base layer, in float32, or float64 for such a base.

        Circuits need the digits; but unless ``wide``, parameters are in half precision if the base is.
        """
        found, dtype = self._get_base_layer_device_and_dtype(self.get_base_layer())
        kept = (torch.float64,) if wide else (torch.float64, torch.float16, torch.bfloat16)
        dtype = dtype if dtype in kept else torch.float32
        for name in self.adapter_layer_names:
            parameters = getattr(self, name)
            if adapter in parameters and not (old := parameters[adapter]).is_meta:
                moved = old.detach().to(device=device or found, dtype=dtype)
                if (moved.device, moved.dtype) != (old.device, old.dtype):
                    parameters[adapter] = nn.Parameter(moved, requires_grad=old.requires_grad)

    def check_parameters(self, adapter: str) -> None:
        """Raise ValueError if a parameter of an adapter is NaN or infinite; else ``warn_of_norms``."""
        for part, value in self.intrinsic_parameters(adapter).items():
            check_finite(f"{PREFIX}{part} of adapter {adapter!r}", value)
        self.warn_of_norms(adapter)

    def warn_of_norms(self, adapter: str) -> None:
        """Warn of frames that are not orthonormal any more."""
        values = self.values(adapter)
        for part, frame in frames(self.factors[adapter]).items():
            if flaw := frame.flaw(values[part]):
                warnings.warn(f"{PREFIX}{part} of adapter {adapter!r}: {flaw}", stacklevel=2)

    def set_scale(self, adapter: str, scale: float) -> None:
        """Use an adapter ``scale`` times as strong as it was trained; nothing happens if the layer does not have it.

        Merging and plain-LoRA copies follow; what is saved, and measured of circuits, is the adapter as it was trained.
        Raises ValueError for a scale that is no finite number, or while adapters are merged.
        """
        number("scale", scale)
        if self.merged:
            raise ValueError(
                "the strength of an adapter is changed while none is merged, but "
                f"{', '.join(self.merged_adapters)} is; call unmerge_adapter first"
            )
        if adapter in self.factors:
            self.scales[adapter] = float(scale)

    def scale_layer(self, scale: float) -> None:
        """Multiply the strength of all active adapters."""
        for adapter in self.active_adapters:
            self.set_scale(adapter, self.scales.get(adapter, 1.0) * number("scale", scale))

    def unscale_layer(self, scale: float | None = None) -> None:
        """Divide the strength of all active adapters; without a number they are as they were trained."""
        if scale == 0:
            raise ValueError("the strength of an adapter is not divided by 0; leave scale out to have it as trained")
        for adapter in self.active_adapters:
            self.set_scale(adapter, 1.0 if scale is None else self.scales.get(adapter, 1.0) / number("scale", scale))

    def scaled(self, adapter: str, update: Tensor) -> Tensor:
        """An update, or what it gives, at the strength at which its adapter is used."""
        scale = self.scales.get(adapter, 1.0)
        return update if scale == 1 else update * scale

    def made_now(self, adapter: str) -> dict[str, Tensor]:
        """What the factorization of an adapter works on, made for it by itself; differentiable.

        Raises ValueError if a parameter is in shards here, such as one that a layer of another FSDP unit holds.
        """
        for part, value in self.intrinsic_parameters(adapter).items():
            if is_sharded(value):
                raise ValueError(
                    f"{PREFIX}{part} of adapter {adapter!r} is in shards where a layer needs it whole; share circuits "
                    "among layers of one FSDP unit only, or leave out share, and gather parameters outside of training"
                )
        return make(self.factors[adapter], self.values(adapter))

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Whether the update is a product of two thin matrices, which is what LoRA stores."""
        return self.factors[adapter_name].rank is not None


class QCircuitLinear(nn.Module, QCircuitLayer):
    """A module of ``LINEAR_MAPS``, such as a linear layer or an embedding, with circuit adapters."""

    def __init__(self, base_layer: nn.Module, adapter_name: str, bank: FrameBank, **kwargs: Any) -> None:
        super().__init__()
        QCircuitLayer.__init__(self, base_layer, bank, **kwargs)
        self._active_adapter = adapter_name

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.bank.register(self)

    def get_delta_weight(self, adapter: str) -> Tensor:
        """delta W of an adapter, in the layout of the base weight; raises ValueError if a parameter is not finite."""
        return self._delta(adapter, self._original() if self.factors[adapter].uses_base else None)

    def _delta(self, adapter: str, original: Tensor | None) -> Tensor:
        self.check_parameters(adapter)
        with torch.no_grad():
            original = None if original is None else self.map.matrix(original)
            delta = self.scaled(adapter, self.factors[adapter].delta(self.made_now(adapter), original))
        return self.map.weight(self.get_base_layer(), delta)

    def directions(self, name: str, factors: Factorization) -> dict[str, Tensor]:
        """What those parts of a factorization are that it keeps of the weight; raises ValueError if it is not whole."""
        shape = factors.n_out, factors.n_in

        def weight() -> Tensor:
            found = self.map.matrix(self._original())
            if found.shape[-2:] != shape:
                raise ValueError(f"its weight is here as {tuple(found.shape)}, but whole it is {shape}")
            return found

        try:
            return kept_of(factors.parts, weight)
        except ValueError as error:
            raise ValueError(f"module {name!r}: {error}") from None

    def _original(self) -> Tensor:
        """The base weight without the updates that are merged."""
        weight = self.get_base_weight()
        if self._unmerged is not None:
            return self._unmerged.to(weight.device, weight.dtype)
        for adapter in reversed(self.merged_adapters):
            weight = (weight - self._delta(adapter, None).to(weight.device)).to(weight.dtype)
        return weight

    @torch.no_grad()
    def merged_weight(self, adapters: list[str], check: bool = False) -> Tensor:
        """The base weight with the updates of some adapters added; nothing is changed.

        Raises ValueError if a parameter or, with ``check``, the outcome is not finite.
        """
        weight = self.get_base_weight()
        for adapter in adapters:
            weight = (weight + self.get_delta_weight(adapter).to(weight.device)).to(weight.dtype)
            if check:
                check_finite(f"the weight merged with adapter {adapter!r}", weight)
        return weight

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add delta W of the given, or active, adapters to the base weight.

        Raises ValueError if a parameter or, with ``safe_merge``, a merged weight is not finite, and within
        ``noise_aware``; nothing is merged then.
        """
        _check_exact()
        if names := [name for name in check_adapters_to_merge(self, adapter_names) or [] if name in self.factors]:
            merged = self.merged_weight(names, safe_merge)
            with self._whole():
                if any(self.factors[name].uses_base for name in names):  # such an update cannot be taken away again
                    self._unmerged = self._original().clone()
                self.set_base_weight(merged)
                self.merged_adapters += names

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Within it, the base weight and what is merged into it change together, or not at all."""
        weight, names, unmerged = self.get_base_weight(), list(self.merged_adapters), self._unmerged
        try:
            yield
        except BaseException:
            self.set_base_weight(weight)
            self.merged_adapters, self._unmerged = names, unmerged
            raise

    @torch.no_grad()
    def unmerge(self) -> None:
        """Take all merged updates out of the base weight again."""
        _check_exact()
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        with self._whole():
            self.merged_adapters = [name for name in self.merged_adapters if name in self.factors]
            self.set_base_weight(self._original())
            self._unmerged = None
            self.merged_adapters = []

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base layer's output plus the updates of the active adapters."""
        adapter_names = kwargs.pop("adapter_names", None)
        if may_run_again():
            check_unchanged(self, in_use(self, self.factors, adapter_names, self.scales))
        if self.disable_adapters or (self.merged and adapter_names is None):
            if self.disable_adapters and self.merged:
                self.unmerge()
            return self.base_layer(x, *args, **kwargs)
        if adapter_names is not None:
            return self._mixed(x, adapter_names, *args, **kwargs)
        result = self.base_layer(x, *args, **kwargs)
        if self.quantization_backend is not None:
            result = self.quantization_backend.maybe_clone_base_result(result)
        dtype = result.dtype
        base = self._without_bias(x, result, *args, **kwargs)
        for adapter, made in self._made(x, tuple(self.active_adapters)).items():
            result = result + self._updated(adapter, x, made, base)
        return result if result.dtype == dtype else result.to(dtype)

    def _without_bias(self, x: Tensor, result: Tensor, *args: Any, **kwargs: Any) -> Base:
        """The base layer as a linear map; ``result`` is what it made of ``x``."""

        def base(z: Tensor) -> Tensor:
            out = result if z is x else self.base_layer(z, *args, **kwargs)
            bias: Any = self.get_base_layer().bias
            return out if bias is None else out - bias

        return base

    def _updated(self, adapter: str, x: Tensor, made: Mapping[str, Tensor], base: Base) -> Tensor:
        """What an adapter gives of these inputs, some of which are dropped in training, but no indices."""
        rate = self.rates[adapter]
        x = dropout(x, rate) if rate and self.training and x.is_floating_point() else x
        return self.scaled(adapter, self.map.update(self.get_base_layer(), x, self.factors[adapter], made, base))

    def _made(self, x: Tensor, adapters: tuple[str, ...]) -> dict[str, dict[str, Tensor]]:
        """What the factorizations of this layer work on, in the dtype that their products with ``x`` run in."""
        base: Any = self.get_base_layer()
        dtype, kind = (x if x.is_floating_point() else base.weight).dtype, x.device.type
        if dtype != torch.float64 and is_autocast(kind):
            dtype = torch.get_autocast_dtype(kind)
        own = [name for name in adapters if name in self.factors]
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active():
            return {name: self._made_alone(name, x, dtype) for name in own}  # they see into no graph that layers share
        wants = {name: self.wants(name) for name in own}
        made = [want for parts in wants.values() for want in parts.values() if want.is_made]
        give = self.bank.made(self, made, adapters, dtype)
        if give is None:
            with unhooked(), self._onloaded(own):
                return {name: self._made_alone(name, x, dtype) for name in own}
        return {name: {part: give(want) for part, want in parts.items()} for name, parts in wants.items()}

    def _made_alone(self, adapter: str, x: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        with no_autocast(x):
            return {part: value.to(dtype) for part, value in self.made_now(adapter).items()}

    @contextmanager
    def _onloaded(self, adapters: list[str]) -> Iterator[None]:
        """Within it, parameters that accelerate keeps elsewhere are here: it brings them when their module is called.

        But theirs is a ParameterDict, which nobody calls.
        """
        holders = {id(layer): layer for name in adapters for layer in (self, *self.lenders[name].values())}
        with ExitStack() as stack:
            for holder in holders.values():
                for name in holder.adapter_layer_names:
                    if has_offloaded_params(parameters := getattr(holder, name)):
                        stack.enter_context(align_module_device(parameters))
            yield

    def _mixed(self, x: Tensor, adapter_names: list[str], *args: Any, **kwargs: Any) -> Tensor:
        """Every sample with an adapter of its own; "__base__" stands for none."""
        all_rows = rows_of(self, x, adapter_names)
        plain = self.base_layer(x, *args, **kwargs)
        result = plain.clone()
        for adapter, made in self._made(x, tuple(all_rows)).items():
            rows = all_rows[adapter]
            some = x[rows]
            base = self._without_bias(some, plain[rows], *args, **kwargs)
            result[rows] += self._updated(adapter, some, made, base).to(result.dtype)
        return result

    def __repr__(self) -> str:
        return "qcircuit." + super().__repr__()

    def extra_repr(self) -> str:
        """The adapters' shapes, and the quantization of the base layer if there is one."""
        rows = [
            f"{name}: {f.n_out}x{f.n_in}, rank {'full' if f.rank is None else f.rank}, scaling={f.scaling:g}"
            for name, f in self.factors.items()
        ]
        return ", ".join(filter(None, [*rows, quantization_extra_repr(self)]))


def adapted_layers(model: nn.Module, adapter: str | None = None) -> Iterator[tuple[str, QCircuitLinear]]:
    """Name and module of every layer of a model that has circuit adapters, or that has this one.

    Names are those of state dicts, which do not tell the wrappers of FSDP.
    """
    for name, module in model.named_modules():
        if isinstance(module, QCircuitLinear) and (adapter is None or adapter in module.factors):
            yield name.replace("_fsdp_wrapped_module.", ""), module


def adapters(model: nn.Module, adapter: str | None = None) -> Iterator[tuple[str, QCircuitLinear, str]]:
    """Name, module and adapter of every layer that has this adapter, or, left out, an active one."""
    for name, module in adapted_layers(model):
        for chosen in module.active_adapters if adapter is None else [adapter]:
            if chosen in module.factors:
                yield module.named(name), module, chosen


def targets(tuner: BaseTuner, config: PeftConfig, model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Name and module of all modules that a configuration targets, for a tuner to look at before it replaces one."""
    inside = tuple(f"{name}." for name in tuner_layers(model))
    for name, module in model.named_modules():
        if name and not name.startswith(inside) and tuner._check_target_module_exists(config, name):
            yield name, module


def check_linear(tuner: BaseTuner, config: PeftConfig, model: nn.Module) -> None:
    """Raise ValueError if a configuration targets what is neither a linear layer nor one that is adapted already."""
    for name, module in targets(tuner, config, model):
        base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        if not is_linear(base):
            raise ValueError(f"target module {name!r} is a {type(base).__name__}, not a linear layer")
