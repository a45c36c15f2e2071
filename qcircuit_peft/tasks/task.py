"""What a task is, and the classifier that is trained on it."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, default_data_collator
from transformers.utils import logging

from qcircuit_peft.tasks.data import Split, Splits

Rows = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Task:
    """A pretrained model and labelled data.

    ``targets`` are all linear layers of the blocks, ``lora_targets`` those LoRA usually takes.
    """

    about: str
    folder: Callable[[], Path]
    splits: Callable[[], Splits]
    targets: tuple[str, ...]
    lora_targets: tuple[str, ...]
    epochs: int
    scale: float  # multiplies the pooled features, whose norm is small, before the linear head
    text: bool


class Encoder:
    """Turns texts or images into the arguments of the task's model."""

    def __init__(self, task: Task) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(task.folder()) if task.text else None

    def __call__(self, inputs: Sequence[str] | Tensor) -> dict[str, Tensor]:
        """n texts, or images (n, 3, h, w) -> keyword arguments of the model."""
        if self.tokenizer is None:
            assert isinstance(inputs, Tensor)
            return {"pixel_values": inputs}
        return dict(self.tokenizer(list(inputs), padding=True, truncation=True, max_length=64, return_tensors="pt"))

    def rows(self, split: Split) -> list[dict[str, Any]]:
        """The inputs of a split one by one, texts as "input_ids" without padding, and their "labels"."""
        if self.tokenizer is None:
            return [{"pixel_values": x, "labels": y} for x, y in zip(split.inputs, split.labels, strict=True)]
        ids = self.tokenizer(list(split.inputs), truncation=True, max_length=64)["input_ids"]
        return [{"input_ids": x, "labels": y} for x, y in zip(ids, split.labels.tolist(), strict=True)]

    def collate(self, rows: Rows) -> dict[str, Tensor]:
        """Some rows as one batch, padded to the longest."""
        if self.tokenizer is None:
            return default_data_collator(list(rows))
        return dict(self.tokenizer.pad(list(rows), return_tensors="pt"))


class Head(nn.Module):
    """A linear head on features that are given, and its loss."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The cross-entropy and the scores (n, classes) of n features."""
        scores = self.head(features)
        return {"loss": cross_entropy(scores, labels), "logits": scores}


class Classifier(nn.Module):
    """A pretrained model, the mean of its last hidden states, and a linear head."""

    def __init__(self, task: Task, model: nn.Module, classes: int) -> None:
        super().__init__()
        self.model, self.scale = model, task.scale
        config: Any = model.config
        self.head = nn.Linear(config.hidden_size, classes)

    def features(self, **batch: Tensor) -> Float[Tensor, "n width"]:
        """Pooled features (n, width) of a batch of n inputs; padding does not count."""
        states = self.model(**batch).last_hidden_state
        mask = (
            batch.get("attention_mask", torch.ones(states.shape[:2], device=states.device))
            .unsqueeze(-1)
            .to(states.dtype)
        )
        return (states * mask).sum(1) / mask.sum(1) * self.scale

    def forward(self, labels: Tensor | None = None, **batch: Tensor) -> Any:
        """Class scores (n, classes) of a batch of n inputs; with labels a dict of the "loss" and of them, "logits"."""
        if labels is None:
            return self.head(self.features(**batch))
        return Head(self.head)(self.features(**batch), labels)

    def save_head(self, path: Path) -> None:
        """The head as safetensors."""
        save_file({name: value.detach().contiguous() for name, value in self.head.state_dict().items()}, path)

    def load_head(self, path: Path) -> None:
        """The head from safetensors."""
        self.head.load_state_dict(load_file(path))


def pretrained(task: Task) -> PreTrainedModel:
    """The task's model, frozen, without dropout: it would be a fifth of a step, for any method."""
    model = AutoModel.from_pretrained(task.folder()).requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def quiet() -> None:
    """No progress bars and notices of transformers."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
