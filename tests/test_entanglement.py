"""Measures of states: against PennyLane, toqito, quimb and qiskit, known values, and what defines entanglement."""

from functools import reduce
from itertools import combinations, product
from math import log

import numpy as np
import pennylane as qml
import pytest
import quimb
import torch
from bounds import close
from qiskit import quantum_info
from toqito import state_ops, state_props

from qcircuit_peft import Circuit, Op, state
from qcircuit_peft.analysis import METRICS
from qcircuit_peft.analysis import entanglement as ours
from qcircuit_peft.analysis.haar import haar_states

OF_STATES = [name for name, metric in METRICS.items() if metric.of == "state"]
QUBITS_ONLY = {"concurrence", "stabilizer_entropy"}
BASIS_DEPENDENT = {"stabilizer_entropy"}
DIMS = [(2, 2, 2), (3, 2, 2), (2, 5), (2, 2, 2, 2, 2)]


def states(dims, kind="complex", n=3):
    return haar_states(n, int(np.prod(dims)), kind, torch.Generator().manual_seed(len(dims)))


def kron(matrices):
    return reduce(torch.kron, matrices)


def product_states(dims, n=2):
    vectors = [[states((d,), n=n)[k] for d in dims] for k in range(n)]
    return torch.stack([kron(row) for row in vectors])


def pennylane_purities(rho, size):
    return [qml.math.purity(rho, wires) for wires in combinations(range(4), size)]


def symmetric(of_pair):
    found = np.zeros((4, 4))
    for i, j in combinations(range(4), 2):
        found[i, j] = found[j, i] = of_pair(i, j)
    return found


# The same measures of four qubits elsewhere, from the state psi and its density matrix rho; cuts are the half cut.
PENNYLANE = {
    "meyer_wallach": lambda psi, rho: 2 - 2 * np.mean(pennylane_purities(rho, 1)),
    "scott_2": lambda psi, rho: 4 / 3 * (1 - np.mean(pennylane_purities(rho, 2))),
    "purity": lambda psi, rho: qml.math.purity(rho, [0, 1]),
    "entropy": lambda psi, rho: qml.math.vn_entropy(rho, [0, 1], base=2),
    "entropy_profile": lambda psi, rho: [
        qml.math.vn_entanglement_entropy(rho, range(k), range(k, 4), base=2) for k in (1, 2, 3)
    ],
    "mutual_information": lambda psi, rho: symmetric(lambda i, j: qml.math.mutual_info(rho, [i], [j], base=2)),
}
TOQITO = {
    "purity": lambda psi, rho: state_props.purity(qml.math.reduce_dm(rho, [0, 1])),
    "entropy": lambda psi, rho: state_props.von_neumann_entropy(qml.math.reduce_dm(rho, [0, 1])),
    "negativity": lambda psi, rho: state_props.negativity(rho, [4, 4]),
    "log_negativity": lambda psi, rho: state_props.log_negativity(rho, [4, 4]),
    "schmidt_rank": lambda psi, rho: state_props.schmidt_rank(psi, [4, 4]),
    "schmidt_gap": lambda psi, rho: -np.diff(state_ops.schmidt_decomposition(psi, [4, 4])[0][:2, 0] ** 2).item(),
    "schmidt_values": lambda psi, rho: state_ops.schmidt_decomposition(psi, [4, 4])[0][:, 0],
    "concurrence": lambda psi, rho: symmetric(
        lambda i, j: state_props.concurrence(qml.math.reduce_dm(rho, [i, j])),
    ),
}
IN_NEITHER = {"stabilizer_entropy"}


@pytest.mark.parametrize("kind", ["real", "complex"])
@pytest.mark.parametrize("name", OF_STATES)
def test_every_measure_is_that_of_pennylane_and_toqito(name, kind):
    references = [table[name] for table in (PENNYLANE, TOQITO) if name in table]
    assert bool(references) is (name not in IN_NEITHER)
    for psi in states((2,) * 4, kind):
        wanted = METRICS[name].value(psi).double().numpy()
        for reference in references:
            found = reference(psi.numpy(), torch.outer(psi, psi.conj()).resolve_conj().numpy())
            np.testing.assert_allclose(wanted, found, atol=1e-7)


