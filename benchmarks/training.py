"""Accuracy of adapters on the demo's validation and test splits, over seeds; the rows are appended to a CSV.

A run is trained as ``make demo`` trains it, in one thread. Rows that the CSV already has are not run again, so that a
study can be interrupted and go on. docs/results/training.md says what came out.
"""

import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

import torch
import typer
from _rows import add_row, read_rows
from rich.console import Console
from rich.table import Table

from qcircuit_peft.methods import DEMO, METHODS, Chosen
from qcircuit_peft.tasks import TASKS, quiet
from qcircuit_peft.training import accuracy, train, trained

COLUMNS = ("task", "adapter", "seed", "parameters", "validation", "test")


def circuit(name: str, size: int, angles: float, all_layers: bool = False, **settings: Any) -> Chosen:
    """A circuit method at the rate 2e-2 for lambda, and another for the angles."""
    row = replace(METHODS[name], rates_of={"lambdas": 1.0, "angles": angles / 2e-2})
    return Chosen(row, size, rate=2e-2, all_layers=all_layers, settings=settings)


GRID: dict[str, Chosen] = DEMO | {
    "circuit, angles at 2e-2": circuit("circuit", 64, 2e-2),
    "circuit, angles at 1e-1": circuit("circuit", 64, 1e-1),
    "circuit, L = 3": circuit("circuit", 56, 5e-2, layers=3),
    "circuit, all layers": circuit("circuit_own", 16, 2e-2, all_layers=True),
    "fourier, 2520": Chosen(METHODS["fourierft"], numbers=2520),
    "fourier, 2520, all layers": Chosen(METHODS["fourierft"], numbers=2520, all_layers=True),
}


def main(
    adapters: Annotated[list[str], typer.Argument(help=f"some of {', '.join(GRID)}")],
    task: str = "trec",
    seeds: Annotated[str, typer.Option(help="each seeds the angles, the head and the order of the data")] = "0,1,2",
    out: Path = Path("benchmarks/results/training.csv"),
) -> None:
    """Train each adapter with each seed, and print the mean and the standard deviation over seeds."""
    torch.set_num_threads(1)
    quiet()
    for seed in seeds.split(","):
        for name in adapters:
            key = (task, name, seed)
            if any(tuple(row[column] for column in COLUMNS[:3]) == key for row in read_rows(out)):
                continue
            with tempfile.TemporaryDirectory() as folder:
                result = train(TASKS[task], GRID[name], Path(folder), seed=int(seed))
                validation = accuracy(*trained(TASKS[task], Path(folder)), TASKS[task].splits().validation)
            row = (*key, result.parameters, f"{validation:.3f}", f"{result.accuracy:.3f}")
            add_row(out, COLUMNS, row)
    table = Table("adapter", "parameters", "seeds", "validation, %", "sd", "test, %", "sd")
    for name in adapters:
        runs = [row for row in read_rows(out) if (row["task"], row["adapter"]) == (task, name)]
        cells = []
        for split in ("validation", "test"):
            found = [100 * float(row[split]) for row in runs]
            cells += [f"{mean(found):.1f}", f"{stdev(found):.1f}" if len(found) > 1 else "-"]
        table.add_row(name, f"{int(runs[0]['parameters']):,}", str(len(runs)), *cells)
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
