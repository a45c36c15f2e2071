"""Circuit adapters on a parameter of a module of any kind, such as the fused experts of a mixture."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from operator import attrgetter
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from accelerate.utils import align_module_device, has_offloaded_params
from peft.tuners.tuners_utils import BaseTunerLayer, _ExcludedModule, check_target_module_exists
from torch import Tensor, nn

from qcircuit_peft.precision import no_autocast
from qcircuit_peft.recomputation import check_unchanged, may_run_again
from qcircuit_peft.tuner.bank import FrameBank
from qcircuit_peft.tuner.config import QCircuitConfig
from qcircuit_peft.tuner.fast_path import inside_attention
from qcircuit_peft.tuner.heads import in_use
from qcircuit_peft.tuner.layer import QCircuitLinear
from qcircuit_peft.tuner.maps import is_turned, parameter_map
from qcircuit_peft.tuner.names import tuner_layers

_MISSING = object()


class _Turn:
    """Lets one thread at a time run a module while a parameter of it is another; a copy has a lock of its own."""

    def __init__(self) -> None:
        self.lock = threading.RLock()

    def __reduce__(self) -> tuple[Any, ...]:
        return _Turn, ()


class QCircuitParameter(QCircuitLinear):
    """A module that sees a parameter of its own, a matrix or a stack of them, with the updates of circuits added.

    Several parameters of a module are adapted by several of these around each other, as PEFT has it. ``place`` is the
    module's name in the base model; ``name`` the parameter's in the module, with a dot where it is a child's.
    """

    def __init__(self, base_layer: nn.Module, adapter_name: str, bank: FrameBank, place: str, name: str) -> None:
        self.place, self.parameter_name = place, name
        inner = base_layer.get_base_layer() if isinstance(base_layer, BaseTunerLayer) else base_layer
        self.is_turned = is_turned(inner, self.parameter_name)
        super().__init__(base_layer, adapter_name, bank, linear_map=parameter_map(inner, self.parameter_name))
        self.turn = _Turn()

    def placed(self, path: str) -> str:
        """The name of the module whose parameter it is, for a layer at ``path``."""
        while path != self.place and not path.endswith(f".{self.place}") and path.rpartition(".")[2] == "base_layer":
            path = path.rpartition(".")[0]
        return path

    def named(self, path: str) -> str:
        """The name of the parameter, for a layer at ``path``."""
        return f"{self.placed(path)}.{self.parameter_name}".removeprefix(".")

    def get_base_weight(self) -> Tensor:
        """The parameter as it is."""
        return attrgetter(self.parameter_name)(self.get_base_layer()).data

    def set_base_weight(self, weight_data: Tensor) -> None:
        """Give the parameter these values."""
        attrgetter(self.parameter_name)(self.get_base_layer()).data = weight_data

    def _get_base_layer_device_and_dtype(self, base_layer: Any) -> tuple[torch.device, torch.dtype]:
        parameter = attrgetter(self.parameter_name)(base_layer)
        return parameter.device, parameter.dtype

    def _holder(self) -> tuple[Any, str]:
        """The module that has the parameter, and the parameter's name there."""
        inside, _, name = self.parameter_name.rpartition(".")
        return self.get_base_layer().get_submodule(inside), name

    def _updated_parameter(self) -> Tensor:
        """The parameter with the updates of the active adapters, differentiable; in its own dtype."""
        inner, name = self._holder()
        with align_module_device(inner) if has_offloaded_params(inner) else nullcontext():
            result: Tensor = getattr(inner, name)
            with no_autocast(result):
                for adapter, made in self._made(result, tuple(self.active_adapters)).items():
                    a, b = self.factors[adapter].lora(made)
                    b = self.scaled(adapter, b)
                    left, right = (a.mT, b.mT) if self.is_turned else (b, a)
                    result = (torch.baddbmm if result.ndim == 3 else torch.addmm)(result, left, right)
        return result

    @contextmanager
    def _in_place(self, value: Tensor) -> Iterator[None]:
        """Within it, the module finds this value by the parameter's name, but does not list it."""
        inner, name = self._holder()
        before = vars(inner).get(name, _MISSING)
        object.__setattr__(inner, name, value)
        try:
            yield
        finally:
            if before is _MISSING:
                object.__delattr__(inner, name)
            else:
                object.__setattr__(inner, name, before)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module makes of its inputs with the parameter as it is adapted."""
        adapter_names = kwargs.pop("adapter_names", None)
        if found := [name for name in adapter_names or () if name in self.factors]:
            raise ValueError(
                f"an adapter of the parameter {self.parameter_name!r}, as {found[0]!r} is, does not support mixed "
                "adapter batches yet; run adapters one by one"
            )
        if may_run_again():
            check_unchanged(self, in_use(self, self.factors, adapter_names, self.scales))
        if self.disable_adapters and self.merged:
            self.unmerge()
        works = any(name in self.factors for name in self.active_adapters)
        if not works or self.disable_adapters or self.merged or adapter_names is not None:
            return self.base_layer(*args, **kwargs)
        if torch.compiler.is_compiling():  # it follows neither locks nor attributes that go
            updated = {
                "base_layer." * len(layers_around(self.base_layer)) + self.parameter_name: self._updated_parameter()
            }
            return torch.func.functional_call(self.base_layer, updated, args, kwargs, tie_weights=False)
        with self.turn.lock, self._in_place(self._updated_parameter()):
            return self.base_layer(*args, **kwargs)

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """The module without any of these around it, as PEFT asks for it."""
        layer: Any = self
        while isinstance(layer, QCircuitParameter):
            if merge:
                layer.merge(safe_merge=safe_merge, adapter_names=adapter_names)
            layer = layer.base_layer
        return layer

    def extra_repr(self) -> str:
        """The parameter's name, and the adapters' shapes."""
        return ", ".join(filter(None, (self.parameter_name, super().extra_repr())))


class ParameterTarget(NamedTuple):
    """A parameter that is targeted.

    place, name: its module's name in the base model, and its own there. path: where the layer is, or will be, that
    adapts it. outer: where the outermost layer on its module is, or the module itself. layer: what adapts it already,
    for another adapter.
    """

    place: str
    path: str
    outer: str
    module: nn.Module
    name: str
    layer: QCircuitParameter | None

    @property
    def key(self) -> str:
        """The parameter's name in the base model."""
        return f"{self.place}.{self.name}"


