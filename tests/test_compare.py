"""The comparison of backends: what a row says, and that a backend which takes too much is shown as such."""

import csv
import json
import sys

import pytest
import torch
from typer.testing import CliRunner

from qcircuit_peft import Ansatz, load
from qcircuit_peft import compare as comparison
from qcircuit_peft.cli import app
from qcircuit_peft.compare import FIELDS, compare, plot, worker, write_csv

FAMILY = load("simplified_two_design")


@pytest.fixture(scope="module")
def table():
    seen = []
    found = compare(
        FAMILY, [4, 3], [1, 2], columns=8, batch=2, backends=["native", "torchquantum", "qiskit"], repeats=3,
        progress=seen.append,
    )  # fmt: skip
    assert seen == found
    return found


def test_a_table_has_every_backend_and_size_once_and_in_order(table):
    sizes = [
        (backend, q, layers) for backend in ("native", "torchquantum", "qiskit") for q in (3, 4) for layers in (1, 2)
    ]
    assert [(row["backend"], row["qubits"], row["layers"]) for row in table] == sizes
    assert all(tuple(row) == FIELDS and row["status"] == "ok" and row["batch"] == 2 for row in table)


def test_times_are_positive_and_within_their_quartiles(table):
    for row in table:
        kinds = ["forward"] if row["backend"] == "qiskit" else ["forward", "both"]
        for kind in kinds:
            assert 0 < row[f"{kind}_low"] <= row[kind] <= row[f"{kind}_high"] < 5
        if row["backend"] == "qiskit":
            assert row["both"] is row["both_low"] is row["both_high"] is None
        else:
            assert row["both"] > row["forward"]


def test_agreement_is_that_of_float32(table):
    assert all(row["agreement"] == 0 for row in table if row["backend"] == "native")
    assert all(0 < row["agreement"] < 1e-5 for row in table if row["backend"] != "native")


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of the memory is read from /proc")
def test_the_peak_holds_the_result_and_its_copies():
    [row] = compare(FAMILY, [11], columns=None, backends=["native"], repeats=1)
    result = 4 * 2**22
    assert result < row["peak_bytes"] < 6 * result


def test_a_size_past_the_budget_is_shown_and_larger_ones_are_not_run(monkeypatch):
    asked = []
    ask = comparison._Worker.ask
    monkeypatch.setattr(comparison._Worker, "ask", lambda self, case: asked.append(case["qubits"]) or ask(self, case))
    rows = compare(FAMILY, [2, 12, 13], columns=None, backends=["torchquantum"], budget=3, repeats=1)
    assert [row["status"] for row in rows] == ["ok", "over budget", "over budget"]
    assert asked == [2, 12]


def test_explicit_wires_and_circuits_without_angles_are_measured():
    layer = [{"gate": "RY", "on": "each"}, {"gate": "CZ", "on": [[0, 3], [1, 2]]}]
    [row] = compare(Ansatz.from_dict({"name": "wires", "layer": layer}), [4], backends=["native"], repeats=1)
    assert row["status"] == "ok" and row["both"] > 0
    rows = compare(load("sim01"), [4], [0, 1], backends=["native"], repeats=1)
    assert [row["status"] for row in rows] == ["ok", "ok"]
    assert rows[0]["forward"] > 0 and rows[0]["both"] is None and rows[1]["both"] > 0


def test_a_size_that_is_refused_gives_up_no_larger_one(monkeypatch):
    answers = iter([{"status": "refused"}, {"status": "ok"}, {"status": "over budget"}])
    monkeypatch.setattr(comparison._Worker, "ask", lambda self, case: next(answers))
    rows = compare(FAMILY, [2], [0, 1, 2, 3], backends=["native"])
    assert [row["status"] for row in rows] == ["refused", "ok", "over budget", "over budget"]


@pytest.mark.parametrize("error, said", [(MemoryError(), "out of memory"), (ValueError("too wide"), "too wide")])
def test_a_size_past_the_memory_or_refused_says_so(monkeypatch, capsys, error, said):
    def fails(*arguments):
        raise error

    monkeypatch.setattr(worker, "measured", fails)
    monkeypatch.setattr("sys.stdin", ["{}"])
    monkeypatch.setattr(worker.psutil.Process, "rlimit", lambda *arguments: (-1, -1))
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # put back after the test
    worker.main()
    assert json.loads(capsys.readouterr().out) == {"status": said}


def test_a_hard_limit_of_memory_is_not_raised(monkeypatch):
    def rlimit(process, resource, limits=None):
        if limits is not None:
            raise worker.psutil.AccessDenied(process.pid)
        return 1 << 20, 1 << 20

    monkeypatch.setattr("sys.stdin", [])
    monkeypatch.setattr(worker.psutil.Process, "rlimit", rlimit)
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    worker.main()


