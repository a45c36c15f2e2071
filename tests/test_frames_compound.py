"""Compound frames against minors by numpy, entry by entry, and against the states of their circuits."""

from itertools import combinations
from math import comb, gcd

import numpy as np
import pytest
import torch
from bounds import close, gates, rounding
from peft import get_peft_model
from reference import matrix
from torch import nn

from qcircuit_peft import QCircuitConfig
from qcircuit_peft.analysis import adapter_resources, evaluate_under_noise
from qcircuit_peft.analysis.report import entanglement_report
from qcircuit_peft.frames import FRAMES
from qcircuit_peft.frames.compound import CompoundFrame, compound, rotation

# n, orders, layers: several orders, rows left over, none left over, plain rotations, an odd count of matrices
CASES = [
    (10, None, 1),
    (7, 1, 1),
    (24, None, 1),
    (23, 2, 2),
    (22, [1, 3], 1),
    (16, [2, 1, 3], 1),
    (15, 4, 1),
    (20, 3, 3),
]


def drawn(frame: CompoundFrame) -> torch.Tensor:
    return 6.3 * torch.rand(frame.n_parameters, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def single(circuit, angles) -> np.ndarray:
    """What a circuit does to the states with a single one, by the reference of the tests."""
    ones = [1 << (len(circuit.dims) - 1 - wire) for wire in range(len(circuit.dims))]
    return matrix(circuit, angles)[np.ix_(ones, ones)].real


def minors(r: np.ndarray, k: int) -> np.ndarray:
    sets = list(combinations(range(len(r)), k))
    return np.array([[np.linalg.det(r[np.ix_(rows, columns)]) for columns in sets] for rows in sets])


def whole(frame: CompoundFrame, angles: torch.Tensor) -> np.ndarray:
    """The orthogonal matrix from minors, mirrored every second time, and the columns that it is read at."""
    product = np.eye(frame.n)
    for index, (name, circuit, where) in enumerate(frame.circuits()):
        assert name == str(index)
        r, one, at = single(circuit, angles[where]), np.eye(frame.n), 0
        for k in frame.orders:
            size = comb(len(r), k)
            one[at : at + size, at : at + size] = minors(r, k)
            at += size
        product = (one[::-1, ::-1] if index % 2 else one) @ product
    stride = next(q for q in range(round(0.618 * frame.n), 2 * frame.n) if gcd(q, frame.n) == 1)
    return product[:, [column * stride % frame.n for column in range(frame.n)]]


@pytest.mark.parametrize(("n", "orders", "layers"), CASES)
def test_a_frame_is_made_of_minors_of_what_its_circuits_do_to_a_single_one(n, orders, layers) -> None:
    frame = CompoundFrame(n, n, orders, layers)
    angles = drawn(frame)
    used = sum(where.stop - where.start for _, _, where in frame.circuits())
    assert used == frame.n_parameters == sum(where.stop - where.start for where in frame.groups)
    expected = torch.from_numpy(whole(frame, angles))
    operations = sum(gates(circuit) for _, circuit, _ in frame.circuits()) * 6  # up to 6 rows in a minor
    close(frame.columns(angles), expected, operations, size=1)
    for k in (1, 2, n - 1):
        close(CompoundFrame(n, k, orders, layers).columns(angles), expected[:, :k], operations, size=1)
        assert CompoundFrame(n, k, orders, layers).family == frame.family
    x = torch.randn(2, n, 3, dtype=torch.float64)
    close(frame.apply(angles, x), expected @ x, operations * n**0.5)
    both = torch.stack([angles, 0 * angles])
    close(frame.columns(both)[0], expected, operations, size=1)
    close(frame.apply(both, x)[1], frame.columns(0 * angles) @ x[1], operations)
    assert torch.equal(frame.columns(0 * angles).sort(0).values[:-1], torch.zeros(n - 1, n, dtype=torch.float64))


def test_of_one_matrix_the_frame_is_a_block_of_its_circuit() -> None:
    frame = CompoundFrame(20, 20, 3)
    [(name, circuit, _)] = frame.circuits()
    assert (frame.modes, frame.reached, frame.n_parameters, name) == (6, 20, 15, "0")
    angles = drawn(frame)
    states = [sum(1 << (5 - wire) for wire in chosen) for chosen in combinations(range(6), 3)]
    block = torch.from_numpy(matrix(circuit, angles)[np.ix_(states, states)].real)
    close(frame.columns(angles), block[:, [column * 13 % 20 for column in range(20)]], 6 * gates(circuit), size=1)


@pytest.mark.parametrize("k", range(1, 7))
def test_compound_of_any_matrix_is_multiplicative(k: int) -> None:
    """Binet and Cauchy: of rotations, of singular and of rectangular products alike; the 6th is the determinant."""
    a, b = torch.randn(2, 6, 6, dtype=torch.float64)
    a[:, 0] = a[:, 1]
    one = torch.eye(comb(6, k), dtype=torch.float64)
    size = float(torch.linalg.matrix_norm(a, 2) * torch.linalg.matrix_norm(b, 2)) ** k
    close(compound(a, one, k), torch.from_numpy(minors(a.numpy(), k)), 720, size=size)
    close(compound(a, compound(b, one, k), k), compound(a @ b, one, k), 720, size=size)


def test_gradients_are_right_where_minors_vanish() -> None:
    for angles in (torch.zeros(2, 6).double(), torch.randn(2, 6).double()):
        assert torch.autograd.gradcheck(CompoundFrame(7, 3).columns, angles.flatten().requires_grad_())
    weights = torch.randn(7, 3).double()
    angles = torch.randn(12).double().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda t: (CompoundFrame(7, 3).columns(t) * weights).sum(), angles)


