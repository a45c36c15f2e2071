"""Adapters of another rank, put in the place of one in use: PEFT's hot-swapping."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from test_attention import Model, X
from test_attention import settings as of_attention
from test_experts import config as of_experts
from test_experts import logits as of_mixture
from test_experts import tiny
from tiny import adapted, base, close_logits, config, inputs, layers, logits, shake
from torch import Tensor, nn

from qcircuit_peft import QPAConfig


def same_as_loaded(model: Any, folder: Path) -> None:
    close_logits(model, "llama", logits(PeftModel.from_pretrained(base("llama"), folder).eval(), "llama"))


SMALLER: dict[str, dict[str, Any]] = {
    "rank": {"r": 2, "alpha": 16},
    "alpha": {"alpha": 5},
    "patterns": {"r": 4, "alpha": 4, "rank_pattern": {r".*\.0\..*": 3}, "alpha_pattern": {r".*\.1\..*": 7}},
}


@pytest.mark.parametrize("share", [None, "shape"])
@pytest.mark.parametrize("change", SMALLER.values(), ids=SMALLER)
def test_a_smaller_rank_is_swapped_in_place(change: dict[str, Any], share: str | None, tmp_path: Path) -> None:
    shake(adapted("llama", share=share, **change), seed=5).save_pretrained(tmp_path / "small")
    model = adapted("llama", share=share)
    parameters, r = list(model.parameters()), model.peft_config["default"].r
    for layer in layers(model):
        layer.set_scale("default", 3)
    hotswap_adapter(model, tmp_path / "small", "default")
    assert all(p is q for p, q in zip(parameters, model.parameters(), strict=True))
    same_as_loaded(model, tmp_path / "small")
    assert model.peft_config["default"].r == r
    model.save_pretrained(tmp_path / "again")
    same_as_loaded(model, tmp_path / "again")


def test_pruned_adapters_are_swapped(tmp_path: Path) -> None:
    small = adapted("llama", r=4, alpha=8)
    for layer in layers(small):
        with torch.no_grad():
            layer.qcircuit_lambda["default"][1:3] = 0
        layer.encodings["default"]["lambda"].pruned = True
    small.save_pretrained(tmp_path)
    model = adapted("llama")
    hotswap_adapter(model, tmp_path, "default")
    close_logits(model, "llama", logits(small, "llama"))


@pytest.mark.parametrize(
    "change", [{}, {"alpha": 0}, {"rank_pattern": {r".*\.0\..*": 2}, "alpha_pattern": {"q_proj": 7}}]
)
def test_room_for_a_larger_rank(change: dict[str, Any], tmp_path: Path) -> None:
    model = adapted("llama", **change)
    before = logits(model, "llama")
    prepare_model_for_compiled_hotswap(model, target_rank=9, config=model.peft_config)
    close_logits(model, "llama", before)
    assert {layer.factors["default"].rank for layer in layers(model)} == {9}
    assert all(p.requires_grad for p in model.parameters() if p.shape == (9,))
    model.save_pretrained(tmp_path / "wide")
    same_as_loaded(model, tmp_path / "wide")
    shake(adapted("llama", r=8, alpha=24), seed=6).save_pretrained(tmp_path / "other")
    if change.get("alpha") == 0:
        return
    hotswap_adapter(model, tmp_path / "other", "default")
    same_as_loaded(model, tmp_path / "other")
    model.train()(**inputs("llama")).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def given(p: Tensor) -> Tensor:
    return torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) / 4


PARAMETERS: dict[str, Any] = {
    "experts": (lambda: tiny("Mixtral"), of_experts, of_mixture),
    "attention": (Model, of_attention, lambda model: model(X)),
}


@pytest.mark.parametrize("make, settings, outputs", PARAMETERS.values(), ids=PARAMETERS)
def test_adapters_of_parameters(make: Any, settings: Any, outputs: Any, tmp_path: Path) -> None:
    def one(**change: Any) -> PeftModel:
        model = get_peft_model(make(), settings(**change))
        with torch.no_grad():
            for p in model.parameters():
                if p.requires_grad:
                    p += given(p)
        return model.eval()

    small, model = one(r=2, alpha=5), one(r=3)
    small.save_pretrained(tmp_path)
    before = outputs(model)
    prepare_model_for_compiled_hotswap(model, target_rank=4)
    torch.testing.assert_close(outputs(model), before)
    hotswap_adapter(model, tmp_path, "default")
    torch.testing.assert_close(outputs(model), outputs(small))
    assert (outputs(model) - before).abs().max() > 0.01


KINDS: dict[str, dict[str, Any]] = {
    "'default' is quantized": {"quantization": {"bits": 4}},
    "where every update is one 'svd'": {"factorization": "tensor_train"},
    "frames of .* have other parameters at another rank": {"frame": "taylor"},
}


def test_what_cannot_be_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    def fresh(**change: Any) -> Any:
        return get_peft_model(base("llama"), config("llama", **change))

    def refuses(said: str, swap: dict[str, Any], model: Any) -> None:
        fresh(**swap).save_pretrained(tmp_path)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(ValueError, match=said):
            hotswap_adapter(model, tmp_path, "default")
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    refuses(r"has rank 8, but that of 'default', .* has rank 6; call .*target_rank=8\)", {"r": 8}, adapted("llama"))
    refuses("with layers = 2", {"r": 4, "layers": 2}, adapted("llama"))
    refuses("with ansatz", {"r": 4, "ansatz": "ring_ry_cz"}, adapted("llama"))
    refuses("with share", {"r": 4, "share": "kind"}, adapted("llama"))
    refuses("alpha of 'default' is 0", {"r": 4}, adapted("llama", alpha=0))
    for said, change in KINDS.items():
        refuses(said, {"r": 4, **change}, fresh(**change))


def test_what_cannot_be_widened_is_refused() -> None:
    def refuses(said: str, model: Any, rank: Any = 9, **more: Any) -> None:
        before = dict(vars(model.peft_config["default"]))
        with pytest.raises(ValueError, match=said):
            prepare_model_for_compiled_hotswap(model, target_rank=rank, **more)
        assert vars(model.peft_config["default"]) == before

    model = adapted("llama")
    refuses("target_rank is at least the rank of every update, 6 for", model, 5)
    refuses("target_rank is a whole number", model, 2.5)
    refuses("r is at most the smaller width of a module", model, 4096)
    refuses("check_compiled is one of", model, check_compiled="maybe")
    for said, change in KINDS.items():
        refuses(said, get_peft_model(base("llama"), config("llama", **change)))
    model.merge_adapter()
    refuses("'default' is merged, so it is not widened", model)
    model.unmerge_adapter()
    model.compile(backend="eager")
    refuses("comes before torch.compile, but the model is compiled already", model)
    with pytest.warns(UserWarning, match="will be once more"):
        prepare_model_for_compiled_hotswap(model, target_rank=9, check_compiled="warn")
    assert model.peft_config["default"].r == 9
    with pytest.raises(ValueError, match="No adapter layers found"):
        prepare_model_for_compiled_hotswap(nn.Linear(2, 2))


def test_mixed_models_say_what_to_do(tmp_path: Path) -> None:
    before = [type(module) for module in base("llama").modules()]
    for make in (lambda: config("llama"), lambda: QPAConfig(base=config("llama"))):
        net = base("llama")
        with pytest.raises(ValueError, match=r"PEFT's mixed models know LORA, .*can be told of no other, so that Q"):
            get_peft_model(net, make(), mixed=True)
        assert [type(module) for module in net.modules()] == before
    model = adapted("llama")
    peft.save_as_lora(tmp_path, model, rank=6)
    mixed = peft.PeftMixedModel.from_pretrained(base("llama"), tmp_path, "circuits")
    close_logits(mixed.eval(), "llama", logits(model, "llama"))
    mixed.add_adapter("other", peft.LoHaConfig(target_modules=["o_proj"], init_weights=False))
    with pytest.raises(ValueError, match=r"QCIRCUIT is not mixed with these; write the adapter as a plain LoRA"):
        mixed.add_adapter("third", config("llama"))
    mixed.set_adapter(["circuits", "other"])
    assert (logits(mixed.eval(), "llama") - logits(model, "llama")).abs().max() > 1e-3
