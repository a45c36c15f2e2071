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
# # 7 · How much of your task can a circuit see?
#
# An adapter of a few angles cannot change a weight in every direction. Which directions it starts with is a matter of
# chance, unless one looks: how much of the task's gradient lies in them can be measured before any training, and
# the angles can be fitted to it. This tutorial goes from that number to a circuit, and from the circuit to a trained
# adapter. All of it runs in seconds on a CPU: a small network, and the 8 x 8 digits that come with scikit-learn.

# %%
# %matplotlib inline
import copy
import warnings

import torch

warnings.filterwarnings("ignore", "IProgress not found")  # tqdm would like ipywidgets for its bars
from peft import LoraConfig, get_peft_model
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from qcircuit_peft import QCircuitConfig, calibrate, circuit_of, parameter_groups
from qcircuit_peft.analysis import gradient_capture, lie_dimension, tables, task_gradient_variance
from qcircuit_peft.reach import compare_captures, depths, reach_figure

torch.set_num_threads(1)
torch.manual_seed(0)

images, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
images = images.float() / 16
turned = images.unflatten(1, (8, 8)).transpose(1, 2).flatten(1)  # the new task: the same digits, mirrored

# %% [markdown]
# ## A pretrained model, and a task that it does not know
#
# The network learns the digits as they are. Then its weights are frozen, and what it shall read are mirrored ones.


# %%
def loss(model, batch):
    x, y = batch
    return cross_entropy(model(x), y)


def train(model, groups, x, epochs):
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, epochs * 32)
    for _ in range(epochs):
        for rows in torch.randperm(1024, generator=torch.Generator().manual_seed(1)).split(32):
            optimizer.zero_grad()
            loss(model, (x[rows], labels[rows])).backward()
            optimizer.step()
            falling.step()
    return model


def accuracy(model, x):
    with torch.no_grad():
        return float((model(x[1024:]).argmax(-1) == labels[1024:]).float().mean())


model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
train(model, [{"params": model.parameters(), "lr": 3e-3}], images, epochs=10)
print(f"digits as they are {accuracy(model, images):.3f}, mirrored {accuracy(model, turned):.3f}")

model.requires_grad_(False)
train(model, [{"params": model[4].requires_grad_().parameters(), "lr": 1e-2}], turned, epochs=5)  # a new head first
model.requires_grad_(False)
print(f"mirrored, with a head of their own {accuracy(model, turned):.3f}")

# %% [markdown]
# ## What configurations see of it
#
# G is the gradient of the loss with respect to a weight. For every number of layers L, with entangling gates and
# without: which share of ||G||² lies in the directions of the circuits' numbers, where the angles are drawn at random,
# and where they are fitted? Beside them stand LoRA of rank 1, and the best that any adapter of this rank can have.

# %%
batches = [(turned[:1024][rows], labels[:1024][rows]) for rows in torch.arange(1024).split(128)]
configs = depths(["0", "2"], r=4, layers=[0, 1, 2, 4], seed=0)
rows = compare_captures(model, configs, batches, loss, steps=200)
print(tables.to_text(rows))
reach_figure(rows, configs)

# %% [markdown]
# At random a circuit holds next to nothing, however deep it is. Fitted, it holds more with every layer, and at the same
# number of angles more with entangling gates than without. A circuit cannot use more angles than its Lie algebra has
# directions; adapting a model warns where it has more.

# %%
adapted = get_peft_model(copy.deepcopy(model), configs["L = 4"])
circuit, angles = circuit_of(adapted, "0.u")
print(f"{len(angles)} angles, {lie_dimension(circuit)} directions")

# %% [markdown]
# Is there a slope to follow at all? The variance of the loss's derivatives over random starts says so, for angles and
# for the numbers between the circuits; on wide layers it falls with the widths (a barren plateau).

# %%
print(tables.to_text(task_gradient_variance(adapted, batches[:2], loss, samples=30)))

# %% [markdown]
# ## From the number to a trained adapter
#
# The same circuit from a random start, fitted, fitted without entangling gates; circuits inside the gradient's own
# directions, which are then stored; LoRA of rank 1. One seed and one rate: an illustration, no comparison.

# %%
inside = QCircuitConfig(
    factorization="subspace", factorization_options={"size": 8}, r=4, layers=2, init="zeros", target_modules=["0", "2"]
)
plans = {
    "L = 4, random": (configs["L = 4"], None),
    "L = 4, fitted": (configs["L = 4"], {}),
    "L = 4, no entanglers, fitted": (configs["L = 4, no entanglers"], {}),
    "inside the gradient's directions": (inside, {"directions": True}),
    "LoRA, r = 1": (LoraConfig(r=1, target_modules=["0", "2"]), None),
}
found = []
for name, (config, fit) in plans.items():
    torch.manual_seed(0)
    adapted = get_peft_model(copy.deepcopy(model), config)
    if fit is not None:
        calibrate(adapted, batches, loss, steps=200, **fit)
    share = gradient_capture(adapted, batches, loss).share
    train(adapted, parameter_groups(adapted, {"others": 1e-2}), turned, epochs=5)
    numbers = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    found.append({"adapter": name, "numbers": numbers, "share": share, "accuracy": accuracy(adapted, turned)})
print(tables.to_text(found))

# %% [markdown]
# With entangling gates the circuit sees five times more of the task than without, and ends higher. But a share is the
# slope of the first step, not where training ends: the random start, which saw nothing, ends as high as the fitted
# one, since its angles move on, and the best directions of the first gradient, kept, end as low as the circuit without
# entangling gates. So fit and look, then train several. docs/reach.md says what each number means.
