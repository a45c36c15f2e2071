"""The classical maps against scipy, torch's own parametrizations and plain products, entry by entry."""

from math import inf

import numpy as np
import pytest
import torch
from bounds import close, rounding
from scipy.linalg import expm
from torch.nn.utils.parametrizations import orthogonal
from torch.utils._python_dispatch import TorchDispatchMode

from qcircuit_peft.frames import FRAMES
from qcircuit_peft.frames.lie import neumann_series, truncation_error
from qcircuit_peft.frames.lower import MAPS

ALWAYS = [name for name in MAPS if name not in ("exponential", "neumann")]
SHAPES = ((1, 1, 1), (2, 1, 1), (7, 3, 3), (7, 5, 2), (12, 12, 12), (12, 12, 1), (9, 4, 3))  # n, k, intrinsic rank


def lower(parameters, n: int, rank: int) -> np.ndarray:
    """B as an (n, n) matrix: its first columns below the diagonal, one after the other."""
    b, values = np.zeros((n, n)), iter(np.asarray(parameters))
    for column in range(rank):
        for row in range(column + 1, n):
            b[row, column] = next(values)
    assert next(values, None) is None
    return b


def rotations(b: np.ndarray, rank: int) -> np.ndarray:
    """G_1 ... G_rank, each the product of its plane rotations; the one with the longest stride acts first."""
    n, whole = len(b), np.eye(len(b))
    for j in range(rank):
        tree, angles = np.eye(n), iter(b[j + 1 :, j])
        for stride in (64, 32, 16, 8, 4, 2, 1):
            for row in range(j, n - stride, 2 * stride):
                g, t, pair = np.eye(n), next(angles), [row, row + stride]
                g[np.ix_(pair, pair)] = [[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]]
                tree = g @ tree
        whole = whole @ tree
    return whole


def theirs(name: str, b: np.ndarray, rank: int) -> np.ndarray:
    """The whole orthogonal matrix, by other people's code where there is any."""
    skew, one = b - b.T, np.eye(len(b))
    if name in ("taylor", "exponential"):
        return expm(skew)
    if name == "givens":
        return rotations(b, rank)
    if name == "neumann":
        return (one + skew / 2) @ sum(np.linalg.matrix_power(skew / 2, p) for p in range(33))
    layer = torch.nn.Linear(len(b), len(b), bias=False, dtype=torch.float64)
    orthogonal(layer, orthogonal_map=name, use_trivialization=False)
    layer.parametrizations.weight.original.data = torch.tensor(b) + torch.eye(len(b), dtype=torch.float64)
    signs = np.where(np.arange(len(b)) < rank, 1, -1) if name == "householder" else 1  # it reflects along the rest too
    return layer.weight.detach().numpy() * signs


@pytest.mark.parametrize(("n", "k", "rank"), SHAPES)
@pytest.mark.parametrize("name", MAPS)
def test_maps_are_those_of_other_libraries(name: str, n: int, k: int, rank: int) -> None:
    frame = FRAMES[name].spec(n, k, intrinsic_rank=rank)
    values = frame.initial().double()
    wanted = torch.tensor(theirs(name, lower(values, n, rank), rank))
    norm = np.abs(lower(values, n, rank)).sum()
    operations = n * (32 if name == "neumann" else 1 + norm)  # as many as the series has terms, or the norm radians
    if name == "exponential" and norm < 0.06:  # torch 2.13 has a polynomial there whose fifth term is off by 8.1e-4
        operations += 1e-3 * norm**5 / rounding(torch.float64, 1)
    close(frame.columns(values), wanted[:, :k], operations, size=1)
    x = torch.randn(3, n, 5, dtype=torch.float64)
    close(frame.apply(values, x), wanted @ x, operations)
    rows = torch.stack([values, -values, 0 * values])
    batch = frame.columns(rows)
    close(batch[0], wanted[:, :k], operations, size=1)
    close(batch[1], frame.columns(-values), operations, size=1)
    close(batch[2].abs(), torch.eye(n, k), operations, dtype=torch.float64)


