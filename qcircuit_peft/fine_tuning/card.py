"""The model card and the plot of a training."""

import json

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from qcircuit_peft import plotting
from qcircuit_peft.fine_tuning.settings import (
    ADAPTERS,
    Figures,
    Settings,
    place_of,
)
from qcircuit_peft.tasks.metrics import METRICS
from qcircuit_peft.tasks.task import KINDS
from qcircuit_peft.text import label, printable, shortened


@plotting.styled
def plot(figures: Figures) -> Figure:
    """The loss in training and the measure on the validation rows, epoch by epoch."""
    figure, [left, right] = plotting.panels(2, 8.4, 3.4)
    epochs = range(1, len(figures.history) + 1)
    for axes, key, name in ((left, "loss", "training loss"), (right, "value", f"{figures.metric}, validation")):
        axes.plot(epochs, [row[key] for row in figures.history], **plotting.series(axes is right))
        axes.axvline(figures.epoch, color=plotting.GREY, linestyle="--")
        axes.set(xlabel="epoch", ylabel=label(name))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.annotate(
        "kept",
        (figures.epoch, 1),
        (3, -3),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        va="top",
        color=plotting.GREY,
    )
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
    head = f" and {figures.head:,} in the head; both" if figures.head else "; they"
    read = f"Of {figures.rows:,} rows equal inputs were merged, {figures.disputed:,} of which had different labels."
    if settings.columns.language:
        read = f"{figures.rows:,} rows were read; running text is cut into blocks of {settings.max_length:,} tokens."
    return "\n".join(
        [
            "---", f"base_model: {name}", "library_name: peft", "tags: [qcircuit-peft]", "---", "",
            f"# {method.name} for {figures.kind}", "",
            f"{method.about[:1].upper()}{method.about[1:]}. {figures.trained:,} numbers are trained in the adapter"
            f"{head} take {figures.bytes:,} bytes.", "",
            f"**{figures.metric} {written(figures)}** on {figures.validation:,} validation rows, by which the epoch "
            f"({figures.epoch} of {settings.epochs}) was chosen; trained on {figures.train:,}. {read}", "",
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
