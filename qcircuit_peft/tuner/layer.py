"""The adapted layer: a frozen linear map plus scaling * U diag(lambda) V^T, with U and V from circuits."""

import hashlib
import warnings
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from peft.utils.quantization_utils import quantization_extra_repr, resolve_quantization_backend
from torch import Tensor, nn
from torch.nn.functional import dropout
from transformers.pytorch_utils import Conv1D

from qcircuit_peft.factorizations.svd import SVD
from qcircuit_peft.tuner.bank import FrameBank, Frames
from qcircuit_peft.tuner.checkpoint import check_finite


def features(base: nn.Module) -> tuple[int, int]:
    """``(in, out)`` of a linear layer, also a quantized one or the transposed Conv1D of GPT-2."""
    if isinstance(base, Conv1D):
        return base.nx, base.nf
    return base.in_features, base.out_features  # type: ignore[return-value]


def generators(seed: int | None, name: str) -> dict[str, torch.Generator] | None:
    """Random generators for the angles of a module: the same for the same seed and module name, on any machine."""
    if seed is None:
        return None
    digests = {part: hashlib.blake2b(f"{seed}/{name}/{part}".encode(), digest_size=7).digest() for part in ("u", "v")}
    return {part: torch.Generator().manual_seed(int.from_bytes(digest)) for part, digest in digests.items()}


