"""Every backend against the independent reference: every ansatz file, every gate; gradients against each other."""

import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from importlib.metadata import metadata
from itertools import permutations
from math import prod

import pytest
import reference
import torch
from bounds import close, gates
from peft import get_peft_model
from tiny import CHAIN
from transformers import LlamaConfig, LlamaForCausalLM

from qcircuit_peft import Ansatz, Circuit, Noise, Op, QCircuitConfig, apply, columns, density, load, matrix, state
from qcircuit_peft.ansatz import Step, names
from qcircuit_peft.backends import BACKENDS, find_backend
from qcircuit_peft.frames.circuit import CircuitFrame
from qcircuit_peft.gates import GATES, Names

LIGHTNING = "pennylane:lightning.qubit"
EVERY = [*BACKENDS, LIGHTNING]
FORWARD_ONLY = [name for name in EVERY if find_backend(name).derivatives == 0]
DIFFERENTIABLE = [name for name in EVERY if name not in FORWARD_ONLY]
SIMULATORS = [name for name in DIFFERENTIABLE if name != "native"]
QUBITS_ONLY = [name for name in EVERY if not find_backend(name).qudits]
DTYPES = (torch.float64, torch.float32)

PAIR = Circuit((2, 2), [Op("RY", (0,)), Op("CX", (1, 0)), Op("GIVENS", (0, 1))])


def drawn(*shape, seed=0):
    """Angles over more than one period."""
    generator = torch.Generator().manual_seed(seed)
    return 4 * torch.pi * torch.rand(*shape, generator=generator, dtype=torch.float64)


def family(name):
    for q in range(2, 7):
        for layers in range(4):
            yield load(name).circuit(qubits=q, layers=layers), f"{name} q={q} L={layers}"


def with_every_gate(backend):
    """Every gate that a backend has, plain and adjoint, on neighbours and on distant wires in both orders."""
    ops = []
    for gate in filter(find_backend(backend).has, GATES.values()):
        for wires in ((0, 1), (2, 0), (1, 2)):
            ops += [Op(gate.name, wires[: gate.wires], adjoint=adjoint) for adjoint in (False, True)]
    return Circuit((2, 2, 2), ops)


def gradient(circuit, angles, cotangent, backend):
    angles = angles.clone().requires_grad_()
    return torch.autograd.grad(matrix(circuit, angles, backend=backend), angles, cotangent)[0]


@pytest.mark.parametrize("name", names())
def test_every_backend_is_the_reference_on_every_family_and_the_gradients_agree(name):
    for circuit, where in family(name):
        angles = drawn(circuit.n_angles)
        wanted = torch.from_numpy(reference.matrix(circuit, angles))
        cotangent = torch.randn(wanted.shape, dtype=torch.float64 if circuit.is_real else torch.complex128)
        ours = gradient(circuit, angles, cotangent, "native") if circuit.n_angles else angles
        for backend in BACKENDS:
            for dtype in DTYPES:
                found = matrix(circuit, angles.to(dtype), backend=backend)
                assert found.is_complex() is not circuit.is_real and found.dtype.to_real() is dtype, (where, backend)
                close(found, wanted, gates(circuit), size=1, where=(where, backend))
            if circuit.n_angles and backend in SIMULATORS:
                theirs = gradient(circuit, angles, cotangent, backend)
                close(theirs, ours, gates(circuit), cotangent.norm(), where=(where, backend))


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("backend", EVERY)
def test_every_gate_is_the_reference_or_refused(backend, gate):
    n = GATES[gate].wires
    ops = [Op(gate, wires, adjoint=adjoint) for wires in permutations(range(3), n) for adjoint in (False, True)]
    circuit = Circuit((2, 2, 2), ops)
    angles = drawn(circuit.n_angles)
    if not find_backend(backend).has(GATES[gate]):
        with pytest.raises(ValueError, match=f"backend {backend!r} has no gate {gate}; 'native'"):
            matrix(circuit, angles, backend=backend)
        pytest.skip(f"{backend} has no {gate}")
    for dtype in DTYPES:
        found = matrix(circuit, angles.to(dtype), backend=backend)
        close(found, reference.matrix(circuit, angles), gates(circuit), size=1)


@pytest.fixture
def stripped(monkeypatch):
    """Takes gates away from the simulators: ``stripped(gate, parts)`` leaves it no names, and these parts."""

    def strip(gate, parts=()):
        monkeypatch.setitem(GATES, gate, replace(GATES[gate], names=Names(), parts=parts))

    return strip


