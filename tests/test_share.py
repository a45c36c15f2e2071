"""Circuits that layers share: stored, generated and saved once, and the same updates as copies in every layer."""

import copy
import pickle

import pytest
import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from tiny import adapted, base, close_gradient, close_logits, config, each_model, inputs, layers, logits, shake
from torch import nn

from qcircuit_peft import QCircuitConfig, parameter_count

SHARED = {"r": 4, "share": "kind", "seed": 3, "dropout": 0.0}


def held(model: nn.Module, adapter: str = "default") -> list[tuple[str, ...]]:
    """The parts that each layer holds itself."""
    return [
        tuple(name.removeprefix("qcircuit_") for name in layer.adapter_layer_names if adapter in getattr(layer, name))
        for layer in layers(model)
    ]


@each_model
def test_a_kind_has_one_circuit_pair_and_a_lambda_for_each_module(model: str) -> None:
    net = get_peft_model(base(model), config(model, **SHARED))
    half = len(layers(net)) // 2  # in each of two blocks; BERT has a pooler after them
    first, second, rest = layers(net)[:half], layers(net)[half : 2 * half], layers(net)[2 * half :]
    assert held(net) == [("u", "v", "lambda")] * half + [("lambda",)] * half + [("u", "v", "lambda")] * len(rest)
    for one, other in zip(first, second, strict=True):
        mine, theirs = (layer.intrinsic_parameters("default") for layer in (one, other))
        assert mine["u"] is theirs["u"] and mine["v"] is theirs["v"] and mine["lambda"] is not theirs["lambda"]
    assert len(get_peft_model_state_dict(net)) == 4 * half + 3 * len(rest)
    assert parameter_count(config(model, **SHARED), base(model)) == net.get_nb_trainable_parameters()[0]


def test_modules_of_one_shape_share_too() -> None:
    net = get_peft_model(base("llama"), config("llama", share="shape"))  # q 64 to 64, v 64 to 32, up 64 to 96
    assert held(net) == [("u", "v", "lambda"), ("u", "lambda"), ("u", "lambda"), *[("lambda",)] * 3]


@pytest.mark.parametrize("ranks", [{}, {r".*\.0\..*": 2}, {r".*\.1\..*": 2}], ids=["one rank", "more", "fewer"])
@each_model
def test_outputs_and_gradients_are_those_of_copies(model: str, ranks: dict[str, int]) -> None:
    shared = adapted(model, **SHARED, rank_pattern=ranks).train()
    copies = adapted(model, **SHARED | {"share": None}, rank_pattern=ranks).train()
    groups: dict[int, list[nn.Parameter]] = {}
    for one, other in zip(layers(shared), layers(copies), strict=True):
        for part, value in one.intrinsic_parameters("default").items():
            mine = other.intrinsic_parameters("default")[part]
            mine.data.copy_(value)
            groups.setdefault(id(value), []).append(mine)
    for net in (shared, copies):
        net.base_model.bank.clear()
        net(**inputs(model)).loss.backward()
    close_logits(shared, model, logits(copies, model))
    for parameter in shared.parameters():
        if parameter.requires_grad:
            close_gradient(parameter.grad, sum(p.grad for p in groups[id(parameter)]))


def test_a_shared_circuit_is_generated_once() -> None:
    net = adapted("bert", **SHARED)
    logits(net, "bert")
    [generation] = net.base_model.bank.passes._thread.kept.values()
    angles = [p for name, p in net.named_parameters() if p.requires_grad and "lambda" not in name]
    assert sorted(map(id, generation.batch.parameters)) == sorted(map(id, angles))
    assert net.base_model.bank.passes.generations == 1


def test_a_layer_that_did_not_take_part_leaves_its_lambda_alone() -> None:
    made = nn.ModuleDict({str(k): nn.ModuleDict({"a": nn.Linear(24, 24)}) for k in range(2)})
    net = shake(get_peft_model(made, QCircuitConfig(r=4, target_modules=["a"], share="kind")))
    first, second = layers(net)
    second(torch.randn(3, 24)).square().sum().backward()
    assert first.qcircuit_u["default"].grad.any() and second.qcircuit_lambda["default"].grad.any()
    assert first.qcircuit_lambda["default"].grad is None


@pytest.mark.parametrize("sparing", [False, True])
def test_reload_stays_tied(tmp_path: object, sparing: bool) -> None:
    net = adapted("llama", **SHARED)
    net.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base("llama"), tmp_path, low_cpu_mem_usage=sparing, is_trainable=True)
    assert held(loaded) == held(net) and torch.equal(logits(loaded.eval(), "llama"), logits(net, "llama"))
    before = logits(loaded, "llama")
    with torch.no_grad():
        layers(loaded)[0].qcircuit_v["default"].add_(0.3)
    changed = [layer.get_delta_weight("default") for layer in layers(loaded)]
    kept = [layer.get_delta_weight("default") for layer in layers(net)]
    moved = [not torch.allclose(a, b) for a, b in zip(changed, kept, strict=True)]
    assert moved == [True, False, False, True, False, False] and not torch.equal(logits(loaded, "llama"), before)


def test_copies_pickles_and_a_second_adapter_are_on_their_own() -> None:
    net = adapted("bert", **SHARED)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(logits(other, "bert"), logits(net, "bert"))
        holder, borrower = layers(other)[0], layers(other)[len(layers(other)) // 2]
        assert borrower.lenders["default"]["u"] is holder and holder is not layers(net)[0]
    net.add_adapter("alone", config("bert"))
    net.set_adapter("alone")
    shake(net, "alone", seed=1)
    assert all(sorted(parts) == ["lambda", "u", "v"] for parts in held(net, "alone"))
    net.delete_adapter("default")
    assert all("default" not in layer.lenders for layer in layers(net))
    assert torch.isfinite(logits(net, "bert")).all()


def test_bad_sharing_is_refused() -> None:
    with pytest.raises(ValueError, match="share is one of experts, kind, shape, got 'all'"):
        config("llama", share="all")
    split = base("llama")
    split.model.layers[1].self_attn.q_proj.to("meta")
    with pytest.raises(ValueError, match=r"modules that share a circuit are on one device, but u of .*layers\.1"):
        get_peft_model(split, config("llama", **SHARED))
    assert not layers(split)


def test_rotations_are_shared_and_gates_without_a_circuit_are_refused() -> None:
    net = get_peft_model(base("bert"), config("bert", share="kind", factorization="rotation"))
    half = len(layers(net)) // 2
    assert held(net) == [("angles",)] * half + [()] * half + [("angles",)] * (len(layers(net)) - 2 * half)
    net(**inputs("bert")).loss.backward()
    assert all(p.grad.any() for p in net.parameters() if p.requires_grad)
    with pytest.raises(ValueError, match=r"share='kind': module .* has no circuit or other frame to share"):
        get_peft_model(base("bert"), config("bert", share="kind", factorization="quanta"))
