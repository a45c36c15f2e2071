"""A circuit adapter as a plain LoRA: stock PEFT gets the same model from the folder, or nothing is written."""

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from bounds import close
from peft import LoraConfig, get_peft_model, save_as_lora
from peft.tuners.lora.conversion import convert_to_lora
from peft.utils.other import ModulesToSaveWrapper
from test_qpa import adapted as generated
from tiny import CHAIN, adapted, base, config, inputs, logits, shake, told_by_a_fresh_process
from torch import nn
from transformers import RobertaConfig, RobertaForSequenceClassification

from qcircuit_peft import QCircuitConfig

pytestmark = [
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*embedding layers in.*:UserWarning"),
]


def roberta() -> RobertaForSequenceClassification:
    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 56, "num_attention_heads": 4}
    rates = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"), 0.0)
    torch.manual_seed(1)
    return RobertaForSequenceClassification(
        RobertaConfig(**sizes, **rates, vocab_size=64, max_position_embeddings=40, pad_token_id=0)
    ).eval()


def start(model: str) -> nn.Module:
    return roberta() if model == "roberta" else base(model)


SEQ = {"task_type": "SEQ_CLS"}
LM = {"task_type": "CAUSAL_LM"}
# A model, what its configuration has, the rank, and how many adapters it has: the last one is exported.
CASES: dict[str, tuple[str, dict[str, Any], int | float, int]] = {
    "a head of several layers": ("roberta", {**SEQ, "target_modules": ["query", "value"]}, 6, 1),
    "the head of the last of three": ("roberta", {**SEQ, "target_modules": ["query", "dense"]}, 6, 3),
    "a head of one layer": ("bert", SEQ, 6, 1),
    "no task, a head": ("bert", {"modules_to_save": ["classifier"]}, 6, 1),
    "no task, other blocks": ("llama", {"modules_to_save": ["norm", "mlp"], "target_modules": ["q_proj"]}, 6, 2),
    "embedding and head": ("llama", {**LM, "modules_to_save": ["embed_tokens", "lm_head"]}, 6, 1),
    "Conv1D": ("gpt2", {**LM, "modules_to_save": ["ln_f"]}, 6, 1),
    "all biases": ("bert", {**SEQ, "bias": "all"}, 6, 1),
    "biases of what is adapted": ("bert", {**SEQ, "bias": "qcircuit_only"}, 6, 1),
    "a pattern": ("bert", {**SEQ, "target_modules": r".*layer\.1.*(query|dense)"}, 6, 1),
    "excluded": ("llama", {**LM, "exclude_modules": r".*\.1\..*"}, 6, 1),
    "some layers": ("gpt2", {**LM, "layers_to_transform": [1]}, 6, 1),
    "ranks of their own": ("llama", {**LM, "rank_pattern": {"q_proj": 3, "up_proj": 8}}, 8, 1),
    "ranks by energy": ("llama", {**LM, "rank_pattern": {"q_proj": 3, "up_proj": 8}}, 1.0, 2),
    "shared circuits": ("llama", {**LM, "share": "kind", "quantization": {"bits": 4}}, 6, 1),
    "a tensor train": ("llama", {**LM, "factorization": "tensor_train", "r": 4}, 4, 1),
}

STOCK = """
import os, sys, warnings
import torch
torch.set_num_threads(1)
import peft
from peft import AutoPeftModel, AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification, PeftConfig
kinds = {"CAUSAL_LM": AutoPeftModelForCausalLM, "SEQ_CLS": AutoPeftModelForSequenceClassification, None: AutoPeftModel}
for case in os.listdir(sys.argv[1]):
    folder = os.path.join(sys.argv[1], case)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys.*")
        model = kinds[PeftConfig.from_pretrained(folder + "/lora").task_type].from_pretrained(folder + "/lora").eval()
    ids = torch.load(folder + "/ids.pt")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Careful, disabling adapter layers with bias")
        found = [model(ids).logits]
        with model.disable_adapter():
            found.append(model(ids).logits)
    heads = {name for name, module in model.named_modules() if type(module).__name__ == "ModulesToSaveWrapper"}
    torch.save((*found, heads), folder + "/found.pt")
assert "qcircuit_peft" not in sys.modules
"""


