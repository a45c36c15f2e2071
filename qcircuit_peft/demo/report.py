"""What the demo shows in the end: a table, a plot, and the adapter in the forms in which it ships."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from peft import PeftModel, save_as_lora
from rich.table import Table

from qcircuit_peft import files, plotting
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
    files.write_figure(path, _figure(results, title))


@plotting.styled
def _figure(results: Mapping[str, Result], title: str) -> Figure:
    figure, [axes] = plotting.panels(height=1.2 + 0.4 * len(results))
    rows = sorted(results.values(), key=lambda result: -result.accuracy)
    for at, result in enumerate(rows):
        look: dict[str, Any] = plotting.CONTROL | {"marker": "o"} if not result.parameters else plotting.series(0)
        axes.errorbar(100 * result.accuracy, at, xerr=100 * result.interval, **look)
    axes.set_yticks(range(len(rows)), [f"{result.method}\n{result.parameters:,} numbers" for result in rows])
    axes.set(xlabel="test accuracy (%), 95 % interval", title=title, ylim=(len(rows) - 0.5, -0.5))
    return figure


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
