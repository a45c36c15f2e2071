"""Task files: those that come with the library, on tiny models and data of the same layout, and one's own."""

import json
import tomllib
from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from test_fine_tuning import WORDS, tokenizer
from transformers import (
    BertConfig,
    BertModel,
    DebertaV2Config,
    DebertaV2Model,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralModel,
    ViTConfig,
    ViTModel,
)

from qcircuit_peft.methods import DEMO
from qcircuit_peft.tasks import TASKS, load_task, task_files
from qcircuit_peft.tasks import task as task_module
from qcircuit_peft.tasks.examples import Columns, examples
from qcircuit_peft.tasks.tables import Table
from qcircuit_peft.training import accuracy, train, trained

SIZES = {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2}
MODELS = {
    "deberta": lambda: DebertaV2Model(
        DebertaV2Config(vocab_size=128, relative_attention=True, pos_att_type=["c2p"], **SIZES)
    ),
    "mistral": lambda: MistralModel(MistralConfig(vocab_size=128, num_key_value_heads=1, pad_token_id=1, **SIZES)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=128, n_positions=40, n_embd=32, n_layer=1, n_head=2, bos_token_id=111, eos_token_id=111)
    ),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(vocab_size=128, num_key_value_heads=1, head_dim=32, **SIZES)),
    "llama2": lambda: LlamaForCausalLM(LlamaConfig(vocab_size=128, **SIZES)),
    "vit": lambda: ViTModel(ViTConfig(image_size=16, patch_size=8, **SIZES)),
    "bert": lambda: BertModel(BertConfig(vocab_size=128, **SIZES)),
}
ROWS = [{"text": f"{WORDS[at % 6]} {at}", "label": "ab"[at % 6 // 3]} for at in range(90)]
OWN = {
    "lora_targets": ["query", "value"],
    "columns": {"text": "text"},
    "data": {"train": ROWS[:60], "validation": 0.2, "test": ROWS[60:]},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    found = {}
    for name, make in MODELS.items():
        torch.manual_seed(0)
        found[name] = tmp_path_factory.mktemp(name)
        make().save_pretrained(found[name])
        tokenizer(found[name])
    return found


class Classes:
    """What datasets calls a ClassLabel."""

    names = ("class 0", "class 1")

    def int2str(self, at):
        return self.names[at]


class Rows:
    """What load_dataset gives: rows, their columns, and what kind each is of."""

    def __init__(self, columns: dict[str, str], kind: str, n: int, start: int) -> None:
        labelled = kind in ("classification", "images")
        self.rows, self.features = [], {columns["label"]: Classes()} if labelled else {}
        for at in range(n):
            if kind == "language":  # several completions of a prompt are rows of their own; some lines are empty
                row = {
                    columns["text"]: "" if "completion" not in columns and at % 5 == 0 else f"who is {start + at // 2}"
                }
                row |= {columns["completion"]: f"poet {start + at}"} if "completion" in columns else {}
                self.rows.append(row)
                continue
            label = float(at % 5) if kind == "regression" else at % 2
            if kind == "images":
                pixels = np.full((16, 16, 3), 60 + 150 * label, np.uint8)
                pixels[0, 0] = start + at  # no two are the same
                row = {columns["image"]: Image.fromarray(pixels)}
            else:
                keys = [columns[key] for key in ("text", "text2") if key in columns]
                row = {key: f"{WORDS[int(label)]} {start + at} {k}" for k, key in enumerate(keys)}
            self.rows.append(row | {columns["label"]: label, "idx": at})
        self.column_names = list(self.rows[0])

    def __iter__(self):
        return iter(self.rows)


@pytest.mark.parametrize("name", task_files())
def test_a_task_file_trains_on_a_stand_in(name, models, tmp_path, monkeypatch):
    asked, said = [], tomllib.loads(task_files()[name].read_text(encoding="utf-8"))

    def load_dataset(hub, config, split, revision):
        asked.append((hub, config, split, revision))
        return Rows(said["columns"], task.kind, 60 if split == "train" else 20, 0 if split == "train" else 100)

    monkeypatch.setattr("qcircuit_peft.tasks.own.find_spec", lambda name: True)
    monkeypatch.setattr(
        "qcircuit_peft.tasks.own.import_module", lambda name: SimpleNamespace(load_dataset=load_dataset)
    )
    task = load_task(name, model=models[name.rpartition("_")[2]], folder=tmp_path)
    if "hub" not in said["data"]:
        for part, n, start in (("train", 60, 0), ("test", 20, 100)):
            rows = [row | {"answer": at} for at, row in enumerate(Rows(said["columns"], task.kind, n, start))]
            (tmp_path / said["data"][part]).write_text(json.dumps(rows, indent=1))
    few = {"max_length": 32, "beams": min(task.beams, 2)} if task.kind == "language" else {}
    task = replace(task, bits=None, **few)  # bitsandbytes wants a GPU
    splits = task.splits()
    data = said["data"]
    parts = ("train", "test", "validation") if isinstance(data["validation"], str) else ("train", "test")
    if "hub" in data:
        assert asked == [(data["hub"], data.get("config"), data[part], data.get("revision")) for part in parts]
    assert splits.train.names == (Classes.names if task.kind in ("classification", "images") else ())
    assert len(splits.test) >= 10 and len(splits.validation) > 0 and len(splits.train) >= 20
    result = train(task, DEMO["lora"], tmp_path / "run", epochs=1)
    assert result.finished and result.parameters > 0 and np.isfinite(result.accuracy)
    assert accuracy(*trained(task, tmp_path / "run"), splits.test) == pytest.approx(result.accuracy, abs=1e-6)


def test_a_task_of_ones_own_learns(models, tmp_path):
    task = load_task(OWN | {"model": str(models["bert"]), "about": "mine"})
    result = train(task, DEMO["lora"], tmp_path, epochs=12)
    assert result.accuracy > 0.8 and task.about == "mine" and 0 <= result.interval < 0.2
    assert (tmp_path / "head.safetensors").stat().st_size < 2000  # the classifier alone
    again = accuracy(*trained(task, tmp_path), task.splits().test)
    assert again == result.accuracy


def test_a_file_names_its_data_beside_itself(models, tmp_path):
    for name, rows in (("train", ROWS[:60]), ("test", ROWS[50:])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text = f'model = "{models["bert"]}"\nlora_targets = ["query"]\n[columns]\ntext = "text"\n'
    (tmp_path / "mine.toml").write_text(f'{text}[data]\ntrain = "train.jsonl"\nvalidation = 0.1\ntest = "test.jsonl"\n')
    task = load_task(tmp_path / "mine.toml")
    train_, _, test = (set(split.inputs) for split in task.splits())
    assert len(test) == 40 and not train_ & test  # ten were in both
    assert task.splits() is task.splits()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "poetry"}, "task: kind is one of classification, regression, images, language, got 'poetry'"),
        ({"kind": "images"}, "task: the kind 'images' does not go with the columns"),
        (
            {"metric": "pearson"},
            "task: the metric 'pearson' is of numbers, which the kind 'classification' does not give",
        ),
        ({"metric": "pearson"}, "task: the metric 'pearson' is of numbers"),
        ({"colums": {}}, "task: unknown key 'colums'; did you mean one of columns"),
        ({"columns": {"txt": "a"}}, "task: columns: unknown key 'txt'"),
        ({"data": {"train": ROWS}}, "task: data: the key 'validation' is missing"),
        ({"data": {"train": ROWS, "validation": 2}}, "task: validation is a number from 0 to below 1"),
        ({"bits": 3}, "task: bits is 4 or 8, got 3"),
        ({"bits": 4.0}, "task: bits is 4 or 8, got 4.0"),
        ({"epochs": 0}, "task: epochs is a whole number 1 to"),
        ({"lora_targets": "query"}, "task: lora_targets is a list of texts"),
        ({"test_columns": {"txt": "a"}}, "task: test_columns: unknown key 'txt'"),
        ({"test_columns": {"completion": "a"}}, "task: test_columns are for language, columns for classification"),
    ],
)
def test_a_task_that_says_nonsense_is_one_sentence(change, message):
    with pytest.raises(ValueError, match=message):
        load_task({**OWN, "model": "x"} | change)


def test_names_that_are_not_there(monkeypatch):
    with pytest.raises(
        ValueError, match=f"there is no task named 'sst2'; allowed are {', '.join(task_files())}, or a path"
    ):
        load_task("sst2")
    hub = load_task("sst2_deberta", model="x", hub="nowhere")
    monkeypatch.setattr("qcircuit_peft.tasks.own.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="read by datasets, which is not installed; run: pip install datasets"):
        hub.splits()
    if find_spec("bitsandbytes") is None:
        with pytest.raises(ImportError, match="4 bits need bitsandbytes"):
            task_module._quantized(4)
    assert all(task.metric == ("perplexity" if name == "speeches" else "accuracy") for name, task in TASKS.items())


@pytest.mark.skipif(find_spec("datasets") is None, reason="datasets is not installed")
def test_a_data_set_is_read_by_its_name_as_datasets_does(tmp_path, monkeypatch):
    """A folder stands for a name on the hub: the same function reads both."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "mine").mkdir()
    names = (
        "dataset_info:\n  features:\n  - {name: text, dtype: string}\n  - name: label\n    dtype:\n      class_label:"
    )
    names += "\n        names: {'0': far, '1': who}"
    (tmp_path / "mine" / "README.md").write_text(f"---\n{names}\n---\n")
    for part, start in (("train", 0), ("test", 100)):
        rows = [{"text": f"{part} {at}", "label": at % 2} for at in range(start, start + 20)]
        (tmp_path / "mine" / f"{part}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = {"hub": str(tmp_path / "mine"), "train": "train", "validation": 0.2, "test": "test"}
    splits = load_task(OWN | {"model": "x", "data": data}).splits()
    assert splits.train.names == ("far", "who") and [len(split) for split in splits] == [16, 4, 20]
    found = datasets.load_dataset(str(tmp_path / "mine"), split="test")  # and as rows of one's own
    assert splits.test.labels.tolist() == list(examples(Table(found), Columns("text")).labels)
    assert examples(Table(found), Columns("text")).names == ("far", "who")
