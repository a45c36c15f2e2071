"""Frames inside a few directions of a weight: which these are, that they stay, and what is measured to be in them."""

import copy

import numpy as np
import pytest
import torch
from bounds import close
from peft import PeftModel, get_peft_model
from tiny import base, inputs, layers, logits
from torch import nn

from qcircuit_peft import QCircuitConfig, calibrate, load
from qcircuit_peft.analysis import best_capture, gradient_capture
from qcircuit_peft.ansatz import without_entanglers
from qcircuit_peft.factorizations import FACTORIZATIONS
from qcircuit_peft.factorizations.subspace import directions
from qcircuit_peft.frames import FRAMES
from qcircuit_peft.tuner import layer as layer_module

X = torch.randn(30, 24, generator=torch.Generator().manual_seed(1))
Y = torch.randn(30, 40, generator=torch.Generator().manual_seed(2))


def weight(n_out, n_in, seed=0):
    """A matrix whose singular values lie apart: 1, 0.9, ... of their order."""
    generator = torch.Generator().manual_seed(seed)
    left, _ = torch.linalg.qr(torch.randn(n_out, min(n_out, n_in), generator=generator, dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(n_in, min(n_out, n_in), generator=generator, dtype=torch.float64))
    return (left * 0.9 ** torch.arange(min(n_out, n_in))) @ right.mT


def loss(model, batch):
    return (model(batch[0]) - batch[1]).square().sum()


def made(**settings):
    net = nn.Sequential(nn.Linear(24, 40, bias=False)).double()
    with torch.no_grad():
        net[0].weight.copy_(weight(40, 24))
    options = {"factorization": "subspace", "r": 4, "target_modules": ["0"], "seed": 3, "init": "zeros"}
    return get_peft_model(net, QCircuitConfig(**(options | settings)))


@pytest.mark.parametrize(("shape", "k"), [((40, 24), 3), ((24, 40), 3), ((40, 24), 20), ((7, 7), 7)])
def test_directions_are_the_singular_vectors_of_numpy(shape, k):
    given = weight(*shape)
    left, right = directions(given, k)
    u, sizes, vh = np.linalg.svd(given.numpy())
    signs = np.sign(u[np.abs(u).argmax(0), range(u.shape[1])])[:k]
    gap = (sizes[k - 1] - (sizes[k] if k < len(sizes) else 0)) / sizes[0]
    for found, wanted in ((left, u[:, :k] * signs), (right, vh[:k].T * signs)):
        close(found, wanted, max(shape), 1 / gap)
    stack = torch.stack([given, given.flip(0)])
    close(directions(stack, k)[1][1], directions(given.flip(0), k)[1], 1)


def test_a_weight_of_zeros_or_of_small_rank_has_orthonormal_directions():
    for given in (torch.zeros(40, 24), torch.ones(40, 24), torch.eye(24)):
        for side in directions(given, 3):
            close(side.mT @ side, torch.eye(3), max(given.shape))


@pytest.mark.parametrize("core", ["diagonal", "full"])
def test_an_update_is_the_product_of_its_parts(core):
    factors = FACTORIZATIONS["subspace"](40, 24, 3, FRAMES["circuit"].spec, 2.0, size=8, core=core)
    sizes = {name: part.size for name, part in factors.parts.items()}
    assert sizes["basis_out"] == 40 * 8 and sizes["basis_in"] == 24 * 8
    values = {name: torch.randn(size, dtype=torch.float64) for name, size in sizes.items()}
    parts = {name: values[name] for name in sizes} | {
        name: factors.parts[name].frame.columns(values[name]) for name in ("u", "v")
    }
    a, b = values["basis_out"].numpy().reshape(40, 8), values["basis_in"].numpy().reshape(24, 8)
    between = np.diag(values["lambda"]) if core == "diagonal" else values["core"].numpy().reshape(3, 3)
    wanted = 2.0 * a @ parts["u"].numpy() @ between @ parts["v"].numpy().T @ b.T
    close(factors.delta(parts), wanted, 8 * 8, float(np.abs(wanted).max()))


def test_it_starts_in_the_first_directions_of_the_weight():
    """The gradient that lambda sees is u_i^T G v_i, of the weight's own singular vectors in numpy."""
    w = weight(40, 24).numpy()
    u, _, vh = np.linalg.svd(w)
    g = 2 * (X.double().numpy() @ w.T - Y.double().numpy()).T @ X.double().numpy()
    held = np.diag(u[:, :4].T @ g @ vh[:4].T)
    batch = (X.double(), Y.double())
    found = gradient_capture(made(), [batch], loss)
    assert found.share == pytest.approx((held**2).sum() / (g**2).sum(), rel=1e-9)
    turned = gradient_capture(made(init="uniform", factorization_options={"size": 8}), [batch], loss).share
    assert turned != pytest.approx(found.share, rel=1e-3)
    core = gradient_capture(made(factorization_options={"core": "full"}), [batch], loss).share
    whole = u[:, :4].T @ g @ vh[:4].T
    assert core == pytest.approx((whole**2).sum() / (g**2).sum(), rel=1e-9)


def test_its_controls_train_as_many_numbers():
    """No entangling gates; random directions: the counts are the same, the directions others."""
    plain = without_entanglers(load("simplified_two_design"))
    nets = [made(), made(ansatz=plain), made(factorization_options={"start": "random"})]
    counts = [sum(p.numel() for p in net.parameters() if p.requires_grad) for net in nets]
    assert counts[0] == counts[1] == counts[2] == 4 + 2 * 4
    kept = [layers(net)[0].values("default")["basis_out"].unflatten(0, (40, 4)) for net in nets]
    assert torch.equal(kept[0], kept[1])
    close(kept[2].mT @ kept[2], torch.eye(4), 40, 1.0, dtype=torch.float32)
    assert (kept[0].mT @ kept[2]).norm() < 0.9 * 2
    again = layers(made(factorization_options={"start": "random"}))[0].values("default")["basis_out"]
    assert torch.equal(again, kept[2].flatten())  # the seed's


@pytest.mark.parametrize("share", [None, "kind", "shape"])
def test_a_checkpoint_brings_what_it_has_kept(share, tmp_path, monkeypatch):
    """Loaded it is bit-equal, also on another weight, and nothing is looked for in the weight."""
    config = QCircuitConfig(r=3, factorization="subspace", share=share, target_modules=["query", "value"], seed=1)
    net = get_peft_model(base("bert"), config)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if "lambda" in name:
                p += torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
    net.eval().save_pretrained(tmp_path)
    monkeypatch.setattr(layer_module, "kept_of", None)
    loaded = PeftModel.from_pretrained(base("bert"), tmp_path, is_trainable=True)
    assert torch.equal(logits(loaded.eval(), "bert"), logits(net, "bert"))
    assert {n for n, p in loaded.named_parameters() if p.requires_grad} == {
        n for n, p in net.named_parameters() if p.requires_grad
    }
    assert not any("basis" in name for name, p in loaded.named_parameters() if p.requires_grad)
    other = base("bert")
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.25)
    kept = layers(PeftModel.from_pretrained(other, tmp_path))[0].values("default")["basis_in"]
    assert torch.equal(kept, layers(net)[0].values("default")["basis_in"])


