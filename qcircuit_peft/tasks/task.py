"""What a task is, and the classifier that is trained on it."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, default_data_collator
from transformers.utils import logging

from qcircuit_peft.checks import one_of, whole_number
from qcircuit_peft.tasks.data import Split, Splits
from qcircuit_peft.tasks.language import TokenRows, Writing, token_losses
from qcircuit_peft.tasks.metrics import METRICS
from qcircuit_peft.tasks.pictures import Pictures

Rows = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Kind:
    """What a model is asked for: the class of transformers that loads it, the metric, and of what metrics may be."""

    auto: str
    metric: str
    of: tuple[str, ...]
    task_type: str | None = None  # of PEFT, for what only its model for that can do, such as to write


KINDS = {
    "classification": Kind("AutoModelForSequenceClassification", "accuracy", ("labels",)),
    "regression": Kind("AutoModelForSequenceClassification", "rmse", ("numbers",)),
    "images": Kind("AutoModelForImageClassification", "accuracy", ("labels",)),
    "language": Kind("AutoModelForCausalLM", "perplexity", ("tokens", "texts"), "CAUSAL_LM"),
}


@dataclass(frozen=True)
class Task:
    """A pretrained model and labelled data.

    folder: where the model is, or its name on the hub. targets: all linear layers of the blocks. lora_targets: those
    LoRA usually takes. scale: what the mean of the last hidden states is multiplied by, whose norm is small, before a
    linear head; None: the head is the model's own. text: whether the inputs are texts. kind: a key of ``KINDS``; left
    out, "classification" for texts and "images" else. metric: a key of ``METRICS``; left out, the kind's.
    max_length: of a text, in tokens. bits: 4 or 8, of the pretrained weights, by bitsandbytes on a GPU. beams: of the
    search for what is written, where the metric is of texts.
    """

    about: str
    folder: Callable[[], Path | str]
    splits: Callable[[], Splits]
    targets: tuple[str, ...]
    lora_targets: tuple[str, ...]
    epochs: int
    scale: float | None
    text: bool
    kind: str = ""
    metric: str = ""
    max_length: int = 64
    bits: int | None = None
    beams: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", self.kind or ("classification" if self.text else "images"))
        one_of("kind", self.kind, KINDS)
        object.__setattr__(self, "metric", self.metric or KINDS[self.kind].metric)
        one_of("metric", self.metric, METRICS)
        whole_number("max_length", self.max_length, 4 if self.kind == "language" else 1)


class Encoder:
    """Turns texts, pairs of texts or images into the arguments of the task's model."""

    def __init__(self, task: Task) -> None:
        self.task, self.max_length = task, task.max_length
        self.tokenizer: Any = None
        self.pictures: Pictures | None = None
        self.writing: Writing | None = None
        if task.text:
            self.tokenizer = AutoTokenizer.from_pretrained(task.folder())
            if self.tokenizer.pad_token is None:  # GPT-2 and Llama: what is padded is masked
                self.tokenizer.pad_token = self.tokenizer.eos_token
            if task.kind == "language":
                self.writing = Writing(self.tokenizer, task.max_length)
        elif task.scale is None:
            self.pictures = Pictures(task.folder())

    def __call__(self, inputs: Sequence[Any] | Tensor) -> dict[str, Tensor]:
        """n texts, or images (n, 3, h, w) -> keyword arguments of the model."""
        return self.collate([self.row(value) for value in inputs])

    def row(self, value: Any) -> dict[str, Any]:
        """One input: a text or a pair as "input_ids" without padding, an image or the path of one as pixels."""
        if self.tokenizer is not None:
            texts = (value,) if isinstance(value, str) else value
            return dict(self.tokenizer(*texts, truncation=True, max_length=self.max_length))
        return {"pixel_values": value if isinstance(value, Tensor) or self.pictures is None else self.pictures(value)}

    def rows(self, split: Split) -> "Encoded | TokenRows":
        """The inputs of a split one by one, with their "labels"; images that are files are read when asked for."""
        return Encoded(self, split) if self.writing is None else self.writing.rows(split)

    def collate(self, rows: Rows) -> dict[str, Tensor]:
        """Some rows as one batch, padded to the longest."""
        if self.writing is not None:
            return self.writing.collate(rows)
        if self.tokenizer is None:
            return default_data_collator(list(rows))
        return dict(self.tokenizer.pad(list(rows), return_tensors="pt"))


class Encoded(Sequence[dict[str, Any]]):
    """The rows of a split: texts are turned into numbers at once, images when they are asked for."""

    def __init__(self, encode: Encoder, split: Split) -> None:
        self.encode, self.split = encode, split
        self.ready = [encode.row(value) for value in split.inputs] if encode.tokenizer is not None else None

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return [self[k] for k in range(*at.indices(len(self)))]
        row = self.encode.row(self.split.inputs[at]) if self.ready is None else self.ready[at]
        return row | {"labels": self.split.labels[at]}

    def length(self, at: int) -> int:
        """The cost of a row: its number of tokens, or one for an image."""
        return 1 if self.ready is None else len(self.ready[at]["input_ids"])


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
        assert task.scale is not None
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


