"""What the demo shows in the end: a table, a plot, and the adapter in the forms in which it ships."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from matplotlib.figure import Figure
from peft import PeftModel, save_as_lora
from rich.table import Table

from qcircuit_peft import files
from qcircuit_peft.tasks import Task
from qcircuit_peft.training import Result, trained
from qcircuit_peft.tuner import QCircuitConfig


def table(results: Mapping[str, Result]) -> Table:
    """One row a method; the accuracy is on the test split, with its 95 % interval."""
    out = Table()
    out.add_column("method")
    for column in ("adapter parameters", "accuracy", "seconds a step", "checkpoint bytes"):
        out.add_column(column, justify="right")
    for result in results.values():
        percent = f"{100 * result.accuracy:.1f} ± {100 * result.interval:.1f} %"
        size = f"{result.checkpoint_bytes:,}" if result.checkpoint_bytes else "-"
        out.add_row(result.method, f"{result.parameters:,}", percent, f"{result.seconds_per_step:.2f}", size)
    return out


def plot(results: Mapping[str, Result], title: str, path: Path) -> None:
    """Test accuracy with its 95 % interval against the number of trainable adapter parameters, as a PNG."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for result in results.values():
        if not result.parameters:
            axes.axhline(100 * result.accuracy, color="grey", linestyle="--", label=result.method)
            continue
        axes.errorbar(
            result.parameters, 100 * result.accuracy, 100 * result.interval, fmt="o", capsize=3, label=result.method
        )
    axes.set(xscale="log", xlabel="trainable adapter parameters", ylabel="test accuracy (%)", title=title)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize="small")
    files.write_figure(path, figure)


def ship(task: Task, out: Path) -> Iterator[str]:
    """Saves the circuit adapter as a merged model and as a plain LoRA; says where each form lies."""
    net, encode = trained(task, out / "circuit")
    model = net.model
    assert isinstance(model, PeftModel)
    yield f"adapter          {out / 'circuit'}"
    config = model.peft_config["default"]
    assert isinstance(config, QCircuitConfig)
    save_as_lora(out / "circuit-as-lora", model, rank=config.r)
    yield f"plain LoRA copy  {out / 'circuit-as-lora'}"
    merged = model.merge_and_unload(safe_merge=True)
    merged.save_pretrained(out / "merged")
    if encode.tokenizer is not None:
        encode.tokenizer.save_pretrained(out / "merged")
    yield f"merged model     {out / 'merged'}"
    yield f"plot             {out / 'accuracy.png'}"
