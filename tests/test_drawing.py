"""Drawings: whole texts of a few circuits, and what must hold of the drawing of every circuit."""

import re
from io import BytesIO

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.patches import Rectangle

from qcircuit_peft import Circuit, Op, load
from qcircuit_peft.ansatz import names
from qcircuit_peft.drawing import draw, draw_mpl
from qcircuit_peft.gates import GATES

every_gate = pytest.mark.parametrize("gate", GATES)
every_circuit = pytest.mark.parametrize("name", names())


DIGITS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")

TWO_DESIGN = """
    ┌────────┐   ┌────────┐
0: ─┤ RY(θ₀) ├─●─┤ RY(θ₃) ├──────────────
    └────────┘ │ └────────┘
    ┌────────┐ │ ┌────────┐   ┌────────┐
1: ─┤ RY(θ₁) ├─●─┤ RY(θ₄) ├─●─┤ RY(θ₅) ├─
    └────────┘   └────────┘ │ └────────┘
    ┌────────┐              │ ┌────────┐
2: ─┤ RY(θ₂) ├──────────────●─┤ RY(θ₆) ├─
    └────────┘                └────────┘
"""

QUTRIT = """
          ┌───────────┐   ┌───────────┐
0 (d=3): ─┤ RY(θ₀…θ₂) ├─●─┤ RY(θ₄…θ₆) ├─
          └───────────┘ │ └───────────┘
            ┌────────┐  │   ┌────────┐
      1: ───┤ RY(θ₃) ├──●───┤ RY(θ₇) ├──
            └────────┘      └────────┘
"""

QUTRIT_WITH_VALUES = """
          +-----------+   +-----------+
0 (d=3): -| RY(0.50~) |-*-| RY(3.00~) |-
          +-----------+ | +-----------+
           +----------+ | +-----------+
      1: --| RY(0.00) |-*-| RY(-3.14) |-
           +----------+   +-----------+
"""

SYMBOLS = """
                                  ┌─────────┐ ┌────────┐ ┌────────┐
0: ─⊕─×─────●─────────────────────┤         ├─┤ RX(θ₀) ├─┤ RZ(θ₃) ├─
    │ │     │                     │         │ └────────┘ └───┬────┘
    │ │     │      ┌────────────┐ │ RZZ(θ₂) │   ┌────┐       │
1: ─┼─×─────┼──────┤1           ├─┼─────────┼───┤ S† ├───────●──────
    │       │      │ GIVENS(θ₁) │ │         │   └────┘
    │   ┌───┴────┐ │            │ │         │
2: ─●───┤ RY(θ₀) ├─┤0           ├─┤         ├───────────────────────
        └────────┘ └────────────┘ └─────────┘
"""

EARLY = """
          ┌───┐
0: ───●───┤ H ├─●───────
      │   └───┘ │ ┌───┐
1: ───┼─────⊕───┼─┤ X ├─
      │     │   │ └───┘
2: ───●─────┼───●───────
    ┌───┐   │
3: ─┤ Z ├───●───────────
    └───┘
"""

WIRES = """
      0: ───

1 (d=3): ───
"""

FOLDED = """
    ┌───┐
0: ─┤ X ├─●───────⋯
    └───┘ │ ┌───┐
1: ───────●─┤ H ├─⋯
            └───┘

0: ⋯─────────────
     ┌───┐ ┌───┐
1: ⋯─┤ H ├─┤ H ├─
     └───┘ └───┘
"""


def test_the_two_design_on_three_qubits():
    assert draw(load("simplified_two_design").circuit(qubits=3, layers=1)) == TWO_DESIGN[1:-1]


def test_a_wire_of_another_dimension_says_so_and_values_take_the_place_of_names():
    circuit = load("simplified_two_design").circuit(dims=(3, 2), layers=1)
    assert draw(circuit) == QUTRIT[1:-1]
    angles = torch.tensor([0.5, 1, 2, -0.001, 3, 4, 5, -np.pi], requires_grad=True)
    assert draw(circuit, angles, style="ascii") == QUTRIT_WITH_VALUES[1:-1]


def test_every_kind_of_symbol():
    ops = [Op("CX", (2, 0)), Op("SWAP", (0, 1)), Op("CRY", (0, 2)), Op("GIVENS", (2, 1)), Op("RZZ", (0, 2))]
    ops += [Op("S", (1,), adjoint=True), Op("RX", (0,), (0,)), Op("CRZ", (1, 0))]
    assert draw(Circuit((2, 2, 2), ops)) == SYMBOLS[1:-1]


def test_an_op_is_as_early_as_its_wires_are_free_and_nothing_is_in_its_way():
    ops = [Op("Z", (3,)), Op("CX", (3, 1)), Op("CZ", (0, 2)), Op("H", (0,)), Op("CZ", (0, 2)), Op("X", (1,))]
    assert draw(Circuit((2, 2, 2, 2), ops)) == EARLY[1:-1]


def test_a_circuit_without_ops_is_its_wires():
    assert draw(Circuit((2, 3))) == WIRES[1:-1]
    assert len(draw_mpl(Circuit((2, 3))).axes[0].lines) == 2


