"""Saving, loading, converting and the Trainer: what is saved is what is loaded, wherever and however."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import torch.distributed as dist
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora.conversion import save_as_lora
from safetensors.torch import load_file
from tiny import CONTRACT, FRESH, MODELS, adapted, base, config, inputs, layers, logits, shake, told_by_a_fresh_process
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from transformers import Trainer, TrainingArguments

from qcircuit_peft import QCircuitConfig, circuits

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",
    "ignore:.*pin_memory.*:UserWarning",
    "ignore:Could not find a config file:UserWarning",
    "ignore:Already found a `peft_config` attribute:UserWarning",  # PEFT, when it injects a second time
    "ignore:`gradient_checkpointing` is deprecated:FutureWarning",
    "ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning",
    "ignore:.*use_reentrant.*:UserWarning",
)
both = pytest.mark.parametrize(("model", "entry"), [(m, c) for m in MODELS for c in CONTRACT])


@both
def test_saving_and_loading_gives_the_same_bits(model: str, entry: str, tmp_path: Path) -> None:
    net = adapted(model, entry)
    expected = logits(net, model)
    net.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    ours = [name for name, _ in net.named_parameters() if "qcircuit_" in name]
    assert sorted(load_file(tmp_path / "adapter_model.safetensors")) == [
        n.removesuffix(".default") for n in sorted(ours)
    ]
    for options in ({}, {"adapter_name": "other"}, {"low_cpu_mem_usage": True}, {"is_trainable": True}):
        torch.manual_seed(77)
        loaded = PeftModel.from_pretrained(base(model), tmp_path, **options)
        assert torch.equal(logits(loaded.eval(), model), expected), options
        frozen = [not p.requires_grad for name, p in loaded.named_parameters() if "qcircuit_lambda" in name]
        assert all(frozen) != ("is_trainable" in options)
        assert not any(p.is_meta for p in loaded.parameters())
    second = get_peft_model(base(model), config(model, "default"))
    second.load_adapter(tmp_path, "second")
    second.set_adapter("second")
    assert torch.equal(logits(second.eval(), model), expected)
    second.save_pretrained(tmp_path / "again", selected_adapters=["second"])
    assert (
        json.loads((tmp_path / "again/second/adapter_config.json").read_text())["circuit"]
        == json.loads((tmp_path / "adapter_config.json").read_text())["circuit"]
    )


def test_everything_about_the_circuit_is_under_one_key(tmp_path: Path) -> None:
    made = config("llama", "ring", seed=3, quantization={"bits": 2, "parts": {"lambda": 4}})
    made.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "adapter_config.json").read_text())
    ours = {"ansatz", "layers", "frame", "factorization", "width", "backend", "init", "seed", "train_angles"}
    ours |= {"frame_options", "factorization_options", "intrinsic_rank_pattern", "share", "quantization"}
    assert set(stored["circuit"]) == {"version"} | ours and not ours & set(stored)
    assert stored["circuit"]["version"] == 1 and stored["circuit"]["ansatz"]["layer"]
    for cls in (QCircuitConfig, PeftConfig):
        assert cls.from_pretrained(str(tmp_path)) == made
    assert peft.get_peft_config(made.to_dict()) == made


def test_the_adapter_does_not_depend_on_the_file_of_its_ansatz(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\n[[first]]\ngate = "RY"\non = "each"\n[[layer]]\ngate = ["CZ", "RY"]\non = "ring"\n')
    net = adapted("llama", ansatz=str(path))
    expected = logits(net, "llama")
    net.save_pretrained(tmp_path / "saved")
    path.unlink()
    assert torch.equal(logits(PeftModel.from_pretrained(base("llama"), tmp_path / "saved"), "llama"), expected)


FRESH_AND_TRAINED = (
    FRESH
    + """
check(AutoPeftModelForCausalLM.from_pretrained(folder + "/adapter"))
check(torch.load(folder + "/whole.pt", weights_only=False))
net = PeftModel.from_pretrained(fresh(), folder + "/adapter", is_trainable=True)
grads = []
for run in (net, torch.compile(net, backend="eager")):
    net.zero_grad()
    run(input_ids=ids, labels=ids).loss.backward()
    grads.append([p.grad.clone() for p in net.parameters() if p.requires_grad])
assert len(grads[0]) and all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*grads))
"""
)

STOCK = """
import sys
import torch
torch.set_num_threads(1)
from peft import PeftModel
from transformers import AutoModelForCausalLM
folder = sys.argv[1]
ids, expected = torch.load(folder + "/expected.pt")
for kind in ("lora", "merged"):
    base = AutoModelForCausalLM.from_pretrained(folder + ("/merged" if kind == "merged" else "/base"))
    model = PeftModel.from_pretrained(base, folder + "/lora") if kind == "lora" else base
    with torch.no_grad():
        error = (model.eval()(ids).logits - expected).abs().max().item()
    assert error < 1e-5, (kind, error)
