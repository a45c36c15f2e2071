"""Every factorization: nothing at the start, applied as built, equal to networks of numpy and quimb, and counts."""

import copy
import pickle
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import peft
import pytest
import torch
from bounds import close
from torch import Generator, Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from qcircuit_peft import Ansatz, Step, load, parameter_count
from qcircuit_peft.ansatz import names
from qcircuit_peft.factorizations import FACTORIZATIONS, axes
from qcircuit_peft.factorizations.parts import initial, make, sizes
from qcircuit_peft.frames import FRAMES, INITS
from qcircuit_peft.frames.circuit import CircuitFrame

NETWORKS = {"cp", "tucker", "tensor_train", "tensor_ring", "std", "shared_core"}
COMPLEX = {name for name in names() if not load(name).circuit(qubits=3, layers=1).is_real}
SHAPES = [(24, 40), (7, 24), (16, 6), (33, 17)]
each = pytest.mark.parametrize("name", FACTORIZATIONS)
each_network = pytest.mark.parametrize("name", sorted(NETWORKS))


MAPS = {"circuit": FRAMES["circuit"].spec, "taylor": FRAMES["taylor"].spec}
each_frame = pytest.mark.parametrize("frame", MAPS)


def factorization(name: str, n_out: int, n_in: int, r: int = 4, frame: str = "taylor", **options: Any) -> Any:
    return FACTORIZATIONS[name](n_out, n_in, r, MAPS[frame], 3.0, **options)


def count(factors: Any) -> int:
    return sum(sizes(factors).values())


def trained(factors: Any) -> dict[str, Tensor]:
    """Parameters that are nowhere zero."""
    return {part: torch.randn(size) for part, size in sizes(factors).items()}


def weight_and_base(factors: Any) -> tuple[Tensor, Any]:
    weight = torch.randn(factors.n_out, factors.n_in)
    transposed = weight.mT
    return weight, lambda z: z @ transposed


@each_frame
@each
@pytest.mark.parametrize(("n_out", "n_in"), SHAPES)
def test_nothing_changes_at_the_start_bit_for_bit(name: str, n_out: int, n_in: int, frame: str) -> None:
    factors = factorization(name, n_out, n_in, frame=frame)
    weight, base = weight_and_base(factors)
    x = torch.randn(3, n_in)
    for init in INITS:
        start = initial(factors, init, {part: Generator().manual_seed(5) for part in sizes(factors)})
        assert {part: value.numel() for part, value in start.items()} == sizes(factors)
        made = make(factors, start)
        assert torch.equal(base(x) + factors.forward(x, made, base), base(x))
        assert torch.equal(weight + factors.delta(made, weight), weight)
    again = initial(factors, "uniform", {part: Generator().manual_seed(5) for part in sizes(factors)})
    first = initial(factors, "uniform", {part: Generator().manual_seed(5) for part in sizes(factors)})
    assert all(torch.equal(again[part], first[part]) for part in first)


@each_frame
@each
@pytest.mark.parametrize(("n_out", "n_in"), SHAPES)
def test_what_is_applied_is_what_is_merged(name: str, n_out: int, n_in: int, frame: str) -> None:
    factors = factorization(name, n_out, n_in, frame=frame)
    weight, base = weight_and_base(factors)
    made = make(factors, trained(factors))
    delta = factors.delta(made, weight)
    assert delta.shape == (n_out, n_in) and delta.abs().max() > 1e-3
    x = torch.randn(2, 3, n_in)
    wanted = x @ delta.mT
    largest = max(wanted.abs().max(), base(x).abs().max())
    close(factors.forward(x, made, base), wanted, n_in**0.5 + 4 * factors.rank if factors.rank else n_in, largest)
    assert torch.equal(factors.forward(x[0, 0], made, base).isfinite(), torch.ones(n_out, dtype=torch.bool))
    if factors.rank is None:
        with pytest.raises(ValueError, match="full rank"):
            factors.lora(made)
        return
    a, b = factors.lora(made)
    assert (a.shape, b.shape) == ((factors.rank, n_in), (n_out, factors.rank))
    close(b @ a, delta, 4 * factors.rank)
    values = torch.linalg.svdvals(delta)
    reached = (values > 1e-5 * values[0]).sum()
    assert reached == factors.rank == 4 if frame == "taylor" else reached <= factors.rank == 4


