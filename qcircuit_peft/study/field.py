"""A comparison of methods on a task: for each its best rate, searched in one way for all, then seeds at this rate.

A TOML file has ``name``, ``task``, ``seeds`` and one or more ``[[method]]``. Every run is one file, written whole or
not at all, so that a comparison can be stopped and go on.
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import Any

import torch

from qcircuit_peft import checks
from qcircuit_peft.checks import LARGEST, number, whole_number, whole_numbers
from qcircuit_peft.methods import HEAD_RATE, METHODS, Chosen, look, save, stored, trained_numbers
from qcircuit_peft.study.folder import arranged, begin, check_keys, cut, keep, read_plan, results, task_of
from qcircuit_peft.tasks import TASKS, Classifier, Encoder, Task, pretrained
from qcircuit_peft.text import did_you_mean, shown
from qcircuit_peft.training import BATCH, accuracy, fit

_MAX_ENTRIES = 200
SEARCH, SEED = "search", "seed"


@dataclass(frozen=True)
class Entry:
    """A method of the comparison: a key of ``METHODS``, and its size, or the numbers that it fits, or neither."""

    name: str
    size: int | None = None
    numbers: int | None = None

    def __post_init__(self) -> None:
        if self.name not in METHODS:
            raise ValueError(f"there is no method {shown(self.name)}; {did_you_mean(str(self.name), list(METHODS))}")
        for key in ("size", "numbers"):
            if getattr(self, key) is not None:
                whole_number(key, getattr(self, key), 1)
        if self.size is not None and self.numbers is not None:
            raise ValueError(f"the method {self.name!r} has a size or numbers that it fits, got both")
        if not METHODS[self.name].size and (self.size or self.numbers):
            raise ValueError(f"the method {self.name!r} has no size to choose")

    @property
    def key(self) -> str:
        """What tells it from other entries."""
        end = f"-size{self.size}" if self.size else f"-n{self.numbers}" if self.numbers else ""
        return self.name + end


@dataclass(frozen=True)
class Trial:
    """One run: an entry, a rate, a seed; ``stage`` is "search" or "seed"."""

    entry: Entry
    rate: float
    seed: int
    stage: str

    @property
    def key(self) -> str:
        """The name of the run."""
        return f"{self.entry.key}-{self.stage}-r{self.rate:g}-s{self.seed}"


@dataclass(frozen=True)
class Field:
    """What is compared, and how.

    task: a key of ``TASKS``. seeds: each draws the adapter, the head and the order of the data; of the first one the
    rates are searched. train, validation, test: how many inputs of each split are used; None is all. epochs: passes
    over the data; search_epochs: in the search, by default as many. rates: how many of a method's rates are tried, the
    same for all, the middle ones; the best on validation is used, the lower of equal ones.

    Raises ValueError, in one sentence, for anything else.

    >>> field = Field("few", "trec", seeds=[0, 1], method=[Entry("lora", size=1), Entry("svf", numbers=900)])
    >>> [trial.key for trial in field.search()][:2]
    ['lora-size1-search-r0.002-s0', 'lora-size1-search-r0.004-s0']
    """

    name: str
    task: str
    seeds: tuple[int, ...]
    method: tuple[Entry, ...]
    about: str = ""
    train: int | None = None
    validation: int | None = None
    test: int | None = None
    epochs: int = 1
    search_epochs: int | None = None
    rates: int = 3

    def __post_init__(self) -> None:
        checks.label("name", self.name)
        for key in ("task", "about"):
            checks.text(key, getattr(self, key))
        object.__setattr__(self, "seeds", whole_numbers("seeds", self.seeds, 0, 2**32 - 1))
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds are different whole numbers, got {shown(list(self.seeds))}")
        for key in ("train", "validation", "test", "search_epochs"):
            if getattr(self, key) is not None:
                whole_number(key, getattr(self, key), 1)
        whole_number("epochs", self.epochs, 1)
        whole_number("rates", self.rates, 1, 3)
        if not isinstance(self.method, list | tuple) or not all(isinstance(entry, Entry) for entry in self.method):
            raise ValueError(f"method is a list of tables [[method]], got {shown(self.method)}")
        object.__setattr__(self, "method", tuple(self.method))
        keys = [entry.key for entry in self.method]
        if not 1 <= len(keys) <= _MAX_ENTRIES or len(set(keys)) < len(keys):
            raise ValueError(f"a comparison has 1 to {_MAX_ENTRIES} different methods, got {shown(keys)}")

    def search(self) -> list[Trial]:
        """The runs that choose a rate; a method without rates has none."""
        found = []
        for entry in self.method:
            rates = METHODS[entry.name].rates
            middle = len(rates) // 2
            tried = sorted(sorted(rates, key=lambda rate: abs(rates.index(rate) - middle))[: self.rates])
            found += [Trial(entry, rate, self.seeds[0], SEARCH) for rate in tried]
        return found

    def final(self, results: Mapping[str, "Outcome"]) -> list[Trial]:
        """The runs at the best rates, seed by seed; of methods whose search has ended."""
        found = []
        for seed in self.seeds:
            for entry in self.method:
                tried = [trial for trial in self.search() if trial.entry == entry]
                if any(trial.key not in results for trial in tried):
                    continue
                best = max(tried, key=lambda trial: (results[trial.key].validation, -trial.rate), default=None)
                found.append(Trial(entry, best.rate if best else 0.0, seed, SEED))
        return found

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "comparison") -> "Field":
        """A comparison from plain data; ``where`` names the source in errors."""
        try:
            check_keys("comparison", cls, data)
            rows = data["method"]
            if not isinstance(rows, list | tuple) or not all(isinstance(row, Mapping) for row in rows):
                raise ValueError(f"method is a list of tables [[method]], got {shown(rows)}")
            for row in rows:
                check_keys("method", Entry, row)
            return cls(**{**data, "method": tuple(Entry(**row) for row in rows)})
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None

    @classmethod
    def from_file(cls, path: str | Path) -> "Field":
        """A comparison from a TOML file of at most 64 KiB; raises ValueError naming the file and what is wrong."""
        return cls.from_dict(*read_plan(path))

    def to_json(self) -> str:
        """The comparison as text: equal for equal ones, and read back by ``from_dict``."""
        return json.dumps(asdict(self), indent=1) + "\n"


def is_one(path: str | Path) -> bool:
    """Whether a study file is a comparison of methods: it has ``[[method]]``."""
    return "method" in read_plan(path)[0]


@dataclass(frozen=True)
class Outcome:
    """What a run gave. Accuracies are fractions; test is None in a search.

    numbers: trained, without the head; kept: numbers in the checkpoint that neither a seed nor the base model gives
    back. seconds_per_step: process time, the median. peak_bytes: of the accelerator's memory; None on a CPU.

    Raises ValueError for a number that none of this can be.
    """

    method: str
    entry: str
    stage: str
    size: int
    rate: float
    seed: int
    numbers: int
    kept: int
    checkpoint_bytes: int
    validation: float
    test: float | None
    seconds_per_step: float
    peak_bytes: int | None

    def __post_init__(self) -> None:
        for key in ("method", "entry"):
            checks.text(key, getattr(self, key))
        checks.one_of("stage", self.stage, (SEARCH, SEED))
        for key in ("size", "seed", "numbers", "kept", "checkpoint_bytes"):
            whole_number(key, getattr(self, key), 0, (1 << 63) - 1)
        number("validation", self.validation, 0, 1)
        for key, high in (("rate", 10), ("seconds_per_step", LARGEST)):
            number(key, getattr(self, key), 0, high)
        if self.test is not None:
            number("test", self.test, 0, 1)
        if self.peak_bytes is not None:
            whole_number("peak_bytes", self.peak_bytes, 0)

    @property
    def key(self) -> str:
        """The name of the run."""
        return f"{self.entry}-{self.stage}-r{self.rate:g}-s{self.seed}"


def work(field: Field, trial: Trial, task: Task, steps: Callable[[int, int, float], None] | None = None) -> Outcome:
    """Train one run and measure it."""
    row = METHODS[trial.entry.name]
    chosen = Chosen(row, trial.entry.size, trial.entry.numbers, rate=trial.rate)
    splits = cut(field, task)
    size = chosen.size_on(task) if row.size else 0
    epochs = field.epochs if trial.stage == SEED else field.search_epochs or field.epochs
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    torch.manual_seed(trial.seed)
    encode = Encoder(task)
    net = Classifier(task, row.attach(pretrained(task), chosen.targets(task), size), len(splits.train.names))
    groups = chosen.groups(net.model)
    trained = trained_numbers(net.model)
    rows = encode.rows(splits.train)
    heads = {"params": list(net.head.parameters()), "lr": HEAD_RATE}
    look(row, net, heads["params"], encode, rows, BATCH, seed=trial.seed)
    with tempfile.TemporaryDirectory() as folder:
        done = fit(
            net,
            [heads, *groups],
            rows,
            Path(folder, "run"),
            epochs=epochs,
            collate=encode.collate,
            seed=trial.seed,
            callbacks=row.callbacks(net.model, ceil(len(rows) / BATCH) * epochs),
            progress=steps,
        )
        if not done.finished:
            raise KeyboardInterrupt
        save(net.model, Path(folder, "adapter"))
        kept, size_in_bytes = stored(row, Path(folder, "adapter"))
    return Outcome(
        method=row.name,
        entry=trial.entry.key,
        stage=trial.stage,
        size=size,
        rate=trial.rate,
        seed=trial.seed,
        numbers=trained,
        kept=kept,
        checkpoint_bytes=size_in_bytes,
        validation=accuracy(net, encode, splits.validation),
        test=accuracy(net, encode, splits.test) if trial.stage == SEED else None,
        seconds_per_step=round(done.seconds_per_step, 6),
        peak_bytes=torch.cuda.max_memory_allocated() if cuda else None,
    )


def run(
    field: Field,
    out: str | Path,
    *,
    resume: bool = False,
    hours: float | None = None,
    progress: Callable[[float, int, str], None] = lambda done, total, what: None,
    tasks: Mapping[str, Task] = TASKS,
) -> list[Outcome]:
    """Do the runs that ``out`` has no results of, and return all results.

    First come the searches, then the first seed of every method, then the second: what is stopped early, or by
    ``hours``, after which no run begins, compares all methods as far as it goes. ``progress(done, total, what)``.

    Raises ValueError, before anything is trained or written, for an unknown task, more inputs than it has, a method
    that does not fit its model, a folder of something else, or one with results where ``resume`` is not asked for.
    """
    task = task_of(field, tasks)
    if hours is not None:
        number("hours", hours, 0)
    out = Path(out)
    done = finished(field, out)
    if done and not resume:
        raise ValueError(f"{out} has {len(done)} results of this study; resume it, or name another folder")
    _check(field, task)
    begin(field, out)
    start, total = time.monotonic(), len(field.search()) + len(field.method) * len(field.seeds)
    while (trial := next(_waiting(field, done), None)) is not None:
        if hours is not None and time.monotonic() - start > 3600 * hours:
            break

        def steps(step: int, steps: int, loss: float, trial: Trial = trial) -> None:
            progress(len(done) + step / (steps + 1), total, f"{trial.entry.key}, loss {loss:.2f}")

        found = work(field, trial, task, steps)
        keep(out, found)
        done[found.key] = found
        progress(len(done), total, f"{found.entry}: {100 * (found.test or found.validation):.1f} %")
    return list(done.values())


def _waiting(field: Field, done: Mapping[str, Outcome]) -> Iterator[Trial]:
    yield from (trial for trial in [*field.search(), *field.final(done)] if trial.key not in done)


def _check(field: Field, task: Task) -> None:
    cut(field, task)
    model = pretrained(task)
    for entry in field.method:
        row, targets = METHODS[entry.name], list(task.lora_targets)
        try:
            size = row.fit(model, targets, entry.numbers) if entry.numbers else entry.size
            row.count(model, targets, size)
        except ValueError as error:
            raise ValueError(f"the method {entry.key} is not possible here: {error}") from None


def finished(field: Field, out: Path) -> dict[str, Outcome]:
    """The results in a folder, by key; none if there is no such folder.

    Raises ValueError for a folder of something else, and for a file that is not a result of this comparison.
    """
    found = results(field, out, Outcome)
    return arranged(found, [trial.key for trial in [*field.search(), *field.final(found)]], out)
