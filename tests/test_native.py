"""The native engine against the reference simulator, its derivatives, and what one call may cost."""

import gc
import inspect
import subprocess
import sys
from contextlib import nullcontext
from functools import cache, partial
from math import prod
from shutil import which

import bounds
import numpy as np
import pytest
import reference
import torch
from dispatched import Dispatched
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from test_circuit import circuits
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from qcircuit_peft import Circuit, Op, apply, columns, load, matrix, state
from qcircuit_peft.ansatz import names
from qcircuit_peft.backends.native import kernels
from qcircuit_peft.backends.native.prefix import is_deep
from qcircuit_peft.gates import GATES

DTYPES = (torch.float64, torch.float32)
MIXED_DIMS = [(3, 2, 2), (5, 2, 2, 2), (3, 3, 2), (2, 3), (7,), (2, 3, 2, 5), (4, 2)]


def draw(circuit, *batch, seed=0, dtype=torch.float64):
    """Angles in [0, 4 pi), the period of a rotation."""
    generator = torch.Generator().manual_seed(seed)
    angles = torch.rand(*batch, circuit.n_angles, generator=generator, dtype=torch.float64) * 4 * torch.pi
    return angles.to(dtype)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def close(found, expected, dtype=torch.float64, times=1.0):
    """Equal up to the roundings of the largest of the circuits below, in numbers that are so many times 1."""
    bounds.close(found, expected, max(map(bounds.gates, SUBJECTS.values())), times, dtype)


@cache
def members(name):
    """The members of a shipped family on 1 to 6 qubits with 0 to 3 layers, but for the very long ones."""
    ansatz = load(name)
    steps = (*ansatz.first, *ansatz.layer, *ansatz.last)
    explicit = [wires for step in steps if not isinstance(step.on, str) for wires in step.on]
    smallest = max((w + 1 for wires in explicit for w in wires), default=1)
    found = [ansatz.circuit(qubits=q, layers=n) for q in range(smallest, 7) for n in range(4)]
    return [circuit for circuit in found if len(circuit.ops) <= 60]


def check(circuit, angles, k=None):
    """Columns from the engine against the reference in both precisions, and their gradient against apply's."""
    k = k or circuit.dim
    batch = angles.shape[:-1]
    slow = reference.matrix if circuit.dim <= 256 else partial(reference.columns, k=k)
    expected = [slow(circuit, angles[index].numpy())[:, :k] for index in np.ndindex(batch)]
    expected = torch.tensor(np.array(expected)).reshape(*batch, circuit.dim, k)
    for dtype in DTYPES:
        found = columns(circuit, angles.to(dtype), k)
        assert found.dtype == (dtype if circuit.is_real else dtype.to_complex())
        bounds.close(found, expected, bounds.gates(circuit), size=1)
    if circuit.n_angles:
        ways = lambda a: columns(circuit, a, k), lambda a: apply(circuit, a, torch.eye(circuit.dim, k))
        one, other = (gradient(way, angles) for way in ways)
        bounds.close(one, other, bounds.gates(circuit), size=(2 * circuit.dim * k) ** 0.5)


def overlap(weights, tensor):
    return (weights * torch.view_as_real(tensor.to(torch.complex128))).sum()


def gradient(function, angles):
    """The gradient of a fixed random combination of the entries of a tensor-valued function."""
    angles = angles.clone().requires_grad_()
    found = function(angles)
    (slope,) = torch.autograd.grad(overlap(normal(*found.shape, 2), found), angles)
    return slope


# --- exactness ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize("name", GATES)
def test_every_gate_on_every_choice_of_wires(name, adjoint):
    gate = GATES[name]
    places = [(a, b)[: gate.wires] for a in range(3) for b in range(3) if a != b]
    for dims in [(2, 2, 2), (3, 2, 5)] if gate.qudit_matrix else [(2, 2, 2)]:
        for wires in dict.fromkeys(places):
            alone = Circuit(dims, [Op(name, wires, adjoint=adjoint)])
            check(alone, draw(alone, 3))
            mixed = [Op("RY", (w,)) for w in range(3)]
            among = Circuit(dims, [*mixed, Op("CZ", (0, 1)), Op(name, wires, adjoint=adjoint), *mixed])
            check(among, draw(among))


@pytest.mark.parametrize("name", names())
def test_every_shipped_circuit(name):
    for circuit in members(name):
        check(circuit, draw(circuit, 1 + (circuit.dim <= 8)))


@pytest.mark.parametrize("dims", MIXED_DIMS, ids=str)
@pytest.mark.parametrize("layers", [0, 1, 2, 3])
def test_mixed_wires(dims, layers):
    circuit = load("simplified_two_design").circuit(dims=dims, layers=layers)
    check(circuit, draw(circuit, 2))


def gates_of(name):
    ansatz = load(name)
    return {gate for step in (*ansatz.first, *ansatz.layer, *ansatz.last) for gate in step.gates}


@pytest.mark.parametrize("name", [n for n in names() if all(GATES[g].qudit_matrix for g in gates_of(n))])
def test_shipped_circuits_on_mixed_wires(name):
    circuit = load(name).circuit(dims=(5, 3, 2, 2), layers=2)
    check(circuit, draw(circuit, 2))


