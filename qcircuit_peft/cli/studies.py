"""``qcircuit-peft study``: train what a plan lists."""

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from qcircuit_peft.analysis import tables
from qcircuit_peft.cli.program import AsCsv, AsJson, Quiet, Rows, console, errors
from qcircuit_peft.cli.progress import Advance, progress
from qcircuit_peft.text import printable, shown


def study(
    file: Annotated[str, typer.Argument(metavar="FILE", help="a study file, such as studies/digits.toml")],
    out: Annotated[Path | None, typer.Option(help="folder of the results; by default study-output/NAME")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the study that the folder holds")] = False,
    executor: Annotated[str, typer.Option(help="local: one run after the other; ray: on a Ray cluster")] = "local",
    hours: Annotated[float | None, typer.Option(help="of methods: after this time no run begins")] = None,
    export: Annotated[
        str | None, typer.Option(help="of methods: peft, experiments for PEFT's method_comparison, and no run")
    ] = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
    quiet: Quiet = False,
) -> None:
    """Train what a plan lists on a task: circuits against entanglement, or methods against each other.

    A CSV and an HTML report are written.

    qcircuit-peft study studies/digits.toml --out digits

    qcircuit-peft study studies/digits.toml --out digits --resume --executor ray

    qcircuit-peft study studies/trec_900.toml --out methods --hours 2
    """
    from qcircuit_peft.study import Study, field, report, runs  # these take a second to import
    from qcircuit_peft.tasks import quiet as silence

    silence()
    form = Rows(as_csv, as_json)
    if field.is_one(file):
        if executor != "local":
            raise ValueError(f"a comparison of methods runs locally, got the executor {shown(executor)}")
        return _methods(file, out, resume, hours, export, form, quiet)
    if hours is not None or export is not None:
        raise ValueError("--hours and --export are for comparisons of methods, files with [[method]]")
    plan = Study.from_file(file)
    folder = out or Path("study-output") / plan.name
    with _told(file, folder, quiet) as advance:
        runs.run(plan, folder, resume=resume, executor=executor, progress=advance)
    results = list(runs.finished(plan, folder).values())
    if results:
        report.write(plan, results, folder)
        _tell(report.settings(results), folder, form)
    if len(results) < len(plan.points):
        raise typer.Exit(130)


def _tell(rows: Sequence[Any], folder: Path, form: Rows) -> None:
    if not form.tell(rows):
        print(tables.to_text(rows))
        console.print(printable(f"table {folder / 'runs.csv'}, report {folder / 'report.html'}"), soft_wrap=True)


@contextmanager
def _told(file: str, folder: Path, quiet: bool) -> Iterator[Advance]:
    """Shows how many runs are done and which is under way; when it is stopped, how to go on."""
    try:
        with progress("runs", quiet) as advance:
            yield advance
    except KeyboardInterrupt:
        again = f"qcircuit-peft study {shlex.quote(file)} --out {shlex.quote(str(folder))} --resume"
        errors.print(f"stopped; go on with: {printable(again)}", soft_wrap=True)


def _methods(
    file: str, out: Path | None, resume: bool, hours: float | None, export: str | None, form: Rows, quiet: bool
) -> None:
    """The command for a comparison of methods."""
    from qcircuit_peft.study import export_peft, field, front

    plan = field.Field.from_file(file)
    folder = out or Path("study-output") / plan.name
    if export is not None:
        if export != "peft":
            raise ValueError(f"what is exported for is peft, got {shown(export)}")
        for path in export_peft(plan, folder):
            console.print(printable(str(path)), soft_wrap=True)
        return
    with _told(file, folder, quiet) as advance:
        field.run(plan, folder, resume=resume, hours=hours, progress=advance)
    results = list(field.finished(plan, folder).values())
    if rows := front.lines(plan, results):
        front.write(plan, results, folder)
        _tell(rows, folder, form)
    if len(results) < len(plan.search()) + len(plan.method) * len(plan.seeds):
        raise typer.Exit(130)
