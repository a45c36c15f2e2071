"""How good a trained adapter is on a labelled table."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from qcircuit_peft import checks
from qcircuit_peft.fine_tuning.predict import AT_ONCE, Predictor
from qcircuit_peft.tasks.metrics import METRICS
from qcircuit_peft.tasks.tables import Source, Table, number_of, text_of
from qcircuit_peft.tasks.task import KINDS
from qcircuit_peft.text import shown


@dataclass(frozen=True)
class Score:
    """A metric on some rows; ``low`` and ``high`` are Wilson's 95 % interval where it is a share of the rows."""

    metric: str
    value: float
    low: float | None
    high: float | None
    rows: int


def evaluate(
    folder: str | Path,
    data: Source,
    metrics: Sequence[str] = (),
    *,
    encoding: str = "utf-8",
    delimiter: str | None = None,
    progress: Callable[[int], None] = lambda rows: None,
) -> list[Score]:
    """What an adapter of ``fine_tune`` gets right on a table with the columns that it was trained on.

    metrics: keys of ``METRICS`` for this kind of task; left out, the task's own. Every row counts, also where inputs
    come twice. ``progress(rows)`` is called after each piece.

    Raises ValueError for a metric of another kind, a column that is missing, a class that the adapter does not know,
    an adapter of running text, whose perplexity its training told, and as ``Table`` does.
    """
    table, predictor = Table(data, encoding, delimiter), Predictor.load(folder)
    columns, kind = predictor.columns, KINDS[predictor.kind]
    wanted_in = columns.label or columns.completion
    if wanted_in is None:
        raise ValueError(
            f"{shown(str(folder))} learned running text, which has no labels; its training told perplexity"
        )
    of = [one for one in kind.of if one != "tokens"]
    known = [name for name, metric in METRICS.items() if metric.of in of]
    for name in metrics:
        checks.one_of("metric", name, known)
    chosen = list(dict.fromkeys(metrics)) or [kind.metric if kind.metric in known else "rouge_l"]
    columns.check(table)
    found: list[Any] = []
    wanted: list[Any] = []
    rows = iter(table)
    while piece := list(islice(rows, AT_ONCE)):
        for where, cells in piece:
            label: Any = (number_of if of == ["numbers"] else text_of)(where, cells, wanted_in)
            if of == ["labels"] and label not in predictor.names:
                raise ValueError(f"{where}: the class {shown(label)} is none of {shown(list(predictor.names))}")
            wanted.append([label] if of == ["texts"] else label)
        found += [value for value, _ in predictor([columns.input(where, cells, table) for where, cells in piece])]
        progress(len(found))
    if not found:
        raise ValueError(f"{table.name} has no rows")
    if of == ["labels"]:
        place = {name: at for at, name in enumerate(predictor.names)}
        found, wanted = ([place[name] for name in names] for names in (found, wanted))
    return [_score(name, found, wanted) for name in chosen]


def _score(name: str, found: list[Any], wanted: list[Any]) -> Score:
    value, low, high = METRICS[name](found, wanted), None, None
    if name == "accuracy":
        right = int(np.sum(np.asarray(found) == np.asarray(wanted)))
        low, high = map(float, binomtest(right, len(found)).proportion_ci(method="wilson"))
    return Score(name, value, low, high, len(found))
