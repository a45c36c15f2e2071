"""Our own methods: circuits on a task's model."""

from typing import Any

from peft import PeftConfig

from qcircuit_peft.methods.method import Method
from qcircuit_peft.tasks import Task
from qcircuit_peft.tuner import QCircuitConfig


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
