"""What a task is measured by: a number of predictions and what they should have been. ``METRICS`` names them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

Labels = Sequence[int] | np.ndarray


@dataclass(frozen=True)
class Metric:
    """A function of predictions and references; ``of``: labels or numbers.

    larger: whether more is better. unit: how it is written. package: what it needs beside the core.
    """

    of: str
    function: Callable[[Any, Any], float]
    larger: bool = True
    unit: str = "1"
    package: str = ""

    def __call__(self, found: Any, wanted: Any) -> float:
        """The number; raises ValueError for none or unequally many, ImportError for a package that is not there."""
        if len(found) != len(wanted) or not len(found):
            raise ValueError(f"a metric takes as many predictions as references, got {len(found)} and {len(wanted)}")
        try:
            return float(self.function(found, wanted))
        except ImportError:
            raise ImportError(
                f"this metric is computed by {self.package}, which is not installed; run: pip install {self.package}"
            ) from None


def _accuracy(found: Labels, wanted: Labels) -> float:
    return float(np.mean(np.asarray(found) == np.asarray(wanted)))


def _f1(found: Labels, wanted: Labels) -> float:
    return import_module("sklearn.metrics").f1_score(wanted, found, zero_division=0.0)


def _matthews(found: Labels, wanted: Labels) -> float:
    return import_module("sklearn.metrics").matthews_corrcoef(wanted, found)


def _correlation(name: str) -> Callable[[Any, Any], float]:
    def function(found: Any, wanted: Any) -> float:
        if len(found) < 2 or np.ptp(found) == 0 or np.ptp(wanted) == 0:
            return 0.0  # a constant is related to nothing
        return getattr(import_module("scipy.stats"), name)(found, wanted).statistic

    return function


def _rmse(found: Any, wanted: Any) -> float:
    return float(np.sqrt(np.mean((np.asarray(found, float) - np.asarray(wanted, float)) ** 2)))


METRICS: dict[str, Metric] = {
    "accuracy": Metric("labels", _accuracy, unit="%"),
    "f1": Metric("labels", _f1, unit="%", package="scikit-learn"),  # of the second of two classes
    "matthews": Metric("labels", _matthews, package="scikit-learn"),
    "pearson": Metric("numbers", _correlation("pearsonr")),
    "spearman": Metric("numbers", _correlation("spearmanr")),
    "rmse": Metric("numbers", _rmse, larger=False),
}
