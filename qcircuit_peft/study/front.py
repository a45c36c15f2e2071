"""What a comparison of methods says: a table, paired differences, accuracy against numbers, in one HTML page."""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure

from qcircuit_peft import files, plotting
from qcircuit_peft.analysis import tables
from qcircuit_peft.study.field import SEARCH, SEED, Field, Outcome
from qcircuit_peft.study.report import interval, share_interval
from qcircuit_peft.text import label, printable


@dataclass(frozen=True)
class Line:
    """A method over its seeds: mean test accuracy, its 95 % interval within 0 and 1 (None for one seed), what it costs.

    over: the mean difference to the first method of the comparison over the seeds that both have, with its interval.
    """

    method: str
    entry: str
    size: int
    numbers: int
    kept: int
    rate: float
    seeds: int
    validation: float
    test: float
    low: float | None
    high: float | None
    over: float | None
    over_low: float | None
    over_high: float | None
    seconds_per_step: float
    peak_bytes: int | None
    checkpoint_bytes: int


def lines(field: Field, outcomes: Sequence[Outcome]) -> list[Line]:
    """One line a method, the most accurate first; methods without a finished seed have none."""
    runs = {
        entry.key: [run for run in outcomes if (run.entry, run.stage) == (entry.key, SEED)] for entry in field.method
    }
    first = {run.seed: run.test for run in runs[field.method[0].key]}
    found = []
    for key, own in runs.items():
        if not own:
            continue
        tests = [run.test for run in own if run.test is not None]
        pairs = [run.test - first[run.seed] for run in own if run.seed in first]  # type: ignore[operator]
        paired = key != field.method[0].key and bool(pairs)
        one = own[0]
        low, high = share_interval(tests)
        over_low, over_high = interval(pairs) if paired else (None, None)
        found.append(
            Line(
                one.method,
                key,
                one.size,
                one.numbers,
                one.kept,
                one.rate,
                len(own),
                float(np.mean([run.validation for run in own])),
                float(np.mean(tests)),
                low,
                high,
                float(np.mean(pairs)) if paired else None,
                over_low,
                over_high,
                float(np.median([run.seconds_per_step for run in own])),
                max((run.peak_bytes for run in own if run.peak_bytes is not None), default=None),
                one.checkpoint_bytes,
            )
        )
    return sorted(found, key=lambda line: -line.test)


def front(rows: Sequence[Line]) -> list[str]:
    """The methods that no other one beats with as many numbers or fewer.

    >>> from types import SimpleNamespace as Row
    >>> front([Row(entry="a", numbers=10, test=0.5), Row(entry="b", numbers=9, test=0.6)])
    ['b']
    """
    return [
        row.entry
        for row in rows
        if not any(
            other.test >= row.test
            and other.numbers <= row.numbers
            and (other.test, other.numbers) != (row.test, row.numbers)
            for other in rows
        )
    ]


CONTROLS = ("probe", "frozen", "no_entanglers", "random_frames")


