"""Entanglement of matrices: theorems, toqito, numpy written out, and Monte Carlo."""

from functools import reduce

import numpy as np
import pytest
import torch
from bounds import close
from qiskit import quantum_info
from toqito import state_ops, state_props

from qcircuit_peft import Circuit, Op, matrix
from qcircuit_peft.analysis import METRICS
from qcircuit_peft.analysis import operators as ours
from qcircuit_peft.analysis.haar import haar_states
from qcircuit_peft.gates import GATES

OF_MATRICES = [name for name, metric in METRICS.items() if metric.of == "matrix"]


def unitary(dim, seed=0):
    return torch.from_numpy(quantum_info.random_unitary(dim, seed=seed).data)


def kron(*matrices):
    return reduce(torch.kron, matrices)


def spectrum_by_hand(m, rows, columns, side):
    """Squared operator-Schmidt coefficients from a matrix that is filled entry by entry."""
    rest = [w for w in range(len(rows)) if w not in side]

    def place(row, column, wires):
        index = 0
        for w in wires:
            index = (index * rows[w] + row[w]) * columns[w] + column[w]
        return index

    shape = [int(np.prod([rows[w] * columns[w] for w in wires])) for wires in (side, rest)]
    filled = np.zeros(shape, dtype=complex)
    for row in np.ndindex(*rows):
        for column in np.ndindex(*columns):
            entry = m[np.ravel_multi_index(row, rows), np.ravel_multi_index(column, columns)]
            filled[place(row, column, side), place(row, column, rest)] = entry
    p = np.linalg.svd(filled, compute_uv=False) ** 2
    return p / p.sum()


@pytest.mark.parametrize(
    "rows, columns, side", [((2, 3, 2), (2, 3, 2), (1,)), ((3, 2, 2), (1, 2, 2), (0, 2)), ((2, 2), (3, 2), (0,))]
)
def test_spectrum_and_entropy_by_hand(rows, columns, side):
    m = torch.randn(int(np.prod(rows)), int(np.prod(columns)), dtype=torch.complex128)
    p = spectrum_by_hand(m.numpy(), rows, columns, side)
    squares = ours.operator_schmidt(m, side, (rows, columns)).square().numpy()
    np.testing.assert_allclose(squares, p, atol=1e-12)
    assert float(ours.operator_entropy(m, side, (rows, columns))) == pytest.approx(-(p * np.log2(p)).sum())


def toqito_spectrum(m, cut):
    dims = [int(np.prod((3, 2, 2)[:cut])), int(np.prod((3, 2, 2)[cut:]))]
    values = state_ops.schmidt_decomposition(m, dims)[0][:, 0]
    return values / np.linalg.norm(values)


def toqito_entropy(m, cut):
    return state_props.von_neumann_entropy(np.diag(toqito_spectrum(m, cut) ** 2))


TOQITO = {  # of a matrix on wires of dimensions 3, 2, 2; the half cut is after the first
    "operator_schmidt": lambda m: toqito_spectrum(m, 1),
    "operator_rank": lambda m: len(toqito_spectrum(m, 1)),
    "operator_entropy": lambda m: toqito_entropy(m, 1),
    "operator_profile": lambda m: [toqito_entropy(m, cut) for cut in (1, 2)],
}
NOT_IN_TOQITO = {"entangling_power"}  # by Monte Carlo, below


