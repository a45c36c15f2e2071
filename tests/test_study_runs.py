"""The runs of a study on a tiny vision model: results, interruption, folders, two Ray workers, and the report."""

import json
import math
import re
import shutil
import signal
from base64 import b64decode
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy.stats import spearmanr
from tiny import brightness_task
from typer.testing import CliRunner

from qcircuit_peft.analysis import tables
from qcircuit_peft.cli import app
from qcircuit_peft.study import Grid, Study, report, runs
from qcircuit_peft.study.folder import cut
from qcircuit_peft.tasks import TASKS, Task

STUDY = Study(
    "small",
    "tiny",
    seeds=[0, 1],
    train=64,
    validation=40,
    test=50,
    qubits=4,
    samples=50,
    grid=[Grid(["tree"], [0, 2], [4]), Grid(["tree"], [2], [4], ["no_entanglers", "frozen"])],
)
KEYS = [point.key for point in STUDY.points]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> dict[str, Task]:
    return {"tiny": brightness_task(tmp_path_factory.mktemp("tiny"), [100, 100, 100])}


@pytest.fixture(scope="module")
def folder(tasks, tmp_path_factory) -> Path:
    """The folder of the whole study; not to be changed."""
    out = tmp_path_factory.mktemp("study")
    runs.run(STUDY, out, tasks=tasks)
    return out


