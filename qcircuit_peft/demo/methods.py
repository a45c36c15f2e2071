"""What the demo compares: adapters, and how fast each of their parameters learns. Chosen on the validation split."""

from collections.abc import Callable
from dataclasses import dataclass

from peft import FourierFTConfig, LoraConfig, PeftConfig, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from qcircuit_peft import QCircuitConfig, parameter_count
from qcircuit_peft.demo.task import Task, pretrained
from qcircuit_peft.tuner import QCircuitLayer

HEAD_RATE = 2e-3  # AdamW learning rate of the linear head, for every method


@dataclass(frozen=True)
class Method:
    """A name, the adapter (none: only the head learns), its AdamW learning rate, whether its circuits are shared."""

    name: str
    config: Callable[[Task], PeftConfig] | None
    rate: float
    shared: bool = False

    def attach(self, task: Task) -> nn.Module:
        """The task's pretrained model with a fresh adapter, drawn from torch's global random state."""
        model: PreTrainedModel = pretrained(task)
        if self.config is None:
            return model
        adapted = get_peft_model(model, self.config(task))
        if self.shared:
            share_circuits(adapted)
        return adapted


def share_circuits(model: nn.Module) -> None:
    """Tie the angles of layers of one name, such as all queries, so that each has only its lambda for itself."""
    first: dict[tuple[str, str], nn.Parameter] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, QCircuitLayer):
            kind = name.partition(".layer.")[2].partition(".")[2]
            for part in ("qcircuit_u", "qcircuit_v"):
                angles = getattr(layer, part)
                angles["default"] = first.setdefault((kind, part), angles["default"])


def _circuit(task: Task) -> PeftConfig:
    return QCircuitConfig(target_modules=list(task.targets))


def _frozen(task: Task) -> PeftConfig:
    return QCircuitConfig(target_modules=list(task.targets), train_angles=False)


def _fourier(task: Task) -> PeftConfig:
    """FourierFT with as many parameters as the circuit has, or up to one a layer more, on the layers LoRA takes."""
    model, ends = pretrained(task), tuple(f".{target}" for target in task.lora_targets)
    layers = sum(name.endswith(ends) for name, _ in model.named_modules())
    each = -(-parameter_count(_circuit(task), model) // layers)
    return FourierFTConfig(target_modules=list(task.lora_targets), n_frequency=each, scaling=150.0)


def _lora(task: Task) -> PeftConfig:
    return LoraConfig(target_modules=list(task.lora_targets), r=1, lora_alpha=8)


METHODS: dict[str, Method] = {
    "probe": Method("linear probe", None, 0.0),
    "circuit": Method("circuit, all linear layers", _circuit, 2e-2),
    "frozen": Method("the same, angles frozen at random", _frozen, 2e-2),
    "fourier": Method("FourierFT, as many parameters", _fourier, 5e-2),
    "lora": Method("LoRA r = 1, query and value", _lora, 4e-3),
}
