"""Noise: the native density matrix against Kraus operators written out here, PennyLane's default.mixed and Aer."""

import numpy as np
import pennylane as qml
import pytest
import reference
import torch
from bounds import close, rounding
from peft import get_peft_model
from torch import nn

from qcircuit_peft import (
    Circuit,
    Noise,
    Op,
    QCircuitConfig,
    density,
    estimated_columns,
    load,
    probabilities,
    state,
)
from qcircuit_peft.analysis import evaluate_under_noise
from qcircuit_peft.backends import BACKENDS, pennylane
from qcircuit_peft.backends.noise import interference as noisy_interference
from qcircuit_peft.factorizations import FACTORIZATIONS
from qcircuit_peft.factorizations.parts import Built
from qcircuit_peft.frames import FRAMES
from qcircuit_peft.gates import GATES

SIMULATORS = [row.name for row in BACKENDS.values() if row.noise and row.name != "native"]
ONE_BY_ONE = [Noise(depolarizing=0.2), Noise(amplitude_damping=0.3), Noise(phase_damping=0.4)]
ALL = Noise(0.03, 0.05, 0.04, 0.02)


def drawn(*shape):
    return 4 * torch.pi * torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def every_gate():
    return Circuit((2, 2, 2), [Op(name, (2, 0, 1)[: gate.wires]) for name, gate in GATES.items()])


def kraus(noise):
    """The Kraus operators of the three channels, in time order (Nielsen and Chuang, sec. 8.3)."""
    p, a, b = noise.depolarizing, noise.amplitude_damping, noise.phase_damping
    x, y, z = np.array([[0, 1], [1, 0]]), np.array([[0, -1j], [1j, 0]]), np.diag([1, -1])
    return [
        [np.sqrt(1 - p) * np.eye(2), *(np.sqrt(p / 3) * pauli for pauli in (x, y, z))],
        [np.diag([1, np.sqrt(1 - a)]), np.array([[0, np.sqrt(a)], [0, 0]])],
        [np.diag([1, np.sqrt(1 - b)]), np.diag([0, np.sqrt(b)])],
    ]


def qudit_kraus(noise, d):
    """The same on a wire of dimension d: shifts and clocks, decay by one level, loss of all phases."""
    p, a, c = noise.depolarizing, noise.amplitude_damping, np.sqrt(1 - noise.phase_damping)
    shift, clock = np.roll(np.eye(d), 1, 0), np.diag(np.exp(2j * np.pi * np.arange(d) / d))
    powers = [np.linalg.matrix_power(shift, i) @ np.linalg.matrix_power(clock, j) for i in range(d) for j in range(d)]
    level = np.eye(d)
    return [
        [np.sqrt(1 - p) * powers[0], *(np.sqrt(p / (d**2 - 1)) * weyl for weyl in powers[1:])],
        [
            np.diag([1, *[np.sqrt(1 - a)] * (d - 1)]),
            *(np.sqrt(a) * np.outer(level[j - 1], level[j]) for j in range(1, d)),
        ],
        [np.sqrt(c) * level, *(np.sqrt(1 - c) * np.outer(row, row) for row in level)],
    ]


def written_out(circuit, angles, noise):
    rho = np.zeros((circuit.dim, circuit.dim), dtype=complex)
    rho[0, 0] = 1
    for op in circuit.ops:
        u = reference.embed(reference._op_matrix(circuit, op, angles), circuit.dims, op.wires)
        rho = u @ rho @ u.conj().T
        of_wire = {w: kraus(noise) if circuit.dims[w] == 2 else qudit_kraus(noise, circuit.dims[w]) for w in op.wires}
        channels = [(wire, channel) for wire in op.wires for channel in of_wire[wire]]
        for wire, channel in channels:
            operators = [reference.embed(k, circuit.dims, (wire,)) for k in channel]
            rho = sum(k @ rho @ k.conj().T for k in operators)
    return torch.from_numpy(rho)


