"""Circuits in and out of Qiskit, PennyLane and OpenQASM, against their own matrices; and what is not read."""

import sys

import numpy as np
import pennylane as qml
import pytest
import sympy
import torch
from bounds import close, gates
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from peft import PeftModel, get_peft_model
from qiskit.circuit import (
    AnnotatedOperation,
    ControlModifier,
    Gate,
    InverseModifier,
    Parameter,
    ParameterVector,
    QuantumCircuit,
    library,
)
from qiskit.quantum_info import Operator, SparsePauliOp, random_clifford
from qiskit.synthesis import MatrixExponential
from test_circuit import circuits
from torch import nn

from qcircuit_peft import Affine, Circuit, Op, QCircuitConfig, load, matrix
from qcircuit_peft.analysis import capacity, expressibility, frame_potentials
from qcircuit_peft.ansatz import names, without_entanglers
from qcircuit_peft.gates import GATES
from qcircuit_peft.interop import from_pennylane, from_qasm, from_qiskit, to_pennylane, to_qiskit
from qcircuit_peft.qasm import to_qasm

FAMILY = "simplified_two_design"
NONE = torch.zeros(0, dtype=torch.float64)
MADE = Circuit(
    (2, 2),
    [Op("RY", (0,)), Op("CRX", (1, 0)), Op("RZ", (1,), (1,), adjoint=True), Op("P", (0,)), Op("RX", (1,))],
    [Affine(((1, 1.0),)), Affine(((0, 2.0),), 0.3), Affine(((0, -0.5), (1, 1.0))), Affine(shift=0.7)],
)


def uniform(circuit, seed=0):
    return 2 * torch.pi * torch.rand(circuit.n_angles, generator=torch.Generator().manual_seed(seed)).double()


def qiskits(circuit):
    """Qiskit's matrix with qubit 0 as the most significant digit, as ours."""
    return Operator(circuit.reverse_bits()).data


def same(found, wanted, parts=10):
    """Two circuits have one matrix at all angles, though perhaps not the same gates."""
    assert found.n_angles == wanted.n_angles and found.dims == wanted.dims
    angles = uniform(wanted)
    close(matrix(found, angles), matrix(wanted, angles), parts * gates(wanted), size=1)


# --- round trips --------------------------------------------------------------------------------------------

ROUND_TRIPS = {
    "qiskit": lambda circuit: from_qiskit(to_qiskit(circuit)),
    "pennylane": lambda circuit: from_pennylane(to_pennylane(circuit)),
    "traced": lambda circuit: from_pennylane(lambda angles: to_pennylane(circuit, angles), np.zeros(circuit.n_angles)),
    "qasm": lambda circuit: from_qasm(to_qasm(circuit)),
}
every_way = pytest.mark.parametrize("way", ROUND_TRIPS)


def on_every_wire(circuit):
    """PennyLane's operations name no wire that no gate is on."""
    return Circuit(circuit.dims, [Op("H", (w,)) for w in range(len(circuit.dims))]) + circuit


@every_way
@pytest.mark.parametrize("name", names())
def test_every_shipped_circuit_comes_back(name, way):
    circuit = load(name).circuit(qubits=4, layers=1)
    same(ROUND_TRIPS[way](circuit), circuit)


@every_way
@pytest.mark.parametrize("gate", GATES)
def test_every_gate_comes_back_with_its_adjoint(gate, way):
    n = GATES[gate].wires
    circuit = Circuit((2, 2), [Op("H", (0,)), Op("T", (1,)), Op(gate, (1, 0)[:n]), Op(gate, (0, 1)[:n], adjoint=True)])
    same(ROUND_TRIPS[way](circuit), circuit)


@every_way
def test_multiples_sums_numbers_and_shared_angles_come_back(way):
    same(ROUND_TRIPS[way](MADE), MADE)
    same(ROUND_TRIPS[way](MADE + MADE.inverse()), MADE + MADE.inverse())


@every_way
@hypothesis_settings(max_examples=15)
@given(circuit=circuits(dimensions=(2,), max_ops=8))
def test_random_circuits_come_back(circuit, way):
    circuit = on_every_wire(circuit)
    same(ROUND_TRIPS[way](circuit), circuit)


