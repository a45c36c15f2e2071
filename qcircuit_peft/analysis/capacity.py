"""How much a family of circuits entangles at every number of layers, against random states."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qcircuit_peft.analysis.haar import MAX_SAMPLES, haar_value
from qcircuit_peft.analysis.metrics import States, linear_value, state_metric
from qcircuit_peft.analysis.replica import mean_purities
from qcircuit_peft.analysis.sampling import bootstrap, choose_ensemble, random_states
from qcircuit_peft.ansatz import Ansatz, load
from qcircuit_peft.checks import whole_number
from qcircuit_peft.circuit import Circuit
from qcircuit_peft.text import shown


@dataclass(frozen=True)
class Capacity:
    """The mean of a metric over random angles at one number of layers, in the metric's unit.

    ``std`` is the spread over circuits, ``low`` and ``high`` the 95 % interval of the mean. An exact mean has no
    spread (None), no interval (low = high = mean) and 0 samples. ``haar`` is the mean over random states of
    ``ensemble``.
    """

    layers: int
    mean: float
    std: float | None
    low: float
    high: float
    haar: float
    samples: int
    ensemble: str


def capacity(
    ansatz: str | Path | Mapping[str, Any] | Ansatz | Circuit,
    qubits: int | None = None,
    layers: int | Iterable[int] | None = None,
    metric: str | States = "meyer_wallach",
    samples: int = 1000,
    generator: torch.Generator | None = None,
    exact: bool = False,
    ensemble: str | None = None,
) -> list[Capacity]:
    """One row for every number of layers: the mean of ``metric`` over uniform angles, of the states U|0...0>.

    ``metric`` is a name in ``METRICS`` or a function of states (samples, N), real for a real circuit, that gives one
    real number for each, (samples,). ``layers`` left out are 1 to 8. A ``Circuit`` stands for itself: it needs no
    ``qubits`` and is one row.
    ``exact`` computes the mean without sampling (``mean_purities``), for metrics that are linear in purities:
    "meyer_wallach", "scott_2" and "purity". ``ensemble`` is that of the Haar value: left out, "real" for a real circuit
    and "complex" for another; the other one is allowed, with a warning. Where the Haar mean has no closed form it is
    that of drawn states (``haar_value``), at least ``samples``, with a standard error below 1 % of it. Raises
    ValueError for bad input, and where an exact mean is not possible.

    >>> row = capacity("simplified_two_design", 2, [3], exact=True)[0]
    >>> round(row.mean, 9), round(row.haar, 9)  # (1 - 4^-3) / 3 and 1/3
    (0.328125, 0.333333333)
    """
    family, measure = load(ansatz), state_metric(metric)
    whole_number("samples", samples, 2, MAX_SAMPLES)
    kind = choose_ensemble(family, ensemble)
    if layers is None:
        layers = range(1, 9) if family.fixed is None else 1
    depths, rows = [layers] if isinstance(layers, int) else list(layers), []
    dims = family.circuit(qubits=qubits, layers=0).dims if family.fixed is None else family.fixed.dims
    try:
        haar = haar_value(metric, dims, kind, samples, generator)
    except ValueError as error:
        if family.fixed is not None or not isinstance(metric, str):
            raise
        raise ValueError(f"{shown(metric)} cannot be had with qubits={qubits}: {error}") from None
    for depth in depths:
        circuit = family.circuit(qubits=qubits, layers=depth)
        if exact:
            mean = linear_value(metric, mean_purities(circuit), circuit.dims)
            rows.append(Capacity(depth, mean, None, mean, mean, haar, 0, kind))
        else:
            values = torch.cat(
                [measure.value(states).double() for states in random_states(circuit, samples, generator)]
            )
            low, high = bootstrap(values, lambda v: v.mean(-1), generator)
            rows.append(Capacity(depth, float(values.mean()), float(values.std()), low, high, haar, samples, kind))
    return rows


def saturation(rows: Iterable[Capacity], fraction: float = 0.95) -> int | None:
    """The first number of layers whose mean is within 1 - ``fraction`` of the Haar value, relatively; None if none is.

    Raises ValueError unless the fraction is above 0 and at most 1.

    >>> saturation(capacity("simplified_two_design", 4, range(1, 13), exact=True), 0.9)
    6
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"the fraction of the Haar value is above 0 and at most 1, got {fraction!r}")
    near = [row.layers for row in rows if abs(row.mean - row.haar) <= (1 - fraction) * abs(row.haar)]
    return min(near, default=None)
