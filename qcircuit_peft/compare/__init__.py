"""Backends beside each other on one family of circuits: agreement, process time, memory.

Every backend runs in a process of its own, on one thread, so that it can be ended and cannot disturb the others.
"""

import csv
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import cycle, islice, product
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import TYPE_CHECKING, Any

import psutil

from qcircuit_peft import checks, files, plotting
from qcircuit_peft.ansatz import Ansatz
from qcircuit_peft.backends import find_backend

if TYPE_CHECKING:
    import matplotlib.figure

Row = dict[str, Any]
FIELDS: tuple[str, ...] = (
    "backend", "qubits", "layers", "columns", "batch", "status", "agreement", "peak_bytes",
    "forward", "forward_low", "forward_high", "both", "both_low", "both_high",
)  # fmt: skip
_MOST_SIZES = 1000
_PASSES = {"both": "forward and backward", "forward": "forward"}
_START = 120.0  # seconds that a process may take to import a simulator
_PATIENCE = 10.0  # how much longer than the budget one waits, on a machine with much else to do
_SPENT = ("over budget", "out of memory", "ended before it answered")  # what larger sizes would meet too


def compare(
    ansatz: Ansatz,
    qubits: Iterable[int],
    layers: Iterable[int] = (1,),
    *,
    columns: int | None = 8,
    batch: int = 1,
    backends: Sequence[str] = ("native", "pennylane", "torchquantum"),
    repeats: int = 7,
    budget: float = 10.0,
    progress: Callable[[Row], object] = lambda row: None,
) -> list[Row]:
    """A plain table, one dict for each backend and size, with the keys ``FIELDS``; angles are float32 and uniform.

    ``columns`` None stands for the whole matrix; ``batch`` is the number of sets of angles at once. Times are medians
    of process time in seconds, with quartiles, of the forward pass and of forward and backward together ("both", None
    for a backend without gradients). ``peak_bytes`` is what the first passes add to the memory of the process (None
    off Linux; 0 if they fit in what smaller sizes have left). ``agreement`` is the largest difference from the native
    columns. A size that takes more than ``budget`` seconds of process time or more memory than is free says so in its
    ``status``, which is "ok" otherwise; so do the larger sizes, which are not run;
    a size that is refused says why. ``progress`` is called with every
    row. Raises ValueError for an unknown backend, or a size or number that is not positive.

    >>> from qcircuit_peft import load
    >>> [row] = compare(load("simplified_two_design"), [3], backends=["native"], repeats=1)
    >>> row["status"], row["columns"], row["agreement"]
    ('ok', 8, 0.0)
    """
    widths, depths = (sorted(set(islice(numbers, _MOST_SIZES + 1))) for numbers in (qubits, layers))
    if len(widths) * len(depths) > _MOST_SIZES:
        raise ValueError(f"compare: at most {_MOST_SIZES} sizes, qubits times layers, are measured, got more")
    sizes = list(product(widths, depths))
    for name, value in {"columns": 1 if columns is None else columns, "batch": batch, "repeats": repeats}.items():
        checks.whole_number(f"compare: {name}", value, 1)
    if not checks.number("compare: budget", budget) > 0:
        raise ValueError(f"compare: budget is a positive number of seconds, got {budget!r}")
    for backend in backends:
        find_backend(backend)
    for q, depth in sizes:
        ansatz.circuit(qubits=q, layers=depth)
    table: list[Row] = []
    for backend in backends:
        for row in _rows(ansatz, backend, sizes, columns, batch, {"repeats": repeats, "budget": budget}):
            table.append(row)
            progress(row)
    return table


def _rows(
    ansatz: Ansatz, backend: str, sizes: list[tuple[int, int]], columns: int | None, batch: int, settings: Row
) -> Iterator[Row]:
    failed: list[Row] = []
    worker = None
    try:
        for q, depth in sizes:
            k = 2**q if columns is None else min(columns, 2**q)
            row: Row = dict.fromkeys(FIELDS) | dict(zip(FIELDS, (backend, q, depth, k, batch), strict=False))
            smaller = [old for old in failed if q >= old["qubits"] and depth >= old["layers"]]
            if smaller:
                row["status"] = smaller[0]["status"]
            else:
                try:
                    worker = worker or _Worker()
                    row |= worker.ask(row | settings | {"ansatz": ansatz.to_dict()})
                except (OSError, RuntimeError, ValueError) as error:  # no memory for a process, or half an answer
                    row["status"] = f"{_SPENT[-1]}: {error}"
                if row["status"].startswith(_SPENT):
                    failed.append(row)
                    worker = worker and worker.end()
            yield row
    finally:
        if worker:
            worker.end()