def test_bound_angles_come_back_as_fixed_gates():
    circuit = load("sim06").circuit(qubits=3, layers=1)
    angles = uniform(circuit)
    texts = (to_qasm(circuit, angles, version=version) for version in (2, 3))
    found = [from_qiskit(to_qiskit(circuit, angles)), from_pennylane(to_pennylane(circuit, angles.numpy()))]
    for back in (*found, *map(Circuit.from_qasm, texts)):
        assert back.n_angles == 0
        close(matrix(back, NONE), matrix(circuit, angles), 4 * gates(circuit), size=1)


def test_a_circuit_whose_angles_are_its_own_comes_back_as_it_is():
    circuit = load("simplified_two_design").circuit(qubits=4, layers=2)
    assert all(trip(circuit) == circuit for trip in ROUND_TRIPS.values())
    shared = Circuit((2,), [Op("RY", (0,), (1,)), Op("RX", (0,), (0,)), Op("RY", (0,), (1,))])
    assert all(trip(shared) == shared for trip in ROUND_TRIPS.values())


def test_more_than_ten_angles_keep_their_order():
    circuit = Circuit((2,), [Op("RX", (0,)) for _ in range(13)])
    assert all(trip(circuit) == circuit for trip in ROUND_TRIPS.values())
    values = [0.1 * k for k in range(13)]
    bound = to_qiskit(circuit).assign_parameters(values)
    assert [float(step.operation.params[0]) for step in bound.data] == values
    assert [str(op.parameters[0]) for op in to_pennylane(circuit)] == [f"theta{k:02}" for k in range(13)]


# --- out ----------------------------------------------------------------------------------------------------


def test_what_goes_out_has_our_matrix_there():
    angles = uniform(MADE)
    wanted = matrix(MADE, angles)
    close(qiskits(to_qiskit(MADE, angles)), wanted, gates(MADE), size=1)
    close(qiskits(to_qiskit(MADE).assign_parameters(angles.tolist())), wanted, gates(MADE), size=1)
    tape = qml.tape.QuantumScript(to_pennylane(MADE, angles))
    close(qml.matrix(tape, wire_order=range(2)), wanted, gates(MADE), size=1)


def test_within_a_qnode_the_operations_are_differentiable():
    angles = uniform(MADE).requires_grad_()

    @qml.qnode(qml.device("default.qubit"), diff_method="backprop")
    def theirs(angles):
        to_pennylane(MADE, angles)
        return qml.probs(wires=range(2))

    weights = torch.arange(4).double()
    (found,) = torch.autograd.grad(theirs(angles) @ weights, angles)
    (wanted,) = torch.autograd.grad(matrix(MADE, angles)[:, 0].abs().square() @ weights, angles)
    close(found, wanted, 4 * gates(MADE), size=4)


@pytest.mark.parametrize("out", [to_qiskit, to_pennylane])
def test_what_cannot_go_out_is_refused(out):
    qutrit = load("simplified_two_design").circuit(dim=6)
    with pytest.raises(ValueError, match="simulates qubits only, but wire 0 has dimension 3; 'native' has"):
        out(qutrit)
    with pytest.raises(ValueError, match=r"^angles have shape \(2,\) for this circuit, got \(3,\)$"):
        out(MADE, np.zeros(3))


# --- in -----------------------------------------------------------------------------------------------------


def standard_gates():
    """Gates of Qiskit's library, with what they take."""
    t, p = ParameterVector("t", 4), library
    yield from (p.UGate(*t[:3]), p.U2Gate(*t[:2]), p.U1Gate(t[0]), p.U3Gate(*t[:3]), p.CUGate(*t), p.CPhaseGate(t[0]))
    yield from (p.RZXGate(t[0]), p.RGate(t[0], 0.4), p.XXPlusYYGate(t[0], 0.3), p.XXMinusYYGate(t[0], 0.3))
    yield from (
        p.SXGate(),
        p.SXdgGate(),
        p.CHGate(),
        p.CYGate(),
        p.CCXGate(),
        p.CSwapGate(),
        p.iSwapGate(),
        p.CSXGate(),
    )
    yield from (
        p.ECRGate(),
        p.DCXGate(),
        p.CCZGate(),
        p.C3XGate(),
        p.UGate(0.1, 0.2, 0.3).control(2, annotated=False),
        p.IGate(),
    )
    yield from (p.RYGate(t[0]).control(1, ctrl_state=0, annotated=True), p.SGate().inverse())
    yield p.GlobalPhaseGate(t[0])