@hypothesis_settings(max_examples=60)
@given(circuits())
def test_random_circuits(circuit):
    check(circuit, draw(circuit, 2))


@hypothesis_settings(max_examples=30)
@given(circuits(gates=("RY", "CZ", "RY", "CRY", "GIVENS", "H", "CX"), dimensions=(2,), max_dim=32, max_ops=25))
def test_random_real_circuits_on_qubits(circuit):
    check(circuit, draw(circuit))


@pytest.mark.parametrize(
    ("width", "layers"),
    [
        ({"qubits": 3}, 20),
        ({"qubits": 8}, 4),
        ({"qubits": 9}, 2),
        ({"qubits": 12}, 1),
        ({"dim": 768}, 3),
        ({"dim": 1200}, 1),
    ],
    ids=str,
)
def test_wide_and_deep_circuits(width, layers):
    circuit = load("simplified_two_design").circuit(**width, layers=layers)
    angles = draw(circuit)
    check(circuit, angles, k=8)
    for k in (1, 3):
        close(columns(circuit, angles, k), columns(circuit, angles, 8)[:, :k])


@pytest.mark.parametrize("layers", [0, 1, 2, 6])
@pytest.mark.parametrize("width", [{"qubits": 7}, {"qubits": 8}, {"dim": 96}])
def test_whole_matrices_of_wide_circuits(width, layers):
    circuit = load("simplified_two_design").circuit(**width, layers=layers)
    check(circuit, draw(circuit))


@pytest.mark.parametrize("dims", [(2,), (3,), (2, 2, 2), (5, 2, 2)])
def test_an_empty_circuit_is_the_identity(dims):
    circuit, angles = Circuit(dims), torch.zeros(4, 0)
    for k in range(1, circuit.dim + 1):
        assert torch.equal(columns(circuit, angles, k), torch.eye(circuit.dim, k).expand(4, -1, -1))
    x = normal(circuit.dim, 3)
    assert torch.equal(apply(circuit, torch.zeros(0), x), x)


# --- one circuit, several questions -------------------------------------------------------------------------

SUBJECTS = {
    "real qubits": load("simplified_two_design").circuit(qubits=4, layers=2),
    "real mixed": load("simplified_two_design").circuit(dim=12, layers=2),
    "complex": Circuit(
        (2, 2, 2),
        [
            Op("H", (0,)),
            Op("RX", (1,)),
            Op("RZ", (1,), (0,)),
            Op("CRX", (1, 2)),
            Op("P", (2,)),
            Op("RYY", (0, 2)),
            Op("T", (0,), adjoint=True),
            Op("CRZ", (2, 0), (1,), adjoint=True),
            Op("RX", (0,)),
        ],
    ),
    "complex mixed": Circuit(
        (3, 2, 2),
        [
            Op("RY", (0,)),
            Op("S", (1,)),
            Op("CZ", (0, 2)),
            Op("RXX", (1, 2)),
            Op("RY", (0,), adjoint=True),
            Op("RX", (1,)),
        ],
    ),
    "two-wire rotations": Circuit(
        (2, 2, 2),
        [
            Op("RY", (0,)),
            Op("GIVENS", (0, 1)),
            Op("CRY", (2, 1)),
            Op("SWAP", (0, 2)),
            Op("GIVENS", (2, 0), (1,), adjoint=True),
            Op("CX", (1, 0)),
        ],
    ),
    "one wire": Circuit((2,), [Op("RY", (0,)), Op("RX", (0,)), Op("RY", (0,), (0,))]),
    "fixed": Circuit((2, 2), [Op("H", (0,)), Op("CX", (0, 1)), Op("S", (1,))]),
}
DEEP = load("simplified_two_design").circuit(qubits=3, layers=20)  # runs on the whole state from some level on
every_subject = pytest.mark.parametrize("circuit", SUBJECTS.values(), ids=list(SUBJECTS))
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["f64", "f32"])


@every_dtype
@every_subject
def test_columns_are_the_first_of_the_matrix(circuit, dtype):
    angles = draw(circuit, 2, dtype=dtype)
    whole = matrix(circuit, angles)
    assert whole.shape == (2, circuit.dim, circuit.dim)
    for k in range(1, circuit.dim + 1):
        part = columns(circuit, angles, k)
        assert part.dtype == whole.dtype
        close(part, whole[..., :k], dtype)


@every_dtype
@every_subject
def test_the_state_is_the_first_column(circuit, dtype):
    angles = draw(circuit, 2, 3, dtype=dtype)
    assert state(circuit, angles).shape == (2, 3, circuit.dim)
    close(state(circuit, angles), matrix(circuit, angles)[..., 0], dtype)


@every_dtype
@every_subject
def test_apply_is_the_matrix_times_x(circuit, dtype):
    angles, x = draw(circuit, 2, dtype=dtype), normal(2, circuit.dim, 5, dtype=dtype)
    u = np.array([reference.matrix(circuit, row) for row in angles.double().numpy()])
    expected = torch.tensor(u) @ x.to(torch.complex128)
    found = apply(circuit, angles, x)
    assert found.dtype == (dtype if circuit.is_real else dtype.to_complex())
    close(found.to(torch.complex128), expected, dtype, times=10)


