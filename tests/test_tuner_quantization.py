"""Quantized adapters: what the model computes with, what is saved, and what comes back."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bounds import close
from dispatched import Dispatched
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora.conversion import save_as_lora
from safetensors.torch import load_file, save_file
from tiny import (
    FRESH,
    adapted,
    base,
    close_logits,
    config,
    inputs,
    layers,
    logits,
    made_together,
    shake,
    told_by_a_fresh_process,
)
from torch import Tensor, nn

from qcircuit_peft import QCircuitConfig, circuits
from qcircuit_peft.factorizations import FACTORIZATIONS
from qcircuit_peft.quantization import Quantization, pack, unpack
from qcircuit_peft.tuner.layer import adapted_layers

SETTINGS: dict[str, dict[str, Any]] = {
    "uniform": {"quantization": {"bits": 3, "group": 8}},
    "adaptive": {"quantization": {"bits": 2, "group": 4, "adaptive": True}, "layers": 2},
    "mixed": {"quantization": {"bits": 1, "parts": {"u": 5, "v": None, "lambda": 2}}},
    "shared": {"quantization": {"bits": 4}, "share": "kind"},
    "shannon": {"quantization": {"bits": 2, "parts": {"lambda": 8}}, "width": "shannon"},
}
each = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)


def as_saved(net: Any, adapter: str = "default") -> Any:
    """A copy of a model whose parameters are what their packed forms stand for, and which quantizes nothing."""
    model = base("llama")
    plain = {key: value for key, value in net.peft_config[adapter].to_dict()["circuit"].items() if key != "version"}
    plain = QCircuitConfig(
        **{**plain, "quantization": None}, r=6, alpha=48, target_modules=net.peft_config[adapter].target_modules
    )
    other = get_peft_model(model, plain).eval()
    for new, old in zip(layers(other), layers(net), strict=True):
        for part, p in old.intrinsic_parameters(adapter).items():
            bits = old.encoding(adapter, part).quantization
            value = p.detach() if bits is None else unpack(pack(p.detach(), bits), len(p), bits)
            new.intrinsic_parameters("default")[part].data.copy_(value)
    return other


def bits_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "adapter_model.safetensors")


@each
def test_a_model_computes_with_what_would_be_saved(settings: dict[str, Any]) -> None:
    start = get_peft_model(base("llama"), config("llama", **settings)).eval()
    assert torch.equal(logits(start, "llama"), logits(base("llama"), "llama"))
    net = adapted("llama", **settings)
    assert torch.equal(logits(net, "llama"), logits(as_saved(net), "llama"))
    plain = {key: value for key, value in settings.items() if key != "quantization"}
    assert not torch.allclose(logits(net, "llama"), logits(adapted("llama", **plain), "llama"), atol=1e-4)
    for (name, _, angles), (other, _, values) in zip(circuits(net), circuits(as_saved(net)), strict=True):
        assert name == other
        assert torch.equal(angles, values)


@each
def test_gradients_are_those_at_the_quantized_values(settings: dict[str, Any]) -> None:
    net = adapted("llama", **settings)
    other = as_saved(net)
    grads = []
    for model in (net, other):
        model(**inputs("llama")).loss.backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert grads[0]
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        assert torch.equal(grad, grads[1][name]), name


def test_one_batched_call_quantizes_all_layers() -> None:
    counts = []
    for blocks, quantization in ((2, None), (2, {"bits": 3}), (6, {"bits": 3}), (6, {"bits": 3, "adaptive": True})):
        net = get_peft_model(
            base("llama", num_hidden_layers=blocks),
            config("llama", quantization=quantization, target_modules=["q_proj"]),
        )
        with Dispatched() as ops:
            made_together(layers(net)[0], "default")
        counts.append(ops.count)
    assert counts[1] - counts[0] <= 30  # one family of frames
    assert counts[2] - counts[1] <= 4 * 10  # each parameter is detached, stacked, handed out
    assert counts[3] - counts[2] <= 30


def test_one_batched_call_quantizes_plain_vectors_too() -> None:
    fields = {"factorization": "quanta", "factorization_options": {"order": 3}, "target_modules": ["q_proj"]}
    net = get_peft_model(base("llama", num_hidden_layers=6), config("llama", quantization={"bits": 3}, **fields))
    first, second, *_ = layers(net)
    first.bank.passes.begin()
    for layer, most in ((first, 60), (second, 2)):
        with Dispatched() as ops:
            layer._made(torch.zeros(1, 64), ("default",))
        assert ops.count <= most


FRESH_TWICE = (
    FRESH
    + """
