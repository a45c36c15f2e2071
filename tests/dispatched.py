"""How many operations torch dispatches: on a GPU that is the cost of small tensors."""

from functools import cache

import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile


class Dispatched:
    """Counts the torch operations inside the ``with`` block: ``count`` of all, ``views`` of those that move no number.

    An operation is an aten call that no other aten call made, whoever wraps it: a registered operator hides nothing.

    >>> with Dispatched() as ops:
    ...     _ = torch.eye(2).T.reshape(4).view(2, 2) @ torch.eye(2)
    >>> ops.count, ops.views
    (6, 2)
    """

    def __enter__(self) -> "Dispatched":
        self._profile = profile(activities=[ProfilerActivity.CPU])
        self._profile.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._profile.__exit__(*error)
        calls = [event for event in self._profile.events() if event.name.startswith("aten::") and not _inner(event)]
        self.count = len(calls)
        self.views = sum(_aliases(event.name) and not _copies(event) for event in calls)


def _inner(event: FunctionEvent) -> bool:
    parent = event.cpu_parent
    return parent is not None and (parent.name.startswith("aten::") or _inner(parent))


@cache
def _aliases(name: str) -> bool:
    """Whether the result of an operation may be its argument in another shape."""
    returns = [r.alias_info for schema in torch._C._jit_get_schemas_for_operator(name) for r in schema.returns]
    return any(alias is not None and not alias.is_write for alias in returns)


def _copies(event: FunctionEvent) -> bool:
    return any(child.name in ("aten::clone", "aten::copy_") or _copies(child) for child in event.cpu_children)
