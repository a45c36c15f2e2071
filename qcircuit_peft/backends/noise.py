"""Noise after every gate: density matrices on the native engine, and what the simulators need to know of it."""

from dataclasses import dataclass, fields, replace
from math import prod

import torch
from torch import Tensor

from qcircuit_peft.backends import native
from qcircuit_peft.checks import number
from qcircuit_peft.circuit import Circuit


@dataclass(frozen=True)
class Noise:
    """Probabilities of errors: after every gate, on each of its wires, three channels in this order; then the readout.

    ``depolarizing``: X, Y or Z, each a third of it. ``amplitude_damping``: |1> decays to |0>. ``phase_damping``: the
    phase of |1> is lost. ``readout``: a measured bit is the wrong one. On a wire of dimension d > 2: any of the d^2 - 1
    products of shift and clock, all equally likely; every level decays to the one below; the phases between all levels
    are lost; any wrong digit is read. The angles are exact. Raises ValueError for a probability outside [0, 1].
    Source: Nielsen and Chuang, sec. 8.3; for d > 2 ours.

    >>> Noise(depolarizing=0.01, readout=0.02)
    Noise(depolarizing=0.01, amplitude_damping=0.0, phase_damping=0.0, readout=0.02)
    """

    depolarizing: float = 0.0
    amplitude_damping: float = 0.0
    phase_damping: float = 0.0
    readout: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            number(f"noise: the probability {field.name}", getattr(self, field.name), 0, 1)


def _on_wire(noise: Noise, rho: Tensor, left: int, d: int) -> Tensor:
    """The three channels on the wire of dimension d with ``left`` basis states before it, of rho (*batch, N, N).

    Together they move weight between the populations |i><i| of the wire and shrink its coherences |i><j|.
    """
    n = rho.shape[-1]
    digits = rho.reshape(-1, left, d, n // (d * left), left, d, n // (d * left)).movedim((2, 5), (-2, -1))
    mixed, a = noise.depolarizing * d**2 / (d**2 - 1), noise.amplitude_damping
    one = torch.eye(d, dtype=rho.dtype, device=rho.device)
    excited = one.clone()
    excited[0, 0] = 0
    moves = (one - a * excited + a * excited.roll(-1, 0)) @ ((1 - mixed) * one + mixed / d)
    stays = (one - excited + (1 - a) ** 0.5 * excited).diagonal()
    kept = (1 - mixed) * (1 - noise.phase_damping) ** 0.5 * stays.outer(stays) * (1 - one)
    populations = digits.diagonal(dim1=-2, dim2=-1) @ moves.T
    return (digits * kept + torch.diag_embed(populations)).movedim((-2, -1), (2, 5)).reshape(rho.shape)


def _noisy(circuit: Circuit, angles: Tensor, noise: Noise, rho: Tensor, sides: int) -> Tensor:
    """Gates and channels on rho, (*batch, N, N): no gate acts, U rho, or U rho U^T for a hermitian rho."""
    for op in circuit.ops:
        gate, own = Circuit(circuit.dims, [replace(op, angles=None)]), angles[..., list(op.angles or ())]
        if sides > 0:
            rho = native.apply(gate, own, rho)
        if sides > 1:
            rho = native.apply(gate, own, rho.mH)
        for wire in op.wires:
            rho = _on_wire(noise, rho, prod(circuit.dims[:wire]), circuit.dims[wire])
    return rho


def density(circuit: Circuit, angles: Tensor, noise: Noise) -> Tensor:
    """The density matrix after the circuit on |0...0>, (*batch, N, N), without the readout; real if the circuit is."""
    dtype = angles.dtype if circuit.is_real else torch.promote_types(angles.dtype, torch.complex64)
    rho = torch.zeros(*angles.shape[:-1], circuit.dim, circuit.dim, dtype=dtype, device=angles.device)
    rho[..., 0, 0] = 1
    return _noisy(circuit, angles, noise, rho, sides=2)


def interference(circuit: Circuit, angles: Tensor, k: int, noise: Noise) -> Tensor:
    """The probabilities (*batch, k, 2, N) of the Hadamard test in ``shots`` under noise, for a real circuit.

    The control is free of noise but for its readout; the channels follow every gate in both of its branches. Its
    density matrix has the blocks |r><r| and U|k><k|U^T on the diagonal and U|k><r| beside it, each half.
    """
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
    return read((1 - noise.readout) * both + noise.readout * both.flip(-2), noise.readout, circuit.dims)


def read(probabilities: Tensor, readout: float, dims: tuple[int, ...]) -> Tensor:
    """The probabilities of what is read, (*batch, N), if every digit is read wrongly with probability ``readout``."""
    for wire, d in enumerate(dims):
        digits = probabilities.reshape(*probabilities.shape[:-1], prod(dims[:wire]), d, -1)
        wrong = digits.sum(-2, keepdim=True) - digits
        probabilities = ((1 - readout) * digits + readout / (d - 1) * wrong).flatten(-3)
    return probabilities
