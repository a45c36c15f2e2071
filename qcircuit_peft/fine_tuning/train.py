"""Train an adapter and a head on a table, and write what is needed to use them."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import torch
from peft import PeftModel, save_as_lora
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from qcircuit_peft import checks, files
from qcircuit_peft.fine_tuning.card import card, plot
from qcircuit_peft.fine_tuning.settings import (
    ADAPTERS,
    CARD,
    CHECKPOINTS,
    FORMS,
    LOW_RANK,
    MOST_TASK,
    OURS,
    PLOT,
    SETTINGS,
    TASK,
    Figures,
    Settings,
    place_of,
)
from qcircuit_peft.methods import look, shapes, some_batches
from qcircuit_peft.rates import RATES
from qcircuit_peft.tasks.data import Split, Splits
from qcircuit_peft.tasks.examples import Examples, divided, examples
from qcircuit_peft.tasks.metrics import METRICS
from qcircuit_peft.tasks.tables import Source, Table
from qcircuit_peft.tasks.task import KINDS, Encoder, Task, load
from qcircuit_peft.text import shown
from qcircuit_peft.training import Fit, Progress, fit, predicted

_TARGETS = (
    ("query", "value"), ("q_proj", "v_proj"), ("query_proj", "value_proj"), ("q_lin", "v_lin"), ("q", "v"),
    ("c_attn",), ("query_key_value",), ("Wqkv",), ("qkv",), ("in_proj",),
)  # fmt: skip
_BYTES = 4  # memory that a byte of a table takes


def read(
    data: Source, settings: Settings, encoding: str = "utf-8", delimiter: str | None = None
) -> tuple[Examples, Splits]:
    """The examples of a table, and what is trained on and validated with; there is no test split.

    Raises ValueError, in one sentence, for a table that cannot be read or split as ``settings`` say, and for a file
    that needs more memory than is free.
    """
    table = Table(data, encoding, delimiter)
    if table.path is not None and table.path.is_file():
        needed, free = _BYTES * table.path.stat().st_size, psutil.virtual_memory().available
        if needed > free:
            raise ValueError(f"{table.name}: to train on it takes {needed:,} bytes of memory, {free:,} are free")
    found = examples(table, settings.columns, regression=settings.regression)
    validation: Any = settings.validation
    if isinstance(validation, str):
        other = Table(validation, encoding, delimiter)
        validation = examples(other, settings.columns, regression=settings.regression, names=found.names)
    return found, divided(found, validation, seed=settings.seed)


def targets_of(model: nn.Module) -> list[str]:
    """The names of the layers that LoRA usually adapts in such a model; raises ValueError if none is known."""
    linear = {name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)}
    known = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(getattr(model.config, "model_type", ""), ())
    for names in (known, *_TARGETS):
        if names and not isinstance(names, str) and set(names) <= linear:
            return list(names)
    raise ValueError(
        f"which layers of a {type(model).__name__} to adapt is not known; name targets among {sorted(linear)}"
    )


def adapted(settings: Settings, task: Task) -> PeftModel:
    """The model with a fresh adapter and a new head, if it has one, that trains whole.

    Raises ValueError if the adapter does not fit it.
    """
    model, heads = load(task)
    targets, method = list(settings.targets) or targets_of(model), ADAPTERS[settings.method]
    shapes(model, targets)
    size = method.default_on(model, targets) if settings.rank is None else settings.rank
    more: dict[str, Any] = {"modules_to_save": list(heads) or None, "task_type": KINDS[task.kind].task_type}
    if settings.method in OURS:
        more |= {"seed": settings.seed} | ({} if settings.layers is None else {"layers": settings.layers})
    found: Any = method.attach(model, targets, size, **more)
    found.active_peft_config.base_model_name_or_path = place_of(settings.model)
    return found


@dataclass(frozen=True)
class Headed:
    """A pretrained model whose new head, if it has one, has been trained, the layers to adapt, batches of the table."""

    model: nn.Module
    targets: list[str]
    batches: list[dict[str, Tensor]]


def headed(
    data: Source,
    settings: Settings,
    *,
    encoding: str = "utf-8",
    delimiter: str | None = None,
    batches: int = 20,
    progress: Progress | None = None,
) -> Headed:
    """What to measure before an adapter is trained: the gradient through a head that knows nothing tells nothing.

    The head trains for ``settings.epochs``; a language model's is pretrained and stays. ``batches`` of the training
    rows, at most, are given back. Raises ValueError for what ``read`` refuses, and KeyboardInterrupt where Ctrl-C ends
    the training.
    """
    checks.whole_number("batches", batches, 1)
    task, _ = _task(settings, read(data, settings, encoding, delimiter)[1])
    torch.manual_seed(settings.seed)
    model, heads = load(task)
    targets, encode = list(settings.targets) or targets_of(model), Encoder(task)
    trained = [p for name in heads for p in model.get_submodule(name).requires_grad_(True).parameters()]
    rows = encode.rows(task.splits().train)
    if trained:
        with TemporaryDirectory() as folder:
            done = fit(
                model,
                [{"params": trained, "lr": RATES["heads"]}],
                rows,
                Path(folder),
                epochs=settings.epochs,
                collate=encode.collate,
                seed=settings.seed,
                batch=settings.batch,
                progress=progress,
            )
        if not done.finished:
            raise KeyboardInterrupt
    device = next(model.parameters()).device
    some = some_batches(encode, rows, device, settings.batch, seed=settings.seed, count=batches)
    model.requires_grad_(False)
    return Headed(model, targets, some)


def fine_tune(
    data: Source,
    out: Path,
    settings: Settings,
    *,
    encoding: str = "utf-8",
    delimiter: str | None = None,
    also: Sequence[str] = (),
    resume: bool = False,
    progress: Progress | None = None,
) -> Figures | None:
    """Train an adapter and a head on a table, keep the best epoch, and write all that is needed to use it into ``out``.

    also: forms in which it is written too, "lora" (the folder lora, for programs that know only that) and "merged" (the
    folder merged, the whole model). resume: go on with a training that was interrupted. None: it was, by Ctrl-C; what
    is needed to resume is there.

    Raises ValueError, before anything is trained or written, for what ``read`` and ``adapted`` refuse, a folder that is
    not empty and not resumed, and one of other settings.
    """
    for form in also:
        checks.one_of("also", form, FORMS)
    if "lora" in also and settings.method not in LOW_RANK:
        raise ValueError(
            f"a plain LoRA is written of {', '.join(LOW_RANK)}, whose updates have rank r, but the method is "
            f"{settings.method!r}; ask for the merged model"
        )
    found, splits = read(data, settings, encoding, delimiter)
    task, numbers = _task(settings, splits)
    signature = json.dumps({**asdict(settings), "inputs": len(found.inputs), "names": found.names}, indent=1)
    _claim(out, signature, resume)
    torch.manual_seed(settings.seed)
    net = adapted(settings, task)
    encode = Encoder(task)
    groups = ADAPTERS[settings.method].groups(net)
    train, held = encode.rows(task.splits().train), encode.rows(task.splits().validation)
    metric = METRICS[task.metric]
    with files.new_folder(out / CHECKPOINTS) as draft:  # one that is there stays
        files.write(draft / SETTINGS, signature)
    files.clear_drafts(out)
    method, heads = ADAPTERS[settings.method], [p for row in groups if row["kind"] == "heads" for p in row["params"]]
    look(method, net, heads, encode, train, settings.batch, seed=settings.seed, folder=out / CHECKPOINTS)

    def measure() -> float:
        value = _measured(net, encode, held, splits.validation, task, numbers)
        return value if metric.larger else -value

    done = fit(
        net,
        groups,
        train,
        out / CHECKPOINTS,
        epochs=settings.epochs,
        collate=encode.collate,
        seed=settings.seed,
        batch=settings.batch,
        measure=measure,
        resume=resume,
        progress=progress,
    )
    if not done.finished:
        return None
    head = sum(p.numel() for p in heads)
    trained = sum(p.numel() for group in groups for p in group["params"]) - head
    history = _history(done, metric.larger)
    values = [row["value"] for row in history]
    best = (max if metric.larger else min)(range(len(values)), key=values.__getitem__)
    _save(net.eval(), out, settings, numbers, also)
    figures = Figures(
        kind=task.kind,
        metric=task.metric,
        value=values[best],
        epoch=best + 1,
        history=tuple(history),
        train=len(train),
        validation=len(held),
        rows=found.rows,
        disputed=found.disputed,
        classes=found.names,
        trained=trained,
        head=head,
        bytes=sum(path.stat().st_size for path in out.glob("adapter_*")),
        seconds_per_step=done.seconds_per_step,
    )
    files.write_figure(out / PLOT, plot(figures))
    files.write(out / CARD, card(figures, settings))
    gone = files.draft_of(out / CHECKPOINTS)
    files.replace(out / CHECKPOINTS, gone)  # from here on the training is over
    files.remove(gone)
    return figures


def _claim(out: Path, signature: str, resume: bool) -> None:
    """Raise ValueError unless a folder is new or empty, or holds this very training and it is to be resumed."""
    marker = out / CHECKPOINTS / SETTINGS
    name = shown(str(out))
    if resume:
        if not marker.is_file():
            raise ValueError(f"{name} holds no training that was interrupted; leave out resume")
        if files.read(marker, "settings", MOST_TASK).decode("utf-8", "replace") != signature:
            raise ValueError(f"{name} holds the training of other data or settings; resume it with those")
    elif out.exists() and (not out.is_dir() or any(not path.name.startswith(files.DRAFT) for path in out.iterdir())):
        again = ", or resume what was interrupted there" if marker.is_file() else ""
        raise ValueError(f"{name} is not empty; name another folder{again}")


def _task(settings: Settings, splits: Splits) -> tuple[Task, tuple[float, float]]:
    """The task that is trained on, and the mean and the deviation by which its numbers are scaled."""
    numbers = _scaled(splits.train) if settings.regression else (0.0, 1.0)
    scaled = Splits(*(_rescaled(split, numbers) for split in splits))
    task = Task(
        settings.kind,
        lambda: settings.model,
        lambda: scaled,
        settings.targets,
        settings.targets,
        settings.epochs,
        None,
        settings.columns.image is None,
        kind=settings.kind,
        max_length=settings.max_length,
    )
    return task, numbers


def _scaled(split: Split) -> tuple[float, float]:
    """The mean and the deviation of the numbers that are learned."""
    values = split.numbers.double()
    return values.mean().item(), max(values.std(correction=0).item(), 1e-30)


def _rescaled(split: Split, numbers: tuple[float, float]) -> Split:
    if numbers == (0.0, 1.0):
        return split
    return Split(split.inputs, ((split.numbers.double() - numbers[0]) / numbers[1]).float(), split.names)


def _measured(
    net: nn.Module, encode: Encoder, rows: Any, split: Split, task: Task, numbers: tuple[float, float]
) -> float:
    found, wanted = predicted(net, encode, rows, split)
    if task.kind == "regression":
        found = found.astype(float) * numbers[1] + numbers[0]
    return METRICS[task.metric](found, wanted)


def _history(done: Fit, larger: bool) -> list[dict[str, float]]:
    losses = [row["loss"] for row in done.history if "loss" in row]
    values = [row["eval_measure"] if larger else -row["eval_measure"] for row in done.history if "eval_measure" in row]
    return [{"loss": loss, "value": value} for loss, value in zip(losses, values, strict=True)]


def _save(net: PeftModel, out: Path, settings: Settings, numbers: tuple[float, float], also: Sequence[str]) -> None:
    net.cpu()
    net.save_pretrained(str(out))
    config: Any = net.get_base_model().config
    config.save_pretrained(out)
    record = {
        "version": 1,
        "kind": settings.kind,
        "columns": asdict(settings.columns),
        "max_length": settings.max_length,
        "mean": numbers[0],
        "deviation": numbers[1],
    }
    files.write(out / TASK, json.dumps(record, indent=1) + "\n")
    if "lora" in also:
        save_as_lora(out / "lora", net, rank=net.active_peft_config.r)  # type: ignore[union-attr]
        config.save_pretrained(out / "lora")
    if "merged" in also:
        merged: Any = net.merge_and_unload(safe_merge=True)
        merged.save_pretrained(out / "merged")
