"""The text form of a study: what it stands for, what it refuses, and its control without entangling gates."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from qcircuit_peft import load
from qcircuit_peft.analysis import capacity
from qcircuit_peft.ansatz import names
from qcircuit_peft.gates import GATES
from qcircuit_peft.study import Grid, Study, without_entanglers
from qcircuit_peft.tasks import TASKS

TEXT = """
name  = "small"
task  = "digits"
seeds = [0, 1]

[[grid]]
ansatz  = ["tree", "butterfly"]
layers  = [0, 2]
r       = [4]
control = ["trained", "no_entanglers"]

[[grid]]
ansatz = ["tree"]
layers = [2, 3]
r      = [4]
"""


@pytest.fixture
def path(tmp_path) -> Path:
    path = tmp_path / "study.toml"
    path.write_text(TEXT)
    return path


def is_real(name: str) -> bool:
    return all(
        GATES[gate].real for part in ("first", "layer", "last") for s in getattr(load(name), part) for gate in s.gates
    )


def test_a_study_is_all_combinations_once_seed_by_seed(path):
    study = Study.from_file(path)
    keys = [point.key for point in study.points]
    assert len(set(keys)) == len(keys) == 2 * (8 + 1)
    assert [point.seed for point in study.points] == [0] * 9 + [1] * 9
    assert keys[:3] == ["tree-L0-r4-trained-s0", "tree-L0-r4-no_entanglers-s0", "tree-L2-r4-trained-s0"]
    assert "tree-L3-r4-trained-s1" in keys and "tree-L3-r4-no_entanglers-s1" not in keys


def test_the_stored_form_is_the_study_with_its_circuits(path, tmp_path):
    study = Study.from_file(path)
    assert Study.from_dict(json.loads(study.to_json())) == study
    copied = tmp_path / "tree.toml"
    copied.write_text(load("tree").to_toml())
    path.write_text(TEXT.replace('"tree"', json.dumps(str(copied))))
    assert Study.from_file(path).to_json() == study.to_json()
    copied.write_text(load("tree").to_toml().replace("CZ", "CX"))
    assert Study.from_file(path).to_json() != study.to_json()


STUDIES = Path(__file__).parents[1].glob("studies/*.toml")


@pytest.mark.parametrize(
    "path", sorted(path for path in STUDIES if "[[grid]]" in path.read_text()), ids=lambda path: path.stem
)
def test_shipped_studies_are_of_a_task_that_exists(path):
    study = Study.from_file(path)
    assert study.task in TASKS and study.name == path.stem


@pytest.mark.parametrize("name", list(filter(is_real, names())))
def test_without_entanglers_has_the_same_angles_and_no_entanglement(name):
    if any(GATES[gate].wires > 1 and GATES[gate].angles for step in load(name).layer for gate in step.gates):
        with pytest.raises(ValueError, match=f"{name!r} has angles in its gates on two wires"):
            without_entanglers(load(name))
        return
    control = without_entanglers(load(name))
    assert control.circuit(qubits=5, layers=2).n_angles == load(name).circuit(qubits=5, layers=2).n_angles
    assert capacity(control, 5, 2, exact=True)[0].mean == pytest.approx(0, abs=1e-12)
    assert capacity(name, 5, 2, exact=True)[0].mean > 0.1


BAD = {
    "an unknown key": ("name", "nam", "unknown key 'nam'; did you mean one of name"),
    "a missing key": ('task  = "digits"', "", "the key 'task' is missing"),
    "an unknown key of a grid": ("r       = [4]", "rank = [4]", "unknown key 'rank'; allowed are ansatz"),
    "a missing key of a grid": ("r       = [4]", "", "the key 'r' is missing"),
    "no grid": (TEXT[TEXT.index("[[grid]]") :], "grid = []", "1 to 10000 runs, this has 0"),
    "a grid that is no table": (TEXT[TEXT.index("[[grid]]") :], "grid = [1]", "grid is a list of tables"),
    "a name that is a path": ('"small"', '"../small"', "name is 1 to 64 letters"),
    "a task that is no text": ('"digits"', "1", "task is a text, got 1"),
    "no seeds": ("[0, 1]", "[]", "seeds is a list of whole numbers 0 to 4294967295, got []"),
    "one seed, bare": ("[0, 1]", "7", "seeds is a list of whole numbers"),
    "a negative seed": ("[0, 1]", "[-1]", "seeds has whole numbers 0 to 4294967295, got -1"),
    "no ansatz": ('["tree", "butterfly"]', "[]", "ansatz is a list with one or more entries, got []"),
    "an ansatz, bare": ('["tree", "butterfly"]', '"tree"', "ansatz is a list with one or more entries"),
    "an unknown ansatz": ('"butterfly"', '"moth"', "there is no circuit named 'moth'"),
    "angles on two wires": ('"butterfly"', '"givens_brickwall"', "has angles in its gates on two wires, GIVENS"),
    "negative layers": ("[0, 2]", "[0, -2]", "layers has whole numbers 0 to 4096, got -2"),
    "too many layers": ("[0, 2]", "[5000]", "layers has whole numbers 0 to 4096, got 5000"),
    "layers that are true": ("[0, 2]", "[true]", "layers has whole numbers 0 to 4096, got True"),
    "rank zero": ("[4]", "[0]", "r has whole numbers >= 1, got 0"),
    "an unknown control": ('"no_entanglers"', '"random"', "some of trained, no_entanglers, frozen, got 'random'"),
    "a control that is a list": ('"no_entanglers"', "[1]", "some of trained, no_entanglers, frozen, got [1]"),
    "no epochs": ("[0, 1]", "[0]\nepochs = 0", "epochs is a whole number >= 1, got 0"),
    "no images": ("[0, 1]", "[0]\ntrain = 0", "train is a whole number >= 1, got 0"),
    "many qubits": ("[0, 1]", "[0]\nqubits = 30", "qubits is a whole number 2 to 8, got 30"),
    "a rate that is no number": ("[0, 1]", "[0]\nrate = nan", "rate is a number from 0 to 10, got nan"),
    "a switch that is a number": ("[0, 1]", "[0]\nall_layers = 1", "all_layers is true or false, got 1"),
    "too many runs": ("[0, 1]", str(list(range(2000))), "1 to 10000 runs, this has 20000"),
    "no TOML": ("[0, 1]", "[0, 1", "not a TOML file in UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize("old, new, said", BAD.values(), ids=BAD)
def test_bad_studies_are_one_sentence(old, new, said, path):
    assert old in TEXT
    path.write_text(TEXT.replace(old, new))
    with pytest.raises(ValueError) as error:
        Study.from_file(path)
    assert said in str(error.value) and str(error.value).startswith(str(path)) and "\n" not in str(error.value)[:200]


def test_files_too_large_or_absent_or_binary(path, tmp_path):
    path.write_text(TEXT + "#" * (1 << 16))
    with pytest.raises(ValueError, match="at most 65536 bytes"):
        Study.from_file(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="not a TOML file in UTF-8"):
        Study.from_file(path)
    with pytest.raises(ValueError, match="there is no such study file"):
        Study.from_file(tmp_path / "none.toml")


def test_two_circuits_of_one_name_are_refused():
    other = replace(load("tree"), layer=load("butterfly").layer)
    with pytest.raises(ValueError, match="have the same name"):
        Study("small", "digits", [0], [Grid(["tree", other], [1], [4])])
