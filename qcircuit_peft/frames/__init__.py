"""Frames: few parameters in, an N x K matrix with orthonormal columns out. ``FRAMES`` names them."""

from qcircuit_peft.frames.circuit import CircuitFrame
from qcircuit_peft.frames.kind import INITS, Frame, Kind

FRAMES = {"circuit": Kind(CircuitFrame, "the first columns of a parameterized circuit (Q_P)")}

__all__ = ["FRAMES", "INITS", "Frame", "Kind"]
