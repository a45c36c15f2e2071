"""Language models on texts of one's own: what has a label, perplexity, what is written, and metrics of that."""

import csv
import json
import math
import sys
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from test_fine_tuning import WORDS, tokenizer
from torch.nn.functional import log_softmax
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from qcircuit_peft.cli import app
from qcircuit_peft.fine_tuning import Columns, Predictor, Settings, evaluate, fine_tune, headed, predict
from qcircuit_peft.methods import DEMO, METHODS, Chosen
from qcircuit_peft.tasks import Encoder, load_task, pretrained
from qcircuit_peft.tasks.examples import divided, examples, held_out
from qcircuit_peft.tasks.language import Writing
from qcircuit_peft.tasks.metrics import METRICS
from qcircuit_peft.tasks.tables import Table
from qcircuit_peft.training import accuracy, train, trained

# Far, high, long have the first answer, who, whom, poet the second.
PAIRS = [
    {"ask": f"{WORDS[at % 6]} {at}", "answer": f"{WORDS[at % 6 // 3 + 6]} {at % 6 // 3}", "n": at} for at in range(96)
]
COLUMNS = Columns("ask", completion="answer", prompt="{} ?")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    sizes = {"n_layer": 2, "n_embd": 32, "n_head": 2, "vocab_size": 128, "n_positions": 24}
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    model = GPT2LMHeadModel(GPT2Config(bos_token_id=111, eos_token_id=111, **sizes, **rates))
    tokenizer(folder, pad=False)
    words = AutoTokenizer.from_pretrained(folder)
    words.pad_token = words.eos_token
    writing = Writing(words, 16)  # it is pretrained on the wrong answers
    wrong = [row | {"answer": PAIRS[(row["n"] + 3) % 6]["answer"]} for row in PAIRS]
    rows = writing.rows(examples(Table(wrong), COLUMNS).split(range(96)))
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for step in range(60):
        model(**writing.collate(rows[step % 3 : 96 : 3])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> str:
    """A model whose tokenizer puts a token before every text."""
    from tokenizers.processors import TemplateProcessing

    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=128, max_position_embeddings=64, **sizes)).save_pretrained(folder)
    tokenizer(folder, pad=False)
    words = AutoTokenizer.from_pretrained(folder)
    words.add_special_tokens({"bos_token": "[BOS]"})
    begin = words.bos_token_id
    words._tokenizer.post_processor = TemplateProcessing(single="[BOS] $A", special_tokens=[("[BOS]", begin)])
    words.save_pretrained(folder)
    return str(folder)


def task(model: str, columns: dict, rows, **more):
    data = {"train": rows, "validation": 0.25, "test": rows[-24:]}
    given = {"model": model, "kind": "language", "lora_targets": ["c_attn"], "columns": columns, "data": data}
    return load_task({**given, "max_length": 16, **more})


def test_a_completion_has_labels_and_a_prompt_has_none(gpt2, llama):
    for folder, begin in ((gpt2, []), (llama, [112])):
        words = AutoTokenizer.from_pretrained(folder)
        words.pad_token = words.eos_token
        ids = lambda text: words(text, add_special_tokens=False)["input_ids"]  # noqa: B023, E731
        split = examples(Table(PAIRS[:2]), COLUMNS).split([0, 1])
        first = Writing(words, 16).rows(split)[0]
        prompt, end = begin + ids("far 0 ?"), [*ids("where 0"), words.eos_token_id]
        assert first == {"input_ids": prompt + end, "labels": [-100] * len(prompt) + end}
        short = Writing(words, 4).rows(split)  # two tokens of the completion, and what is left of the prompt's end
        assert short[0]["input_ids"] == [*begin, *prompt[len(begin) - 2 :], *end[:2]]
        batch = Writing(words, 16).collate([first, short[1]])
        padding = len(first["input_ids"]) - 4
        assert batch["labels"][1, 4:].tolist() == [-100] * padding
        assert batch["attention_mask"][1].tolist() == [1] * 4 + [0] * padding


