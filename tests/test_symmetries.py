"""Circuits with a symmetry, by what it makes of their matrices: ones kept, minors, free fermions."""

from itertools import combinations

import numpy as np
import pytest
import torch
from bounds import close, gates

from qcircuit_peft import load, matrix
from qcircuit_peft.analysis import lie_dimension
from qcircuit_peft.gates import GATES

N = 4
ONES = np.array([index.bit_count() for index in range(1 << N)])


def made(name, layers=3):
    circuit = load(name).circuit(qubits=N, layers=layers)
    angles = 2 * torch.pi * torch.rand(circuit.n_angles, generator=torch.Generator().manual_seed(0)).double()
    return circuit, matrix(circuit, angles).numpy()


@pytest.mark.parametrize("name", ["givens_butterfly", "compound_brickwall"])
def test_the_number_of_ones_is_kept(name):
    circuit, u = made(name)
    assert circuit.is_real and {op.gate for op in circuit.ops} == {"GIVENS"}
    close(u[ONES[:, None] != ONES], np.zeros((ONES[:, None] != ONES).sum()), gates(circuit), size=1)
    for ones in range(1, N):
        block = u[np.ix_(ones == ONES, ones == ONES)]
        assert np.abs(block - np.diag(block.diagonal())).max() > 0.1


def test_a_compound_circuit_is_all_minors_of_one_rotation():
    """On the states with k ones the k-th compound matrix of what is done to a single one; wires in their order."""
    circuit, u = made("compound_brickwall")
    single = [1 << (N - 1 - wire) for wire in range(N)]
    rotation = u[np.ix_(single, single)]
    for k in range(1, N + 1):
        subsets = list(combinations(range(N), k))
        states = [sum(single[wire] for wire in subset) for subset in subsets]
        minors = [[np.linalg.det(rotation[np.ix_(a, b)]) for b in subsets] for a in subsets]
        close(u[np.ix_(states, states)], np.array(minors), 4 * gates(circuit), size=1)
    others = made("givens_butterfly")[1]
    rotation = others[np.ix_(single, single)]
    minor = np.linalg.det(rotation[np.ix_((0, 1), (0, 2))])
    assert abs(others[single[0] + single[1], single[0] + single[2]] - minor) > 1e-3  # pairs that are no neighbours


def test_matchgates_move_majorana_operators_among_themselves():
    circuit, u = made("matchgate_brickwall")
    x, y, z = (GATES[gate].matrix() for gate in "XYZ")
    majoranas = []
    for wire in range(N):
        for pauli in (x, y):
            whole = np.eye(1)
            for factor in [*[z] * wire, pauli, *[np.eye(2)] * (N - wire - 1)]:
                whole = np.kron(whole, factor)
            majoranas.append(whole)
    moved = [u @ one @ u.conj().T for one in majoranas]
    orthogonal = np.array([[np.trace(a @ b).real / len(u) for b in moved] for a in majoranas])
    for column, one in enumerate(moved):
        close(one, np.einsum("a,aij->ij", orthogonal[:, column], np.array(majoranas)), 8 * gates(circuit), size=1)
    close(orthogonal.T @ orthogonal, np.eye(2 * N), 8 * gates(circuit))
    close(u[(ONES[:, None] + ONES) % 2 == 1], np.zeros(128), gates(circuit), size=1)


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_the_symmetry_bounds_the_directions(n):
    def directions(name):
        return lie_dimension(load(name).circuit(qubits=n, layers=2 * n))

    assert directions("matchgate_brickwall") == n * (2 * n - 1)  # so(2 n)
    assert directions("compound_brickwall") == n * (n - 1) // 2  # so(n)
