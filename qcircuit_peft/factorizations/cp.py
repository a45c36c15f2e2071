"""delta W as a sum of r outer products of vectors, one for each axis (CP, canonical polyadic)."""

from collections.abc import Callable
from typing import Any

from qcircuit_peft.factorizations.axes import check_rank, split
from qcircuit_peft.factorizations.network import Network, khatri_rao


def cp(
    n_out: int,
    n_in: int,
    r: int,
    frame: Callable[[int, int], Any],
    scaling: float = 1.0,
    *,
    axes: Any = None,
    order: int = 2,
) -> Network:
    """delta W = scaling * sum_k lambda_k u1_k (x) u2_k .. (v1_k (x) v2_k ..)^T, with a frame (n_m, r) for each axis.

    ``axes`` and ``order`` (axes on either side) as in ``split``; automatic axes are at least r wide. The rank of delta
    W is r: products of orthonormal columns are orthonormal. r (sum n_m) + r numbers where a frame is stored entry by
    entry. Raises ValueError if r is above an axis, or axes do not multiply to the width.
    Source: Quantum-PEFT (arXiv 2503.05431), Fig. 5: AdaLoRA is the CP form of two axes.

    >>> from qcircuit_peft.factorizations.parts import sizes
    >>> from qcircuit_peft.frames.circuit import CircuitFrame
    >>> sizes(cp(768, 768, 16, CircuitFrame))
    {'u1': 13, 'u2': 14, 'v1': 13, 'v2': 14, 'lambda': 16}
    """
    check_rank("cp", n_out, n_in, r)
    out, into = (split("cp", n, side, axes, order, least=max(r, 2)) for side, n in enumerate((n_out, n_in)))
    if min(*out, *into) < r:
        raise ValueError(f"cp: r is at most the smallest axis, {min(*out, *into)} of {out} and {into}, got {r}")
    left, right = (tuple(frame(n, r) for n in sizes) for sizes in (out, into))
    return Network(n_out, n_in, left, right, khatri_rao, scaling)
