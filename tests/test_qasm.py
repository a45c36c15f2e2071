"""OpenQASM against a reader that is not ours: Qiskit's matrix, in our order of the wires, is our matrix."""

import re
from dataclasses import replace
from itertools import permutations

import numpy as np
import pennylane as qml
import pytest
import torch
from qiskit import qasm2, qasm3
from qiskit.quantum_info import Operator

from qcircuit_peft import Circuit, Op, load, matrix
from qcircuit_peft.ansatz import names
from qcircuit_peft.gates import GATES, Names
from qcircuit_peft.qasm import to_qasm

READERS = {2: qasm2.loads, 3: qasm3.loads}
every_version = pytest.mark.parametrize("version", READERS)
MANY = Circuit((2, 2), [Op("RX", (a % 2,)) for a in range(101)])


def uniform(circuit):
    return torch.rand(circuit.n_angles, dtype=torch.float64) * 2 * torch.pi


def unitary(read):
    """Qiskit's matrix with qubit 0 as the most significant digit, as ours."""
    return Operator(read.reverse_bits()).data


def check(circuit, version, angles=None):
    angles = uniform(circuit) if angles is None else angles
    read = READERS[version](to_qasm(circuit, angles, version))
    assert read.num_qubits == len(circuit.dims) and len(read.data) == len(circuit.ops)
    wanted = matrix(circuit, angles).numpy()
    np.testing.assert_allclose(unitary(read), wanted, rtol=0, atol=1e-12)
    if version == 3:
        np.testing.assert_allclose(pennylane_reads(circuit, angles), wanted, rtol=0, atol=1e-12)


def pennylane_reads(circuit, angles, **inputs):
    """PennyLane's matrix of the text for readers that refuse an include, with our wire w as its wire w."""
    wires = range(len(circuit.dims))
    read = qml.from_qasm3(to_qasm(circuit, angles, include=False), {f"q{w}": w for w in wires})
    return qml.matrix(qml.tape.make_qscript(read)(**inputs), wire_order=wires)


@every_version
@pytest.mark.parametrize("adjoint", [False, True], ids=["", "adjoint"])
@pytest.mark.parametrize("gate", GATES)
def test_every_gate_keeps_its_matrix(gate, adjoint, version):
    for wires in permutations(range(3), GATES[gate].wires):
        circuit = Circuit((2, 2, 2), [Op("H", (w,)) for w in range(3)] + [Op(gate, wires, adjoint=adjoint)])
        check(circuit, version)
        check(circuit, version, -uniform(circuit))


@every_version
@pytest.mark.parametrize("name", names())
def test_every_circuit_keeps_its_matrix(name, version):
    for qubits in range(1, 6):
        for layers in range(3):
            circuit = load(name).circuit(qubits=qubits, layers=layers)
            check(circuit, version)
    check(circuit.inverse(), version)


@pytest.mark.parametrize("name", names())
def test_without_angles_every_angle_is_a_parameter(name):
    circuit = load(name).circuit(qubits=4, layers=1)
    circuit = circuit + circuit.inverse()
    angles = uniform(circuit)
    read = qasm3.loads(to_qasm(circuit))
    inputs = dict(zip((p.name for p in read.parameters), angles.tolist(), strict=True))
    wanted = matrix(circuit, angles).numpy()
    for values in (angles.tolist(), inputs):  # by position and by name
        np.testing.assert_allclose(unitary(read.assign_parameters(values)), wanted, rtol=0, atol=1e-12)
    np.testing.assert_allclose(pennylane_reads(circuit, None, **inputs), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [1, 9, 10, 11, 99, 100, 101])
def test_the_order_of_the_names_is_that_of_the_angles(n):
    circuit = Circuit((2, 2), MANY.ops[:n])
    text = to_qasm(circuit)
    names = re.findall(r"input float\[64\] (\w+);", text)
    assert names == sorted(names) == re.findall(r"rx\((\w+)\)", text) and len(set(names)) == n
    assert [p.name for p in qasm3.loads(text).parameters] == names


def test_eleven_angles_bind_in_their_order():
    circuit = Circuit((2, 2), MANY.ops[:13])
    values = torch.arange(13, dtype=torch.float64)
    read = qasm3.loads(to_qasm(circuit)).assign_parameters(values.tolist())
    assert [float(step.operation.params[0]) for step in read.data] == values.tolist()


