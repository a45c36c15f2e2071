"""Noise after every gate: density matrices on the native engine, and what the simulators need to know of it."""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from qcircuit_peft.backends import native
from qcircuit_peft.backends.simulator import check_qubits
from qcircuit_peft.circuit import Circuit


@dataclass(frozen=True)
class Noise:
    """Probabilities of errors: after every gate, on each of its wires, three channels in this order; then the readout.

    ``depolarizing``: X, Y or Z, each a third of it. ``amplitude_damping``: |1> decays to |0>. ``phase_damping``: the
    phase of |1> is lost. ``readout``: a measured bit is the wrong one. The angles are exact. Raises ValueError for a
    probability outside [0, 1]. Source: Nielsen and Chuang, sec. 8.3.

    >>> Noise(depolarizing=0.01, readout=0.02)
    Noise(depolarizing=0.01, amplitude_damping=0.0, phase_damping=0.0, readout=0.02)
    """

    depolarizing: float = 0.0
    amplitude_damping: float = 0.0
    phase_damping: float = 0.0
    readout: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise ValueError(f"noise: {field.name} is a probability from 0 to 1, got {value!r}")


def _on_wire(noise: Noise, rho: Tensor, left: int) -> Tensor:
    """The three channels on the wire with ``left`` basis states before it, of rho (*batch, N, N).

    Each channel moves weight between the populations |0><0| and |1><1| and shrinks the coherences.
    """
    n = rho.shape[-1]
    digits = rho.reshape(-1, left, 2, n // (2 * left), left, 2, n // (2 * left)).movedim((2, 5), (0, 1))
    (low, up), (down, high) = digits[0], digits[1]
    p, a, b = 2 * noise.depolarizing / 3, noise.amplitude_damping, noise.phase_damping
    low, high = (1 - p) * low + p * high, (1 - p) * high + p * low
    low, high = low + a * high, (1 - a) * high
    kept = (1 - 2 * p) * ((1 - a) * (1 - b)) ** 0.5
    found = torch.stack((torch.stack((low, kept * up)), torch.stack((kept * down, high))))
    return found.movedim((0, 1), (2, 5)).reshape(rho.shape)


def _noisy(circuit: Circuit, angles: Tensor, noise: Noise, rho: Tensor, sides: int) -> Tensor:
    """Gates and channels on rho, (*batch, N, N): no gate acts, U rho, or U rho U^T for a hermitian rho."""
    for op in circuit.ops:
        gate, own = Circuit(circuit.dims, [replace(op, angles=None)]), angles[..., list(op.angles or ())]
        if sides > 0:
            rho = native.apply(gate, own, rho)
        if sides > 1:
            rho = native.apply(gate, own, rho.mH)
        for wire in op.wires:
            rho = _on_wire(noise, rho, 2**wire)
    return rho


def density(circuit: Circuit, angles: Tensor, noise: Noise) -> Tensor:
    """The density matrix after the circuit on |0...0>, (*batch, N, N), without the readout; real if the circuit is."""
    check_qubits(circuit.dims, "native with noise")
    dtype = angles.dtype if circuit.is_real else torch.promote_types(angles.dtype, torch.complex64)
    rho = torch.zeros(*angles.shape[:-1], circuit.dim, circuit.dim, dtype=dtype, device=angles.device)
    rho[..., 0, 0] = 1
    return _noisy(circuit, angles, noise, rho, sides=2)


def interference(circuit: Circuit, angles: Tensor, k: int, noise: Noise) -> Tensor:
    """The probabilities (*batch, k, 2, N) of the Hadamard test in ``shots`` under noise, for a real circuit.

    The control is free of noise but for its readout; the channels follow every gate in both of its branches. Its
    density matrix has the blocks |r><r| and U|k><k|U^T on the diagonal and U|k><r| beside it, each half.
    """
    check_qubits(circuit.dims, "native with noise")
    n = circuit.dim
    basis = torch.eye(k, n, dtype=angles.dtype, device=angles.device)
    uniform = torch.full((n,), n**-0.5, dtype=angles.dtype, device=angles.device)
    known, own, beside = (
        _noisy(circuit, angles[..., None, :], noise, left[..., :, None] * right[..., None, :], sides).diagonal(
            dim1=-2, dim2=-1
        )
        for left, right, sides in ((uniform[None], uniform[None], 0), (basis, basis, 2), (basis, uniform[None], 1))
    )
    both = torch.stack((known + own + 2 * beside, known + own - 2 * beside), -2).clamp(min=0) / 4
    return read((1 - noise.readout) * both + noise.readout * both.flip(-2), noise.readout)


def read(probabilities: Tensor, readout: float) -> Tensor:
    """The probabilities of what is read, (*batch, N), if every bit is read wrongly with probability ``readout``."""
    n = probabilities.shape[-1]
    for wire in range(n.bit_length() - 1):
        pairs = probabilities.reshape(*probabilities.shape[:-1], 2**wire, 2, -1)
        probabilities = ((1 - readout) * pairs + readout * pairs.flip(-2)).flatten(-3)
    return probabilities
