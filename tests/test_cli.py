"""The command line: every command on a real circuit, and one clear sentence for bad input."""

import pytest
from typer.testing import CliRunner

from qcircuit_peft.ansatz import Ansatz, names
from qcircuit_peft.cli import app

run = CliRunner().invoke


def test_list_names_every_circuit():
    output = run(app, ["circuits", "list"]).output
    assert all(name[:12] in output for name in names())


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
    ],
)
def test_bad_input_is_one_sentence(arguments, said):
    result = run(app, arguments, env={"COLUMNS": "400", "TERMINAL_WIDTH": "400"})
    assert result.exit_code == 2
    assert said in result.output and "Traceback" not in result.output