@each
def test_every_part_is_trained(name: str) -> None:
    """The gradient reaches something at the start, and everything one step later."""
    factors = factorization(name, 24, 40)
    _, base = weight_and_base(factors)
    x, target = torch.randn(16, 40), torch.randn(16, 24)
    values = {part: nn.Parameter(value) for part, value in initial(factors, "uniform", None).items()}
    optimizer = torch.optim.Adam(values.values(), lr=0.05)
    losses = []
    for step in range(20):
        optimizer.zero_grad()
        loss = (factors.forward(x, make(factors, values), base) - target).square().mean()
        loss.backward()
        losses.append(loss.item())
        assert any(value.grad.any() for value in values.values())
        if step:
            assert all(value.grad.abs().max() > 1e-7 for value in values.values())
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]


class Largest(TorchDispatchMode):
    """The number of entries of the largest tensor that any operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.found = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor):
                self.found = max(self.found, tensor.numel())
        return out


@pytest.mark.parametrize(("name", "options"), [*((name, {}) for name in FACTORIZATIONS), ("rotation", {"side": "in"})])
def test_forward_never_builds_the_update(name: str, options: dict[str, Any]) -> None:
    n, rows, r = 1024, 4, 8
    factors = factorization(name, n, n, r, "circuit", **options)
    weight, base = weight_and_base(factors)
    made = make(factors, trained(factors))
    with Largest() as largest:
        factors.forward(torch.randn(rows, n), made, base)
    allowed = max(2 * r * n, count(factors))  # thin matrices, and the parameters themselves
    print(name, largest.found)
    assert rows * n <= largest.found <= allowed < n * n / 16
    with Largest() as largest:
        factors.delta(made, weight)
    assert largest.found >= n * n


EQUATIONS = {  # axes a, b of the outputs and c, d of the inputs
    "cp": ("ak,bk,ck,dk,k->abcd", "u1 u2 v1 v2 lambda"),
    "tucker": ("ai,bj,ck,dl,ijkl->abcd", "u1 u2 v1 v2 core"),
    "tensor_train": ("ap,pbk,cq,qdk,k->abcd", "u1 u2 v1 v2 lambda"),
    "std": ("ap,pbk,cq,qdk,k,p,q->abcd", "u1 u2 v1 v2 lambda bond_u1 bond_v1"),
    "tensor_ring": ("zap,pbk,zcq,qdk,k,p,q,z->abcd", "u1 u2 v1 v2 lambda bond_u1 bond_v1 bond"),
}


@pytest.mark.parametrize("name", EQUATIONS)
def test_networks_are_the_sums_they_stand_for(name: str) -> None:
    """Entry by entry in numpy, with axes of different sizes: 28 = 4 x 7 by 30 = 6 x 5, r = 4."""
    factors = factorization(name, 28, 30, 4, axes=[[4, 7], [6, 5]])
    made = make(factors, trained(factors))
    equation, parts = EQUATIONS[name]
    terms = equation.partition("->")[0].split(",")
    size = dict(a=4, b=7, c=6, d=5, k=4, p=4, q=4, z=1, i=2, j=2, l=2)
    size |= {"tensor_ring": dict(k=2, p=2, q=2, z=2), "tucker": dict(k=2)}.get(name, {})
    arrays = [
        made[part].numpy().reshape([size[letter] for letter in term])
        for term, part in zip(terms, parts.split(), strict=True)
    ]
    wanted = 3.0 * np.einsum(equation, *arrays).reshape(28, 30)
    close(factors.delta(made), wanted, 4**2)


@pytest.mark.parametrize("name", ["tensor_train", "std", "tensor_ring"])
def test_chains_of_three_axes_agree_with_quimb(name: str) -> None:
    quimb = pytest.importorskip("quimb.tensor")
    sizes = {"u": (2, 3, 4), "v": (5, 2, 3)}
    factors = factorization(name, 24, 30, 4, axes=[sizes["u"], sizes["v"]])
    made = make(factors, trained(factors))
    tensors, loop = [], made["bond"].numel() if "bond" in made else 1
    for side, axes_ in sizes.items():
        for m, n in enumerate(axes_, 1):
            core = made[f"{side}{m}"].numpy()
            left = "loop" + side if m == 1 else f"{side}{m - 1}."
            right = f"{side}{m}" if m < 3 else "centre" + side
            tensors.append(quimb.Tensor(core.reshape(-1, n, core.shape[1]), (left, f"{side}.axis{m}", right)))
            if m < 3:
                diagonal = made.get(f"bond_{side}{m}", torch.ones(core.shape[1]))
                tensors.append(quimb.Tensor(np.diag(diagonal.numpy()), (f"{side}{m}", f"{side}{m}.")))
    tensors.append(quimb.Tensor(np.diag(made["lambda"].numpy()), ("centreu", "centrev")))
    tensors.append(quimb.Tensor(np.diag(made.get("bond", torch.ones(loop)).numpy()), ("loopu", "loopv")))
    dense = quimb.TensorNetwork(tensors).to_dense(*([f"{s}.axis{m}" for m in (1, 2, 3)] for s in "uv"))
    close(factors.delta(made), 3.0 * dense, 4**2)


@pytest.mark.parametrize("name", ["cp", "tensor_train", "shared_core"])
def test_the_sides_have_orthonormal_columns(name: str) -> None:
    """So that the singular values are those of the numbers where the sides meet."""
    factors = factorization(name, 24, 40, 4)
    values = trained(factors)
    made = make(factors, values)
    meet = values["core"].view(4, 4) if name == "shared_core" else torch.diag(values["lambda"])
    wanted = 3 * torch.linalg.svdvals(meet)
    close(torch.linalg.svdvals(factors.delta(made))[:4], wanted, 40**0.5 + 4)
    a, _ = factors.lora(made)
    close(a @ a.mT, torch.eye(4), 4 * 4)


def test_a_tensor_train_of_one_axis_is_the_svd() -> None:
    factors = factorization("tensor_train", 24, 40, 4, order=1)
    made = make(factors, trained(factors))
    assert list(made) == ["u", "v", "lambda"]
    close(factors.delta(made), 3 * made["u"] @ torch.diag(made["lambda"]) @ made["v"].mT, 4 + 3)


@pytest.mark.parametrize(
    ("n_out", "n_in", "axes_"), [(24, 24, (4, 3, 2)), (20, 12, (5, 2, 2)), (12, 20, (2, 2, 5)), (20, 12, (3, 2, 2))]
)
def test_quanta_is_a_product_of_gates_less_the_frozen_one(n_out: int, n_in: int, axes_: tuple[int, ...]) -> None:
    """Against whole matrices: every gate as its entries between basis states, in numpy."""
    factors = factorization("quanta", n_out, n_in, axes=list(axes_), seed=3)
    gates = torch.randn(sizes(factors)["gates"]) / 10
    width = int(np.prod(axes_))
    digits = [np.unravel_index(k, axes_) for k in range(width)]
    random = np.random.RandomState(3)
    whole = {"frozen": np.eye(width), "trained": np.eye(width)}
    start = 0
    for i, j in combinations(range(len(axes_) - 1, -1, -1), 2):
        size = axes_[i] * axes_[j]
        still = random.uniform(-1, 1, size * size) * np.sqrt(3 / size)
        moved = still + gates[start : start + size * size].numpy()
        start += size * size
        for key, entries in (("frozen", still), ("trained", moved)):
            gate = np.zeros((width, width))
            for p, row in enumerate(digits):
                for q, column in enumerate(digits):
                    if all(row[m] == column[m] for m in range(len(axes_)) if m not in (i, j)):
                        gate[p, q] = entries.reshape(axes_[i], axes_[j], axes_[i], axes_[j])[
                            row[i], row[j], column[i], column[j]
                        ]
            whole[key] = gate @ whole[key]
    wanted = 3.0 * (whole["trained"] - whole["frozen"])[:n_out, :n_in]
    found = factors.delta({"gates": gates}).numpy()
    assert found.shape == (n_out, n_in)
    rows, columns = min(n_out, width), min(n_in, width)
    products = 3.0 * max(np.abs(whole[key]).max() for key in whole)  # each gate a sum of at most 15 terms
    close(found[:rows, :columns], wanted[:rows, :columns], 15 * len(axes_), products)
    assert not found[rows:].any() and not found[:, columns:].any()


@pytest.mark.parametrize(
    ("width", "wanted"), [(768, (8, 6, 4, 4)), (24, (3, 2, 2, 2)), (97, (4, 3, 3, 3)), (50257, (15, 15, 15, 15))]
)
def test_quanta_pads_a_width_with_a_large_prime(width: int, wanted: tuple[int, ...]) -> None:
    for shape in ((width, width // 2), (width // 2, width)):
        assert factorization("quanta", *shape).axes == wanted


def test_quanta_keeps_the_digits_of_a_small_change() -> None:
    """For gates of 1e-6 the update is linear in them; a difference of two products in float32 would be noise."""
    factors = factorization("quanta", 64, 64)
    gates, x = torch.randn(sizes(factors)["gates"]) * 1e-6, torch.randn(5, 64)
    small = factors.forward(x, {"gates": gates})
    exact = factors.forward(x.double(), {"gates": gates.double()})
    close(small, exact, 2 * 64)


def test_quanta_draws_the_frozen_gates_from_its_seed() -> None:
    x = torch.randn(2, 64)
    first, same, other = (factorization("quanta", 64, 64, seed=seed) for seed in (1, 1, 2))
    gates = torch.randn(sizes(first)["gates"])
    assert torch.equal(first.forward(x, {"gates": gates}), same.forward(x, {"gates": gates}))
    assert not torch.allclose(first.forward(x, {"gates": gates}), other.forward(x, {"gates": gates}))


@each_frame
@pytest.mark.parametrize("side", ["out", "in"])
def test_a_rotation_turns_the_weight(frame: str, side: str) -> None:
    factors = factorization("rotation", 24, 40, frame=frame, side=side)
    weight, _ = weight_and_base(factors)
    delta = factors.delta(make(factors, trained(factors)), weight)
    close(torch.linalg.svdvals(weight + delta), torch.linalg.svdvals(weight), 40)
    turned, gram = weight + delta, (lambda w: w.mT @ w) if side == "out" else (lambda w: w @ w.mT)
    close(gram(turned), gram(weight), 2 * 40)
    assert not torch.allclose(turned, weight, atol=0.1)


@pytest.mark.parametrize("name", [name for name in names() if name not in COMPLEX])
def test_a_rotation_by_any_real_circuit_starts_at_the_identity(name: str) -> None:
    for n, layers in ((8, 1), (12, 2), (97, 1)):
        spec = partial(FRAMES["circuit"].spec, ansatz=name, layers=layers)
        factors = FACTORIZATIONS["rotation"](n, 5, 1, spec)
        assert torch.equal(factors.turn(torch.randn(3, n), torch.zeros(count(factors))), torch.zeros(3, n))


@pytest.mark.parametrize("name", FRAMES)
def test_a_rotation_by_any_frame_starts_at_the_identity(name: str) -> None:
    if FRAMES[name].spec(12, 12).apply is None:
        with pytest.raises(ValueError, match="rotation: the frame has to act without being built"):
            FACTORIZATIONS["rotation"](12, 5, 1, FRAMES[name].spec)
        return
    factors = FACTORIZATIONS["rotation"](12, 5, 1, FRAMES[name].spec)
    assert torch.equal(factors.turn(torch.randn(3, 12), torch.zeros(count(factors))), torch.zeros(3, 12))


def stiefel(n: int, k: int) -> int:
    return n * k - k * (k + 1) // 2


@pytest.mark.parametrize(("n", "k"), [(768, 3), (1024, 16)])
def test_the_published_table_of_counts(n: int, k: int) -> None:
    """Quantum-PEFT's poster: LoRA 2NK, AdaLoRA 2NK + K, Q_T 2NK - K^2, Q_P 2 ((2L+1) log2 N - 2L) + K."""
    model = nn.Sequential(nn.Linear(n, n, bias=False))
    assert parameter_count(peft.LoraConfig(r=k, target_modules=["0"]), model) == 2 * n * k
    adalora = peft.AdaLoraConfig(init_r=k, target_r=k, total_step=10, target_modules=["0"])
    assert parameter_count(adalora, model) == 2 * n * k + k + 1  # PEFT counts the number of ranks in
    for name in ("tensor_train", "std"):
        assert count(factorization(name, n, n, k, order=1)) == 2 * n * k - k * k
    assert count(factorization("cp", n, n, k, order=1)) == 2 * n * k - k * k
    if n == 1024:
        for layers in (1, 3):
            frame = lambda n, k: CircuitFrame(n, k, layers=layers)  # noqa: B023, E731
            for name in ("tensor_train", "std"):
                factors = FACTORIZATIONS[name](n, n, k, frame, order=1)
                assert count(factors) == 2 * ((2 * layers + 1) * 10 - 2 * layers) + k
    assert count(factorization("quanta", 4096, 4096, axes=[16, 8, 8, 4])) == 43_008


