"""Families of circuits: the text format there and back, what it refuses, and the wirings by hand."""

import json
import tomllib
from math import prod
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from qiskit.circuit.library import n_local
from test_circuit import in_another_process

from qcircuit_peft import Affine, Ansatz, Circuit, Op, Step, load
from qcircuit_peft.ansatz import WIRINGS, names, wire_dims
from qcircuit_peft.gates import GATES

LINE = {
    "version": 1,
    "name": "line",
    "about": "a line of CZ",
    "cite": "nobody 2026",
    "first": [{"gate": "RY", "on": "each"}],
    "layer": [{"gate": ["CZ", "RY"], "on": "line"}, {"gate": "P", "on": [[0, 1], [2]]}],
    "last": [{"gate": "CRX", "on": [[2, 0]]}],
}

every_name = pytest.mark.parametrize("name", names())


# --- there and back -----------------------------------------------------------------------------------------


def test_a_dict_is_read_and_written():
    ansatz = Ansatz.from_dict(LINE)
    assert (ansatz.name, ansatz.about, ansatz.cite) == ("line", "a line of CZ", "nobody 2026")
    assert ansatz.to_dict() == LINE
    assert ansatz == Ansatz(
        "line",
        "a line of CZ",
        "nobody 2026",
        first=[Step("RY", "each")],
        layer=[Step(["CZ", "RY"], "line"), Step("P", [[0, 1], [2]])],
        last=[Step("CRX", [[2, 0]])],
    )
    assert hash(ansatz) == hash(Ansatz.from_dict(LINE))


def test_text_is_readable_toml():
    assert Ansatz.from_dict(LINE).to_toml() == (
        'name  = "line"\n'
        'about = "a line of CZ"\n'
        'cite  = "nobody 2026"\n'
        "\n[[first]]\n"
        'gate = "RY"\n'
        'on   = "each"\n'
        "\n[[layer]]\n"
        'gate = ["CZ", "RY"]\n'
        'on   = "line"\n'
        "\n[[layer]]\n"
        'gate = "P"\n'
        "on   = [[0, 1], [2]]\n"
        "\n[[last]]\n"
        'gate = "CRX"\n'
        "on   = [[2, 0]]\n"
    )


def test_what_is_left_out_is_empty():
    ansatz = Ansatz.from_dict({"name": "bare"})
    assert ansatz == Ansatz("bare") and (ansatz.about, ansatz.cite) == ("", "")
    assert ansatz.circuit(qubits=3, layers=4) == Circuit((2, 2, 2))


@every_name
def test_every_shipped_file_survives_every_form(name, tmp_path):
    ansatz = load(name)
    assert ansatz.name == name and ansatz.about and ansatz.first + ansatz.layer + ansatz.last
    assert Ansatz.from_dict(ansatz.to_dict()) == ansatz
    assert Ansatz.from_dict(json.loads(json.dumps(ansatz.to_dict()))) == ansatz
    assert Ansatz.from_dict(tomllib.loads(ansatz.to_toml())) == ansatz
    path = tmp_path / "copy.toml"
    path.write_text(ansatz.to_toml(), encoding="utf-8")
    assert Ansatz.from_file(path) == Ansatz.from_file(str(path)) == ansatz
    assert load(ansatz) is ansatz
    assert load(path) == load(str(path)) == load(ansatz.to_dict()) == ansatz


wirings = st.sampled_from(sorted(WIRINGS))
wire_lists = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=2, unique=True), min_size=1, max_size=4)
gate_names = st.sampled_from(sorted(GATES))
gate_or_gates = gate_names | st.lists(gate_names, min_size=1, max_size=3)
step_dicts = st.fixed_dictionaries({"gate": gate_or_gates, "on": wirings | wire_lists})
ansatz_dicts = st.fixed_dictionaries(
    {
        "version": st.just(1),
        "name": st.text(),
        "about": st.text(),
        "cite": st.text(),
        **dict.fromkeys(("first", "layer", "last"), st.lists(step_dicts, max_size=3)),
    }
)


