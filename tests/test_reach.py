"""Configurations beside each other: what they hold of a gradient, their limits, a model that stays as it is."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from qcircuit_peft import QCircuitConfig
from qcircuit_peft.analysis import best_capture, gradient_capture
from qcircuit_peft.reach import compare_captures, depths

X = torch.randn(20, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
Y = torch.randn(20, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def loss(model, batch):
    return (model(batch[0]) - batch[1]).square().sum()


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 8)).double()


def gradients(model):
    matrices = {}
    for layer in model:
        if isinstance(layer, nn.Linear):
            layer.weight.requires_grad_()
    loss(model, (X, Y)).backward()
    for name, layer in model.named_children():
        if isinstance(layer, nn.Linear):
            matrices[name] = layer.weight.grad
    return matrices


def test_the_best_of_a_rank_are_the_leading_singular_values():
    model = net()
    sizes = {name: torch.linalg.svdvals(g) for name, g in gradients(net()).items()}
    found = best_capture(model, ["0", "2"], [(X[:7], Y[:7]), (X[7:], Y[7:])], 2, loss)
    energy, nuclear = sum(s.square().sum() for s in sizes.values()), sum(s.sum() for s in sizes.values())
    assert found.share == found.full_share == pytest.approx(
        float(sum(s[:2].square().sum() for s in sizes.values()) / energy), rel=1e-12
    )  # fmt: skip
    assert found.nuclear == pytest.approx(float(sum(s[:2].sum() for s in sizes.values()) / nuclear), rel=1e-12)
    assert found.modules["2"].nuclear == pytest.approx(float(sizes["2"][:2].sum() / sizes["2"].sum()), rel=1e-12)


def test_the_nuclear_share_of_lambda_is_the_formula():
    settings = QCircuitConfig(r=4, layers=2, target_modules=["0", "2"], seed=0)
    model, matrices = get_peft_model(net(), settings), gradients(net())
    felt = {}
    for name, g in matrices.items():
        parts = model.base_model.model[int(name)].made_now("default")
        felt[name] = float((parts["u"].mT @ g @ parts["v"]).diagonal().abs().sum().detach())
    found = gradient_capture(model, [(X, Y)], loss)
    whole = {name: float(torch.linalg.svdvals(g).sum()) for name, g in matrices.items()}
    assert found.nuclear == pytest.approx(sum(felt.values()) / sum(whole.values()), rel=1e-6)
    for name, module in found.modules.items():
        key = name.rpartition(".")[2]
        assert module.nuclear == pytest.approx(felt[key] / whole[key], rel=1e-6)


def test_no_start_exceeds_the_best_of_its_rank_and_the_model_stays_as_it_is():
    model = net()
    model[2].weight.requires_grad_(False)
    before = {name: (p.detach().clone(), p.requires_grad) for name, p in model.named_parameters()}
    drawn = torch.random.get_rng_state()
    seen = []
    configs = {**depths(["0", "2"], 3, [0, 4], seed=0), "LoRA": LoraConfig(r=3, target_modules=["0", "2"])}
    rows = compare_captures(
        model, configs, [(X, Y)], loss, steps=60, progress=lambda done, total, name: seen.append((done, total))
    )
    by = {(row.name, row.start): row for row in rows}
    best = by["rank 3", "best"]
    assert all(row.share <= best.share + 1e-9 for row in rows if row.name.startswith("L = "))
    assert by["L = 4", "fitted"].share > 3 * by["L = 4", "random"].share
    assert by["L = 4", "fitted"].share > by["L = 4, no entanglers", "fitted"].share
    assert by["L = 4", "fitted"].numbers == by["L = 4, no entanglers", "fitted"].numbers
    assert by["LoRA, r = 1", "random"].numbers == 16 + 16 + 16 + 8 and ("LoRA", "fitted") not in by
    assert seen == [(at, 6) for at in range(6)]
    assert not hasattr(model, "peft_config") and type(model[0]) is nn.Linear
    assert torch.equal(drawn, torch.random.get_rng_state())
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name][0]) and p.requires_grad == before[name][1]


def test_bad_input_is_one_sentence_and_leaves_the_model():
    def refuses(said, *arguments, **options):
        with pytest.raises(ValueError, match=said):
            compare_captures(*arguments, **options)

    plain = net()
    refuses("one or more configurations of PEFT, of layers, by name, got {}", plain, {}, [(X, Y)], loss)
    refuses("configurations of PEFT, of layers, by name, got", plain, {"one": 3}, [(X, Y)], loss)
    refuses("a model without adapters, got None", None, depths(["0"], 2, [0]), [(X, Y)], loss)
    refuses("batches come in a list or a loader, of one too, got 'dict'", plain, depths(["0"], 2, [0]), {"x": X}, loss)
    refuses("a loss is a function of a model and a batch, got 'mse'", plain, depths(["0"], 2, [0]), [(X, Y)], "mse")
    refuses("starts is a whole number >= 2, got 1", plain, depths(["0"], 2, [0]), [(X, Y)], loss, starts=1)
    refuses("not found in the base model", plain, {"none": LoraConfig(target_modules=["query"])}, [(X, Y)], loss)
    refuses("r is at most the smaller width", plain, depths(["0"], 99, [0]), [(X, Y)], loss)
    assert all(p.requires_grad for p in plain.parameters()) and not hasattr(plain, "peft_config")
    with pytest.raises(ValueError, match="layers is a list of whole numbers >= 0, got 3"):
        depths(["0"], 2, 3)
    adapted = get_peft_model(net(), LoraConfig(target_modules=["0"]))
    refuses("a model without adapters", adapted, depths(["0"], 2, [0]), [(X, Y)], loss)
    refuses("the gradient is zero in every module", plain, depths(["0"], 2, [0]), [(X, Y)], lambda m, b: 0 * loss(m, b))
    assert type(plain[0]) is nn.Linear
    with pytest.raises(ValueError, match="the model has no module '7'"):
        best_capture(plain, ["7"], [(X, Y)], 2, loss)
    with pytest.raises(ValueError, match="r is a whole number >= 1, got 0"):
        best_capture(plain, ["0"], [(X, Y)], 0, loss)