def test_counts_of_networks_of_several_axes() -> None:
    """768 = 32 x 24 on both sides, r = 16: the formulas of the docstrings on the Stiefel manifold."""
    counts = {name: count(factorization(name, 768, 768, 16)) for name in sorted(NETWORKS)}
    assert counts == {
        "cp": 2 * (stiefel(32, 16) + stiefel(24, 16)) + 16,
        "tucker": 2 * (stiefel(32, 4) + stiefel(24, 4)) + 4**4,
        "tensor_train": 2 * (stiefel(32, 16) + stiefel(16 * 24, 16)) + 16,
        "std": 2 * (stiefel(32, 16) + stiefel(16 * 24, 16)) + 3 * 16,
        "tensor_ring": 2 * (stiefel(4 * 32, 4) + stiefel(4 * 24, 4)) + 4 * 4,
        "shared_core": 2 * stiefel(768, 16) + 16**2,
    }


@each
def test_factorizations_are_values(name: str) -> None:
    one, two = factorization(name, 24, 40, frame="circuit"), factorization(name, 24, 40, frame="circuit")
    assert one == two and len({one, two}) == 1
    assert pickle.loads(pickle.dumps(one)) == one == copy.deepcopy(one)


def test_axes_are_balanced_and_nearest() -> None:
    for n in (1, 2, 7, 12, 48, 56, 97, 768, 11008, 50257):
        for order in (1, 2, 3, 4):
            found = axes.balanced(n, order)
            assert int(np.prod(found)) == n and len(found) <= order and sorted(found, reverse=True) == list(found)
            assert n == 1 or min(found) >= 2
    assert axes.balanced(50257, 2) == (1733, 29) and axes.balanced(4096, 2, 100) == (4096,)
    assert axes.nearest(50257, [200, 250]) == (29, 1733) and axes.nearest(97, [10, 10]) == (97,)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("tensor_train", {"axes": [[6, 4], [8, 6]]}, "8 x 6 is 48 and the width 40; nearest is 8 x 5"),
        ("cp", {"axes": [[6, 5], [8, 5]]}, "6 x 5 is 30 and the width 24; nearest is 6 x 4"),
        ("tucker", {"axes": {"24": [5, 5]}}, "5 x 5 is 25 and the width 24; nearest is 6 x 4"),
        ("std", {"axes": [[24]]}, "axes are a pair of lists"),
        ("std", {"axes": "32x24"}, "axes are a pair of lists"),
        ("std", {"axes": [24, 40]}, "the axes of a width are a list of whole numbers, got 24"),
        ("tensor_ring", {"axes": [[6, 4.0], [8, 5]]}, "an axis is a whole number 1 to 2147483648, got 4.0"),
        ("tensor_ring", {"order": 0}, "order is a whole number 1 to 12, got 0"),
        ("cp", {"axes": [[12, 2], [8, 5]]}, r"r is at most the smallest axis, 2 of \(12, 2\) and \(8, 5\), got 4"),
        ("quanta", {"axes": [5, 5]}, "5 x 5 is 25 and the width 40; nearest is 8 x 5"),
        ("quanta", {"axes": [40]}, "gates act on pairs of axes"),
        ("quanta", {"axes": [20, 2]}, r"1600 entries, more than the 960 of the weight"),
        ("quanta", {"seed": -1}, "seed is a whole number 0 to 4294967295, got -1"),
        ("quanta", {"order": 1}, "order is a whole number 2 to 12, got 1"),
        ("rotation", {"side": "left"}, "side is one of out, in, got 'left'"),
    ],
)
def test_bad_options_are_refused(name: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        factorization(name, 24, 40, 4, **options)


@each_network
def test_a_rank_above_a_width_is_refused(name: str) -> None:
    for r in (0, 25, True):
        with pytest.raises(ValueError, match="r is a whole number 1 to 24"):
            factorization(name, 24, 40, r)


def test_a_circuit_that_is_no_permutation_at_zero_cannot_rotate() -> None:
    hadamards = Ansatz("h", first=(Step("H", "each"), Step("RY", "each")))
    with pytest.raises(ValueError, match="at zero angles the circuit has to be a permutation with signs"):
        FACTORIZATIONS["rotation"](8, 8, 1, lambda n, k: CircuitFrame(n, k, hadamards))
    rotation = factorization("rotation", 8, 8)
    with pytest.raises(ValueError, match="forward needs the base layer"):
        rotation.forward(torch.ones(1, 8), initial(rotation))
    with pytest.raises(ValueError, match="delta needs the base weight"):
        rotation.delta(initial(rotation))
