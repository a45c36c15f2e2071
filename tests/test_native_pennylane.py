"""The native engine against PennyLane's own ``SimplifiedTwoDesign``: matrix, state and gradient."""

import pennylane as qml
import pytest
import torch
from bounds import close, gates

from qcircuit_peft import columns, load, matrix, state


def in_their_shapes(angles, q, layers):
    """Our angle vector as their (initial_layer_weights, weights): both are in time order."""
    return angles[:q], angles[q:].reshape(layers, q - 1, 2)


def drawn(q, layers):
    circuit = load("simplified_two_design").circuit(qubits=q, layers=layers)
    angles = torch.rand(circuit.n_angles, generator=torch.Generator().manual_seed(q), dtype=torch.float64)
    shapes = qml.SimplifiedTwoDesign.shape(n_layers=layers, n_wires=q)
    assert circuit.n_angles == sum(torch.Size(shape).numel() for shape in shapes)
    return circuit, (4 * torch.pi * angles).requires_grad_()


def their_matrix(angles, q, layers):
    def template(initial, weights):
        qml.SimplifiedTwoDesign(initial, weights, wires=range(q))

    return qml.matrix(template, wire_order=range(q))(*in_their_shapes(angles, q, layers))


@pytest.mark.parametrize("layers", [0, 1, 2, 3])
@pytest.mark.parametrize("q", [2, 3, 4, 5, 6])
def test_matrix_and_gradient_agree_with_pennylane(q, layers):
    circuit, angles = drawn(q, layers)
    ours, theirs = matrix(circuit, angles), their_matrix(angles, q, layers)
    assert theirs.imag.abs().max() == 0
    close(ours, theirs.real, gates(circuit), size=1)
    cotangent = torch.randn(ours.shape, dtype=torch.float64)
    (our_gradient,) = torch.autograd.grad(ours, angles, cotangent)
    (their_gradient,) = torch.autograd.grad(theirs.real, angles, cotangent)
    close(our_gradient, their_gradient, gates(circuit), size=cotangent.norm())


@pytest.mark.parametrize("q", [2, 5, 12])
def test_state_and_gradient_agree_with_a_pennylane_qnode(q):
    circuit, angles = drawn(q, 2)

    @qml.qnode(qml.device("default.qubit", wires=q), interface="torch", diff_method="backprop")
    def their_state(initial, weights):
        qml.SimplifiedTwoDesign(initial, weights, wires=range(q))
        return qml.state()

    ours, theirs = state(circuit, angles), their_state(*in_their_shapes(angles, q, 2))
    close(ours, theirs.real, gates(circuit), size=1)
    cotangent = torch.randn(2**q, dtype=torch.float64)
    (our_gradient,) = torch.autograd.grad(ours, angles, cotangent)
    (their_gradient,) = torch.autograd.grad(theirs.real, angles, cotangent)
    close(our_gradient, their_gradient, gates(circuit), size=cotangent.norm())


def test_eight_columns_of_a_wide_circuit_agree_with_pennylane():
    q, layers = 10, 2
    circuit, angles = drawn(q, layers)
    basis = torch.eye(8, 2**q, dtype=torch.complex128)

    @qml.qnode(qml.device("default.qubit", wires=q), interface="torch", diff_method=None)
    def rows(initial, weights):
        qml.StatePrep(basis, wires=range(q), validate_norm=False)
        qml.SimplifiedTwoDesign(initial, weights, wires=range(q))
        return qml.state()

    theirs = rows(*in_their_shapes(angles.detach(), q, layers)).T
    close(columns(circuit, angles.detach(), 8), theirs.real, gates(circuit), size=1)
