"""Adaptive rank: what an adapter spends its parameters on is found in training, under one budget for all modules.

What can be pruned are entries of lambda and of other plain vectors, columns of the Lie parameters, and entangling
layers of circuits. Every entry p with gradient g has the sensitivity s = |p g|, smoothed over the steps together with
its uncertainty,

    I = beta1 I + (1 - beta1) s,    U = beta2 U + (1 - beta2) |s - I|,

and the score of a group is the mean of I U over its entries: what each of its parameters is worth. Groups are taken by
falling score (of equals the first) as long as they fit into what is left of the budget; one that does not fit is passed
over, so that no pruned group would fit into what remains. Pruned groups are set to 0 and go on learning: before the
next allocation they may come back. Through the final phase the last choice stays, and its zeros are renewed every step.
Source: AdaLoRA (arXiv 2303.10512), secs. 3.2 and 3.3; the groups and the budget of parameters are ours.
"""

from dataclasses import dataclass
from math import floor
from typing import NamedTuple

import torch
from torch import Tensor, nn

from qcircuit_peft.checks import number, whole_number
from qcircuit_peft.factorizations.parts import owner
from qcircuit_peft.tuner.layer import QCircuitLayer, adapted_layers
from qcircuit_peft.tuner.names import PREFIX, base_name


@dataclass(frozen=True)
class AdaptiveRank:
    """How many parameters an adapter keeps, and when it gives up the others.

    budget: the number of trained parameters kept at the end, in all modules together; shared ones count once, and so
        do those that are never pruned, such as the first rotations of a circuit.
    warmup, final: shares of the training. Nothing is pruned in the first; through the second the choice is fixed.
        Between them the budget falls from all parameters, cubically.
    every: steps from one allocation to the next.
    beta1, beta2: how slowly sensitivity and uncertainty follow.

    Raises ValueError for a value out of range, or shares that leave nothing between them.

    >>> settings = AdaptiveRank(budget=100, warmup=0.2, final=0.3)
    >>> [settings.at(step, total_steps=100, full=1100) for step in (20, 45, 70)]
    [1100, 225, 100]
    """

    budget: int
    warmup: float = 0.1
    final: float = 0.3
    every: int = 10
    beta1: float = 0.85
    beta2: float = 0.85

    def __post_init__(self) -> None:
        whole_number("budget", self.budget, 1)
        whole_number("every", self.every, 1)
        for name in ("warmup", "final", "beta1", "beta2"):
            number(name, getattr(self, name), 0, below=1)
        if self.warmup + self.final >= 1:
            raise ValueError(
                f"warmup and final are shares of the training with a sum below 1, got {self.warmup} and {self.final}"
            )

    def phases(self, total_steps: int) -> tuple[int, int]:
        """The last step of the warm-up and the step of the last allocation, counted from 1."""
        return floor(self.warmup * total_steps), total_steps - floor(self.final * total_steps)

    def at(self, step: int, total_steps: int, full: int) -> int:
        """The budget at a step, from ``full`` parameters down."""
        start, end = self.phases(total_steps)
        left = min(1.0, max(0.0, (end - step) / (end - start)))
        return self.budget + int((full - self.budget) * left**3)


def choose(scores: Tensor, sizes: Tensor, budget: int) -> Tensor:
    """Which groups are kept, a mask: by falling score, the first of equals first, whatever still fits.

    >>> choose(torch.tensor([3.0, 2.0, 1.0]), torch.tensor([2, 5, 1]), budget=4)
    tensor([ True, False,  True])
    """
    kept = torch.zeros(len(scores), dtype=torch.bool)
    order = scores.argsort(descending=True, stable=True)
    while len(order):
        taken = order[sizes[order].cumsum(0) <= budget]
        kept[taken] = True
        budget -= int(sizes[taken].sum())
        order = order[len(taken) :]
        order = order[sizes[order] <= budget]
    return kept


class _Part(NamedTuple):
    """A trained parameter: its layer, the group of every entry (-1: none), and where these are among all groups."""

    name: str
    layer: QCircuitLayer
    attribute: str
    owner: Tensor
    groups: slice


