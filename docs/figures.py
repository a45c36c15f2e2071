"""Draws the figures of docs/ from what was measured: ``python docs/figures.py``, or some of them by name.

What they show lies in benchmarks/results/ and studies/, or is computed here.
"""

import csv
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import mean

from matplotlib.figure import Figure
from peft import PeftModel

from qcircuit_peft import circuits, plotting
from qcircuit_peft.analysis import capacity as exact_capacity
from qcircuit_peft.analysis import entanglement_report
from qcircuit_peft.analysis.plots import capacity_figure, heat_map
from qcircuit_peft.compare import plot
from qcircuit_peft.drawing import draw_mpl
from qcircuit_peft.files import write_figure
from qcircuit_peft.study import accuracy_figure, read_csv

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def rows(name: str) -> list[dict[str, str]]:
    """The rows of a CSV of benchmarks/results/."""
    with (RESULTS / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def capacity() -> Figure:
    """Mean Q against L of five families."""
    families = ("butterfly", "hardware_efficient", "simplified_two_design", "ring_ry_cz", "line_ry_cz")
    curves = {name: exact_capacity(name, 8, range(9), exact=True) for name in families}
    return capacity_figure(curves, title="Eight qubits, exact mean over all angles")


def study() -> Figure:
    """Accuracy against Q, and against the number of parameters."""
    runs = read_csv((ROOT / "studies" / "digits.csv").read_text(encoding="utf-8"))
    title = "DINOv2-small, MNIST digits, 40 steps, three seeds, 95 % intervals"
    return accuracy_figure(runs, "capacity", "parameters", title=title)


@plotting.styled
def qpa() -> Figure:
    """Perplexity of each method and of what takes its circuit out, one row each."""
    found: dict[str, list[dict[str, str]]] = {}
    for row in rows("qpa.csv"):
        if (row["text"], row["steps"]) == ("dialogue", "15"):
            found.setdefault(row["method"], []).append(row)
    groups = (("LoRA", ""), ("DoRA", ""), ("FFA", ""), ("prefix", ", from text"))
    figure, [axes] = plotting.panels(width=7.6, height=7.6)
    at, places, names = 0.0, [], []
    for number, (base, end) in enumerate(groups):
        own = [name for name in found if name == base + end or (name.startswith(f"QPA-{base}") and name.endswith(end))]
        own = [name for name in own if end or "from text" not in name]
        for name in sorted(own, key=lambda name: (name.startswith("QPA"), len(name))):
            control = name.removesuffix(end).partition(", ")[2]
            look = plotting.series(number) | {"marker": "o" if name.startswith("QPA") else "s"}
            values = [float(row["perplexity"]) for row in found[name]]
            color = plotting.GREY if control else look["color"]
            axes.plot(values, [at] * len(values), linestyle="none", marker=".", color=color)
            axes.plot(
                mean(values), at, **look | {"color": color, "markerfacecolor": "white" if control else color}, ms=8
            )
            told = f"circuit taken out: {control}" if control else name
            names.append(f"{told}  {int(found[name][0]['parameters']):,}")
            places.append(at)
            at += 1
        at += 0.7
    axes.set_yticks(places, names)
    axes.set(ylim=(at - 1.2, -0.7), xlabel="perplexity of a token on test text (untrained: 73.6)")
    title = "SmolLM2-135M, film dialogue, 15 steps; dots are seeds, numbers are those trained"
    figure.suptitle(title, x=0.01, ha="left", fontsize="medium")
    return figure


@plotting.styled
def quantization() -> Figure:
    """Accuracy against bits, ours beside the published."""
    bits = (1, 2, 3, 4, 8, 32)
    published = {  # Quantum-PEFT, Table 7
        "uniform": (97.96, 98.67, 98.75, 98.78, 98.79, 98.81),
        "adaptive": (98.64, 98.77, 98.80, 98.87, 98.78, 98.81),
    }
    measured = [(row["run"], 100 * float(row["test"])) for row in rows("quantization.csv")]
    figure, axes = plotting.panels(2, 9.4, 3.8)
    for number, (kind, end) in enumerate((("uniform", ""), ("adaptive", " adaptive"))):
        look = plotting.series(number)
        runs = ["FP32" if bit == 32 else f"INT{bit}{end}" for bit in bits]
        own = [[test for run, test in measured if run == name] for name in runs]
        here = [mean(tests) for tests in own]
        axes[0].plot(bits, here, **look)
        for bit, tests in zip(bits, own, strict=True):
            axes[0].plot([bit] * len(tests), tests, ".", color=look["color"], ms=4)
        axes[1].plot(bits, published[kind], **look)
        for panel, point, place in ((axes[0], (2, here[1]), (6, -14)), (axes[1], (1, published[kind][0]), (10, -4))):
            up = {("uniform", 0): (-54, 8), ("adaptive", 1): (-4, 26)}.get((kind, int(panel is axes[1])), place)
            panel.annotate(kind, point, up, textcoords="offset points", color=look["color"])
    for panel, title in zip(axes, ("DINOv2-small, MNIST digits (here)", "ViT-base, CIFAR-10 (published)"), strict=True):
        panel.set(title=title, xlabel="bits of a code", xscale="log")
        plotting.ticks(panel.xaxis, bits)
    axes[0].set_ylabel("test accuracy (%)")
    return figure


@plotting.styled
def noise() -> Figure:
    """Accuracy against shots, and against the strength of each kind of noise."""
    measured = rows("noise.csv")
    exact = float(next(row["accuracy"] for row in measured if not row["shots"] and not row["noise"]))
    figure, [left, right] = plotting.panels(2, 9.8, 3.8, sharey=True)
    shots = {int(row["shots"]): float(row["accuracy"]) for row in measured if row["shots"]}
    left.plot(list(shots), list(shots.values()), **plotting.series(0))
    ends = []
    for number, kind in enumerate(dict.fromkeys(row["noise"] for row in measured if row["noise"])):
        own = {float(row["strength"]): float(row["accuracy"]) for row in measured if row["noise"] == kind}
        look = plotting.series(number)
        right.plot(list(own), list(own.values()), **look)
        ends.append((0.03, own[0.03], kind, look["color"]))
    for axes, label, values in ((left, "shots a column, no noise", shots), (right, "probability of an error", own)):
        axes.axhline(exact, color=plotting.GREY, linestyle="--")
        axes.set(xscale="log", xlabel=label)
        plotting.ticks(axes.xaxis, values)
    left.annotate("exact", (min(shots), exact), (0, 4), textcoords="offset points", color=plotting.GREY)
    left.set(ylabel="accuracy (%)", title="A 64-64-64-10 network, 900 turned digits, r = 16, six qubits, L = 1")
    plotting.name_ends(right, ends)
    return figure


def simulators() -> Figure:
    """Time against qubits of every backend."""
    numbers = ("qubits", "layers", "columns", "batch")
    table = [
        row
        | {key: int(row[key]) for key in numbers}
        | {key: float(value) if value else None for key, value in row.items() if key.startswith(("both", "forward"))}
        for row in rows("simulators.csv")
    ]
    return plot(table, title="simplified_two_design, first 8 columns, float32, one thread")


@plotting.styled
def frames() -> Figure:
    """Time and error of every frame against the width."""
    found: dict[str, list[dict[str, float]]] = {}
    for row in rows("frames.csv"):
        numbers = {key: float(row[key]) for key in ("n", "seconds", "float32", "bfloat16")}
        found.setdefault(row["frame"], []).append(numbers)
    figure, [time, error] = plotting.panels(2, 12, 4.8)
    times, errors = [], []
    for number, (name, own) in enumerate(found.items()):
        look, widths = plotting.series(number), [row["n"] for row in own]
        time.plot(widths, [1000 * row["seconds"] for row in own], **look)
        error.plot(widths, [row["float32"] for row in own], **look)
        error.plot(widths, [row["bfloat16"] for row in own], linestyle="--", **look)
        times.append((widths[-1], 1000 * own[-1]["seconds"], name, look["color"]))
        errors.append((widths[-1], own[-1]["float32"], name, look["color"]))
    time.set(ylabel="one frame and its gradient (ms)", title="K = 8 columns, circuits with L = 1, float32, one thread")
    error.set(ylabel="largest entry of |UᵀU - 1|", title="in float32 (solid) and bfloat16 (dashed)")
    for axes, ends in ((time, times), (error, errors)):
        axes.set(xscale="log", yscale="log", xlabel="width N")
        plotting.ticks(axes.xaxis, {row["n"] for own in found.values() for row in own}, "{:g}".format, apart=0.2)
        plotting.name_ends(axes, ends)
    return figure


@cache
def trained() -> PeftModel:
    """The adapter of benchmarks/noise.py: a small network, trained in seconds."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from noise import adapted

    return adapted()[0]


def trained_circuit() -> Figure:
    """The circuit of U of the first adapted layer, with its angles."""
    _, circuit, angles = next(iter(circuits(trained())))
    return draw_mpl(circuit, angles)


def trained_entropy() -> Figure:
    """Entropy of the columns of U of all layers, at every cut."""
    return heat_map(entanglement_report(trained()), "column_entropy", "u")


FIGURES: dict[str, Callable[[], Figure]] = {
    "capacity": capacity, "study": study, "qpa": qpa, "quantization": quantization, "noise": noise,
    "simulators": simulators, "frames": frames, "trained_circuit": trained_circuit, "trained_entropy": trained_entropy,
}  # fmt: skip


if __name__ == "__main__":
    for name in sys.argv[1:] or FIGURES:
        write_figure(Path(__file__).parent / "figures" / f"{name}.png", FIGURES[name]())
        print(f"docs/figures/{name}.png")
