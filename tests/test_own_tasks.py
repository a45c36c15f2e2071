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
    MistralConfig,
    MistralModel,
    ViTConfig,
    ViTModel,
)

from qcircuit_peft.methods import DEMO
from qcircuit_peft.tasks import TASKS, load_task, task_files
from qcircuit_peft.tasks import task as task_module
from qcircuit_peft.training import accuracy, train, trained

SIZES = {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2}
MODELS = {
    "deberta": lambda: DebertaV2Model(
        DebertaV2Config(vocab_size=128, relative_attention=True, pos_att_type=["c2p"], **SIZES)
    ),
    "mistral": lambda: MistralModel(MistralConfig(vocab_size=128, num_key_value_heads=1, pad_token_id=1, **SIZES)),
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
        self.rows, self.features = [], {columns["label"]: None if kind == "regression" else Classes()}
        for at in range(n):
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

    def load_dataset(hub, config, split):
        asked.append((hub, config, split))
        return Rows(said["columns"], task.kind, 60 if split == "train" else 20, 0 if split == "train" else 100)

    monkeypatch.setattr("qcircuit_peft.tasks.own.find_spec", lambda name: True)
    monkeypatch.setattr(
        "qcircuit_peft.tasks.own.import_module", lambda name: SimpleNamespace(load_dataset=load_dataset)
    )
    task = load_task(name, model=models[name.rpartition("_")[2]])
    task = replace(task, bits=None)  # bitsandbytes wants a GPU
    splits = task.splits()
    data = said["data"]
    assert asked == [(data["hub"], data.get("config"), data[part]) for part in ("train", "test")]
    assert splits.train.names == (() if task.kind == "regression" else Classes.names)
    assert len(splits.test) == 20 and len(splits.validation) > 3 and len(splits.train) > 30
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
    assert all(task.kind and task.metric == "accuracy" for task in TASKS.values())
