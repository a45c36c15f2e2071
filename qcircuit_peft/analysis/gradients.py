"""Barren plateaus: how the variance of a cost's gradient falls with the number of qubits."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy  # its parts are loaded when they are used
import torch
from torch import Tensor

from qcircuit_peft import backends
from qcircuit_peft.analysis.haar import MAX_SAMPLES
from qcircuit_peft.analysis.sampling import bootstrap, random_angles
from qcircuit_peft.ansatz import Ansatz, load
from qcircuit_peft.checks import whole_number
from qcircuit_peft.circuit import Circuit


def _global_cost(states: Tensor) -> Tensor:
    return 1 - states[..., 0].abs().square()


def _local_cost(states: Tensor) -> Tensor:
    n = states.shape[-1].bit_length() - 1
    zeros = n - torch.tensor([k.bit_count() for k in range(1 << n)])
    return 1 - states.abs().square() @ (zeros / n).to(states.real.dtype)


_NOISE = (100 * torch.finfo(torch.float64).eps) ** 2  # of the variance of a gradient that is zero, per squared radian

# A cost maps states (*batch, N) to (*batch,): one minus the probability that all wires, or a random wire, give 0.
COSTS = {"global": _global_cost, "local": _local_cost}


@dataclass(frozen=True)
class GradientVariance:
    """The variance of dC/dangle over random angles, averaged over the angles, per squared radian; 95 % interval."""

    qubits: int
    layers: int
    cost: str
    variance: float
    low: float
    high: float
    samples: int


@dataclass(frozen=True)
class Decay:
    """variance ~ 2^(-rate q): the fitted rate, per qubit, with its 95 % interval."""

    rate: float
    low: float
    high: float


def _gradients(circuit: Circuit, cost: str, samples: int, generator: torch.Generator | None) -> Tensor:
    """dC/dangle, (samples, P)."""
    found = []
    for angles in random_angles(circuit, samples, generator):
        angles.requires_grad_()
        found.append(torch.autograd.grad(COSTS[cost](backends.state(circuit, angles)).sum(), angles)[0])
    return torch.cat(found)


def gradient_variance(
    ansatz: str | Path | Mapping[str, Any] | Ansatz,
    qubits: int | Iterable[int],
    layers: int | Iterable[int],
    cost: str = "global",
    samples: int = 1000,
    generator: torch.Generator | None = None,
) -> list[GradientVariance]:
    """One row for every number of layers and qubits: the variance of the gradient of a cost at uniform angles.

    "global" is 1 - p(0...0), "local" 1 - mean over wires of p(wire is 0). Source: Cerezo et al., arXiv 2001.00550,
    Eqs. (4) and (5). Raises ValueError for an unknown cost, a circuit without angles, or bad sizes.

    >>> rows = gradient_variance("simplified_two_design", 2, 1, samples=500, generator=torch.Generator().manual_seed(0))
    >>> 0.01 < rows[0].variance < 0.2
    True
    """
    if cost not in COSTS:
        raise ValueError(f"a cost is one of {', '.join(COSTS)}, got {cost!r}")
    whole_number("samples", samples, 2, MAX_SAMPLES)
    family, rows = load(ansatz), []
    widths = [qubits] if isinstance(qubits, int) else list(qubits)
    for depth in [layers] if isinstance(layers, int) else layers:
        for width in widths:
            circuit = family.circuit(qubits=width, layers=depth)
            if not circuit.n_angles:
                raise ValueError(f"a gradient needs a circuit with angles, but {family.name!r} has none at L = {depth}")
            # Under uniform angles the mean gradient of an angle with a whole period is 0, but not all have one.
            gradients = _gradients(circuit, cost, samples, generator)
            squares = (gradients - gradients.mean(0)).square().mean(-1) * (samples / (samples - 1))
            low, high = bootstrap(squares, lambda v: v.mean(-1), generator)
            rows.append(GradientVariance(width, depth, cost, float(squares.mean()), low, high, samples))
    return rows


def decay(rows: Iterable[GradientVariance]) -> Decay:
    """The rate at which the variance of one cost falls with the qubits, by a straight line through log2 of it at one L.

    Raises ValueError unless there are three or more widths of one cost at one number of layers, and every variance is
    above the rounding noise of float64, about 5e-28.
    """
    rows = list(rows)
    if len({row.qubits for row in rows}) < 3 or len({(row.cost, row.layers) for row in rows}) != 1:
        found = sorted({(row.cost, row.layers, row.qubits) for row in rows})
        raise ValueError(
            f"a rate needs three or more widths of one cost at one number of layers, got (cost, layers, qubits) {found}"
        )
    least = min(row.variance for row in rows)
    if not least > _NOISE:
        raise ValueError(f"a rate needs variances above rounding noise, got {least:.3g}; the cost may not move at all")
    fit: Any = scipy.stats.linregress([row.qubits for row in rows], np.log2([row.variance for row in rows]))
    margin = float(scipy.stats.t.ppf(0.975, len(rows) - 2) * fit.stderr)
    return Decay(-float(fit.slope), -float(fit.slope) - margin, -float(fit.slope) + margin)