@pytest.mark.parametrize("gate", list(standard_gates()), ids=lambda gate: gate.name)
def test_a_gate_of_qiskit_keeps_its_matrix_and_its_phase(gate):
    theirs = QuantumCircuit(max(1, gate.num_qubits), global_phase=0.6)
    theirs.append(gate, range(gate.num_qubits))
    theirs.barrier()
    found = from_qiskit(theirs)
    angles = uniform(found)
    wanted = qiskits(theirs.assign_parameters(dict(zip(theirs.parameters, angles.tolist(), strict=True))))
    close(matrix(found, angles), wanted, 10 * gates(found), size=1)


def evolution(terms, **settings):
    return library.PauliEvolutionGate([SparsePauliOp(term) for term in terms], time=0.4, **settings)


def of_the_transpiler():
    """What has no definition, or one that is empty, or stands below modifiers: the transpiler's alone."""
    inside = QuantumCircuit(1, name="sx", global_phase=0.4)
    inside.h(0)
    yield from (library.PermutationGate([2, 0, 1]), random_clifford(3, seed=1), library.UCGate([np.eye(2)] * 4))
    for base in (inside.to_gate(), library.QFTGate(2), library.PermutationGate([1, 2, 0]), random_clifford(2, seed=2)):
        yield AnnotatedOperation(base, [ControlModifier(1, 0), InverseModifier()])
    yield from (evolution(["XX", "ZZ"]), evolution(["XI", "ZZ"], synthesis=MatrixExponential()))
    yield evolution(["XYZ"]).control(1)


@pytest.mark.filterwarnings("ignore::scipy.sparse.SparseEfficiencyWarning")  # of Qiskit's exponential
@pytest.mark.parametrize("operation", list(of_the_transpiler()), ids=lambda operation: operation.name)
def test_what_only_the_transpiler_takes_apart_keeps_its_matrix(operation):
    theirs = QuantumCircuit(operation.num_qubits)
    theirs.append(operation, range(operation.num_qubits))
    found = from_qiskit(theirs)
    close(matrix(found, NONE), qiskits(theirs), 20 * (1 + len(found.ops)), size=1)


def test_a_gate_is_known_by_what_it_does_and_not_by_its_name():
    inside = QuantumCircuit(1, name="sx", global_phase=0.4)
    inside.h(0)
    other = QuantumCircuit(1, name="ry")
    other.rx(0.3, 0)
    theirs = QuantumCircuit(2)
    for gate in (inside.to_gate(), other.to_gate(), inside.to_gate().inverse()):
        theirs.append(gate, [1])
    close(matrix(from_qiskit(theirs), NONE), qiskits(theirs), 40, size=1)
    assert [op.gate for op in from_qiskit(theirs).ops[:3]] == ["H", "RX", "H"]


def test_a_phase_of_minus_one_keeps_a_circuit_real():
    theirs = QuantumCircuit(2, global_phase=np.pi)
    theirs.ry(Parameter("t"), 1)
    found = from_qiskit(theirs)
    assert found.is_real and len(found.ops) == 5
    close(matrix(found, torch.zeros(1).double()), -np.eye(4), gates(found))


def test_parameters_come_in_the_order_in_which_qiskit_binds_them():
    b, a = Parameter("b"), Parameter("a")
    theirs = QuantumCircuit(1)
    theirs.rx(b, 0)
    theirs.rx(a + 2 * b - 1, 0)
    assert from_qiskit(theirs) == Circuit(
        (2,), [Op("RX", (0,)), Op("RX", (0,))], [Affine(((1, 1.0),)), Affine(((0, 1.0), (1, 2.0)), -1.0)]
    )


def their_template(weights, phases, scale=1.0, n=3):
    """What PennyLane has: templates, controls, adjoints, powers, gates that are not ours."""
    qml.BasicEntanglerLayers(weights, wires=range(n), rotation=qml.RY)
    qml.Rot(*phases, wires=1)
    qml.ctrl(qml.RX, control=2, control_values=0)(2 * phases[0] + 0.25, wires=0)
    qml.adjoint(qml.IsingXY)(weights[0, 0], wires=[0, 2])
    qml.Barrier(wires=range(n))
    qml.Toffoli([0, 1, 2])
    qml.U3(*phases, wires=0)
    qml.GlobalPhase(phases[1])
    qml.adjoint(qml.S)(wires=1)
    qml.QubitUnitary(np.array([[0.6, 0.8], [0.8, -0.6]]), wires=2)


