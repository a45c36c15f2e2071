"""Quantum Parameter Adaptation: a circuit generates the trainable parameters of any PEFT method.

Importing this registers ``QPAConfig`` with PEFT.
"""

from qcircuit_peft.generator.bottleneck import BottleneckConfig, BottleneckModel
from qcircuit_peft.generator.config import QPAConfig
from qcircuit_peft.generator.model import QPAModel
from qcircuit_peft.generator.network import Count, Generator, generator_count
from qcircuit_peft.generator.recipe import Recipe
from qcircuit_peft.generator.use import measured_with, save_base_adapter, started_from
from qcircuit_peft.tuner.register import register

register("bottleneck", BottleneckConfig, BottleneckModel)
register("qpa", QPAConfig, QPAModel)

__all__ = [
    "BottleneckConfig",
    "Count",
    "Generator",
    "QPAConfig",
    "QPAModel",
    "Recipe",
    "generator_count",
    "measured_with",
    "save_base_adapter",
    "started_from",
]
