"""The files sim01 ... sim19 against the table of Sim, Johnson, Aspuru-Guzik 2019 on four wires, op by op."""

import pytest

from qcircuit_peft import Circuit, Op, load

ALL = [(0,), (1,), (2,), (3,)]
MID = [(1,), (2,)]
STAIR = [(3, 2), (2, 1), (1, 0)]
RING1 = [(3, 0), (2, 3), (1, 2), (0, 1)]
RING2 = [(3, 2), (0, 3), (1, 0), (2, 1)]
PAIRS = [(1, 0), (3, 2)]
LAST = [(2, 1)]
EVERY = [(c, t) for c in (3, 2, 1, 0) for t in (3, 2, 1, 0) if c != t]
RXZ = [("RX", ALL), ("RZ", ALL)]
RYZ = [("RY", ALL), ("RZ", ALL)]

LAYERS = {
    1: RXZ,
    2: [*RXZ, ("CX", STAIR)],
    3: [*RXZ, ("CRZ", STAIR)],
    4: [*RXZ, ("CRX", STAIR)],
    5: [*RXZ, ("CRZ", EVERY), *RXZ],
    6: [*RXZ, ("CRX", EVERY), *RXZ],
    7: [*RXZ, ("CRZ", PAIRS), *RXZ, ("CRZ", LAST)],
    8: [*RXZ, ("CRX", PAIRS), *RXZ, ("CRX", LAST)],
    9: [("H", ALL), ("CZ", STAIR), ("RX", ALL)],
    10: [("CZ", [*STAIR, (3, 0)]), ("RY", ALL)],
    11: [*RYZ, ("CX", PAIRS), ("RY", MID), ("RZ", MID), ("CX", LAST)],
    12: [*RYZ, ("CZ", PAIRS), ("RY", MID), ("RZ", MID), ("CZ", LAST)],
    13: [("RY", ALL), ("CRZ", RING1), ("RY", ALL), ("CRZ", RING2)],
    14: [("RY", ALL), ("CRX", RING1), ("RY", ALL), ("CRX", RING2)],
    15: [("RY", ALL), ("CX", RING1), ("RY", ALL), ("CX", RING2)],
    16: [*RXZ, ("CRZ", [*PAIRS, *LAST])],
    17: [*RXZ, ("CRX", [*PAIRS, *LAST])],
    18: [*RXZ, ("CRZ", RING1)],
    19: [*RXZ, ("CRX", RING1)],
}


def without_cz_order(circuit: Circuit) -> tuple[list, list]:
    """CZ is symmetric and all CZ commute: their pairs in any order, and the other ops."""
    pairs = sorted(tuple(sorted(op.wires)) for op in circuit.ops if op.gate == "CZ")
    return pairs, [op for op in circuit.ops if op.gate != "CZ"]


@pytest.mark.parametrize("layers", [0, 1, 2])
@pytest.mark.parametrize("number", LAYERS)
def test_the_file_is_the_circuit_of_the_table(number, layers):
    once = [("RY", ALL)] if number == 10 else []
    ops = [Op(gate, wires) for gate, on in [*once, *LAYERS[number] * layers] for wires in on]
    wanted = Circuit((2, 2, 2, 2), ops)
    got = load(f"sim{number:02d}").circuit(qubits=4, layers=layers)
    assert without_cz_order(got) == without_cz_order(wanted)
    assert number == 10 or got == wanted