@every_subject
def test_the_inverse_is_the_adjoint(circuit):
    angles, x = draw(circuit, 3), normal(3, circuit.dim, 2)
    close(matrix(circuit.inverse(), angles), matrix(circuit, angles).mH)
    there = apply(circuit, angles, x)
    close(apply(circuit.inverse(), angles, there), x.to(there.dtype), times=10)


@every_subject
@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 3), (2, 1, 2)], ids=str)
def test_batches_of_angles(circuit, batch):
    angles = draw(circuit, *batch)
    found = columns(circuit, angles, 2)
    assert found.shape == (*batch, circuit.dim, 2)
    for index in np.ndindex(batch):
        close(found[index], columns(circuit, angles[index], 2))


@every_subject
@pytest.mark.parametrize("batch", [(0,), (2, 0), (0, 3)], ids=str)
def test_empty_batches(circuit, batch):
    angles = draw(circuit, *batch).requires_grad_()
    assert columns(circuit, angles, 2).shape == (*batch, circuit.dim, 2)
    assert state(circuit, angles).shape == (*batch, circuit.dim)
    x = normal(*batch, circuit.dim, 3).requires_grad_()
    result = apply(circuit, angles, x)
    assert result.shape == (*batch, circuit.dim, 3)
    gradients = torch.autograd.grad(result.abs().sum(), (angles, x), materialize_grads=True)
    assert [g.shape for g in gradients] == [angles.shape, x.shape]


@every_subject
@pytest.mark.parametrize(
    ("of_angles", "of_x"),
    [
        ((), ()),
        ((3,), ()),
        ((), (4,)),
        ((3,), (3,)),
        ((3, 1), (4,)),
        ((2, 1, 1), (3, 1)),
        ((1,), (3,)),
        ((0,), (1,)),
    ],
    ids=str,
)
def test_batches_of_angles_and_x_broadcast(circuit, of_angles, of_x):
    angles, x = draw(circuit, *of_angles), normal(*of_x, circuit.dim, 3)
    found = apply(circuit, angles, x)
    assert found.shape == (*torch.broadcast_shapes(of_angles, of_x), circuit.dim, 3)
    whole = matrix(circuit, angles)
    close(found, whole @ x.to(whole.dtype), times=10)


@every_subject
@pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.complex64,
        torch.complex128,
    ],
    ids=str,
)
def test_x_of_another_dtype(circuit, dtype):
    """Nothing of x is lost, imaginary parts least of all."""
    angles = draw(circuit)
    x = (normal(circuit.dim, 3) * 4).round().to(dtype)
    if dtype.is_complex:
        x = x + 1j * (normal(circuit.dim, 3, seed=1) * 4).round()
    expected = torch.tensor(reference.matrix(circuit, angles.numpy())) @ x.to(torch.complex128)
    found = apply(circuit, angles, x)
    assert found.is_complex() == (dtype.is_complex or not circuit.is_real)
    close(found.to(torch.complex128), expected, torch.float64, times=10)
    single = apply(circuit, angles.float(), x)
    double = x.dtype in (torch.float64, torch.complex128)
    assert single.dtype.to_real() == (torch.float64 if double else torch.float32)
    exact = torch.tensor(reference.matrix(circuit, angles.float().double().numpy())) @ x.to(torch.complex128)
    close(single.to(torch.complex128), exact, torch.float64 if double else torch.float32, times=10)


@every_subject
def test_strided_and_expanded_inputs(circuit):
    angles = draw(circuit, 2, 3)
    turned = angles.transpose(0, 1)
    assert torch.equal(columns(circuit, turned, 2), columns(circuit, turned.contiguous(), 2))
    spread = angles[:1, :1].expand(2, 3, -1)
    close(columns(circuit, spread, 2), columns(circuit, angles[0, 0], 2).expand(2, 3, -1, -1))
    x = normal(2, 3, 4, circuit.dim).mT[..., ::2]
    close(apply(circuit, angles, x), apply(circuit, angles, x.contiguous()))


@every_subject
def test_inputs_stay_as_they_are_and_results_are_independent(circuit):
    angles, x = draw(circuit, 2), normal(2, circuit.dim, 3)
    kept = angles.clone(), x.clone()
    first, second = columns(circuit, angles, 2), apply(circuit, angles, x)
    expected = first.clone(), second.clone()
    first.zero_(), second.zero_()
    assert torch.equal(angles, kept[0]) and torch.equal(x, kept[1])
    assert torch.equal(columns(circuit, angles, 2), expected[0]) and torch.equal(apply(circuit, angles, x), expected[1])


# --- what the door refuses ----------------------------------------------------------------------------------

