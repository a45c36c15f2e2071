"""Fisher spectra against a dense Fisher matrix in numpy, Fourier series against PennyLane and formulas."""

from math import log, pi

import numpy as np
import pennylane as qml
import pytest
import torch
from peft import get_peft_model
from tiny import adapted, inputs
from torch import nn

from qcircuit_peft import Affine, Circuit, Op, QCircuitConfig, load, state
from qcircuit_peft.analysis import fisher_spectrum, fourier_series, frequencies
from qcircuit_peft.analysis.fisher import FisherSpectrum
from qcircuit_peft.gates import GATES

X = torch.randn(12, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 3, (12,), generator=torch.Generator().manual_seed(1))


def softmax_net():
    torch.manual_seed(3)
    return nn.Linear(6, 3).double()


def log_likelihood(model, example):
    return nn.functional.cross_entropy(model(example[0])[None], example[1][None])


EXAMPLES = list(zip(X, Y, strict=True))


def scores_by_hand():
    """For every example and class: p(class), and the gradient of log p(class), which is (onehot - p) times (x, 1)."""
    net = softmax_net()
    w, b = net.weight.detach().numpy(), net.bias.detach().numpy()
    for x in X.numpy():
        z = w @ x + b
        p = np.exp(z - z.max())
        p /= p.sum()
        yield [(p[k], np.concatenate([np.outer(np.eye(3)[k] - p, x).ravel(), np.eye(3)[k] - p])) for k in range(3)]


@pytest.mark.parametrize("kind", ["empirical", "true"])
def test_the_eigenvalues_are_those_of_the_dense_matrix(kind):
    dense = np.zeros((21, 21))
    for rows, label in zip(scores_by_hand(), Y, strict=True):
        chosen = [(1.0, rows[int(label)][1])] if kind == "empirical" else rows
        dense += sum(p * np.outer(s, s) for p, s in chosen) / len(X)
    expected = np.linalg.eigvalsh(dense)[::-1]
    model = softmax_net()
    found = fisher_spectrum(
        model, EXAMPLES, log_likelihood, kind=kind, logits=lambda model, example: model(example[0])
    )  # fmt: skip
    assert (found.parameters, found.examples) == (21, 12)
    count = min(len(found.eigenvalues), 21)
    np.testing.assert_allclose(found.eigenvalues[:count], expected[:count], atol=1e-14)
    assert np.abs(expected[count:]).max(initial=0) < 1e-14
    assert found.trace == pytest.approx(np.trace(dense), rel=1e-12)
    assert found.participation == pytest.approx(np.trace(dense) ** 2 / np.trace(dense @ dense), rel=1e-10)
    assert found.felt == (expected >= expected[0] / 100).sum()
    k = 1000 / (2 * pi * log(1000))
    inside = np.linalg.slogdet(np.eye(21) + k * dense * 21 / np.trace(dense))[1]
    assert found.effective_dimension(1000) == pytest.approx(inside / log(k), rel=1e-10)


@pytest.mark.parametrize("scale", [5e-324, 1e-300, 1e-170, 1e170, 1e300])
def test_what_a_spectrum_says_does_not_hang_on_its_scale(scale):
    shape = torch.tensor([1.0, 0.5, 0.0] if scale > 1e-320 else [1.0, 0.0, 0.0], dtype=torch.float64)
    found, wanted = FisherSpectrum(shape * scale, 5, 9), FisherSpectrum(shape, 5, 9)
    assert found.participation == pytest.approx(wanted.participation, rel=1e-12)
    assert found.felt == wanted.felt
    assert found.effective_dimension(1000) == pytest.approx(wanted.effective_dimension(1000), rel=1e-12)
    with pytest.raises(ValueError, match="samples is a whole number 0 to"):
        found.effective_dimension(10**400)


def test_a_model_of_transformers_by_its_own_loss_and_logits_stays_as_it_is():
    model = adapted("gpt2").train()
    batch = inputs("gpt2")
    one = [{name: value[at : at + 1] for name, value in batch.items()} for at in range(2)]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = fisher_spectrum(model, one)
    assert found.examples == 2 and len(found.eigenvalues) == 2 and found.trace > 0
    assert all(m.training for m in model.modules()) and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    one[0]["input_ids"], one[0]["labels"] = one[0]["input_ids"][:, :1], one[0]["labels"][:, :1]
    wanted = [p for name, p in model.named_parameters() if "lambda" in name][:1]
    true = fisher_spectrum(model, [{"input_ids": one[0]["input_ids"]}], kind="true", parameters=wanted)
    assert true.parameters == wanted[0].numel() and true.trace > 0


def test_fisher_refuses_in_one_sentence():
    def refuses(said, *arguments, **options):
        with pytest.raises(ValueError, match=said):
            fisher_spectrum(*arguments, **options)

    net = softmax_net()
    refuses("kind is one of empirical, true", net, EXAMPLES, log_likelihood, kind="other")
    refuses("one or more examples, got none", net, [], log_likelihood)
    refuses("no parameter of the model does", softmax_net().requires_grad_(False), EXAMPLES, log_likelihood)
    refuses("a loss is one number", net, EXAMPLES, lambda m, e: m(e[0]))
    refuses("does not depend on what trains", net, EXAMPLES, lambda m, e: e[0].sum())
    refuses("NaN or infinite", net, EXAMPLES, lambda m, e: log_likelihood(m, e) * torch.inf)
    refuses("a batch is a table of arguments", net, EXAMPLES)
    refuses("a model with logits unless logits are given", net, EXAMPLES, kind="true")
    with pytest.raises(ValueError, match="is above 1, got"):
        fisher_spectrum(net, EXAMPLES, log_likelihood).effective_dimension(5)


