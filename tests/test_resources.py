"""What circuits cost, against Qiskit's and PennyLane's own counts, and shots against what they give."""

import csv
import inspect
import itertools
import json
from dataclasses import replace
from math import ceil, log2, pi

import numpy as np
import pennylane as qml
import pytest
import torch
from peft import get_peft_model
from qiskit import QuantumCircuit, transpile
from qiskit.synthesis import gridsynth_rz
from qiskit.transpiler import CouplingMap
from torch import nn
from typer.testing import CliRunner

from qcircuit_peft import Affine, Circuit, Op, QCircuitConfig, columns, estimated_columns, load, noise_aware
from qcircuit_peft.analysis import adapter_resources, evaluate_under_noise, resources
from qcircuit_peft.analysis.resources import _spread
from qcircuit_peft.ansatz import names
from qcircuit_peft.backends import find_backend
from qcircuit_peft.backends.hadamard import hadamard_test
from qcircuit_peft.cli import app
from qcircuit_peft.gates import GATES
from qcircuit_peft.interop import lower, places, to_pennylane, to_qiskit

FAMILY = load("simplified_two_design")
BASIS = ["cz", "rz", "sx", "x"]
TIMES = {"cz": 84e-9, "rz": 0.0, "sx": 24e-9, "x": 24e-9, "measure": 1.5e-6}


@pytest.mark.parametrize("name", names())
def test_the_counts_are_those_of_qiskit_and_pennylane(name):
    circuit = load(name).circuit(qubits=5, layers=2)
    found, theirs = resources(circuit), to_qiskit(circuit)
    assert found.depth == theirs.depth() and found.two_qubit == theirs.num_nonlocal_gates()
    assert found.two_qubit_depth == theirs.depth(lambda step: len(step.qubits) == 2)
    named = {GATES[gate].names.qiskit or gate: count for gate, count in found.gates.items()}
    assert named == dict(theirs.count_ops()) and found.qubits == theirs.num_qubits
    if all(GATES[gate].names.pennylane for gate in found.gates):
        made = qml.tape.QuantumScript(to_pennylane(circuit, [0.1] * circuit.n_angles)).specs["resources"]
        assert made.depth == found.depth and made.num_gates == sum(found.gates.values())
        assert made.gate_sizes.get(2, 0) == found.two_qubit


def test_on_a_basis_and_a_coupling_the_counts_are_those_of_qiskits_transpiler():
    circuit = FAMILY.circuit(qubits=5, layers=2)
    found = resources(circuit, BASIS, "ring", times=TIMES)
    theirs = to_qiskit(circuit)
    theirs.measure_all()
    made = transpile(
        theirs, basis_gates=BASIS, coupling_map=CouplingMap.from_ring(5), optimization_level=3, seed_transpiler=0
    )
    counted = {name: count for name, count in made.count_ops().items() if name not in ("measure", "barrier")}
    assert dict(found.gates) == counted and set(counted) <= set(BASIS)
    assert found.two_qubit == made.num_nonlocal_gates()
    chain = found.two_qubit_depth * TIMES["cz"] + TIMES["measure"]
    assert chain <= found.seconds <= chain + found.depth * TIMES["sx"]
    assert resources(circuit, BASIS, [(k, k + 1) for k in range(4)]) == resources(circuit, BASIS, "line")
    assert resources(circuit, BASIS).seconds is None


@pytest.mark.parametrize("qubits", [3, 4])
def test_the_seconds_on_a_device_are_qiskits(qubits):
    pytest.importorskip("qiskit_ibm_runtime", reason="the fake backends are in qiskit_ibm_runtime")
    device = find_backend("qiskit:fake_manila").device
    circuit = FAMILY.circuit(qubits=qubits, layers=1)
    theirs = to_qiskit(circuit)
    theirs.measure_all()
    made = transpile(theirs, device, optimization_level=3, seed_transpiler=0)
    found = resources(circuit, backend=device)
    # Qiskit rounds every gate to whole steps of dt
    assert found.seconds == pytest.approx(made.estimate_duration(device.target), abs=len(made.data) * device.dt)
    assert found == resources(circuit, backend="qiskit:fake_manila")


