"""The exact mean purity of every subset of wires over uniform angles, without sampling: four replicas of the state.

A purity takes two copies of rho, four of the state: Tr rho_A^2 = 2^-|A| sum of <P>^2 over the Pauli strings P on A. A
gate with its angle averaged acts linearly on the mean products <P><P'> of pairs of strings, four numbers times four for
a wire. Clifford gates and uniform Pauli rotations send squares <P>^2 to squares, so that a wire has four numbers, of
which those that the gates so far can reach are kept: one before the first gate, three behind a uniform rotation, so 3^q
behind a layer of rotations for a state of 2^q. Other gates need the pairs: up to 16 numbers a wire.
docs/entanglement.md has the derivation.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import pi, prod

import numpy as np
from numpy.polynomial.legendre import leggauss
from numpy.typing import NDArray

from qcircuit_peft.circuit import Circuit
from qcircuit_peft.gates import GATES

_MAX_SIZE = 1 << 26  # entries of the largest tensor: 0.5 GiB
_PAULIS = (np.eye(2), np.array([[0, 1], [1, 0]]), np.array([[0, -1j], [1j, 0]]), np.diag([1, -1]))
_START = np.array([[1.0], [0], [0], [1]])  # <I>, <X>, <Y>, <Z> of |0>


@dataclass(frozen=True)
class _Step:
    """A linear map of the legs of ``wires``: (*new leg dimensions, *old leg dimensions)."""

    tensor: NDArray
    wires: tuple[int, ...]


@lru_cache(maxsize=256)
def _pauli_pairs(gate: str, adjoint: bool) -> NDArray:
    """The mean over a uniform angle of <P><P'> after the gate, as a linear map of those before: (4^k,) * 4."""
    nodes, weights = leggauss(48)
    angles = [()] if not GATES[gate].angles else [(pi * (t + 1),) for t in nodes]
    strings = [np.array([[1]])]
    for _ in range(GATES[gate].wires):
        strings = [np.kron(p, q) for p in strings for q in _PAULIS]
    total = np.zeros((len(strings),) * 4)
    for angle, weight in zip(angles, weights / 2 if len(angles) > 1 else [1.0], strict=True):
        u = GATES[gate].matrix(angle)
        u = u.conj().T if adjoint else u
        r = np.array([[np.trace(p @ u @ q @ u.conj().T).real for q in strings] for p in strings]) / len(u)
        total += weight * np.einsum("ac,bd->abcd", r, r)
    total[np.abs(total) < 1e-14] = 0
    return total


def _squares(pairs: NDArray) -> NDArray | None:
    """The map of squares <P>^2 alone; None if they depend on products of different strings."""
    of_squares = np.einsum("aacd->acd", pairs)
    mixed = of_squares * (1 - np.eye(len(pairs)))
    return None if mixed.any() else np.einsum("acc->ac", of_squares)


def _per_wire(pairs: NDArray, k: int) -> NDArray:
    """(4^k,) * 4 to (16^k, 16^k), with the two strings of a pair side by side for each wire."""
    order = [axis for side in (0, 2 * k) for w in range(k) for axis in (side + w, side + k + w)]
    return pairs.reshape((4,) * (4 * k)).transpose(order).reshape(16**k, 16**k)


def _check(circuit: Circuit) -> None:
    if any(d != 2 for d in circuit.dims):
        raise ValueError(f"the exact mean is for qubits, got wires of dimensions {circuit.dims}; sample instead")
    if circuit.affine:
        raise ValueError(
            "the exact mean needs an angle of its own for every gate, but here some are made of others; sample"
        )
    angles = [a for op in circuit.ops for a in op.angles or ()]
    if len(set(angles)) != len(angles):
        shared = next(a for a in angles if angles.count(a) > 1)
        raise ValueError(
            f"the exact mean needs an angle of its own for every gate, but angle {shared} is shared; sample"
        )


def _plan(circuit: Circuit) -> tuple[list[_Step], list[NDArray], int]:
    """The steps, the basis of every leg at the end, and the size of the largest tensor on the way."""
    maps = [_pauli_pairs(op.gate, op.adjoint) for op in circuit.ops]
    squares = [_squares(pairs) for pairs in maps]
    alone = all(m is not None for m in squares)
    bases = [_START if alone else np.kron(_START, _START)] * len(circuit.dims)
    steps, peak = [], 1
    for op, pairs, square in zip(circuit.ops, maps, squares, strict=True):
        matrix = square if alone else _per_wire(pairs, len(op.wires))
        old = [bases[w] for w in op.wires]
        reached = np.asarray(matrix) @ (old[0] if len(old) == 1 else np.kron(*old))
        tensor = reached.reshape([len(b) for b in old] + [b.shape[1] for b in old])
        for leg, w in enumerate(op.wires):
            bases[w] = _range(np.moveaxis(tensor, leg, 0).reshape(len(old[leg]), -1))
            tensor = np.moveaxis(np.tensordot(bases[w].T, tensor, axes=(1, leg)), 0, leg)
        steps.append(_Step(tensor, op.wires))
        peak = max(peak, prod(b.shape[1] for b in bases))
    return steps, bases, peak


def _range(matrix: NDArray) -> NDArray:
    """An orthonormal basis of the range: all that a leg has to keep behind this map."""
    u, s, _ = np.linalg.svd(matrix, full_matrices=False)
    return u[:, s > 1e-10 * s[0]]


def mean_purities(circuit: Circuit) -> NDArray[np.float64]:
    """E[Tr rho_A^2] of every subset A of the wires for U|0...0> with uniform angles in [0, 2 pi), to about 1e-12.

    The shape is (2,) * n; the index is 1 for the wires in A. Raises ValueError for a wire that is not a qubit, an angle
    that two gates share, or a tensor above 2^26 entries, before anything is computed.

    >>> from qcircuit_peft import load
    >>> mean_purities(load("simplified_two_design").circuit(qubits=2, layers=1)).round(6).tolist()
    [[1.0, 0.875], [0.875, 1.0]]
    """
    _check(circuit)
    steps, bases, peak = _plan(circuit)
    if peak > _MAX_SIZE:
        raise ValueError(
            f"the exact mean would take a tensor of {peak:.2g} entries for this circuit on {len(circuit.dims)} qubits, "
            f"the most is {_MAX_SIZE:.2g}; take fewer qubits, or sample"
        )
    state = np.ones((1,) * len(circuit.dims))
    for step in steps:
        k = len(step.wires)
        state = np.tensordot(step.tensor, state, axes=(range(k, 2 * k), step.wires))
        state = np.moveaxis(state, range(k), step.wires)
    for w, basis in enumerate(bases):
        traced, kept = np.zeros((2, 4))
        traced[0], kept[:] = 1, 0.5
        read = np.stack([traced, kept])
        if len(basis) == 16:
            read = np.stack([np.diag(row).ravel() for row in read])
        state = np.moveaxis(np.tensordot(read @ basis, state, axes=(1, w)), 0, w)
    return state
