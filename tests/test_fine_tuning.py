"""Training on a table of one's own and predicting another: what is written, that it loads, and what is refused."""

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTModel,
)
from typer.testing import CliRunner

from qcircuit_peft import fine_tuning
from qcircuit_peft.cli import app
from qcircuit_peft.fine_tuning import Columns, Predictor, Settings, convert, evaluate, fine_tune, predict
from qcircuit_peft.fine_tuning.settings import ADAPTERS
from qcircuit_peft.tasks.pictures import Pictures

WORDS = ["far", "high", "long", "who", "whom", "poet", "where", "city", "country"]
CLASSES = {"NUM": WORDS[:3], "HUM": WORDS[3:6], "LOC": WORDS[6:]}


def tokenizer(folder: Path, pad: bool = True) -> None:
    names = ["[UNK]", "[PAD]", *WORDS, *map(str, range(100)), "</s>"]
    words = Tokenizer(models.WordLevel({word: at for at, word in enumerate(names)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"unk_token": "[UNK]", "eos_token": "</s>"} | ({"pad_token": "[PAD]"} if pad else {})
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=128, max_position_embeddings=16, pad_token_id=1, **sizes)).save_pretrained(folder)
    tokenizer(folder)
    return str(folder)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    GPT2Model(GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=128, n_positions=16)).save_pretrained(folder)
    tokenizer(folder, pad=False)
    return str(folder)


def rows(n: int = 120) -> list[dict[str, str]]:
    kinds = list(CLASSES)
    return [
        {"question": f"{CLASSES[kinds[at % 3]][at // 3 % 3]} {at} {at % 7}", "kind": kinds[at % 3]} for at in range(n)
    ]


