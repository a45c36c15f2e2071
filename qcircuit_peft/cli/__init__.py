"""The ``qcircuit-peft`` command: look at circuits, measure and compare them, fine-tune a model on one's own data."""

from importlib.metadata import version
from typing import Annotated

import typer

from qcircuit_peft.cli import adapters, circuits, measures, own_data, ranking, studies
from qcircuit_peft.cli.program import Program, console

app = typer.Typer(cls=Program, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)


def _versions(wanted: bool) -> None:
    if wanted:
        told = ", ".join(f"{name} {version(name)}" for name in ("torch", "peft", "transformers"))
        console.print(f"qcircuit-peft {version('qcircuit-peft')} ({told})", soft_wrap=True)
        raise typer.Exit


@app.callback()
def _program(
    versions: Annotated[
        bool, typer.Option("--version", callback=_versions, is_eager=True, help="print the versions and exit")
    ] = False,
) -> None:
    """Nothing but the options of the program itself."""


app.add_typer(circuits.app, name="circuits")
for command in (
    circuits.explore,
    measures.entanglement,
    measures.expressibility,
    ranking.search,
    ranking.resources,
    measures.compare,
    studies.study,
):
    app.command()(command)
for command in (own_data.train, own_data.predict, own_data.evaluate, adapters.convert, adapters.count, own_data.reach):
    app.command()(command)