class QCircuitLayer(BaseTunerLayer):
    """What is common to adapted layers: parameters by adapter name, and their frames.

    Parameters are flat, one vector each: ``qcircuit_u`` and ``qcircuit_v`` are angles in radians, ``qcircuit_lambda``
    the r singular values before scaling.
    """

    adapter_layer_names = ("qcircuit_u", "qcircuit_v", "qcircuit_lambda")
    other_param_names = ("factors", "rates")

    def __init__(self, base_layer: nn.Module, bank: FrameBank, **kwargs: Any) -> None:
        self.base_layer = base_layer
        self.quantization_backend = resolve_quantization_backend(
            self.get_base_layer(), get_apply_tensor_subclass=kwargs.get("get_apply_tensor_subclass")
        )
        self.qcircuit_u = nn.ParameterDict({})
        self.qcircuit_v = nn.ParameterDict({})
        self.qcircuit_lambda = nn.ParameterDict({})
        self.factors: dict[str, SVD] = {}
        self.rates: dict[str, float] = {}
        self.frozen_peft_weight_names: dict[str, tuple[str, ...]] = {}
        self.in_features, self.out_features = features(self.get_base_layer())
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self.bank = bank
        bank.register(self)

    def update_layer(self, adapter_name: str, name: str, factors: SVD, config: Any) -> None:
        """Add an adapter; ``name`` is the module's name in the base model, by which a seed is told apart."""
        self.factors[adapter_name] = factors
        self.rates[adapter_name] = float(config.dropout)
        if not config.train_angles:
            self.frozen_peft_weight_names[adapter_name] = ("qcircuit_u", "qcircuit_v")
        for part, value in factors.initial(config.init, generators(config.seed, name)).items():
            getattr(self, f"qcircuit_{part}")[adapter_name] = nn.Parameter(value)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)
        self.bank.clear()

    def circuit_parameters(self, adapter: str) -> tuple[Tensor, Tensor, Tensor]:
        """The angles of U and V, and lambda."""
        return self.qcircuit_u[adapter], self.qcircuit_v[adapter], self.qcircuit_lambda[adapter]

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter, as PEFT asks for on every layer."""
        super().delete_adapter(adapter_name)
        self.bank.clear()

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """To the device of the base layer, but in float32, or float64 for such a base: circuits need the digits."""
        found, dtype = self._get_base_layer_device_and_dtype(self.get_base_layer())
        wanted = torch.float64 if dtype == torch.float64 else torch.float32
        for name in self.adapter_layer_names:
            parameters = getattr(self, name)
            if adapter_name in parameters and not (old := parameters[adapter_name]).is_meta:
                moved = old.detach().to(device=device or found, dtype=wanted)
                if (moved.device, moved.dtype) != (old.device, old.dtype):
                    parameters[adapter_name] = nn.Parameter(moved, requires_grad=old.requires_grad)

    def check_parameters(self, adapter: str) -> None:
        """Raise ValueError if a parameter of an adapter is NaN or infinite."""
        for name, value in zip(self.adapter_layer_names, self.circuit_parameters(adapter), strict=True):
            check_finite(f"{name} of adapter {adapter!r}", value)

    def frames_now(self, adapter: str) -> Frames:
        """Weighted U and V of one adapter, generated by themselves; differentiable."""
        factors = self.factors[adapter]
        u, v, lam = (p if p.dtype == torch.float64 else p.float() for p in self.circuit_parameters(adapter))
        return factors.weighted(factors.u.columns(u), lam), factors.v.columns(v)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """The update is a product of two thin matrices, which is what LoRA stores."""
        return True


class QCircuitLinear(nn.Module, QCircuitLayer):
    """A linear layer (``nn.Linear``, a quantized one, or Conv1D) with circuit adapters."""

    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        *,
        name: str,
        factors: SVD,
        config: Any,
        bank: FrameBank,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        QCircuitLayer.__init__(self, base_layer, bank, **kwargs)
        self.fan_in_fan_out = isinstance(self.get_base_layer(), Conv1D)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, name, factors, config)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.bank.register(self)

    def get_delta_weight(self, adapter: str) -> Tensor:
        """delta W of an adapter, in the layout of the base weight; raises ValueError if a parameter is not finite."""
        self.check_parameters(adapter)
        with torch.no_grad():
            delta = self.factors[adapter].delta(*self.frames_now(adapter))
        return delta.mT if self.fan_in_fan_out else delta

    @torch.no_grad()
    def merged_weight(self, adapters: list[str], check: bool = False, sign: int = 1) -> Tensor:
        """The base weight with the updates of some adapters added, or taken away; nothing is changed.

        Raises ValueError if a parameter or, with ``check``, the outcome is not finite.
        """
        weight = self.get_base_weight()
        for adapter in adapters:
            weight = (weight + sign * self.get_delta_weight(adapter).to(weight.device)).to(weight.dtype)
            if check:
                check_finite(f"the weight merged with adapter {adapter!r}", weight)
        return weight

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add delta W of the given, or active, adapters to the base weight.

        Raises ValueError if a parameter or, with ``safe_merge``, a merged weight is not finite; nothing is merged then.
        """
        if names := [name for name in check_adapters_to_merge(self, adapter_names) or [] if name in self.factors]:
            self.set_base_weight(self.merged_weight(names, safe_merge))
            self.merged_adapters += names

    def unmerge(self) -> None:
        """Take all merged updates out of the base weight again."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        names = [name for name in reversed(self.merged_adapters) if name in self.factors]
        self.set_base_weight(self.merged_weight(names, sign=-1))
        self.merged_adapters.clear()

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base layer's output plus the updates of the active adapters."""
        adapter_names = kwargs.pop("adapter_names", None)
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
        for adapter, (weighted, v) in self._frames(x, tuple(self.active_adapters)).items():
            result = result + self.factors[adapter].forward(self._dropped(x, adapter), weighted, v)
        return result if result.dtype == dtype else result.to(dtype)

    def _dropped(self, x: Tensor, adapter: str) -> Tensor:
        rate = self.rates[adapter]
        return dropout(x, rate) if rate and self.training else x

    def _frames(self, x: Tensor, adapters: tuple[str, ...]) -> dict[str, Frames]:
        """The frames of this layer in the dtype that its products with ``x`` run in."""
        dtype, kind = x.dtype, x.device.type
        if dtype != torch.float64 and torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
        if torch._C._are_functorch_transforms_active() or torch.jit.is_tracing() or torch.compiler.is_exporting():
            # they see neither past a call nor into a graph that layers share
            frames = {name: self.frames_now(name) for name in adapters if name in self.factors}
            return {name: (u.to(dtype), v.to(dtype)) for name, (u, v) in frames.items()}
        return self.bank.frames(self, adapters, dtype)

    def _mixed(self, x: Tensor, adapter_names: list[str], *args: Any, **kwargs: Any) -> Tensor:
        """Every sample with an adapter of its own; "__base__" stands for none."""
        if self.merged:
            raise ValueError(
                f"adapter_names needs unmerged adapters, but {self.merged_adapters} are merged; call unmerge_adapter"
            )
        if len(adapter_names) != len(x):
            raise ValueError(
                f"adapter_names has one name for every input, got {len(adapter_names)} for {len(x)} inputs"
            )
        result = self.base_layer(x, *args, **kwargs)
        used = tuple(sorted(set(adapter_names) - {"__base__"}))
        for adapter, (weighted, v) in self._frames(x, used).items():
            rows = [row for row, name in enumerate(adapter_names) if name == adapter]
            result[rows] += self.factors[adapter].forward(self._dropped(x[rows], adapter), weighted, v).to(result.dtype)
        return result

    def __repr__(self) -> str:
        return "qcircuit." + super().__repr__()

    def extra_repr(self) -> str:
        """The adapters' shapes, and the quantization of the base layer if there is one."""
        rows = [f"{name}: {f.u.n}x{f.v.n}, r={f.u.k}, scaling={f.scaling:g}" for name, f in self.factors.items()]
        return ", ".join(filter(None, [*rows, quantization_extra_repr(self)]))
