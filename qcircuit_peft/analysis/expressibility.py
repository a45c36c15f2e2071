"""How evenly the states of a circuit fill the space: fidelities of random pairs against those of random states."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import scipy  # its parts are loaded when they are used
import torch
from numpy.typing import NDArray
from torch import Tensor

from qcircuit_peft.analysis.haar import MAX_SAMPLES, check_ensemble
from qcircuit_peft.analysis.sampling import bootstrap, choose_ensemble, random_states
from qcircuit_peft.ansatz import Ansatz, load
from qcircuit_peft.checks import whole_number
from qcircuit_peft.circuit import Circuit

BINNINGS = ("linear", "quantile")
MAX_BINS = 10_000
_SMALL = -600.0  # ln of a probability that still has all its digits
_WIDE = 8  # qubits from which on nearly all fidelities of random states lie in the first few linear bins


@dataclass(frozen=True)
class Expressibility:
    """Divergences, in nats, of the fidelity histogram from that of random states of ``ensemble``.

    ``kl`` is the plug-in Kullback-Leibler divergence, as published values are, and ``js`` Jensen-Shannon's. A finite
    sample adds about ``bias`` = (occupied bins - 1) / (2 samples) to ``kl``. ``low`` and ``high`` are a 95 % interval
    of the divergence without that bias, by the basic bootstrap: resampled values are reflected about the estimate.
    """

    kl: float
    js: float
    low: float
    high: float
    bias: float
    samples: int
    bins: int
    binning: str
    ensemble: str


def fidelity_law(dim: int, ensemble: str) -> Any:
    """The law of |<psi|phi>|^2 of two random states: Beta(1/2, (N-1)/2) real, Beta(1, N-1) complex; of scipy.stats.

    >>> round(float(fidelity_law(16, "real").mean()) * 16, 12)
    1.0
    """
    check_ensemble(ensemble)
    return scipy.stats.beta(*((0.5, (dim - 1) / 2) if ensemble == "real" else (1, dim - 1)))


def fidelities(circuit: Circuit, samples: int, generator: torch.Generator | None = None) -> Tensor:
    """|<psi|phi>|^2 of ``samples`` pairs of states with independent uniform angles, (samples,)."""
    pairs = zip(random_states(circuit, samples, generator), random_states(circuit, samples, generator), strict=True)
    return torch.cat([(a.conj() * b).sum(-1).abs().square() for a, b in pairs]).clamp(0, 1)


def bin_edges(bins: int, binning: str, dim: int, ensemble: str) -> NDArray[np.float64]:
    """The edges of ``bins`` bins of [0, 1]: equally wide, or equally likely for random states."""
    if binning not in BINNINGS:
        raise ValueError(f"the binning is one of {', '.join(BINNINGS)}, got {binning!r}")
    grid = np.linspace(0, 1, bins + 1)
    return grid if binning == "linear" else fidelity_law(dim, ensemble).ppf(grid)


def log_tail(x: NDArray[np.float64], dim: int, ensemble: str) -> NDArray[np.float64]:
    """ln P(F > x) for the fidelity F of two random states, also where P is far below the smallest double.

    Real states: the series of the incomplete beta function, DLMF 8.17.8, where the function itself is too small.

    >>> [round(float(value), 6) for value in log_tail(np.array([0.5, 0.9]), 1 << 20, "complex") / np.log(10)]
    [-315652.527703, -1048575.0]
    """
    check_ensemble(ensemble)
    with np.errstate(divide="ignore"):  # the tail of x = 1 is empty
        if ensemble == "complex":
            return (dim - 1) * np.log1p(-x)
        found = np.log(fidelity_law(dim, ensemble).sf(x))
    small = (found < _SMALL) & (x < 1)
    y, a = 1 - x[small], (dim - 1) / 2
    term, total, n = np.ones_like(y), np.ones_like(y), 0
    while (term > np.finfo(float).eps / 4 * total).any():
        term = term * y * (a + 0.5 + n) / (a + 1 + n)
        total, n = total + term, n + 1
    found[small] = a * np.log(y) + 0.5 * np.log1p(-y) - np.log(a) - scipy.special.betaln(a, 0.5) + np.log(total)
    return found


def log_probabilities(edges: NDArray[np.float64], dim: int, ensemble: str) -> Tensor:
    """The natural logarithm of the probability of each bin for random states, (bins,)."""
    tails = log_tail(edges, dim, ensemble)  # differences of tails keep the digits at large fidelities
    return torch.from_numpy(tails[:-1] + np.log(-np.expm1(np.diff(tails))))


def divergences(counts: Tensor, expected: Tensor) -> tuple[Tensor, Tensor]:
    """KL and Jensen-Shannon divergence, in nats, of histograms (*batch, bins) from log probabilities (bins,)."""
    p, q = counts / counts.sum(-1, keepdim=True), expected.exp()
    middle = ((p + q) / 2).clamp_min(torch.finfo(q.dtype).tiny)
    kl = (torch.special.xlogy(p, p) - p * expected).sum(-1)
    js = torch.special.xlogy(p, p / middle).sum(-1) + torch.special.xlogy(q, q / middle).sum(-1)
    return kl, js / 2


def expressibility(
    ansatz: str | Path | Mapping[str, Any] | Ansatz | Circuit,
    qubits: int | None = None,
    layers: int = 1,
    samples: int = 5000,
    bins: int = 75,
    ensemble: str | None = None,
    generator: torch.Generator | None = None,
    binning: str | None = None,
) -> Expressibility:
    """Expressibility of Sim et al.: the divergence of the fidelity histogram of ``samples`` pairs from random states'.

    0 is a circuit whose states are as even as random ones. ``ensemble``: left out, "real" for a real circuit and
    "complex" for another; published values are against "complex" ones for all, allowed with a warning. A real
    circuit cannot come below 0.1155 against complex states at four qubits. ``binning``: left out, "linear" below eight
    qubits, as published, and "quantile" from there on, where all fidelities would share the first bins.
    Source: Sim, Johnson, Aspuru-Guzik, arXiv 1905.10876, Eq. (8). Raises ValueError for bad input.

    >>> found = expressibility("sim01", 4, samples=2000, generator=torch.Generator().manual_seed(0))
    >>> 0.25 < found.kl < 0.35  # published: 0.2999
    True
    """
    family = load(ansatz)
    circuit = family.circuit(qubits=qubits, layers=layers)
    whole_number("samples", samples, 2, MAX_SAMPLES)
    whole_number("bins", bins, 2, MAX_BINS)
    kind = choose_ensemble(family, ensemble)
    how = binning or ("linear" if len(circuit.dims) < _WIDE else "quantile")
    edges = bin_edges(bins, how, circuit.dim, kind)
    expected = log_probabilities(edges, circuit.dim, kind)
    found = torch.bucketize(fidelities(circuit, samples, generator), torch.from_numpy(edges[1:-1]), right=True)

    def histogram(places: Tensor) -> Tensor:
        return torch.zeros(*places.shape[:-1], bins, dtype=torch.float64).scatter_add_(
            -1, places, torch.ones(places.shape, dtype=torch.float64)
        )

    counts = histogram(found)
    kl, js = (float(value) for value in divergences(counts, expected))
    low, high = bootstrap(found, lambda places: divergences(histogram(places), expected)[0], generator)
    bias = (int((counts > 0).sum()) - 1) / (2 * samples)
    return Expressibility(kl, js, max(0.0, 2 * kl - high), max(0.0, 2 * kl - low), bias, samples, bins, how, kind)


@dataclass(frozen=True)
class FramePotential:
    """The t-th moment of the fidelity of random pairs: mean, 95 % interval, and the Haar value, its least."""

    order: int
    mean: float
    low: float
    high: float
    haar: float
    ensemble: str


def haar_frame_potential(order: int, dim: int, ensemble: str) -> float:
    """E[F^t] of random states: t! (N-1)! / (N+t-1)! complex, prod (2j+1) / (N+2j) over j < t real.

    >>> haar_frame_potential(2, 4, "complex") == 2 / 20, haar_frame_potential(2, 4, "real") == 3 / 24
    (True, True)
    """
    check_ensemble(ensemble)
    if ensemble == "real":
        return prod(2 * j + 1 for j in range(order)) / prod(dim + 2 * j for j in range(order))
    return prod(range(1, order + 1)) / prod(dim + j for j in range(order))


def frame_potentials(
    ansatz: str | Path | Mapping[str, Any] | Ansatz | Circuit,
    qubits: int | None = None,
    layers: int = 1,
    orders: Iterable[int] = (1, 2, 3),
    samples: int = 5000,
    ensemble: str | None = None,
    generator: torch.Generator | None = None,
) -> list[FramePotential]:
    """The frame potentials of a circuit's states, which need no bins: equal to Haar's up to t for a state t-design.

    Source: Gross, Audenaert, Eisert, quant-ph/0611002; for real states the moments of the sphere. Raises ValueError
    for bad input.
    """
    family = load(ansatz)
    circuit = family.circuit(qubits=qubits, layers=layers)
    whole_number("samples", samples, 2, MAX_SAMPLES)
    orders = tuple(orders)
    for order in orders:
        whole_number("an order", order, 1, 10_000)
    kind = choose_ensemble(family, ensemble)
    f = fidelities(circuit, samples, generator)
    return [
        FramePotential(
            order,
            float((f**order).mean()),
            *bootstrap(f**order, lambda v: v.mean(-1), generator),
            haar_frame_potential(order, circuit.dim, kind),
            kind,
        )
        for order in orders
    ]
