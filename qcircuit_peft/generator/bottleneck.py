"""The bottleneck adapter after a linear layer, such as the last one of a feed-forward block; PEFT has none."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import PeftType
from torch import Tensor, nn

from qcircuit_peft.checks import boolean, one_of, whole_number
from qcircuit_peft.recomputation import check_unchanged, may_run_again
from qcircuit_peft.tuner.guard import injecting, unloading
from qcircuit_peft.tuner.heads import in_use, is_target, watch_heads
from qcircuit_peft.tuner.layer import check_linear
from qcircuit_peft.tuner.maps import features
from qcircuit_peft.tuner.meaning import INCIDENTAL, check_same, meaning
from qcircuit_peft.tuner.mixed import handed_out, rows_of
from qcircuit_peft.tuner.names import check_adapter_name, unfiltered

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "gelu": nn.functional.gelu,
    "tanh": torch.tanh,
}


MAX_R = 1 << 16  # layers are built before they can be counted


@dataclass
class BottleneckConfig(PeftConfig):
    """What `get_peft_model` needs for adapters h + up(act(down(h))) behind the output h of linear layers.

    r: the width in between. target_modules, exclude_modules, modules_to_save: as in LoRA; for feed-forward adapters
    (FFA) name the last layer of the feed-forward block. activation: a name in ``ACTIVATIONS``. init_weights: up starts
    at 0; False has it start at random: for tests, as PEFT's own.

    Source: Houlsby et al. 2019, arXiv 1902.00751. Raises ValueError for an r outside 1 to 65536 or another activation.

    >>> from peft import get_peft_model
    >>> model = get_peft_model(nn.Sequential(nn.Linear(8, 6)), BottleneckConfig(r=2, target_modules=["0"]))
    >>> model.get_nb_trainable_parameters()[0]
    32
    """

    r: int = 8
    activation: str = "relu"
    target_modules: str | list[str] | None = None
    exclude_modules: str | list[str] | None = None
    modules_to_save: list[str] | None = None
    init_weights: bool = True

    incidental: ClassVar[set[str]] = {"init_weights", *INCIDENTAL}

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.BOTTLENECK  # type: ignore[attr-defined]
        whole_number("r", self.r, 1, MAX_R)
        one_of("activation", self.activation, ACTIVATIONS)
        boolean("init_weights", self.init_weights)

    def check_takes(self, stored: PeftConfig, adapter: str) -> None:
        """Raise ValueError, naming a field, if the numbers of a stored adapter mean something else in this one."""
        check_same(adapter, meaning(self.to_dict(), self.incidental), meaning(stored.to_dict(), self.incidental))


class BottleneckLayer(nn.Module, BaseTunerLayer):
    """A linear layer with bottleneck adapters behind it, one after the other. They cannot be merged."""

    adapter_layer_names = ("bottleneck_down", "bottleneck_up")
    other_param_names = ("activations",)

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = features(base_layer)
        self.bottleneck_down, self.bottleneck_up = nn.ModuleDict(), nn.ModuleDict()
        self.activations: dict[str, str] = {}
        self.merged_adapters: list[str] = []

    def update_layer(self, adapter_name: str, config: BottleneckConfig) -> None:
        """Add an adapter."""
        self.bottleneck_down[adapter_name] = nn.Linear(self.out_features, config.r)
        self.bottleneck_up[adapter_name] = up = nn.Linear(config.r, self.out_features)
        if config.init_weights:
            nn.init.zeros_(up.weight)
            nn.init.zeros_(up.bias)
        self.activations[adapter_name] = config.activation
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base layer's output through the active adapters, or through those named for every input."""
        names = kwargs.pop("adapter_names", None)
        if may_run_again():
            check_unchanged(self, in_use(self, self.bottleneck_down, names))
        h = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return h
        if names is not None:
            rows_by_adapter, h = rows_of(self, x, names), h.clone()
            for name, rows in rows_by_adapter.items():
                h[rows] = self._through(name, h[rows])
            return h
        for name in self.active_adapters:
            h = self._through(name, h)
        return h

    def _through(self, name: str, h: Tensor) -> Tensor:
        """The output of an adapter; h itself where the layer does not have it."""
        if name not in self.bottleneck_down:
            return h
        down, up = self.bottleneck_down[name], self.bottleneck_up[name]
        inside = down(h.to(down.weight.dtype))  # type: ignore[arg-type]
        return h + up(ACTIVATIONS[self.activations[name]](inside)).to(h.dtype)

    def merge(self, *args: Any, **kwargs: Any) -> None:
        """Refused: the adapter is not linear."""
        BottleneckModel.refuse_merge()


class BottleneckModel(BaseTuner):
    """A model with bottleneck adapters; raises ValueError for a target that is not a linear layer."""

    prefix: str = "bottleneck_"
    tuner_layer_cls = BottleneckLayer
    _check_target_module_exists = staticmethod(is_target)
    target_module_mapping: dict[str, list[str]] = {"gpt2": ["mlp.c_proj"], "llama": ["down_proj"]}  # noqa: RUF012

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """PEFT's; raises ValueError before anything else for a name that no adapter can have."""
        check_adapter_name(adapter_name)
        with injecting(self, adapter_name):
            super().inject_adapter(model, adapter_name, *args, **kwargs)
            watch_heads(model)

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        check_linear(self, peft_config, model)

    @staticmethod
    def refuse_merge() -> None:
        """Raise ValueError: the adapter is not linear."""
        raise ValueError("a bottleneck adapter is not linear, so it cannot be merged into weights")

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> Any:
        if merge:
            self.refuse_merge()
        with unloading(self.model, merge=merge, safe_merge=safe_merge, adapter_names=adapter_names):
            return super()._unload_and_optionally_merge(merge, progressbar, safe_merge, adapter_names)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Hand ``adapter_names`` of a call to every adapted layer, for batches of several adapters."""
        with handed_out(self, BottleneckLayer, kwargs):
            yield

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: Any,
        config: Any,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        """PEFT's choice of entries, of modules of any name."""
        state_dict = unfiltered(model, state_dict, unwanted_adapter_names)
        return super()._get_adapter_state_dict(model, config, adapter_name, state_dict, unwanted_adapter_names)

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """The name goes where it is an adapter's, not a module's."""
        place, _, last = key.rpartition(".")
        holder = place.removesuffix(f".{adapter_name}")
        of_adapter = holder != place and holder.rpartition(".")[2] in BottleneckLayer.adapter_layer_names
        return f"{holder}.{last}" if of_adapter else key

    def _create_and_replace(
        self, peft_config: Any, adapter_name: str, target: Any, target_name: str, parent: Any, *args: Any, **kwargs: Any
    ) -> None:
        layer = target
        if not isinstance(target, BottleneckLayer):
            layer = BottleneckLayer(target)
            layer._active_adapter = adapter_name
            self._replace_module(parent, target_name, layer, target)
        layer.update_layer(adapter_name, peft_config)
        if adapter_name not in self.active_adapters:
            layer.bottleneck_down[adapter_name].requires_grad_(False)
            layer.bottleneck_up[adapter_name].requires_grad_(False)
