"""Random states: draws, mean purities and entropies of the Haar measure, for real and for complex states.

A real circuit can only reach real states, so its reference is the uniform measure on the real sphere ("real"); the
measure usually called Haar is "complex". Their mean Q differs by 6 % at four qubits, by 1.5 % at six.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from math import lgamma, log, prod

import numpy as np
import scipy  # its parts are loaded when they are used
import torch
from jaxtyping import Inexact
from numpy.polynomial.legendre import Legendre, leggauss
from numpy.typing import NDArray
from torch import Tensor

from qcircuit_peft.analysis.cuts import check_dims, check_wires
from qcircuit_peft.analysis.metrics import States, linear_value, metric_name, state_metric
from qcircuit_peft.checks import whole_number

ENSEMBLES = ("real", "complex")
MAX_SAMPLES = 1_000_000  # of any estimate: an interval resamples them a thousand times
_DRAWS = 256  # random states at a time
_MOST = 1 << 14  # of a metric that is a function, unless more samples are asked for
_ERROR = 0.01  # the largest standard error of a sampled mean, relatively


def check_ensemble(ensemble: str) -> None:
    """Raise ValueError unless ``ensemble`` is "real" or "complex"."""
    if ensemble not in ENSEMBLES:
        raise ValueError(f"an ensemble of random states is one of {', '.join(ENSEMBLES)}, got {ensemble!r}")


def haar_states(
    samples: int, dim: int, ensemble: str = "complex", generator: torch.Generator | None = None
) -> Inexact[Tensor, "samples dim"]:
    """Uniformly random states (samples, dim), float64 or complex128.

    >>> haar_states(3, 8, "real", torch.Generator().manual_seed(0)).shape
    torch.Size([3, 8])
    """
    check_ensemble(ensemble)
    dtype = torch.float64 if ensemble == "real" else torch.complex128
    x = torch.randn(samples, dim, dtype=dtype, generator=generator)
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)


def haar_purity(a: int, b: int, ensemble: str) -> float:
    """Mean Tr rho^2 of a cut into dimensions a and b: (a + b) / (N + 1) complex, (a + b + 1) / (N + 2) real, N = a b.

    Source: Lubkin, J. Math. Phys. 19, 1028 (1978), for complex states; for real ones the fourth moments of the sphere.
    """
    check_ensemble(ensemble)
    return (a + b) / (a * b + 1) if ensemble == "complex" else (a + b + 1) / (a * b + 2)


def haar_purities(dims: Sequence[int], ensemble: str) -> NDArray[np.float64]:
    """The mean purity of every subset of wires, shape (2,) * n: index 1 for the wires that are kept."""
    n = prod(dims)
    values = np.empty((2,) * len(dims))
    for kept in product((0, 1), repeat=len(dims)):
        a = prod(d for d, keep in zip(dims, kept, strict=True) if keep)
        values[kept] = 1.0 if a in (1, n) else haar_purity(a, n // a, ensemble)
    return values


def haar_entropy(a: int, b: int, ensemble: str) -> float:
    """Mean von Neumann entropy, in bits, of a cut into dimensions a and b.

    Complex: Page, gr-qc/9305007. Real: the orthogonal ensemble, exact by quadrature (``_real_entropy``).

    >>> round(haar_entropy(4, 16, "complex"), 5), round(haar_entropy(4, 16, "real"), 4)
    (1.83137, 1.8004)
    """
    check_ensemble(ensemble)
    a, b = min(a, b), max(a, b)
    if a == 1:
        return 0.0
    if ensemble == "real":
        return _real_entropy(a, b) / log(2)
    return float(scipy.special.digamma(a * b + 1) - scipy.special.digamma(b + 1) - (a - 1) / (2 * b)) / log(2)


@lru_cache(maxsize=256)
def _real_entropy(m: int, n: int) -> float:
    """Mean entropy in nats for real states of dimension m <= n.

    The Schmidt probabilities are the eigenvalues x of a real Wishart matrix divided by their sum, of which they are
    independent, so E[S] = psi(m n / 2 + 1) - E[sum x ln x] / E[sum x] with E[sum x] = m n / 2 for the weight
    x^((n - m - 1) / 2) e^-x. Their joint density is that weight times |Vandermonde|, and by de Bruijn's formula
    E[prod (1 + t f(x))] is a ratio of Pfaffians of A_jk = int int sign(y - x) p_j(x) p_k(y), bordered by int p_j if m
    is odd; the derivative in t is trace(A^-1 A') / 2. Laguerre polynomials p_j keep A well conditioned.
    """
    power = (n - m - 1) / 2
    nodes, weights = leggauss(24)
    edges = np.linspace(0, np.sqrt(2 * (m + n) + 80 + 8 * np.sqrt(m + n)), 401)  # in s = sqrt(x), which removes x^-1/2
    half = (edges[1:] - edges[:-1])[:, None] / 2
    s = edges[:-1, None] + half * (nodes + 1)
    x = s * s
    log_weight = -x + (2 * power + 1) * np.log(s)
    norms = [0.5 * (lgamma(j + 1) - lgamma(j + 1 + 2 * power + 1)) for j in range(m)]
    p = np.stack(
        [2 * scipy.special.eval_genlaguerre(j, 2 * power + 1, 2 * x) * np.exp(log_weight + norms[j]) for j in range(m)]
    )
    f = x * np.log(x)
    to_nodes = _integrals_to_nodes(nodes, weights)

    def signed(g: NDArray, h: NDArray) -> NDArray:
        """int int sign(y - x) g_j(x) h_k(y) = int g_j (total_k - 2 int_0^x h_k)."""
        panels = (h * weights).sum(-1, keepdims=True) * half
        below = np.cumsum(panels, axis=1) - panels + np.einsum("jpk,kn->jpn", h, to_nodes) * half
        tail = panels.sum(1, keepdims=True) - 2 * below
        return np.einsum("jpn,kpn->jk", g * weights * half, tail)

    a, change = signed(p, p), signed(f * p, p) + signed(p, f * p)
    if m % 2:
        border, slope = (((q * weights).sum(-1) * half[:, 0]).sum(-1) for q in (p, f * p))
        a, change = (
            np.block([[c, e[:, None]], [-e[None], np.zeros((1, 1))]]) for c, e in ((a, border), (change, slope))
        )
    mean = np.trace(np.linalg.solve(a, change)) / 2
    return float(scipy.special.digamma(m * n / 2 + 1) - mean / (m * n / 2))


def _integrals_to_nodes(nodes: NDArray, weights: NDArray) -> NDArray:
    """Entry (k, n): the integral from -1 to node n of the Lagrange polynomial of node k."""
    degrees = range(len(nodes))
    values = np.stack([Legendre.basis(d)(nodes) * (2 * d + 1) / 2 for d in degrees])
    integrals = np.stack([Legendre.basis(d).integ(lbnd=-1)(nodes) for d in degrees])
    return (values * weights).T @ integrals


def haar_value(
    metric: str | States,
    dims: int | Sequence[int],
    ensemble: str,
    samples: int | None = None,
    generator: torch.Generator | None = None,
) -> float:
    """The mean of a scalar metric or function of states over random states of a register, qubits or wire dimensions.

    Exact for "meyer_wallach", "scott_2", "purity" (N = 2^q: Q is (N-2)/(N+2) real, (N-2)/(N+1) complex) and "entropy";
    for any other metric it is the mean of drawn states: at least ``samples``, and as many as bring its standard error
    below 1 % of it. Raises ValueError for an unknown metric or ensemble, a wire of dimension below 2, a register
    without the cut, or where there is no exact value and ``samples`` is not given.

    >>> [round(haar_value("meyer_wallach", 4, kind), 4) for kind in ("real", "complex")]
    [0.7778, 0.8235]
    """
    measure = state_metric(metric)
    check_ensemble(ensemble)
    if isinstance(dims, int):
        whole_number("qubits", dims, 1)
        dims = (2,) * dims
    dims = check_dims(prod(dims), dims)
    if measure.from_purities is not None:
        return linear_value(metric, haar_purities(dims, ensemble), dims)
    if metric == "entropy":
        a = prod(dims[w] for w in check_wires(None, len(dims)))
        return haar_entropy(a, prod(dims) // a, ensemble)
    if samples is None:
        raise ValueError(
            f"the Haar mean of {metric_name(metric)!r} has no closed form here; give the number of samples to draw"
        )
    whole_number("samples", samples, 2, MAX_SAMPLES)
    values = torch.empty(0, dtype=torch.float64)
    most = MAX_SAMPLES if isinstance(metric, str) else max(samples, _MOST)  # the mean of a function may be zero
    while len(values) < samples or (
        len(values) < most and values.std() > _ERROR * values.mean().abs() * len(values) ** 0.5
    ):
        states = haar_states(_DRAWS, prod(dims), ensemble, generator)
        values = torch.cat([values, measure.value(states, dims=dims).double()])
    return float(values.mean())