@pytest.mark.parametrize("name", OF_MATRICES)
def test_every_measure_is_that_of_toqito(name):
    assert (name in TOQITO) is (name not in NOT_IN_TOQITO)
    few = kron(unitary(3), unitary(4)) + kron(unitary(3, 1), unitary(4, 1))  # rank 2 at the half cut
    for m in (unitary(12), few) if name in TOQITO else ():
        found, wanted = np.atleast_1d(METRICS[name].value(m)), np.atleast_1d(TOQITO[name](m.numpy()))
        wanted = np.pad(wanted, (0, len(found) - len(wanted)))  # toqito leaves out coefficients that are zero
        np.testing.assert_allclose(found, wanted, atol=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_c_crossing_cz_give_rank_at_most_2_to_the_c(seed):
    rng = np.random.default_rng(seed)
    ops = [Op("RY", (w,)) for w in range(6)]
    for _ in range(9):
        a, b = rng.choice(6, 2, replace=False).tolist()
        ops += [Op("CZ", (a, b)), Op("RY", (a,)), Op("RY", (b,))]
    circuit = Circuit((2,) * 6, ops)
    m = matrix(circuit, 6 * torch.rand(circuit.n_angles, dtype=torch.float64))
    for k in range(1, 6):
        crossing = sum((min(op.wires) < k <= max(op.wires)) for op in ops if op.gate == "CZ")
        assert int(ours.operator_rank(m, range(k))) <= 2**crossing
        assert float(ours.operator_entropy(m, range(k))) <= crossing + 1e-9


def test_cz_gates_on_different_wires_reach_the_bound():
    circuit = Circuit((2,) * 5, [Op("CZ", pair) for pair in ((0, 1), (1, 2), (0, 3))])
    m = matrix(circuit, torch.zeros(0, dtype=torch.float64))
    assert [int(ours.operator_rank(m, range(k))) for k in range(1, 5)] == [2, 4, 2, 1]


def test_known_values():
    gates = {name: torch.from_numpy(np.array(GATES[name].matrix(), dtype=float)) for name in ("CZ", "CX", "SWAP")}
    for name, entropy, power in (("CZ", 1, 2 / 9), ("CX", 1, 2 / 9), ("SWAP", 2, 0)):
        assert float(ours.operator_entropy(gates[name])) == pytest.approx(entropy)
        assert float(ours.entangling_power(gates[name])) == pytest.approx(power, abs=1e-12)
    assert float(ours.effective_rank(torch.ones(5, 3))) == pytest.approx(1, abs=1e-4)
    close(ours.effective_rank(torch.diag(torch.tensor([3.0, 1.0]))), 4 / 3**0.75, 16, dtype=torch.float32)


@pytest.mark.parametrize("side", [(0,), (1,), (0, 2)])
def test_entangling_power_by_monte_carlo(side):
    dims, samples = (3, 2, 2), 20000
    rest = [w for w in range(3) if w not in side]
    u = unitary(12)
    generator = torch.Generator().manual_seed(0)
    a, b = (haar_states(samples, int(np.prod([dims[w] for w in wires])), generator=generator) for wires in (side, rest))
    both = torch.einsum("sa,sb->sab", a, b).reshape(samples, *(dims[w] for w in (*side, *rest)))
    back = np.argsort([*side, *rest])
    psi = both.permute(0, *(1 + int(w) for w in back)).reshape(samples, 12)
    linear = 1 - METRICS["purity"].value(psi @ u.T, side, dims)
    error = float(linear.std()) / samples**0.5
    assert float(ours.entangling_power(u, side, dims)) == pytest.approx(float(linear.mean()), abs=4 * error)


@pytest.mark.parametrize("name", OF_MATRICES)
def test_every_measure_sees_nothing_in_a_product_and_local_rotations_do_not_matter(name):
    value, dims = METRICS[name].value, (2, 3, 2)
    local, others = (kron(*(unitary(d, seed) for d in dims)) for seed in (1, 2))
    m = unitary(12)
    torch.testing.assert_close(value(local @ m @ others, dims=dims), value(m, dims=dims), atol=1e-9, rtol=0)
    nothing = value(local, dims=dims).double()
    if name == "operator_schmidt":
        nothing = nothing[1:]
    torch.testing.assert_close(nothing, torch.full_like(nothing, name == "operator_rank"), atol=1e-9, rtol=0)
    both = torch.stack([m, local])
    batched = value(both, dims=dims)
    torch.testing.assert_close(batched, torch.stack([value(one, dims=dims) for one in both]))


@pytest.mark.parametrize("name", METRICS)
def test_an_empty_batch_has_an_empty_result(name):
    one = torch.eye(8)[0] if METRICS[name].of == "state" else torch.eye(8)
    found = METRICS[name].value(one.expand(2, 0, *one.shape))
    assert found.shape == (2, 0, *METRICS[name].value(one).shape)


def test_an_empty_batch_has_no_effective_ranks():
    assert ours.effective_rank(torch.zeros(0, 8, 4)).shape == (0,)


def test_entangling_power_has_a_gradient():
    u = unitary(4).requires_grad_()
    (slope,) = torch.autograd.grad(ours.entangling_power(u), u)
    assert bool(slope.isfinite().all()) and float(slope.abs().max()) > 1e-3


def test_profile_is_the_entropy_of_every_cut():
    m = torch.randn(12, 4, dtype=torch.float64)
    wanted = [ours.operator_entropy(m, range(k)) for k in (1, 2)]
    torch.testing.assert_close(ours.operator_profile(m), torch.stack(wanted))


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: ours.operator_entropy(torch.zeros(4, 4)), "a finite matrix that is not zero"),
        (lambda: ours.operator_entropy(torch.full((4, 4), float("inf"))), "a finite matrix that is not zero"),
        (lambda: ours.operator_entropy(torch.eye(4), [0, 1]), "some but not all of the wires 0 to 1"),
        (lambda: ours.operator_entropy(torch.eye(4), dims=((2, 2), (4,))), "equally many wires"),
        (lambda: ours.operator_entropy(torch.eye(4), dims=(2, 3)), "dimension 4"),
        (lambda: ours.entangling_power(torch.ones(4, 4)), "unitary matrix, got one of shape"),
        (lambda: ours.entangling_power(torch.full((4, 4), float("nan"))), "unitary matrix, got one of shape"),
        (lambda: ours.effective_rank(torch.zeros(2, 2)), "a finite matrix that is not zero"),
    ],
)
def test_bad_input_is_one_sentence(call, said):
    with pytest.raises(ValueError, match=said):
        call()
