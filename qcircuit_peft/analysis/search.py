"""Circuits side by side: what each reaches and what it costs, the best first."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qcircuit_peft.analysis.capacity import capacity
from qcircuit_peft.analysis.expressibility import expressibility
from qcircuit_peft.analysis.metrics import States
from qcircuit_peft.analysis.resources import resources
from qcircuit_peft.ansatz import Ansatz, load, names
from qcircuit_peft.checks import one_of
from qcircuit_peft.lie import independent_angles

Source = str | Path | Mapping[str, Any] | Ansatz


@dataclass(frozen=True)
class Candidate:
    """A circuit at one number of layers.

    ``capacity`` is the mean of the metric over random angles and ``haar`` that over random states of its kind;
    ``expressibility`` the divergence from these, in nats, 0 at best; ``independent`` how many of its ``angles`` move
    its matrix independently; ``two_qubit`` and ``depth`` count gates as they stand.
    """

    circuit: str
    layers: int
    real: bool
    angles: int
    independent: int
    capacity: float
    haar: float
    expressibility: float
    two_qubit: int
    depth: int


_ORDER: dict[str, Callable[[Candidate], tuple[float, ...]]] = {  # the smallest first; what is equal by its cost
    "capacity": lambda one: (abs(one.capacity - one.haar) / (abs(one.haar) or 1.0), one.two_qubit),
    "expressibility": lambda one: (one.expressibility, one.two_qubit),
    "independent": lambda one: (-one.independent, one.two_qubit),
    "two_qubit": lambda one: (one.two_qubit, one.depth, -one.independent),
    "depth": lambda one: (one.depth, one.two_qubit, -one.independent),
}
ORDERS = tuple(_ORDER)


def search(
    qubits: int,
    layers: int | Iterable[int] = 1,
    metric: str | States = "meyer_wallach",
    sources: Iterable[Source] | None = None,
    *,
    by: str = "capacity",
    samples: int = 500,
    seed: int = 0,
    track: Callable[[Iterable[Any]], Iterable[Any]] = list,
) -> list[Candidate]:
    """Circuits at every number of layers, ranked: those that come with the library, or ``sources``.

    ``by`` is "capacity" (nearest to random states first), "expressibility" (smallest divergence), "independent" (most
    independent angles), "two_qubit" or "depth" (cheapest). ``metric`` and ``samples`` are those of ``capacity``; the
    same seed draws for each. ``track`` is given what is measured, such as rich's ``track``. Raises ValueError for bad
    input, or a circuit that is not there on so many qubits.

    >>> found = search(3, 1, sources=["simplified_two_design", "sim01"], samples=100)
    >>> [(one.circuit, one.angles, one.independent, one.two_qubit) for one in found]
    [('simplified_two_design', 7, 7, 2), ('sim01', 6, 6, 0)]
    """
    one_of("by", by, ORDERS)
    families = [load(source) for source in (names() if sources is None else sources)]
    if not families:
        raise ValueError("circuits are ranked, but none is named")
    depths = [layers] if isinstance(layers, int) else list(layers)
    points = [(family, depth) for family in families for depth in depths]
    return sorted(_measured(track(points), qubits, metric, samples, seed), key=_ORDER[by])


def _measured(
    points: Iterable[tuple[Ansatz, int]], qubits: int, metric: str | States, samples: int, seed: int
) -> Iterator[Candidate]:
    for family, depth in points:
        circuit = family.circuit(qubits=qubits, layers=depth)
        mean = capacity(family, qubits, depth, metric, samples, torch.Generator().manual_seed(seed))[0]
        spread = expressibility(family, qubits, depth, samples, generator=torch.Generator().manual_seed(seed))
        cost = resources(circuit)
        yield Candidate(
            family.name,
            depth,
            circuit.is_real,
            circuit.n_angles,
            independent_angles(circuit, seed=seed),
            mean.mean,
            mean.haar,
            spread.kl,
            cost.two_qubit,
            cost.depth,
        )