@given(ansatz_dicts)
def test_any_ansatz_survives_toml_and_json(data):
    ansatz = Ansatz.from_dict(data)
    assert ansatz.to_dict() == data
    assert Ansatz.from_dict(json.loads(json.dumps(data))) == ansatz
    assert Ansatz.from_dict(tomllib.loads(ansatz.to_toml())) == ansatz


def test_plain_data_is_not_shared():
    data = json.loads(json.dumps(LINE))
    ansatz = Ansatz.from_dict(data)
    data["layer"][0]["gate"].append("X")
    ansatz.to_dict()["layer"][1]["on"].append([5])
    assert ansatz == Ansatz.from_dict(LINE)


# --- where a name is found ----------------------------------------------------------------------------------


def test_names_are_the_files(tmp_path):
    assert "simplified_two_design" in names() and names() == sorted(set(names()))


def test_names_and_paths_work_from_another_directory(tmp_path):
    (tmp_path / "mine.toml").write_text(Ansatz.from_dict(LINE).to_toml())
    (tmp_path / "simplified_two_design").write_text("a file of this name in the way")
    found = in_another_process(
        [
            "load('simplified_two_design').circuit(qubits=5).n_angles",
            "load('mine.toml').name",
            "load('./mine.toml').name",
            "load(pathlib.Path('mine.toml')).name",
            "names()",
        ],
        "from qcircuit_peft import *; from qcircuit_peft.ansatz import names; import pathlib",
        cwd=tmp_path,
    )
    assert found == [13, "line", "line", "line", names()]


# --- the circuits -------------------------------------------------------------------------------------------


def simplified_two_design(q, layers):
    """The published circuit, written out: RY everywhere; CZ, RY, RY on even pairs, then on odd pairs."""
    ops = [("RY", w) for w in range(q)]
    for _ in range(layers):
        for start in (0, 1):
            for w in range(start, q - 1, 2):
                ops += [("CZ", w, w + 1), ("RY", w), ("RY", w + 1)]
    return Circuit((2,) * q, [Op(gate, tuple(wires)) for gate, *wires in ops])


@pytest.mark.parametrize("layers", range(5))
@pytest.mark.parametrize("q", range(1, 9))
def test_simplified_two_design_is_the_published_circuit(q, layers):
    circuit = load("simplified_two_design").circuit(qubits=q, layers=layers)
    assert circuit == simplified_two_design(q, layers)
    assert circuit.n_angles == q + 2 * layers * (q - 1)
    assert circuit.is_real and circuit.depth == 1 + 2 * layers * ((q > 1) + (q > 2))


def test_five_qubits_and_one_layer_have_13_angles():
    assert load("simplified_two_design").circuit(qubits=5, layers=1).n_angles == 13


@every_name
def test_layers_repeat_between_first_and_last(name):
    ansatz = load(name)
    explicit = [
        w for step in ansatz.first + ansatz.layer + ansatz.last if not isinstance(step.on, str) for w in step.on
    ]
    q = max((w + 1 for wires in explicit for w in wires), default=4)
    parts = [
        Ansatz("part", layer=steps).circuit(qubits=q, layers=1) for steps in (ansatz.first, ansatz.layer, ansatz.last)
    ]
    first, layer, last = parts
    assert ansatz.circuit(qubits=q, layers=0) == first + last
    assert ansatz.circuit(qubits=q) == ansatz.circuit(qubits=q, layers=1) == first + layer + last
    assert ansatz.circuit(qubits=q, layers=3) == first + layer + layer + layer + last


def test_a_step_runs_its_gates_pair_by_pair():
    """All gates run on a pair before the next pair; a one-wire gate takes both wires, the first one first."""
    step = Step(["CX", "RY"], [[2, 0], [0, 1]])
    on = [("CX", (2, 0)), ("RY", (2,)), ("RY", (0,)), ("CX", (0, 1)), ("RY", (0,)), ("RY", (1,))]
    assert [(op.gate, op.wires) for op in step.ops(3)] == on
    assert [(op.gate, op.wires) for op in Step("H", "each").ops(3)] == [("H", (w,)) for w in range(3)]


