"""Adaptive against fixed ranks, and AdaLoRA, at equal final parameters, on the demo's TREC questions.

A run is trained as ``make demo`` trains it, in one thread, and is one row of a CSV; rows that are there are not run
again, so that a study can be interrupted and go on. docs/results/adaptive.md says what came out.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

import torch
import typer
from _rows import add_row, read_rows
from peft import AdaLoraConfig, PeftConfig, get_peft_model
from torch import Tensor, nn

from qcircuit_peft import AdaptiveRank, Allocator
from qcircuit_peft.methods import DEMO, METHODS, Chosen
from qcircuit_peft.tasks import TASKS, Classifier, Encoder, Task, quiet
from qcircuit_peft.training import accuracy, train

COLUMNS = ("run", "seed", "start", "left", "validation", "test", "minutes", "ranks")
STEPS = 366  # three epochs
WARMUP, FINAL, EVERY = 0.1, 0.3, 10  # for AdaLoRA too

Watch = Callable[[Any], tuple[Callable[[int], None], Callable[[], tuple[int, str]]]]


def plain(model: nn.Module) -> tuple[Callable[[int], None], Callable[[], tuple[int, str]]]:
    """Nothing happens after a step; in the end all that trains is left."""
    return lambda step: None, lambda: (sum(p.numel() for p in model.parameters() if p.requires_grad), "")


def adaptive(budget: int) -> Watch:
    """Our allocator; the ranks are the groups kept of each part, module by module."""

    def watch(model: nn.Module) -> Any:
        allocator = Allocator(model, AdaptiveRank(budget, WARMUP, FINAL, EVERY), STEPS)
        parts = allocator.kept
        return lambda step: allocator.step(), lambda: (
            allocator.n_kept,
            " ".join(f"{name.rpartition('.')[2]}{sum(kept)}" for name, kept in parts().items()),
        )

    return watch


def adalora(model: Any) -> Any:
    """PEFT's own allocator, and the gradient of its penalty, which PEFT adds only to a loss that the model returns."""
    weight = model.peft_config["default"].orth_reg_weight
    factors = {name: p for name, p in model.named_parameters() if "lora_A" in name or "lora_B" in name}
    for name, p in factors.items():

        def hook(grad: Tensor, p: Tensor = p, wide: bool = "lora_A" in name) -> Tensor:
            with torch.enable_grad():
                x = p.detach().requires_grad_()
                norm = ((x @ x.T if wide else x.T @ x) - torch.eye(min(x.shape))).norm()
                return grad + weight / len(factors) * torch.autograd.grad(norm, x)[0]

        p.register_hook(hook)

    def left() -> tuple[int, str]:
        ranks = [int((p != 0).sum()) for name, p in model.named_parameters() if "lora_E" in name]
        return sum(ranks) * (384 + 384 + 1), " ".join(map(str, ranks))

    return model.base_model.update_and_allocate, left


def _adalora(targets: list[str]) -> PeftConfig:
    schedule = {"tinit": int(WARMUP * STEPS), "tfinal": int(FINAL * STEPS), "deltaT": EVERY, "total_step": STEPS}
    return AdaLoraConfig(target_modules=targets, init_r=4, target_r=1, lora_alpha=32, **schedule)


def circuit(r: int, rate: float, **settings: Any) -> Chosen:
    """Frames at a rate, lambda at 2e-2."""
    factor = rate / 2e-2
    row = replace(METHODS["circuit_own"], rates_of={"lambdas": 1.0, "angles": factor, "frames": factor})
    return Chosen(row, r, rate=2e-2, settings=settings)


def taylor(r: int, intrinsic: int, rate: float) -> Chosen:
    """Taylor frames with a rank and an intrinsic rank."""
    return circuit(r, rate, frame="taylor", frame_options={"intrinsic_rank": intrinsic})


@dataclass(frozen=True)
class Run:
    """What is trained, and what watches it."""

    method: Chosen
    watch: Watch = plain


_ADALORA = replace(
    METHODS["adalora"], attach=lambda model, targets, size: get_peft_model(model, _adalora(list(targets)))
)
RUNS: dict[str, Run] = {"LoRA, r = 1": Run(DEMO["lora"])}
RUNS |= {f"AdaLoRA 4 to 1, {rate:g}": Run(Chosen(_ADALORA, rate=rate), adalora) for rate in (4e-3, 1e-2, 2e-2)}
for rate in (5e-3, 2e-2):
    RUNS |= {
        f"Taylor, K' = 1, {rate:g}": Run(taylor(3, 1, rate)),
        f"Taylor adaptive, K' 4, {rate:g}": Run(taylor(4, 4, rate), adaptive(9228)),
    }
for rate in (2e-2, 5e-2):
    RUNS |= {
        f"circuits, L = 1, {rate:g}": Run(circuit(32, rate)),
        f"circuits adaptive, L 3, {rate:g}": Run(circuit(32, rate, layers=3), adaptive(1008)),
    }


class Watched:
    """A method as ``train`` takes it, which keeps its model."""

    def __init__(self, run: Run) -> None:
        self.run, self.name, self.groups = run, run.method.name, run.method.groups

    def attach(self, task: Task) -> nn.Module:
        """The model with its adapter."""
        self.model = self.run.method.attach(task)
        self.after, self.left = self.run.watch(self.model)
        return self.model

    def progress(self, step: int, steps: int, loss: float) -> None:
        """Called after every step of the optimizer, when gradients are still there."""
        assert steps == STEPS
        self.after(step)


def measured(name: str, seed: int) -> tuple[Any, ...]:
    """A row of the CSV."""
    task, watched, start = TASKS["trec"], Watched(RUNS[name]), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        result = train(task, watched, Path(folder), seed=seed, progress=watched.progress)  # type: ignore[arg-type]
        net = Classifier(task, watched.model, len(task.splits().train.names)).eval()
        net.load_head(Path(folder, "head.safetensors"))
    validation = accuracy(net, Encoder(task), task.splits().validation)
    minutes = (time.process_time() - start) / 60
    left, ranks = watched.left()
    return name, seed, result.parameters, left, f"{validation:.3f}", f"{result.accuracy:.3f}", f"{minutes:.1f}", ranks


def main(
    runs: Annotated[list[str] | None, typer.Argument(help=f"some of {', '.join(RUNS)}; left out, all")] = None,
    seeds: Annotated[str, typer.Option(help="each seeds the adapter, the head and the order of the data")] = "0,1,2",
    out: Path = Path("benchmarks/results/adaptive.csv"),
) -> None:
    """Do the runs that the CSV lacks, and print mean and standard deviation over seeds, as Markdown."""
    torch.set_num_threads(1)
    quiet()
    for seed in seeds.split(","):
        for name in runs or RUNS:
            if not any((row["run"], row["seed"]) == (name, seed) for row in read_rows(out)):
                row = measured(name, int(seed))
                add_row(out, COLUMNS, row)
    print("| run | at first | left | validation, % | test, % | test of each seed |\n|---|---|---|---|---|---|")
    for name in runs or RUNS:
        found = [row for row in read_rows(out) if row["run"] == name]
        if len(found) > 1:
            left = sorted({int(row["left"]) for row in found})
            cells = [f"{int(found[0]['start']):,}", ", ".join(f"{n:,}" for n in left)]
            for split in ("validation", "test"):
                values = [100 * float(row[split]) for row in found]
                cells.append(f"{mean(values):.1f} ± {stdev(values):.1f}")
            print("|", " | ".join([name, *cells, ", ".join(f"{100 * float(row['test']):.1f}" for row in found)]), "|")


if __name__ == "__main__":
    typer.run(main)
