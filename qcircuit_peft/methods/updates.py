"""Additive weight updates that PEFT has none of, as one plain PEFT method: a row of ``UPDATES`` each.

An update is a linear map of the input, given by frozen tensors, which the base weight or a seed gives back, and by
a few trained ones. Importing this registers ``UpdateConfig`` with PEFT.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod, sqrt
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import PeftType
from torch import Tensor, nn

from qcircuit_peft.checks import number, one_of, whole_number
from qcircuit_peft.recomputation import check_unchanged, may_run_again
from qcircuit_peft.tuner.guard import injecting, unloading
from qcircuit_peft.tuner.heads import in_use, is_target, watch_heads
from qcircuit_peft.tuner.layer import check_linear, targets
from qcircuit_peft.tuner.maps import LINEAR, features, map_of
from qcircuit_peft.tuner.meaning import INCIDENTAL, check_same, meaning
from qcircuit_peft.tuner.mixed import handed_out, rows_of
from qcircuit_peft.tuner.names import check_adapter_name
from qcircuit_peft.tuner.plan import kind_of
from qcircuit_peft.tuner.register import register

Tensors = dict[str, Tensor]
Weight = Float[Tensor, "out in"]
_NOLA_R = 8


@dataclass(frozen=True)
class Update:
    """One kind of update of a weight of out x in numbers.

    trained: the shapes of what trains, by name, from ``(out, in, size)``. start: their values; what it leaves out is 0.
    frozen: what is fixed, from ``(weight, size, generator)``. apply: the update of an input (..., in) -> (..., out),
    from ``(x, trained, frozen, out)``. shared: names of what all layers of a kind train together.
    """

    trained: Callable[[int, int, int], dict[str, tuple[int, ...]]]
    frozen: Callable[[Weight, int, torch.Generator], Tensors]
    apply: Callable[[Tensor, Tensors, Tensors, int], Tensor]
    start: Callable[[dict[str, tuple[int, ...]], torch.Generator], Tensors] = lambda shapes, generator: {}
    shared: tuple[str, ...] = ()


def _singular(weight: Weight, k: int, generator: torch.Generator) -> Tensors:
    u, _, vh = torch.linalg.svd(weight.float(), full_matrices=False)
    return {"u": u[:, :k].contiguous(), "v": vh[:k].T.contiguous()}


def _random_frames(weight: Weight, k: int, generator: torch.Generator) -> Tensors:
    """The first k columns of two orthogonal matrices, uniform by Haar's measure."""
    found = {}
    for name, n in zip(("u", "v"), weight.shape, strict=True):
        q, r = torch.linalg.qr(torch.randn(n, k, generator=generator))
        found[name] = q * r.diagonal().sign()
    return found


def _diagonal(x: Tensor, trained: Tensors, frozen: Tensors, out: int) -> Tensor:
    """U diag(lambda) V^T x."""
    return (x @ frozen["v"] * trained["lambda"]) @ frozen["u"].T


