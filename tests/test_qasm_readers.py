"""OpenQASM of others: what Cirq and pytket read of ours, files of QASMBench and textbooks, measured at their end.

``fixtures/qasmbench`` are files of QASMBench (Li et al., arXiv 2005.13018), whose licence lies beside them.
"""

from pathlib import Path

import numpy as np
import openqasm3
import pytest
import qiskit_qasm3_import as qasm3_import
import torch
from bounds import close, gates
from qiskit import QuantumCircuit, qasm2
from qiskit.quantum_info import Operator

from qcircuit_peft import Circuit, Op, load, matrix
from qcircuit_peft.ansatz import names
from qcircuit_peft.gates import GATES
from qcircuit_peft.interop import from_qiskit
from qcircuit_peft.qasm import to_qasm

FILES = sorted((Path(__file__).parent / "fixtures" / "qasmbench").glob("*.qasm"))
NONE = torch.zeros(0, dtype=torch.float64)


def cirq_reads(text, n):
    reader = pytest.importorskip("cirq.contrib.qasm_import", reason="Cirq's reader is not installed")
    return reader.circuit_from_qasm(text).unitary(
        qubit_order=_cirq_qubits(n), qubits_that_should_be_present=_cirq_qubits(n)
    )


def _cirq_qubits(n):
    import cirq

    return [cirq.NamedQubit(f"q_{k}") for k in range(n)]


def pytket_reads(text, n):
    reader = pytest.importorskip("pytket.qasm", reason="pytket is not installed")
    return reader.circuit_from_qasm_str(text).get_unitary()


READERS = {"cirq": cirq_reads, "pytket": pytket_reads}
every_reader = pytest.mark.parametrize("read", READERS.values(), ids=list(READERS))


def up_to_phase(found, wanted, operations):
    """OpenQASM 2 leaves the global phase to its readers."""
    wanted = wanted.numpy().astype(complex)
    at = np.unravel_index(np.abs(wanted).argmax(), wanted.shape)
    phase = found[at] / wanted[at]
    close(found / phase * abs(phase), wanted, operations, size=1)


@every_reader
@pytest.mark.parametrize("gate", GATES)
def test_cirq_and_pytket_read_every_gate(gate, read):
    n = GATES[gate].wires
    circuit = Circuit((2, 2), [Op("H", (0,)), Op("T", (1,)), Op(gate, (1, 0)[:n]), Op(gate, (0, 1)[:n], adjoint=True)])
    angles = torch.linspace(0.3, 1.4, circuit.n_angles, dtype=torch.float64)
    up_to_phase(read(to_qasm(circuit, angles, version=2), 2), matrix(circuit, angles), 10 * gates(circuit))


@every_reader
@pytest.mark.parametrize("name", names())
def test_cirq_and_pytket_read_every_circuit(name, read):
    circuit = load(name).circuit(qubits=3, layers=1)
    angles = torch.linspace(0.3, 5.4, circuit.n_angles, dtype=torch.float64)
    up_to_phase(read(to_qasm(circuit, angles, version=2), 3), matrix(circuit, angles), 10 * gates(circuit))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_of_qasmbench_has_qiskits_matrix(path):
    text = path.read_text()
    line = next(number for number, row in enumerate(text.splitlines(), 1) if row.startswith("measure"))
    with pytest.raises(ValueError, match=rf"^line {line} has measurement: a circuit that is read is gates only$"):
        Circuit.from_qasm(text)
    found = Circuit.from_qasm(text, drop_measurements=True)
    theirs = qasm2.loads(text, custom_instructions=qasm2.LEGACY_CUSTOM_INSTRUCTIONS).remove_final_measurements(False)
    close(matrix(found, NONE), Operator(theirs.reverse_bits()).data, 10 * gates(found), size=1)
    assert from_qiskit(theirs).dims == found.dims


HEAD = 'OPENQASM 2.0;\ninclude "qelib1.inc";\n'
W = np.exp(2j * np.pi / 8)
TEXTBOOK = {  # of Nielsen and Chuang: what they print, and its matrix
    "Bell, Fig. 1.12": (
        "qreg q[2]; h q[0]; cx q[0],q[1];",
        np.array([[1, 0, 1, 0], [0, 1, 0, 1], [0, 1, 0, -1], [1, 0, -1, 0]]) / np.sqrt(2),
    ),
    "swap, Fig. 1.7": ("qreg q[2]; cx q[0],q[1]; cx q[1],q[0]; cx q[0],q[1];", np.eye(4)[[0, 2, 1, 3]]),
    "Toffoli, Fig. 4.9": (
        "qreg q[3]; h q[2]; cx q[1],q[2]; tdg q[2]; cx q[0],q[2]; t q[2]; cx q[1],q[2]; tdg q[2]; cx q[0],q[2];"
        "tdg q[1]; t q[2]; cx q[0],q[1]; h q[2]; tdg q[1]; cx q[0],q[1]; t q[0]; s q[1];",
        np.eye(8)[[0, 1, 2, 3, 4, 5, 7, 6]],
    ),
    "Fourier transform, Box 5.1": (
        "qreg q[3]; h q[0]; cu1(pi/2) q[1],q[0]; cu1(pi/4) q[2],q[0]; h q[1]; cu1(pi/2) q[2],q[1]; h q[2];"
        "swap q[0],q[2];",
        np.array([[W ** (j * k) for k in range(8)] for j in range(8)]) / np.sqrt(8),
    ),
    "Grover with two qubits, Box 6.1": (  # the diffusion 2|psi><psi| - 1
        "qreg q[2]; h q; x q; h q[1]; cx q[0],q[1]; h q[1]; x q; h q;",
        np.eye(4) - np.full((4, 4), 0.5),
    ),
}  # fmt: skip


