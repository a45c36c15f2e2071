"""How many directions a circuit moves in: its dynamical Lie algebra, and the rank of its Jacobian.

A circuit is U = R_m ... R_1 F: rotations R_j = exp(-i t_j H_j), each conjugated by the fixed gates that follow it, and
F, all fixed gates. So dU U^-1 lies in the Lie algebra that the H_j generate, whose dimension bounds how many angles can
matter, however deep the circuit is (Larocca et al., arXiv 2105.14377). Where fixed gates are Clifford and every
rotation's generator is one Pauli string, all of the algebra is spanned by Pauli strings, which are counted; a set of
them closes under commutators with the generators alone. The rest is closed numerically, as matrices.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qcircuit_peft import backends
from qcircuit_peft.ansatz import Ansatz
from qcircuit_peft.checks import whole_number
from qcircuit_peft.circuit import Circuit, Op
from qcircuit_peft.gates import GATES
from qcircuit_peft.text import shown

MAX_STRINGS = 1 << 18  # that are counted: all of nine qubits
MAX_DIM = 32  # of matrices that are closed numerically
MAX_RANK = 1 << 12  # angles of a Jacobian
_PAULIS = {(0, 0): np.eye(2), (1, 0): GATES["X"].matrix(), (0, 1): GATES["Z"].matrix(), (1, 1): GATES["Y"].matrix()}
_SMALL = 1e-9  # of numbers that are of size one unless they are zero
_AT_ONCE = 64  # commutators

String = tuple[int, int, int]  # i^phase X^x Z^z: bit w of x and z is that of wire w


def _product(a: String, b: String) -> String:
    return a[0] ^ b[0], a[1] ^ b[1], (a[2] + b[2] + 2 * (a[1] & b[0]).bit_count()) % 4


def _strings(wires: int) -> Iterator[tuple[tuple[tuple[int, int], ...], NDArray]]:
    """Every Pauli string on a few wires: (x, z) of each wire, and its matrix."""
    for marks in product(_PAULIS, repeat=wires):
        matrix = np.eye(1)
        for mark in marks:
            matrix = np.kron(matrix, _PAULIS[mark])
        yield marks, matrix


def _decomposed(matrix: NDArray) -> dict[tuple[tuple[int, int], ...], complex]:
    """The Pauli strings of a matrix on qubits, with their coefficients."""
    wires = len(matrix).bit_length() - 1
    found = {marks: np.trace(string.conj().T @ matrix) / len(matrix) for marks, string in _strings(wires)}
    return {marks: c for marks, c in found.items() if abs(c) > _SMALL}


def _matrix(op: Op, dims: tuple[int, ...], angles: Sequence[float]) -> NDArray:
    found = GATES[op.gate].matrix(tuple(angles), tuple(dims[w] for w in op.wires))
    return found.conj().T if op.adjoint else found


def _generators(op: Op, dims: tuple[int, ...]) -> list[NDArray]:
    """i dM/dt M^-1 at zero angles, hermitian, for every angle of an op."""
    count = len(op.angles or ())
    if count == 1:  # C0 + C1 cos(f t) + C2 sin(f t)
        f = GATES[op.gate].frequency
        high, low = (_matrix(op, dims, [sign * np.pi / 2 / f]) for sign in (1, -1))
        return [1j * f * (high - low) / 2]
    size, found, skew = dims[op.wires[0]], [], GATES[op.gate].skew
    assert skew is not None, op  # a rotation of SO(d)
    for row, column in zip(*skew(size), strict=True):
        a = np.zeros((size, size))
        a[row, column], a[column, row] = 0.5, -0.5
        found.append(1j * (-a if op.adjoint else a))
    return found


def _is_fixed(circuit: Circuit, op: Op) -> bool:
    return not any(circuit.made[angle].terms for angle in op.angles or ())


def _fixed_matrix(circuit: Circuit, op: Op) -> NDArray:
    return _matrix(op, circuit.dims, [circuit.made[angle].shift for angle in op.angles or ()])


@lru_cache(maxsize=1024)
def _of_gate(gate: str, adjoint: bool) -> tuple[tuple[tuple[int, int], ...], int, float] | None:
    """The one Pauli string of a rotation's generator, its sign and its trace; None if it has several."""
    wires = tuple(range(GATES[gate].wires))
    found = _decomposed(_generators(Op(gate, wires, (0,), adjoint), (2,) * len(wires))[0])
    trace = found.pop(((0, 0),) * len(wires), 0.0)
    if len(found) != 1:
        return None
    (marks, value), *_ = found.items()
    return marks, 0 if value.real > 0 else 2, float(np.real(trace) / abs(value))


