"""Fine-tune a model on a table of one's own, keep what is needed to use it, and label another table with it.

The folder of an adapter holds what PEFT needs, the head included, the model's configuration with the names of the
classes, ``task.json`` (which columns are read, how numbers were scaled), a model card and a plot.
"""

from qcircuit_peft.fine_tuning.card import card, plot, written
from qcircuit_peft.fine_tuning.conversion import Converted, convert, loaded
from qcircuit_peft.fine_tuning.evaluation import Score, evaluate
from qcircuit_peft.fine_tuning.predict import Predictor, predict
from qcircuit_peft.fine_tuning.settings import ADAPTERS, PLOT, Figures, Settings, place_of
from qcircuit_peft.fine_tuning.train import Headed, fine_tune, headed, targets_of
from qcircuit_peft.tasks.examples import Columns

__all__ = [
    "ADAPTERS",
    "PLOT",
    "Columns",
    "Converted",
    "Figures",
    "Headed",
    "Predictor",
    "Score",
    "Settings",
    "card",
    "convert",
    "evaluate",
    "fine_tune",
    "headed",
    "loaded",
    "place_of",
    "plot",
    "predict",
    "targets_of",
    "written",
]