net = check(PeftModel.from_pretrained(fresh(), folder + "/adapter", is_trainable=True))
net.load_adapter(folder + "/adapter", "second")
net.set_adapter("second")
check(net)
"""
)


def test_in_a_fresh_process(tmp_path: Path) -> None:
    base("llama").save_pretrained(tmp_path / "base")
    start = type(base("llama")).from_pretrained(tmp_path / "base")
    net = shake(get_peft_model(start, config("llama", **SETTINGS["adaptive"], task_type="CAUSAL_LM"))).eval()
    net.save_pretrained(tmp_path / "adapter")
    torch.save((inputs("llama")["input_ids"], logits(net, "llama")), tmp_path / "expected.pt")
    told_by_a_fresh_process(FRESH_TWICE, tmp_path)


@each
def test_saved_loaded_and_saved_again(settings: dict[str, Any], tmp_path: Path) -> None:
    net = adapted("llama", **settings)
    expected = logits(net, "llama")
    net.save_pretrained(tmp_path / "first")
    loaded = PeftModel.from_pretrained(base("llama"), tmp_path / "first", is_trainable=True)
    again = base("llama")
    again.load_adapter(str(tmp_path / "first"))
    given = base("llama")
    given.load_adapter(
        peft_config=QCircuitConfig.from_pretrained(tmp_path / "first"), adapter_state_dict=bits_of(tmp_path / "first")
    )
    for model in (loaded, again, given):
        assert torch.equal(logits(model.eval(), "llama"), expected)
    loaded.save_pretrained(tmp_path / "second")
    again.save_pretrained(tmp_path / "third")
    for folder in ("second", "third"):
        for key, data in bits_of(tmp_path / folder).items():
            assert torch.equal(data, bits_of(tmp_path / "first")[key]), key
    stored = bits_of(tmp_path / "first")
    for name, layer in adapted_layers(net):
        for part, p in layer.own_parameters("default").items():
            data, bits = stored[f"{name}.qcircuit_{part}"], layer.encoding("default", part).quantization
            assert torch.equal(data, p if bits is None else pack(p.detach(), bits))
    merged = loaded.merge_and_unload()
    close_logits(merged, "llama", expected)


def test_training_goes_on_from_the_quantized_values(tmp_path: Path) -> None:
    net = adapted("llama", **SETTINGS["uniform"])
    net.save_pretrained(tmp_path / "first")
    loaded = PeftModel.from_pretrained(base("llama"), tmp_path / "first", is_trainable=True)
    optimizer = torch.optim.SGD([p for p in loaded.parameters() if p.requires_grad], lr=1.0)
    before = logits(loaded, "llama")
    loaded(**inputs("llama")).loss.backward()
    optimizer.step()
    after = logits(loaded.eval(), "llama")
    assert not torch.allclose(after, before, atol=1e-4)
    assert torch.equal(after, logits(as_saved(loaded), "llama"))
    loaded.save_pretrained(tmp_path / "second")
    assert torch.equal(logits(PeftModel.from_pretrained(base("llama"), tmp_path / "second"), "llama"), after)


def test_full_precision_is_kept_where_asked_for(tmp_path: Path) -> None:
    net = adapted("llama", quantization=Quantization(2, packed=False))
    net.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base("llama"), tmp_path)
    assert torch.equal(logits(loaded, "llama"), logits(net, "llama"))
    for old, new in zip(layers(net), layers(loaded), strict=True):
        for part, p in old.intrinsic_parameters("default").items():
            assert torch.equal(p, new.intrinsic_parameters("default")[part])
    settings = QCircuitConfig.from_pretrained(tmp_path)  # packed at last, as docs/quantization.md has it
    settings.quantization = replace(settings.quantization, packed=True)
    PeftModel.from_pretrained(base("llama"), tmp_path, config=settings).save_pretrained(tmp_path / "small")
    assert {data.dtype for key, data in bits_of(tmp_path / "small").items() if "lambda" not in key} == {torch.uint8}
    small = PeftModel.from_pretrained(base("llama"), tmp_path / "small")
    assert torch.equal(logits(small, "llama"), logits(net, "llama"))


def test_state_dicts_in_memory_and_lora(tmp_path: Path) -> None:
    net = adapted("llama", **SETTINGS["mixed"])
    other = get_peft_model(base("llama"), config("llama", **SETTINGS["mixed"])).eval()
    set_peft_model_state_dict(other, get_peft_model_state_dict(net))
    assert torch.equal(logits(other, "llama"), logits(net, "llama"))
    save_as_lora(tmp_path, net, rank=6)
    close_logits(PeftModel.from_pretrained(base("llama"), tmp_path), "llama", logits(net, "llama"))


def test_the_file_has_the_bits_that_are_promised(tmp_path: Path) -> None:
    ansatz = {"layers": 40, "quantization": {"bits": 3, "group": 16}}
    net = adapted("llama", **ansatz)
    net.save_pretrained(tmp_path)
    frames = {key: data for key, data in bits_of(tmp_path).items() if not key.endswith("lambda")}
    total = 0
    for layer in layers(net):
        for part, p in layer.own_parameters("default").items():
            if layer.encoding("default", part).quantization is not None:
                groups = -(-len(p) // 16)
                total += -(-len(p) * 3 // 8) + 4 * groups
    assert sum(data.nbytes for data in frames.values()) == total
    whole = (tmp_path / "adapter_model.safetensors").stat().st_size
    lambdas = 4 * 6 * len(layers(net))
    header = int.from_bytes((tmp_path / "adapter_model.safetensors").read_bytes()[:8], "little")
    assert whole == 8 + header + total + lambdas


def shorter(data: Tensor) -> Tensor:
    return data[:-1]


LIES: dict[str, tuple[Any, str]] = {
    "shorter": (shorter, "need"),
    "longer": (lambda data: torch.cat([data, data]), "need"),
    "empty": (lambda data: data[:0], "need"),
    "folded": (lambda data: data.view(1, -1), "vector of bytes"),
    "negative scale": (lambda data: data.index_fill(0, torch.arange(4), 255), "finite values"),
    "another dtype": (lambda data: data.to(torch.int8), "allowed are"),
    "floats of another shape": (lambda data: data.float(), "has shape"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_file_that_lies_is_refused_before_anything_changes(lie: str, tmp_path: Path) -> None:
    alter, told = LIES[lie]
    net = adapted("llama", quantization={"bits": 3})
    net.save_pretrained(tmp_path)
    stored = bits_of(tmp_path)
    key = sorted(key for key in stored if key.endswith("qcircuit_v"))[-1]
    save_file(
        {**stored, key: alter(stored[key]).contiguous()}, tmp_path / "adapter_model.safetensors", {"format": "pt"}
    )
    model = base("llama")
    before = [name for name, _ in model.named_modules()]
    with pytest.raises(ValueError, match=told):
        PeftModel.from_pretrained(model, tmp_path)
    with pytest.raises(ValueError, match=told):
        model.load_adapter(str(tmp_path))
    assert [name for name, _ in model.named_modules()] == before
    expected = logits(net, "llama")
    with pytest.raises(ValueError, match=told):
        net.load_adapter(tmp_path, "default")
    with pytest.raises(ValueError, match=told):
        set_peft_model_state_dict(net, {**stored, key: alter(stored[key])})
    assert torch.equal(logits(net, "llama"), expected)


def test_bits_where_the_configuration_has_none_are_refused(tmp_path: Path) -> None:
    adapted("llama", quantization={"bits": 3}).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    settings["circuit"]["quantization"] = None
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    weights = tmp_path / "adapter_model.safetensors"
    save_file(load_file(weights), weights)  # as version 0.1 wrote it: without the digest of its configuration
    with pytest.raises(ValueError, match="the configuration does not quantize it"):
        PeftModel.from_pretrained(base("llama"), tmp_path)


def test_a_parameter_that_is_not_finite_is_not_packed(tmp_path: Path) -> None:
    net = adapted("llama", quantization={"bits": 3})
    layers(net)[0].qcircuit_u["default"].data[0] = float("nan")
    with pytest.raises(ValueError, match=r"q_proj\.qcircuit_u has 1 entries"):
        net.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"bits": 17}, "bits is a whole number 0 to 16, got 17"),
        ({"width": 3}, "has the fields bits, group, adaptive, parts, packed, got"),
        (3, "has the fields bits"),
        ({"group": 0}, "group is a whole number 1 to"),
    ],
)
def test_bad_settings_are_refused(given: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        QCircuitConfig(quantization=given)


def test_bits_for_a_part_that_is_not_there_are_refused() -> None:
    model = base("llama")
    with pytest.raises(ValueError, match="part 'core', but the parts are u, v, lambda"):
        get_peft_model(model, config("llama", quantization={"parts": {"core": 8}}))
    assert not layers(model)


@pytest.mark.parametrize("name", FACTORIZATIONS)
def test_every_factorization(name: str, tmp_path: Path) -> None:
    def net(**change: Any) -> Any:
        fields = {"factorization": name, "target_modules": ["q_proj"], "seed": 1, **change}
        return get_peft_model(base("llama", num_hidden_layers=1), config("llama", **fields)).eval()

    model = net(quantization={"bits": 3, "group": 16})
    assert torch.equal(logits(model, "llama"), logits(base("llama", num_hidden_layers=1), "llama"))
    plain = net()
    for adapted_model in (model, plain):
        torch.manual_seed(3)
        for p in adapted_model.parameters():
            if p.requires_grad:
                p.data += torch.randn(p.shape) / 10
    expected = logits(model, "llama")
    assert not torch.equal(logits(plain, "llama"), expected)
    model.save_pretrained(tmp_path)
    for key, data in bits_of(tmp_path).items():
        assert (data.dtype == torch.uint8) == (not key.endswith(("lambda", "basis_out", "basis_in"))), key
    loaded = PeftModel.from_pretrained(base("llama", num_hidden_layers=1), tmp_path)
    assert torch.equal(logits(loaded, "llama"), expected)
    assert all(p.grad is None for p in model.parameters())
    model(**inputs("llama")).loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype, tmp_path: Path) -> None:
    net = adapted("llama", **SETTINGS["adaptive"]).to(dtype)
    net.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base("llama").to(dtype), tmp_path)
    assert torch.equal(logits(loaded, "llama"), logits(net, "llama"))
    for layer in layers(net):
        for part, p in layer.made_now("default").items():
            wide = torch.float64 if dtype == torch.float64 else torch.float32
            assert torch.equal(p, made_together(layer, "default", dtype=wide)["default"][part])


def test_adapters_of_different_bits_side_by_side() -> None:
    net = adapted("llama", quantization={"bits": 2})
    for name, quantization in (("plain", None), ("finer", {"bits": 6, "parts": {"lambda": 3}})):
        net.add_adapter(name, config("llama", quantization=quantization))
        shake(net, name, seed=2)
    names = ["default", "plain", "finer"]
    net.base_model.set_adapter(names)
    layer = layers(net)[0]
    found = made_together(layer, *names)
    for name in names:
        for part, frame in layer.made_now(name).items():
            close(found[name][part], frame, 64, size=1)
    assert layer.bank.passes.generations == 1
    net.delete_adapter("default")
    assert set(layer.encodings) == {"plain", "finer"}


def test_half_precision_parameters_are_not_quantized_again(tmp_path):
    """Rounded to bfloat16, values that were loaded are still those that were loaded."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 16)).bfloat16()
    config = QCircuitConfig(r=4, target_modules=["0"], quantization={"bits": 3}, init_weights=False, seed=0)
    model, x = get_peft_model(copy.deepcopy(net), config, autocast_adapter_dtype=False), torch.randn(3, 16).bfloat16()
    model.save_pretrained(tmp_path / "0")
    found, files = [], []
    for k in range(3):
        model = PeftModel.from_pretrained(copy.deepcopy(net), tmp_path / str(k), autocast_adapter_dtype=False)
        found.append(model(x))
        model.save_pretrained(tmp_path / str(k + 1))
        files.append((tmp_path / str(k + 1) / "adapter_model.safetensors").read_bytes())
    assert all(torch.equal(out, found[0]) for out in found) and len(set(files)) == 1


def test_a_load_that_is_refused_leaves_what_was_loaded(tmp_path):
    """The head does not fit, which is found after the bits have been decoded."""

    def net(classes):
        torch.manual_seed(0)
        return nn.ModuleDict({"body": nn.Linear(16, 16), "head": nn.Linear(16, classes)})

    settings = {"r": 4, "target_modules": ["body"], "modules_to_save": ["head"], "quantization": {"bits": 3}}
    for seed, classes in ((0, 3), (1, 7)):
        config = QCircuitConfig(**settings, init_weights=False, seed=seed)
        get_peft_model(net(classes), config).save_pretrained(tmp_path / str(classes))
    model, x = PeftModel.from_pretrained(net(3), tmp_path / "3"), torch.randn(2, 16)
    before = model.base_model.model["body"](x)
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_adapter(tmp_path / "7", "default")
    assert torch.equal(model.base_model.model["body"](x), before)
