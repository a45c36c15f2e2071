"""Fine-tune a model on a table of one's own, keep what is needed to use it, and label another table with it.

The folder of an adapter holds what PEFT needs, the head included, the model's configuration with the names of the
classes, ``task.json`` (which columns are read, how numbers were scaled), a model card and a plot.
"""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import torch
from matplotlib.figure import Figure
from peft import PeftConfig, PeftModel, save_as_lora
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn
from transformers import AutoConfig
from transformers.pytorch_utils import Conv1D

from qcircuit_peft import checks, files
from qcircuit_peft.methods import CIRCUITS, RIVALS, Adapter, shapes
from qcircuit_peft.tasks.data import Split, Splits
from qcircuit_peft.tasks.examples import Columns, Examples, examples, held_out
from qcircuit_peft.tasks.metrics import METRICS
from qcircuit_peft.tasks.tables import Source, Table
from qcircuit_peft.tasks.task import KINDS, Encoder, Task, load
from qcircuit_peft.text import did_you_mean, label, printable, shortened, shown
from qcircuit_peft.training import BATCH, Fit, Progress, fit, scores

TASK, CHECKPOINTS, SETTINGS, CARD, PLOT = "task.json", "checkpoints", "settings.json", "README.md", "training.png"
FORMS = ("lora", "merged")
_TARGETS = (
    ("query", "value"), ("q_proj", "v_proj"), ("query_proj", "value_proj"), ("q_lin", "v_lin"), ("q", "v"),
    ("c_attn",), ("query_key_value",), ("Wqkv",), ("qkv",), ("in_proj",),
)  # fmt: skip
_MOST_TASK, _AT_ONCE, _BYTES = 1 << 20, 1024, 4  # bytes of task.json; rows read at once; memory a byte of a table takes


# Those that PEFT attaches to linear layers, and reads again where qcircuit_peft is imported. AdaLoRA is not among them:
# PEFT warns when it saves and loads what has been pruned to rank 0.
ADAPTERS = {
    name: row for name, row in {**CIRCUITS, **RIVALS}.items() if isinstance(row.attach, Adapter) and name != "adalora"
}


@dataclass(frozen=True)
class Settings:
    """How a model is adapted and trained; what is left out is as the method and the model say.

    model: a folder, or a name on the hub. method: a key of ``ADAPTERS``. rank: its size, which for most is the rank.
    layers: L of circuits. targets: the names of the linear layers that are adapted. validation: a share of the rows, or
    another table. batch: inputs a step. max_length: of a text in tokens.

    Raises ValueError for a value out of range, an unknown method, and layers for a method without circuits.
    """

    model: str
    columns: Columns
    regression: bool = False
    method: str = "circuit"
    rank: int | None = None
    layers: int | None = None
    targets: tuple[str, ...] = ()
    epochs: int = 3
    validation: float | str = 0.1
    batch: int = BATCH
    max_length: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        checks.text("model", self.model)
        if self.method not in ADAPTERS:
            raise ValueError(f"there is no method {shown(self.method)}; {did_you_mean(self.method, ADAPTERS)}")
        if self.rank is not None:
            checks.whole_number("rank", self.rank, 1)
        if self.layers is not None:
            checks.whole_number("layers", self.layers, 0)
            if self.method not in CIRCUITS:
                raise ValueError(f"layers are of circuits, but the method is {self.method!r}")
        for name, most in (("epochs", 10_000), ("batch", 1 << 16), ("max_length", 1 << 20)):
            checks.whole_number(name, getattr(self, name), 1, most)
        checks.whole_number("seed", self.seed, 0, 2**32 - 1)
        if not isinstance(self.validation, str):
            checks.number("validation", self.validation, 0, below=1)
        if self.regression and self.columns.image is not None:
            raise ValueError("a regression reads texts, got a column of images")

    @property
    def kind(self) -> str:
        """A key of ``KINDS``."""
        return "images" if self.columns.image is not None else "regression" if self.regression else "classification"


