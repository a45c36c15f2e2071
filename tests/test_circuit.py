"""``Op`` and ``Circuit``: what they refuse and in which words, their texts, and the algebra of circuits."""

import json
import os
import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError
from math import prod
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from bounds import close, gates
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import qcircuit_peft
from qcircuit_peft import Affine, Circuit, Noise, Op, apply, columns, density, estimated_columns, probabilities
from qcircuit_peft.drawing import draw as draw_text
from qcircuit_peft.gates import GATES

GATE_LIST = ", ".join(GATES)


def in_another_process(expressions, imports="from qcircuit_peft import *", cwd=None):
    """The values of expressions in a process with another working directory and another hash seed."""
    code = f"{imports}; import json, sys; print(json.dumps([eval(text) for text in json.load(sys.stdin)]))"
    package = Path(qcircuit_peft.__file__).parents[1]
    run = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(list(expressions)),
        env={**os.environ, "PYTHONPATH": str(package), "PYTHONHASHSEED": "1"},
        cwd=cwd,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def vector(circuit, seed=0):
    return np.random.default_rng(seed).uniform(0, 4 * np.pi, circuit.n_angles)


@st.composite
def circuits(draw, gates=tuple(GATES), dimensions=(2, 2, 2, 3, 4), max_dim=24, max_ops=10):
    """Circuits of any allowed gates on mixed wires, with adjoints and shared angles."""
    dims = draw(st.lists(st.sampled_from(dimensions), min_size=1, max_size=4).filter(lambda d: prod(d) <= max_dim))
    ops, free = [], 0
    for _ in range(draw(st.integers(0, max_ops))):
        gate = GATES[draw(st.sampled_from(gates))]
        allowed = [w for w, d in enumerate(dims) if d == 2 or gate.qudit_matrix]
        if len(allowed) < gate.wires:
            continue
        wires = tuple(draw(st.permutations(allowed))[: gate.wires])
        n = gate.n_angles(tuple(dims[w] for w in wires))
        angles = None
        if 0 < n <= free and draw(st.booleans()):
            angles = tuple(draw(st.lists(st.integers(0, free - 1), min_size=n, max_size=n)))
        else:
            free += n
        ops.append(Op(gate.name, wires, angles, draw(st.booleans())))
    return Circuit(dims, ops)


# --- what is refused ----------------------------------------------------------------------------------------