def _conjugated(matrix: NDArray) -> dict[tuple[int, int], tuple[tuple[tuple[int, int], ...], int]] | None:
    """M P M^-1 for X and Z of each wire (number, 0 or 1): a Pauli string and its phase; None if M is not Clifford."""
    wires, found = len(matrix).bit_length() - 1, {}
    for wire, which in product(range(wires), (0, 1)):
        marks = tuple((1 - which, which) if w == wire else (0, 0) for w in range(wires))
        string = next(s for m, s in _strings(wires) if m == marks)
        image = _decomposed(matrix @ string @ matrix.conj().T)
        if len(image) != 1:
            return None
        (to, value), *_ = image.items()
        found[wire, which] = to, 0 if value.real > 0 else 2
    return found


@lru_cache(maxsize=1024)
def _clifford(gate: str, adjoint: bool) -> dict[tuple[int, int], tuple[tuple[tuple[int, int], ...], int]] | None:
    return _conjugated(_matrix(Op(gate, tuple(range(GATES[gate].wires)), (), adjoint), (2,) * GATES[gate].wires, ()))


def _pauli_generators(circuit: Circuit) -> list[tuple[String, float]] | None:
    """The rotations' strings, each conjugated by the fixed gates that follow it, and traces; None if some is no string.

    From the last gate to the first, with the images of X and Z of every wire under all fixed gates met so far.
    """
    if set(circuit.dims) != {2}:
        return None
    images: dict[tuple[int, int], String] = {}
    for wire in range(len(circuit.dims)):
        images[wire, 0], images[wire, 1] = (1 << wire, 0, 0), (0, 1 << wire, 0)

    def image(marks: tuple[tuple[int, int], ...], wires: tuple[int, ...], phase: int) -> String:
        found: String = (0, 0, phase)
        for (x, z), wire in zip(marks, wires, strict=True):
            if x and z:  # Y = i X Z
                found = (found[0], found[1], (found[2] + 1) % 4)
            for which in (0,) * x + (1,) * z:
                found = _product(found, images[wire, which])
        return found

    generators = {}
    for op in reversed(circuit.ops):
        if not _is_fixed(circuit, op):
            own = _of_gate(op.gate, op.adjoint)
            if own is None:
                return None
            generators[image(own[0], op.wires, own[1]), own[2]] = None
            continue
        table = _conjugated(_fixed_matrix(circuit, op)) if op.angles else _clifford(op.gate, op.adjoint)
        if table is None:
            return None
        after = {key: image(marks, op.wires, phase) for key, (marks, phase) in table.items()}
        images |= {(op.wires[wire], which): string for (wire, which), string in after.items()}
    return list(generators)


def _parity(values: NDArray) -> NDArray:
    for shift in (32, 16, 8, 4, 2, 1):
        values = values ^ (values >> np.uint64(shift))
    return (values & np.uint64(1)).astype(bool)


def _count_strings(generators: list[tuple[String, float]], wires: int, limit: int | None) -> int:
    """The dimension of the algebra that Pauli strings generate, some of which have a multiple of the identity added."""
    one = np.uint64(wires)
    keys = np.unique(np.array([x << wires | z for (x, z, _), _ in generators], dtype=np.uint64))
    low = np.uint64((1 << wires) - 1)
    found, front, inside = keys, keys, set()
    while len(front):
        if limit is not None and len(found) >= limit:
            return limit
        if len(found) > MAX_STRINGS:
            raise ValueError(
                f"a Lie algebra of at most {MAX_STRINGS} Pauli strings is counted, but that of this circuit on {wires} "
                f"qubits has more, of up to {4**wires - 1}; take fewer qubits or a limit"
            )
        fresh = []
        for key in keys:
            anti = _parity(((front >> one) & (key & low)) ^ ((front & low) & (key >> one)))
            made = front[anti] ^ key
            inside.update(keys[np.isin(keys, made)].tolist())
            fresh.append(made[found[np.searchsorted(found, made).clip(max=len(found) - 1)] != made])
        front = np.unique(np.concatenate(fresh))
        found = np.sort(np.concatenate([found, front]))
    # A string with a trace is P + c 1: the identity comes out by itself where P has other multiples of it beside it.
    traces: dict[int, set[float]] = {}
    for (x, z, phase), trace in generators:
        sign = 1 if (phase - (x & z).bit_count()) % 4 == 0 else -1
        traces.setdefault(x << wires | z, set()).add(sign * trace)
    identity = any(len(values | ({0.0} if key in inside else set())) > 1 for key, values in traces.items())
    return len(found) + identity


