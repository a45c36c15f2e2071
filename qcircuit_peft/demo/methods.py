"""What the demo compares: adapters, and how fast each of their parameters learns. Chosen on the validation split."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from peft import FourierFTConfig, LoraConfig, PeftConfig, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from qcircuit_peft import QCircuitConfig, parameter_count
from qcircuit_peft.demo.task import Task, pretrained

HEAD_RATE = 2e-3  # AdamW learning rate of the linear head, for every method


@dataclass(frozen=True)
class Method:
    """A name, the adapter (none: only the head learns), AdamW's learning rates."""

    name: str
    config: Callable[[Task], PeftConfig] | None
    rate: float
    angle_rate: float = 0.0

    def rate_of(self, parameter: str) -> float:
        """The learning rate of a parameter, by its name: circuits have one for angles and one for lambda."""
        return self.angle_rate if "qcircuit_u" in parameter or "qcircuit_v" in parameter else self.rate

    def attach(self, task: Task) -> nn.Module:
        """The task's pretrained model with a fresh adapter, drawn from torch's global random state."""
        model: PreTrainedModel = pretrained(task)
        return model if self.config is None else get_peft_model(model, self.config(task))


def circuit(
    name: str,
    r: int,
    *,
    all_layers: bool = False,
    rate: float = 2e-2,
    angle_rate: float = 5e-2,
    **settings: Any,
) -> Method:
    """Circuits of rank r on all linear layers, or on those that LoRA usually takes; ``settings`` of QCircuitConfig."""

    def config(task: Task) -> PeftConfig:
        targets = task.targets if all_layers else task.lora_targets
        return QCircuitConfig(r=r, alpha=8 * r, target_modules=list(targets), **settings)

    return Method(name, config, rate, angle_rate)


def fourier(name: str, parameters: int | Method, *, all_layers: bool = False, rate: float = 5e-2) -> Method:
    """FourierFT with this many parameters, or as many as a method has on the task, or up to one a layer more."""

    def config(task: Task) -> PeftConfig:
        wanted = parameters
        if isinstance(wanted, Method):
            wanted = parameter_count(wanted.config(task), pretrained(task)) if wanted.config else 0
        targets = task.targets if all_layers else task.lora_targets
        ends = tuple(f".{target}" for target in targets)
        layers = sum(name.endswith(ends) for name, _ in pretrained(task).named_modules())
        return FourierFTConfig(target_modules=list(targets), n_frequency=-(-wanted // layers), scaling=150.0)

    return Method(name, config, rate)


def _lora(task: Task) -> PeftConfig:
    return LoraConfig(target_modules=list(task.lora_targets), r=1, lora_alpha=8)


_SHARED = circuit("circuits shared by all blocks, r = 64", 64, share="kind")

# Query and value are adapted where nothing else is said. The cheap ones come first: the demo starts with the last.
METHODS: dict[str, Method] = {
    "probe": Method("linear probe", None, 0.0),
    "frozen": circuit("circuits frozen at random angles, r = 73", 73, train_angles=False),
    "lora": Method("LoRA, r = 1", _lora, 4e-3),
    "fourier": fourier("FourierFT", _SHARED),
    "circuit": _SHARED,
}
