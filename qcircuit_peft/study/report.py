"""What the runs of a study say: a table, figures, rank correlations, and one HTML page that needs nothing else."""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import rankdata, t

from qcircuit_peft import files, plotting
from qcircuit_peft.analysis import tables
from qcircuit_peft.analysis.sampling import RESAMPLES
from qcircuit_peft.study.plan import Study
from qcircuit_peft.study.runs import Run
from qcircuit_peft.text import label, printable

QUANTITIES = {
    "layers": "layers L",
    "parameters": "trained parameters of the adapter",
    "capacity": "capacity: mean Meyer-Wallach Q (dimensionless)",
    "expressibility": "expressibility: KL to random states (nats)",
    "operator_entropy": "operator entanglement of U and V after training (bits)",
    "delta_entropy": "operator entanglement of the weight update (bits)",
}


def read_csv(text: str) -> list[Run]:
    """The runs of a table that ``tables.to_csv`` wrote; raises ValueError for another table."""
    return tables.from_csv(text, Run)


@dataclass(frozen=True)
class Setting:
    """The runs that differ only in the seed: how many, and the mean test accuracy with a 95 % interval over seeds.

    The interval is ``share_interval``, None for one seed. ``capacity`` and the entropies are means over the seeds.
    """

    ansatz: str
    control: str
    layers: int
    r: int
    parameters: int
    seeds: int
    test: float
    low: float | None
    high: float | None
    capacity: float
    expressibility: float
    operator_entropy: float | None
    delta_entropy: float | None


def settings(runs: Sequence[Run]) -> list[Setting]:
    """One row a setting, in the order in which they first occur."""
    return [_setting(own) for own in by_setting(runs)]


