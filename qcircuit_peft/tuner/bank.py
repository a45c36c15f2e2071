"""One generation of frames for all adapted layers of a model.

In a forward pass every layer asks the bank for its frames. The first one to ask has those of all layers generated, one
call for each family of frames; they serve later requests, and later passes, as long as no parameter has changed.
"""

import weakref
from collections.abc import Iterable
from contextlib import nullcontext
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qcircuit_peft.factorizations.parts import Built
from qcircuit_peft.tuner.grid import Grid, stacked

Frames = dict[str, Tensor]  # the frames of one layer and adapter, by part


def _signature(parameters: Iterable[Tensor]) -> list[tuple[Any, ...]]:
    """What changes when a parameter is moved, frozen or written to (but for a write through ``.data``)."""
    return [(p.data_ptr(), 0 if p.is_inference() else p._version, p.requires_grad, p.dtype) for p in parameters]


def _stack(parameters: list[Tensor]) -> Tensor:
    """The values of some parameters, copied, in the dtype that circuits run in."""
    stacked = torch.stack(parameters)
    return stacked if stacked.dtype == torch.float64 else stacked.float()


class _Entry:
    """One adapter of one layer: its parameters now, and where its frames lie among the outputs of the generation."""

    def __init__(self, layer: Any, adapter: str) -> None:
        self.layer, self.adapter, self.factors = weakref.ref(layer), adapter, layer.factors[adapter]
        self.parameters: dict[str, Tensor] = layer.generated_from(adapter)
        self.grids: dict[str, Grid] = layer.grids(adapter)
        self.signature = _signature(self.parameters.values())
        self.outputs: dict[str, int] = {}

    def is_current(self, layer: Any) -> bool:
        """Whether the layer still has the same parameters, as far as can be seen without reading them."""
        now = layer.generated_from(self.adapter)
        same = all(p is q for p, q in zip(now.values(), self.parameters.values(), strict=True))
        return same and _signature(now.values()) == self.signature


class _Vector(NamedTuple):
    """A plain vector of n numbers as if it were a frame, so that all layers' are quantized in one call."""

    n: int
    k: int = 1

    @property
    def family(self) -> "_Vector":
        return self

    def columns(self, values: Tensor) -> Tensor:
        return values


class _Slot(NamedTuple):
    """A frame to be made."""

    part: str
    frame: Any
    angles: Tensor
    entry: _Entry


class _Step(NamedTuple):
    """One batch of columns, and the runs cut of it: of each the first of ``ks`` columns, of the given rows or, without
    ``rows``, of pieces of ``sizes``.
    """

    frame: Any
    leaf: int
    ks: list[int]
    sizes: list[int]
    rows: list[Tensor] | None


