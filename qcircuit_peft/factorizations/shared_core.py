"""delta W = scaling * U G V^T with a full core G: the form in which layers share U and V (LoTR)."""

from collections.abc import Callable
from typing import Any

from qcircuit_peft.factorizations.axes import check_rank
from qcircuit_peft.factorizations.network import Network, chain


def shared_core(n_out: int, n_in: int, r: int, frame: Callable[[int, int], Any], scaling: float = 1.0) -> Network:
    """delta W = scaling * U G V^T with frames "u" (out, r), "v" (in, r) and a core G of r x r numbers, zero at first.

    A layer's own r^2 numbers turn and mix what U and V span, so that layers can share these two: in a
    model S layers of a kind train the frames once and S r^2 numbers (``QCircuitConfig.share``).
    Raises ValueError unless r is 1 to the smaller width.
    Source: LoTR (arXiv 2402.01376), a Tucker-2 form with shared factors; orthonormal factors after Quantum-PEFT.

    >>> from qcircuit_peft.factorizations.parts import sizes
    >>> from qcircuit_peft.frames.circuit import CircuitFrame
    >>> sizes(shared_core(768, 3072, 16, CircuitFrame))
    {'u': 29, 'v': 35, 'core': 256}
    """
    check_rank("shared_core", n_out, n_in, r)
    return Network(n_out, n_in, (frame(n_out, r),), (frame(n_in, r),), chain, scaling, core=True)