DIMS = "dims of a circuit"
FOR_QUBITS = "is for qubits; any dimension: " + ", ".join(n for n, gate in GATES.items() if gate.qudit_matrix)
REFUSED = {
    "Op('cz', (0, 1))": "unknown gate 'cz'; did you mean one of CZ, CRZ, Z",
    "Op('', (0,))": f"unknown gate ''; allowed are {GATE_LIST}",
    "Op(5, (0,))": f"unknown gate 5; allowed are {GATE_LIST}",
    "Op(['RY'], (0,))": "unknown gate ['RY']",
    "Op('CZ', (0, 0))": "CZ acts on 2 different wire(s), got (0, 0)",
    "Op('CZ', (0,))": "CZ acts on 2 different wire(s), got (0,)",
    "Op('RY', (0, 1))": "RY acts on 1 different wire(s), got (0, 1)",
    "Op('RY', ())": "RY acts on 1 different wire(s), got ()",
    "Op('RY', (-1,))": "wires has whole numbers >= 0, got -1",
    "Op('RY', (True,))": "wires has whole numbers >= 0, got True",
    "Op('RY', True)": "wires has whole numbers >= 0, got True",
    "Op('RY', (0.0,))": "wires has whole numbers >= 0, got 0.0",
    "Op('RY', '0')": "wires has whole numbers >= 0, got '0'",
    "Op('RY', 1.5)": "wires is a list of whole numbers >= 0, got 1.5",
    "Op('RY', None)": "wires is a list of whole numbers >= 0, got None",
    "Op('RY', (0,), (False,))": "angles has whole numbers >= 0, got False",
    "Op('RY', (0,), (-1,))": "angles has whole numbers >= 0, got -1",
    "Op('RY', (0,), 0.5)": "angles is a list of whole numbers >= 0, got 0.5",
    "Circuit(())": f"{DIMS} is a list of whole numbers >= 2, got ()",
    "Circuit((2, 1))": f"{DIMS} has whole numbers >= 2, got 1",
    "Circuit((2, True))": f"{DIMS} has whole numbers >= 2, got True",
    "Circuit((2, 2.0))": f"{DIMS} has whole numbers >= 2, got 2.0",
    "Circuit(3)": f"{DIMS} is a list of whole numbers >= 2, got 3",
    "Circuit((2,), [Op('RY', (1,))])": "RY 1 acts on a wire that is not there; the wires are 0 to 0",
    "Circuit((2, 2), [Op('CZ', (0, 2))])": "CZ 0 2 acts on a wire that is not there; the wires are 0 to 1",
    "Circuit((3,), [Op('H', (0,))])": f"H 0 acts on wires of dimension (3,), but H {FOR_QUBITS}",
    "Circuit((2, 3), [Op('CX', (0, 1))])": (f"CX 0 1 acts on wires of dimension (2, 3), but CX {FOR_QUBITS}"),
    "Circuit((2,), [Op('RY', (0,), (0, 1))])": "RY[0 1] 0 takes 1 angle(s) on wires of dimension (2,), got 2",
    "Circuit((3,), [Op('RY', (0,), (0,))])": "RY[0] 0 takes 3 angle(s) on wires of dimension (3,), got 1",
    "Circuit((2,), [Op('H', (0,), (0,))])": "H[0] 0 takes 0 angle(s) on wires of dimension (2,), got 1",
    "Circuit((2,), [Op('RY', (0,), ())])": "RY 0 takes 1 angle(s) on wires of dimension (2,), got 0",
    "Circuit((2,), [Op('RY', (0,), (1,))])": (
        "every angle up to the largest is used by some op, but angle 0 of 2 is not"
    ),
    "Circuit((2,), ['RY'])": "'RY'",
    "Affine(((-1, 2.0),))": "positions of angles has whole numbers >= 0, got -1",
    "Affine(((0, 2.0), (0, 1.0)))": "an angle takes every position once, got (0, 0)",
    "Affine((0,))": "the terms of an angle are pairs of a position and a scale, got (0,)",
    "Affine(2.0)": "the terms of an angle are pairs of a position and a scale, got 2.0",
    "Affine(((0, float('nan')),))": "the numbers of an angle are finite, got nan",
    "Affine(shift=float('inf'))": "the numbers of an angle are finite, got inf",
    "Affine(shift='1')": "the numbers of an angle are finite, got '1'",
    "Circuit((2,), [Op('RY', (0,))], [Affine(), Affine()])": "affine has an Affine for each of the 1 angles of the ops",
    "Circuit((2,), [Op('RY', (0,))], [0.5])": "affine has an Affine for each of the 1 angles of the ops, got [0.5]",
    "Circuit((2,), [Op('RY', (0,))], [Affine(((1, 1.0),))])": "used by some Affine, but angle 0 of 2 is not",
    "Circuit((2,)) + Circuit((3,))": "on the same wires, got dims (2,) and (3,)",
}


@pytest.mark.parametrize("expression", REFUSED)
def test_bad_input_is_a_value_error_that_says_what_is_wrong(expression):
    with pytest.raises(ValueError) as error:
        eval(expression)
    assert REFUSED[expression] in str(error.value)
    assert "\n" not in str(error.value)


def test_adding_something_else_is_a_type_error():
    with pytest.raises(TypeError):
        Circuit((2,)) + 3


def test_lists_and_single_wires_are_welcome():
    assert Op("CZ", [1, 0]) == Op("CZ", (1, 0)) and Op("RY", 2) == Op("RY", (2,))
    assert Op("RY", 0, 3) == Op("RY", (0,), (3,))
    assert Circuit([2, 3], [Op("CZ", [0, 1])]) == Circuit((2, 3), (Op("CZ", (0, 1)),))
    assert Circuit(iter((2, 2)), (Op("RY", (w,)) for w in (0, 1))).n_angles == 2


# --- texts --------------------------------------------------------------------------------------------------

MIXED = Circuit(
    (3, 2, 2),
    [
        Op("RY", (0,)),
        Op("CZ", (0, 2)),
        Op("H", (1,)),
        Op("S", (2,), adjoint=True),
        Op("CRX", (2, 1), adjoint=True),
        Op("RZZ", (1, 2), (3,)),
        Op("P", (1,), (1,)),
        Op("RY", (2,)),
    ],
)