# In time order, for 1 to 4 wires and then one larger register.
BY_HAND = {
    "each": ["0", "0 1", "0 1 2", "0 1 2 3"],
    "even_pairs": ["", "01", "01", "01 23", "01 23"],
    "odd_pairs": ["", "", "12", "12", "12 34"],
    "even_pairs_up": ["", "10", "10", "10 32", "10 32"],
    "odd_pairs_up": ["", "", "21", "21", "21 43"],
    "line": ["", "01", "01 12", "01 12 23"],
    "reverse_linear": ["", "01", "12 01", "23 12 01"],
    "stair": ["", "10", "21 10", "32 21 10"],
    "ring": ["", "01", "01 12 20", "01 12 23 30"],
    "circular": ["", "01", "20 01 12", "30 01 12 23"],
    "ring_back": ["", "01", "20 12 01", "30 23 12 01"],
    "ring_down": ["", "10", "21 02 10", "32 03 10 21", "43 04 10 21 32"],
    "all_pairs": ["", "01", "01 02 12", "01 02 03 12 13 23"],
    "all_to_all": ["", "10 01", "21 20 12 10 02 01", "32 31 30 23 21 20 13 12 10 03 02 01"],
    "butterfly": ["", "01", "01 02", "01 23 02 13", "01 23 02 13 04"],
    "tree": ["", "01", "01 02", "01 23 02", "01 23 02 04"],
}


@pytest.mark.parametrize("wiring", WIRINGS)
def test_the_wirings_by_hand(wiring):
    for n, text in enumerate(BY_HAND[wiring], 1):
        assert WIRINGS[wiring](n) == [tuple(map(int, wires)) for wires in text.split()]


@pytest.mark.parametrize(
    ("wiring", "theirs"),
    [("line", "linear"), ("reverse_linear",) * 2, ("circular",) * 2, ("all_pairs", "full")],
)
def test_wirings_of_qiskit_are_qiskits(wiring, theirs):
    for n in range(2, 8):
        entangled = n_local(n, [], "cz", entanglement=theirs, reps=1)
        wires = [tuple(entangled.find_bit(qubit).index for qubit in step.qubits) for step in entangled.data]
        assert WIRINGS[wiring](n) == wires


@pytest.mark.parametrize("wiring", WIRINGS)
def test_every_wiring_stays_on_the_register(wiring):
    for n in range(1, 18):
        groups = WIRINGS[wiring](n)
        assert len({len(wires) for wires in groups}) <= 1 and len(groups) == len(set(groups))
        assert all(len(set(wires)) == len(wires) and set(wires) <= set(range(n)) for wires in groups)
        if n > 1 and wiring not in ("odd_pairs", "odd_pairs_up"):
            assert groups


def test_butterfly_and_tree_have_logarithmic_strides():
    stages = {b - a for a, b in WIRINGS["butterfly"](16)}
    assert stages == {1, 2, 4, 8} and len(WIRINGS["butterfly"](16)) == 32
    assert len(WIRINGS["tree"](16)) == 15


@pytest.mark.parametrize(
    ("dim", "dims"),
    [
        (2, (2,)),
        (3, (3,)),
        (96, (3, 2, 2, 2, 2, 2)),
        (225, (5, 5, 3, 3)),
        (384, (3,) + (2,) * 7),
        (768, (3,) + (2,) * 8),
        (4096, (2,) * 12),
        (11008, (43,) + (2,) * 8),
        (14336, (7,) + (2,) * 11),
        (50257, (1733, 29)),
    ],
)
def test_wire_dims(dim, dims):
    assert wire_dims(dim) == dims
    if max(dims) < 10:
        assert load("simplified_two_design").circuit(dim=dim, layers=0).dims == dims


@given(st.integers(2, 5000))
def test_wire_dims_are_primes_largest_first(dim):
    dims = wire_dims(dim)
    assert prod(dims) == dim and list(dims) == sorted(dims, reverse=True)
    assert all(p % d for p in dims for d in range(2, p))


def test_a_width_is_given_in_three_ways():
    ansatz = load("simplified_two_design")
    assert (
        ansatz.circuit(qubits=3)
        == ansatz.circuit(dim=8)
        == ansatz.circuit(dims=(2, 2, 2))
        == ansatz.circuit(dims=[2, 2, 2])
    )
    mixed = ansatz.circuit(dims=(3, 2, 2), layers=1)
    assert mixed.n_angles == (3 + 1 + 1) + (3 + 1) + (1 + 1)


