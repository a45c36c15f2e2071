"""Figures of the analysis, drawn from rows: labelled axes with units, and intervals where there are any."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from qcircuit_peft import plotting
from qcircuit_peft.analysis.capacity import Capacity
from qcircuit_peft.analysis.gradients import GradientVariance
from qcircuit_peft.analysis.metrics import States, metric_name, state_metric
from qcircuit_peft.analysis.report import LayerEntanglement
from qcircuit_peft.text import label


@plotting.styled
def capacity_figure(
    curves: Mapping[str, Sequence[Capacity]], metric: str | States = "meyer_wallach", title: str = ""
) -> Figure:
    """Means against the number of layers, one curve a name, with 95 % intervals, and the Haar values dashed."""
    unit = state_metric(metric).unit
    figure, [axes] = plotting.panels()
    ends, depths = [], {row.layers for rows in curves.values() for row in rows}
    for number, (name, rows) in enumerate(curves.items()):
        style = plotting.series(number)
        axes.plot([row.layers for row in rows], [row.mean for row in rows], label=label(name), **style)
        drawn = [row for row in rows if row.samples]
        margins = [[row.mean - row.low for row in drawn], [row.high - row.mean for row in drawn]]
        where = [row.layers for row in drawn], [row.mean for row in drawn]
        axes.errorbar(*where, margins, color=style["color"], linestyle="none")
        ends += [(row.layers, row.mean, label(name), style["color"]) for row in rows[-1:]]
    for haar, kind in sorted({(row.haar, row.ensemble) for rows in curves.values() for row in rows}):
        axes.axhline(haar, color=plotting.GREY, linestyle="--" if kind == "real" else ":")
        ends.append((max(depths), haar, f"random {kind} states", plotting.GREY))
    of = "dimensionless" if unit == "1" else unit
    axes.set(xlabel="layers L", ylabel=f"mean {label(metric_name(metric))} ({of})", title=title)
    if len(depths) <= 17:
        plotting.ticks(axes.xaxis, depths)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    plotting.name_ends(axes, ends)
    return figure


@plotting.styled
def gradient_figure(rows: Sequence[GradientVariance]) -> Figure:
    """The variance of the gradient against the number of qubits, logarithmic, one curve a cost and depth."""
    figure, [axes] = plotting.panels()
    ends = []
    for number, (cost, depth) in enumerate(dict.fromkeys((row.cost, row.layers) for row in rows)):
        own = [row for row in rows if (row.cost, row.layers) == (cost, depth)]
        means = [row.variance for row in own]
        margins = [[row.variance - row.low for row in own], [row.high - row.variance for row in own]]
        style, name = plotting.series(number), f"{cost}, L = {depth}"
        axes.errorbar([row.qubits for row in own], means, margins, label=name, **style)
        ends.append((own[-1].qubits, means[-1], name, style["color"]))
    axes.set_yscale("log", base=2)
    axes.set(xlabel="qubits", ylabel="variance of the gradient (1/rad²)")
    plotting.ticks(axes.xaxis, {row.qubits for row in rows})
    plotting.name_ends(axes, ends)
    return figure


_QUANTITIES = {
    "column_entropy": "entropy of the columns (bits)",
    "operator_entropy": "operator entropy (bits)",
    "operator_rank": "operator-Schmidt rank",
}


@plotting.styled
def heat_map(
    rows: Sequence[LayerEntanglement], quantity: str = "column_entropy", part: str = "u", stage: str = "now"
) -> Figure:
    """A report as layers x cuts; white where a layer has no such cut or value.

    Raises ValueError for a quantity that is not in a report, or where no row has it.
    """
    if quantity not in _QUANTITIES:
        raise ValueError(f"a heat map is of one of {', '.join(_QUANTITIES)}, got {quantity!r}")
    chosen = [row for row in rows if (row.part, row.stage) == (part, stage) and getattr(row, quantity) is not None]
    if not chosen:
        raise ValueError(f"no row of the report has {quantity!r} of part {part!r} at stage {stage!r}")
    names = list(dict.fromkeys(row.layer for row in chosen))
    values = np.full((len(names), max(row.cut for row in chosen)), np.nan)
    for row in chosen:
        values[names.index(row.layer), row.cut - 1] = getattr(row, quantity)
    figure, [axes] = plotting.panels(height=max(3.0, 1.4 + 0.3 * len(names)))
    extent = (0.5, values.shape[1] + 0.5, len(names) - 0.5, -0.5)
    image = axes.imshow(values, aspect="auto", vmin=0, extent=extent, cmap="cividis")
    axes.set_yticks(range(len(names)), map(label, names))
    axes.set(xlabel="cut: number of wires before it", ylabel="adapted layer", title=f"part {part}, {stage}")
    plotting.ticks(axes.xaxis, range(1, values.shape[1] + 1))
    axes.grid(False)
    figure.colorbar(image, label=_QUANTITIES[quantity])
    return figure