def trained(model: str, fields: dict[str, Any], adapters: int, folder: Path) -> tuple[Any, str]:
    """A model whose adapters and heads all differ, made from a base saved in a folder; the name of the last one."""
    if not folder.exists():
        start(model).save_pretrained(folder)
    torch.manual_seed(2)
    net: Any = type(start(model)).from_pretrained(folder).eval()
    for number in range(adapters):
        made = config("bert" if model == "roberta" else model, **fields, seed=number)
        if number == 0:
            net = get_peft_model(net, made, adapter_name="a0")
        else:
            net.add_adapter(f"a{number}", made)
        net.set_adapter(f"a{number}")
        shake(net, f"a{number}", seed=number)
        with torch.no_grad():
            for name, parameter in net.named_parameters():
                if parameter.requires_grad and "qcircuit_" not in name:
                    parameter += torch.randn_like(parameter) / 10
    return net.eval(), f"a{adapters - 1}"


def test_stock_peft_gets_the_same_model(tmp_path: Path) -> None:
    expected: dict[str, Any] = {}
    for case, (model, fields, rank, adapters) in CASES.items():
        folder = tmp_path / "cases" / case
        net, last = trained(model, fields, adapters, tmp_path / "bases" / model)
        ids = inputs("llama")["input_ids"]
        heads = {name for name, module in net.named_modules() if isinstance(module, ModulesToSaveWrapper)}
        with torch.no_grad():
            expected[case] = net(ids).logits, start(model)(ids).logits, heads
        net.set_adapter("a0")  # what is exported is the adapter of that name, not the active one
        save_as_lora(folder / "lora", net, rank=rank, adapter_name=last)
        torch.save(ids, folder / "ids.pt")
        assert {path.name for path in (folder / "lora").iterdir()} == {
            "adapter_config.json",
            "adapter_model.safetensors",
        }
    told_by_a_fresh_process(STOCK, tmp_path / "cases")
    for case, (adapted_logits, plain_logits, heads) in expected.items():
        found, disabled, heads_there = torch.load(tmp_path / "cases" / case / "found.pt")
        close(found, adapted_logits, 4 * CHAIN, where=case)
        if "bias" not in CASES[case][1]:  # which stay as they were trained, in PEFT
            close(disabled, plain_logits, CHAIN, where=case)
        assert heads_there == heads, case  # or they take the place of the own heads


def test_a_model_of_transformers_own_calls(tmp_path: Path) -> None:
    model = base("llama")
    model.add_adapter(config("llama"), "mine")
    shake(model, "mine")
    save_as_lora(tmp_path, model, rank=6, adapter_name="mine")
    loaded = peft.PeftModel.from_pretrained(base("llama"), tmp_path).eval()
    close(logits(loaded, "llama"), logits(model, "llama"), 4 * CHAIN)


class Ends(nn.Module):
    """Names that are the ends of others."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(8, 8)
        self.sub = nn.ModuleDict({"lin": nn.Linear(8, 6), "b": nn.ModuleDict({"lin": nn.Linear(6, 6)})})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.sub["b"]["lin"](self.sub["lin"](self.lin(x)))  # type: ignore[index]


@pytest.mark.parametrize(
    ("fields", "rank"),
    [
        ({"exclude_modules": ["sub.lin"]}, 3),
        ({"exclude_modules": ["sub.lin", "b.lin"]}, 3),
        ({"rank_pattern": {"^lin": 5, r"^sub\.b\.lin": 2}}, 1.0),
    ],
)
def test_names_that_are_the_ends_of_others(fields: dict[str, Any], rank: int | float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain, x = Ends().eval(), torch.randn(5, 8)
    other = copy.deepcopy(plain)
    net = shake(get_peft_model(plain, QCircuitConfig(r=3, target_modules=["lin"], **fields)))
    save_as_lora(tmp_path, net, rank=rank)
    loaded = peft.PeftModel.from_pretrained(other, tmp_path).eval()
    close(loaded(x), net(x), 100)
    adapted = {name for name, module in loaded.named_modules() if hasattr(module, "lora_A")}
    assert adapted == {name for name, module in net.named_modules() if hasattr(module, "qcircuit_lambda")}


REFUSED: dict[str, tuple[dict[str, Any], int | float, type[Exception], str]] = {
    "too small a rank": ({}, 5, ValueError, "has rank 6, of which rank=5 would leave out a part"),
    "too large a rank": ({}, 33, ValueError, "rank is at most the smaller width of a module, 32"),
    "no rank": ({}, 0, ValueError, "rank is a whole number >= 1, got 0"),
    "no share": ({}, 1.5, ValueError, r"share of energy in \(0, 1\], got 1.5"),
    "full rank": ({"factorization": "rotation", "r": 1}, 6, TypeError, "do not support LoRA conversion"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_exported_is_refused_before_anything_is_written(case: str, tmp_path: Path) -> None:
    fields, rank, kind, told = REFUSED[case]
    net = get_peft_model(base("bert"), config("bert", init_weights=False, **fields))
    for convert in (convert_to_lora, peft.convert_to_lora, lambda *a: peft.save_as_lora(tmp_path / "a", *a)):
        with pytest.raises(kind, match=told):
            convert(net, rank)
    assert not list(tmp_path.iterdir())


EARLIER = """
import inspect, os, sys
import torch
torch.set_num_threads(1)
from peft import LoraConfig, convert_to_lora, get_peft_model, save_as_lora
from peft.functional import delete_adapter
from peft.helpers import rescale_adapter_scale
from peft.utils.hotswap import hotswap_adapter, hotswap_adapter_from_state_dict
import peft
signature = inspect.signature(save_as_lora)
import qcircuit_peft
assert save_as_lora is peft.save_as_lora and inspect.signature(save_as_lora) == signature
folder = sys.argv[1] + "/a"

