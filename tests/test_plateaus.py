"""How a loss's derivatives scatter over random starts: against closed forms, numpy and the shift rule of RY."""

from math import pi

import numpy as np
import pytest
import reference
import torch
from peft import get_peft_model
from tiny import base, inputs
from torch import nn

from qcircuit_peft import QCircuitConfig, QPAConfig, circuits
from qcircuit_peft.analysis import task_gradient_variance
from qcircuit_peft.reach import compare_captures, depths

X = torch.randn(20, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
Y = torch.randn(20, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
SETTINGS = {"r": 3, "layers": 1, "target_modules": ["0"], "seed": 3}


def loss(model, batch):
    return (model(batch[0]) - batch[1]).square().sum()


def net():
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(16, 8, bias=False)).double()


def made(**settings):
    return get_peft_model(net(), QCircuitConfig(**(SETTINGS | settings)))


def by_kind(rows):
    return {row.kind: row for row in rows}


@pytest.mark.parametrize("layers", [0, 3])
def test_at_zero_lambda_scatters_as_random_columns_do_and_angles_not_at_all(layers):
    w = net()[0].weight.detach().numpy()
    g = 2 * (X.numpy() @ w.T - Y.numpy()).T @ X.numpy()
    found = by_kind(task_gradient_variance(made(layers=layers), [(X, Y)], loss, spread=0, samples=600))
    scaling = 128 / 3
    wanted = scaling**2 * (g**2).sum() / (16 * 8)
    row = found["lambdas"]
    assert row.low < wanted < row.high and row.high < 1.6 * row.low
    assert found["angles"].variance == 0 == found["angles"].high
    assert (row.parameters, found["angles"].parameters, row.samples) == (3, made_angles(layers), 600)


def made_angles(layers):
    return sum(len(angles) for _, _, angles in circuits(made(layers=layers)))


def test_every_derivative_is_that_of_numpy():
    """dU / d angle of a circuit of RY and CZ is U with that angle pi further, halved; the mean and variance by hand."""
    model, starts = made(), []

    def noted(model, batch):
        layer = model.base_model.model[0]
        starts.append({part: p.detach().numpy().copy() for part, p in layer.own_parameters("default").items()})
        return loss(model, batch)

    found = by_kind(task_gradient_variance(model, [(X[:9], Y[:9]), (X[9:], Y[9:])], noted, spread=0.3, samples=4))
    named = {name.rpartition(".")[2]: circuit for name, circuit, _ in circuits(model)}
    w, slopes = net()[0].weight.detach().numpy(), {"angles": [], "lambdas": []}
    assert len(starts) == 8 and all((starts[2 * at]["u"] == starts[2 * at + 1]["u"]).all() for at in range(4))
    for start in starts[::2]:
        sides = {part: reference.columns(named[part], start[part], 3).real for part in "uv"}
        scaling, between = 128 / 3, np.diag(start["lambda"])
        delta = scaling * sides["u"] @ between @ sides["v"].T
        g = 2 * (X.numpy() @ (w + delta).T - Y.numpy()).T @ X.numpy()
        slopes["lambdas"].append(scaling * np.diag(sides["u"].T @ g @ sides["v"]))
        mine = []
        for part in "uv":
            for at in range(len(start[part])):
                moved = start[part].copy()
                moved[at] += pi
                turned = sides | {part: reference.columns(named[part], moved, 3).real / 2}
                mine.append((g * (scaling * turned["u"] @ between @ turned["v"].T)).sum())
        slopes["angles"].append(mine)
    for kind, rows in slopes.items():
        assert found[kind].variance == pytest.approx(np.array(rows).var(0, ddof=1).mean(), rel=1e-9), kind


def test_the_model_stays_and_the_same_seed_gives_the_same():
    model = get_peft_model(base("bert"), QCircuitConfig(r=3, share="kind", target_modules=["query", "value"])).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    state = torch.random.get_rng_state()
    one, two = (task_gradient_variance(model, [inputs("bert")], samples=3, seed=1) for _ in range(2))
    assert one == two and {row.kind for row in one} == {"angles", "lambdas"}
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in model.named_parameters())
    assert torch.equal(torch.random.get_rng_state(), state) and all(m.training for m in model.modules())
    trained = sum(p.numel() for name, p in model.named_parameters() if p.requires_grad)
    assert sum(row.parameters for row in one) == trained