@dataclass(frozen=True)
class Figures:
    """What a training gave, as the model card has it.

    metric: its name. value: of the epoch that was kept, on the validation rows. trained: numbers in the adapter.
    history: a row an epoch, with its "loss" (mean, of a batch) and "value". bytes: of adapter and head on the disk.
    """

    kind: str
    metric: str
    value: float
    epoch: int
    history: tuple[dict[str, float], ...]
    train: int
    validation: int
    rows: int
    disputed: int
    classes: tuple[str, ...]
    trained: int
    head: int
    bytes: int
    seconds_per_step: float


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
    if isinstance(settings.validation, str):
        other = examples(
            Table(settings.validation, encoding, delimiter),
            settings.columns,
            regression=settings.regression,
            names=found.names,
        )
        seen = set(other.inputs)
        kept = [
            at for at, value in enumerate(found.inputs) if value not in seen
        ]  # what is validated with is not learned
        if not kept:
            raise ValueError(f"{table.name} has no input that is not in {shown(settings.validation)} too")
        train, validation = found.split(kept), other.split(range(len(other.inputs)))
    else:
        train, validation = map(found.split, held_out(found, settings.validation, settings.seed))
    return found, Splits(train, validation, validation.__class__((), validation.labels[:0], validation.names))


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
    """The model with a fresh adapter and a head that trains whole; raises ValueError if the adapter does not fit it."""
    model, heads = load(task)
    targets, method = list(settings.targets) or targets_of(model), ADAPTERS[settings.method]
    shapes(model, targets)
    size = method.default_on(model, targets) if settings.rank is None else settings.rank
    more: dict[str, Any] = {"modules_to_save": list(heads)}
    if settings.method in CIRCUITS:
        more |= {"seed": settings.seed} | ({} if settings.layers is None else {"layers": settings.layers})
    found: Any = method.attach(model, targets, size, **more)
    found.active_peft_config.base_model_name_or_path = _place(settings.model)
    return found


def _place(model: str) -> str:
    """A folder by its whole path, so that an adapter finds it from wherever it is used; a name on the hub as it is."""
    return str(Path(model).resolve()) if Path(model).is_dir() else model


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
    found, splits = read(data, settings, encoding, delimiter)
    numbers = _scaled(splits.train) if settings.regression else (0.0, 1.0)
    task = _task(settings, Splits(*(_rescaled(split, numbers) for split in splits)))
    signature = json.dumps({**asdict(settings), "inputs": len(found.inputs), "names": found.names}, indent=1)
    _claim(out, signature, resume)
    torch.manual_seed(settings.seed)
    net = adapted(settings, task)
    encode = Encoder(task)
    groups = ADAPTERS[settings.method].groups(net)
    train, held = encode.rows(task.splits().train), encode.rows(task.splits().validation)
    metric = METRICS[task.metric]
    files.make_folder(out / CHECKPOINTS)
    files.write(out / CHECKPOINTS / SETTINGS, signature)

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
    head = sum(p.numel() for group in groups if group["kind"] == "heads" for p in group["params"])
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
    files.remove(out / CHECKPOINTS)
    return figures


def _claim(out: Path, signature: str, resume: bool) -> None:
    """Raise ValueError unless a folder is new or empty, or holds this very training and it is to be resumed."""
    marker = out / CHECKPOINTS / SETTINGS
    name = shown(str(out))
    if resume:
        if not marker.is_file():
            raise ValueError(f"{name} holds no training that was interrupted; leave out resume")
        if files.read(marker, "settings", _MOST_TASK).decode("utf-8", "replace") != signature:
            raise ValueError(f"{name} holds the training of other data or settings; resume it with those")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        again = ", or resume what was interrupted there" if marker.is_file() else ""
        raise ValueError(f"{name} is not empty; name another folder{again}")


def _task(settings: Settings, splits: Splits) -> Task:
    return Task(
        settings.kind,
        lambda: settings.model,
        lambda: splits,
        settings.targets,
        settings.targets,
        settings.epochs,
        None,
        settings.columns.image is None,
        kind=settings.kind,
        max_length=settings.max_length,
    )


def _scaled(split: Split) -> tuple[float, float]:
    """The mean and the deviation of the numbers that are learned."""
    values = split.labels.double()
    return values.mean().item(), max(values.std(correction=0).item(), 1e-30)


def _rescaled(split: Split, numbers: tuple[float, float]) -> Split:
    if numbers == (0.0, 1.0):
        return split
    return Split(split.inputs, ((split.labels.double() - numbers[0]) / numbers[1]).float(), split.names)