@pytest.fixture
def copied(folder, tmp_path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def same(run: runs.Run) -> runs.Run:
    """A run without the time it took."""
    return replace(run, seconds_per_step=0.0)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_run_has_a_file_of_its_own_and_its_measures(folder):
    found = runs.finished(STUDY, folder)
    assert list(found) == KEYS and set(content(folder)) == {"study.json"} | {f"runs/{key}.json" for key in KEYS}
    shallow, deep, plain, frozen = list(found.values())[:4]
    assert (deep.layers, deep.control, plain.control, frozen.control) == (2, "trained", "no_entanglers", "frozen")
    assert plain.parameters == deep.parameters > shallow.parameters > frozen.parameters == 2 * 4  # two layers, r = 4
    assert deep.distance > 0.01 and frozen.distance < 1e-6
    assert frozen.operator_entropy == deep.initial_operator_entropy > 0.1
    for run in (shallow, plain):
        assert run.capacity == pytest.approx(0, abs=1e-9) and run.operator_entropy == pytest.approx(0, abs=1e-9)
    assert 0.3 < deep.capacity == frozen.capacity < deep.haar and deep.capacity_samples == 0
    for run in found.values():
        assert round(50 * run.test, 6) % 1 == round(40 * run.validation, 6) % 1 == 0 < run.seconds_per_step


def test_capacity_is_sampled_where_it_is_not_exact(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    exact = runs._capacity(STUDY, STUDY.points[1], generator)
    monkeypatch.setattr("qcircuit_peft.analysis.replica._MAX_SIZE", 1)
    sampled = runs._capacity(STUDY, STUDY.points[1], generator)
    assert (exact.samples, sampled.samples) == (0, 50) and sampled.mean == pytest.approx(exact.mean, abs=0.1)


def test_an_interrupted_study_goes_on_and_repeats_nothing(tasks, folder, tmp_path, monkeypatch):
    out, started = tmp_path / "out", []

    def interrupt(done: float, total: int, what: str) -> None:
        if 2 < done < 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs.run(STUDY, out, tasks=tasks, progress=interrupt)
    before = content(out)
    assert set(before) == {"study.json", f"runs/{KEYS[0]}.json", f"runs/{KEYS[1]}.json"}
    with pytest.raises(ValueError, match="has 2 of 8 results of this study; resume it"):
        runs.run(STUDY, out, tasks=tasks)
    work = runs.work
    monkeypatch.setattr(
        runs, "work", lambda study, point, *rest: (started.append(point.key), work(study, point, *rest))[1]
    )
    found = runs.run(STUDY, out, tasks=tasks, resume=True)
    assert started == KEYS[2:] and before.items() <= content(out).items()
    assert list(map(same, found)) == list(map(same, runs.finished(STUDY, folder).values()))


def test_ctrl_c_is_heard_again_after_an_interruption(tasks, tmp_path):
    def interrupt(done: float, total: int, what: str) -> None:
        if done:
            raise KeyboardInterrupt

    then = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        runs.run(STUDY, tmp_path / "out", tasks=tasks, progress=interrupt)
    assert signal.getsignal(signal.SIGINT) is then


def test_a_folder_of_something_else_is_refused_and_left_alone(tasks, copied, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    for study, out in ((replace(STUDY, epochs=2), copied), (STUDY, other), (STUDY, other / "thesis.txt")):
        before = content(tmp_path)
        for resume in (False, True):
            with pytest.raises(ValueError, match="is not a folder of this study, 'small', as it is now"):
                runs.run(study, out, tasks=tasks, resume=resume)
        assert content(tmp_path) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda data: "no json",
        lambda data: "[" * 100_000,
        lambda data: "[1]",
        lambda data: json.dumps({**data, "more": 1}),
        lambda data: json.dumps({**data, "test": "good"}),
        lambda data: json.dumps({**data, "test": float("nan")}),
        lambda data: json.dumps({**data, "seed": 7}),
    ],
)
def test_a_file_that_is_no_result_is_refused(change, copied):
    path = copied / "runs" / f"{KEYS[3]}.json"
    path.write_text(change(json.loads(path.read_text())))
    with pytest.raises(ValueError, match=re.escape(str(path)) + " is not .*remove it"):
        runs.finished(STUDY, copied)


def test_what_cannot_run_is_refused_before_anything_runs(tasks, tmp_path, monkeypatch):
    out = tmp_path / "out"
    wide = replace(STUDY, grid=[Grid(["tree"], [1], [4]), Grid(["tree"], [1], [49])])
    monkeypatch.setattr(runs, "find_spec", lambda name: None)
    for study, options, said in (
        (STUDY, {"executor": "cloud"}, "one of local, ray, got 'cloud'"),
        (STUDY, {"executor": "ray"}, "needs Ray, which is not installed"),
        (replace(STUDY, task="chess"), {}, "has the task 'chess'; allowed are tiny"),
        (replace(STUDY, test=101), {}, "the test split of 'tiny' has 100 inputs, the study wants 101"),
        (wide, {}, "the run tree-L1-r49-trained-s0 is not possible: .*49"),
    ):
        with pytest.raises(ValueError, match=said):
            runs.run(study, out, tasks=tasks, **options)
    assert not out.exists()


@pytest.mark.slow  # two workers that import torch and transformers
def test_ray_gives_the_same_results_on_two_workers(tasks, folder, tmp_path, monkeypatch):
    import ray

    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        found = runs.run(STUDY, tmp_path / "out", tasks=tasks, executor="ray")
    finally:
        ray.shutdown()
    assert list(map(same, found)) == list(map(same, runs.finished(STUDY, folder).values()))


@pytest.fixture
def results(folder) -> list[runs.Run]:
    return list(runs.finished(STUDY, folder).values())


def test_the_table_is_read_back(results):
    results[0] = replace(results[0], delta_entropy=None)
    assert report.read_csv(tables.to_csv(results)) == results
    with pytest.raises(ValueError, match="has the columns of Run, got"):
        report.read_csv("a,b\n1,2\n")


def invented(results, tests):
    return [replace(run, test=test) for run, test in zip(results, tests, strict=True)]


def test_settings_average_over_seeds(results):
    rows = report.settings(invented(results, [0.5, 0.8, 0.6, 0.4, 0.7, 0.8, 0.8, 0.5]))
    assert [row.seeds for row in rows] == [2] * 4
    assert (rows[0].test, rows[1].test) == pytest.approx((0.6, 0.8))
    half = 12.706 * 0.1 / (0.6 * 0.4)  # Student's interval of the log odds, whose slope is 1 / (p (1 - p)) at p = 0.6
    assert [math.log(p / (1 - p)) for p in (rows[0].low, rows[0].high)] == pytest.approx(
        [math.log(0.6 / 0.4) - half, math.log(0.6 / 0.4) + half], abs=1e-3
    )
    assert report.settings(results[:4])[0].low is None


def test_rank_correlation_is_scipys_and_its_interval_resamples_settings(results):
    runs_ = invented(results, [0.5, 0.8, 0.6, 0.4, 0.7, 0.81, 0.82, 0.5])
    found = report.spearman(runs_, "parameters")
    assert found.rho == pytest.approx(
        spearmanr([run.parameters for run in runs_], [run.test for run in runs_]).statistic
    )
    assert found.low <= found.rho <= found.high and (found.runs, found.settings) == (8, 4)
    twice = report.spearman(runs_ * 2, "parameters")
    assert (twice.low, twice.high) == pytest.approx((found.low, found.high))  # more runs of a setting are no news
    perfect = report.spearman([replace(run, test=run.parameters / 1e6) for run in results], "parameters")
    assert (perfect.rho, perfect.low, perfect.high) == pytest.approx((1, 1, 1))
    assert report.spearman([replace(run, test=0.5) for run in results], "parameters") is None
    assert report.spearman(results[:2], "parameters") is None


def test_gains_are_paired_by_seed(results):
    found = report.gains(invented(results, [0.5, 0.8, 0.6, 0.4, 0.7, 0.9, 0.8, 0.5]))
    assert [(row.over, row.seeds) for row in found] == [("no_entanglers", 2), ("frozen", 2)]
    assert [row.gain for row in found] == pytest.approx([0.15, 0.4])
    assert found[1].low == found[1].high == pytest.approx(0.4)


def test_the_page_needs_nothing_else(results):
    study = replace(STUDY, about="<script>alert(1)</script>")
    page = report.html(study, results)
    assert page.count("data:image/svg+xml;base64,") == len(report.QUANTITIES)
    for text in (page.replace('src="data:', ""), *map(b64decode, re.findall('base64,([^"]+)', page))):
        assert not re.search(r"src\s*=|href\s*=\s*.[^#]|@import|url\([^#]|<script|<link", str(text))
    assert "8 of 8 runs" in page and "&lt;script&gt;" in page


def test_the_command_runs_stops_and_goes_on(tasks, tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "tiny", tasks["tiny"])
    path, out = tmp_path / "study.toml", tmp_path / "out"
    path.write_text(
        'name="two"\ntask="tiny"\nseeds=[0]\ntrain=32\nqubits=3\nsamples=20\n'
        '[[grid]]\nansatz=["tree"]\nlayers=[1, 2]\nr=[2]\n'
    )
    work = runs.work

    def stop(study, point, *rest):
        if point.layers == 2:
            raise KeyboardInterrupt
        return work(study, point, *rest)

    command = ["study", str(path), "--out", str(out)]
    with monkeypatch.context() as patch:
        patch.setattr(runs, "work", stop)
        stopped = CliRunner().invoke(app, command)
    assert stopped.exit_code == 130 and "--resume" in stopped.stderr
    assert len(report.read_csv((out / "runs.csv").read_text())) == 1
    refused = CliRunner().invoke(app, command, env={"COLUMNS": "400", "TERMINAL_WIDTH": "400"})
    assert refused.exit_code == 2 and "has 1 of 2 results" in refused.output and "Traceback" not in refused.output
    done = CliRunner().invoke(app, [*command, "--resume"])
    assert done.exit_code == 0 and len(done.stdout.splitlines()) >= 4
    assert len(report.read_csv((out / "runs.csv").read_text())) == 2
    assert (out / "report.html").read_text().startswith("<!doctype html>")


STUDIES = Path(__file__).parents[1] / "studies"


@pytest.mark.parametrize(
    "path",
    sorted(path for path in STUDIES.glob("*.toml") if "[[grid]]" in path.read_text()),
    ids=lambda path: path.stem,
)
def test_every_committed_study_can_run_and_its_table_has_its_runs_only(path):
    study = Study.from_file(path)
    cut(study, TASKS[study.task])
    runs._check_models(study, study.points, TASKS[study.task])
    keys = {point.key for point in study.points}
    table = path.with_suffix(".csv")
    found = [run.key for run in report.read_csv(table.read_text())] if table.exists() else []
    assert path.stem == study.name and len(set(found)) == len(found) and set(found) <= keys


def test_two_points_of_the_committed_study_again(tmp_path):
    """Accuracy needs the whole training; what does not depend on it is as in the committed table."""
    study = Study.from_file(STUDIES / "digits.toml")
    family = study.grid[0].ansatz[0]
    grid = [Grid([family], [1], [16], ["no_entanglers"]), Grid([family], [2], [16])]
    short = replace(study, seeds=[0], train=32, validation=10, test=20, epochs=1, grid=grid)
    committed = {run.key: run for run in report.read_csv((STUDIES / "digits.csv").read_text())}
    for run in runs.run(short, tmp_path):
        then = committed[run.key]
        for key in ("parameters", "capacity", "haar", "initial_operator_entropy", "initial_column_entropy"):
            assert getattr(run, key) == pytest.approx(getattr(then, key), abs=1e-6), key
        assert run.expressibility == pytest.approx(then.expressibility, rel=0.05)