def test_a_quantum_function_keeps_its_matrix():
    given = np.zeros((2, 3)), (0.1, 0.2, 0.3)
    found = from_pennylane(their_template, *given)
    assert found.n_angles == 9
    angles = uniform(found)
    tape = qml.tape.make_qscript(their_template)(angles[:6].reshape(2, 3), angles[6:])
    close(matrix(found, angles), qml.matrix(tape, wire_order=range(3)), 10 * gates(found), size=1)


def test_what_takes_no_tensors_is_read_by_differences():
    """PennyLane itself, or numpy within the function."""

    def theirs(t, u):
        qml.evolve(qml.X(0) @ qml.Y(1), t)
        qml.RX(np.dot([1.0, 2.0], u) + np.pi / 3, 0)
        qml.RY(float(t) / 2, 1)

    found = from_pennylane(theirs, 0.1, np.zeros(2))
    angles = uniform(found)
    tape = qml.tape.make_qscript(theirs)(float(angles[0]), angles[1:].numpy())
    close(matrix(found, angles), qml.matrix(tape, wire_order=range(2)), 20 * gates(found), size=1)
    with pytest.raises(ImportError, match="torch"):  # a trace for every number would take too long
        from_pennylane(lambda u: qml.evolve(qml.X(0) @ qml.Y(1), u[0]), np.zeros(501))


def test_a_qnode_and_a_template_are_read_as_they_are():
    wanted = load("simplified_two_design").circuit(qubits=4, layers=2)
    given = np.zeros(4), np.zeros((2, 3, 2))
    assert from_pennylane(qml.SimplifiedTwoDesign, *given, wires=range(4)) == wanted

    @qml.qnode(qml.device("default.qubit", wires=[3, 2, 1, 0]))
    def theirs(initial, weights):
        qml.SimplifiedTwoDesign(initial, weights, wires=[3, 2, 1, 0])
        return qml.expval(qml.Z(3))

    assert from_pennylane(theirs, *(torch.zeros(x.shape) for x in given)) == wanted
    assert from_pennylane([qml.H(2), qml.CNOT([1, 0])]) == Circuit((2,) * 3, [Op("H", (2,)), Op("CX", (1, 0))])
    assert from_pennylane(qml.CRX(sympy.Symbol("t"), ["b", "a"])) == Circuit((2, 2), [Op("CRX", (0, 1))])


TEXT = """OPENQASM 3.0;
include "stdgates.inc";
// free parameters in the order in which they are declared
input float[64] b; input angle a;
gate mine(t) x, y { cx x, y; rz(t / 2) y; }
qubit[2] q; qubit last;
let r = q[0:1];
h q;
mine(2 * a + b) q[0], last;
inv @ mine(a) q[1], q[0];
ctrl @ ry(-b / 4) q[1], last;
negctrl @ x r[0], last;
U(a, pi / 2, -b) q[0];
gphase(0.3 * a);
barrier q;
ccx q[0], q[1], last;
"""


def test_openqasm_3_is_read_with_its_inputs_in_their_order():
    found = from_qasm(TEXT)
    b, a = 0.4, 1.7
    theirs = QuantumCircuit(3, global_phase=0.3 * a)
    theirs.h([0, 1])
    for control, target, angle in ((0, 2, 2 * a + b),):
        theirs.cx(control, target)
        theirs.rz(angle / 2, target)
    theirs.rz(-a / 2, 0)
    theirs.cx(1, 0)
    theirs.cry(-b / 4, 1, 2)
    theirs.cx(0, 2, ctrl_state=0)
    theirs.u(a, np.pi / 2, -b, 0)
    theirs.ccx(0, 1, 2)
    assert found.n_angles == 2 and found.dims == (2, 2, 2)
    close(matrix(found, torch.tensor([b, a]).double()), qiskits(theirs), 10 * gates(found), size=1, dtype=torch.float32)


def test_openqasm_2_takes_the_file_by_its_word():
    """A gate that the file defines is the file's, also if Qiskit knows another of that name."""
    head = 'OPENQASM 2.0;\ninclude "qelib1.inc";\n'
    text = head + "gate sx a { z a; }\nqreg q[1];\ncreg c[1];\nqreg p[2];\nsx q[0];\nrzz(pi/2) p[0], p[1];\n"
    found = from_qasm(text)
    assert found.dims == (2, 2, 2) and found.ops[0] == Op("Z", (0,))
    close(
        matrix(found, NONE),
        matrix(Circuit((2,) * 3, [Op("Z", (0,)), Op("RZZ", (1, 2))]), torch.tensor([np.pi / 2], dtype=torch.float64)),
        9,
    )


