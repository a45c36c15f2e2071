"""What the simulators of qubits have in common: one flat batch of complex columns goes in, and comes out."""

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor

from qcircuit_peft.circuit import Circuit, Op

Run = Callable[[Circuit, Tensor, Tensor], Tensor]  # angles (B, P), complex x (B, N, K) -> complex (B, N, K)


def angles_of(op: Op, angles: Tensor) -> tuple[Tensor, ...]:
    """The angles of an op in radians, each of the batch shape of ``angles``."""
    return tuple(angles[..., a] for a in op.angles or ())


def identity(circuit: Circuit, angles: Tensor, k: int) -> Tensor:
    """The first k basis states as columns, (N, k), where the angles are."""
    return torch.eye(circuit.dim, k, dtype=angles.dtype, device=angles.device)


def check_qubits(dims: tuple[int, ...], backend: str) -> None:
    """Raise ValueError, naming the wire, if a wire is not a qubit."""
    for wire, d in enumerate(dims):
        if d != 2:
            raise ValueError(
                f"backend {backend!r} simulates qubits only, but wire {wire} has dimension {d}; "
                "the backend for any dimension is 'native'"
            )


def simulate(run: Run, backend: str, circuit: Circuit, angles: Tensor, x: Tensor, *, gradients: bool) -> Tensor:
    """U x, (*batch, N, K), by a simulator of qubits; real if the circuit and x are.

    ``gradients`` says whether torch can differentiate ``run``. Raises ValueError for a wire that is not a qubit, or if
    a gradient is asked of a simulator that has none.
    """
    check_qubits(circuit.dims, backend)
    if not gradients and torch.is_grad_enabled() and (angles.requires_grad or x.requires_grad):
        raise ValueError(
            f"backend {backend!r} runs forward only here: call it under torch.no_grad(), or take the gradient with "
            "'native'"
        )
    batch = torch.broadcast_shapes(angles.shape[:-1], x.shape[:-2])
    columns = x.to(torch.promote_types(angles.dtype, torch.complex64))
    if prod(batch) and x.shape[-1]:
        flat = angles.expand(*batch, -1).reshape(prod(batch), -1)
        out = run(circuit, flat, columns.expand(*batch, -1, -1).reshape(prod(batch), *x.shape[-2:]))
        out = out.to(columns.dtype).reshape(*batch, *x.shape[-2:])
    else:
        out = columns.expand(*batch, -1, -1)
    return out.real if circuit.is_real and not x.is_complex() else out
