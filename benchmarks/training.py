"""Accuracy of adapters on the demo's validation and test splits, over seeds; the rows are appended to a CSV.

A run is trained as ``make demo`` trains it, in one thread. Rows that the CSV already has are not run again, so that a
study can be interrupted and go on. docs/training.md says what came out.
"""

import csv
import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated

import torch
import typer
from peft import FourierFTConfig
from rich.console import Console
from rich.table import Table

from qcircuit_peft import QCircuitConfig
from qcircuit_peft.demo.methods import METHODS, Method
from qcircuit_peft.demo.report import quiet
from qcircuit_peft.demo.task import TASKS
from qcircuit_peft.demo.train import accuracy, train, trained

COLUMNS = ("task", "adapter", "seed", "parameters", "validation", "test")


def _circuit(targets: str, r: int, shared: bool = False, rate: float = 2e-2, **settings) -> Method:
    """Circuits on the layers that LoRA takes ("few") or on all linear ones ("all")."""
    config = lambda task: QCircuitConfig(  # noqa: E731
        r=r, alpha=8 * r, target_modules=list(task.targets if targets == "all" else task.lora_targets), **settings
    )
    return Method("", config, rate, shared)


GRID: dict[str, Method] = {
    **METHODS,
    "few-26": _circuit("few", 26),
    "few-64": _circuit("few", 64),
    "few-64-shared": _circuit("few", 64, shared=True),
    "few-72-frozen": _circuit("few", 72, train_angles=False),
    "all-16-shared": _circuit("all", 16, shared=True),
    "all-32": _circuit("all", 32),
    "all-16-L2": _circuit("all", 16, layers=2),
    "all-16-givens": _circuit("all", 16, ansatz="givens_brickwall"),
    "all-16-butterfly": _circuit("all", 16, ansatz="butterfly"),
    "fourier-all": Method("", lambda task: FourierFTConfig(target_modules=list(task.targets), n_frequency=70), 5e-2),
}


def _rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open(newline=""))) if path.exists() else []


def main(
    adapters: Annotated[list[str], typer.Argument(help=f"some of {', '.join(GRID)}")],
    task: str = "trec",
    seeds: Annotated[int, typer.Option(min=1, help="each seeds the angles, the head and the order")] = 3,
    out: Path = Path("docs/training.csv"),
) -> None:
    """Train each adapter with each seed, and print the mean and the standard deviation over seeds."""
    torch.set_num_threads(1)
    quiet()
    for seed in range(seeds):
        for name in adapters:
            key = (task, name, str(seed))
            if any(tuple(row[column] for column in COLUMNS[:3]) == key for row in _rows(out)):
                continue
            with tempfile.TemporaryDirectory() as folder:
                result = train(TASKS[task], GRID[name], Path(folder), seed=seed)
                validation = accuracy(*trained(TASKS[task], Path(folder)), TASKS[task].splits().validation)
            row = (*key, result.parameters, f"{validation:.3f}", f"{result.accuracy:.3f}")
            new = not out.exists()
            with out.open("a", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows([COLUMNS, row] if new else [row])
    table = Table("adapter", "parameters", "seeds", "validation, %", "sd", "test, %", "sd")
    for name in adapters:
        runs = [row for row in _rows(out) if (row["task"], row["adapter"]) == (task, name)]
        cells = []
        for split in ("validation", "test"):
            found = [100 * float(row[split]) for row in runs]
            cells += [f"{mean(found):.1f}", f"{stdev(found):.1f}" if len(found) > 1 else "-"]
        table.add_row(name, f"{int(runs[0]['parameters']):,}", str(len(runs)), *cells)
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
