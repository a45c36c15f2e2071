"""An independent simulator: textbook gates, one basis state at a time. Of ours it imports only ``Circuit``.

Slow on purpose. A backend is checked against this file, never against our own matrices.
"""

from cmath import exp
from functools import lru_cache
from itertools import product
from math import cos, pi, sin, sqrt

import numpy as np

from qcircuit_peft.circuit import Circuit


def _generalized_ry(angles, d, neighbours=False):
    """exp(A) by its power series, for A skew, angles/2 below the diagonal: (1,0), (2,0), (2,1), ..., or next to it."""
    a = np.zeros((d, d), dtype=np.longdouble)
    angle = iter(angles)
    for row in range(d):
        for column in range(max(0, row - 1) if neighbours else 0, row):
            a[row, column] = next(angle) / 2
            a[column, row] = -a[row, column]
    halvings = 0
    while np.abs(a).sum() > 0.5:  # exp(A) = exp(A/2)^2
        a, halvings = a / 2, halvings + 1
    total = term = np.eye(d, dtype=np.longdouble)
    for n in range(1, 25):
        term = term @ a / n
        total = total + term
    for _ in range(halvings):
        total = total @ total
    return total.astype(complex)


def _rx(t):
    return [[cos(t / 2), -1j * sin(t / 2)], [-1j * sin(t / 2), cos(t / 2)]]


def _ry(t):
    return [[cos(t / 2), -sin(t / 2)], [sin(t / 2), cos(t / 2)]]


def _rz(t):
    return [[exp(-0.5j * t), 0], [0, exp(0.5j * t)]]


def _diagonal(*values):
    return [[v if i == j else 0 for j in range(len(values))] for i, v in enumerate(values)]


def _controlled(u):
    (a, b), (c, d) = u
    return [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, a, b], [0, 0, c, d]]


def _rxx(t):
    c, s = cos(t / 2), -1j * sin(t / 2)
    return [[c, 0, 0, s], [0, c, s, 0], [0, s, c, 0], [s, 0, 0, c]]


def _ryy(t):
    c, s = cos(t / 2), -1j * sin(t / 2)
    return [[c, 0, 0, -s], [0, c, s, 0], [0, s, c, 0], [-s, 0, 0, c]]


def _givens(t):
    c, s = cos(t / 2), sin(t / 2)
    return [[1, 0, 0, 0], [0, c, -s, 0], [0, s, c, 0], [0, 0, 0, 1]]


# Matrices on qubits; the first wire is the more significant digit, and the control of a controlled gate.
QUBIT_GATES = {
    "RY": _ry,
    "RYN": _ry,
    "RX": _rx,
    "RZ": _rz,
    "P": lambda t: _diagonal(1, exp(1j * t)),
    "H": lambda: [[1 / sqrt(2), 1 / sqrt(2)], [1 / sqrt(2), -1 / sqrt(2)]],
    "X": lambda: [[0, 1], [1, 0]],
    "Y": lambda: [[0, -1j], [1j, 0]],
    "Z": lambda: _diagonal(1, -1),
    "S": lambda: _diagonal(1, 1j),
    "T": lambda: _diagonal(1, exp(0.25j * pi)),
    "CZ": lambda: _diagonal(1, 1, 1, -1),
    "CX": lambda: [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]],
    "SWAP": lambda: [[1, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]],
    "CRX": lambda t: _controlled(_rx(t)),
    "CRY": lambda t: _controlled(_ry(t)),
    "CRZ": lambda t: _controlled(_rz(t)),
    "RXX": _rxx,
    "RYY": _ryy,
    "RZZ": lambda t: _diagonal(exp(-0.5j * t), exp(0.5j * t), exp(0.5j * t), exp(-0.5j * t)),
    "GIVENS": _givens,
}


def gate_matrix(name, angles, dims):
    """The matrix of a gate on wires of these dimensions."""
    if all(d == 2 for d in dims):
        return np.array(QUBIT_GATES[name](*angles), dtype=complex)
    if name == "RY":
        return _generalized_ry(angles, dims[0])
    if name == "RYN":
        return _generalized_ry(angles, dims[0], neighbours=True)
    if name == "CZ":
        signs = [(-1) ** (i * j) for i in range(dims[0]) for j in range(dims[1])]
        return np.array(_diagonal(*signs), dtype=complex)
    raise ValueError(f"the reference has no {name} on wires of dimension {dims}")


def _index(digits, dims):
    index = 0
    for digit, d in zip(digits, dims, strict=True):
        index = index * d + digit
    return index


@lru_cache(maxsize=512)
def _places(dims, wires):
    """Where the entries of a gate go: (row, column) in the register, (row, column) in the gate."""
    gate_dims = [dims[w] for w in wires]
    places = []
    for before in product(*map(range, dims)):
        old = [before[w] for w in wires]
        for new in product(*map(range, gate_dims)):
            after = list(before)
            for wire, digit in zip(wires, new, strict=True):
                after[wire] = digit
            in_register = _index(after, dims), _index(before, dims)
            in_gate = _index(new, gate_dims), _index(old, gate_dims)
            places.append((*in_register, *in_gate))
    return tuple(np.array(places).T)


def embed(gate, dims, wires):
    """The N x N matrix of a gate on some wires of a register."""
    row, column, gate_row, gate_column = _places(tuple(dims), tuple(wires))
    n = int(np.prod(dims))
    full = np.zeros((n, n), dtype=complex)
    full[row, column] = gate[gate_row, gate_column]
    return full


def _op_matrix(circuit, op, angles):
    gate = gate_matrix(op.gate, [float(angles[a]) for a in op.angles], [circuit.dims[w] for w in op.wires])
    return gate.conj().T if op.adjoint else gate


def _made(circuit, angles):
    """The angles that the ops take, of those of the circuit."""
    if not circuit.affine:
        return angles
    return [one.shift + sum(scale * float(angles[position]) for position, scale in one.terms) for one in circuit.affine]


def matrix(circuit: Circuit, angles):
    """The N x N matrix of a circuit, complex, for one vector of angles."""
    angles, total = _made(circuit, angles), np.eye(circuit.dim, dtype=complex)
    for op in circuit.ops:
        total = embed(_op_matrix(circuit, op, angles), circuit.dims, op.wires) @ total
    return total


def columns(circuit: Circuit, angles, k):
    """The first k columns of ``matrix`` without N x N products, for wide registers."""
    angles, total = _made(circuit, angles), np.eye(circuit.dim, k, dtype=complex)
    for op in circuit.ops:
        row, column, gate_row, gate_column = _places(circuit.dims, op.wires)
        gate, before, total = _op_matrix(circuit, op, angles), total, np.zeros_like(total)
        np.add.at(total, row, gate[gate_row, gate_column, None] * before[column])
    return total