# --- what comes in is used ----------------------------------------------------------------------------------


def test_a_circuit_that_came_in_adapts_a_model_and_is_saved_with_it(tmp_path):
    theirs = QuantumCircuit(4)
    t = ParameterVector("t", 6)
    for qubit in range(4):
        theirs.ry(t[qubit], qubit)
    for qubit in range(3):
        theirs.cx(qubit, qubit + 1)
        theirs.ry(2 * t[4] + 0.3 if qubit else t[5], qubit)
    theirs.ry(0.5, 3)
    circuit = from_qiskit(theirs)
    assert circuit.n_angles == 6 and circuit.is_real

    def base():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 8))

    config = QCircuitConfig(r=4, target_modules=["0"], ansatz=circuit, seed=0)
    model = get_peft_model(base(), config)
    sizes = {name.rpartition(".qcircuit_")[2]: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    assert sizes == {"u.default": 6, "v.default": 6, "lambda.default": 4}
    x = torch.randn(5, 16)
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), 0.1)
    losses = []
    for _ in range(10):
        loss = model(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(base(), tmp_path)
    assert torch.equal(again(x), model(x))
    assert load(again.peft_config["default"].ansatz).circuit() == circuit
    with pytest.raises(ValueError, match=r"is one circuit on wires \(2, 2, 2, 2\), which has no width 8"):
        get_peft_model(base(), QCircuitConfig(r=4, target_modules=["0", "1"], ansatz=circuit))


def test_a_circuit_that_came_in_is_measured_as_a_family_is():
    circuit = load("simplified_two_design").circuit(qubits=3, layers=1)
    seeded = torch.Generator().manual_seed
    (found,), (wanted,) = (
        capacity(source, *width, samples=50, generator=seeded(0)) for source, *width in ((circuit,), (FAMILY, 3, 1))
    )
    assert found == wanted
    for measure in (expressibility, frame_potentials):
        found, wanted = (
            measure(source, *width, samples=50, generator=seeded(0)) for source, *width in ((circuit,), (FAMILY, 3))
        )
        assert found == wanted
    with pytest.raises(ValueError, match="the exact mean needs an angle of its own for every gate, but here some"):
        capacity(MADE, exact=True)
    with pytest.raises(ValueError, match="no_entanglers is for a family of circuits, but 'circuit' is one circuit"):
        without_entanglers(load(circuit))


# --- refused ------------------------------------------------------------------------------------------------

HEAD = 'OPENQASM 3.0;\ninclude "stdgates.inc";\n'
HEAD2 = 'OPENQASM 2.0;\ninclude "qelib1.inc";\n'
DEEP = "".join(f"gate g{k + 1} a {{ g{k} a; }}\n" for k in range(70))
DOUBLED = "".join(f"gate g{k + 1} a {{ {f'g{k} a; ' * 10} }}\n" for k in range(20))

REFUSED: dict[str, tuple[object, str]] = {
    "measurement": (f"{HEAD}qubit q; bit c;\nc = measure q;", "line 4 has measurement: "),
    "measurement 2": ("OPENQASM 2.0;\nqreg q[1]; creg c[1];\nmeasure q -> c;", "line 3 has measurement: "),
    "reset": (f"{HEAD}qubit q;\nreset q;", "line 4 has reset: "),
    "if": ('OPENQASM 2.0;\nqreg q[1]; creg c[1];\nif (c == 1) U(0,0,0) q[0];', "line 3 has classical control: "),
    "for": (f"{HEAD}qubit q;\nfor int i in [0:1000000000] {{ h q; }}", "line 4 has a loop: "),
    "while": (f"{HEAD}qubit q;\nwhile (true) {{ h q; }}", "line 4 has a loop: "),
    "subroutine": (f"{HEAD}def f(qubit q) {{ h q; }}", "line 3 has a subroutine: "),
    "in a gate": (f"{HEAD}gate f q {{ for int i in [0:9] {{ h q; }} }}", "line 3 has a loop: "),
    "constant": (f"{HEAD}const int n = 3;\nqubit[n] q;", "line 3 has a constant: "),
    "size": (f"{HEAD}qubit[2 + 1] q;", "a register is a whole number that is written out, but not on line 3"),
    "qubits": (f"{HEAD}qubit[1000000000] q;", "has 1 to 1024 qubits, got 1000000000"),
    "many registers": (HEAD + "".join(f"qubit[600] q{k};\n" for k in range(9)), "has 1 to 1024 qubits, got 1200"),
    "bits": (f"{HEAD}bit[1000000000] c; qubit q;", "has 1 to 1024 qubits, got 1000000000"),
    "no qubits": (HEAD, "has 1 to 1024 qubits, got 0"),
    "include": ('OPENQASM 2.0;\ninclude "/etc/passwd";', "line 2 includes '/etc/passwd'; only qelib1.inc"),
    "doubled": (f"{HEAD}gate g0 a {{ x a; }}\n{DOUBLED}qubit q;\ng20 q;", "at most 100,000 gates, but line 25 "),
    "aliases": (f"{HEAD}qubit[1000] q;\nlet r = q;\n" + "h r;\n" * 101, "at most 100,000 gates, but line 105 goes"),
    "broadcast": (f"{HEAD}qubit[1000] q;\n" + "h q;\n" * 101, "at most 100,000 gates, but line 104 goes beyond"),
    "deep": (f"{HEAD}gate g0 a {{ x a; }}\n{DEEP}", "gate g64 on line 67 is defined more than 64 deep"),
    "recursion": (f"{HEAD}gate g a {{ g a; }} qubit q; g q;", "Qiskit does not read this OpenQASM: "),
    "pow": (f"{HEAD}qubit q;\npow(1000000000) @ x q;", "line 4 has pow: of the modifiers inv and ctrl are read"),
    "unknown": (f"{HEAD}qubit q;\nfoo q;", "Qiskit does not read this OpenQASM: line 4: gate 'foo' is not defined"),
    "unknown 2": (f"{HEAD2}qreg q[1];\nfoo q;", "Qiskit does not read this OpenQASM: line 4: 'foo' is not defined"),
    "not affine": (f"{HEAD}input float w; qubit q;\nrx(w * w) q;", r"^rx .instruction 0. takes w\*w, which is not"),
    "function": (f"{HEAD}input float w; qubit q;\nrx(sin(w)) q;", "Qiskit does not read this OpenQASM: line 4: "),
    "unused": (f"{HEAD}input float w; qubit q;\nx q;", "w is a parameter of the circuit, but turns none of its"),
    "not QASM": ("qubit q\nx q;", "this is not OpenQASM: line 2 has 'x' out of place"),
    "nested": (f"{HEAD}qubit q;\nrx({'(' * 99999}1) q;", "^line 4 has what is nested more than 50 deep, which is not"),
    "signs": (f"{HEAD2}qreg q[1];\nrx({'-' * 99999}1) q[0];", "^line 4 has signs, 50 or more in a row, which is not"),
    "digits": (f"{HEAD}qubit q;\nrx({'9' * 5000}) q;", "^line 4 has a number of more than 300 digits, which is not"),
    "parts": (f"{HEAD}qubit q;\nrx({'1.0+' * 3000}1) q;", "OpenQASM: line 4: an expression of too many parts$"),
    "definitions": (HEAD2 + "gate g a { }\n" * 5000, "^line 4099 has a definition after 4,096 others, which is not"),
    "physical": (f"{HEAD}x $99999999999;", "^line 3 has a qubit beyond .1023, which is not read$"),
    "ctrl": (f"{HEAD}qubit[2] q;\nctrl(1000000000) @ x q[0], q[1];", "^line 4 has ctrl of more than 1024 qubits$"),
    "index": (f"{HEAD2}qreg q[1];\nx q[99999999999999999999];", "^line 4 has an index of ten digits or more$"),
    "size 2": (f"{HEAD2}qreg q[1000000000];", "has 1 to 1024 qubits, got 1000000000"),
    "broadcast 2": (f"{HEAD2}qreg q[1000];\n" + "h q;\n" * 101, "at most 100,000 gates, but line 104 goes beyond"),
    "doubled 2": (f"{HEAD2}gate g0 a {{ x a; }}\n{DOUBLED}qreg q[1];\ng20 q;", "100,000 gates, but line 25 goes"),
    "deep 2": (f"{HEAD2}gate g0 a {{ x a; }}\n{DEEP}qreg q[1];\ng70 q;", "gate g64 on line 67 is defined more than"),
    "empty gates": (f"{HEAD2}gate e a {{ }}\nqreg q[1000];\n" + "e q;\n" * 101, "100,000 gates, but line 105 goes"),
    "empty gates 3": (f"{HEAD}gate e a {{ }}\nqubit[1000] q;\n" + "e q;\n" * 101, "100,000 gates, but line 105 goes"),
    "a block": (f"{HEAD2}qreg q[1];\n{{ h q[0]; }}", "^line 4 has a block that is no gate's$"),
    "a block of a name": (f"{HEAD2}gate g a {{ h a; }}\nqreg q[1];\nfoo {{ h q[0]; }}", "^line 5 has a block"),
    "comments without an end": (HEAD2 + "/* " * 300_000, "Qiskit does not read this OpenQASM: line 3: "),
    "a carriage return": (f"{HEAD}// a\rx $99999999999;", "has a qubit beyond .1023, which is not read$"),
    "hidden": (f'{HEAD2}include "a//b"; qreg q[1000000000];', "^line 3 includes 'a//b'; only qelib1.inc"),
    "aside": (f"{HEAD2}/* qreg q[9]; */ // qreg q[9];\n/*\n*/ qreg q[1000000000];", "1 to 1024 qubits, got 1000000000"),
    "zero": (f"{HEAD}qubit q;\nrx(1 / 0) q;", "OpenQASM: line 4: integer division or modulo by zero$"),
    "zero 2": (f"{HEAD2}qreg q[1];\nrx(1 / 0) q;", "OpenQASM: line 4: cannot divide by zero$"),
    "zero later": (f"{HEAD2}gate g(t) a {{ rx(1 / t) a; }}\nqreg q[1];\ng(0) q;", "take g .instruction 0. apart: "),
    "infinite": (f"{HEAD}qubit q;\nx q;\nrx(1e999) q;", "^rx .instruction 1. takes an angle that is not finite: inf$"),
    "empty": ("  // nothing", "this is not OpenQASM: there is no statement in it"),
    "version": ("OPENQASM 9.0;\nqubit q;", "^OpenQASM is read in version 2 or 3, got 9.0$"),
    "escape": ("OPENQASM 3.0;\n\x1b[31m", r"this is not OpenQASM: line 2: .*\\x1b"),
    "no text": (b"x", "OpenQASM is text, got bytes"),
    "long": ("//" + "x" * (1 << 20), "at most 1,048,576 characters, got 1,048,578"),
}  # fmt: skip


@pytest.mark.parametrize("text, said", REFUSED.values(), ids=list(REFUSED))
def test_what_is_no_circuit_is_refused_in_one_sentence_with_the_line(text, said):
    with pytest.raises(ValueError, match=said) as error:
        from_qasm(text)
    assert "\n" not in str(error.value) and "\x1b" not in str(error.value) and len(str(error.value)) < 400


def qiskit_refused():
    t, u = Parameter("t"), Parameter("u")
    yield from (
        (lambda c: c.measure_all(), "measure .instruction 2. is not a gate"),
        (lambda c: c.reset(0), "reset .instruction 1. is not a gate"),
        (lambda c: c.rx(t * u, 0), "rx .instruction 1. takes .*, which is not a sum of multiples of parameters"),
        (lambda c: c.rx(t.sin(), 0), r"rx .instruction 1. takes sin\(t\), which is not"),
        (lambda c: c.rx(float("nan"), 0), "rx .instruction 1. takes an angle that is not finite: nan"),
        (lambda c: c.append(library.RVGate(t, 0.1, 0.2), [0]), "Qiskit cannot take rv .instruction 1. apart: "),
        (
            lambda c: c.append(library.HamiltonianGate(np.eye(2), t), [0]),
            "Qiskit cannot take hamiltonian .instruction 1.",
        ),
        (lambda c: c.append(Gate("\x1b[31m\n", 1, []), [0]), r"^\\x1b\[31m .instruction 1. is not a gate: only"),
        (
            lambda c: c.append(evolution(["X", "Z"]), [0]),
            "PauliEvolution .instruction 1. has a definition that is only",
        ),
        (lambda c: c.rx(1j * t, 0), "rx .instruction 1. takes a real number, got"),
        (lambda c: c.initialize([0, 1], 0), "is not a gate"),
    )


@pytest.mark.parametrize("make, said", list(qiskit_refused()))
def test_what_is_no_circuit_of_qiskit_is_refused(make, said):
    theirs = QuantumCircuit(1)
    theirs.h(0)
    make(theirs)
    with pytest.raises(ValueError, match=said):
        from_qiskit(theirs)


def test_definitions_within_definitions_are_counted():
    gate = QuantumCircuit(1)
    gate.x(0)
    for _ in range(5):  # 11^5 gates; Qiskit copies what is appended, so that deeper ones take it for ever
        bigger, part = QuantumCircuit(1), gate.to_gate()
        for _ in range(11):
            bigger.append(part, [0])
        gate = bigger
    with pytest.raises(ValueError, match="a circuit that is read has at most 100000 gates"):
        from_qiskit(gate)


def test_what_is_no_circuit_of_qiskits_is_refused():
    with pytest.raises(ValueError, match="a circuit that is read has 1 to 1024 qubits, got 0"):
        from_qiskit(QuantumCircuit())
    with pytest.raises(ValueError, match="a Qiskit QuantumCircuit is wanted, got str"):
        from_qiskit("x q;")


def branching(t):
    qml.RX(t, 0) if t < 1 else qml.RY(t, 0)


def measured(t):
    qml.RX(t, 0)
    qml.measure(0)


@pytest.mark.parametrize(
    "source, given, said",
    [
        (measured, [0.1], "MidMeasure.* is not a gate"),
        (branching, [0.1], "are the same for all values of its parameters"),
        (lambda t: qml.RX(torch.sin(t), 0), [0.1], "RX takes an angle that is not a sum of multiples"),
        (lambda t: qml.RX(abs(t), 0), [0.1], "RX takes an angle that is not a sum of multiples"),
        (lambda t: qml.RX(t % 6.0, 0), [0.1], "RX takes an angle that is not a sum of multiples"),
        (lambda t: qml.RX(round(8 * float(t)) / 8, 0), [0.1], "RX takes an angle that is not a sum of multiples"),
        (lambda t: qml.RX(np.round(t, 3), 0), [0.1], "RX takes an angle that is not a sum of multiples"),
        (lambda t: qml.RX(t - t % 0.125, 0), [0.1], "RX takes an angle that is not a sum of multiples"),
        (lambda t: qml.RX(np.sin(t), 0), [0.1], "RX takes an angle that is not a sum of multiples"),
        (lambda t: qml.RX(t + 0j, 0), [0.1], "RX takes a real number, got"),
        (lambda t: (qml.RX(t, 0), qml.RX(float("nan"), 0)), [0.1], "RX takes an angle that is not finite: nan"),
        (lambda t: qml.RX(t + torch.floor(2 * t), 0), [0.1], "RX takes an angle that is not a sum of multiples"),
        (lambda t: qml.RX(t[0] * t[1], 0), [np.zeros(2)], "RX takes an angle that is not a sum of multiples"),
        (lambda t: qml.RX(t, 0), [np.zeros(2)], "RX takes one angle in a circuit that is read, got several at once"),
        (lambda t, u: qml.RX(t, 0), [0.1, 0.2], "number 1 of the arguments is a parameter"),
        ([qml.RX(sympy.sin(sympy.Symbol("t")), 0)], [], r"RX takes sin\(t\), which is not a sum of multiples"),
        ([qml.RX(0.1, 0)], [0.1], "a tape, an operation or a list of them takes no arguments"),
        ([1], [], "a list that is read holds PennyLane's operations, but one of its entries is none"),
        ("RX", [], "a QNode, function, template, tape or list of operations is wanted, got str"),
        (lambda: None, [], "a circuit that is read has 1 to 1024 qubits, got 0"),
    ],
)  # fmt: skip
def test_what_is_no_circuit_of_pennylane_is_refused(source, given, said):
    with pytest.raises(ValueError, match=said):
        from_pennylane(source, *given)


@pytest.mark.parametrize("package, call", [
    ("qiskit", lambda: from_qiskit(None)), ("qiskit", lambda: to_qiskit(MADE)), ("qiskit", lambda: from_qasm("")),
    ("openqasm3", lambda: from_qasm("")), ("pennylane", lambda: from_pennylane([])),
    ("pennylane", lambda: to_pennylane(MADE)),
])  # fmt: skip
def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch, package, call):
    for name in {package, f"{package}.circuit", f"{package}.qasm2"}:
        monkeypatch.setitem(sys.modules, name, None)
    extra = "pennylane" if package == "pennylane" else "qiskit"
    said = rf"needs {package}, which is not installed; run: pip install 'qcircuit-peft\[{extra}\]'$"
    with pytest.raises(ModuleNotFoundError, match=said):
        call()
