"""Time of a training step on the demo model: our circuits, PEFT's LoRA of the same rank, quantum-adapter's circuits.

MiniLM on TREC questions, query and value of its six layers adapted, batch 32, rank 8: forward, backward and AdamW.
The methods take turns on the same batches, in one thread and process time; ratios are of medians.
"""

import copy
import statistics
import time
from itertools import islice

import typer
from _timing import Dispatched  # first: it sets the number of threads
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW

from qcircuit_peft import QCircuitConfig
from qcircuit_peft.tasks import TASKS, Classifier, Encoder, pretrained, quiet
from qcircuit_peft.training import batches

RANK = 8
TARGETS = ["query", "value"]
TASK = TASKS["trec"]


def _lora(model: nn.Module) -> nn.Module:
    return get_peft_model(model, LoraConfig(r=RANK, target_modules=TARGETS))


def _circuit(model: nn.Module) -> nn.Module:
    return get_peft_model(model, QCircuitConfig(r=RANK, target_modules=TARGETS))


def _quantum_adapter(model: nn.Module) -> nn.Module:
    from quantum_adapter import QuantumAdapterConfig, get_quantum_model

    config = QuantumAdapterConfig(TARGETS, method="unitary", rank=RANK, depth=1, experimental=True)
    return get_quantum_model(model, config)


PEERS = {"LoRA (peft)": _lora, "circuit (ours)": _circuit, "unitary (quantum-adapter 0.1.1)": _quantum_adapter}


def main(steps: int = typer.Option(30, help="timed steps of each method"), warmup: int = 3) -> None:
    """Print seconds a step, the ratio to LoRA, and the torch operations a step dispatches."""
    quiet()
    train = TASK.splits().train
    encode = Encoder(TASK)
    base = pretrained(TASK)
    runs = {}
    for name, attach in PEERS.items():
        net = Classifier(TASK, attach(copy.deepcopy(base)), len(train.names)).train()
        runs[name] = net, AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-3)
    taken: dict[str, list[float]] = {name: [] for name in runs}
    operations: dict[str, int] = {}

    def step(name: str, batch: list[int]) -> None:
        net, optimizer = runs[name]
        loss = cross_entropy(net(**encode([train.inputs[i] for i in batch])), train.labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    for number, batch in enumerate(islice(batches(encode.lengths(train.inputs), 0), warmup + steps)):
        for name in runs:
            start = time.process_time()
            step(name, batch)
            if number >= warmup:
                taken[name].append(time.process_time() - start)
    for name in runs:
        with Dispatched() as counter:
            step(name, batch)
        operations[name] = counter.count

    table = Table("method", title=f"MiniLM, q and v, rank {RANK}, batch 32, {steps} steps, process time")
    for column in ("trainable in the adapter", "s a step", "to LoRA", "operations a step"):
        table.add_column(column, justify="right")
    first = next(iter(runs))
    for name, (net, _) in runs.items():
        ratio = statistics.median(a / b for a, b in zip(taken[name], taken[first], strict=True))
        parameters = sum(p.numel() for p in net.model.parameters() if p.requires_grad)
        seconds = statistics.median(taken[name])
        table.add_row(name, f"{parameters:,}", f"{seconds:.3f}", f"{ratio:.3f}", f"{operations[name]:,}")
    Console(width=120).print(table)


if __name__ == "__main__":
    typer.run(main)
