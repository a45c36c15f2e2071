"""What a method is: how it is attached to a model, what it trains, how many numbers that are, how fast they learn."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.pytorch_utils import Conv1D

from qcircuit_peft import files
from qcircuit_peft.checks import whole_number
from qcircuit_peft.rates import parameter_groups
from qcircuit_peft.text import shown
from qcircuit_peft.tuner.maps import features

TRAINED = "trained.safetensors"
_NEAR = 1.5  # a size that trains more than this times the numbers asked for is no answer


class Shape(NamedTuple):
    """A linear layer that is adapted: its name, and the widths of what it gives and takes."""

    name: str
    out: int
    into: int


def shapes(model: nn.Module, targets: Sequence[str]) -> list[Shape]:
    """The linear layers of a model whose names end in one of ``targets``, as PEFT understands a list of targets.

    Raises ValueError if there is none.
    """
    ends = tuple(f".{target}" for target in targets)
    found = []
    for name, module in model.named_modules():
        if f".{name}".endswith(ends) and isinstance(module, nn.Linear | Conv1D):
            into, out = features(module)
            found.append(Shape(name, out, into))
    if not found:
        raise ValueError(f"the model has no linear layer whose name ends in one of {shown(list(targets))}")
    return found


def blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The transformer blocks of a model and their name; raises ValueError if it has none, or several kinds."""
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) and len({type(block) for block in module}) == 1
    ]
    found = [(name, module) for name, module in found if not any(name.startswith(f"{other}.") for other, _ in found)]
    if len(found) != 1:
        raise ValueError(f"wanted a model with one list of transformer blocks, got {len(found)} lists of modules")
    return found[0]


MAX_SIZE = 1 << 16  # sizes are looked through one by one, and a method is built before it can be counted
Attach = Callable[..., nn.Module]
Look = Callable[[nn.Module, list[dict[str, Tensor]], list[nn.Parameter]], object]
Count = Callable[[nn.Module, Sequence[str], int], int]
Sizes = Callable[[nn.Module, Sequence[str]], Iterable[int]]


def any_size(model: nn.Module, targets: Sequence[str]) -> Iterator[int]:
    """Sizes without a bound but the largest that any method takes."""
    return iter(range(1, MAX_SIZE + 1))


