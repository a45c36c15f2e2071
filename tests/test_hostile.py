"""Hostile input, one row each: refused in one short sentence of printable characters, before anything is built."""

import errno
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from test_fine_tuning import QUESTIONS, bert, rows, table  # noqa: F401
from torch import Tensor, nn
from typer.testing import CliRunner

from qcircuit_peft import (
    Ansatz,
    BottleneckConfig,
    Circuit,
    Op,
    QCircuitConfig,
    QPAConfig,
    Step,
    ansatz,
    compare,
    files,
    load,
)
from qcircuit_peft.analysis.capacity import capacity
from qcircuit_peft.analysis.plots import capacity_figure
from qcircuit_peft.cli import app
from qcircuit_peft.fine_tuning import Settings, fine_tune
from qcircuit_peft.study import Grid, Study, runs
from qcircuit_peft.tuner.incoming import Incoming

STEP = "[[{}]]\ngate = {}\non = '{}'\n"
EVIL = "\x1b]0;owned\x07\x1b[31m[/] [bold]\u202eabc\x9b2J $\\frac{1}$ _\ud83d"
NAMED = f"name = {json.dumps(EVIL.encode('utf-8', 'ignore').decode())}\n"
ALL = STEP.format("layer", "[" + "'CZ', " * 50 + "]", "all_to_all")

# What provokes each of these, in a folder that is the working one: it returns what was told.
Provoked = Callable[[Path, pytest.FixtureRequest], str]


def command(*arguments: str, file: str | bytes | None = None) -> Provoked:
    """A command line, and what mine.toml holds."""

    def told(folder: Path, request: pytest.FixtureRequest) -> str:
        if file is not None:
            write(folder / "mine.toml", file)
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 2 and result.stdout == ""
        assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
        return result.stderr

    return told


def unbuilt(arguments: Provoked) -> Provoked:
    """A circuit that is counted, but of which no gate is made."""

    def told(folder: Path, request: pytest.FixtureRequest) -> str:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ansatz, "Op", lambda *args: pytest.fail("a gate was made"))
            return arguments(folder, request)

    return told


def call(made: Callable[[], object]) -> Provoked:
    """What the library is asked to make."""

    def told(folder: Path, request: pytest.FixtureRequest) -> str:
        with pytest.raises(ValueError) as error:
            made()
        return str(error.value)

    return told


def text(content: str | bytes | None) -> Provoked:
    """A file of TOML, which is not parsed if it is too much."""

    def told(folder: Path, request: pytest.FixtureRequest) -> str:
        if content is not None:
            write(folder / "x.toml", content)
        stock = files.tomllib.loads
        with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError) as error:
            parsed: list[str] = []
            patch.setattr(files.tomllib, "loads", lambda text: (parsed.append(text), stock(text)))
            files.read_toml(folder / "x.toml", "test", 4096)
        assert str(error.value).startswith(str(folder / "x.toml")) and not (parsed and "at most" in str(error.value))
        return str(error.value)

    return told


def result(change: dict[str, Any]) -> Provoked:
    """The result of a run of a study, with other entries."""

    def told(folder: Path, request: pytest.FixtureRequest) -> str:
        study = Study("small", "digits", [0], [Grid([load("tree")], [1], [4])])
        (folder / "runs").mkdir()
        write(folder / "study.json", study.to_json())
        path = write(folder / "runs" / "tree-L1-r4-trained-s0.json", json.dumps(RUN))
        assert list(runs.finished(study, folder)) == ["tree-L1-r4-trained-s0"]
        write(path, json.dumps(RUN | change))
        with pytest.raises(ValueError) as error:
            runs.finished(study, folder)
        assert str(error.value).startswith(str(path))
        return str(error.value)

    return told


def adapter(name: str, content: Callable[[Path], str | bytes]) -> Provoked:
    """A saved adapter with another file in it; the model that it is for stays as it is."""

    def told(folder: Path, request: pytest.FixtureRequest) -> str:
        adapted().save_pretrained(folder / "a")
        made = content(folder / "a")
        if name.endswith(".bin"):
            (folder / "a" / "adapter_model.safetensors").unlink()
        write(folder / "a" / name, made)
        plain = nn.Sequential(nn.Linear(64, 64))
        with pytest.raises(ValueError) as error:
            PeftModel.from_pretrained(plain, folder / "a")
        assert type(plain[0]) is nn.Linear and all(p.requires_grad for p in plain.parameters())
        return str(error.value).replace(str(folder), "")

    return told