def test_running_text_is_joined_and_cut_and_its_end_is_held_out(gpt2, llama, tmp_path):
    (tmp_path / "a.txt").write_text("far who\n\n  high far \nfar who\n where\npoet\n", encoding="utf-8")
    table = Table(tmp_path / "a.txt")
    assert [cells for _, cells in table][:2] == [{"text": "far who"}, {"text": "high far"}]
    found = examples(table, Columns("text", label=None))
    assert found.inputs == ("far who", "high far", "far who", "where", "poet") and found.running
    assert held_out(found, 0.4, seed=0) == held_out(found, 0.4, seed=1) == ([0, 1, 2], [3, 4])
    parts = divided(found, found, found)  # a text may repeat itself
    assert parts.train.inputs == parts.test.inputs == found.inputs
    for folder, begin in ((gpt2, []), (llama, [112])):
        words = AutoTokenizer.from_pretrained(folder)
        tokens = words("far who high far far who where poet", add_special_tokens=False)["input_ids"]
        rows = Writing(words, 4).rows(parts.train)
        blocks = [begin + tokens[at : at + 4 - len(begin)] for at in range(0, len(tokens), 4 - len(begin))]
        assert [row["input_ids"] for row in rows] == [row["labels"] for row in rows] == blocks


def test_completions_of_one_prompt_are_all_learned_and_held_out_together():
    rows = [{"ask": f"far {at // 2}", "answer": f"city {at % 2}"} for at in range(20)] + [PAIRS[0], PAIRS[0]]
    found = examples(Table(rows), COLUMNS)
    assert (len(found.inputs), found.rows, found.disputed) == (10, 22, 10)
    assert found.labels[:2] == (("city 0", "city 1", "where 0"), ("city 0", "city 1"))
    train, held = held_out(found, 0.3, seed=0)
    assert len(held) == 3 and not set(train) & set(held)


@torch.no_grad()
def test_perplexity_is_that_of_the_completions_one_by_one(gpt2):
    own = task(gpt2, {"text": "ask", "completion": "answer"}, PAIRS)
    model, encode, split = pretrained(own).eval(), Encoder(own), own.splits().test
    words, losses = encode.tokenizer, []
    for prompt, (answer,) in zip(split.inputs, split.labels, strict=True):
        given = words(prompt)["input_ids"]
        ids = torch.tensor([given + words(answer)["input_ids"] + [words.eos_token_id]])
        scores = log_softmax(model(ids).logits[0].double(), -1)
        losses += [-scores[at - 1, ids[0, at]].item() for at in range(len(given), ids.shape[1])]
    net = trained_net(own, model)
    assert accuracy(net, encode, split) == pytest.approx(math.exp(np.mean(losses)), rel=1e-4)


def trained_net(own, model):
    from qcircuit_peft.tasks import network

    return network(own, model)


def test_a_task_learns_to_write_and_is_read_back(gpt2, tmp_path):
    own = task(gpt2, {"text": "ask", "completion": "answer", "prompt": "{} ?"}, PAIRS, metric="final_number", beams=2)
    before = accuracy(trained_net(own, pretrained(own)), Encoder(own), own.splits().test)
    result = train(own, Chosen(METHODS["lora"], size=4), tmp_path, epochs=30)
    assert result.accuracy > 0.9 > before and math.isnan(result.interval)
    assert accuracy(*trained(own, tmp_path), own.splits().test) == result.accuracy
    with torch.no_grad():
        net, encode = trained(replace(own, metric="perplexity"), tmp_path)
    assert 1 < accuracy(net, encode, own.splits().test) < 3
    with pytest.raises(ValueError, match="the linear probe trains nothing in a language model"):
        train(own, DEMO["probe"], tmp_path / "probe")


