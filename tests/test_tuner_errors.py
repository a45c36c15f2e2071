"""Bad input is refused in one sentence, before anything of the user's has changed."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from tiny import adapted, base, bert, config, gpt2, layers, logits
from torch import nn

from qcircuit_peft import QCircuitConfig, load, parameter_count

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",
    "ignore:Model has `tie_word_embeddings=True`:UserWarning",
    "ignore:Setting `save_embedding_layers`:UserWarning",
)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"ansatz": "simplified_two_desing"},
            "no circuit named 'simplified_two_desing'; did you mean one of simplified_two_design",
        ),
        ({"ansatz": "nowhere/file.toml"}, "there is no such circuit file"),
        ({"ansatz": {"name": "x", "layr": []}}, "unknown key 'layr'"),
        ({"lora_alpha": 16}, "lora_alpha is an option of LoraConfig; of QCircuitConfig it is alpha"),
        ({"lora_dropout": 0.1}, "of QCircuitConfig it is dropout"),
        ({"use_rslora": True}, "of QCircuitConfig it is alpha: the scaling is alpha / r, "),
        ({"init_lora_weights": False}, "of QCircuitConfig it is init, .* or init_weights=False"),
        ({"layers": -1}, "layers is a whole number 0 to 4096, got -1"),
        ({"layers": True}, "layers is a whole number"),
        ({"r": 0}, "r is a whole number >= 1, got 0"),
        ({"r": 2.5}, "r is a whole number >= 1, got 2.5"),
        ({"r": "4"}, "r is a whole number >= 1, got '4'"),
        ({"alpha": float("nan")}, "alpha is a finite number, of size .* at most, got nan"),
        ({"dropout": 1.0}, "dropout is a number from 0 to below 1, got 1.0"),
        ({"frame": "lie_"}, "frame is one of circuit.*, got 'lie_'"),
        ({"factorization": 3}, "factorization is one of svd.*, got 3"),
        ({"frame_options": 3}, "frame_options is a table of options, got 3"),
        ({"frame_options": {"splits": {}}}, "frame_options has 'splits', which is not an option of 'circuit'"),
        ({"frame": "taylor", "frame_options": {"layers": 2}}, "frame_options has 'layers', .* of 'taylor'"),
        ({"frame_options": {"layers": -1}}, "layers is a whole number 0 to 4096, got -1"),
        ({"layers": 3, "frame_options": {"layers": 2}}, "layers is given as 3, and as 2 in frame_options; give it"),
        ({"backend": "nativ"}, "unknown backend 'nativ'; did you mean one of native"),
        ({"width": "crop"}, "width is one of auto, qudit, shannon, got 'crop'"),
        ({"init": "ones"}, "init is one of uniform, normal, zeros, got 'ones'"),
        ({"bias": "lora_only"}, "bias is one of none, all, qcircuit_only, got 'lora_only'"),
        ({"seed": -4}, "seed is a whole number >= 0, got -4"),
        ({"train_angles": "yes"}, "train_angles is true or false, got 'yes'"),
        ({"rank_pattern": {"q": 0}}, r"rank_pattern\['q'\] is a whole number >= 1, got 0"),
        ({"rank_pattern": [3]}, "rank_pattern maps names"),
        ({"rank_pattern": {"(": 2}}, r"rank_pattern has '\(', which is not a regular expression"),
        ({"target_modules": "q_("}, r"target_modules has 'q_\(', which is not a regular expression"),
        ({"exclude_modules": "*"}, r"exclude_modules has '\*', which is not a regular expression"),
        ({"alpha_pattern": {"q": "8"}}, r"alpha_pattern\['q'\] is a finite number, of size .* at most, got '8'"),
        ({"target_modules": [3]}, "target_modules is a text or a list of texts, got"),
        ({"layers_to_transform": "1"}, "an entry of layers_to_transform is a whole number >= 0, got '1'"),
        ({"layers_to_transform": [1], "layers_pattern": "("}, r"layers_pattern has '\(', which is not a regular"),
        ({"rank_pattern": {"(?i)Q": 2}}, r"rank_pattern has '\(\?i\)Q', which is not a regular expression: global"),
        ({"modules_to_save": "lm_head"}, "modules_to_save is a list of texts, got 'lm_head'"),
        ({"modules_to_save": 3}, "modules_to_save is a list of texts, got 3"),
        ({"layers_pattern": "h"}, "layers_pattern needs layers_to_transform"),
        (
            {"target_modules": ".*q", "layers_to_transform": [1]},
            "layers_to_transform works with a list of target_modules",
        ),
        ({"task_type": "CLS"}, "Invalid task type"),
    ],
)
def test_configurations(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        QCircuitConfig(**change)
    assert "\n" not in str(error.value)


WEIGHTS = "adapter_model.safetensors"


def saved(tmp_path: Path, **change: Any) -> Path:
    adapted("llama", **change).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": 2}, "the adapter's circuit: format version 2 is not known; this library reads version 1"),
        ({"version": "1"}, "format version '1'"),
        ({"width": None}, "width is one of auto, qudit, shannon, got None"),
        ({"wires": 3}, "'wires' was found"),
        ({"ansatz": "simplified_two_design"}, "holds its ansatz as a table"),
        ({"ansatz": {"name": "x", "version": 9}}, "format version 9 is not known"),
        ({"layers": "1"}, "layers is a whole number"),
        ({"seed": ...}, "'seed' is missing"),
    ],
)
def test_stored_circuits(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    folder = saved(tmp_path)
    path = folder / "adapter_config.json"
    stored = json.loads(path.read_text())
    stored["circuit"] |= change
    stored["circuit"] = {key: value for key, value in stored["circuit"].items() if value is not ...}
    path.write_text(json.dumps(stored))
    model = base("llama")
    before = repr(model)
    for read in (
        QCircuitConfig.from_pretrained,
        PeftConfig.from_pretrained,
        lambda f: PeftModel.from_pretrained(model, f),
    ):
        with pytest.raises(ValueError, match=says):
            read(str(folder))
    assert repr(model) == before


def test_stored_configurations(tmp_path: Path) -> None:
    folder, model = saved(tmp_path), base("llama")
    path = folder / "adapter_config.json"
    good = path.read_text()
    for text, says in (
        (json.dumps(json.loads(good) | {"rr": 4}), "unknown key 'rr'; did you mean one of r"),
        (json.dumps({k: v for k, v in json.loads(good).items() if k != "circuit"}), "the key 'circuit' is missing"),
        (json.dumps(json.loads(good) | {"revision": " " * (1 << 20)}), "at most 1048576 bytes"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=says):
            PeftModel.from_pretrained(model, folder)
    for text, says in (("{", "not a JSON file"), ("[1]", "a table, got list")):
        path.write_text(text)
        with pytest.raises(ValueError, match=says):
            QCircuitConfig.from_pretrained(folder)
    assert not layers(model)


def tamper(folder: Path, kind: str) -> None:
    path = folder / WEIGHTS
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-50])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "nothing":
        path.unlink()
    elif kind == "pickle":
        path.rename(path.with_name("adapter_model.bin"))
    elif kind == "header":
        path.write_bytes(path.read_bytes()[:8] + b"}" + path.read_bytes()[9:])
    else:
        state = load_file(path)
        key = next(key for key in state if key.endswith(".qcircuit_u"))
        if kind == "nan":
            state[key][1] = float("nan")
        elif kind == "inf":
            state[key.replace("_u", "_lambda")][0] = float("inf")
        elif kind == "shape":
            state[key] = state[key][:-1].clone()
        elif kind == "missing":
            del state[key]
        elif kind == "extra":
            state[key.replace("layers.0", "layers.7").replace("layers.1", "layers.7")] = state[key].clone()
        elif kind == "integers":
            state[key] = state[key].int()
        elif kind == "float8":
            state[key] = state[key].to(torch.float8_e4m3fn)
        save_file(state, path)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("truncated", "not a whole weights file"),
        ("empty", "not a whole weights file"),
        ("header", "not a whole weights file"),
        ("nan", r"qcircuit_u has 1 entries that are NaN or infinite"),
        ("inf", r"qcircuit_lambda has 1 entries that are NaN or infinite"),
        ("shape", r"qcircuit_u has shape \(15,\), but its circuit and this model need \(16,\)"),
        ("missing", r"the checkpoint lacks .*qcircuit_u"),
        ("extra", r"layers.7.*no adapted module of this model takes it"),
        ("integers", r"holds torch\.int32; allowed are torch\.float16, .*torch\.float64"),
        ("float8", r"holds torch\.float8_e4m3fn; allowed are"),
        ("nothing", r"holds no adapter weights; adapter_model\.safetensors or adapter_model\.bin is wanted"),
        ("pickle", r"not a whole weights file"),
    ],
)
def test_damaged_checkpoints_are_refused_before_the_model_changes(kind: str, says: str, tmp_path: Path) -> None:
    folder = saved(tmp_path, target_modules=["q_proj"])
    shutil.copytree(folder, tmp_path / "good")
    tamper(folder, kind)
    model = base("llama")
    before, expected = repr(model), logits(model, "llama")
    read = PeftConfig.from_pretrained(folder)
    ways = [
        lambda: PeftModel.from_pretrained(model, folder),
        lambda: PeftModel.from_pretrained(model, model_id=str(folder), config=read),
        lambda: model.load_adapter(str(folder)),
        lambda: model.load_adapter(str(folder), "other", peft_config=read),
    ]
    if kind not in ("truncated", "empty", "header", "nothing", "pickle"):
        ways.append(lambda: model.load_adapter(adapter_state_dict=load_file(folder / WEIGHTS), peft_config=read))
    for load_it in ways:
        with pytest.raises(ValueError, match=says) as error:
            load_it()
        assert "\n" not in str(error.value)
        assert repr(model) == before and torch.equal(logits(model, "llama"), expected)
        assert all(p.requires_grad for p in model.parameters())
    net = PeftModel.from_pretrained(model, tmp_path / "good")
    expected = logits(net, "llama")
    with pytest.raises(ValueError, match=says):
        net.load_adapter(folder, "second")
    assert torch.equal(logits(net, "llama"), expected) and list(net.peft_config) == ["default"]
    if kind in ("nan", "inf", "shape", "missing", "extra"):  # the way of Trainer and of low-level callers
        state = load_file(folder / WEIGHTS)
        with pytest.raises(ValueError, match=says):
            set_peft_model_state_dict(net, state)
        assert torch.equal(logits(net, "llama"), expected)


def test_a_checkpoint_of_another_circuit_or_model_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    path = folder / "adapter_config.json"
    stored = json.loads(path.read_text())
    stored["circuit"]["layers"] = 2
    path.write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=r"was not saved with this adapter_config\.json"):
        PeftModel.from_pretrained(base("llama"), folder)
    good, wider = saved(tmp_path / "again"), base("llama", hidden_size=128)
    with pytest.raises(ValueError, match="does not fit this model"):
        PeftModel.from_pretrained(wider, good)
    assert not layers(wider)


def test_the_state_dict_that_transformers_gives_loads_again() -> None:
    model = base("llama")
    model.add_adapter(config("llama"), "mine")
    for k, layer in enumerate(layers(model)):
        torch.nn.init.constant_(layer.qcircuit_lambda["mine"], 0.01 * k)
    other = base("llama")
    state = {key: value.clone() for key, value in model.get_adapter_state_dict("mine").items()}
    other.load_adapter(adapter_state_dict=state, peft_config=config("llama"))
    assert torch.equal(logits(other, "llama"), logits(model, "llama"))
    state.popitem()
    with pytest.raises(ValueError, match="the checkpoint lacks"):
        base("llama").load_adapter(adapter_state_dict=state, peft_config=config("llama"))


def test_all_linear_leaves_out_the_projection_inside_multihead_attention() -> None:
    encoder = nn.TransformerEncoderLayer(32, 4, 64)
    net = get_peft_model(encoder, QCircuitConfig(r=2, target_modules="all-linear"))
    assert sorted(net.targeted_module_names) == ["linear1", "linear2"]


def test_a_configuration_that_was_read_serves_other_models_too(tmp_path: Path) -> None:
    read = PeftConfig.from_pretrained(saved(tmp_path))
    net = get_peft_model(base("llama", hidden_size=128), read)
    assert len(layers(net)) and layers(net)[0].in_features == 128
    read.layers = 2
    assert layers(get_peft_model(base("llama"), read))[0].qcircuit_u["default"].numel() == 26


def test_keys_are_renamed_as_peft_does_before_they_are_compared(tmp_path: Path) -> None:
    folder = saved(tmp_path, target_modules=["q_proj"])
    expected = logits(PeftModel.from_pretrained(base("llama"), folder), "llama")
    path = folder / WEIGHTS
    save_file({key.replace("layers", "blocks"): value for key, value in load_file(path).items()}, path)
    with pytest.raises(ValueError, match="the checkpoint lacks"):
        PeftModel.from_pretrained(base("llama"), folder)
    net = PeftModel.from_pretrained(base("llama"), folder, key_mapping={"blocks": "layers"})
    assert torch.equal(logits(net, "llama"), expected)
    model = base("llama")
    model._checkpoint_conversion_mapping = {"blocks": "layers"}
    assert torch.equal(logits(PeftModel.from_pretrained(model, folder), "llama"), expected)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"target_modules": ["q_proj", "embed_tokens"], "factorization": "rotation"},
            r"'model.embed_tokens' is a Embedding, for which an update has a rank, but those of 'rotation'",
        ),
        ({"target_modules": ["q_proj", "self_attn"]}, r"'model.layers.0.self_attn' is a .*LlamaAttention"),
        ({"r": 33}, r"32 for 'model.layers.0.self_attn.v_proj' \(64 in, 32 out\), got 33"),
        ({"r": 4, "rank_pattern": {"up_proj": 65}}, r"64 for 'model.layers.0.mlp.up_proj' \(64 in, 96 out\), got 65"),
        ({"target_modules": ["nothing"]}, "not found in the base model"),
    ],
)
def test_targets_are_all_checked_before_the_first_is_replaced(change: dict[str, Any], says: str) -> None:
    model = base("llama")
    before = repr(model)
    settings = config("llama", **change)
    for call in (
        lambda: get_peft_model(model, settings),
        lambda: parameter_count(settings, model),
        lambda: model.add_adapter(settings),
    ):
        with pytest.raises(ValueError, match=says):
            call()
        assert repr(model) == before and all(p.requires_grad for p in model.parameters())
    net = adapted("llama")
    expected = logits(net, "llama")
    with pytest.raises(ValueError, match=says):
        net.add_adapter("second", config("llama", **change))
    assert torch.equal(logits(net, "llama"), expected) and list(net.peft_config) == ["default"]
    assert not any("second" in name for name, _ in net.named_parameters())


def test_the_projection_inside_multihead_attention_is_refused() -> None:
    model = nn.TransformerEncoderLayer(32, 4, 64)
    with pytest.raises(ValueError, match="MultiheadAttention as a whole"):
        get_peft_model(model, QCircuitConfig(target_modules=["out_proj"]))


def test_a_width_that_does_not_suit_is_refused_with_its_counts() -> None:
    with pytest.raises(ValueError, match=r"module '0': width 127 .* 8001 \(qudit\) and 789 \(shannon\)"):
        get_peft_model(nn.Sequential(nn.Linear(127, 64)), QCircuitConfig(r=4, target_modules=["0"]))
    assert parameter_count(QCircuitConfig(r=2, target_modules=["0"]), nn.Sequential(nn.Linear(97, 64))) == 119 + 16 + 2


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_are_refused_at_merge_and_nothing_is_merged(value: float) -> None:
    net = adapted("llama")
    last = layers(net)[-1]
    with torch.no_grad():
        last.qcircuit_u["default"][0] = value
    weights = [layer.base_layer.weight.clone() for layer in layers(net)]
    for merge in (net.merge_adapter, net.merge_and_unload, last.merge):
        with pytest.raises(ValueError, match="qcircuit_u of adapter 'default' has 1 entries that are NaN or infinite"):
            merge()
    assert len(weights) == len(layers(net)) and not any(layer.merged for layer in layers(net))
    assert all(torch.equal(layer.base_layer.weight, weight) for layer, weight in zip(layers(net), weights, strict=True))
    assert not logits(net, "llama").isfinite().all()  # not looked at in forward


def test_merging_a_tied_head_is_refused() -> None:
    model = gpt2().eval()
    net = get_peft_model(model, config("gpt2", target_modules=["c_attn", "lm_head"]))
    with torch.no_grad():
        for layer in layers(net):
            layer.qcircuit_lambda["default"].fill_(0.1)
    before, embedding = logits(net, "gpt2"), model.transformer.wte.weight.clone()
    for merge in (net.merge_adapter, net.merge_and_unload):
        with pytest.raises(ValueError, match=r"'lm_head' shares its weight with 'transformer\.wte'"):
            merge()
    assert torch.equal(logits(net, "gpt2"), before) and torch.equal(model.transformer.wte.weight, embedding)
    untied = get_peft_model(gpt2(tie_word_embeddings=False), config("gpt2", target_modules=["lm_head"]))
    untied.merge_and_unload()


def test_merging_a_module_of_two_names_is_refused_and_an_alias_of_a_container_is_not() -> None:
    class Tied(nn.Module):
        def __init__(self, alias: bool) -> None:
            super().__init__()
            self.enc = nn.Sequential(nn.Linear(8, 8))
            self.dec = self.enc if alias else nn.Sequential(self.enc[0])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.dec(self.enc(x))

    for alias in (False, True):
        net = get_peft_model(Tied(alias), QCircuitConfig(r=2, target_modules=r"enc\.0")).eval()
        torch.nn.init.ones_(layers(net)[0].qcircuit_lambda["default"])
        x = torch.randn(3, 8)
        before = net(x)
        if alias:
            net.merge_adapter()
        else:
            with pytest.raises(ValueError, match=r"'enc\.0' shares its weight with 'dec\.0'"):
                net.merge_adapter()
        assert torch.allclose(net(x), before, atol=1e-5)


def test_two_adapters_with_biases_are_refused() -> None:
    with pytest.raises(ValueError, match="supports only 1 adapter with bias"):
        made = get_peft_model(bert(), config("bert", bias="all"))
        made.add_adapter("second", config("bert", bias="all"))
    assert load("simplified_two_design")


def test_rotations_with_frozen_angles_are_refused() -> None:
    with pytest.raises(ValueError, match="train_angles=False leaves nothing to train in 'rotation'"):
        get_peft_model(base("llama"), config("llama", factorization="rotation", train_angles=False))