@pytest.mark.parametrize("backend", QUBITS_ONLY)
def test_a_gate_that_a_simulator_lacks_is_refused_before_anything_runs(stripped, backend):
    stripped("H")
    said = rf"^backend {backend!r} has no gate H; 'native' has it$"
    circuit = Circuit((2,), [Op("RY", (0,)), Op("H", (0,))])
    for run in (matrix, partial(apply, x=torch.ones(2, 1)), partial(state, shots=3)):
        with pytest.raises(ValueError, match=said):
            run(circuit, drawn(1), backend=backend)
    if find_backend(backend).noise:
        with pytest.raises(ValueError, match=said):
            density(circuit, drawn(1), Noise(), backend=backend)
    for width in ("qudit", "shannon"):
        with pytest.raises(ValueError, match=said):
            CircuitFrame(4, 2, Ansatz("h", layer=(Step(("RY", "H"), "each"),)), width=width, backend=backend)
    assert matrix(circuit, drawn(1)).shape == (2, 2)


@pytest.mark.parametrize("name", [name for name, gate in GATES.items() if gate.parts])
@pytest.mark.parametrize("backend", QUBITS_ONLY)
def test_where_a_simulator_lacks_a_gate_its_parts_run(stripped, backend, name):
    stripped(name, GATES[name].parts)
    n = GATES[name].wires
    ops = [Op(name, wires[:n], adjoint=adjoint) for wires in ((0, 2), (2, 1)) for adjoint in (False, True)]
    circuit = Circuit((2, 2, 2), [op for op in ops for op in (op, Op("RY", (0,)), Op("RX", (1,)))])
    angles = drawn(2, circuit.n_angles)
    for row, found in zip(angles, matrix(circuit, angles, backend=backend), strict=True):
        close(found, reference.matrix(circuit, row), len(GATES[name].parts) * gates(circuit), size=1)
    if find_backend(backend).noise:
        theirs = density(circuit, angles, Noise(depolarizing=0.1), backend=backend)
        close(theirs, density(circuit, angles, Noise(depolarizing=0.1)), 10 * gates(circuit), size=1)


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=list(BACKENDS))
def test_a_row_says_what_its_module_has(backend):
    assert BACKENDS[backend.name] is backend and find_backend(backend.name) is backend
    has = set(vars(backend.module()))
    wanted = {"columns", "apply"} if backend.name == "native" else {"run"}
    wanted |= {"check_device"} if backend.device else set()
    assert wanted <= has
    if backend.name != "native":
        assert ("frequencies" in has) == backend.shots and ("density" in has) == backend.noise
        assert backend.name in Names.__dataclass_fields__
    assert backend.about and backend.precision and not (backend.name == "native" and backend.install)
    if extra := re.search(r"\[(.+)\]", backend.install):
        assert extra[1] in metadata("qcircuit-peft").get_all("Provides-Extra")


@pytest.mark.parametrize("name", names())
def test_lightning_is_the_reference_on_every_family(name):
    circuit = load(name).circuit(qubits=4, layers=1)
    angles = drawn(circuit.n_angles)
    found = columns(circuit, angles, 3, backend=LIGHTNING)
    close(found, reference.columns(circuit, angles, 3), gates(circuit), size=1)


@pytest.mark.parametrize("backend", EVERY)
def test_angles_and_columns_broadcast(backend):
    circuit = with_every_gate(backend)
    angles = drawn(2, 1, circuit.n_angles)
    x = torch.randn(3, 8, 2, dtype=torch.complex128)
    found = apply(circuit, angles, x, backend=backend)
    assert found.shape == (2, 3, 8, 2)
    for row in range(2):
        u = torch.from_numpy(reference.matrix(circuit, angles[row, 0]))
        close(found[row], u @ x, gates(circuit))
        close(columns(circuit, angles, 3, backend=backend)[row, 0], u[:, :3], gates(circuit), size=1)
        close(state(circuit, angles, backend=backend)[row, 0], u[:, 0], gates(circuit), size=1)


@pytest.mark.parametrize("backend", EVERY)
def test_a_real_circuit_keeps_real_columns_real_and_complex_ones_complex(backend):
    x = torch.randn(4, 2, dtype=torch.float64)
    u = torch.from_numpy(reference.matrix(PAIR, drawn(PAIR.n_angles)))
    close(apply(PAIR, drawn(PAIR.n_angles), x, backend=backend), (u @ x.to(u.dtype)).real, gates(PAIR))
    close(apply(PAIR, drawn(PAIR.n_angles), 1j * x, backend=backend), u @ (1j * x), gates(PAIR))


