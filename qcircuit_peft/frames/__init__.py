"""Frames: few parameters in, an N x K matrix with orthonormal columns out. ``FRAMES`` names them."""

from functools import partial

from qcircuit_peft.frames.circuit import CircuitFrame
from qcircuit_peft.frames.compound import CompoundFrame
from qcircuit_peft.frames.diagonal import DiagonalFrame
from qcircuit_peft.frames.kind import INITS, Frame, Kind, Spec
from qcircuit_peft.frames.lower import MAPS, LowerFrame

FRAMES: dict[str, Kind] = {
    "circuit": Kind(
        CircuitFrame, "the first columns of a parameterized circuit (Q_P)", ("ansatz", "layers", "width", "backend")
    ),
    "shannon": Kind(
        partial(CircuitFrame, width="shannon"),
        "circuits of qubits in the cosine-sine recursion, for any width",
        ("ansatz", "layers", "backend", "splits"),
    ),
    "diagonal": Kind(
        DiagonalFrame,
        "a circuit, a trainable diagonal of signs or real numbers, and rotations of every wire",
        ("node", "ansatz", "layers", "width", "backend"),
    ),
    "compound": Kind(
        CompoundFrame,
        "compound matrices of a rotation, from circuits that keep the number of ones",
        ("orders", "layers"),
    ),
    **{name: Kind(partial(LowerFrame, name), row.about, row.options) for name, row in MAPS.items()},
}

__all__ = ["FRAMES", "INITS", "Frame", "Kind", "Spec"]