def test_str_is_one_line_per_op():
    assert str(MIXED) == ("wires 3 2 2\nRY[0 1 2] 0\nCZ 0 2\nH 1\nS† 2\nCRX†[3] 2 1\nRZZ[3] 1 2\nP[1] 1\nRY[4] 2")
    assert str(Circuit((5,))) == "wires 5"


def test_repr_is_the_python_that_makes_it():
    assert repr(MIXED) == (
        "Circuit((3, 2, 2), ("
        "Op('RY', (0,), (0, 1, 2)), Op('CZ', (0, 2)), Op('H', (1,)), Op('S', (2,), adjoint=True), "
        "Op('CRX', (2, 1), (3,), adjoint=True), Op('RZZ', (1, 2), (3,)), Op('P', (1,), (1,)), "
        "Op('RY', (2,), (4,))))"
    )
    assert repr(Op("RY", (0,))) == "Op('RY', (0,))"


@given(circuits())
def test_repr_evaluates_back(circuit):
    assert eval(repr(circuit)) == circuit
    for op in circuit.ops:
        assert eval(repr(op)) == op


# --- equality, hash, immutability ---------------------------------------------------------------------------


@given(circuits(), circuits())
def test_equal_circuits_have_equal_hashes(a, b):
    again = Circuit(list(a.dims), [Op(op.gate, list(op.wires), op.angles, op.adjoint) for op in a.ops])
    assert again == a and hash(again) == hash(a) and len({a, again}) == 1
    assert (a == b) == (repr(a) == repr(b)) and a != a.dims


def test_every_field_counts_for_equality():
    base = Circuit((2, 2), [Op("CRY", (0, 1)), Op("RY", (0,))])
    for dims, first, second in [
        ((2, 2, 2), Op("CRY", (0, 1)), Op("RY", (0,))),
        ((2, 2), Op("CRX", (0, 1)), Op("RY", (0,))),
        ((2, 2), Op("CRY", (1, 0)), Op("RY", (0,))),
        ((2, 2), Op("CRY", (0, 1), (1,)), Op("RY", (0,), (0,))),
        ((2, 2), Op("CRY", (0, 1), adjoint=True), Op("RY", (0,))),
        ((2, 2), Op("RY", (0,)), Op("CRY", (0, 1))),
    ]:
        assert Circuit(dims, [first, second]) != base


def test_circuits_are_frozen():
    circuit = Circuit((2,), [Op("X", (0,))])
    with pytest.raises(FrozenInstanceError):
        circuit.dims = (3,)
    with pytest.raises(FrozenInstanceError):
        circuit.ops[0].gate = "Y"


def test_a_pickled_circuit_is_equal_in_another_process():
    """Processes have different hash seeds, so a hash must not travel with the circuit."""
    circuit = Circuit((2,), [Op("X", (0,))])
    hash(circuit), circuit.dim, circuit.depth
    copy = f"pickle.loads({pickle.dumps(circuit)!r})"
    expressions = [f"{copy} == {circuit!r}", f"len({{{copy}, {circuit!r}}})"]
    assert in_another_process(expressions, "from qcircuit_peft import *; import pickle") == [True, 1]


# --- numbers ------------------------------------------------------------------------------------------------


def test_angles_are_numbered_in_time_order_behind_those_in_use():
    circuit = Circuit((2, 3), [Op("RY", (0,)), Op("RY", (1,)), Op("RY", (0,), (1,)), Op("RX", (0,)), Op("H", (0,))])
    assert [op.angles for op in circuit.ops] == [(0,), (1, 2, 3), (1,), (4,), ()]
    assert circuit.n_angles == 5
    later = Circuit((2,), [Op("RY", (0,), (1,)), Op("RY", (0,)), Op("RY", (0,), (0,))])
    assert [op.angles for op in later.ops] == [(1,), (2,), (0,)]


@given(circuits())
def test_angle_positions_fill_a_range(circuit):
    used = {a for op in circuit.ops for a in op.angles}
    assert used == set(range(circuit.n_angles))
    for op in circuit.ops:
        assert len(op.angles) == GATES[op.gate].n_angles(tuple(circuit.dims[w] for w in op.wires))


