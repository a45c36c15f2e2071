"""Every factorization inside a model, through PEFT: a new entry of ``FACTORIZATIONS`` is tested by being added."""

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from bounds import close
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.conversion import convert_to_lora
from tiny import CHAIN, MODELS, close_forward, close_gradient, close_logits, close_product, inputs, layers, logits
from tiny import base as two_blocks
from torch import nn

from qcircuit_peft import QCircuitConfig, circuits, parameter_count
from qcircuit_peft.factorizations import FACTORIZATIONS
from qcircuit_peft.factorizations.parts import Vector, frames, trained_sizes
from qcircuit_peft.tuner.layer import adapted_layers

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

# What differs from the automatic choice; the widths of the tiny models are 32, 48, 64, 96, 144 and 192.
OPTIONS: dict[str, dict[str, Any]] = {
    "cp": {"axes": {"64": [4, 16], "96": [8, 12]}},
    "tensor_train": {"order": 3},
    "std": {"order": 3},
    "quanta": {"order": 3, "seed": 7},
    "rotation": {"side": "in"},
}
CASES = [(name, {}) for name in FACTORIZATIONS] + list(OPTIONS.items())
NAMES = [name + "_2" * bool(options) for name, options in CASES]
each = pytest.mark.parametrize(("name", "options"), [(name, OPTIONS.get(name, {})) for name in FACTORIZATIONS])
each_in_each = pytest.mark.parametrize(
    ("model", "name", "options"),
    [*(("llama", *case) for case in CASES), *(("gpt2", name, {}) for name in FACTORIZATIONS)],  # gpt2 has Conv1D
    ids=str,
)
FULL_RANK = {"quanta", "rotation"}


def base(model: str) -> Any:
    """A model of one block, with three modules to adapt."""
    return two_blocks(model, **{"gpt2": {"n_layer": 1}, "llama": {"num_hidden_layers": 1}}[model])


def config(name: str, model: str = "llama", options: dict[str, Any] | None = None, **change: Any) -> QCircuitConfig:
    fields = {"r": 4, "alpha": 12, "factorization": name, "factorization_options": options or {}}
    return QCircuitConfig(**({"target_modules": MODELS[model][1], **fields} | change))


