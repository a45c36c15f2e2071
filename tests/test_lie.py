"""Lie algebras and independent angles of circuits: PennyLane's closure, known values, ranks of finite differences."""

import re

import numpy as np
import pytest
import reference
import torch
from peft import get_peft_model
from torch import nn
from typer.testing import CliRunner

from qcircuit_peft import Affine, Circuit, Op, QCircuitConfig, load, matrix
from qcircuit_peft.analysis import independent_angles, lie_dimension
from qcircuit_peft.ansatz import names
from qcircuit_peft.cli import app
from qcircuit_peft.gates import GATES
from qcircuit_peft.interop import to_pennylane
from qcircuit_peft.lie import _close, _count_strings, _pauli_generators, surplus


def by_pennylane(circuit: Circuit) -> int:
    """The closure of the rotations' generators, each conjugated by the matrices of the fixed gates after it."""
    qml = pytest.importorskip("pennylane")
    script = to_pennylane(circuit, [0.3] * circuit.n_angles)
    wires = list(range(len(circuit.dims)))
    later, found = np.eye(circuit.dim, dtype=complex), []
    for op in reversed(list(script)):
        if op.parameters:
            generator = qml.generator(op, format="observable")
            dense = later @ qml.matrix(generator, wire_order=wires) @ later.conj().T
            found.append(qml.pauli.pauli_sentence(qml.pauli_decompose(dense, wire_order=wires)))
        else:
            later = later @ qml.matrix(op, wire_order=wires)
    unique = {str(sorted((str(word), round(c.real, 6)) for word, c in one.items())): one for one in found}
    return len(qml.lie_closure(list(unique.values()), max_iterations=100))


@pytest.mark.parametrize("name", names())
def test_pennylane_closes_to_the_same_dimension(name):
    for qubits, layers in [(2, 1), (2, 3), (3, 1)]:
        circuit = load(name).circuit(qubits=qubits, layers=layers)
        assert lie_dimension(circuit) == by_pennylane(circuit), (qubits, layers)


def test_pennylane_on_four_qubits():
    for name in ("line_ry_cz", "ring_ry_cz", "sim01", "sim10"):
        circuit = load(name).circuit(qubits=4, layers=2)
        assert lie_dimension(circuit) == by_pennylane(circuit), name


def test_known_values():
    for name in ("simplified_two_design", "tree", "mps_ladder", "butterfly", "hardware_efficient"):
        found = [lie_dimension(load(name).circuit(qubits=n, layers=12)) for n in (3, 4, 5)]
        assert found == [28, 120, 496], name  # so(2^n)
    line = [
        lie_dimension(load("line_ry_cz").circuit(qubits=n, layers=layers)) for n in range(2, 8) for layers in (6, 9)
    ]
    assert line == [n * (n + 1) for n in range(2, 8) for _ in range(2)]
    assert [lie_dimension(load("ring_ry_cz").circuit(qubits=n, layers=12)) for n in (3, 4, 5)] == [15, 24, 45]


@pytest.mark.parametrize("name", names())
def test_strings_and_matrices_count_the_same(name):
    circuit = load(name).circuit(qubits=3, layers=2)
    generators = _pauli_generators(circuit)
    if generators is not None:
        assert _count_strings(generators, 3, None) == _close(circuit, None)
    assert independent_angles(circuit) <= lie_dimension(circuit)


def test_fixed_gates_of_every_kind_are_followed():
    for gates in ("S", "H", "CX", "SWAP", "Y", "T"):
        wires = tuple(range(GATES[gates].wires))
        for adjoint in (False, True):
            ops = [Op("RX", (0,)), Op(gates, wires, adjoint=adjoint), Op("RZ", (1,)), Op("CZ", (0, 1)), Op("RX", (0,))]
            circuit = Circuit((2, 2), ops)
            assert (_pauli_generators(circuit) is None) == (gates == "T")
            assert lie_dimension(circuit) == _close(circuit, None) == by_pennylane(circuit), (gates, adjoint)


def test_a_phase_has_a_trace():
    one, both = Circuit((2,), [Op("P", (0,))]), Circuit((2,), [Op("P", (0,)), Op("X", (0,)), Op("P", (0,))])
    universal = Circuit((2,), [Op("P", (0,)), Op("RX", (0,))])
    assert [lie_dimension(c) for c in (one, both, universal)] == [1, 2, 4]  # u(2) in the end
    assert [_close(c, None) for c in (one, both, universal)] == [1, 2, 4]


def test_a_rotation_by_a_fixed_angle_is_a_fixed_gate():
    def turned(t: float) -> Circuit:
        return Circuit(
            (2,),
            [Op("RX", (0,)), Op("RZ", (0,)), Op("RX", (0,))],
            [Affine(((0, 1),)), Affine((), t), Affine(((1, 1),))],
        )

    assert lie_dimension(turned(np.pi)) == 1  # -X again
    assert lie_dimension(turned(np.pi / 2)) == 3 and lie_dimension(turned(0.3)) == 3


def test_wires_of_other_dimensions():
    for gate in ("RY", "RYN"):  # neighbours alone generate the others
        assert lie_dimension(Circuit((5,), [Op(gate, (0,))])) == 10  # so(5)
    assert lie_dimension(load("line_ry_cz").circuit(dims=(3, 2, 2), layers=6)) == 66  # all of so(12)