def configured(**change: Any) -> Provoked:
    """A saved adapter with other entries in its configuration."""

    def content(folder: Path) -> str:
        return json.dumps(json.loads((folder / "adapter_config.json").read_text()) | change)

    return adapter("adapter_config.json", content)


def pickled(value: Any) -> Callable[[Path], bytes]:
    def content(folder: Path) -> bytes:
        written = io.BytesIO()
        torch.save(value, written)
        return written.getvalue()

    return content


def prediction(name: str, content: str) -> Provoked:
    """The command that predicts, with an adapter that has another file in it."""
    return _predicted(lambda folder: write(folder / name, content))


def head(change: dict[str, Tensor | None]) -> Provoked:
    """The command that predicts, with an adapter that has another head."""

    def cut(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        names = {key: key.rpartition("model.")[2].replace(".", "_") for key in load_file(path)}
        found = {key: change.get(names[key], value) for key, value in load_file(path).items()}
        save_file({key: value for key, value in found.items() if value is not None}, path)

    return _predicted(cut)


def _predicted(tamper: Callable[[Path], object]) -> Provoked:
    def told(folder: Path, request: pytest.FixtureRequest) -> str:
        tuned: Path = request.getfixturevalue("tuned")
        shutil.copytree(tuned / "adapter", folder / "a")
        tamper(folder / "a")
        said = command("predict", "a", str(tuned / "q.csv"), "--out", "p.csv")(folder, request)
        assert not (folder / "p.csv").exists()
        return said

    return told


@pytest.fixture(scope="module")
def tuned(bert: str, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """A folder with a table, and an adapter that was trained on it."""
    folder = tmp_path_factory.mktemp("tuned")
    table(folder / "q.csv", rows(30))
    fine_tune(folder / "q.csv", folder / "adapter", Settings(bert, QUESTIONS, rank=2, epochs=1, batch=16))
    return folder


def stumble(error: BaseException, code: int) -> Provoked:
    """What may happen amid a command, and its exit code."""

    def told(folder: Path, request: pytest.FixtureRequest) -> str:
        def raised(*args: object) -> None:
            raise error

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("qcircuit_peft.cli.circuits.load", raised)
            result = CliRunner().invoke(app, ["circuits", "show", "tree"])
        assert result.exit_code == code and result.stdout == ""
        return result.stderr

    return told


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def adapted(**options: Any) -> Any:
    return get_peft_model(nn.Sequential(nn.Linear(64, 64)), QCircuitConfig(target_modules=["0"], **options))


RUN = {
    "ansatz": "tree", "control": "trained", "layers": 1, "r": 4, "seed": 0, "parameters": 9, "validation": 0.5,
    "test": 0.5, "seconds_per_step": 0.1, "capacity": 0.5, "capacity_samples": 0, "haar": 0.5, "expressibility": 0.1,
    "expressibility_bias": 0.0, "initial_column_entropy": None, "column_entropy": 1.0, "initial_operator_entropy": 1.0,
    "operator_entropy": 1.0, "delta_entropy": None, "distance": 0.0,
}  # fmt: skip
MANY = {"name": "x", "layer": [{"gate": ["RY"] * 2000, "on": "each"}] * 2}
DOTS = ".".join("a" * 1002)
LONG, PAIRS = f"'{'x' * 10**6}'", "[0, 0], " * 10**5
EVIL_KEY = EVIL.encode("utf-8", "ignore").decode()
HOSTILE: dict[str, tuple[Provoked, str]] = {
    # commands, and the file that they read
    "a prime dimension near 2^40": (command("circuits", "draw", "tree", "--dim", "1099511627689"), "16777216 angles"),
    "a dimension beyond": (command("circuits", "draw", "tree", "--dim", str(2**41)), "at most 2**40"),
    "a dimension of 4,000 digits": (command("circuits", "draw", "tree", "--dim", "9" * 4000), "at most 2**40"),
    "many qubits": (command("circuits", "draw", "tree", "--qubits", str(10**30)), "at most 1024 wires"),
    "many layers": (command("circuits", "draw", "tree", "--layers", str(10**12)), "layers is a whole number 0 to"),
    "layers of nothing": (
        command("circuits", "draw", "mine.toml", "--layers", str(10**30), file="name = 'x'"),
        "0 to 1048576",
    ),
    "all pairs of many wires": (
        unbuilt(command("circuits", "draw", "mine.toml", "--qubits", "1024", file="name = 'x'\n" + ALL * 300)),
        "at most 262144 gates",
    ),
    "many layers of few gates": (
        unbuilt(command("circuits", "draw", "tree", "--layers", "1000000")),
        "at most 262144 gates",
    ),
    "a range without end": (command("entanglement", "tree", "--layers", "1:1000000000000"), "1 to 10,000 numbers"),
    "a range beyond all numbers": (command("entanglement", "tree", "--layers", f"1:{10**40}"), "1 to 10,000 numbers"),
    "a list without end": (command("entanglement", "tree", "--layers", "1," * 10**5), "1 to 10,000 numbers"),
    "no range": (command("entanglement", "tree", "--layers", "1:2:3:4"), "1 to 10,000 numbers"),
    "sizes without end": (command("compare", "tree", "--qubits", "1:900", "--layers", "1:900"), "at most 1000 sizes"),
    "a seed beyond 2^64": (command("circuits", "qasm", "tree", "--seed", str(2**65)), "Invalid value for '--seed'"),
    "a seed of 5,000 digits": (command("circuits", "qasm", "tree", "--seed", "9" * 5000), "Invalid value for '--seed'"),
    "samples": (command("entanglement", "tree", "--samples", str(10**12)), "samples is a whole number 2 to 1000000"),
    "a long name": (command("circuits", "show", "x" * 5000 + ".toml"), "cannot be read: File name too long"),
    "a name with a zero": (command("circuits", "show", "a\0b.toml"), "no such circuit file"),
    "a name that steers": (command("circuits", "show", f"{EVIL[:-1]}.toml"), "no such circuit file"),
    "an unknown name that steers": (command("circuits", "show", EVIL[:5]), "there is no circuit named"),
    "an unknown command that steers": (command(EVIL[:-1]), "No such command"),
    "a long unknown command": (command("x" * 10**5), "No such command"),
    "a picture nowhere": (command("circuits", "draw", "tree", "--plot", "a/b.png"), "'a/b.png' cannot be written"),
    "a long picture": (command("circuits", "draw", "tree", "--plot", "x" * 300 + ".png"), "File name too long"),
    "a picture over a folder": (command("circuits", "draw", "tree", "--plot", "folder.png"), "cannot be written"),
    "dots": (command("circuits", "show", "mine.toml", file="a" + ".a" * 32000 + " = 1"), "at most 1000 dots"),
    "brackets": (command("circuits", "show", "mine.toml", file="a = " + "[" * 10**5), "at most 32 deep"),
    "too large": (command("circuits", "show", "mine.toml", file="#" * ((1 << 20) + 1)), "at most 1048576 bytes"),
    "no UTF-8": (command("circuits", "show", "mine.toml", file=b"\xff\xfe\x00"), "not a TOML file"),
    "a long number": (command("circuits", "show", "mine.toml", file="a = " + "9" * 5000), "not a TOML file"),
    "a long key": (command("circuits", "show", "mine.toml", file=f"{'k' * 10**5} = 1"), "unknown key"),
    "a key that steers": (command("circuits", "show", "mine.toml", file=f"{NAMED[7:-1]} = 1"), "unknown key"),
    "a gate that steers": (
        command("circuits", "show", "mine.toml", file=NAMED + STEP.format("layer", NAMED[7:-1], "each")),
        "unknown gate",
    ),
    "a gate of a megabyte": (
        command("circuits", "show", "mine.toml", file="name = 'x'\n" + STEP.format("layer", LONG, "each")),
        "unknown gate",
    ),
    "wires without end": (
        command("circuits", "show", "mine.toml", file=f"name = 'x'\n[[layer]]\ngate = 'RY'\non = [{PAIRS}]"),
        "'on' is a wiring or a list",
    ),
    "two widths": (command("circuits", "draw", "tree", "--qubits", "40", "--dim", "7"), "exactly one"),
    "a study that is not there": (command("study", "none.toml"), "no such study file"),
    "a study with a key that steers": (command("study", "mine.toml", file=f"{NAMED[7:-1]} = 1"), "unknown key"),
    "a study of a thousand dots": (command("study", "mine.toml", file="a" + ".a" * 2000 + " = 1"), "at most 1000 dots"),
    # files
    "none": (text(None), "there is no such test file"),
    "large": (text("#" * 5000), "a test file has at most 4096 bytes, this has 5000"),
    "no TOML": (text("a = [1"), "not a TOML file in UTF-8"),
    "a key of a thousand dots": (text(f"{DOTS} = 1"), "at most 1000 dots outside of texts, got 1001"),
    "a header of a thousand dots": (text(f"[{DOTS}]"), "at most 1000 dots"),
    "dots behind a text that ends in quotes": (text(f'a = ["""b"""", {{{DOTS} = 1}}, "c"]'), "at most 1000 dots"),
    "dots behind another": (text(f"a = ['''b'''', {{{DOTS} = 1}}, 'c']"), "at most 1000 dots"),
    "dots behind a comment": (text(f"# '\n{DOTS} = 1 # '"), "at most 1000 dots"),
    "braces": (text("a = " + "{a=" * 33 + "1" + "}" * 33), "brackets are at most 32 deep"),
    # what adapters ask for
    "a circuit of many gates": (call(lambda: adapted(ansatz=MANY)), "at most 16384 gates"),
    "few gates, many layers": (call(lambda: adapted(layers=4096)), "at most 16384 gates"),
    "the same for all of a generator": (
        call(
            lambda: get_peft_model(
                nn.Sequential(nn.Linear(64, 64)), QPAConfig(base=LoraConfig(target_modules=["0"]), ansatz=MANY)
            )
        ),
        "at most 16384 gates",
    ),
    "a base of rank 10^8": (call(lambda: QPAConfig(base=LoraConfig(r=10**8))), "base has r=100000000"),
    "a rank of 10^8 for one module": (
        call(lambda: QPAConfig(base=LoraConfig(rank_pattern={"a": 10**8}))),
        "rank_pattern=",
    ),
    "a rank of 10^8": (call(lambda: adapted(r=10**8)), "r is at most the smaller width of a module, 64"),
    "a circuit of a wide wire": (call(lambda: Circuit((1 << 30,), [Op("RY", (0,))])), "at most 16777216 angles"),
    "weights that are a list": (
        call(lambda: Incoming("x.bin", "QCIRCUIT", [torch.ones(2)])),
        "a table of tensors, got [tensor",
    ),
    "weights whose names are numbers": (
        call(lambda: Incoming("x.bin", "QCIRCUIT", {1: torch.ones(2)})),
        "a table of tensors, got {1: tensor",
    ),
    "a bottleneck of 10^8": (call(lambda: BottleneckConfig(r=10**8)), "r is a whole number 1 to 65536, got 100000000"),
    "weights that are texts": (
        call(lambda: Incoming("x.bin", "QCIRCUIT", {"a": "b"})),
        "a table of tensors, got {'a': 'b'}",
    ),
    # adapters
    "a configuration that is a list": (prediction("adapter_config.json", "[]"), "is a table, got list"),
    "a configuration of two megabytes": (configured(revision="x" * (2 << 20)), "at most 1048576 bytes"),
    "a configuration with a key that steers": (configured(**{EVIL_KEY: 1}), "unknown key"),
    "a circuit that is a text": (configured(circuit=EVIL_KEY), "is a table"),
    "a kind of adapter that steers": (
        prediction("adapter_config.json", json.dumps({"peft_type": EVIL_KEY})),
        "PEFT knows no adapters of type",
    ),
    "targets that are numbers": (configured(target_modules=[1, 2]), "target_modules"),
    "a pattern without end": (configured(target_modules="a{99999999999999}"), "target_modules"),
    "a rank of 10^30": (configured(r=10**30), "was not saved with this adapter_config.json"),
    "a list in a .bin": (adapter("adapter_model.bin", pickled([torch.ones(2)])), "a table of tensors"),
    "code in a .bin": (adapter("adapter_model.bin", pickled(Path("x"))), "not a whole weights file"),
    "text in a .bin": (adapter("adapter_model.bin", lambda folder: EVIL_KEY), "not a whole weights file"),
    "a header of safetensors without end": (
        adapter("adapter_model.safetensors", lambda folder: b"\xff" * 7 + b"\x7f" + b"{"),
        "not a whole weights file",
    ),
    # adapters of the command that predicts
    "a list for a configuration": (prediction("config.json", "[]"), "Error: "),
    "no JSON": (prediction("config.json", "{"), "not a JSON file"),
    "classes that are a number": (prediction("config.json", '{"id2label": 3}'), "maps 0, 1, ... to names, got 3"),
    "a class left out": (prediction("config.json", '{"id2label": {"0": "a", "9": "b"}}'), "maps 0, 1, ... to names"),
    "a class that is a number": (
        prediction("config.json", '{"id2label": {"0": 1, "1": "b", "2": "c"}}'),
        "is a text, got 1",
    ),
    "a billion classes": (prediction("config.json", '{"num_labels": 1000000000}'), "Error: "),
    "a task of no kind": (prediction("task.json", '{"version": 1, "kind": "\\u001b[31m"}'), "kind is one of"),
    "columns of no table": (
        prediction("task.json", '{"version": 1, "kind": "classification", "columns": 1}'),
        "is no adapter",
    ),
    "a head that is not there": (head({"classifier_weight": None}), "lacks base_model.model.classifier.weight"),
    "a head of another shape": (head({"classifier_weight": torch.zeros(7, 32)}), "cannot be loaded: RuntimeError"),
    "a head of no shape": (head({"classifier_bias": torch.tensor(1.0)}), "cannot be loaded: RuntimeError"),
    # results of studies
    "accuracy 7": (result({"test": 7.0}), "test is a number from"),
    "less than nothing": (result({"validation": -0.5}), "validation is a number from"),
    "infinite": (result({"distance": float("inf")}), "distance is a number from"),
    "no number": (result({"expressibility": float("nan")}), "expressibility is a number from"),
    "too many digits": (result({"capacity": 10**400}), "capacity is a number from"),
    "a negative count": (result({"parameters": -1}), "parameters is a whole number 0 to"),
    "a count of a thousand digits": (result({"seed": 10**1000}), "seed is a whole number 0 to"),
    "true": (result({"layers": True}), "layers is a whole number"),
    "a text for a number": (result({"test": "0.5"}), "test is a number"),
    "a number for a text": (result({"control": 1}), "control is a text"),
    "a key more": (result({"x": 1}), "other keys than a result has"),
    "another run": (result({"seed": 5}), "is not the result of a run of this study"),
    "a name of a circuit that steers": (result({"ansatz": EVIL[:-1]}), "is not the result of a run of this study"),
    # what may happen to a command
    "ctrl-c": (stumble(KeyboardInterrupt(), 130), ""),
    "no memory": (stumble(MemoryError(), 2), "there is not enough memory"),
    "no memory, says torch": (
        stumble(RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2),
        "not enough memory",
    ),
    "no file": (
        stumble(PermissionError(errno.EACCES, "Permission denied", "a\x1bb"), 2),
        r"'a\x1bb': Permission denied",
    ),
    "no package": (stumble(ImportError("install it"), 2), "install it"),
    "a refusal of many lines": (stumble(ValueError(f"no{EVIL[:-1]}\n" * 10**5), 2), r"no\x1b]0;owned"),
    "a fault of ours": (
        stumble(KeyError("x"), 1),
        "a fault of qcircuit-peft itself, KeyError: 'x'; QCIRCUIT_PEFT_TRACEBACK=1",
    ),
}


@pytest.mark.parametrize("how", HOSTILE)
def test_hostile_input_is_refused_in_one_sentence(how: str, folder: Path, request: pytest.FixtureRequest) -> None:
    provoke, said = HOSTILE[how]
    told = provoke(folder, request)
    check_sentence(told)
    assert said in told


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    return tmp_path


def check_sentence(told: str) -> None:
    assert len(told) < 1200 and "Traceback" not in told and all(line.isprintable() for line in told.splitlines())


SHOWN = {
    "show": ["circuits", "show", "mine.toml"],
    "draw": ["circuits", "draw", "mine.toml"],
    "picture": ["circuits", "draw", "mine.toml", "--plot", "x.svg"],
    "qasm": ["circuits", "qasm", "mine.toml"],
    "table": ["entanglement", "mine.toml", "--qubits", "2", "--layers", "1", "--exact", "--ensemble", "complex"],
    "plot": ["entanglement", "mine.toml", "--qubits", "2", "--layers", "1", "--exact", "--plot", "x.svg"],
    "compare": ["compare", "mine.toml", "--qubits", "2", "--backends", "native", "--repeats", "1", "--plot", "x.svg"],
}


@pytest.mark.parametrize("arguments", SHOWN.values(), ids=SHOWN)
def test_names_that_steer_are_shown_as_they_are_written(
    arguments: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = dict.fromkeys(compare.FIELDS) | {
        "backend": "native",
        "qubits": 2,
        "layers": 1,
        "batch": 1,
        "status": EVIL[:-1],
    }
    monkeypatch.setattr(compare, "compare", lambda *args, **kwargs: [row])
    (folder / "mine.toml").write_text(NAMED + STEP.format("layer", "['RY', 'CZ']", "line"), encoding="utf-8")
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert all(line.isprintable() for line in result.output.splitlines())
    if arguments[1] == "show":
        assert load(folder / "mine.toml") == Ansatz.from_file(write(folder / "again.toml", result.output))


@pytest.mark.parametrize("name", ["$\\frac{", "$x$", "_hidden", EVIL[:-1], "x" * 10**5])
def test_names_in_a_plot_are_no_mathematics(name: str, folder: Path) -> None:
    figure = capacity_figure({name: capacity("tree", 2, [1], exact=True)})
    figure.savefig(folder / "x.svg")
    assert len(figure.axes[0].texts) == 2  # its name beside its line, and that of random states


def test_the_bound_of_adapters_is_raised_by_an_argument() -> None:
    deep = Ansatz("deep", first=[Step("RY", "each")], layer=[Step(["CZ"] * 3600, "line")])
    with pytest.raises(ValueError, match="at most 16384 gates"):
        adapted(ansatz=deep, r=1)
    with ansatz.allow_adapter_gates(20_000):
        adapted(ansatz=deep, r=1)
    assert len(deep.circuit(qubits=6).ops) == 18_006
    with pytest.raises(ValueError, match="at most 100 gates"):
        deep.circuit(qubits=6, max_gates=100)


def test_a_reader_that_has_gone_is_no_error() -> None:
    for arguments in (["circuits", "list"], ["--help"], ["circuits", "show", "tree"]):
        reading, writing = os.pipe()
        os.close(reading)
        code = f"import sys; sys.argv[1:] = {arguments}; from qcircuit_peft.cli import app; app()"
        done = subprocess.run([sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE, text=True)
        os.close(writing)
        assert (done.returncode, done.stderr) == (0, "")


def test_compare_goes_on_where_no_process_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    rows = compare.compare(load("tree"), [2, 3], backends=["native"], repeats=1)
    assert [row["status"] for row in rows] == ["ended before it answered: [Errno 12] Cannot allocate memory"] * 2


def test_the_name_of_a_broken_adapter_cannot_steer_a_terminal() -> None:
    net = get_peft_model(
        nn.Sequential(nn.Linear(16, 16)), QCircuitConfig(r=4, target_modules=["0"]), adapter_name="\x1b[31mred"
    )
    with torch.no_grad():
        next(p for name, p in net.named_parameters() if "qcircuit_lambda" in name)[0] = torch.nan
    for merge in (net.merge_adapter, net.merge_and_unload):
        with pytest.raises(ValueError, match="adapter") as error:
            merge(safe_merge=True)
        assert str(error.value).isprintable()