def table(path: Path, found: list[dict[str, str]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(found[0]))
        writer.writeheader()
        writer.writerows(found)
    return path


QUESTIONS = Columns("question", label="kind")


@pytest.fixture(scope="module")
def trained(bert, tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    table(folder / "q.csv", rows())
    settings = Settings(bert, QUESTIONS, rank=8, epochs=4, batch=8, validation=0.25)
    return folder, fine_tune(folder / "q.csv", folder / "adapter", settings, also=("lora", "merged")), settings


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_it_learns_and_says_so(trained):
    folder, figures, _ = trained
    assert figures.value > 0.8 and figures.classes == ("HUM", "LOC", "NUM")
    assert (figures.train, figures.validation, figures.rows, figures.disputed) == (90, 30, 120, 0)
    values = [row["value"] for row in figures.history]
    assert len(values) == 4 and figures.epoch == values.index(max(values)) + 1
    out = folder / "adapter"
    assert figures.bytes == sum(path.stat().st_size for path in out.glob("adapter_*"))
    weights = load_file(out / "adapter_model.safetensors")
    assert figures.trained + figures.head == sum(p.numel() for p in weights.values())
    found = {path.name for path in out.iterdir()}
    assert found >= {"README.md", "task.json", "config.json", "training.png", "lora", "merged"}
    assert "checkpoints" not in found and not [name for name in found if name.startswith(".writing")]
    card = (out / "README.md").read_text()
    assert f"**accuracy {100 * figures.value:.1f} %**" in card and "AutoModelForSequenceClassification" in card


def test_the_code_of_the_model_card_loads_it_and_every_form_predicts_the_same(trained, tmp_path):
    folder, _, settings = trained
    card = (folder / "adapter" / "README.md").read_text()
    code = card.partition("```python\n")[2].partition("```")[0].replace('"adapter"', repr(str(folder / "adapter")))
    names: dict = {}
    exec(code, names)
    words = Predictor.load(folder / "adapter")
    batch = words.encode(["far 1 2", "poet 3", "city 4 5 6"])
    with torch.no_grad():
        wanted = names["model"].eval()(**batch).logits
        config = AutoConfig.from_pretrained(folder / "adapter" / "lora")
        base = AutoModelForSequenceClassification.from_pretrained(settings.model, config=config)
        lora = PeftModel.from_pretrained(base, folder / "adapter" / "lora").eval()(**batch).logits
        merged = (
            AutoModelForSequenceClassification.from_pretrained(folder / "adapter" / "merged").eval()(**batch).logits
        )
    for found in (words.net(**batch).logits.detach(), lora, merged):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    assert wanted.argmax(-1).tolist() == [2, 0, 1]


def test_predictions_repeat_the_rows(trained, tmp_path, monkeypatch):
    folder, *_ = trained
    monkeypatch.setattr(sys.modules[predict.__module__], "AT_ONCE", 7)  # in many pieces
    fresh = [{"id": str(at), **row, "note": 'a, "b"\nc'} for at, row in enumerate(rows(150)[120:])]
    pieces = []
    told = predict(folder / "adapter", table(tmp_path / "new.csv", fresh), tmp_path / "p.csv", progress=pieces.append)
    assert told == 30 and pieces == [7, 14, 21, 28, 30]
    found = read(tmp_path / "p.csv")
    assert [{key: row[key] for key in fresh[0]} for row in found] == fresh
    assert sum(row["prediction"] == row["kind"] for row in found) > 24
    assert all(1 / 3 <= float(row["probability"]) <= 1 for row in found)
    predict(folder / "adapter", fresh, tmp_path / "p.jsonl")
    again = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [row["prediction"] for row in again] == [row["prediction"] for row in found]
    torch.testing.assert_close(
        [row["probability"] for row in again], [float(row["probability"]) for row in found], atol=1e-5, rtol=0
    )


def test_a_converted_adapter_is_loaded_evaluated_and_refused_in_a_sentence(trained, tmp_path):
    folder, _, _ = trained
    found = convert(folder / "adapter", tmp_path / "lora", rank=0.9999)
    assert 0 < found.rank <= 8 and len(CLASSES) == 3
    given = table(tmp_path / "q.csv", rows(60))
    assert evaluate(tmp_path / "lora", given)[0].value == pytest.approx(
        evaluate(folder / "adapter", given)[0].value, abs=0.05
    )
    stock = PeftModel.from_pretrained(
        AutoModelForSequenceClassification.from_pretrained(
            json.loads((tmp_path / "lora" / "adapter_config.json").read_text())["base_model_name_or_path"],
            config=AutoConfig.from_pretrained(tmp_path / "lora"),
        ),
        tmp_path / "lora",
    )
    assert set(stock.config.label2id) == set(CLASSES)
    with pytest.raises(ValueError, match="is an adapter of the type LORA; only circuits have this form"):
        convert(tmp_path / "lora", tmp_path / "again")
    (tmp_path / "lora" / "config.json").unlink()
    with pytest.raises(ValueError, match="lora' cannot be loaded: RuntimeError: "):
        convert(tmp_path / "lora", tmp_path / "again", "merged")


def test_an_evaluation_is_of_every_row(trained, tmp_path, monkeypatch):
    folder, _, _ = trained
    monkeypatch.setattr(sys.modules[evaluate.__module__], "AT_ONCE", 7)  # in many pieces
    found = [*rows(40), *rows(3)]  # the last ones twice
    found[0] = found[0] | {"kind": found[1]["kind"]}
    predict(folder / "adapter", table(tmp_path / "q.csv", found), tmp_path / "p.csv")
    told = [row["prediction"] == row["kind"] for row in read(tmp_path / "p.csv")]
    accuracy, matthews = evaluate(folder / "adapter", tmp_path / "q.csv", ["accuracy", "matthews"])
    assert accuracy.value == pytest.approx(np.mean(told)) and accuracy.rows == 43 and 0 < accuracy.value < 1
    wilson = [(p - accuracy.value) ** 2 * 43 - 1.959964**2 * p * (1 - p) for p in (accuracy.low, accuracy.high)]
    assert wilson == pytest.approx([0, 0], abs=1e-6)  # where the score test of p has this quantile
    assert -1 < matthews.value < 1 and matthews.low is None
    for change, metrics, said in (
        ({"kind": "fish"}, [], "the class 'fish' is none of"),
        ({}, ["rmse"], "metric is one of accuracy, f1, matthews, got 'rmse'"),
    ):
        with pytest.raises(ValueError, match=said):
            evaluate(folder / "adapter", [found[0] | change], metrics)
    with pytest.raises(ValueError, match="has no column 'kind'"):
        evaluate(folder / "adapter", [{"question": "a"}])


def test_a_table_that_breaks_off_leaves_no_predictions(trained, tmp_path):
    folder, *_ = trained
    path = table(tmp_path / "new.csv", rows(6))
    path.write_text(path.read_text() + "one cell\n")
    with pytest.raises(ValueError, match=r"new\.csv, line 8: it has 1 cell, the header has 2"):
        predict(folder / "adapter", path, tmp_path / "p.csv")
    assert [entry.name for entry in tmp_path.iterdir()] == ["new.csv"]
    with pytest.raises(ValueError, match="has a column 'prediction' already; rename it"):
        predict(folder / "adapter", [{"question": "far", "prediction": "x"}], tmp_path / "p.csv")
    with pytest.raises(ValueError, match="has no column 'question'"):
        predict(folder / "adapter", [{"text": "far"}], tmp_path / "p.csv")
    with pytest.raises(ValueError, match=r"predictions go to a file that ends in \.csv, \.tsv, \.jsonl"):
        predict(folder / "adapter", path, tmp_path / "p.xlsx")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda task: task.pop("kind"), "task.json: kind is one of"),
        (lambda task: task.update(version=2), "task.json: version is a whole number 1 to 1, got 2"),
        (lambda task: task.update(columns="text"), "task.json: columns is a table, got 'text'"),
        (lambda task: task.update(columns={"text": 3}), "task.json: text is a text, got 3"),
        (lambda task: task.update(more=1), "task.json: task: unknown key 'more'"),
        (lambda task: task.update(mean=float("nan")), "task.json: mean is"),
        (lambda task: task.update(max_length=-1), "task.json: max_length is"),
    ],
)
def test_a_task_file_that_says_nonsense_is_refused(change, message, trained, tmp_path):
    task = json.loads((trained[0] / "adapter" / "task.json").read_text())
    change(task)
    (tmp_path / "task.json").write_text(json.dumps(task))
    with pytest.raises(ValueError, match=f"is no adapter of qcircuit-peft train: {message}"):
        Predictor.load(tmp_path)


