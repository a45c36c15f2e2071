"""delta W as a sum of r outer products of vectors, one for each axis (CP, canonical polyadic)."""

from math import prod

from qcircuit_peft.factorizations.network import Axes, Network, khatri_rao
from qcircuit_peft.factorizations.parts import FrameOf


def cp(out: Axes, into: Axes, r: int, frame: FrameOf, scaling: float = 1.0) -> Network:
    """delta W = scaling * sum_k lambda_k u1_k (x) u2_k .. (v1_k (x) v2_k ..)^T, with a frame (n_m, r) for each axis.

    The rank of delta W is r: products of orthonormal columns are orthonormal. r (sum n_m) + r numbers where a frame is
    stored entry by entry. Raises ValueError if r is above an axis.
    Source: Quantum-PEFT (arXiv 2503.05431), Fig. 5: AdaLoRA is the CP form of two axes.

    >>> from qcircuit_peft.factorizations.parts import sizes
    >>> from qcircuit_peft.frames.circuit import CircuitFrame
    >>> sizes(cp((32, 24), (32, 24), 16, CircuitFrame))
    {'u1': 13, 'u2': 14, 'v1': 13, 'v2': 14, 'lambda': 16}
    """
    if min(*out, *into) < r:
        raise ValueError(f"cp: r is at most the smallest axis, {min(*out, *into)} of {out} and {into}, got {r}")
    left, right = (tuple(frame(n, r) for n in axes) for axes in (out, into))
    return Network(prod(out), prod(into), left, right, khatri_rao, scaling)
