"""``qcircuit-peft train``, ``predict``, ``evaluate``, ``reach``: on one's own table, learn, label, test, look first."""

import shlex
import sys
from dataclasses import asdict
from math import ceil
from pathlib import Path
from typing import Annotated, Any

import typer

from qcircuit_peft.cli.program import (
    AsCsv,
    AsJson,
    Depths,
    OutFile,
    Plot,
    Quiet,
    Rows,
    console,
    errors,
    numbers,
    save,
    table,
)
from qcircuit_peft.cli.progress import progress
from qcircuit_peft.text import printable, shortened

_STEPS = 100  # of a training; adapters of few numbers have hardly moved before (docs/fine_tuning.md)

Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="a .csv, .tsv, .jsonl or .parquet file with a header, a .txt file, or a folder with a folder of images "
        "for each class",
    ),
]
Model = Annotated[str, typer.Option(help="the pretrained model: a folder, or a name on the Hugging Face hub")]
Text = Annotated[str | None, typer.Option(help="the column of the texts")]
Text2 = Annotated[str | None, typer.Option(help="the column of the second texts, where there are pairs")]
Image = Annotated[str | None, typer.Option(help="the column of paths of images, seen from the file")]
Label = Annotated[str, typer.Option(help="the column of the classes, or numbers")]
Completion = Annotated[str | None, typer.Option(help="the column of what is to be written behind the text")]
Prompt = Annotated[str, typer.Option(help="how a text is given that is to be completed, {} being the text")]
Language = Annotated[bool, typer.Option("--language", help="the texts themselves are learned, by a language model")]
Regression = Annotated[bool, typer.Option("--regression", help="the labels are numbers")]
Targets = Annotated[
    str | None,
    typer.Option(help="the linear layers that are adapted, such as query,value; by the model's family"),
]
Encoding = Annotated[str, typer.Option(help="encoding of a CSV or TSV file, such as latin-1")]
Delimiter = Annotated[str | None, typer.Option(help="what separates the cells, such as ';'; by the file's ending")]


