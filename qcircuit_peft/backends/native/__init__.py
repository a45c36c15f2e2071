"""The native engine: plan a circuit once, run it as a few batched products, keep only the angles for the backward pass.

``columns`` cuts the wires into two halves. As long as that pays, the circuit is a short sum of Kronecker products
(``plan.halves``), so each half runs on its own space of dimension about sqrt(N) and one product joins them. The levels
left over, and ``apply``, run on the whole state: a product for each block of wires, then a sign or a permutation.

The backward pass recomputes: the short sum is small and is made again, the levels on the whole state are undone one by
one, since their matrices are unitary. What is kept in between does not grow with the depth.
"""

import torch
from torch import Tensor

from qcircuit_peft.backends.native.operator import run_apply, run_columns
from qcircuit_peft.circuit import Circuit


def columns(circuit: Circuit, angles: Tensor, k: int) -> Tensor:
    """The first k columns of the circuit's matrix, (*batch, N, k)."""
    return run_columns(angles, circuit.text, k)


def apply(circuit: Circuit, angles: Tensor, x: Tensor) -> Tensor:
    """U x for the columns of x, (*batch, N, K)."""
    batch = torch.broadcast_shapes(angles.shape[:-1], x.shape[:-2])
    dtype = (
        angles.dtype if circuit.is_real and not x.is_complex() else torch.promote_types(angles.dtype, torch.complex64)
    )
    x = x.to(dtype).expand(*batch, *x.shape[-2:])
    angles = angles.expand(*batch, angles.shape[-1])
    if x.is_complex() and circuit.is_real:  # a real circuit acts on real and imaginary parts as on more columns
        parts = run_apply(angles, torch.cat((x.real, x.imag), -1), circuit.text)
        return torch.complex(*parts.split(x.shape[-1], -1))
    return run_apply(angles, x, circuit.text)
