"""Tiny real models, adapter configurations that suit all of them, and what the tests of the tuner do with both."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from bounds import close
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Dinov2Config,
    Dinov2Model,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from qcircuit_peft import QCircuitConfig
from qcircuit_peft.tasks import TASKS, Split, Splits, Task
from qcircuit_peft.tuner import QCircuitLinear
from qcircuit_peft.tuner.layer import adapted_layers

# Configurations, each valid for every model below.
CONTRACT: dict[str, dict[str, Any]] = {
    "default": {"r": 6, "alpha": 48},
    "shannon": {"r": 4, "width": "shannon", "layers": 2, "seed": 5},
    "ring": {"r": 3, "alpha": 30.0, "ansatz": "ring_ry_cz", "width": "qudit", "init": "normal"},
    "frozen": {"r": 8, "train_angles": False},
    "quantized": {"r": 4, "quantization": {"bits": 3, "group": 8, "adaptive": True, "parts": {"lambda": 4}}},
    "shared": {"r": 4, "share": "kind", "seed": 3},
    "patterns": {"r": 4, "rank_pattern": {r".*\.0\..*": 2}, "alpha_pattern": {r".*\.1\..*": 7}, "dropout": 0.1},
}


def gpt2(**change: Any) -> GPT2LMHeadModel:
    sizes = {
        "n_layer": 2,
        "n_embd": 48,
        "n_head": 4,
        "vocab_size": 64,
        "n_positions": 32,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return GPT2LMHeadModel(GPT2Config(**(sizes | rates | change)))


def llama(**change: Any) -> LlamaForCausalLM:
    sizes = {
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "vocab_size": 64,
    }
    rest = {
        "num_key_value_heads": 2,
        "max_position_embeddings": 32,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    return LlamaForCausalLM(LlamaConfig(**(sizes | rest | change)))


def bert(**change: Any) -> BertForSequenceClassification:
    sizes = {
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "intermediate_size": 56,
        "num_attention_heads": 4,
        "vocab_size": 64,
    }
    rates = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
    return BertForSequenceClassification(BertConfig(**(sizes | rates | {"max_position_embeddings": 32} | change)))


MODELS = {
    "gpt2": (gpt2, ["c_attn", "c_proj"]),  # Conv1D
    "llama": (llama, ["q_proj", "v_proj", "up_proj"]),
    "bert": (bert, ["query", "value", "dense"]),
}
both = pytest.mark.parametrize(("model", "entry"), [(m, c) for m in MODELS for c in CONTRACT])
each_model = pytest.mark.parametrize("model", MODELS)
each_entry = pytest.mark.parametrize("entry", CONTRACT)


def base(model: str, **change: Any) -> Any:
    torch.manual_seed(1)
    return MODELS[model][0](**change).eval()


def config(model: str, entry: str = "default", **change: Any) -> QCircuitConfig:
    return QCircuitConfig(**({"target_modules": MODELS[model][1]} | CONTRACT[entry] | change))


def inputs(model: str, rows: int = 3, seed: int = 0) -> dict[str, Tensor]:
    ids = torch.randint(3, 64, (rows, 9), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "labels": torch.arange(rows) % 2 if model == "bert" else ids}


def shake(model: nn.Module, adapter: str = "default", seed: int = 0) -> Any:
    """Give an adapter a lambda that is not zero."""
    for k, (_, module) in enumerate(adapted_layers(model)):
        if adapter in module.factors:
            lam = module.qcircuit_lambda[adapter]
            with torch.no_grad():
                lam.copy_(torch.randn(lam.shape, generator=torch.Generator().manual_seed(100 * seed + k)) / 20)
    return model


def adapted(model: str, entry: str = "default", **change: Any) -> PeftModel:
    """A model with an adapter that does something."""
    return shake(get_peft_model(base(model), config(model, entry, **change))).eval()


@torch.no_grad()
def logits(model: nn.Module, name: str, **more: Any) -> Tensor:
    return model(**inputs(name), **more).logits


# The longest chain of a tiny model: in each of two blocks six products of about 64 terms of either sign, then the head.
CHAIN = (2 * 6 + 1) * 64**0.5


def close_logits(model: nn.Module, name: str, expected: Tensor) -> None:
    """Assert that a model gives these logits up to what another order of additions may change."""
    close(logits(model, name), expected, CHAIN)


def close_gradient(found: Tensor | None, expected: Tensor, where: Any = "") -> None:
    """Assert that a gradient through a tiny model, there and back, is this up to another order of additions."""
    assert found is not None, where
    close(found, expected, 2 * CHAIN, where=where)


def compare_compiled(net: nn.Module, model: str, backend: Any = "aot_eager") -> nn.Module:
    """Assert that in one graph a model has its outputs, its gradients, and its outputs after a step; it is compiled.

    For a process of its own: what checks shapes in these tests wraps functions in a way that no compiler follows.
    """
    torch._dynamo.reset()
    trained = {name: p for name, p in net.named_parameters() if p.requires_grad}
    expected = net(**inputs(model))
    expected.loss.backward()
    wanted = {name: p.grad for name, p in trained.items()}
    net.zero_grad()
    compiled: Any = torch.compile(net, fullgraph=True, backend=backend)
    found = compiled(**inputs(model))
    close(found.logits, expected.logits, CHAIN)
    found.loss.backward()
    for name, p in trained.items():
        close_gradient(p.grad, wanted[name], name)
    with torch.no_grad():
        for p in trained.values():
            p.add_(0.05)
    close(compiled(**inputs(model)).logits, net(**inputs(model)).logits, CHAIN)
    return compiled


def close_forward(layer: QCircuitLinear, x: Tensor, added: Tensor) -> None:
    """Assert that an adapted layer adds this to what its base layer gives, from which it is told by subtraction."""
    with torch.no_grad():
        whole = layer(x)
        close(whole - layer.base_layer(x), added, 2 * layer.in_features**0.5, whole.abs().max())


def close_product(found: Tensor, delta: Tensor) -> None:
    """Assert that the product of an SVD's factors is what was taken apart: up to n^(1/2) roundings of its norm."""
    close(found, delta, min(delta.shape) ** 0.5, torch.linalg.matrix_norm(delta, 2))