def _close(circuit: Circuit, limit: int | None) -> int:
    """The dimension of the algebra as matrices: skew-hermitian ones as real vectors, an orthonormal basis of them."""
    n = circuit.dim
    if n > MAX_DIM:
        raise ValueError(
            f"a circuit of dimension {n} is too large for a Lie algebra in numbers, of up to {n * n} directions: "
            f"at most {MAX_DIM}, but for qubits with Clifford gates and rotations about one Pauli string each"
        )
    later, found = np.eye(n), []
    for op in reversed(circuit.ops):
        if _is_fixed(circuit, op):
            later = later @ _embedded(_fixed_matrix(circuit, op), op, circuit.dims)
        else:
            for generator in _generators(op, circuit.dims):
                found.append(-1j * later @ _embedded(generator, op, circuit.dims) @ later.conj().T)

    def vectors(matrices: Any) -> NDArray:
        flat = matrices.reshape(len(matrices), -1)
        return np.concatenate([flat.real, flat.imag], 1)

    def added(matrices: NDArray) -> NDArray:
        """The basis with what some matrices add to it."""
        rest = vectors(matrices)
        norms = np.linalg.norm(rest, axis=1)
        rest = rest[norms > _SMALL] / norms[norms > _SMALL, None]
        for _ in range(2):
            rest = rest - (rest @ basis.T) @ basis
        _, sizes, right = np.linalg.svd(rest, full_matrices=False)
        return np.concatenate([basis, right[sizes > 1e-7]])

    basis = np.zeros((0, 2 * n * n))
    basis = added(np.array(found))
    generators, before = basis, 0
    draw = np.random.default_rng(0)
    # Commutators of random elements with random generators are in the span of the basis only if all of them are.
    while len(basis) > before and (limit is None or len(basis) < limit):
        before = len(basis)
        some, others = (
            _as_matrices(draw.standard_normal((_AT_ONCE, len(span))) @ span, n) for span in (basis, generators)
        )
        basis = added(some @ others - others @ some)
    return len(basis) if limit is None else min(limit, len(basis))


def _as_matrices(vectors: NDArray, n: int) -> NDArray:
    return (vectors[:, : n * n] + 1j * vectors[:, n * n :]).reshape(-1, n, n)


def _embedded(matrix: NDArray, op: Op, dims: tuple[int, ...]) -> NDArray:
    """The matrix of a gate on the whole register."""
    n = len(dims)
    rest = [w for w in range(n) if w not in op.wires]
    sizes = [dims[w] for w in (*op.wires, *rest)]
    whole = np.kron(matrix, np.eye(int(np.prod([dims[w] for w in rest])))).reshape(*sizes, *sizes)
    order = [[*op.wires, *rest].index(w) for w in range(n)]
    return whole.transpose(*order, *(n + at for at in order)).reshape(int(np.prod(dims)), -1)


def lie_dimension(circuit: Circuit, limit: int | None = None) -> int:
    """The dimension of the Lie algebra of a circuit's rotations, each conjugated by the fixed gates after it.

    No more angles than that are independent, however many a circuit of this kind has. Rotations count by themselves
    where ops share an angle. With ``limit`` no more than so many directions are looked for. Raises ValueError for a
    limit below 1, more than ``MAX_STRINGS`` Pauli strings, or, where a fixed gate is not Clifford, a rotation is not
    about one string or a wire is no qubit, a dimension above ``MAX_DIM``.
    Source: Larocca et al., arXiv 2105.14377; Wiersema et al., arXiv 2309.05690.

    >>> from qcircuit_peft import load
    >>> [lie_dimension(load(name).circuit(qubits=4, layers=12)) for name in ("line_ry_cz", "simplified_two_design")]
    [20, 120]
    """
    if limit is not None:
        whole_number("limit", limit, 1)
    if not circuit.n_angles:
        return 0
    generators = _pauli_generators(circuit) if len(circuit.dims) <= 31 else None
    if generators is None:
        return _close(circuit, limit)
    return _count_strings(generators, len(circuit.dims), limit)


