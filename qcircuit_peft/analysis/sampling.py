"""What the estimators share: circuits with random angles, and bootstrap intervals."""

import warnings
from collections.abc import Callable, Iterator
from math import pi

import torch
from torch import Tensor

from qcircuit_peft import backends
from qcircuit_peft.analysis.haar import check_ensemble
from qcircuit_peft.ansatz import Ansatz
from qcircuit_peft.circuit import Circuit
from qcircuit_peft.gates import GATES
from qcircuit_peft.text import printable, shortened

RESAMPLES = 1000
_ENTRIES = 1 << 16  # of the states held at a time: 1 MiB complex


def choose_ensemble(ansatz: Ansatz, ensemble: str | None) -> str:
    """The random states to compare with: those of the circuit's own kind, or those asked for, with a warning.

    Raises ValueError for an unknown ensemble.
    """
    own = "real" if all(GATES[gate].real for gate in ansatz.gates) else "complex"
    if ensemble is None:
        return own
    check_ensemble(ensemble)
    if ensemble != own:
        name = printable(shortened(ansatz.name))
        warnings.warn(
            f"{name} is a {own} circuit, but is compared with random {ensemble} states, as asked", stacklevel=3
        )
    return ensemble


def random_angles(circuit: Circuit, samples: int, generator: torch.Generator | None) -> Iterator[Tensor]:
    """Angles uniform in [0, 2 pi) for ``samples`` circuits, (chunk, P) in float64, a bounded number at a time."""
    angles = 2 * pi * torch.rand(samples, circuit.n_angles, dtype=torch.float64, generator=generator)
    yield from angles.split(max(1, _ENTRIES // circuit.dim))


def random_states(circuit: Circuit, samples: int, generator: torch.Generator | None) -> Iterator[Tensor]:
    """The states (chunk, N) of circuits with random angles."""
    for angles in random_angles(circuit, samples, generator):
        yield backends.state(circuit, angles)


def bootstrap(
    values: Tensor, statistic: Callable[[Tensor], Tensor], generator: torch.Generator | None
) -> tuple[float, float]:
    """A 95 % interval of ``statistic``, (resamples, n) to (resamples,), by resampling n values: the 2.5 and 97.5 %."""
    n = len(values)
    step = max(1, (1 << 22) // n)
    found = [
        statistic(values[torch.randint(n, (min(step, RESAMPLES - start), n), generator=generator)])
        for start in range(0, RESAMPLES, step)
    ]
    low, high = torch.cat(found).double().quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    return float(low), float(high)
