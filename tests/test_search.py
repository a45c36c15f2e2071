"""Metrics of one's own, in Python and on the command line, and the ranking of circuits."""

import json
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from qcircuit_peft import load
from qcircuit_peft.analysis import METRICS, capacity, expressibility, haar_value, independent_angles, resources, search
from qcircuit_peft.analysis.metrics import state_metric
from qcircuit_peft.analysis.plots import capacity_figure
from qcircuit_peft.analysis.search import ORDERS
from qcircuit_peft.ansatz import names
from qcircuit_peft.cli import app

run = CliRunner().invoke
WIDE = {"COLUMNS": "400", "TERMINAL_WIDTH": "400"}
SMALL = ["sim01", "tree", "sim09"]


def seeded():
    return torch.Generator().manual_seed(0)


def first_weight(states):
    """The probability of |0...0>."""
    return states[:, 0].abs().square()


def test_a_function_is_a_metric():
    found = capacity("sim01", 3, [1, 2], first_weight, samples=400, generator=seeded())
    assert [row.layers for row in found] == [1, 2]
    assert all(row.haar == pytest.approx(1 / 8, rel=0.05) for row in found)  # of any random state
    # (RX RZ)^L: every wire by itself, cos^2(t/2) of a uniform angle
    assert found[0].mean == pytest.approx(1 / 8, abs=5 * found[0].std / 400**0.5)
    own = state_metric(METRICS["meyer_wallach"].value)
    states = torch.nn.functional.normalize(torch.randn(5, 8, generator=seeded()).double())
    assert torch.equal(own.value(states), METRICS["meyer_wallach"].value(states))
    axes = capacity_figure({"sim01": found}, first_weight).axes[0]
    assert axes.get_ylabel() == "mean first_weight (dimensionless)"


@pytest.mark.parametrize("function, said", [
    (lambda s: s, r"gives a tensor with one real number for each state, \(256,\), got \(256, 4\) of torch.float64"),
    (lambda s: s.sum(), r"\(256,\), got \(\) of"),
    (lambda s: 0.5, r"\(256,\), got 0.5$"),
    (lambda s: s[:, 0] + 0j, r"got \(256,\) of torch.complex128"),
    (lambda s: s[:, 0] / 0, "gives finite numbers, got one that is not"),
])  # fmt: skip
def test_what_is_no_metric_is_refused(function, said):
    with pytest.raises(ValueError, match=rf"^the metric '<lambda>' .*{said}"):
        capacity("tree", 2, [1], function, samples=10)


def test_other_misuse_of_a_function_is_one_sentence():
    with pytest.raises(ValueError, match=r"^the mean of 'first_weight' does not follow from purities"):
        capacity("tree", 2, [1], first_weight, exact=True)
    with pytest.raises(ValueError, match=r"^the Haar mean of 'first_weight' has no closed form here; give the number"):
        haar_value(first_weight, 2, "real")
    assert haar_value(lambda states: states[:, 0].real * 0, 2, "real", 2) == 0  # a mean of zero has an end
    assert abs(haar_value(lambda states: states[:, 0], 2, "real", 2)) < 0.02


def test_circuits_are_ranked_by_what_was_asked_for():
    found = {by: search(3, [1, 2], sources=SMALL, by=by, samples=50) for by in ORDERS}
    rows = {(row.circuit, row.layers): row for row in found["capacity"]}
    assert set(rows) == {(name, layers) for name in SMALL for layers in (1, 2)}
    for by, ranked in found.items():
        assert {(row.circuit, row.layers): row for row in ranked} == rows, by
    value = {
        "capacity": lambda row: abs(row.capacity / row.haar - 1),
        "expressibility": lambda row: row.expressibility,
        "independent": lambda row: -row.independent,
        "two_qubit": lambda row: row.two_qubit,
        "depth": lambda row: row.depth,
    }
    for by, ranked in found.items():
        values = [value[by](row) for row in ranked]
        assert values == sorted(values) and len(set(values)) > 1
    row, circuit = rows["tree", 2], load("tree").circuit(qubits=3, layers=2)
    assert row.capacity == capacity("tree", 3, 2, samples=50, generator=seeded())[0].mean
    assert row.expressibility == expressibility("tree", 3, 2, 50, generator=seeded()).kl
    assert (row.angles, row.independent) == (circuit.n_angles, independent_angles(circuit))
    assert (row.two_qubit, row.depth, row.real) == (resources(circuit).two_qubit, circuit.depth, True)


@pytest.mark.parametrize("arguments, said", [
    ({"by": "beauty"}, "^by is one of capacity, expressibility, independent, two_qubit, depth, got 'beauty'$"),
    ({"sources": []}, "^circuits are ranked, but none is named$"),
    ({"sources": ["nowhere"]}, "^there is no circuit named 'nowhere'"),
    ({"samples": 1}, "^samples is a whole number 2 to"),
    ({"metric": "q"}, "^the metric 'q' is unknown"),
])  # fmt: skip
def test_bad_input_is_one_sentence(arguments, said):
    with pytest.raises(ValueError, match=said):
        search(2, 1, **{"sources": ["tree"], **arguments})


def test_the_command_ranks_own_files_among_the_others(tmp_path, monkeypatch):
    path = tmp_path / "\x1b[31mmine.toml"
    path.write_text(replace(load("tree"), name="m\x1bine").to_toml())
    (tmp_path / "own_metric.py").write_text("def weight(states):\n    return states[:, 0].abs() ** 2\nnumber = 3\n")
    (tmp_path / "leaving.py").write_text("import sys\nsys.exit(3)\n")
    (tmp_path / "failing.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    options = ["--qubits", "2", "--samples", "20", "--metric", "own_metric:weight"]
    result = run(app, ["search", "sim01", "tree", str(path), *options])
    assert result.exit_code == 0 and "m\\x1bine" in result.output and "\x1b[31m" not in result.output
    assert max(map(len, result.output.splitlines())) <= 80 and "simplified_two_design" not in result.output
    rows = json.loads(run(app, ["search", str(path), "sim01", *options, "--json"]).output)
    assert {row["circuit"] for row in rows} == {"m\x1bine", "sim01"} and rows[0]["haar"] == pytest.approx(0.25, rel=0.1)
    assert (
        "own_metric:weight; within 5 %"
        in run(app, ["entanglement", "tree", *options, "--layers", "1"], env=WIDE).output
    )
    for metric, said in (
        ("own_metric:other", "cannot be had: module 'own_metric' has no attribute 'other'"),
        ("nowhere:f", "the metric 'nowhere:f' cannot be had: No module named 'nowhere'"),
        (":f", "the metric ':f' cannot be had: "),
        ("leaving:f", "the metric 'leaving:f' cannot be had: 3"),
        ("failing:f", "the metric 'failing:f' cannot be had: division by zero"),
        ("own_metric:number", "the metric 'own_metric:number' is a function, got 3"),
    ):
        failed = run(app, ["search", "tree", "--metric", metric], env=WIDE)
        assert failed.exit_code == 2 and said in failed.output


def test_without_names_all_shipped_circuits_are_ranked():
    rows = json.loads(run(app, ["search", "--qubits", "2", "--samples", "4", "--json"]).output)
    assert sorted(row["circuit"] for row in rows) == names()
    both = run(app, ["search", "tree", "--json", "--csv"], env=WIDE)
    assert both.exit_code == 2 and "one of --json and --csv, got both" in both.output
