"""What circuits can see of a task's gradient before they are trained, against L, with entangling gates and without.

The head is trained first, for an epoch. The table is written to benchmarks/results/reach.csv.
"""

from dataclasses import replace
from pathlib import Path

import typer

from qcircuit_peft import files
from qcircuit_peft.analysis.tables import to_csv, to_text
from qcircuit_peft.fine_tuning import Columns, Settings, headed
from qcircuit_peft.reach import Reach, compare_captures, depths
from qcircuit_peft.tasks import TASKS, quiet

OUT = Path(__file__).parent / "results" / "reach.csv"
LAYERS = (0, 1, 2, 4, 8)


def main(task: str = "trec", seed: int = 0, batches: int = 20) -> None:
    """Measure circuits shared by kind: r = 16 with lambda, and r = 8 with a full core between them."""
    quiet()
    train, chosen = TASKS[task].splits().train, TASKS[task]
    rows = [{"text": x, "label": train.names[y]} for x, y in zip(train.inputs, train.labels.tolist(), strict=True)]
    settings = Settings(
        str(chosen.folder()), Columns(text="text"), targets=tuple(chosen.lora_targets), epochs=1, seed=seed
    )
    given = headed(rows, settings, batches=batches)
    found: list[Reach] = []
    for r, more in ((16, {}), (8, {"factorization": "shared_core"})):
        configs = depths(given.targets, r, LAYERS, share="kind", seed=seed, **more)
        form = f"r = {r}{' with a core' if more else ''}"
        for row in compare_captures(given.model, configs, given.batches, seed=seed, progress=print):
            if row.name in configs:
                found.append(replace(row, name=f"{form}, {row.name}"))
            elif row not in found:
                found.append(row)
    print(to_text(found))
    files.write(OUT, to_csv(found))


if __name__ == "__main__":
    typer.run(main)
