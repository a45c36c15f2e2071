"""The command line: every command on a real circuit, and one clear sentence for bad input."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from qcircuit_peft.ansatz import Ansatz, names
from qcircuit_peft.cli import app, program
from qcircuit_peft.cli import progress as progressing

run = CliRunner().invoke


def test_list_names_every_circuit():
    lines = run(app, ["circuits", "list"]).output.splitlines()
    assert [line.split()[0] for line in lines] == ["circuit", *names()]
    assert all(line.endswith(".") for line in lines[1:])  # what is not a terminal gets all of it


def test_a_terminal_gets_a_line_for_each_circuit(monkeypatch):
    narrow = Console(width=80, force_terminal=True, color_system=None, record=True)
    monkeypatch.setattr(program, "console", narrow)
    run(app, ["circuits", "list"])
    lines = narrow.export_text().splitlines()
    assert len(lines) == 1 + len(names()) and max(map(len, lines)) == 80


def test_a_table_is_printed_and_written_in_the_form_asked_for(tmp_path):
    out = tmp_path / "t.json"
    result = run(app, ["circuits", "list", "--csv", "--out", str(out)])
    assert result.stdout.splitlines()[0] == "circuit,real,angles,about" and len(result.stdout.splitlines()) == 1 + len(
        names()
    )
    assert [row["circuit"] for row in json.loads(out.read_text())] == list(names())
    assert json.loads(run(app, ["circuits", "list", "--json"]).stdout) == json.loads(out.read_text())


def commands(group):
    for command in typer.main.get_command(group).commands.values():
        if hasattr(command, "commands"):
            yield from ((f"{command.name} {name}", one) for name, one in command.commands.items())
        else:
            yield command.name, command


def test_every_command_whose_result_is_a_table_has_the_same_options():
    options = {name: {o for p in one.params for o in p.opts if o.startswith("--")} for name, one in commands(app)}
    wanted = {"--csv", "--json", "--out", "--quiet"}
    tables = {name for name, own in options.items() if own & {"--csv", "--json"}}
    said = (Path(__file__).parents[1] / "CHANGELOG.md").read_text()
    assert all(wanted <= options[name] for name in tables), options
    (listed,) = re.findall(r"whose result is a table \(([^)]*)\)", said.replace("\n ", ""))
    assert tables == {*re.findall("`(.*?)`", listed)}
    drawn = re.findall("notes; (.*?) draw it with `--plot`", said.replace("\n ", ""))
    assert {name for name in tables if "--plot" in options[name]} == {*re.findall("`(.*?)`", *drawn)}


def test_the_version_is_that_of_the_package():
    assert run(app, ["--version"]).output.startswith(f"qcircuit-peft {version('qcircuit-peft')} (torch ")


def test_what_looks_at_circuits_does_not_wait_for_plots_or_statistics():
    code = (
        "import sys; from qcircuit_peft.cli import app; app(['circuits', 'list'], standalone_mode=False); "
        "print([name for name in ('matplotlib', 'scipy.stats', 'datasets', 'pennylane', 'qiskit')"
        " if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_shell_completes_the_names_of_circuits():
    asked = {"_QCIRCUIT_PEFT_COMPLETE": "complete_bash", "COMP_WORDS": "qcircuit-peft circuits show si"}
    code = "import sys; sys.argv = ['qcircuit-peft']; from qcircuit_peft.cli import app; app(prog_name='qcircuit-peft')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **asked, "COMP_CWORD": "3"}
    )
    assert done.stdout.split() == [name for name in names() if name.startswith("si")]


@pytest.mark.parametrize("quiet, lines", [(False, ["runs: 1 of 3 first", "runs: 3 of 3"]), (True, [])])
def test_a_log_gets_a_line_a_minute(quiet, lines, monkeypatch, capsys):
    now = iter([0.0, 61.0, 61.0, 62.0, 121.0, 121.0])
    monkeypatch.setattr(progressing.time, "monotonic", lambda: next(now))
    monkeypatch.setattr(progressing, "errors", Console(stderr=True))
    with progressing.progress("runs", quiet) as advance:
        for done, said in ((1, "first"), (2, "second"), (3, "")):
            advance(done, 3, said)
    assert capsys.readouterr().err.splitlines() == lines


def test_show_prints_a_file_that_can_be_read_back(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(run(app, ["circuits", "show", "ring_ry_cz"]).output)
    assert Ansatz.from_file(path).name == "ring_ry_cz"
    assert run(app, ["circuits", "show", str(path)]).output == path.read_text()


def test_draw_tells_the_size():
    result = run(app, ["circuits", "draw", "simplified_two_design", "--qubits", "5"])
    assert result.exit_code == 0
    assert "13 angles" in result.output and "4: " in result.output
    assert "matrix 768 x 768" in run(app, ["circuits", "draw", "simplified_two_design", "--dim", "768"]).output.replace(
        "\n", " "
    )


def test_draw_writes_a_picture(tmp_path):
    assert run(app, ["circuits", "draw", "sim05", "--plot", str(tmp_path / "c.png")]).exit_code == 0
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("version", [2, 3])
def test_qasm_starts_with_its_version(version):
    output = run(app, ["circuits", "qasm", "simplified_two_design", "--qubits", "3", "--version", str(version)]).output
    assert output.startswith(f"OPENQASM {version}")


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["circuits", "draw", "nowhere"], "there is no circuit named 'nowhere'"),
        (["circuits", "draw", "sim01", "--dim", "12"], "RX"),
        (["circuits", "draw", "sim01", "--layers", "-1"], "layers is a whole number"),
        (["circuits", "draw", "sim01", "--qubits", "3", "--dim", "8"], "exactly one of dim, qubits and dims"),
        (["circuits", "draw", "tree", "--qubits", "0"], "qubits is a whole number >= 1"),
        (["circuits", "draw", "tree", "--plot", "nowhere/x.png"], "'nowhere/x.png' cannot be written: No such file"),
        (["circuits", "draw", "tree", "--plot", "x.xyz"], "a picture's name ends in .png, .pdf, .svg, got 'x.xyz'"),
        (["circuits", "qasm", "sim01", "--version", "7"], "7"),
        (
            ["search", "tree", "--qubits", "1"],
            "'meyer_wallach' cannot be had with qubits=1: Q is for a register of two",
        ),
        (["entanglement", "tree", "--qubits", "2", "--metric", "scott_2"], "'scott_2' cannot be had with qubits=2: m"),
        (["entanglement", "tree", "--layers", "4:1:-1"], "a range such as 4:12, got '4:1:-1'"),
        (["circuits", "list", "--csv", "--json"], "one of --json and --csv, got both"),
        (["circuits", "list", "--out", "t.txt"], "a table's name ends in .csv or .json, got 't.txt'"),
    ],
)
def test_bad_input_is_one_sentence(arguments, said):
    result = run(app, arguments, env={"COLUMNS": "400", "TERMINAL_WIDTH": "400"})
    assert result.exit_code == 2
    assert said in result.output and "Traceback" not in result.output
