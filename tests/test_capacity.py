"""Haar references, capacity against L, and gradient variance, each against closed forms or a second way."""

import numpy as np
import pytest
import quimb
import torch

from qcircuit_peft import load
from qcircuit_peft.analysis import METRICS, capacity, decay, gradient_variance, haar_states, haar_value, saturation
from qcircuit_peft.analysis.gradients import GradientVariance
from qcircuit_peft.analysis.haar import haar_entropy
from qcircuit_peft.analysis.plots import capacity_figure, gradient_figure


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def falling(cost, scale=3.0):
    return [GradientVariance(q, 1, cost, scale * 2 ** (-1.5 * q), 0, 0, 1) for q in range(2, 7)]


PHASES_ONLY = {"name": "phases", "layer": [{"gate": "RZ", "on": "each"}]}  # of |0...0>: no probability depends on them


@pytest.mark.parametrize("qubits", [2, 4, 6, 8])
def test_haar_values_have_closed_forms(qubits):
    n = 2**qubits
    assert haar_value("meyer_wallach", qubits, "real") == pytest.approx((n - 2) / (n + 2), abs=1e-12)
    assert haar_value("meyer_wallach", qubits, "complex") == pytest.approx((n - 2) / (n + 1), abs=1e-12)
    if qubits > 2:
        assert haar_value("scott_2", qubits, "real") == pytest.approx((n - 4) / (n + 2), abs=1e-12)
        assert haar_value("scott_2", qubits, "complex") == pytest.approx(1 - 5 / (n + 1), abs=1e-12)
    half = 2 ** (qubits // 2)
    assert haar_value("purity", qubits, "complex") == pytest.approx(2 * half / (n + 1), abs=1e-12)


def test_complex_entropy_is_pages_as_in_quimb():
    for a, b in ((2, 4), (4, 16), (3, 5)):
        assert haar_entropy(a, b, "complex") == pytest.approx(quimb.page_entropy(a, a * b), abs=1e-9)


# Real states, one qubit against the rest: the integral of the entropy over the density |1 - 2x| (x (1-x))^((n-3)/2).
@pytest.mark.parametrize(
    "qubits, nats", [(2, 0.277182), (3, 0.464506), (4, 0.573454), (6, 0.662225), (8, 0.685355), (10, 0.691195)]
)
def test_real_entropy_of_one_qubit(qubits, nats):
    assert haar_entropy(2, 2 ** (qubits - 1), "real") * np.log(2) == pytest.approx(nats, abs=6e-7)


@pytest.mark.parametrize("dims", [(3, 2, 2), (2, 2, 2, 2), (2, 2, 2, 2, 2, 2)])
@pytest.mark.parametrize("kind", ["real", "complex"])
@pytest.mark.parametrize("name", ["entropy", "meyer_wallach", "purity"])
def test_haar_values_by_monte_carlo(dims, kind, name):
    found = METRICS[name].value(haar_states(4000, int(np.prod(dims)), kind, seeded()), dims=dims)
    error = float(found.std()) / 4000**0.5
    assert haar_value(name, dims, kind) == pytest.approx(float(found.mean()), abs=4 * error)


def test_a_sampled_haar_value_has_an_error_below_one_percent():
    """The negativity of two real qubits is uniform between 0 and 1/2, since (ad - bc) of a random point of S^3 is."""
    found = np.array([haar_value("negativity", 2, "real", 2, seeded(k)) for k in range(30)]) / 0.25
    assert np.sqrt(np.mean((found - 1) ** 2)) < 0.0125
    assert capacity("tree", 2, 1, "negativity", 10, seeded())[0].haar == pytest.approx(0.25, rel=0.04)


def test_sampled_and_exact_capacity_agree():
    for ansatz in ("simplified_two_design", "sim13"):
        for metric in ("meyer_wallach", "scott_2", "purity"):
            sampled = capacity(ansatz, 4, [0, 1, 3], metric, 1000, seeded())
            exact = capacity(ansatz, 4, [0, 1, 3], metric, exact=True)
            for row, true in zip(sampled, exact, strict=True):
                assert row.low - 1e-12 <= row.mean <= row.high + 1e-12
                assert row.mean == pytest.approx(true.mean, abs=4 * (row.high - row.low) / 3.92 + 1e-12)
                assert (row.haar, row.layers, row.ensemble) == (true.haar, true.layers, true.ensemble)
                assert (true.std, true.samples, row.samples) == (None, 0, 1000)


def test_the_interval_is_that_of_the_mean():
    rows = [capacity("simplified_two_design", 3, 1, samples=400, generator=seeded(k))[0] for k in range(40)]
    truth = capacity("simplified_two_design", 3, 1, exact=True)[0].mean
    inside = sum(row.low <= truth <= row.high for row in rows)
    assert 33 <= inside <= 40  # 38 of 40 are expected
    width = np.mean([row.high - row.low for row in rows])
    assert width == pytest.approx(2 * 1.96 * np.mean([row.std for row in rows]) / 400**0.5, rel=0.1)


def test_saturation_is_the_first_depth_near_random_states():
    rows = capacity("simplified_two_design", 4, range(13), exact=True)
    assert saturation(rows) == next(row.layers for row in rows if row.mean >= 0.95 * row.haar)
    assert saturation(rows[:4]) is None
    falling = capacity("simplified_two_design", 4, range(13), "purity", exact=True)
    assert saturation(falling, 0.9) == next(row.layers for row in falling if row.mean <= 1.1 * row.haar)


def test_another_ensemble_is_allowed_and_said():
    with pytest.warns(UserWarning, match="ring_ry_cz is a real circuit, but is compared with random complex states"):
        rows = capacity("ring_ry_cz", 3, 1, exact=True, ensemble="complex")
    assert rows[0].haar == pytest.approx(6 / 9) and rows[0].ensemble == "complex"
    assert capacity("sim14", 3, 0, exact=True)[0].ensemble == "complex"  # the family's kind, also without layers


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: capacity("ring_ry_cz", 3, 1, "entropy", exact=True), "exact mean: meyer_wallach, scott_2, purity"),
        (lambda: capacity("ring_ry_cz", 3, 1, "meyer"), "'meyer' is unknown; take one of meyer_wallach"),
        (lambda: capacity("ring_ry_cz", 3, 1, "entropy_profile"), "is not one number for each state"),
        (lambda: capacity("ring_ry_cz", 3, 1, samples=1), "samples is a whole number 2 to 1000000, got 1"),
        (lambda: capacity("ring_ry_cz", 3, 1, ensemble="haar"), "one of real, complex, got 'haar'"),
        (lambda: capacity("ring_ry_cz", 1, 1), "Q is for a register of two or more wires, got 1"),
        (lambda: haar_value("negativity", 4, "real", samples=0), "samples is a whole number 2 to 1000000, got 0"),
        (lambda: haar_value("negativity", 4, "real", samples=-1), "samples is a whole number 2 to 1000000, got -1"),
        (lambda: haar_value("meyer_wallach", (1, 2), "real"), "wire dimensions has whole numbers >= 2, got 1"),
        (lambda: haar_value("purity", -1, "real"), "qubits is a whole number >= 1, got -1"),
        (lambda: haar_value("negativity", 4, "real"), "give the number of samples"),
        (lambda: saturation([], 0), "above 0 and at most 1, got 0"),
        (lambda: gradient_variance("tree", 2, 1, "middle"), "one of global, local, got 'middle'"),
        (lambda: gradient_variance("sim01", 2, 0), "a circuit with angles"),
        (lambda: decay(gradient_variance("tree", [2, 3], 1, samples=10)), "three or more widths"),
        (lambda: decay(falling("global") + falling("local")), "widths of one cost at one number of layers"),
        (lambda: decay(falling("global", 0)), "variances above rounding noise, got 0"),
        (lambda: decay(falling("global", 1e-31)), "variances above rounding noise, got .*e-3[0-9]"),
        (
            lambda: decay(gradient_variance(PHASES_ONLY, [2, 3, 4], 1, samples=10)),
            "variances above rounding noise",
        ),
    ],
)
def test_bad_input_is_one_sentence(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_gradient_variance_of_one_rotation_on_each_wire():
    """C = 1 - prod cos^2(t_k / 2): the variance of dC/dt_1 is (1/8) (3/8)^(q-1), that of the local cost 1 / (8 q^2)."""
    for q in (2, 3):
        globals_ = gradient_variance("simplified_two_design", q, 0, "global", 20000, seeded())[0]
        locals_ = gradient_variance("simplified_two_design", q, 0, "local", 20000, seeded())[0]
        for row, wanted in ((globals_, (3 / 8) ** (q - 1) / 8), (locals_, 1 / (8 * q * q))):
            assert row.variance == pytest.approx(wanted, abs=4 * (row.high - row.low) / 3.92)


def test_an_iterator_of_widths_serves_every_depth():
    rows = gradient_variance("tree", iter([2, 3]), iter([1, 2]), samples=10)
    assert [(row.layers, row.qubits) for row in rows] == [(1, 2), (1, 3), (2, 2), (2, 3)]


def test_decay_finds_the_exponent_and_a_global_cost_has_a_barren_plateau():
    found = decay(falling("global"))
    assert (found.rate, found.low, found.high) == pytest.approx((1.5, 1.5, 1.5))
    both = {
        cost: decay(gradient_variance("simplified_two_design", range(2, 7), 1, cost, 1000, seeded()))
        for cost in ("global", "local")
    }
    assert both["global"].low > 1.2 and both["local"].rate < both["global"].low


def test_figures_have_axes_with_units(tmp_path):
    rows = capacity("simplified_two_design", 3, [1, 2], "entropy", 50, seeded())
    figure = capacity_figure({"two-design": rows}, "entropy")
    assert figure.axes[0].get_ylabel() == "mean entropy (bits)" and figure.axes[0].get_xlabel() == "layers L"
    figure.savefig(tmp_path / "a.png")
    figure = gradient_figure(gradient_variance("tree", [2, 3], 1, samples=20))
    assert "1/rad" in figure.axes[0].get_ylabel() and figure.axes[0].get_yscale() == "log"


def test_a_generator_makes_it_repeatable():
    first, second, other = (capacity("tree", 3, 1, "entropy", 20, seeded(k)) for k in (1, 1, 2))
    assert first == second != other
    assert load("tree").name == "tree"
