"""How fast what trains in an adapted model learns: parameters by kind, and a rate for each kind.

A module that holds parameters of an adapter says of what kind they are by ``kinds_of_parameters``; this module knows
neither the tuner nor the generator. The rates were searched on validation splits:
docs/results/training.md, docs/results/qpa.md.
"""

import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, Protocol, runtime_checkable

import torch
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from qcircuit_peft.checks import number
from qcircuit_peft.text import did_you_mean, shown

RATES = {  # AdamW's, where nothing else is said; what is of no kind has none
    "angles": 5e-2,  # radians, of circuits
    "frames": 2e-2,  # of all other maps: Lie parameters, reflections, rotations
    "lambdas": 2e-2,  # singular values, before scaling
    "cores": 2e-2,  # of tensor networks, and the gates of QuanTA
    "generators": 5e-3,  # QPA: the circuit and its mapping network
    "heads": 2e-3,  # what PEFT trains as it is: modules_to_save, trainable_token_indices
}
OTHERS = "others"
_STILL = 1e-3  # below it Adam's steps, each about as large as the rate, do not bring an angle anywhere
_NORMALIZED = ("adam", "lion")  # in the names of optimizers whose steps are as large as the rate
_WATCHED = ("angles", "lambdas")


@runtime_checkable
class Holder(Protocol):
    """A module that knows of what kind its parameters are."""

    def kinds_of_parameters(self) -> Iterator[tuple[Tensor, str]]:
        """Parameters, and the key of ``RATES`` for each."""
        ...


def kinds(model: nn.Module) -> dict[str, tuple[nn.Parameter, str]]:
    """What trains in a model, tied parameters once: the parameter and its kind, by name; "others" is of no kind."""
    known: dict[int, str] = {}
    for module in model.modules():
        if isinstance(module, Holder):
            known |= {id(parameter): kind for parameter, kind in module.kinds_of_parameters()}
        elif isinstance(module, AuxiliaryTrainingWrapper):
            known |= {id(parameter): "heads" for parameter in module.parameters() if id(parameter) not in known}
    trained = ((name, p) for name, p in model.named_parameters() if p.requires_grad)
    return {name: (p, known.get(id(p), OTHERS)) for name, p in trained}