# --- what is refused ----------------------------------------------------------------------------------------

GATE_LIST = ", ".join(GATES)
A_WIRING = "'on' is a wiring or a list of one or two different wires each, such as [[0, 3], [1, 2]]"
STEP = '[[layer]]\ngate = "RY"\non = "each"\n'
NAMED = 'name = "x"\n'

# The text of a file, and what the error says behind the name of the file.
BAD_FILES = {
    "unknown key": (
        NAMED + "depth = 3",
        "unknown key 'depth'; allowed are version, name, about, cite, first, layer, last",
    ),
    "no name": ("about = 'x'", "the key 'name' is missing"),
    "name is a number": ("name = 5", "ansatz: 'name' is a text, got 5"),
    "about is a list": (NAMED + "about = []", "ansatz: 'about' is a text, got []"),
    "future version": (
        NAMED + "version = 2",
        "format version 2 is not known; this library reads version 1",
    ),
    "version is a text": (
        NAMED + 'version = "1"',
        "format version '1' is not known; this library reads version 1",
    ),
    "version is a bool": (
        NAMED + "version = true",
        "format version True is not known; this library reads version 1",
    ),
    "layer is one table": (
        NAMED + "[layer]\ngate = 'RY'\non = 'each'",
        "'layer' is a list of tables [[layer]], got",
    ),
    "first is a text": (NAMED + "first = 'RY'", "'first' is a list of tables [[first]], got 'RY'"),
    "a step is a text": (
        NAMED + "last = ['RY']",
        "[[last]] entry 1: a step has the keys 'gate' and 'on', got 'RY'",
    ),
    "a step without wires": (
        NAMED + STEP + "[[layer]]\ngate = 'RY'",
        "[[layer]] entry 2: a step has the keys 'gate' and 'on', got 'gate'",
    ),
    "a step with a third key": (
        NAMED + STEP + "angle = 1",
        "[[layer]] entry 1: a step has the keys 'gate' and 'on', got 'gate', 'on', 'angle'",
    ),
    "unknown gate": (
        NAMED + STEP + "[[first]]\ngate = 'RYZ'\non = 'each'",
        "[[first]] entry 1: step 'RYZ' on 'each': unknown gate 'RYZ'; did you mean one of RZ, RY, RZZ",
    ),
    "unknown gate in a list": (
        NAMED + "[[layer]]\ngate = ['CZ', '?']\non = 'line'",
        f"[[layer]] entry 1: step ['CZ', '?'] on 'line': unknown gate '?'; allowed are {GATE_LIST}",
    ),
    "a gate in a list in a list": (
        NAMED + "[[layer]]\ngate = [['CZ']]\non = 'line'",
        "[[layer]] entry 1: step [['CZ']] on 'line': unknown gate ['CZ']",
    ),
    "no gates": (
        NAMED + "[[layer]]\ngate = []\non = 'each'",
        "[[layer]] entry 1: step [] on 'each': a step has at least one gate",
    ),
    "gate is a number": (
        NAMED + "[[layer]]\ngate = 3\non = 'each'",
        "[[layer]] entry 1: 'gate' is a gate or a list of gates, got 3",
    ),
    "gate is a table": (
        NAMED + "[[layer]]\ngate = {RY = 1}\non = 'each'",
        "[[layer]] entry 1: 'gate' is a gate or a list of gates, got {'RY': 1}",
    ),
    "unknown wiring": (
        NAMED + "[[layer]]\ngate = 'CZ'\non = 'rings'",
        "[[layer]] entry 1: step 'CZ' on 'rings': unknown wiring 'rings'; did you mean one of ring",
    ),
    "wiring is a number": (
        NAMED + "[[layer]]\ngate = 'CZ'\non = 3",
        f"[[layer]] entry 1: step 'CZ' on 3: {A_WIRING}",
    ),
    "wiring is a bool": (
        NAMED + "[[layer]]\ngate = 'CZ'\non = true",
        f"[[layer]] entry 1: step 'CZ' on True: {A_WIRING}",
    ),
    "wires are flat": (
        NAMED + "[[layer]]\ngate = 'CZ'\non = [0, 1]",
        f"[[layer]] entry 1: step 'CZ' on [0, 1]: {A_WIRING}",
    ),
    "three wires": (
        NAMED + "[[layer]]\ngate = 'CZ'\non = [[0, 1, 2]]",
        f"[[layer]] entry 1: step 'CZ' on [[0, 1, 2]]: {A_WIRING}",
    ),
    "no wires in a group": (
        NAMED + "[[layer]]\ngate = 'CZ'\non = [[]]",
        f"[[layer]] entry 1: step 'CZ' on [[]]: {A_WIRING}",
    ),
    "a wire twice": (
        NAMED + "[[layer]]\ngate = 'CZ'\non = [[1, 1]]",
        f"[[layer]] entry 1: step 'CZ' on [[1, 1]]: {A_WIRING}",
    ),
    "a negative wire": (
        NAMED + "[[layer]]\ngate = 'CZ'\non = [[0, -1]]",
        f"[[layer]] entry 1: step 'CZ' on [[0, -1]]: {A_WIRING}",
    ),
    "a wire is a bool": (
        NAMED + "[[layer]]\ngate = 'CZ'\non = [[0, true]]",
        f"[[layer]] entry 1: step 'CZ' on [[0, True]]: {A_WIRING}",
    ),
    "a wire is a float": (
        NAMED + "[[layer]]\ngate = 'CZ'\non = [[0, 1.0]]",
        f"[[layer]] entry 1: step 'CZ' on [[0, 1.0]]: {A_WIRING}",
    ),
    "a wire is a text": (
        NAMED + "[[layer]]\ngate = 'CZ'\non = [['0', '1']]",
        f"[[layer]] entry 1: step 'CZ' on [['0', '1']]: {A_WIRING}",
    ),
    "not TOML": ("name: x\nlayer:\n- gate: RY\n", "not a TOML file in UTF-8: "),
    "a key twice": (NAMED + NAMED, "not a TOML file in UTF-8: "),
    "empty": ("", "the key 'name' is missing"),
    "nested too deep": ("name = " + "[" * 100_000, "not a TOML file in UTF-8: "),
    "a number too long": (NAMED + "version = " + "1" * 5000, "not a TOML file in UTF-8: "),
    "not UTF-8": (b'name = "\xe9t\xe9"', "not a TOML file in UTF-8: "),
    "UTF-16": ('name = "x"'.encode("utf-16"), "not a TOML file in UTF-8: "),
    "too large": (
        NAMED + "# " + "x" * (1 << 20),
        "a circuit file has at most 1048576 bytes, this has 1048589",
    ),
}

