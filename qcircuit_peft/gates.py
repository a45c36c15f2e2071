"""One row per gate: its wires and angles, whether it is real, its matrix, what it is made of, its names elsewhere.

Angles are in radians. A rotation by ``t`` is ``exp(-i t G / 2)`` for its generator ``G`` (Nielsen and Chuang,
sec. 4.2). In a two-wire matrix the first wire is the more significant digit; for a controlled gate it is the
control.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

_I = np.eye(2)
_X = np.array([[0, 1], [1, 0]])
_Y = np.array([[0, -1j], [1j, 0]])
_Z = np.diag([1, -1])


@dataclass(frozen=True)
class Part:
    """One gate of a decomposition: its name, which of the parent's wires, and what multiplies the parent's angle."""

    gate: str
    wires: tuple[int, ...]
    scale: float | None = None


@dataclass(frozen=True)
class Names:
    """What a gate is called elsewhere: a class of PennyLane, a function of TorchQuantum, a standard gate of Qiskit, a
    gate of ``stdgates.inc`` and of the ``qelib1.inc`` of the OpenQASM 2 paper, and its inverse in both of these.

    Where it has no name, its parts stand for it.
    """

    pennylane: str = ""
    torchquantum: str = ""
    qiskit: str = ""
    qasm3: str = ""
    qasm2: str = ""
    dagger: str = ""


@dataclass(frozen=True)
class Gate:
    """A gate as a record.

    ``matrix_of(*angles)`` is its matrix on qubits. With an angle ``t`` it is ``C0 + C1 cos(f t) + C2 sin(f t)`` with
    ``f = frequency``. A gate that also acts on wires of dimension d > 2 has ``qudit_matrix(dims, angles)``; one with
    angles is exp(A) there, A skew-symmetric with the angles / 2 at ``skew(d)``, rows and columns below its diagonal, of
    which there are ``qudit_angles(d)``.
    ``parts`` are what it is made of, in time order; a two-wire gate
    with an angle has some, with two-wire parts that are signed permutations, so that every circuit becomes one-wire
    matrices and signed permutations. ``drawing`` is a mark for each of its first wires, then the name in the box on the
    others; a gate without one is a box with its own name.

    >>> GATES["RY"].matrix((0.0,)).tolist()
    [[1.0, -0.0], [0.0, 1.0]]
    """

    name: str
    wires: int
    angles: int
    real: bool
    about: str
    matrix_of: Callable[..., NDArray]
    names: Names = Names()
    parts: tuple[Part, ...] = ()
    drawing: str = ""
    frequency: float = 0.5
    qudit_matrix: Callable[[tuple[int, ...], NDArray], NDArray] | None = None
    skew: Callable[[int], tuple[NDArray, NDArray]] | None = None
    qudit_angles: Callable[[int], int] | None = None

    @property
    def elementary(self) -> bool:
        """Whether it is a one-wire matrix or a signed permutation; what is not has parts that are."""
        return self.wires == 1 or not self.angles

    def steps(self, adjoint: bool = False) -> list[tuple[Part, bool]]:
        """The parts in time order, and for each whether its adjoint is meant, where no sign of an angle says it.

        >>> [(part.gate, part.scale, adjoint) for part, adjoint in GATES["RXX"].steps(adjoint=True)]
        [('CX', None, True), ('RX', -1.0, False), ('CX', None, True)]
        """
        if not adjoint:
            return [(part, False) for part in self.parts]
        return [
            (part, True) if part.scale is None else (replace(part, scale=-part.scale), False)
            for part in reversed(self.parts)
        ]

    def n_angles(self, dims: tuple[int, ...]) -> int:
        """Number of angles on wires of these dimensions: d(d-1)/2 for RY on a wire of dimension d, d-1 for RYN."""
        return self.qudit_angles(dims[0]) if self.qudit_angles else self.angles

    def matrix(self, angles: tuple[float, ...] = (), dims: tuple[int, ...] | None = None) -> NDArray:
        """The (D, D) matrix with D = prod(dims); qubits if ``dims`` is not given.

        Raises ValueError for a wrong number of angles, or for dims on which the gate is not defined.
        """
        dims = dims or (2,) * self.wires
        if len(angles) != self.n_angles(dims):
            raise ValueError(
                f"{self.name} on wires of dimension {dims} takes {self.n_angles(dims)} angles, got {len(angles)}"
            )
        if all(d == 2 for d in dims):
            return np.array(self.matrix_of(*angles))
        if self.qudit_matrix is None:
            allowed = ", ".join(g.name for g in GATES.values() if g.qudit_matrix)
            raise ValueError(
                f"{self.name} acts on qubits only, got dimensions {dims}; gates for any dimension: {allowed}"
            )
        return self.qudit_matrix(dims, np.asarray(angles, dtype=float))


def _rotation(generator: NDArray) -> Callable[[float], NDArray]:
    one = np.eye(len(generator))
    return lambda t: np.cos(t / 2) * one - 1j * np.sin(t / 2) * generator


def _ry(t: float) -> NDArray:
    c, s = np.cos(t / 2), np.sin(t / 2)
    return np.array([[c, -s], [s, c]])


def _all_levels(d: int) -> tuple[NDArray, NDArray]:
    """Every pair of levels, row by row: (1,0), (2,0), (2,1), ..."""
    return np.tril_indices(d, -1)


def _neighbours(d: int) -> tuple[NDArray, NDArray]:
    """Neighbouring levels: (1,0), (2,1), ..."""
    return np.arange(1, d), np.arange(d - 1)


def _turning(skew: Callable[[int], tuple[NDArray, NDArray]], count: Callable[[int], int]) -> dict[str, Any]:
    """What a rotation of SO(d) is on a wire of dimension d, with ``count(d)`` angles."""

    def matrix(dims: tuple[int, ...], angles: NDArray) -> NDArray:
        a = np.zeros((dims[0], dims[0]))
        a[skew(dims[0])] = angles / 2
        values, vectors = np.linalg.eigh(1j * (a - a.T))
        return np.real((vectors * np.exp(-1j * values)) @ vectors.conj().T)

    return {"skew": skew, "qudit_angles": count, "qudit_matrix": matrix}


def _cz_qudit(dims: tuple[int, ...], angles: NDArray) -> NDArray:
    """diag((-1)^(i j)) over the basis states i, j of the two wires."""
    return np.diag((-1.0) ** (np.outer(np.arange(dims[0]), np.arange(dims[1])) % 2).ravel())


def _controlled(u: NDArray) -> NDArray:
    return np.block([[_I, np.zeros((2, 2))], [np.zeros((2, 2)), u]])


def _givens(t: float) -> NDArray:
    g = np.eye(4)
    g[1:3, 1:3] = _ry(t)
    return g


_RX, _RZ = _rotation(_X), _rotation(_Z)
_CX = _controlled(_X)
_CXs = Part("CX", (0, 1))
_CXr = Part("CX", (1, 0))
_CZs = Part("CZ", (0, 1))
_S_BOTH = (Part("S", (0,)), Part("S", (1,)))

_ROWS = (
    Gate(
        "RY", 1, 1, True, "rotation about y; on a wire of dimension d the rotation exp(A) of SO(d)", _ry,
        Names("RY", "ry", "ry", "ry", "ry"), **_turning(_all_levels, lambda d: d * (d - 1) // 2),
    ),
    Gate(
        "RYN", 1, 1, True, "RY; on a wire of dimension d exp(A) with A between neighbouring levels only",
        _ry, parts=(Part("RY", (0,), 1.0),), **_turning(_neighbours, lambda d: d - 1),
    ),
    Gate("RX", 1, 1, False, "rotation about x", _RX, Names("RX", "rx", "rx", "rx", "rx")),
    Gate("RZ", 1, 1, False, "rotation about z", _RZ, Names("RZ", "rz", "rz", "rz", "rz")),
    Gate(
        "P", 1, 1, False, "phase diag(1, e^it)", lambda t: np.diag([1, np.exp(1j * t)]),
        Names("PhaseShift", "phaseshift", "p", "p", "u1"), frequency=1.0,
    ),
    Gate(
        "H", 1, 0, True, "Hadamard", lambda: np.array([[1, 1], [1, -1]]) / np.sqrt(2),
        Names("Hadamard", "hadamard", "h", "h", "h"),
    ),
    Gate("X", 1, 0, True, "bit flip", lambda: _X.astype(float), Names("X", "paulix", "x", "x", "x")),
    Gate("Y", 1, 0, False, "Pauli y", lambda: _Y, Names("Y", "pauliy", "y", "y", "y")),
    Gate("Z", 1, 0, True, "phase flip", lambda: _Z.astype(float), Names("Z", "pauliz", "z", "z", "z")),
    Gate("S", 1, 0, False, "phase diag(1, i)", lambda: np.diag([1, 1j]), Names("S", "s", "s", "s", "s", "sdg")),
    Gate(
        "T", 1, 0, False, "phase diag(1, e^(i pi/4))", lambda: np.diag([1, np.exp(0.25j * np.pi)]),
        Names("T", "t", "t", "t", "t", "tdg"),
    ),
    Gate(
        "CZ", 2, 0, True, "sign (-1)^(i j) on digits i, j", lambda: np.diag([1.0, 1, 1, -1]),
        Names("CZ", "cz", "cz", "cz", "cz"), drawing="●●", qudit_matrix=_cz_qudit,
    ),
    Gate(
        "CX", 2, 0, True, "flips the second wire if the first is 1", lambda: _CX,
        Names("CNOT", "cnot", "cx", "cx", "cx"), drawing="●⊕",
    ),
    Gate(
        "SWAP", 2, 0, True, "exchanges the wires", lambda: np.eye(4)[[0, 2, 1, 3]],
        Names("SWAP", "swap", "swap", "swap"), parts=(_CXs, _CXr, _CXs), drawing="××",
    ),
    Gate(
        "CRX", 2, 1, False, "RX on the second wire if the first is 1", lambda t: _controlled(_RX(t)),
        Names("CRX", "crx", "crx", "crx"), (Part("RX", (1,), 0.5), _CZs, Part("RX", (1,), -0.5), _CZs), "● RX",
    ),
    Gate(
        "CRY", 2, 1, True, "RY on the second wire if the first is 1", lambda t: _controlled(_ry(t)),
        Names("CRY", "cry", "cry", "cry"), (Part("RY", (1,), 0.5), _CZs, Part("RY", (1,), -0.5), _CZs), "● RY",
    ),
    Gate(
        "CRZ", 2, 1, False, "RZ on the second wire if the first is 1", lambda t: _controlled(_RZ(t)),
        Names("CRZ", "crz", "crz", "crz", "crz"), (Part("RZ", (1,), 0.5), _CXs, Part("RZ", (1,), -0.5), _CXs), "● RZ",
    ),
    Gate(
        "RXX", 2, 1, False, "exp(-i t X X / 2)", _rotation(np.kron(_X, _X)),
        Names("IsingXX", "rxx", "rxx"), (_CXs, Part("RX", (0,), 1.0), _CXs),
    ),
    Gate(
        "RYY", 2, 1, False, "exp(-i t Y Y / 2)", _rotation(np.kron(_Y, _Y)), Names("IsingYY", "ryy", "ryy"),
        (*_S_BOTH, Part("Z", (0,)), Part("Z", (1,)), _CXs, Part("RX", (0,), 1.0), _CXs, *_S_BOTH),
    ),
    Gate(
        "RZZ", 2, 1, False, "exp(-i t Z Z / 2)", _rotation(np.kron(_Z, _Z)),
        Names("IsingZZ", "rzz", "rzz"), (_CXs, Part("RZ", (1,), 1.0), _CXs),
    ),
    Gate(
        "GIVENS", 2, 1, True, "RY in the span of |01> and |10>", _givens, Names("SingleExcitation"),
        (_CXr, Part("RY", (1,), -0.5), _CZs, Part("RY", (1,), 0.5), _CZs, _CXr),
    ),
)  # fmt: skip

GATES: dict[str, Gate] = {gate.name: gate for gate in _ROWS}


def signed_permutation(matrix: NDArray) -> tuple[NDArray, NDArray]:
    """``(index, phase)`` with ``(M x)[i] = phase[i] * x[index[i]]``, for a matrix with one entry a row and column.

    Raises ValueError if the matrix is not of that form.

    >>> signed_permutation(GATES["CX"].matrix())[0]
    array([0, 1, 3, 2])
    """
    nonzero = np.abs(matrix) > 1e-12
    if not ((nonzero.sum(0) == 1).all() and (nonzero.sum(1) == 1).all()):
        raise ValueError(
            f"a signed permutation has one entry in every row and column, got {nonzero.sum()} in {prod(matrix.shape)}"
        )
    index = nonzero.argmax(1)
    return index, matrix[np.arange(len(matrix)), index]
