"""Mixtures of experts, of which transformers keeps the experts in fused parameters, and gates of few outputs."""

import pytest
import torch
import transformers
from peft import get_peft_model

from qcircuit_peft import QCircuitConfig

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
}

_GATES = ["shared_expert_gate"]


def tiny(name):
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SIZES, **MODELS[name])
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


@pytest.mark.parametrize("name", MODELS)
def test_fused_experts_are_named(name):
    config = QCircuitConfig(r=4, target_modules="all-linear", exclude_modules=_GATES if name == "Qwen2Moe" else None)
    with pytest.warns(UserWarning, match=r"leaves 2 fused parameters of experts .*'.*experts"):
        net = get_peft_model(tiny(name), config)
    ids = torch.arange(8).view(1, 8)
    net(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)


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
