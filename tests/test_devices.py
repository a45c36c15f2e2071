"""Devices: Hadamard tests as circuits against the numpy reference, counts of Qiskit's and PennyLane's, mitigation."""

import copy

import numpy as np
import pennylane as qml
import pytest
import reference
import torch
from bounds import close, gates
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from peft import get_peft_model
from qiskit_aer import AerSimulator
from qiskit_aer.noise import NoiseModel, ReadoutError, depolarizing_error
from test_circuit import circuits
from torch import nn

from qcircuit_peft import (
    Affine,
    Circuit,
    Noise,
    Op,
    QCircuitConfig,
    columns,
    estimated_columns,
    load,
    noise_aware,
    state,
)
from qcircuit_peft.analysis import evaluate_under_noise
from qcircuit_peft.backends import apply, find_backend, pennylane, probabilities, qiskit
from qcircuit_peft.backends.estimation import by_shifts
from qcircuit_peft.backends.hadamard import estimates, hadamard_test
from qcircuit_peft.frames import FRAMES
from qcircuit_peft.gates import GATES

REAL = tuple(name for name, gate in GATES.items() if gate.real)
FAMILY = load("simplified_two_design")
AER = "qiskit:aer_simulator"


def uniform(circuit, seed=0):
    return 2 * torch.pi * torch.rand(circuit.n_angles, generator=torch.Generator().manual_seed(seed)).double()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# --- the test as a circuit --------------------------------------------------------------------------------------


def check_test(circuit):
    angles = uniform(circuit)
    wanted = torch.from_numpy(np.asarray(reference.matrix(circuit, angles.numpy()))).real
    for column in range(circuit.dim):
        test, signs = hadamard_test(circuit, column)
        assert test.n_angles == circuit.n_angles and test.dims == (2, *circuit.dims)
        assert set(signs.abs().tolist()) == {1.0}
        found = estimates(state(test, angles).abs().square(), signs)
        close(found, wanted[:, column], 4 * circuit.dim**0.5 * gates(test), size=1)


@pytest.mark.parametrize("adjoint", [False, True], ids=["", "adjoint"])
@pytest.mark.parametrize("gate", REAL)
def test_a_hadamard_test_of_every_real_gate_finds_its_columns(gate, adjoint):
    n = GATES[gate].wires
    check_test(Circuit((2, 2), [Op("RY", (0,)), Op("H", (1,)), Op(gate, (1, 0)[:n], adjoint=adjoint), Op("RY", (1,))]))


@hypothesis_settings(max_examples=8)
@given(circuit=circuits(gates=REAL, dimensions=(2,), max_dim=4, max_ops=4))
def test_a_hadamard_test_of_any_real_circuit_finds_its_columns(circuit):
    check_test(circuit)


def test_only_what_turns_is_controlled():
    circuit = FAMILY.circuit(qubits=4, layers=2)
    test, _ = hadamard_test(circuit, 5)
    count = {gate: sum(op.gate == gate for op in test.ops) for gate in ("CRY", "CZ")}
    assert count == {"CRY": 4 + circuit.n_angles, "CZ": sum(op.gate == "CZ" for op in circuit.ops)}


@pytest.mark.parametrize("circuit, said", [
    (Circuit((2, 3), [Op("RY", (1,))]), "is of qubits, but wire 1 has dimension 3; interop.lower puts it on qubits$"),
    (
        Circuit((2, 2, 2), [Op("RXX", (0, 1)), Op("RZ", (2,)), Op("RY", (0,))]),
        "finds the columns of real circuits, got one with the complex gates RXX, RZ$",
    ),
])  # fmt: skip
def test_what_has_no_hadamard_test_is_refused(circuit, said):
    with pytest.raises(ValueError, match=f"^a Hadamard test {said}"):
        hadamard_test(circuit, 0)


# --- devices ----------------------------------------------------------------------------------------------------


def devices():
    yield AER, True
    yield AerSimulator(method="statevector"), True
    yield qml.device("lightning.qubit", wires=4, seed=1), True
    yield qml.device("default.qubit", seed=2), True


