"""Bad input: one clear sentence, and nothing has changed."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from test_qpa import BASES, adapted, config, plain, steps
from tiny import base, close_logits, logits
from torch import nn

from qcircuit_peft import QCircuitConfig, QPAConfig, QPAModel, parameter_count, save_base_adapter
from qcircuit_peft.generator import Generator, Recipe, measured_with

pytestmark = pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")


def state(model: nn.Module) -> dict[str, Any]:
    """All that an attempt could have changed."""
    kinds = {name: type(module) for name, module in model.named_modules()}
    return {"kinds": kinds, "grads": {name: p.requires_grad for name, p in model.named_parameters()}}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"base": None}, "base is the configuration of a PEFT method, such as LoraConfig"),
        ({"base": "lora"}, "base is the configuration of a PEFT method"),
        ({"base": peft.PeftConfig()}, "base is the configuration of a PEFT method"),
        ({"base": {"peft_type": "LORAX"}}, "the peft_type of base is one of .*LORA, .* got 'LORAX'"),
        ({"base": {"peft_type": "LORA", "eva_config": 1}}, "base is not a configuration of LORA: `EvaConfig` must be"),
        ({"base": peft.AdaptionPromptConfig()}, "on PEFT's BaseTuner or a prompt method, got ADAPTION_PROMPT"),
        ({"base": peft.LoraConfig(bias="all")}, "base has bias='all'"),
        ({"base": peft.LoraConfig(init_lora_weights="pissa")}, "base has init_lora_weights='pissa', which changes"),
        ({"base": peft.LoraConfig(init_lora_weights="olora")}, "base has init_lora_weights='olora', which changes"),
        ({"base": peft.LoraConfig(kasa_config=peft.KasaConfig())}, "base has a kasa_config, which would change"),
        ({"base": peft.PromptTuningConfig(num_virtual_tokens=2)}, "task_type of a prompt method is one of .* got None"),
        ({"base": config()}, "QPA's are those of a generator itself"),
        ({"scope": "block"}, "scope is one of layer, model, got 'block'"),
        ({"chunk_size": -4}, "chunk_size is a whole number >= 1, got -4"),
        ({"generator": {"version": 1}}, "the key 'generator' of an adapter configuration is a table of version"),
    ],
)
def test_bad_configurations(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        QPAConfig(**({"base": BASES["lora"]()} | settings))
    assert "\n" not in str(error.value)


def test_a_generator_larger_than_the_memory_leaves_the_model_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = base("llama")
    before, expected = state(model), logits(model, "llama")
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 1000}))
    with pytest.raises(
        ValueError, match=r"parameters in chunks of 1 take \d+ qubits and [\d,]+ bytes .* 1,000 are free"
    ):
        get_peft_model(model, config(chunk_size=1))
    assert state(model) == before and torch.equal(logits(model, "llama"), expected)
    monkeypatch.undo()
    net = get_peft_model(model, config())
    assert logits(net, "llama").shape == expected.shape


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def test_adapters_that_are_not_there() -> None:
    net = adapted()
    before, expected, tuner = state(net), logits(net, "llama"), net.base_model
    for call in (
        lambda: tuner.set_adapter("nobody"),
        lambda: tuner.set_requires_grad("nobody"),
        lambda: tuner.delete_adapter("nobody"),
        lambda: tuner.merge_adapter(["default", "nobody"]),
        lambda: net.merge_and_unload(adapter_names=["nobody"]),
    ):
        with pytest.raises(ValueError, match="there is no adapter 'nobody'; there are 'default'"):
            call()
    assert state(net) == before and torch.equal(logits(net, "llama"), expected) and tuner.active_adapter == "default"


def test_a_second_adapter_that_fails_leaves_the_first_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    net = adapted()
    steps(net)
    before, expected = state(net), logits(net, "llama")
    with pytest.raises(ValueError, match="one base method, got LORA, VERA"):
        net.add_adapter("second", config("vera"))
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 1000}))
    with pytest.raises(ValueError, match="1,000 are free"):
        net.add_adapter("second", config(chunk_size=1))
    monkeypatch.undo()
    monkeypatch.setattr(QPAModel, "_watch_layers", interrupt)
    with pytest.raises(KeyboardInterrupt):
        net.add_adapter("second", config(seed=1))
    assert len(net.base_model.passes.makers) == 1  # what a compiled pass makes
    assert list(net.peft_config) == ["default"] == list(net.base_model.wrapped.peft_config)
    assert state(net) == before and torch.equal(logits(net, "llama"), expected)
    assert steps(net, 2)


@pytest.mark.parametrize("method", ["lora", "bottleneck"])
def test_a_base_method_that_fails_halfway_leaves_the_model_alone(method: str) -> None:
    bad = BASES[method]()
    bad.target_modules = {"k_proj", "q_proj", "post_attention_layernorm"}  # the last is refused, by PEFT or by ours
    model = base("llama")
    before = state(model)
    with pytest.raises(ValueError, match=r"LlamaRMSNorm"):
        get_peft_model(model, QPAConfig(base=bad))
    assert state(model) == before
    net = get_peft_model(model, config(method)).eval()
    before, expected = state(net), logits(net, "llama")
    with pytest.raises(ValueError, match=r"LlamaRMSNorm"):
        net.add_adapter("second", QPAConfig(base=bad))
    assert state(net) == before and torch.equal(logits(net, "llama"), expected)
    assert list(net.peft_config) == ["default"] == list(net.base_model.wrapped.peft_config)
    net.add_adapter("second", config(method))
    assert steps(net, 1)


@pytest.mark.parametrize("method", ["lora", "dora", "vera", "oft", "circuit"])
@pytest.mark.parametrize("merge", ["merge_adapter", "merge_and_unload"])
def test_a_safe_merge_that_fails_in_a_later_layer_has_merged_nothing(method: str, merge: str) -> None:
    net = adapted(method)
    steps(net, 2)
    last = net.base_model.model.model.layers[1].self_attn.q_proj.get_base_layer().weight
    with torch.no_grad():
        last[0, 0] = torch.nan
    kept = [p.clone() for p in net.parameters()]
    before = state(net)
    with pytest.raises(ValueError, match=r"module '.*layers\.1\.self_attn\.q_proj'.*(NaN|infinite)"):
        getattr(net, merge)(safe_merge=True)
    assert state(net) == before
    assert all(torch.equal(a.nan_to_num(9), b.nan_to_num(9)) for a, b in zip(kept, net.parameters(), strict=True))
    with torch.no_grad():
        last[0, 0] = 0.0
    expected = logits(net, "llama")
    close_logits(net.merge_and_unload(safe_merge=True), "llama", expected)


def test_a_base_without_trainable_parameters() -> None:
    model = base("llama")
    before = state(model)
    nothing = peft.LoraConfig(target_modules="dummy-target-modules")
    with pytest.raises(ValueError, match=r"the base method has no trainable parameters in this model"):
        get_peft_model(model, QPAConfig(base=nothing))
    assert state(model) == before


def test_recurrent_prompt_encoders_are_refused() -> None:
    model = base("llama")
    before = state(model)
    lstm = peft.PromptEncoderConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=4, encoder_hidden_size=8, encoder_reparameterization_type="LSTM"
    )
    with pytest.raises(ValueError, match="is a LSTM, whose parameters cannot be generated"):
        get_peft_model(model, QPAConfig(base=lstm))
    assert state(model) == before


def test_generated_adapters_are_not_added_up() -> None:
    net = adapted()
    net.add_adapter("second", config())
    with pytest.raises(ValueError, match="cannot be combined by add_weighted_adapter, since a sum of theirs has no"):
        net.add_weighted_adapter(["default", "second"], [0.5, 0.5], "both")
    assert list(net.peft_config) == ["default", "second"]


def test_a_tied_head_is_refused_on_merge() -> None:
    lora = peft.LoraConfig(r=2, target_modules=["lm_head"])
    net = get_peft_model(base("llama", tie_word_embeddings=True), QPAConfig(base=lora, chunk_size=32, widths=[8]))
    steps(net, 2)
    expected = logits(net.eval(), "llama")
    for merge in (net.merge_and_unload, net.merge_adapter):
        with pytest.raises(ValueError, match=r"module 'lm_head' shares its weight with 'model.embed_tokens'"):
            merge()
        assert torch.equal(logits(net, "llama"), expected)


@pytest.mark.parametrize("method", ["lora", "prefix"])
def test_a_checkpoint_of_another_model(method: str, tmp_path: Path) -> None:
    net = adapted(method)
    net.save_pretrained(tmp_path)
    for change in ({"hidden_size": 32}, {"num_hidden_layers": 1}):
        model = base("llama", **change)
        before = state(model)
        with pytest.raises(ValueError, match=r"made to generate [\d,]+ parameters .* in this model it would be [\d,]+"):
            PeftModel.from_pretrained(model, tmp_path)
        assert state(model) == before
    transposed = json.loads((tmp_path / "adapter_config.json").read_text())
    transposed["generator"]["layout"]["digest"] = "0" * 16
    (tmp_path / "adapter_config.json").write_text(json.dumps(transposed))
    with pytest.raises(ValueError, match="of other shapes"):
        PeftModel.from_pretrained(base("llama"), tmp_path)


def test_a_checkpoint_whose_initial_values_cannot_be_drawn_again(tmp_path: Path) -> None:
    adapted().save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "adapter_config.json").read_text())
    stored["generator"]["seed"] = 5
    (tmp_path / "adapter_config.json").write_text(json.dumps(stored))
    weights = tmp_path / "adapter_model.safetensors"
    save_file(load_file(weights), weights)  # without the digest of the configuration
    model = base("llama")
    before = state(model)
    with pytest.raises(ValueError, match="initial values, to which the generated ones are added, differ"):
        PeftModel.from_pretrained(model, tmp_path)
    assert state(model) == before


@pytest.mark.parametrize("damage", ["missing", "extra", "shape", "nan", "torn"])
def test_a_damaged_checkpoint(damage: str, tmp_path: Path) -> None:
    adapted().save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    weights = load_file(path)
    name = sorted(weights)[0]
    if damage == "missing":
        del weights[name]
    elif damage == "extra":
        weights["base_model.qpa_generators.n9_angles"] = torch.zeros(3)
    elif damage == "shape":
        weights[name] = weights[name][..., :-1].contiguous()
    elif damage == "nan":
        weights[name].view(-1)[0] = float("nan")
    save_file(weights, path)
    if damage == "torn":
        path.write_bytes(path.read_bytes()[:-50])
    model = base("llama")
    before = state(model)
    says = {"missing": "lacks", "extra": "no adapted module", "shape": "has shape", "nan": "NaN", "torn": "not a whole"}
    with pytest.raises(ValueError, match=says[damage]):
        PeftModel.from_pretrained(model, tmp_path)
    assert state(model) == before


def test_stored_configurations_of_another_kind_or_version(tmp_path: Path) -> None:
    config().save_pretrained(str(tmp_path))
    path = tmp_path / "adapter_config.json"
    stored = json.loads(path.read_text())
    assert QPAConfig.from_pretrained(str(tmp_path)) == config()
    for change, says in (
        ({"generator": {**stored["generator"], "version": 2}}, "the generator: format version 2 is not known"),
        ({"colour": 1}, "unknown key 'colour'"),
    ):
        path.write_text(json.dumps(stored | change))
        with pytest.raises(ValueError, match=says):
            QPAConfig.from_pretrained(str(tmp_path))
    del stored["base"]
    path.write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="the key 'base' is missing"):
        QPAConfig.from_pretrained(str(tmp_path))


def test_what_is_not_ours_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a model adapted with QPAConfig is wanted, got PeftModel"):
        save_base_adapter(plain("lora"), tmp_path)
    with (
        pytest.raises(ValueError, match=r"there is no adapter 'second'; there are default"),
        measured_with(adapted(), "second"),
    ):
        pass
    with pytest.raises(ValueError, match="shared state"):
        base("llama").add_adapter(config())


def test_networks_larger_than_the_memory_and_odd_layouts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"bytes a generation, networks included, but .* or smaller widths"):
        Generator([100], Recipe(chunk_size=16, widths=(300_000, 300_000)))
    base = LoraConfig(r=2, target_modules=["0"])
    stored = QPAConfig(base=base).to_dict()["generator"]
    marks = {"parameters": 5, "digest": "ab", "start": [0.1, 0.0, 0.0]}
    QPAConfig(base=base, generator=stored | {"layout": marks})
    parameters = [{"parameters": value} for value in ("x", True)]
    for change in [*parameters, *({"start": value} for value in ("abc", [0.1] * 17, [None] * 3, [True]))]:
        with pytest.raises(ValueError, match="layout is a table of parameters, digest, start, got another"):
            QPAConfig(base=base, generator=stored | {"layout": marks | change})


def test_what_is_drawn_anew_is_not_merged_for_a_while_and_controls_have_no_shots() -> None:
    config = QPAConfig(base=LoraConfig(r=2, target_modules=["0"]), chunk_size=8, shots=10)
    model = get_peft_model(nn.Sequential(nn.Linear(12, 8)), config)
    with pytest.raises(ValueError, match="drawn anew at every pass, with shots"):
        model.merge_adapter()
    assert isinstance(model.merge_and_unload()[0], nn.Linear)
    with pytest.raises(ValueError, match="control='classical' has no circuit"):
        Recipe(control="classical", shots=10)


@pytest.mark.parametrize("seed", range(4))
def test_an_adapter_of_a_bfloat16_model_is_one_of_the_float32_model(seed: int, tmp_path: Path) -> None:
    def net(dtype: torch.dtype) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(12, 8)).to(dtype)

    config = QPAConfig(base=LoraConfig(r=2, target_modules=["0"]), chunk_size=8, seed=seed)
    get_peft_model(net(torch.bfloat16), config, autocast_adapter_dtype=False).save_pretrained(tmp_path)
    PeftModel.from_pretrained(net(torch.float32), tmp_path)
    stored = json.loads((tmp_path / "adapter_config.json").read_text())
    stored["generator"]["seed"] += 1
    (tmp_path / "adapter_config.json").write_text(json.dumps(stored))
    weights = tmp_path / "adapter_model.safetensors"
    save_file(load_file(weights), weights)  # as version 0.1 wrote it: without the digest of its configuration
    with pytest.raises(ValueError, match="initial values, to which the generated ones are added, differ"):
        PeftModel.from_pretrained(net(torch.float32), tmp_path)


@pytest.mark.filterwarnings("ignore:Adapter default was active which is now deleted:UserWarning")
def test_what_takes_the_place_of_a_deleted_adapter_is_trained() -> None:
    net = nn.Sequential(nn.Linear(12, 8))
    model = get_peft_model(net, QPAConfig(base=LoraConfig(r=2, target_modules=["0"]), chunk_size=8))
    model.add_adapter("next", QPAConfig(base=LoraConfig(r=2, target_modules=["0"]), chunk_size=8, seed=3))
    model.delete_adapter("default")
    assert any(p.requires_grad for p in model.parameters()) and model.active_adapters == ["next"]


def test_parameters_are_counted_with_circuits_as_the_base() -> None:
    config = QPAConfig(base=QCircuitConfig(r=2, target_modules=["0"]), chunk_size=8)
    assert parameter_count(config, nn.Sequential(nn.Linear(12, 8))) > 0
