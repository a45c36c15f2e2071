"""Finite shots: unbiased within their own error bars, reproducible, with parameter-shift gradients and signs."""

import pytest
import reference
import torch

from qcircuit_peft import Circuit, Noise, Op, columns, estimated_columns, load, probabilities, state
from qcircuit_peft.backends import BACKENDS, find_backend
from qcircuit_peft.backends.noise import interference as noisy_interference
from qcircuit_peft.backends.shots import draw, interference, signed
from qcircuit_peft.gates import GATES

EVERY = [*BACKENDS, "pennylane:lightning.qubit"]
DRAW_THEMSELVES = [name for name in EVERY if find_backend(name).shots]
SHOTS = 20_000


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(*shape):
    return 4 * torch.pi * torch.rand(*shape, generator=seeded(), dtype=torch.float64)


def exact(circuit, angles):
    return torch.from_numpy(reference.columns(circuit, angles, 1)[:, 0]).abs().square()


def asymmetric():
    """A circuit whose outcomes have eight different probabilities."""
    gates = [Op("RY", (0,)), Op("RY", (1,)), Op("RX", (2,)), Op("CRY", (0, 2)), Op("CX", (2, 1)), Op("RXX", (0, 1))]
    return Circuit((2, 2, 2), gates)


@pytest.mark.parametrize("backend", EVERY)
def test_frequencies_are_the_probabilities_within_five_standard_errors(backend):
    circuit = asymmetric()
    angles = drawn(2, circuit.n_angles)
    found = state(circuit, angles, shots=SHOTS, generator=seeded(), backend=backend)
    assert found.dtype is torch.float64
    torch.testing.assert_close(found.sum(-1), torch.ones(2, dtype=torch.float64))
    for row in range(2):
        p = exact(circuit, angles[row])
        assert len(p.round(decimals=3).unique()) == 8
        assert ((found[row] - p).abs() <= 5 * (p * (1 - p) / SHOTS).sqrt()).all()


