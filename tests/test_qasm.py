"""OpenQASM against a reader that is not ours: Qiskit's matrix, in our order of the wires, is our matrix."""

from itertools import permutations

import numpy as np
import pytest
import torch
from qiskit import qasm2, qasm3
from qiskit.quantum_info import Operator

from qcircuit_peft import Circuit, Op, load, matrix
from qcircuit_peft.ansatz import names
from qcircuit_peft.gates import GATES
from qcircuit_peft.qasm import to_qasm

READERS = {2: qasm2.loads, 3: qasm3.loads}
every_version = pytest.mark.parametrize("version", READERS)


def uniform(circuit):
    return torch.rand(circuit.n_angles, dtype=torch.float64) * 2 * torch.pi


def unitary(read):
    """Qiskit's matrix with qubit 0 as the most significant digit, as ours."""
    return Operator(read.reverse_bits()).data


def check(circuit, version, angles=None):
    angles = uniform(circuit) if angles is None else angles
    read = READERS[version](to_qasm(circuit, angles, version))
    assert read.num_qubits == len(circuit.dims) and len(read.data) == len(circuit.ops)
    np.testing.assert_allclose(unitary(read), matrix(circuit, angles).numpy(), rtol=0, atol=1e-12)


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
    assert {p.name for p in read.parameters} == {f"theta{a}" for a in range(circuit.n_angles)}
    bound = read.assign_parameters({f"theta{a}": float(t) for a, t in enumerate(angles)})
    np.testing.assert_allclose(unitary(bound), matrix(circuit, angles).numpy(), rtol=0, atol=1e-12)


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
         "OpenQASM has wires of dimension 2 only, but wire 1 has dimension 3"),
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
