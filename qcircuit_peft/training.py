"""Train one method on one task: a plain loop that can be interrupted at any step without losing what was learned."""

import json
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from math import sqrt
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import cross_entropy

from qcircuit_peft import files
from qcircuit_peft.methods import HEAD_RATE, Method
from qcircuit_peft.tasks import Classifier, Encoder, Task, pretrained
from qcircuit_peft.tasks.data import Split

BATCH = 32
_WARMUP = 0.06  # of all steps; then the rates fall linearly to zero


@dataclass(frozen=True)
class Result:
    """What one run gave. The accuracy is a fraction, ``interval`` half its 95 % interval; unfinished, nan."""

    method: str
    parameters: int
    accuracy: float
    interval: float
    seconds_per_step: float
    checkpoint_bytes: int
    finished: bool


def batches(lengths: list[int], seed: int) -> Iterator[list[int]]:
    """Positions in batches of similar length, in random order: less padding, half the time."""
    draw = random.Random(seed)
    order = draw.sample(range(len(lengths)), len(lengths))
    chunks = (order[i : i + 16 * BATCH] for i in range(0, len(order), 16 * BATCH))
    sorted_chunks = (sorted(chunk, key=lengths.__getitem__) for chunk in chunks)
    out = [chunk[i : i + BATCH] for chunk in sorted_chunks for i in range(0, len(chunk), BATCH)]
    draw.shuffle(out)
    yield from out


def _take(inputs: tuple[str, ...] | Tensor, positions: list[int]) -> list[str] | Tensor:
    return inputs[positions] if isinstance(inputs, Tensor) else [inputs[i] for i in positions]


@torch.no_grad()
def accuracy(net: Classifier, encode: Encoder, split: Split) -> float:
    """The share of a split that is classified correctly."""
    lengths = encode.lengths(split.inputs)
    order = sorted(range(len(split)), key=lengths.__getitem__)
    right = 0
    for i in range(0, len(order), 2 * BATCH):
        at = order[i : i + 2 * BATCH]
        right += int((net(**encode(_take(split.inputs, at))).argmax(-1) == split.labels[at]).sum())
    return right / len(split)


def adapter_bytes(folder: Path) -> int:
    """The size of what PEFT needs to load an adapter: its weights and its configuration; 0 if there is none."""
    return sum(path.stat().st_size for path in folder.glob("adapter_*"))


def save(net: Classifier, folder: Path) -> None:
    """The adapter and the head, written beside and moved into place, so that an older checkpoint is never lost."""
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=".writing-") as draft:
        if isinstance(net.model, PeftModel):
            net.model.save_pretrained(draft)
        net.save_head(Path(draft, "head.safetensors"))
        for path in Path(draft).iterdir():
            files.replace(path, folder / path.name)


def train(
    task: Task,
    method: Method,
    folder: Path,
    *,
    epochs: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int, float], None] = lambda step, steps, loss: None,
) -> Result:
    """Train a method on a task, save it in ``folder``, and measure its accuracy on the test split.

    ``seed`` draws the angles, the head and the order of the data; ``progress(step, steps, loss)`` is called after each
    step. Ctrl-C stops the training and saves what there is.
    """
    torch.manual_seed(seed)
    splits, encode = task.splits(), Encoder(task)
    net = Classifier(task, method.attach(task), len(splits.train.names))
    net.eval()  # no dropout, for any method: it would be a fifth of a step of LoRA
    groups = method.groups(net.model)
    head = {"params": list(net.head.parameters()), "lr": HEAD_RATE}
    optimizer = torch.optim.AdamW([head, *groups], weight_decay=0.0)
    lengths = encode.lengths(splits.train.inputs)
    epochs = task.epochs if epochs is None else epochs
    plan = [batch for epoch in range(epochs) for batch in batches(lengths, seed * 1000 + epoch)]
    warmup = max(1, round(_WARMUP * len(plan)))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / warmup) * (len(plan) - step) / len(plan)
    )
    frozen = None if groups else _features(net, encode, splits.train.inputs)  # nothing below the head changes
    seconds, finished = [], False
    try:
        for step, batch in enumerate(plan, 1):
            start = time.process_time()
            scores = net(**encode(_take(splits.train.inputs, batch))) if frozen is None else net.head(frozen[batch])
            loss = cross_entropy(scores, splits.train.labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            seconds.append(time.process_time() - start)
            progress(step, len(plan), loss.item())
        finished = True
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # what there is gets saved, however impatient the user
    save(net, folder)
    share = accuracy(net, encode, splits.test) if finished else float("nan")
    result = Result(
        method=method.name,
        parameters=sum(p.numel() for group in groups for p in group["params"]),
        accuracy=share,
        interval=1.96 * sqrt(share * (1 - share) / len(splits.test)),
        seconds_per_step=median(seconds) if seconds else float("nan"),
        checkpoint_bytes=adapter_bytes(folder),
        finished=finished,
    )
    files.write(folder / "result.json", json.dumps(asdict(result), indent=2))
    return result


@torch.no_grad()
def _features(net: Classifier, encode: Encoder, inputs: tuple[str, ...] | Tensor) -> Tensor:
    rows = [list(range(i, min(i + 64, len(inputs)))) for i in range(0, len(inputs), 64)]
    return torch.cat([net.features(**encode(_take(inputs, at))) for at in rows])


def trained(task: Task, folder: Path) -> tuple[Classifier, Encoder]:
    """A trained classifier from the folder of a run: the model with its adapter, and the head."""
    model = PeftModel.from_pretrained(pretrained(task), folder) if adapter_bytes(folder) else pretrained(task)
    net = Classifier(task, model, len(task.splits().train.names))
    net.load_head(folder / "head.safetensors")
    return net.eval(), Encoder(task)
