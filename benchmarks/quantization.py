"""Accuracy of quantized adapters, and of adapters on a quantized base, on DINOv2-small and MNIST digits.

Two published studies (Quantum-PEFT, Tables 7 and 9) made small: the last three blocks are adapted, and what enters them
is computed once. A run is one row of a CSV, measured on what its checkpoint gives back; rows that are there are not run
again, so that a study can be interrupted. docs/results/quantization.md says what came out.
"""

import copy
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

import torch
import typer
from _rows import add_row, read_rows
from peft import PeftModel, get_peft_model
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from qcircuit_peft import QCircuitConfig
from qcircuit_peft.quantization import Quantization, quantized
from qcircuit_peft.tasks import TASKS, pretrained, quiet

COLUMNS = ("run", "seed", "parameters", "bits", "test")
BLOCKS, IMAGES, EPOCHS, BATCH = 3, 960, 2, 32
RATE, HEAD_RATE = 2e-2, 2e-3  # of lambda and of the head; AdamW, falling linearly to zero
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"]
BITS = (8, 4, 3, 2, 1)


@dataclass(frozen=True)
class Run:
    """The settings of an adapter (None: head only), the rate of its frames, and the bits of the weights (32: all)."""

    settings: dict[str, Any] | None
    frame_rate: float = 5e-2
    base: int = 32


def taylor(**quantization: Any) -> Run:
    """Taylor frames of rank 4."""
    return Run({"r": 4, "alpha": 32, "frame": "taylor", "quantization": quantization or None}, 2e-2)


RUNS: dict[str, Run] = {"FP32": taylor()}
RUNS |= {f"INT{bits}": taylor(bits=bits) for bits in BITS}
RUNS |= {f"INT{bits} adaptive": taylor(bits=bits, adaptive=True) for bits in BITS}
RUNS |= {f"base {bits}, head": Run(None, base=bits) for bits in (32, 3, 2)}
RUNS |= {
    f"base {bits}, L = {layers}": Run({"r": 16, "layers": layers}, base=bits)
    for bits in (32, 3, 2)
    for layers in (1, 2, 3, 4, 8)
}


class Net(nn.Module):
    """The last blocks of the model, the mean of what they give, and a linear head."""

    def __init__(self, blocks: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.blocks, self.head = blocks, head

    def forward(self, states: Tensor) -> Tensor:
        """Class scores (n, 10) of hidden states (n, tokens, 384)."""
        return self.head(self.blocks(states).mean(1))


@lru_cache
@torch.no_grad()
def base(bits: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The last blocks, and what enters them in training and test with its labels.

    With fewer than 32 bits, the linear weights of the whole model are rounded in groups of 64 along the inputs.
    """
    model, splits = pretrained(TASKS["digits"]), TASKS["digits"].splits()
    for module in model.modules():
        if isinstance(module, nn.Linear) and bits < 32:
            module.weight.copy_(quantized(module.weight.flatten(), Quantization(bits, 64)).view_as(module.weight))
    data: list[Tensor] = []
    for inputs, labels in (
        (splits.train.inputs[:IMAGES], splits.train.labels[:IMAGES]),
        (splits.test.inputs, splits.test.labels),
    ):
        states = [model(part, output_hidden_states=True).hidden_states[-1 - BLOCKS] for part in inputs.split(BATCH)]
        data += [torch.cat(states), labels]
    return nn.Sequential(*model.encoder.layer[-BLOCKS:], model.layernorm).eval(), tuple(data)


def measured(name: str, seed: int) -> tuple[Any, ...]:
    """A row of the CSV: train, save the adapter, load it, measure that."""
    run = RUNS[name]
    blocks, (states, labels, *test) = base(run.base)
    torch.manual_seed(seed)
    plain = copy.deepcopy(blocks)
    adapted = plain
    if run.settings is not None:
        adapted = get_peft_model(plain, QCircuitConfig(target_modules=TARGETS, **run.settings))
    net = Net(adapted, nn.Linear(states.shape[-1], 10))
    adapter = {key: p for key, p in adapted.named_parameters() if p.requires_grad}
    groups = [
        {"params": list(net.head.parameters()), "lr": HEAD_RATE},
        {"params": [p for key, p in adapter.items() if "lambda" in key], "lr": RATE},
        {"params": [p for key, p in adapter.items() if "lambda" not in key], "lr": run.frame_rate},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    plan = [batch for _ in range(EPOCHS) for batch in torch.randperm(len(labels)).split(BATCH)]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / len(plan))
    for batch in plan:
        optimizer.zero_grad()
        cross_entropy(net(states[batch]), labels[batch]).backward()
        optimizer.step()
        schedule.step()
    bits = ""
    if run.settings is not None:
        with tempfile.TemporaryDirectory() as folder:
            adapted.save_pretrained(folder)
            stored = load_file(Path(folder, "adapter_model.safetensors"))
            net = Net(PeftModel.from_pretrained(copy.deepcopy(blocks), folder), net.head)
        frames = sum(8 * value.nbytes for key, value in stored.items() if "lambda" not in key)
        bits = f"{frames / sum(p.numel() for key, p in adapter.items() if 'lambda' not in key):.3f}"
    with torch.no_grad():
        right = sum(int((net(x).argmax(-1) == y).sum()) for x, y in zip(*(t.split(64) for t in test), strict=True))
    return name, seed, sum(p.numel() for p in adapter.values()), bits, f"{right / len(test[1]):.3f}"


def main(
    runs: Annotated[list[str] | None, typer.Argument(help=f"some of {', '.join(RUNS)}; left out, all")] = None,
    seeds: Annotated[str, typer.Option(help="each seeds the frames, the head and the order of the data")] = "0,1,2",
    out: Path = Path("benchmarks/results/quantization.csv"),
) -> None:
    """Do the runs that the CSV lacks, and print mean and standard deviation over seeds."""
    torch.set_num_threads(1)
    quiet()
    for seed in seeds.split(","):
        for name in runs or RUNS:
            if not any((row["run"], row["seed"]) == (name, seed) for row in read_rows(out)):
                row = measured(name, int(seed))
                add_row(out, COLUMNS, row)
    table = Table("run", "parameters", "bits each", "seeds", "test, %", "sd")
    for name in runs or RUNS:
        if found := [row for row in read_rows(out) if row["run"] == name]:
            test = [100 * float(row["test"]) for row in found]
            sd = f"{stdev(test):.1f}" if len(test) > 1 else "-"
            table.add_row(name, found[0]["parameters"], found[0]["bits"], str(len(test)), f"{mean(test):.1f}", sd)
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
