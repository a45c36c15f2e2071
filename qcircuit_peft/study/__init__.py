"""Studies: a plan of adapters to train on a task, its runs, and the report on them."""

from qcircuit_peft.methods import without_entanglers
from qcircuit_peft.study.plan import Grid, Point, Study
from qcircuit_peft.study.report import accuracy_figure, gains, read_csv, settings, spearman
from qcircuit_peft.study.runs import Run, finished, run

__all__ = [
    "Grid",
    "Point",
    "Run",
    "Study",
    "accuracy_figure",
    "finished",
    "gains",
    "read_csv",
    "run",
    "settings",
    "spearman",
    "without_entanglers",
]
