"""What a task is measured by: a number of predictions and what they should have been. ``METRICS`` names them.

Those of written texts are computed by the packages that people use, imported when they are asked for.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

Labels = Sequence[int] | np.ndarray


@dataclass(frozen=True)
class Metric:
    """A function of predictions and references; ``of``: labels, numbers, texts with several references each, or tokens.

    Of tokens are their summed losses, batch by batch, and how many there were.
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


def _final_number(found: Sequence[str], wanted: Sequence[Sequence[str]]) -> float:
    """The share of texts whose last number is that of a reference."""
    return float(np.mean([_last(text) in map(_last, several) for text, several in zip(found, wanted, strict=True)]))


def _last(text: str) -> float | str:
    """The last number of a text; the text itself if it has none."""
    numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
    return round(float(numbers[-1].replace(",", "")), 3) if numbers else text


def _bleu(found: Sequence[str], wanted: Sequence[Sequence[str]]) -> float:
    compute = import_module("sacrebleu").corpus_bleu
    most = max(map(len, wanted))
    columns = [[several[k] if k < len(several) else None for several in wanted] for k in range(most)]
    return compute(list(found), columns).score / 100


def _words(texts: Sequence[str]) -> list[list[str]]:
    return [re.findall(r"\w+|[^\w\s]", text.lower()) for text in texts]


def _nist(found: Sequence[str], wanted: Sequence[Sequence[str]]) -> float:
    compute = import_module("nltk.translate.nist_score").corpus_nist
    try:
        return compute([_words(several) for several in wanted], _words(found))
    except ZeroDivisionError:  # no five words anywhere
        return 0.0


def _meteor(found: Sequence[str], wanted: Sequence[Sequence[str]]) -> float:
    compute = import_module("nltk.translate.meteor_score").meteor_score
    pairs = zip((_words(several) for several in wanted), _words(found), strict=True)
    try:
        return float(np.mean([compute(several, words) for several, words in pairs]))
    except LookupError:
        raise ValueError(
            "METEOR looks words up in WordNet, which nltk does not find; run: python -m nltk.downloader wordnet"
        ) from None


def _rouge_l(found: Sequence[str], wanted: Sequence[Sequence[str]]) -> float:
    scorer = import_module("rouge_score.rouge_scorer").RougeScorer(["rougeL"])
    pairs = zip(found, wanted, strict=True)
    return float(np.mean([scorer.score_multi(list(several), text)["rougeL"].fmeasure for text, several in pairs]))


def _cider(found: Sequence[str], wanted: Sequence[Sequence[str]]) -> float:
    scorer = import_module("pycocoevalcap.cider.cider").Cider()
    rights = {at: [" ".join(words) for words in _words(several)] for at, several in enumerate(wanted)}
    texts = {at: [" ".join(words)] for at, words in enumerate(_words(found))}
    return float(scorer.compute_score(rights, texts)[0])


def _perplexity(losses: Sequence[float], tokens: Sequence[int]) -> float:
    with np.errstate(over="ignore"):
        return float(np.exp(np.sum(losses) / np.sum(tokens)))


METRICS: dict[str, Metric] = {
    "accuracy": Metric("labels", _accuracy, unit="%"),
    "f1": Metric("labels", _f1, unit="%", package="scikit-learn"),  # of the second of two classes
    "matthews": Metric("labels", _matthews, package="scikit-learn"),
    "pearson": Metric("numbers", _correlation("pearsonr")),
    "spearman": Metric("numbers", _correlation("spearmanr")),
    "rmse": Metric("numbers", _rmse, larger=False),
    "perplexity": Metric("tokens", _perplexity, larger=False),
    "final_number": Metric("texts", _final_number, unit="%"),
    "bleu": Metric("texts", _bleu, unit="%", package="sacrebleu"),
    "nist": Metric("texts", _nist, package="nltk"),
    "meteor": Metric("texts", _meteor, unit="%", package="nltk"),
    "rouge_l": Metric("texts", _rouge_l, unit="%", package="rouge-score"),
    "cider": Metric("texts", _cider, package="pycocoevalcap"),
}
