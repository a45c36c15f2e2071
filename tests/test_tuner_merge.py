"""Merging, also into quantized weights, and the plain LoRA that an adapter is equal to."""

import pytest
import torch
from bounds import close
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.conversion import convert_to_lora
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from tiny import adapted, base, both, close_logits, close_product, config, each_entry, layers, logits, shake
from torch import Tensor, nn
from transformers import RobertaConfig, RobertaForSequenceClassification

from qcircuit_peft.tuner import QCircuitLinear
from qcircuit_peft.tuner.layer import adapted_layers

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@both
def test_merge_and_unmerge(model: str, entry: str) -> None:
    net = adapted(model, entry)
    expected, plain = logits(net, model), logits(base(model), model)
    assert (expected - plain).abs().max() > 1e-3
    for safe in (False, True):
        net.merge_adapter(safe_merge=safe)
        assert all(layer.merged for layer in layers(net))
        close_logits(net, model, expected)
        net.unmerge_adapter()
        assert not any(layer.merged for layer in layers(net))
        close_logits(net, model, expected)
    net.merge_adapter()
    with net.disable_adapter():
        close_logits(net, model, plain)
    close_logits(net, model, expected)
    merged = net.merge_and_unload(safe_merge=True)
    assert not layers(merged) and type(merged) is type(base(model))
    close_logits(merged, model, expected)


def test_a_quantized_base_is_read_and_written_through_its_backend() -> None:
    class Halved:
        """Stores half the weight, as a stand-in for a quantizer."""

        backend_name, written = "halved", 0

        def get_base_weight(self, layer: nn.Module) -> Tensor:
            return layer.weight.data * 2

        def set_base_weight(self, layer: QCircuitLinear, weight: Tensor) -> None:
            self.written += 1
            layer.get_base_layer().weight.data = weight / 2

        def maybe_clone_base_result(self, x: Tensor) -> Tensor:
            return x.clone()

    net = adapted("llama")
    layer = layers(net)[0]
    layer.quantization_backend = backend = Halved()
    before = layer.base_layer.weight.clone()
    delta = layer.get_delta_weight("default")
    layer.merge(safe_merge=True)
    assert backend.written == 1
    close(layer.base_layer.weight, before + delta / 2, 3)
    layer.unmerge()
    close(layer.base_layer.weight, before, 4, (2 * before).abs().max() + delta.abs().max())
    assert "halved" in repr(layer) and logits(net, "llama").isfinite().all()


@each_entry
def test_the_factors_for_lora_are_exact(entry: str) -> None:
    net = adapted("llama", entry)
    for layer in layers(net):
        a, b = layer.factors["default"].lora(layer.made_now("default"))
        close(b @ a, layer.get_delta_weight("default"), 3 + len(a))
    lora, state = convert_to_lora(net, rank=8)
    assert isinstance(lora, LoraConfig) and net.base_model.supports_lora_conversion()
    for name, layer in adapted_layers(net):
        product = state[f"{name}.lora_B.weight"] @ state[f"{name}.lora_A.weight"]
        close_product(product, layer.get_delta_weight("default"))


def test_a_safe_merge_that_fails_anywhere_merges_nothing() -> None:
    """float16 overflows at 65,504: every parameter is finite, and the sum of the second adapter's is not."""
    net = adapted("llama")
    net.add_adapter("huge", config("llama"))
    net.base_model.set_adapter(["default", "huge"])
    net.half()
    for layer in layers(net):
        for name in layer.adapter_layer_names:
            for adapter in ("default", "huge"):
                getattr(layer, name)[adapter].data = getattr(layer, name)[adapter].data.float()
    with torch.no_grad():
        layers(net)[-1].qcircuit_lambda["huge"].fill_(1e6)
    weights = [layer.base_layer.weight.clone() for layer in layers(net)]
    for merge in (net.merge_adapter, net.merge_and_unload, layers(net)[-1].merge):
        with pytest.raises(ValueError, match=r"the weight merged with adapter 'huge' has \d+ entries that are NaN"):
            merge(safe_merge=True)
        assert not any(layer.merged for layer in layers(net))
        assert all(torch.equal(m.base_layer.weight, w) for m, w in zip(layers(net), weights, strict=True))


def test_two_adapters_merge_into_one_weight_and_come_out_again() -> None:
    net = adapted("llama")
    net.add_adapter("second", config("llama", "ring"))
    shake(net, "second", seed=3)
    net.base_model.set_adapter(["default", "second"])
    expected, before = logits(net, "llama"), layers(net)[0].base_layer.weight.clone()
    largest = before.abs().max() + sum(layers(net)[0].get_delta_weight(a).abs().max() for a in ("default", "second"))
    net.merge_adapter(safe_merge=True)
    assert layers(net)[0].merged_adapters == ["default", "second"]
    close_logits(net, "llama", expected)
    net.unmerge_adapter()
    assert not layers(net)[0].merged
    close(layers(net)[0].base_layer.weight, before, 4, largest)
    with pytest.warns(UserWarning, match="Already unmerged"):
        layers(net)[0].unmerge()


@pytest.mark.parametrize("unload", ["merge_and_unload", "unload"])
def test_a_head_of_several_layers_that_was_trained_is_unloaded_whole(unload: str) -> None:
    sizes = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 56, "num_attention_heads": 4}
    torch.manual_seed(1)
    model = RobertaForSequenceClassification(RobertaConfig(**sizes, vocab_size=64, max_position_embeddings=32))
    settings = config("bert", task_type="SEQ_CLS", target_modules=["query", "value"])
    net = shake(get_peft_model(model, settings)).eval()
    for parameter in net.classifier.modules_to_save["default"].parameters():
        parameter.data += 0.1
    head = {name: p.clone() for name, p in net.classifier.modules_to_save["default"].named_parameters()}
    expected = logits(net, "bert")
    plain = getattr(net, unload)()
    assert not any(isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper) for module in plain.modules())
    assert len(head) == 4 and all(torch.equal(p, head[name]) for name, p in plain.classifier.named_parameters())
    if unload == "merge_and_unload":
        close_logits(plain, "bert", expected)