def _nola_frozen(weight: Weight, size: int, generator: torch.Generator) -> Tensors:
    out, into = weight.shape
    a, b = -(-size // 2), size // 2
    return {
        "a": torch.randn(a, _NOLA_R, into, generator=generator) / sqrt(into),
        "b": torch.randn(b, out, _NOLA_R, generator=generator) / sqrt(_NOLA_R),
    }


def _nola(x: Tensor, trained: Tensors, frozen: Tensors, out: int) -> Tensor:
    """(sum_j b_j B_j)(sum_i a_i A_i) x."""
    a, b = (torch.tensordot(trained[name], frozen[name], 1) for name in ("a", "b"))
    return x @ a.T @ b.T


def _mora(x: Tensor, trained: Tensors, frozen: Tensors, out: int) -> Tensor:
    """The input in groups of r, each turned by angles of its own, all through one r x r matrix, laid end to end."""
    square = trained["m"]
    r = square.shape[0]
    groups = -(-x.shape[-1] // r)
    x = torch.cat([x, x[..., : groups * r - x.shape[-1]]], -1).unflatten(-1, (groups, r))
    angles = torch.arange(groups)[:, None] * 10_000 ** (-torch.arange(0, r, 2) / r)
    cos, sin = (turn(angles.to(x.device, x.dtype)).repeat(1, 2) for turn in (torch.cos, torch.sin))
    half = torch.cat([-x[..., r // 2 :], x[..., : r // 2]], -1)
    given = ((x * cos + half * sin) @ square.T).flatten(-2)
    return given.repeat(*[1] * (given.ndim - 1), -(-out // given.shape[-1]))[..., :out]


def _lotr(x: Tensor, trained: Tensors, frozen: Tensors, out: int) -> Tensor:
    """A G B^T x, with A and B of all layers of a kind."""
    return x @ trained["right"] @ trained["core"].T @ trained["left"].T


def _lotr_start(shapes: dict[str, tuple[int, ...]], generator: torch.Generator) -> Tensors:
    return {
        name: torch.randn(shapes[name], generator=generator) / sqrt(shapes[name][0])
        for name in ("left", "right")
        if name in shapes
    }


def _none(weight: Weight, size: int, generator: torch.Generator) -> Tensors:
    return {}


UPDATES: dict[str, Update] = {
    "svf": Update(lambda out, into, k: {"lambda": (k,)}, _singular, _diagonal),
    "random_frames": Update(lambda out, into, k: {"lambda": (k,)}, _random_frames, _diagonal),
    "nola": Update(
        lambda out, into, k: {"a": (-(-k // 2),), "b": (k // 2,)},
        _nola_frozen,
        _nola,
        lambda shapes, generator: {"a": torch.randn(shapes["a"], generator=generator) / sqrt(shapes["a"][0])},
    ),
    "mora": Update(lambda out, into, r: {"m": (r, r)}, _none, _mora),
    "lotr": Update(
        lambda out, into, r: {"left": (out, r), "right": (into, r), "core": (r, r)},
        _none,
        _lotr,
        _lotr_start,
        shared=("left", "right"),
    ),
}


@dataclass
class UpdateConfig(PeftConfig):
    """What `get_peft_model` needs for an update of ``UPDATES``: ``x -> W x + scale * update(x)``.

    update: its name. size: how large it is. scale: a factor before it. seed: of what is random and frozen, and of
    where the rest starts; every layer draws anew. target_modules, exclude_modules, modules_to_save: as in LoRA.

    Raises ValueError, in one sentence, for anything else.

    >>> from peft import get_peft_model
    >>> config = UpdateConfig(update="svf", size=3, target_modules=["0"])
    >>> get_peft_model(nn.Sequential(nn.Linear(8, 6)), config).get_nb_trainable_parameters()[0]
    3
    """

    update: str = "svf"
    size: int = 8
    scale: float = 1.0
    seed: int = 0
    target_modules: str | list[str] | None = None
    exclude_modules: str | list[str] | None = None
    modules_to_save: list[str] | None = None

    incidental: ClassVar[set[str]] = INCIDENTAL

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.UPDATE  # type: ignore[attr-defined]
        one_of("update", self.update, UPDATES)
        whole_number("size", self.size, 2 if self.update in ("nola", "mora") else 1)
        if self.update == "mora" and self.size % 2:
            raise ValueError(f"the size of 'mora' is an even number, since pairs are turned, got {self.size}")
        number("scale", self.scale)
        whole_number("seed", self.seed, 0)

    def check_takes(self, stored: PeftConfig, adapter: str) -> None:
        """Raise ValueError, naming a field, if the numbers of a stored adapter mean something else in this one."""
        check_same(adapter, meaning(self.to_dict(), self.incidental), meaning(stored.to_dict(), self.incidental))


class UpdateLayer(nn.Module, BaseTunerLayer):
    """A linear layer with updates beside it; what all layers of a kind share lies in the model."""

    adapter_layer_names = ("update_own",)
    other_param_names = ("updates", "frozen", "common")

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.update_own = nn.ParameterDict()
        self.updates: dict[str, UpdateConfig] = {}
        self.frozen: dict[str, Tensors] = {}
        self.common: dict[str, tuple[nn.ParameterDict, str]] = {}  # a tuple, which nn.Module does not register
        self.merged_adapters: list[str] = []

    def weight(self) -> Weight:
        """The base weight (out, in)."""
        layer: Any = self.get_base_layer()
        return (map_of(layer) or LINEAR).matrix(layer.weight)

    def update_layer(
        self, adapter_name: str, config: UpdateConfig, generator: torch.Generator, shared: nn.ParameterDict, kind: str
    ) -> None:
        """Add an adapter; what it shares with layers of its kind is in ``shared``, or begins there."""
        row = UPDATES[config.update]
        self.updates[adapter_name], self.common[adapter_name] = config, (shared, kind)
        self.frozen[adapter_name] = row.frozen(self.weight().detach().cpu(), config.size, generator)
        if row.shared and kind not in shared:
            shared[kind] = _flat(self._shapes(adapter_name, shared=True), row, generator)
        self.update_own[adapter_name] = _flat(self._shapes(adapter_name, shared=False), row, generator)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _shapes(self, adapter: str, shared: bool) -> dict[str, tuple[int, ...]]:
        config, (into, out) = self.updates[adapter], features(self.get_base_layer())
        row = UPDATES[config.update]
        return {
            name: shape for name, shape in row.trained(out, into, config.size).items() if (name in row.shared) == shared
        }

    def _update(self, x: Tensor, adapter: str) -> Tensor:
        config, own, (common, kind) = self.updates[adapter], self.update_own[adapter], self.common[adapter]
        row, (_, out) = UPDATES[config.update], features(self.get_base_layer())
        trained = _parts(own, self._shapes(adapter, shared=False))
        if row.shared:
            trained |= _parts(common[kind], self._shapes(adapter, shared=True))
        frozen = {name: value.to(own.device, own.dtype) for name, value in self.frozen[adapter].items()}
        self.frozen[adapter] = frozen  # moved once
        return config.scale * row.apply(x.to(own.dtype), trained, frozen, out)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base layer's output, with the updates of the active adapters, or of those that each row names."""
        names = kwargs.pop("adapter_names", None)
        if may_run_again():
            check_unchanged(self, in_use(self, self.update_own, names))
        if self.disable_adapters and self.merged:
            self.unmerge()
        given = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return given
        if names is not None:
            rows_by_adapter, given = rows_of(self, x, names), given.clone()
            for name, rows in rows_by_adapter.items():
                if name in self.update_own:
                    given[rows] += self._update(x[rows], name).to(given.dtype)
            return given
        for name in self.active_adapters:
            if name in self.update_own and name not in self.merged_adapters:
                given = given + self._update(x, name).to(given.dtype)
        return given

    def get_delta_weight(self, adapter: str) -> Weight:
        """The update as a matrix (out, in): what it makes of the unit vectors."""
        into, _ = features(self.get_base_layer())
        own = self.update_own[adapter]
        return self._update(torch.eye(into, dtype=own.dtype, device=own.device), adapter).T

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the updates to the base weight; raises ValueError with ``safe_merge`` if the sum is not finite."""
        wanted = [name for name in adapter_names or self.active_adapters if name in self.update_own]
        wanted = [name for name in wanted if name not in self.merged_adapters]
        merged = self.weight().clone()
        for name in wanted:
            merged += self.get_delta_weight(name).to(merged.dtype)
            if safe_merge and not merged.isfinite().all():
                raise ValueError(f"the adapter {name!r} would make weights that are not finite")
        self.weight().copy_(merged)
        self.merged_adapters += wanted

    @torch.no_grad()
    def unmerge(self) -> None:
        """Take the merged updates out of the base weight again."""
        while self.merged_adapters:
            name = self.merged_adapters.pop()
            self.weight().sub_(self.get_delta_weight(name).to(self.weight().dtype))


def _flat(shapes: dict[str, tuple[int, ...]], row: Update, generator: torch.Generator) -> nn.Parameter:
    start = row.start(shapes, generator)
    return nn.Parameter(torch.cat([start.get(name, torch.zeros(shape)).flatten() for name, shape in shapes.items()]))


def _parts(flat: Tensor, shapes: dict[str, tuple[int, ...]]) -> Tensors:
    pieces = flat.split([prod(shape) for shape in shapes.values()])
    return {name: piece.view(shape) for (name, shape), piece in zip(shapes.items(), pieces, strict=True)}


class UpdateModel(BaseTuner):
    """A model with updates; raises ValueError for a target that is not a linear layer, and a size above its widths."""

    prefix: str = "update_"
    tuner_layer_cls = UpdateLayer
    _check_target_module_exists = staticmethod(is_target)
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> Any:
        with unloading(self.model, merge=merge, safe_merge=safe_merge, adapter_names=adapter_names):
            return super()._unload_and_optionally_merge(merge, progressbar, safe_merge, adapter_names)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """PEFT's; raises ValueError before anything else for a name that no adapter can have."""
        check_adapter_name(adapter_name)
        config: Any = self.peft_config[adapter_name]
        if "update_common" not in self._modules:
            self.update_common, self.generators = nn.ModuleDict(), {}
        self.update_common[adapter_name] = nn.ParameterDict()
        self.generators[adapter_name] = torch.Generator().manual_seed(config.seed)
        try:
            with injecting(self, adapter_name):
                super().inject_adapter(model, adapter_name, *args, **kwargs)
                watch_heads(model)
        except BaseException:
            del self.update_common[adapter_name], self.generators[adapter_name]
            raise

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Hand ``adapter_names`` of a call to every adapted layer, for batches of several adapters."""
        with handed_out(self, UpdateLayer, kwargs):
            yield

    def delete_adapter(self, adapter_name: str) -> None:
        """PEFT's, with what the layers of an adapter share."""
        super().delete_adapter(adapter_name)
        del self.update_common[adapter_name]

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        """Look at every target before the first one is replaced."""
        check_linear(self, peft_config, model)
        for name, module in targets(self, peft_config, model):
            least = min(features(module.get_base_layer() if isinstance(module, UpdateLayer) else module))
            if peft_config.update in ("svf", "random_frames") and peft_config.size > least:
                raise ValueError(
                    f"{peft_config.update!r} has at most as many numbers as the narrower side of a layer, "
                    f"{least} in {name!r}, got size {peft_config.size}"
                )

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: Any,
        target_name: str,
        parent: Any,
        current_key: str,
        **kwargs: Any,
    ) -> None:
        layer = target if isinstance(target, UpdateLayer) else None
        if layer is None:
            layer = UpdateLayer(target)
            layer._active_adapter = adapter_name
            self._replace_module(parent, target_name, layer, target)
        kind = kind_of(current_key).replace(".", "_")
        shared: Any = self.update_common[adapter_name]
        layer.update_layer(adapter_name, peft_config, self.generators[adapter_name], shared, kind)
        if adapter_name not in self.active_adapters:
            layer.update_own[adapter_name].requires_grad_(False)


register("update", UpdateConfig, UpdateModel)
