"""Studies: a plan of adapters to train on a task, its runs, and the report on them.

``Study`` relates circuits to accuracy; ``Field`` compares methods, each at its best rate.
"""

from qcircuit_peft.ansatz import without_entanglers
from qcircuit_peft.study.export import export_peft
from qcircuit_peft.study.field import Entry, Field, Outcome
from qcircuit_peft.study.plan import Grid, Point, Study
from qcircuit_peft.study.report import accuracy_figure, gains, read_csv, settings, spearman
from qcircuit_peft.study.runs import Run, finished, run

__all__ = [
    "Entry",
    "Field",
    "Grid",
    "Outcome",
    "Point",
    "Run",
    "Study",
    "accuracy_figure",
    "export_peft",
    "finished",
    "gains",
    "read_csv",
    "run",
    "settings",
    "spearman",
    "without_entanglers",
]