# An expression, and what the error says.
BAD_CALLS = {
    "load('simplified_tow_design')": "'simplified_tow_design'; did you mean one of simplified_two_design",
    "load('mine')": "no circuit named 'mine'",
    "load('')": "no circuit named ''; allowed are ",
    "load('a\\0b')": "no circuit named 'a\\x00b'",
    "load('x' * 300)": "xxx",
    "load('missing.toml')": "missing.toml: there is no such circuit file",
    "load('no/such/file')": "no/such/file: there is no such circuit file",
    "load(Path('missing'))": "missing: there is no such circuit file",
    "load(Path('.'))": ".: there is no such circuit file",
    "load(5)": "an ansatz is a name, a path, a dict, an Ansatz or a Circuit, got int",
    "load(None)": "an ansatz is a name, a path, a dict, an Ansatz or a Circuit, got NoneType",
    "load({'gates': []})": "ansatz: unknown key 'gates'",
    "Ansatz.from_dict([])": "ansatz: an ansatz is a table, got []",
    "Ansatz.from_dict({5: 1}, 'adapter_config.json')": "adapter_config.json: unknown key 5",
    "Ansatz.from_dict({'name': 'x', 'layer': None})": "'layer' is a list of tables [[layer]], got None",
    "Ansatz.from_dict({'name': 'x', 'layer': [None]})": (
        "ansatz: [[layer]] entry 1: a step has the keys 'gate' and 'on', got None"
    ),
    "Ansatz(5)": "ansatz: 'name' is a text, got 5",
    "Ansatz('x', first='RY')": "ansatz 'x': 'first' is a list of steps, got 'RY'",
    "Ansatz('x', layer=[{'gate': 'RY', 'on': 'each'}])": "ansatz 'x': 'layer' is a list of steps, got [{",
    "Step(5, 'each')": "'gate' is a gate or a list of gates, got 5",
    "Step('CZ', [])": "step 'CZ' on []: 'on' is a wiring or a list of one or two different wires each",
    "Step('CZ', 'nowhere')": "step 'CZ' on 'nowhere': unknown wiring 'nowhere'; allowed are ",
    "Step('RY', None)": f"step 'RY' on None: {A_WIRING}",
    "Ansatz('x').circuit()": "exactly one of dim, qubits and dims, got dim=None, qubits=None, dims=None",
    "Ansatz('x').circuit(dim=8, qubits=3)": "exactly one of dim, qubits and dims, got dim=8, qubits=3",
    "Ansatz('x').circuit(qubits=0)": "qubits is a whole number >= 1, got 0",
    "Ansatz('x').circuit(qubits=True)": "qubits is a whole number >= 1, got True",
    "Ansatz('x').circuit(qubits=2.0)": "qubits is a whole number >= 1, got 2.0",
    "Ansatz('x').circuit(qubits=2, layers=-1)": "layers is a whole number 0 to 1048576, got -1",
    "Ansatz('x').circuit(qubits=2, layers=True)": "layers is a whole number 0 to 1048576, got True",
    "Ansatz('x').circuit(qubits=2, layers='1')": "layers is a whole number 0 to 1048576, got '1'",
    "Ansatz('x').circuit(dim=1)": "a circuit's dimension is a whole number >= 2, got 1",
    "Ansatz('x').circuit(dim=True)": "a circuit's dimension is a whole number >= 2, got True",
    "Ansatz('x').circuit(dim=768.0)": "a circuit's dimension is a whole number >= 2, got 768.0",
    "Ansatz('x').circuit(dims=())": "dims of a circuit is a list of whole numbers >= 2, got ()",
    "Ansatz('x').circuit(dims=(2, 1))": "dims of a circuit has whole numbers >= 2, got 1",
    "Ansatz('x', layer=[Step('CZ', 'each')]).circuit(qubits=2)": ("step 'CZ' on 'each': CZ acts on 2 wires, got (0,)"),
    "Ansatz('x', layer=[Step('CZ', [[0, 3]])]).circuit(qubits=3)": "wire 3 is not one of the 3 wires",
    "Ansatz('x', layer=[Step('CX', 'line')]).circuit(dim=12)": "CX 0 1 acts on wires of dimension (3, 2)",
}


