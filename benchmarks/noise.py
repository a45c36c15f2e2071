"""How many shots, and how little noise, a trained adapter needs: accuracy when hardware makes its columns.

    python benchmarks/noise.py       # then python docs/figures.py noise

A small network (64-64-64-10) learns scikit-learn's 8 x 8 digits turned by a quarter, and an adapter on its two hidden
layers learns them upright; the network stays as it is. Every accuracy is that of the network with the weight updates of
``evaluate_under_noise``, whose lambda is exact, on 900 digits that neither has seen; the mean over draws of the shots.
"""

import argparse
import csv
import math
from collections.abc import Callable
from pathlib import Path

import torch
from peft import get_peft_model
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from qcircuit_peft import Noise, QCircuitConfig
from qcircuit_peft.analysis import evaluate_under_noise

SHOTS = (100, 1_000, 10_000, 100_000, 1_000_000)
STRENGTHS = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
KINDS: dict[str, Callable[[float], Noise]] = {
    "depolarizing": lambda p: Noise(depolarizing=p),
    "amplitude damping": lambda p: Noise(amplitude_damping=p),
    "phase damping": lambda p: Noise(phase_damping=p),
    "readout error": lambda p: Noise(readout=p),
}
DRAWS = 5


def learn(net: nn.Module, x: Tensor, y: Tensor, rate: float, steps: int) -> None:
    """Full-batch AdamW on what can be trained."""
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], rate, weight_decay=0.0)
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(net(x), y).backward()
        optimizer.step()


@torch.no_grad()
def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Percent."""
    return 100 * float((net(x).argmax(-1) == y).float().mean())


def adapted() -> tuple[nn.Module, Tensor, Tensor]:
    """The trained adapter on its network, and the digits to test it on."""
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
    order = torch.randperm(len(x))
    x, y = x[order], y[order]
    turned = x.view(-1, 8, 8).rot90(1, (1, 2)).reshape(-1, 64)
    net = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 10))
    learn(net, turned[:897], y[:897], 3e-3, 300)
    turned_right, upright = accuracy(net, turned[897:], y[897:]), accuracy(net, x[897:], y[897:])
    print(f"the network: {turned_right:.1f} % on turned digits, {upright:.1f} % on upright ones")
    model = get_peft_model(net, QCircuitConfig(r=16, target_modules=["0", "2"], seed=0))
    learn(model, x[:897], y[:897], 2e-2, 400)
    return model, x[897:], y[897:]


def measured(model: nn.Module, x: Tensor, y: Tensor, noise: Noise | None, shots: int | None) -> tuple[float, float]:
    """Accuracy with measured updates, and their distance to the exact ones in units of these; means over draws."""
    rows = []
    for draw in range(DRAWS if shots else 1):
        generator = torch.Generator().manual_seed(draw)
        found = evaluate_under_noise(model, noise, shots=shots, generator=generator)
        updates = {f"{name}.base_layer.weight": module.delta for name, module in found.items()}
        weights = {name: p + updates.get(name, 0) for name, p in model.named_parameters()}
        with model.disable_adapter():  # type: ignore[operator]
            share = accuracy(lambda x, w=weights: torch.func.functional_call(model, w, (x,)), x, y)  # type: ignore[arg-type]
        rows.append((share, sum(m.distance**2 for m in found.values()) / sum(m.norm**2 for m in found.values())))
    shares, distances = zip(*rows, strict=True)
    return sum(shares) / len(rows), math.sqrt(sum(distances) / len(rows))


def main() -> None:
    """Print the table and write it to a CSV, from which docs/figures.py draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/noise.csv"), help="the CSV")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    model, x, y = adapted()
    exact = accuracy(model, x, y)
    print(f"with the adapter: {exact:.1f} %\n\n| shots a column | noise | accuracy | relative distance of delta W |")
    print("|---:|---|---:|---:|")
    table: list[tuple[object, ...]] = [("", "", "", f"{exact:.2f}", "0")]

    def row(noise: Noise | None, shots: int | None, kind: str = "", strength: float = 0) -> None:
        share, distance = measured(model, x, y, noise, shots)
        says = f"{kind} {strength:g}" if noise else "none"
        print(f"| {f'{shots:,}' if shots else 'without end'} | {says} | {share:.1f} | {distance:.3f} |")
        table.append((shots or "", kind, strength or "", f"{share:.2f}", f"{distance:.4f}"))

    for shots in SHOTS:
        row(None, shots)
    for kind, make in KINDS.items():
        for p in STRENGTHS:
            row(make(p), None, kind, p)
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([("shots", "noise", "strength", "accuracy", "distance"), *table])


if __name__ == "__main__":
    main()