@pytest.mark.parametrize("noise", [*ONE_BY_ONE, ALL, Noise(1.0, 1.0, 1.0), Noise()])
@pytest.mark.parametrize("backend", ["native", *SIMULATORS])
def test_density_matrices_are_those_of_the_kraus_operators(backend, noise):
    circuit = every_gate()
    angles = drawn(2, circuit.n_angles)
    found = density(circuit, angles, noise, backend=backend)
    assert found.shape == (2, 8, 8)
    for row in range(2):
        assert (found[row] - written_out(circuit, angles[row], noise)).abs().max() < 1e-10


@pytest.mark.parametrize("backend", SIMULATORS)
@pytest.mark.parametrize("q, layers", [(2, 3), (4, 2), (6, 1)])
def test_the_native_density_matrix_agrees_with_the_simulators(backend, q, layers):
    circuit = load("simplified_two_design").circuit(qubits=q, layers=layers)
    angles = drawn(circuit.n_angles)
    ours = density(circuit, angles, ALL)
    theirs = density(circuit, angles, ALL, backend=backend)
    assert not ours.is_complex() and (ours - theirs).abs().max() < 1e-10
    assert ours.square().sum() < 0.9 and abs(ours.trace() - 1) < 1e-12


@pytest.mark.parametrize("noise", [*ONE_BY_ONE, ALL, Noise(1.0, 1.0, 1.0), Noise()])
@pytest.mark.parametrize("dims", [(3, 2), (2, 5), (3, 3, 2)])
def test_wires_of_any_dimension(dims, noise):
    circuit = load("simplified_two_design").circuit(dims=dims, layers=2)
    angles = drawn(circuit.n_angles)
    found = density(circuit, angles, noise)
    torch.testing.assert_close(found + 0j, written_out(circuit, angles.numpy(), noise), rtol=0, atol=1e-10)
    read = probabilities(circuit, angles, noise=noise)
    wrong = [(np.ones((d, d)) - np.eye(d)) * noise.readout / (d - 1) + (1 - noise.readout) * np.eye(d) for d in dims]
    joint = wrong[0]
    for matrix in wrong[1:]:
        joint = np.kron(joint, matrix)
    torch.testing.assert_close(read, torch.from_numpy(joint) @ found.diagonal().real, rtol=0, atol=1e-10)


def test_without_noise_it_is_the_pure_state():
    circuit = every_gate()
    angles = drawn(circuit.n_angles)
    psi = state(circuit, angles)
    assert (density(circuit, angles, Noise()) - psi[:, None] * psi.conj()).abs().max() < 1e-12


def test_the_native_density_matrix_is_differentiable():
    circuit = load("simplified_two_design").circuit(qubits=2, layers=1)
    angles = drawn(circuit.n_angles).requires_grad_()
    assert torch.autograd.gradcheck(lambda angles: density(circuit, angles, ALL), angles)


@pytest.mark.parametrize("backend", ["native", *SIMULATORS])
def test_what_is_read_has_every_bit_flipped_with_the_probability_of_the_readout(backend):
    circuit = Circuit((2, 2), [Op("X", (0,))])
    found = probabilities(circuit, drawn(0), noise=Noise(readout=0.1), backend=backend)
    assert found.tolist() == pytest.approx([0.1 * 0.9, 0.1 * 0.1, 0.9 * 0.9, 0.9 * 0.1])


def test_shots_under_noise_are_the_noisy_probabilities_within_five_standard_errors():
    circuit = every_gate()
    angles = drawn(circuit.n_angles)
    p = probabilities(circuit, angles, noise=ALL)
    found = probabilities(circuit, angles, noise=ALL, shots=20_000, generator=torch.Generator().manual_seed(0))
    assert ((found - p).abs() <= 5 * (p * (1 - p) / 20_000).sqrt()).all()
    assert (p - probabilities(circuit, angles)).abs().max() > 0.1


def test_rounding_below_zero_is_no_probability():
    twice = Circuit((2, 2, 2), [Op("H", (wire,)) for wire in (0, 1, 2, 0, 1, 2)])
    none = torch.zeros(0)
    for found in (
        probabilities(twice, none, noise=Noise()),
        probabilities(twice, none, noise=Noise(), shots=100),
        noisy_interference(Circuit((2, 2, 2), twice.ops[:3]), none, 3, Noise()),
    ):
        assert found.min() == 0
    assert estimated_columns(twice, none, 1, shots=100, noise=Noise())[0].isfinite().all()


