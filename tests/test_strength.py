"""Adapters at another strength, and swapped in place: what PEFT and diffusers do to LoRA works on circuits."""

import copy
import pickle
from pathlib import Path

import peft
import pytest
import torch
from bounds import close
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict, hotswap, load_peft_weights, set_peft_model_state_dict
from tiny import (
    CONTRACT,
    MODELS,
    adapted,
    base,
    close_logits,
    config,
    each_entry,
    layers,
    logits,
    shake,
    told_by_a_fresh_process,
)
from torch import nn

from qcircuit_peft import QCircuitConfig
from qcircuit_peft.factorizations import FACTORIZATIONS

X = torch.randn(5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def one_layer(name):
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(12, 8)).double()
    model = get_peft_model(model, QCircuitConfig(r=4, factorization=name, target_modules=["0"], seed=0))
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += torch.randn(p.shape, dtype=p.dtype) / 20
    return model


@pytest.mark.parametrize("name", FACTORIZATIONS)
def test_the_update_is_as_strong_as_is_said(name):
    model = one_layer(name)
    layer = layers(model)[0]
    with torch.no_grad():
        plain, whole = layer.base_layer(X), model(X)
        delta = layer.get_delta_weight("default")
        layer.set_scale("default", -2.5)
        expected = plain - 2.5 * (whole - plain)
        close(model(X), expected, 64)
        assert torch.equal(layer.get_delta_weight("default"), delta * -2.5)
        model.merge_adapter()
        close(model(X), expected, 64)
        with pytest.raises(ValueError, match="while none is merged, but default is; call unmerge_adapter first"):
            layer.set_scale("default", 1)
        model.unmerge_adapter()
        close(model(X), expected, 64)
        layer.unscale_layer()
        close(model(X), whole, 64)


def test_scales_multiply_and_divide_as_loras_do():
    circuit, lora = adapted("llama"), get_peft_model(base("llama"), LoraConfig(target_modules=MODELS["llama"][1]))
    circuit.add_adapter("other", config("llama"))
    lora.add_adapter("other", LoraConfig(target_modules=MODELS["llama"][1]))

    def told():
        ours, theirs = layers(circuit)[0], next(m for m in lora.modules() if isinstance(m, LoraLayer))
        found = [ours.scales.get(name, 1.0) for name in ("default", "other")]
        assert found == pytest.approx([theirs.scaling[name] for name in ("default", "other")])
        return found

    def both(method, *given):
        for model in (circuit, lora):
            for module in model.modules():
                if hasattr(module, "scale_layer"):
                    getattr(module, method)(*given)
        return told()

    assert both("scale_layer", 3) == [3, 1]
    assert both("scale_layer", 0.5) == [1.5, 1]
    assert both("set_scale", "other", 4) == [1.5, 4]
    assert both("unscale_layer", 3) == [0.5, 4]
    assert both("set_scale", "nobody", 4) == [0.5, 4]
    assert both("unscale_layer") == [1, 4]


@each_entry
def test_a_rescaled_model_in_a_context(entry):
    model = adapted("llama", entry)
    before, off = logits(model, "llama"), logits(base("llama"), "llama")
    with peft.helpers.rescale_adapter_scale(model, 0):
        close_logits(model, "llama", off)
        with peft.helpers.rescale_adapter_scale(model, 2):
            close_logits(model, "llama", off)
    with pytest.raises(KeyboardInterrupt), peft.helpers.rescale_adapter_scale(model, 0.5):
        assert not torch.equal(logits(model, "llama"), before)
        raise KeyboardInterrupt
    assert torch.equal(logits(model, "llama"), before)


def test_a_strength_goes_with_its_adapter(tmp_path):
    model = adapted("llama")
    model.save_pretrained(tmp_path)
    model.add_adapter("b", config("llama"))
    for layer in layers(model):
        layer.set_scale("b", 0.5)
        layer.set_scale("default", 0.5)
    with peft.helpers.rescale_adapter_scale(model, 2):
        model.delete_adapter("b")
    assert all(layer.scales == {"default": 0.5} for layer in layers(model))
    hotswap.hotswap_adapter(model, tmp_path, "default")
    assert torch.equal(logits(model.eval(), "llama"), logits(adapted("llama"), "llama"))


@pytest.mark.parametrize("method", ["circuit", "lora"])
def test_numbers_that_are_loaded_onto_a_name_keep_its_strength_and_a_swapped_adapter_has_its_own(method, tmp_path):
    settings = {"r": 4, "target_modules": ["q_proj"]}
    make = {"circuit": QCircuitConfig, "lora": LoraConfig}[method]
    model = get_peft_model(base("llama"), make(**settings))
    for name, parameter in model.named_parameters():
        if "qcircuit_lambda" in name or "lora_B" in name:
            parameter.data += 0.1
    model.save_pretrained(tmp_path)
    trained = logits(model.eval(), "llama")
    changed = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for layer in changed:
        layer.set_scale("default", 0.5)
    weaker = logits(model, "llama")
    model.load_adapter(tmp_path, "default")
    assert torch.equal(logits(model.eval(), "llama"), weaker)
    set_peft_model_state_dict(model, load_peft_weights(str(tmp_path)))
    assert torch.equal(logits(model, "llama"), weaker)
    hotswap.hotswap_adapter(model, str(tmp_path), "default", torch_device="cpu")
    assert torch.equal(logits(model.eval(), "llama"), trained) and not torch.equal(trained, weaker)