def shake(model: nn.Module, adapter: str = "default", seed: int = 0) -> Any:
    """Move all parameters of an adapter, so that it does something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "qcircuit_" in name and name.endswith(adapter):
                p += torch.randn(p.shape, generator=generator) / 10
    return model


def adapted(name: str, model: str = "llama", options: dict[str, Any] | None = None, **change: Any) -> PeftModel:
    return shake(get_peft_model(base(model), config(name, model, options, **change))).eval()


@each_in_each
def test_zero_at_the_start_then_trained_then_switched_off(model: str, name: str, options: dict[str, Any]) -> None:
    plain = base(model)
    expected = logits(plain, model)
    net = get_peft_model(plain, config(name, model, options))
    assert torch.equal(logits(net.eval(), model), expected)
    start = {key: p.detach().clone() for key, p in net.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in net.train().parameters() if p.requires_grad], lr=0.02, weight_decay=0.0)
    losses = []
    for _ in range(4):
        loss = net(**inputs(model)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1e-3
    for key, p in net.named_parameters():
        assert torch.equal(p, start[key]) == ("qcircuit_" not in key or "basis" in key), key
    assert not torch.equal(logits(net.eval(), model), expected)
    with net.disable_adapter():
        assert torch.equal(logits(net, model), expected)


@each
def test_gradients_are_those_of_each_layer_by_itself(name: str, options: dict[str, Any]) -> None:
    found = []
    for shared in (True, False):
        net = adapted(name, options=options).train()
        if not shared:
            for layer in layers(net):
                layer._made = lambda x, adapters, layer=layer: {a: layer.made_now(a) for a in adapters}
        net(**inputs("llama")).loss.backward()
        found.append({key: p.grad for key, p in net.named_parameters() if p.requires_grad})
    assert len(found[0]) == sum(len(trained_sizes(layer.factors["default"])) for layer in layers(net))
    for key, grad in found[0].items():
        assert grad.abs().max() > 0, key
        close_gradient(grad, found[1][key], key)


@each_in_each
def test_merged_it_is_the_same_and_comes_out_again(model: str, name: str, options: dict[str, Any]) -> None:
    net = adapted(name, model, options)
    expected, weights = logits(net, model), [layer.base_layer.weight.clone() for layer in layers(net)]
    for layer in layers(net):
        x, delta = torch.randn(2, 3, layer.in_features), layer.get_delta_weight("default").detach()
        close_forward(layer, x, x @ (layer.map.matrix(delta).mT))
    net.merge_adapter(safe_merge=True)
    close_logits(net, model, expected)
    assert not any(torch.allclose(layer.base_layer.weight, w) for layer, w in zip(layers(net), weights, strict=True))
    net.unmerge_adapter()
    for layer, weight in zip(layers(net), weights, strict=True):
        merged_ = weight.abs().max() + layer.get_delta_weight("default").abs().max()
        close(layer.base_layer.weight, weight, layer.in_features**0.5, merged_)
    merged = net.merge_and_unload(safe_merge=True)
    assert not layers(merged)
    close_logits(merged, model, expected)


@each
def test_beside_another_adapter(name: str, options: dict[str, Any]) -> None:
    net = adapted(name, options=options)
    alone = logits(net, "llama")
    net.add_adapter("other", config("svd"))
    shake(net, "other", 3)
    assert torch.equal(logits(net, "llama"), alone)
    net.set_adapter("other")
    other = logits(net, "llama")
    mixed = logits(net, "llama", adapter_names=["other", "__base__", "default"])
    for row, wanted in enumerate((other, logits(base("llama"), "llama"), alone)):
        close(mixed[row], wanted[row], CHAIN)
    net.base_model.set_adapter(["default", "other"])
    layer = layers(net)[0]
    x = torch.randn(2, layer.in_features)
    deltas = [layer.get_delta_weight(adapter) for adapter in ("default", "other")]
    close_forward(layer, x, sum(x @ delta.mT for delta in deltas))
    both, weight = logits(net, "llama"), layer.base_layer.weight.clone()
    for first, second in (("default", "other"), ("other", "default")):
        net.merge_adapter([first])
        with pytest.warns(UserWarning, match="additionally merging"):
            net.merge_adapter([second])
        close_logits(net, "llama", both)
        net.unmerge_adapter()
        close(
            layer.base_layer.weight,
            weight,
            layer.in_features**0.5,
            weight.abs().max() + sum(d.abs().max() for d in deltas),
        )
    net.delete_adapter("other")
    close_logits(net, "llama", alone)


@each
def test_as_a_plain_lora(name: str, options: dict[str, Any]) -> None:
    net = adapted(name, options=options)
    assert net.base_model.supports_lora_conversion() == (name not in FULL_RANK)
    if name in FULL_RANK:
        with pytest.raises(TypeError, match="do not support LoRA conversion"):
            convert_to_lora(net, rank=4)
        return
    assert all(layer.factors["default"].rank == 4 for layer in layers(net))
    converted, state = convert_to_lora(net, rank=4)
    assert isinstance(converted, LoraConfig)
    for key, layer in adapted_layers(net):
        product = state[f"{key}.lora_B.weight"] @ state[f"{key}.lora_A.weight"]
        close_product(product, layer.get_delta_weight("default"))


@each
def test_counts_and_circuits(name: str, options: dict[str, Any]) -> None:
    settings = config(name, options=options)
    net = get_peft_model(base("llama"), settings)
    found = {key: p for key, p in net.named_parameters() if p.requires_grad}
    assert parameter_count(settings, base("llama")) == sum(p.numel() for p in found.values())
    wanted = sum(sum(trained_sizes(layer.factors["default"]).values()) for layer in layers(net))
    assert sum(p.numel() for p in found.values()) == wanted
    angles = sum(len(values) for _, _, values in circuits(net))
    assert angles == sum(
        frame.n_parameters for layer in layers(net) for frame in frames(layer.factors["default"]).values()
    )
    assert (angles == 0) == (name == "quanta")


@each
def test_under_autocast_and_in_bfloat16(name: str, options: dict[str, Any]) -> None:
    net = get_peft_model(base("llama"), config(name, options=options))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = logits(base("llama"), "llama")
        assert torch.equal(logits(net.eval(), "llama"), expected)
    expected = logits(shake(net), "llama")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = net.train()(**inputs("llama"))
        found.loss.backward()
    assert (found.logits.float() - expected).abs().max() < 0.06 * expected.abs().max()
    assert {p.grad.dtype for p in net.parameters() if p.requires_grad} == {torch.float32}
    half = shake(get_peft_model(base("llama").bfloat16(), config(name, options=options))).eval()
    assert logits(half, "llama").dtype == torch.bfloat16 and logits(half, "llama").isfinite().all()


@pytest.mark.parametrize("name", ["quanta", "rotation", "tensor_ring"])  # those with forward passes of their own
def test_gradients_per_sample(name: str) -> None:
    layers_ = nn.Sequential(nn.Linear(24, 40), nn.Tanh(), nn.Linear(40, 24))
    net = shake(get_peft_model(layers_, QCircuitConfig(r=4, factorization=name, target_modules=["0", "2"]))).eval()
    x = torch.randn(5, 24)
    net(x).square().sum().backward()
    whole = {key: p for key, p in net.named_parameters() if p.requires_grad}
    loss = lambda values, row: torch.func.functional_call(net, values, (row[None],)).square().sum()  # noqa: E731
    rows = torch.func.vmap(torch.func.grad(loss), (None, 0))({key: p.detach() for key, p in whole.items()}, x)
    for key, p in whole.items():
        close_gradient(rows[key].sum(0), p.grad, key)


FRESH = """
import sys
import warnings
import torch
torch.set_num_threads(1)
from pathlib import Path
import qcircuit_peft
from peft import PeftModel
from transformers import AutoModelForCausalLM
folder = Path(sys.argv[1])
ids, expected = torch.load(folder / "expected.pt")
model = AutoModelForCausalLM.from_pretrained(folder / "base")
first, *others = expected
net = PeftModel.from_pretrained(model, folder / first, adapter_name=first).eval()
for name in others:
    net.load_adapter(folder / name, name)
