"""Which frames of which layers are made together; ``generation`` says when.

In a forward pass every layer asks the bank for what it wants. The first one to ask has that of all layers made, one
call for each family of frames; trained and frozen parameters apart, so that what comes of frozen ones is kept. A layer
whose parameters cannot be among the others' (sharded, offloaded, given for one call) gets nothing: it makes its own.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from qcircuit_peft.backends.estimation import SWITCH
from qcircuit_peft.frames.kind import Spec
from qcircuit_peft.generation import Batch, Generation, Pass, Passes
from qcircuit_peft.tuner.encoding import Encoding, rounding_of


class Want(NamedTuple):
    """What a layer wants of one of its parameters: a frame, or the vector itself, of the values in use."""

    parameter: Tensor
    frame: Spec | None
    encoding: Encoding

    @property
    def is_made(self) -> bool:
        """Whether it is more than the parameter as it is."""
        return self.frame is not None or self.encoding.quantization is not None

    @property
    def k(self) -> int:
        """The number of columns; 0 for a vector."""
        return 0 if self.frame is None else self.frame.k

    @property
    def place(self) -> tuple[int, int]:
        """The same for all that want the same."""
        return id(self.parameter), self.k

    @property
    def family(self) -> tuple[Any, ...]:
        """The same for what can be made in one call."""
        kind = len(self.parameter) if self.frame is None else self.frame.family
        return kind, self.parameter.dtype, self.encoding.quantization


class _Step(NamedTuple):
    """One call: columns of the widest frame, of one leaf, and for each number of columns the rows that are wanted."""

    frame: Spec | None
    rounding: Callable[[Tensor], Tensor] | None
    runs: list[tuple[int, slice | Tensor]]

    def __call__(self, leaf: Tensor) -> list[Tensor]:
        values = leaf if self.rounding is None else self.rounding(leaf)
        if self.frame is None:
            return [values]
        columns = self.frame.columns(values)
        found = (_rows(columns, rows) for _, rows in self.runs)
        return [some[..., :k] if k < self.frame.k else some for some, (k, _) in zip(found, self.runs, strict=True)]


def _rows(columns: Tensor, rows: slice | Tensor) -> Tensor:
    if isinstance(rows, Tensor):
        return columns.index_select(0, rows)
    return columns if rows == slice(0, len(columns)) else columns[rows]


def batch_of(wants: Iterable[Want], dtype: torch.dtype) -> Batch:
    """The batch that makes these in ``dtype``, with a row for each ``place``; what several want is made once."""
    families: dict[tuple[Any, ...], dict[tuple[int, int], Want]] = {}
    for want in wants:
        families.setdefault(want.family, {})[want.place] = want
    groups: list[list[Tensor]] = []
    steps: list[_Step] = []
    places: dict[tuple[int, int], int] = {}
    rows_of: list[set[int]] = []
    for members in families.values():
        by_width = sorted(members.values(), key=lambda want: want.k)
        unique = {id(want.parameter): want for want in by_width}
        row_of = {key: row for row, key in enumerate(unique)}
        runs = []
        for k, run in groupby(by_width, key=lambda want: want.k):
            same = list(run)
            places |= {want.place: len(places) + index for index, want in enumerate(same)}
            runs.append((k, _selection([row_of[id(want.parameter)] for want in same], same[0].parameter.device)))
        groups.append([want.parameter for want in unique.values()])
        rows_of += [{at for (other, _), at in places.items() if other == key} for key in unique]
        rounding = rounding_of([want.encoding for want in unique.values()])
        steps.append(_Step(by_width[-1].frame, rounding, runs))

    def make(leaves: list[Tensor]) -> list[Tensor]:
        made = [stack for step, leaf in zip(steps, leaves, strict=True) for stack in step(leaf)]
        return [stack if stack.dtype == dtype else stack.to(dtype) for stack in made]

    return Batch(groups, make, rows_of, places)


def _is_plain(parameter: Tensor) -> bool:
    """Whether a parameter can be stacked with others: no shard, no tensor given for a call, nothing on "meta"."""
    return type(parameter) is nn.Parameter and not parameter.is_meta and "_fsdp_flattened" not in parameter.__dict__


def _selection(rows: list[int], device: torch.device) -> slice | Tensor:
    """Some rows: as a slice if they follow one another."""
    if rows == list(range(rows[0], rows[0] + len(rows))):
        return slice(rows[0], rows[0] + len(rows))
    return torch.tensor(rows, device=device)


class FrameBank:
    """Hands every layer of a model what was made for all of them.

    Layers are held weakly, so that a layer can be copied or freed by itself. A copied or unpickled bank starts empty.
    """

    def __init__(self, passes: Passes | None = None) -> None:
        self.passes = passes or Passes()
        self._layers: dict[int, weakref.ref[Any]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return FrameBank, (self.passes,)  # a copied model's hooks know the same one

    def register(self, layer: Any) -> None:
        """Make what this layer wants together with the others' from now on."""
        self._layers[id(layer)] = weakref.ref(layer)
        self.passes.clear()

    def clear(self) -> None:
        """Forget everything that is kept."""
        self.passes.clear()

    def made(
        self, layer: Any, wants: Sequence[Want], adapters: tuple[str, ...], dtype: torch.dtype
    ) -> Callable[[Want], Tensor] | None:
        """What gives a layer each of its ``wants``, and parameters as they are, in ``dtype``; None: it makes its own.

        ``adapters`` are all adapters that the model now uses: the first request has those of all layers made.
        """
        now, known = self.passes.under_way(), self._layers.get(id(layer))
        if now is None or known is None or known() is not layer:
            return None
        kinds: dict[bool, list[Tensor]] = {}
        for parameter in (want.parameter for want in wants):
            if not _is_plain(parameter):
                return None
            kinds.setdefault(parameter.requires_grad, []).append(parameter)
        serving: dict[bool, Generation] = {}
        for trained, mine in kinds.items():
            found = self._serving(layer, mine, (adapters, trained, mine[0].device, dtype, SWITCH.estimator), now)
            if found is None:
                return None
            serving[trained] = found

        def give(want: Want) -> Tensor:
            if not want.is_made:
                return want.parameter if want.parameter.dtype == dtype else want.parameter.to(dtype)
            generation = serving[want.parameter.requires_grad]
            return generation.made[generation.batch.places[want.place]]

        return give

    def _serving(
        self,
        layer: Any,
        mine: list[Tensor],
        key: tuple[tuple[str, ...], bool, torch.device, torch.dtype, Any],
        now: Any,
    ) -> Generation | None:
        trains = key[1] and torch.is_grad_enabled()
        found = self.passes.kept(key, now)
        fits = found is not None and trains <= found.grad and found.knows(mine)
        if not isinstance(now, Pass):
            # A checkpoint recomputes the layer. What ran under no_grad before (re-entrant) makes its frames alone, so
            # that its gradient comes now, without those of all others; what recorded a graph then needs the same again.
            return found if fits and (not trains or id(layer) in found.recorded) else None  # type: ignore[union-attr]
        if trains and not fits and id(layer) in now.unrecorded:
            return None  # it runs once more in this pass, now with a graph
        if not fits and (found is None or trains > found.grad or found.made_in is not now):
            batch = None if trains and now.unrecorded else self.passes.batch_before(key, mine)
            batch = batch or batch_of(self._all_wants(now, trains, *key[:3]), key[3])
            found = self.passes.make(key, batch, now)
            fits = found.knows(mine)
        if found is None or not fits:
            if found is not None:
                found.lacks = True
            return None
        (found.recorded.add if trains else found.recorded.discard)(id(layer))
        if not trains:
            now.unrecorded.add(id(layer))
        return found

    def _all_wants(
        self, now: Pass, trains: bool, adapters: tuple[str, ...], trained: bool, device: torch.device
    ) -> Iterator[Want]:
        """Those of all layers, but with a graph not of layers that ran without one in this pass: see above."""
        for key, layer in ((key, found) for key, ref in self._layers.items() if (found := ref()) is not None):
            if not (trains and key in now.unrecorded):
                for want in (want for adapter in adapters for want in layer.wants(adapter).values()):
                    p = want.parameter
                    if want.is_made and _is_plain(p) and p.requires_grad is trained and p.device == device:
                        yield want