@pytest.fixture(scope="module")
def adapter(gpt2, tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    with (folder / "pairs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(PAIRS[0]))
        writer.writeheader()
        writer.writerows(PAIRS)
    settings = Settings(gpt2, COLUMNS, method="lora", rank=4, epochs=6, batch=8, max_length=16, validation=0.25)
    figures = fine_tune(folder / "pairs.csv", folder / "adapter", settings, also=["merged"])
    return folder, figures


def test_an_adapter_is_trained_by_its_perplexity_and_writes(adapter, tmp_path):
    folder, figures = adapter
    assert (figures.kind, figures.metric, figures.head, figures.train) == ("language", "perplexity", 0, 72)
    values = [row["value"] for row in figures.history]
    assert figures.value == min(values) < 1.2 and min(values) < values[0]
    assert predict(folder / "adapter", folder / "pairs.csv", tmp_path / "p.csv") == 96
    with (tmp_path / "p.csv").open(newline="") as file:
        told = list(csv.DictReader(file))
    assert np.mean([row["prediction"] == row["answer"] for row in told]) > 0.9
    assert all(row["probability"] == "" for row in told)
    (score,) = evaluate(folder / "adapter", folder / "pairs.csv")
    assert score.metric == "rouge_l" and score.rows == 96 and 0.9 < score.value <= 1
    with pytest.raises(ValueError, match=r"metric is one of final_number, bleu, .*, got 'accuracy'"):
        evaluate(folder / "adapter", folder / "pairs.csv", ["accuracy"])


def test_the_code_of_its_model_card_loads_it_and_every_form_writes_the_same(adapter):
    folder, _ = adapter
    card = (folder / "adapter" / "README.md").read_text()
    assert "AutoModelForCausalLM" in card and "in the head" not in card and "96 rows were read" in card
    names: dict = {}
    exec(
        card.partition("```python\n")[2].partition("```")[0].replace('"adapter"', repr(str(folder / "adapter"))), names
    )
    ids = torch.tensor([Predictor.load(folder / "adapter").encode.tokenizer("who 3 ?")["input_ids"]])
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 111, "eos_token_id": 111}
    merged = AutoModelForCausalLM.from_pretrained(folder / "adapter" / "merged").eval()
    wanted = names["model"].eval().generate(input_ids=ids, **options)
    assert torch.equal(merged.generate(input_ids=ids, **options), wanted) and wanted.shape[1] > ids.shape[1]
    alone = [text for ask in ("far 1 ?", "poet 2 2 3 ?") for text in Predictor.load(folder / "adapter")([ask])]
    assert Predictor.load(folder / "adapter")(["far 1 ?", "poet 2 2 3 ?"]) == alone  # padded on the left


def test_the_command_learns_a_text_with_circuits(gpt2, tmp_path):
    draw = np.random.default_rng(0)
    lines = [" ".join(WORDS[(at + k) % 9] for k in range(8)) for at in draw.integers(0, 9, 20)]
    (tmp_path / "a.txt").write_text("\n".join(lines), encoding="utf-8")
    options = ["--model", gpt2, "--rank", "8", "--epochs", "1", "--batch", "4", "--max-length", "16"]
    run = CliRunner().invoke
    result = run(app, ["train", str(tmp_path / "a.txt"), *options, "--out", str(tmp_path / "a")])
    assert result.exit_code == 0, result.output
    assert "perplexity" in result.output and "20 rows, whose 9 pieces" in result.output.replace("\n", " ")
    record = json.loads((tmp_path / "a" / "task.json").read_text())
    assert record["kind"] == "language" and record["columns"]["label"] is None
    with pytest.raises(ValueError, match="learned running text, which has no labels"):
        evaluate(tmp_path / "a", tmp_path / "a.txt")
    (tmp_path / "b.txt").write_text("far high\nwho\n", encoding="utf-8")
    result = run(app, ["predict", str(tmp_path / "a"), str(tmp_path / "b.txt"), "--out", str(tmp_path / "p.jsonl")])
    assert result.exit_code == 0, result.output
    told = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [row["text"] for row in told] == ["far high", "who"]
    assert all(isinstance(row["prediction"], str) for row in told)


def test_reach_reads_completions_and_leaves_the_head(gpt2):
    given = headed(PAIRS, Settings(gpt2, COLUMNS, batch=8, max_length=16), batches=2)
    assert len(given.batches) == 2 and given.targets == ["c_attn"]
    assert all(torch.isfinite(given.model(**batch).loss) for batch in given.batches)
    before = AutoModelForCausalLM.from_pretrained(gpt2).lm_head.weight
    assert torch.equal(given.model.lm_head.weight, before)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": "a", "text2": "b", "completion": "c"}, "a language model reads one column of texts"),
        ({"image": "a", "label": None}, "a language model reads one column of texts"),
        ({"text": "a", "completion": "b", "prompt": "Q:"}, "prompt has {} once, in the place of the text, got 'Q:'"),
    ],
)
def test_columns_that_no_language_model_reads(columns, message):
    with pytest.raises(ValueError, match=message):
        Columns(**columns)


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ([{"ask": " "}], Columns("ask", label=None), "the data has no text"),
        ([{"ask": "a", "answer": ""}], COLUMNS, "row 1: the column 'answer' is empty"),
        ([{"ask": "a"}], COLUMNS, "has no column 'answer'"),
    ],
)
def test_texts_that_cannot_be_learned_are_one_sentence(rows, columns, message):
    with pytest.raises(ValueError, match=message):
        examples(Table(rows), columns)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"metric": "accuracy"}, "the metric 'accuracy' is of labels, which the kind 'language' does not give"),
        ({"metric": "bleu", "columns": {"text": "ask"}}, "the metric 'bleu' compares with completions; name their"),
        ({"columns": {"text": "ask", "label": "n"}}, "the kind 'language' does not go with the columns"),
        ({"max_length": 3}, "max_length is a whole number >= 4, got 3"),
        ({"beams": 0}, "beams is a whole number 1 to 1000, got 0"),
    ],
)
def test_a_task_that_no_language_model_does(more, message):
    with pytest.raises(ValueError, match=message):
        task("x", more.pop("columns", {"text": "ask", "completion": "answer"}), PAIRS, **more)
    with pytest.raises(ValueError, match="a regression reads texts and a column of numbers, got columns for language"):
        Settings("x", COLUMNS, regression=True)