@pytest.mark.parametrize("device", [device for device, _ in devices()], ids=["name", "aer", "lightning", "default"])
def test_a_device_finds_columns_and_probabilities_within_five_standard_errors(device):
    circuit = FAMILY.circuit(qubits=3, layers=1)
    angles = torch.stack([uniform(circuit, seed) for seed in range(2)])
    exact, shots = columns(circuit, angles, 3), 4000
    found, error = estimated_columns(circuit, angles, 3, shots=shots, generator=seeded(), backend=device)
    assert found.shape == error.shape == exact.shape and found.dtype == angles.dtype
    wanted = ((1 + 6 * exact.square()) / (2 * shots)).sqrt()  # (1 + N u^2 - 2 u^2) / (2 n)
    assert ((found - exact).abs() < 5 * wanted).all() and (found != exact).any()
    assert 0.5 < float(error.mean() / wanted.mean()) < 2
    shares = probabilities(circuit, angles, shots=shots, generator=seeded(), backend=device)
    p = exact[..., 0].square()
    assert ((shares - p).abs() <= 5 * (p * (1 - p) / shots).sqrt() + 1 / shots).all()


class Elsewhere(torch.Generator):
    device = torch.device("meta")


@pytest.mark.parametrize("backend", ["native", "qiskit", "pennylane", AER])
def test_a_seed_is_drawn_where_the_generator_is(backend, monkeypatch):
    asked, generator = [], Elsewhere()
    monkeypatch.setattr(torch, "randint", lambda *_, **named: asked.append((named["generator"], named["device"])) or 1)
    estimated_columns(CIRCUIT, ANGLES, 1, shots=2, generator=generator, backend=backend)
    probabilities(CIRCUIT, ANGLES, shots=2, generator=generator, backend=backend)
    assert asked == [(generator, Elsewhere.device)] * 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a generator of a GPU")
@pytest.mark.parametrize("backend", ["native", "qiskit", "pennylane", AER])
def test_a_generator_of_a_gpu_seeds_every_backend(backend):
    first, again = (
        estimated_columns(
            CIRCUIT, ANGLES, 1, shots=50, generator=torch.Generator("cuda").manual_seed(3), backend=backend
        )[0]
        for _ in range(2)
    )
    assert torch.equal(first, again)


def test_fixed_angles_reach_a_device_in_all_their_digits(monkeypatch):
    fixed = Circuit((2,), [Op("RY", (0,)), Op("RY", (0,))], [Affine(shift=0.1), Affine(((0, 2.0),), 0.3)])
    execute, seen = pennylane._execute, []
    monkeypatch.setattr(pennylane, "_execute", lambda tapes, on: seen.extend(tapes) or execute(tapes, on))
    for angle in (0.7, 0.9):
        angles = torch.tensor([[angle]], dtype=torch.float64)
        pennylane.measured([fixed], angles[None], 10, 0, qml.device("default.qubit", wires=1), ("zne",))
        (tape, folded) = seen[-2:]
        values = [float(value) for value in tape.get_parameters(trainable_only=False)]
        assert values == [0.1, 2 * angle + 0.3] and len(folded.operations) == 6