for name, wanted in expected.items():
    net.set_adapter(name)
    with torch.no_grad():
        assert torch.equal(net(ids).logits, wanted), name
warnings.filterwarnings("error", "Dynamo detected")
for name in ("quanta", "rotation"):  # here, since dynamo and the checks of shapes in tests do not go together
    net.set_adapter(name)
    layer, x = net.base_model.model.model.layers[0].mlp.up_proj, torch.randn(2, 64)
    with torch.no_grad():
        assert torch.allclose(torch.compile(layer, backend="eager")(x), layer(x), atol=1e-5), name
print("fresh process agrees on", len(expected))
"""


def test_saved_and_loaded_in_a_fresh_process_all_give_the_same_bits(tmp_path: Path) -> None:
    base("llama").save_pretrained(tmp_path / "base")
    start = type(base("llama")).from_pretrained(tmp_path / "base")
    first, *others = NAMES
    net = get_peft_model(start, config(CASES[0][0]), adapter_name=first).eval()
    for name, (factorization, options) in zip(others, CASES[1:], strict=True):
        net.add_adapter(name, config(factorization, options=options))
    expected = {}
    for name in NAMES:
        net.set_adapter(name)
        expected[name] = logits(shake(net, name), "llama")
    net.save_pretrained(tmp_path)
    torch.save((inputs("llama")["input_ids"], expected), tmp_path / "expected.pt")
    for name, (_, options) in zip(NAMES, CASES, strict=True):
        assert QCircuitConfig.from_pretrained(tmp_path / name).factorization_options == options
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(tmp_path)], capture_output=True, text=True, cwd=Path(__file__).parent.parent
    )
    assert f"fresh process agrees on {len(CASES)}" in done.stdout, done.stderr[-3000:]


def test_layers_share_the_frames_of_a_core_form_and_keep_their_cores() -> None:
    """LoTR: 2 blocks, 3 kinds of modules; frames once a kind, r^2 numbers a layer."""
    shared, alone = config("shared_core"), config("tucker", options={"order": 1})  # the same form, not shared
    net = get_peft_model(two_blocks("llama"), shared)
    angles = sum(frame.n_parameters for layer in layers(net)[:3] for frame in frames(layer.factors["default"]).values())
    assert parameter_count(shared, two_blocks("llama")) == angles + 6 * 4**2
    assert parameter_count(alone, two_blocks("llama")) == 2 * angles + 6 * 4**2
    expected = logits(shake(net).eval(), "llama")
    close_logits(net.merge_and_unload(), "llama", expected)


def test_frozen_angles_leave_the_numbers() -> None:
    for name in FACTORIZATIONS:
        if name == "rotation":  # it has angles only, and is refused
            continue
        net = get_peft_model(two_blocks("llama"), config(name, train_angles=False))
        trained = {key.split("qcircuit_")[1].split(".")[0] for key, p in net.named_parameters() if p.requires_grad}
        factors = layers(net)[0].factors["default"]
        assert trained == {part for part, kind in factors.parts.items() if isinstance(kind, Vector)}, name


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("std", {"axes": [[8, 8], [8, 8]]}, r"module 'model.layers.0.self_attn.v_proj': .*nearest is 8 x 4"),
        ("tensor_train", {"axes": {"64": [5, 13]}}, r"5 x 13 is 65 and the width 64; nearest is 4 x 16"),
        (
            "quanta",
            {"axes": [32, 2]},
            r"gates on the axes \(32, 2\) have 4096 entries, more than the 2048 of the weight",
        ),
        ("rotation", {"side": "both"}, "side is one of out, in, got 'both'"),
        ("cp", {"ordre": 2}, "factorization_options has 'ordre', which is not an option of 'cp'; did you mean"),
    ],
)
def test_bad_options_are_refused_before_the_model_changes(name: str, options: dict[str, Any], says: str) -> None:
    model = base("llama")
    with pytest.raises(ValueError, match=says):
        get_peft_model(model, config(name, options=options))
    assert not layers(model)


@pytest.mark.parametrize(("frame", "order"), [("neumann", None), ("taylor", 20), ("taylor", None)])
def test_a_series_that_has_left_its_radius_says_so(frame: str, order: int | None, tmp_path: Path) -> None:
    net = get_peft_model(base("llama"), config("svd", frame=frame, frame_options={"order": order} if order else {}))
    net.save_pretrained(tmp_path)  # silent at the start
    for layer in layers(net):
        layer.qcircuit_u["default"].data *= 10
    for use in (lambda: net.save_pretrained(tmp_path), net.merge_adapter, lambda: convert_to_lora(net, rank=4)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            use()
        told = {
            str(warning.message) for warning in caught if "orthonormal to 1e-06 up to a norm" in str(warning.message)
        }
        assert bool(told) == (frame == "neumann" or order is not None), caught
        assert all(text.startswith(f"qcircuit_u of adapter 'default': a {frame} series of order") for text in told)


def test_a_merged_rotation_comes_out_in_the_dtype_that_its_layer_has_by_then() -> None:
    net = get_peft_model(two_blocks("llama"), config("rotation"))
    net.merge_adapter()
    net.to(torch.bfloat16)
    net.unmerge_adapter()
    assert layers(net)[0].base_layer.weight.dtype == torch.bfloat16