@pytest.mark.parametrize("text, wanted", TEXTBOOK.values(), ids=list(TEXTBOOK))
def test_what_a_textbook_prints_is_what_it_says(text, wanted):
    found = Circuit.from_qasm(HEAD + text)
    close(matrix(found, NONE), wanted, 10 * gates(found), size=1, dtype=torch.float64)


def test_measurements_at_the_end_are_left_out_where_that_is_asked_for():
    text = f"{HEAD}qreg q[2];\ncreg c[2];\nh q[0];\nmeasure q[0] -> c[0];\ncx q[1],q[1];\n".replace(
        "cx q[1],q[1]", "x q[1]"
    )
    assert Circuit.from_qasm(text + "measure q[1] -> c[1];\n", drop_measurements=True).ops == (
        Op("H", (0,)),
        Op("X", (1,)),
    )
    new = 'OPENQASM 3.0;\ninclude "stdgates.inc";\nqubit[2] q;\nbit[2] c;\nh q[0];\nc = measure q;\n'
    assert Circuit.from_qasm(new, drop_measurements=True) == Circuit((2, 2), [Op("H", (0,))])
    for after, said in (
        ("x q[0];\n", "line 8 acts on what line 6 measured: only measurements at the end can be left out"),
        ("x q;\n", "line 8 acts on what line 6 measured: only measurements at the end can be left out"),
        ("reset q[0];\n", "line 8 has reset: a circuit that is read is gates only"),
    ):
        with pytest.raises(ValueError, match=rf"^{said}$"):
            Circuit.from_qasm(text + after, drop_measurements=True)
    with pytest.raises(ValueError, match=r"^line 7 acts on what line 6 measured"):
        Circuit.from_qasm(f"{new}x q[1];\n", drop_measurements=True)
    with pytest.raises(ValueError, match=r"^drop_measurements is true or false, got 1$"):
        Circuit.from_qasm(text, drop_measurements=1)


OPERANDS = {  # of two registers of four: what is written, after which aliases, and which of the eight it means
    "q": ("", range(4)),
    "r": ("", range(4, 8)),
    "q[1]": ("", [1]),
    "q[-1]": ("", [3]),
    "q[0:1]": ("", [0, 1]),
    "q[0:2:3]": ("", [0, 2]),
    "q[3:-1:2]": ("", [2, 3]),
    "q[:-2]": ("", [0, 1, 2]),
    "q[2:]": ("", [2, 3]),
    "q[{0, 3}]": ("", [0, 3]),
    "a": ("let a = q[2:3] ++ r[{0, 1}];", [2, 3, 4, 5]),
    "a[1:2]": ("let a = q[2:3] ++ r[{0, 1}];", [3, 4]),
    "b": ("let a = q[1:3]; let b = a[1:2];", [2, 3]),
}


@pytest.mark.parametrize("written", OPERANDS)
def test_what_was_measured_is_known_by_its_qubits_however_they_are_written(written):
    aliases, meant = OPERANDS[written]
    head = f'OPENQASM 3.0;\ninclude "stdgates.inc";\nqubit[4] q;\nqubit[4] r;\nbit[4] c;\n{aliases}\nh q;\n'
    bits = f"c[0:{len(meant) - 1}] = measure {written};"
    theirs = qasm3_import.convert(openqasm3.parse(f"{head}{bits}"))
    assert {theirs.find_bit(one.qubits[0]).index for one in theirs.data if one.operation.name == "measure"} == {*meant}
    for qubit in range(8):
        text = f"{head}{bits}\nid {written};\nbarrier q;\n{bits}\nx {'qr'[qubit // 4]}[{qubit % 4}];\nbarrier q, r;\n"
        if qubit in meant:
            with pytest.raises(ValueError, match=r"^line 12 acts on what line 11 measured: only measurements at the"):
                Circuit.from_qasm(text, drop_measurements=True)
        else:
            assert Circuit.from_qasm(text, drop_measurements=True).ops[4:] == (Op("X", (qubit,)),)


@pytest.mark.parametrize("after, said", [
    ("x q[2-2];", "^line 6 acts on what line 5 measured"),  # what is not written out may be any of them
    ("gate id a { x a; }\nid q[0];", "^line 7 acts on what line 5 measured"),
    ("let b = q ++ q;\nlet d = b ++ b;\nx d;", "^line 8 acts on what line 5 measured"),
    ("qubit[1000] r;\n" + "measure r;\n" * 101, "has at most 100,000 gates, but line 106 goes beyond$"),
])  # fmt: skip
def test_what_may_act_on_what_was_measured_is_refused_with_its_line(after, said):
    text = f'OPENQASM 3.0;\ninclude "stdgates.inc";\nqubit[2] q;\nbit[2] c;\nc[0:0] = measure q[0:0];\n{after}'
    with pytest.raises(ValueError, match=said):
        Circuit.from_qasm(text, drop_measurements=True)


def test_a_text_without_a_version_is_of_the_one_whose_library_it_includes():
    theirs = QuantumCircuit(1)
    theirs.u(0.0, 0.0, 0.3, 0)
    found = Circuit.from_qasm('include "qelib1.inc";\nqreg q[1];\nu1(0.3) q[0];')
    close(matrix(found, NONE), Operator(theirs).data, 10)
