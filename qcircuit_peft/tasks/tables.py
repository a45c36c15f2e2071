"""Rows of a file, one at a time: CSV, TSV, JSON, Parquet, text, a folder of images, or what is in memory.

A file from outside is trusted in nothing: each error is one sentence with the line.
"""

import codecs
import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from qcircuit_peft import files
from qcircuit_peft.text import did_you_mean, printable, shortened, shown

Source = str | Path | Iterable[Mapping[str, Any]]
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
_ENDINGS = {".csv": ",", ".tsv": "\t", ".jsonl": "", ".ndjson": "", ".json": "", ".parquet": "", ".txt": ""}
TEXT = "text"  # the column of a .txt file
_MOST_LINE, _MOST_COLUMNS = 1 << 24, 10_000
_MOST_JSON = 1 << 28  # bytes of a .json file, which is read at once
_AT_ONCE = 1024  # rows of a Parquet file


class Table:
    """The rows of a source, read anew by every loop: pairs of where a row is, for messages, and its cells by column.

    source: the path of a file that ends in .csv, .tsv, .jsonl, .ndjson or .parquet; of a .json file of at most 256 MiB,
    which is one list of objects; of a .txt file, whose lines, but
    empty ones, are the column "text"; of a folder with one folder of images for each label, whose columns are "image"
    and "label"; or rows as mappings, such as a ``datasets`` object. encoding: of a CSV, TSV or text file; a byte order
    mark is obeyed. delimiter: of a CSV or TSV file. columns: their names.

    Raises ValueError, in one sentence with the line, for a source that is none of this, text in another encoding, rows
    of another length than the header, a quote that does not end, a column named twice or not at all; ImportError for a
    Parquet file without pyarrow.

    >>> [cells for _, cells in Table([{"text": "How far ?", "kind": "NUM"}])]
    [{'text': 'How far ?', 'kind': 'NUM'}]
    """

    def __init__(self, source: Source, encoding: str = "utf-8", delimiter: str | None = None) -> None:
        self.source = Named(source) if hasattr(source, "features") else source
        self.path = Path(source) if isinstance(source, str | Path) else None
        self.name = "the data" if self.path is None else shortened(printable(str(self.path)))
        self.delimiter = delimiter
        try:
            found = codecs.lookup(encoding)
            if not found._is_text_encoding:  # type: ignore[attr-defined]
                raise LookupError
            self.encoding = found.name
        except (LookupError, ValueError):
            raise ValueError(f"encoding is the name of one, such as utf-8 or latin-1, got {shown(encoding)}") from None
        if self.path is None:
            rows: Any = self.source
            first = next(iter(rows), {})
            if not isinstance(first, Mapping) or (hasattr(rows, "__next__")):
                raise ValueError(
                    f"data is a file, a folder of images, or a list of rows as mappings, got {shown(source)}"
                )
            self.columns = [str(name) for name in getattr(rows, "column_names", None) or first]
        else:
            self.columns = self._columns(self.path)
        if not self.columns:
            raise ValueError(f"{self.name} has no rows")

    def __iter__(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        if self.path is None:
            for number, cells in enumerate(self.source, 1):  # type: ignore[arg-type]
                yield f"{self.name}, row {number}", cells
        elif self.path.is_dir():
            yield from self._pictures(self.path)
        elif self.path.suffix.lower() == ".parquet":
            yield from self._parquet(self.path)
        elif self.path.suffix.lower() == ".txt":
            lines = enumerate(self._lines(self.path), 1)
            yield from ((f"{self.name}, line {at}", {TEXT: line.strip()}) for at, line in lines if line.strip())
        elif _ENDINGS[self.path.suffix.lower()]:
            yield from ((where, dict(zip(self.columns, cells, strict=True))) for where, cells in self._cells(self.path))
        else:
            yield from self._objects(self.path)

    def need(self, *columns: str | None) -> None:
        """Raise ValueError for a column that is not there."""
        for column in filter(None, columns):
            if column not in self.columns:
                raise ValueError(f"{self.name} has no column {shown(column)}; {did_you_mean(column, self.columns)}")

    def _columns(self, path: Path) -> list[str]:
        if path.is_dir():
            return ["image", "label"]
        ending = path.suffix.lower()
        if ending not in _ENDINGS:
            raise ValueError(f"{self.name}: a table ends in {', '.join(_ENDINGS)}, or is a folder of images")
        if not path.is_file():
            raise ValueError(f"{self.name}: there is no such file")
        if ending == ".txt":
            return [TEXT]
        if ending == ".parquet":
            return list(_parquet(path, self.name).schema_arrow.names)
        if not _ENDINGS[ending]:
            return list(next(iter(self._objects(path)), ("", {}))[1])
        header = next(self._records(path), (0, []))[1]
        names = [name.strip() for name in header]
        if len(names) > _MOST_COLUMNS:
            raise ValueError(f"{self.name} has {len(names):,} columns, of which {_MOST_COLUMNS:,} are read at most")
        if names and not all(names):
            raise ValueError(f"{self.name}, line 1: column {names.index('') + 1} has no name")
        if twice := [name for at, name in enumerate(names) if name in names[:at]]:
            raise ValueError(f"{self.name}, line 1: two columns have the name {shown(twice[0])}")
        return names

    def _lines(self, path: Path) -> Iterator[str]:
        """The lines of a file, of which none is endless, in its encoding or that of its byte order mark."""
        with path.open("rb") as file:
            mark = file.read(4)
        marks = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
        encoding = next((name for start, name in marks.items() if mark.startswith(start)), self.encoding)
        number = 0
        with path.open(encoding=encoding, newline="") as file:
            try:
                while line := file.readline(_MOST_LINE):
                    number += 1
                    if len(line) == _MOST_LINE:
                        raise ValueError(f"{self.name}, line {number}: it has {_MOST_LINE:,} characters or more")
                    yield line
            except UnicodeError as error:
                raise ValueError(
                    f"{self.name}, after line {number}: this is no text in {encoding} "
                    f"({getattr(error, 'reason', error)}); give its encoding, such as latin-1 or cp1252"
                ) from None

    def _records(self, path: Path) -> Iterator[tuple[int, list[str]]]:
        """The line and the cells of each record of a CSV or TSV file; empty lines are none."""
        delimiter = self.delimiter or _ENDINGS[path.suffix.lower()]
        try:
            reader = csv.reader(self._lines(path), delimiter=delimiter, strict=True)
        except TypeError:
            raise ValueError(f"delimiter is one character, got {shown(delimiter)}") from None
        try:
            for cells in reader:
                if cells:
                    yield reader.line_num, cells
        except csv.Error as error:
            raise ValueError(f"{self.name}, line {reader.line_num}: {error}") from None

    def _cells(self, path: Path) -> Iterator[tuple[str, list[str]]]:
        for line, cells in islice(self._records(path), 1, None):
            if len(cells) != len(self.columns):
                found = f"{len(cells)} cell{'' if len(cells) == 1 else 's'}"
                raise ValueError(f"{self.name}, line {line}: it has {found}, the header has {len(self.columns)}")
            yield f"{self.name}, line {line}", cells

    def _objects(self, path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
        for where, cells in self._listed(path) if path.suffix.lower() == ".json" else self._json_lines(path):
            if not isinstance(cells, dict):
                raise ValueError(f"{where}: an object is expected, got {shown(cells)}")
            yield where, cells

    def _json_lines(self, path: Path) -> Iterator[tuple[str, Any]]:
        for number, line in enumerate(self._lines(path), 1):
            if not line.strip():
                continue
            try:
                yield f"{self.name}, line {number}", json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{self.name}, line {number}: it is not JSON: {error}") from None

    def _listed(self, path: Path) -> Iterator[tuple[str, Any]]:
        rows = files.read_json(path, "JSON", _MOST_JSON)
        if not isinstance(rows, list):
            raise ValueError(f"{self.name}: a list of objects is expected, got {shown(rows)}")
        yield from ((f"{self.name}, row {number}", cells) for number, cells in enumerate(rows, 1))

    def _parquet(self, path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
        number = 0
        for batch in _parquet(path, self.name).iter_batches(_AT_ONCE):
            for cells in batch.to_pylist():
                number += 1
                yield f"{self.name}, row {number}", cells

    def _pictures(self, path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
        found = False
        for folder in sorted(entry for entry in path.iterdir() if entry.is_dir()):
            for file in sorted(folder.iterdir()):
                if file.suffix.lower() in PICTURES:
                    found = True
                    yield shortened(printable(str(file))), {"image": str(file), "label": folder.name}
        if not found:
            raise ValueError(f"{self.name}: a folder of images has one folder for each label, with files of {PICTURES}")


class Named:
    """The rows of a ``datasets`` object with classes by their names, as texts; images stay as they are."""

    def __init__(self, found: Any) -> None:
        self.found, self.column_names = found, found.column_names
        features = getattr(found, "features", None) or {}
        self.names = {key: feature.names for key, feature in features.items() if hasattr(feature, "int2str")}

    def __iter__(self) -> Any:
        for row in self.found:
            yield {key: self.names[key][value] if key in self.names else value for key, value in row.items()}


def _parquet(path: Path, name: str) -> Any:
    if find_spec("pyarrow") is None:
        raise ImportError(
            f"{name}: Parquet files are read by pyarrow, which is not installed; run: pip install pyarrow"
        )
    parquet, errors = import_module("pyarrow.parquet"), import_module("pyarrow").ArrowException
    try:
        return parquet.ParquetFile(path)
    except (errors, OSError) as error:
        raise ValueError(f"{name}: not a Parquet file: {shortened(printable(str(error)))}") from None


def text_of(where: str, cells: Mapping[str, Any], column: str) -> str:
    """The text of a cell without blanks around it, of 1.0 as of 1; raises ValueError if it is empty, or a list, say."""
    value = cells.get(column)
    if isinstance(value, bool | int | float):
        value = str(int(value) if isinstance(value, float) and value.is_integer() else value)
    if value is None or (isinstance(value, str) and not value.strip()):
        raise ValueError(f"{where}: the column {shown(column)} is empty")
    if not isinstance(value, str):
        raise ValueError(f"{where}: the column {shown(column)} is a text, got {shown(value)}")
    return value.strip()


def number_of(where: str, cells: Mapping[str, Any], column: str) -> float:
    """The finite number in a cell; raises ValueError for anything else."""
    found = text_of(where, cells, column)
    try:
        value = float(found)
    except ValueError:
        value = float("nan")
    if not abs(value) <= 3.4e38:
        raise ValueError(f"{where}: the column {shown(column)} is a number, got {shown(found)}")
    return value
