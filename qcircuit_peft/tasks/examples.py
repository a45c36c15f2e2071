"""From the rows of a table to what is trained on and what is held out."""

import io
import random
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from qcircuit_peft.checks import number
from qcircuit_peft.tasks.data import Split, Splits, near
from qcircuit_peft.tasks.tables import Table, number_of, text_of
from qcircuit_peft.text import shown

_MOST_CLASSES = 10_000
Input = str | tuple[str, str] | bytes  # the last is an image


@dataclass(frozen=True)
class Columns:
    """The columns that are read: a text, or two, or the path of an image; and the label, a class or a number.

    completion: the column of what a language model learns to write behind the text; there is no label then. prompt: how
    such a text is given to the model, {} being the text. Without a label and a completion (``label=None``) a language
    model learns the texts themselves. Raises ValueError for columns that do not go together.
    """

    text: str | None = None
    text2: str | None = None
    image: str | None = None
    label: str | None = "label"
    completion: str | None = None
    prompt: str = "{}\n"

    def __post_init__(self) -> None:
        if (self.text is None) == (self.image is None) or (self.text is None and self.text2 is not None):
            raise ValueError("what is read is a column of texts, text2 with it if there are two, or a column of images")
        if self.completion is not None:
            object.__setattr__(self, "label", None)
        if self.language and (self.text is None or self.text2 is not None):
            raise ValueError("a language model reads one column of texts, got text2 or a column of images")
        if self.prompt.count("{}") != 1:
            raise ValueError(f"prompt has {{}} once, in the place of the text, got {shown(self.prompt)}")

    @property
    def language(self) -> bool:
        """Whether they are for a language model."""
        return self.label is None

    @property
    def kind(self) -> str:
        """The kind of task that they are for, a key of ``KINDS``; a classification may be a regression."""
        return "images" if self.image is not None else "language" if self.language else "classification"

    def check(self, table: Table) -> None:
        """Raise ValueError for a column that a table does not have."""
        table.need(self.text, self.text2, self.image, self.label, self.completion)

    def input(self, where: str, cells: Any, table: Table) -> Input:
        """What a row gives to the model; the path of an image is taken from the folder of the table."""
        if self.image is not None:
            if hasattr(image := cells.get(self.image), "tobytes"):  # pillow's, as datasets gives it
                kept = io.BytesIO()
                image.save(kept, "PNG")
                return kept.getvalue()
            path = text_of(where, cells, self.image)
            return str(table.path.parent / path) if table.path is not None and table.path.is_file() else path
        assert self.text is not None
        first = text_of(where, cells, self.text)
        if self.completion is not None:
            return self.prompt.replace("{}", first)
        return first if self.text2 is None else (first, text_of(where, cells, self.text2))


@dataclass(frozen=True)
class Examples:
    """What was read, each different input once: ``rows`` of the table, of which ``disputed`` had other labels too.

    An input with several classes has the most frequent one, the first of equal ones; with several numbers their mean;
    several completions are all kept. Texts without a completion are running text: each row is there, in its order.
    names: the classes, sorted; none for numbers. labels: numbers of classes, the numbers, or completions.
    """

    inputs: tuple[Input, ...]
    labels: tuple[float, ...] | tuple[tuple[str, ...], ...]
    names: tuple[str, ...]
    rows: int
    disputed: int

    @property
    def running(self) -> bool:
        """Whether they are running text."""
        return not self.labels[0] if isinstance(self.labels[0], tuple) else False

    def split(self, at: Sequence[int]) -> Split:
        """Some of them, as a task takes them."""
        labels: Any = tuple(self.labels[i] for i in at)
        if not isinstance(self.labels[0], tuple):
            labels = torch.tensor(labels, dtype=torch.int64 if self.names else torch.float32)
        return Split(tuple(self.inputs[i] for i in at), labels, self.names)


