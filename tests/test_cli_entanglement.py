"""``qcircuit-peft entanglement``: the numbers of the library as text, CSV, JSON and a picture."""

import json
import re

import pytest
from typer.testing import CliRunner

from qcircuit_peft import load
from qcircuit_peft.analysis import METRICS
from qcircuit_peft.cli import app

run = CliRunner().invoke
WIDE = {"COLUMNS": "400", "TERMINAL_WIDTH": "400"}


def entanglement(*arguments):
    return run(app, ["entanglement", *arguments], env=WIDE)


def test_exact_values_as_text():
    result = entanglement("simplified_two_design", "--qubits", "2", "--layers", "1:3", "--exact")
    assert result.exit_code == 0
    assert [line.split()[:2] for line in result.stdout.splitlines()[1:4]] == [
        ["1", "0.25"], ["2", "0.3125"], ["3", "0.328125"]
    ]  # fmt: skip
    assert "within 5 % of random states from L = 3" in result.stdout
    assert "at no L given" in entanglement("sim01", "--qubits", "2", "--layers", "1", "--exact").stdout


def test_json_and_csv_are_nothing_else(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(load("tree").to_toml())
    options = (str(path), "--qubits", "3", "--layers", "0,2", "--samples", "20", "--metric", "entropy")
    rows = json.loads(entanglement(*options, "--json").stdout)
    assert [row["layers"] for row in rows] == [0, 2] and rows[0]["mean"] == pytest.approx(0, abs=1e-9)
    lines = entanglement(*options, "--csv").stdout.splitlines()
    assert lines[0] == ",".join(rows[0]) and float(lines[2].split(",")[1]) == rows[1]["mean"]


def test_a_picture(tmp_path):
    path = tmp_path / "curve.png"
    assert entanglement("tree", "--qubits", "3", "--layers", "2", "--exact", "--plot", str(path)).exit_code == 0
    assert path.read_bytes().startswith(b"\x89PNG")


def test_the_other_ensemble_is_a_note_beside_the_output():
    result = entanglement("tree", "--qubits", "3", "--layers", "1", "--exact", "--ensemble", "complex", "--csv")
    assert "note: tree is a real circuit" in result.stderr and "note" not in result.stdout


def test_help_names_every_metric_for_states_and_has_examples():
    output = re.sub(r"\s|│", "", entanglement("--help").output)
    assert all(name in output for name, metric in METRICS.items() if metric.of == "state" and metric.scalar)
    assert "qcircuit-peftentanglementsimplified_two_design--qubits8--layers1:8--exact" in output


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["nowhere"], "there is no circuit named 'nowhere'"),
        (["tree", "--layers", "8:1"], "got '8:1'"),
        (["tree", "--layers", "-1"], "got -1"),
        (["tree", "--metric", "q"], "the metric 'q' is unknown"),
        (["tree", "--metric", "entropy", "--exact"], "the mean of 'entropy' does not follow from purities"),
        (["tree", "--json", "--csv"], "one of --json and --csv"),
        (["tree", "--qubits", "0"], "got 0"),
        (["tree", "--qubits", "1"], "Q is for a register of two or more wires, got 1"),
        (["tree", "--ensemble", "x"], "one of real, complex, got 'x'"),
        (["tree", "--qubits", "2", "--layers", "1", "--exact", "--plot", "nowhere/x.png"], "cannot be written"),
    ],
)
def test_bad_input_is_one_sentence(arguments, said):
    result = entanglement(*arguments)
    assert result.exit_code == 2
    assert said in result.output and "Traceback" not in result.output