PAIR = Circuit((2, 2), [Op("RY", (0,)), Op("CZ", (0, 1)), Op("RY", (1,))])
ANGLES = torch.zeros(2)
REFUSED = {
    "columns": [
        ((load("simplified_two_design"), ANGLES, 1), "a Circuit is wanted, got Ansatz"),
        ((PAIR, [0.0, 0.0], 1), "angles are a float32 or float64 tensor, got list"),
        ((PAIR, ANGLES.half(), 1), "angles are a float32 or float64 tensor, got torch.float16"),
        ((PAIR, ANGLES.long(), 1), "angles are a float32 or float64 tensor, got torch.int64"),
        ((PAIR, ANGLES.cfloat(), 1), "angles are a float32 or float64 tensor, got torch.complex64"),
        ((PAIR, torch.zeros(5, 3), 1), "angles have shape (*batch, 2) for this circuit, got (5, 3)"),
        ((PAIR, torch.zeros(()), 1), "angles have shape (*batch, 2) for this circuit, got ()"),
        ((PAIR, ANGLES, 0), "the number of columns is a whole number 1 to 4, got 0"),
        ((PAIR, ANGLES, 5), "the number of columns is a whole number 1 to 4, got 5"),
        ((PAIR, ANGLES, True), "the number of columns is a whole number 1 to 4, got True"),
        ((PAIR, ANGLES, 2.0), "the number of columns is a whole number 1 to 4, got 2.0"),
    ],
    "matrix": [((PAIR, torch.zeros(3)), "angles have shape (*batch, 2) for this circuit, got (3,)")],
    "state": [((PAIR, torch.zeros(3)), "angles have shape (*batch, 2) for this circuit, got (3,)")],
    "apply": [
        (
            (PAIR, torch.zeros(3), torch.zeros(4, 1)),
            "angles have shape (*batch, 2) for this circuit, got (3,)",
        ),
        ((PAIR, ANGLES, torch.zeros(4)), "x has shape (*batch, 4, K) for this circuit, got (4,)"),
        ((PAIR, ANGLES, torch.zeros(3, 2)), "x has shape (*batch, 4, K) for this circuit, got (3, 2)"),
        ((PAIR, ANGLES, [[0.0]]), "x has shape (*batch, 4, K) for this circuit, got list"),
        ((PAIR, ANGLES.expand(3, 2), torch.zeros(2, 4, 1)), "(3,) and (2,)"),
    ],
}
FUNCTIONS = {"columns": columns, "matrix": matrix, "state": state, "apply": apply}


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [pytest.param(f, *row, id=f"{f}: {row[1]}") for f, rows in REFUSED.items() for row in rows],
)
def test_bad_input_is_a_value_error_that_says_what_is_wrong(function, arguments, message):
    plain = inspect.unwrap(FUNCTIONS[function])  # without the annotation checks of conftest.py
    with pytest.raises(ValueError) as error:
        plain(*arguments)
    assert message in str(error.value)


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="unknown backend 'nativ'; did you mean one of native"):
        columns(PAIR, ANGLES, 1, backend="nativ")


# --- derivatives --------------------------------------------------------------------------------------------


STEP = 1e-5


def differences(function, point, step=STEP):
    """Central differences of a scalar function at a vector."""
    shifts = torch.eye(len(point), dtype=point.dtype) * step
    return torch.stack([(function(point + s) - function(point - s)) / (2 * step) for s in shifts])


@pytest.mark.parametrize("name", names())
def test_the_gradient_is_the_slope_of_the_reference(name):
    circuit = max((c for c in members(name) if c.n_angles <= 30), key=lambda c: c.n_angles)
    angles, weights = draw(circuit), normal(circuit.dim, 3, 2)

    def slow(point):
        return overlap(weights, torch.tensor(reference.columns(circuit, point.numpy(), 3)))

    found = gradient(lambda a: columns(circuit, a, 3), angles)
    # what the step leaves out, 1e-10 of the third derivative, is far below the rounding that it divides
    bounds.close(found, differences(slow, angles), bounds.gates(circuit), weights.norm() / STEP)


@every_subject
def test_float32_gradients(circuit):
    weights, x = normal(2, circuit.dim, 3, 2), normal(2, circuit.dim, 3)
    gradients = []
    for dtype in DTYPES:
        angles, x_ = draw(circuit, 2).to(dtype).requires_grad_(), x.to(dtype).requires_grad_()
        loss = overlap(weights, apply(circuit, angles, x_)) + overlap(weights[..., :2, :], columns(circuit, angles, 2))
        gradients.append(torch.autograd.grad(loss, (angles, x_), materialize_grads=True))
    for exact, found in zip(*gradients, strict=True):
        assert found.dtype == torch.float32
        bounds.close(found, exact, bounds.gates(circuit), size=weights.norm())


with_angles = pytest.mark.parametrize(
    "circuit",
    [c for c in SUBJECTS.values() if c.n_angles],
    ids=[n for n, c in SUBJECTS.items() if c.n_angles],
)


@with_angles
@pytest.mark.parametrize("check_", [torch.autograd.gradcheck, torch.autograd.gradgradcheck], ids=["first", "second"])
@pytest.mark.parametrize("batch", [(), (2,)], ids=str)
def test_derivatives_of_columns(circuit, check_, batch):
    angles = draw(circuit, *batch).requires_grad_()
    assert check_(lambda a: columns(circuit, a, 2), angles, fast_mode=True)