class _Worker:
    """A process of ``qcircuit_peft.compare.worker``, which measures one case after another."""

    def __init__(self) -> None:
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "qcircuit_peft.compare.worker"],
            env=os.environ | threads, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip
        self.lines: Queue[str] = Queue()
        try:
            Thread(target=self._read, daemon=True).start()
        except RuntimeError:  # there is no memory for a thread
            self.end()
            raise

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put("")  # the process has ended

    def ask(self, case: Row) -> Row:
        """The measured part of a row."""
        assert self.process.stdin
        self.process.stdin.write(json.dumps(case) + "\n")
        line = self._line(_START, _START)
        if line == "begun\n":
            line = self._line(case["budget"], _PATIENCE * case["budget"])
        if line is None:
            return {"status": "over budget"}
        return json.loads(line) if line else {"status": "ended before it answered"}

    def _line(self, seconds: float, patience: float) -> str | None:
        """The next line, "" at the end of the process; None after ``seconds`` of its own time, or of ``patience``."""
        start, waiting = self._seconds(), time.monotonic()
        while self._seconds() - start < seconds and time.monotonic() - waiting < patience:
            try:
                return self.lines.get(timeout=min(0.05, seconds))
            except Empty:
                pass
        return None

    def _seconds(self) -> float:
        try:
            return sum(psutil.Process(self.process.pid).cpu_times()[:2])
        except psutil.NoSuchProcess:
            return 0.0

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream
            with suppress(OSError):  # what was written to a process that has ended is lost
                stream.close()


def write_csv(table: Sequence[Row], path: str | Path) -> None:
    """Write a table as CSV, with a line of headings; what is None stays empty."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, FIELDS)
    writer.writeheader()
    writer.writerows(table)
    files.write(path, text.getvalue())


@plotting.styled
def plot(table: Sequence[Row], what: str = "both", title: str = "") -> "matplotlib.figure.Figure":
    """Time against the number of qubits, logarithmic, with quartiles; a cross at the top is a size that was given up.

    ``what`` is "both" (forward and backward) or "forward".
    """
    figure, [axes] = plotting.panels(width=7, height=4.5)
    styles = dict(zip(sorted({row["layers"] for row in table}), cycle(("-", "--", ":", "-.")), strict=False))
    backends = dict.fromkeys(row["backend"] for row in table)
    looks = {name: plotting.series(number) for number, name in enumerate(backends)}
    ends: dict[str, tuple[float, float, str, str]] = {}
    for backend, depth in product(looks, styles):
        rows = [row for row in table if (row["backend"], row["layers"]) == (backend, depth)]
        lost = [row["qubits"] for row in rows if row["status"] != "ok"]
        rows = [row for row in rows if row[what] is not None]
        qubits, seconds = [row["qubits"] for row in rows], [1000 * row[what] for row in rows]
        spread = [
            [1000 * (row[what] - row[f"{what}_low"]) for row in rows],
            [1000 * (row[f"{what}_high"] - row[what]) for row in rows],
        ]
        look = looks[backend]
        if rows or lost:
            axes.errorbar(qubits, seconds, spread if rows else None, ls=styles[depth], capsize=2, ms=4, **look)
        if rows:
            ends[backend] = max(ends.get(backend, (0, 0, "", "")), (qubits[-1], seconds[-1], backend, look["color"]))
        axes.plot(lost, [0.97] * len(lost), "x", color=look["color"], transform=axes.get_xaxis_transform())
    axes.set(xlabel="qubits", ylabel=f"{_PASSES[what]}, process time (ms)", title=title)
    plotting.ticks(axes.xaxis, {row["qubits"] for row in table})
    if any(row[what] for row in table):
        axes.set_yscale("log")
    if len(styles) > 1:
        for depth, style in styles.items():
            axes.plot([], [], color=plotting.INK, linestyle=style, label=f"L = {depth}")
    for backend in dict.fromkeys(row["backend"] for row in table if row["status"] != "ok"):
        if backend not in ends:
            axes.plot([], [], **looks[backend], label=backend)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left")
    plotting.name_ends(axes, list(ends.values()))
    return figure
