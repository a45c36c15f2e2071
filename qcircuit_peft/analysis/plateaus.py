"""Barren plateaus of a task's own loss: how its derivatives scatter over the random starts of an adapter."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qcircuit_peft.analysis.adapters import measured_adapters
from qcircuit_peft.analysis.capture import Loss, check_task, evaluating, own_loss
from qcircuit_peft.analysis.haar import MAX_SAMPLES
from qcircuit_peft.analysis.sampling import bootstrap
from qcircuit_peft.checks import number, one_of, whole_number
from qcircuit_peft.factorizations.parts import Part, Vector, initial
from qcircuit_peft.frames.kind import INITS
from qcircuit_peft.rates import RATES
from qcircuit_peft.text import shown


@dataclass(frozen=True)
class TaskGradientVariance:
    """The variance of dL/dp over random starts, averaged over the parameters p of one kind; 95 % interval.

    kind: a key of ``RATES``, "angles" (per squared radian), "lambdas", ... parameters: how many there are.
    """

    kind: str
    parameters: int
    variance: float
    low: float
    high: float
    samples: int


@dataclass(frozen=True)
class _Own:
    """A parameter that is drawn: what it is a part of, and how it learns."""

    parameter: nn.Parameter
    part: Part
    kind: str


def _owned(model: nn.Module, adapter: str | None) -> list[tuple[Any, str, dict[str, _Own]]]:
    """The layers that are measured, with the adapter of each and its own parameters by part."""
    found = []
    for name, module, key in measured_adapters(model, adapter):
        here = f"adapter {key!r} of module {name!r}"
        if module.merged or module.disable_adapters or key not in module.active_adapters:
            raise ValueError(f"{here} is merged, disabled or not active; unmerge or enable it, then measure it")
        kinds = {id(parameter): kind for parameter, kind in module.kinds_of_parameters()}
        parts = module.factors[key].parts
        own = {}
        for part, parameter in module.own_parameters(key).items():
            if not isinstance(parameter, nn.Parameter):
                raise ValueError(f"{here} has its part {part!r} generated, which is not drawn")
            if parameter.is_meta:
                raise ValueError(f"{here} has its part {part!r} kept elsewhere (offloaded or on 'meta')")
            if id(parameter) in kinds:  # directions that are kept are not drawn
                own[part] = _Own(parameter, parts[part], kinds[id(parameter)])
        found.append((module, key, own))
    if not any(one.parameter.requires_grad for _, _, own in found for one in own.values()):
        raise ValueError("what is measured are derivatives by an adapter's parameters, but none of them is trained")
    return found


@contextmanager
def _restored(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Within it parameters may be written to; after it, they are what they were."""
    before = [(parameter, parameter.detach().clone()) for parameter in parameters]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in before:
                parameter.copy_(value)


def _draw(factors: Any, own: dict[str, _Own], init: str, spread: float, generator: torch.Generator) -> None:
    """Give the parameters of a layer a random start."""
    drawn = initial(factors, init, dict.fromkeys(factors.parts, generator))
    with torch.no_grad():
        for part, one in own.items():
            value = drawn[part]
            if isinstance(one.part, Vector) and spread:
                value = value + spread * torch.randn(value.shape, generator=generator)
            one.parameter.copy_(value)


def task_gradient_variance(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Loss | None = None,
    *,
    adapter: str | None = None,
    init: str = "uniform",
    spread: float = RATES["lambdas"],
    samples: int = 100,
    seed: int = 0,
) -> list[TaskGradientVariance]:
    """How the derivatives of a task's loss scatter over random starts of an adapter, a row for each kind of parameter.

    Every start draws the frames' parameters anew, by ``init`` as in ``QCircuitConfig``, and adds normal numbers of this
    ``spread`` to the plain ones: as left out, what one step of Adam at the usual rate does. With 0 they are where
    training starts: then no angle moves the loss, and for "svd" of random frames the variance of dL/dlambda is
    scaling^2 ||G||^2 / (N M), so it falls with the widths whatever the depth is. ``batches`` and ``loss`` are as in
    ``gradient_capture``; it takes ``samples`` passes through all batches, in eval mode. The model stays as it is.

    Raises ValueError for a model without circuits, an adapter that is merged, disabled, generated or does not train, a
    bad init, spread or number of samples, and losses that are no finite number or do not depend on it.

    >>> from peft import get_peft_model
    >>> from qcircuit_peft import QCircuitConfig
    >>> model = get_peft_model(nn.Sequential(nn.Linear(32, 16)), QCircuitConfig(r=4, target_modules=["0"]))
    >>> x = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    >>> rows = task_gradient_variance(model, [x], lambda model, x: model(x).square().sum(), samples=20)
    >>> [(row.kind, row.parameters, row.low < row.variance < row.high) for row in rows]
    [('angles', 23, True), ('lambdas', 4, True)]
    """
    one_of("init", init, INITS)
    number("spread", spread, 0)
    whole_number("samples", samples, 2, MAX_SAMPLES)
    whole_number("seed", seed, 0, 2**63 - 1)
    check_task(batches, loss)
    layers, given = _owned(model, adapter), list(batches)
    if not given:
        raise ValueError("a loss is measured of one or more batches, got none")
    every = [one for _, _, own in layers for one in own.values()]
    trained = [one for one in every if one.parameter.requires_grad]
    generator = torch.Generator().manual_seed(seed)
    slopes: dict[str, list[Tensor]] = {}
    with evaluating(model), _restored([one.parameter for one in every]), torch.enable_grad():
        for _ in range(samples):
            for module, key, own in layers:
                _draw(module.factors[key], own, init, spread, generator)
            found = [torch.zeros_like(one.parameter, dtype=torch.float64) for one in trained]
            for batch in given:
                for total, slope in zip(found, _gradient(model, batch, loss, trained), strict=True):
                    total += slope
            for kind in dict.fromkeys(one.kind for one in trained):
                of_kind = [g for g, one in zip(found, trained, strict=True) if one.kind == kind]
                slopes.setdefault(kind, []).append(torch.cat([g.flatten().cpu() for g in of_kind]))
    return [_row(kind, torch.stack(rows), generator) for kind, rows in slopes.items()]


def _gradient(model: nn.Module, batch: Any, loss: Loss | None, trained: list[_Own]) -> tuple[Tensor, ...]:
    value = (loss or own_loss)(model, batch)
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.isfinite():
        raise ValueError(f"a loss is one finite number for a batch, got {shown(value)}")
    if not value.requires_grad:
        raise ValueError("the loss does not depend on the adapter, so it has no derivatives")
    return torch.autograd.grad(value.sum(), [one.parameter for one in trained], materialize_grads=True)


def _row(kind: str, slopes: Tensor, generator: torch.Generator) -> TaskGradientVariance:
    """From dL/dp of every start, (samples, parameters)."""
    samples = len(slopes)
    squares = (slopes - slopes.mean(0)).square().mean(-1) * (samples / (samples - 1))
    low, high = bootstrap(squares, lambda v: v.mean(-1), generator)
    return TaskGradientVariance(kind, slopes.shape[1], float(squares.mean()), low, high, samples)
