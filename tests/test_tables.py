"""Tables of a user's own: what is read, that it is streamed, and one sentence with the line for what is not."""

import json
import re
import sys
import tracemalloc

import pytest

from qcircuit_peft.tasks.examples import Columns, examples, held_out
from qcircuit_peft.tasks.metrics import METRICS
from qcircuit_peft.tasks.tables import Table

GOOD = 'text,kind\nHow far ?,NUM\nWho ?,HUM\nWhere is it ?,LOC\n"a\nb, ""c""",HUM\n'
ROWS = [
    {"text": "How far ?", "kind": "NUM"},
    {"text": "Who ?", "kind": "HUM"},
    {"text": "Where is it ?", "kind": "LOC"},
    {"text": 'a\nb, "c"', "kind": "HUM"},
]


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("a.csv", GOOD.encode(), {}),
        ("a.csv", b"\xef\xbb\xbf" + GOOD.encode(), {}),
        ("a.csv", GOOD.encode("utf-16"), {}),
        ("a.csv", GOOD.replace("\n", "\r\n").replace("a\r\nb", "a\nb").encode("latin-1"), {"encoding": "latin-1"}),
        ("a.CSV", GOOD.replace(",", ";").replace("b;", "b,").encode(), {"delimiter": ";"}),
        ("a.tsv", GOOD.replace(",", "\t").replace("b\t", "b,").encode(), {}),
        ("a.jsonl", "\n\n".join(map(json.dumps, ROWS)).encode(), {}),
        ("a.json", json.dumps(ROWS, indent=2).encode(), {}),
    ],
)
def test_every_form_gives_the_same_rows(name, content, options, tmp_path):
    (tmp_path / name).write_bytes(content)
    table = Table(tmp_path / name, **options)
    assert table.columns == ["text", "kind"]
    for _ in range(2):  # it is read anew
        assert [dict(cells) for _, cells in table] == ROWS


def test_rows_in_memory_and_a_folder_of_images(tmp_path):
    assert [cells for _, cells in Table(ROWS)] == ROWS
    for name in ("cat/b.png", "cat/a.JPG", "dog/c.png", "dog/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [(cells["image"].rpartition("/")[2], cells["label"]) for _, cells in Table(tmp_path)]
    assert found == [("a.JPG", "cat"), ("b.png", "cat"), ("c.png", "dog")]
    with pytest.raises(ValueError, match="one folder for each label"):
        list(Table(tmp_path / "cat"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"text,kind\na,b\nc\n", "a.csv, line 3: it has 1 cell, the header has 2"),
        ("a.csv", b"text,kind\na,b,c\n", "a.csv, line 2: it has 3 cells, the header has 2"),
        (
            "a.csv",
            b"text,kind\nSeen in caf\xe9,b\n",
            "a.csv, after line 0: this is no text in utf-8 .* give its encoding",
        ),
        ("a.csv", b'text,kind\n"a,b\n', "a.csv, line 2: unexpected end of data"),
        ("a.csv", b"text,text\na,b\n", "a.csv, line 1: two columns have the name 'text'"),
        ("a.csv", b"text,\na,b\n", "a.csv, line 1: column 2 has no name"),
        ("a.csv", b"", "a.csv has no rows"),
        ("a.csv", b"text\n" + b"x" * 200_000, "a.csv, line 2: field larger than field limit"),
        ("a.jsonl", b'{"text": 1}\n{"text"\n', "a.jsonl, line 2: it is not JSON"),
        ("a.jsonl", b'{"text": 1}\n[1]\n', "a.jsonl, line 2: an object is expected, got"),
        ("a.json", b'{"text": 1}', "a.json: a list of objects is expected, got"),
        ("a.json", b'[{"text": 1}, 2]', "a.json, row 2: an object is expected, got 2"),
        ("a.json", b"[" * 40, "a.json: not a JSON file in UTF-8: its brackets are at most 32 deep"),
        ("a.xlsx", b"PK", "a.xlsx: a table ends in .csv, .tsv, .jsonl"),
        ("a.parquet", b"PAR1", "pyarrow|not a Parquet file"),
    ],
)
def test_what_is_no_table_is_one_sentence(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises((ValueError, ImportError), match=message) as error:
        list(Table(tmp_path / name))
    assert "\n" not in str(error.value)


def test_names_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match="there is no such file"):
        Table(tmp_path / "no.csv")
    with pytest.raises(ValueError, match="encoding is the name of one"):
        Table(tmp_path / "no.csv", encoding="klingon")
    for name in ("hex", "zip", "rot13"):  # those of Python that give no text
        with pytest.raises(ValueError, match="encoding is the name of one"):
            Table(tmp_path / "no.csv", encoding=name)
    columns = {f"\x1b[31m{'x' * 10**5}{at}": "1" for at in range(5000)}
    with pytest.raises(ValueError, match=r"the data has no column 'a'; allowed are \\x1b\[31mxxx") as error:
        Table([columns]).need("a")
    assert len(str(error.value)) < 1200 and str(error.value).isprintable()
    with pytest.raises(ValueError, match="the data has no column 'txt'; did you mean one of text"):
        examples(Table(ROWS), Columns("txt", label="kind"))
    with pytest.raises(ValueError, match="data is a file, a folder of images, or a list of rows"):
        Table(iter(ROWS))
    (tmp_path / "a.csv").write_text("a;b\n1;2\n")
    with pytest.raises(ValueError, match="delimiter is one character, got '##'"):
        list(Table(tmp_path / "a.csv", delimiter="##"))