@lru_cache(maxsize=1024)
def surplus(circuit: Circuit) -> int | None:
    """The number of directions that a circuit moves in, if it has more angles than that and strings tell; else None.

    Quick: counting ends at the number of angles, and the usual circuit passes it at once.
    """
    if len(circuit.dims) > 31 or not circuit.n_angles:
        return None
    generators = _pauli_generators(circuit)
    if generators is None or len({string[:2] for string, _ in generators}) >= circuit.n_angles:
        return None
    found = _count_strings(generators, len(circuit.dims), circuit.n_angles)
    return found if found < circuit.n_angles else None


def told_surplus(ansatz: Ansatz, circuit: Circuit) -> str | None:
    """In words, the depth from which more layers of an ansatz gain nothing, if a circuit of it is past it; else None.

    Of a circuit without gates between wires nothing is said: that is a control, and what it lacks is known.

    >>> from qcircuit_peft import load
    >>> line = load("line_ry_cz")
    >>> told_surplus(line, line.circuit(qubits=4, layers=12))
    "the 52 angles of 'line_ry_cz' on 4 qubits move it in 20 directions only, as many as L = 4 has angles; more layers \
gain nothing"
    """
    directions = surplus(circuit) if any(len(op.wires) > 1 for op in circuit.ops) else None
    if directions is None:
        return None
    told = (
        f"the {circuit.n_angles} angles of {shown(ansatz.name)} on {len(circuit.dims)} qubits move it in {directions} "
        "directions only"
    )
    if ansatz.fixed is not None:
        return told
    none, one = (ansatz.circuit(dims=circuit.dims, layers=layers).n_angles for layers in (0, 1))
    enough = max(0, -(-(directions - none) // (one - none))) if one > none else 0
    return f"{told}, as many as L = {enough} has angles; more layers gain nothing"


def directions(ansatz: Ansatz, layers: int = 12) -> dict[int, int]:
    """The ``lie_dimension`` of an ansatz by the number of qubits, 2 to 4; without those on which it is none.

    >>> from qcircuit_peft import load
    >>> directions(load("line_ry_cz"))
    {2: 6, 3: 12, 4: 20}
    """
    found = {}
    for qubits in (2, 3, 4):
        with suppress(ValueError):
            found[qubits] = lie_dimension(ansatz.circuit(qubits=qubits, layers=layers, max_gates=1 << 12))
    return found


def independent_angles(circuit: Circuit, columns: int | None = None, seed: int = 0) -> int:
    """How many angles move the circuit's matrix, or its first ``columns``, independently: the rank of the Jacobian.

    At three random points, of which the best counts; a point of lower rank is of measure zero. In float64. The Jacobian
    itself is never held: with more entries of the matrix than angles it is seen through random projections of them, a
    few more than there are angles, which have the same rank. Raises ValueError for columns outside 1..N, or more than
    ``MAX_RANK`` angles.

    >>> from qcircuit_peft import load
    >>> circuit = load("line_ry_cz").circuit(qubits=4, layers=12)
    >>> circuit.n_angles, independent_angles(circuit), independent_angles(circuit, columns=1)
    (52, 20, 10)
    """
    k = circuit.dim if columns is None else whole_number("columns", columns, 1, circuit.dim)
    if circuit.n_angles > MAX_RANK:
        raise ValueError(f"a Jacobian of at most {MAX_RANK} angles is looked at, got {circuit.n_angles}")
    generator = torch.Generator().manual_seed(seed)
    return max((_rank(circuit, k, generator) for _ in range(3)), default=0) if circuit.n_angles else 0


def _rank(circuit: Circuit, k: int, generator: torch.Generator) -> int:
    angles = 2 * torch.pi * torch.rand(circuit.n_angles, dtype=torch.float64, generator=generator)
    parts = 1 if circuit.is_real else 2
    entries, wanted = parts * circuit.dim * k, circuit.n_angles + 8
    count = min(entries, wanted)
    step, rows = max(1, (1 << 22) // entries), []
    for start in range(0, count, step):
        size = min(step, count - start)
        if entries <= wanted:
            seen = torch.eye(entries, dtype=torch.float64)[start : start + size]
        else:
            seen = torch.randn(size, entries, dtype=torch.float64, generator=generator)
        many = angles.expand(size, -1).clone().requires_grad_()
        made = backends.columns(circuit, many, k)
        flat = torch.view_as_real(made).flatten(1) if made.is_complex() else made.flatten(1)
        rows.append(torch.autograd.grad((flat * seen).sum(), many)[0])
    sizes = torch.linalg.svdvals(torch.cat(rows))
    return int((sizes > 1e-9 * sizes[0]).sum()) if sizes[0] > 0 else 0