class _Plan:
    """What a generation computes: which parameters are stacked into which leaves, and which frames come of them."""

    def __init__(self, entries: Iterable[_Entry], device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self.leaves: list[Tensor] = []  # stacked values, from which the kept graph starts
        self.sources: list[list[Tensor]] = []  # the parameters in them
        self._grids: list[Grid | None] = []  # on which they lie, if they are quantized
        self.spent = False  # a backward pass has gone through
        self._steps: list[_Step] = []
        self._outputs_of: dict[int, set[int]] = {}  # of a parameter, by its id
        self._arrange(entries)
        self.places = [  # of each parameter: itself, its leaf, its row there, the outputs that come of it
            (parameter, leaf, row, self._outputs_of[id(parameter)])
            for leaf, parameters in enumerate(self.sources)
            for row, parameter in enumerate(parameters)
        ]
        self._signature = self._now()

    def _now(self) -> list[tuple[Any, ...]]:
        return [row for parameters in self.sources for row in _signature(parameters)]

    def _arrange(self, entries: Iterable[_Entry]) -> None:
        """Order the frames by family, within it by rank: those of one rank are cut together.

        Frames of the same parameter, which layers may share, are generated once.
        """
        families: dict[tuple[Any, ...], list[_Slot]] = {}
        for entry in entries:
            for part, angles in entry.parameters.items():
                kind = entry.factors.parts[part]
                frame = kind.frame if isinstance(kind, Built) else _Vector(kind.size)
                scheme = entry.grids[part].scheme if part in entry.grids else None
                found = families.setdefault((frame.family, angles.dtype, scheme), [])
                found.append(_Slot(part, frame, angles, entry))
        n_outputs = 0
        for members in families.values():
            members.sort(key=lambda slot: slot.frame.k)
            unique = {id(slot.angles): (slot.angles, slot.entry.grids.get(slot.part)) for slot in members}
            row_of = {key: row for row, key in enumerate(unique)}
            leaf, ks, rows = self._leaf(list(unique.values())), [], []
            for k, slots in groupby(members, key=lambda slot: slot.frame.k):
                output_of: dict[int, int] = {}
                for slot in slots:
                    output = output_of.setdefault(id(slot.angles), n_outputs + len(output_of))
                    slot.entry.outputs[slot.part] = output
                    self._outputs_of.setdefault(id(slot.angles), set()).add(output)
                n_outputs += len(output_of)
                ks.append(k)
                rows.append([row_of[key] for key in output_of])
            in_order = [row for run in rows for row in run] == list(range(len(unique)))
            picked = None if in_order else [torch.tensor(run, device=self.device) for run in rows]
            widest = max((slot.frame for slot in members), key=lambda frame: frame.k)
            self._steps.append(_Step(widest, leaf, ks, [len(run) for run in rows], picked))

    def _leaf(self, members: list[tuple[Tensor, Grid | None]]) -> int:
        parameters = [parameter for parameter, _ in members]
        self.leaves.append(_stack(parameters).requires_grad_(any(p.requires_grad for p in parameters)))
        self.sources.append(parameters)
        self._grids.append(stacked([grid for _, grid in members]))
        return len(self.leaves) - 1

    def stacks(self, leaves: list[Tensor]) -> list[Tensor]:
        """The frames, one stacked tensor (members, n, k) for each run."""
        found: list[Tensor] = []
        kind = self.device.type
        with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
            values = [grid(leaf) if grid else leaf for leaf, grid in zip(leaves, self._grids, strict=True)]
            for frame, leaf, ks, sizes, rows in self._steps:
                columns = frame.columns(values[leaf])
                if rows is not None:
                    parts = [columns.index_select(0, run) for run in rows]
                else:
                    parts = torch.split(columns, sizes) if len(sizes) > 1 else [columns]
                for part, k in zip(parts, ks, strict=True):
                    part = part[..., :k] if k < frame.k else part
                    found.append(part if part.dtype == self.dtype else part.to(self.dtype))
        return found

    def anew(self) -> tuple[list[Tensor], list[Tensor]]:
        """Leaves and stacks whose graph goes on to the parameters; raises RuntimeError if these were written to."""
        if self._now() != self._signature:
            raise RuntimeError(
                "a second derivative needs the parameters of the forward pass, but a parameter of a circuit adapter "
                "has changed since; differentiate before the optimizer's step"
            )
        leaves = [_stack(parameters) for parameters in self.sources]
        return leaves, self.stacks(leaves)

    @torch.no_grad()
    def unchanged(self) -> bool:
        """Whether all parameters have the values that the frames were made of; they are read and compared."""
        if self._now() != self._signature:
            return False
        same = [(_stack(now) == then).all() for now, then in zip(self.sources, self.leaves, strict=True)]
        return bool(torch.stack(same).all())  # one wait for a GPU


class _SharedFrames(torch.autograd.Function):
    """The outputs of a plan, detached from the graph that made them, which is kept aside.

    So no tensor is saved in the graph of the model, and several backward passes may go through one generation: two
    losses of two forward passes, or the nested passes of re-entrant gradient checkpointing. A backward pass that is
    to be differentiated again makes the frames anew.
    """

    @staticmethod
    def forward(ctx: Any, plan: _Plan, *parameters: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        # Hooks of gradient checkpointing count what a region saves, but the frames of all layers are not the region's.
        autograd: Any = torch._C._autograd  # type: ignore[attr-defined]
        hooked = autograd._top_saved_tensors_default_hooks(True) is not None
        aside = torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t) if hooked else nullcontext()
        with torch.enable_grad(), aside:
            ctx.stacks = plan.stacks(plan.leaves)
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        return tuple(output for stack in ctx.stacks for output in stack.detach().unbind(0))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        plan, again = ctx.plan, torch.is_grad_enabled()
        plan.spent = True
        leaves, stacks = plan.anew() if again else (plan.leaves, ctx.stacks)
        outputs, given, start = [], [], 0
        for stack in stacks:
            rows = grads[start : start + len(stack)]
            start += len(stack)
            if stack.requires_grad and any(row is not None for row in rows):
                rest = torch.zeros_like(stack[0]) if any(row is None for row in rows) else None
                outputs.append(stack)
                given.append(torch.stack([rest if row is None else row for row in rows]))  # type: ignore[misc]
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        options = {"retain_graph": True, "create_graph": again, "allow_unused": True}
        found = torch.autograd.grad(outputs, wanted, given, **options) if outputs else ()
        rows_of = {id(leaf): grad.unbind(0) for leaf, grad in zip(wanted, found, strict=False) if grad is not None}
        # A layer that took no part in the pass gets no gradient, rather than zeros that an optimizer would act on.
        taken = [
            id(leaves[leaf]) in rows_of and any(grads[output] is not None for output in outputs)
            for _, leaf, _, outputs in plan.places
        ]
        return None, *(
            rows_of[id(leaves[leaf])][row] if take else None
            for take, (_, leaf, row, _) in zip(taken, plan.places, strict=True)
        )


class _Generation:
    """The frames of some layers and adapters, all on one device, made at one time for use in one dtype."""

    def __init__(
        self, layers: Iterable[Any], adapters: tuple[str, ...], device: torch.device, dtype: torch.dtype
    ) -> None:
        self.adapters = adapters
        self.entries: dict[tuple[int, str], _Entry] = {}
        self.asked: set[int] = set()  # layers that have asked in this forward pass
        self.handed: set[int] = set()  # layers whose last request, outside a backward pass, was to train
        for layer in layers:
            for adapter in adapters:
                generated = layer.generated_from(adapter) if adapter in layer.factors else {}
                if generated and next(iter(generated.values())).device == device:
                    self.entries[id(layer), adapter] = _Entry(layer, adapter)
        with torch.inference_mode(False), torch.no_grad():
            self.plan = _Plan(self.entries.values(), device, dtype)
        parameters = [parameter for parameter, *_ in self.plan.places]
        self.grad = torch.is_grad_enabled() and any(p.requires_grad for p in parameters)
        if self.grad:
            self.outputs: tuple[Tensor, ...] = _SharedFrames.apply(self.plan, *parameters)  # type: ignore[assignment]
        else:
            with torch.inference_mode(False), torch.no_grad():
                stacks = self.plan.stacks(self.plan.leaves)
                self.outputs = tuple(output for stack in stacks for output in stack.unbind(0))

    def fits(self, layer: Any, adapters: tuple[str, ...], trains: bool) -> bool:
        """Whether these frames can serve a layer, as far as can be seen without reading its parameters."""
        if self.adapters != adapters or trains > self.grad:
            return False
        own = [adapter for adapter in adapters if adapter in layer.factors and layer.generated_from(adapter)]
        entries = [self.entries.get((id(layer), adapter)) for adapter in own]
        return all(entry is not None and entry.layer() is layer and entry.is_current(layer) for entry in entries)

    def is_used(self) -> bool:
        """Whether any layer still has the parameters that the frames were made of."""
        return any((layer := e.layer()) is not None and e.is_current(layer) for e in self.entries.values())

    def of(self, layer: Any) -> dict[str, Frames]:
        """The frames of one layer, by adapter."""
        found = ((adapter, self.entries.get((id(layer), adapter))) for adapter in self.adapters)
        return {
            adapter: {part: self.outputs[output] for part, output in entry.outputs.items()}
            for adapter, entry in found
            if entry is not None
        }


class FrameBank:
    """Hands every layer of a model its frames, generated for all layers at once and kept while they are up to date.

    Layers are held weakly, so that a layer can be copied or freed by itself. A copied or unpickled bank starts empty.
    """

    def __init__(self) -> None:
        self.generations = 0  # how many there have been, for tests and curiosity
        self._layers: dict[int, weakref.ref[Any]] = {}
        self._current: dict[tuple[torch.device, torch.dtype], _Generation] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return FrameBank, ()

    def register(self, layer: Any) -> None:
        """Generate the frames of this layer with those of the others from now on."""
        self._layers[id(layer)] = weakref.ref(layer)
        self.clear()

    def clear(self) -> None:
        """Forget all frames."""
        self._current.clear()

    def _generate(self, layers: Iterable[Any], *key: Any) -> _Generation:
        self.generations += 1
        return _Generation(layers, *key)

    @torch.compiler.disable()
    def frames(self, layer: Any, adapters: tuple[str, ...], dtype: torch.dtype) -> dict[str, Frames]:
        """The frames of a layer in ``dtype``, for those of the adapters that it has and that are made of frames.

        ``adapters`` are all adapters that the model now uses; the first request has those of all layers generated.
        """
        own = [p for a in adapters if a in layer.factors for p in layer.generated_from(a).values()]
        if not own:
            return {}
        place = own[0].device, dtype
        key = adapters, *place
        trains = torch.is_grad_enabled() and any(p.requires_grad for p in own)
        found = self._layers.get(id(layer))
        if found is None or found() is not layer:  # a replica of nn.DataParallel
            return self._generate([layer], *key).of(layer)
        last = self._current.get(place)
        current = last if last is not None and last.fits(layer, adapters, trains) else None
        if torch._C._current_graph_task_id() != -1 and (trains or current is not None):
            # Within a backward pass this is a checkpoint's recomputation. If the original pass trained, it used the
            # shared frames and recomputes with them; a re-entrant one ran under no_grad, and the layer's gradient
            # shall arrive now, once, so that its frames are made for it alone.
            if current is not None and (not trains or id(layer) in current.handed):
                return current.of(layer)
            return self._generate([layer], *key).of(layer)
        if current is not None and id(layer) in current.asked and not current.plan.spent:  # a new pass
            current = current if current.plan.unchanged() else None
            if current is not None:
                current.asked.clear()
        if current is None or current.plan.spent:
            layers = [other for ref in self._layers.values() if (other := ref()) is not None]
            amid = last is not None and last.adapters == adapters and trains and not last.grad
            if last is not None and amid and id(layer) not in last.asked:
                # Amid a pass that began under no_grad, in re-entrant checkpoints: those layers are recomputed alone.
                layers = [other for other in layers if id(other) not in last.asked]
            self._current = {at: other for at, other in self._current.items() if at != place and other.is_used()}
            self._current[place] = current = self._generate(layers, *key)
        current.asked.add(id(layer))
        (current.handed.add if trains else current.handed.discard)(id(layer))
        return current.of(layer)
