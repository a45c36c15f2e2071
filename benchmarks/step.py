"""Time of a training step: our circuits, PEFT's LoRA of the same rank, quantum-adapter's circuits.

Two models, rank 8, forward, backward and AdamW; the methods take turns on the same batches, in one thread and process
time; ratios are of medians. MiniLM on TREC questions, query and value of its six layers adapted, batch 32: what a user
waits for. A Llama of two layers 64 wide, batch 2 x 16: there a step costs what its torch operations cost to dispatch.
"""

import copy
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import repeat
from typing import Any

import torch
import typer
from _timing import Dispatched  # first: it sets the number of threads
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.trainer_pt_utils import LengthGroupedSampler

from qcircuit_peft import QCircuitConfig
from qcircuit_peft.tasks import TASKS, Classifier, Encoder, pretrained, quiet

RANK = 8
TASK = TASKS["trec"]


def _lora(model: nn.Module, targets: list[str]) -> nn.Module:
    return get_peft_model(model, LoraConfig(r=RANK, target_modules=targets))


def _circuit(model: nn.Module, targets: list[str]) -> nn.Module:
    return get_peft_model(model, QCircuitConfig(r=RANK, target_modules=targets))


def _frozen(model: nn.Module, targets: list[str]) -> nn.Module:
    return get_peft_model(model, QCircuitConfig(r=RANK, target_modules=targets, train_angles=False))


def _quantum_adapter(model: nn.Module, targets: list[str]) -> nn.Module:
    from quantum_adapter import QuantumAdapterConfig, get_quantum_model

    config = QuantumAdapterConfig(targets, method="unitary", rank=RANK, depth=1, experimental=True)
    return get_quantum_model(model, config)


PEERS = {
    "LoRA (peft)": _lora,
    "circuit (ours)": _circuit,
    "circuit, frozen angles": _frozen,
    "unitary (quantum-adapter 0.1.1)": _quantum_adapter,
}
Run = tuple[nn.Module, Callable[[Any], Tensor]]  # a model and its loss on a batch


def compare(
    title: str, losses: dict[str, tuple[nn.Module, Callable[..., Tensor]]], given: Iterator, warmup: int
) -> None:
    """Print a table of methods: each has the model that is trained and its loss on what ``given`` gives."""
    optimizers = {
        name: AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-3) for name, (net, _) in losses.items()
    }
    taken: dict[str, list[float]] = {name: [] for name in losses}

    def step(name: str, batch: object) -> None:
        loss = losses[name][1](batch)
        optimizers[name].zero_grad()
        loss.backward()
        optimizers[name].step()

    for number, batch in enumerate(given):
        for name in losses:
            start = time.process_time()
            step(name, batch)
            if number >= warmup:
                taken[name].append(time.process_time() - start)
    operations = {}
    for name in losses:
        with Dispatched() as counter:
            step(name, batch)
        operations[name] = counter.count

    table = Table("method", title=f"{title}, rank {RANK}, {len(taken[name])} steps, process time")
    for column in ("trained in the adapter", "ms a step", "to LoRA", "operations a step", "to LoRA"):
        table.add_column(column, justify="right")
    first = next(iter(losses))
    for name, (net, _) in losses.items():
        ratio = statistics.median(a / b for a, b in zip(taken[name], taken[first], strict=True))
        adapted = [p for key, p in net.named_parameters() if p.requires_grad and not key.startswith("head")]
        table.add_row(
            name,
            f"{sum(p.numel() for p in adapted):,}",
            f"{1000 * statistics.median(taken[name]):.1f}",
            f"{ratio:.3f}",
            f"{operations[name]:,}",
            f"{operations[name] / operations[first]:.2f}",
        )
    Console(width=120).print(table)


def minilm(steps: int, warmup: int) -> None:
    """MiniLM on TREC questions."""
    train, encode, base = TASK.splits().train, Encoder(TASK), pretrained(TASK)
    losses: dict[str, Run] = {}
    for name, attach in PEERS.items():
        net = Classifier(TASK, attach(copy.deepcopy(base), ["query", "value"]), len(train.names)).train()

        def loss(batch: list[int], net: nn.Module = net) -> Tensor:
            return cross_entropy(net(**encode([train.inputs[i] for i in batch])), train.labels[batch])

        losses[name] = net, loss
    lengths = [len(row["input_ids"]) for row in encode.rows(train)]
    order = list(LengthGroupedSampler(32, lengths=lengths, generator=torch.Generator().manual_seed(0)))
    given = [order[32 * at : 32 * (at + 1)] for at in range(warmup + steps)]
    compare("MiniLM, query and value, batch 32", losses, given, warmup)


def small(steps: int, warmup: int) -> None:
    """A small Llama, of random weights."""
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
    base = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=64)).train()
    ids = torch.randint(0, 64, (2, 16))
    losses: dict[str, Run] = {}
    for name, attach in PEERS.items():
        if name.startswith("unitary"):
            continue  # its operations are counted on MiniLM
        net = attach(copy.deepcopy(base), ["q_proj", "v_proj"])

        def loss(ids: Tensor, net: nn.Module = net) -> Tensor:
            return net(input_ids=ids, labels=ids).loss

        losses[name] = net, loss
    compare("2 layers of width 64, batch 2 x 16", losses, repeat(ids, warmup + steps), warmup)


def main(steps: int = typer.Option(30, help="timed steps of each method on MiniLM"), warmup: int = 3) -> None:
    """Print seconds a step, the ratio to LoRA, and the torch operations a step dispatches."""
    quiet()
    small(10 * steps, 10 * warmup)
    minilm(steps, warmup)


if __name__ == "__main__":
    typer.run(main)
