"""``qcircuit-peft count`` and ``convert``: how many numbers an adapter trains, and a trained one for other programs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from qcircuit_peft.cli.program import AsCsv, AsJson, OutFile, Quiet, Rows, console, errors, numbers, table
from qcircuit_peft.text import printable, shown


@dataclass(frozen=True)
class _Count:
    """A row of the table; ``bytes`` are those of float32, ``share`` is of the base model's numbers."""

    method: str
    size: int | None
    numbers: int
    bytes: int
    share: float


def count(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="a folder, or a name on the Hugging Face hub")],
    method: Annotated[list[str] | None, typer.Option(help="a key of METHODS, several times for several; all")] = None,
    rank: Annotated[str | None, typer.Option(help="ranks, or other sizes: 8, 4:16:4 or 1,8; by the method")] = None,
    targets: Annotated[str | None, typer.Option(help="the layers that are adapted, such as query,value; by the model's family")] = None,  # noqa: E501
    as_json: AsJson = False,
    as_csv: AsCsv = False,
    out: OutFile = None,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """How many numbers each method trains in a model, of which only the configuration is read.

    qcircuit-peft count MODEL --method circuit --method lora --rank 8,16
    """
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModel

    from qcircuit_peft.fine_tuning import place_of, targets_of
    from qcircuit_peft.methods import METHODS
    from qcircuit_peft.text import did_you_mean

    form = Rows(as_csv, as_json, out)
    sizes = None if rank is None else numbers(rank)
    for name in method or ():
        if name not in METHODS:
            raise ValueError(f"there is no method {shown(name)}; {did_you_mean(name, METHODS)}")
    with init_empty_weights():
        net = AutoModel.from_config(AutoConfig.from_pretrained(place_of(model)))
    named = list(filter(None, (targets or "").split(","))) or targets_of(net)
    whole = sum(parameter.numel() for parameter in net.parameters())
    rows, left = [], []
    for name in method or METHODS:
        one = METHODS[name]
        try:
            for size in sizes if sizes and one.size else [one.default_on(net, named)]:
                found = one.count(net, named, size)
                rows.append(_Count(name, size if one.size else None, found, 4 * found, found / whole))
        except ValueError as error:
            if method:
                raise
            left.append(f"{name} ({error})")
    if form.tell(rows):
        return
    cells = (
        (row.method, str(row.size or ""), f"{row.numbers:,}", f"{row.bytes:,}", f"{row.share:.4%}") for row in rows
    )
    table(("method", "size", "numbers", "bytes", "of the model"), cells)
    notes = [f"{whole:,} numbers in the model; adapted: {', '.join(named)}; no head is counted"]
    notes += [f"left out: {'; '.join(left)}"] if left else []
    for note in () if quiet else notes:
        errors.print(printable(note), soft_wrap=True)


def convert(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="the folder of a circuit adapter")],
    out: Annotated[Path, typer.Option(help="the folder for what is written, new or empty")],
    to: Annotated[str, typer.Option(help="lora, merged or qasm")] = "lora",
    rank: Annotated[str | None, typer.Option(help="LoRA's r, or a share of the energy such as 0.99; exact")] = None,
    base: Annotated[str | None, typer.Option(help="the pretrained model, if it is elsewhere now")] = None,
) -> None:
    """Write a trained adapter for other programs: a plain LoRA, the merged model, or OpenQASM.

    qcircuit-peft convert adapter --to lora --rank 0.99 --out adapter-lora
    """
    from qcircuit_peft.fine_tuning import convert as run
    from qcircuit_peft.tasks import quiet as silence

    silence()
    wanted = None if rank is None else _rank(rank)
    found = run(adapter, out, to, rank=wanted, base=base)
    told = f", LoRA's r = {found.rank}, which servers call max_lora_rank" if found.rank else ""
    console.print(printable(f"{found.files} files of {found.bytes:,} bytes in {out}{told}"), soft_wrap=True)


def _rank(text: str) -> int | float:
    try:
        return int(text) if text.isdecimal() else float(text)
    except ValueError:
        raise ValueError(f"rank is a whole number, or a share of the energy such as 0.99, got {shown(text)}") from None
