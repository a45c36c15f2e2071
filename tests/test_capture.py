"""What an adapter holds of a task's gradient: dense Jacobians by finite differences, and formulas."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import adapted, base, config, inputs
from torch import nn

from qcircuit_peft import QCircuitConfig
from qcircuit_peft.analysis import gradient_capture
from qcircuit_peft.factorizations import FACTORIZATIONS
from qcircuit_peft.frames import FRAMES

X = torch.randn(20, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
Y = torch.randn(20, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def loss(model, batch):
    return (model(batch[0]) - batch[1]).square().sum()


def made(settings, shake=0.0):
    torch.manual_seed(5)
    model = get_peft_model(nn.Sequential(nn.Linear(12, 8, bias=False)).double(), settings)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += shake * torch.randn(p.shape, dtype=p.dtype)
    return model


def by_differences(model):
    """The share of G in the span of central differences of the layer's whole matrix, by least squares."""
    layer = model.base_model.model[0]
    with torch.no_grad():
        weight = layer(torch.eye(12, dtype=torch.float64)).mT
        g = (2 * (X @ weight.mT - Y)).mT @ X
        columns, h = [], 1e-6
        for p in [p for p in model.parameters() if p.requires_grad]:
            for entry in range(p.numel()):
                sides = []
                for sign in (1, -1):
                    p.view(-1)[entry] += sign * h
                    sides.append(layer(torch.eye(12, dtype=torch.float64)).mT)
                    p.view(-1)[entry] -= sign * h
                columns.append(((sides[0] - sides[1]) / (2 * h)).flatten())
    j = torch.stack(columns, -1)
    left, sizes, _ = torch.linalg.svd(j, full_matrices=False)
    span = left[:, sizes > 1e-7 * sizes[0]]
    return float((span.mT @ g.flatten()).square().sum() / g.square().sum())


def ours(**settings):
    return QCircuitConfig(**({"r": 2, "target_modules": ["0"]} | settings))


ALL = {f"factorization {name}": ours(factorization=name, r=4) for name in FACTORIZATIONS}
ALL |= {f"frame {name}": ours(frame=name) for name in FRAMES if name != "diagonal"}
ALL |= {"lora": LoraConfig(r=2, target_modules=["0"])}


@pytest.mark.parametrize("shake", [0.0, 0.3])
@pytest.mark.parametrize("name", ALL)
def test_the_share_is_that_of_the_span_of_differences(name, shake):
    model = made(ALL[name], shake)
    assert gradient_capture(model, [(X, Y)], loss).full_share == pytest.approx(by_differences(model), abs=1e-5)


def test_the_share_of_lambda_is_the_formula():
    model = made(ours(r=4), 0.3)
    layer = model.base_model.model[0]
    parts = layer.made_now("default")
    g = (2 * (X @ layer(torch.eye(12, dtype=torch.float64)) - Y)).mT @ X
    expected = ((parts["u"].mT @ g @ parts["v"]).diagonal().square().sum() / g.square().sum()).detach()
    found = gradient_capture(model, [(X[:9], Y[:9]), (X[9:], Y[9:])], loss)
    assert found.share == pytest.approx(float(expected), abs=1e-9)
    assert found.share < found.full_share < 1


def test_shared_circuits_move_all_modules_at_once():
    def share(kind):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Sequential(nn.Linear(12, 12)), nn.Sequential(nn.Linear(12, 12)), nn.Linear(12, 8)
        ).double()
        model = get_peft_model(model, ours(target_modules=["0.0", "1.0"], share=kind, seed=0))
        torch.manual_seed(1)
        for name, p in model.named_parameters():
            if "lambda" in name:
                nn.init.normal_(p)
        return gradient_capture(model, [(X, Y)], loss)

    tied = share("shape")
    apart = sum(m.full_share * m.energy for m in tied.modules.values()) / sum(m.energy for m in tied.modules.values())
    assert tied.share < tied.full_share < apart - 1e-3


@pytest.mark.parametrize("model", ["gpt2", "bert"])
def test_nothing_of_a_model_changes(model):
    whole = adapted(model).train()
    before = {name: value.clone() for name, value in whole.state_dict().items()}
    found = gradient_capture(whole, [inputs(model)])
    assert 0 < found.share <= found.full_share + 1e-6 < 1 and len(found.modules) > 2
    assert all(module.training for module in whole.modules())
    assert all(p.grad is None for p in whole.parameters())
    assert all(torch.equal(value, before[name]) for name, value in whole.state_dict().items())


def test_bad_input_is_one_sentence():
    def refuses(said, model, batches=((X, Y),), by=loss):
        with pytest.raises(ValueError, match=said):
            gradient_capture(model, batches, by)

    bert = get_peft_model(base("bert"), config("bert"))
    ids = {"input_ids": inputs("bert")["input_ids"]}
    refuses(r"with labels unless a loss is given, got \['input_ids'\]", bert, [ids], None)
    refuses("the loss does not depend on module 'base_model.model.0'", made(ours()), by=lambda m, b: b[0].sum())
    refuses("the loss does not depend on module", made(ours()), [])
    for batches, found in (({"x": X}, "dict"), (None, "NoneType"), ("text", "str"), (7, "int")):
        refuses(f"batches come in a list or a loader, of one too, got '{found}'", made(ours()), batches)
    refuses("a loss is a function of a model and a batch, got 3", made(ours()), by=3)
    refuses("a model with an adapter of PEFT, got one without", None)
    refuses("NaN or infinite", made(ours()), by=lambda m, b: loss(m, b) * float("inf"))
    refuses("the gradient is zero in every module", made(ours()), by=lambda m, b: 0 * loss(m, b))
    refuses("a loss is one number for a batch", made(ours()), by=lambda m, b: m(b[0]))
    refuses("a model with an adapter of PEFT, got one without", nn.Linear(12, 8))
    frozen, merged = made(ours()), made(ours())
    refuses("has no trained parameters", frozen.requires_grad_(False))
    merged.merge_adapter()
    refuses("has a merged or disabled adapter", merged)
