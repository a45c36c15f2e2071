"""What a method is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from peft import PeftConfig, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from qcircuit_peft.tasks import Task, pretrained

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

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """The parameters of an adapted model that train, what is tied once, as AdamW takes them: a group each rate."""
        found: dict[float, list[Tensor]] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                found.setdefault(self.rate_of(name), []).append(parameter)
        return [{"params": parameters, "lr": rate} for rate, parameters in found.items()]

    def attach(self, task: Task) -> nn.Module:
        """The task's pretrained model with a fresh adapter, drawn from torch's global random state."""
        model: PreTrainedModel = pretrained(task)
        return model if self.config is None else get_peft_model(model, self.config(task))