@with_angles
@pytest.mark.parametrize("check_", [torch.autograd.gradcheck, torch.autograd.gradgradcheck], ids=["first", "second"])
@pytest.mark.parametrize("shapes", [((), ()), ((2, 1), (3,)), ((), (2,))], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=["real x", "complex x"])
def test_derivatives_of_apply(circuit, check_, shapes, dtype):
    angles = draw(circuit, *shapes[0]).requires_grad_()
    x = normal(*shapes[1], circuit.dim, 2).to(dtype)
    x = (x + 1j * normal(*x.shape, seed=1) if dtype.is_complex else x).requires_grad_()
    assert check_(lambda a, x: apply(circuit, a, x), (angles, x), fast_mode=True)


@pytest.mark.parametrize("circuit", [SUBJECTS["one wire"], PAIR], ids=["one wire", "pair"])
@pytest.mark.parametrize("check_", [torch.autograd.gradcheck, torch.autograd.gradgradcheck], ids=["first", "second"])
def test_derivatives_of_a_small_circuit_entry_by_entry(circuit, check_):
    """The exhaustive form of what the fast form checks along random directions."""
    angles, x = draw(circuit, 2).requires_grad_(), normal(circuit.dim, 2).requires_grad_()
    assert check_(lambda a: columns(circuit, a, circuit.dim), angles)
    assert check_(lambda a, x: apply(circuit, a, x), (angles, x))


@with_angles
def test_gradients_with_respect_to_one_input_only(circuit):
    angles, x = draw(circuit), normal(circuit.dim, 2)
    weights = normal(circuit.dim, 2, 2)
    both = [angles.clone().requires_grad_(), x.clone().requires_grad_()]
    expected = torch.autograd.grad(overlap(weights, apply(circuit, *both)), both)
    for only in (0, 1):
        inputs = [angles, x]
        inputs[only] = inputs[only].clone().requires_grad_()
        (found,) = torch.autograd.grad(overlap(weights, apply(circuit, *inputs)), inputs[only])
        close(found, expected[only])


def test_a_result_without_gradients_has_none():
    angles = draw(PAIR).requires_grad_()
    assert columns(PAIR, angles, 2).requires_grad and apply(PAIR, angles, torch.ones(4, 1)).requires_grad
    assert not columns(PAIR, angles.detach(), 2).requires_grad
    with torch.no_grad():
        assert not columns(PAIR, angles, 2).requires_grad


@with_angles
def test_second_derivatives_of_columns_on_the_whole_state(circuit):
    deep = sum([circuit] * 6, start=Circuit(circuit.dims))
    angles = draw(deep).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda a: columns(deep, a, 2), angles, fast_mode=True)


def test_the_backward_pass_runs_twice_over_a_kept_graph():
    circuit = SUBJECTS["real mixed"]
    angles, x = draw(circuit, 2).requires_grad_(), normal(2, circuit.dim, 3).requires_grad_()
    loss = apply(circuit, angles, x).pow(3).sum()
    first = torch.autograd.grad(loss, (angles, x), retain_graph=True)
    second = torch.autograd.grad(loss, (angles, x))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# --- torch's transforms -------------------------------------------------------------------------------------


@with_angles
def test_vmap_is_a_batch(circuit):
    angles, x = draw(circuit, 3), normal(3, circuit.dim, 2)
    close(torch.func.vmap(lambda a: columns(circuit, a, 2))(angles), columns(circuit, angles, 2))
    close(torch.func.vmap(lambda a, x: apply(circuit, a, x))(angles, x), apply(circuit, angles, x))
    close(torch.func.vmap(lambda a: apply(circuit, a, x[0]))(angles), apply(circuit, angles, x[0]))
    close(torch.func.vmap(lambda x: apply(circuit, angles[0], x))(x), apply(circuit, angles[0], x))
    close(torch.func.vmap(lambda a: state(circuit, a), in_dims=1)(angles.T), state(circuit, angles))


@with_angles
def test_jacrev_is_the_jacobian(circuit):
    angles, x = draw(circuit), normal(circuit.dim, 2)

    def flat(a):
        return torch.view_as_real(apply(circuit, a, x).to(torch.complex128))

    expected = torch.autograd.functional.jacobian(flat, angles)
    close(torch.func.jacrev(flat)(angles), expected, times=10)

    def columns_(a):
        return torch.view_as_real(columns(circuit, a, 2).to(torch.complex128))

    close(torch.func.jacrev(columns_)(angles), torch.autograd.functional.jacobian(columns_, angles), times=10)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own call
@with_angles
def test_forward_mode_and_hessians(circuit):
    angles, x = draw(circuit), normal(circuit.dim, 2)

    def norm4(a):
        return apply(circuit, a, x).abs().pow(4).sum() + columns(circuit, a, 2).abs().pow(4).sum()

    close(torch.func.jacfwd(norm4)(angles), torch.func.jacrev(norm4)(angles), times=100)
    close(torch.func.hessian(norm4)(angles), torch.func.jacrev(torch.func.jacrev(norm4))(angles), times=1000)


