"""Frames: few parameters in, an N x K matrix with orthonormal columns out. ``FRAMES`` names them."""

from functools import partial

from qcircuit_peft.frames.circuit import CircuitFrame
from qcircuit_peft.frames.diagonal import DiagonalFrame
from qcircuit_peft.frames.kind import INITS, Frame, Kind
from qcircuit_peft.frames.lower import LowerFrame

_LOWER = {
    "taylor": ("the exponential of a low-rank skew-symmetric matrix, as a series (Q_T)", ("intrinsic_rank", "order")),
    "exponential": ("the same through the whole N x N matrix, as a reference", ("intrinsic_rank",)),
    "cayley": ("(1 - A/2)^-1 (1 + A/2) of a low-rank skew-symmetric A", ("intrinsic_rank",)),
    "neumann": ("cayley with its inverse as a truncated series", ("intrinsic_rank", "order")),
    "householder": ("a product of reflections", ("intrinsic_rank",)),
    "givens": ("a product of plane rotations, in trees of log2 N steps", ("intrinsic_rank",)),
}

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
    **{name: Kind(partial(LowerFrame, name), about, options) for name, (about, options) in _LOWER.items()},
}

__all__ = ["FRAMES", "INITS", "Frame", "Kind"]
