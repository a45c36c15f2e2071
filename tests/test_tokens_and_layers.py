"""Trained tokens, replicated layers and tied heads beside circuits, as PEFT's LoRA has them."""

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.conversion import save_as_lora
from tiny import adapted, base, close_logits, config, inputs, logits, shake
from torch import nn

from qcircuit_peft import QCircuitConfig, parameter_groups

TOKENS = [3, 5, 60]
TIED = pytest.mark.parametrize("tied", [False, True])


def trained(model: Any, steps: int = 3) -> Any:
    model.train()
    rates = dict.fromkeys(("angles", "lambdas", "others", "heads"), 1e-2)
    optimizer = torch.optim.AdamW(parameter_groups(model, rates))
    ids = torch.tensor([[1, 3, 5, 7], [60, 3, 2, 9]])
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    return model.eval()


@TIED
def test_tokens_are_trained_and_nothing_else_of_their_embedding(tied: bool, tmp_path: Path) -> None:
    plain = base("llama", tie_word_embeddings=tied)
    expected = logits(plain, "llama")
    net = get_peft_model(copy.deepcopy(plain), config("llama", trainable_token_indices=TOKENS))
    assert torch.equal(logits(net, "llama"), expected)
    trained(net)
    found = logits(net, "llama")
    net.save_pretrained(tmp_path)
    fresh = PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path)
    assert torch.equal(logits(fresh, "llama"), found)
    merged = net.merge_and_unload()
    close_logits(merged, "llama", found)
    before, after = plain.get_input_embeddings().weight, merged.get_input_embeddings().weight
    changed = (before != after).any(1).nonzero().flatten().tolist()
    assert changed == TOKENS
    assert (merged.lm_head.weight is after) is tied


def test_tokens_of_embeddings_by_name_and_of_two_adapters() -> None:
    net = adapted("llama", trainable_token_indices={"embed_tokens": TOKENS})
    net.add_adapter("second", config("llama", trainable_token_indices=[8]))
    first = net.get_input_embeddings()
    assert {name: list(rows) for name, rows in first.token_adapter.token_indices.items()} == {
        "default": TOKENS,
        "second": [8],
    }


@TIED
def test_the_plain_lora_has_the_tokens_and_the_layers(tied: bool, tmp_path: Path) -> None:
    plain = base("llama", tie_word_embeddings=tied)
    options = {"trainable_token_indices": TOKENS, "layer_replication": [(0, 2), (1, 2)]}
    net = trained(get_peft_model(copy.deepcopy(plain), config("llama", **options)))
    expected = logits(net, "llama")
    save_as_lora(tmp_path, net, 6)
    stock = PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path)
    assert isinstance(stock.peft_config["default"], LoraConfig)
    close_logits(stock, "llama", expected)


def test_replicated_layers_are_those_of_lora_and_have_adapters_of_their_own(tmp_path: Path) -> None:
    plain, ranges = base("llama"), [(0, 1), (0, 2)]
    net = get_peft_model(copy.deepcopy(plain), config("llama", layer_replication=ranges, seed=0))
    stock = get_peft_model(copy.deepcopy(plain), LoraConfig(layer_replication=ranges, target_modules=["q_proj"]))
    assert torch.equal(logits(net, "llama"), logits(stock, "llama"))
    layers = net.get_base_model().model.layers
    assert len(layers) == net.config.num_hidden_layers == 3
    assert layers[0].mlp.up_proj.weight is layers[1].mlp.up_proj.weight
    first, second = (layer.self_attn.q_proj for layer in layers[:2])
    assert first.base_layer.weight is second.base_layer.weight
    assert not torch.equal(first.qcircuit_u["default"], second.qcircuit_u["default"])
    shake(net)
    expected = logits(net, "llama")
    net.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path), "llama"), expected)
    net.load_adapter(tmp_path, "again")  # has them already
    assert len(net.get_base_model().model.layers) == 3
    with pytest.raises(ValueError, match=r"shares its weight with 'model\.layers\.1\."):
        net.merge_adapter()
    assert torch.equal(logits(net, "llama"), expected)


def test_what_fails_after_layers_were_replicated_leaves_the_model_as_it_was() -> None:
    model = base("llama")
    layers = model.model.layers
    for change, told in (
        ({"layer_replication": [(0, 3)]}, "layer_replication has a range up to 3, but the model has fewer layers"),
        ({"layer_replication": [(0, 2), (0, 2)], "r": 65}, "65"),
    ):
        with pytest.raises(ValueError, match=told):
            get_peft_model(model, config("llama", **change))
        assert model.model.layers is layers and model.config.num_hidden_layers == len(layers) == 2
    net = get_peft_model(model, config("llama", layer_replication=[(0, 2), (0, 2)]))
    with pytest.raises(ValueError, match=r"layers of this model were replicated as \[\(0, 2\), \(0, 2\)\]"):
        net.add_adapter("other", config("llama", layer_replication=[(0, 1)]))
    assert len(net.get_base_model().model.layers) == 4 and list(net.peft_config) == ["default"]