def test_a_limit_ends_the_count():
    circuit = load("simplified_two_design").circuit(qubits=10, layers=8)
    assert lie_dimension(circuit, limit=200) == 200
    assert lie_dimension(load("sim05").circuit(qubits=3), limit=5) == 5
    assert surplus(circuit) is None and surplus(load("line_ry_cz").circuit(qubits=8, layers=8)) is None
    assert surplus(load("line_ry_cz").circuit(qubits=8, layers=9)) == 72


def numeric_rank(circuit: Circuit, k: int) -> int:
    """The rank of central differences of the reference's matrix."""
    angles = np.random.default_rng(3).uniform(0, 6, circuit.n_angles)
    columns, h = [], 1e-5
    for j in range(len(angles)):
        step = np.eye(len(angles))[j] * h
        high, low = (reference.matrix(circuit, angles + s * step)[:, :k] for s in (1, -1))
        moved = ((np.asarray(high) - np.asarray(low)) / (2 * h)).ravel()
        columns.append(np.concatenate([moved.real, moved.imag]))
    sizes = np.linalg.svd(np.array(columns), compute_uv=False)
    return int((sizes > 1e-6 * sizes[0]).sum())


RANKS = [("line_ry_cz", 8, 8), ("line_ry_cz", 1, 8), ("tree", 2, 12), ("sim05", 4, 4), ("sim10", 3, 8)]


@pytest.mark.parametrize("name, k, dim", RANKS)
def test_independent_angles_are_the_rank_of_finite_differences(name, k, dim):
    circuit = load(name).circuit(dim=dim, layers=3)
    assert independent_angles(circuit, columns=k) == numeric_rank(circuit, k)


def test_independent_angles_known_and_bounded():
    circuit = load("line_ry_cz").circuit(qubits=4, layers=12)
    assert (circuit.n_angles, independent_angles(circuit)) == (52, 20)
    assert independent_angles(load("tree").circuit(qubits=3, layers=12), columns=1) == 7  # the real sphere
    assert independent_angles(load("sim05").circuit(qubits=2, layers=6), columns=1) == 7  # complex, with its phase
    assert independent_angles(Circuit((2,), [Op("H", (0,))])) == 0


def adapt(**settings):
    return get_peft_model(nn.Sequential(nn.Linear(16, 16)), QCircuitConfig(r=2, target_modules=["0"], **settings))


def test_adapting_a_model_warns_of_more_angles_than_directions(tmp_path):
    with pytest.warns(
        UserWarning, match=r"the 52 angles of 'line_ry_cz' on 4 qubits move it in 20 directions only, as"
    ):
        model = adapt(ansatz="line_ry_cz", layers=12)
    adapt(ansatz="line_ry_cz", layers=4)
    adapt(ansatz="simplified_two_design", layers=12)
    model.save_pretrained(str(tmp_path))
    type(model).from_pretrained(nn.Sequential(nn.Linear(16, 16)), str(tmp_path))  # says nothing


def test_the_command_says_how_many_directions_there_are():
    run = CliRunner().invoke
    shown = run(app, ["circuits", "show", "line_ry_cz"]).output
    assert shown.endswith("\n# at L = 12 it moves in 6, 12, 20 directions on 2, 3, 4 qubits\n")
    drawn = run(app, ["circuits", "draw", "line_ry_cz", "--layers", "12"], env={"COLUMNS": "200"}).output
    assert re.search(
        r"move it in 20 directions only, as many as L = 4 has angles; more layers gain nothing", " ".join(drawn.split())
    )
    assert "directions" not in run(app, ["circuits", "draw", "line_ry_cz", "--layers", "4"]).output


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: lie_dimension(load("sim05").circuit(qubits=6)), "a circuit of dimension 64 is too large"),
        (
            lambda: lie_dimension(load("sim02").circuit(qubits=12, layers=12)),
            r"on 12 qubits has more, of up to 16777215",
        ),
        (lambda: lie_dimension(load("tree").circuit(qubits=3), limit=0), "limit is a whole number >= 1, got 0"),
        (
            lambda: independent_angles(load("tree").circuit(qubits=3), columns=9),
            "columns is a whole number 1 to 8, got 9",
        ),
        (
            lambda: independent_angles(Circuit((97,), [Op("RY", (0,))])),
            "at most 4096 angles is looked at, got",
        ),
    ],
)
def test_bad_input_is_one_sentence(call, said, monkeypatch):
    monkeypatch.setattr("qcircuit_peft.lie.MAX_STRINGS", 1000)
    with pytest.raises(ValueError, match=said):
        call()


def test_the_matrix_stays_in_the_group_that_the_algebra_says():
    """All products of a line's circuits with the fixed gates undone move in as many directions as its algebra has."""
    circuit = load("line_ry_cz").circuit(qubits=3, layers=8)
    angles = torch.rand(60, circuit.n_angles, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 1e-3
    still = matrix(circuit, torch.zeros(circuit.n_angles, dtype=torch.float64))
    moved = (matrix(circuit, angles) @ still.mT - torch.eye(8, dtype=torch.float64)).flatten(1)
    sizes = torch.linalg.svdvals(moved - moved.mean(0))
    assert int((sizes > 1e-2 * sizes[0]).sum()) <= 12 < circuit.n_angles