def test_the_context_is_stock_for_other_models():
    lora = get_peft_model(base("llama"), LoraConfig(target_modules=["q_proj"], init_lora_weights=False)).eval()
    before = logits(lora, "llama")
    with peft.helpers.rescale_adapter_scale(lora, 0):
        close_logits(lora, "llama", logits(base("llama"), "llama"))
    assert torch.equal(logits(lora, "llama"), before)
    with (
        pytest.raises(ValueError, match="only supported for models with `LoraLayer`"),
        peft.helpers.rescale_adapter_scale(base("bert"), 2),
    ):
        pass


def test_a_strength_survives_copies_and_not_the_adapter(tmp_path):
    model = adapted("llama")
    model.add_adapter("other", config("llama"))
    shake(model, "other", seed=3)
    whole = logits(model, "llama")
    mixed = ["default", "other", "default"]
    rows = logits(model, "llama", adapter_names=mixed)
    for layer in layers(model):
        layer.set_scale("other", 0)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        plain = logits(again, "llama", adapter_names=["default", "__base__", "default"])
        close(logits(again, "llama", adapter_names=mixed), plain, 1e3)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base("llama"), tmp_path / "other", adapter_name="other")
    loaded.load_adapter(tmp_path, "default")
    assert torch.equal(logits(loaded, "llama", adapter_names=mixed), rows)
    model.delete_adapter("other")
    model.load_adapter(tmp_path / "other", "other")
    assert torch.equal(logits(model, "llama", adapter_names=mixed), rows)
    assert torch.equal(logits(model, "llama"), whole)


def test_a_plain_lora_is_as_strong_as_the_circuit(tmp_path):
    model = adapted("llama")
    for layer in layers(model):
        layer.set_scale("default", 3)
    peft.save_as_lora(tmp_path, model, 6)
    close_logits(PeftModel.from_pretrained(base("llama"), tmp_path), "llama", logits(model, "llama"))


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), "2", True, None])
def test_a_strength_is_a_finite_number(scale):
    model = adapted("llama")
    before = logits(model, "llama")
    layer = layers(model)[0]
    with pytest.raises(ValueError, match="scale is a finite number"):
        layer.set_scale("default", scale)
    with pytest.raises(ValueError, match="scale is a finite number"):
        layer.scale_layer(scale)
    with pytest.raises(ValueError, match="not divided by 0"):
        layer.unscale_layer(0)
    assert torch.equal(logits(model, "llama"), before)


def test_inputs_are_taken_as_they_are_with_and_without_casting():
    model = adapted("llama")
    before = logits(model, "llama")
    with peft.helpers.disable_input_dtype_casting(model):
        assert torch.equal(logits(model, "llama"), before)
    assert torch.equal(logits(model, "llama"), before)


@each_entry
def test_an_adapter_is_swapped_in_place(entry: str, tmp_path: Path) -> None:
    other = shake(adapted("llama", entry), seed=5)
    with torch.no_grad():
        for layer in layers(other):
            for name in ("qcircuit_u", "qcircuit_v"):
                for p in getattr(layer, name, {}).values():
                    p += 0.3
    other.save_pretrained(tmp_path)
    model = adapted("llama", entry)
    before, parameters = logits(model, "llama"), list(model.parameters())
    model.train()
    hotswap.hotswap_adapter(model, tmp_path, "default")
    assert all(p is q for p, q in zip(parameters, model.parameters(), strict=True))  # what optimizers and graphs hold
    assert all(module.training for module in model.modules())
    assert torch.equal(
        logits(model.eval(), "llama"), logits(PeftModel.from_pretrained(base("llama"), tmp_path), "llama")
    )
    assert not torch.equal(logits(model, "llama"), before)


COMPILED = """
import sys, torch
from peft import PeftModel
from peft.utils import hotswap
sys.path.insert(0, "tests")
import qcircuit_peft
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from tiny import adapted, base, inputs
count = []
def backend(graph, inputs):
    count.append(1)
    return graph.forward
model, ids = adapted("llama"), inputs("llama")["input_ids"]
prepare_model_for_compiled_hotswap(model, target_rank=9)
model = torch.compile(model, backend=backend)
with torch.no_grad():
    model(ids)
    print(len(count))
    for name in ("same", "wider"):
        folder = f"{sys.argv[1]}/{name}"
        hotswap_adapter(model, folder, "default")
        found, expected = model(ids).logits, PeftModel.from_pretrained(base("llama"), folder)(ids).logits
        print(len(count), float((found - expected).abs().max()) < 1e-5)
"""


def test_a_compiled_model_is_not_compiled_again(tmp_path: Path) -> None:
    shake(adapted("llama"), seed=5).save_pretrained(tmp_path / "same")
    shake(adapted("llama", r=8, alpha=24), seed=6).save_pretrained(tmp_path / "wider")
    assert told_by_a_fresh_process(COMPILED, tmp_path).split() == ["1", "1", "True", "1", "True"]


def test_what_does_not_fit_is_not_swapped(tmp_path: Path) -> None:
    model = adapted("llama")
    before = logits(model, "llama")
    for entry in sorted(CONTRACT.keys() - {"default", "frozen", "patterns"}):
        adapted("llama", entry).save_pretrained(tmp_path / entry)
        with pytest.raises(ValueError, match=r"adapter|circuit"):
            hotswap.hotswap_adapter(model, tmp_path / entry, "default")
    adapted("llama").save_pretrained(tmp_path)
    model.merge_adapter()
    with pytest.raises(ValueError, match="'default' is merged, so it is not loaded over; call unmerge_adapter first"):
        model.load_adapter(tmp_path, "default")
    with pytest.raises(ValueError, match="'default' is merged, so it is not loaded over"):
        set_peft_model_state_dict(model, get_peft_model_state_dict(model))
    with pytest.raises(ValueError, match="'default' is merged, so it is not swapped; call unmerge_adapter first"):
        hotswap.hotswap_adapter(model, tmp_path, "default")
    model.unmerge_adapter()
    close_logits(model, "llama", before)
