"""What finite shots give: probabilities, their parameter-shift gradient, and columns with their signs."""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from math import pi, prod, sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qcircuit_peft.checks import whole_number
from qcircuit_peft.circuit import Circuit
from qcircuit_peft.gates import GATES

Frequencies = Callable[[Circuit, Tensor], Tensor]  # angles (B, P) -> relative frequencies (B, N), newly drawn

TO_NONE = (1.5, -0.5)  # Richardson's weights of what is found at noise of strength 1 and 3


def check_shots(shots: int, generator: torch.Generator | None) -> None:
    """Raise ValueError if the number of shots is not a whole number of at least 1 that counts exactly in float64."""
    whole_number("shots", shots, 1, 1 << 53)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise ValueError(f"generator is a torch.Generator, got {type(generator).__name__}")


def seed_of(generator: torch.Generator | None, bits: int = 31) -> int:
    """A seed of so many bits, drawn from a generator wherever it is, or from torch's own."""
    device = generator.device if generator else "cpu"
    return int(torch.randint(1 << bits, (), generator=generator, device=device))


def draw(probabilities: Tensor, shots: int, generator: torch.Generator | None) -> Tensor:
    """Relative frequencies of ``shots`` outcomes with these probabilities up to rounding, (*batch, N).

    One binomial number for each outcome: time and memory do not depend on ``shots``. The likeliest outcome is the last,
    so that what is left for it is never mere rounding.
    """
    p = probabilities.detach().double().clamp(min=0)
    p = p / p.sum(-1, keepdim=True)
    likeliest = p.argmax(-1, keepdim=True)

    def swapped(x: Tensor) -> Tensor:
        out = x.scatter(-1, likeliest, x[..., -1:])
        out[..., -1:] = x.gather(-1, likeliest)
        return out

    counts = np.random.default_rng(seed_of(generator, 62)).multinomial(shots, swapped(p).cpu().numpy())
    return (swapped(torch.from_numpy(counts).to(p)) / shots).to(probabilities.dtype)


@lru_cache
def _shifts(gate: str) -> tuple[tuple[float, float], ...]:
    """Pairs (s, c) with f'(t) = sum of c (f(t + s) - f(t - s)) for a probability f of an angle t of this gate.

    Source: Mitarai et al. 2018 (arXiv 1803.00745) for a generator with two eigenvalues, Anselmetti et al. 2021
    (arXiv 2104.05695) for the three of a controlled rotation.
    """
    phases = np.angle(np.linalg.eigvals(GATES[gate].matrix((0.1,))))
    if len(np.unique(phases.round(9))) == 2:
        return ((pi / 2, 0.5),)
    return ((pi / 2, (sqrt(2) + 1) / (4 * sqrt(2))), (3 * pi / 2, (1 - sqrt(2)) / (4 * sqrt(2))))


class _ParameterShift(torch.autograd.Function):
    """Frequencies whose gradient is estimated from further shots at shifted angles."""

    @staticmethod
    def forward(ctx: Any, circuit: Circuit, frequencies: Frequencies, angles: Tensor) -> Tensor:  # type: ignore[override]
        ctx.circuit, ctx.frequencies = circuit, frequencies
        ctx.save_for_backward(angles)
        return frequencies(circuit, angles)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[None, None, Tensor]:  # type: ignore[override]
        (angles,) = ctx.saved_tensors
        ops = [op for op in ctx.circuit.ops if op.angles]
        apart = Circuit(ctx.circuit.dims, (replace(op, angles=None) if op.angles else op for op in ctx.circuit.ops))
        own = angles[:, [a for op in ops for a in op.angles]]  # an angle of its own for every op
        gradient = torch.zeros_like(angles)
        for position, op in enumerate(ops):
            for shift, weight in _shifts(op.gate):
                moved = own.expand(2, *own.shape).clone()
                moved[:, :, position] += torch.tensor([[shift], [-shift]], dtype=own.dtype, device=own.device)
                up, down = ctx.frequencies(apart, moved.flatten(0, 1)).unflatten(0, (2, -1))
                gradient[:, op.angles[0]] += weight * ((up - down) * cotangent).sum(-1)
        return None, None, gradient


def differentiable(circuit: Circuit, frequencies: Frequencies, angles: Tensor) -> Tensor:
    """Frequencies, (*batch, N), with a gradient by the parameter-shift rule if the angles want one.

    Raises ValueError if they want one and a wire with an angle is not a qubit.
    """
    if torch.is_grad_enabled() and angles.requires_grad and any(len(op.angles or ()) > 1 for op in circuit.ops):
        raise ValueError(
            "the parameter-shift rule is for gates with one angle, but RY has several on a wire of dimension > 2; "
            "take the gradient without shots"
        )
    flat = angles.reshape(prod(angles.shape[:-1]), angles.shape[-1])
    found = _ParameterShift.apply(circuit, frequencies, flat)
    return found.reshape(*angles.shape[:-1], circuit.dim)  # type: ignore[union-attr]


def interference(columns: Tensor) -> Tensor:
    """The probabilities (*batch, K, 2, N) of a Hadamard test of real columns u, (*batch, N, K).

    A control qubit in (|0> + |1>)/sqrt(2) holds the uniform column r = 1/sqrt(N) beside u, and is measured after a
    Hadamard gate together with the register: outcome (c, i) has probability (r + (-1)^c u_i)^2 / 4.
    """
    n = columns.shape[-2]
    u = columns.detach().mT
    return torch.stack((n**-0.5 + u, n**-0.5 - u), -2).square() / 4


def signed(
    test: Tensor, shots: int | None, generator: torch.Generator | None, noisy: bool = False
) -> tuple[Tensor, Tensor]:
    """The estimates u = sqrt(N) (p(0, i) - p(1, i)) from such outcomes, and standard errors, (*batch, N, K).

    ``shots`` are drawn for each column; None is without end. p(0, i) + p(1, i) is (1/N + u^2) / 2 without noise; with
    noise it is the one found, with one count more for each i, so that no error is 0 where nothing was counted.
    """
    n = test.shape[-1]
    found = test if shots is None else draw(test.flatten(-2), shots, generator).unflatten(-1, (2, n))
    plus, minus = found.unbind(-2)
    difference, error = plus - minus, torch.zeros_like(plus)
    if shots is not None and noisy:
        both, apart = (shots * (plus + minus) + 1) / (shots + n), difference * shots / (shots + n)
        error = ((both - apart.square()) * n / shots).sqrt()
    elif shots is not None:
        error = ((1 + (n - 2) * n * difference.square()) / (2 * shots)).sqrt()
    return (n**0.5 * difference).mT, error.mT
