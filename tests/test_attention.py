"""nn.MultiheadAttention, whose two weights are adapted by its name, by itself and in torch's own transformer layers."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from bounds import close
from peft import LoraConfig, PeftModel, get_peft_model
from reference import matrix
from safetensors.torch import load_file
from tiny import CHAIN, close_gradient, told_by_a_fresh_process
from torch import Tensor, nn

from qcircuit_peft import QCircuitConfig, circuits, load, parameter_count
from qcircuit_peft.analysis import entanglement_report
from qcircuit_peft.factorizations import FACTORIZATIONS
from qcircuit_peft.tuner import lora
from qcircuit_peft.tuner.attention import WEIGHTS, QCircuitAttention

WIDTH = 12
X = torch.randn(3, 5, WIDTH, generator=torch.Generator().manual_seed(3))
PADDING = torch.arange(5).expand(3, 5) > torch.tensor([[2], [4], [3]])


class Model(nn.Module):
    """An attention called with whatever it takes."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attn = nn.MultiheadAttention(WIDTH, 2, **options)
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor, **given: Any) -> Tensor:
        return self.head(self.attn(x, x.flip(0), x, **given)[0])


def settings(**change: Any) -> QCircuitConfig:
    return QCircuitConfig(**({"r": 3, "target_modules": ["attn"], "seed": 1} | change))


def stirred(net: Any, seed: int = 2) -> Any:
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            if p.requires_grad:
                p += torch.randn(p.shape) / 4
    return net.eval()


def adapted(change: dict[str, Any] | None = None, **options: Any) -> PeftModel:
    return stirred(get_peft_model(Model(**options), settings(**change or {})))


def same(found: Tensor, expected: Tensor) -> None:
    close(found.detach(), expected.detach(), 8 * CHAIN, dtype=torch.float32)


def layers(model: nn.Module) -> list[QCircuitAttention]:
    return [module for module in model.modules() if isinstance(module, QCircuitAttention)]


def by_hand(layer: QCircuitAttention) -> Tensor:
    """The weight with its update, each frame from the dense matrix of its circuit."""
    ansatz, values = load("simplified_two_design"), layer.values("default")
    u, v = (
        matrix(ansatz.circuit(dim=size, layers=1), values[part].detach().double().numpy())[:, :3]
        for part, size in (("u", layer.out_features), ("v", layer.in_features))
    )
    delta = 128 / 3 * u @ np.diag(values["lambda"].detach().double().numpy()) @ v.T
    return layer.get_base_weight() + torch.as_tensor(delta.real, dtype=torch.float32)


CALLS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "as it comes": ({}, {}),
    "without weights": ({"batch_first": True}, {"need_weights": False}),
    "padded": ({"batch_first": True}, {"key_padding_mask": PADDING}),
    "causal": ({}, {"attn_mask": torch.ones(3, 3, dtype=torch.bool).triu(1), "need_weights": False}),
    "no bias": ({"bias": False}, {}),
    "more keys": ({"add_bias_kv": True, "add_zero_attn": True}, {}),
}


@pytest.mark.parametrize("options, given", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("grad", [True, False])
def test_both_weights_have_the_updates_of_their_own_circuits(options: Any, given: Any, grad: bool) -> None:
    net, plain = adapted(**options), Model(**options).eval()
    outer, inner = layers(net)
    assert (inner.parameter_name, outer.parameter_name) == WEIGHTS
    assert (outer.out_features, inner.out_features) == (3 * WIDTH, WIDTH)
    before = plain(X, **given)
    with torch.no_grad():
        plain.attn.in_proj_weight.copy_(by_hand(outer))
        plain.attn.out_proj.weight.copy_(by_hand(inner))
    with torch.set_grad_enabled(grad):
        found = net(X, **given)
    same(found, plain(X, **given))
    assert (found - before).abs().max() > 0.1
    with net.disable_adapter():
        same(net(X, **given), before)
    net.merge_adapter(safe_merge=True)
    same(net(X, **given), found)
    net.unmerge_adapter()
    same(net(X, **given), found)
    merged = net.merge_and_unload()
    assert [type(module) for module in merged.modules()] == [type(module) for module in plain.modules()]
    same(merged(X, **given), found)


ENCODER = nn.TransformerEncoderLayer
KINDS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "encoder": (lambda: nn.TransformerEncoder(ENCODER(WIDTH, 2, 16, batch_first=True), 2), ["self_attn"]),
    "with other layers": (
        lambda: nn.TransformerEncoder(ENCODER(WIDTH, 2, 16, batch_first=True), 2),
        ["self_attn", "linear1"],
    ),
    "decoder": (
        lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(WIDTH, 2, 16, batch_first=True), 1),
        ["self_attn", "multihead_attn"],
    ),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage:UserWarning")