def parameter_groups(
    model: nn.Module, rates: Mapping[str, float] | None = None, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """What trains in an adapted model in groups, as torch's optimizers take them: one for each kind, with its rate.

    rates: other rates than those of ``RATES``, by kind ("angles", "frames", "lambdas", "cores", "generators", "heads",
    "others") or by a part of a parameter's name between dots, such as "lora_A", which comes before its kind. What is
    of no kind, such as LoRA's matrices or weights of the base, needs a rate. weight_decay: of the matrices of heads
    and others; angles, lambdas, biases and norms have none.

    Works for ``QCircuitConfig``, ``QPAConfig`` and, given rates, any other model. Every group has "params", "lr",
    "weight_decay" and "kind". Raises ValueError for a parameter without a rate, a key that fits nothing, a rate that
    is negative or not finite, and a model in which nothing trains.

    >>> from peft import get_peft_model
    >>> from qcircuit_peft import QCircuitConfig
    >>> model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(64, 32)), QCircuitConfig(r=4, target_modules=["0"]))
    >>> [(group["kind"], group["lr"], len(group["params"])) for group in parameter_groups(model)]
    [('angles', 0.05, 2), ('lambdas', 0.02, 1)]
    >>> optimizer = torch.optim.AdamW(parameter_groups(model, {"angles": 1e-2}))
    """
    given = {key: number(f"the rate of {shown(key)}", rate, 0) for key, rate in (rates or {}).items()}
    number("weight_decay", weight_decay, 0)
    found = kinds(model)
    if not found:
        raise ValueError("nothing trains in this model: no parameter has requires_grad")
    groups: dict[tuple[str, float], dict[str, Any]] = {}
    used = {*RATES, OTHERS}
    for name, (parameter, kind) in found.items():
        key = next((part for part in name.split(".") if part in given), kind)
        used.add(key)
        rate = given.get(key, RATES.get(key))
        if rate is None:
            raise ValueError(
                f"no learning rate is known for the parameter {shown(name)}; give one in rates, by a part of this name "
                f"or as {OTHERS!r}"
            )
        decay = weight_decay if kind in ("heads", OTHERS) and parameter.dim() > 1 else 0.0
        group = {"params": [], "lr": rate, "weight_decay": decay, "kind": kind}
        groups.setdefault((key, decay), group)["params"].append(parameter)
    if unknown := [key for key in given if key not in used]:
        parts = sorted({part for name in found for part in name.split(".") if not part.isdigit()} | used)
        raise ValueError(
            f"rates has {shown(unknown[0])}, which is no kind and in no trained name; {did_you_mean(unknown[0], parts)}"
        )
    return list(groups.values())


def optimizer_cls_and_kwargs(
    model: nn.Module,
    rates: Mapping[str, float] | None = None,
    weight_decay: float = 0.0,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
    **options: Any,
) -> tuple[Callable[..., torch.optim.Optimizer], dict[str, Any]]:
    """What ``Trainer`` takes under this name: an optimizer that has ``parameter_groups(model, rates, weight_decay)``.

    ``options`` are the optimizer's own. The schedule stays that of ``TrainingArguments``, for every rate; its
    ``learning_rate`` and ``weight_decay`` are not used. Raises ValueError as ``parameter_groups`` does.

    >>> from peft import get_peft_model
    >>> from qcircuit_peft import QCircuitConfig
    >>> model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(64, 32)), QCircuitConfig(r=4, target_modules=["0"]))
    >>> made, options = optimizer_cls_and_kwargs(model, betas=(0.9, 0.99))
    >>> made.__name__, sorted(options)  # Trainer(model, ..., optimizer_cls_and_kwargs=(made, options))
    ('AdamW', ['betas', 'params'])
    """
    return optimizer, {"params": parameter_groups(model, rates, weight_decay), **options}


_LOOKS: dict[object, Callable[[torch.optim.Optimizer], None]] = {}


@cache
def _hooked() -> None:
    """One hook for all models, for good: torch's own table may not change while a step goes through it."""

    def look(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for one in list(_LOOKS.values()):
            one(optimizer)

    register_optimizer_step_pre_hook(look)


def watch(model: nn.Module) -> None:
    """Warn, once, if an optimizer steps through circuit parameters of this model at a rate at which they cannot move.

    Looked at is the first step of the first optimizer that has such parameters: the rate at the start of its schedule,
    and only where a step is about as large as the rate, as Adam's is.
    """
    reference, seen, key = weakref.ref(model), weakref.WeakSet(), object()

    def look(optimizer: torch.optim.Optimizer) -> None:
        watched = reference()
        if torch.compiler.is_compiling() or watched is None or optimizer in seen:
            return
        seen.add(optimizer)
        ours = {id(p): kind for p, kind in kinds(watched).values() if kind in _WATCHED}
        rates: dict[str, float] = {}
        for group in optimizer.param_groups:
            rate = group.get("initial_lr", group.get("lr"))
            for kind in {ours[id(p)] for p in group["params"] if id(p) in ours}:
                rates[kind] = min(rates.get(kind, torch.inf), torch.inf if rate is None else float(rate))
        if not rates:
            return
        _LOOKS.pop(key, None)
        slow = {kind: rates[kind] for kind in _WATCHED if 0 < rates.get(kind, 0) < _STILL}
        if slow and any(name in type(optimizer).__name__.lower() for name in _NORMALIZED):
            told = " and ".join(f"{kind} at {rate:g}" for kind, rate in slow.items())
            usual = " and ".join(f"{RATES[kind]:g}" for kind in slow)
            warnings.warn(
                f"{type(optimizer).__name__} trains {told}, a rate at which circuits hardly move; the usual one is "
                f"{usual}: Trainer(..., optimizer_cls_and_kwargs=qcircuit_peft.optimizer_cls_and_kwargs(model)), or "
                "qcircuit_peft.parameter_groups(model) for an optimizer of your own",
                stacklevel=2,
            )

    _LOOKS[key] = look
    weakref.finalize(model, _LOOKS.pop, key, None).atexit = False
    _hooked()
