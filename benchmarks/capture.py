"""Do methods that hold more of a task's gradient at their start become more accurate? Those of a study of methods.

Each is attached as the study attaches it, at its first seed; the head is trained first, without an adapter, and is the
same for all. Prints the share of the gradient that its trained numbers hold beside the study's accuracies, and their
rank correlation; writes benchmarks/results/capture.csv.
"""

import csv
import tempfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from statistics import mean

import torch
import typer
from _rows import add_row, read_rows
from scipy.stats import spearmanr

from qcircuit_peft.analysis import gradient_capture
from qcircuit_peft.methods import METHODS, Chosen
from qcircuit_peft.study.field import SEED, Field
from qcircuit_peft.study.folder import cut
from qcircuit_peft.tasks import TASKS, Classifier, Encoder, pretrained, quiet
from qcircuit_peft.training import look, some_batches, train, trained

HERE = Path(__file__).parent
OUT = HERE / "results" / "capture.csv"
COLUMNS = ("entry", "numbers", "share", "nuclear", "test")


def main(study: Path = HERE.parent / "studies" / "trec_900.toml", epochs: int = 3) -> None:
    """Measure all methods of the study that OUT has no row of, then correlate."""
    quiet()
    field = Field.from_file(study)
    task, seed = TASKS[field.task], field.seeds[0]
    splits = cut(field, task)
    task = replace(task, splits=lambda: splits)
    accuracies = defaultdict(list)
    for row in csv.DictReader(study.with_suffix(".csv").open(newline="")):
        if row["stage"] == SEED:
            accuracies[row["entry"]].append(float(row["test"]))
    done = {row["entry"] for row in read_rows(OUT)}
    with tempfile.TemporaryDirectory() as folder:
        train(task, Chosen(METHODS["probe"]), Path(folder), epochs=epochs, seed=seed)
        head = trained(task, Path(folder))[0].head.state_dict()
    encode = Encoder(task)
    rows = encode.rows(splits.train)
    for entry in field.method:
        if entry.key in done or entry.key not in accuracies:
            continue
        torch.manual_seed(seed)
        chosen = Chosen(METHODS[entry.name], entry.size, entry.numbers)
        net = Classifier(task, chosen.attach(task), len(splits.train.names))
        look(chosen.method, net, list(net.head.parameters()), encode, rows, seed=seed)
        net.head.load_state_dict(head)
        batches = some_batches(encode, rows, torch.device("cpu"), seed=seed)
        found = gradient_capture(net, batches, lambda net, batch: net(**batch)["loss"])
        numbers = chosen.method.count(pretrained(task), chosen.targets(task), chosen.size_on(task))
        add_row(OUT, COLUMNS, (entry.key, numbers, found.full_share, found.nuclear, mean(accuracies[entry.key])))
        print(entry.key, f"{found.full_share:.5f}", flush=True)
    table = sorted(read_rows(OUT), key=lambda row: -float(row["test"]))
    for row in table:
        share, test = 100 * float(row["share"]), 100 * float(row["test"])
        print(f"{row['entry']:24} {int(row['numbers']):6,} {share:8.3f} % of the gradient   accuracy {test:.1f} %")
    found = spearmanr([float(row["share"]) for row in table], [float(row["test"]) for row in table])
    print(f"Spearman's correlation {found.statistic:+.2f}, p = {found.pvalue:.2f}, {len(table)} methods")


if __name__ == "__main__":
    typer.run(main)