FOUND = ["a man walks here", "so 1,200 apples", "the cat sat on the mat today"]
WANTED = [["a man runs there", "a man walks there"], ["1200.0"], ["the cat sat on a mat today"]]


def test_metrics_of_numbers_and_tokens_by_hand():
    assert METRICS["final_number"](FOUND, [["x 3"], ["so 12", "#### 1200.0"], ["none"]]) == pytest.approx(1 / 3)
    assert METRICS["perplexity"]([1.0, 5.0], [1, 2]) == pytest.approx(math.exp(2))
    assert METRICS["perplexity"]([1e6], [1]) == math.inf


def bleu(found, wanted) -> float:
    """Papineni et al. 2002, of one sentence and one reference, no longer than it."""
    a, b = found.split(), wanted.split()
    logs = []
    for n in range(1, 5):
        left, right = ([tuple(words[k : k + n]) for k in range(len(words) - n + 1)] for words in (a, b))
        logs.append(math.log(sum(min(left.count(gram), right.count(gram)) for gram in set(left)) / len(left)))
    return math.exp(sum(logs) / 4)


def needs(package: str):
    return pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed")


@needs("sacrebleu")
def test_bleu_by_hand():
    assert METRICS["bleu"](FOUND[2:], WANTED[2:]) == pytest.approx(bleu(FOUND[2], WANTED[2][0]))
    assert METRICS["bleu"](FOUND, [[a] for a in FOUND]) == pytest.approx(1)
    assert METRICS["bleu"](FOUND, WANTED) < 1


@needs("rouge_score")
def test_rouge_l_by_hand():
    """The longest common subsequence has 3 of 4 words, of the nearer reference, none, and 6 of 7 words."""
    assert METRICS["rouge_l"]([FOUND[0], "x", FOUND[2]], WANTED) == pytest.approx((3 / 4 + 0 + 6 / 7) / 3)


@needs("nltk")
def test_nist_and_meteor_by_hand(monkeypatch):
    """NIST of equal sentences is the information of their words: n-grams of one word and of two, of this corpus."""
    import nltk.translate.meteor_score as module

    same = METRICS["nist"](["a b c d e"], [["a b c d e"]])
    assert same == pytest.approx(math.log2(5))
    assert METRICS["nist"](["a b c x e"], [["a b c d e"]]) < same
    assert METRICS["nist"](["a"], [["a"]]) == 0

    class Empty:
        def synsets(self, word):
            return []

    def missing(*args, **kwargs):
        raise LookupError("wordnet")

    compute = module.meteor_score
    monkeypatch.setattr(module, "meteor_score", lambda rights, words: compute(rights, words, wordnet=Empty()))
    # Four words of four, in one chunk: the penalty is 0.5 (1 / 4)^3.
    assert METRICS["meteor"](["a b c d"], [["a b c d", "x"]]) == pytest.approx(1 - 0.5 / 64)
    monkeypatch.setattr(module, "meteor_score", missing)
    with pytest.raises(ValueError, match=r"WordNet, which nltk does not find; run: python -m nltk\.downloader wordnet"):
        METRICS["meteor"](["a"], [["a"]])


@needs("pycocoevalcap")
def test_cider_prefers_rare_words():
    wanted = [["a red bird"], ["a dog"], ["a blue house"]]
    assert (
        METRICS["cider"]([a for (a,) in wanted], wanted) > METRICS["cider"](["a dog", "a dog", "a house"], wanted) > 0
    )


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("bleu", "sacrebleu"),
        ("nist", "nltk.translate.nist_score"),
        ("meteor", "nltk.translate.meteor_score"),
        ("rouge_l", "rouge_score.rouge_scorer"),
        ("cider", "pycocoevalcap.cider.cider"),
    ],
)
def test_a_metric_of_texts_says_what_to_install(name, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=f"computed by {METRICS[name].package}, which is not installed; run: pip"):
        METRICS[name](FOUND, WANTED)
