"""The tuner: lets PEFT adapt a model by the base method, and puts generated tensors in the place of its parameters."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.integrations import skip_init_on_device
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from qcircuit_peft.generation import Passes
from qcircuit_peft.generator.bottleneck import BottleneckLayer, BottleneckModel
from qcircuit_peft.generator.config import QPAConfig
from qcircuit_peft.generator.guard import seeded
from qcircuit_peft.generator.network import Generator
from qcircuit_peft.generator.source import Source
from qcircuit_peft.generator.targets import SAVED, check_layout, find_targets, layout_of
from qcircuit_peft.recomputation import InUse, check_unchanged, may_run_again
from qcircuit_peft.text import shown
from qcircuit_peft.tuner.guard import injecting, merging, unloading
from qcircuit_peft.tuner.heads import head_in_use, in_use
from qcircuit_peft.tuner.incoming import Incoming
from qcircuit_peft.tuner.layer import QCircuitLayer
from qcircuit_peft.tuner.model import QCircuitModel, check_untied
from qcircuit_peft.tuner.names import GENERATORS, check_adapter_name, entry, tuner_layers, unfiltered

HOLDER = GENERATORS.split(".")[1]


class _Prompt(nn.Module, BaseTunerLayer):
    """Stands for a prompt method, which has no layers, where PEFT asks layers whether they are enabled."""

    adapter_layer_names = ()
    other_param_names = ()

    def __init__(self) -> None:
        super().__init__()
        self.merged_adapters: list[str] = []

    def _move_adapter_to_device_of_base_layer(self, *args: Any) -> None:
        """There is no base layer."""


class QPAModel(BaseTuner):
    """A model whose adapters are generated; made by ``get_peft_model(model, QPAConfig(...))``.

    ``wrapped`` is the model as PEFT adapts it by the base method; ``model`` is what it runs: the adapted model, or for
    a prompt method PEFT's wrapper around it. Raises ValueError, and leaves the model as it was, for a base method
    without trainable parameters, a generator larger than the free memory, or a checkpoint made for another model.
    """

    wrapped: Any
    prefix: str = "qpa_"
    tuner_layer_cls = BaseTunerLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012
    uses_shared_state = True

    def __init__(
        self,
        model: nn.Module,
        peft_config: QPAConfig | dict[str, QPAConfig],
        adapter_name: str,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        nn.Module.__init__(self)
        self.peft_config: dict[str, Any] = peft_config if isinstance(peft_config, dict) else {adapter_name: peft_config}
        self.active_adapter: str | list[str] = adapter_name
        self.targeted_module_names: list[str] = []
        self.targeted_parameter_names: list[str] = []
        object.__setattr__(self, "wrapped", None)  # not a submodule: it would list all parameters a second time
        self.sources: dict[str, Source] = {}
        self.passes = Passes()
        self._mixed: list[str] | None = None  # the names of a call with one for every input
        self.prompt = _Prompt() if self.peft_config[adapter_name].base.is_prompt_learning else None
        setattr(self, HOLDER, nn.ModuleDict())
        self.model = model
        self.inject_adapter(model, adapter_name)

    @skip_init_on_device  # the base method's initial values are needed, also with low_cpu_mem_usage
    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Add an adapter: the base method's by PEFT, then a generator for its trainable parameters."""
        check_adapter_name(adapter_name)
        config = self.peft_config[adapter_name] = copy.deepcopy(self.peft_config[adapter_name])  # the user has it too
        known = {id(parameter) for parameter in model.parameters()}
        first, active = self.wrapped is None, self.active_adapter
        trained = [(parameter, parameter.requires_grad) for parameter in getattr(self, HOLDER).parameters()]
        with injecting(self, adapter_name):
            if first:
                with seeded(config.seed):
                    wrapped = get_peft_model(model, config.base_config(), adapter_name, autocast_adapter_dtype=False)
                object.__setattr__(self, "wrapped", wrapped)
                self.model = wrapped if config.base.is_prompt_learning else wrapped.get_base_model()
                self._generate(adapter_name, config, known)
            else:
                self._same_method(config)
                self._add(adapter_name, config, known)
            if first:
                self.passes.watch(self.model)
            self._watch_layers()
            self.set_adapter(active, inference_mode=config.inference_mode)
            for parameter, wanted in trained:
                parameter.requires_grad_(wanted)  # one more changes nothing of those that there are
        self.sources[adapter_name].join()

    def _watch_layers(self) -> None:
        """Have every layer and head look whether it runs again with what it ran with before; ours do by themselves."""
        for module in self.model.modules():
            known = {getattr(hook, "__func__", None) for hook in module._forward_pre_hooks.values()}
            by_itself = isinstance(module, QCircuitLayer | BottleneckLayer) or QPAModel._look in known
            if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper) and not by_itself:
                module.register_forward_pre_hook(self._look)  # type: ignore[union-attr]

    def _look(self, module: Any, *_: Any) -> None:
        if not may_run_again():
            return
        if isinstance(module, AuxiliaryTrainingWrapper):
            check_unchanged(module, head_in_use(module, self._mixed))
            return
        has, scales = module._get_available_adapters(), getattr(module, "scaling", {})
        own = {name: source for name, source in self.sources.items() if name in has}
        check_unchanged(module, in_use(module, own, self._mixed, scales))

    def _create_and_replace(self, *args: Any, **kwargs: Any) -> None:
        """PEFT's place for making a layer: the base method makes its own, in ``inject_adapter``."""
        raise NotImplementedError

    def _add(self, name: str, config: QPAConfig, known: set[int]) -> None:
        """Add a further adapter."""
        with self.settled(), seeded(config.seed):  # PEFT looks at what others generate, which may draw shots
            self._still(self.wrapped.add_adapter, name, config.base_config(), autocast_adapter_dtype=False)
        self._still(self.wrapped.set_adapter, name)
        self._generate(name, config, known)

    def _generate(self, name: str, config: QPAConfig, known: set[int]) -> None:
        targets, sizes = find_targets(self.wrapped, known)
        if not targets:
            raise ValueError(
                f"the base method has no trainable parameters in this model, so none can be generated: {config.base}"
            )
        layout, saved = layout_of(targets), False
        if config.layout is not None:
            check_layout(layout, config.layout, config.init == "zero")
            saved = config.layout["start"] == SAVED
        if config.scope == "model":
            sizes = [sum(sizes)]
        generator = Generator(sizes, config.recipe())
        shapes = {GENERATORS + key: tuple(value.shape) for key, value in generator.state_dict().items()}
        if saved:
            layout["start"], shapes[f"{GENERATORS}start"] = SAVED, (layout["parameters"],)
        if (incoming := Incoming.loading("QPA")) is not None:
            incoming.check_shapes(shapes)
        config.layout = layout
        getattr(self, HOLDER)[name] = generator.to(targets[0].start.device)
        self.sources[name] = Source(generator, targets, self.passes, saved)

    def _same_method(self, config: QPAConfig) -> None:
        kinds = {other.base.peft_type for other in self.peft_config.values()}
        if len(kinds) > 1:
            raise ValueError(
                f"the adapters of one model have one base method, got {', '.join(sorted(kind.value for kind in kinds))}"
            )

    def _still(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Let PEFT work on tensors without a graph: it sets requires_grad on what it takes for parameters."""
        self.passes.clear()
        try:
            with torch.no_grad():
                return call(*args, **kwargs)
        finally:
            self.passes.clear()

    def _runs(self) -> nn.Module:
        """What a call of this model runs."""
        disabled = self.prompt is not None and self.prompt.disable_adapters
        return self.wrapped.base_model if disabled else self.model

    def train(self, mode: bool = True) -> "QPAModel":
        """Training or evaluation, also for what PEFT made, which is not a submodule."""
        self.wrapped.train(mode)
        return super().train(mode)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The adapted model's output."""
        if self.prompt is not None and may_run_again():
            active = [] if self.prompt.disable_adapters else self.active_adapters
            check_unchanged(self, InUse(tuple(active), "", tuple(self.sources[name] for name in active)))
        return self._runs()(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The adapted model's ``generate``."""
        return self._runs().generate(*args, **kwargs)  # type: ignore[operator]

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        hooks = getattr(self.wrapped.base_model, "_enable_peft_forward_hooks", None)
        if self.prompt is not None or hooks is None:
            if kwargs.get("adapter_names") is not None:  # PEFT's words; it passes such names by
                kind = next(iter(self.peft_config.values())).base.peft_type.value
                raise TypeError(f"{kind} does not support mixed adapter batches.")
            yield
            return
        self._mixed = kwargs.get("adapter_names")
        try:
            with hooks(*args, **kwargs):
                yield
        finally:
            self._mixed = None

    def _check_known(self, names: str | Sequence[str]) -> None:
        """Raise ValueError for the name of no adapter."""
        for name in [names] if isinstance(names, str) else names:
            if name not in self.sources:
                known = ", ".join(map(shown, self.sources))
                raise ValueError(f"there is no adapter {shown(name)}; there are {known}")

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Make adapters active; their generators are trained, all others not. Raises ValueError for unknown ones."""
        self._check_known(adapter_name)
        if self.prompt is not None:
            self._still(self.wrapped.set_adapter, adapter_name)
        else:
            self._still(self.wrapped.base_model.set_adapter, adapter_name, inference_mode)
        self.active_adapter = adapter_name
        for name, generator in getattr(self, HOLDER).items():
            generator.requires_grad_(name in self.active_adapters and not inference_mode)

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        """Train the generators of these adapters, or do not; raises ValueError for unknown ones."""
        self._check_known(adapter_names)
        if self.prompt is None:
            self._still(self.wrapped.base_model.set_requires_grad, adapter_names, requires_grad)
        for name in [adapter_names] if isinstance(adapter_names, str) else adapter_names:
            getattr(self, HOLDER)[name].requires_grad_(requires_grad)

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter and its generator; raises ValueError for an unknown one."""
        self._check_known(adapter_name)
        was_active = adapter_name in self.active_adapters
        trained = any(p.requires_grad for p in getattr(self, HOLDER)[adapter_name].parameters())
        self._still(self.wrapped.delete_adapter, adapter_name)
        del self.peft_config[adapter_name], getattr(self, HOLDER)[adapter_name]
        self.passes.makers.pop(id(self.sources.pop(adapter_name)))
        self.active_adapter = active = self.wrapped.active_adapters
        if was_active and active:  # what takes its place is trained if it was
            self.set_adapter(active if self.prompt is None else active[0], inference_mode=not trained)

    def _enable_adapter_layers(self, enabled: bool = True) -> None:
        if self.prompt is not None:
            self.prompt.enable_adapters(enabled)
        else:
            self._still(self.wrapped.base_model._enable_adapter_layers, enabled)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Generated tensors are float32 where PEFT would make the base method's parameters so.

        Without ``autocast_adapter_dtype`` the generator is in the half precision of what it generates.
        """
        source = self.sources[adapter_name]
        if not autocast_adapter_dtype and {*source.dtypes} in ({torch.float16}, {torch.bfloat16}):
            source.generator.to(source.dtypes[0])
            source.forget()
        elif autocast_adapter_dtype and self.prompt is None:
            source.dtypes = [torch.promote_types(dtype, torch.float32) for dtype in source.dtypes]
            source.forget()

    @contextmanager
    def settled(self, for_good: bool = False) -> Iterator[PeftModel]:
        """The model as PEFT adapts it by the base method, with the generated tensors as parameters of its own."""
        stays = False
        try:
            for source in self.sources.values():
                source.settle()
            yield self.wrapped
            stays = for_good
        finally:
            for source in () if stays else self.sources.values():
                source.put()

    def _check_merge(self, adapter_names: list[str] | None, safe: bool) -> None:
        """Raise ValueError if a merge is impossible; a safe one is tried on a copy of every layer first."""
        self._check_known(adapter_names or ())
        if self.prompt is not None:
            kind = next(iter(self.peft_config.values())).base.peft_type.value
            raise ValueError(f"{kind} adds virtual tokens, which cannot be merged into weights")
        if isinstance(self.wrapped.base_model, BottleneckModel):
            self.wrapped.base_model.refuse_merge()
        check_untied(self.model, BaseTunerLayer)
        if not safe or isinstance(self.wrapped.base_model, QCircuitModel):  # which tries by itself
            return
        with self.settled():
            for name, module in tuner_layers(self.model).items():
                try:
                    copy.deepcopy(module).merge(safe_merge=True, adapter_names=adapter_names)
                except ValueError as error:
                    raise ValueError(f"module {name!r}: {error}; nothing was merged") from None

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Merge as the base method does.

        Raises ValueError if it cannot be, if another module shares a weight, or with ``safe_merge`` if a merged weight
        is NaN or infinite; nothing is merged then.
        """
        self._check_merge(adapter_names, safe_merge)
        for name in self.active_adapters if adapter_names is None else adapter_names:
            if self.sources[name].generator.recipe.is_random:
                raise ValueError(
                    f"adapter {name!r} is drawn anew at every pass, with shots, so that a merge could not be undone; "
                    "use merge_and_unload, or measured_with(model, shots=None)"
                )
        with merging(self.model):
            self._still(self.wrapped.base_model.merge_adapter, adapter_names, safe_merge)

    def unmerge_adapter(self) -> None:
        """Undo ``merge_adapter``."""
        with merging(self.model):
            self._still(self.wrapped.base_model.unmerge_adapter)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """False: ``save_base_adapter`` writes the adapter of the base method."""
        return False

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Refused: what is generated cannot be combined into something that a generator generates."""
        raise ValueError(
            "generated adapters cannot be combined by add_weighted_adapter, since a sum of theirs has no generator; "
            "save each with save_base_adapter and combine those, or activate several at once"
        )

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> nn.Module:
        if merge:
            self._check_merge(adapter_names, safe_merge)
        with self.settled(for_good=True):
            model = self.wrapped.get_base_model()
            if self.prompt is None:
                unload = self.wrapped.base_model._unload_and_optionally_merge
                with unloading(model, merge=merge, safe_merge=safe_merge, adapter_names=adapter_names):
                    model = unload(merge, progressbar, safe_merge, adapter_names)
        self.passes.unwatch(self.model)
        return model

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: Any,
        config: Any,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        state_dict = unfiltered(model, state_dict, unwanted_adapter_names)
        own = f"{GENERATORS}{adapter_name}."
        for name in getattr(model.base_model, HOLDER)[adapter_name].state_dict():
            entry(state_dict, own + name)
        return {GENERATORS + key.removeprefix(own): v for key, v in state_dict.items() if key.startswith(own)}

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """Keys have none any more: PEFT would take a module of that name for it."""
        return key

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: Any, config: Any, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """PEFT's renaming; raises ValueError for names, shapes or values that the generator cannot have."""
        generator = getattr(model.base_model, HOLDER)[adapter_name]
        wanted = {GENERATORS + key: tuple(value.shape) for key, value in generator.state_dict().items()}
        ours = {key: value for key, value in state_dict.items() if key.startswith(GENERATORS)}
        Incoming("the checkpoint", "QPA", ours).check_shapes(wanted)
        named = {f"{GENERATORS}{adapter_name}.{key.removeprefix(GENERATORS)}": value for key, value in ours.items()}
        return {key: value for key, value in state_dict.items() if key not in ours} | named
