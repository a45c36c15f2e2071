"""A family is found again in its circuits, or it is said why not: never another one."""

import pytest

from qcircuit_peft import Ansatz, Circuit, Op, Step, load
from qcircuit_peft.ansatz import WIRINGS, names
from qcircuit_peft.circuit import Affine
from qcircuit_peft.gates import GATES
from qcircuit_peft.patterns import family_of


def same(one: Ansatz, other: Ansatz) -> bool:
    places = ((n, layers) for n in (2, 3, 5, 6, 8) for layers in (0, 2))
    return all(one.circuit(qubits=n, layers=layers) == other.circuit(qubits=n, layers=layers) for n, layers in places)


@pytest.mark.parametrize("name", names())
def test_every_shipped_family_is_known_by_one_circuit_and_never_taken_for_another(name: str) -> None:
    family = load(name)
    large = family.circuit(qubits=7, layers=2)
    found = family_of(large, name="mine")
    assert same(found, family) and found.name == "mine"
    for n in (2, 3, 4, 6):
        small = family.circuit(qubits=n, layers=3)
        try:
            assert same(family_of(small), family)
        except ValueError as error:
            assert "several families" in str(error)
        assert same(family_of(small, large), family)


def test_wires_of_several_levels_are_wires() -> None:
    family = load("simplified_two_design")
    assert same(family_of(family.circuit(dim=3 * 2**6, layers=2)), family)


@pytest.mark.parametrize("wiring", WIRINGS)
def test_every_wiring_is_known(wiring: str) -> None:
    gate = "RZ" if wiring == "each" else "CRZ"
    family = Ansatz("one", first=[Step("H", "each")], layer=[Step((gate, "RX"), wiring)], last=[Step("RY", "each")])
    found = family_of(family.circuit(qubits=7, layers=2))
    assert same(found, family)


def test_gates_in_turn_are_not_gates_one_after_the_other() -> None:
    turns = Ansatz("turns", layer=[Step(["RY", "CZ"], "line")])
    after = Ansatz("after", layer=[Step("RY", "line"), Step("CZ", "line")])
    for family in (turns, after):
        assert same(family_of(family.circuit(qubits=5, layers=3)), family)


def test_what_is_ambiguous_names_a_width_that_decides() -> None:
    brick = load("simplified_two_design")
    with pytest.raises(
        ValueError, match=r"several families, with RY on each or RY on even_pairs, .* on 7 wires as well"
    ):
        family_of(brick.circuit(qubits=6, layers=3))
    assert same(family_of(brick.circuit(qubits=6, layers=3), brick.circuit(qubits=7, layers=2)), brick)
    with pytest.raises(ValueError, match="the circuits on 7, 6 wires are of no common family"):
        family_of(brick.circuit(qubits=7, layers=2), load("tree").circuit(qubits=6, layers=2))


@pytest.mark.parametrize(
    ("circuit", "says"),
    [
        (load("tree").circuit(qubits=7, layers=1), r"has no pattern of gates on the wirings each, .* twice or more"),
        (Circuit((2,) * 3, 2 * [Op("RY", (1,)), Op("CZ", (0, 1))]), "has no pattern"),
        (Circuit((2, 2), []), "has no pattern"),
        (Circuit((2, 2), 4 * [Op("RY", (0,), (0,))]), "an angle each of their own, in time order"),
        (Circuit((2, 2), [Op("S", (0,), adjoint=True)]), "none is adjoint"),
        (Circuit((2,), [Op("RY", (0,))], [Affine(((0, 2.0),))]), "an angle each of their own"),
        ("tree", "read from a Circuit, got 'tree'"),
    ],
)
def test_what_is_of_no_family_is_refused(circuit: Circuit, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        family_of(circuit)


def test_a_long_circuit_of_no_pattern_takes_bounded_time() -> None:
    gates = [gate for gate in GATES if GATES[gate].wires == 1]
    ops = [Op(gates[number * number % 97 % len(gates)], (number * 7 % 11,)) for number in range(2000)]
    with pytest.raises(ValueError, match="no pattern"):
        family_of(Circuit((2,) * 11, ops))


def test_a_long_circuit_without_a_pattern_is_no_recursion():
    ops = [Op(("RY", "H")[seed % 3 == 0], (wire,)) for seed in range(900) for wire in range(2)]
    with pytest.raises(ValueError):
        family_of(Circuit((2, 2), [*ops, *[Op("CX", (0, 1)), Op("RY", (0,)), Op("RY", (1,))] * 300]))