@with_angles
def test_vmap_over_jacrev(circuit):
    angles, x = draw(circuit, 3), normal(3, circuit.dim, 2)

    def norm4(a, x):
        return apply(circuit, a, x).abs().pow(4).sum() + columns(circuit, a, 2).abs().pow(4).sum()

    found = torch.func.vmap(torch.func.jacrev(norm4, argnums=(0, 1)))(angles, x)
    for i in range(3):
        a, x_ = angles[i].clone().requires_grad_(), x[i].clone().requires_grad_()
        expected = torch.autograd.grad(norm4(a, x_), (a, x_))
        close(found[0][i], expected[0], times=100)
        close(found[1][i], expected[1], times=100)


def compiled(function, backend="aot_eager"):
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend=backend)


@pytest.mark.parametrize("name", ["real qubits", "real mixed", "complex", "two-wire rotations"])
@pytest.mark.parametrize("of", ["columns", "apply"])
def test_compiled_in_one_graph(name, of):
    """Values and gradients of torch.compile(fullgraph=True): nothing falls back to Python."""
    circuit = SUBJECTS[name]
    columns_, apply_ = inspect.unwrap(columns), inspect.unwrap(apply)  # without the checks of conftest.py
    run = {"columns": lambda a, x: columns_(circuit, a, 3), "apply": lambda a, x: apply_(circuit, a, x)}[of]
    compare_compiled(run, circuit, "aot_eager")


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")  # inductor's own call
@pytest.mark.skipif(which("g++") is None, reason="inductor compiles C++")
def test_compiled_by_inductor():
    circuit = DEEP
    columns_, apply_ = inspect.unwrap(columns), inspect.unwrap(apply)
    compare_compiled(lambda a, x: columns_(circuit, a, 3).sin() + apply_(circuit, a, x).cos(), circuit, "inductor")


def compare_compiled(run, circuit, backend):
    weights, results = normal(2, circuit.dim, 3, 2), []
    for function in (run, compiled(run, backend)):
        angles, x = draw(circuit, 2).requires_grad_(), normal(2, circuit.dim, 3).requires_grad_()
        value = function(angles, x)
        gradients = torch.autograd.grad(overlap(weights, value), (angles, x), materialize_grads=True)
        results.append((value, *gradients))
    for expected, found in zip(*results, strict=True):
        close(found, expected, times=10)


class Both(torch.nn.Module):
    """Columns of a circuit and its product with x."""

    def __init__(self, circuit):
        super().__init__()
        self.circuit = circuit
        self.angles = torch.nn.Parameter(draw(circuit, 2))

    def forward(self, x):
        return inspect.unwrap(columns)(self.circuit, self.angles, 3) + inspect.unwrap(apply)(
            self.circuit, self.angles, x
        )


@pytest.mark.parametrize("name", ["real mixed", "complex"])
def test_exported_with_one_node_a_call(name, tmp_path):
    """The exported program carries the circuit: it runs in a process that never saw it."""
    module, x = Both(SUBJECTS[name]), normal(2, SUBJECTS[name].dim, 3)
    program = torch.export.export(module, (x,))
    ours = [str(node.target) for node in program.graph.nodes if "qcircuit_peft" in str(node.target)]
    assert ours == ["qcircuit_peft.columns.default", "qcircuit_peft.apply.default"]
    close(program.module()(x), module(x))
    torch.export.save(program, tmp_path / "program.pt2")
    torch.save(x, tmp_path / "x.pt")
    script = f"import qcircuit_peft, torch; p = torch.export.load(r'{tmp_path}/program.pt2').module(); "
    script += f"torch.save(p(torch.load(r'{tmp_path}/x.pt')).detach(), r'{tmp_path}/y.pt')"
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True)
    close(torch.load(tmp_path / "y.pt"), module(x).detach())


@pytest.mark.parametrize("circuit", [*SUBJECTS.values(), Circuit((2, 3))])
def test_a_circuit_is_read_back_from_its_text(circuit):
    assert kernels.read(circuit.text) == circuit


def first_under_inference(circuit, angles, x):
    with torch.inference_mode():
        columns(circuit, angles, 2), apply(circuit, angles, x)


def first_under_no_grad(circuit, angles, x):
    with torch.no_grad():
        columns(circuit, angles, 2), apply(circuit, angles, x)


def first_under_vmap(circuit, angles, x):
    torch.func.vmap(lambda a: columns(circuit, a, 2))(angles)
    torch.func.vmap(torch.func.jacrev(lambda a, x: apply(circuit, a, x).abs()))(angles, x)


def first_compiled(circuit, angles, x):
    columns_, apply_ = inspect.unwrap(columns), inspect.unwrap(apply)
    (
        compiled(lambda a: columns_(circuit, a, 2))(angles),
        compiled(lambda a, x: apply_(circuit, a, x))(angles, x),
    )


def first_on_fake_tensors(circuit, angles, x):
    with torch._subclasses.FakeTensorMode() as mode:
        fake = mode.from_tensor(angles), mode.from_tensor(x)
        assert columns(circuit, fake[0], 2).shape == (3, circuit.dim, 2)
        assert apply(circuit, *fake).shape == (3, circuit.dim, 2)