def test_a_head_that_is_tied_is_trained_with_its_embedding(tmp_path: Path) -> None:
    plain = base("llama", tie_word_embeddings=True)
    net = get_peft_model(copy.deepcopy(plain), config("llama", modules_to_save=["lm_head"], ensure_weight_tying=True))
    trained(net)
    inner: Any = net.get_base_model()
    trained_embedding = inner.model.embed_tokens.modules_to_save["default"].weight
    assert inner.lm_head.modules_to_save["default"].weight is trained_embedding
    assert not torch.equal(trained_embedding, plain.get_input_embeddings().weight)
    expected = logits(net, "llama")
    net.save_pretrained(tmp_path)
    fresh = PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path)
    assert torch.equal(logits(fresh, "llama"), expected)


@pytest.mark.parametrize(
    "options, told",
    [
        ({"trainable_token_indices": [64]}, "has token 64 of 'model.embed_tokens', which has 64 tokens"),
        ({"trainable_token_indices": [1, 1]}, "names every token of 'model.embed_tokens' once"),
        ({"trainable_token_indices": {"wte": [1]}}, "names 'wte', but the model has no such module"),
        ({"trainable_token_indices": [-1]}, "trainable_token_indices has whole numbers >= 0, got -1"),
        ({"trainable_token_indices": 3}, "trainable_token_indices is a list of whole numbers >= 0, got 3"),
        ({"layer_replication": []}, r"layer_replication is a list of ranges \[start, end\)"),
        ({"layer_replication": [(1, 1)]}, "is a start and an end above it"),
        ({"layer_replication": [(0, 1, 2)]}, "is a start and an end above it"),
        ({"layer_replication": [(0, 2)] * 10**4}, "the number of layers of layer_replication is a whole number 1 to"),
        ({"ensure_weight_tying": 1}, "ensure_weight_tying is true or false, got 1"),
        ({"target_modules": ["embed_tokens"], "ensure_weight_tying": True}, "circuits adapt one alone"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_changes_nothing(options: dict[str, Any], told: str) -> None:
    model = base("llama", tie_word_embeddings=True)
    before = [(name, id(module)) for name, module in model.named_modules()]
    with pytest.raises(ValueError, match=told):
        get_peft_model(model, QCircuitConfig(**({"r": 2, "target_modules": ["q_proj"]} | options)))
    assert [(name, id(module)) for name, module in model.named_modules()] == before


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_rows_of_an_adapted_weight_are_refused(target: str) -> None:
    told = "trains rows of the weight of .*, which is also that of .*, a module that is adapted"
    with pytest.raises(ValueError, match=told), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's, of tied weights
        options = {"target_modules": [target], "trainable_token_indices": TOKENS}
        get_peft_model(base("llama", tie_word_embeddings=True), config("llama", **options))


def test_adapters_of_a_model_all_train_tokens_or_none_does(tmp_path: Path) -> None:
    for first, second in (({}, {"trainable_token_indices": [1]}), ({"trainable_token_indices": [1]}, {})):
        net = adapted("llama", **first)
        with pytest.raises(ValueError, match="either all adapters of a model have trainable_token_indices or none"):
            net.add_adapter("other", config("llama", **second))
        net.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="trains tokens, which are not added up"):
        net.base_model.add_weighted_adapter(["default"], [1.0], "sum", "cat")


def test_a_model_with_adapters_keeps_its_layers() -> None:
    net = shake(adapted("llama"))
    expected = logits(net, "llama")
    with pytest.raises(ValueError, match="in which there is no adapter yet, but this one has some"):
        net.add_adapter("other", config("llama", layer_replication=[(0, 2), (0, 2)]))
    assert torch.equal(logits(net, "llama"), expected)


@pytest.mark.parametrize("way", ["beside", "sum", "after unloading"])
def test_adapters_of_replicated_layers_say_so(way: str, tmp_path: Path) -> None:
    plain = base("llama")
    net: Any = shake(get_peft_model(copy.deepcopy(plain), config("llama", layer_replication=[(0, 2), (0, 2)])))
    if way == "after unloading":
        net = get_peft_model(net.unload(), config("llama"), adapter_name="other")
    elif way == "beside":
        net.add_adapter("other", config("llama", layers_to_transform=[1]))
    else:
        net.base_model.add_weighted_adapter(["default"], [1.0], "other", "cat")
    net.set_adapter("other")
    if way != "sum":
        shake(net, "other", 1)
    expected = logits(net, "llama")
    net.save_pretrained(tmp_path, selected_adapters=["other"])
    fresh = PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path / "other")
    assert torch.equal(logits(fresh, "llama"), expected)


def test_a_trained_token_of_a_module_without_an_embedding() -> None:
    with pytest.raises(ValueError, match="names 'embed_tokens', but the model has no such module"):
        get_peft_model(
            nn.Sequential(nn.Linear(8, 8)), QCircuitConfig(r=2, target_modules=["0"], trainable_token_indices=[1])
        )


def test_inputs_have_the_tokens() -> None:
    assert set(TOKENS) & set(inputs("llama")["input_ids"].flatten().tolist())