class OwnHead(nn.Module):
    """A pretrained model with a head of its own, which trains; it stands where a ``Classifier`` does.

    A language model has a head, but it is pretrained too, and stays as it is.
    """

    def __init__(self, task: Task, model: nn.Module, classes: int = 0) -> None:
        super().__init__()
        self.model, self.classes, self.language = model, classes, task.kind == "language"
        base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        self.heads: list[str] = base.qcircuit_heads
        for parameter in self._head().values():
            parameter.requires_grad_(True)

    def _head(self) -> dict[str, nn.Parameter]:
        base: Any = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        starts = tuple(f"{name}." for name in self.heads)
        return {name: p for name, p in base.named_parameters() if name.startswith(starts)}

    @property
    def head(self) -> nn.ParameterList:
        """The parameters of the head."""
        return nn.ParameterList(self._head().values())

    def forward(self, labels: Tensor | None = None, **batch: Tensor) -> Any:
        """Scores (n, classes), (n, 1) of numbers, (n, length, words); with labels a dict of "loss" and "logits"."""
        scores = self.model(**batch).logits
        if labels is None:
            return scores
        if self.language:
            total, count = token_losses(scores, labels)
            return {"loss": total / max(count, 1), "logits": scores}
        loss = cross_entropy(scores, labels) if self.classes else mse_loss(scores[:, 0], labels)
        return {"loss": loss, "logits": scores}

    def save_head(self, path: Path) -> None:
        """The head as safetensors."""
        save_file({name: value.detach().contiguous() for name, value in self._head().items()}, path)

    def load_head(self, path: Path) -> None:
        """The head from safetensors; raises ValueError for other names than it has."""
        found, own = load_file(path), self._head()
        if set(found) != set(own):
            raise ValueError(f"{path} is the head of another model")
        with torch.no_grad():
            for name, value in found.items():
                own[name].copy_(value)


def network(task: Task, model: nn.Module) -> "Classifier | OwnHead":
    """An adapted model with the head that the task asks for, ours or its own."""
    return (OwnHead if task.scale is None else Classifier)(task, model, len(task.splits().train.names))


def pretrained(task: Task) -> PreTrainedModel:
    """The task's model, frozen, without dropout: it would be a fifth of a step, for any method.

    With a head of its own, which is drawn from torch's global random state, if ``scale`` is None; that of a language
    model is pretrained.
    """
    return load(task)[0]


def load(task: Task) -> tuple[PreTrainedModel, list[str]]:
    """The task's model as ``pretrained`` gives it, and the modules that train whole: its own head.

    The head is all that the checkpoint lacks or that is not in the model without a head. Raises ValueError, or OSError
    as transformers does, for a folder or name that holds no such model.
    """
    import transformers

    heads: list[str] = []
    if task.scale is not None:
        model = AutoModel.from_pretrained(task.folder())
    else:
        auto = getattr(transformers, KINDS[task.kind].auto)
        names = task.splits().train.names
        labels: dict[str, Any] = {"num_labels": 1, "problem_type": "regression"} if task.kind == "regression" else {}
        if names:
            labels = {"id2label": dict(enumerate(names)), "label2id": {name: at for at, name in enumerate(names)}}
            labels |= {"num_labels": len(names)}
        labels |= _quantized(task.bits)
        wanted: Any = {"ignore_mismatched_sizes": True, "output_loading_info": True}
        model, info = auto.from_pretrained(task.folder(), **labels, **wanted)
        lacks = {key.rpartition(".")[0] for key in info["missing_keys"]}
        lacks |= {key[0].rpartition(".")[0] for key in info["mismatched_keys"]}
        body = model.base_model_prefix
        outside = {name for name, module in model.named_children() if name != body and list(module.parameters())}
        if task.kind != "language":
            heads = sorted(outside | {name for name in lacks if name.partition(".")[0] not in outside})
        if task.text and getattr(model.config, "pad_token_id", None) is None:
            model.config.pad_token_id = AutoTokenizer.from_pretrained(task.folder()).eos_token_id
    model.requires_grad_(False)
    model.qcircuit_heads = heads  # type: ignore[assignment]  # for whoever gets the model by ``pretrained`` only
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model, heads


def _quantized(bits: int | None) -> dict[str, Any]:
    if bits is None:
        return {}
    if find_spec("bitsandbytes") is None:
        raise ImportError(f"{bits} bits need bitsandbytes, which is not installed; run: pip install bitsandbytes")
    from transformers import BitsAndBytesConfig

    settings = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16} if bits == 4 else {}
    return {"quantization_config": BitsAndBytesConfig(**{f"load_in_{bits}bit": True}, **settings)}


def quiet() -> None:
    """No progress bars and notices of transformers."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
