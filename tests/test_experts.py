"""Mixtures of experts, of which transformers keeps the experts in fused parameters, and gates of few outputs."""

import copy
import pickle
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from accelerate import cpu_offload
from bounds import close
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter
from reference import matrix
from tiny import CHAIN, close_gradient, told_by_a_fresh_process
from torch import Tensor, nn

from qcircuit_peft import QCircuitConfig, QPAConfig, circuits, load, parameter_count
from qcircuit_peft.analysis import entanglement_report, evaluate_under_noise, gradient_capture
from qcircuit_peft.circuit import Circuit
from qcircuit_peft.factorizations import FACTORIZATIONS
from qcircuit_peft.tuner.parameter import QCircuitParameter

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
MODELS = {
    "Mixtral": {"num_local_experts": 4},
    "Qwen3Moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8},
    "Olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "Qwen2Moe": {"num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    "GptOss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
    "Llama4Text": {"num_local_experts": 4, "head_dim": 8, "intermediate_size_mlp": 48},
    "DeepseekV3": {
        **{"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 2, "topk_group": 1},
        **{"first_k_dense_replace": 0, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "v_head_dim": 8},
        **{"qk_nope_head_dim": 8, "num_key_value_heads": 4},
    },
}

_GATES = ["shared_expert_gate"]
IDS = torch.arange(8).view(1, 8)
BOTH = ["experts.gate_up_proj", "experts.down_proj"]
each = pytest.mark.parametrize("name", MODELS)


def tiny(name: str, **change: Any) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**(SIZES | MODELS[name] | change))
    model = getattr(transformers, f"{name.removesuffix('Text')}ForCausalLM")(config).eval()
    with torch.no_grad():
        for p in model.parameters():  # some are not initialized at all
            p.copy_(torch.randn(p.shape) / 5)
    return model


def config(**change: Any) -> QCircuitConfig:
    return QCircuitConfig(**({"r": 4, "target_modules": [], "target_parameters": BOTH, "seed": 3} | change))


def adapted(name: str, sizes: dict[str, Any] | None = None, **change: Any) -> PeftModel:
    """A model with an adapter, of experts unless it is said, that does something."""
    net = get_peft_model(tiny(name, **(sizes or {})), config(**change))
    torch.manual_seed(1)
    with torch.no_grad():
        for p in net.parameters():
            if p.requires_grad:
                p += torch.randn(p.shape) / 20
    return net.eval()


def logits(model: nn.Module, **more: Any) -> Tensor:
    return model(input_ids=IDS, **more).logits


def same(found: Tensor, expected: Tensor) -> None:
    close(found.detach(), expected.detach(), 8 * CHAIN, dtype=torch.float32)


def layers(model: nn.Module) -> list[QCircuitParameter]:
    return [module for module in model.modules() if isinstance(module, QCircuitParameter)]


def frame_by_hand(circuit: Circuit, angles: Tensor, k: int) -> np.ndarray:
    return matrix(circuit, angles.double().numpy())[:, :k]


@pytest.mark.parametrize("share", [None, "experts"])
def test_every_expert_has_the_update_of_its_own_circuits(share: str | None) -> None:
    net, plain = adapted("Mixtral", share=share), tiny("Mixtral")
    ansatz = load("simplified_two_design")
    before = {layer: layer.get_base_weight().clone() for layer in layers(net)}
    net.merge_adapter()
    assert {layer.parameter_name for layer in before} == {"gate_up_proj", "down_proj"}
    for layer, weight in before.items():
        assert torch.equal(weight, getattr(plain.model.layers[0].mlp.experts, layer.parameter_name))
        values = {part: p.detach() for part, p in layer.intrinsic_parameters("default").items()}
        for expert in range(4):
            u, v = (
                frame_by_hand(
                    ansatz.circuit(dim=size, layers=1),
                    values[part] if share else values[part].view(4, -1)[expert],
                    4,
                )
                for part, size in (("u", layer.out_features), ("v", layer.in_features))
            )
            lam = values["lambda"].view(4, 4)[expert].double().numpy()
            delta = 128 / 4 * u @ np.diag(lam) @ v.T
            close(layer.get_base_weight()[expert] - weight[expert], delta, 16, 1 + abs(delta).max(), torch.float32)


