"""Figures of the analysis, drawn from rows: labelled axes with units, and intervals where there are any."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from qcircuit_peft.analysis.capacity import Capacity
from qcircuit_peft.analysis.gradients import GradientVariance
from qcircuit_peft.analysis.metrics import States, metric_name, state_metric
from qcircuit_peft.analysis.report import LayerEntanglement
from qcircuit_peft.text import label


def capacity_figure(curves: Mapping[str, Sequence[Capacity]], metric: str | States = "meyer_wallach") -> Figure:
    """Means against the number of layers, one curve a name, with 95 % intervals, and the Haar values dashed."""
    unit = state_metric(metric).unit
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for number, (name, rows) in enumerate(curves.items()):
        depths, means, color = [row.layers for row in rows], [row.mean for row in rows], f"C{number}"
        axes.plot(depths, means, color=color, marker="o", markersize=4, label=label(name))
        drawn = [row for row in rows if row.samples]
        margins = [[row.mean - row.low for row in drawn], [row.high - row.mean for row in drawn]]
        where = [row.layers for row in drawn], [row.mean for row in drawn]
        axes.errorbar(*where, margins, color=color, linestyle="none", capsize=3)
    for haar, kind in sorted({(row.haar, row.ensemble) for rows in curves.values() for row in rows}):
        axes.axhline(haar, color="0.4", linestyle="--" if kind == "real" else ":", label=f"random {kind} states")
    axes.set_xlabel("layers L")
    axes.set_ylabel(f"mean {label(metric_name(metric))} ({'dimensionless' if unit == '1' else unit})")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize="small")
    return figure


def gradient_figure(rows: Sequence[GradientVariance]) -> Figure:
    """The variance of the gradient against the number of qubits, logarithmic, one curve a cost and depth."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for cost, depth in dict.fromkeys((row.cost, row.layers) for row in rows):
        own = [row for row in rows if (row.cost, row.layers) == (cost, depth)]
        means = [row.variance for row in own]
        margins = [[row.variance - row.low for row in own], [row.high - row.variance for row in own]]
        axes.errorbar([row.qubits for row in own], means, margins, marker="o", capsize=3, label=f"{cost}, L = {depth}")
    axes.set_yscale("log", base=2)
    axes.set_xlabel("qubits")
    axes.set_ylabel("variance of the gradient (1/rad²)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize="small")
    return figure


_QUANTITIES = {
    "column_entropy": "entropy of the columns (bits)",
    "operator_entropy": "operator entropy (bits)",
    "operator_rank": "operator-Schmidt rank",
}


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
    figure = Figure(figsize=(6.4, 1.4 + 0.28 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(values, aspect="auto", vmin=0, extent=(0.5, values.shape[1] + 0.5, len(names) - 0.5, -0.5))
    axes.set_yticks(range(len(names)), map(label, names), fontsize="small")
    axes.set_xlabel("cut: number of wires before it")
    axes.set_ylabel("adapted layer")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(f"{part}, {stage}", fontsize="medium")
    figure.colorbar(image, label=_QUANTITIES[quantity])
    return figure
