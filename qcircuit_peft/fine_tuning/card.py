"""The model card and the plot of a training."""

import json
from typing import Any

from matplotlib.figure import Figure

from qcircuit_peft.fine_tuning.settings import (
    ADAPTERS,
    Figures,
    Settings,
    place_of,
)
from qcircuit_peft.tasks.metrics import METRICS
from qcircuit_peft.tasks.task import KINDS
from qcircuit_peft.text import label, printable, shortened


def plot(figures: Figures) -> Figure:
    """The loss in training and the measure on the validation rows, epoch by epoch."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    left: Any = figure.subplots()
    right = left.twinx()
    epochs = range(1, len(figures.history) + 1)
    left.plot(epochs, [row["loss"] for row in figures.history], "o-", color="C1", label="training loss")
    right.plot(
        epochs, [row["value"] for row in figures.history], "s-", color="C0", label=f"{figures.metric}, validation"
    )
    right.axvline(figures.epoch, color="0.6", linestyle="--", label="kept")
    left.set(xlabel="epoch", ylabel="training loss")
    right.set_ylabel(figures.metric)
    left.xaxis.get_major_locator().set_params(integer=True)
    lines = [*left.get_lines(), *right.get_lines()]
    left.legend(lines, [label(str(line.get_label())) for line in lines], fontsize="small")
    return figure


def written(figures: Figures) -> str:
    """The measure as it is read: a share in per cent, a number with four digits."""
    return f"{100 * figures.value:.1f} %" if METRICS[figures.metric].unit == "%" else f"{figures.value:.4g}"


def card(figures: Figures, settings: Settings) -> str:
    """The model card, in Markdown, with the figures and how to load the adapter."""
    auto, place = KINDS[figures.kind].auto, place_of(settings.model)
    name = json.dumps(shortened(printable(place), 500))
    classes = ", ".join(f"`{shortened(printable(c), 60).replace('`', chr(39))}`" for c in figures.classes[:100])
    rows = [f"| {at} | {row['loss']:.4f} | {row['value']:.4f} |" for at, row in enumerate(figures.history, 1)]
    method = ADAPTERS[settings.method]
    return "\n".join(
        [
            "---", f"base_model: {name}", "library_name: peft", "tags: [qcircuit-peft]", "---", "",
            f"# {method.name} for {figures.kind}", "",
            f"{method.about[:1].upper()}{method.about[1:]}. {figures.trained:,} numbers are trained in the adapter and "
            f"{figures.head:,} in the head; both take {figures.bytes:,} bytes.", "",
            f"**{figures.metric} {written(figures)}** on {figures.validation:,} validation rows, by which the epoch "
            f"({figures.epoch} of {settings.epochs}) was chosen; trained on {figures.train:,}. Of {figures.rows:,} "
            f"rows equal inputs were merged, {figures.disputed:,} of which had different labels.", "",
            *([f"Classes: {classes}.", ""] if classes else []),
            "| epoch | training loss | validation |", "|---|---|---|", *rows, "",
            "```python", "import qcircuit_peft", "from peft import PeftModel",
            f"from transformers import AutoConfig, {auto}", "",
            'config = AutoConfig.from_pretrained("adapter")  # this folder',
            f"model = {auto}.from_pretrained({name}, config=config)",
            'model = PeftModel.from_pretrained(model, "adapter")', "```", "",
            "Or: `qcircuit-peft predict adapter new.csv --out predictions.csv`.", "",
        ]
    )  # fmt: skip
