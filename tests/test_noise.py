"""Noise: the native density matrix against Kraus operators written out here, PennyLane's default.mixed and Aer."""

from itertools import product

import numpy as np
import pytest
import reference
import torch

from qcircuit_peft import Circuit, Noise, Op, density, load, probabilities, state
from qcircuit_peft.gates import GATES

SIMULATORS = ["pennylane", "qiskit"]
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


def written_out(circuit, angles, noise):
    rho = np.zeros((circuit.dim, circuit.dim), dtype=complex)
    rho[0, 0] = 1
    for op in circuit.ops:
        u = reference.embed(reference._op_matrix(circuit, op, angles), circuit.dims, op.wires)
        rho = u @ rho @ u.conj().T
        for wire, channel in product(op.wires, kraus(noise)):
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


@pytest.mark.parametrize("name", ["depolarizing", "amplitude_damping", "phase_damping", "readout"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), True, "much"])
def test_a_probability_outside_0_to_1_is_refused(name, value):
    with pytest.raises(ValueError, match=f"noise: {name} is a probability from 0 to 1, got {value!r}"):
        Noise(**{name: value})


def test_other_bad_input_is_one_sentence():
    circuit = Circuit((3, 2), [Op("RY", (0,))])
    for backend, said in (
        ("native", "'native with noise' simulates qubits only, but wire 0 has dimension 3"),
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
