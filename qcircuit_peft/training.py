"""Train one method on one task, by ``transformers.Trainer``, and measure it.

What is common to all of this package's trainings is in ``fit``: rates by kind of parameter, a linear schedule, no
dropout in the pretrained model, batches of similar length; a training can be interrupted and resumed.
"""

import json
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import ceil, sqrt
from pathlib import Path
from statistics import median
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, default_data_collator
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from qcircuit_peft import files, methods
from qcircuit_peft.methods import HEAD_RATE, TRAINED, Chosen, load_trained, look, save_trained
from qcircuit_peft.tasks import Classifier, Encoder, Head, OwnHead, Rows, Task, network, pretrained
from qcircuit_peft.tasks.data import Split
from qcircuit_peft.tasks.language import completions, losses
from qcircuit_peft.tasks.metrics import METRICS
from qcircuit_peft.tuner.saving import current, replaced_at_once

BATCH = 32
HEAD = "head.safetensors"
_MOST_STATE = 1 << 26  # bytes of a trainer_state.json
_WARMUP = 0.06  # of all steps; then the rates fall linearly to zero

Progress = Callable[[int, int, float], None]  # the step, of how many, and its loss
Measure = Callable[[], float]


@dataclass(frozen=True)
class Result:
    """What one run gave. The accuracy is the task's metric, ``interval`` half its 95 % interval (nan: of no share)."""

    method: str
    parameters: int
    accuracy: float
    interval: float
    seconds_per_step: float
    checkpoint_bytes: int
    finished: bool


@dataclass
class Fit:
    """How a training went: the seconds of each step, what Trainer logged after each epoch, whether it came to its end.

    A row of ``history`` has "epoch", and "loss" or "eval_measure".
    """

    seconds: list[float]
    history: list[dict[str, float]]
    finished: bool

    @property
    def seconds_per_step(self) -> float:
        """The median; nan if no step was made."""
        return median(self.seconds) if self.seconds else float("nan")


class _Trainer(Trainer):
    """Trainer that measures by a function, and whose checkpoints hold what trains: the rest does not change."""

    measure: Measure | None = None
    loss: Tensor

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        self.loss = super().training_step(*args, **kwargs)
        return self.loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        assert self.measure is not None
        found = {"eval_measure": self.measure()}
        self.log(found)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Warm-up from the first step on, which Trainer's own schedule makes at a rate of zero, then linear decay."""
        if self.lr_scheduler is None:
            warmup = max(1, round(_WARMUP * num_training_steps))
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer or self.optimizer,  # type: ignore[arg-type]
                lambda step: min(1, (step + 1) / warmup) * (num_training_steps - step) / num_training_steps,
            )
        return self.lr_scheduler

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        save_trained(self.model, Path(output_dir or str(self.args.output_dir)))  # type: ignore[arg-type]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_trained(self.model, Path(resume_from_checkpoint))  # type: ignore[arg-type]

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(str(self.state.best_model_checkpoint))


class _Watch(TrainerCallback):
    """Takes the seconds of every step, and tells how far the training is."""

    def __init__(self, progress: Progress | None) -> None:
        self.seconds: list[float] = []
        self.progress, self.start = progress, 0.0
        self.trainer: Any = None

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.start = time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds.append(time.process_time() - self.start)
        if self.progress is not None:
            self.progress(state.global_step, state.max_steps, float(self.trainer.loss))