def test_a_large_file_is_streamed(tmp_path):
    path = tmp_path / "large.csv"
    with path.open("w") as file:
        file.write("text,kind\n")
        file.writelines(f"{'word ' * 200}{at},b\n" for at in range(20_000))  # 20 MB
    tracemalloc.start()
    assert sum(1 for _ in Table(path)) == 20_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < path.stat().st_size / 20


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([("a", "x"), ("b", "")], {}, "the data, row 2: the column 'label' is empty"),
        ([("a", "x"), (" ", "y")], {}, "the data, row 2: the column 'text' is empty"),
        ([("a", "x"), (None, "y")], {}, "row 2: the column 'text' is empty"),
        ([("a", "x"), (["b"], "y")], {}, "row 2: the column 'text' is a text, got"),
        ([("a", "x"), ("b", "x")], {}, "has one class only, 'x'; a classifier needs two or more"),
        ([("a", "1"), ("b", "2"), ("c", "3")], {}, "has 3 classes in 3 different inputs; name a column"),
        ([("a", "1"), ("b", "high")], {"regression": True}, "row 2: the column 'label' is a number, got 'high'"),
        ([("a", "1"), ("b", "nan")], {"regression": True}, "row 2: the column 'label' is a number, got 'nan'"),
        ([("a", "1"), ("b", "1.0")], {"regression": True}, "all numbers of 'label' are the same, 1"),
        ([("a", "x"), ("b", "z")], {"names": ("x", "y")}, r"row 2: the class 'z' is none of \['x', 'y'\]"),
    ],
)
def test_labels_that_cannot_be_learned_are_one_sentence(rows, options, message):
    table = Table([{"text": text, "label": label} for text, label in rows])
    with pytest.raises(ValueError, match=message):
        examples(table, Columns("text"), **options)


def test_equal_inputs_are_merged_before_anything_is_held_out():
    rows = [{"text": f"t{at % 50}", "label": "ab"[at % 2] if at else "b"} for at in range(100)]
    rows += [{"text": f"T{at} !", "label": "ab"[at % 2]} for at in range(10)]  # near to t0 .. t9
    found = examples(Table(rows), Columns("text"))
    assert (len(found.inputs), found.rows, found.disputed) == (60, 110, 1)
    assert found.labels[0] == 1  # "b" and "a" once each: the first
    train, held = held_out(found, 0.2, seed=3)
    assert sorted(train + held) == list(range(60))
    names = [found.names[int(found.labels[at])] for at in held]
    assert {name: names.count(name) for name in "ab"} == {
        name: round(0.2 * sum(found.names[int(y)] == name for y in found.labels)) for name in "ab"
    }
    for at in held:
        assert re.fullmatch(r"t[1-4]\d", found.inputs[at])
    assert held_out(found, 0.2, seed=3) == (train, held) != held_out(found, 0.2, seed=4)
    with pytest.raises(ValueError, match=r"a validation share of 0\.001 holds out nothing of 60 different inputs"):
        held_out(found, 0.001, seed=0)


def test_a_label_is_one_class_whether_a_file_has_1_or_1_0():
    rows = [{"text": f"t{at}", "label": label} for at, label in enumerate((1, 1.0, 0.0, 0, "1", 2.5))]
    assert examples(Table(rows), Columns("text")).names == ("0", "1", "2.5")


def test_numbers_of_equal_inputs_are_averaged():
    rows = [{"a": "x", "b": "y", "n": n} for n in (1, "3")] + [{"a": "x", "b": "z", "n": -1e3}]
    found = examples(Table(rows), Columns("a", "b", label="n"), regression=True)
    assert found.inputs == (("x", "y"), ("x", "z")) and found.labels == (2.0, -1000.0) and found.names == ()
    assert found.split([1]).labels.tolist() == [-1000.0]


@pytest.mark.parametrize("columns", [{}, {"text": "a", "image": "b"}, {"image": "a", "text2": "b"}])
def test_columns_are_texts_or_images(columns):
    with pytest.raises(ValueError, match="a column of texts, text2 with it"):
        Columns(**columns)


def test_metrics_by_hand():
    found, wanted = [1, 1, 1, 0, 0, 0], [1, 1, 0, 1, 0, 0]
    assert METRICS["accuracy"](found, wanted) == pytest.approx(4 / 6)
    assert METRICS["f1"](found, wanted) == pytest.approx(2 / 3)
    assert METRICS["matthews"](found, wanted) == pytest.approx((2 * 2 - 1 * 1) / 9)
    assert METRICS["pearson"]([1, 2, 4], [2, 4, 8]) == pytest.approx(1) and METRICS["pearson"]([1, 1], [1, 2]) == 0
    assert METRICS["spearman"]([1, 2, 9], [3, 5, 4]) == pytest.approx(0.5)
    assert METRICS["rmse"]([1, 2], [4, 6]) == pytest.approx(12.5**0.5)
    with pytest.raises(ValueError, match="as many predictions as references, got 1 and 2"):
        METRICS["accuracy"]([1], [1, 2])


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if metric.package == "scikit-learn"])
def test_a_metric_says_what_to_install(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    with pytest.raises(ImportError, match=f"computed by {METRICS[name].package}, which is not installed; run: pip"):
        METRICS[name]([0, 1], [0, 1])
