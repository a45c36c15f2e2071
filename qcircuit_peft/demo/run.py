"""The demo as a command: train every method in a process of its own, compare, and ship the circuit adapter."""

import json
import multiprocessing
import subprocess
import sys
import time
from pathlib import Path
from queue import Empty
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from qcircuit_peft import files
from qcircuit_peft.demo import report
from qcircuit_peft.methods import DEMO
from qcircuit_peft.tasks import TASKS, quiet
from qcircuit_peft.training import Result, train

console = Console()


def _work(task: str, method: str, out: Path, epochs: int | None, queue: Any) -> None:
    torch.set_num_threads(1)
    quiet()
    result = train(TASKS[task], DEMO[method], out / method, epochs=epochs, progress=lambda *at: queue.put((method, at)))
    queue.put((method, result))


def _train_all(task: str, methods: list[str], out: Path, epochs: int | None, workers: int) -> dict[str, Result]:
    """Every method in a process of its own, ``workers`` at a time, one thread each; longest, that is last, first."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    waiting, running, results, stop = list(methods), {}, {}, False
    loss = TextColumn("loss {task.fields[loss]}")
    columns = (TextColumn("{task.description:<40}"), BarColumn(), MofNCompleteColumn(), loss, TimeRemainingColumn())
    with Progress(*columns, console=console) as bars:
        rows = {key: bars.add_task(DEMO[key].name, total=None, loss="-") for key in methods}
        while running or (waiting and not stop):
            try:
                while waiting and len(running) < workers and not stop:
                    key = waiting.pop()
                    running[key] = context.Process(target=_work, args=(task, key, out, epochs, queue))
                    running[key].start()
                try:
                    key, news = queue.get(timeout=1)
                except Empty:
                    dead = [key for key, process in running.items() if process.exitcode is not None]
                    for key in dead:
                        running.pop(key)
                        if key not in results and not stop:
                            raise SystemExit(f"training {DEMO[key].name!r} failed, see above") from None
                    continue
                if isinstance(news, Result):
                    results[key] = news
                    running.pop(key).join()
                else:
                    step, steps, value = news
                    bars.update(rows[key], completed=step, total=steps, loss=f"{value:.2f}")
            except KeyboardInterrupt:  # the training processes got it too, and each saves what it has
                stop = True
    return {key: results[key] for key in methods if key in results}


def _tasks() -> list[str]:
    """Those of which there is an accuracy."""
    return [name for name, task in TASKS.items() if task.kind != "language"]


def main(
    task: Annotated[str, typer.Argument(help=f"one of {', '.join(_tasks())}")] = "trec",
    out: Annotated[Path, typer.Option(help="where results go; a folder of the task's name is made in it")] = Path(
        "demo-output"
    ),
    epochs: Annotated[
        int | None, typer.Option(min=1, help="passes over the data instead of the task's own number")
    ] = None,
    methods: Annotated[str, typer.Option(help=f"some of {', '.join(DEMO)}")] = ",".join(DEMO),
    workers: Annotated[int, typer.Option(min=1, help="training processes at a time, one thread each")] = 2,
) -> None:
    """Fine-tune a real model on real labelled data with circuit adapters, and compare."""
    if task not in _tasks():
        raise typer.BadParameter(f"unknown task {task!r}; allowed are {', '.join(_tasks())}")
    wanted = methods.split(",")
    if unknown := [key for key in wanted if key not in DEMO]:
        raise typer.BadParameter(f"unknown method {unknown[0]!r}; allowed are {', '.join(DEMO)}")
    quiet()
    out = out / task
    out.mkdir(parents=True, exist_ok=True)
    console.print(f"[bold]{TASKS[task].about}[/bold]; results go to {out}")
    start = time.monotonic()
    results = _train_all(task, wanted, out, epochs, workers)
    console.print(f"Trained and tested in {(time.monotonic() - start) / 60:.1f} minutes, {workers} at a time.")
    unfinished = [key for key in wanted if key not in results or not results[key].finished]
    if unfinished:
        saved = [str(out / key) for key in results]
        console.print(f"Stopped early. Usable checkpoints, as far as training came: {', '.join(saved) or 'none yet'}")
        raise SystemExit(130)
    console.print(report.table(results))
    report.plot(results, TASKS[task].about, out / "accuracy.png")
    files.write(out / "results.json", json.dumps({key: vars(result) for key, result in results.items()}, indent=2))
    if "circuit" in results:
        for line in report.ship(TASKS[task], out):
            console.print(line)
        console.print("\nThe saved adapter in a fresh process:")
        subprocess.run([sys.executable, "-m", "qcircuit_peft.demo.classify", task, str(out / "circuit")], check=True)