def fit(
    net: nn.Module,
    groups: list[dict[str, Any]],
    rows: Rows,
    folder: Path,
    *,
    epochs: int,
    collate: Callable[[list[Any]], dict[str, Tensor]],
    seed: int = 0,
    batch: int = BATCH,
    measure: Measure | None = None,
    resume: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
    progress: Progress | None = None,
    **arguments: Any,
) -> Fit:
    """Train what has gradients in ``net`` by AdamW, in groups as ``parameter_groups`` gives them.

    net: of a batch with labels, as ``collate`` makes one of rows, it gives a dict with "loss". rows: the inputs, texts
    as "input_ids". measure: called after every epoch, larger is better; then the best epoch is kept, the first of equal
    ones, and ``folder`` gets a checkpoint an epoch, of what trains and of the optimizer; without it the last epoch is
    kept, and there are no checkpoints. resume: go on from the last whole checkpoint there. arguments: more of
    ``TrainingArguments``. Ctrl-C ends the training, and ``net`` stays as it is then.

    Raises ValueError for a checkpoint of another model or method.
    """
    watch = _Watch(progress)
    settings: dict[str, Any] = {"train_sampling_strategy": "group_by_length"} if "input_ids" in rows[0] else {}
    settings |= {"save_strategy": "no", "logging_strategy": "no"}
    if measure is not None:
        settings |= dict.fromkeys(("save_strategy", "logging_strategy", "eval_strategy"), "epoch")
        settings |= {"load_best_model_at_end": True, "metric_for_best_model": "measure", "greater_is_better": True}
    trainer = _Trainer(
        net,
        TrainingArguments(
            str(folder),
            per_device_train_batch_size=batch,
            num_train_epochs=epochs,
            max_grad_norm=0.0,
            save_total_limit=2,  # the best and the last
            seed=seed,
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=torch.cuda.is_available(),
            **(settings | arguments),
        ),
        train_dataset=rows,  # type: ignore[arg-type]
        eval_dataset=rows,  # type: ignore[arg-type]  # which ``evaluate`` does not look at
        data_collator=collate,
        callbacks=[watch, *callbacks],
        optimizer_cls_and_kwargs=(torch.optim.AdamW, {"params": groups, "weight_decay": 0.0}),
    )
    trainer.measure, watch.trainer = measure, trainer
    trainer.remove_callback(PrinterCallback)
    last = last_checkpoint(folder) if resume else None
    for half in _checkpoints(folder) if resume else ():
        if not _is_whole(half):  # which would count among those that are kept
            files.remove(half)
    try:
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
        finished = True
    except KeyboardInterrupt:
        trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)
        finished = False
    return Fit(watch.seconds, trainer.state.log_history, finished)


def last_checkpoint(folder: str | Path) -> Path | None:
    """The last whole checkpoint that a ``Trainer`` wrote into a folder; None if there is none.

    A process that is killed while it saves leaves a folder without a whole trainer_state.json, which comes last, and
    ``resume_from_checkpoint=True`` takes that folder and fails; so give it what this finds. The adapter in a checkpoint
    is whole at every instant.

    >>> from tempfile import TemporaryDirectory
    >>> from transformers import TrainerState
    >>> with TemporaryDirectory() as folder:
    ...     for step in (3, 6):
    ...         Path(folder, f"checkpoint-{step}").mkdir()
    ...     TrainerState(global_step=3).save_to_json(Path(folder, "checkpoint-3", "trainer_state.json"))
    ...     last_checkpoint(folder).name
    'checkpoint-3'
    """
    found = [path for path in _checkpoints(Path(folder)) if _is_whole(path)]
    return max(found, key=_step, default=None)


def _checkpoints(folder: Path) -> list[Path]:
    paths = folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    return [path for path in paths if _step(path) >= 0 and path.is_dir()]


def _step(path: Path) -> int:
    number = path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
    return int(number) if number.isascii() and number.isdigit() else -1


def _is_whole(checkpoint: Path) -> bool:
    try:
        state = files.read_json(checkpoint / TRAINER_STATE_NAME, "state of a training", _MOST_STATE)
    except ValueError:
        return False
    return isinstance(state, dict) and state.get("global_step") == _step(checkpoint)


@torch.no_grad()
def scores(net: nn.Module, encode: Encoder, rows: Rows, length: Callable[[int], int]) -> Tensor:
    """What a model gives for n rows, (n, classes) or (n, 1), in float32; those of like ``length`` go together."""
    net.eval()
    device = next(net.parameters()).device
    order = sorted(range(len(rows)), key=length)
    found: list[Tensor] = [torch.empty(0)] * len(rows)
    for start in range(0, len(order), 2 * BATCH):
        at = order[start : start + 2 * BATCH]
        batch = encode.collate([{key: value for key, value in rows[i].items() if key != "labels"} for i in at])
        given = net(**{key: value.to(device) for key, value in batch.items()})
        given = given if isinstance(given, Tensor) else given.logits
        for i, row in zip(at, given.float().cpu(), strict=True):
            found[i] = row
    return torch.stack(found)


def accuracy(net: Classifier | OwnHead, encode: Encoder, split: Split) -> float:
    """The task's metric on a split: for most, the share that is classified correctly."""
    metric = METRICS[encode.task.metric]
    if encode.writing is not None and metric.of == "texts":
        prompts: Any = split.inputs
        return metric(completions(net.model, encode.writing, prompts, encode.task.beams), split.labels)
    return metric(*predicted(net, encode, encode.rows(split), split))


