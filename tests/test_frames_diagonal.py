"""The frame with a diagonal node against plain matrices, and how signs are trained."""

import pickle

import numpy as np
import pytest
import torch
from bounds import close, rounding
from reference import matrix

from qcircuit_peft.frames import FRAMES
from qcircuit_peft.frames.diagonal import NODES, DiagonalFrame, signs


def theirs(frame: DiagonalFrame, values: np.ndarray) -> np.ndarray:
    """R D Q, or R times the orthonormal factor of D Q, from the reference simulator and numpy."""
    (_, q, q_part), (_, r, r_part) = frame.circuits()
    numbers = values[q_part.stop : r_part.start]
    diagonal = np.where(numbers < 0, -1.0, 1.0) if frame.node == "signs" else 1 + numbers
    columns = diagonal[:, None] * matrix(q, values[q_part]).real[:, : frame.k]
    if frame.node == "real":
        columns, upper = np.linalg.qr(columns)
        columns = columns * np.sign(np.diag(upper))
    return matrix(r, values[r_part]).real @ columns


def stretch(frame: DiagonalFrame, values: torch.Tensor) -> float:
    """A sum over the width; a real node lets columns come near each other, by its largest number over its smallest."""
    if frame.node == "signs":
        return frame.n
    (_, _, q), (_, _, r) = frame.circuits()
    diagonal = (1 + values[q.stop : r.start]).abs()
    return frame.n * float(diagonal.max() / diagonal.min())


@pytest.mark.parametrize("n", [8, 12])
@pytest.mark.parametrize("node", NODES)
def test_the_node_stands_between_the_circuit_and_the_rotations(node: str, n: int) -> None:
    frame = FRAMES["diagonal"].spec(n, 5, node=node, layers=2)
    values = torch.stack([frame.initial(), frame.initial("normal")]).double()
    u = frame.columns(values)
    for found, row in zip(u, values, strict=True):
        close(found, theirs(frame, row.numpy()), stretch(frame, row))
    narrow = FRAMES["diagonal"].spec(n, 2, node=node, layers=2)
    close(narrow.columns(values), u[..., :2], max(stretch(frame, row) for row in values))
    assert narrow.family == frame.family
    assert pickle.loads(pickle.dumps(frame)) == frame
    if node == "signs":
        x = torch.randn(n, 3, dtype=torch.float64)
        whole = FRAMES["diagonal"].spec(n, n, node=node, layers=2)
        close(frame.apply(values, x), whole.columns(values) @ x, n)
    else:
        assert frame.apply is None


def test_counts_and_widths() -> None:
    assert FRAMES["diagonal"].n_parameters(1024, 4) == 28 + 1024 + 10
    assert FRAMES["diagonal"].n_parameters(768, 4) == 29 + 768 + 3 + 8  # a wire of three levels has three angles
    assert FRAMES["diagonal"].spec(97, 4).width == "shannon"
    with pytest.raises(ValueError, match="node is one of signs, real, got 'complex'"):
        FRAMES["diagonal"].spec(8, 4, node="complex")
    with pytest.raises(ValueError, match="1 to 8, got 9"):
        FRAMES["diagonal"].spec(8, 9)


def test_signs_have_the_gradient_of_the_numbers_below_them() -> None:
    w = torch.tensor([-2.0, -0.1, 0.0, 3.0], requires_grad=True)
    found = signs(w)
    assert found.tolist() == [-1, -1, 1, 1]
    assert torch.autograd.grad((found * torch.arange(4.0)).sum(), w)[0].tolist() == [0, 1, 2, 3]


def test_a_real_node_is_differentiated_exactly() -> None:
    frame = FRAMES["diagonal"].spec(6, 3, node="real")
    assert torch.autograd.gradcheck(frame.columns, frame.initial().double().requires_grad_())


@pytest.mark.parametrize("node", NODES)
def test_columns_are_orthonormal_whatever_the_numbers(node: str) -> None:
    frame = FRAMES["diagonal"].spec(16, 16, node=node)
    torch.manual_seed(1)
    values = frame.initial()
    values[frame.inner.n_parameters : frame.inner.n_parameters + 16] = torch.exp(6 * torch.randn(16))
    u = frame.columns(values).double()
    assert (u.mT @ u - torch.eye(16)).abs().max() <= rounding(torch.float32, 16)


def test_signs_are_found() -> None:
    """With the angles given, gradient descent on the numbers finds the signs that the columns tell."""
    frame = FRAMES["diagonal"].spec(32, 8)
    target = frame.initial()
    part = slice(frame.inner.n_parameters, frame.inner.n_parameters + 32)
    wanted = frame.columns(target)
    values = target.clone()
    values[part] = torch.rand(32) - 0.5
    values.requires_grad_()
    for _ in range(60):
        loss = (frame.columns(values) - wanted).square().sum()
        (gradient,) = torch.autograd.grad(loss, values)
        with torch.no_grad():
            values[part] -= 0.1 * gradient[part]
    assert torch.equal(frame.columns(values), wanted) and torch.equal(signs(values)[part], signs(target)[part])