def first_in_float32(circuit, angles, x):
    columns(circuit, angles.float(), 2), apply(circuit, angles.float(), x.float())


FIRST = [
    first_under_inference,
    first_under_no_grad,
    first_under_vmap,
    first_compiled,
    first_on_fake_tensors,
    first_in_float32,
]


@pytest.mark.parametrize("first", FIRST, ids=lambda f: f.__name__)
def test_a_plan_made_in_one_mode_serves_another(first):
    """Whatever an engine keeps for a circuit must not belong to the mode it was first called in."""
    # A circuit that no other test has used, so that nothing is kept for it yet.
    marks = [
        Op("CZ", (0, 1)),
        *[Op("RY", (0,))] * (2 + FIRST.index(first)),
        Op("CRX", (0, 1)),
        Op("RY", (2,)),
    ]
    circuit = Circuit((2, 2, 3), marks)
    angles, x = draw(circuit, 3), normal(3, circuit.dim, 2)
    first(circuit, angles, x)
    check(circuit, angles)
    angles.requires_grad_()
    x.requires_grad_()
    (columns(circuit, angles, 2).abs().pow(4).sum() + apply(circuit, angles, x).abs().pow(4).sum()).backward()
    assert angles.grad.isfinite().all() and x.grad.isfinite().all()
    close(torch.func.vmap(lambda a: columns(circuit, a, 2))(angles), columns(circuit, angles, 2))


# --- what one call may cost ---------------------------------------------------------------------------------


def dispatched_operations(width, layers, batch=(3,)):
    """``(all, no views)``: operations of 8 columns forward and backward, once the plan is made."""
    circuit = load("simplified_two_design").circuit(**width, layers=layers)
    angles = draw(circuit, *batch, dtype=torch.float32).requires_grad_()
    cotangent = normal(*batch, circuit.dim, 8, dtype=torch.float32)
    columns(circuit, angles, 8).backward(cotangent)
    with Dispatched() as ops:
        torch.autograd.grad(columns(circuit, angles, 8), angles, cotangent)
    return ops.count, ops.count - ops.views


QUBITS = [{"qubits": q} for q in range(6, 15)]


@pytest.mark.parametrize("name", ["simplified_two_design", "sim06"])
def test_flops_are_those_of_the_torch_form(name):
    circuit = load(name).circuit(qubits=6)
    angles, x = draw(circuit, 3, dtype=torch.float32).requires_grad_(), normal(3, 64, 5, dtype=torch.float32)
    x = x if circuit.is_real else x.to(torch.complex64)

    def flops(run):
        with FlopCounterMode(display=False) as counter:
            run()
        return counter.get_total_flops()

    y = columns(circuit, angles, 8)
    plain, g = angles.detach(), torch.ones_like(y)
    assert flops(lambda: columns(circuit, plain, 8)) == flops(lambda: kernels.columns(plain, circuit.text, 8)) > 0
    assert flops(lambda: apply(circuit, plain, x)) == flops(lambda: kernels.apply(plain, x, circuit.text)) > 0
    found = flops(lambda: torch.autograd.grad(y, angles, g))
    deep = y.detach() if is_deep(circuit, 8) else None
    assert found == flops(lambda: kernels.columns_backward(g, plain, deep, circuit.text, 8)) > 0


@pytest.fixture
def in_torch(monkeypatch):
    """Small results in torch, too."""
    monkeypatch.setattr(kernels, "SMALL", 0)


@pytest.mark.parametrize("batch", [(), (3,), (2, 2)], ids=str)
@pytest.mark.parametrize("name", [*names(), "3x2x2", "3x3x2", "3x5x2"])
def test_numpy_and_torch_make_the_same(name, batch, monkeypatch):
    ansatz = load(name if name in names() else "simplified_two_design")
    circuit = ansatz.circuit(
        **({"qubits": 5} if name in names() else {"dim": prod(map(int, name.split("x")))}), layers=9
    )
    angles = draw(circuit, *batch)
    for k in (1, 2, circuit.dim):
        g = normal(*batch, circuit.dim, k).to(angles.dtype if circuit.is_real else torch.complex128)
        y = kernels.columns(angles, circuit.text, k)
        slopes = kernels.columns_backward(g, angles, y, circuit.text, k)
        with monkeypatch.context() as counted:
            counted.setattr(kernels, "columns", None)  # nobody falls back
            counted.setattr(kernels, "columns_backward", None)
            mine = kernels.fast_columns(angles, circuit.text, k)
            my_slopes = kernels.fast_columns_backward(g, angles, y, circuit.text, k)
        bounds.close(mine, y, bounds.gates(circuit), size=1)
        bounds.close(my_slopes, slopes, bounds.gates(circuit), size=(2 * circuit.dim * k) ** 0.5)


def test_numpy_leaves_memory_that_can_be_resized():
    circuit = load("simplified_two_design").circuit(qubits=6)
    angles = draw(circuit, 2).requires_grad_()
    out = columns(circuit, angles, 8)
    g = normal(2, 64, 8)
    (slope,) = torch.autograd.grad(out, angles, g)
    assert all(x.untyped_storage().resizable() for x in (angles, out, g, slope))