def predicted(net: nn.Module, encode: Encoder, rows: Any, split: Split) -> tuple[Any, Any]:
    """What a metric takes that is not of texts: predictions for the ``rows`` of a split, and what they should be."""
    if encode.writing is not None:
        return losses(net, encode.writing, rows)
    given = scores(net, encode, rows, rows.length)
    return (given.argmax(-1) if split.names else given[:, 0]).numpy(), split.numbers.numpy()


def adapter_bytes(folder: Path) -> int:
    """The size of what was trained, without the head: for PEFT its weights and its configuration; 0 if nothing was."""
    return sum(path.stat().st_size for pattern in ("adapter_*", TRAINED) for path in folder.glob(pattern))


def save(net: Classifier | OwnHead, folder: Path) -> None:
    """What the method trained and the head, which take the place of older ones both at once."""
    with replaced_at_once(folder) as draft:
        methods.save(net.model, draft)
        net.save_head(draft / HEAD)


def train(
    task: Task,
    method: Chosen,
    folder: Path,
    *,
    epochs: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Result:
    """Train a method on a task, save it in ``folder``, and measure its accuracy on the test split.

    ``seed`` draws the angles, the head and the order of the data; ``progress(step, steps, loss)`` is called after each
    step. Ctrl-C stops the training and saves what there is. Raises ValueError for a method that trains nothing here.
    """
    torch.manual_seed(seed)
    splits, encode = task.splits(), Encoder(task)
    model = method.attach(task)
    groups = method.groups(model)
    net = network(task, model)
    head = list(net.head.parameters())
    if not groups and not head:
        raise ValueError(f"the {method.name} trains nothing in a language model, whose head is pretrained")
    rows, trained = encode.rows(splits.train), net
    look(method.method, net, head, encode, rows, BATCH, seed=seed)
    plain = not groups and isinstance(net, Classifier)
    if plain and isinstance(net, Classifier):  # nothing below the head changes
        rows, trained = _features(net, encode, rows), Head(net.head)
    epochs = task.epochs if epochs is None else epochs
    done = fit(
        trained,
        [*([{"params": head, "lr": HEAD_RATE}] if head else []), *groups],
        rows,
        folder,
        epochs=epochs,
        collate=default_data_collator if plain else encode.collate,
        seed=seed,
        callbacks=method.method.callbacks(model, ceil(len(rows) / BATCH) * epochs),
        progress=progress,
    )
    if not done.finished:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # what there is gets saved, however impatient the user
    save(net, folder)
    share = accuracy(net, encode, splits.test) if done.finished else float("nan")
    result = Result(
        method=method.name,
        parameters=sum(p.numel() for group in groups for p in group["params"]),
        accuracy=share,
        interval=1.96 * sqrt(share * (1 - share) / len(splits.test)) if task.metric == "accuracy" else float("nan"),
        seconds_per_step=done.seconds_per_step,
        checkpoint_bytes=adapter_bytes(folder),
        finished=done.finished,
    )
    files.write(folder / "result.json", json.dumps(asdict(result), indent=2))
    return result


@torch.no_grad()
def _features(net: Classifier, encode: Encoder, rows: Rows) -> Rows:
    net.eval()
    found = []
    for start in range(0, len(rows), 2 * BATCH):
        batch = encode.collate(rows[start : start + 2 * BATCH])
        labels = batch.pop("labels")
        found += [{"features": f, "labels": label} for f, label in zip(net.features(**batch), labels, strict=True)]
    return found


def trained(task: Task, folder: Path, method: Chosen | None = None) -> tuple[Classifier | OwnHead, Encoder]:
    """A trained classifier from the folder of a run: the model with what the method trained, and the head.

    An adapter of PEFT says itself what it is; anything else needs the method by which it was trained. Raises ValueError
    without one, and for another.
    """
    folder = current(folder, HEAD)
    if (folder / "adapter_config.json").is_file():
        model = PeftModel.from_pretrained(pretrained(task), folder)
    elif method is not None:
        model = method.restored(task, folder)
    elif (folder / TRAINED).is_file():
        raise ValueError(f"{folder} holds weights of the model itself; name the method that trained them")
    else:
        model = pretrained(task)
    net = network(task, model)
    net.load_head(folder / HEAD)
    return net.eval(), Encoder(task)