@pytest.mark.parametrize("spread", [1e-3, 1e3, 1e6])
@pytest.mark.parametrize(("n", "k", "rank"), [(64, 8, 8), (768, 8, 3), (48, 48, 48), (2048, 4, 4)])
@pytest.mark.parametrize("name", ALWAYS)
def test_columns_are_orthonormal_whatever_the_parameters(name: str, n: int, k: int, rank: int, spread: float) -> None:
    frame = FRAMES[name].spec(n, k, intrinsic_rank=rank)
    wide = spread * torch.randn(frame.n_parameters)
    wide[: n // 2] *= 1e-4  # columns of very different lengths
    _, row = torch.triu_indices(rank, n, 1)
    near = spread * torch.cos(row) + torch.randn(frame.n_parameters)  # nearly parallel ones
    for values in (wide, near):
        for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-11 * max(1, spread / 100))):
            u = frame.columns(values.to(dtype)).double()
            assert u.shape == (n, k) and (u.mT @ u - torch.eye(k)).abs().max() <= tolerance


@pytest.mark.parametrize(("name", "order"), [("taylor", 18), ("taylor", 25), ("neumann", 71), ("neumann", 32)])
def test_a_series_is_as_orthogonal_as_its_radius_says(name: str, order: int) -> None:
    frame = FRAMES[name].spec(96, 6, order=order)
    for part in (1.0, 0.9):
        values = frame.initial(generator=torch.Generator().manual_seed(0)).double()
        a = lower(values, 96, 6)
        factor = part * frame.radius / np.linalg.norm(a - a.T, 2)
        u = frame.apply(factor * values, torch.eye(96, dtype=torch.float64))
        found = torch.linalg.matrix_norm(u.mT @ u - torch.eye(96), 2).item()
        assert found == pytest.approx(
            truncation_error(MAPS[name].series.value, order, part * frame.radius),
            rel=1e-3,
            abs=rounding(torch.float64, 96),
        )
        assert found <= 1.001e-6 if part == 1 else found < 4e-7
    start = frame.initial()
    u = frame.columns(start).double()
    assert (u.mT @ u - torch.eye(6)).abs().max() <= 1e-6


@pytest.mark.parametrize(("n", "rank"), [(9, 9), (9, 3), (5, 4), (3, 1)])
def test_the_norm_of_a(n: int, rank: int) -> None:
    frame = FRAMES["neumann"].spec(n, n, intrinsic_rank=rank)
    values = torch.randn(frame.n_parameters, dtype=torch.float64)
    b = lower(values, n, rank)
    assert frame.norm(values) == pytest.approx(np.linalg.norm(b - b.T, 2), rel=rounding(torch.float64, n**2))


@pytest.mark.parametrize(("order", "norm"), [(4, 1.0), (5, 1.0), (8, 1.6), (9, 1.6)])
def test_the_error_of_neumann_has_a_closed_form(order: int, norm: float) -> None:
    z = norm / 2
    wanted = z ** (2 * order + 2) + (2 * z ** (order + 1) if order % 2 else 0)
    assert truncation_error(neumann_series, order, norm) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("name", MAPS)
def test_parameters_are_counted_and_none_is_idle(name: str) -> None:
    for n, k, rank in ((768, 8, 8), (768, 8, 2), (5, 5, 5)):
        assert FRAMES[name].n_parameters(n, k, intrinsic_rank=rank) == sum(n - j for j in range(1, rank + 1))
    n, k = 9, 4
    frame = FRAMES[name].spec(n, k)
    jacobian = torch.func.jacrev(frame.columns)(frame.initial().double()).flatten(0, 1)
    assert torch.linalg.matrix_rank(jacobian) == frame.n_parameters == n * k - k * (k + 1) // 2  # all of the manifold