def test_every_kind_of_module_has_directions_of_its_own_weight():
    net = nn.Sequential(nn.Embedding(30, 12), nn.Linear(12, 16), nn.Flatten(1), nn.Unflatten(1, (4, -1)))
    net.append(nn.Conv1d(4, 6, 3))
    matrices = [net[0].weight.detach().mT, net[1].weight.detach(), net[4].weight.detach().flatten(1)]
    config = QCircuitConfig(r=3, factorization="subspace", target_modules=["0", "1", "4"])
    adapted = get_peft_model(net, config)
    for layer, matrix in zip(layers(adapted), matrices, strict=True):
        left, right = directions(matrix, 4)
        assert torch.equal(layer.values("default")["basis_out"], left.flatten())
        assert torch.equal(layer.values("default")["basis_in"], right.flatten())
    plain = get_peft_model(copy.deepcopy(adapted.merge_and_unload()), config)
    assert layers(plain)[1].factors["default"].start == "svd"


def test_calibrated_directions_hold_what_the_best_do():
    batch = (X.double(), Y.double())
    model = made(factorization_options={"size": 8})
    before = gradient_capture(model, [batch], loss).share
    outputs = model(batch[0])
    found = calibrate(model, [batch], loss, directions=True, steps=3)
    assert torch.equal(model(batch[0]), outputs)
    net = nn.Sequential(copy.deepcopy(layers(model)[0].base_layer))
    best = best_capture(net, ["0"], [batch], 4, loss).share
    assert found.before == pytest.approx(before, abs=1e-6) and found.before < 0.6 * best
    assert found.after == pytest.approx(best, rel=1e-6)
    assert gradient_capture(model, [batch], loss).share == pytest.approx(best, rel=1e-6)


