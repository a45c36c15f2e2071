"""All entries of all one-wire matrices of a circuit, and their derivatives, as one row of numbers a set of angles."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from math import pi

import numpy as np
from numpy.typing import NDArray

from qcircuit_peft.backends.native import plan
from qcircuit_peft.backends.native.arrays import (
    Array,
    Constants,
    cast,
    cat,
    circle,
    expm,
    pieces,
    take,
    unbind,
    widened,
)
from qcircuit_peft.gates import GATES


@dataclass(frozen=True)
class Table:
    """Angles in, one row of entries out.

    First the qubits' matrices, ``1 + length`` times 4 entries each: the matrix, then its derivative by the angle of its
    r-th factor. A factor is ``constant + (cos t, sin t) @ basis`` at its scaled angle t, value and derivative side by
    side. The last of them is the identity, where 0 and 1 are found. Then, for each dimension d > 2, the exponentials of
    skew-symmetric matrices whose entries are scaled angles, d * d entries each.
    """

    angles: Array
    scales: Array
    radius: Array  # ones
    basis: Array
    constant: Array | None
    length: int
    variants: Array | None
    qudits: tuple[tuple[int, int], ...]  # (d, how many)
    doubled: Array | None  # (entries of the matrices, entries of their gradients) -> what ``pull`` exponentiates
    none: Array  # no number, of the dtype that entries have

    def turns(self, angles: Array) -> tuple[Array, Array | None]:
        """(F, n_angles) -> the scaled angles of the qubits, and the entries of the skew-symmetric matrices."""
        turns = take(angles, self.angles) * self.scales
        if not self.qudits:
            return turns, None
        first, skews = pieces(turns, [len(self.radius), turns.shape[1] - len(self.radius)], 1)
        return first, skews

    def __call__(self, turns: Array, skews: Array | None) -> Array:
        """(F, entries) at these scaled angles."""
        f = len(turns)
        turn = circle(turns, self.radius, self.basis)
        rows = turn @ self.basis if self.basis.ndim == 2 else (turn.reshape(f, -1, 1, 2) @ self.basis)[:, :, 0]
        rows = rows if self.constant is None else rows + self.constant
        if self.variants is not None:
            rows = take(rows.reshape(f, -1, 4), self.variants)
            first, *others = unbind(rows.reshape(f, self.length, -1, 2, 2))
            rows = reduce(lambda product, factor: factor @ product, others, first)
        rows = rows.reshape(f, -1)
        if skews is None:
            return rows
        made = [expm(skew).reshape(f, -1) for skew in self._squares(skews, 1)]
        return cast(cat((rows, *made), 1), self.none)

    def pull(self, skews: Array, g: Array) -> Array:
        """From the gradient g of the exponentials, (F, entries), that of the angles in the skew-symmetric matrices X.

        It stands in the corner of exp [[X^T, g], [0, X^T]] (Mathias 1996, theorem 2.1).
        """
        both = take(cat((skews, g), 1), self.doubled)
        made = [
            expm(square)[:, :d, d:].reshape(len(g), -1)
            for square, (d, _) in zip(self._squares(both, 2), self.qudits, strict=True)
        ]
        return cat(made, 1) * self.scales[len(self.radius) :]

    def _squares(self, entries: Array, times: int) -> list[Array]:
        """(F, entries) -> for each d, (F count, times d, times d)."""
        parts = pieces(entries, [(times * d) ** 2 * count for d, count in self.qudits], 1)
        return [part.reshape(-1, times * d, times * d) for part, (d, _) in zip(parts, self.qudits, strict=True)]


@dataclass(frozen=True)
class Turn:
    """``C0 + C1 cos(x t) + C2 sin(x t)``: a rotation of a qubit by the angle t at a position, and fixed gates."""

    harmonics: NDArray  # (C0, C1, C2)
    angle: int
    scale: float  # 0 where no angle turns anything


def _harmonics(gate: str) -> NDArray:
    """``(C0, C1, C2)`` at the scaled angle, read off at three angles."""
    at = [GATES[gate].matrix((x / GATES[gate].frequency,)) for x in (0, pi, pi / 2)]
    constant = (at[0] + at[1]) / 2
    found = np.array([constant, (at[0] - at[1]) / 2, at[2] - constant])
    return np.where(np.abs(found) < 1e-15, 0, found)


def turns_of(factors: Sequence[plan.Factor], turn: str) -> list[Turn]:
    """The factors of a qubit in time order, at least one; a fixed gate is multiplied into its neighbour.

    Nothing stands for the identity: the gate ``turn`` at t = 0.
    """
    found: list[Turn] = []
    fixed = np.eye(2)
    for factor in factors:
        gate = GATES[factor.gate]
        if gate.angles:
            found.append(Turn(_harmonics(factor.gate) @ fixed, factor.angles[0], factor.scale * gate.frequency))
            fixed = np.eye(2)
            continue
        matrix = gate.matrix().conj().T if factor.adjoint else gate.matrix()
        if found:
            found[-1] = replace(found[-1], harmonics=matrix @ found[-1].harmonics)
        else:
            fixed = matrix @ fixed
    return found or [Turn(_harmonics(turn) @ fixed, 0, 0.0)]


def _skew(factors: Sequence[plan.Factor], d: int) -> tuple[NDArray, NDArray]:
    """Positions and scales of the angles in the skew-symmetric matrix of at most one gate on a wire of dimension d."""
    where, scales = np.zeros((d, d), np.int64), np.zeros((d, d))
    for factor in factors:
        skew = GATES[factor.gate].skew
        assert skew is not None, factor
        rows, cols = skew(d)
        where[rows, cols] = where[cols, rows] = factor.angles
        scales[rows, cols], scales[cols, rows] = factor.scale / 2, -factor.scale / 2
    return where.ravel(), scales.ravel()


def make_table(
    qubits: Sequence[list[Turn]],
    qudits: dict[int, list[tuple[plan.Factor, ...]]],
    make: Constants,
) -> Table:
    """The table of these products on qubits, the last of which is the identity, and of these gates on other wires."""
    length = max(map(len, qubits))
    factors = [turns[r] if r < len(turns) else qubits[-1][0] for r in range(length) for turns in qubits]
    c = np.array([factor.harmonics for factor in factors]).reshape(-1, 3, 4)
    scales = np.array([factor.scale for factor in factors])
    # the slope of what does not turn is never asked for: let it not stand in the way of one basis for all
    slopes = np.where(scales == 0, scales[np.abs(scales).argmax()], scales).reshape(-1, 1)
    basis = np.stack(
        [np.concatenate((c[:, 1], c[:, 2] * slopes), 1), np.concatenate((c[:, 2], -c[:, 1] * slopes), 1)], 1
    )
    if (basis == basis[0]).all():
        basis = basis[0]
    constant = np.concatenate((c[:, 0], np.zeros_like(c[:, 0])), 1)
    r, product, variant = np.indices((length, len(qubits), 1 + length))
    variants = (r * len(qubits) + product) * 2 + (variant == r + 1)
    skews = [_skew(gates, d) for d, each in qudits.items() for gates in each]
    # an exponential is made in double precision, and with it all of the table
    real, work = (
        (lambda x: widened(make.real(x)), lambda x: widened(make.work(x))) if qudits else (make.real, make.work)
    )
    return Table(
        angles=make.index(np.concatenate([[factor.angle for factor in factors], *(where for where, _ in skews)])),
        scales=real(np.concatenate([scales, *(by for _, by in skews)])),
        radius=real(np.ones(len(factors))),
        basis=work(basis),
        constant=work(constant) if constant.any() else None,
        length=length,
        variants=make.index(variants.ravel()) if length > 1 else None,
        qudits=tuple((d, len(each)) for d, each in qudits.items()),
        doubled=make.index(_doubled([(d, len(each)) for d, each in qudits.items()])) if qudits else None,
        none=make.work(np.zeros(0)),
    )


def _doubled(qudits: Sequence[tuple[int, int]]) -> NDArray:
    """The positions of [[X^T, g], [0, X^T]] in the entries of all X, then of all g; X has 0 on its diagonal."""
    total, start, found = sum(d * d * count for d, count in qudits), 0, []
    for d, count in qudits:
        x = start + np.arange(count * d * d).reshape(count, d, d)
        turned, zero = x.transpose(0, 2, 1), np.broadcast_to(x[:, :1, :1], x.shape)
        found.append(np.block([[turned, total + x], [zero, turned]]).ravel())
        start += count * d * d
    return np.concatenate(found)