@pytest.mark.parametrize("dims", [(2,), (2, 2, 2), (3, 2, 2), (5, 2, 2, 2), (7, 3), (2, 3)])
def test_dim_is_the_product_of_the_wire_dimensions(dims):
    assert Circuit(dims).dim == prod(dims)
    assert Circuit(dims).n_angles == Circuit(dims).depth == 0 and Circuit(dims).is_real


@pytest.mark.parametrize(
    ("ops", "depth"),
    [
        ([], 0),
        ([("X", 0)], 1),
        ([("X", 0), ("X", 1), ("X", 2)], 1),
        ([("X", 0), ("X", 0)], 2),
        ([("CZ", 0, 1), ("X", 2), ("CZ", 1, 2)], 2),
        ([("CZ", 0, 1), ("CZ", 1, 2), ("X", 0)], 2),
        ([("X", 2), ("X", 2), ("CZ", 0, 2), ("X", 0), ("X", 1)], 4),
    ],
)
def test_depth(ops, depth):
    assert Circuit((2, 2, 2), [Op(gate, tuple(wires)) for gate, *wires in ops]).depth == depth


@hypothesis_settings(max_examples=40)
@given(circuits())
def test_is_real_means_a_real_matrix(circuit):
    assert circuit.is_real == all(GATES[op.gate].real for op in circuit.ops)
    if circuit.is_real:
        assert np.abs(reference.matrix(circuit, vector(circuit)).imag).max() == 0


# --- composition --------------------------------------------------------------------------------------------


@hypothesis_settings(max_examples=40)
@given(st.data())
def test_a_plus_b_runs_a_then_b(data):
    a = data.draw(circuits())
    b = data.draw(circuits().filter(lambda b: b.dims == a.dims) | st.just(a) | st.just(a.inverse()))
    both = a + b
    assert both.n_angles == a.n_angles + b.n_angles and len(both.ops) == len(a.ops) + len(b.ops)
    angles = vector(both)
    expected = reference.matrix(b, angles[a.n_angles :]) @ reference.matrix(a, angles[: a.n_angles])
    close(reference.matrix(both, angles), expected, both.dim * (1 + len(both.ops)), size=1)


@given(circuits())
def test_the_empty_circuit_adds_nothing(circuit):
    empty = Circuit(circuit.dims)
    assert empty + circuit == circuit == circuit + empty


def test_addition_keeps_shared_angles_shared():
    a = Circuit((2,), [Op("RY", (0,)), Op("RX", (0,), (0,))])
    assert [op.angles for op in (a + a).ops] == [(0,), (0,), (1,), (1,)]


@hypothesis_settings(max_examples=40)
@given(circuits())
def test_the_inverse_undoes_the_circuit(circuit):
    inverse, angles = circuit.inverse(), vector(circuit)
    assert inverse.inverse() == circuit and inverse.n_angles == circuit.n_angles
    assert inverse.depth == circuit.depth and inverse.is_real == circuit.is_real
    product = reference.matrix(inverse, angles) @ reference.matrix(circuit, angles)
    close(product, np.eye(circuit.dim), 2 * circuit.dim * (1 + len(circuit.ops)))


# --- angles made of others ----------------------------------------------------------------------------------


@st.composite
def affine_circuits(draw):
    """Circuits whose ops take sums of multiples of fewer angles, and fixed numbers."""
    plain = draw(circuits())
    numbers = st.floats(-3, 3, allow_subnormal=False)
    terms = st.dictionaries(st.integers(0, 2), numbers.filter(bool), max_size=3).map(lambda found: tuple(found.items()))
    made = [draw(st.builds(Affine, terms, numbers)) for _ in range(plain.n_angles)]
    used = sorted({position for one in made for position, _ in one.terms})
    rank = {position: index for index, position in enumerate(used)}
    made = [Affine(tuple((rank[p], scale) for p, scale in one.terms), one.shift) for one in made]
    return Circuit(plain.dims, plain.ops, made)


def made_by_hand(circuit, angles):
    return np.array([one.shift + sum(s * angles[p] for p, s in one.terms) for one in circuit.made])