@pytest.mark.parametrize("backend", EVERY)
def test_the_generator_decides_what_is_drawn_and_rows_are_independent(backend):
    circuit = asymmetric()
    angles = drawn(circuit.n_angles).expand(2, -1)
    first, again, other = (
        probabilities(circuit, angles, shots=500, generator=seeded(seed), backend=backend) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize("backend", ["native", "pennylane", "qiskit"])
def test_exact_probabilities_are_those_of_the_reference(backend):
    circuit = asymmetric()
    angles = drawn(circuit.n_angles)
    torch.testing.assert_close(probabilities(circuit, angles, backend=backend), exact(circuit, angles))


def test_the_amplitude_from_frequencies_has_the_standard_deviation_of_theory():
    circuit = asymmetric()
    angles = drawn(circuit.n_angles)
    p = exact(circuit, angles)
    runs = probabilities(circuit, angles.expand(4000, -1), shots=2000, generator=seeded())
    large = p > 0.02
    theory = ((1 - p) / (4 * 2000)).sqrt()  # of sqrt(p): 1 / (2 sqrt(shots)) for a small p
    assert large.sum() >= 4
    torch.testing.assert_close(runs.sqrt().std(0)[large], theory[large], rtol=0.06, atol=0)


@pytest.mark.parametrize("shots", [30_000_000, 10**12])
def test_many_shots_are_counted_exactly(shots):
    flipped, coin = Circuit((2,), [Op("X", (0,))]), Circuit((2,), [Op("H", (0,))])
    assert state(flipped, torch.zeros(0), shots=shots).tolist() == [0, 1]
    found = state(coin, torch.zeros(0, dtype=torch.float64), shots=shots, generator=seeded())
    assert found.sum() == 1 and 0 < (found[0] - 0.5).abs() < 5 * 0.5 / shots**0.5


def test_shots_of_more_than_16_million_outcomes_fall_where_the_probabilities_are():
    p = torch.zeros(2**24 + 2)
    p[[0, 7, -1]] = torch.tensor([0.25, 0.5, 0.25])
    found = draw(p, 1000, seeded())
    assert found.nonzero().flatten().tolist() == [0, 7, 2**24 + 1] and 0.4 < found[7] < 0.6


def frequencies_without_noise(monkeypatch):
    """Shots whose frequencies are the probabilities: what is left is the shift rule itself."""
    monkeypatch.setattr("qcircuit_peft.backends.draw", lambda p, shots, generator: p.detach())


@pytest.mark.parametrize("gate", [name for name, gate in GATES.items() if gate.angles])
@pytest.mark.parametrize("adjoint", [False, True])
def test_the_shift_rule_of_every_gate_is_the_exact_gradient(monkeypatch, gate, adjoint):
    frequencies_without_noise(monkeypatch)
    wires = (0, 1)[: GATES[gate].wires]
    mix = [Op("RY", (0,)), Op("RX", (1,)), Op("CX", (0, 1)), Op("RZ", (1,)), Op("RY", (1,))]
    shared = Op(gate, wires, (0,), adjoint)  # an angle of several ops
    circuit = Circuit((2, 2), [*mix, shared, *(Op("RX", (w,)) for w in (0, 1)), shared])
    angles = drawn(2, circuit.n_angles).requires_grad_()
    cotangent = torch.randn(2, 4, dtype=torch.float64)
    (wanted,) = torch.autograd.grad(probabilities(circuit, angles), angles, cotangent)
    (found,) = torch.autograd.grad(probabilities(circuit, angles, shots=1), angles, cotangent)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", ["native", *DRAW_THEMSELVES])
def test_the_gradient_from_shots_is_the_exact_one_within_its_error(backend):
    circuit = asymmetric()
    angles = drawn(circuit.n_angles).requires_grad_()
    values = torch.arange(8, dtype=torch.float64)
    (wanted,) = torch.autograd.grad(probabilities(circuit, angles) @ values, angles)
    found = probabilities(circuit, angles, shots=SHOTS, generator=seeded(), backend=backend) @ values
    (gradient,) = torch.autograd.grad(found, angles)
    assert wanted.abs().max() > 0.3
    assert (gradient - wanted).abs().max() <= 5 * 3.5 / SHOTS**0.5  # 3.5: the largest deviation of the values 0 to 7


@pytest.mark.parametrize("backend", ["native", "torchquantum"])
def test_estimated_columns_have_their_signs_and_their_standard_errors(backend):
    circuit = load("simplified_two_design").circuit(qubits=4, layers=2)
    angles = drawn(circuit.n_angles)
    u = torch.from_numpy(reference.columns(circuit, angles, 3).real)
    rows = angles.expand(400, -1)
    found, error = estimated_columns(circuit, rows, 3, shots=1000, generator=seeded(), backend=backend)
    theory = ((1 + 16 * u**2 - 2 * u**2) / 2000).sqrt()
    assert ((found.mean(0) - u).abs() <= 5 * theory / 400**0.5).all()
    torch.testing.assert_close(found.std(0), theory, rtol=0.2, atol=0)
    torch.testing.assert_close(error.square().mean(0).sqrt(), theory, rtol=0.02, atol=0)
    clear = u.abs() > 5 * theory
    assert clear.sum() > 10 and (found.sign() == u.sign())[:, clear].all()


@pytest.mark.parametrize("noise", [None, Noise(), Noise(phase_damping=0.3)])
def test_two_standard_errors_hold_the_truth_also_where_little_is_counted(noise):
    circuit = load("simplified_two_design").circuit(qubits=8 if noise is None else 5, layers=1)
    angles = drawn(circuit.n_angles)
    shots = 200 if noise is None else 40
    wanted, _ = estimated_columns(circuit, angles, 1, shots=None, noise=noise)
    test = interference(columns(circuit, angles, 1)) if noise is None else noisy_interference(circuit, angles, 1, noise)
    found, error = signed(test.expand(200, *test.shape), shots, seeded(), noisy=noise is not None)
    held = ((found - wanted).abs() <= 2 * error).double().mean()
    assert error.min() > 0 and 0.93 < held < 0.985


def test_the_distribution_that_estimated_columns_draw_from_is_that_of_a_real_hadamard_test(monkeypatch):
    import pennylane as qml

    from qcircuit_peft.backends import pennylane

    circuit = load("simplified_two_design").circuit(qubits=3, layers=1)
    angles = drawn(circuit.n_angles)
    seen = []
    monkeypatch.setattr("qcircuit_peft.backends.shots.draw", lambda p, shots, generator: seen.append(p) or p)
    found, _ = estimated_columns(circuit, angles, 3, shots=1)

    @qml.qnode(qml.device("default.qubit", wires=["control", 0, 1, 2]))
    def test(column):
        qml.Hadamard("control")
        for wire in range(3):  # the uniform column where the control is 0
            qml.ctrl(qml.Hadamard(wire), "control", control_values=0)
            if column >> (2 - wire) & 1:
                qml.CNOT(["control", wire])
        for gate in pennylane.operations(circuit, angles):
            qml.ctrl(gate, "control")
        qml.Hadamard("control")
        return qml.probs(wires=["control", 0, 1, 2])

    for column in range(3):
        torch.testing.assert_close(seen[0][column], torch.as_tensor(test(column)), rtol=0, atol=1e-12)
    torch.testing.assert_close(found, torch.from_numpy(reference.columns(circuit, angles, 3).real))


@pytest.mark.parametrize("shots", [0, -1, 1.5, True, "many"])
def test_a_wrong_number_of_shots_is_refused(shots):
    circuit = asymmetric()
    with pytest.raises(ValueError, match="shots is a whole number 1 to 9007199254740992, got"):
        state(circuit, drawn(circuit.n_angles), shots=shots)
    with pytest.raises(ValueError, match="shots is a whole number 1 to 9007199254740992, got"):
        estimated_columns(load("tree").circuit(qubits=2, layers=0), drawn(2), 1, shots=shots)


def test_more_shots_than_can_be_counted_are_refused():
    with pytest.raises(ValueError, match="shots is a whole number 1 to 9007199254740992, got 1000"):
        state(asymmetric(), drawn(asymmetric().n_angles), shots=10**18)


def test_other_bad_input_is_one_sentence():
    circuit = asymmetric()
    with pytest.raises(ValueError, match=r"generator is a torch.Generator, got int"):
        state(circuit, drawn(circuit.n_angles), shots=10, generator=0)
    with pytest.raises(ValueError, match="signs are estimated for real circuits only"):
        estimated_columns(circuit, drawn(circuit.n_angles), 1, shots=10)
    qutrits = Circuit((3,), [Op("RY", (0,))])
    assert state(qutrits, drawn(3), shots=10).sum() == 1
    with pytest.raises(ValueError, match="the parameter-shift rule is for gates with one angle"):
        state(qutrits, drawn(3).requires_grad_(), shots=10)
    with pytest.raises(ValueError, match="'qiskit' simulates qubits only, but wire 0 has dimension 3"):
        state(qutrits, drawn(3), shots=10, backend="qiskit")
    assert state(asymmetric(), drawn(0, circuit.n_angles), shots=3).shape == (0, 8)


@pytest.mark.parametrize("device", ["null.qubit", "default.gaussian", "default.tensor"])
def test_a_device_that_cannot_draw_is_named(device):
    with pytest.raises(ValueError, match=f"PennyLane's device '{device}'"):
        state(asymmetric(), drawn(asymmetric().n_angles), shots=1, backend=f"pennylane:{device}")