def test_the_seed_of_the_generator_is_that_of_the_device():
    circuit = FAMILY.circuit(qubits=2, layers=1)
    first, again, other = (
        estimated_columns(circuit, uniform(circuit), 2, shots=100, generator=seeded(seed), backend=AER)[0]
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_gradient_on_a_device_is_that_of_shifted_angles():
    circuit = FAMILY.circuit(qubits=2, layers=1)
    angles = uniform(circuit).requires_grad_()
    weights = torch.arange(4).double()
    found = torch.autograd.grad(
        probabilities(circuit, angles, shots=20_000, generator=seeded(), backend=AER) @ weights, angles
    )
    wanted = torch.autograd.grad(probabilities(circuit, angles) @ weights, angles)
    assert (found[0] - wanted[0]).abs().max() < 5 * 3 / 20_000**0.5


def noisy(**errors):
    """A simulator whose noise is one of gates or of reading."""
    model = NoiseModel(basis_gates=["cz", "rz", "sx", "x", "id"])
    if "readout" in errors:
        low, high = errors["readout"]
        model.add_all_qubit_readout_error(ReadoutError([[1 - low, low], [high, 1 - high]]))
    if "depolarizing" in errors:
        model.add_all_qubit_quantum_error(depolarizing_error(errors["depolarizing"], 2), "cz")
    return AerSimulator(noise_model=model, n_qubits=4)


@pytest.mark.parametrize(
    "mitigation, device, most", [("readout", {"readout": (0.05, 0.12)}, 0.2), ("zne", {"depolarizing": 0.02}, 0.5)]
)
def test_mitigation_takes_its_noise_away(mitigation, device, most):
    circuit = FAMILY.circuit(qubits=2, layers=1)
    angles = uniform(circuit)
    exact, on = columns(circuit, angles, 2), noisy(**device)

    def distance(*names):
        found = estimated_columns(circuit, angles, 2, shots=40_000, generator=seeded(), backend=on, mitigation=names)
        return float((found[0] - exact).norm())

    raw = distance()
    assert raw > 0.15 and distance(mitigation) < most * raw


RATES = [(0.03, 0.91), (0.08, 0.83), (0.01, 0.95)]  # of bits, the least significant first: of 0 and of 1 to read 1


def unmixed(rates, *folds):
    """p(0, i) - p(1, i) as multilinear functions of frequencies and rates, by the whole matrix of the readout."""
    matrix = np.eye(1 if rates else 8)
    for low, high in rates:
        matrix = np.kron([[1 - low, 1 - high], [low, high]], matrix)
    weights = (1.5, -0.5) if len(folds) == 2 else (1.0,)
    shares = np.linalg.solve(matrix, sum(w * fold for w, fold in zip(weights, folds, strict=True)))
    return np.concatenate([shares, shares[:4] - shares[4:]])


@pytest.mark.parametrize("folds", [1, 2], ids=["", "zne"])
@pytest.mark.parametrize("rates", [[], RATES], ids=["", "readout"])
def test_standard_errors_follow_from_the_covariance_of_all_that_is_counted(rates, folds):
    random, shots = np.random.default_rng(0), 500
    found = [random.dirichlet(np.ones(8), 1) for _ in range(folds)]
    weights = qiskit.TO_NONE if folds == 2 else (1.0,)
    shares, errors = qiskit._mitigated(found, weights, rates, shots)
    whole = unmixed(rates, *(one[0] for one in found))
    variance, step = np.zeros(4), 1e-6
    for place, one in enumerate(found):  # of a multinomial
        slopes = np.stack(
            [
                unmixed(rates, *(np.eye(8)[k] if at == place else np.zeros(8) for at in range(folds)))[8:]
                for k in range(8)
            ]
        )
        variance += slopes.T**2 @ one[0] / shots - (slopes.T @ one[0]) ** 2 / shots
    for bit, pair in enumerate(rates):
        for value, rate in enumerate(pair):
            up, down = (
                [(*p[:value], p[value] + side, *p[value + 1 :]) if b == bit else p for b, p in enumerate(rates)]
                for side in (step, -step)
            )
            slope = (unmixed(up, *(f[0] for f in found)) - unmixed(down, *(f[0] for f in found)))[8:] / (2 * step)
            variance += slope**2 * rate * (1 - rate) / shots
    np.testing.assert_allclose(shares[0], whole[:8], atol=1e-12)
    np.testing.assert_allclose(errors[0], np.sqrt(variance), rtol=1e-7)


def test_told_errors_are_those_that_are_made_under_mitigation():
    on, draws, both = noisy(readout=(0.1, 0.2)), 16, ["readout", "zne"]
    drawn = [
        estimated_columns(CIRCUIT, ANGLES, 2, shots=500, generator=seeded(seed), backend=on, mitigation=both)
        for seed in range(draws)
    ]
    found, told = map(torch.stack, zip(*drawn, strict=True))
    ratio = float(found.var(0).mean() / told.square().mean())
    assert abs(ratio - 1) < 4 * (2 / ((draws - 1) * 6)) ** 0.5  # 8 entries, of which 6 are free


def test_pennylanes_devices_are_mitigated_by_folding():
    noise = qml.NoiseModel(
        {qml.noise.op_in([qml.CZ, qml.CNOT, qml.CRY]): qml.noise.partial_wires(qml.DepolarizingChannel, 0.02)}
    )
    device = qml.add_noise(qml.device("default.mixed", wires=3), noise)
    circuit = FAMILY.circuit(qubits=2, layers=1)
    exact = columns(circuit, uniform(circuit), 1)
    raw, folded = (
        float(
            (
                estimated_columns(circuit, uniform(circuit), 1, shots=40_000, backend=device, mitigation=m)[0] - exact
            ).norm()
        )
        for m in ((), ("zne",))
    )
    assert raw > 0.1 and folded < raw / 2


def fake(name="fake_manila"):
    pytest.importorskip("qiskit_ibm_runtime", reason="the fake backends are in qiskit_ibm_runtime")
    return find_backend(f"qiskit:{name}").device


@pytest.mark.parametrize("remote", [False, True], ids=["its own", "as of an account"])
def test_a_fake_backend_has_the_noise_of_its_device(monkeypatch, remote):
    device = fake()
    monkeypatch.setattr(qiskit, "_is_remote", lambda _: remote)
    circuit = FAMILY.circuit(qubits=2, layers=1)
    found = probabilities(circuit, uniform(circuit), shots=4000, generator=seeded(), backend=device)
    exact = probabilities(circuit, uniform(circuit))
    assert 0.005 < float((found - exact).abs().max()) < 0.2 and abs(float(found.sum()) - 1) < 1e-9


def test_a_transpiled_circuit_uses_what_the_device_has():
    device = fake()
    made = qiskit._transpiled(hadamard_test(FAMILY.circuit(qubits=4, layers=1), 3)[0], device)
    pairs = {tuple(made.find_bit(q).index for q in step.qubits) for step in made.data if step.operation.name == "cx"}
    assert set(made.count_ops()) <= {*device.operation_names, "barrier"} and pairs <= set(device.coupling_map)


def test_a_name_is_a_device_with_its_calibration():
    row = find_backend(fake())
    assert row.called == "qiskit:fake_manila" and row.measures and row.device.num_qubits == 5
    with pytest.raises(ValueError, match=r"^Qiskit has no device 'fake_manilla' here; did you mean one of fake_manila"):
        find_backend("qiskit:fake_manilla")


def test_without_the_package_of_the_fakes_its_command_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "qiskit_ibm_runtime", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"needs qiskit_ibm_runtime, .*run: pip install 'qcircuit-peft\[devices\]'$"
    ):
        find_backend("qiskit:fake_manila")