def test_clifford_gates_are_free_and_t_gates_count():
    ops = [
        Op("T", (0,)),
        Op("S", (1,)),
        Op("RZ", (0,), (0,)),
        Op("RY", (1,), (1,)),
        Op("CRX", (0, 1), (2,)),
        Op("H", (0,)),
    ]
    circuit = Circuit((2, 2), ops, [Affine(shift=pi / 4), Affine(shift=-pi / 2), Affine(shift=pi)])
    found = resources(circuit)
    assert (found.rotations, found.t_count) == (0, 2)  # CRX by pi is two rotations by pi/2
    free = resources(
        Circuit((2, 2), [Op("RZ", (0,)), Op("RXX", (0, 1)), Op("CRY", (1, 0)), Op("GIVENS", (0, 1))]), precision=1e-4
    )
    assert (free.rotations, free.t_count) == (6, 6 * ceil(3 * log2(6 / 1e-4)))


def test_a_rotation_takes_about_as_many_t_gates_as_qiskits_synthesis():
    counts = []
    for angle in (0.3, 1.1, 2.7, 4.4):
        made = gridsynth_rz(angle, 1e-4).count_ops()
        counts.append(made.get("t", 0) + made.get("tdg", 0))
    found = resources(Circuit((2,), [Op("RZ", (0,))]), precision=1e-4).t_count
    assert sum(counts) / 4 == pytest.approx(found, abs=8)  # the rest is O(log log 1/e)


def test_the_shots_of_a_width_that_is_no_power_of_two_give_their_error():
    wide = load("tree").circuit(dim=12, layers=1)
    angles = torch.rand(wide.n_angles, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 6
    rows = torch.from_numpy(places(wide.dims))
    flat, exact = lower(wide, angles), columns(wide, angles, 1)
    squares, shots = [], 200
    for seed in range(400):
        random = torch.Generator().manual_seed(seed)
        found = estimated_columns(flat, torch.zeros(0, dtype=torch.float64), 1, shots=shots, generator=random)[0]
        squares.append(float((found[rows] - exact).square().sum()))
    mean, spread = np.mean(squares) * shots, np.std(squares) * shots / 20
    assert abs(mean - _spread(wide)) < 4 * spread < 2


def test_the_shots_give_the_error_that_was_asked_for():
    circuit = FAMILY.circuit(qubits=4, layers=1)
    found = resources(circuit, error=0.1, columns=4)
    assert found.shots == 1500 and found.runs == 6000
    assert found.gates == resources(hadamard_test(circuit, 3)[0]).gates and found.qubits == 5
    angles = (2 * pi * torch.rand(40, circuit.n_angles, generator=torch.Generator().manual_seed(0))).double()
    estimate = estimated_columns(circuit, angles, 4, shots=1500, generator=torch.Generator().manual_seed(1))[0]
    squares = (estimate - columns(circuit, angles, 4)).square().sum(-2)
    assert float(squares.mean().sqrt()) == pytest.approx(0.1, rel=0.1)


def adapted(**options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 8), nn.Linear(16, 8), nn.Linear(12, 8))
    return get_peft_model(
        net, QCircuitConfig(r=2, target_modules=["0", "1", "2"], init_weights=False, **options)
    ).double()


def test_an_adapter_is_found_to_the_error_that_was_asked_for():
    model = adapted()
    found = adapter_resources(model, error=0.2)
    assert found.columns == 12 and found.qubits == 5 and next(iter(found.tests)) == "base_model.model.0.u"
    assert found.runs == sum(one.runs for one in found.tests.values())
    shots = found.tests["base_model.model.0.v"].shots
    drawn = [
        evaluate_under_noise(model, shots=shots, generator=torch.Generator().manual_seed(seed))["base_model.model.0"]
        for seed in range(30)
    ]
    mean = sum((one.distance / one.norm) ** 2 for one in drawn) / len(drawn)
    assert mean**0.5 == pytest.approx(0.2, rel=0.15)
    wide = found.tests["base_model.model.2.v"]  # 12 = 3 * 2 * 2 on four qubits
    assert (
        wide.qubits == 5
        and wide.two_qubit
        > found.tests["base_model.model.0.v"].two_qubit
        == found.tests["base_model.model.1.v"].two_qubit
    )


def test_what_layers_share_counts_once():
    shared = adapter_resources(adapted(share="shape"), BASIS, "line", times=TIMES)
    assert list(shared.tests) == ["base_model.model.0.u", "base_model.model.0.v", "base_model.model.2.v"]
    assert shared.seconds == pytest.approx(sum(one.runs * one.seconds for one in shared.tests.values()))
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(16, 8))
    meta = get_peft_model(net, QCircuitConfig(r=2, target_modules=["0"]))
    assert adapter_resources(meta).columns == 4


