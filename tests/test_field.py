"""A comparison of methods on a tiny vision model: searched rates, resuming, the report, PEFT's form."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftConfig
from scripts import ROOT
from tiny import brightness_task
from typer.testing import CliRunner

from qcircuit_peft.analysis import tables
from qcircuit_peft.cli import app
from qcircuit_peft.study import field as fields
from qcircuit_peft.study import front, read_csv, report
from qcircuit_peft.study.export import export_peft
from qcircuit_peft.study.field import SEARCH, SEED, Entry, Field, Outcome
from qcircuit_peft.study.plan import Study
from qcircuit_peft.tasks import TASKS, Task

FIELD = Field(
    "small",
    "tiny",
    seeds=[0, 1],
    train=64,
    validation=40,
    test=50,
    rates=2,
    method=[Entry("circuit", size=4), Entry("lora", size=1), Entry("probe"), Entry("bitfit")],
)
STUDIES = sorted(path for path in Path(__file__).parents[1].glob("studies/*.toml") if "[[method]]" in path.read_text())


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> dict[str, Task]:
    return {"tiny": brightness_task(tmp_path_factory.mktemp("tiny"), [100, 100, 100])}


@pytest.fixture(scope="module")
def folder(tasks, tmp_path_factory) -> Path:
    """The folder of the whole comparison; not to be changed."""
    out = tmp_path_factory.mktemp("field")
    fields.run(FIELD, out, tasks=tasks)
    return out


@pytest.fixture
def outcomes(folder) -> list[Outcome]:
    return list(fields.finished(FIELD, folder).values())


def test_every_method_is_searched_alike_and_runs_at_its_best_rate(outcomes, folder):
    searched = [run for run in outcomes if run.stage == SEARCH]
    assert [(run.entry, run.rate) for run in searched if run.entry == "lora-size1"] == [
        ("lora-size1", 2e-3),
        ("lora-size1", 4e-3),
    ]
    assert len(searched) == 2 * 3 and all(run.test is None and run.seed == 0 for run in searched)
    finals = [run for run in outcomes if run.stage == SEED]
    assert [(run.entry, run.seed) for run in finals] == [(e.key, seed) for seed in (0, 1) for e in FIELD.method]
    for run in finals:
        tried = [(other.validation, -other.rate) for other in searched if other.entry == run.entry]
        assert run.rate == (-max(tried)[1] if tried else 0)
        assert run.test is not None and run.seconds_per_step > 0
    counts = {run.entry: (run.numbers, run.kept) for run in finals}
    assert counts["lora-size1"] == (192, 192) and counts["probe"] == (0, 0)
    assert len(list((folder / "runs").iterdir())) == len(outcomes) == 14


def test_the_lower_of_equal_rates_is_taken(outcomes):
    results = {run.key: replace(run, validation=0.5) for run in outcomes if run.stage == SEARCH}
    rates = {trial.entry.name: trial.rate for trial in FIELD.final(results)}
    assert rates["lora"] == 2e-3
    key = "lora-size1-search-r0.004-s0"
    results[key] = replace(results[key], validation=0.6)
    assert {trial.entry.name: trial.rate for trial in FIELD.final(results)}["lora"] == 4e-3


def same(run: Outcome) -> Outcome:
    return replace(run, seconds_per_step=0.0)


def test_a_stopped_comparison_goes_on_and_repeats_nothing(tasks, outcomes, tmp_path, monkeypatch):
    def stop(done: float, total: int, what: str) -> None:
        if done > 7.2:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        fields.run(FIELD, out, tasks=tasks, progress=stop)
    kept = {path.name: path.read_bytes() for path in (out / "runs").iterdir()}
    assert len(kept) == 7
    with pytest.raises(ValueError, match="has 7 results of this study; resume it"):
        fields.run(FIELD, out, tasks=tasks)
    assert fields.run(FIELD, out, tasks=tasks, resume=True, hours=0) is not None
    assert len(list((out / "runs").iterdir())) == 7  # no time, no run
    started, work = [], fields.work
    monkeypatch.setattr(fields, "work", lambda *a: (started.append(a[1].key), work(*a))[1])
    found = fields.run(FIELD, out, tasks=tasks, resume=True)
    assert len(started) == 7 and not {f"{key}.json" for key in started} & set(kept)
    assert list(map(same, found)) == list(map(same, outcomes))


def test_what_cannot_run_is_refused_before_anything_runs(tasks, folder, tmp_path):
    for field, said in (
        (replace(FIELD, task="chess"), "has the task 'chess'; allowed are tiny"),
        (replace(FIELD, test=101), "the test split of 'tiny' has 100 inputs, the study wants 101"),
        (replace(FIELD, method=[Entry("lora", numbers=20)]), "the method lora-n20 is not possible here: LoRA trains"),
    ):
        with pytest.raises(ValueError, match=said):
            fields.run(field, tmp_path / "out", tasks=tasks)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="is not a folder of this study"):
        fields.run(replace(FIELD, epochs=2), folder, tasks=tasks, resume=True)
    copied = Path(shutil.copytree(folder, tmp_path / "copy"))
    path = next((copied / "runs").iterdir())
    data = json.loads(path.read_text())
    for change in ({"test": 2}, {"stage": "final"}, {"rate": "fast"}, {"seed": 7}, {"more": 1}):
        path.write_text(json.dumps(data | change))
        with pytest.raises(ValueError, match=re.escape(str(path)) + " is not .*remove it"):
            fields.finished(FIELD, copied)


BAD = {
    "an unknown key": ('name="a"\nrate=1', "unknown key 'rate'"),
    "an unknown method": ('name="a"\n[[method]]\nname="lorra"', "there is no method 'lorra'; did you mean one of lora"),
    "both": ('name="a"\n[[method]]\nname="lora"\nsize=1\nnumbers=9', "has a size or numbers that it fits, got both"),
    "no size": ('name="a"\n[[method]]\nname="ia3"\nsize=1', "has no size to choose"),
    "twice": ('name="a"\n[[method]]\nname="ia3"\n[[method]]\nname="ia3"', "1 to 200 different methods"),
    "no method": ('name="a"\nmethod=[]', "1 to 200 different methods"),
    "seeds": ('name="a"\nseeds=[0, 0]\n[[method]]\nname="ia3"', "seeds are different whole numbers"),
    "a path": ('name="../a"\n[[method]]\nname="ia3"', "name is 1 to 64 letters"),
    "rates": ('name="a"\nrates=4\n[[method]]\nname="ia3"', "rates is a whole number 1 to 3"),
}


@pytest.mark.parametrize("text, said", BAD.values(), ids=BAD)
def test_bad_files_are_one_sentence(text, said, tmp_path):
    path = tmp_path / "study.toml"
    start = 'task="trec"\n' + ("" if "seeds" in text else "seeds=[0]\n")
    path.write_text(start + text)
    with pytest.raises(ValueError) as error:
        Field.from_file(path)
    assert said in str(error.value) and str(error.value).startswith(str(path))


def invented(outcomes: list[Outcome], tests: dict[str, list[float]]) -> list[Outcome]:
    return [replace(run, test=tests[run.entry][run.seed]) if run.stage == SEED else run for run in outcomes]


TESTS = {"circuit-size4": [0.5, 0.7], "lora-size1": [0.6, 0.9], "probe": [0.2, 0.4], "bitfit": [0.5, 0.5]}


def test_intervals_differences_and_the_front(outcomes):
    rows = {row.entry: row for row in front.lines(FIELD, invented(outcomes, TESTS))}
    assert list(rows) == ["lora-size1", "circuit-size4", "bitfit", "probe"]
    lora, circuit = rows["lora-size1"], rows["circuit-size4"]
    assert lora.test == pytest.approx(0.75)
    odds = [np.log(p / (1 - p)) for p in (lora.low, lora.test, lora.high)]
    assert np.diff(odds) == pytest.approx([12.706 * 0.15 / (0.75 * 0.25)] * 2, rel=1e-3)
    assert lora.over == pytest.approx(0.15) and lora.over_high == pytest.approx(0.15 + 12.706 * 0.05, abs=1e-3)
    assert circuit.over is None
    assert lora.numbers == 192 > circuit.numbers and rows["bitfit"].numbers > lora.numbers
    assert set(front.front(list(rows.values()))) == {"lora-size1", "circuit-size4", "probe"}


def test_the_table_is_read_back(outcomes):
    assert tables.from_csv(tables.to_csv(outcomes), Outcome) == outcomes
    with pytest.raises(ValueError, match="has the columns of Outcome"):
        tables.from_csv("a,b\n1,2\n", Outcome)


def test_the_page_needs_nothing_else(outcomes):
    page = front.html(replace(FIELD, about="<script>alert(1)</script>"), invented(outcomes, TESTS))
    assert "&lt;script&gt;" in page and "<script" not in page
    assert not re.search(r"(src|href)\s*=\s*.(?!data:)|@import|<link", page)
    assert "75.0 (0.0 to 100.0)" in page and "+15.0 ± 63.5" in page and "14 of 14 runs" in page


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium, which is not installed")
@pytest.mark.parametrize("width", [400, 1200])
@pytest.mark.parametrize("kind", ["methods", "circuits"])
def test_a_browser_shows_the_page_without_scrolling_sideways(outcomes, tmp_path, width, kind):
    if kind == "methods":
        page = front.html(FIELD, invented(outcomes, TESTS))
    else:
        runs = read_csv((ROOT / "studies" / "digits.csv").read_text(encoding="utf-8"))
        page = report.html(Study.from_file(ROOT / "studies" / "digits.toml"), runs)
    told = "<script>document.title=[document.documentElement.scrollWidth,innerWidth,document.images[0].width]</script>"
    inner = (page + told).replace("&", "&amp;").replace('"', "&quot;")
    (tmp_path / "page.html").write_text(
        f'<iframe id="f" width="{width}" height="900" srcdoc="{inner}">'
        "</iframe><script>onload=()=>{document.body.append(document.getElementById('f').contentDocument.title)}</script>"
    )
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [*command, "--virtual-time-budget=2000", "--dump-dom", (tmp_path / "page.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    inside, shown, picture = map(int, re.findall(r"</iframe>.*?(\d+),(\d+),(\d+)", done.stdout, re.S)[-1])
    assert shown == width and inside <= shown and 200 < picture <= shown


def test_the_command_runs_and_goes_on(tasks, tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "tiny", tasks["tiny"])
    path, out = tmp_path / "study.toml", tmp_path / "out"
    path.write_text('name="two"\ntask="tiny"\nseeds=[0]\ntrain=32\nrates=1\n[[method]]\nname="svf"\nsize=3\n')
    command = ["study", str(path), "--out", str(out)]
    stopped = CliRunner().invoke(app, [*command, "--hours", "0"])
    assert stopped.exit_code == 130
    done = CliRunner().invoke(app, [*command, "--resume"])
    assert done.exit_code == 0 and "SVF" in done.stdout
    assert len(tables.from_csv((out / "runs.csv").read_text(), Outcome)) == 2
    assert (out / "report.html").read_text().startswith("<!doctype html>")


def test_experiments_for_pefts_comparison(tmp_path):
    field = replace(FIELD, method=[Entry("circuit_own", size=256), Entry("svf", numbers=5600), Entry("fourierft")])
    made = export_peft(field, tmp_path)
    names = [str(path.relative_to(tmp_path)) for path in made]
    assert names == [
        "experiments/circuit_own/llama-3.2-3B-size256",
        "experiments/svf/llama-3.2-3B-n5600",
        "experiments/fourierft/llama-3.2-3B-default",
    ]
    configs = [PeftConfig.from_pretrained(str(path)) for path in made]
    assert [config.peft_type.value for config in configs] == ["QCIRCUIT", "UPDATE", "FOURIERFT"]
    assert configs[0].r == 256 and configs[1].size == 100 and set(configs[2].target_modules) == {"q_proj", "v_proj"}
    for path in made:
        parameters = json.loads((path / "training_params.json").read_text())
        assert set(parameters) == {"optimizer_kwargs"} and parameters["optimizer_kwargs"]["lr"] > 0
    with pytest.raises(ValueError, match="is there already"):
        export_peft(field, tmp_path)
    with pytest.raises(ValueError, match="'probe' is no PEFT adapter"):
        export_peft(FIELD, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_committed_comparison_can_run_and_its_table_has_its_runs_only(path):
    field = Field.from_file(path)
    fields._check(field, TASKS[field.task])
    assert path.stem == field.name
    table = path.with_suffix(".csv")
    if table.exists():
        found = {run.key: run for run in tables.from_csv(table.read_text(), Outcome)}
        known = {trial.key for trial in [*field.search(), *field.final(found)]}
        assert found and set(found) <= known


@given(st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_intervals_of_shares_stay_within_0_and_1(shares):
    low, high = report.share_interval(shares)
    if len(shares) > 1:
        assert -1e-12 <= low <= np.mean(shares) + 1e-12 and np.mean(shares) - 1e-12 <= high <= 1 + 1e-12
