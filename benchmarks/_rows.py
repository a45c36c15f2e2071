"""A CSV to which a study appends a row for each run, so that it can be interrupted and go on."""

import csv
from collections.abc import Sequence
from pathlib import Path


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows that are there; none without the file."""
    return list(csv.DictReader(path.open(newline=""))) if path.exists() else []


def add_row(path: Path, columns: Sequence[str], row: Sequence[object]) -> None:
    """Add a row, under a line with the names of the columns if the file is new."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([columns, row] if new else [row])