CIRCUIT = FAMILY.circuit(qubits=2, layers=1)
ANGLES = uniform(CIRCUIT)
ANY, SMALL = qml.device("default.qubit"), qml.device("default.qubit", wires=["a", "b", "c"])
REFUSED = [
    (lambda: find_backend(3), "^a backend is a name, a device of PennyLane or a BackendV2 of Qiskit, got 3$"),
    (
        lambda: find_backend("native:x"),
        "^backend 'native' has no devices to choose from, got 'native:x'; 'pennylane:NAME' and 'qi",
    ),
    (lambda: columns(CIRCUIT, ANGLES, 1, backend=AER), "^backend 'qiskit:aer_simulator' measures: give shots, to prob"),
    (lambda: apply(CIRCUIT, ANGLES, torch.eye(4), backend=AER), "^backend 'qiskit:aer_simulator' measures: give shots"),
    (lambda: probabilities(CIRCUIT, ANGLES, backend=AER), "^backend 'qiskit:aer_simulator' measures: give shots"),
    (
        lambda: estimated_columns(CIRCUIT, ANGLES, 1, shots=None, backend=AER),
        "^shots, on a device, is a whole number 1 to",
    ),
    (
        lambda: estimated_columns(CIRCUIT, ANGLES, 1, shots=9, noise=Noise(), backend=AER),
        "has the noise of its device, and",
    ),
    (lambda: estimated_columns(CIRCUIT, ANGLES, 1, shots=9, mitigation=("zne",)), "^mitigation is for devices, got"),
    (
        lambda: estimated_columns(CIRCUIT, ANGLES, 1, shots=9, backend=AER, mitigation=("x",)),
        "^mitigation is one of readout, zne, got 'x'$",
    ),
    *(
        (
            lambda backend=backend, names=names: estimated_columns(
                CIRCUIT, ANGLES, 1, shots=9, backend=backend, mitigation=names
            ),
            "^mitigation is a list, of readout and zne, got (None|'zne'|5)$",
        )
        for backend in ("native", AER)
        for names in (None, "zne", 5)
    ),
    (
        lambda: estimated_columns(CIRCUIT, ANGLES, 1, shots=9, backend=ANY, mitigation=("readout",)),
        "^PennyLane's devices are mitigated by 'zne', got 'readout'; Qiskit's by 'readout' too$",
    ),
    (
        lambda: estimated_columns(CIRCUIT, ANGLES, 1, shots=9, backend=SMALL),
        r"^PennyLane's device 'default.qubit' has the wires \['a', 'b', 'c'\], but this circuit",
    ),
    (
        lambda: QCircuitConfig(backend=AER),
        "^backend 'qiskit:aer_simulator' measures, which no adapter is made of; analysis.evaluate",
    ),
    (lambda: QCircuitConfig(backend=SMALL), "^backend is a text, got <"),
]