def _trained_parts(model: nn.Module, adapter: str) -> list[_Part]:
    """What trains of an adapter; raises ValueError if something of it is quantized."""
    parts, count = [], 0
    for path, layer in adapted_layers(model, adapter):
        for part, parameter in layer.own_parameters(adapter).items():
            name, encoding = f"{base_name(path)}.{part}", layer.encodings[adapter][part]
            if encoding.quantization is not None:
                raise ValueError(
                    f"adaptive rank sets parameters to exactly 0, which a quantized one cannot be in general, "
                    f"but {name} of adapter {adapter!r} is quantized; leave one of both out"
                )
            if parameter.requires_grad:
                groups = owner(encoding.part)
                size = max(groups.tolist(), default=-1) + 1
                parts.append(_Part(name, layer, PREFIX + part, groups, slice(count, count + size)))
                count += size
    return parts


def _chosen_adapter(model: nn.Module, adapter: str | None) -> str:
    layers = [layer for _, layer in adapted_layers(model)]
    known = sorted({name for layer in layers for name in layer.factors})
    active = sorted({name for layer in layers for name in layer.active_adapters if name in layer.factors})
    wanted = active if adapter is None else [name for name in known if name == adapter]
    if len(wanted) != 1:
        raise ValueError(
            f"adaptive rank is for one circuit adapter, got adapter={adapter!r}; the model has {known}, "
            f"of which {active} are active"
        )
    return wanted[0]


