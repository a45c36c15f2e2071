"""delta W as a small core of numbers with an orthonormal frame on every axis (Tucker)."""

from math import prod

from qcircuit_peft.factorizations.axes import balanced
from qcircuit_peft.factorizations.network import Axes, Network, kronecker
from qcircuit_peft.factorizations.parts import FrameOf


def tucker(out: Axes, into: Axes, r: int, frame: FrameOf, scaling: float = 1.0) -> Network:
    """delta W = scaling * (U1 (x) U2 (x) ...) G (V1 (x) V2 (x) ...)^T with a core G of r' x r' numbers, zero at first.

    The axis ranks of either side multiply to r', the largest number up to r whose balanced factors fit into the axes
    (16 = 4 x 4; 7 = 7 x 1), which is the rank of delta W. Parameters: the frames (n_m, r_m), and prod r_m.
    Source: Quantum-PEFT (arXiv 2503.05431), Fig. 5; the choice of the axis ranks is ours.

    >>> from qcircuit_peft.factorizations.parts import sizes
    >>> from qcircuit_peft.frames.circuit import CircuitFrame
    >>> sizes(tucker((32, 24), (32, 24), 16, CircuitFrame))
    {'u1': 13, 'u2': 14, 'v1': 13, 'v2': 14, 'core': 256}
    """
    rank = next(rank for rank in range(r, 0, -1) if _ranks(rank, out) and _ranks(rank, into))
    left, right = (tuple(map(frame, axes, _ranks(rank, axes))) for axes in (out, into))
    return Network(prod(out), prod(into), left, right, kronecker, scaling, core=True)


def _ranks(rank: int, axes: Axes) -> tuple[int, ...]:
    """A rank for each axis, the larger for the larger, with product ``rank``; empty if they do not fit."""
    factors = balanced(rank, len(axes), least=1)
    order = sorted(range(len(axes)), key=lambda m: -axes[m])
    found = dict(zip(order, factors, strict=True))
    return tuple(found[m] for m in range(len(axes))) if all(found[m] <= axes[m] for m in order) else ()
