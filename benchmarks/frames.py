"""Every frame of ``FRAMES``: forward and gradient, and how orthonormal it is, against the width N.

    python benchmarks/frames.py [--quick]       # then python docs/figures.py frames

Eight columns, two-design with L = 1, one thread. Time is the median process time of one frame and the gradient of all
its parameters, in float32. The error is the largest entry of |U^T U - 1|, computed in float64, of the frame in float32
and in bfloat16.
"""

import argparse
import csv
from collections.abc import Callable
from pathlib import Path

import torch
from _timing import medians  # first: it sets the number of threads
from torch import Tensor

from qcircuit_peft.frames import FRAMES

K = 8
WIDTHS = (64, 128, 256, 768, 1024, 2048, 3072, 4096, 8192)
SHOWN = (64, 256, 768, 1024, 4096, 8192)
LARGEST = {"exponential": 768}  # of a map whose work grows as N^3


def step(name: str, n: int) -> Callable[[], Tensor]:
    frame, cotangent = FRAMES[name](n, K), torch.randn(n, K)
    return lambda: torch.autograd.grad(frame(), frame.theta, cotangent)[0]


def error(u: Tensor) -> float:
    u = u.detach().double()
    return (u.mT @ u - torch.eye(u.shape[-1])).abs().max().item()


def errors(name: str, n: int) -> dict[str, float]:
    frame = FRAMES[name](n, K)
    return {"float32": error(frame()), "bfloat16": error(frame.bfloat16()())}


def measure(widths: tuple[int, ...], repeats: int) -> dict[tuple[str, int], dict[str, float]]:
    """Seconds, errors and parameters by frame and width; all take turns, so that a busy machine slows all of them."""
    places = [(name, n) for n in widths for name in FRAMES if n <= LARGEST.get(name, n)]
    took = medians({f"{name} {n}": step(name, n) for name, n in places}, repeats, warmups=1)
    return {(name, n): {"seconds": took[f"{name} {n}"], **errors(name, n)} for name, n in places}


def worst(found: dict[tuple[str, int], dict[str, float]], name: str, what: str) -> str:
    return f"{max(row[what] for (other, _), row in found.items() if other == name):.0e}"


def table(found: dict[tuple[str, int], dict[str, float]], widths: tuple[int, ...]) -> str:
    shown = [n for n in widths if n in SHOWN]
    head = ["frame", *(f"N = {n}" for n in shown), "float32", "bfloat16", *(f"P({n})" for n in shown[-2:])]
    lines = [" | ".join(head), "|".join(["---", *["---:"] * (len(head) - 1)])]
    for name in FRAMES:
        times = [f"{1000 * found[name, n]['seconds']:.3g}" if (name, n) in found else "-" for n in shown]
        counts = [f"{FRAMES[name].n_parameters(n, K):,}" for n in shown[-2:]]
        kinds = [worst(found, name, what) for what in ("float32", "bfloat16")]
        lines.append(" | ".join([f"`{name}`", *times, *kinds, *counts]))
    return "\n".join(f"| {line} |" if "---" not in line else f"|{line}|" for line in lines)


def write(found: dict[tuple[str, int], dict[str, float]], path: Path) -> None:
    """The CSV from which docs/figures.py draws."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("frame", "n", "seconds", "float32", "bfloat16"))
        for (name, n), row in found.items():
            writer.writerow((name, n, *(f"{row[key]:.3g}" for key in ("seconds", "float32", "bfloat16"))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer widths and repeats")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/frames.csv"), help="the CSV")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    widths = WIDTHS[:3] if arguments.quick else WIDTHS
    found = measure(widths, repeats=1 if arguments.quick else 5)
    print(f"ms for forward and gradient of {K} columns; largest error of all N; parameters\n")
    print(table(found, widths))
    if not arguments.quick:
        write(found, arguments.out)


if __name__ == "__main__":
    main()
