"""Label a table with a trained adapter."""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from torch import nn
from transformers import CONFIG_NAME

from qcircuit_peft import checks, files
from qcircuit_peft.fine_tuning.settings import (
    MOST_TASK,
    TASK,
)
from qcircuit_peft.tasks.data import Split, Splits
from qcircuit_peft.tasks.examples import Columns
from qcircuit_peft.tasks.language import completions
from qcircuit_peft.tasks.tables import Source, Table
from qcircuit_peft.tasks.task import KINDS, Encoder, Task, load
from qcircuit_peft.text import printable, shortened, shown
from qcircuit_peft.training import scores

AT_ONCE = 1024  # rows that are read at once
ADDED = ("prediction", "probability")


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
        record = files.read_json(folder / TASK, "task", MOST_TASK)
        try:
            checks.keys("task", record, ("version", "kind", "columns", "max_length", "mean", "deviation"), ("version",))
            checks.whole_number("version", record["version"], 1, 1)
            kind = checks.one_of("kind", record.get("kind"), KINDS)
            length = checks.whole_number("max_length", record.get("max_length"), 1, 1 << 20)
            numbers = checks.number("mean", record.get("mean")), checks.number("deviation", record.get("deviation"), 0)
            given = record.get("columns")
            if not isinstance(given, dict):
                raise ValueError(f"columns is a table, got {shown(given)}")
            checks.keys("columns", given, [field.name for field in fields(Columns)])
            named: dict[str, Any] = {
                key: value if value is None else checks.text(key, value) for key, value in given.items()
            }
            columns = Columns(**named)
        except (ValueError, AttributeError, TypeError) as error:
            raise ValueError(f"{name} is no adapter of qcircuit-peft train: {TASK}: {error}") from None
        labels = _labels(folder)
        with refusing(name):
            place = PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
        if not isinstance(place, str):
            raise ValueError(f"{name} does not say which model it adapts")
        classes = labels if "labels" in KINDS[kind].of else ()
        empty = Split((), torch.empty(0, dtype=torch.int64 if classes else torch.float32), classes)
        text = columns.image is None
        task = Task(kind, lambda: place, lambda: Splits(empty, empty, empty), (), (), 1, None, text, kind, "", length)
        base = load(task)[0]
        with refusing(name):
            model = PeftModel.from_pretrained(base, folder)
        if torch.cuda.is_available():
            model = model.cuda()
        return cls(model.eval(), Encoder(task), columns, kind, classes, numbers)

    def __call__(self, inputs: Sequence[Any]) -> list[tuple[str | float, float | None]]:
        """The prediction for each input, and its probability; a number or a text that is written has none."""
        if self.encode.writing is not None:
            return [(text, None) for text in completions(self.net, self.encode.writing, inputs)]
        rows = [self.encode.row(value) for value in inputs]
        given = scores(self.net, self.encode, rows, lambda at: len(rows[at].get("input_ids", ())))
        if self.kind == "regression":
            return [(value, None) for value in (given[:, 0].double() * self.numbers[1] + self.numbers[0]).tolist()]
        best = given.softmax(-1).max(-1)
        return [(self.names[at], p) for p, at in zip(best.values.tolist(), best.indices.tolist(), strict=True)]


def _labels(folder: Path) -> tuple[str, ...]:
    """The names of the classes in a model's configuration; raises ValueError for what cannot be one."""
    data = files.read_json(folder / CONFIG_NAME, "model configuration", MOST_TASK)
    names = data.get("id2label") if isinstance(data, dict) else None
    if names is None:
        return ("LABEL_0", "LABEL_1")  # as transformers has it
    if not isinstance(names, dict) or set(names) != {str(at) for at in range(len(names))}:
        raise ValueError(f"{shown(str(folder))}: id2label of {CONFIG_NAME} maps 0, 1, ... to names, got {shown(names)}")
    return tuple(checks.text("a name in id2label", names[str(at)]) for at in range(len(names)))


@contextmanager
def refusing(name: str) -> Iterator[None]:
    """Within it, whatever PEFT makes of a broken adapter is a ValueError of one sentence."""
    try:
        yield
    except (ValueError, ImportError, MemoryError):
        raise
    except Exception as error:
        told = shortened(printable(str(error).partition("\n")[0]))
        raise ValueError(f"{name} cannot be loaded: {type(error).__name__}: {told}") from error


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
            while piece := list(islice(rows, AT_ONCE)):
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
