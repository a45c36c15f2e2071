"""Tasks of a user's own: a TOML file, or the same as plain data, names the model, the columns and where the data are.

about, kind, model, metric, epochs, max_length, beams, bits, targets, lora_targets
[columns]  text, text2, image, label; of kind = "language": text, completion, prompt
[test_columns]  those that have other names in the test split
[data]     train, validation, test: files; with hub (and config, revision), the names of its splits
"""

from collections.abc import Mapping
from dataclasses import fields
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from qcircuit_peft import checks, files
from qcircuit_peft.tasks.data import Splits
from qcircuit_peft.tasks.examples import Columns, Examples, divided, examples
from qcircuit_peft.tasks.metrics import METRICS
from qcircuit_peft.tasks.tables import Table
from qcircuit_peft.tasks.task import KINDS, Task
from qcircuit_peft.text import did_you_mean, printable, shortened, shown

_PAPERS = Path(__file__).parent / "papers"
_MOST = 1 << 16
_NEEDED = ("model", "lora_targets", "columns", "data")
_KEYS = (*_NEEDED, "test_columns", "about", "kind", "metric", "epochs", "max_length", "beams", "bits", "targets")
_DATA = ("hub", "config", "revision", "train", "validation", "test", "seed", "encoding", "delimiter")


def task_files() -> dict[str, Path]:
    """The task files that come with the library, by name."""
    return {path.stem: path for path in sorted(_PAPERS.glob("*.toml"))}


def load_task(
    source: str | Path | Mapping[str, Any],
    *,
    model: str | Path | None = None,
    hub: str | Path | None = None,
    folder: str | Path | None = None,
) -> Task:
    """A task from the name of a file that comes with the library, a path, or plain data.

    model, hub: others than the file names, such as folders with a copy. folder: where files of data are; left out,
    beside the task file. The data are read when the task is trained, and only once.

    Raises ValueError, in one sentence, for a file that does not say what a task needs, and when the data are read, for
    what ``Table`` and ``examples`` refuse; ImportError for hub data without the package datasets.

    >>> rows = [{"text": f"{name} {at}", "label": name} for at in range(20) for name in ("far", "who")]
    >>> given = {"model": "bert-base-uncased", "lora_targets": ["query", "value"], "columns": {"text": "text"}}
    >>> task = load_task({**given, "data": {"train": rows, "validation": 0.1, "test": rows[:2]}})
    >>> [len(split) for split in task.splits()], task.metric
    ([34, 4, 2], 'accuracy')
    """
    if isinstance(source, Mapping):
        return _task(source, "task", Path(folder or ""), model, hub)
    text = str(source)
    if isinstance(source, Path) or text.endswith(".toml") or "/" in text or "\\" in text:
        path = Path(source)
    elif text in (shipped := task_files()):
        path = shipped[text]
    else:
        known = did_you_mean(text, task_files())
        raise ValueError(f"there is no task named {shown(text)}; {known}, or a path ending in .toml")
    where = shortened(printable(str(path)))
    return _task(files.read_toml(path, "task", _MOST), where, Path(folder or path.parent), model, hub)


def _task(data: Mapping[str, Any], where: str, folder: Path, model: Any, hub: Any) -> Task:
    try:
        checks.keys("task", data, _KEYS, _NEEDED)
        for key in ("columns", "test_columns", "data"):
            if not isinstance(data.get(key, {}), Mapping):
                raise ValueError(f"{key} is a table, got {shown(data[key])}")
        for key in ("columns", "test_columns"):
            checks.keys(key, data.get(key, {}), [field.name for field in fields(Columns)])
        checks.keys("data", data["data"], _DATA, ("train", "validation"))
        given = {key: checks.text(key, value) for key, value in data["columns"].items()}
        other = {key: checks.text(key, value) for key, value in data.get("test_columns", {}).items()}
        if data.get("kind") == "language":
            given = {"label": None} | given
        columns, of_test = Columns(**given), Columns(**{**given, **other})  # type: ignore[arg-type]
        kind = checks.one_of("kind", data.get("kind", columns.kind), KINDS)
        if of_test.kind != columns.kind:
            raise ValueError(f"test_columns are for {of_test.kind}, columns for {columns.kind}")
        if kind != columns.kind and (kind, columns.kind) != ("regression", "classification"):
            raise ValueError(f"the kind {kind!r} does not go with the columns {sorted(data['columns'])}")
        metric = checks.one_of("metric", data.get("metric", KINDS[kind].metric), METRICS)
        if METRICS[metric].of not in KINDS[kind].of:
            raise ValueError(f"the metric {metric!r} is of {METRICS[metric].of}, which the kind {kind!r} does not give")
        if METRICS[metric].of == "texts" and columns.completion is None:
            raise ValueError(f"the metric {metric!r} compares with completions; name their column")
        few = tuple(checks.texts("lora_targets", data["lora_targets"]) or ())
        every = tuple(checks.texts("targets", data.get("targets", few)) or ())
        place = str(checks.text("model", data["model"]) if model is None else model)
        source = {**data["data"], **({} if hub is None else {"hub": str(hub)})}
        for key in ("hub", "config", "revision", "encoding", "delimiter"):
            if key in source:
                checks.text(key, source[key])
        if isinstance(source["validation"], int | float):
            checks.number("validation", source["validation"], 0, below=1)
        bits = data.get("bits")
        if bits is not None and not (checks.is_whole(bits, 4, 8) and bits in (4, 8)):
            raise ValueError(f"bits is 4 or 8, got {shown(bits)}")
        checks.whole_number("seed", source.get("seed", 0), 0, 2**32 - 1)

        @lru_cache(1)
        def splits() -> Splits:
            return _splits(source, folder, columns, of_test, kind == "regression")

        return Task(
            checks.text("about", data.get("about", "")) or f"{place}, {kind}",
            lambda: place,
            splits,
            every,
            few,
            checks.whole_number("epochs", data.get("epochs", 3), 1, 10_000),
            None,
            columns.image is None,
            kind=kind,
            metric=metric,
            max_length=checks.whole_number("max_length", data.get("max_length", 128), 1, 1 << 20),
            bits=bits,
            beams=checks.whole_number("beams", data.get("beams", 1), 1, 1000),
        )
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _splits(given: Mapping[str, Any], folder: Path, columns: Columns, of_test: Columns, regression: bool) -> Splits:
    def table(name: str) -> Table:
        source = given[name]
        if "hub" in given:
            return Table(_from_hub(given, source))
        if isinstance(source, str):
            source = folder / source
        return Table(source, given.get("encoding", "utf-8"), given.get("delimiter"))

    def part(name: str, columns: Columns = columns) -> Examples:
        return examples(table(name), columns, regression=regression, names=train.names)

    train = examples(table("train"), columns, regression=regression)
    test = part("test", of_test) if "test" in given else None
    share = given["validation"]
    validation = float(share) if isinstance(share, int | float) else part("validation")
    return divided(train, validation, test, given.get("seed", 0))


def _from_hub(given: Mapping[str, Any], split: Any) -> Any:
    """A data set of the Hugging Face hub."""
    if find_spec("datasets") is None:
        raise ImportError("data on the hub are read by datasets, which is not installed; run: pip install datasets")
    checks.text("the name of a split", split)
    options = {"split": split, "revision": given.get("revision")}
    return import_module("datasets").load_dataset(given["hub"], given.get("config"), **options)