@pytest.mark.parametrize("backend", EVERY)
def test_an_empty_batch_gives_an_empty_result(backend):
    assert columns(PAIR, drawn(3, 0, PAIR.n_angles), 2, backend=backend).shape == (3, 0, 4, 2)
    assert apply(PAIR, drawn(3, PAIR.n_angles), torch.ones(4, 0), backend=backend).shape == (3, 4, 0)


@pytest.mark.parametrize("backend", DIFFERENTIABLE)
def test_gradients_of_a_batch_reach_angles_and_columns(backend):
    circuit = with_every_gate(backend)
    leaves = drawn(2, circuit.n_angles), torch.randn(8, 2, dtype=torch.complex128)
    cotangent = torch.randn(2, 8, 2, dtype=torch.complex128)

    def gradients(backend):
        angles, x = (leaf.clone().requires_grad_() for leaf in leaves)
        return torch.autograd.grad(apply(circuit, angles, x, backend=backend), (angles, x), cotangent)

    angles, x = leaves
    of_angles, of_x = gradients(backend)
    adjoint = torch.stack([torch.from_numpy(reference.matrix(circuit, row)).mH for row in angles])
    close(of_x, (adjoint @ cotangent).sum(0), gates(circuit))
    step, size = 1e-5, cotangent.norm() * x.norm()
    for position in (0, 5, circuit.n_angles - 1):
        moved = torch.zeros_like(angles)
        moved[:, position] = step
        up, down = (
            torch.stack([torch.from_numpy(reference.matrix(circuit, row)) for row in angles + sign * moved])
            for sign in (1, -1)
        )
        slope = (cotangent.conj() * ((up - down) / (2 * step) @ x)).sum((-2, -1)).real
        close(of_angles[:, position], slope, gates(circuit), size / step)
    close(of_angles, gradients("native")[0], gates(circuit), size)


@pytest.mark.parametrize("backend", FORWARD_ONLY)
def test_a_gradient_of_a_forward_only_backend_is_refused(backend):
    angles = drawn(PAIR.n_angles).requires_grad_()
    with pytest.raises(ValueError, match=f"backend {backend!r} runs forward only"):
        matrix(PAIR, angles, backend=backend)
    with pytest.raises(ValueError, match="runs forward only"):
        apply(PAIR, angles.detach(), torch.ones(4, 1, requires_grad=True), backend=backend)
    with torch.no_grad():
        assert matrix(PAIR, angles, backend=backend).shape == (4, 4)


@pytest.mark.parametrize("backend", QUBITS_ONLY)
def test_a_wire_that_is_not_a_qubit_is_refused(backend):
    circuit = load("simplified_two_design").circuit(dim=12)
    with pytest.raises(ValueError, match=r"simulates qubits only, but wire 0 has dimension 3; 'native' has"):
        columns(circuit, drawn(circuit.n_angles), 2, backend=backend)


@pytest.mark.filterwarnings("ignore:Operator .* does not define a decomposition:UserWarning")  # PennyLane's own
@pytest.mark.parametrize(
    "backend, said",
    [
        ("penylane", "unknown backend 'penylane'; did you mean one of pennylane"),
        (None, "a backend is a name, a device of PennyLane or a BackendV2 of Qiskit, got None"),
        ("native:gpu", "backend 'native' has no devices to choose from, got 'native:gpu'"),
        ("pennylane:", "PennyLane has no device '' here; did you mean one of"),
        ("pennylane:lightening.qubit", "no device 'lightening.qubit' here; did you mean one of lightning.qubit"),
        ("pennylane:default.qutrit", "device 'default.qutrit' cannot run this circuit: Gate .* not supported"),
        ("pennylane:default.mixed", r"'default.mixed' gives no statevectors of shape \(2, 4\), .* \(2, 4, 4\)"),
    ],
)
def test_an_unknown_or_unfit_backend_is_refused(backend, said):
    with pytest.raises(ValueError, match=said):
        columns(PAIR, drawn(PAIR.n_angles), 2, backend=backend)


