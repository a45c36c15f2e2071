"""Methods: an adapter, and how fast each of its parameters learns. ``METHODS`` names those that the demo compares.

Their rates were chosen on validation splits.
"""

from qcircuit_peft.methods.circuit import circuit
from qcircuit_peft.methods.method import HEAD_RATE, Method
from qcircuit_peft.methods.rivals import fourier, lora

_SHARED = circuit("circuits shared by all blocks, r = 64", 64, share="kind")

# Query and value are adapted where nothing else is said. The cheap ones come first: the demo starts with the last.
METHODS: dict[str, Method] = {
    "probe": Method("linear probe", None, 0.0),
    "frozen": circuit("circuits frozen at random angles, r = 73", 73, train_angles=False),
    "lora": lora("LoRA, r = 1", 1),
    "fourier": fourier("FourierFT", _SHARED),
    "circuit": _SHARED,
}

__all__ = ["HEAD_RATE", "METHODS", "Method", "circuit", "fourier", "lora"]