@pytest.mark.parametrize("call, said", REFUSED)
def test_what_a_device_cannot_do_is_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_a_circuit_that_is_too_large_for_a_device_is_refused():
    circuit = FAMILY.circuit(qubits=6, layers=0)
    with pytest.raises(ValueError, match=r"^the device 'fake_manila' does not run this circuit: "):
        probabilities(circuit, uniform(circuit), shots=10, backend=fake())


# --- adapters ---------------------------------------------------------------------------------------------------


def adapted(**options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(6, 8))
    config = QCircuitConfig(r=2, target_modules=["0", "1"], init_weights=False, **options)
    return get_peft_model(net, config).double()


def test_a_trained_adapter_is_measured_on_a_device():
    found = evaluate_under_noise(adapted(), backend=AER, shots=2000, generator=seeded())
    for perturbed, free in zip(found.values(), ((7, 7), (7, 7)), strict=True):  # 6 = 3 * 2 is three qubits
        assert 0 < perturbed.distance / perturbed.norm < 4 * (sum(free) / 2000) ** 0.5
    device, one = fake(), adapted(exclude_modules=["1"])
    raw, mended = (
        evaluate_under_noise(one, backend=device, shots=2000, generator=seeded(), mitigation=names)
        for names in ((), ("readout", "zne"))
    )
    assert all(mended[name].distance < raw[name].distance < raw[name].norm for name in raw)
    with pytest.raises(ValueError, match="'qiskit:fake_manila' has the noise of its device, and takes no other"):
        evaluate_under_noise(adapted(), Noise(0.1), backend=device, shots=10)


def test_a_device_is_made_once_in_noise_aware_training(monkeypatch):
    made, build = [], qiskit.device_named
    monkeypatch.setattr(qiskit, "device_named", lambda name: made.append(name) or build(name))
    model, x = adapted(exclude_modules=["1"]), torch.randn(3, 8).double()
    with noise_aware(model, shots=10, backend=AER, gradients="parameter-shift", generator=seeded()):
        for _ in range(2):
            model.base_model.model[0](x).sum().backward()
    evaluate_under_noise(model, shots=10, backend=AER, generator=seeded())
    assert made == ["aer_simulator"] * 2


def test_the_gradient_by_shifts_has_all_digits_of_fixed_angles():
    ops = [Op("RY", (0,)), Op("CZ", (0, 1)), Op("RY", (1,)), Op("RY", (0,))]
    circuit = Circuit((2, 2), ops, [Affine(shift=0.1), Affine(((0, 1.0),)), Affine(((0, 0.3), (1, 1.0)), 0.7)])
    angles = torch.tensor([[0.4, 1.3], [2.2, 0.6]], dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 4, 2, generator=seeded(), dtype=torch.float64)
    exact, shifted = (
        torch.autograd.grad((way(circuit, angles, 2) * weights).sum(), angles)[0]
        for way in (columns, by_shifts(columns))
    )
    close(shifted, exact, 16 * gates(circuit), size=1)


def gradients(model, x, **settings):
    model.zero_grad()
    with noise_aware(model, **settings):
        loss = model(x).square().mean()
        loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]), loss.detach()


def test_noise_aware_gradients_by_shifts_are_those_through_density_matrices():
    model, x = adapted(), torch.randn(3, 8, generator=seeded()).double()
    model.base_model.model = nn.Sequential(model.base_model.model[0])
    plain = model(x).square().mean()
    for noise in (None, Noise(0.02, 0.01, 0.01, 0.02)):
        (exact, one), (shifted, two) = (
            gradients(model, x, noise=noise, gradients=way) for way in ("exact", "parameter-shift")
        )
        close(shifted, exact, 4000)
        close(two, one, 4000)
        assert abs(one - plain) < 1e-12 if noise is None else abs(one - plain) > 1e-3
    close(model(x).square().mean(), plain, 10)


def test_noise_aware_shots_are_drawn_anew_and_right_on_average():
    model, x = adapted(), torch.randn(3, 8, generator=seeded()).double()
    model.base_model.model = nn.Sequential(model.base_model.model[0])
    exact, generator = gradients(model, x)[0], seeded(1)
    for way in ("exact", "parameter-shift"):
        drawn = [gradients(model, x, shots=2000, generator=generator, gradients=way)[0] for _ in range(6)]
        spread = torch.stack(drawn).std(0)
        assert (spread > 0).all() and (
            (torch.stack(drawn).mean(0) - exact).abs() < 6 * spread + 0.05 * exact.norm()
        ).all()