assert "qcircuit_peft" not in sys.modules
"""


@pytest.mark.parametrize("model", ["gpt2", "llama"])
def test_in_a_fresh_process(model: str, tmp_path: Path) -> None:
    base(model).save_pretrained(tmp_path / "base")
    start = type(base(model)).from_pretrained(tmp_path / "base")
    net = shake(get_peft_model(start, config(model, task_type="CAUSAL_LM"))).eval()
    net.save_pretrained(tmp_path / "adapter")
    ids = inputs(model)["input_ids"]
    with torch.no_grad():
        torch.save((ids, net(ids).logits), tmp_path / "expected.pt")
    torch.save(net, tmp_path / "whole.pt")
    save_as_lora(tmp_path / "lora", net, rank=6)
    net.merge_and_unload().save_pretrained(tmp_path / "merged")
    for script in (FRESH_AND_TRAINED, STOCK) if model == "llama" else (STOCK,):
        told_by_a_fresh_process(script, tmp_path)


def test_transformers_own_adapter_calls(tmp_path: Path) -> None:
    model = base("llama")
    plain = logits(model, "llama")
    model.add_adapter(config("llama"), "mine")
    assert torch.equal(logits(model, "llama"), plain)
    shake(model, "mine")
    expected = logits(model, "llama")
    assert len(list(circuits(model))) == 2 * len(layers(model))
    model.save_pretrained(tmp_path)
    other = base("llama")
    other.load_adapter(str(tmp_path), adapter_name="again")
    assert torch.equal(logits(other, "llama"), expected)
    model.disable_adapters()
    assert torch.equal(logits(model, "llama"), plain)
    model.enable_adapters()
    model.add_adapter(config("llama", "shannon"), "second")
    model.set_adapter("mine")
    assert torch.equal(logits(model, "llama"), expected)
    model.delete_adapter("second")
    assert torch.equal(logits(model, "llama"), expected)


class Rows(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids = torch.randint(3, 64, (9,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": ids, "labels": ids}


@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing": True, "bf16": True, "use_cpu": True}])
def test_trainer_saves_and_resumes(options: dict[str, Any], tmp_path: Path) -> None:
    def trainer(folder: str, steps: int) -> Trainer:
        torch.manual_seed(0)
        settings = {
            "max_steps": steps,
            "save_steps": 3,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
        }
        quiet = {"report_to": "none", "disable_tqdm": True, "logging_strategy": "no", "seed": 1, "learning_rate": 0.03}
        net = get_peft_model(base("llama"), config("llama", seed=2))
        arguments = TrainingArguments(
            str(tmp_path / folder), **settings, **quiet, lr_scheduler_type="constant", **options
        )
        return Trainer(net, arguments, train_dataset=Rows())

    straight, first = trainer("straight", 6), trainer("broken", 3)
    straight.train()
    first.train()
    resumed = trainer("broken", 6)
    resumed.train(resume_from_checkpoint=True)
    for (name, p), q in zip(straight.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-6), name
    loaded = PeftModel.from_pretrained(base("llama"), tmp_path / "broken/checkpoint-6")
    assert torch.allclose(
        logits(loaded, "llama"), logits(straight.model.eval(), "llama"), atol=2e-2 if options else 1e-5
    )
    moved = layers(loaded)[0].intrinsic_parameters("default")
    start = get_peft_model(base("llama"), config("llama", seed=2))
    assert not any(torch.equal(moved[part], p) for part, p in layers(start)[0].intrinsic_parameters("default").items())


@pytest.mark.parametrize("fails", ["weights", "config", "move"])
def test_a_failed_save_leaves_the_previous_checkpoint_whole(
    fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = adapted("llama")
    expected = logits(net, "llama")
    net.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def half(state: Any, path: str, **kwargs: Any) -> None:
        Path(path).write_bytes(b"\0" * 100)
        raise OSError("no space left on device")

    def broken(*args: Any, **kwargs: Any) -> None:
        raise OSError("no space left on device")

    if fails == "weights":
        monkeypatch.setattr(peft.peft_model, "safe_save_file", half)
    elif fails == "config":
        monkeypatch.setattr(QCircuitConfig, "save_pretrained", broken)
    else:
        plain, moves = os.replace, iter(range(99))
        monkeypatch.setattr(os, "replace", lambda *to: broken() if next(moves) == 4 else plain(*to))
    shake(net, seed=6)
    with pytest.raises(OSError, match="no space"):
        net.save_pretrained(tmp_path)
    if fails != "move":
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    monkeypatch.undo()
    found = logits(PeftModel.from_pretrained(base("llama"), tmp_path), "llama")
    assert torch.equal(found, logits(net, "llama") if fails == "move" else expected)  # amid the moves it is the new one
    net.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(base("llama"), tmp_path), "llama"), logits(net, "llama"))


def test_a_failed_save_by_transformers_leaves_the_previous_checkpoint_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = base("llama")
    model.add_adapter(config("llama"))
    model.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    other = base("llama")
    other.add_adapter(config("llama", layers=2))

    def broken(*args: Any, **kwargs: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", broken)
    with pytest.raises(OSError, match="no space"):
        other.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_other_methods_are_saved_as_before(tmp_path: Path) -> None:
    settings = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    net = get_peft_model(base("llama"), settings).eval()
    net.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    for loaded in (PeftModel.from_pretrained(base("llama"), tmp_path), base("llama")):
        if not isinstance(loaded, PeftModel):
            loaded.load_adapter(str(tmp_path))
        assert torch.equal(logits(loaded, "llama"), logits(net, "llama"))
    with pytest.raises(ValueError, match="nowhere"):
        PeftModel.from_pretrained(base("llama"), tmp_path / "nowhere")


@pytest.fixture
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # torch's, of FSDP
@pytest.mark.parametrize("inside", [False, True], ids=["outermost", "blocks too"])
def test_the_state_dict_of_a_model_in_fsdp_is_that_of_the_model(inside: bool, one_process: None) -> None:
    net = adapted("llama", bias="all")
    expected, wanted = logits(net, "llama"), get_peft_model_state_dict(net)
    cpu = {"use_orig_params": True, "device_id": torch.device("cpu")}
    if inside:
        blocks = net.base_model.model.model.layers
        for at in range(len(blocks)):
            blocks[at] = FSDP(blocks[at], **cpu)
    found = get_peft_model_state_dict(FSDP(net, **cpu))
    assert found.keys() == wanted.keys()
    other = get_peft_model(base("llama"), config("llama", bias="all")).eval()
    set_peft_model_state_dict(other, found)
    assert torch.equal(logits(other, "llama"), expected)
