"""The exact mean purities: published numbers, quadrature over every angle, and Monte Carlo on every circuit file."""

from itertools import product

import numpy as np
import pytest
import torch
from reference import columns

from qcircuit_peft import Circuit, Op, load, state
from qcircuit_peft.analysis import METRICS, capacity, mean_purities
from qcircuit_peft.analysis.haar import haar_purities
from qcircuit_peft.analysis.replica import _MAX_SIZE, _plan
from qcircuit_peft.ansatz import names


def exact_q(circuit):
    return METRICS["meyer_wallach"].from_purities(mean_purities(circuit), circuit.dims)


def test_two_qubits_have_a_closed_form():
    rows = capacity("simplified_two_design", 2, range(13), exact=True)
    np.testing.assert_allclose([row.mean for row in rows], [(1 - 4.0**-L) / 3 for L in range(13)], atol=1e-12)


def test_published_values_at_four_qubits():
    rows = capacity("simplified_two_design", 4, [1, 2, 3, 4, 6, 8, 12], exact=True)
    wanted = [47 / 128, 0.513062, 0.600592, 0.657306, 0.721221, 0.751090, 0.771824]
    np.testing.assert_allclose([row.mean for row in rows], wanted, atol=6e-7)
    purities = capacity("simplified_two_design", 4, [1, 2, 3, 4], "purity", exact=True)
    np.testing.assert_allclose([row.mean for row in purities], [0.804688, 0.701782, 0.637262, 0.593966], atol=6e-7)


@pytest.mark.parametrize("name, kind", [("simplified_two_design", "real"), ("sim14", "complex")])
def test_deep_circuits_reach_the_random_states_of_their_own_kind(name, kind):
    found = mean_purities(load(name).circuit(qubits=4, layers=60 if kind == "real" else 24))
    np.testing.assert_allclose(found, haar_purities((2,) * 4, kind), atol=1e-7)


@pytest.mark.parametrize("qubits", [8, 10])
def test_a_wire_does_not_see_beyond_its_light_cone(qubits):
    wide = mean_purities(load("simplified_two_design").circuit(qubits=qubits, layers=1))
    narrow = mean_purities(load("simplified_two_design").circuit(qubits=6, layers=1))
    for left, right in ((0, 0), (1, 1), (2, 2), (qubits - 1, 5), (qubits - 2, 4)):
        assert wide[tuple(np.eye(qubits, dtype=int)[left])] == pytest.approx(
            narrow[tuple(np.eye(6, dtype=int)[right])], abs=1e-12
        )


def by_quadrature(circuit, points=6):
    """Every subset's purity, averaged over a grid in [0, 2 pi) for every angle; the reference simulator's states.

    Purities have frequencies up to 2 in an angle of a Pauli rotation, for which six points are exact.
    """
    grid = 2 * np.pi * (np.arange(points) + 0.5) / points
    n = len(circuit.dims)
    total = np.zeros((2,) * n)
    for angles in product(grid, repeat=circuit.n_angles):
        psi = columns(circuit, angles, 1)[:, 0].reshape(circuit.dims)
        for kept in product((0, 1), repeat=n):
            side = [w for w in range(n) if kept[w]]
            m = np.moveaxis(psi, side, range(len(side))).reshape(2 ** len(side), -1)
            total[kept] += np.linalg.norm(m.conj().T @ m) ** 2
    return total / len(grid) ** circuit.n_angles


@pytest.mark.parametrize(
    "ops",
    [
        [Op("RY", (0,)), Op("H", (1,)), Op("CX", (0, 1)), Op("T", (1,)), Op("RX", (1,)), Op("CZ", (1, 2))],
        [Op("H", (0,)), Op("T", (0,)), Op("CX", (0, 1)), Op("H", (1,)), Op("T", (1,), adjoint=True), Op("CX", (1, 2))],
        [Op("H", (0,)), Op("T", (0,)), Op("T", (0,)), Op("H", (0,)), Op("CX", (0, 1)), Op("RY", (2,))],
        [Op("RX", (0,)), Op("S", (0,), adjoint=True), Op("SWAP", (0, 2)), Op("RXX", (1, 2)), Op("Y", (1,))],
        [Op("P", (0,)), Op("H", (0,)), Op("P", (0,)), Op("H", (0,)), Op("CX", (0, 1)), Op("RYY", (2, 1))],
    ],
)
def test_small_circuits_by_quadrature(ops):
    circuit = Circuit((2, 2, 2), ops)
    np.testing.assert_allclose(mean_purities(circuit), by_quadrature(circuit), atol=1e-12)


@pytest.mark.parametrize("name", names())
def test_every_circuit_file_by_monte_carlo(name):
    circuit, samples = load(name).circuit(qubits=3, layers=2), 4000
    angles = 2 * torch.pi * torch.rand(samples, circuit.n_angles, dtype=torch.float64)
    found = METRICS["meyer_wallach"].value(state(circuit, angles))
    error = float(found.std()) / samples**0.5
    assert exact_q(circuit) == pytest.approx(float(found.mean()), abs=4 * error + 1e-12)


@pytest.mark.parametrize("name", names())
def test_every_circuit_file_fits_at_eight_qubits(name):
    assert _plan(load(name).circuit(qubits=8, layers=2))[2] <= _MAX_SIZE


@pytest.mark.parametrize(
    "circuit, said",
    [
        (load("simplified_two_design").circuit(dim=12, layers=1), r"dimensions \(3, 2, 2\)"),
        (Circuit((2, 2), [Op("RY", (0,), (0,)), Op("RY", (1,), (0,))]), "angle 0 is shared"),
        (load("sim06").circuit(qubits=9, layers=1), "9 qubits, the most is"),
    ],
)
def test_what_cannot_be_exact_is_one_sentence(circuit, said):
    with pytest.raises(ValueError, match=said):
        mean_purities(circuit)