@pytest.mark.parametrize("frame", sorted(FRAMES))
def test_noise_aware_is_never_silently_exact(frame):
    torch.manual_seed(0)
    config = QCircuitConfig(r=2, frame=frame, target_modules=["0"], init_weights=False)
    model, x = get_peft_model(torch.nn.Sequential(torch.nn.Linear(8, 8)), config), torch.randn(3, 8)
    exact = model(x)
    try:
        with noise_aware(model, Noise(depolarizing=0.2)):
            assert not torch.allclose(model(x), exact, atol=1e-3)
    except ValueError as error:
        assert str(error).startswith("hardware estimates ")
    assert torch.equal(model(x), exact)


def test_another_model_is_exact_again_when_noise_has_ended():
    torch.manual_seed(0)
    config = QCircuitConfig(r=2, target_modules=["0"], init_weights=False)
    mine, other = (get_peft_model(torch.nn.Sequential(torch.nn.Linear(8, 8)), config).eval() for _ in range(2))
    x = torch.randn(3, 8)
    with torch.no_grad():
        exact = copy.deepcopy(other)(x)  # whose frames are its own
        with noise_aware(mine, Noise(depolarizing=0.2)):
            other(x)
        assert torch.equal(other(x), exact)


def test_nothing_is_merged_or_unmerged_of_what_is_estimated():
    model = get_peft_model(
        torch.nn.Sequential(torch.nn.Linear(8, 8)), QCircuitConfig(r=2, target_modules=["0"], init_weights=False)
    )
    with noise_aware(model, Noise(depolarizing=0.2)), pytest.raises(ValueError, match="nothing is merged"):
        model.merge_adapter()
    model.merge_adapter()
    with noise_aware(model, Noise(depolarizing=0.2)), pytest.raises(ValueError, match="nothing is merged"):
        model.unmerge_adapter()


def test_noise_aware_training_runs_on_a_device():
    model, x = adapted(), torch.randn(3, 8, generator=seeded()).double()
    model.base_model.model = nn.Sequential(model.base_model.model[0])
    exact = gradients(model, x)[0]
    found = gradients(model, x, shots=300, backend=AER, gradients="parameter-shift", generator=seeded())[0]
    assert 0 < (found - exact).norm() < 0.5 * exact.norm()


@pytest.mark.parametrize("settings, said", [
    ({"noise": 0.1}, "^noise is a Noise, got float$"),
    ({"gradients": "x"}, "^gradients is one of exact, parameter-shift, got 'x'$"),
    ({"shots": 0}, "^shots is a whole number 1 to"),
    ({"backend": AER}, "^'qiskit:aer_simulator' is a device: it takes shots and gradients='parameter-shift', and no"),
    ({"noise": Noise(), "backend": "qiskit"}, "^columns under noise are estimated by 'native', got backend 'qiskit'$"),
])  # fmt: skip
def test_what_noise_aware_does_not_take_is_refused(settings, said):
    with pytest.raises(ValueError, match=said), noise_aware(adapted(), **settings):
        pass
    with (
        pytest.raises(ValueError, match=r"^noise_aware is for a model with a circuit adapter"),
        noise_aware(nn.Linear(2, 2)),
    ):
        pass


@pytest.mark.parametrize("options, said", [
    ({"width": "shannon"}, "are of several circuits"),
    ({"ansatz": "sim01"}, "are of a complex one"),
    ({"factorization": "rotation"}, "here a circuit acts on what it is given; adapt with"),
])  # fmt: skip
def test_frames_that_hardware_does_not_estimate_are_refused(options, said):
    net = nn.Sequential(nn.Linear(6 if options.get("width") else 8, 8))
    model = get_peft_model(net, QCircuitConfig(r=2, target_modules=["0"], **options))
    x = torch.randn(2, net[0].in_features)
    with noise_aware(model), pytest.raises(ValueError, match=said):
        model(x)
    assert model(x).isfinite().all()
    qutrit = adapted()
    with noise_aware(qutrit, gradients="parameter-shift"), pytest.raises(ValueError, match="gates with one angle"):
        qutrit.base_model.model[1](torch.randn(2, 6).double())
