"""``convert`` and ``count``: a trained adapter in the forms of other programs, and what methods train in a model."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import base, close_logits, config, logits, shake
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from typer.testing import CliRunner

from qcircuit_peft import Circuit, circuits, matrix
from qcircuit_peft.cli import app
from qcircuit_peft.fine_tuning import convert, loaded
from qcircuit_peft.fine_tuning.conversion import FORMS
from qcircuit_peft.interop import places
from qcircuit_peft.methods import METHODS
from qcircuit_peft.tuner.saving import COMMITTED


@pytest.fixture(scope="module")
def saved(tmp_path_factory: Any) -> Any:
    """A folder with a base model and an adapter of it, the adapter, and its outputs."""
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    base("bert", hidden_size=48).save_pretrained(folder / "base")
    plain = AutoModelForSequenceClassification.from_pretrained(folder / "base")
    net = shake(get_peft_model(plain, config("bert", r=4, rank_pattern={"value": 3}, task_type="SEQ_CLS")))
    net.save_pretrained(folder / "adapter")
    return folder, net, logits(net, "bert")


def test_every_form_is_the_adapter(saved: Any, tmp_path: Path) -> None:
    folder, net, expected = saved
    found = {form: convert(folder / "adapter", tmp_path / form, form) for form in FORMS}
    assert all(row.bytes == sum(p.stat().st_size for p in (tmp_path / form).iterdir()) for form, row in found.items())
    again = AutoModelForSequenceClassification.from_pretrained(folder / "base")
    stock = PeftModel.from_pretrained(again, tmp_path / "lora")
    assert type(stock.peft_config["default"]) is LoraConfig and stock.peft_config["default"].rank_pattern == {}
    assert found["lora"].rank == stock.peft_config["default"].r == 4  # of all modules, as servers want it
    close_logits(stock, "bert", expected)
    close_logits(AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged"), "bert", expected)
    trained = {name.removeprefix("base_model.model."): rest for name, *rest in circuits(net)}
    assert {path.stem for path in (tmp_path / "qasm").iterdir()} == set(trained)
    by_width = {circuit.dims: (name, circuit, angles) for name, (circuit, angles) in trained.items()}
    assert len(by_width) > 1
    for dims, (name, circuit, angles) in by_width.items():
        read = Circuit.from_qasm((tmp_path / "qasm" / f"{name}.qasm").read_text())
        at = torch.tensor(places(dims))
        rows = matrix(read, torch.zeros(0, dtype=torch.float64))
        assert torch.allclose(rows[at][:, at].real, matrix(circuit, angles.double()), atol=1e-12), name


@pytest.mark.parametrize("kind", ["ranks above a width", "a sum", "a ring"])
def test_every_update_has_its_own_rank_in_an_exact_copy(kind: str, tmp_path: Path) -> None:
    plain = base("llama", head_dim=4)  # values 8 wide, queries 16
    plain.save_pretrained(tmp_path / "base")
    more: dict[str, Any] = {"r": 12, "rank_pattern": {"v_proj": 3}} if kind == "ranks above a width" else {"r": 2}
    more |= {"factorization": "tensor_ring"} if kind == "a ring" else {}
    more |= {"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    net: Any = shake(get_peft_model(copy.deepcopy(plain), config("llama", **more)))
    if kind == "a sum":
        net.add_adapter("second", config("llama", **more | {"r": 3}))
        shake(net, "second", 1)
        net.base_model.add_weighted_adapter(["default", "second"], [1.0, 2.0], "sum", "cat")
        net.set_adapter("sum")
    expected = logits(net, "llama")
    net.save_pretrained(tmp_path / "a", selected_adapters=[net.active_adapter])
    folder = tmp_path / "a" / ("sum" if kind == "a sum" else "")
    found = convert(folder, tmp_path / "lora", base=str(tmp_path / "base"))
    stock = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "lora")
    assert stock.peft_config["default"].r == found.rank
    close_logits(stock, "llama", expected)


def test_a_share_of_the_energy_takes_a_lower_rank(saved: Any, tmp_path: Path) -> None:
    folder, _, _ = saved
    found = convert(folder / "adapter", tmp_path / "thin", rank=0.5)
    assert 1 <= found.rank < 4


def test_an_adapter_is_loaded_by_its_task_or_its_class(saved: Any, tmp_path: Path) -> None:
    folder, _, expected = saved
    assert torch.equal(logits(loaded(folder / "adapter").eval(), "bert"), expected)
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in (folder / "adapter").iterdir():
        (moved / path.name).write_bytes(path.read_bytes())
    written = json.loads((moved / "adapter_config.json").read_text())
    mapping = {"base_model_class": "BertForSequenceClassification", "parent_library": "os"}
    (moved / "adapter_config.json").write_text(json.dumps(written | {"task_type": None, "auto_mapping": mapping}))
    assert torch.equal(logits(loaded(moved).eval(), "bert"), expected)
    for change, told in (
        ({"task_type": None, "auto_mapping": {"base_model_class": "system", "parent_library": "os"}}, "kind of model"),
        ({"base_model_name_or_path": None}, "does not say which model it adapts"),
        ({"base_model_name_or_path": "/nonexistent/model"}, "'/nonexistent/model' is neither"),
    ):
        (moved / "adapter_config.json").write_text(json.dumps(written | change))
        with pytest.raises(ValueError, match=told):
            loaded(moved)
    assert torch.equal(logits(loaded(moved, str(folder / "base")).eval(), "bert"), expected)


def test_what_cannot_be_converted_is_one_sentence(saved: Any, tmp_path: Path) -> None:
    folder, _, _ = saved
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    adapter, new = folder / "adapter", tmp_path / "new"
    for arguments, told in (
        ((adapter, new, "gguf"), "form is one of lora, merged, qasm, got 'gguf'"),
        ((adapter, tmp_path / "full"), "full' is not empty; name another folder"),
        ((tmp_path / "full", new), "holds no adapter"),
    ):
        with pytest.raises(ValueError, match=told):
            convert(*arguments)
    with pytest.raises(ValueError, match="rank is LoRA's, but the form is 'qasm'"):
        convert(adapter, new, "qasm", rank=4)
    with pytest.raises(ValueError, match="rank 4, of which rank=2 would leave out a part"):
        convert(adapter, new, rank=2)
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("adapter_config.json", "[]"),
        ("adapter_config.json", '{"peft_type": "NOPE"}'),
        ("adapter_config.json", {"peft_type": []}),
        ("adapter_config.json", {"task_type": []}),
        ("adapter_config.json", {"auto_mapping": [1], "task_type": None}),
        ("adapter_config.json", {"base_model_name_or_path": {}}),
        ("config.json", "[]"),
        ("config.json", '{"model_type": 5}'),
        ("adapter_model.safetensors", "{}"),
    ],
)
def test_an_adapter_that_is_not_what_it_says_is_one_sentence(
    saved: Any, name: str, content: Any, tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(saved[0] / "adapter", adapter)
    if isinstance(content, dict):
        content = json.dumps(json.loads((adapter / name).read_text()) | content)
    (adapter / name).write_text(content)
    with pytest.raises(ValueError):
        convert(adapter, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_save_that_was_interrupted_is_converted(saved: Any, tmp_path: Path) -> None:
    shutil.copytree(saved[0] / "adapter", tmp_path / "adapter" / COMMITTED)
    found, expected = (loaded(folder / "adapter").eval() for folder in (tmp_path, saved[0]))
    assert torch.equal(logits(found, "bert"), logits(expected, "bert"))


def test_the_command_line_converts_and_counts(saved: Any, tmp_path: Path) -> None:
    folder, _, _ = saved
    run = CliRunner().invoke
    told = run(app, ["convert", str(folder / "adapter"), "--rank", "0.99", "--out", str(tmp_path / "lora")]).output
    assert "LoRA's r = " in told and (tmp_path / "lora" / "adapter_model.safetensors").is_file()
    assert run(app, ["convert", str(folder / "adapter"), "--rank", "x", "--out", str(tmp_path / "no")]).exit_code == 2
    asked = ["--method", "lora", "--method", "circuit", "--rank", "4,8", "--json"]
    rows = json.loads(run(app, ["count", str(folder / "base"), *asked]).output)
    model = base("bert", hidden_size=48)
    expected = [
        (name, size, METHODS[name].count(model, ["query", "value"], size))
        for name in ("lora", "circuit")
        for size in (4, 8)
    ]
    assert [(row["method"], row["size"], row["numbers"]) for row in rows] == expected
    everything = run(app, ["count", str(folder / "base")])
    assert everything.exit_code == 0 and everything.stdout.count("\n") == len(METHODS) + 1
    assert "37,312 numbers in the model; adapted: query, value" in everything.stderr
    assert not run(app, ["count", str(folder / "base"), "--quiet"]).stderr
    wide = run(app, ["count", str(folder / "base"), "--rank", "49"]).output
    assert "left out: " in wide and "circuit (circuits, shared by kind has no size 49 in this model; the next" in wide
    odd = run(app, ["count", str(folder / "base"), "--method", "lora", "--method", "lokr", "--targets", "classifier"])
    assert odd.exit_code == 2 and "has no linear layer whose name ends in one of ['classifier']" in odd.output