@pytest.mark.parametrize("noise", [*ONE_BY_ONE, ALL])
def test_a_hadamard_test_under_noise_is_that_of_pennylane(noise):
    """With controlled gates, channels after them on the register, and flips of what is read, all PennyLane's."""
    circuit = load("simplified_two_design").circuit(qubits=2, layers=2)
    angles = drawn(circuit.n_angles)

    @qml.qnode(qml.device("default.mixed", wires=["control", 0, 1]))
    def test(column):
        qml.Hadamard("control")
        for wire in range(2):
            qml.ctrl(qml.Hadamard(wire), "control", control_values=0)
            if column >> (1 - wire) & 1:
                qml.CNOT(["control", wire])
        for op, gate in zip(circuit.ops, pennylane.operations(circuit, angles), strict=True):
            qml.ctrl(gate, "control")
            for wire in op.wires:
                qml.DepolarizingChannel(noise.depolarizing, wire)
                qml.AmplitudeDamping(noise.amplitude_damping, wire)
                qml.PhaseDamping(noise.phase_damping, wire)
        qml.Hadamard("control")
        for wire in ("control", 0, 1):
            qml.BitFlip(noise.readout, wire)
        return qml.probs(wires=["control", 0, 1])

    found, error = estimated_columns(circuit, angles.expand(3, -1), 4, shots=None, noise=noise)
    assert found.shape == (3, 4, 4) and not error.any()
    for column in range(4):
        plus, minus = torch.as_tensor(test(column)).reshape(2, 4)
        torch.testing.assert_close(found[1, :, column], 2 * (plus - minus), rtol=0, atol=1e-10)


def adapted(wide=16, **options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(wide, 8), nn.Linear(8, 8))
    model = get_peft_model(net, QCircuitConfig(r=3, alpha=3, target_modules=["0", "1"], **options))
    for module in model.base_model.model:
        for name, part in module.factors["default"].parts.items():
            if not isinstance(part, Built):
                nn.init.normal_(getattr(module, f"qcircuit_{name}")["default"])
    return model


def exact_delta(model, index):
    return model.base_model.model[index].get_delta_weight("default")


ROUNDINGS = 64  # those of the angles and gates of two circuits of two or three qubits, in float32


def close_delta(found, delta):
    assert found.norm > 0.1
    close(found.delta, delta, ROUNDINGS, dtype=torch.float32)
    assert found.distance <= rounding(torch.float32, ROUNDINGS, found.norm)


def test_an_adapter_without_noise_and_with_endless_shots_is_exact():
    model = adapted()
    found = evaluate_under_noise(model)
    assert list(found) == ["base_model.model.0", "base_model.model.1"]
    for index, perturbed in enumerate(found.values()):
        close_delta(perturbed, exact_delta(model, index))
        close(perturbed.norm, exact_delta(model, index).norm(), ROUNDINGS, dtype=torch.float32)


def test_the_distance_falls_with_shots_and_grows_with_noise():
    model = adapted()
    before = [p.detach().clone() for p in model.parameters()]

    def distance(**settings):
        found = evaluate_under_noise(model, generator=torch.Generator().manual_seed(0), **settings)
        for index, perturbed in enumerate(found.values()):
            apart = (perturbed.delta - exact_delta(model, index)).norm()
            close(perturbed.distance, apart, ROUNDINGS, perturbed.norm, torch.float32)
        return sum(perturbed.distance for perturbed in found.values())

    assert distance(shots=100) > 5 * distance(shots=10_000) > 0
    assert distance(noise=Noise(0.1)) > 2 * distance(noise=Noise(0.01)) > 0
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_an_adapter_of_any_width_is_measured_if_it_is_one_circuit():
    strict = adapted(wide=12).double()
    exact = evaluate_under_noise(strict)["base_model.model.0"]
    noisy = evaluate_under_noise(strict, Noise(0.01, 0.01, 0.01, 0.01), shots=10**8)["base_model.model.0"]
    assert exact.distance < 1e-12 and 0.01 < noisy.distance / noisy.norm < 1
    with pytest.raises(ValueError, match=r"model\.0: .* 'v' of width 12 is made of 4; .* width='qudit'"):
        evaluate_under_noise(adapted(wide=12, width="shannon"), shots=10)
    with pytest.raises(ValueError, match="shots is a whole number 1 to 9007199254740992, got 0"):
        evaluate_under_noise(adapted(), shots=0)
    with pytest.raises(ValueError, match="columns under noise are estimated by 'native', got backend 'qiskit'"):
        estimated_columns(Circuit((2,), [Op("RY", (0,))]), drawn(1), 1, shots=1, noise=ALL, backend="qiskit")