def train(
    data: Data,
    model: Model,
    out: Annotated[Path, typer.Option(help="the folder of the adapter, new or empty")],
    text: Text = None,
    text2: Text2 = None,
    image: Image = None,
    label: Label = "label",
    regression: Regression = False,
    completion: Completion = None,
    prompt: Prompt = "{}\\n",
    language: Language = False,
    method: Annotated[str, typer.Option(help="the adapter: circuit (shared by kind), circuit_own, lora, ...: docs/methods.md")] = "circuit",  # noqa: E501
    rank: Annotated[int | None, typer.Option(help="the rank r, or another size; by the method")] = None,
    layers: Annotated[int | None, typer.Option(help="the number of layers L of circuits")] = None,
    targets: Targets = None,
    epochs: Annotated[int, typer.Option(help="passes over the data; the best one is kept")] = 3,
    validation: Annotated[str, typer.Option(help="the share of rows to validate with, or a file")] = "0.1",
    batch: Annotated[int, typer.Option(help="inputs a step")] = 32,
    max_length: Annotated[int, typer.Option(help="tokens of a text that are read")] = 128,
    seed: Annotated[int, typer.Option(help="draws the validation rows, the adapter, the head and the order")] = 0,
    encoding: Encoding = "utf-8",
    delimiter: Delimiter = None,
    lora: Annotated[bool, typer.Option("--lora", help="write the adapter as a plain LoRA too")] = False,
    merged: Annotated[bool, typer.Option("--merged", help="write the whole model with the adapter merged too")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="go on with a training that was interrupted")] = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Fine-tune a pretrained model on your own table, and keep the adapter of the best epoch.

    qcircuit-peft train questions.csv --text question --label kind --model MODEL --out adapter

    qcircuit-peft train houses.csv --text description --label price --regression --model MODEL --out adapter

    qcircuit-peft train photos/ --model MODEL --out adapter

    qcircuit-peft train questions.csv --text question --completion answer --model MODEL --out adapter
    """
    from qcircuit_peft.fine_tuning import PLOT, Settings, fine_tune, written  # these take seconds to import
    from qcircuit_peft.tasks import quiet as silence

    silence()
    columns = _columns(data, text, text2, image, label, completion, prompt, language)
    named = tuple(filter(None, (targets or "").split(",")))
    settings = Settings(
        model, columns, regression, method, rank, layers, named, epochs, _share(validation), batch, max_length, seed
    )
    also = [form for form, wanted in (("lora", lora), ("merged", merged)) if wanted]
    with progress("steps", quiet) as advance:
        figures = fine_tune(
            data,
            out,
            settings,
            encoding=encoding,
            delimiter=delimiter,
            also=also,
            resume=resume,
            progress=lambda step, steps, loss: advance(step, steps, f"loss {loss:.2f}"),
        )
    if figures is None:
        again = shlex.join(["qcircuit-peft", *(word for word in sys.argv[1:] if word != "--resume"), "--resume"])
        errors.print(f"stopped; go on with: {printable(again)}", soft_wrap=True)
        raise typer.Exit(130)
    epochs_told = (
        (f"{at}", f"{row['loss']:.4f}", f"{row['value']:.4f}", "kept" if at == figures.epoch else "")
        for at, row in enumerate(figures.history, 1)
    )
    value = f"{figures.metric}, {figures.validation:,} validation rows"
    table(("epoch", "training loss", value, ""), epochs_told, left=(3,))
    console.print(
        f"{figures.metric} {written(figures)}; {figures.trained:,} numbers in the adapter, {figures.head:,} in the "
        f"head, {figures.bytes:,} bytes; {figures.seconds_per_step:.2f} seconds a step; {figures.rows:,} rows, whose "
        f"{figures.train:,} {'pieces' if columns.language else 'inputs'} were trained on; {figures.disputed:,} inputs "
        f"had several {'completions' if columns.language else 'labels'}",
        soft_wrap=True,
    )
    console.print(printable(f"adapter and model card {out}, plot {out / PLOT}"), soft_wrap=True)
    an_epoch = ceil(figures.train / batch)
    if an_epoch * epochs < _STEPS and not quiet:
        enough = ceil(_STEPS / an_epoch)
        errors.print(f"note: {an_epoch * epochs} steps, where {_STEPS} are usual: --epochs {enough}", soft_wrap=True)


def _columns(
    data: str,
    text: str | None,
    text2: str | None,
    image: str | None,
    label: str,
    completion: str | None = None,
    prompt: str = "{}",
    language: bool = False,
) -> Any:
    """The columns that are named; a folder of images and a .txt file have theirs without being asked."""
    from qcircuit_peft.fine_tuning import Columns
    from qcircuit_peft.tasks.tables import TEXT

    if text is None and image is None:
        image = "image" if Path(data).is_dir() else None
        if Path(data).suffix.lower() == ".txt":
            text, language = TEXT, True
    prompt = prompt.replace("\\n", "\n")  # which a shell does not
    return Columns(text, text2, image, None if language else label, completion, prompt)


def _share(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        if not Path(text).exists():
            raise ValueError(
                f"validation is a share such as 0.1, or a file, got {shortened(printable(text))!r}, which is neither"
            ) from None
        return text


def predict(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="the folder that qcircuit-peft train wrote")],
    data: Annotated[str, typer.Argument(metavar="DATA", help="a table with the columns that were trained on")],
    out: Annotated[Path, typer.Option(help="where the rows go, with prediction and probability: .csv, .tsv or .jsonl")],
    encoding: Encoding = "utf-8",
    delimiter: Delimiter = None,
    quiet: Quiet = False,
) -> None:
    """Predict the class, or the number, of every row of a table, of any size, or write what follows its text.

    qcircuit-peft predict adapter new.csv --out predictions.csv
    """
    from qcircuit_peft.fine_tuning import predict as run
    from qcircuit_peft.tasks import quiet as silence

    silence()
    with progress("rows", quiet) as advance:
        rows = run(adapter, data, out, encoding=encoding, delimiter=delimiter, progress=advance)
    print(printable(f"{rows:,} rows in {out}"))


def evaluate(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="the folder that qcircuit-peft train wrote")],
    data: Annotated[str, typer.Argument(metavar="DATA", help="a table with the columns and labels as in training")],
    metric: Annotated[list[str] | None, typer.Option(help="accuracy, f1, rmse, bleu, ...; several times for several; by the kind of task")] = None,  # noqa: E501
    encoding: Encoding = "utf-8",
    delimiter: Delimiter = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
    out: OutFile = None,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """How good a trained adapter is on a table with labels.

    qcircuit-peft evaluate adapter test.csv --metric accuracy --metric matthews
    """
    from qcircuit_peft.fine_tuning import evaluate as run
    from qcircuit_peft.tasks import quiet as silence

    silence()
    form = Rows(as_csv, as_json, out)
    with progress("rows", quiet) as advance:
        rows = run(adapter, data, metric or (), encoding=encoding, delimiter=delimiter, progress=advance)
    if not form.tell(rows):
        between = ["" if row.low is None else f"{row.low:.4f} to {row.high:.4f}" for row in rows]
        cells = ((row.metric, f"{row.value:.4f}", at, f"{row.rows:,}") for row, at in zip(rows, between, strict=True))
        table(("metric", "value", "95 % interval", "rows"), cells)


def reach(
    data: Data,
    model: Model,
    text: Text = None,
    text2: Text2 = None,
    image: Image = None,
    label: Label = "label",
    regression: Regression = False,
    completion: Completion = None,
    prompt: Prompt = "{}\\n",
    language: Language = False,
    rank: Annotated[int, typer.Option(help="the rank r of all circuits")] = 16,
    layers: Depths = "0,1,2,4",
    circuit: Annotated[str, typer.Option(help="a shipped circuit, or the path of a .toml file")] = "simplified_two_design",  # noqa: E501
    share: Annotated[str, typer.Option(help="which modules have one pair of circuits: none, kind or shape")] = "kind",
    core: Annotated[bool, typer.Option("--core", help="r x r numbers between the circuits instead of r")] = False,
    targets: Targets = None,
    epochs: Annotated[int, typer.Option(help="passes over the data that train the new head first")] = 1,
    batches: Annotated[int, typer.Option(help="batches of which the gradient is taken")] = 20,
    batch: Annotated[int, typer.Option(help="inputs a batch")] = 32,
    steps: Annotated[int, typer.Option(help="steps that fit the angles")] = 300,
    starts: Annotated[int, typer.Option(help="random starts that say how the loss's derivatives scatter; 0: none")] = 0,
    seed: Annotated[int, typer.Option(help="draws what is random")] = 0,
    encoding: Encoding = "utf-8",
    delimiter: Delimiter = None,
    plot: Plot = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
    out: OutFile = None,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """How much of a task circuits can see before they are trained, at each number of layers, random and fitted.

    The head is trained first. share: of the gradient's energy, in the directions of lambda; nuclear: as Adam feels it.
    scatter: the variance of the loss's derivatives by angles, and by lambda, over random starts.

    qcircuit-peft reach questions.csv --text question --label kind --model MODEL --rank 16 --layers 0:4
    """
    from qcircuit_peft.analysis.tables import to_text
    from qcircuit_peft.fine_tuning import Settings, headed
    from qcircuit_peft.reach import compare_captures, depths, reach_figure
    from qcircuit_peft.tasks import quiet as silence

    silence()
    form = Rows(as_csv, as_json, out)
    more = {"share": None if share == "none" else share, "seed": seed}
    more |= {"factorization": "shared_core"} if core else {}
    columns = _columns(data, text, text2, image, label, completion, prompt, language)
    named = tuple(filter(None, (targets or "").split(",")))
    settings = Settings(model, columns, regression, targets=named, epochs=epochs, batch=batch, seed=seed)
    configs = depths(list(named), rank, numbers(layers), circuit, **more)  # what is wrong is said before the training
    options = {"encoding": encoding, "delimiter": delimiter, "batches": batches}
    with progress("head", quiet) as advance:
        given = headed(data, settings, progress=lambda step, of, loss: advance(step, of, f"loss {loss:.2f}"), **options)
    for config in configs.values():
        config.target_modules = set(given.targets)
    with progress("adapters", quiet) as advance:
        found = compare_captures(
            given.model, configs, given.batches, steps=steps, starts=starts, seed=seed, progress=advance
        )
    if plot is not None:
        save(reach_figure(found, configs), plot)
    rows = [{key: value for key, value in asdict(row).items() if starts or "scatter" not in key} for row in found]
    if not form.tell(rows):
        print(to_text(rows))