def test_calibrated_to_activations_they_are_those_of_inputs_and_outputs():
    model = made()
    calibrate(model, [X.double()], directions=True, goal="activations", steps=1)
    x, w = X.double().numpy(), weight(40, 24).numpy()
    u, sizes, vh = np.linalg.svd(w @ x.T @ x)
    kept = layers(model)[0].values("default")
    for name, wanted, n in (("basis_out", u[:, :4], 40), ("basis_in", vh[:4].T, 24)):
        basis = kept[name].numpy().reshape(n, 4)
        assert np.linalg.norm(wanted.T @ basis) == pytest.approx(2.0, abs=1e-6), sizes[:6]


def test_directions_are_taken_around_frames_that_are_not_trained():
    batch = (X.double(), Y)
    model = made(train_angles=False, init="zeros", layers=0, factorization_options={"size": 4})
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    found = calibrate(model, [batch], loss, directions=True)
    moved = {name.split(".")[-2] for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"qcircuit_basis_out", "qcircuit_basis_in"}
    assert found.before < found.after == pytest.approx(gradient_capture(model, [batch], loss).share, rel=1e-6)
    with pytest.raises(ValueError, match="does not train its part 'u'; fit it first, then freeze it"):
        calibrate(model, [batch], loss)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"factorization_options": {"size": 3}}, "subspace: size is a whole number 4 to 24, got 3"),
        ({"factorization_options": {"size": 25}}, "subspace: size is a whole number 4 to 24, got 25"),
        ({"factorization_options": {"core": "round"}}, "subspace: core is one of diagonal, full, got 'round'"),
        ({"factorization_options": {"start": "pca"}}, "subspace: start is one of svd, random, got 'pca'"),
    ],
)
def test_options_are_refused_in_one_sentence(settings, said):
    with pytest.raises(ValueError, match=said):
        made(**settings)


def test_a_weight_that_is_not_finite_is_named_and_the_model_stays():
    net = base("bert")
    module = net.bert.encoder.layer[1].attention.self.query
    with torch.no_grad():
        module.weight[0, 0] = torch.nan
    config = QCircuitConfig(r=2, factorization="subspace", target_modules=["query"])
    with pytest.raises(ValueError, match=r"module '.*1\.attention\.self\.query': a weight with NaN or infinite"):
        get_peft_model(net, config)
    assert not any("qcircuit" in name for name, _ in net.named_parameters())
    assert inputs("bert")


def test_directions_of_an_adapter_that_keeps_none_are_refused():
    with pytest.raises(ValueError, match="keeps no directions; factorization='subspace' does"):
        calibrate(made(factorization="svd"), [(X.double(), Y.double())], loss, directions=True)