def test_numpy_is_for_small_plain_tensors_on_a_cpu(monkeypatch):
    circuit = load("simplified_two_design").circuit(qubits=6)
    angles = draw(circuit, 2)
    assert kernels.is_small(angles, circuit.text, 8)
    assert not kernels.is_small(angles.to("meta"), circuit.text, 8)
    assert not kernels.is_small(angles.half(), circuit.text, 8)
    assert not kernels.is_small(draw(circuit, 2000), circuit.text, 64)
    assert not kernels.is_small(draw(circuit, 0), circuit.text, 8)


@pytest.mark.parametrize(
    ("width", "most"), [*((width, (100, 45)) for width in QUBITS), ({"dim": 768}, (130, 60))], ids=str
)
def test_few_operations_are_dispatched_however_many_factors(width, most, in_torch):
    for batch in ((), (1,), (24,)) if "qubits" in width else ((1,), (24,)):
        found = dispatched_operations(width, 1, batch)
        assert found[0] <= most[0] and found[1] <= most[1], (batch, found)


@pytest.mark.parametrize("width", [*QUBITS, {"dim": 768}], ids=str)
def test_a_layer_adds_few_operations(width, in_torch):
    counts = np.array([dispatched_operations(width, layers) for layers in range(1, 5)])
    assert (np.diff(counts, axis=0) <= (25, 10)).all(), counts


def objects():
    gc.collect()
    return len(gc.get_objects())


@pytest.mark.parametrize("retain", [False, True], ids=["freed", "retained"])
@pytest.mark.parametrize("hooks", [False, True], ids=["plain", "hooks"])
@pytest.mark.parametrize(
    ("of", "circuit"), [("columns", PAIR), ("columns", DEEP), ("apply", PAIR)], ids=["sum", "deep", "apply"]
)
def test_calls_leave_nothing_behind(of, circuit, hooks, retain):
    """What is kept for the backward pass leads to no cycle, not even through hooks that keep it as it is."""
    angles, x = draw(circuit).requires_grad_(), normal(circuit.dim, 2).requires_grad_()

    def call():
        with saved_tensors_hooks(lambda t: t, lambda t: t) if hooks else nullcontext():
            out = columns(circuit, angles, 2) if of == "columns" else apply(circuit, angles, x)
        torch.autograd.grad(out.sum(), angles, retain_graph=retain)

    for _ in range(50):
        call()
    before = objects()
    for _ in range(200):
        call()
    assert objects() - before < 100


def saved_bytes(run, circuit):
    """Bytes that one call keeps for its backward pass, beside its result, which is the caller's anyway.

    What two calls share is the engine's plan, not a cost of a call, and is not counted either.
    """
    kept, alive = [], []

    def keep(tensor):
        kept[-1].append(tensor)
        return tensor

    for seed in (0, 1):
        angles, x = draw(circuit, 4, seed=seed).requires_grad_(), normal(4, circuit.dim, 8, seed=seed)
        kept.append([])
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            result = run(circuit, angles, x.requires_grad_())
        alive.append((result, angles, x))
    storages = [{t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in call} for call in kept]
    free = {result.untyped_storage().data_ptr(), *storages[0]}
    assert result.requires_grad and storages[1]
    return sum(size for where, size in storages[1].items() if where not in free)


RUNS = {
    "columns": lambda circuit, angles, x: columns(circuit, angles, 8),
    "matrix": lambda circuit, angles, x: matrix(circuit, angles),
    "apply": apply,
}


@pytest.mark.parametrize("layers", range(1, 9))
@pytest.mark.parametrize("run", RUNS.values(), ids=list(RUNS))
def test_the_backward_pass_keeps_the_angles_and_nothing_that_grows_with_the_layers(run, layers):
    circuit = load("simplified_two_design").circuit(qubits=8, layers=layers)
    angles = 4 * 8 * circuit.n_angles
    assert saved_bytes(run, circuit) <= angles + 4096


def test_levels_that_do_nothing_leave_the_columns_alone():
    circuit = Circuit((2, 2), [Op("RY", (0,)), Op("RY", (1,)), Op("SWAP", (0, 1)), Op("SWAP", (0, 1))])
    angles = torch.rand(2, dtype=torch.float64, requires_grad=True)
    wanted = reference.matrix(circuit, angles.detach().numpy())[:, :3]
    close(columns(circuit, angles, 3), wanted)
    assert torch.autograd.gradcheck(lambda a: columns(circuit, a, 3), angles)


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_frames_stay_exact_whatever_precision_torch_multiplies_in(precision):
    circuit = load("simplified_two_design").circuit(qubits=8, layers=2)
    angles = torch.rand(circuit.n_angles)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        frames = [columns(circuit, angles, 8), apply(circuit, angles, torch.eye(circuit.dim)[:, :8])]
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)
    for frame in frames:
        bounds.close(frame.mT @ frame, torch.eye(8), 2 * bounds.gates(circuit))
