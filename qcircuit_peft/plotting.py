"""One look for every figure: fonts, colours, controls, ticks at what was measured, names at the end of lines.

Colours are those of Okabe and Ito, which the colour-blind tell apart; series differ in their markers, too. A control is
grey, open and dashed. Text is large enough to be read at half the size.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np

if TYPE_CHECKING:  # matplotlib is imported when something is drawn
    import matplotlib.axes
    import matplotlib.axis
    import matplotlib.figure

P = ParamSpec("P")

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5D3A9B", "#222222")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
INK, GREY = "#222222", "#767676"
CONTROL: dict[str, Any] = {"color": GREY, "linestyle": "--", "markerfacecolor": "white"}
_POINTS = 11
_STYLE: Any = {
    "font.size": _POINTS,
    "font.family": ["DejaVu Sans"],
    "axes.titlesize": _POINTS,
    "axes.titlelocation": "left",
    "axes.labelsize": _POINTS,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": _POINTS - 1,
    "lines.linewidth": 1.6,
    "lines.markersize": 5.5,
    "errorbar.capsize": 3,
    "svg.hashsalt": "qcircuit_peft",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


def styled(draw: "Callable[P, matplotlib.figure.Figure]") -> "Callable[P, matplotlib.figure.Figure]":
    """A function that draws a figure, in the look of this library whatever matplotlib is set to."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> "matplotlib.figure.Figure":
        from matplotlib import rc_context, rcdefaults, rcParams

        with rc_context():
            rcdefaults()
            rcParams.update(_STYLE)
            return draw(*args, **kwargs)

    return drawn


def panels(
    count: int = 1, width: float = 6.4, height: float = 4.0, **options: Any
) -> "tuple[matplotlib.figure.Figure, list[matplotlib.axes.Axes]]":
    """A figure, inches wide and high, with panels side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False, **options)[0])


def series(position: int) -> dict[str, Any]:
    """Colour and marker of the series at this position; they repeat after 56.

    >>> series(0)
    {'color': '#0072B2', 'marker': 'o'}
    """
    turn = position // len(COLORS)
    return {"color": COLORS[position % len(COLORS)], "marker": MARKERS[(position + turn) % len(MARKERS)]}


def number(value: float) -> str:
    """A number beside a tick.

    >>> number(1_000_000), number(0.001)
    ('1,000,000', '0.001')
    """
    return f"{value:,.0f}" if value >= 1000 else f"{value:g}"


def ticks(
    axis: "matplotlib.axis.Axis", values: Iterable[float], text: Callable[[float], str] = number, apart: float = 0.0
) -> None:
    """Ticks at these values alone; on a logarithmic axis without those nearer than ``apart`` decades to the last."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    kept: list[float] = []
    for value in sorted(set(values)):
        if not kept or not apart or np.log10(value / kept[-1]) >= apart:
            kept.append(value)
    axis.set_major_locator(FixedLocator(kept))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))


def name_ends(axes: "matplotlib.axes.Axes", ends: Sequence[tuple[float, float, str, str]], room: float = 1.0) -> None:
    """Write names beside the ends of lines, (x, y, name, colour), moved apart where they would meet.

    To be called last: it takes the limits as they are. ``room`` is a factor for the distance between lines of text.
    """
    if not ends:
        return
    axes.autoscale_view()
    places = axes.transAxes.inverted().transform([axes.transData.transform((x, y)) for x, y, _, _ in ends])
    size = axes.figure.get_figure(root=True).get_size_inches()[1]  # type: ignore[union-attr]
    step = room * 1.25 * (_POINTS - 1) / (72 * size * 0.8)
    order = np.argsort(places[:, 1])
    heights = _apart([float(places[i, 1]) for i in order], step)
    for i, height in zip(order, heights, strict=True):
        x, y, name, color = ends[i]
        axes.annotate(
            name, (x, y), (1.04, height), textcoords="axes fraction", color=color, va="center", fontsize=_POINTS - 1,
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 4},
            annotation_clip=False,
        )  # fmt: skip


def _apart(places: Sequence[float], step: float) -> list[float]:
    """Ascending places, moved as little as may be until all are ``step`` apart: blocks that meet share their mean.

    >>> [round(place, 6) for place in _apart([0.0, 0.1, 0.15, 1.0], 0.2)]
    [-0.116667, 0.083333, 0.283333, 1.0]
    """
    blocks: list[list[float]] = []
    for place in places:
        blocks.append([place])
        while len(blocks) > 1 and _low(blocks[-1], step) < _low(blocks[-2], step) + step * len(blocks[-2]):
            upper = blocks.pop()
            blocks[-1] += upper
    return [_low(block, step) + step * number for block in blocks for number in range(len(block))]


def _low(block: Sequence[float], step: float) -> float:
    return sum(block) / len(block) - step * (len(block) - 1) / 2