@pytest.mark.parametrize("make, targets", KINDS.values(), ids=KINDS)
def test_torchs_own_layers_do_not_pass_the_adapter_by(make: Callable[[], nn.Module], targets: list[str]) -> None:
    torch.manual_seed(0)
    plain = make().eval()
    calls = [{"src_key_padding_mask": PADDING}, {}] if isinstance(plain, nn.TransformerEncoder) else [{"memory": X}]
    net = stirred(get_peft_model(copy.deepcopy(plain), settings(target_modules=targets)))
    merged = copy.deepcopy(net).merge_and_unload()
    kept = ~PADDING
    for call in calls:
        expected = merged(X, **call)
        with torch.no_grad():
            inferred = net(X, **call)
        same(inferred[kept], expected[kept])
        same(net(X, **call)[kept], expected[kept])
        assert (inferred[kept] - plain(X, **call)[kept]).abs().max() > 0.01
    net.train()(X, **calls[0]).sum().backward()
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)


@pytest.mark.parametrize("factorization", [name for name in FACTORIZATIONS if name not in ("rotation", "quanta")])
def test_gradients_are_those_through_the_whole_weights(factorization: str) -> None:
    net = adapted({"factorization": factorization, "factorization_options": {}}).double()
    trained, x = [p for p in net.parameters() if p.requires_grad], X.double()
    found = torch.autograd.grad(net(x).square().sum(), trained)
    weights = {
        f"attn.{layer.parameter_name}": layer.get_base_weight()
        + layer.factors["default"].delta(layer.made_now("default"))
        for layer in layers(net)
    }
    outputs = torch.func.functional_call(Model().double(), weights, (x,))
    for one, other in zip(found, torch.autograd.grad(outputs.square().sum(), trained), strict=True):
        close_gradient(one, other)
    y = torch.zeros(1, requires_grad=True)
    again = torch.utils.checkpoint.checkpoint(lambda y: net(x) + y, y, use_reentrant=False)
    for one, other in zip(torch.autograd.grad(again.square().sum(), trained), found, strict=True):
        close_gradient(one, other)