def test_entropies_are_those_of_quimb():
    for dims in DIMS:
        for psi in states(dims):
            ket = quimb.qu(psi.numpy(), qtype="ket")
            for k in range(1, len(dims)):
                for wires in combinations(range(len(dims)), k):
                    wanted = quimb.entropy_subsys(ket, dims, wires)
                    assert float(ours.entropy(psi, wires, dims)) == pytest.approx(wanted, abs=1e-9)


def test_negativity_of_parts_is_that_of_quimb():
    dims = (2, 3, 2, 2)
    for psi in states(dims):
        ket = quimb.qu(psi.numpy(), qtype="ket")
        for a, b in [((0,), (1,)), ((1,), (3,)), ((0, 2), (1,)), ((2,), (0, 1))]:
            wanted = quimb.logneg_subsys(ket, dims, list(a), list(b))
            assert float(ours.log_negativity(psi, a, b, dims)) == pytest.approx(wanted, abs=1e-9)
        whole = quimb.logneg_subsys(ket, dims, [0, 1], [2, 3])
        assert float(ours.log_negativity(psi, (0, 1), dims=dims)) == pytest.approx(whole, abs=1e-9)
        explicit = ours.negativity(psi, (0, 1), (2, 3), dims)
        assert float(ours.negativity(psi, (0, 1), dims=dims)) == pytest.approx(float(explicit), abs=1e-9)


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("kind", ["real", "complex"])
def test_pairs_are_those_of_qiskit(n, kind):
    psi = states((2,) * n, kind, 1)[0]
    whole = quantum_info.Statevector(psi.numpy())
    for i, j in combinations(range(n), 2):
        # qiskit counts wires from the least significant
        rest = [n - 1 - w for w in range(n) if w not in (i, j)]
        pair = quantum_info.partial_trace(whole, rest) if rest else quantum_info.DensityMatrix(whole)
        concurrence = ours.concurrence(psi)
        information = ours.mutual_information(psi)
        assert float(concurrence[i, j]) == pytest.approx(quantum_info.concurrence(pair), abs=1e-6)
        assert float(information[i, j]) == pytest.approx(quantum_info.mutual_information(pair), abs=1e-8)
        assert concurrence[j, i] == concurrence[i, j] and information[j, i] == information[i, j]
    assert not concurrence.diagonal().any() and not information.diagonal().any()


def test_meyer_wallach_and_scott_from_qiskit_purities():
    for m in (1, 2, 3):
        psi = states((2,) * 5, n=1)[0]
        whole = quantum_info.Statevector(psi.numpy())
        purities = [
            quantum_info.purity(quantum_info.partial_trace(whole, list(rest))).real
            for rest in combinations(range(5), 5 - m)
        ]
        wanted = 2**m / (2**m - 1) * (1 - np.mean(purities))
        assert float(ours.scott(psi, m)) == pytest.approx(wanted, abs=1e-12)
    assert torch.equal(ours.meyer_wallach(psi), ours.scott(psi, 1))


def test_known_values():
    bell = torch.tensor([1.0, 0, 0, 1], dtype=torch.float64) / 2**0.5
    ghz = torch.zeros(16, dtype=torch.float64)
    ghz[0] = ghz[15] = 2**-0.5
    w = torch.zeros(8, dtype=torch.float64)
    w[[1, 2, 4]] = 3**-0.5
    qutrits = torch.eye(3, dtype=torch.float64).flatten() / 3**0.5
    same = torch.testing.assert_close
    one = torch.ones((), dtype=torch.float64)
    same(ours.entropy(bell), one)
    same(ours.negativity(bell), one / 2)
    same(ours.schmidt_gap(bell), 0 * one, atol=1e-12, rtol=0)
    same(ours.meyer_wallach(ghz), one)
    same(ours.scott(ghz, 2), one * 2 / 3)
    same(ours.entropy_profile(ghz), one.repeat(3))
    assert ours.schmidt_rank(ghz) == 2 and ours.schmidt_rank(qutrits, dims=(3, 3)) == 3
    same(ours.concurrence(ghz).abs().max(), 0 * one, atol=1e-12, rtol=0)
    same(ours.concurrence(w)[0, 1], one * 2 / 3)
    same(ours.meyer_wallach(w), one * 8 / 9)
    same(ours.entropy(qutrits, dims=(3, 3)), one * np.log2(3))
    same(ours.meyer_wallach(qutrits, dims=(3, 3)), one)


