"""Every row of ``GATES`` against the textbook, and the facts that the engine takes from it."""

from itertools import product

import numpy as np
import pytest
import reference
from bounds import close

from qcircuit_peft.gates import GATES, signed_permutation

ANGLES = (0.0, 0.3, -1.9, np.pi, 5.1, 11.0)
QUDIT_DIMS = {1: [(3,), (4,), (5,), (7,)], 2: [(3, 2), (2, 3), (3, 3), (4, 5)]}


def register(gate):
    return (2,) * gate.wires


def settings(gate):
    """Dimensions and angle vectors on which the gate is defined, qubits first."""
    for dims in [register(gate), *(QUDIT_DIMS[gate.wires] if gate.qudit_matrix else [])]:
        n = gate.n_angles(dims)
        for t in ANGLES if n else (0.0,):
            yield dims, tuple(t * (1 + 0.37 * i) for i in range(n))


def roundings(dims, angles):
    """A sum over the levels, after phases of as many radians as the generator is large."""
    return np.prod(dims) + np.linalg.norm(angles)


every_gate = pytest.mark.parametrize("gate", GATES.values(), ids=list(GATES))


@every_gate
def test_the_matrix_is_the_textbooks(gate):
    for dims, angles in settings(gate):
        expected = reference.gate_matrix(gate.name, angles, dims)
        close(gate.matrix(angles, dims), expected, roundings(dims, angles), size=1)


@every_gate
def test_the_matrix_is_unitary(gate):
    for dims, angles in settings(gate):
        u = gate.matrix(angles, dims)
        assert u.shape == (np.prod(dims), np.prod(dims))
        close(u.conj().T @ u, np.eye(len(u)), 2 * len(u))


@every_gate
def test_real_says_whether_the_matrix_is_real(gate):
    matrices = [gate.matrix(angles, dims) for dims, angles in settings(gate)]
    assert all(np.isrealobj(u) for u in matrices) == gate.real
    assert any(np.abs(np.imag(u)).max() > 0.1 for u in matrices) != gate.real


@every_gate
def test_qubits_are_the_default(gate):
    angles = (0.3,) * gate.n_angles(register(gate))
    np.testing.assert_array_equal(gate.matrix(angles), gate.matrix(angles, register(gate)))


@every_gate
def test_the_row_is_well_formed(gate):
    assert GATES[gate.name] is gate
    assert gate.name == gate.name.upper() and gate.wires in (1, 2) and gate.angles in (0, 1)
    assert gate.about and "\n" not in gate.about
    assert gate.n_angles(register(gate)) == gate.angles


def named(wires, angles):
    chosen = [gate for gate in GATES.values() if (gate.wires, gate.angles) == (wires, angles)]
    return pytest.mark.parametrize("gate", chosen, ids=[gate.name for gate in chosen])


@named(wires=1, angles=1)
def test_an_angle_enters_through_one_frequency(gate):
    f, samples = gate.frequency, (0.1, 1.3, 2.9)
    form = np.array([[1, np.cos(f * t), np.sin(f * t)] for t in samples])
    c0, c1, c2 = np.linalg.solve(form, [gate.matrix((t,)).ravel() for t in samples]).reshape(3, 2, 2)
    for t in ANGLES:
        expected = c0 + c1 * np.cos(f * t) + c2 * np.sin(f * t)
        close(gate.matrix((t,)), expected, roundings((2,), (t,)), size=np.linalg.cond(form))


@named(wires=2, angles=0)
def test_a_two_wire_gate_without_angle_is_a_signed_permutation(gate):
    for dims, angles in settings(gate):
        u = gate.matrix(angles, dims)
        index, phase = signed_permutation(u)
        np.testing.assert_array_equal(np.diag(phase) @ np.eye(len(u))[index], u)


@every_gate
def test_what_is_not_elementary_has_elementary_parts(gate):
    assert gate.elementary == (gate.wires == 1 or gate.angles == 0)
    assert gate.elementary or gate.parts
    for part in gate.parts:
        row = GATES[part.gate]
        assert row.elementary and not row.parts  # so that parts end
        assert len(part.wires) == row.wires and (part.scale is None) == (row.angles == 0)
        assert row.real or not gate.real


@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize("gate", [gate for gate in GATES.values() if gate.parts], ids=lambda gate: gate.name)
def test_parts_multiply_out_to_the_matrix_and_its_adjoint(gate, adjoint):
    for t in ANGLES if gate.angles else (0.0,):
        product_of_parts = np.eye(2**gate.wires)
        for part, undone in gate.steps(adjoint):
            u = GATES[part.gate].matrix(() if part.scale is None else (part.scale * t,))
            u = u.conj().T if undone else u
            product_of_parts = reference.embed(u, register(gate), part.wires) @ product_of_parts
        wanted = gate.matrix((t,) * gate.angles)
        bound = len(gate.parts) * roundings(register(gate), (t,))
        close(product_of_parts, wanted.conj().T if adjoint else wanted, bound, size=1)


