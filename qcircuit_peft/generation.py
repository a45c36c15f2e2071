"""What is made of parameters for a forward pass: once, for all that ask for it, and never of values that have changed.

A pass is known. It begins in a hook on the outermost module that adapters were put into and ends in one, also after an
exception (``Passes.watch``), and it belongs to its thread. The first request within it looks at what is kept from
before: if every parameter is still the same tensor with the same values, which are read, it serves; otherwise it is
thrown away and made anew. Later requests of the pass get the same. A backward pass in which checkpoints recompute their
modules counts as a pass, too. Outside of both nothing is shared: whoever asks makes what it needs by itself.
A compiler follows ordinary operations only: what ``makers`` make stands at the beginning of a compiled pass.

What is made goes into the graph of the model as one node (``_Rows``), cut off from the operations that made it. So
nothing is saved in the model's graph, where gradient checkpointing would count it, several backward passes may go
through one generation, and a parameter of which nothing was used gets no gradient rather than zeros.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.utils import checkpoint
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from qcircuit_peft.precision import no_autocast
from qcircuit_peft.recomputation import unhooked

_SELECTIVE = (checkpoint._CachingTorchDispatchMode, checkpoint._CachedTorchDispatchMode)


class Pass:
    """A forward pass that is under way; ``unrecorded`` has marks of those who asked in it without recording a graph."""

    def __init__(self) -> None:
        self.unrecorded: set[int] = set()


def replayed() -> bool:
    """Whether selective checkpointing notes or replays operations, which have to be the same both times."""
    modes = _get_current_dispatch_mode_stack() if torch._C._len_torch_dispatch_stack() else ()
    return any(isinstance(mode, _SELECTIVE) for mode in modes)


@dataclass(frozen=True, eq=False)
class Batch:
    """Tensors that are made together: of which parameters, and how. It has no state.

    groups: the parameters, in groups of equal shape; each group is stacked into one leaf, in the dtype of the engine.
    make: leaves -> stacks; what is wanted are the rows of the stacks, in their order.
    rows_of: for each parameter, in the order of the groups, the rows that depend on it; None: all of them do.
    places: which row is which, by keys of whoever made the batch.
    finish: what is handed out, of the rows, by ordinary operations; left out, the rows.
    random: whether every forward pass draws anew.
    """

    groups: Sequence[Sequence[Tensor]]
    make: Callable[[list[Tensor]], list[Tensor]]
    rows_of: Sequence[set[int]] | None = None
    places: Mapping[Any, int] = field(default_factory=dict)
    finish: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]] = tuple
    random: bool = False

    @property
    def parameters(self) -> list[Tensor]:
        """All parameters, group by group."""
        return list(chain(*self.groups))

    def leaves(self) -> list[Tensor]:
        """The values of the parameters, copied, one stacked tensor for each group."""
        stacked = [torch.stack(list(group)) for group in self.groups]
        return [leaf if leaf.dtype == torch.float64 else leaf.float() for leaf in stacked]

    def stacks(self, leaves: list[Tensor]) -> list[Tensor]:
        """``make``, in full precision."""
        with no_autocast(leaves[0]):
            return self.make(leaves)

    def takes(self, index: int, grads: Sequence[Tensor | None]) -> bool:
        """Whether a row that depends on this parameter has a gradient."""
        rows = range(len(grads)) if self.rows_of is None else self.rows_of[index]
        return any(grads[row] is not None for row in rows)


def _signature(parameter: Tensor) -> tuple[Any, ...]:
    """What changes when a parameter is moved, frozen or written to, but for a write through ``.data``."""
    version = 0 if parameter.is_inference() else parameter._version
    return parameter.data_ptr(), version, parameter.requires_grad, parameter.dtype, parameter.device


class _Rows(torch.autograd.Function):
    """The rows of a batch, whose graph down to its leaves is kept aside and may be gone through any number of times.

    A backward pass that is to be differentiated again makes the rows anew from the parameters.
    """

    @staticmethod
    def forward(ctx: Any, batch: Batch, leaves: list[Tensor], *parameters: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        ctx.batch, ctx.leaves, ctx.signatures = batch, leaves, [_signature(p) for p in parameters]
        with torch.enable_grad():
            ctx.stacks = batch.stacks(leaves)
        ctx.set_materialize_grads(False)
        return tuple(row for stack in ctx.stacks for row in stack.detach().unbind(0))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        with no_autocast(ctx.leaves[0]):  # it may be called under it
            return _Rows._backward(ctx, *grads)

    @staticmethod
    def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        batch, again = ctx.batch, torch.is_grad_enabled()
        leaves, stacks = ctx.leaves, ctx.stacks
        if again:
            if [_signature(p) for p in batch.parameters] != ctx.signatures:
                raise RuntimeError(
                    "a second derivative needs the parameters of the forward pass, but a parameter of an adapter "
                    "has changed since; differentiate before the optimizer's step"
                )
            leaves = batch.leaves()
            stacks = batch.stacks(leaves)
        outputs, given, start = [], [], 0
        for stack in stacks:
            rows = grads[start : start + len(stack)]
            start += len(stack)
            if stack.requires_grad and any(row is not None for row in rows):
                rest = torch.zeros_like(stack[0]) if any(row is None for row in rows) else None
                outputs.append(stack)
                given.append(torch.stack([rest if row is None else row for row in rows]))  # type: ignore[misc]
        of_leaves = _gradients(leaves, outputs, given, again)
        of_parameters = chain.from_iterable(
            [None] * len(group) if grad is None else grad.unbind(0)
            for grad, group in zip(of_leaves, batch.groups, strict=True)
        )
        return None, None, *(g if batch.takes(index, grads) else None for index, g in enumerate(of_parameters))


def _gradients(leaves: list[Tensor], outputs: list[Tensor], given: list[Tensor], again: bool) -> list[Tensor | None]:
    """The gradients of the leaves from those given of the outputs; where one node made all, it is called by itself."""
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    if len(wanted) == len(leaves) == len(outputs) == 1 and not again:
        node: Any = outputs[0].grad_fn
        before = node.next_functions
        if isinstance(node, BackwardCFunction) and len(before) == 1 and _holds(before[0][0], wanted[0]):
            found = node.apply(given[0])
            return [found[0] if isinstance(found, tuple) else found]
    options = {"retain_graph": True, "create_graph": again, "allow_unused": True}
    found = iter(torch.autograd.grad(outputs, wanted, given, **options) if outputs else [None] * len(wanted))
    return [next(found) if leaf.requires_grad else None for leaf in leaves]


def _holds(node: Any, leaf: Tensor) -> bool:
    return getattr(node, "variable", None) is leaf


class Generation:
    """What a batch makes (``made``), at one time, of the parameters as they were then.

    ``looked_in`` is the last pass in which the parameters were looked at. Whoever asks sets the rest: ``recorded`` has
    marks of those who recorded a graph with it, ``lacks`` says that someone missed something in the batch.
    """

    def __init__(self, batch: Batch, now: Pass) -> None:
        parameters = batch.parameters
        self.batch, self.grad = batch, torch.is_grad_enabled() and any(p.requires_grad for p in parameters)
        self.seen = {id(p): _signature(p) for p in parameters}  # the batch keeps them alive
        self.made_in = now
        self.looked_in: Pass | int = now
        self.recorded: set[int] = set()
        self.lacks = False
        with torch.inference_mode(False), torch.no_grad(), unhooked():
            self.leaves = batch.leaves()
            if not self.grad:
                stacks = batch.stacks(self.leaves)
                self.made = batch.finish(tuple(row for stack in stacks for row in stack.unbind(0)))
                return
            for leaf, group in zip(self.leaves, batch.groups, strict=True):
                leaf.requires_grad_(any(p.requires_grad for p in group))
            with torch.enable_grad():
                self.made = batch.finish(_Rows.apply(batch, self.leaves, *parameters))  # type: ignore[arg-type]

    def knows(self, parameters: Sequence[Tensor]) -> bool:
        """Whether the rows were made of these parameters, among others, as far as can be seen without reading them."""
        return all(self.seen.get(id(p)) == _signature(p) for p in parameters)

    @torch.no_grad()
    def unchanged(self) -> bool:
        """Whether all parameters are what they were; their values are read and compared."""
        if not self.knows(self.batch.parameters):
            return False
        leaves = zip(self.batch.leaves(), self.leaves, strict=True)
        if len(self.leaves) == 1 or self.leaves[0].device.type == "cpu":
            return all(torch.equal(now, then) for now, then in leaves)
        return bool(torch.stack([(now == then).all() for now, then in leaves]).all())  # one wait for a GPU


class _Thread(threading.local):
    """What a thread is doing with a model, and what it keeps: another one may train, or write, at the same time."""

    def __init__(self) -> None:
        self.forward: Pass | None = None
        self.kept: dict[Any, Generation] = {}
        self.epoch = 0
        self.traced: dict[Any, Any] | None = None


class Passes:
    """The passes of one model, and the generations that serve them. A copied or unpickled one starts empty."""

    def __init__(self) -> None:
        self.generations = 0  # how many there have been, for tests and curiosity
        self._epoch = 0
        self._thread = _Thread()
        self.makers: dict[Any, Callable[[], Any]] = {}  # of what a compiled pass makes at its beginning, by key

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()

    def watch(self, model: nn.Module) -> None:
        """A forward pass of this module is a pass from now on."""
        self.unwatch(model)
        model.register_forward_pre_hook(self.begin)
        model.register_forward_hook(self.end, always_call=True)

    def unwatch(self, model: nn.Module) -> None:
        """Forget about the module, leaving no hook of ours."""
        for hooks in (model._forward_pre_hooks, model._forward_hooks):
            for key in [key for key, hook in hooks.items() if getattr(hook, "__self__", None) is self]:
                del hooks[key]
                model._forward_hooks_always_called.pop(key, None)

    def begin(self, module: nn.Module | None = None, *_: Any) -> None:
        """A forward pass begins in this thread."""
        if torch.compiler.is_compiling():
            self._thread.traced = {key: make() for key, make in self.makers.items()}
        elif not getattr(module, "_is_replica", False):
            self._thread.forward = Pass()

    def end(self, *_: Any) -> None:
        """The forward pass has ended."""
        if torch.compiler.is_compiling():
            self._thread.traced = None
        else:
            self._thread.forward = None

    def traced(self, key: Any) -> Any:
        """What a compiled pass has made for ``key``; None outside of one."""
        traced = self._thread.traced
        return None if traced is None else traced.get(key)

    def clear(self) -> None:
        """Forget what is kept, in every thread."""
        self._epoch += 1

    def under_way(self) -> Pass | int | None:
        """The forward pass of this thread, or the backward pass (a number) that may recompute one, or None."""
        if replayed():
            return None
        if self._thread.forward is not None:
            return self._thread.forward
        task = torch._C._current_graph_task_id()
        return None if task == -1 else task

    def kept(self, key: Any, now: Pass | int) -> Generation | None:
        """What was made for ``key``, if it may serve in the pass ``now``: looked at in it, and unchanged."""
        thread = self._thread
        if thread.epoch != self._epoch:
            thread.kept, thread.epoch = {}, self._epoch
        found = thread.kept.get(key)
        if found is None or found.looked_in == now:
            return found
        if (found.batch.random and now is thread.forward) or not found.unchanged():
            return None
        found.looked_in = now
        return found

    def batch_before(self, key: Any, parameters: Sequence[Tensor]) -> Batch | None:
        """The last batch for ``key``, if it has these parameters, and its own are where and as trained as before."""
        last = self._thread.kept.get(key)
        if last is None or last.lacks or not all(id(p) in last.seen for p in parameters):
            return None
        kept = all(last.seen[id(p)][2:] == _signature(p)[2:] for p in last.batch.parameters)
        return last.batch if kept else None

    def make(self, key: Any, batch: Batch, now: Pass) -> Generation:
        """A generation for this pass, in the place of an older one; others whose parameters have changed go too."""
        kept = self._thread.kept
        kept.pop(key, None)  # before the new one takes memory
        for other in [k for k, g in kept.items() if not g.knows(g.batch.parameters)]:
            del kept[other]
        self.generations += 1
        kept[key] = found = Generation(batch, now)
        return found