CIRCUIT = FAMILY.circuit(qubits=3, layers=1)
REFUSED = [
    (lambda: resources("tree"), "^a Circuit is wanted, got str; for a model there is adapter_resources$"),
    (lambda: resources(FAMILY.circuit(dim=12), error=0.1, columns=13), "^columns is a whole number 1 to 12, got 13$"),
    (lambda: resources(CIRCUIT, error=0.0), "^error is a number from 1e-09 to 1, got 0.0$"),
    (lambda: resources(CIRCUIT, columns=9), "^columns is a whole number 1 to 8, got 9$"),
    (lambda: resources(CIRCUIT, precision=2), "^precision is a number from 1e-15 to 1, got 2$"),
    (
        lambda: resources(CIRCUIT, ["cz", "rzz "]),
        "^a basis has names of Qiskit's gates such as 'cz', 'rz' and 'sx', got 'rzz '$",
    ),
    (lambda: resources(CIRCUIT, ["cz"]), "^Qiskit cannot transpile this circuit to these gates: "),
    (
        lambda: resources(CIRCUIT, BASIS, "star"),
        "^a coupling is pairs of qubits or one of line, ring, full, got 'star'$",
    ),
    (
        lambda: resources(CIRCUIT, BASIS, [(0, "1")]),
        r"^a coupling is pairs of two qubits such as \(0, 1\), got \(0, '1'\)$",
    ),
    (lambda: resources(CIRCUIT, BASIS, [(0, 0), (1, 2)]), r"^a coupling is pairs of two qubits .*, got \(0, 0\)$"),
    (lambda: resources(CIRCUIT, BASIS, [(0, 10**9)]), r"^a coupling is pairs of two qubits .*, got \(0, 1000000000\)$"),
    (lambda: resources(CIRCUIT, BASIS, 5), "^a coupling is pairs of qubits or one of line, ring, full, got 5$"),
    (lambda: resources(CIRCUIT, times=[1]), r"^times has the seconds of each gate by its name, got \[1\]$"),
    (lambda: resources(CIRCUIT, 5), "^a basis has names of Qiskit's gates such as 'cz', 'rz' and 'sx', got 5$"),
    (lambda: resources(CIRCUIT, BASIS, [(0, 1)]), "^the coupling has 2 qubits, but the circuit has 3$"),
    (lambda: resources(CIRCUIT, BASIS, times={"cz": -1}), "^times: the seconds of 'cz' is a number from 0 to 1e"),
    (
        lambda: resources(CIRCUIT, BASIS, times={"cz": 1e-7}),
        "^times has no seconds for '(rz|sx|x|measure)', got those of cz$",
    ),
    (
        lambda: resources(CIRCUIT, BASIS, backend="qiskit"),
        "^a backend knows its basis, coupling and times: give it, or them$",
    ),
    (
        lambda: resources(CIRCUIT, backend="pennylane"),
        "^resources on a device are those of a BackendV2 of Qiskit, got 'pennylane'$",
    ),
    (
        lambda: adapter_resources(nn.Linear(2, 2)),
        "^what is measured is a model with a circuit adapter, got one with none$",
    ),
    (lambda: adapter_resources(adapted(factorization="rotation")), "its factorization builds none$"),
    (
        lambda: adapter_resources(adapted(width="shannon")),
        "the columns of one real circuit, but this frame of width 12 is made of 4$",
    ),
    (lambda: adapter_resources(adapted(), error=2), "^error is a number from 1e-09 to 1, got 2$"),
]


@pytest.mark.parametrize("call, said", REFUSED)
def test_bad_input_is_one_sentence(call, said):
    with pytest.raises(ValueError, match=said) as error:
        call()
    assert "\n" not in str(error.value)


JUNK = (
    5,
    -1,
    0.5,
    True,
    "x",
    b"x",
    (),
    [1],
    [[1]],
    [["x"]],
    [([0], [1])],
    {},
    {1: 1},
    {"x": "x"},
    {"x": None},
    object(),
)
GIVEN = {
    resources: {"circuit": CIRCUIT},
    adapter_resources: {"model": adapted(exclude_modules=["1", "2"])},
    evaluate_under_noise: {"model": adapted(exclude_modules=["1", "2"]), "shots": 5},
    noise_aware: {"model": adapted(exclude_modules=["1", "2"])},
    estimated_columns: {"circuit": CIRCUIT, "angles": torch.zeros(CIRCUIT.n_angles), "k": 1, "shots": 5},
}


