"""Adapt pretrained models with parameterized quantum circuits."""

from qcircuit_peft.ansatz import Ansatz, Step, load
from qcircuit_peft.backends import apply, columns, density, estimated_columns, matrix, probabilities, state
from qcircuit_peft.backends.noise import Noise
from qcircuit_peft.calibration import calibrate
from qcircuit_peft.circuit import Affine, Circuit, Op
from qcircuit_peft.generator import BottleneckConfig, QPAConfig, QPAModel, save_base_adapter
from qcircuit_peft.rates import optimizer_cls_and_kwargs, parameter_groups
from qcircuit_peft.tuner import (
    AdaptiveRank,
    AdaptiveRankCallback,
    Allocator,
    QCircuitConfig,
    QCircuitModel,
    circuit_of,
    circuits,
    noise_aware,
    parameter_count,
)

__version__ = "0.2.0"
__all__ = [
    "AdaptiveRank",
    "AdaptiveRankCallback",
    "Affine",
    "Allocator",
    "Ansatz",
    "BottleneckConfig",
    "Circuit",
    "Noise",
    "Op",
    "QCircuitConfig",
    "QCircuitModel",
    "QPAConfig",
    "QPAModel",
    "Step",
    "apply",
    "calibrate",
    "circuit_of",
    "circuits",
    "columns",
    "density",
    "estimated_columns",
    "load",
    "matrix",
    "noise_aware",
    "optimizer_cls_and_kwargs",
    "parameter_count",
    "parameter_groups",
    "probabilities",
    "save_base_adapter",
    "state",
]