@pytest.mark.parametrize("factorization", FACTORIZATIONS)
def test_any_factorization_is_measured_through_its_frames_or_refused(factorization):
    model = adapted(factorization=factorization)
    if not any(isinstance(part, Built) for part in model.base_model.model[0].factors["default"].parts.values()):
        with pytest.raises(ValueError, match=r"model\.0: .* its factorization builds none; .* such as 'svd'"):
            evaluate_under_noise(model)
        return
    for index, found in enumerate(evaluate_under_noise(model).values()):
        close_delta(found, exact_delta(model, index))
    assert all(found.distance > 1e-3 * found.norm for found in evaluate_under_noise(model, shots=100).values())


@pytest.mark.parametrize("frame", FRAMES)
def test_frames_are_measured_if_they_are_one_circuit(frame):
    model, made_of = adapted(frame=frame), len(list(FRAMES[frame].spec(8, 2).circuits()))
    if made_of == 1:
        for index, found in enumerate(evaluate_under_noise(model).values()):
            close_delta(found, exact_delta(model, index))
        return
    said = rf"model\.0: .* 'u' of width 8 is made of {made_of or 'none'}; adapt with frame='circuit'"
    with pytest.raises(ValueError, match=said):
        evaluate_under_noise(model)


def test_one_known_adapter_is_measured_in_the_precision_of_its_parameters():
    model = adapted().double()
    found = evaluate_under_noise(model)["base_model.model.0"]
    assert found.delta.dtype is torch.float64 and found.distance < 1e-12
    for unfit, settings, said in (
        (model, {"adapter": "nope"}, "the circuit adapter 'nope', got one with default"),
        (nn.Linear(2, 2), {}, "a model with a circuit adapter, got one with none"),
        (model, {"noise": "much"}, "noise is a Noise, got str"),
    ):
        with pytest.raises(ValueError, match=said):
            evaluate_under_noise(unfit, **settings)
    model.add_adapter("other", QCircuitConfig(r=2, target_modules=["0"]))
    model.base_model.set_adapter(["default", "other"])
    with pytest.raises(ValueError, match=r"model\.0: one adapter is measured, but default, other are active"):
        evaluate_under_noise(model)
    assert list(evaluate_under_noise(model, adapter="other")) == ["base_model.model.0"]


@pytest.mark.parametrize("name", ["depolarizing", "amplitude_damping", "phase_damping", "readout"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), True, "much"])
def test_a_probability_outside_0_to_1_is_refused(name, value):
    with pytest.raises(ValueError, match=f"noise: the probability {name} is a number from 0 to 1, got {value!r}"):
        Noise(**{name: value})


def test_other_bad_input_is_one_sentence():
    circuit = Circuit((3, 2), [Op("RY", (0,))])
    for backend, said in (
        ("qiskit", "'qiskit' simulates qubits only, but wire 0 has dimension 3"),
        ("torchquantum", "backend 'torchquantum' has no noise; 'native', 'pennylane' and 'qiskit' have"),
        ("pennylane:lightning.qubit", "backend 'pennylane:lightning.qubit' has no noise"),
    ):
        with pytest.raises(ValueError, match=said):
            density(circuit, drawn(3), ALL, backend=backend)
    with pytest.raises(ValueError, match="noise is a Noise, got float"):
        density(circuit, drawn(3), 0.1)
    with pytest.raises(ValueError, match="'pennylane' runs forward only"):
        density(Circuit((2,), [Op("RY", (0,))]), drawn(1).requires_grad_(), ALL, backend="pennylane")
    wide = load("tree").circuit(qubits=26, layers=0)
    with pytest.raises(ValueError, match=r"67108864 x 67108864, takes [0-9,]+ bytes"):
        density(wide, drawn(wide.n_angles), ALL)
