"""Hostile input, one row each: refused in one short sentence of printable characters, before anything is built."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from typer.testing import CliRunner

from qcircuit_peft import Ansatz, BottleneckConfig, Circuit, Op, QCircuitConfig, QPAConfig, Step, ansatz, compare, load
from qcircuit_peft.analysis.capacity import capacity
from qcircuit_peft.analysis.plots import capacity_figure
from qcircuit_peft.cli import app
from qcircuit_peft.study import Grid, Study, runs
from qcircuit_peft.tuner.incoming import Incoming

STEP = "[[{}]]\ngate = {}\non = '{}'\n"
EVIL = "\x1b]0;owned\x07\x1b[31m[/] [bold]\u202eabc\x9b2J $\\frac{1}$ _\ud83d"
NAMED = f"name = {json.dumps(EVIL.encode('utf-8', 'ignore').decode())}\n"
ALL = STEP.format("layer", "[" + "'CZ', " * 50 + "]", "all_to_all")

# What a file or a command line holds: the content of mine.toml, the arguments, and what the sentence says.
COMMANDS: dict[str, tuple[str | bytes | None, list[str], str]] = {
    "a prime dimension near 2^40": (None, ["circuits", "draw", "tree", "--dim", "1099511627689"], "16777216 angles"),
    "a dimension beyond": (None, ["circuits", "draw", "tree", "--dim", str(2**41)], "at most 2**40"),
    "a dimension of 4,000 digits": (None, ["circuits", "draw", "tree", "--dim", "9" * 4000], "at most 2**40"),
    "many qubits": (None, ["circuits", "draw", "tree", "--qubits", str(10**30)], "at most 1024 wires"),
    "many layers": (None, ["circuits", "draw", "tree", "--layers", str(10**12)], "layers is a whole number 0 to"),
    "layers of nothing": ("name = 'x'", ["circuits", "draw", "mine.toml", "--layers", str(10**30)], "0 to 1048576"),
    "all pairs of many wires": (
        "name = 'x'\n" + ALL * 300, ["circuits", "draw", "mine.toml", "--qubits", "1024"], "at most 262144 gates"
    ),
    "many layers of few gates": (None, ["circuits", "draw", "tree", "--layers", "1000000"], "at most 262144 gates"),
    "a range without end": (None, ["entanglement", "tree", "--layers", "1:1000000000000"], "1 to 10,000 numbers"),
    "a range beyond all numbers": (None, ["entanglement", "tree", "--layers", f"1:{10**40}"], "1 to 10,000 numbers"),
    "a list without end": (None, ["entanglement", "tree", "--layers", "1," * 10**5], "1 to 10,000 numbers"),
    "no range": (None, ["entanglement", "tree", "--layers", "1:2:3:4"], "1 to 10,000 numbers"),
    "sizes without end": (None, ["compare", "tree", "--qubits", "1:900", "--layers", "1:900"], "at most 1000 sizes"),
    "a seed beyond 2^64": (None, ["circuits", "qasm", "tree", "--seed", str(2**65)], "Invalid value for '--seed'"),
    "a seed of 5,000 digits": (None, ["circuits", "qasm", "tree", "--seed", "9" * 5000], "Invalid value for '--seed'"),
    "samples": (None, ["entanglement", "tree", "--samples", str(10**12)], "samples is a whole number 2 to 1000000"),
    "a long name": (None, ["circuits", "show", "x" * 5000 + ".toml"], "cannot be read: File name too long"),
    "a name with a zero": (None, ["circuits", "show", "a\0b.toml"], "no such circuit file"),
    "a name that steers": (None, ["circuits", "show", f"{EVIL[:-1]}.toml"], "no such circuit file"),
    "an unknown name that steers": (None, ["circuits", "show", EVIL[:5]], "there is no circuit named"),
    "an unknown command that steers": (None, [EVIL[:-1]], "No such command"),
    "a long unknown command": (None, ["x" * 10**5], "No such command"),
    "a picture nowhere": (None, ["circuits", "draw", "tree", "--plot", "a/b.png"], "'a/b.png' cannot be written"),
    "a long picture": (None, ["circuits", "draw", "tree", "--plot", "x" * 300 + ".png"], "File name too long"),
    "a picture over a folder": (None, ["circuits", "draw", "tree", "--plot", "folder.png"], "cannot be written"),
    "dots": ("a" + ".a" * 32000 + " = 1", ["circuits", "show", "mine.toml"], "at most 1000 dots"),
    "brackets": ("a = " + "[" * 10**5, ["circuits", "show", "mine.toml"], "at most 32 deep"),
    "too large": ("#" * ((1 << 20) + 1), ["circuits", "show", "mine.toml"], "at most 1048576 bytes"),
    "no UTF-8": (b"\xff\xfe\x00", ["circuits", "show", "mine.toml"], "not a TOML file"),
    "a long number": ("a = " + "9" * 5000, ["circuits", "show", "mine.toml"], "not a TOML file"),
    "a long key": (f"{'k' * 10**5} = 1", ["circuits", "show", "mine.toml"], "unknown key"),
    "a key that steers": (f"{NAMED[7:-1]} = 1", ["circuits", "show", "mine.toml"], "unknown key"),
    "a gate that steers": (
        NAMED + STEP.format("layer", NAMED[7:-1], "each"), ["circuits", "show", "mine.toml"], "unknown gate"
    ),
    "a gate of a megabyte": (
        "name = 'x'\n" + STEP.format("layer", f"'{'x' * 10**6}'", "each"),
        ["circuits", "show", "mine.toml"],
        "unknown gate",
    ),
    "wires without end": (
        f"name = 'x'\n[[layer]]\ngate = 'RY'\non = [{'[0, 0], ' * 10**5}]",
        ["circuits", "show", "mine.toml"],
        "'on' is a wiring or a list",
    ),
    "two widths": (None, ["circuits", "draw", "tree", "--qubits", "40", "--dim", "7"], "exactly one"),
    "a study that is not there": (None, ["study", "none.toml"], "no such study file"),
    "a study with a key that steers": (f"{NAMED[7:-1]} = 1", ["study", "mine.toml"], "unknown key"),
    "a study of a thousand dots": ("a" + ".a" * 2000 + " = 1", ["study", "mine.toml"], "at most 1000 dots"),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    return tmp_path


def check_sentence(text: str) -> None:
    assert len(text) < 1200 and "Traceback" not in text and all(line.isprintable() for line in text.splitlines())


@pytest.mark.parametrize("content, arguments, said", COMMANDS.values(), ids=COMMANDS)
def test_hostile_commands_are_refused_in_one_sentence(
    content: str | bytes | None, arguments: list[str], said: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if content is not None:
        (folder / "mine.toml").write_bytes(content if isinstance(content, bytes) else content.encode())
    if "gates" in said:
        monkeypatch.setattr(ansatz, "Op", lambda *args: pytest.fail("a gate was made"))
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2 and said in result.stderr and result.stdout == ""
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    check_sentence(result.stderr)


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


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["$\\frac{", "$x$", "_hidden", EVIL[:-1], "x" * 10**5])
def test_names_in_a_plot_are_no_mathematics(name: str, folder: Path) -> None:
    figure = capacity_figure({name: capacity("tree", 2, [1], exact=True)})
    figure.savefig(folder / "x.svg")
    assert len(figure.axes[0].texts) == 2  # its name beside its line, and that of random states


# What the library makes of adapter files; each call raises ValueError.
def adapted(**options: Any) -> nn.Module:
    return get_peft_model(nn.Sequential(nn.Linear(64, 64)), QCircuitConfig(target_modules=["0"], **options))


MANY = {"name": "x", "layer": [{"gate": ["RY"] * 2000, "on": "each"}] * 2}
ADAPTERS: dict[str, tuple[Callable[[], object], str]] = {
    "a circuit of many gates": (lambda: adapted(ansatz=MANY), "at most 16384 gates"),
    "few gates, many layers": (lambda: adapted(layers=4096), "at most 16384 gates"),
    "the same for all of a generator": (
        lambda: get_peft_model(
            nn.Sequential(nn.Linear(64, 64)), QPAConfig(base=LoraConfig(target_modules=["0"]), ansatz=MANY)
        ),
        "at most 16384 gates",
    ),
    "a base of rank 10^8": (lambda: QPAConfig(base=LoraConfig(r=10**8)), "base has r=100000000"),
    "a rank of 10^8 for one module": (lambda: QPAConfig(base=LoraConfig(rank_pattern={"a": 10**8})), "rank_pattern="),
    "a rank of 10^8": (lambda: adapted(r=10**8), "r is at most the smaller width of a module, 64"),
    "a circuit of a wide wire": (lambda: Circuit((1 << 30,), [Op("RY", (0,))]), "at most 16777216 angles"),
    "weights that are a list": (
        lambda: Incoming("x.bin", "QCIRCUIT", [torch.ones(2)]),
        "a table of tensors, got [tensor",
    ),  # type: ignore[arg-type]
    "weights whose names are numbers": (
        lambda: Incoming("x.bin", "QCIRCUIT", {1: torch.ones(2)}),  # type: ignore[dict-item]
        "a table of tensors, got {1: tensor",
    ),
    "a bottleneck of 10^8": (lambda: BottleneckConfig(r=10**8), "r is a whole number 1 to 65536, got 100000000"),
    "weights that are texts": (lambda: Incoming("x.bin", "QCIRCUIT", {"a": "b"}), "a table of tensors, got {'a': 'b'}"),  # type: ignore[dict-item]
}


@pytest.mark.parametrize("call, said", ADAPTERS.values(), ids=ADAPTERS)
def test_hostile_adapters_are_refused_in_one_sentence(call: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError) as error:
        call()
    assert said in str(error.value)
    check_sentence(str(error.value))


def test_the_bound_of_adapters_is_raised_by_an_argument() -> None:
    deep = Ansatz("deep", first=[Step("RY", "each")], layer=[Step(["CZ"] * 3600, "line")])
    with pytest.raises(ValueError, match="at most 16384 gates"):
        adapted(ansatz=deep, r=1)
    with ansatz.allow_adapter_gates(20_000):
        adapted(ansatz=deep, r=1)
    assert len(deep.circuit(qubits=6).ops) == 18_006
    with pytest.raises(ValueError, match="at most 100 gates"):
        deep.circuit(qubits=6, max_gates=100)


RUN = {
    "ansatz": "tree", "control": "trained", "layers": 1, "r": 4, "seed": 0, "parameters": 9, "validation": 0.5,
    "test": 0.5, "seconds_per_step": 0.1, "capacity": 0.5, "capacity_samples": 0, "haar": 0.5, "expressibility": 0.1,
    "expressibility_bias": 0.0, "initial_column_entropy": None, "column_entropy": 1.0, "initial_operator_entropy": 1.0,
    "operator_entropy": 1.0, "delta_entropy": None, "distance": 0.0,
}  # fmt: skip
TAMPERED = {
    "accuracy 7": ({"test": 7.0}, "test is a number from"),
    "less than nothing": ({"validation": -0.5}, "validation is a number from"),
    "infinite": ({"distance": float("inf")}, "distance is a number from"),
    "no number": ({"expressibility": float("nan")}, "expressibility is a number from"),
    "too many digits": ({"capacity": 10**400}, "capacity is a number from"),
    "a negative count": ({"parameters": -1}, "parameters is a whole number 0 to"),
    "a count of a thousand digits": ({"seed": 10**1000}, "seed is a whole number 0 to"),
    "true": ({"layers": True}, "layers is a whole number"),
    "a text for a number": ({"test": "0.5"}, "test is a number"),
    "a number for a text": ({"control": 1}, "control is a text"),
    "a key more": ({"x": 1}, "other keys than a result has"),
    "another run": ({"seed": 5}, "is not the result of a run of this study"),
    "a name that steers": ({"ansatz": EVIL[:-1]}, "is not the result of a run of this study"),
}


@pytest.mark.parametrize("change, said", TAMPERED.values(), ids=TAMPERED)
def test_tampered_results_of_a_study_are_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    study = Study("small", "digits", [0], [Grid([load("tree")], [1], [4])])
    (tmp_path / "runs").mkdir()
    write(tmp_path / "study.json", study.to_json())
    path = write(tmp_path / "runs" / "tree-L1-r4-trained-s0.json", json.dumps(RUN))
    assert list(runs.finished(study, tmp_path)) == ["tree-L1-r4-trained-s0"]
    write(path, json.dumps(RUN | change))
    with pytest.raises(ValueError) as error:
        runs.finished(study, tmp_path)
    assert said in str(error.value) and str(error.value).startswith(str(path))
    check_sentence(str(error.value))


STUMBLES = {
    "ctrl-c": (KeyboardInterrupt(), 130, ""),
    "no memory": (MemoryError(), 2, "there is not enough memory"),
    "no memory, says torch": (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, "not enough memory"),
    "no file": (PermissionError(errno.EACCES, "Permission denied", "a\x1bb"), 2, r"'a\x1bb': Permission denied"),
    "no package": (ImportError("install it"), 2, "install it"),
    "a refusal of many lines": (ValueError(f"no{EVIL[:-1]}\n" * 10**5), 2, r"no\x1b]0;owned"),
    "a fault of ours": (KeyError("x"), 1, "a fault of qcircuit-peft itself, KeyError: 'x'; QCIRCUIT_PEFT_TRACEBACK=1"),
}  # fmt: skip


@pytest.mark.parametrize("error, code, said", STUMBLES.values(), ids=STUMBLES)
def test_whatever_happens_is_a_sentence_and_a_code(
    error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stumble(*args: object) -> None:
        raise error

    monkeypatch.setattr("qcircuit_peft.cli.circuits.load", stumble)
    result = CliRunner().invoke(app, ["circuits", "show", "tree"])
    assert result.exit_code == code and said in result.stderr and result.stdout == ""
    check_sentence(result.stderr)


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
