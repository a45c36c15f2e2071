"""Wires of several levels on qubits, by their matrices; trained circuits by their names, and out."""

import numpy as np
import pennylane as qml
import pytest
import torch
from bounds import close, gates
from peft import get_peft_model
from qiskit import qasm3
from qiskit.quantum_info import Operator
from torch import nn

from qcircuit_peft import Circuit, Op, QCircuitConfig, circuit_of, load, matrix
from qcircuit_peft.interop import lower, lowering, places, to_pennylane, to_qiskit
from qcircuit_peft.qasm import to_qasm

NONE = torch.zeros(0, dtype=torch.float64)


def uniform(circuit, seed=0):
    return 2 * torch.pi * torch.rand(circuit.n_angles, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize("dims", [(3,), (4,), (5, 2), (2, 3), (3, 3), (7, 2), (6, 2), (4, 5), (9,), (2, 2)], ids=str)
def test_the_matrix_is_the_same_on_the_states_that_are_used(dims):
    circuit = load("simplified_two_design").circuit(dims=dims, layers=1)
    if circuit.dim < 10:
        circuit = circuit + circuit.inverse()
    angles = uniform(circuit)
    found = lower(circuit, angles)
    assert found.is_real and set(found.dims) == {2} and not found.n_angles
    whole, at = matrix(found, NONE), places(dims)
    digits = [[i // int(np.prod(dims[w + 1 :])) % d for w, d in enumerate(dims)] for i in range(circuit.dim)]
    bits = ["".join(f"{digit:0{(d - 1).bit_length()}b}" for digit, d in zip(row, dims, strict=True)) for row in digits]
    assert at.tolist() == [int(text, 2) for text in bits]
    # a cosine-sine decomposition takes some N operations an entry, and there are as many levels as bits
    close(whole[at][:, at], matrix(circuit, angles), 8 * gates(found), size=1)
    close(whole.T @ whole, np.eye(len(whole)), 8 * gates(found), size=1)


@pytest.mark.parametrize("d, most", [(3, 8), (4, 8), (5, 36), (7, 36), (8, 36), (11, 144), (43, 2176)])
def test_a_rotation_costs_no_more_than_is_said(d, most):
    circuit = Circuit((d,), [Op("RY", (0,))])
    counts = [sum(op.gate == gate for op in lower(circuit, uniform(circuit)).ops) for gate in ("RY", "CZ")]
    assert 0 < max(counts) <= most == (2 ** (m := (d - 1).bit_length()) + m - 2) * 2 ** (m - 1)
    assert "8 for d = 3, 36 for 7, 2,176 for 43" in lower.__doc__


def test_gates_of_qubits_and_of_the_identity_stay_what_they_are():
    circuit = load("sim06").circuit(qubits=3, layers=1)
    found = lower(circuit, uniform(circuit))
    assert [(op.gate, op.wires) for op in found.ops] == [(op.gate, op.wires) for op in circuit.ops]
    close(matrix(found, NONE), matrix(circuit, uniform(circuit)), gates(circuit), size=1)
    still = Circuit((3,), [Op("RY", (0,))])
    assert lower(still, [0.0] * 3).ops == ()
    half = lower(still, [2 * np.pi, 0.0, 0.0])  # diag(-1, -1, 1): signs alone
    close(matrix(half, NONE), np.diag([-1.0, -1.0, 1.0, 1.0]), 40)


@pytest.mark.parametrize("dims, angles, said", [
    ((3,), [0.1], r"^angles have shape \(3,\) for this circuit, got \(1,\)$"),
    ((3,), [0.1, float("inf"), 0.1], "^angles are finite numbers in radians, but angle 1 is inf$"),
    ((3,) * 513, [], "^a circuit that is lowered has at most 1024 qubits, got 1026$"),
])  # fmt: skip
def test_what_cannot_be_lowered_is_refused(dims, angles, said):
    circuit = Circuit(dims, [Op("RY", (0,))] if angles else [Op("CZ", (0, 1))])
    with pytest.raises(ValueError, match=said):
        lower(circuit, angles)


def test_a_lowered_circuit_has_a_bound_of_gates(monkeypatch):
    monkeypatch.setattr(lowering, "MAX_GATES", 20)
    circuit = Circuit((3, 2), [Op("RY", (0,), (0, 1, 2)) for _ in range(3)])
    with pytest.raises(ValueError, match=r"lowered has at most 20 gates, but wires of dimension 3 need more$"):
        lower(circuit, uniform(circuit))


def test_all_ways_out_name_the_way_for_wires_of_several_levels():
    circuit = load("simplified_two_design").circuit(dim=6)
    for out in (to_qiskit, to_pennylane, to_qasm):
        with pytest.raises(ValueError, match=r"wire 0 has dimension 3; .*interop.lower puts (it|them) on qubits$"):
            out(circuit, uniform(circuit))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    net = nn.ModuleDict({"query": nn.Linear(24, 8), "key": nn.Linear(24, 8)})
    return get_peft_model(net, QCircuitConfig(r=2, target_modules=["query", "key"])).double()


def test_a_trained_circuit_of_three_levels_goes_to_simulators_by_its_name(model):
    circuit, angles = circuit_of(model, "query.v")
    assert circuit.dims == (3, 2, 2, 2) and angles.dtype == torch.float64
    wanted, at = matrix(circuit, angles), places(circuit.dims)
    qubits = lower(circuit, angles)
    theirs = [
        Operator(to_qiskit(qubits).reverse_bits()).data,
        qml.matrix(qml.tape.QuantumScript(to_pennylane(qubits)), wire_order=range(5)),
        Operator(qasm3.loads(to_qasm(qubits)).reverse_bits()).data,
    ]
    for found in theirs:
        close(found[at][:, at], wanted, 8 * gates(qubits), size=1)


def test_a_circuit_is_found_by_the_end_of_its_name_if_there_is_one(model):
    name = "base_model.model.key.u"
    for given in (name, "key.u"):
        circuit, angles = circuit_of(model, given)
        assert circuit.dim == 8 and torch.equal(angles, model.get_submodule("base_model.model.key").qcircuit_u.default)
    known = "base_model.model.query.u, base_model.model.query.v, base_model.model.key.u, base_model.model.key.v"
    for given, said in (
        ("u", "'u' is the name of 2 circuits of this model; they are base_model.model.query.u, base_model.model.key.u"),
        ("ey.u", f"'ey.u' is the name of no circuits of this model; there are {known}"),
        ("", f"'' is the name of no circuits of this model; there are {known}"),
    ):
        with pytest.raises(ValueError) as error:
            circuit_of(model, given)
        assert str(error.value) == said
    with pytest.raises(ValueError, match=r"is the name of no circuits of this model; there are none$"):
        circuit_of(nn.Linear(2, 2), "u")