@hypothesis_settings(max_examples=40)
@given(affine_circuits())
def test_a_circuit_of_made_angles_is_the_plain_one_at_these(circuit):
    angles = vector(circuit)
    assert circuit.plain.affine == () and circuit.plain.ops == circuit.ops
    inner = made_by_hand(circuit, angles)
    expected = reference.matrix(circuit.plain, inner)
    reach = gates(circuit.plain) + np.abs(inner).sum()
    close(columns(circuit, torch.from_numpy(angles), circuit.dim), expected, reach, size=1)
    eye, given = torch.eye(circuit.dim).double(), torch.from_numpy(angles).expand(2, -1)
    close(apply(circuit, given, eye)[1], expected, reach, size=1)
    close(probabilities(circuit, given)[1], np.abs(expected[:, 0]) ** 2, 2 * reach, size=1)
    assert eval(repr(circuit)) == circuit == pickle.loads(pickle.dumps(circuit))
    assert hash(circuit) == hash(Circuit(circuit.dims, circuit.ops, circuit.affine))


@hypothesis_settings(max_examples=40)
@given(affine_circuits())
def test_made_angles_add_and_invert(circuit):
    both, angles = circuit + circuit, vector(circuit)
    assert both.n_angles == 2 * circuit.n_angles
    once = reference.matrix(circuit, angles)
    reach = both.dim * (1 + len(both.ops) + np.abs(made_by_hand(both, np.tile(angles, 2))).sum())
    close(reference.matrix(both, np.tile(angles, 2)), once @ once, reach, size=1)
    close(reference.matrix(circuit.inverse(), angles) @ once, np.eye(circuit.dim), reach, size=1)
    assert circuit.inverse().inverse() == circuit


SHARED = Circuit(
    (2, 2),
    [Op("RY", (0,)), Op("CZ", (0, 1)), Op("RY", (1,)), Op("RY", (0,)), Op("CZ", (0, 1)), Op("RY", (0,), (1,))],
    [Affine(((0, 2.0), (1, 1.0)), 0.3), Affine(((0, -0.5),)), Affine(shift=0.7)],
)


def test_gradients_reach_the_angles_that_others_are_made_of():
    angles = torch.tensor([0.4, 1.1], dtype=torch.float64)
    step = 1e-6
    for quantity in (
        lambda a: columns(SHARED, a, 2),
        lambda a: probabilities(SHARED, a, noise=Noise(depolarizing=0.1)),
    ):
        found = torch.autograd.functional.jacobian(quantity, angles)
        for position in range(2):
            moved = step * torch.eye(2, dtype=torch.float64)[position]
            slope = (quantity(angles + moved) - quantity(angles - moved)) / (2 * step)
            close(found[..., position], slope, gates(SHARED), size=1 / step)


def test_shots_and_noise_know_made_angles(monkeypatch):
    monkeypatch.setattr("qcircuit_peft.backends.draw", lambda p, shots, generator: p.detach())  # of endless shots
    angles = torch.tensor([0.4, 1.1], dtype=torch.float64, requires_grad=True)
    weights = torch.arange(4).double()
    (wanted,) = torch.autograd.grad(probabilities(SHARED, angles) @ weights, angles)
    (found,) = torch.autograd.grad(probabilities(SHARED, angles, shots=1) @ weights, angles)
    close(found, wanted, gates(SHARED), size=40)
    inner = torch.from_numpy(made_by_hand(SHARED, angles.tolist()))
    noise = Noise(amplitude_damping=0.1)
    assert torch.equal(density(SHARED, angles, noise), density(SHARED.plain, inner, noise))
    one, other = (
        estimated_columns(*of, 2, shots=None, noise=noise)[0] for of in ((SHARED, angles), (SHARED.plain, inner))
    )
    assert torch.equal(one, other)


def test_angles_that_are_the_circuits_own_are_not_kept_as_made():
    own = [Affine(((0, 1.0),)), Affine(((1, 1.0),))]
    ops = [Op("RY", (0,)), Op("RX", (0,))]
    assert Circuit((2,), ops, own) == Circuit((2,), ops) and Circuit((2,), ops, own).affine == ()
    assert Circuit((2,), ops, own).made == tuple(own)


def test_made_angles_are_shown():
    assert str(SHARED).splitlines()[-3:] == ["[0] = 2*t0 + t1 + 0.3", "[1] = -0.5*t0", "[2] = 0.7"]
    drawn = draw_text(SHARED, width=200)
    assert "RY(2θ₀ + θ₁ + 0.3)" in drawn and "RY(-0.5θ₀)" in drawn and "RY(0.7)" in drawn
    assert "RY(1.80)" in draw_text(SHARED, [0.5, 0.5])
