"""Circuits as text and as matplotlib figures: wire 0 on top, time from left to right.

A dot is a control, two dots are CZ, a dot and ⊕ are CX, two crosses are SWAP. Every other gate is a box.
A box over two wires numbers the gate's first wire 0 and its second 1, unless it treats them alike.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qcircuit_peft.circuit import Circuit, Op

if TYPE_CHECKING:  # text needs none of it
    import matplotlib.axes
    import matplotlib.figure
from qcircuit_peft.gates import GATES

Angles = Tensor | NDArray | Sequence[float]

_SUBSCRIPT = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
_ASCII = str.maketrans("─│┌┐└┘├┤┬┴┼●⊕×†θ₀₁₂₃₄₅₆₇₈₉…⋯", "-|++++||+++*Xx't0123456789~~")


@dataclass(frozen=True)
class _Symbol:
    """What stands for an op: marks on wires, and a box over wires with a name and angles."""

    marks: dict[int, str]
    box: tuple[int, ...] = ()
    name: str = ""
    angles: str = ""
    ports: bool = False

    @property
    def text(self) -> str:
        return f"{self.name}({self.angles})" if self.angles else self.name

    @property
    def span(self) -> range:
        """All wires from the uppermost to the lowest, those only crossed included."""
        wires = (*self.marks, *self.box)
        return range(min(wires), max(wires) + 1)


def _symbol(op: Op, labels: list[str]) -> _Symbol:
    gate, positions = GATES[op.gate], op.angles or ()
    signs, _, name = gate.drawing.partition(" ")
    marks = dict(zip(op.wires, signs, strict=False))
    if len(marks) == gate.wires:
        return _Symbol(marks)
    angles = "".join(labels[a] for a in positions[:1])
    if len(positions) > 1:
        run = angles.startswith("θ") and all(b == a + 1 for a, b in pairwise(positions))
        angles += f"…{labels[positions[-1]]}" if run else "…"
    dagger = "†" if op.adjoint else ""
    ports = False
    if gate.wires == 2 and not marks:
        matrix = gate.matrix((0.7,) * gate.angles).reshape(2, 2, 2, 2)
        ports = not np.allclose(matrix, matrix.transpose(1, 0, 3, 2))
    return _Symbol(marks, op.wires[len(marks) :], (name or gate.name) + dagger, angles, ports)


def _columns(circuit: Circuit, angles: Angles | None) -> list[list[_Symbol]]:
    """The symbols of every moment: each as early as its wires are free and no other symbol is in its way."""
    if angles is None:
        thetas = [f"θ{a}".translate(_SUBSCRIPT) for a in range(circuit.n_angles)]
        labels = [one.text(thetas, times="") for one in circuit.made]
    else:
        vector = torch.as_tensor(angles, dtype=torch.float64)
        if vector.shape != (circuit.n_angles,):
            wanted = (circuit.n_angles,)
            raise ValueError(f"angles have shape {wanted} for this circuit, got {tuple(vector.shape)}")
        labels = [f"{one(vector.tolist()):z.2f}" for one in circuit.made]
    columns: list[list[_Symbol]] = []
    free = [0] * len(circuit.dims)
    taken: set[tuple[int, int]] = set()
    for op in circuit.ops:
        symbol = _symbol(op, labels)
        at = max(free[wire] for wire in op.wires)
        while any((wire, at) in taken for wire in symbol.span):
            at += 1
        taken.update((wire, at) for wire in symbol.span)
        for wire in op.wires:
            free[wire] = at + 1
        columns.extend([] for _ in range(at + 1 - len(columns)))
        columns[at].append(symbol)
    return columns


def _fold(widths: Sequence[float], limit: float) -> list[slice]:
    """Slices of columns that fit the limit together, at least one column each."""
    starts, used = [0], 0.0
    for column, width in enumerate(widths):
        if used and used + width > limit:
            starts.append(column)
            used = 0.0
        used += width
    return [slice(start, stop) for start, stop in pairwise([*starts, len(widths)])]


def _wire_names(circuit: Circuit) -> list[str]:
    return [f"{wire}" if d == 2 else f"{wire} (d={d})" for wire, d in enumerate(circuit.dims)]


def draw(circuit: Circuit, angles: Angles | None = None, style: str = "text", width: int = 100) -> str:
    """The circuit in lines of at most ``width`` characters, or one gate, folded into blocks joined at ``⋯``.

    Boxes show the positions of their angles, θ₀, θ₁, ..., or the values of ``angles``, (n_angles,), in
    radians; of several values the first. ``style`` is "text", or "ascii" for terminals without Unicode.
    Raises ValueError for angles of another shape or another style.

    >>> print(draw(Circuit((2, 2), [Op("H", (0,)), Op("CX", (0, 1)), Op("RY", (1,))])))
        ┌───┐
    0: ─┤ H ├─●────────────
        └───┘ │ ┌────────┐
    1: ───────⊕─┤ RY(θ₀) ├─
                └────────┘
    """
    if style not in ("text", "ascii"):
        raise ValueError(f"a drawing's style is 'text' or 'ascii', got {style!r}")
    names = [f"{name}: " for name in _wire_names(circuit)]
    indent = max(map(len, names))
    columns = _columns(circuit, angles)
    widths = [max(len(s.text) + 4 if s.box else 1 for s in column) for column in columns]
    blocks = []
    folds = _fold([w + 1 for w in widths], width - indent - 3)
    for fold in folds:
        head, tail = "⋯" * (fold is not folds[0]), "⋯" * (fold is not folds[-1])
        lines: list[str] = []
        for row, line in enumerate(_text_rows(columns[fold], widths[fold], len(names))):
            if row % 3 == 1:
                line = names[row // 3].rjust(indent) + head + line + tail
            else:
                line = " " * (indent + len(head)) + line
            if row and row % 3 == 0 and all(a == b or " " in a + b for a, b in zip(lines[-1], line, strict=True)):
                line = "".join(map(max, lines.pop(), line))  # one row does where two do not collide
            lines.append(line)
        blocks.append("\n".join(line.rstrip() for line in lines).strip("\n"))
    text = "\n\n".join(blocks)
    return text.translate(_ASCII) if style == "ascii" else text


def _text_rows(columns: list[list[_Symbol]], widths: list[int], n_wires: int) -> list[str]:
    """Three rows a wire: above it, on it, below it."""
    length = max(sum(widths) + len(widths) + 1, 3)
    rows = [list(("─" if row % 3 == 1 else " ") * length) for row in range(3 * n_wires)]
    x = 1
    for column, width in zip(columns, widths, strict=True):
        for symbol in column:
            _paint(rows, symbol, x + (width - 1) // 2)
        x += width + 1
    return ["".join(row) for row in rows]


def _paint(rows: list[list[str]], symbol: _Symbol, x: int) -> None:
    above, below = symbol.span[0], symbol.span[-1]
    for row in range(3 * above + 1, 3 * below + 2):
        rows[row][x] = "┼" if row % 3 == 1 else "│"
    if symbol.box:
        top, bottom, size = 3 * min(symbol.box), 3 * max(symbol.box) + 2, len(symbol.text) + 2
        label = (top + bottom) // 2 - (len(symbol.box) > 1 and (top + bottom) // 2 % 3 == 1)
        for row in range(top, bottom + 1):
            left, fill, right = "│ │"
            if row in (top, bottom):
                left, fill, right = "┌─┐" if row == top else "└─┘"
            elif row % 3 == 1:
                left, fill, right = "┤ ├" if row // 3 in symbol.box else "┼─┼"
            inside = f" {symbol.text} " if row == label else fill * size
            start = x - (size + 1) // 2
            rows[row][start : start + size + 2] = [left, *inside, right]
        if above < min(symbol.box):
            rows[top][x] = "┴"
        if below > max(symbol.box):
            rows[bottom][x] = "┬"
        if symbol.ports:
            for port, wire in enumerate(symbol.box):
                rows[3 * wire + 1][x - (size + 1) // 2 + 1] = str(port)
    for wire, mark in symbol.marks.items():
        rows[3 * wire + 1][x] = mark


_INCH, _BOX, _GAP = 0.55, 0.64, 0.25  # inches between two wires, which is the unit of all other lengths
_LINE = {"color": "black", "lw": 0.8}
_MARKERS = {"●": [("o", 6, "black")], "⊕": [("o", 14, "white"), ("+", 14, "black")], "×": [("x", 9, "black")]}


def draw_mpl(
    circuit: Circuit, angles: Angles | None = None, ax: "matplotlib.axes.Axes | None" = None, width: float = 10.0
) -> "matplotlib.figure.Figure":
    """The circuit as a matplotlib figure, folded into rows of at most ``width`` inches.

    ``angles`` is as in ``draw``. Without ``ax`` the figure is new, of the size of the drawing, and not one of
    pyplot's open figures. Raises ValueError for angles of another shape.

    >>> figure = draw_mpl(Circuit((2, 2), [Op("RY", (0,)), Op("CZ", (0, 1))]))
    >>> [text.get_text() for text in figure.axes[0].texts]
    ['0', '1', 'RY', '$\\\\theta_{0}$']
    """
    names, columns = _wire_names(circuit), _columns(circuit, angles)
    widths = [max(_size(symbol) for symbol in column) + _GAP for column in columns]
    indent = 0.3 + 0.13 * max(map(len, names))
    folds = _fold(widths, width / _INCH - indent - _GAP)
    length = max(sum(widths[fold]) for fold in folds) + 2 * _GAP
    height = len(folds) * (len(names) + 0.5) - 0.5
    if ax is None:
        from matplotlib import pyplot

        figure = pyplot.figure(figsize=((indent + length + 0.15) * _INCH, height * _INCH))
        pyplot.close(figure)
        ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(-indent, length + 0.15), ylim=(0.5 - height, 0.5), aspect="equal")
    ax.set_axis_off()
    for number, fold in enumerate(folds):
        y = -number * (len(names) + 0.5)
        end = length if fold is not folds[-1] else sum(widths[fold]) + 2 * _GAP
        for wire, name in enumerate(names):
            ax.plot([0, end], [y - wire] * 2, **_LINE, zorder=0, gid="wire")
            ax.text(-0.12, y - wire, name, ha="right", va="center", size=9)
        x = _GAP
        for column, size in zip(columns[fold], widths[fold], strict=True):
            x += size / 2
            for symbol in column:
                _plot(ax, symbol, x, y)
            x += size / 2
    return ax.figure  # type: ignore[return-value]


def _size(symbol: _Symbol) -> float:
    """The width of a symbol, in distances of two wires."""
    return max(_BOX, 0.16 * len(symbol.name) + 0.2, 0.13 * len(symbol.angles) + 0.2) if symbol.box else 0.4


def _plot(ax: "matplotlib.axes.Axes", symbol: _Symbol, x: float, y: float) -> None:
    """The symbol with its centre at x; wire 0 is at height y."""
    ax.plot([x, x], [y - symbol.span[0], y - symbol.span[-1]], **_LINE, zorder=1)
    if symbol.box:
        low, high, size = y - max(symbol.box), y - min(symbol.box), _size(symbol)
        corner, height = (x - size / 2, low - _BOX / 2), high - low + _BOX
        fill = "#d9e6f5" if symbol.angles else "white"
        from matplotlib.patches import Rectangle

        ax.add_patch(Rectangle(corner, size, height, facecolor=fill, edgecolor="black", lw=0.8, zorder=2))
        for wire in set(range(min(symbol.box), max(symbol.box))) - set(symbol.box):
            ax.plot([x - size / 2, x + size / 2], [y - wire] * 2, **_LINE, zorder=3)
        middle = (low + high) / 2 + (0.5 if (high - low) % 2 == 0 and high > low else 0)
        name_at, angles_at = (middle + 0.12, middle - 0.16) if symbol.angles else (middle, middle)
        angles = re.sub("θ([₀-₉]+)", lambda m: rf"$\theta_{{{m[1].translate(_ASCII)}}}$", symbol.angles)
        ax.text(x, name_at, symbol.name, ha="center", va="center", size=10, zorder=4)
        if angles:
            ax.text(x, angles_at, angles, ha="center", va="center", size=8, zorder=4)
        for port, wire in enumerate(symbol.box if symbol.ports else ()):
            ax.text(x - size / 2 + 0.06, y - wire, str(port), ha="left", va="center", size=7, zorder=4)
    for wire, mark in symbol.marks.items():
        for marker, points, fill in _MARKERS[mark]:
            ax.plot(x, y - wire, marker=marker, ms=points, mec="black", mfc=fill, mew=0.8, zorder=3)
