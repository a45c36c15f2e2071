"""Columns as hardware finds them, with a gradient: what ``noise_aware`` puts in the place of exact ones."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import pi, prod
from typing import Any

import torch
from torch import Tensor

from qcircuit_peft.backends.simulator import plain
from qcircuit_peft.circuit import Circuit

Estimator = Callable[[Circuit, Tensor, int], Tensor]  # angles (*batch, P) -> estimated columns (*batch, N, k)


@dataclass
class _Switch:
    """What estimates the columns of circuit frames now; None: they are exact."""

    estimator: Estimator | None = None


SWITCH = _Switch()  # of the process: threads that train at the same time share it


@contextmanager
def estimating(estimator: Estimator) -> Iterator[None]:
    """Circuit frames ask this for their columns."""
    before, SWITCH.estimator = SWITCH.estimator, estimator
    try:
        yield
    finally:
        SWITCH.estimator = before


class _Shifted(torch.autograd.Function):
    """Estimated columns u with du/dt = (u(t + pi) - u(t - pi)) / 4, estimated at the shifted angles as well.

    A gate C0 + C1 cos(t/2) + C2 sin(t/2) enters a column once, and what a Hadamard test finds of it is linear in it,
    under noise too.
    """

    @staticmethod
    def forward(ctx: Any, circuit: Circuit, estimator: Estimator, k: int, angles: Tensor) -> Tensor:  # type: ignore[override]
        ctx.circuit, ctx.estimator, ctx.k = circuit, estimator, k
        ctx.save_for_backward(angles)
        return estimator(circuit, angles, k)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[None, None, None, Tensor]:  # type: ignore[override]
        (angles,) = ctx.saved_tensors
        simple, values = plain(ctx.circuit, angles)
        apart = Circuit(simple.dims, (replace(op, angles=None) if op.angles else op for op in simple.ops))
        positions = [op.angles[0] for op in simple.ops if op.angles]
        own, gradient = values[:, positions], torch.zeros_like(angles)
        for place, position in enumerate(positions):
            moved = own.expand(2, *own.shape).clone()
            moved[:, :, place] += torch.tensor([[pi], [-pi]], dtype=own.dtype, device=own.device)
            up, down = ctx.estimator(apart, moved.flatten(0, 1), ctx.k).unflatten(0, (2, -1))
            slope = ((up - down) * cotangent).flatten(1).sum(-1) / 4
            for source, scale in ctx.circuit.made[position].terms:
                gradient[:, source] += scale * slope
        return None, None, None, gradient


def by_shifts(estimator: Estimator) -> Estimator:
    """The estimator with a gradient by the parameter-shift rule, for circuits whose gates have one angle each."""

    def columns(circuit: Circuit, angles: Tensor, k: int) -> Tensor:
        if any(len(op.angles or ()) > 1 for op in circuit.ops):
            raise ValueError(
                "the parameter-shift rule is for gates with one angle, but RY has several on a wire of dimension > 2; "
                "take gradients='exact'"
            )
        flat = angles.reshape(prod(angles.shape[:-1]), angles.shape[-1])
        found: Any = _Shifted.apply(circuit, estimator, k, flat)
        return found.reshape(*angles.shape[:-1], circuit.dim, k)

    return columns
