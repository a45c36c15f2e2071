"""The methods that circuits are compared with, from PEFT."""

from peft import FourierFTConfig, LoraConfig, PeftConfig

from qcircuit_peft.methods.method import Method
from qcircuit_peft.tasks import Task, pretrained
from qcircuit_peft.tuner import parameter_count


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


def lora(name: str, r: int, *, rate: float = 4e-3) -> Method:
    """LoRA of rank r where it usually is, with alpha = 8 r."""

    def config(task: Task) -> PeftConfig:
        return LoraConfig(target_modules=list(task.lora_targets), r=r, lora_alpha=8 * r)

    return Method(name, config, rate)
