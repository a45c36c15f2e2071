"""Frames are orthonormal at every width, the counts are those written down, and columns agree with the whole matrix."""

import copy
import pickle
from math import pi
from pathlib import Path

import numpy as np
import pytest
import torch
from bounds import close, rounding
from peft import PeftModel, get_peft_model
from reference import matrix
from torch import nn

from qcircuit_peft import Ansatz, QCircuitConfig, Step, load
from qcircuit_peft.ansatz import names
from qcircuit_peft.frames import FRAMES
from qcircuit_peft.frames.circuit import CircuitFrame, choose_width, is_real, qudit_parameters
from qcircuit_peft.frames.shannon import n_parameters

DESIGN = load("simplified_two_design")
FULL_WIDTHS = (2, 3, 7, 12, 16, 33)


def angles(frame: CircuitFrame, *batch: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(*batch, frame.n_parameters, dtype=dtype) * 6.3


def frame_roundings(frame: CircuitFrame) -> float:
    """Those of its angles, of either sign, up to 2 pi halved, after two products a recursion."""
    return 2 * pi * (1 + frame.n_parameters) ** 0.5


@pytest.mark.parametrize("n", [97, 384, 768, 896, 1536, 2304, 3072, 5120, 11008, 14336])
@pytest.mark.parametrize("name", [name for name in FRAMES if name != "exponential"])  # that one needs the whole matrix
def test_columns_are_orthonormal_at_the_widths_of_transformers(name: str, n: int) -> None:
    frame = FRAMES[name].spec(n, 8)
    u = frame.columns(torch.stack([frame.initial(), frame.initial()])).double()
    assert u.shape == (2, n, 8)
    left = 1e-6 if name in ("taylor", "neumann") else 0.0  # by a truncated series
    operations = 2 * pi * (3 * n.bit_length()) ** 0.5  # of the gates or the reflections that a column passes
    assert (u.mT @ u - torch.eye(8)).abs().max() <= left + rounding(torch.float32, operations)


@pytest.mark.parametrize("width", ["qudit", "shannon"])
@pytest.mark.parametrize("n", FULL_WIDTHS)
def test_columns_are_the_first_of_an_orthogonal_matrix(n: int, width: str) -> None:
    whole = CircuitFrame(n, n, DESIGN, 2, width)
    values = angles(whole, 3, dtype=torch.float64)
    q = whole.columns(values)
    close(q.mT @ q, torch.eye(n).expand_as(q), 2 * n + frame_roundings(whole))
    for k in range(1, n):
        close(CircuitFrame(n, k, DESIGN, 2, width).columns(values), q[..., :k], frame_roundings(whole), size=1)


@pytest.mark.parametrize("width", ["qudit", "shannon"])
def test_apply_is_the_product_with_the_whole_matrix(width: str) -> None:
    frame = CircuitFrame(12, 12, DESIGN, 2, width)
    values, x = angles(frame, 3, dtype=torch.float64), torch.randn(3, 12, 5, dtype=torch.float64)
    close(frame.apply(values, x), frame.columns(values) @ x, frame_roundings(frame))
    assert torch.equal(CircuitFrame(12, 2, DESIGN, 2, width).apply(values, x), frame.apply(values, x))


@pytest.mark.parametrize("name", FRAMES)
def test_a_frame_is_a_module_with_one_flat_parameter(name: str) -> None:
    frame = FRAMES[name](24, 4, generator=torch.Generator().manual_seed(3))
    [(parameter, theta)] = frame.named_parameters()
    assert (parameter, theta.shape) == ("theta", (FRAMES[name].n_parameters(24, 4),))
    assert torch.equal(theta, frame.spec.initial("uniform", torch.Generator().manual_seed(3)))
    assert torch.equal(frame(), frame.spec.columns(theta)) and frame.spec == FRAMES[name].spec(24, 4)
    (frame() * torch.randn(24, 4)).sum().backward()
    assert theta.grad is not None and theta.grad.count_nonzero() > 0.5 * len(theta)
    try:
        assert not FRAMES[name](24, 4, init="zeros").theta.any()
    except ValueError as error:  # of a frame that is none at zero
        assert "init" in str(error) and frame.spec.apply is None
    for change, says in (
        ({"init": "ones"}, "init is one of uniform, normal, zeros, got 'ones'"),
        ({"nothing": 1}, "unknown option 'nothing'"),
    ):
        with pytest.raises(ValueError, match=says):
            FRAMES[name](24, 4, **change)


@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_frame_of_few_digits_is_the_rounded_one(name: str, dtype: torch.dtype) -> None:
    frame = FRAMES[name](24, 4).to(dtype)
    u = frame()
    assert u.dtype == dtype and torch.equal(u, frame.spec.columns(frame.theta.float()).to(dtype))
    u.sum().backward()
    assert frame.theta.grad is not None and frame.theta.grad.dtype == dtype


def test_a_circuit_frame_takes_what_load_takes(tmp_path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(DESIGN.to_toml())
    for ansatz in (DESIGN, DESIGN.name, str(path), path, DESIGN.to_dict()):
        assert FRAMES["circuit"].spec(24, 4, ansatz=ansatz) == CircuitFrame(24, 4)
    with pytest.raises(ValueError, match="there is no circuit named 'none'"):
        CircuitFrame(24, 4, "none")


def test_shannon_is_the_product_of_its_three_factors() -> None:
    """Q = [U1 0; 0 U2] [C -S 0; 0 0 I; S C 0] [V1 0; 0 V2] at N = 12 = 8 + 4, from plain block matrices."""
    frame = CircuitFrame(12, 12, DESIGN, 1, "shannon")
    values = angles(frame, dtype=torch.float64)
    parts = {name: CircuitFrame(c.dim, c.dim, DESIGN).columns(values[where]) for name, c, where in frame.circuits()}
    used = torch.zeros(frame.n_parameters, dtype=torch.bool)
    for _, _, where in frame.circuits():
        used[where] = True
    t = values[~used]
    c, s = torch.diag(t.cos()), torch.diag(t.sin())
    o, one = torch.zeros(4, 4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
    middle = torch.cat([torch.cat([c, -s, o], 1), torch.cat([o, o, one], 1), torch.cat([s, c, o], 1)])
    left, right = torch.block_diag(parts["u1"], parts["u2"]), torch.block_diag(parts["v1"], parts["v2"])
    close(frame.columns(values), left @ middle @ right, frame_roundings(frame), size=1)


@pytest.mark.parametrize(
    ("n", "count"), [(1, 0), (8, 7), (257, 45), (259, 53), (768, 350), (3072, 1142), (11008, 5950), (32767, 343973)]
)
def test_shannon_counts(n: int, count: int) -> None:
    assert n_parameters(n, DESIGN, 1) == count == FRAMES["shannon"].n_parameters(n, 1)


@pytest.mark.parametrize("n", [257, 259, 768, 50257])
def test_shannon_is_orthogonal_to_double_precision(n: int) -> None:
    frame = FRAMES["shannon"](n, 3).double()
    u = frame()
    assert u.shape == (n, 3)
    close(u.mT @ u, torch.eye(3), frame_roundings(frame.spec))


@pytest.mark.parametrize(
    ("n", "splits", "count"),
    [(324, {}, 200), (324, {"324": 260}, 208), (324, ((324, 260),), 208), (8, {8: 4, 4: 3}, 32)],
)
def test_widths_are_split_as_asked(n: int, splits: object, count: int) -> None:
    """The paper's example, (2^8, 2^6 + 2^2) against (2^8 + 2^2, 2^6), and a power of two that is split too."""
    frame, same = FRAMES["shannon"].spec(n, n, splits=splits), FRAMES["shannon"].spec(n, 5, splits=dict(splits))
    assert frame.n_parameters == count == n_parameters(n, DESIGN, 1, frame.splits)
    assert frame.family == same.family and hash(frame.family) == hash(same.family)
    assert pickle.loads(pickle.dumps(frame)) == frame
    values = angles(frame, dtype=torch.float64)
    q = frame.columns(values)
    close(q.mT @ q, torch.eye(n), 2 * n + frame_roundings(frame))
    close(same.columns(values), q[:, :5], frame_roundings(frame), size=1)
    used = [where.stop - where.start for _, _, where in frame.circuits()]
    assert sum(used) < count


@pytest.mark.parametrize(
    ("splits", "says"),
    [
        ({768: 383}, "the larger part N1 of 768 is a whole number 384 to 767, got 383"),
        ({768: 768}, "got 768"),
        ({768: 512.0}, "got 512.0"),
        ({768: True}, "got True"),
        ({100: 50}, r"splits has the width 100, but from 768 down there are \[768, 512, 256\]"),
        (7, "splits maps widths N to their larger part N1, got 7"),
        ({"x": 3}, "splits maps widths"),
        ({768 - i: 767 - i for i in range(12)}, "put together of 393214 blocks, more than 65536"),
    ],
)
def test_bad_splits_are_refused(splits: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        FRAMES["shannon"].spec(768, 4, splits=splits)
    with pytest.raises(ValueError, match="splits are for width='shannon'"):
        CircuitFrame(768, 4, splits={768: 384})


@pytest.mark.parametrize(("n", "count"), [(768, 29), (384, 26), (97, 4656), (1024, 28), (7, 21)])
def test_qudit_counts_are_those_of_the_circuit(n: int, count: int) -> None:
    assert qudit_parameters(n, DESIGN, 1) == count == DESIGN.circuit(dim=n, layers=1).n_angles


@pytest.mark.parametrize(
    ("n", "width", "count"), [(768, "qudit", 29), (97, "shannon", 119), (1024, "qudit", 28), (1, "shannon", 0)]
)
def test_auto_takes_the_smaller_count(n: int, width: str, count: int) -> None:
    frame = CircuitFrame(n, 1, DESIGN)
    assert (frame.width, frame.n_parameters) == (width, count)
    assert choose_width(n, 1, DESIGN, 1) == width


def test_auto_refuses_a_width_that_saves_nothing_and_names_both_counts() -> None:
    with pytest.raises(ValueError, match=r"8001 \(qudit\) and 789 \(shannon\)"):
        CircuitFrame(127, 4, DESIGN)
    assert CircuitFrame(127, 16, DESIGN).n_parameters == 789  # more columns cost nothing
    assert CircuitFrame(127, 4, DESIGN, width="shannon").n_parameters == 789
    assert CircuitFrame(16, 2, DESIGN, layers=64).n_parameters > 16 * 15 / 2  # depth is the user's own wish


def test_a_qubit_only_ansatz_falls_back_on_shannon() -> None:
    swaps = Ansatz("swaps", first=(Step("RY", "each"),), layer=(Step("SWAP", "line"),))
    assert CircuitFrame(96, 4, swaps).width == "shannon"
    with pytest.raises(ValueError, match="no circuit of width 96"):
        CircuitFrame(96, 4, swaps, width="qudit")


def test_frames_are_hashable_values_and_know_their_circuits() -> None:
    frame = CircuitFrame(768, 4, DESIGN)
    assert (
        frame == CircuitFrame(768, 4, load("simplified_two_design")) and len({frame, CircuitFrame(768, 4, DESIGN)}) == 1
    )
    [(name, circuit, where)] = frame.circuits()
    assert (name, circuit.dim, where) == ("", 768, slice(0, 29))
    leaves = list(CircuitFrame(97, 4, DESIGN).circuits())
    assert {name for name, _, _ in leaves} == {"v1.v2", "v1.u1", "v2", "u1", "u2.v2", "u2.u1"}
    assert sum(c.n_angles for _, c, _ in leaves) == 119 - 33 - 2  # all but the cosine-sine angles


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"k": 0}, "k is a whole number 1 to 16, got 0"),
        ({"k": 17}, "got 17"),
        ({"n": 0}, "n is a whole number >= 1, got 0"),
        ({"layers": -1}, "layers is"),
        ({"layers": 1 << 20}, "layers is"),
        ({"width": "cropped"}, "width is one of auto, qudit, shannon"),
        ({"backend": "nativ"}, "unknown backend 'nativ'"),
        ({"ansatz": load("sim01"), "n": 15}, "'sim01' is complex: it serves even widths .*, got width 15 with 'auto'"),
        ({"ansatz": load("sim01"), "width": "shannon"}, "'sim01' is complex: .*, got width 16 with 'shannon'"),
        ({"ansatz": load("sim01"), "n": 24}, "ansatz 'sim01' has no circuit of width 24"),
        (
            {"n": 100003, "width": "qudit"},
            "at most 16777216 angles, but width 100003 .* takes 5000250003",
        ),
    ],
)
def test_bad_frames_are_refused(change: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        CircuitFrame(**({"n": 16, "k": 4, "ansatz": DESIGN} | change))
    with pytest.raises(ValueError, match="parameters have shape"):
        CircuitFrame(16, 4, DESIGN).columns(torch.zeros(3))


COMPLEX = [name for name in names() if not is_real(load(name))]


@pytest.mark.parametrize("name", COMPLEX)
def test_a_complex_circuit_stands_for_a_real_matrix_of_twice_its_width(name: str) -> None:
    circuit = load(name).circuit(qubits=3, layers=2)
    whole = CircuitFrame(16, 16, name, layers=2)
    assert [found for _, found, _ in whole.circuits()] == [circuit] and whole.n_parameters == circuit.n_angles
    values, x = angles(whole, 2, dtype=torch.float64), torch.randn(2, 16, 3, dtype=torch.float64)
    expected = []
    for row in values.numpy():
        u = matrix(circuit, row)
        expected.append(np.block([[u.real, -u.imag], [u.imag, u.real]]))
    q = torch.from_numpy(np.stack(expected))
    for k in (1, 3, 8, 11, 16):
        frame = CircuitFrame(16, k, name, layers=2)
        close(frame.columns(values), q[..., :k], 8 + frame_roundings(whole), size=1)
        assert frame.family == whole.family
    close(whole.apply(values, x), q @ x, 8 + frame_roundings(whole), size=4)


def test_a_complex_circuit_adapts_a_model(tmp_path: Path) -> None:
    base, x = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 4)).double(), torch.randn(5, 16, dtype=torch.float64)
    config = QCircuitConfig(ansatz="sim14", layers=2, r=12, target_modules=["0"], modules_to_save=["1"])
    model = get_peft_model(copy.deepcopy(base), config)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 0.1)
    before = {name: p.clone() for name, p in model.named_parameters() if p.requires_grad}
    for _ in range(2):  # lambda first, then the angles
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters() if p.requires_grad)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    expected = model(x).detach()
    assert torch.equal(loaded(x), expected)
    close(loaded.merge_and_unload()(x), expected, 64, size=float(expected.abs().max()))
