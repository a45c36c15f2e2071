"""Angles that are fitted to a task before training: what is climbed, what stays, what is refused."""

import copy

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model
from tiny import base, config, inputs, told_by_a_fresh_process
from torch import nn

from qcircuit_peft import QCircuitConfig, QPAConfig, calibrate
from qcircuit_peft.analysis import gradient_capture
from qcircuit_peft.factorizations import FACTORIZATIONS
from qcircuit_peft.frames import FRAMES
from qcircuit_peft.frames.lie import TOLERANCE

X = torch.randn(20, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
Y = torch.randn(20, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
WITHOUT = ("tensor_ring", "quanta", "rotation")  # frames around plain numbers whose directions are orthonormal


def loss(model, batch):
    return (model(batch[0]) - batch[1]).square().sum()


def made(**settings):
    torch.manual_seed(5)
    config = QCircuitConfig(**({"r": 4, "target_modules": ["0"], "seed": 3} | settings))
    return get_peft_model(nn.Sequential(nn.Linear(12, 8, bias=False)).double(), config)


def fresh(name):
    return get_peft_model(base(name), config(name))


def parameters(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())


CASES = {f"factorization {name}": {"factorization": name} for name in FACTORIZATIONS if name not in WITHOUT}
CASES |= {f"frame {name}": {"frame": name} for name in FRAMES if name != "diagonal"}

SERIES = {"frame taylor", "frame neumann"}  # orthonormal to TOLERANCE


@pytest.mark.parametrize("name", CASES)
def test_more_of_the_gradient_is_held_and_outputs_stay(name):
    model = made(**CASES[name])
    before, share = model(X), gradient_capture(model, [(X, Y)], loss).share
    found = calibrate(model, [(X[:7], Y[:7]), (X[7:], Y[7:])], loss, steps=60)
    assert torch.equal(model(X), before)
    error = 8 * TOLERANCE if name in SERIES else 1e-5  # two frames, whose products add up to a square
    assert found.before == pytest.approx(share, abs=error)
    assert found.after == pytest.approx(gradient_capture(model, [(X, Y)], loss).share, abs=error)
    assert found.after > found.before + 0.02
    model.base_model.model[0].warn_of_norms("default")  # no frame has left the norms where it is orthonormal


@pytest.mark.parametrize("core", ["svd", "shared_core"])
def test_the_share_is_the_formula(core):
    model = made(factorization=core)
    found = calibrate(model, [(X, Y)], loss, steps=5)
    parts = model.base_model.model[0].made_now("default")
    u, v, w = (t.detach().numpy() for t in (parts["u"], parts["v"], model.base_model.model[0].base_layer.weight))
    g = 2 * (X.numpy() @ w.T - Y.numpy()).T @ X.numpy()
    held = u.T @ g @ v
    held = np.diag(held) if core == "svd" else held
    assert found.after == pytest.approx((held**2).sum() / (g**2).sum(), abs=1e-6)


def test_circuits_that_reach_everything_hold_all_of_one_direction():
    model = made(factorization="shared_core", layers=6)
    found = calibrate(model, [(X[:1], Y[:1])], loss, steps=400)  # the gradient of one sample is of rank one
    assert found.before < 0.5 and found.after > 0.999


def test_without_normalizing_the_energy_is_what_counts():
    def fitted(normalize):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Sequential(nn.Linear(12, 12)), nn.Sequential(nn.Linear(12, 12)), nn.Linear(12, 8))
        with torch.no_grad():
            model[1][0].weight *= 0.05  # the first layer's gradient is small
        settings = {"r": 2, "target_modules": ["0.0", "1.0"], "share": "shape", "seed": 0, "layers": 4}
        model = get_peft_model(model.double(), QCircuitConfig(**settings))
        return calibrate(model, [(X, Y)], loss, steps=300, normalize=normalize)

    one, other = fitted(True), fitted(False)
    assert other.after > one.after + 1e-3
    assert sum(after for _, after in one.modules.values()) > sum(after for _, after in other.modules.values()) + 1e-3


def test_activations_need_no_labels_and_fit_inputs_and_outputs():
    model = made(factorization="shared_core", layers=6)
    found = calibrate(model, [X], goal="activations", steps=300)
    w = model.base_model.model[0].base_layer.weight.detach()
    energies = torch.linalg.svdvals(w @ X.mT @ X).square()
    best = float(energies[:4].sum() / energies.sum())  # what the leading 4 x 4 directions hold
    assert found.before < 0.6 * best and 0.97 * best < found.after < best + 1e-6


def test_it_is_deterministic_and_goes_on():
    one, two = made(), made()
    found = [calibrate(model, [(X, Y)], loss, steps=20) for model in (one, two)]
    assert found[0] == found[1] and same(parameters(one), parameters(two))
    more = calibrate(one, [(X, Y)], loss, steps=20)
    assert more.before == pytest.approx(found[0].after, abs=1e-9) and more.after >= more.before


def test_interrupted_it_leaves_the_best_so_far():
    model = made()

    def stop(step, steps, share):
        assert steps == 50
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(model, [(X, Y)], loss, steps=50, progress=stop)
    start = calibrate(made(), [(X, Y)], loss, steps=1).before
    assert gradient_capture(model, [(X, Y)], loss).share > start


def test_modules_are_measured_in_turn_where_memory_is_small():
    def fitted(**settings):
        model, passes = fresh("bert"), []
        batch = inputs("bert")
        found = calibrate(model, [batch], lambda m, b: passes.append(1) or m(**b).loss, steps=3, **settings)
        return found, parameters(model), len(passes)

    found, values, passes = fitted()
    few, others, more = fitted(memory=1)
    assert passes == 1 and more == len(found.modules) > 2
    assert found == few and same(values, others)


@pytest.mark.parametrize("model", ["gpt2", "bert"])
def test_only_angles_change(model, tmp_path):
    whole = fresh(model).train()
    before, frozen = parameters(whole), copy.deepcopy(whole.base_model)
    state = torch.random.get_rng_state()
    found = calibrate(whole, [inputs(model)], steps=10)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert found.after > found.before and len(found.modules) > 2
    assert all(module.training for module in whole.modules()) and all(p.grad is None for p in whole.parameters())
    changed = {name.split(".")[-2] for name, p in parameters(whole).items() if not torch.equal(p, before[name])}
    assert changed == {"qcircuit_u", "qcircuit_v"}
    whole.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(frozen.unload(), tmp_path, is_trainable=True)
    assert torch.equal(loaded.eval()(**inputs(model)).logits, whole.eval()(**inputs(model)).logits)
    assert gradient_capture(loaded, [inputs(model)]).share == pytest.approx(found.after, rel=1e-3)


def test_few_bits_are_fitted_as_they_are_used():
    model = made(quantization={"bits": 4})
    found = calibrate(model, [(X, Y)], loss, steps=60)
    assert found.after == pytest.approx(gradient_capture(model, [(X, Y)], loss).share, abs=1e-5)
    assert found.after > found.before


def merged(model):
    model.merge_adapter()


def trained(model):
    with torch.no_grad():
        model.base_model.model[0].qcircuit_lambda["default"][1] = 0.5


def inactive(model):
    model.add_adapter("other", model.peft_config["default"])


def two(model):
    model.add_adapter("other", model.peft_config["default"])
    model.base_model.set_adapter(["default", "other"])


BAD = {
    "merged": ({}, merged, {}, "merged or disabled; unmerge"),
    "trained": ({}, trained, {}, "is not at its start, where lambda is zero"),
    "frozen": ({"train_angles": False}, None, {}, "does not train its part 'u'"),
    "two": ({}, two, {}, "one adapter is fitted at a time, but default, other are active"),
    "inactive": ({}, inactive, {"adapter": "other"}, "is not active; call set_adapter"),
    "unknown adapter": ({}, None, {"adapter": "x"}, "the circuit adapter 'x'"),
    "no scaling": ({"alpha": 0}, None, {}, "has no frames around plain numbers with a scaling"),
    "goal": ({}, None, {"goal": "hessian"}, "goal is one of"),
    "steps": ({}, None, {"steps": 0}, "steps"),
    "rate": ({}, None, {"rate": -1}, "rate"),
    "memory": ({}, None, {"memory": 0}, "memory"),
    "no batches": ({}, None, {"batches": []}, "does not depend on module"),
    "no labels": ({}, None, {"loss": None}, "with labels unless a loss is given"),
    "one batch": ({}, None, {"batches": {"x": X}}, "batches come in a list or a loader, of one too, got 'dict'"),
    "no function": ({}, None, {"loss": "mse"}, "a loss is a function of a model and a batch, got 'mse'"),
    "infinite": ({}, None, {"loss": lambda m, b: loss(m, b) * float("inf")}, "NaN or infinite"),
    "zero": ({}, None, {"loss": lambda m, b: 0 * loss(m, b)}, "zero in every module"),
}
BAD |= {
    name: ({"factorization": name}, None, {}, "has no frames around plain numbers with a scaling") for name in WITHOUT
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence_and_nothing_changes(name):
    settings, change, given, said = BAD[name]
    model = made(**settings)
    if change:
        change(model)
    before = parameters(model)
    with pytest.raises(ValueError, match=said):
        calibrate(model, **{"batches": [(X, Y)], "loss": loss} | given)
    assert same(parameters(model), before)


def test_batches_that_end_are_refused_where_they_are_needed_again():
    model = fresh("bert")
    before = parameters(model)
    with pytest.raises(ValueError, match="have to be a list or a loader, got list_iterator"):
        calibrate(model, iter([inputs("bert")]), memory=1)
    assert same(parameters(model), before)


def test_generated_angles_are_not_fitted():
    torch.manual_seed(0)
    base = QCircuitConfig(r=4, target_modules=["0"], seed=0)
    model = get_peft_model(nn.Sequential(nn.Linear(12, 8)).double(), QPAConfig(base=base, seed=0))
    before = parameters(model)
    with pytest.raises(ValueError, match="has its part 'u' generated, which is not fitted"):
        calibrate(model, [(X, Y)], loss)
    assert same(parameters(model), before)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_size_of_a_loss_does_not_matter(scale):
    found = [calibrate(made(), [(X, Y)], lambda m, b, s=s: loss(m, b) * s, steps=20) for s in (1, scale)]
    assert found[1].after == pytest.approx(found[0].after, abs=1e-4) and found[1].after > found[1].before


COMPILED = """
import sys, torch
sys.path.insert(0, "tests")
from test_calibration import X, Y, calibrate, loss, made
one, other = made(), made()
compiled = torch.compile(other, backend="eager")
compiled(X)
found, expected = (calibrate(model, [(X, Y)], loss, steps=5) for model in (compiled, one))
print((found.before, found.after) == (expected.before, expected.after))
"""


def test_a_compiled_model_is_fitted_as_it_is(tmp_path):
    assert told_by_a_fresh_process(COMPILED, tmp_path).split() == ["True"]
