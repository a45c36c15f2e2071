"""What an adapted model takes from batches of its task before the first step, and where a training keeps it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from qcircuit_peft.calibration import calibrate
from qcircuit_peft.methods.method import Method, keep, restore
from qcircuit_peft.rates import RATES
from qcircuit_peft.tasks import Encoder, Rows
from qcircuit_peft.tuner.names import PREFIX

TAKEN = "taken.safetensors"


def some_batches(
    encode: Encoder, rows: Rows, device: torch.device, batch: int, *, seed: int = 0, count: int = 20
) -> list[dict[str, Tensor]]:
    """Batches of some of the rows, drawn with a seed."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = [order[at : at + batch] for at in range(0, len(order), batch)][:count]
    some = [encode.collate([rows[at] for at in places]) for places in chosen]
    return [{name: x.to(device) for name, x in table.items()} for table in some]


def look(
    method: Method,
    net: nn.Module,
    heads: list[nn.Parameter],
    encode: Encoder,
    rows: Rows,
    batch: int,
    *,
    seed: int = 0,
    folder: Path | None = None,
) -> None:
    """Let an adapted model take what its method wants of the task before the first step.

    What is taken and not trained lies in ``folder``, where there is one, since checkpoints hold what trains alone: a
    training that is resumed takes it from there. Raises ValueError if that is of another model or method.
    """
    if method.look is None:
        return
    taken = {name: p for name, p in net.named_parameters() if PREFIX in name and not p.requires_grad}
    path = None if folder is None else folder / TAKEN
    if path is not None and path.is_file():
        restore(taken, path)
        return
    method.look(net, some_batches(encode, rows, next(net.parameters()).device, batch, seed=seed), heads)
    if path is not None:
        keep(taken, path)


def loss_of(net: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The loss of a model that gives it with its outputs."""
    return net(**batch)["loss"]


def by_activations(net: nn.Module, batches: list[dict[str, Tensor]], heads: list[nn.Parameter]) -> None:
    """Let the directions be those in which each layer's outputs and inputs go together."""
    calibrate(net, batches, loss_of, goal="activations", directions=True, steps=1)


def by_gradient(net: nn.Module, batches: list[dict[str, Tensor]], heads: list[nn.Parameter]) -> None:
    """Let the directions be the gradient's, through heads that have been trained for a while."""
    with trained_for_a_while(net, batches, heads):
        calibrate(net, batches, loss_of, directions=True, steps=1)


@contextmanager
def trained_for_a_while(net: nn.Module, batches: list[dict[str, Tensor]], heads: list[nn.Parameter]) -> Iterator[None]:
    """Within it new heads know something of the task; after it they are what they were."""
    before = [head.detach().clone() for head in heads]
    try:
        if heads:  # a language model has none that are new
            optimizer = torch.optim.AdamW(heads, lr=RATES["heads"])
            for batch in 2 * batches:
                slopes = torch.autograd.grad(loss_of(net, batch), heads, materialize_grads=True)
                for head, slope in zip(heads, slopes, strict=True):
                    head.grad = slope
                optimizer.step()
        yield
    finally:
        with torch.no_grad():
            for head, value in zip(heads, before, strict=True):
                head.copy_(value)
                head.grad = None