@pytest.mark.parametrize(
    ("settings", "kinds"),
    [
        ({"train_angles": False}, {"lambdas"}),
        ({"factorization": "shared_core"}, {"angles", "cores"}),
        ({"factorization": "subspace"}, {"angles", "lambdas"}),
        ({"factorization": "rotation"}, {"angles"}),
        ({"frame": "householder"}, {"frames", "lambdas"}),
    ],
)
def test_there_is_a_row_for_what_trains(settings, kinds):
    model = made(**settings)
    kept = {name: p.detach().clone() for name, p in model.named_parameters() if "basis" in name}
    rows = task_gradient_variance(model, [(X, Y)], loss, samples=3)
    assert {row.kind for row in rows} == kinds and all(row.variance > 0 for row in rows)
    assert all(torch.equal(dict(model.named_parameters())[name], value) for name, value in kept.items())


def test_configurations_are_told_apart_by_how_they_scatter():
    configs = depths(["0"], 3, [0, 2], seed=0)
    rows = compare_captures(net(), configs, [(X, Y)], loss, fit=False, starts=5)
    measured = [row for row in rows if row.name in configs]
    assert len(measured) == 3 and all(row.angles_scatter > 0 and row.numbers_scatter > 0 for row in measured)
    assert all(row.angles_scatter is None for row in rows if row.name not in configs)
    plain = compare_captures(net(), configs, [(X, Y)], loss, fit=False)
    assert all(row.numbers_scatter is None for row in plain)


def merged(model):
    model.merge_adapter()


def still(model):
    model.requires_grad_(False)


BAD = {
    "merged": ({}, merged, {}, "merged, disabled or not active; unmerge"),
    "frozen": ({}, still, {}, "but none of them is trained"),
    "init": ({}, None, {"init": "round"}, "init is one of uniform, normal, zeros"),
    "spread": ({}, None, {"spread": -1}, "spread is a number from 0"),
    "samples": ({}, None, {"samples": 1}, "samples is a whole number 2 to"),
    "seed": ({}, None, {"seed": -1}, "seed"),
    "adapter": ({}, None, {"adapter": "x"}, "the circuit adapter 'x'"),
    "no batches": ({}, None, {"batches": []}, "one or more batches, got none"),
    "one batch": ({}, None, {"batches": {"x": X}}, "batches come in a list or a loader, of one too, got 'dict'"),
    "no function": ({}, None, {"loss": 3}, "a loss is a function of a model and a batch, got 3"),
    "no labels": ({}, None, {"loss": None}, "with labels unless a loss is given"),
    "infinite": ({}, None, {"loss": lambda m, b: loss(m, b) * float("inf")}, "a loss is one finite number"),
    "several": ({}, None, {"loss": lambda m, b: m(b[0])}, "a loss is one finite number for a batch"),
    "elsewhere": ({}, None, {"loss": lambda m, b: b[0].sum()}, "the loss does not depend on the adapter"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence_and_nothing_changes(name):
    settings, change, given, said = BAD[name]
    model = made(**settings)
    if change:
        change(model)
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    with pytest.raises(ValueError, match=said):
        task_gradient_variance(model, **{"batches": [(X, Y)], "loss": loss} | given)
    assert all(torch.equal(p, before[key]) for key, p in model.named_parameters())


def test_what_is_generated_is_not_drawn():
    model = get_peft_model(net(), QPAConfig(base=QCircuitConfig(**SETTINGS), seed=0))
    with pytest.raises(ValueError, match="has its part 'u' generated, which is not drawn"):
        task_gradient_variance(model, [(X, Y)], loss)
