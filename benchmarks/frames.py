"""Every frame of ``FRAMES``: forward and gradient, and how orthonormal it is, against the width N.

    python benchmarks/frames.py [--quick] [--plot docs/figures/frames.png]

Eight columns, two-design with L = 1, one thread. Time is the median process time of one frame and the gradient of all
its parameters, in float32. The error is the largest entry of |U^T U - 1|, computed in float64, of the frame in float32
and in bfloat16.
"""

import argparse
from collections.abc import Callable

import torch
from _timing import medians  # first: it sets the number of threads
from matplotlib.figure import Figure
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


def plot(found: dict[tuple[str, int], dict[str, float]], path: str) -> None:
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    time, accuracy = figure.subplots(1, 2)
    for number, name in enumerate(FRAMES):
        rows = {n: row for (other, n), row in found.items() if other == name}
        style = {"marker": "osD^v<>Ph*Xp"[number % 12], "markersize": 4, "color": f"C{number % 10}", "linewidth": 1}
        widths = list(rows)
        time.loglog(widths, [1000 * row["seconds"] for row in rows.values()], label=name, **style)
        accuracy.loglog(widths, [row["float32"] for row in rows.values()], **style)
        accuracy.loglog(widths, [row["bfloat16"] for row in rows.values()], linestyle="--", **style)
    for axes, label in ((time, "forward and gradient (ms)"), (accuracy, "largest entry of |U^T U - 1|")):
        axes.set(xlabel="N", ylabel=label)
        axes.grid(alpha=0.3)
    accuracy.set_title("float32 (solid) and bfloat16 (dashed)", fontsize=9)
    figure.legend(loc="outside right center", fontsize=8)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer widths and repeats")
    parser.add_argument("--plot", help="where to write the figure")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    widths = WIDTHS[:3] if arguments.quick else WIDTHS
    found = measure(widths, repeats=1 if arguments.quick else 5)
    print(f"ms for forward and gradient of {K} columns; largest error of all N; parameters\n")
    print(table(found, widths))
    if arguments.plot:
        plot(found, arguments.plot)


if __name__ == "__main__":
    main()
