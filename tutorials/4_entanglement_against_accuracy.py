# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 4 · Does entanglement buy accuracy?
#
# Tutorial 3 measured how much a circuit entangles at each number of layers L. Here the same circuits adapt a real
# model, and we ask whether those that entangle more also classify better. More layers also mean more trained
# numbers, so the question needs *controls*: circuits with as many angles and no entangling gates, and circuits
# whose angles stay as they were drawn.

# %%
# %matplotlib inline
import tempfile
import warnings
from pathlib import Path

import torch

warnings.filterwarnings("ignore", "IProgress not found")  # tqdm would like ipywidgets for its bars
torch.set_num_threads(1)

from qcircuit_peft import load
from qcircuit_peft.analysis import tables
from qcircuit_peft.drawing import draw
from qcircuit_peft.study import (
    Grid,
    Study,
    accuracy_figure,
    gains,
    read_csv,
    run,
    settings,
    spearman,
    without_entanglers,
)
from qcircuit_peft.tasks import quiet

quiet()
root = Path.cwd() if Path("studies").exists() else Path.cwd().parent

# %% [markdown]
# ## A study is a text file
#
# One `[[grid]]` is all combinations of what it lists; every run is done once for each seed.

# %%
print((root / "studies" / "digits.toml").read_text())

# %% [markdown]
# The control without entanglers has the same rotations, and no gate that ties two wires:

# %%
family = load("simplified_two_design")
print(draw(family.circuit(qubits=4, layers=1)))
print(draw(without_entanglers(family).circuit(qubits=4, layers=1)))

# %% [markdown]
# ## Two runs, here and now
#
# A run trains one setting, measures its accuracy, and reads from the trained model how entangled its circuits are.
# Each result is a file in the folder. A study that was interrupted goes on with `resume=True` and repeats nothing.

# %%
study = Study(
    "two_points",
    "digits",
    seeds=[0],
    train=64,
    validation=50,
    test=100,
    grid=[Grid(["simplified_two_design"], layers=[0, 2], r=[16])],
)
with tempfile.TemporaryDirectory() as folder:
    found = run(study, folder)
    print(sorted(path.name for path in Path(folder).rglob("*.json")))
    assert run(study, folder, resume=True) == found  # nothing was left to do
for one in found:
    print(
        f"L = {one.layers}: {one.parameters} parameters, Q {one.capacity:.3f} of {one.haar:.3f}, operator entropy "
        f"{one.operator_entropy:.2f} bits, test accuracy {one.test:.0%}"
    )

# %% [markdown]
# Two steps of training teach little; the committed study trained for longer. On the command line it is
# `qcircuit-peft study studies/digits.toml`, which also writes an HTML report. With `--executor ray` the same file
# runs on a cluster.
#
# ## What the whole study says

# %%
runs = read_csv((root / "studies" / "digits.csv").read_text())
print(tables.to_text(settings(runs)))

# %%
accuracy_figure(runs, "layers")

# %%
accuracy_figure(runs, "capacity")

# %%
accuracy_figure(runs, "operator_entropy")

# %% [markdown]
# The intervals are Student's over few seeds, so they are wide. The rank correlation uses all runs; its interval
# resamples whole settings, because the runs of one setting share everything but the seed.

# %%
trained = [one for one in runs if one.control == "trained"]
for name, own in (("trained", trained), ("with controls", runs)):
    print(name)
    print(tables.to_text([spearman(own, key) for key in ("layers", "parameters", "capacity", "operator_entropy")]))

# %% [markdown]
# L, the number of parameters and entanglement grow together, so none of these correlations tells which of them
# matters. The pairs do: the same angles with and without entangling gates, and trained or not, seed by seed.

# %%
print(tables.to_text(gains(runs)))

# %% [markdown]
# With trained angles, accuracy rises with L in both families, and with Q; it goes as well with the number of
# parameters. The controls say more: with angles as they were drawn, circuits with 7.7 bits of operator entropy do no
# better than products with none; and further angles without entangling gates add nothing that three seeds show, since
# rotations of one wire in a row only add up, to one larger step. So entanglement alone buys nothing that is visible
# here; it goes with angles that count. docs/results/study.md has the numbers, and what they cannot tell.
