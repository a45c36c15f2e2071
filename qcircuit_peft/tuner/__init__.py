"""Circuit adapters for any PyTorch model, through Hugging Face PEFT. Importing this registers them with PEFT."""

from peft import PeftModel

from qcircuit_peft.tuner.adaptive import AdaptiveRank, Allocator
from qcircuit_peft.tuner.callback import AdaptiveRankCallback
from qcircuit_peft.tuner.card import hook_cards
from qcircuit_peft.tuner.config import QCircuitConfig
from qcircuit_peft.tuner.count import parameter_count
from qcircuit_peft.tuner.hotswap import hook_hotswap
from qcircuit_peft.tuner.layer import QCircuitLayer, QCircuitLinear
from qcircuit_peft.tuner.lora import hook_conversion
from qcircuit_peft.tuner.model import QCircuitModel
from qcircuit_peft.tuner.noise_aware import noise_aware
from qcircuit_peft.tuner.outgoing import circuit_of, circuits
from qcircuit_peft.tuner.register import (
    hook_checkpoints,
    hook_deletion,
    hook_heads,
    hook_kinds,
    hook_mixed,
    hook_scales,
    hook_state_dicts,
    register,
)

register("qcircuit", QCircuitConfig, QCircuitModel)
hook_cards(PeftModel)
hook_checkpoints()
hook_conversion()
hook_deletion()
hook_heads()
hook_hotswap()
hook_kinds()
hook_mixed()
hook_scales(QCircuitLayer)
hook_state_dicts()

__all__ = [
    "AdaptiveRank",
    "AdaptiveRankCallback",
    "Allocator",
    "QCircuitConfig",
    "QCircuitLayer",
    "QCircuitLinear",
    "QCircuitModel",
    "circuit_of",
    "circuits",
    "noise_aware",
    "parameter_count",
]