def test_a_long_circuit_folds():
    circuit = Circuit((2, 2), [Op("X", (0,)), Op("CZ", (0, 1)), *[Op("H", (1,))] * 3])
    assert draw(circuit, width=20) == FOLDED[1:-1]


@every_gate
def test_every_gate_draws(gate):
    arity = GATES[gate].wires
    for wires in [(1,), (2,)] if arity == 1 else [(0, 1), (1, 0), (0, 3), (3, 1)]:
        circuit = Circuit((2,) * 4, [Op(gate, wires), Op(gate, wires, adjoint=True)])
        shown = draw(circuit)
        boxed = shown.count("┐")
        assert boxed in (0, 2)
        name = gate.removeprefix("C") if "●" in shown else gate
        assert bool(boxed) == (name in shown) == (name + "†" in shown)
        assert ("θ₀" in shown) == (GATES[gate].angles == 1)
        assert len(draw_mpl(circuit).axes[0].patches) == boxed


@every_circuit
@pytest.mark.parametrize("width", [40, 72, 1000])
def test_nothing_is_lost_or_drawn_over(name, width):
    for qubits in (1, 2, 5):
        circuit = load(name).circuit(qubits=qubits, layers=2)
        shown = draw(circuit, width=width).translate(DIGITS)
        assert max(map(len, shown.splitlines())) <= width
        marks = {"CZ": 2, "CX": 1, "CRX": 1, "CRY": 1, "CRZ": 1}
        assert shown.count("●") == sum(marks.get(op.gate, 0) for op in circuit.ops)
        assert shown.count("⊕") == sum(op.gate == "CX" for op in circuit.ops)
        boxes = sum(op.gate not in ("CZ", "CX") for op in circuit.ops)
        assert [shown.count(corner) for corner in "┌┐└┘"] == [boxes] * 4
        assert sorted(map(int, re.findall(r"θ(\d+)\)", shown))) == list(range(circuit.n_angles))


@every_circuit
def test_on_every_wire_time_runs_from_left_to_right(name):
    circuit = load(name).circuit(qubits=4, layers=2)
    lines = draw(circuit, width=60).translate(DIGITS).splitlines()
    for wire in range(4):
        line = "".join(line for line in lines if line.startswith(f"{wire}:"))
        wanted = []
        for op in circuit.ops:
            if wire in op.wires and op.gate not in ("GIVENS", "H", "RXX"):  # boxes without an angle
                boxed = op.angles and wire == op.wires[-1]
                wanted.append(str(op.angles[0]) if boxed else "⊕" if op.gate == "CX" and wire == op.wires[1] else "●")
        assert re.findall(r"(?<=θ)\d+|[●⊕]", line) == wanted


@every_circuit
def test_a_figure_has_every_wire_and_label(name):
    circuit = load(name).circuit(qubits=3, layers=1)
    for angles in (None, torch.rand(circuit.n_angles)):
        figure = draw_mpl(circuit, angles, width=5)
        (ax,) = figure.axes
        figure.savefig(BytesIO())
        assert figure.get_size_inches()[0] <= 5.01
        wires = [line for line in ax.lines if line.get_gid() == "wire"]
        rows = len({round(line.get_ydata()[0], 6) for line in wires}) // 3
        shown = [label.get_text() for label in ax.texts]
        assert len(wires) == 3 * rows and shown[:3] == ["0", "1", "2"]
        boxed = [op for op in circuit.ops if op.gate not in ("CZ", "CX")]
        assert sum(isinstance(patch, Rectangle) for patch in ax.patches) == len(boxed)
        if angles is None:
            thetas = [rf"$\theta_{{{a}}}$" for a in range(circuit.n_angles)]
        else:
            thetas = [f"{value:.2f}" for value in angles.tolist()]
        assert sorted(t for t in shown if "θ" in t or "theta" in t or "." in t) == sorted(thetas)


def test_a_figure_folds_names_dimensions_and_is_not_left_open():
    circuit = load("simplified_two_design").circuit(dims=(3, 2), layers=3)
    ax = draw_mpl(circuit, width=4).axes[0]
    assert [t.get_text() for t in ax.texts].count("0 (d=3)") == 2
    assert sum(line.get_gid() == "wire" for line in ax.lines) == 4
    assert pyplot.get_fignums() == []


def test_a_figure_goes_where_it_is_told():
    figure, (left, right) = pyplot.subplots(1, 2)
    assert draw_mpl(Circuit((2,), [Op("H", (0,))]), ax=right) is figure
    assert [t.get_text() for t in right.texts] == ["0", "H"] and not left.texts
    pyplot.close(figure)


@pytest.mark.parametrize("drawing", [draw, draw_mpl])
def test_angles_of_another_shape_are_refused(drawing):
    with pytest.raises(ValueError) as error:
        drawing(Circuit((2,), [Op("RX", (0,))]), [0.1, 0.2])
    assert str(error.value) == "angles have shape (1,) for this circuit, got (2,)"


def test_an_unknown_style_is_refused():
    with pytest.raises(ValueError) as error:
        draw(Circuit((2,)), style="latex")
    assert str(error.value) == "a drawing's style is 'text' or 'ascii', got 'latex'"
