"""Methods: ways to adapt a pretrained model, each a row of ``METHODS`` with its rates and the numbers it trains."""

from qcircuit_peft.methods.base import BASE, Lisa
from qcircuit_peft.methods.chosen import DEMO, HEAD_RATE, Chosen
from qcircuit_peft.methods.circuit import CIRCUITS, CORES, UPDATED, circuits
from qcircuit_peft.methods.looking import look, some_batches
from qcircuit_peft.methods.method import (
    TRAINED,
    Adapter,
    Method,
    load,
    load_trained,
    save,
    save_trained,
    shapes,
    stored,
    trained_numbers,
)
from qcircuit_peft.methods.reft import LOREFT
from qcircuit_peft.methods.rivals import RIVALS
from qcircuit_peft.methods.updates import UPDATES, UpdateConfig

METHODS: dict[str, Method] = {**BASE, "loreft": LOREFT, **RIVALS, **UPDATED, **CORES, **CIRCUITS}

__all__ = [
    "CIRCUITS",
    "CORES",
    "DEMO",
    "HEAD_RATE",
    "METHODS",
    "RIVALS",
    "TRAINED",
    "UPDATES",
    "Adapter",
    "Chosen",
    "Lisa",
    "Method",
    "UpdateConfig",
    "circuits",
    "load",
    "load_trained",
    "look",
    "save",
    "save_trained",
    "shapes",
    "some_batches",
    "stored",
    "trained_numbers",
]