class Allocator:
    """Keeps an adapter to its budget: call ``step()`` after every optimizer step, while gradients are still there.

    ``total_steps`` is the number of optimizer steps of the whole training; ``adapter`` may be left out if one is
    active. Parameters that do not train are neither counted nor touched. From now on checkpoints leave out what is
    pruned. With DistributedDataParallel all ranks choose alike, since they see the same averaged gradients; gradients
    that a GradScaler has not unscaled have all scores scaled alike, and a step with infinite ones is not scored.
    Raises ValueError, before anything has changed, unless the budget is between what is never pruned and all, for
    quantized parameters, or if there is not one such adapter or nothing of it trains.

    >>> from peft import get_peft_model
    >>> from qcircuit_peft import QCircuitConfig
    >>> config = QCircuitConfig(r=4, layers=3, seed=0, target_modules=["0"])
    >>> model = get_peft_model(nn.Sequential(nn.Linear(8, 8)), config)
    >>> optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.1)
    >>> allocator = Allocator(model, AdaptiveRank(budget=20), total_steps=10)
    >>> for _ in range(10):
    ...     model(torch.ones(3, 8)).square().sum().backward()
    ...     optimizer.step()
    ...     allocator.step()
    ...     optimizer.zero_grad()
    >>> print(allocator)
    step 10: 20 of 34 parameters
    0: u .../3, v .../3, lambda .../4; 20 parameters
    """

    def __init__(self, model: nn.Module, settings: AdaptiveRank, total_steps: int, adapter: str | None = None) -> None:
        whole_number("total_steps", total_steps, 1)
        self.settings, self.total_steps, self.adapter = settings, total_steps, _chosen_adapter(model, adapter)
        self._parts = _trained_parts(model, self.adapter)
        if not self._parts:
            raise ValueError(f"adapter {self.adapter!r} has nothing that trains, so there is nothing to allocate")
        self._owner = torch.cat([(part.owner + part.groups.start).where(part.owner >= 0, -1) for part in self._parts])
        self._never, *sizes = torch.bincount(self._owner + 1, minlength=self._parts[-1].groups.stop + 1).tolist()
        self._sizes = torch.tensor(sizes)
        self.full = len(self._owner)
        if not self._never <= settings.budget <= self.full:
            raise ValueError(
                f"the budget of adapter {self.adapter!r} is from {self._never} (never pruned) to {self.full} (all), "
                f"got {settings.budget}"
            )
        self.steps = 0
        self._mean, self._uncertainty = torch.zeros(self.full), torch.zeros(self.full)
        self._kept = torch.ones(len(sizes), dtype=torch.bool)
        for part in self._parts:
            for encoding in part.layer.encodings[self.adapter].values():
                encoding.pruned = True

    def _parameters(self) -> list[Tensor]:
        return [getattr(part.layer, part.attribute)[self.adapter] for part in self._parts]

    @property
    def n_kept(self) -> int:
        """The number of parameters kept, with those that are never pruned."""
        return self._never + int(self._sizes[self._kept].sum())

    def kept(self) -> dict[str, tuple[bool, ...]]:
        """Which groups of every part are kept, by ``<module>.<part>``; empty for a part that is never pruned."""
        return {part.name: tuple(self._kept[part.groups].tolist()) for part in self._parts}

    @torch.no_grad()
    def step(self) -> None:
        """Score, allocate and prune as the schedule has it; raises ValueError if no parameter has a gradient."""
        _, end = self.settings.phases(self.total_steps)
        if self.steps < end:
            self._score()
        self.steps = step = self.steps + 1
        allocates = step == end or (step < end and step % self.settings.every == 0)
        if allocates:
            budget = self.settings.at(step, self.total_steps, self.full)
            self._kept = choose(self.scores(), self._sizes, budget - self._never)
        if allocates or step > end:
            for part, parameter in zip(self._parts, self._parameters(), strict=True):
                if not self._kept[part.groups].all():
                    parameter.masked_fill_(self._pruned(part).to(parameter.device), 0)

    def _pruned(self, part: _Part) -> Tensor:
        return ~torch.cat([self._kept[part.groups], torch.tensor([True])])[part.owner]  # -1 is the last

    def _score(self) -> None:
        parameters = self._parameters()
        if all(parameter.grad is None for parameter in parameters):
            raise ValueError(
                f"no parameter of adapter {self.adapter!r} has a gradient; call step() after backward() and before "
                "zero_grad()"
            )
        self._mean, self._uncertainty = (x.to(parameters[0].device) for x in (self._mean, self._uncertainty))
        products = [torch.zeros_like(p) if p.grad is None else p * p.grad for p in parameters]
        now = torch.cat([product.to(self._mean) for product in products]).abs()
        mean = torch.lerp(now, self._mean, self.settings.beta1)
        uncertainty = torch.lerp((now - mean).abs(), self._uncertainty, self.settings.beta2)
        finite = now.isfinite().all()
        self._mean = torch.where(finite, mean, self._mean)
        self._uncertainty = torch.where(finite, uncertainty, self._uncertainty)

    def scores(self) -> Tensor:
        """The score of every group, in the order of ``kept``."""
        entries = self._mean.cpu().double() * self._uncertainty.cpu().double()
        summed = torch.zeros(len(self._sizes) + 1, dtype=torch.float64).index_add_(0, self._owner + 1, entries)
        return summed[1:] / self._sizes

    def state_dict(self) -> dict[str, Tensor]:
        """What a training has to hand to ``load_state_dict`` to go on exactly."""
        progress = torch.tensor([self.steps, self.total_steps, self.settings.budget])
        return {
            "progress": progress,
            "mean": self._mean.cpu(),
            "uncertainty": self._uncertainty.cpu(),
            "kept": self._kept,
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a stored state; raises ValueError, changing nothing, if it is not one of this training."""
        own = self.state_dict()
        for key, value in own.items():
            found = state.get(key)
            if not isinstance(found, Tensor) or (found.shape, found.dtype) != (value.shape, value.dtype):
                told = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
                raise ValueError(
                    f"the state of adaptive rank has {key} of {value.dtype} {tuple(value.shape)} for this adapter, "
                    f"got {told}"
                )
        step, total_steps, budget = state["progress"].tolist()
        if (total_steps, budget) != (self.total_steps, self.settings.budget) or not 0 <= step <= total_steps:
            raise ValueError(
                f"the state of adaptive rank is of step {step} of {total_steps} with a budget of {budget}, but this "
                f"training has {self.total_steps} steps and a budget of {self.settings.budget}"
            )
        if not all(bool((state[key] >= 0).all() and state[key].isfinite().all()) for key in ("mean", "uncertainty")):
            raise ValueError("the state of adaptive rank has scores that are negative or not finite")
        self.steps, self._kept = step, state["kept"].cpu().clone()
        self._mean, self._uncertainty = state["mean"].clone(), state["uncertainty"].clone()

    def __str__(self) -> str:
        """One line for each module: the groups kept of each part, and the parameters."""
        rows: dict[str, list[str]] = {}
        sizes: dict[str, int] = {}
        for part in self._parts:
            module, _, name = part.name.rpartition(".")
            kept = self._kept[part.groups]
            rows.setdefault(module, []).append(f"{name} {int(kept.sum())}/{len(kept)}")
            sizes[module] = sizes.get(module, 0) + int((~self._pruned(part)).sum())
        lines = [f"{module}: {', '.join(row)}; {sizes[module]:,} parameters" for module, row in rows.items()]
        return "\n".join([f"step {self.steps}: {self.n_kept:,} of {self.full:,} parameters", *lines])