@pytest.mark.parametrize("name", MAPS)
def test_frames_of_a_family_are_beginnings_of_each_other(name: str) -> None:
    one, two = (FRAMES[name].spec(20, k, intrinsic_rank=3) for k in (3, 7))
    assert one.family == two.family == one and len({one, two}) == 2
    assert FRAMES[name].spec(20, 3).family == one and FRAMES[name].spec(20, 4).family != one
    values = torch.randn(2, one.n_parameters) / 10
    close(one.columns(values), two.columns(values)[..., :3], 20, size=1)
    assert not list(one.circuits())


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own, in jvp
@pytest.mark.parametrize("name", MAPS)
def test_derivatives(name: str) -> None:
    frame = FRAMES[name].spec(4, 3, intrinsic_rank=2)
    values = torch.stack([frame.initial(), frame.initial()]).double().requires_grad_()
    assert torch.autograd.gradcheck(frame.columns, values)
    assert torch.autograd.gradgradcheck(lambda row: frame.columns(row)[:, 1:], values[0])
    single = torch.func.vmap(torch.func.grad(lambda v: frame.columns(v)[0, 0]))(values.detach())
    (wanted,) = torch.autograd.grad(frame.columns(values)[:, 0, 0].sum(), values)
    close(single, wanted, 4**3)
    _, tangent = torch.func.jvp(frame.columns, (values.detach(),), (torch.ones_like(values),))
    jacobian = torch.func.jacrev(lambda v: frame.columns(v))(values.detach()[0])
    close(tangent[0], jacobian.sum(-1), 4**3)


@pytest.mark.parametrize(("name", "rank"), [("taylor", 4), ("cayley", 4), ("neumann", 4), ("householder", 2)])
def test_a_low_intrinsic_rank_moves_few_dimensions(name: str, rank: int) -> None:
    frame = FRAMES[name].spec(40, 10, intrinsic_rank=2)
    moved = frame.columns(frame.initial().double()) - torch.eye(40, 10)
    assert torch.linalg.matrix_rank(moved) == rank


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that an operation inside the block returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, tuple | list) else [found]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return found


@pytest.mark.parametrize(("k", "rank"), [(8, 8), (8, 2)])
@pytest.mark.parametrize("name", [name for name in MAPS if name != "exponential"])
def test_nothing_is_larger_than_the_frame(name: str, k: int, rank: int) -> None:
    frame = FRAMES[name].spec(2048, k, intrinsic_rank=rank)
    values = frame.initial().requires_grad_()
    with Largest() as largest:
        frame.columns(values).square().sum().backward()
    assert largest.numel <= 2 * 2048 * k


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize(("n", "k"), [(64, 8), (384, 1), (384, 24)])
def test_a_uniform_start_is_far_from_unit_columns(name: str, n: int, k: int) -> None:
    """The first K rows have about K/N of a column's weight in a random frame, all of it in one of unit columns."""
    frame = FRAMES[name].spec(n, k)
    corners = torch.stack([frame.columns(frame.initial())[:k].square().sum() / k for _ in range(4)])
    assert corners.mean() < (0.45 if name == "neumann" else 0.05 + 1.5 * k / n)


@pytest.mark.parametrize("name", [*ALWAYS, "neumann"])
def test_frames_stay_exact_whatever_precision_torch_multiplies_in(name: str) -> None:
    frame, before = FRAMES[name](1024, 32), torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            u = frame()
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert u.dtype == torch.float32 and (u.double().mT @ u.double() - torch.eye(32)).abs().max() <= 1e-6


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("taylor", {"intrinsic_rank": 9}, "taylor: intrinsic_rank is a whole number 1 to 8, got 9"),
        ("cayley", {"intrinsic_rank": 0}, "cayley: intrinsic_rank is a whole number 1 to 8, got 0"),
        ("givens", {"intrinsic_rank": True}, "givens: intrinsic_rank is a whole number 1 to 8, got True"),
        ("taylor", {"order": 0}, "taylor: order is a whole number 1 to 256, got 0"),
        ("taylor", {"order": 6}, r"taylor: a series of order 6 leaves .* above 1e-06 .* the least order is 1\d"),
        ("neumann", {"order": 5}, r"neumann: a series of order 5 .*, where A starts; the least order is 3\d"),
        ("cayley", {"order": 5}, "unknown option 'order'"),
    ],
)
def test_bad_options_are_refused(name: str, options: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        FRAMES[name].spec(64, 8, **options)


def test_a_start_that_a_series_does_not_reach_is_refused() -> None:
    frame = FRAMES["neumann"].spec(64, 8)
    with pytest.raises(ValueError, match=r"init='normal' is not for a truncated series, .* up to a norm of 1"):
        frame.initial("normal")
    assert 1.6 < frame.radius < 2 and FRAMES["taylor"].spec(64, 8).radius == inf
    assert FRAMES["taylor"].spec(64, 8).initial("normal").std() > 0.9
    least = FRAMES["taylor"].spec(64, 8, order=16)
    assert 2.2 < least.radius < 4