def test_a_circuit_that_moves_in_few_directions_is_felt_in_few():
    config = QCircuitConfig(r=2, layers=6, ansatz="line_ry_cz", target_modules=["0"], seed=0, init_weights=False)
    with pytest.warns(UserWarning, match="directions"):
        model = get_peft_model(nn.Sequential(nn.Linear(16, 16)).double(), config)
    angles = [p for name, p in model.named_parameters() if "qcircuit_u" in name]
    x = torch.randn(60, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = fisher_spectrum(model, x, lambda model, x: model(x[None]).pow(3).sum(), parameters=angles)
    assert found.parameters == 28 and (found.eigenvalues[20:] < 1e-12 * found.trace).all()


def one_angle_circuits():
    for name, gate in GATES.items():
        if gate.angles == 1:
            wires = tuple(range(gate.wires))
            rest = [Op("H", (w,)) for w in wires] + [Op("RX", (w,)) for w in wires]
            ops = [*rest, Op(name, wires), *[Op("RY", (w,)) for w in wires]]
            yield name, Circuit((2,) * gate.wires, ops), gate.wires


@pytest.mark.parametrize("name, circuit, angle", list(one_angle_circuits()), ids=lambda value: str(value)[:12])
def test_the_series_of_every_gate_is_its_values(name, circuit, angle):
    angles = torch.rand(circuit.n_angles, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 6
    weights = torch.arange(circuit.dim, dtype=torch.float64)

    def observable(states):
        return states.abs().square() @ weights

    series = fourier_series(circuit, angles, angle, observable)
    at = torch.linspace(-9, 9, 31, dtype=torch.float64)
    moved = angles.expand(31, -1).clone()
    moved[:, angle] = at
    assert torch.allclose(series(at), observable(state(circuit, moved)), atol=1e-10)
    assert torch.allclose(series.coefficients, series.coefficients.flip(0).conj(), atol=1e-12)


def test_an_angle_at_several_gates_as_pennylane_has_it():
    circuit = Circuit((2, 2), [Op("RY", (0,), (0,)), Op("CX", (0, 1)), Op("RX", (1,), (0,)), Op("RY", (1,), (1,))])

    @qml.qnode(qml.device("default.qubit", wires=2))
    def run(t):
        qml.RY(t, 0)
        qml.CNOT([0, 1])
        qml.RX(t, 1)
        qml.RY(0.7, 1)
        return qml.probs([0, 1])

    assert frequencies(circuit, 0) == [0, 1, 2]
    expected = qml.fourier.coefficients(lambda t: run(t[0])[0], 1, 2)  # in the order 0, 1, 2, -2, -1
    series = fourier_series(circuit, torch.tensor([0.0, 0.7]), 0)
    np.testing.assert_allclose(series.coefficients, np.roll(expected, 2), atol=1e-12)


def test_scaled_angles_have_scaled_frequencies():
    ops = [Op("RY", (0,)), Op("RX", (0,))]
    circuit = Circuit((2,), ops, [Affine(((0, 3.0),), 0.2), Affine(((0, 0.5),))])
    assert frequencies(circuit, 0) == [0, 0.5, 2.5, 3, 3.5]
    series = fourier_series(circuit, torch.zeros(1), 0)
    t = torch.linspace(0, 5, 7, dtype=torch.float64)
    assert torch.allclose(series(t), (1 + torch.cos(3 * t + 0.2) * torch.cos(t / 2)) / 2, atol=1e-10)


def test_scales_that_are_no_decimals_keep_their_digits():
    scales = (1 / 3, 2 / 3, 1 / 7, 5 / 3)
    circuit = Circuit((2,), [Op("RY", (0,)) for _ in scales], [Affine(((0, scale),)) for scale in scales])
    series = fourier_series(circuit, torch.zeros(1), 0)
    t = torch.tensor([1.0, 1e3, 1e6], dtype=torch.float64)
    assert torch.allclose(series(t), (1 + torch.cos(sum(scales) * t)) / 2, atol=1e-9)
    near = Circuit((2,), [Op("RY", (0,)), Op("RX", (0,))], [Affine(((0, 1.0),)), Affine(((0, 1 + 2e-9),))])
    with pytest.raises(ValueError, match="told apart from a difference of 1e-06 on"):
        fourier_series(near, torch.zeros(1), 0)


def test_a_series_is_refused_in_one_sentence():
    circuit = load("tree").circuit(qubits=2, layers=1)
    for said, *arguments in (
        ("angle is a whole number 0 to", circuit, torch.zeros(circuit.n_angles), 99),
        (r"angles has the shape", circuit, torch.zeros(2), 0),
        ("no Fourier series that ends", load("tree").circuit(dim=6, layers=0), torch.zeros(4), 0),
        ("is not quadratic in the state", circuit, torch.full((circuit.n_angles,), 0.4), 0, lambda s: s[..., 0].abs()),
    ):
        with pytest.raises(ValueError, match=said):
            fourier_series(*arguments)
