"""The table of measures: what each is of, its unit, and how to get it. A measure is one function and one line here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import combinations
from math import comb, prod

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from qcircuit_peft.analysis import entanglement, operators
from qcircuit_peft.analysis.cuts import check_wires
from qcircuit_peft.text import shown


@dataclass(frozen=True)
class Metric:
    """A measure ``value(x, dims=...)`` of a "state" (*batch, N) or a "matrix" (*batch, M, N), at its default cut.

    A ``scalar`` has one number for each state or matrix. ``from_purities(purities, dims)`` gives it from the purity of
    every subset of wires, shape (2,) * n, if it is linear in them: then its mean over circuits is exact.
    """

    value: Callable[..., Tensor]
    of: str
    unit: str
    about: str
    scalar: bool = True
    from_purities: Callable[[NDArray, Sequence[int]], float] | None = None


def _subset(wires: Sequence[int], n: int) -> tuple[int, ...]:
    return tuple(int(w in wires) for w in range(n))


def _scott(m: int) -> Callable[[NDArray, Sequence[int]], float]:
    def mean(purities: NDArray, dims: Sequence[int]) -> float:
        n = len(dims)
        entanglement.check_subset_size(m, n)
        total = 0.0
        for wires in combinations(range(n), m):
            d = prod(dims[w] for w in wires)
            total += (1 - purities[_subset(wires, n)]) * d / (d - 1)
        return total / comb(n, m)

    return mean


def _half_purity(purities: NDArray, dims: Sequence[int]) -> float:
    return purities[_subset(check_wires(None, len(dims)), len(dims))]


_e, _o = entanglement, operators
METRICS: dict[str, Metric] = {
    "meyer_wallach": Metric(
        _e.meyer_wallach, "state", "1", "Q, the mean over wires of d/(d-1) (1 - Tr ρ²), 0 to 1", True, _scott(1)
    ),
    "scott_2": Metric(_e.scott, "state", "1", "Q_m with m = 2, the same over pairs of wires, 0 to 1", True, _scott(2)),
    "purity": Metric(_e.purity, "state", "1", "Tr ρ² of the first half of the wires", True, _half_purity),
    "entropy": Metric(_e.entropy, "state", "bits", "von Neumann entropy of the half cut"),
    "schmidt_rank": Metric(_e.schmidt_rank, "state", "1", "Schmidt rank of the half cut"),
    "schmidt_gap": Metric(_e.schmidt_gap, "state", "1", "gap of the Schmidt probabilities of the half cut"),
    "negativity": Metric(_e.negativity, "state", "1", "negativity of the half cut"),
    "log_negativity": Metric(_e.log_negativity, "state", "bits", "logarithmic negativity of the half cut"),
    "stabilizer_entropy": Metric(_e.stabilizer_entropy, "state", "bits", "stabilizer Rényi-2 entropy, magic (qubits)"),
    "schmidt_values": Metric(_e.schmidt_values, "state", "1", "Schmidt coefficients of the half cut", False),
    "entropy_profile": Metric(_e.entropy_profile, "state", "bits", "von Neumann entropy of every cut", False),
    "mutual_information": Metric(_e.mutual_information, "state", "bits", "of all pairs of wires", False),
    "concurrence": Metric(_e.concurrence, "state", "1", "of all pairs of qubits, 0 to 1", False),
    "operator_entropy": Metric(_o.operator_entropy, "matrix", "bits", "operator entanglement of the half cut"),
    "operator_rank": Metric(
        _o.operator_rank, "matrix", "1", "terms of the shortest sum of Kronecker products across the half cut"
    ),
    "entangling_power": Metric(_o.entangling_power, "matrix", "1", "mean linear entropy from random product states"),
    "operator_schmidt": Metric(
        _o.operator_schmidt, "matrix", "1", "operator-Schmidt coefficients of the half cut", False
    ),
    "operator_profile": Metric(_o.operator_profile, "matrix", "bits", "operator entanglement of every cut", False),
}


States = Callable[[Tensor], Tensor]  # states (*batch, N) -> one real number for each, (*batch,)


def state_metric(name: str | States) -> Metric:
    """The measure of this name, or a function of states; raises ValueError unless it is one number for each state."""
    if not isinstance(name, str) and callable(name):
        return Metric(_checked(name), "state", "1", str(name.__doc__ or "").partition("\n")[0])
    allowed = [key for key, metric in METRICS.items() if metric.of == "state" and metric.scalar]
    if name not in allowed:
        known = get_close_matches(str(name), allowed, n=3) or allowed
        what = "is not one number for each state" if name in METRICS else "is unknown"
        raise ValueError(f"the metric {name!r} {what}; take one of {', '.join(known)}")
    return METRICS[name]


def metric_name(metric: str | States) -> str:
    """What a measure is called: a function by its own name."""
    return metric if isinstance(metric, str) else str(getattr(metric, "__name__", type(metric).__name__))


def _checked(function: States) -> Callable[..., Tensor]:
    """The function with its answers checked: one finite real number for each state."""

    def value(states: Tensor, dims: Sequence[int] | None = None) -> Tensor:
        found = function(states)
        shape = tuple(states.shape[:-1])
        if not isinstance(found, Tensor) or tuple(found.shape) != shape or found.is_complex():
            got = f"{tuple(found.shape)} of {found.dtype}" if isinstance(found, Tensor) else shown(found)
            raise ValueError(
                f"the metric {shown(metric_name(function))} gives a tensor with one real number for each state, "
                f"{shape}, got {got}"
            )
        if not found.isfinite().all():
            raise ValueError(f"the metric {shown(metric_name(function))} gives finite numbers, got one that is not")
        return found

    return value


def linear_value(name: str | States, purities: NDArray[np.float64], dims: Sequence[int]) -> float:
    """A measure from the (mean) purities of all subsets of wires; raises ValueError if it is not linear in them."""
    metric = state_metric(name)
    if metric.from_purities is None:
        exact = ", ".join(key for key, other in METRICS.items() if other.from_purities)
        told = shown(metric_name(name))
        raise ValueError(f"the mean of {told} does not follow from purities; those with an exact mean: {exact}")
    return float(metric.from_purities(purities, dims))
