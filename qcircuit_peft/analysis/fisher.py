"""The Fisher information of an adapter's parameters under the model's own loss: in how many directions it feels them.

F is the mean of the outer products of the scores, the gradients of a log-likelihood, of single examples. Its non-zero
eigenvalues are the squared singular values of the matrix of scores, so F itself is never made.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import log, pi
from typing import Any

import torch
from torch import Tensor, nn

from qcircuit_peft.analysis.capture import Loss, check_task, evaluating, own_loss
from qcircuit_peft.checks import number, one_of, whole_number
from qcircuit_peft.text import shown

KINDS = ("empirical", "true")
Logits = Callable[[nn.Module, Any], Tensor]
_FELT = 0.01  # of the largest eigenvalue


@dataclass(frozen=True)
class FisherSpectrum:
    """The non-zero eigenvalues of the Fisher information, largest first, (min(scores, parameters),), in float64.

    parameters: how many there are in all; the other eigenvalues are zero. examples: of how many F is the mean.
    """

    eigenvalues: Tensor
    parameters: int
    examples: int

    @property
    def trace(self) -> float:
        """The mean squared length of a score."""
        return float(self.eigenvalues.sum())

    @property
    def _relative(self) -> Tensor:
        """Eigenvalues by the largest, of which no square or quotient leaves the range of float64; it is above 0."""
        return self.eigenvalues / self.eigenvalues[0]

    @property
    def participation(self) -> float:
        """(sum of eigenvalues)^2 / sum of their squares: in how many directions the scores lie, 1 to ``parameters``."""
        return float(self._relative.sum().square() / self._relative.square().sum()) if self.trace else 0.0

    @property
    def felt(self) -> int:
        """How many eigenvalues are at least a hundredth of the largest."""
        return int((self._relative >= _FELT).sum()) if self.trace else 0

    def effective_dimension(self, samples: int, gamma: float = 1.0) -> float:
        """The local effective dimension for a number of training samples; the rank of F, for ever more of them.

        sum_i log(1 + k f_i) / log k with k = gamma n / (2 pi log n) and f the eigenvalues, scaled so that their sum is
        the number of parameters. Source: Abbas et al., arXiv 2112.04807, Eq. (4), at one point. Raises ValueError where
        k is at most 1, for a gamma outside of (0, 1], and for samples that are no whole number up to 2^63 - 1.
        """
        whole_number("samples", samples, 0, (1 << 63) - 1)
        number("gamma", gamma, 0, 1)
        k = gamma * samples / (2 * pi * log(samples)) if samples > 1 else 0.0
        if k <= 1:
            raise ValueError(f"gamma n / (2 pi log n) is above 1, got {k:.3g} of n = {shown(samples)} samples")
        if not self.trace:
            return 0.0
        scaled = self._relative * (self.parameters / self._relative.sum())
        return float((k * scaled).log1p().sum() / log(k))


def _own_logits(model: nn.Module, batch: Any) -> Tensor:
    found = getattr(model(**batch), "logits", None) if isinstance(batch, Mapping) else None
    if found is None:
        raise ValueError("a batch is a table of arguments of a model with logits unless logits are given")
    return found


def fisher_spectrum(
    model: nn.Module,
    examples: Iterable[Any],
    loss: Loss | None = None,
    *,
    kind: str = "empirical",
    logits: Logits | None = None,
    parameters: Iterable[nn.Parameter] | None = None,
) -> FisherSpectrum:
    """The Fisher spectrum of what trains in an adapted model, or of ``parameters``, where they are.

    examples: batches of one input each. kind: "empirical", the scores of the labels that are given, so gradients of
    ``loss(model, example)``, left out the model's own; or "true", the mean over the labels that the model itself
    predicts, from ``logits(model, example)``, (..., classes), of which the last axis is one distribution and all others
    are independent draws. The model is in eval mode meanwhile, and stays as it is.

    Raises ValueError for no examples, nothing that trains, a loss that is no number, and scores that are not finite.

    >>> from peft import get_peft_model
    >>> from qcircuit_peft import QCircuitConfig
    >>> config = QCircuitConfig(r=4, target_modules=["0"], seed=0, init_weights=False)
    >>> model = get_peft_model(nn.Sequential(nn.Linear(32, 16)), config)
    >>> x = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    >>> found = fisher_spectrum(model, x, lambda model, x: model(x).square().sum())
    >>> found.examples, len(found.eigenvalues), 1 <= found.participation <= 8
    (8, 8, True)
    """
    one_of("kind", kind, KINDS)
    check_task(examples, loss)
    trained = [p for p in model.parameters() if p.requires_grad] if parameters is None else list(parameters)
    if not trained:
        raise ValueError("the Fisher information is that of what trains, but no parameter of the model does")
    rows, count = [], 0
    with evaluating(model), torch.enable_grad():
        for example in examples:
            count += 1
            scores = (
                _scores(loss or own_loss, model, example, trained)
                if kind == "empirical"
                else _expected(logits or _own_logits, model, example, trained)
            )
            rows += scores
    if not count:
        raise ValueError("the Fisher information is a mean over one or more examples, got none")
    stacked = torch.stack(rows) / count**0.5
    if not stacked.isfinite().all():
        raise ValueError("the gradient of an example has entries that are NaN or infinite")
    sizes = torch.linalg.svdvals(stacked).square()
    return FisherSpectrum(sizes, stacked.shape[1], count)


def _flat(value: Tensor, trained: list[nn.Parameter], keep: bool = False) -> Tensor:
    found = torch.autograd.grad(value, trained, retain_graph=keep, allow_unused=True, materialize_grads=True)
    return torch.cat([g.detach().flatten().double().cpu() for g in found])


def _scores(loss: Loss, model: nn.Module, example: Any, trained: list[nn.Parameter]) -> list[Tensor]:
    value = loss(model, example)
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise ValueError(f"a loss is one number for an example, got {shown(value)}")
    if not value.requires_grad:
        raise ValueError("the loss of an example does not depend on what trains")
    return [_flat(value.sum(), trained)]


def _expected(logits: Logits, model: nn.Module, example: Any, trained: list[nn.Parameter]) -> list[Tensor]:
    """One score for each class of each draw, weighted by the root of its probability."""
    logs = logits(model, example).log_softmax(-1)
    logs = logs.reshape(-1, logs.shape[-1])
    if not logs.requires_grad:
        raise ValueError("the logits of an example do not depend on what trains")
    weights = (logs.detach() / 2).exp().double().cpu()
    return [
        weights[draw, label] * _flat(logs[draw, label], trained, keep=True)
        for draw in range(len(logs))
        for label in range(logs.shape[-1])
    ]