@pytest.mark.parametrize("alpha", [0.5, 2.0, 3.0, float("inf")])
def test_renyi_entropies_by_their_definition(alpha):
    psi = states((2, 2, 2, 2), n=1)[0]
    p = np.linalg.eigvalsh(quantum_info.partial_trace(quantum_info.Statevector(psi.numpy()), [0, 1]).data)
    wanted = -np.log2(p.max()) if alpha == float("inf") else np.log2((p**alpha).sum()) / (1 - alpha)
    assert float(ours.entropy(psi, alpha=alpha)) == pytest.approx(wanted, abs=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_renyi_entropies_near_the_one_of_shannon(dtype):
    p = torch.tensor([0.5, 0.3, 0.2 - 1e-30, 1e-30, 0.0], dtype=dtype)
    shannon, steps = float(ours.entropy_of(p.double())), [2.0**-k for k in range(2, 53, 5)]
    spread = float((p.double() * torch.where(p > 0, p.double(), 1).log2().square()).sum()) - shannon**2
    for step in steps:
        for alpha in (1 - step, 1 + step):  # to first order H falls with alpha by ln 2 / 2 times the spread of log2 p
            wanted = shannon - (alpha - 1) * log(2) / 2 * spread
            found = float(ours.entropy_of(p, alpha))
            assert abs(found - wanted) <= 8 * torch.finfo(dtype).eps + 40 * step**2, (alpha, found, wanted)


def test_stabilizer_entropy_from_pauli_strings():
    paulis = [np.eye(2), [[0, 1], [1, 0]], [[0, -1j], [1j, 0]], np.diag([1, -1])]
    for psi in states((2, 2, 2)).numpy():
        values = [(psi.conj() @ reduce(np.kron, string) @ psi).real for string in product(paulis, repeat=3)]
        for alpha in (0.5, 2.0, 3.0):
            p = np.square(values) / 8
            wanted = np.log2((p**alpha).sum()) / (1 - alpha) - 3
            assert float(ours.stabilizer_entropy(torch.from_numpy(psi), alpha)) == pytest.approx(wanted, abs=1e-9)


def test_a_clifford_state_has_no_magic_and_a_t_gate_has_some():
    ops = [Op("H", (0,)), Op("CX", (0, 1)), Op("S", (1,)), Op("CZ", (1, 2)), Op("H", (2,)), Op("Y", (0,))]
    clifford = state(Circuit((2, 2, 2), ops), torch.zeros(0, dtype=torch.float64))
    magic = state(Circuit((2, 2, 2), [Op("H", (0,)), Op("T", (0,)), *ops]), torch.zeros(0, dtype=torch.float64))
    assert float(ours.stabilizer_entropy(clifford)) == pytest.approx(0, abs=1e-12)
    assert float(ours.stabilizer_entropy(magic)) == pytest.approx(np.log2(4 / 3), abs=1e-12)


NOT_ENTANGLED = {"purity": 1.0, "schmidt_rank": 1.0, "schmidt_gap": 1.0}


@pytest.mark.parametrize("name", OF_STATES)
@pytest.mark.parametrize("dims", DIMS)
def test_every_measure_sees_nothing_in_a_product_state_and_local_rotations_do_not_matter(name, dims):
    value = METRICS[name].value
    if name in QUBITS_ONLY and any(d != 2 for d in dims):
        with pytest.raises(ValueError, match="is defined on qubits"):
            value(states(dims), dims=dims)
        return
    if name == "scott_2" and len(dims) == 2:
        with pytest.raises(ValueError, match="m of Q_m is a whole number 1 to 1, got 2"):
            value(states(dims), dims=dims)
        return
    nothing = value(product_states(dims), dims=dims).double()
    if name == "schmidt_values":
        nothing = nothing[..., 1:]
    if name not in BASIS_DEPENDENT:
        wanted = torch.full_like(nothing, NOT_ENTANGLED.get(name, 0.0))
        torch.testing.assert_close(nothing, wanted, atol=1e-7, rtol=0)
        local = kron([torch.from_numpy(quantum_info.random_unitary(d, seed=d).data) for d in dims])
        psi = states(dims)
        torch.testing.assert_close(value(psi @ local.T, dims=dims), value(psi, dims=dims), atol=1e-7, rtol=0)


@pytest.mark.parametrize("name", OF_STATES)
def test_every_measure_is_batched_and_works_in_single_precision(name):
    value, psi = METRICS[name].value, states((2, 2, 2), n=6)
    all_at_once = value(psi.reshape(2, 3, 8))
    torch.testing.assert_close(all_at_once.flatten(0, 1), torch.stack([value(one) for one in psi]))
    single = value(psi.to(torch.complex64))
    assert single.dtype in (torch.float32, torch.int64)
    close(single, value(psi), 64, dtype=torch.float32)


@pytest.mark.parametrize("name", [name for name in OF_STATES if name != "schmidt_rank"])
def test_gradients_are_right_and_finite_at_product_states(name):
    value = METRICS[name].value
    circuit = Circuit((2, 2, 2), [Op("RY", (0,)), Op("RY", (1,)), Op("CZ", (0, 1)), Op("RY", (1,)), Op("CX", (1, 2))])

    def total(angles):
        found = value(state(circuit, angles))
        return (found * torch.linspace(1, 2, found.numel(), dtype=found.dtype).reshape(found.shape)).sum()

    for angles in (torch.zeros(3), torch.tensor([0.0, torch.pi, 0.0])):
        for dtype in (torch.float32, torch.float64):
            at = angles.to(dtype).requires_grad_()
            assert torch.autograd.grad(total(at), at)[0].isfinite().all()
    angles = torch.tensor([0.4, 1.1, 0.7], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(total, angles)


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: ours.entropy(torch.ones(4)), "a state has norm 1, got a norm that is off by 1"),
        (lambda: ours.entropy(torch.full((4,), float("nan"))), "a state has norm 1"),
        (
            lambda: ours.entropy(torch.eye(4)[0], [0, 1]),
            r"some but not all of the wires 0 to 1, once each, got \(0, 1\)",
        ),
        (lambda: ours.entropy(torch.eye(4)[0], []), r"got \(\)"),
        (lambda: ours.entropy(torch.eye(4)[0], [2]), "one side of a cut has whole numbers 0 to 1, got 2"),
        (lambda: ours.entropy(torch.eye(8)[0], [1, 1]), r"got \(1, 1\)"),
        (lambda: ours.entropy(torch.eye(4)[0], dims=(3, 2)), r"dimension 4, got \(3, 2\)"),
        (lambda: ours.meyer_wallach(torch.eye(4)[0], dims=(1, 4)), "wire dimensions has whole numbers >= 2, got 1"),
        (lambda: ours.entropy(torch.eye(3)[0]), "two or more wires, got 1"),
        (lambda: ours.entropy(torch.eye(4)[0], alpha=0), "alpha of an entropy is above 0, got 0"),
        (lambda: ours.entropy(torch.eye(4, dtype=torch.float16)[0]), "complex128 tensor .* got torch.float16"),
        (lambda: ours.negativity(torch.eye(8)[0], [0], [0, 1]), "no wire in common"),
        (lambda: ours.scott(torch.eye(8)[0], 3), "m of Q_m is a whole number 1 to 2, got 3"),
    ],
)
def test_bad_input_is_one_sentence(call, said):
    with pytest.raises(ValueError, match=said) as error:
        call()
    assert "\n" not in str(error.value)