@pytest.mark.parametrize("called, name", [(f, name) for f in GIVEN for name in inspect.signature(f).parameters])
def test_whatever_is_given_is_taken_or_refused_in_a_sentence(called, name):
    devices = (
        ["native"] if called in (resources, adapter_resources, noise_aware) else ["native", "qiskit:aer_simulator"]
    )
    for value, on in itertools.product((None, *JUNK), devices):
        given = GIVEN[called] | {name: value} | ({"backend": on} if on != "native" and name != "backend" else {})
        try:
            result = called(**given)
            if called is noise_aware:
                with result:
                    pass
        except ValueError as error:
            assert "\n" not in str(error) and str(error)


def test_a_width_that_is_no_power_of_two_costs_what_its_adapter_does():
    wide = FAMILY.circuit(dim=12, layers=1)
    found = resources(wide, BASIS, "line", 0.1, times=TIMES, columns=5)
    assert found.shots == 1300 and found.qubits == 5  # ((12 + 16) / 2 - 1) / 0.1^2
    config = QCircuitConfig(
        r=5, target_modules=["0"], ansatz="simplified_two_design", layers=1, factorization="shared_core", share=None
    )
    model = get_peft_model(nn.Sequential(nn.Linear(12, 12)), config)
    same = adapter_resources(model, BASIS, "line", 0.1, times=TIMES).tests["base_model.model.0.v"]
    assert found == replace(same, shots=1300)  # of an adapter they are those for delta W
    other = FAMILY.circuit(dims=(2, 3), layers=1)
    test = hadamard_test(lower(other, uniform_of(other)), 4)[0]  # column 3 of (2, 3) is state 4 of its three qubits
    assert resources(other, error=0.1, columns=4).gates == resources(test).gates
    assert resources(wide).qubits == 4 and resources(wide).gates == resources(lower(wide, uniform_of(wide))).gates


def uniform_of(circuit):
    return 2 * pi * torch.rand(circuit.n_angles, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_the_command_prints_a_table_or_json():
    run = CliRunner().invoke
    start = ["resources", "tree", "--qubits", "4", "--basis", ",".join(BASIS), "--coupling", "line", "--error", "0.1"]
    result = run(app, start)
    assert result.exit_code == 0 and max(map(len, result.output.splitlines())) <= 80
    found = resources(load("tree").circuit(qubits=4, layers=1), BASIS, "line", 0.1)
    assert f"{found.two_qubit} " in result.output and "1,500 for each of 1 columns" in result.output
    data = json.loads(run(app, [*start, "--json"]).output)
    (data,) = data
    assert data["gates"] == dict(found.gates) and data["shots"] == data["runs"] == 1500
    assert data["seconds_in_all"] is None
    (line,) = csv.DictReader(run(app, [*start, "--csv"]).output.splitlines())
    assert json.loads(line["gates"]) == data["gates"] and set(line) == set(data) and line["runs"] == "1500"
    wide = run(app, ["resources", "tree", "--dim", "12", "--error", "0.1", "--columns", "12"])
    assert "1,300 for each of 12 columns" in wide.output
    pytest.importorskip("qiskit_ibm_runtime", reason="the fake backends are in qiskit_ibm_runtime")
    short, full = (
        json.loads(run(app, ["resources", "tree", "--error", "0.1", "--backend", name, "--json"]).output)[0]
        for name in ("fake_manila", "qiskit:fake_manila")
    )
    assert short == full and full["seconds_in_all"] == full["runs"] * full["seconds"] > 0
    assert run(app, ["resources", "tree", "--dim", "6"]).output.split()[:2] == ["qubits", "3"]
    for arguments, said in (
        (["nowhere"], "no circuit named"),
        (["tree", "--backend", "fake_x"], "has no device 'fake_x'"),
        (["tree", "--backend", "qiskit:fake_x"], "has no device 'fake_x'"),
        (["tree", "--dim", "12", "--error", "0.1", "--columns", "13"], "columns is a whole number 1 to 12, got 13"),
        (["tree", "--basis", "\x1b[31m"], "names of Qiskit's gates"),
    ):
        failed = run(app, ["resources", *arguments], env={"COLUMNS": "400", "TERMINAL_WIDTH": "400"})
        assert failed.exit_code == 2 and said in failed.output and "\x1b" not in failed.output


def test_a_circuit_without_gates_costs_nothing():
    found = resources(Circuit((2, 2)))
    assert (found.two_qubit, found.depth, found.two_qubit_depth, found.t_count, dict(found.gates)) == (0, 0, 0, 0, {})
    assert QuantumCircuit(2).depth() == 0