def _measured(
    net: nn.Module, encode: Encoder, rows: Any, split: Split, task: Task, numbers: tuple[float, float]
) -> float:
    given = scores(net, encode, rows, rows.length)
    found = given[:, 0].double() * numbers[1] + numbers[0] if task.kind == "regression" else given.argmax(-1)
    return METRICS[task.metric](found.numpy(), split.labels.numpy())


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
        save_as_lora(out / "lora", net, rank=_lora_rank(net))
        config.save_pretrained(out / "lora")
    if "merged" in also:
        merged: Any = net.merge_and_unload(safe_merge=True)
        merged.save_pretrained(out / "merged")


def _lora_rank(net: PeftModel) -> int:
    return max(int(getattr(net.active_peft_config, "r", 0) or 0), 1)


def plot(figures: Figures) -> Figure:
    """The loss in training and the measure on the validation rows, epoch by epoch."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    left: Any = figure.subplots()
    right = left.twinx()
    epochs = range(1, len(figures.history) + 1)
    left.plot(epochs, [row["loss"] for row in figures.history], "o-", color="C1", label="training loss")
    right.plot(
        epochs, [row["value"] for row in figures.history], "s-", color="C0", label=f"{figures.metric}, validation"
    )
    right.axvline(figures.epoch, color="0.6", linestyle="--", label="kept")
    left.set(xlabel="epoch", ylabel="training loss")
    right.set_ylabel(figures.metric)
    left.xaxis.get_major_locator().set_params(integer=True)
    lines = [*left.get_lines(), *right.get_lines()]
    left.legend(lines, [label(str(line.get_label())) for line in lines], fontsize="small")
    return figure


def written(figures: Figures) -> str:
    """The measure as it is read: a share in per cent, a number with four digits."""
    return f"{100 * figures.value:.1f} %" if METRICS[figures.metric].unit == "%" else f"{figures.value:.4g}"


def card(figures: Figures, settings: Settings) -> str:
    """The model card, in Markdown, with the figures and how to load the adapter."""
    auto, place = KINDS[figures.kind].auto, _place(settings.model)
    name = json.dumps(shortened(printable(place), 500))
    classes = ", ".join(shortened(printable(c), 60).replace("|", "\\|") for c in figures.classes[:100])
    rows = [f"| {at} | {row['loss']:.4f} | {row['value']:.4f} |" for at, row in enumerate(figures.history, 1)]
    method = ADAPTERS[settings.method]
    return "\n".join(
        [
            "---", f"base_model: {name}", "library_name: peft", "tags: [qcircuit-peft]", "---", "",
            f"# {method.name} for {figures.kind}", "",
            f"{method.about[:1].upper()}{method.about[1:]}. {figures.trained:,} numbers are trained in the adapter and "
            f"{figures.head:,} in the head; both take {figures.bytes:,} bytes.", "",
            f"**{figures.metric} {written(figures)}** on {figures.validation:,} validation rows, by which the epoch "
            f"({figures.epoch} of {settings.epochs}) was chosen; trained on {figures.train:,}. Of {figures.rows:,} "
            f"rows equal inputs were merged, {figures.disputed:,} of which had different labels.", "",
            *([f"Classes: {classes}.", ""] if classes else []),
            "| epoch | training loss | validation |", "|---|---|---|", *rows, "",
            "```python", "import qcircuit_peft", "from peft import PeftModel",
            f"from transformers import AutoConfig, {auto}", "",
            'config = AutoConfig.from_pretrained("adapter")  # this folder',
            f"model = {auto}.from_pretrained({name}, config=config)",
            'model = PeftModel.from_pretrained(model, "adapter")', "```", "",
            "Or: `qcircuit-peft predict adapter new.csv --out predictions.csv`.", "",
        ]
    )  # fmt: skip


@dataclass(frozen=True)
class Predictor:
    """A trained adapter at work; made by ``Predictor.load(folder)``."""

    net: nn.Module
    encode: Encoder
    columns: Columns
    kind: str
    names: tuple[str, ...]
    numbers: tuple[float, float]

    @classmethod
    def load(cls, folder: str | Path) -> "Predictor":
        """From the folder of an adapter; raises ValueError if it is not one of ``fine_tune``."""
        folder = Path(folder)
        name = shown(str(folder))
        record = files.read_json(folder / TASK, "task", _MOST_TASK)
        try:
            checks.keys("task", record, ("version", "kind", "columns", "max_length", "mean", "deviation"), ("version",))
            checks.whole_number("version", record["version"], 1, 1)
            kind = checks.one_of("kind", record.get("kind"), KINDS)
            length = checks.whole_number("max_length", record.get("max_length"), 1, 1 << 20)
            numbers = checks.number("mean", record.get("mean")), checks.number("deviation", record.get("deviation"), 0)
            given = record.get("columns")
            if not isinstance(given, dict):
                raise ValueError(f"columns is a table, got {shown(given)}")
            checks.keys("columns", given, ("text", "text2", "image", "label"))
            columns = Columns(
                **{key: value if value is None else checks.text(key, value) for key, value in given.items()}
            )
        except (ValueError, AttributeError, TypeError) as error:
            raise ValueError(f"{name} is no adapter of qcircuit-peft train: {TASK}: {error}") from None
        config: Any = AutoConfig.from_pretrained(folder)
        place = PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
        if not isinstance(place, str):
            raise ValueError(f"{name} does not say which model it adapts")
        classes = () if kind == "regression" else tuple(config.id2label[at] for at in range(config.num_labels))
        empty = Split((), torch.empty(0, dtype=torch.int64 if classes else torch.float32), classes)
        text = columns.image is None
        task = Task(kind, lambda: place, lambda: Splits(empty, empty, empty), (), (), 1, None, text, kind, "", length)
        model = PeftModel.from_pretrained(load(task)[0], folder)
        if torch.cuda.is_available():
            model = model.cuda()
        return cls(model.eval(), Encoder(task), columns, kind, classes, numbers)

    def __call__(self, inputs: Sequence[Any]) -> list[tuple[str | float, float | None]]:
        """The prediction for each input, and its probability; a number has none."""
        rows = [self.encode.row(value) for value in inputs]
        given = scores(self.net, self.encode, rows, lambda at: len(rows[at].get("input_ids", ())))
        if self.kind == "regression":
            return [(value, None) for value in (given[:, 0].double() * self.numbers[1] + self.numbers[0]).tolist()]
        best = given.softmax(-1).max(-1)
        return [(self.names[at], p) for p, at in zip(best.values.tolist(), best.indices.tolist(), strict=True)]


ADDED = ("prediction", "probability")


def predict(
    folder: Path,
    data: Source,
    out: Path,
    *,
    encoding: str = "utf-8",
    delimiter: str | None = None,
    progress: Callable[[int], None] = lambda rows: None,
) -> int:
    """Write the rows of a table with the columns "prediction" and "probability" to a CSV file, and count them.

    Read and written piece by piece, so that a table may be larger than the memory; the file is there when it is whole.
    A ``.tsv`` has tabs, a ``.jsonl`` one object a line. ``progress(rows)`` is called after each piece.

    Raises ValueError for a table without the columns that the adapter reads, with one of those that are added, and as
    ``Table`` does.
    """
    kinds = {".csv": ",", ".tsv": "\t", ".jsonl": ""}
    if out.suffix.lower() not in kinds:
        raise ValueError(f"predictions go to a file that ends in {', '.join(kinds)}, got {shown(str(out))}")
    table = Table(data, encoding, delimiter)
    predictor = Predictor.load(folder)
    columns = predictor.columns
    table.need(columns.text, columns.text2, columns.image)
    if clash := [name for name in ADDED if name in table.columns]:
        raise ValueError(f"{table.name} has a column {clash[0]!r} already; rename it")
    files.make_folder(out.parent)
    draft = files.draft_of(out)
    done = 0
    try:
        with draft.open("x", encoding="utf-8", newline="") as file:
            separator = kinds[out.suffix.lower()]
            writer: Any = csv.writer(file, delimiter=separator, lineterminator="\n") if separator else None
            if writer is not None:
                writer.writerow([*table.columns, *ADDED])
            rows = iter(table)
            while piece := list(islice(rows, _AT_ONCE)):
                found = predictor([columns.input(where, cells, table) for where, cells in piece])
                for (_, cells), (prediction, p) in zip(piece, found, strict=True):
                    told = None if p is None else round(p, 6)
                    if writer is not None:
                        values = [cells.get(name) for name in table.columns]
                        writer.writerow([*values, prediction, "" if told is None else told])
                    else:
                        row = {**cells, "prediction": prediction, "probability": told}
                        file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
                done += len(piece)
                progress(done)
        files.replace(draft, out)
    finally:
        draft.unlink(missing_ok=True)
    return done