def examples(table: Table, columns: Columns, *, regression: bool = False, names: Sequence[str] = ()) -> Examples:
    """The labelled examples of a table, or its texts and completions; ``names``, if given, are the only classes.

    Raises ValueError for a column that is not there, an empty cell, one class only, as many classes as there are
    inputs, or a class that is not in ``names``.

    >>> found = examples(Table([{"text": t, "label": y} for t, y in ("ab", "cd", "ad", "ab")]), Columns("text"))
    >>> found.inputs, found.labels, found.names, found.disputed
    (('a', 'c'), (0, 1), ('b', 'd'), 1)
    """
    columns.check(table)
    if columns.label is None:
        return _texts(table, columns)
    found: defaultdict[Input, list[Any]] = defaultdict(list)
    rows = 0
    for where, cells in table:
        rows += 1
        read = number_of if regression else text_of
        label = read(where, cells, columns.label)
        if names and label not in names:
            raise ValueError(f"{where}: the class {shown(label)} is none of {shown(list(names))}")
        found[columns.input(where, cells, table)].append(label)
    if not rows:
        raise ValueError(f"{table.name} has no rows")
    disputed = sum(len(set(labels)) > 1 for labels in found.values())
    if regression:
        means: tuple[float, ...] = tuple(sum(labels) / len(labels) for labels in found.values())
        if len(set(means)) < 2 and not names:
            raise ValueError(f"{table.name}: all numbers of {shown(columns.label)} are the same, {means[0]:g}")
        return Examples(tuple(found), means, (), rows, disputed)
    chosen = [Counter(labels).most_common(1)[0][0] for labels in found.values()]
    classes: tuple[str, ...] = tuple(names) or tuple(sorted(set(chosen)))
    if len(classes) < 2:
        raise ValueError(f"{table.name} has one class only, {shown(chosen[0])}; a classifier needs two or more")
    if not names and (len(classes) > _MOST_CLASSES or len(classes) == len(chosen) > 2):
        raise ValueError(
            f"{table.name} has {len(classes):,} classes in {len(chosen):,} different inputs; name a column of labels, "
            "or say that it is a regression if they are numbers"
        )
    numbers = {name: at for at, name in enumerate(classes)}
    return Examples(tuple(found), tuple(numbers[label] for label in chosen), classes, rows, disputed)


def _texts(table: Table, columns: Columns) -> Examples:
    assert columns.text is not None
    if columns.completion is None:
        texts = tuple(
            text_of(where, cells, columns.text) for where, cells in table if str(cells.get(columns.text) or "").strip()
        )
        if not texts:
            raise ValueError(f"{table.name} has no text")
        return Examples(texts, ((),) * len(texts), (), len(texts), 0)
    found: defaultdict[Input, dict[str, None]] = defaultdict(dict)
    rows = 0
    for rows, (where, cells) in enumerate(table, 1):  # noqa: B007
        found[columns.input(where, cells, table)][text_of(where, cells, columns.completion)] = None
    if not rows:
        raise ValueError(f"{table.name} has no rows")
    completions = tuple(map(tuple, found.values()))
    return Examples(tuple(found), completions, (), rows, sum(len(several) > 1 for several in completions))


def _near(value: Input) -> Hashable:
    if isinstance(value, bytes):
        return value
    return near(value) if isinstance(value, str) else tuple(map(near, value))


def held_out(found: Examples, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Positions of examples to train on, and to hold out: this share of each class, drawn by the seed.

    Of every class one at least is trained on, and so are inputs that are ``near`` to another one. Of running text the
    end is held out. Raises ValueError for a share that is not below 1, or holds out nothing.

    >>> rows = [{"text": text, "label": text[0]} for text in ("a1", "a2", "a3", "a4", "A1", "b1")]
    >>> train, held = held_out(examples(Table(rows), Columns("text")), 0.5, seed=0)
    >>> len(held), {0, 4, 5} <= set(train)
    (2, True)
    """
    number("validation", share, 0, below=1)
    members: dict[Hashable, list[int]] = {}
    for at, label in enumerate(found.labels):
        members.setdefault(label if found.names else None, []).append(at)
    often = Counter(map(_near, found.inputs))
    draw, held = random.Random(seed), []
    for same in members.values():
        if found.running:
            drawn = same[::-1]
        else:
            drawn = [at for at in draw.sample(same, len(same)) if often[_near(found.inputs[at])] == 1]
        held += drawn[: min(round(share * len(same)), len(same) - 1)]
    out = set(held)
    if not out:
        raise ValueError(f"a validation share of {share:g} holds out nothing of {len(found.inputs)} different inputs")
    return [at for at in range(len(found.inputs)) if at not in out], sorted(held)


def divided(found: Examples, validation: float | Examples, test: Examples | None = None, seed: int = 0) -> Splits:
    """What is trained on, validated with (a share of the examples, or others) and tested with; none without ``test``.

    What is held out or tested is not trained on, running text apart. Raises ValueError as ``held_out`` does, and where
    nothing is left to train on.
    """
    if isinstance(validation, Examples):
        at, held = list(range(len(found.inputs))), validation.split(range(len(validation.inputs)))
    else:
        at, out = held_out(found, validation, seed)
        held = found.split(out)
    last = found.split(()) if test is None else test.split(range(len(test.inputs)))
    known = () if found.running else {*held.inputs, *last.inputs}
    kept = [k for k in at if found.inputs[k] not in known]
    if not kept:
        raise ValueError("every input that is trained on is in the other splits too")
    return Splits(found.split(kept), held, last)
