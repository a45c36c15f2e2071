"""Accuracy of quantized adapters, and of adapters on a quantized base, on DINOv2-small and MNIST digits.

Two published studies (Quantum-PEFT, Tables 7 and 9) made small: few images, few steps. A run is one row of a CSV,
measured on what its checkpoint gives back; rows that are there are not run again, so that a study can be interrupted.
docs/quantization.md says what came out.
"""

import csv
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

from qcircuit_peft.demo.data import Split, Splits
from qcircuit_peft.demo.methods import Method, circuit
from qcircuit_peft.demo.report import quiet
from qcircuit_peft.demo.task import TASKS, Task, pretrained
from qcircuit_peft.demo.train import accuracy, train, trained
from qcircuit_peft.quantization import Quantization, quantized

COLUMNS = ("run", "seed", "parameters", "bits", "validation", "test", "seconds")
IMAGES, EPOCHS = 640, 2  # 40 steps of 32 images
BITS = (8, 4, 3, 2, 1)


@dataclass(frozen=True)
class Run:
    """An adapter, and the bits of the linear layers of the model below it (32: as they are)."""

    method: Method
    base: int = 32


def taylor(**quantization: Any) -> Method:
    """Taylor frames of rank 4 on query and value."""
    settings = {"quantization": quantization} if quantization else {}
    return circuit("", 4, frame="taylor", angle_rate=2e-2, **settings)


RUNS: dict[str, Run] = {"FP32": Run(taylor())}
RUNS |= {f"INT{bits}": Run(taylor(bits=bits)) for bits in BITS}
RUNS |= {f"INT{bits} adaptive": Run(taylor(bits=bits, adaptive=True)) for bits in BITS}
RUNS |= {f"base {base}, head": Run(Method("", None, 0.0), base) for base in (32, 3, 2)}
RUNS |= {f"base {b}, L = {n}": Run(circuit("", 16, layers=n), b) for b in (3, 2) for n in (1, 2, 3, 4, 8)}


def few(splits: Splits) -> Splits:
    """The splits, with the first images of the training split only; these are in random order."""
    images, labels, names = splits.train.inputs, splits.train.labels, splits.train.names
    return splits._replace(train=Split(images[:IMAGES], labels[:IMAGES], names))


@torch.no_grad()
def quantized_base(task: Task, bits: int, folder: Path) -> Task:
    """The task, its model's linear weights rounded in groups of 64 along the inputs, and saved in a folder."""
    model = pretrained(task)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.copy_(quantized(module.weight.flatten(), Quantization(bits, 64)).view_as(module.weight))
    model.save_pretrained(folder)
    return replace(task, folder=lambda: folder)


def stored_bits(folder: Path, parameters: int) -> float:
    """The bits for each parameter of the frames in a checkpoint; all but lambda, 4 for each of 24 layers, are these."""
    tensors = load_file(folder / "adapter_model.safetensors")
    frames = [tensor for key, tensor in tensors.items() if not key.endswith("lambda")]
    return (
        8
        * sum(t.nbytes for t in frames)
        / (parameters - sum(len(t) for k, t in tensors.items() if k.endswith("lambda")))
    )


def measured(name: str, seed: int, draft: Path) -> tuple[Any, ...]:
    """A row of the CSV: train, load what was saved, measure that."""
    task = TASKS["digits"]
    splits = few(task.splits())
    task = replace(task, splits=lambda: splits)
    if RUNS[name].base < 32:
        task = quantized_base(task, RUNS[name].base, draft / "base")
    result = train(task, RUNS[name].method, draft / "run", epochs=EPOCHS, seed=seed)
    net, encode = trained(task, draft / "run")
    shares = [f"{accuracy(net, encode, split):.3f}" for split in (splits.validation, splits.test)]
    bits = f"{stored_bits(draft / 'run', result.parameters):.3f}" if result.parameters else ""
    return name, seed, result.parameters, bits, *shares, f"{result.seconds_per_step:.3f}"


def _rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open(newline=""))) if path.exists() else []


def main(
    runs: Annotated[list[str] | None, typer.Argument(help=f"some of {', '.join(RUNS)}; left out, all")] = None,
    seeds: Annotated[str, typer.Option(help="each seeds the frames, the head and the order of the data")] = "0,1,2",
    out: Path = Path("docs/quantization.csv"),
) -> None:
    """Do the runs that the CSV lacks, and print mean and standard deviation over seeds."""
    torch.set_num_threads(1)
    quiet()
    for seed in seeds.split(","):
        for name in runs or RUNS:
            if not any((row["run"], row["seed"]) == (name, seed) for row in _rows(out)):
                with tempfile.TemporaryDirectory() as draft:
                    row = measured(name, int(seed), Path(draft))
                new = not out.exists()
                with out.open("a", newline="") as file:
                    csv.writer(file, lineterminator="\n").writerows([COLUMNS, row] if new else [row])
    table = Table("run", "parameters", "bits each", "seeds", "validation, %", "test, %", "sd")
    for name in runs or RUNS:
        found = [row for row in _rows(out) if row["run"] == name]
        if found:
            validation, test = ([100 * float(row[split]) for row in found] for split in ("validation", "test"))
            sd = f"{stdev(test):.1f}" if len(test) > 1 else "-"
            first = found[0]["parameters"], found[0]["bits"], str(len(found))
            table.add_row(name, *first, f"{mean(validation):.1f}", f"{mean(test):.1f}", sd)
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
