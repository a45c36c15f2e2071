"""Modules that run again in a backward pass, where they have to work with what they worked with in the forward pass.

Gradient checkpointing keeps no activations of a region of a model; it runs the region again when its gradient is
wanted. An adapter that was switched, scaled, merged, disabled or deleted in between would be computed with, or left
out, and the gradient be another model's. So a module that is about to run in a region notes what it works with, and
when it runs again that has to be the same.

The notes lie on what remembers the region, and so go with it: on torch's frame, to which the hooks on saved tensors
lead, or on the context of the autograd function that runs the region without a graph (re-entrant checkpointing, that of
other libraries too), which is found on the stack the first time and is the running node of the graph the second time.
"""

import inspect
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd.function import BackwardCFunction
from torch.utils.checkpoint import _CheckpointFrame

from qcircuit_peft.text import shortened, shown

_NOTES = "_qcircuit_peft_in_use"  # an attribute of a frame or a context: what each module works with there
_autograd: Any = torch._C._autograd  # type: ignore[attr-defined]


class InUse(NamedTuple):
    """The adapters that a module works with, ``how`` it does, and the objects that these are."""

    names: tuple[str, ...] = ()
    how: str = ""
    parts: tuple[object, ...] = ()

    def same(self, other: "InUse") -> bool:
        """Whether both are the same adapters, in the same way."""
        alike = self.names == other.names and self.how == other.how and len(self.parts) == len(other.parts)
        return alike and all(mine is theirs for mine, theirs in zip(self.parts, other.parts, strict=True))

    def __str__(self) -> str:
        return " ".join(filter(None, (shortened(", ".join(map(shown, self.names))), self.how))) or "none"


@contextmanager
def unhooked() -> Iterator[list[tuple[Any, Any]]]:
    """Hooks on saved tensors do not see what is done within: a checkpoint counts what its region saves, not this.

    It yields the hooks, (pack, unpack), the innermost first.
    """
    hooks = []
    while (top := _autograd._top_saved_tensors_default_hooks(True)) is not None:
        hooks.append(top)
        _autograd._pop_saved_tensors_default_hooks()
    try:
        yield hooks
    finally:
        for pack, unpack in reversed(hooks):
            _autograd._push_saved_tensors_default_hooks(pack, unpack)


def _functions_around() -> Iterator[Any]:
    """The contexts of the autograd functions whose ``forward`` is running in this thread, the innermost first."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        first = code.co_varnames[0] if code.co_name == "forward" and code.co_argcount else "self"  # as of a module
        if first != "self" and isinstance(found := frame.f_locals.get(first), BackwardCFunction):
            yield found
        frame = frame.f_back


def may_run_again() -> bool:
    """Whether a module may be in such a region, or run again now; it takes some microseconds at most."""
    if torch.compiler.is_compiling():  # a compiled graph has its regions in it
        return False
    return (
        _autograd._top_saved_tensors_default_hooks(True) is not None
        or torch._C._current_graph_task_id() != -1
        or (not torch.is_grad_enabled() and any(True for _ in _functions_around()))
    )


def check_unchanged(module: nn.Module, now: InUse) -> None:
    """Note what a module works with now; raise RuntimeError if it runs again and worked with something else before."""
    first, again = _regions()
    for region in again:
        notes = getattr(region, _NOTES, {}).get(id(module), [])
        if notes and not any(now.same(then) for then in notes):
            before = " or ".join(dict.fromkeys(map(str, notes)))
            told = str(now) if str(now) not in map(str, notes) else f"another {now}"
            raise RuntimeError(
                f"gradient checkpointing runs a module again in the backward pass with other adapters, {told}, than "
                f"those of its forward pass, {before}; call backward before adapters are switched, scaled, merged, "
                "disabled or deleted"
            )
    for region in first:
        if not hasattr(region, _NOTES):
            setattr(region, _NOTES, {})
        getattr(region, _NOTES).setdefault(id(module), []).append(now)


def _held_by(function: Any) -> Iterator[Any]:
    """What a function holds of the names around it; some may have no value, or none any more."""
    for cell in getattr(inspect.unwrap(function), "__closure__", None) or ():
        with suppress(ValueError):
            yield cell.cell_contents


def _regions() -> tuple[list[Any], list[Any]]:
    """What remembers the regions around: those that run for the first time, and those that run again."""
    first, again = [], []
    with unhooked() as hooks:
        for held in (held for pack, _ in hooks for held in _held_by(pack)):
            if isinstance(held, _CheckpointFrame):
                first.append(held)
            elif isinstance(held, weakref.ref) and isinstance(frame := held(), _CheckpointFrame):
                again.append(frame)
    if not torch.is_grad_enabled():
        first += _functions_around()
    if isinstance(node := torch._C._current_autograd_node(), BackwardCFunction):
        again.append(node)
    return first, again
