"""delta W = scaling * U G V^T with a full core G: the form in which layers share U and V (LoTR)."""

from math import prod

from qcircuit_peft.factorizations.network import Axes, Network, chain
from qcircuit_peft.factorizations.parts import FrameOf
from qcircuit_peft.factorizations.tensor_train import chain_frames


def shared_core(out: Axes, into: Axes, r: int, frame: FrameOf, scaling: float = 1.0) -> Network:
    """delta W = scaling * U G V^T with frames "u" (out, r), "v" (in, r) and a core G of r x r numbers, zero at first.

    A layer's own r^2 numbers turn and mix what U and V span, so that layers can share these two: in a
    model S layers of a kind train the frames once and S r^2 numbers (``QCircuitConfig.share``).
    Source: LoTR (arXiv 2402.01376), a Tucker-2 form with shared factors; orthonormal factors after Quantum-PEFT.

    >>> from qcircuit_peft.factorizations.parts import sizes
    >>> from qcircuit_peft.frames.circuit import CircuitFrame
    >>> sizes(shared_core((768,), (3072,), 16, CircuitFrame))
    {'u': 29, 'v': 35, 'core': 256}
    """
    left, right = (chain_frames(axes, r, frame) for axes in (out, into))
    return Network(prod(out), prod(into), left, right, chain, scaling, core=True)