def test_an_interrupted_training_goes_on_to_the_same_adapter(trained, bert, tmp_path):
    folder, figures, settings = trained

    def stop(step: int, steps: int, loss: float) -> None:
        if step == 30:
            raise KeyboardInterrupt

    out = tmp_path / "adapter"
    assert fine_tune(folder / "q.csv", out, settings, progress=stop) is None
    with pytest.raises(ValueError, match="is not empty; name another folder, or resume what was interrupted there"):
        fine_tune(folder / "q.csv", out, settings)
    with pytest.raises(ValueError, match="holds the training of other data or settings"):
        fine_tune(folder / "q.csv", out, replace(settings, seed=1), resume=True)
    again = fine_tune(folder / "q.csv", out, settings, resume=True)
    assert again.history == figures.history and again.epoch == figures.epoch
    first, second = (load_file(f / "adapter_model.safetensors") for f in (folder / "adapter", out))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    with pytest.raises(ValueError, match="holds no training that was interrupted"):
        fine_tune(folder / "q.csv", out, settings, resume=True)


@pytest.mark.parametrize("method", [name for name, row in ADAPTERS.items() if row.look])
def test_what_was_taken_from_the_task_is_not_taken_again(method, trained, tmp_path, monkeypatch):
    """The directions are frozen, so no checkpoint of what trains has them; another machine's would be others."""
    folder, _, settings = trained
    chosen = replace(settings, method=method, rank=2, layers=None)

    def stop(step: int, steps: int, loss: float) -> None:
        if step == 30:
            raise KeyboardInterrupt

    def again(*_):
        raise AssertionError("it was looked at again")

    whole, out = tmp_path / "whole", tmp_path / "adapter"
    fine_tune(folder / "q.csv", whole, chosen)
    assert fine_tune(folder / "q.csv", out, chosen, progress=stop) is None
    monkeypatch.setitem(ADAPTERS, method, replace(ADAPTERS[method], look=again))
    fine_tune(folder / "q.csv", out, chosen, resume=True)
    first, second = (load_file(path / "adapter_model.safetensors") for path in (whole, out))
    assert first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())
    assert any("basis" in name and value.any() for name, value in second.items())
    if "core" in method:
        with pytest.raises(ValueError, match="layers are of circuits, but the method is"):
            replace(chosen, layers=2)


def test_numbers_are_predicted_in_their_own_unit(bert, tmp_path):
    words = WORDS[:6]
    found = [{"text": f"{words[at % 6]} {at}", "price": 1e5 + 3e4 * (at % 6)} for at in range(96)]
    settings = Settings(bert, Columns("text", label="price"), regression=True, rank=8, epochs=20, batch=8)
    figures = fine_tune(found, tmp_path / "a", settings)
    assert figures.metric == "rmse" and figures.value < 0.7 * np.std([row["price"] for row in found])
    assert figures.value == min(row["value"] for row in figures.history)
    predict(tmp_path / "a", found[:20], tmp_path / "p.csv")
    told = read(tmp_path / "p.csv")
    assert all(row["probability"] == "" for row in told)
    (rmse,) = evaluate(tmp_path / "a", found[:20])
    assert rmse.metric == "rmse" and rmse.low is None
    error = [float(row["prediction"]) - row0["price"] for row, row0 in zip(told, found, strict=False)]
    assert rmse.value == pytest.approx(np.sqrt(np.mean(np.square(error))))
    assert rmse.value < 0.7 * np.std([row["price"] for row in found])


