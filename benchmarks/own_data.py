"""``qcircuit-peft train`` and ``predict`` against ``quantum-adapter`` 0.1.1's, on one file.

TREC questions of six classes as a CSV file, MiniLM, each command as a user types it, in a process of its own: as many
epochs, tokens and rows a batch, 10 % of the rows to choose the epoch by, all else as each has it by default. The other
questions are predicted by both and counted. The processes take turns; what is timed is their processor time, with all
that they load.
"""

import csv
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import NamedTuple

import typer
from rich.console import Console
from rich.table import Table
from safetensors import safe_open

from qcircuit_peft.tasks import TASKS, Split

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
TASK = TASKS["trec6"]


class Given(NamedTuple):
    """Where the files are, and what both are told."""

    folder: Path
    epochs: int
    seed: int


class Peer(NamedTuple):
    """A peer: its commands, what they print or write as predictions, and its name."""

    train: Callable[[Given], list[str]]
    predict: Callable[[Given], list[str]]
    read: Callable[[Given, str], list[str]]


def _ours(method: str) -> Peer:
    command = [sys.executable, "-m", "qcircuit_peft.cli"]

    def train(given: Given) -> list[str]:
        told = ["--text", "text", "--model", str(TASK.folder()), "--out", str(given.folder / "adapter"), "--quiet"]
        more = ["--epochs", str(given.epochs), "--seed", str(given.seed), "--method", method]
        return [*command, "train", str(given.folder / "train.csv"), *told, *more]

    def predict(given: Given) -> list[str]:
        files = [given.folder / name for name in ("adapter", "test.csv")]
        return [*command, "predict", *map(str, files), "--out", str(given.folder / "out.csv"), "--quiet"]

    def read(given: Given, printed: str) -> list[str]:
        with (given.folder / "out.csv").open(newline="", encoding="utf-8") as file:
            return [row["prediction"] for row in csv.DictReader(file)]

    return Peer(train, predict, read)


def _quantum_adapter(*more: str) -> Peer:
    command = [sys.executable, "-m", "quantum_adapter.cli"]

    def train(given: Given) -> list[str]:
        told = ["--csv", str(given.folder / "train.csv"), "--out", str(given.folder / "adapter")]
        numbers = ["--epochs", str(given.epochs), "--seed", str(given.seed), "--device", "cpu"]
        return [*command, "train", *told, "--model", str(TASK.folder()), *numbers, *more]

    def predict(given: Given) -> list[str]:
        return [*command, "predict", "--adapter", str(given.folder / "adapter"), "--device", "cpu"]

    def read(given: Given, printed: str) -> list[str]:
        return [line.partition("\t")[0] for line in printed.splitlines() if line.count("\t") == 2]

    return Peer(train, predict, read)


PEERS = {
    "qcircuit-peft, circuits": _ours("circuit"),
    "qcircuit-peft, LoRA r = 4": _ours("lora"),
    "quantum-adapter, amplitude (its default)": _quantum_adapter(),
    "quantum-adapter, unitary": _quantum_adapter("--method", "unitary", "--experimental"),
}


def _write(path: Path, split: Split, rows: int | None = None) -> list[str]:
    """The first rows as a CSV file with the columns text and label; returns the labels."""
    labels = [split.names[at] for at in split.labels.tolist()][:rows]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([("text", "label"), *zip(split.inputs[:rows], labels, strict=True)])
    return labels


def _run(command: list[str], texts: str | None = None) -> tuple[str, float, float]:
    """What a command printed, its processor time and the time on the clock, in seconds."""

    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before, start = spent(), perf_counter()
    done = subprocess.run(command, input=texts, capture_output=True, text=True, env=ENVIRONMENT)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
    return done.stdout, spent() - before, perf_counter() - start


def _numbers(adapter: Path) -> int:
    """How many numbers the adapter's weights hold, the head with them."""
    found = 0
    for path in adapter.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found += sum(file.get_tensor(key).numel() for key in file.keys())  # noqa: SIM118
    return found


def main(rows: int = 600, epochs: int = 6, seeds: int = 1) -> None:
    """Print numbers, accuracy on the test questions, and seconds of training and of predicting them."""
    table = Table("command", title=f"TREC, 6 classes, {rows} rows, {epochs} epochs, one thread")
    for column in ("seed", "numbers, with the head", "test accuracy", "train, s", "on the clock", "predict, s"):
        table.add_column(column, justify="right")
    splits = TASK.splits()
    for seed in range(seeds):
        for name, peer in PEERS.items():
            with TemporaryDirectory() as folder:
                given = Given(Path(folder), epochs, seed)
                _write(given.folder / "train.csv", splits.train, rows)
                wanted = _write(given.folder / "test.csv", splits.test)
                _, trained, clock = _run(peer.train(given))
                printed, predicted, _ = _run(peer.predict(given), "\n".join(splits.test.inputs))  # type: ignore[arg-type]
                found = peer.read(given, printed)
                if len(found) != len(wanted):
                    raise RuntimeError(f"{name} predicted {len(found)} of {len(wanted)} rows")
                share = sum(a == b for a, b in zip(found, wanted, strict=True)) / len(wanted)
                size = f"{_numbers(given.folder / 'adapter'):,}"
            cells = (size, f"{100 * share:.1f} %", f"{trained:.1f}", f"{clock:.1f}", f"{predicted:.1f}")
            table.add_row(name, str(seed), *cells)
    Console(width=140).print(table)


if __name__ == "__main__":
    typer.run(main)