def made(config):
    torch.manual_seed(0)
    return get_peft_model(torch.nn.Sequential(torch.nn.Linear(8, 8)), config)

net = made(qcircuit_peft.QCircuitConfig(r=4, target_modules=["0"], init_weights=False))
for convert in (convert_to_lora, lambda *given: save_as_lora(folder, *given)):
    try:
        convert(net, 2)
    except ValueError as error:
        assert "has rank 4, of which rank=2 would leave out a part" in str(error), error
    else:
        raise AssertionError
    assert not os.path.exists(folder)
net.save_pretrained(folder)
try:
    hotswap_adapter(made(qcircuit_peft.QCircuitConfig(r=4, layers=2, target_modules=["0"])), folder, "default")
except ValueError as error:
    assert "made with layers = 1" in str(error), error
else:
    raise AssertionError
try:
    hotswap_adapter_from_state_dict(net, {}, "default", LoraConfig())
except ValueError as error:
    assert "a state dict does not say what the numbers of 'default' mean" in str(error), error
else:
    raise AssertionError
lora = made(LoraConfig(target_modules=["0"], r=2, init_lora_weights=False))
lora.save_pretrained(folder + "/lora")
other = made(LoraConfig(target_modules=["0"], r=2))
hotswap_adapter(other, folder + "/lora", "default")
x = torch.ones(1, 8)
assert torch.equal(other(x), lora(x))
for model in (net, lora):
    once = model(x)
    with rescale_adapter_scale(model, 2.0):
        assert not torch.equal(model(x), once)
    assert torch.equal(model(x), once)
"""


def test_functions_of_peft_that_were_imported_before_this_library(tmp_path: Path) -> None:
    told_by_a_fresh_process(EARLIER, tmp_path)


def test_adapters_that_are_not_there_or_not_of_circuits(tmp_path: Path) -> None:
    net = adapted("bert")
    with pytest.raises(ValueError, match="there is no adapter 'other' to convert; there are 'default'"):
        save_as_lora(tmp_path / "a", net, rank=6, adapter_name="other")
    with pytest.raises(ValueError, match="save_base_adapter writes the one of its base method"):
        peft.save_as_lora(tmp_path / "a", generated(), rank=6)
    assert not list(tmp_path.iterdir())


def test_a_broken_parameter_is_refused(tmp_path: Path) -> None:
    net = adapted("bert")
    with torch.no_grad():
        next(p for name, p in net.named_parameters() if "qcircuit_u" in name)[0] = torch.nan
    with pytest.raises(ValueError, match=r"qcircuit_u of adapter 'default' has 1 entries that are NaN"):
        save_as_lora(tmp_path / "a", net, rank=6)


def test_other_methods_are_converted_by_peft_itself(tmp_path: Path) -> None:
    net = get_peft_model(base("llama"), LoraConfig(target_modules=["q_proj"], init_lora_weights=False)).eval()
    with pytest.warns(UserWarning, match="already a LoRA"):
        save_as_lora(tmp_path, net, rank=8)
    loaded = peft.PeftModel.from_pretrained(base("llama"), tmp_path).eval()
    close(logits(loaded, "llama"), logits(net, "llama"), 4 * CHAIN)