@pytest.mark.parametrize("modes", [2, 5, 9])
def test_a_start_is_haar_random(modes: int) -> None:
    """The squares of the entries of every R have the mean and the variance of those of Haar-random ones."""
    frame = CompoundFrame(modes, 1, 1, layers=4000)
    r = rotation(frame.initial(generator=torch.Generator().manual_seed(0)).double().unflatten(0, (4000, -1)), modes)
    squares = r.square()
    wanted = 2 * (modes - 1) / (modes**2 * (modes + 2))  # of the square of a coordinate of a random unit vector
    fourth = squares - 1 / modes
    for found, mean, spread in ((squares, 1 / modes, wanted), (fourth.square(), wanted, fourth.square().var(0).max())):
        assert (found.mean(0) - mean).abs().max() < 5 * float(spread / 4000) ** 0.5


@pytest.mark.parametrize("n", [12, 97, 768])
def test_every_row_is_reached_and_hardly_an_angle_is_idle(n: int) -> None:
    frame = CompoundFrame(n, 8)
    angles = frame.initial().double().requires_grad_()
    u = frame.columns(angles)
    assert (u.detach().abs().amax(1) > 100 * rounding(torch.float64, n)).all()
    (u * torch.randn(n, 8)).sum().backward()
    assert angles.grad is not None and (angles.grad.abs() > 1e-9).double().mean() > 0.85


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"orders": 0}, "orders has whole numbers 1 to 6, got 0"),
        ({"orders": True}, "orders has whole numbers 1 to 6, got True"),
        ({"orders": []}, "orders is "),
        ({"orders": "3"}, "orders is "),
        ({"orders": [2, 2]}, r"orders has every order once, got \[2, 2\]"),
        ({"orders": [4], "n": 31}, r"orders \[4\] reach 15 of 31 rows, less than half; take lower ones"),
        ({"orders": [3, 1], "n": 3, "k": 2}, r"an order is at most the 2 modes, got \[3, 1\] at width 3"),
        ({"orders": [5, 6], "n": 5}, r"orders \[5, 6\] reach 1 of 5 rows, less than half; take lower ones"),
        ({"layers": -1}, "layers is a whole number 0 to"),
        ({"k": 25}, "k is a whole number 1 to 24, got 25"),
        ({"orders": 1, "n": 8192}, "at most 16777216 angles, but a compound .* takes 33550336"),
    ],
)
def test_bad_compounds_are_refused(change: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        FRAMES["compound"].spec(**({"n": 24, "k": 4} | change))


def test_its_circuits_are_no_columns_that_hardware_could_estimate() -> None:
    """At a width of one compound matrix there is one circuit, whose first columns are none of the frame."""
    net, config = nn.Sequential(nn.Linear(20, 20)), QCircuitConfig(r=2, frame="compound", target_modules=["0"])
    model = get_peft_model(net, config)
    for measure in (evaluate_under_noise, adapter_resources):
        with pytest.raises(ValueError, match="of width 20 is made of other columns of one"):
            measure(model)
    assert {row.dims for row in entanglement_report(model) if row.part == "u"} == {(5, 2, 2)}