@pytest.mark.parametrize("change", [{}, {"share": "shape"}, {"quantization": {"bits": 3}}])
def test_saved_loaded_copied_and_switched(change: dict[str, Any], tmp_path: Path) -> None:
    net = adapted({**change, "target_modules": ["attn", "head"]})
    net.add_adapter("other", settings(r=2, init_weights=False))
    expected = net(X)
    net.save_pretrained(tmp_path)
    one = PeftModel.from_pretrained(Model(), tmp_path / "other", adapter_name="other")
    one.load_adapter(tmp_path, "default")
    one.set_adapter("default")
    low = PeftModel.from_pretrained(Model(), tmp_path, low_cpu_mem_usage=True)
    for model in (one, low, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(model.eval()(X), expected)
    assert len(layers(one)) == 2
    net.set_adapter("other")
    other = net(X)
    assert (other - expected).abs().max() > 0.1
    net.delete_adapter("default")
    assert torch.equal(net(X), other)
    for layer in layers(net):
        layer.set_scale("other", 0.5)
    half = net(X)
    assert (half - other).abs().max() > 0.01
    same(net.merge_and_unload()(X), half)


def test_names_ranks_seeds_counts_and_measures() -> None:
    net = get_peft_model(Model(), settings(rank_pattern={"attn": 2}, alpha_pattern={"attn": 8}))
    for layer in layers(net):
        assert (layer.factors["default"].rank, layer.factors["default"].scaling) == (2, 4)
    names = [name.removeprefix("base_model.model.") for name, _, _ in circuits(net)]
    assert names == [f"attn.{weight}.{part}" for weight in reversed(WEIGHTS) for part in "uv"]
    assert parameter_count(net.peft_config["default"], Model()) == net.get_nb_trainable_parameters()[0]
    outer, inner = layers(net)
    assert not torch.equal(outer.qcircuit_v["default"], inner.qcircuit_v["default"])
    keys = {key.removeprefix("base_model.model.") for key in peft.get_peft_model_state_dict(net)}
    assert keys == {
        f"{place}.qcircuit_{part}" for place in ("attn", "attn.base_layer") for part in ("u", "v", "lambda")
    }
    assert {row.layer.partition("attn.")[2] for row in entanglement_report(net)} == {*WEIGHTS}
    linear = get_peft_model(Model(), settings(target_modules="all-linear"))
    assert [name for name, _ in linear.named_modules() if name.endswith("head")] and not layers(linear)


def test_half_precision_and_autocast() -> None:
    for whole in (False, True):
        net = get_peft_model(Model().bfloat16() if whole else Model(), settings())
        with torch.autocast("cpu", enabled=not whole):
            net(X.bfloat16() if whole else X).float().square().sum().backward()
        assert {p.grad.dtype for p in net.parameters() if p.requires_grad} == {torch.float32}


def test_a_plain_lora_is_the_same_where_peft_runs_it_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = adapted({"target_modules": ["attn", "head"]})
    if not lora._attention_is_right():
        with pytest.raises(ValueError, match=r"out_proj twice .*#3774.* plain LoRA of 'attn' would be another .*merge"):
            peft.save_as_lora(tmp_path, net, rank=3)
        assert not list(tmp_path.iterdir())
    monkeypatch.setattr(lora, "_attention_is_right", lambda: True)
    peft.save_as_lora(tmp_path / "whole", net, rank=3)
    uneven = copy.deepcopy(net)
    with torch.no_grad():
        for layer, numbers in zip(layers(uneven), ([1.0, 1, 1], [1.0, 0, 0]), strict=True):
            layer.qcircuit_lambda["default"].copy_(torch.tensor(numbers))
    peft.save_as_lora(tmp_path, uneven, rank=0.99)  # LoRA knows one rank for both weights
    ranks = PeftModel.from_pretrained(Model(), tmp_path).base_model.model.attn
    assert {ranks.r["default"], ranks.base_layer.out_proj.r["default"]} == {3}
    there = PeftModel.from_pretrained(Model(), tmp_path / "whole").base_model.model.attn
    state, plain = load_file(tmp_path / "whole" / "adapter_model.safetensors"), Model().eval()
    assert {key for key in state if "attn" in key} == {
        f"base_model.model.{place}.lora_{kind}.weight"
        for place in ("attn", "attn.base_layer.out_proj")
        for kind in "AB"
    }
    for place, weight, theirs in (
        ("attn", plain.attn.in_proj_weight, there),
        ("attn.base_layer.out_proj", plain.attn.out_proj.weight, there.base_layer.out_proj),
        ("head", plain.head.weight, None),
    ):
        a, b = (state[f"base_model.model.{place}.lora_{kind}.weight"] for kind in "AB")
        if theirs is not None:
            same(theirs.get_delta_weight("default"), b @ a)
        with torch.no_grad():
            weight += b @ a
    same(plain(X), net(X))


def test_the_probe_knows_a_peft_that_is_mended(monkeypatch: pytest.MonkeyPatch) -> None:
    def once(self: Any, safe_merge: bool = False, adapter_names: Any = None) -> None:
        self.base_layer.out_proj.merge(adapter_names=adapter_names)

    monkeypatch.setattr(peft.tuners.lora.layer.MultiheadAttention, "merge", once)
    assert lora._attention_is_right.__wrapped__()


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
def test_what_is_refused_changes_nothing() -> None:
    def refuses(said: str, model: Any = None, **change: Any) -> None:
        model = Model() if model is None else model
        before = [type(module) for module in model.modules()]
        with pytest.raises(ValueError, match=said):
            if isinstance(model, PeftModel):
                model.add_adapter("other", settings(**change))
            else:
                get_peft_model(model, settings(**change))
        assert [type(module) for module in model.modules()] == before

    refuses("a MultiheadAttention with kdim=8 and vdim=12 beside embed_dim=12; circuits adapt one", Model(kdim=8))
    refuses("kdim=12 and vdim=8 beside", Model(vdim=8))
    model = Model()
    model.attn.__class__ = type("Own", (nn.MultiheadAttention,), {"forward": lambda *given: given})
    refuses("circuits adapt one with torch's own forward", model)
    refuses("dropout is for inputs, of which the weights of 'attn', a MultiheadAttention, see none", dropout=0.1)
    refuses("r is at most the smaller width of a module, 12 for 'attn'", r=13)
    refuses("those of 'rotation' have the full one", factorization="rotation")
    refuses("takes .*MultiheadAttention as a whole", target_modules=["out_proj"])
    refuses("is inside the module of the parameter", target_modules=["attn", "out_proj"])
    refuses("name one of both", target_parameters=["attn.in_proj_weight"])
    refuses(
        "never calls its layer; name 'attn' in target_modules", target_parameters=["out_proj.weight"], target_modules=[]
    )
    refuses("is inside the module of the parameter 'attn.out_proj.weight'", adapted(), target_modules=["out_proj"])
    one = get_peft_model(Model(), settings(target_modules=[], target_parameters=["attn.in_proj_weight"]))
    assert [layer.parameter_name for layer in layers(one)] == ["in_proj_weight"]
    refuses("'attn' has its parameter 'in_proj_weight' adapted; adapt it by target_parameters", one)
    refuses(
        "must target the same set of parameters of 'attn'",
        adapted(),
        target_modules=[],
        target_parameters=["attn.in_proj_weight"],
    )
    model = Model()
    nn.utils.parametrize.register_parametrization(model.attn, "in_proj_weight", nn.Identity())
    refuses("whose in_proj_weight and out_proj.weight are parameters of its own", model)
    net = adapted()
    with pytest.raises(ValueError, match="does not support mixed adapter batches"):
        net(X, adapter_names=["default"] * 3)
    assert torch.equal(net(X, adapter_names=["__base__"] * 3), Model().eval()(X))
    net.base_model.model.head.weight = net.base_model.model.attn.base_layer.base_layer.out_proj.weight
    with pytest.raises(ValueError, match="shares its weight with 'head'"):
        net.merge_adapter()
    lora_there = get_peft_model(Model(), LoraConfig(target_modules=["attn"]))
    with pytest.raises(ValueError, match=r"target module 'attn' is a .*lora"):
        peft.inject_adapter_in_model(settings(), lora_there.base_model.model)


COMPILED = """
import sys
import torch
sys.path.insert(0, "tests")
from test_attention import X, adapted, same
net = adapted()
found = torch.compile(net, fullgraph=True, backend="eager")(X)
same(found, net(X))
found.square().sum().backward()
assert all(p.grad.any() for p in net.parameters() if p.requires_grad)
"""


@pytest.mark.slow
def test_compiled_in_one_graph(tmp_path: Path) -> None:
    told_by_a_fresh_process(COMPILED, tmp_path)
