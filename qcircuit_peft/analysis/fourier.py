"""The Fourier series of an expectation value in one angle of a circuit: gates know their frequencies, so it ends.

A gate is C0 + C1 cos(f t) + C2 sin(f t), so amplitudes have the sums of the frequencies 0 and +-f of the gates with the
angle, each times the angle's factor there; expectation values have the differences of those.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import pi

import numpy as np
import torch
from torch import Tensor

from qcircuit_peft import backends
from qcircuit_peft.checks import whole_number
from qcircuit_peft.circuit import Circuit
from qcircuit_peft.gates import GATES
from qcircuit_peft.text import shown

Observable = Callable[[Tensor], Tensor]
_MOST = 2048  # frequencies
_NEAR = 1e-6  # frequencies that differ by less are not told apart by values
_NOISE = 1e-12  # of the entries of a gate, and of sums of frequencies


@dataclass(frozen=True)
class FourierSeries:
    """value(t) = sum over k of ``coefficients[k]`` exp(i ``frequencies[k]`` t), t the angle in radians, both (K,).

    The value is real, so frequencies come in pairs +-, with conjugate coefficients; they are sorted.
    """

    frequencies: Tensor
    coefficients: Tensor

    def __call__(self, angle: Tensor) -> Tensor:
        """The values at some angles."""
        waves = torch.exp(1j * angle.double()[..., None] * self.frequencies)
        return (waves @ self.coefficients).real


def frequencies(circuit: Circuit, angle: int) -> list[float]:
    """All that an expectation value of a circuit's state can have in one angle, 0 and above, from its gates alone.

    >>> from qcircuit_peft import Op
    >>> frequencies(Circuit((2,), [Op("RY", (0,)), Op("P", (0,), (0,))]), 0)
    [0.0, 1.0, 2.0]

    Raises ValueError for an angle that the circuit does not have, an angle of a wire of more than two levels, whose
    map has no series that ends, and for more than 2,048 frequencies.
    """
    whole_number("angle", angle, 0, circuit.n_angles - 1)
    found = [0.0]
    for op in circuit.ops:
        if len(op.angles or ()) > 1:
            if any(angle in dict(circuit.made[position].terms) for position in op.angles or ()):
                raise ValueError(f"{op.gate} on a wire of more than two levels has no Fourier series that ends")
            continue
        scale = sum(dict(circuit.made[position].terms).get(angle, 0.0) for position in op.angles or ())
        if not scale:
            continue
        own = _amplitudes(op.gate)
        found = _distinct(a + scale * b for a in found for b in own)
        if len(found) > _MOST:
            raise ValueError(f"a Fourier series has at most {_MOST} frequencies, but {shown(op)} makes more")
    return _distinct(abs(a - b) for a in found for b in found)


def _distinct(values: Iterable[float]) -> list[float]:
    """Ascending, without those that differ from the last by rounding only."""
    kept: list[float] = []
    for value in sorted(values):
        if not kept or value - kept[-1] > _NOISE * max(1.0, abs(value)):
            kept.append(value)
    return kept


def _amplitudes(name: str) -> list[float]:
    """The frequencies, with their signs, of the entries of a gate with one angle."""
    gate = GATES[name]
    quarters = [gate.matrix((quarter * pi / (2 * gate.frequency),)) for quarter in range(4)]
    even, odd = (quarters[0] - quarters[2]) / 2, (quarters[1] - quarters[3]) / 2
    waves = {0.0: quarters[0] - even, gate.frequency: even - 1j * odd, -gate.frequency: even + 1j * odd}
    return [frequency for frequency, part in waves.items() if np.abs(part).max() > _NOISE]


def fourier_series(circuit: Circuit, angles: Tensor, angle: int, observable: Observable | None = None) -> FourierSeries:
    """The series of ``observable(states)``, (*batch, N) -> (*batch,), in one angle, all others at ``angles``, (P,).

    The observable is quadratic in the state, such as an expectation value; left out, the probability of |0...0>. Exact
    up to rounding: four values for each unknown, solved for the coefficients. Raises
    ValueError as ``frequencies``, for frequencies nearer than 1e-6 to each other, for angles of another shape, and for
    values that no such series has.

    >>> from qcircuit_peft import Op
    >>> found = fourier_series(Circuit((2,), [Op("RY", (0,))]), torch.zeros(1), 0)
    >>> found.frequencies.tolist(), found.coefficients.real.round(decimals=9).tolist()  # (1 + cos t) / 2
    ([-1.0, 0.0, 1.0], [0.25, 0.5, 0.25])
    """
    known = frequencies(circuit, angle)
    if tuple(angles.shape) != (circuit.n_angles,):
        raise ValueError(f"angles has the shape ({circuit.n_angles},), got {tuple(angles.shape)}")
    observable = observable or (lambda states: states[..., 0].abs().square())
    both = torch.tensor([-w for w in reversed(known) if w] + known, dtype=torch.float64)
    gap = float(both.diff().min()) if len(both) > 1 else 1.0
    if gap < _NEAR:
        raise ValueError(f"frequencies are told apart from a difference of {_NEAR:g} on, got {gap:.3g}")
    # anywhere in a period of the smallest difference of frequencies, so that no two of them look alike
    points = torch.rand(4 * len(both), dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * (2 * pi / gap)
    given = angles.detach().double().expand(len(points), -1).clone()
    given[:, angle] = points
    with torch.no_grad():
        values = observable(backends.state(circuit, given)).double()
    waves = torch.exp(1j * points[:, None] * both)
    solved = torch.linalg.lstsq(waves, values.to(waves.dtype)[:, None]).solution[:, 0]
    worst = float((waves @ solved - values).abs().max())
    if worst > 1e-8 * max(1.0, float(values.abs().max())):
        raise ValueError(f"the observable is not quadratic in the state: its series leaves {worst:.3g}")
    return FourierSeries(both, solved)