def test_pairs_and_a_model_without_padding_and_a_file_to_validate_with(gpt2, tmp_path):
    found = [{"a": WORDS[at % 9], "b": f"{WORDS[at * 5 % 9]} {at}", "y": "ab"[at % 2]} for at in range(60)]
    table(tmp_path / "v.csv", found[:20])
    settings = Settings(
        gpt2, Columns("a", "b", label="y"), rank=4, epochs=1, batch=8, validation=str(tmp_path / "v.csv")
    )
    figures = fine_tune(found, tmp_path / "a", settings)
    assert (figures.train, figures.validation) == (40, 20)  # what is validated with is not trained on
    predictor = Predictor.load(tmp_path / "a")
    alone = [p for pair in (("far", "who 1"), ("city", "poet long high 2 3")) for p in predictor([pair])]
    together = predictor([("far", "who 1"), ("city", "poet long high 2 3")])
    assert [name for name, _ in alone] == [name for name, _ in together]
    torch.testing.assert_close([p for _, p in alone], [p for _, p in together], atol=1e-5, rtol=0)


def test_images_of_a_folder(tmp_path):
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
    ViTModel(ViTConfig(image_size=16, patch_size=8, **sizes)).save_pretrained(tmp_path / "vit")
    draw = np.random.default_rng(0)
    for at in range(40):
        name, level = ("dark", 60) if at % 2 else ("light", 200)
        (tmp_path / "photos" / name).mkdir(parents=True, exist_ok=True)
        pixels = np.clip(draw.normal(level, 20, (20, 24, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{at}.png")
    settings = Settings(str(tmp_path / "vit"), Columns(image="image"), rank=4, epochs=3, batch=8, validation=0.2)
    figures = fine_tune(tmp_path / "photos", tmp_path / "a", settings)
    assert figures.kind == "images" and figures.value == 1
    predict(tmp_path / "a", tmp_path / "photos", tmp_path / "p.csv")
    assert all(row["prediction"] == row["label"] for row in read(tmp_path / "p.csv"))
    (tmp_path / "photos" / "dark" / "broken.png").write_bytes(b"\x89PNG but no more")
    with pytest.raises(ValueError, match=r"broken\.png: this image cannot be read"):
        predict(tmp_path / "a", tmp_path / "photos", tmp_path / "p.csv")


def test_an_image_is_read_as_the_model_was_trained(tmp_path):
    ViTConfig(image_size=16, patch_size=8).save_pretrained(tmp_path)
    Image.new("L", (8, 4), 128).save(tmp_path / "grey.png")
    plain = Pictures(tmp_path)(tmp_path / "grey.png")
    assert plain.shape == (3, 16, 16)
    torch.testing.assert_close(
        plain[:, 0, 0], (128 / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    )
    given = {"size": {"height": 6, "width": 10}, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(given))
    found = Pictures(tmp_path)(tmp_path / "grey.png")
    assert found.shape == (3, 6, 10) and found[0, 0, 0].item() == pytest.approx(2 * 128 / 255 - 1, abs=1e-6)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(given | {"image_std": [0, 1, 1]}))
    with pytest.raises(ValueError, match="a size, a mean and a deviation that none can have"):
        Pictures(tmp_path)
    with pytest.raises(ValueError, match="there is no such image"):
        Pictures.__call__(object.__new__(Pictures), tmp_path / "no.png")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "magic"}, "there is no method 'magic'"),
        ({"method": "lora", "layers": 2}, "layers are of circuits, but the method is 'lora'"),
        ({"rank": 0}, "rank is a whole number >= 1"),
        ({"epochs": 0}, "epochs is a whole number 1 to"),
        ({"validation": 1.0}, "validation is a number from 0 to below 1"),
        ({"rank": 33}, "r is at most the smaller width"),
        ({"targets": ("nothing",)}, r"no linear layer whose name ends in one of \['nothing'\]"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_before_anything_is_written(settings, message, bert, tmp_path):
    with pytest.raises(ValueError, match=message):
        fine_tune(rows(), tmp_path / "a", Settings(bert, QUESTIONS, **settings))
    assert not (tmp_path / "a").exists()


SOME = ("circuit_own", "lora", "dora", "tinylora", "fourierft", "ia3")


@pytest.mark.parametrize("model", ["/nowhere/model", "./model", "~/model", "a/b/c"])
def test_a_model_that_is_neither_a_folder_nor_a_name_is_refused(model):
    with pytest.raises(
        ValueError, match=r"a model is a folder, or a name on the hub such as 'owner/name', but '.*' is neither"
    ):
        Settings(model, QUESTIONS)
    counted = CliRunner().invoke(app, ["count", model])
    assert counted.exit_code == 2 and "a model is a folder, or a name on the hub" in counted.output


def test_a_plain_lora_of_what_is_none_is_refused_first(bert, tmp_path):
    with pytest.raises(ValueError, match="but the method is 'dora'; ask for the merged model"):
        fine_tune(rows(), tmp_path / "a", Settings(bert, QUESTIONS, method="dora"), also=["lora"])
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("method", SOME)
def test_other_methods_train_save_and_predict(method, bert, tmp_path):
    settings = Settings(bert, QUESTIONS, method=method, rank=2, epochs=1, batch=16)
    figures = fine_tune(rows(), tmp_path / "a", settings)
    assert figures.trained > 0
    assert predict(tmp_path / "a", rows(3), tmp_path / "p.csv") == 3


def test_classes_of_a_table_are_no_markup_in_its_card(bert, tmp_path):
    evil = "<img src=x>|[a](b)`*\x1b[31m\u202e"
    found = [{"text": f"{WORDS[at % 9]} {at}", "label": evil if at % 2 else "b"} for at in range(20)]
    fine_tune(found, tmp_path / "a", Settings(bert, Columns("text"), rank=2, epochs=1, batch=16))
    text = (tmp_path / "a" / "README.md").read_text()
    assert "Classes: `<img src=x>|[a](b)'*\\x1b[31m\\u202e`, `b`." in text


def test_reach_says_what_circuits_see_of_a_task(bert, tmp_path):
    path, out, plot = table(tmp_path / "q.csv", rows(40)), tmp_path / "reach.csv", tmp_path / "reach.png"
    columns = ["reach", str(path), "--text", "question", "--label", "kind", "--model", bert]
    options = [
        "--rank",
        "2",
        "--layers",
        "0,2",
        "--steps",
        "20",
        "--batch",
        "8",
        "--out",
        str(out),
        "--plot",
        str(plot),
    ]
    result = CliRunner().invoke(app, [*columns, *options])
    assert result.exit_code == 0, result.output
    with out.open() as file:
        told = [(row["name"], row["start"]) for row in csv.DictReader(file)]
    circuits = [(name, start) for name in ("L = 0", "L = 2", "L = 2, no entanglers") for start in ("random", "fitted")]
    assert told == [*circuits, ("LoRA, r = 1", "random"), ("rank 2", "best")]
    assert plot.read_bytes().startswith(b"\x89PNG") and "nuclear" in result.output
    refused = CliRunner().invoke(app, [*columns, "--circuit", "nowhere"])
    assert refused.exit_code == 2 and "there is no circuit named 'nowhere'" in refused.output


def test_the_commands(bert, tmp_path, monkeypatch):
    run = CliRunner().invoke
    path = table(tmp_path / "q.csv", rows(30))
    train = [
        "train",
        str(path),
        "--text",
        "question",
        "--label",
        "kind",
        "--model",
        bert,
        "--epochs",
        "1",
        "--rank",
        "4",
    ]
    result = run(app, [*train, "--out", str(tmp_path / "a")])
    assert result.exit_code == 0, result.output
    assert "numbers in the adapter" in result.output and "kept" in result.output
    assert "note: 1 steps, where 100 are usual: --epochs 100" in result.stderr
    result = run(app, ["predict", str(tmp_path / "a"), str(path), "--out", str(tmp_path / "p.csv")])
    assert result.exit_code == 0 and "30 rows in" in result.output.replace("\n", " ")
    result = run(app, ["evaluate", str(tmp_path / "a"), str(path), "--csv"])
    assert result.exit_code == 0 and result.stdout.startswith("metric,value,low,high,rows\naccuracy,0."), result.output
    for wrong, said in (
        (["--out", str(tmp_path / "a")], "is not empty"),
        (["--out", str(tmp_path / "b"), "--label", "kidn"], "has no column 'kidn'; did you mean one of kind"),
        (["--out", str(tmp_path / "b"), "--validation", "none.csv"], "validation is a share such as 0.1, or a file"),
    ):
        result = run(app, [*train, *wrong], env={"COLUMNS": "400"})
        assert result.exit_code == 2 and said in result.output and "Traceback" not in result.output, result.output

    def stop(*args, **kwargs):
        return None

    monkeypatch.setattr(fine_tuning, "fine_tune", stop)
    result = run(app, [*train, "--out", str(tmp_path / "c")])
    assert result.exit_code == 130 and "stopped; go on with" in result.output