def parameters_of(module: nn.Module, names: Sequence[str], place: str, where: str) -> list[ParameterTarget]:
    """Parameters of one module, the first one innermost, where the outermost layer on it is, or will be."""
    chain = layers_around(module)
    inner = chain[-1].base_layer if chain else module
    last = len(names) - 1
    return [
        ParameterTarget(
            place, where + ".base_layer" * (last - at), where, inner, name, chain[last - at] if chain else None
        )
        for at, name in enumerate(names)
    ]


def layers_around(layer: nn.Module) -> list[QCircuitParameter]:
    """The layers around a module, the outermost first."""
    found = []
    while isinstance(layer, QCircuitParameter):
        found.append(layer)
        layer = layer.base_layer
    return found


def _chosen(config: QCircuitConfig) -> Any:
    """What PEFT's choice of modules reads, for parameters."""
    names = ("exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save")
    same = {name: getattr(config, name) for name in names}
    return SimpleNamespace(target_modules=set(config.target_parameters or ()), **same)


def excludes_parameters(config: QCircuitConfig, model: nn.Module) -> bool:
    """Whether exclude_modules leaves out one of target_parameters."""
    ends, chosen = tuple(config.target_parameters or ()), _chosen(config)
    named = (name for name, _ in model.named_parameters() if name.endswith(ends))
    return bool(ends) and any(isinstance(check_target_module_exists(chosen, name), _ExcludedModule) for name in named)