@plotting.styled
def figure(rows: Sequence[Line]) -> Figure:
    """A row a method, the most accurate on top: test accuracy with its interval, and numbers on a logarithmic axis.

    Black: no other method is as good with as few numbers. Controls are open and grey, LoRA is a diamond.
    """
    drawn, [left, right] = plotting.panels(2, 8.4, 1.2 + 0.27 * len(rows), sharey=True, width_ratios=(3, 2))
    best = front(rows)
    for at, row in enumerate(rows):
        key = row.entry.partition("-")[0]
        color = plotting.INK if row.entry in best else plotting.GREY if key in CONTROLS else plotting.COLORS[0]
        look: dict[str, Any] = {
            "color": color,
            "marker": "D" if key == "lora" else "o",
            "markerfacecolor": "white" if key in CONTROLS else color,
        }
        margins = None if row.low is None or row.high is None else [[row.test - row.low], [row.high - row.test]]
        left.errorbar(100 * row.test, at, xerr=margins and 100 * np.array(margins), elinewidth=1, **look)
        if row.numbers:
            right.plot(row.numbers, at, **look)
            right.annotate(f"{row.numbers:,}", (row.numbers, at), (6, -3), textcoords="offset points", size=8)
    names = [f"{label(row.method)}, r = {row.size}" if row.size else label(row.method) for row in rows]
    left.set_yticks(range(len(rows)), names)
    left.set(xlabel="test accuracy (%)", ylim=(len(rows) - 0.5, -0.5))
    low, high = left.get_xlim()
    left.set_xlim(max(0, low), min(100, high))
    right.set(xscale="log", xlabel="trained numbers, without the head")
    right.margins(x=0.25)
    return drawn


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ field.name }}</title><style>
body{font:16px/1.5 system-ui,sans-serif;max-width:72rem;margin:1.5rem auto;padding:0 1rem}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:14px}
td,th{padding:.15rem .6rem;text-align:right;border-bottom:1px solid #ddd;white-space:nowrap}
td:first-child,th:first-child{text-align:left}img{max-width:100%;height:auto}pre{overflow-x:auto}
</style></head><body>
<h1>{{ field.name }}</h1><p>{{ about }}</p>
<p>Task {{ field.task }}, seeds {{ field.seeds | join(", ") }}; {{ count }} of {{ total }} runs.</p>
<h2>Accuracy on the test split</h2>
<div class="wide"><table><tr><th>method<th>numbers<th>stored<th>size<th>rate<th>seeds<th>test, %
<th>against {{ first }}, points<th>seconds a step<th>peak memory, MB<th>checkpoint, bytes</tr>
{% for row in rows %}<tr><td>{% if row.entry in best %}<b>{{ row.method }}</b>{% else %}{{ row.method }}{% endif %}
<td>{{ "{:,}".format(row.numbers) }}<td>{{ "{:,}".format(row.kept) }}<td>{{ row.size or "-" }}
<td>{{ "%g" | format(row.rate) if row.rate else "-" }}<td>{{ row.seeds }}
<td>{{ "%.1f" | format(100 * row.test) }}{{ between(row.low, row.high) }}
<td>{% if row.over is none %}-{% else -%}
{{ "%+.1f" | format(100 * row.over) }}{{ margin(row.over, row.over_high) }}{% endif %}
<td>{{ "%.3f" | format(row.seconds_per_step) }}
<td>{% if row.peak_bytes is none %}-{% else %}{{ "{:,.0f}".format(row.peak_bytes / 1e6) }}{% endif %}
<td>{{ "{:,}".format(row.checkpoint_bytes) }}</tr>
{% endfor %}</table></div>
<p>In brackets 95 % intervals over seeds, Student's t on the scale of log(p / (1 - p)); ± is half of one, of a
difference. Differences are paired by seed. Numbers are those that train,
without the head; stored are those in the checkpoint that neither a seed nor the base model gives back. Bold: no other
method is as good with as few numbers. Seconds are process time; memory is the accelerator's, not measured on a CPU.</p>
<p><img alt="test accuracy against trained numbers" src="data:image/svg+xml;base64,{{ image }}"></p>
<h2>The search for rates</h2>
<p>Seed {{ field.seeds[0] }}, {{ field.search_epochs or field.epochs }} of {{ field.epochs }} epochs, accuracy on
validation; the best rate is used.</p>
<div class="wide"><table><tr><th>method<th>rate<th>validation, %</tr>
{% for run in search %}<tr><td>{{ run.entry }}<td>{{ "%g" | format(run.rate) }}
<td>{{ "%.1f" | format(100 * run.validation) }}</tr>
{% endfor %}</table></div>
<h2>The study</h2><details><summary>settings</summary><pre>{{ settings }}</pre></details>
</body></html>
"""


def _margin(middle: float, high: float | None) -> str:
    return "" if high is None else f" ± {100 * (high - middle):.1f}"


def _between(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" ({100 * low:.1f} to {100 * high:.1f})"


def html(field: Field, outcomes: Sequence[Outcome]) -> str:
    """A page that opens offline and needs nothing else; what comes from files is escaped."""
    rows = lines(field, outcomes)
    file = BytesIO()
    figure(rows).savefig(file, format="svg", metadata={"Date": None})
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(_PAGE)
    return template.render(
        field=field,
        about=printable(field.about),
        rows=rows,
        best=front(rows),
        first=field.method[0].key,
        count=len(outcomes),
        total=len(field.search()) + len(field.method) * len(field.seeds),
        search=[run for run in outcomes if run.stage == SEARCH],
        image=b64encode(file.getvalue()).decode(),
        settings=field.to_json(),
        margin=_margin,
        between=_between,
    )


def write(field: Field, outcomes: Sequence[Outcome], out: Path) -> None:
    """``runs.csv``, one row a run, and ``report.html`` in a folder."""
    files.write(out / "runs.csv", tables.to_csv(outcomes))
    files.write(out / "report.html", html(field, outcomes))