def by_setting(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs in groups that differ only in the seed."""
    groups: dict[Any, list[Run]] = {}
    for run in runs:
        groups.setdefault((run.ansatz, run.control, run.layers, run.r), []).append(run)
    return list(groups.values())


def _setting(own: Sequence[Run]) -> Setting:
    one = own[0]
    low, high = share_interval([run.test for run in own])
    means = {
        key: _mean(own, key) for key in ("test", "capacity", "expressibility", "operator_entropy", "delta_entropy")
    }
    return Setting(one.ansatz, one.control, one.layers, one.r, one.parameters, len(own), low=low, high=high, **means)


def _mean(runs: Sequence[Run], key: str) -> Any:
    found = [value for run in runs if (value := getattr(run, key)) is not None]
    return float(np.mean(found)) if found else None


def interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Student's 95 % interval of the mean of independent values; (None, None) for one value.

    >>> interval([0.8, 0.9])  # the mean is 0.85 and its standard error 0.05, which 12.7 times is a lot
    (0.214..., 1.485...)
    """
    if len(values) < 2:
        return None, None
    half = float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def share_interval(shares: Sequence[float]) -> tuple[float | None, float | None]:
    """A 95 % interval of the mean of shares, within 0 and 1: Student's, on the scale of log(p / (1 - p)).

    The standard error is that of the mean, by the delta method. (None, None) for one value.

    >>> share_interval([0.8, 0.9])
    (0.037..., 0.998...)
    """
    low, high = interval(shares)
    mean = float(np.mean(shares))
    if low is None or high is None or not 0 < mean < 1 or low == high:
        return low, high
    odds, half = np.log(mean / (1 - mean)), (high - mean) / (mean * (1 - mean))
    return float(expit(odds - half)), float(expit(odds + half))


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of a quantity with the test accuracy, with a 95 % bootstrap interval."""

    quantity: str
    runs: int
    settings: int
    rho: float
    low: float
    high: float


def spearman(runs: Sequence[Run], quantity: str, seed: int = 0) -> Correlation | None:
    """The rank correlation of ``quantity`` and test accuracy over runs; None where it is not defined.

    Whole settings are resampled, with all their seeds: runs that share a circuit are not independent. It is not
    defined below three settings, or if either is the same for all runs.
    """
    groups = [
        np.array([(getattr(run, quantity), run.test) for run in own])
        for own in by_setting([run for run in runs if getattr(run, quantity) is not None])
    ]
    if len(groups) < 3 or (rho := _rank_correlation(np.concatenate(groups))) is None:
        return None
    random = np.random.default_rng(seed)
    draws = random.integers(len(groups), size=(RESAMPLES, len(groups)))
    found = [_rank_correlation(np.concatenate([groups[i] for i in draw])) for draw in draws]
    low, high = np.quantile([value for value in found if value is not None], [0.025, 0.975])
    return Correlation(quantity, sum(map(len, groups)), len(groups), rho, float(low), float(high))


def _rank_correlation(pairs: NDArray) -> float | None:
    x, y = (rankdata(column) for column in pairs.round(9).T)
    return float(np.corrcoef(x, y)[0, 1]) if x.std() and y.std() else None


@dataclass(frozen=True)
class Gain:
    """What entangling gates, or trained angles, add to test accuracy: mean over paired seeds, 95 % interval."""

    ansatz: str
    layers: int
    r: int
    over: str
    seeds: int
    gain: float
    low: float | None
    high: float | None


def gains(runs: Sequence[Run]) -> list[Gain]:
    """Trained circuits against each control with the same ansatz, L, r and seeds, where there are both."""
    trained = {(run.ansatz, run.layers, run.r, run.seed): run.test for run in runs if run.control == "trained"}
    found = []
    for own in by_setting([run for run in runs if run.control != "trained"]):
        one = own[0]
        pairs = [
            trained[key] - run.test for run in own if (key := (run.ansatz, run.layers, run.r, run.seed)) in trained
        ]
        if pairs:
            gain = float(np.mean(pairs))
            found.append(Gain(one.ansatz, one.layers, one.r, one.control, len(pairs), gain, *interval(pairs)))
    return found


@plotting.styled
def accuracy_figure(runs: Sequence[Run], *quantities: str, title: str = "") -> Figure:
    """Test accuracy against one or more of ``QUANTITIES``: a dot a run, and means over seeds with 95 % intervals.

    A colour is a circuit; trained ones are filled and joined, and say their L, controls are open and dashed.
    """
    figure, several = plotting.panels(len(quantities), 2.2 + 4.6 * len(quantities), 4.4, sharey=True)
    ranks, circuits = {run.r for run in runs}, list(dict.fromkeys((run.ansatz, run.r) for run in runs))
    for axes, quantity in zip(several, quantities, strict=True):
        ends = []
        for control, ansatz, r in dict.fromkeys((run.control, run.ansatz, run.r) for run in runs):
            own = [
                run
                for run in runs
                if (run.control, run.ansatz, run.r) == (control, ansatz, r) and getattr(run, quantity) is not None
            ]
            rows = sorted(settings(own), key=lambda row: getattr(row, quantity))
            if not rows:
                continue
            look = plotting.series(circuits.index((ansatz, r)))
            line = {"trained": "-", "frozen": ":"}.get(control, "--")
            fill = look["color"] if control == "trained" else "white"
            x, y = [getattr(row, quantity) for row in rows], [100 * row.test for row in rows]
            margins = [[0 if m is None else 100 * m for m in side] for side in zip(*map(_margins, rows), strict=True)]
            axes.errorbar(
                x, y, margins, linestyle=line, markerfacecolor=fill, ecolor=(*to_rgb(look["color"]), 0.35), **look
            )
            dots = [(getattr(run, quantity), 100 * run.test) for run in own]
            axes.plot(*zip(*dots, strict=True), linestyle="none", color=look["color"], marker=".", ms=3, alpha=0.6)
            name = ", ".join([label(ansatz), *[f"r = {r}"][: len(ranks) > 1], *[control][: control != "trained"]])
            ends.append((x[-1], y[-1], name, look["color"]))
            if control == "trained" and quantity != "layers":
                for row, at, height in zip(rows, x, y, strict=True):
                    place = {"xytext": (5, 4), "textcoords": "offset points", "fontsize": 9, "color": look["color"]}
                    told = axes.annotate(
                        f"L = {row.layers}" if row is rows[0] else f"{row.layers}", (at, height), **place
                    )
                    told.set_path_effects([withStroke(linewidth=2, foreground="white")])
        axes.set_xlabel(QUANTITIES[quantity])
        if quantity == "layers":
            plotting.ticks(axes.xaxis, {run.layers for run in runs})
        else:
            axes.xaxis.set_major_formatter("{x:,g}")
        if axes is several[-1]:
            plotting.name_ends(axes, ends)
    low, high = several[0].get_ylim()
    several[0].set(ylim=(max(0, low), min(100, high)), ylabel="test accuracy (%)")
    figure.suptitle(title, x=0.01, ha="left", fontsize="medium")
    return figure


def _margins(row: Setting) -> tuple[float | None, float | None]:
    return (None, None) if row.low is None or row.high is None else (row.test - row.low, row.high - row.test)


_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem}table{border-collapse:"
    "collapse;font-size:14px}td,th{padding:.15rem .6rem;text-align:right;border-bottom:1px solid #ddd}"
    ".wide,pre{overflow-x:auto}img{max-width:100%;height:auto}"
)
_NOTES = (
    "Accuracies are in % of the test split. Their 95 % intervals, over seeds, are Student's on the scale of "
    "log(p / (1 - p)), so that they stay within 0 and 100; a dash is a single "
    "seed. The capacity is the mean Meyer-Wallach Q of the circuit with random angles, the operator entropies those "
    "of the trained layers at the half cut, in bits.",
    "Rank correlations are Spearman's, over all runs; their intervals resample whole settings, 1,000 times. L, the "
    "number of parameters and every measure of entanglement grow together: a correlation is not a cause. The "
    "controls are: no_entanglers has as many angles and no gates on two wires, frozen has angles as drawn.",
    "The gain, in points, is the test accuracy of the trained circuit minus that of its control, with the same seed.",
)


def html(study: Study, runs: Sequence[Run]) -> str:
    """A page that opens offline: tables, and figures inside it. Raises ValueError if there are no runs."""
    rows = settings(runs)
    found = [row for quantity in QUANTITIES if (row := spearman(runs, quantity)) is not None]
    figures = "".join(
        f"<p>{_image(accuracy_figure(runs, quantity), QUANTITIES[quantity])}</p>" for quantity in QUANTITIES
    )
    count, about = f"{len(runs)} of {len(study.points)} runs", escape(printable(study.about))
    parts = [
        f"<h1>{escape(study.name)}</h1><p>{about}</p><p>Task {escape(study.task)}, {count}.</p>",
        f"<h2>Accuracy</h2>{_table(_percent(rows, 'test', 'low', 'high'))}<p>{_NOTES[0]}</p>{figures}",
        f"<h2>Rank correlation with the test accuracy</h2>{_table(found)}<p>{_NOTES[1]}</p>",
        f"<h2>Gain over the controls</h2>{_table(_percent(gains(runs), 'gain', 'low', 'high'))}<p>{_NOTES[2]}</p>",
        f"<h2>The study</h2><details><summary>settings</summary><pre>{escape(study.to_json())}</pre></details>",
    ]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>{escape(study.name)}</title><style>{_STYLE}</style>"
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'


def _percent(rows: Sequence[Any], *keys: str) -> list[Any]:
    """The rows with shares as per cent, to one digit."""

    def shown(value: float | None) -> str | None:
        return None if value is None else f"{100 * value:.1f}"

    return [replace(row, **{key: shown(getattr(row, key)) for key in keys}) for row in rows]


def _table(rows: Sequence[Any]) -> str:
    if not rows:
        return "<p>none</p>"
    lines = ["".join(f"<th>{escape(field.name)}</th>" for field in fields(rows[0]))]
    lines += ["".join(f"<td>{escape(_cell(value))}</td>" for value in vars(row).values()) for row in rows]
    return f'<div class="wide"><table>{"".join(f"<tr>{line}</tr>" for line in lines)}</table></div>'


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else f"{value}"


def _image(figure: Figure, text: str) -> str:
    file = BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    data = b64encode(file.getvalue()).decode()
    return f'<img alt="test accuracy against {escape(text)}" src="data:image/svg+xml;base64,{data}">'


def write(study: Study, runs: Sequence[Run], out: Path) -> None:
    """``runs.csv``, one row a run, and ``report.html`` in a folder."""
    files.write(out / "runs.csv", tables.to_csv(runs))
    files.write(out / "report.html", html(study, runs))
