"""delta W as a small core of numbers with an orthonormal frame on every axis (Tucker)."""

from collections.abc import Callable
from typing import Any

from qcircuit_peft.factorizations.axes import balanced, check_rank, split
from qcircuit_peft.factorizations.network import Network, kronecker


def tucker(
    n_out: int,
    n_in: int,
    r: int,
    frame: Callable[[int, int], Any],
    scaling: float = 1.0,
    *,
    axes: Any = None,
    order: int = 2,
) -> Network:
    """delta W = scaling * (U1 (x) U2 (x) ...) G (V1 (x) V2 (x) ...)^T with a core G of r' x r' numbers, zero at first.

    The axis ranks of either side multiply to r', the largest number up to r whose balanced factors fit into the axes
    (16 = 4 x 4; 7 = 7 x 1), which is the rank of delta W. ``axes`` and ``order`` as in ``split``.
    Parameters: the frames (n_m, r_m), and prod r_m. Raises ValueError if axes do not multiply to the width.
    Source: Quantum-PEFT (arXiv 2503.05431), Fig. 5; the choice of the axis ranks is ours.

    >>> from qcircuit_peft.factorizations.parts import sizes
    >>> from qcircuit_peft.frames.circuit import CircuitFrame
    >>> sizes(tucker(768, 768, 16, CircuitFrame))
    {'u1': 13, 'u2': 14, 'v1': 13, 'v2': 14, 'core': 256}
    """
    check_rank("tucker", n_out, n_in, r)
    out, into = (split("tucker", n, side, axes, order) for side, n in enumerate((n_out, n_in)))
    rank = next(rank for rank in range(r, 0, -1) if _ranks(rank, out) and _ranks(rank, into))
    left, right = (tuple(map(frame, sizes, _ranks(rank, sizes))) for sizes in (out, into))
    return Network(n_out, n_in, left, right, kronecker, scaling, core=True)


def _ranks(rank: int, axes: tuple[int, ...]) -> tuple[int, ...]:
    """A rank for each axis, the larger for the larger, with product ``rank``; empty if they do not fit."""
    factors = balanced(rank, len(axes), least=1)
    order = sorted(range(len(axes)), key=lambda m: -axes[m])
    found = dict(zip(order, factors, strict=True))
    return tuple(found[m] for m in range(len(axes))) if all(found[m] <= axes[m] for m in order) else ()