@every_version
def test_angles_survive_to_the_last_bit(version):
    values = [0.1, -0.0, 1.0, 1e-300, -3e22, np.pi, 1 / 3, 5e-324, 2**53 + 1.0]
    circuit = Circuit((2,), [Op("RX", (0,)) for _ in values])
    read = READERS[version](to_qasm(circuit, values, version))
    assert [float(step.operation.params[0]) for step in read.data] == values


def test_one_text_of_each_version_is_as_written():
    rzz, undo = Op("RZZ", (0, 1)), Op("RZZ", (1, 0), (0,), adjoint=True)
    circuit = Circuit((2, 2), [rzz, Op("SWAP", (1, 0)), Op("S", (0,), adjoint=True), undo, Op("P", (0,))])
    assert to_qasm(circuit, torch.tensor([-0.25, 2.0], requires_grad=True), version=2) == (
        'OPENQASM 2.0;\ninclude "qelib1.inc";\n'
        "gate rzz(t) a, b { cx a, b; rz(1.0*t) b; cx a, b; }\n"
        "gate swap a, b { cx a, b; cx b, a; cx a, b; }\n"
        "qreg q[2];\n"
        "rzz(-0.25) q[0], q[1];\nswap q[1], q[0];\nsdg q[0];\nrzz(0.25) q[1], q[0];\nu1(2.0) q[0];\n"
    )
    assert to_qasm(circuit) == (
        'OPENQASM 3.0;\ninclude "stdgates.inc";\n'
        "gate rzz(t) a, b { cx a, b; rz(1.0*t) b; cx a, b; }\n"
        "input float[64] theta0;\ninput float[64] theta1;\n"
        "qubit[2] q;\n"
        "rzz(theta0) q[0], q[1];\nswap q[1], q[0];\nsdg q[0];\nrzz(-theta0) q[1], q[0];\np(theta1) q[0];\n"
    )


@pytest.mark.parametrize(
    ("circuit", "angles", "version", "message"),
    [
        (Circuit((2, 3), [Op("CZ", (0, 1))]), [], 3,
         "OpenQASM has wires of dimension 2 only, but wire 1 has dimension 3; interop.lower puts it on qubits"),
        (Circuit((2,), [Op("RX", (0,))]), [0.1, 0.2], 3,
         "angles have shape (1,) for this circuit, got (2,)"),
        (Circuit((2,), [Op("RX", (0,))]), torch.zeros(1, 1), 2,
         "angles have shape (1,) for this circuit, got (1, 1)"),
        (Circuit((2, 2), [Op("RX", (0,)), Op("RX", (1,))]), [0.1, float("nan")], 3,
         "angles are finite numbers in radians, but angle 1 is nan"),
        (Circuit((2,), [Op("RX", (0,))]), torch.tensor([-torch.inf]), 2,
         "angles are finite numbers in radians, but angle 0 is -inf"),
        (Circuit((2,), [Op("RX", (0,))]), None, 2,
         "OpenQASM 2 has no inputs: give the 1 angles or use version 3"),
        (Circuit((2,)), None, 1, "OpenQASM is written in version 2 or 3, got 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_written_is_refused(circuit, angles, version, message):
    with pytest.raises(ValueError) as error:
        to_qasm(circuit, angles, version)
    assert str(error.value) == message


def test_a_text_without_an_include_is_as_written():
    circuit = Circuit((2, 2), [Op("RZZ", (1, 0)), Op("S", (0,), adjoint=True)])
    assert to_qasm(circuit, include=False) == (
        "OPENQASM 3.0;\n"
        "gate rzz(t) a, b { cx a, b; rz(1.0*t) b; cx a, b; }\n"
        "input float[64] theta0;\nqubit q0;\nqubit q1;\n"
        "rzz(theta0) q1, q0;\nsdg q0;\n"
    )
    with pytest.raises(ValueError) as error:
        to_qasm(circuit, [0.1], version=2, include=False)
    assert str(error.value) == "OpenQASM 2 has no gates without qelib1.inc: use version 3 for a text without an include"


@every_version
def test_a_gate_that_is_neither_standard_nor_made_of_parts_is_refused(monkeypatch, version):
    monkeypatch.setitem(GATES, "H", replace(GATES["H"], names=Names()))
    with pytest.raises(ValueError) as error:
        to_qasm(Circuit((2,), [Op("H", (0,))]), version=version)
    assert str(error.value) == f"OpenQASM {version} has no gate H, which is not made of parts either"