@pytest.mark.parametrize("what", BAD_FILES)
def test_a_bad_file_is_a_value_error_that_names_the_file_and_the_entry(what, tmp_path):
    text, message = BAD_FILES[what]
    path = tmp_path / "bad.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError) as error:
        load(path)
    assert str(error.value).startswith(f"{path}: {message}")


@pytest.mark.parametrize("call", BAD_CALLS)
def test_a_bad_call_is_a_value_error_that_says_what_is_wrong(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as error:
        eval(call, globals() | {"Path": Path})
    assert BAD_CALLS[call] in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_of_the_largest_size_is_read(tmp_path):
    text = NAMED + "# "
    path = tmp_path / "large.toml"
    path.write_text(text + "x" * ((1 << 20) - len(text)))
    assert load(path) == Ansatz("x")


# --- one circuit in the place of a family -------------------------------------------------------------------

ONE = Circuit(
    (3, 2),
    [Op("RY", (0,)), Op("CZ", (0, 1)), Op("RY", (1,), adjoint=True), Op("RY", (1,), (3,))],
    [Affine(((0, 1.0),)), Affine(((1, 1.0),)), Affine(((0, -0.1), (1, 1 / 3)), 1e-7), Affine(shift=0.25)],
)


@pytest.mark.parametrize(
    "circuit", [ONE, ONE.plain, ONE.inverse(), Circuit((2,)), Circuit((2, 2), [Op("SWAP", (1, 0))])]
)
def test_a_circuit_is_an_ansatz_of_one_width_and_comes_back_from_data_and_files(circuit, tmp_path):
    ansatz = load(circuit)
    assert ansatz.circuit() == ansatz.circuit(dim=circuit.dim) == ansatz.circuit(dims=circuit.dims) == circuit
    assert ansatz.gates == {op.gate for op in circuit.ops}
    for data in (ansatz.to_dict(), json.loads(json.dumps(ansatz.to_dict()))):
        assert load(data) == ansatz and hash(load(data)) == hash(ansatz)
    (tmp_path / "one.toml").write_text(ansatz.to_toml(), encoding="utf-8")
    assert load(tmp_path / "one.toml") == ansatz


def test_the_gates_of_a_family_are_those_of_its_steps():
    assert load("simplified_two_design").gates == {"RY", "CZ"}


@pytest.mark.parametrize(
    ("width", "said"),
    [
        ({"dim": 12}, "ansatz 'circuit' is one circuit on wires (3, 2), which has no width 12"),
        ({"dims": (2, 3)}, "ansatz 'circuit' is one circuit on wires (3, 2), which has no wires (2, 3)"),
        ({"qubits": 2}, "ansatz 'circuit' is one circuit on wires (3, 2), which has no wires (2, 2)"),
        ({"layers": 2}, "ansatz 'circuit' is one circuit, so it has 1 layer, got 2"),
        ({"qubits": 0}, "qubits is a whole number >= 1, got 0"),
    ],
)
def test_one_circuit_has_no_other_width_and_no_layers(width, said):
    with pytest.raises(ValueError) as error:
        load(ONE).circuit(**width)
    assert str(error.value) == said


def changed(**change):
    return {**load(ONE).to_dict(), **change}


WRONG = {
    "version": (changed(version=1), "format version 1 is not known; this library reads version 2"),
    "boolean version": (changed(version=True), "format version True is not known"),
    "more keys": (changed(layer=[]), "unknown key 'layer'"),
    "no circuit": (changed(circuit=5), "a circuit has the lists dims, ops and affine, got 5"),
    "no lists": (changed(circuit={"dims": 2, "ops": [], "affine": []}), "has the lists dims, ops and affine"),
    "wires": (changed(circuit={"dims": [2] * 1025, "ops": [], "affine": []}), "at most 1024 wires and 262144 gates"),
    "dimension": (changed(circuit={"dims": [2] * 41, "ops": [], "affine": []}), "is at most 2**40, got wires"),
    "dims": (changed(circuit={"dims": [2.0], "ops": [], "affine": []}), "dims of a circuit"),
    "op": (changed(circuit={"dims": [2], "ops": [["RY", [0], [0]]], "affine": []}), "an op is a gate, its wires"),
    "gate": (changed(circuit={"dims": [2], "ops": [[{}, [0], [], False]], "affine": []}), "unknown gate {}"),
    "wire": (changed(circuit={"dims": [2], "ops": [["X", [1], [], False]], "affine": []}), "a wire that is not there"),
    "term": (
        changed(circuit={"dims": [2], "ops": [], "affine": [5]}),
        "an angle is a list of terms and a number, got 5",
    ),
    "number": (
        changed(circuit={"dims": [2], "ops": [["RY", [0], [0], False]], "affine": [[[[0, float("inf")]], 0.0]]}),
        "the numbers of an angle are finite, got inf",
    ),
}


@pytest.mark.parametrize("data, said", WRONG.values(), ids=list(WRONG))
def test_data_that_is_no_circuit_is_refused_in_one_sentence(data, said):
    with pytest.raises(ValueError) as error:
        load(data)
    assert said in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 500


def test_steps_beside_one_circuit_are_refused():
    with pytest.raises(ValueError, match="'fixed' is a Circuit, and beside it there are no steps"):
        Ansatz("both", layer=(Step("RY", "each"),), fixed=ONE)
    with pytest.raises(ValueError, match="'fixed' is a Circuit"):
        Ansatz("text", fixed="RY")
