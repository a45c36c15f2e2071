"""Frames: few parameters in, an N x K matrix with orthonormal columns out. ``FRAMES`` names them."""

from qcircuit_peft.frames.circuit import CircuitFrame

FRAMES = {"circuit": CircuitFrame}