@every_gate
def test_names_and_drawing_are_well_formed(gate):
    assert all(isinstance(name, str) and " " not in name for name in vars(gate.names).values())
    assert not gate.names.dagger or (gate.angles == 0 and gate.names.qasm3)
    marks, _, label = gate.drawing.partition(" ")
    assert len(marks) + bool(label) * (gate.wires - len(marks)) in (0, gate.wires) and set(marks) <= set("●⊕×")


@every_gate
def test_a_wrong_number_of_angles_is_refused(gate):
    too_many = (0.5,) * (gate.angles + 1)
    with pytest.raises(ValueError) as error:
        gate.matrix(too_many)
    assert str(error.value) == (
        f"{gate.name} on wires of dimension {register(gate)} takes {gate.angles} angles, got {len(too_many)}"
    )


@every_gate
def test_a_wire_of_dimension_3_is_refused_by_a_gate_for_qubits(gate):
    dims = (3, 2)[: gate.wires]
    angles = (0.5,) * gate.n_angles(dims)
    if gate.qudit_matrix:
        gate.matrix(angles, dims)
        return
    with pytest.raises(ValueError) as error:
        gate.matrix(angles, dims)
    allowed = ", ".join(name for name, other in GATES.items() if other.qudit_matrix)
    assert str(error.value) == (
        f"{gate.name} acts on qubits only, got dimensions {dims}; gates for any dimension: {allowed}"
    )


@pytest.mark.parametrize("d", range(2, 9))
def test_generalized_ry_is_a_rotation_with_an_angle_for_every_pair_of_levels(d):
    ry = GATES["RY"]
    assert ry.n_angles((d,)) == d * (d - 1) // 2
    pairs = [(i, j) for i in range(d) for j in range(i)]  # (1,0), (2,0), (2,1), ...
    for position, (i, j) in enumerate(pairs):
        angles = tuple(0.8 * (p == position) for p in range(len(pairs)))
        expected = np.eye(d)
        expected[np.ix_([j, i], [j, i])] = [[np.cos(0.4), -np.sin(0.4)], [np.sin(0.4), np.cos(0.4)]]
        close(ry.matrix(angles, (d,)), expected, roundings((d,), angles))
    angles = tuple(np.random.default_rng(d).uniform(0, 2 * np.pi, len(pairs)))
    close(np.linalg.det(ry.matrix(angles, (d,))), 1.0, d**2)


@pytest.mark.parametrize("d", range(2, 9))
def test_between_neighbouring_levels_a_wire_takes_one_angle_less_than_levels(d):
    sparse, whole = GATES["RYN"], GATES["RY"]
    angles = np.random.default_rng(d).uniform(0, 2 * np.pi, sparse.n_angles((d,)))
    assert len(angles) == d - 1
    at = [position for position, (i, j) in enumerate((i, j) for i in range(d) for j in range(i)) if i == j + 1]
    every = np.zeros(whole.n_angles((d,)))
    every[at] = angles
    close(sparse.matrix(tuple(angles), (d,)), whole.matrix(tuple(every), (d,)), roundings((d,), every))
    close(sparse.matrix(tuple(angles), (d,)), reference.gate_matrix("RYN", angles, (d,)).real, roundings((d,), angles))


@pytest.mark.parametrize("name", [name for name, gate in GATES.items() if gate.qudit_matrix])
def test_the_form_for_any_dimension_holds_on_qubits_too(name):
    gate = GATES[name]
    angles = (1.1,) * gate.angles
    general = gate.qudit_matrix(register(gate), np.array(angles))
    close(general, gate.matrix(angles), roundings(register(gate), angles))


@pytest.mark.parametrize("size", [1, 2, 4, 6])
def test_signed_permutation_rebuilds_the_matrix(size):
    rng = np.random.default_rng(size)
    m = np.zeros((size, size), dtype=complex)
    m[np.arange(size), rng.permutation(size)] = rng.choice([1, -1, 1j, -1j], size)
    index, phase = signed_permutation(m)
    x = rng.normal(size=size)
    np.testing.assert_array_equal(phase * x[index], m @ x)


def test_signed_permutation_refuses_other_matrices():
    for m in (GATES["H"].matrix(), GATES["RXX"].matrix((0.5,)), np.zeros((2, 2)), np.array([[1, 0], [1, 0]])):
        found = f"got {np.count_nonzero(m)} in {m.size}"
        with pytest.raises(ValueError, match=f"one entry in every row and column, {found}"):
            signed_permutation(m)


def test_the_reference_is_checked_by_hand():
    """A circuit worked out on paper: the reference itself must not be the thing that is wrong."""
    cx = reference.gate_matrix("CX", (), (2, 2))
    flips = {(a, b, c): (a, b ^ a, c) for a, b, c in product((0, 1), repeat=3)}
    full = reference.embed(cx, (2, 2, 2), (0, 1))
    for (a, b, c), (x, y, z) in flips.items():
        assert full[4 * x + 2 * y + z, 4 * a + 2 * b + c] == 1
    backwards = reference.embed(cx, (2, 3, 2), (2, 0))  # control on the last wire, target on the first
    assert backwards[6 + 2 * 2 + 1, 2 * 2 + 1] == 1 and backwards[6 + 2 * 2, 6 + 2 * 2] == 1