@each
def test_outputs_gradients_merging_and_plain_lora(name: str, tmp_path: Path) -> None:
    base, net = tiny(name), adapted(name, target_modules=["o_proj"], rank_pattern={"experts.down_proj": 2})
    expected = logits(net)
    assert (expected - logits(base)).abs().max() > 0.01
    with net.disable_adapter():
        same(logits(net), logits(base))
    count = sum(p.numel() for p in net.parameters() if p.requires_grad)
    assert count == parameter_count(net.peft_config["default"], base)
    net.merge_adapter(safe_merge=True)
    same(logits(net), expected)
    net.unmerge_adapter()
    same(logits(net), expected)
    peft.save_as_lora(tmp_path, net, rank=4)
    lora = PeftModel.from_pretrained(tiny(name), tmp_path)
    assert any("lora_A" in key for key, _ in lora.named_parameters())
    same(logits(lora), expected)
    trained = {key: p for key, p in net.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(expected.square().sum(), list(trained.values()))
    merged = net.merge_and_unload()
    assert type(merged) is type(base)
    assert [key for key, _ in merged.named_modules()] == [key for key, _ in base.named_modules()]
    same(logits(merged), expected)
    assert all(grad.any() for grad in found)


def test_gradients_are_those_through_the_whole_weight() -> None:
    net = adapted("GptOss").double()  # whose experts are (in, out)
    net.config._experts_implementation = "eager"  # the others know no float64
    trained = [p for p in net.parameters() if p.requires_grad]
    found = torch.autograd.grad(logits(net).square().sum(), trained)
    weights = {}
    for layer in layers(net):
        delta = layer.factors["default"].delta(layer.made_now("default"))
        weights[f"model.layers.0.mlp.experts.{layer.parameter_name}"] = layer.get_base_weight() + delta.mT
    base = tiny("GptOss").double()
    base.config._experts_implementation = "eager"
    outputs = torch.func.functional_call(base, weights, (IDS,)).logits
    for one, other in zip(found, torch.autograd.grad(outputs.square().sum(), trained), strict=True):
        close_gradient(one, other)


@pytest.mark.parametrize("factorization", [name for name in FACTORIZATIONS if name not in ("rotation", "quanta")])
def test_other_factorizations(factorization: str, tmp_path: Path) -> None:
    net = adapted("Mixtral", factorization=factorization)
    expected = logits(net)
    net.save_pretrained(tmp_path)
    same(logits(PeftModel.from_pretrained(tiny("Mixtral"), tmp_path)), expected)
    same(logits(net.merge_and_unload()), expected)


@pytest.mark.parametrize(
    "change", [{}, {"share": "kind"}, {"quantization": {"bits": 3}}, {"target_modules": ["q_proj"]}]
)
def test_saved_and_loaded_in_every_way(change: dict[str, Any], tmp_path: Path) -> None:
    net = adapted("Mixtral", **change)
    net.add_adapter("other", config(r=2))
    expected = logits(net)
    net.save_pretrained(tmp_path)
    one = PeftModel.from_pretrained(tiny("Mixtral"), tmp_path / "other", adapter_name="other")
    one.load_adapter(tmp_path, "default")
    one.set_adapter("default")
    low = PeftModel.from_pretrained(tiny("Mixtral"), tmp_path, low_cpu_mem_usage=True)
    own = tiny("Mixtral")
    own.load_adapter(str(tmp_path))
    for model in (one, low, own, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(logits(model), expected)
    assert len(layers(one)) == 2
    net.set_adapter("other")
    net.delete_adapter("default")
    with net.disable_adapter():
        same(logits(net), logits(tiny("Mixtral")))
    assert not any("default" in name for name, _ in net.named_parameters())


def test_names_seeds_and_sharing_across_blocks() -> None:
    two = tiny("Mixtral", num_hidden_layers=2)
    net = get_peft_model(two, config(share="kind", layers_to_transform=[1], exclude_modules=["experts.down_proj"]))
    assert [layer.parameter_name for layer in layers(net)] == ["gate_up_proj"]
    assert [name for name, _, _ in circuits(net)] == [
        f"base_model.model.model.layers.1.mlp.experts.gate_up_proj.{part}" for part in "uv"
    ]
    net = get_peft_model(tiny("Mixtral", num_hidden_layers=2), config(share="kind"))
    assert sum("qcircuit_u" in name for name, _ in net.named_parameters()) == 2
    assert sum("qcircuit_lambda" in name for name, _ in net.named_parameters()) == 4
    names = [name for name, _, _ in circuits(get_peft_model(tiny("Mixtral"), config()))]
    assert names[:2] == [f"base_model.model.model.layers.0.mlp.experts.down_proj.u.{at}" for at in (0, 1)]
    drawn = [layers(get_peft_model(tiny("Mixtral"), config(target_parameters=t)))[-1] for t in (BOTH, BOTH[:1])]
    assert torch.equal(*(layer.qcircuit_u["default"] for layer in drawn))


def test_measures() -> None:
    net = adapted("Mixtral")
    rows = [row for row in entanglement_report(net) if row.part != "delta"]
    assert {row.layer.partition("experts.")[2] for row in rows} == {
        f"{kind}.{at}" for kind in ("down_proj", "gate_up_proj") for at in range(4)
    }
    assert {row.stage for row in rows} == {"initial", "now"}
    for name, found in evaluate_under_noise(net).items():
        assert found.distance < 1e-5 * found.norm, name
    with pytest.raises(
        ValueError, match=r"gradients are measured of linear layers, but .*experts' is a MixtralExperts"
    ):
        gradient_capture(net, [IDS], lambda model, x: model(input_ids=x, labels=x).loss)


def test_training_half_precision_checkpoints_and_offloading() -> None:
    net = adapted("Mixtral").train()
    trained = [p for p in net.parameters() if p.requires_grad]
    expected = torch.autograd.grad(logits(net).square().sum(), trained)
    x = torch.zeros(1, requires_grad=True)
    again = torch.utils.checkpoint.checkpoint(lambda x: logits(net) + x, x, use_reentrant=False)
    for one, other in zip(torch.autograd.grad(again.square().sum(), trained), expected, strict=True):
        close_gradient(one, other)
    with torch.autocast("cpu"):
        logits(net).float().sum().backward()
    half = get_peft_model(tiny("Mixtral").bfloat16(), config())
    logits(half).float().square().sum().backward()
    assert {p.grad.dtype for p in half.parameters() if p.requires_grad} == {torch.float32}
    net = adapted("Mixtral")
    before = logits(net)
    cpu_offload(net, execution_device="cpu", state_dict=net.state_dict())
    assert torch.equal(logits(net), before)


def test_threads_see_the_adapted_parameters() -> None:
    net, wrong = adapted("Mixtral"), []
    expected = logits(net)

    def run() -> None:
        for _ in range(20):
            wrong.append(float((logits(net) - expected).detach().abs().max()))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 80
    assert max(wrong) == 0


COMPILED = """
import sys
import torch
sys.path.insert(0, "tests")
from test_experts import adapted, logits
net = adapted("Mixtral")
expected = logits(net)
found = torch.compile(net, fullgraph=True, backend="eager")(input_ids=torch.arange(8).view(1, 8)).logits
assert (found - expected).abs().max() < 1e-5
found.square().sum().backward()
assert all(p.grad.any() for p in net.parameters() if p.requires_grad)
"""


@pytest.mark.slow
def test_compiled_in_one_graph(tmp_path: Path) -> None:
    told_by_a_fresh_process(COMPILED, tmp_path)


def test_strength_several_at_once_and_generated() -> None:
    net = adapted("Mixtral")
    net.add_adapter("other", config(r=2, seed=8))
    with torch.no_grad():
        for layer in layers(net):
            layer.qcircuit_lambda["other"].fill_(0.1)
    net.base_model.set_adapter(["default", "other"])
    for layer in layers(net):
        layer.set_scale("other", 0.5)
    expected = logits(net)
    same(logits(net.merge_and_unload()), expected)
    net = get_peft_model(tiny("Mixtral"), QPAConfig(base=config(), chunk_size=64, scope="model"))
    logits(net).sum().backward()
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
def test_what_is_refused_changes_nothing() -> None:
    def refuses(said: str, model: Any = None, **change: Any) -> None:
        model = tiny("Mixtral") if model is None else model
        before = [type(module) for module in model.modules()]
        with pytest.raises(ValueError, match=said):
            get_peft_model(model, config(**change))
        assert [type(module) for module in model.modules()] == before

    refuses("matrix or a stack .* 'weight' of a MixtralRMSNorm has shape", target_parameters=["norm.weight"])
    refuses("r is at most the smaller width", r=40)
    refuses("those of 'rotation' have the full one|those of this factorization are full", factorization="rotation")
    refuses("'rotation' have the full one", factorization="rotation", target_parameters=["mlp.gate.weight"])
    refuses("name one of both", target_modules=["q_proj"], target_parameters=["q_proj.weight"])
    refuses(
        "on the top-level module is not supported",
        tiny("Mixtral").model.layers[0].mlp.experts,
        target_parameters=["gate_up_proj"],
    )
    refuses("dropout is for inputs", dropout=0.1)
    refuses("target_parameters is a list of texts", target_parameters="experts.down_proj")
    model = tiny("Mixtral")
    nn.utils.parametrize.register_parametrization(model.model.layers[0].mlp.experts, "down_proj", nn.Identity())
    refuses("down_proj is parametrized", model)
    net = adapted("Mixtral")
    with pytest.raises(ValueError, match="all adapters must target the same set of parameters"):
        net.add_adapter("other", config(target_parameters=BOTH[:1]))
    assert list(net.peft_config) == ["default"]
    with pytest.raises(ValueError, match="does not support mixed adapter batches"):
        logits(net, adapter_names=["default"])
    same(logits(net, adapter_names=["__base__"]), logits(tiny("Mixtral")))
    lora = get_peft_model(tiny("Mixtral"), LoraConfig(r=2, target_modules=[], target_parameters=BOTH))
    with pytest.raises(ValueError, match="adapted as a whole"):
        peft.inject_adapter_in_model(config(), lora.base_model.model)


class Mixer(nn.Module):
    """A matrix of its own, beside layers inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = (nn.Parameter(torch.randn(3, 16, 16)) for _ in range(2))
        self.inside = nn.Linear(16, 16)
        self.deep = nn.Module()
        self.deep.w = nn.Parameter(torch.randn(16, 16))

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(x) @ self.gate[0] @ self.up[0] @ self.deep.w


def mixed() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"mixer": Mixer(), "out": nn.Linear(16, 16)})


PLACES = {  # what a first adapter has, and a second one, or one alone
    "a layer, by one adapter": (None, (["inside"], ["mixer.gate"])),
    "a parameter, by one adapter": (None, ([], ["mixer.gate", "deep.w"])),
    "a layer, then the parameter": ((["inside"], []), ([], ["mixer.gate"])),
    "a parameter, then one around it": (([], ["deep.w"]), ([], ["mixer.up"])),
    "the parameter, then a layer": (([], ["mixer.gate"]), (["inside", "out"], [])),
    "the parameter, then one inside": (([], ["mixer.gate"]), ([], ["deep.w"])),
}


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
@pytest.mark.parametrize("first, second", PLACES.values(), ids=PLACES)
def test_a_module_inside_one_of_an_adapted_parameter_is_refused(first: Any, second: Any) -> None:
    def settings(targets: tuple[list[str], list[str]]) -> QCircuitConfig:
        return QCircuitConfig(r=2, target_modules=targets[0], target_parameters=targets[1])

    net: Any = mixed() if first is None else get_peft_model(mixed(), settings(first))
    before = {name: type(module) for name, module in net.named_modules()}
    with pytest.raises(ValueError, match=r"is inside the module of the parameter .*, and only one of both is adapted"):
        if first is None:
            get_peft_model(net, settings(second))
        else:
            net.add_adapter("other", settings(second))
    assert {name: type(module) for name, module in net.named_modules()} == before


def test_numbers_of_one_parameter_are_not_those_of_another(tmp_path: Path) -> None:
    def one(which: str) -> PeftModel:
        return get_peft_model(
            mixed(), QCircuitConfig(r=2, target_modules=[], target_parameters=[which], init_weights=False)
        )

    saved, other = one("mixer.gate"), one("mixer.up")
    saved.save_pretrained(tmp_path)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    for way in (
        lambda: other.load_adapter(tmp_path, "default"),
        lambda: peft.set_peft_model_state_dict(other, peft.get_peft_model_state_dict(saved)),
        lambda: PeftModel.from_pretrained(mixed(), tmp_path, config=other.peft_config["default"]),
        lambda: hotswap_adapter(other, str(tmp_path), "default"),
    ):
        with pytest.raises(ValueError, match="with target_parameters = "):
            way()
        assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    one("mixer.gate").load_adapter(tmp_path, "default")


def test_parameters_are_named_wherever_one_looks_from() -> None:
    config = QCircuitConfig(r=2, target_modules=[], target_parameters=["mixer.gate", "mixer.up"])
    whole = get_peft_model(mixed(), config).base_model.model
    for at, expected in ((whole, "mixer.gate"), (whole["mixer"], "gate"), (whole["mixer"].base_layer, "gate")):
        assert f"{expected}.u" in [re.sub(r"\.\d+$", "", name) for name, _, _ in circuits(at)], at


def test_patterns_that_match_nothing_are_told() -> None:
    with pytest.warns(RuntimeWarning, match=r"keys match no targeted module or parameter and are ignored: \['up'\]"):
        get_peft_model(tiny("Mixtral"), config(rank_pattern={"up": 2, "experts.down_proj": 2}))


@pytest.mark.parametrize("name", ["Mixtral", "Qwen3Moe", "Olmoe", "Qwen2Moe"])
def test_fused_experts_are_named(name):
    config = QCircuitConfig(r=4, target_modules="all-linear", exclude_modules=_GATES if name == "Qwen2Moe" else None)
    with pytest.warns(
        UserWarning, match=r"leaves 2 fused parameters of experts .*'.*experts.*target_parameters=\['exp"
    ):
        net = get_peft_model(tiny(name), config)
    net(input_ids=IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)
    config.target_modules, config.target_parameters = "all-linear", BOTH
    assert len(layers(get_peft_model(tiny(name), config))) == 2  # and no warning


@pytest.mark.filterwarnings("ignore:target_modules=.all-linear. leaves")
def test_a_gate_of_one_output_is_refused_with_what_to_do():
    model = tiny("Qwen2Moe")
    with pytest.raises(ValueError, match=r"shared_expert_gate'.*exclude_modules, or .* rank_pattern"):
        get_peft_model(model, QCircuitConfig(r=4, target_modules="all-linear"))
    assert not any("qcircuit" in name for name, _ in model.named_parameters())
    net = get_peft_model(
        model, QCircuitConfig(r=4, target_modules="all-linear", rank_pattern={"shared_expert_gate": 1})
    )
    assert net.get_nb_trainable_parameters()[0] > 0


DENSE = {
    "DeepseekV3": {"first_k_dense_replace": 1, "num_hidden_layers": 2},
    "Qwen3Moe": {"mlp_only_layers": [0], "num_hidden_layers": 2},
    "Qwen2Moe": {},
}


@pytest.mark.filterwarnings("ignore:target_modules=.all-linear. leaves")
@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("DeepseekV3", "all-linear"),
        ("DeepseekV3", ["up_proj"]),
        ("Qwen3Moe", r".*\.mlp\.(up|gate)_proj"),
        ("Qwen3Moe", ["mlp.down_proj"]),
        ("Qwen2Moe", ["shared_expert.down_proj"]),
        ("DeepseekV3", ["o_proj", "kv_b_proj"]),
        ("Qwen3Moe", ["q_proj", "o_proj"]),
    ],
)
def test_a_plain_lora_is_the_same_or_not_written(name, targets, tmp_path):
    """PEFT takes names of dense layers for those of experts, in most models of this kind."""
    net = adapted(name, DENSE[name], target_modules=targets, target_parameters=None)
    expected = net(IDS).logits.detach()
    if name == "Qwen2Moe" or "o_proj" in targets:
        peft.save_as_lora(tmp_path, net, None)
        found = PeftModel.from_pretrained(tiny(name, **DENSE[name]), tmp_path)(IDS).logits.detach()
        close(found, expected, CHAIN)
        return
    with pytest.raises(ValueError, match=rf"a plain LoRA of a {name}ForCausalLM for those of its experts \("):
        peft.save_as_lora(tmp_path / "out", net, None)
    assert not (tmp_path / "out").exists()