def layers(model: nn.Module) -> list[QCircuitLinear]:
    return [module for _, module in adapted_layers(model)]


def made_together(layer: QCircuitLinear, *adapters: str, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """What a layer works on in a forward pass, in which it is made for all layers at once."""
    layer.bank.passes.begin()
    try:
        return layer._made(torch.empty(0, dtype=dtype), adapters)
    finally:
        layer.bank.passes.end()


# What scripts for a fresh process begin with: ``base``, ``adapter`` and the outputs expected of it lie in the folder.
FRESH = """
import sys, warnings
import torch
torch.set_num_threads(1)
folder = sys.argv[1]
import qcircuit_peft
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM
ids, expected = torch.load(folder + "/expected.pt")
def check(model):
    with torch.no_grad():
        assert torch.equal(model.eval()(ids).logits, expected)
    return model
def fresh():
    return AutoModelForCausalLM.from_pretrained(folder + "/base")
check(PeftModel.from_pretrained(fresh(), folder + "/adapter"))
check(PeftModel.from_pretrained(fresh(), folder + "/adapter", adapter_name="other"))
check(PeftModel.from_pretrained(fresh(), folder + "/adapter", low_cpu_mem_usage=True))
model = fresh()
model.load_adapter(folder + "/adapter", adapter_name="mine")
check(model)
"""


def told_by_a_fresh_process(script: str, folder: Path) -> str:
    """What a script prints to the end; an error of its own is shown."""
    command = [sys.executable, "-c", script, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def brightness_task(folder: Path, sizes: list[int], width: int = 48, blocks: int = 1) -> Task:
    """Noisy images (n, 3, 14, 14), half of them brighter, in splits of these sizes, and a tiny vision model."""
    torch.manual_seed(0)
    sides = {"num_attention_heads": 2, "mlp_ratio": 1, "image_size": 14}
    Dinov2Model(Dinov2Config(hidden_size=width, num_hidden_layers=blocks, **sides)).save_pretrained(folder)

    def drawn(n: int) -> Split:
        labels = torch.arange(n) % 2
        return Split(torch.randn(n, 3, 14, 14) + 4 * labels.view(-1, 1, 1, 1), labels, ("dark", "light"))

    splits, digits = Splits(*map(drawn, sizes)), TASKS["digits"]
    return Task("tiny", lambda: folder, lambda: splits, digits.targets, digits.lora_targets, 1, 1.0, False)