@dataclass(frozen=True)
class Adapter:
    """An ``attach`` by a configuration of PEFT: ``config(model, targets, size, **more)``, ``more`` are its fields."""

    config: Callable[..., PeftConfig]

    def __call__(self, model: nn.Module, targets: Sequence[str], size: int, **more: Any) -> nn.Module:
        """The adapted model; a bare one is changed."""
        return get_peft_model(model, self.config(model, targets, size, **more))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Method:
    """A way to adapt a pretrained model.

    name: in tables and figures. about: how it is attached, and what of that is not as published. source: a paper.
    rates: AdamW's learning rates worth trying, in rising order; the middle one where nothing is said.
    attach: ``attach(model, targets, size)`` gives the adapted model, in which only what the method trains has
        gradients; it may change ``model``. formula: ``formula(model, targets, size)``, the numbers that it trains.
    size: what the one number is by which the method is made larger; "" has none. default: its value.
    sizes: those that a model allows, in rising order; numbers that are trained rise with them, or fall.
    rates_of: the rate of each group of parameters, as a multiple; the keys are those of ``parameter_groups``.
    at_base: whether an adapted model starts with the outputs of the pretrained one.
    given_back: names of frozen tensors that PEFT saves, but that a seed or the base weights give back.
    look: ``look(net, batches, heads)``, what an adapted model takes from batches of the task before its first step.
        ``net(**batch)`` has a "loss", of labels too; the parameters ``heads`` are left as they are. None: nothing.
    callbacks: ``callbacks(model, steps)``, what has to happen during the training, for ``transformers.Trainer``.

    >>> from torch import nn
    >>> from qcircuit_peft.methods import METHODS
    >>> model = nn.ModuleDict({"query": nn.Linear(64, 64), "value": nn.Linear(64, 64)})
    >>> METHODS["lora"].count(model, ["query", "value"], 2)
    512
    >>> METHODS["lora_xs"].fit(model, ["query", "value"], 100)
    7
    """

    name: str
    about: str
    source: str
    rates: tuple[float, ...]
    attach: Attach
    formula: Count
    size: str = "rank r"
    default: int = 1
    sizes: Sizes = any_size
    rates_of: Mapping[str, float] = field(default_factory=lambda: {"others": 1.0})
    at_base: bool = True
    given_back: tuple[str, ...] = ()
    look: Look | None = None
    callbacks: Callable[[nn.Module, int], list[TrainerCallback]] = lambda model, steps: []

    @property
    def rate(self) -> float:
        """The learning rate where nothing else is said."""
        return self.rates[len(self.rates) // 2] if self.rates else 0.0

    def count(self, model: nn.Module, targets: Sequence[str], size: int | None = None) -> int:
        """The numbers that the method trains in a pretrained model, by its formula; no head is counted.

        Raises ValueError for a size that the model does not allow.
        """
        size = self.default if size is None else whole_number("size", size, 0)
        if self.size:
            allowed = list(takewhile(lambda one: one <= size, self.sizes(model, targets)))
            if allowed[-1:] != [size]:
                near = f"; the next smaller one is {allowed[-1]}" if allowed else ""
                raise ValueError(f"{self.name} has no size {shown(size)} in this model{near}")
        return self.formula(model, targets, size)

    def default_on(self, model: nn.Module, targets: Sequence[str]) -> int:
        """The default size, or the largest below it that a model allows; raises ValueError if it allows none."""
        if not self.size:
            return self.default
        allowed = list(takewhile(lambda size: size <= self.default, self.sizes(model, targets)))
        if not allowed:
            raise ValueError(f"{self.name} does not fit the widths of this model, unless a size is named")
        return allowed[-1]

    def fit(self, model: nn.Module, targets: Sequence[str], numbers: int) -> int:
        """The size at which the method trains about this many numbers; the smaller of two equally near.

        Raises ValueError for a method of one size, and if the least it can train is more than half as many again.
        """
        whole_number("numbers", numbers, 1)
        if not self.size:
            raise ValueError(f"{self.name} has no size to choose: it trains {self.count(model, targets):,} numbers")
        best: tuple[int, int, int] | None = None
        for size in self.sizes(model, targets):
            found = self.formula(model, targets, size)
            here = abs(found - numbers), size, found
            if best is not None and here[0] > best[0]:
                break  # numbers rise with the size, or fall: from here on it gets worse
            best = min(best or here, here)
        if best is None:
            raise ValueError(f"{self.name} does not fit the widths of this model")
        if best[2] > _NEAR * numbers:
            raise ValueError(f"{self.name} trains {best[2]:,} numbers here at least, {numbers:,} were asked for")
        return best[1]

    def rates_at(self, rate: float | None = None) -> dict[str, float]:
        """What ``parameter_groups`` takes: the rate of every group of parameters."""
        rate = self.rate if rate is None else rate
        return {key: factor * rate for key, factor in self.rates_of.items()}

    def groups(self, model: nn.Module, rate: float | None = None) -> list[dict[str, Any]]:
        """The parameters of an adapted model that train, as AdamW takes them; none if nothing does."""
        if not any(parameter.requires_grad for parameter in model.parameters()):
            return []
        return parameter_groups(model, self.rates_at(rate))


def trained_numbers(model: nn.Module) -> int:
    """The numbers that train, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _trains(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def keep(parameters: Mapping[str, Tensor], path: Path) -> None:
    """Write parameters as safetensors, whole or not at all; raises OSError if they cannot be written."""
    draft = files.draft_of(path)
    save_file({name: p.detach().contiguous() for name, p in parameters.items()}, draft)
    files.replace(draft, path)


def restore(parameters: Mapping[str, Tensor], path: Path) -> None:
    """Put what ``keep`` wrote into the same parameters; raises ValueError, before that, if there are others."""
    found = load_file(path) if path.is_file() else {}
    if {name: p.shape for name, p in parameters.items()} != {name: value.shape for name, value in found.items()}:
        raise ValueError(
            f"{path.parent} is a checkpoint of another model or method: what this one keeps is not in {path.name}"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(found[name])


def save_trained(model: nn.Module, folder: Path) -> None:
    """What trains in a model, and nothing else, as ``TRAINED`` in a folder, whole or not at all; nothing if none does.

    Raises OSError if it cannot be written.
    """
    files.make_folder(folder)
    if found := _trains(model):
        keep(found, folder / TRAINED)


def load_trained(model: nn.Module, folder: Path) -> None:
    """Put what ``save_trained`` wrote into a model; raises ValueError as ``restore`` does."""
    restore(_trains(model), folder / TRAINED)


def save(model: nn.Module, folder: Path) -> None:
    """What was trained: as PEFT saves it, or, of a model without a PEFT adapter, as ``save_trained`` does."""
    if isinstance(model, PeftModel):
        files.make_folder(folder)
        model.save_pretrained(str(folder))
    else:
        save_trained(model, folder)


def load(method: Method, model: nn.Module, targets: Sequence[str], size: int, folder: Path) -> nn.Module:
    """A pretrained model as ``save`` left it; ``model`` is changed.

    Raises ValueError as ``load_trained`` does.
    """
    if (folder / "adapter_config.json").is_file():
        return PeftModel.from_pretrained(model, folder)  # type: ignore[arg-type]
    adapted = method.attach(model, targets, size)
    load_trained(adapted, folder)
    return adapted


def stored(method: Method, folder: Path) -> tuple[int, int]:
    """What a checkpoint takes, without a head: its numbers, but those that are given back, and all its bytes."""
    numbers = size = 0
    for path in (folder / TRAINED, folder / "adapter_model.safetensors", folder / "adapter_config.json"):
        if path.is_file():
            size += path.stat().st_size
            if path.suffix == ".safetensors":
                kept = load_file(path).items()
                numbers += sum(value.numel() for key, value in kept if not set(key.split(".")) & set(method.given_back))
    return numbers, size