def parameter_targets(config: QCircuitConfig, model: nn.Module) -> list[ParameterTarget]:
    """All parameters that a configuration targets, those of one module in the order in which they are wrapped.

    Raises ValueError for one that is parametrized, of the outermost module, of a module that is adapted as a whole, or
    of one of which other adapters adapt others: in a checkpoint, as in PEFT's, the order of the layers says which is
    which.
    """
    if not config.target_parameters:
        return []
    chosen = _chosen(config)
    layers = tuner_layers(model)
    outermost: dict[nn.Module, str] = {}
    for path, layer in layers.items():
        outermost.setdefault(layer.get_base_layer(), path)
    found = []
    for path, module in model.named_modules():
        if path in layers or (path.rpartition(".")[0] in layers and module not in outermost):
            continue
        steps = path.split(".")
        kept = [at for at, step in enumerate(steps) if step != "base_layer" or ".".join(steps[:at]) not in layers]
        place = ".".join(steps[at] for at in kept)
        names = [name for name, _ in module.named_parameters(recurse=False)]
        for name in getattr(module, "parametrizations", ()):
            if check_target_module_exists(chosen, f"{place}.{name}"):
                raise ValueError(
                    f"the parameter {place}.{name} is parametrized, so that circuits do not adapt it; call "
                    "torch.nn.utils.parametrize.remove_parametrizations first"
                )
        wanted = [name for name in names if check_target_module_exists(chosen, f"{place}.{name}")]
        if not wanted:
            continue
        if not place:
            raise ValueError(
                "Targeting an nn.Parameter on the top-level module is not supported (parameter "
                f"{wanted[0]!r}); adapt a module that has it inside"
            )
        if inside_attention(module):
            raise ValueError(
                f"{place}.{wanted[0]} is that of an nn.MultiheadAttention, which reads it and never calls its layer; "
                f"name {place.rpartition('.')[0] or place!r} in target_modules"
            )
        chain = layers_around(layers[outermost[module]]) if module in outermost else []
        if module in outermost and (not chain or chain[-1].base_layer is not module):
            raise ValueError(
                f"the parameter {place}.{wanted[0]} is that of a module that is adapted as a whole; leave it out of "
                "target_modules or of target_parameters"
            )
        known = [layer.parameter_name for layer in reversed(chain)]
        if known and set(known) != set(wanted):
            raise ValueError(
                f"all adapters must target the same set of parameters of {place!r}, but one has {', '.join(known)} and "
                f"another {', '.join(wanted)}; load the other one into a model of its own"
            )
        where = outermost.get(module, path)
        found += parameters_of(layers.get(where, module), known or wanted, place, where)
    return found


def check_apart(
    config: QCircuitConfig,
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    targets: Sequence[ParameterTarget],
    chosen: Callable[[str], Any],
) -> None:
    """Raise ValueError if a module is adapted inside one of which parameters are, by this or another adapter.

    The layers around a module would be steps in the names of what is inside, which checkpoints know without them.
    ``modules`` are the targets of this adapter, ``chosen`` says of a name whether it is one.
    """

    def refuse(inner: str, parameter: str) -> None:
        raise ValueError(
            f"{inner!r} is inside the module of the parameter {parameter!r}, and only one of both is adapted in a "
            "model; name it in exclude_modules, or leave the parameter out"
        )

    named = {**{id(module): name for name, module in modules.items()}, **{id(t.module): t.key for t in targets}}
    for target in targets:
        for path, module in target.module.named_modules():
            if path and (id(module) in named or isinstance(module, BaseTunerLayer)):
                refuse(named.get(id(module), f"{target.place}.{path}"), target.key)
    for path, layer in tuner_layers(model).items():
        if isinstance(layer, QCircuitParameter) and not isinstance(layer.base_layer, QCircuitParameter):
            key, place = layer.named(path), layer.placed(path)
            for inside, module in layer.base_layer.named_modules():
                name = f"{place}.{inside}"
                if inside and (id(module) in named or chosen(name)):
                    refuse(named.get(id(module), name), key)


def fused_experts(model: nn.Module) -> dict[str, str]:
    """Parameters of fused experts, by name, with the end of the name by which they are targeted everywhere."""
    return {
        f"{path}.{name}": f"{path.rpartition('.')[2]}.{name}"
        for path, module in model.named_modules()
        if "Expert" in type(module).__name__
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3
    }
