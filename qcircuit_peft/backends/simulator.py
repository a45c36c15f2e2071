"""What the simulators of qubits have in common: one flat batch of complex columns goes in, and comes out."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from qcircuit_peft.backends.table import Backend, check_gates, check_wires, having
from qcircuit_peft.circuit import Circuit, Op
from qcircuit_peft.gates import GATES, Gate

Run = Callable[[Circuit, Tensor, Tensor], Tensor]  # angles (B, P), complex x (B, N, K) -> complex (B, N, K)


@dataclass(frozen=True)
class Call:
    """A gate of a simulator by its name there, with the values of its angles."""

    name: str
    wires: tuple[int, ...]
    angles: tuple[Any, ...]
    adjoint: bool


def calls(op: Op, values: tuple[Any, ...], name_of: Callable[[Gate], str]) -> Iterator[Call]:
    """An op whose angles have these values, as gates that a simulator has: itself, or else its parts in time order."""
    gate = GATES[op.gate]
    if name := name_of(gate):
        yield Call(name, op.wires, values, op.adjoint)
        return
    for part, adjoint in gate.steps(op.adjoint):
        scaled = () if part.scale is None else tuple(part.scale * value for value in values)
        yield from calls(Op(part.gate, tuple(op.wires[w] for w in part.wires), None, adjoint), scaled, name_of)


def plain(circuit: Circuit, angles: Tensor) -> tuple[Circuit, Tensor]:
    """The circuit of plain ops, and the angles that they take, (*batch, n): sums of the circuit's."""
    if not circuit.affine:
        return circuit, angles
    terms = [(slot, *term) for slot, one in enumerate(circuit.affine) for term in one.terms]
    found = angles.new_tensor([one.shift for one in circuit.affine]).expand(*angles.shape[:-1], -1)
    if terms:
        slots, positions, scales = zip(*terms, strict=True)
        at, source = (torch.tensor(where, device=angles.device) for where in (slots, positions))
        found = found.index_add(-1, at, angles.index_select(-1, source) * angles.new_tensor(scales))
    return circuit.plain, found


def angles_of(op: Op, angles: Tensor) -> tuple[Tensor, ...]:
    """The angles of an op in radians, each of the batch shape of ``angles``."""
    return tuple(angles[..., a] for a in op.angles or ())


def check(circuit: Circuit, backend: Backend) -> None:
    """Raise ValueError if a backend cannot run a circuit, naming the wire or the gate."""
    check_wires(circuit.dims, backend)
    check_gates({op.gate for op in circuit.ops}, backend)


def simulate(run: Run, backend: Backend, circuit: Circuit, angles: Tensor, x: Tensor) -> Tensor:
    """U x, (*batch, N, K), by a simulator of qubits; real if the circuit and x are.

    Raises ValueError for a wire that is not a qubit, a gate that the simulator lacks, or if a gradient is asked of one
    that has none.
    """
    check(circuit, backend)
    if backend.derivatives == 0 and torch.is_grad_enabled() and (angles.requires_grad or x.requires_grad):
        raise ValueError(
            f"backend {backend.called!r} runs forward only here: call it under torch.no_grad(); "
            f"{having(lambda row: row.derivatives != 0)} gradients"
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