@pytest.mark.parametrize("backend", [row.name for row in BACKENDS.values() if row.install])
def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch, backend):
    monkeypatch.delitem(sys.modules, f"qcircuit_peft.backends.{backend}", raising=False)
    for name in {backend, *sys.modules}:
        if name.partition(".")[0] == backend:
            monkeypatch.setitem(sys.modules, name, None)
    command = re.escape(BACKENDS[backend].install)
    with pytest.raises(ModuleNotFoundError, match=f"needs {backend}, which is not installed; run: {command}$"):
        matrix(PAIR, drawn(PAIR.n_angles), backend=backend)


@pytest.mark.parametrize("backend", EVERY)
def test_a_result_larger_than_the_memory_is_refused_before_it_is_made(backend):
    circuit = load("line_ry_cz").circuit(qubits=26)
    size = 8 * 2**52
    with pytest.raises(ValueError, match=f"67108864 x 67108864, takes {size:,} bytes, but [0-9,]+ are free on cpu"):
        matrix(circuit, drawn(circuit.n_angles), backend=backend)
    x = torch.ones(1, 1).expand(2**26, 2**25)
    with pytest.raises(ValueError, match=f"takes {prod(x.shape) * 4:,} bytes"):
        apply(circuit, drawn(circuit.n_angles).float(), x, backend=backend)


def adapted(backend, hidden_size, width):
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 32}
    net = LlamaForCausalLM(LlamaConfig(hidden_size=hidden_size, **sizes, bos_token_id=1, eos_token_id=2))
    config = QCircuitConfig(r=4, layers=2, target_modules=["q_proj", "v_proj"], width=width, backend=backend, seed=1)
    net = get_peft_model(net, config).double()
    return net, [p for p in net.parameters() if p.requires_grad]


@pytest.mark.parametrize("hidden_size, width", [(16, "qudit"), (24, "shannon")])
def test_a_model_trains_through_a_simulator_as_it_does_natively(hidden_size, width):
    """Loss and gradients at every step of the native run: trajectories of their own would drift apart."""
    net, parameters = adapted("native", hidden_size, width)
    simulated = {backend: adapted(backend, hidden_size, width) for backend in SIMULATORS}
    optimizer = torch.optim.AdamW(parameters, 0.02)
    tokens = torch.randint(0, 32, (4, 12))
    losses = []
    for _ in range(10):
        loss = net(input_ids=tokens, labels=tokens).loss
        wanted = torch.autograd.grad(loss, parameters)
        for backend, (other, copies) in simulated.items():
            with torch.no_grad():
                for copy, p in zip(copies, parameters, strict=True):
                    copy.copy_(p)
            found = other(input_ids=tokens, labels=tokens).loss
            close(found, loss, CHAIN, where=backend)
            for one, grad in zip(torch.autograd.grad(found, copies), wanted, strict=True):
                close(one, grad, 2 * CHAIN, size=1, where=backend)
        for p, grad in zip(parameters, wanted, strict=True):
            p.grad = grad
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.01


def test_a_width_with_a_wire_that_is_not_a_qubit_is_refused_before_training():
    with pytest.raises(ValueError, match="backend 'pennylane' simulates qubits only, but wire 0 has dimension 3"):
        CircuitFrame(48, 4, load("ring_ry_cz"), width="qudit", backend="pennylane")


LEAVES_NOTHING = """
import sys
import torch
from qcircuit_peft import load, matrix
circuit = load("sim06").circuit(qubits=3, layers=1)
for dtype in (torch.float32, torch.float64):
    matrix(circuit, torch.zeros(circuit.n_angles, dtype=dtype), backend="torchquantum")
roots = ("torchquantum", "torchpack", "opt_einsum", "qiskit", "qiskit_ibm_runtime", "torchvision", "tensorflow")
left = [name for name in sys.modules if name.partition(".")[0] in roots]
assert not left, left
import peft, transformers, qiskit
from peft import LoraConfig
from transformers import BertModel
from qiskit.circuit import QuantumCircuit
assert qiskit.__file__ and QuantumCircuit(2).num_qubits == 2
try:
    import torchquantum
except ImportError as error:  # the genuine one, which lacks what it asks for
    assert "qiskit" in str(error) or "torch" in str(error) or "opt_einsum" in str(error), error
else:
    assert torchquantum.__version__
matrix(circuit, torch.zeros(circuit.n_angles), backend="torchquantum")
assert sys.modules["qiskit"] is qiskit
print("fine")
"""


def test_torchquantum_leaves_nothing_behind():
    run = subprocess.run([sys.executable, "-c", LEAVES_NOTHING], capture_output=True, text=True)
    assert run.stdout == "fine\n", run.stderr
