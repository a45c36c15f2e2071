"""What studies of both kinds share: how their files are read, and the folder with one file for every run."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any, Protocol

from qcircuit_peft import checks, files
from qcircuit_peft.tasks import Split, Splits, Task
from qcircuit_peft.text import printable, shortened

_MAX_BYTES = 1 << 16  # of a plan and of a result


class Plan(Protocol):
    """A study: ``task`` is a key of ``TASKS``; train, validation, test: how many inputs of each split, None is all."""

    @property
    def name(self) -> str: ...
    @property
    def task(self) -> str: ...

    def to_json(self) -> str:
        """The plan as text, equal for equal ones."""
        ...


def read_plan(path: str | Path) -> tuple[dict[str, Any], str]:
    """The contents of a plan's TOML file, of at most 64 KiB, and the file's name for messages."""
    return files.read_toml(path, "study", _MAX_BYTES), shortened(printable(str(path)))


def check_keys(what: str, kind: Any, data: Mapping[str, Any]) -> None:
    """Raise ValueError for keys that a dataclass does not have, and for those that it lacks."""
    known = {field.name: field.default is MISSING for field in fields(kind)}
    checks.keys(what, data, known, [key for key, needed in known.items() if needed])


def task_of(plan: Plan, tasks: Mapping[str, Task]) -> Task:
    """The task; raises ValueError for one that is not there, or a language model's, which has no accuracy."""
    if plan.task not in tasks:
        raise ValueError(f"the study {plan.name!r} has the task {plan.task!r}; allowed are {', '.join(tasks)}")
    task = tasks[plan.task]
    if task.kind == "language":
        raise ValueError(f"a study compares accuracies, but the task {plan.task!r} is measured by its {task.metric}")
    return task


def cut(plan: Any, task: Task) -> Splits:
    """The first inputs of each split, as many as the plan wants; raises ValueError if there are not so many."""
    found = []
    for name, split in task.splits()._asdict().items():
        wanted = getattr(plan, name)
        if wanted is not None and wanted > len(split):
            raise ValueError(f"the {name} split of {plan.task!r} has {len(split)} inputs, the study wants {wanted}")
        found.append(_first(split, wanted))
    return Splits(*found)


def _first(split: Split, n: int | None) -> Split:
    return replace(split, inputs=split.inputs[:n], labels=split.labels[:n])


def begin(plan: Plan, out: Path) -> None:
    """Make the folder of a study."""
    files.make_folder(out / "runs")
    files.write(out / "study.json", plan.to_json())


def keep(out: Path, result: Any) -> None:
    """Write the result of a run, whole or not at all."""
    files.write(out / "runs" / f"{result.key}.json", json.dumps(vars(result), indent=1) + "\n")


def results(plan: Plan, out: Path, kind: Any) -> dict[str, Any]:
    """The results in the folder of a study, by key; none if there is no such folder.

    Raises ValueError for a folder of something else, and for a file that holds no result.
    """
    marker = out / "study.json"
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return {}
    wanted = plan.to_json().encode()
    if not marker.is_file() or marker.stat().st_size != len(wanted) or marker.read_bytes() != wanted:
        raise ValueError(f"{out} is not a folder of this study, {plan.name!r}, as it is now; name another folder")
    found = {}
    for path in sorted((out / "runs").glob("*.json")):
        try:
            data = files.read_json(path, "result", _MAX_BYTES)
            if not isinstance(data, dict) or set(data) != {field.name for field in fields(kind)}:
                raise ValueError("other keys than a result has")
            result = kind(**data)
        except ValueError as error:
            raise ValueError(f"{path} is not a result of a study, remove it: {error}") from None
        if result.key != path.stem:
            raise ValueError(f"{path} is not the result of a run of this study; remove it")
        found[path.stem] = result
    return found


def arranged(found: Mapping[str, Any], keys: Iterable[str], out: Path) -> dict[str, Any]:
    """The results in the order of these keys; raises ValueError for a result of another run."""
    keys = list(keys)
    if strange := sorted(set(found) - set(keys)):
        raise ValueError(f"{out / 'runs' / strange[0]}.json is not the result of a run of this study; remove it")
    return {key: found[key] for key in keys if key in found}
