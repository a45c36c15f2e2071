"""delta W as a closed chain of orthonormal cores with a diagonal on every bond (tensor ring)."""

from math import prod

from qcircuit_peft.factorizations.axes import balanced
from qcircuit_peft.factorizations.network import Axes, Network, chain
from qcircuit_peft.factorizations.parts import FrameOf
from qcircuit_peft.factorizations.tensor_train import chain_frames


def tensor_ring(out: Axes, into: Axes, r: int, frame: FrameOf, scaling: float = 1.0) -> Network:
    """delta W = scaling * trace of a product of cores and diagonals around a ring, axes ordered as in ``tensor_train``.

    A ring has no exact canonical form, so its cores are frames (b_{m-1} n_m, b_m) with a trainable diagonal on every
    bond: "lambda" where outputs and inputs meet, zero at first, and others that start at 1. The two bonds between
    outputs and inputs multiply to r (16 = 4 x 4; a prime r gives a train), which is the rank of delta W; inner bonds
    have the size of the larger. Parameters: the frames, and one number for each index of a bond.
    Source: Quantum-PEFT (arXiv 2503.05431), Fig. 5; bonds and diagonals are ours.

    >>> from qcircuit_peft.factorizations.parts import sizes
    >>> from qcircuit_peft.frames.circuit import CircuitFrame
    >>> sizes(tensor_ring((32, 24), (32, 24), 16, CircuitFrame))
    {'u1': 19, 'u2': 20, 'v1': 19, 'v2': 20, 'lambda': 4, 'bond': 4, 'bond_u1': 4, 'bond_v1': 4}
    """
    centre, loop = balanced(r, 2, least=1)
    left, right = (chain_frames(axes, centre, frame, loop) for axes in (out, into))
    return Network(prod(out), prod(into), left, right, chain, scaling, bonds=True, loop=loop)
