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
# # 3 · How much does an adapter circuit entangle?
#
# A weight update made from a quantum circuit has a handful of angles for a large matrix. What decides how rich
# these matrices are is not only the number of angles, but how the gates tie the digits of the index together:
# *entanglement*. This notebook measures it against the number of layers L. Nothing about quantum mechanics is
# needed beyond this: a *state* is a vector of norm 1, and its index is written in digits, one *wire* a digit.

# %%
# %matplotlib inline
import warnings

import torch

warnings.filterwarnings("ignore", "IProgress not found")  # tqdm would like ipywidgets for its bars

from peft import get_peft_model

from qcircuit_peft import QCircuitConfig, load, matrix
from qcircuit_peft.analysis import (
    capacity,
    decay,
    entanglement_report,
    expressibility,
    gradient_variance,
    haar_value,
    saturation,
    tables,
)
from qcircuit_peft.analysis.entanglement import entropy, schmidt_values
from qcircuit_peft.analysis.operators import operator_entropy, operator_rank
from qcircuit_peft.analysis.plots import capacity_figure, gradient_figure, heat_map

generator = torch.Generator().manual_seed(0)

# %% [markdown]
# ## Entanglement is rank
#
# Write a vector of four numbers as a 2 x 2 matrix, first digit down, second digit across. If the matrix has rank 1,
# the vector is a product and each digit can be described alone. (1, 0, 0, 1)/√2 is the identity matrix: two equal
# singular values, one bit of entanglement entropy, the most there is.

# %%
product = torch.tensor([1.0, 1.0, 0.0, 0.0]) / 2**0.5
bell = torch.tensor([1.0, 0.0, 0.0, 1.0]) / 2**0.5
for name, vector in (("product", product), ("Bell", bell)):
    print(f"{name:8}singular values {schmidt_values(vector).tolist()}, entropy {float(entropy(vector)):.3f} bits")

# %% [markdown]
# ## Capacity against the number of layers
#
# The Meyer-Wallach measure Q asks how mixed each wire is, from 0 (a product) to 1. Its mean over random angles is
# the *entangling capacity* of a family of circuits. It can be sampled, as with any measure. Here it is also
# computed **exactly**, from four replicas of the state averaged over all angles (docs/entanglement.md has how). The
# sampled values below have 95 % intervals.

# %%
sampled = capacity("simplified_two_design", 4, range(1, 9), samples=300, generator=generator)
exact = capacity("simplified_two_design", 4, range(1, 9), exact=True)
print(tables.to_text(sampled[:3]))
print(tables.to_text(exact[:3]))
capacity_figure({"300 samples": sampled, "exact": exact})

# %% [markdown]
# The dashed line is what random states have. Adapter circuits are real, so they are compared with random *real*
# states; the value for complex ones, which most papers quote, cannot be reached.

# %%
for kind in ("real", "complex"):
    print(f"mean Q of random {kind} states of four qubits: {haar_value('meyer_wallach', 4, kind):.4f}")

# %% [markdown]
# Which wiring entangles fastest? At eight qubits, a 256 x 256 matrix, all exact:

# %%
names = ["butterfly", "all_pairs", "tree", "simplified_two_design", "ring_ry_cz", "line_ry_cz"]
curves = {name: capacity(name, 8, range(13), exact=True) for name in names}
for name, rows in curves.items():
    circuit = load(name).circuit(qubits=8, layers=1)
    pairs = sum(op.gate == "CZ" for op in circuit.ops)
    first = saturation(rows)
    reached = "not up to L = 12" if first is None else f"from L = {first}"
    print(f"{name:22}{pairs:3} CZ a layer; within 5 % of random states {reached}")
capacity_figure(curves)

# %% [markdown]
# Long-range pairs help: `butterfly` ties wires at distance 1, 2 and 4, and is there at L = 3. `line_ry_cz` is not
# there at L = 12: its CZ gates and rotations generate only a small group.

# %% [markdown]
# ## From states to matrices
#
# Across a cut of the digits, a matrix is a sum of Kronecker products; the least number of terms is its *operator-
# Schmidt rank*. Each CZ that crosses the cut doubles it at most, so a shallow circuit stays a short sum. In the
# two-design one CZ a layer crosses the middle.

# %%
for layers in range(1, 5):
    circuit = load("simplified_two_design").circuit(qubits=6, layers=layers)
    angles = 2 * torch.pi * torch.rand(circuit.n_angles, dtype=torch.float64, generator=generator)
    u = matrix(circuit, angles)
    bits = float(operator_entropy(u))
    print(f"L = {layers}: rank {int(operator_rank(u)):2} (bound {2**layers:2}), operator entropy {bits:.2f} bits")

# %% [markdown]
# ## Expressibility
#
# Do random angles give evenly spread states? The fidelity of two random circuits is compared with that of two
# random states; 0 nats is as even as random. The interval is for the value without the bias of a finite sample.

# %%
for layers in (1, 2, 4, 8):
    e = expressibility("simplified_two_design", 6, layers, samples=2000, generator=generator)
    print(
        f"L = {layers}: KL {e.kl:.4f} nats, of which bias about {e.bias:.4f}; 95 % interval {e.low:.4f} to {e.high:.4f}"
    )

# %% [markdown]
# ## The price of depth: flat gradients
#
# The more a circuit entangles, the flatter a *global* cost becomes: the variance of its gradient falls
# exponentially with the number of qubits, here as 2^(-b q). A local cost suffers less at small depth. (An adapter
# is trained through a model's loss, which is neither; this says what to expect from the circuit alone.)

# %%
rows = []
for cost in ("global", "local"):
    for layers in (1, 6):
        own = gradient_variance("simplified_two_design", range(2, 9), layers, cost, 300, generator)
        rate = decay(own)
        print(f"{cost:7}L = {layers}: b = {rate.rate:.2f} a qubit, 95 % interval {rate.low:.2f} to {rate.high:.2f}")
        rows += own
gradient_figure(rows)

# %% [markdown]
# ## What training makes of it
#
# A small network with circuit adapters, trained on a toy task. With a `seed` in the configuration the report knows
# where the circuits started.

# %%
torch.manual_seed(0)
net = torch.nn.Sequential(
    torch.nn.Linear(64, 96), torch.nn.Tanh(), torch.nn.Linear(96, 96), torch.nn.Tanh(), torch.nn.Linear(96, 32)
)
model = get_peft_model(net, QCircuitConfig(r=8, layers=2, seed=0, target_modules=["0", "2", "4"]))
x, wanted = torch.randn(256, 64), torch.randn(256, 32)
optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
for step in range(101):
    loss = (model(x) - wanted).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step:3}: loss {float(loss.detach()):.3f}")
report = entanglement_report(model)
print(tables.to_text([row for row in report if row.layer == "2" and row.part == "u"]))

# %%
heat_map(report, "operator_entropy", "u", "initial")

# %%
heat_map(report, "operator_entropy", "u", "now")

# %%
heat_map(report, "operator_entropy", "delta")

# %% [markdown]
# A cut near either end has few digits on one side, and little room. The middle of U holds about two bits at L = 2,
# the most that two crossing CZ allow (rank 4); the update adds up r such columns and may hold more. Whether more
# entanglement buys accuracy on a real task is the subject of tutorial 4.
