"""An adapter that was trained with noise against one that was not, both measured under noise.

    python benchmarks/noise_aware.py [--seeds 3]

The task is that of ``benchmarks/noise.py``: a network that knows digits turned by a quarter learns upright ones by an
adapter, here of rank 8 for 200 steps. Gradients go through density matrices.
"""

import argparse
from contextlib import nullcontext

import torch
from noise import KINDS, accuracy, learn, measured
from peft import get_peft_model
from sklearn.datasets import load_digits
from torch import nn

from qcircuit_peft import Noise, QCircuitConfig, noise_aware

TRAINED: dict[str, Noise | None] = {"without noise": None, "with depolarizing 0.01": Noise(depolarizing=0.01)}
STRENGTHS = (0.003, 0.01, 0.02)


def main() -> None:
    """Print the table of docs/devices.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    seeds = parser.parse_args().seeds
    torch.set_num_threads(1)
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
    strengths = " | ".join(f"{p:g}" for p in STRENGTHS)
    print(f"| trained | seed | exact | {strengths} |\n|---|---:|---:|{'---:|' * len(STRENGTHS)}")
    for seed in range(seeds):
        for name, noise in TRAINED.items():
            torch.manual_seed(seed)
            order = torch.randperm(len(x))
            known, unseen = order[:897], order[897:]
            turned = x.view(-1, 8, 8).rot90(1, (1, 2)).reshape(-1, 64)
            net = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 10))
            learn(net, turned[known], y[known], 3e-3, 300)
            model = get_peft_model(net, QCircuitConfig(r=8, alpha=64, target_modules=["0", "2"], seed=seed))
            with nullcontext() if noise is None else noise_aware(model, noise):
                learn(model, x[known], y[known], 2e-2, 200)
            shares = [measured(model, x[unseen], y[unseen], KINDS["depolarizing"](p), None)[0] for p in STRENGTHS]
            row = " | ".join(f"{share:.1f}" for share in (accuracy(model, x[unseen], y[unseen]), *shares))
            print(f"| {name} | {seed} | {row} |", flush=True)


if __name__ == "__main__":
    main()
