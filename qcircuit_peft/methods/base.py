"""Methods that train the model's own weights: none, all, the biases, or a few blocks at a time."""

import random
from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import TrainerCallback

from qcircuit_peft.methods.method import Method, blocks

LISA_EVERY, LISA_BLOCKS = 5, 2  # steps between draws, and blocks that train at a time


def _probe(model: nn.Module, targets: Sequence[str], size: int) -> nn.Module:
    return model.requires_grad_(False)


def _full(model: nn.Module, targets: Sequence[str], size: int) -> nn.Module:
    return model.requires_grad_(True)


def _biases(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for name, parameter in model.named_parameters() if name.rpartition(".")[2] == "bias"]


def _bitfit(model: nn.Module, targets: Sequence[str], size: int) -> nn.Module:
    model.requires_grad_(False)
    found = _biases(model)
    if not found:
        raise ValueError("BitFit trains biases, and this model has none")
    for parameter in found:
        parameter.requires_grad_(True)
    return model


class Lisa(TrainerCallback):
    """Lets ``active`` blocks train, drawn anew every ``every`` steps; the others are frozen meanwhile.

    What has trained once is saved, so that all blocks have gradients before the first step and after the last. Source:
    Pan et al. 2024, LISA, arXiv 2403.17919, Algorithm 1.
    """

    def __init__(self, model: nn.Module, active: int = LISA_BLOCKS, every: int = LISA_EVERY, seed: int = 0) -> None:
        self.blocks = list(blocks(model)[1])
        self.active, self.every = min(active, len(self.blocks)), every
        self.random = random.Random(seed)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Draws, at the first step and every so many."""
        if state.global_step % self.every == 0:
            chosen = self.random.sample(range(len(self.blocks)), self.active)
            for index, block in enumerate(self.blocks):
                block.requires_grad_(index in chosen)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """All that may have trained has gradients again, and is saved."""
        for block in self.blocks:
            block.requires_grad_(True)


def _lisa(model: nn.Module, targets: Sequence[str], size: int) -> nn.Module:
    model.requires_grad_(False)
    blocks(model)[1].requires_grad_(True)
    return model


def _numbers(parameters: Any) -> int:
    return sum(parameter.numel() for parameter in parameters)


BASE: dict[str, Method] = {
    "probe": Method(
        "linear probe",
        "nothing but the head is trained",
        "",
        (),
        _probe,
        lambda model, targets, size: 0,
        size="",
    ),
    "full": Method(
        "full fine-tuning",
        "all weights are trained",
        "",
        (2e-5, 5e-5, 2e-4),
        _full,
        lambda model, targets, size: _numbers(model.parameters()),
        size="",
    ),
    "bitfit": Method(
        "BitFit",
        "the model's own biases are trained, those of norms too",
        "Ben Zaken et al. 2022, arXiv 2106.10199",
        (1e-3, 4e-3, 1e-2),
        _bitfit,
        lambda model, targets, size: _numbers(_biases(model)),
        size="",
    ),
    "lisa": Method(
        "LISA",
        f"{LISA_BLOCKS} blocks, drawn every {LISA_EVERY} steps, are trained at a time; the embeddings stay frozen, and "
        "all blocks are counted, since all of them may change",
        "Pan et al. 2024, arXiv 2403.17919",
        (2e-5, 5e-5, 2e-4),
        _lisa,
        lambda model, targets, size: _numbers(blocks(model)[1].parameters()),
        size="",
        callbacks=lambda model, steps: [Lisa(model)],
    ),
}
