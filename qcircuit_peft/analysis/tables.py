"""Rows of results, frozen dataclasses of one kind or mappings with the same keys, as text, CSV and JSON."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from io import StringIO
from typing import Any

from qcircuit_peft.text import printable


def _records(rows: Sequence[Any]) -> list[dict[str, Any]]:
    if not rows:
        raise ValueError("a table has one or more rows, got none")
    return [dict(row) if isinstance(row, Mapping) else asdict(row) for row in rows]


def to_json(rows: Sequence[Any]) -> str:
    """A JSON list with one object a row; raises ValueError for no rows, as all of these do."""
    return json.dumps(_records(rows), indent=1)


def to_csv(rows: Sequence[Any]) -> str:
    """Comma-separated values with a header; None is an empty cell, a mapping or a list is JSON.

    >>> print(to_csv([{"qubits": 2, "gates": {"CZ": 1}}]), end="")
    qubits,gates
    2,"{""CZ"": 1}"
    """
    records, text = _records(rows), StringIO()
    writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
    writer.writeheader()
    for record in records:
        nested = {
            name: json.dumps(value) for name, value in record.items() if isinstance(value, Mapping | list | tuple)
        }
        writer.writerow(record | nested)
    return text.getvalue()


def from_csv(text: str, kind: Any) -> list[Any]:
    """Rows of a dataclass as ``to_csv`` wrote them; raises ValueError for a table with other columns."""
    reader, columns = csv.DictReader(StringIO(text)), {field.name: field.type for field in fields(kind)}
    if reader.fieldnames != list(columns):
        raise ValueError(f"a table of runs has the columns of {kind.__name__}, got {reader.fieldnames}")
    return [kind(**{name: _value(column, row[name]) for name, column in columns.items()}) for row in reader]


def _value(kind: Any, text: str) -> Any:
    if kind in (str, int, float):
        return kind(text)
    return (int if kind == int | None else float)(text) if text else None


def to_text(rows: Sequence[Any]) -> str:
    """Aligned columns, numbers with six digits; None is a dash.

    >>> from qcircuit_peft.analysis.capacity import capacity
    >>> print(to_text(capacity("simplified_two_design", 2, [1], exact=True)))
    layers  mean  std   low  high      haar  samples  ensemble
         1  0.25    -  0.25  0.25  0.333333        0      real
    """
    records = _records(rows)
    lines = [list(records[0]), *([_cell(value) for value in record.values()] for record in records)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)) for line in lines)


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.6g}" if isinstance(value, float) else printable(str(value))
