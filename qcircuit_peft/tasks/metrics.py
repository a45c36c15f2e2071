"""What a task is measured by: a number of predictions and what they should have been. ``METRICS`` names them.

Those for generated text are the packages' that people use, imported when they are asked for.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from math import sqrt
from typing import Any

import numpy as np

Labels = Sequence[int] | np.ndarray


@dataclass(frozen=True)
class Metric:
    """A function of predictions and references; ``of``: labels, numbers, texts, or the mean loss of a token.

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
        if self.package:
            _needs(self.package)
        return float(self.function(found, wanted))


def _needs(package: str) -> Any:
    try:
        return import_module(package.replace("-", "_"))
    except ImportError:
        raise ImportError(
            f"this metric is computed by {package}, which is not installed: pip install {package}"
        ) from None


def _accuracy(found: Labels, wanted: Labels) -> float:
    return float(np.mean(np.asarray(found) == np.asarray(wanted)))


def _counts(found: Labels, wanted: Labels) -> tuple[int, int, int, int]:
    p, w = np.asarray(found) == 1, np.asarray(wanted) == 1
    return int((p & w).sum()), int((p & ~w).sum()), int((~p & w).sum()), int((~p & ~w).sum())


def _f1(found: Labels, wanted: Labels) -> float:
    hit, wrong, missed, _ = _counts(found, wanted)
    return 2 * hit / (2 * hit + wrong + missed) if hit else 0.0


def _matthews(found: Labels, wanted: Labels) -> float:
    hit, wrong, missed, rest = map(float, _counts(found, wanted))
    scale = sqrt((hit + wrong) * (hit + missed) * (rest + wrong) * (rest + missed))
    return (hit * rest - wrong * missed) / scale if scale else 0.0


def _correlation(name: str) -> Callable[[Any, Any], float]:
    def function(found: Any, wanted: Any) -> float:
        if len(found) < 2 or np.ptp(found) == 0 or np.ptp(wanted) == 0:
            return 0.0  # a constant is related to nothing
        return getattr(import_module("scipy.stats"), name)(found, wanted).statistic

    return function


def _rmse(found: Any, wanted: Any) -> float:
    return float(np.sqrt(np.mean((np.asarray(found, float) - np.asarray(wanted, float)) ** 2)))


def _exact(found: Sequence[str], wanted: Sequence[Sequence[str]]) -> float:
    """The share of texts whose last number is that of a reference, as answers to word problems are judged."""
    import re

    def last(text: str) -> float | None:
        numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
        return float(numbers[-1].replace(",", "")) if numbers else None

    hits = [
        last(text) is not None and last(text) in map(last, right) for text, right in zip(found, wanted, strict=True)
    ]
    return float(np.mean(hits))


def _bleu(found: Sequence[str], wanted: Sequence[Sequence[str]]) -> float:
    most = max(map(len, wanted))
    streams = [[right[k] if k < len(right) else None for right in wanted] for k in range(most)]
    return _needs("sacrebleu").corpus_bleu(list(found), streams).score / 100


def _nltk(name: str, function: str) -> Callable[..., float]:
    def score(found: Sequence[str], wanted: Sequence[Sequence[str]]) -> float:
        compute = getattr(import_module(f"nltk.translate.{name}"), function)
        tokens = [text.split() for text in found]
        rights = [[text.split() for text in right] for right in wanted]
        if name == "nist_score":
            return compute(rights, tokens)
        return float(np.mean([compute(right, text) for right, text in zip(rights, tokens, strict=True)]))

    return score


def _rouge(found: Sequence[str], wanted: Sequence[Sequence[str]]) -> float:
    scorer = _needs("rouge-score").rouge_scorer.RougeScorer(["rougeL"])
    best = [
        max(scorer.score(right, text)["rougeL"].fmeasure for right in rights)
        for text, rights in zip(found, wanted, strict=True)
    ]
    return float(np.mean(best))


def _cider(found: Sequence[str], wanted: Sequence[Sequence[str]]) -> float:
    cider = import_module("pycocoevalcap.cider.cider").Cider()
    rights = {at: list(right) for at, right in enumerate(wanted)}
    return float(cider.compute_score(rights, {at: [text] for at, text in enumerate(found)})[0])


METRICS: dict[str, Metric] = {
    "accuracy": Metric("labels", _accuracy, unit="%"),
    "f1": Metric("labels", _f1, unit="%"),  # of the second class
    "matthews": Metric("labels", _matthews),
    "pearson": Metric("numbers", _correlation("pearsonr")),
    "spearman": Metric("numbers", _correlation("spearmanr")),
    "rmse": Metric("numbers", _rmse, larger=False),
    "exact": Metric("texts", _exact, unit="%"),
    "bleu": Metric("texts", _bleu, package="sacrebleu"),
    "nist": Metric("texts", _nltk("nist_score", "corpus_nist"), package="nltk"),
    "meteor": Metric("texts", _nltk("meteor_score", "meteor_score"), package="nltk"),
    "rouge_l": Metric("texts", _rouge, package="rouge-score"),
    "cider": Metric("texts", _cider, package="pycocoevalcap"),
    "perplexity": Metric("loss", lambda loss, _: float(np.exp(np.mean(loss))), larger=False),
}