def test_a_process_that_ends_is_one_row(monkeypatch):
    worker = comparison._Worker()
    worker.process.kill()
    worker.process.wait()
    monkeypatch.setattr(worker.process.stdin, "write", lambda text: None, raising=False)
    assert worker.ask({"budget": 1}) == {"status": "ended before it answered"}
    worker.end()


def test_a_table_is_written_as_csv_and_drawn(table, tmp_path):
    lost = dict.fromkeys(FIELDS) | {"backend": "native", "qubits": 5, "layers": 1, "status": "over budget"}
    write_csv([*table, lost], tmp_path / "t.csv")
    with open(tmp_path / "t.csv", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert len(read) == len(table) + 1 and tuple(read[0]) == FIELDS
    assert float(read[0]["both"]) == table[0]["both"] and read[-1]["both"] == ""
    [axes] = plot([*table, lost]).axes
    assert axes.get_xlabel() == "qubits" and axes.get_yscale() == "log"
    assert [int(tick) for tick in axes.get_xticks()] == sorted({row["qubits"] for row in [*table, lost]})
    assert {text.get_text() for text in axes.texts} == {"native", "torchquantum"}
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["L = 1", "L = 2"]
    crosses = [line for line in axes.lines if line.get_marker() == "x" and len(line.get_xdata())]
    assert [list(line.get_xdata()) for line in crosses] == [[5]]
    assert plot(table, "forward", "a title").axes[0].get_title("left") == "a title"
    alone = plot([lost | {"layers": layers} for layers in range(6)]).axes[0]  # nothing but sizes that were given up
    assert len(alone.get_legend().get_texts()) == 7
    assert sum(line.get_marker() == "x" and len(line.get_xdata()) for line in alone.lines) == 6


@pytest.mark.parametrize(
    "change, said",
    [
        ({"backends": ["nativ"]}, "unknown backend 'nativ'"),
        ({"columns": 0}, "columns is a whole number >= 1, got 0"),
        ({"budget": 0}, "budget is a positive number of seconds, got 0"),
        ({"qubits": [0]}, "qubits is a whole number >= 1"),
        ({"layers": [-1]}, "layers is a whole number 0 to "),
    ],
)
def test_bad_input_is_refused_before_anything_runs(monkeypatch, change, said):
    monkeypatch.setattr(comparison, "_Worker", None)
    with pytest.raises(ValueError, match=said):
        compare(FAMILY, **({"qubits": [2]} | change))


def test_the_command_prints_writes_and_draws(tmp_path):
    files = ["--out", str(tmp_path / "t.csv"), "--plot", str(tmp_path / "t.png")]
    sizes = ["--qubits", "3:4", "--layers", "1", "--backends", "native,torchquantum", "--repeats", "1"]
    result = CliRunner().invoke(
        app, ["compare", "simplified_two_design", *sizes, *files], env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"}
    )
    assert result.exit_code == 0, result.output
    assert "torchquantum" in result.output and "to native" in result.output
    assert all(len(line) <= 80 for line in result.output.splitlines())
    assert (tmp_path / "t.csv").read_text().count("\n") == 5
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--qubits", "four"], "numbers such as 1,2,4 or a range such as 4:12, got 'four'"),
        (["--qubits", "8:4"], "got '8:4'"),
        (["--qubits", "4:6:1:9"], "got '4:6:1:9'"),
        (["--backends", "nativ"], "unknown backend 'nativ'"),
        (["--budget", "-1"], "budget is a positive number"),
    ],
)
def test_the_command_refuses_bad_input_in_a_sentence(arguments, said):
    env = {"COLUMNS": "400", "TERMINAL_WIDTH": "400"}
    result = CliRunner().invoke(app, ["compare", "simplified_two_design", *arguments], env=env)
    assert result.exit_code == 2 and said in result.output


def test_the_help_has_an_example():
    assert "compare simplified_two_design --qubits" in CliRunner().invoke(app, ["compare", "--help"]).output


def test_what_was_not_measured_is_told_below_the_table(monkeypatch):
    row = dict.fromkeys(FIELDS) | {"backend": "pennylane:lightning.qubit", "qubits": 4, "layers": 1, "batch": 1}
    lost = row | {"status": "ended before it answered"}
    monkeypatch.setattr(comparison, "compare", lambda *args, **settings: [lost])
    shown = CliRunner().invoke(app, ["compare", "tree", "--qubits", "4", "--backends", "native"]).output
    assert "pennylane:lightning.qubit, 4 qubits, L = 1: ended before it answered" in shown


def test_batches_and_gradients_are_what_is_timed():
    case = {"ansatz": FAMILY.to_dict(), "layers": 1, "batch": 3, "backend": "native", "qubits": 4, "columns": 5}
    forward, both = worker._passes(case)
    assert forward().shape == (3, 16, 5) and both().shape == (3, 10) and both().abs().min() > 0
    assert not forward().requires_grad and torch.equal(both(), both())
