"""The Hadamard test as a circuit: what a device runs to find a column of a real circuit with its signs."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from math import pi

import torch
from torch import Tensor

from qcircuit_peft.backends import native
from qcircuit_peft.circuit import Affine, Circuit, Op
from qcircuit_peft.gates import GATES
from qcircuit_peft.text import shortened

_FIXED = ("X", "Z", "CX", "CZ", "SWAP")  # real signed permutations, whose work on the reference is known


@lru_cache(maxsize=4096)
def hadamard_test(circuit: Circuit, column: int) -> tuple[Circuit, Tensor]:
    """A circuit with one wire more, and signs (N,): a column is u = sqrt(N) signs (p(0, i) - p(1, i)).

    The circuit's first wire is the control, its angles are those of ``circuit``. Measured after it, (c, i) has the
    probability (r + (-1)^c u)^2 / 4, with a reference r = signs / sqrt(N) in the branch of the control that the gates
    leave alone. Only rotations and H are controlled: gates that permute basis states with signs run in both branches
    and move r among such vectors. Raises ValueError for a wire that is not a qubit, or a complex gate.

    >>> from qcircuit_peft import Op
    >>> print(hadamard_test(Circuit((2,), [Op("RY", (0,))]), 0)[0])
    wires 2 2
    H 0
    CRY[0] 0 1
    X 0
    CRY[1] 0 1
    H 0
    [0] = 1.5708
    [1] = t0
    """
    n = len(circuit.dims)
    if not circuit.is_real:
        complex_ones = sorted({op.gate for op in circuit.ops if not GATES[op.gate].real})
        raise ValueError(
            f"a Hadamard test finds the columns of real circuits, got one with the complex gates "
            f"{shortened(', '.join(complex_ones))}"
        )
    for wire, d in enumerate(circuit.dims):
        if d != 2:
            raise ValueError(
                f"a Hadamard test is of qubits, but wire {wire} has dimension {d}; interop.lower puts it on qubits"
            )
    slots: dict[Affine, int] = {}

    def op(gate: str, wires: Sequence[int], angle: Affine | None = None, adjoint: bool = False) -> Op:
        return Op(gate, tuple(wires), () if angle is None else (slots.setdefault(angle, len(slots)),), adjoint)

    start = [Op("X", (w,)) for w in range(n) if column >> (n - 1 - w) & 1]
    plain = [one for each in circuit.ops for one in _steps(each, circuit.made)]
    ops = [*(op("X", (w + 1,)) for one in start for w in one.wires), op("H", (0,))]
    ops += [op("CRY", (0, w + 1), Affine(shift=pi / 2)) for w in range(n)]
    ops.append(op("X", (0,)))
    for gate, wires, angle, adjoint in plain:
        on = [w + 1 for w in wires]
        if gate in _FIXED:
            ops.append(op(gate, on))
        elif gate == "RY":
            ops.append(op("CRY", (0, *on), angle, adjoint))
        else:  # H = RY(pi/4) Z RY(-pi/4)
            turn = Affine(shift=pi / 4)
            ops += [op("RY", on, turn, True), op("CZ", (0, *on)), op("RY", on, turn)]
    ops.append(op("H", (0,)))
    none = torch.zeros(0, dtype=torch.float64)
    signs = torch.ones(1, 1, dtype=torch.float64)
    for w in range(n):  # RY(pi/2) makes (1, 1) of |0> and (-1, 1) of |1>
        first = -1.0 if column >> (n - 1 - w) & 1 else 1.0
        signs = torch.kron(signs, torch.tensor([[first], [1.0]], dtype=torch.float64))
    moved = [Op(gate, wires) for gate, wires, _, _ in plain if gate in _FIXED]
    if moved:
        signs = native.apply(Circuit(circuit.dims, moved), none, signs)
    return Circuit((2,) * (n + 1), ops, list(slots)), signs[:, 0].sign()


def _steps(op: Op, made: Sequence[Affine], scale: float = 1.0) -> Iterator[tuple[str, tuple[int, ...], Affine, bool]]:
    """An op as RY, H and signed permutations in time order, each with its angle."""
    gate = GATES[op.gate]
    angle = made[op.angles[0]] if op.angles else Affine()
    if op.gate in ("RY", "H", *_FIXED):
        times = Affine(tuple((position, scale * by) for position, by in angle.terms), scale * angle.shift)
        yield op.gate, op.wires, times, op.adjoint
        return
    for part, adjoint in gate.steps(op.adjoint):
        wires = tuple(op.wires[w] for w in part.wires)
        own = op.angles if part.scale is not None else None
        yield from _steps(Op(part.gate, wires, own, adjoint), made, scale * (1 if part.scale is None else part.scale))


def estimates(found: Tensor, signs: Tensor) -> Tensor:
    """The column (*batch, N) from the frequencies of a test, (*batch, 2 N)."""
    n = len(signs)
    plus, minus = found.unflatten(-1, (2, n)).unbind(-2)
    return n**0.5 * signs.to(found) * (plus - minus)
