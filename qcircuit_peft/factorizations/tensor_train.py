"""delta W as a chain of cores (tensor train), in its canonical form and with a diagonal on every bond."""

from math import prod

from qcircuit_peft.factorizations.network import Axes, Network, chain
from qcircuit_peft.factorizations.parts import FrameOf
from qcircuit_peft.frames.kind import Spec


def chain_frames(axes: Axes, r: int, frame: FrameOf, loop: int = 1) -> tuple[Spec, ...]:
    """Frames (b_{m-1} n_m, b_m) for ``chain``, b_0 = loop and b_m = r, or less where the axes so far are narrower."""
    cores, bond = [], loop
    for n in axes:
        rows, bond = bond * n, min(bond * n, r)
        cores.append(frame(rows, bond))
    return tuple(cores)


def tensor_train(out: Axes, into: Axes, r: int, frame: FrameOf, scaling: float = 1.0, bonds: bool = False) -> Network:
    """The canonical tensor train: orthonormal cores left and right of one diagonal lambda of r numbers.

    delta W[o1 o2 .., i1 i2 ..] = scaling * (u1 u2 ..) diag(lambda) (.. v2 v1): the chain runs from the first output
    axis to the last, then from the last input axis to the first; the cores are frames (b_{m-1} n_m, b_m), with bonds
    b_m = r or less where the axes so far are narrower. The rank of delta W is r, and of order 1 it is the ``svd``.
    Parameters on the Stiefel manifold: sum over cores of b_{m-1} n_m b_m - b_m (b_m + 1) / 2, and r.
    Source: Quantum-PEFT (arXiv 2503.05431), Fig. 5.

    >>> from qcircuit_peft.factorizations.parts import sizes
    >>> from qcircuit_peft.frames.circuit import CircuitFrame
    >>> sizes(tensor_train((32, 24), (32, 24), 16, CircuitFrame))
    {'u1': 13, 'u2': 26, 'v1': 13, 'v2': 26, 'lambda': 16}
    """
    left, right = (chain_frames(axes, r, frame) for axes in (out, into))
    return Network(prod(out), prod(into), left, right, chain, scaling, bonds=bonds)


def std(out: Axes, into: Axes, r: int, frame: FrameOf, scaling: float = 1.0) -> Network:
    """The tensor train whose nodes are split into unitary and diagonal ones: a trainable diagonal on *every* bond.

    With the frame "circuit" every unitary node is a circuit, by default a simplified two-design. What the paper's
    Fig. 7 draws is not known to us in detail; we put the nodes along the chain of ``tensor_train``, because then the
    rank stays r. The diagonals away from the centre start at 1.
    Parameters: (2L + 1) log2 n - 2L for a two-design node of n = b_{m-1} n_m rows, b_m for each bond, r at the centre;
    of order 1 that is 2 ((2L + 1) log2 N - 2L) + r.
    Source: Quantum-PEFT (arXiv 2503.05431), Fig. 7; the layout is ours.

    >>> from qcircuit_peft.factorizations.parts import sizes
    >>> from qcircuit_peft.frames.circuit import CircuitFrame
    >>> sizes(std((32, 24), (32, 24), 16, CircuitFrame))
    {'u1': 13, 'u2': 26, 'v1': 13, 'v2': 26, 'lambda': 16, 'bond_u1': 16, 'bond_v1': 16}
    """
    return tensor_train(out, into, r, frame, scaling, bonds=True)
