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
# # 1 · Design an adapter circuit
#
# Fine-tuning adds an update ΔW to a weight matrix W of a pretrained model. LoRA writes ΔW as a product of two thin
# matrices of free numbers. Here the thin matrices are made by *circuits*, from a few angles, and you may design the
# circuit. This notebook goes from one gate to an adapter in a real model.
#
# *If you know fine-tuning and not circuits*: nothing of quantum mechanics is needed. A gate is a small orthogonal
# matrix, a circuit is a way to multiply small ones into a large one. *If you know circuits and not fine-tuning*: W is a
# matrix of a neural network, here 384 x 384 and fixed; what is trained is ΔW, and all that matters is that it has few
# parameters and reaches a useful place.

# %%
# %matplotlib inline
import tempfile
import warnings
from pathlib import Path

import torch
from matplotlib.figure import Figure

warnings.filterwarnings("ignore", "IProgress not found")  # tqdm would like ipywidgets for its bars
torch.set_num_threads(1)

from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy

from qcircuit_peft import Circuit, Op, QCircuitConfig, columns, load, matrix, parameter_count
from qcircuit_peft.analysis import capacity
from qcircuit_peft.drawing import draw
from qcircuit_peft.tasks import TASKS, Classifier, Encoder, pretrained, quiet

quiet()
generator = torch.Generator().manual_seed(0)

# %% [markdown]
# ## Gates are small matrices, wires are digits
#
# Write the index of a vector of length 8 in three binary digits. Each digit is a *wire*. A gate acts on the digits of
# its wires and leaves the others alone. Two gates are enough: RY, a rotation by half its angle, and CZ, which
# changes the sign where both its digits are 1.

# %%
print("RY(π/2):\n", matrix(Circuit((2,), [Op("RY", (0,))]), torch.tensor([torch.pi / 2])))
print("CZ:\n", matrix(Circuit((2, 2), [Op("CZ", (0, 1))]), torch.zeros(0)))

# %% [markdown]
# On its own wire, a rotation is a Kronecker product with ones: RY on the last of two wires is 1 ⊗ RY. Rotations on all
# wires are a product of small matrices and nothing more. CZ is not such a product; it ties digits together
# (*entangles* them), and layers of both fill the matrix in.

# %%
family = load("simplified_two_design")
print(family.about)
print(draw(family.circuit(qubits=4, layers=1)))

# %%
figure = Figure(figsize=(9, 3.2), layout="constrained")
for axes, layers in zip(figure.subplots(1, 3), (0, 1, 4), strict=True):
    circuit = family.circuit(qubits=5, layers=layers)
    u = matrix(circuit, 2 * torch.pi * torch.rand(circuit.n_angles, generator=generator))
    image = axes.imshow(u, cmap="RdBu", vmin=-0.6, vmax=0.6)
    axes.set(title=f"L = {layers}: {circuit.n_angles} angles", xlabel="column index k", ylabel="row index i")
    error = (u.T @ u - torch.eye(32)).abs().max()
    print(f"L = {layers}: orthogonal within {error:.0e}")
figure.colorbar(image, ax=figure.axes, label="entry of U (dimensionless)")
figure

# %% [markdown]
# With L = 0 the same pattern returns in blocks within blocks: a Kronecker product. It fades as layers are added.
# Whatever the angles, the matrix is orthogonal, here as far as single precision goes.
#
# ## From a circuit to an update
#
# ΔW = scaling · U diag(lambda) Vᵀ. U and V are the first r columns of two circuits, so they have orthonormal columns,
# and the r numbers lambda are the singular values. Only angles and lambda are trained. At width 384, r = 16:

# %%
wide = family.circuit(dim=384, layers=1)
print("wires:", wide.dims)
u = columns(wide, 2 * torch.pi * torch.rand(wide.n_angles, generator=generator), 16)
print("U:", tuple(u.shape), f"orthonormal within {(u.T @ u - torch.eye(16)).abs().max():.0e}")
print(f"W: {384 * 384:,} numbers; LoRA: {16 * 2 * 384:,}; circuits: {2 * wide.n_angles} angles and 16 lambdas")

# %% [markdown]
# 384 is 3 · 2⁷, so one wire has three levels, with a rotation of three angles, and the fit is exact. The angles grow
# with the *logarithm* of the width, and do not grow with r at all: a larger rank costs one number.
#
# ## Your own circuit is a text file
#
# `first` comes once, `layer` L times. `on` names a wiring, a rule that holds for any number of wires. This one ties
# neighbours together on a ring, then wires at all distances 1, 2, 4, ...

# %%
text = """
name  = "mine"
about = "RY on all wires; each layer: CZ and RY around a ring, then CZ between wires that are powers of two apart."

[[first]]
gate = "RY"
on   = "each"

[[layer]]
gate = ["CZ", "RY"]
on   = "ring"

[[layer]]
gate = "CZ"
on   = "butterfly"
"""
path = Path(tempfile.mkdtemp()) / "mine.toml"
path.write_text(text)
mine = load(path)
print(draw(mine.circuit(qubits=4, layers=1)))

# %% [markdown]
# Mistakes are found when the file is read:

# %%
for wrong in (text.replace('"CZ", "RY"', '"CZ", "RYX"'), text.replace("butterfly", "butterflies")):
    path.with_name("wrong.toml").write_text(wrong)
    try:
        load(path.with_name("wrong.toml"))
    except ValueError as error:
        print(str(error).replace(str(path.parent), ""))

# %% [markdown]
# ## Is it a good design?
#
# One thing to look at is what it costs, in angles, to tie the digits together. Q is the mean entanglement of the
# circuit's states over random angles, from 0 for products to that of random states, dashed; here on seven wires and
# computed exactly (tutorial 3 explains it).

# %%
figure = Figure(figsize=(6.4, 4.2), layout="constrained")
axes = figure.add_subplot()
for ansatz in (mine, *map(load, ("simplified_two_design", "butterfly", "tree", "ring_ry_cz"))):
    found = capacity(ansatz, 7, range(5), exact=True)
    angles = [ansatz.circuit(qubits=7, layers=row.layers).n_angles for row in found]
    bold = {"linewidth": 3, "color": "black"} if ansatz is mine else {}
    axes.plot(angles, [row.mean for row in found], marker="o", label=ansatz.name, **bold)
axes.axhline(found[0].haar, color="0.4", linestyle="--", label="random real states")
axes.set(xlabel="angles of the circuit (L = 0 to 4)", ylabel="mean Meyer-Wallach Q (dimensionless)")
axes.legend(fontsize="small")
figure

# %% [markdown]
# CZ costs no angles, so the long-range ones bring `mine` nearer to the dashed line than the others with as many angles.
# That is a property of the circuit alone. Whether it helps a model is another question, and tutorial 4 measures it.
#
# ## In a real model
#
# MiniLM with six blocks, 22.7 million weights. The circuits go on query and value of every block.

# %%
task = TASKS["trec6"]
config = QCircuitConfig(ansatz=mine, layers=1, r=16, seed=0, target_modules=["query", "value"])
print("circuits:", parameter_count(config, pretrained(task)), "trained numbers")
print("LoRA:    ", parameter_count(LoraConfig(r=16, target_modules=["query", "value"]), pretrained(task)))
torch.manual_seed(0)
questions = task.splits().train
net = Classifier(task, get_peft_model(pretrained(task), config), len(questions.names))
batch, labels = Encoder(task)(questions.inputs[:32]), questions.labels[:32]
layer = net.model.base_model.model.encoder.layer[0].attention.self.query

# %% [markdown]
# lambda starts at 0, so the adapted model is at first the pretrained one, exactly. The first step can only move lambda:
# an angle does nothing while lambda is 0. From the second step on the angles turn too.

# %%
angles = [p for name, p in net.named_parameters() if "qcircuit_u" in name or "qcircuit_v" in name]
lambdas = [p for name, p in net.named_parameters() if "qcircuit_lambda" in name]
optimizer = torch.optim.Adam([*angles, *lambdas], lr=0.02)
print("ΔW at the start:", float(layer.get_delta_weight("default").abs().max()))
for step in range(6):
    loss = cross_entropy(net(**batch), labels)
    optimizer.zero_grad()
    loss.backward()
    slopes = [torch.cat([p.grad for p in own]).norm() for own in (angles, lambdas)]
    print(f"step {step}: loss {loss.item():.3f} nats, gradient of angles {slopes[0]:.3f}, of lambdas {slopes[1]:.3f}")
    optimizer.step()

# %% [markdown]
# The singular values of ΔW are scaling · |lambda|, as designed, and there are r of them:

# %%
found = torch.linalg.svdvals(layer.get_delta_weight("default").double())[:20]
scaling = config.alpha / config.r
wanted = (scaling * layer.qcircuit_lambda["default"].detach().abs()).sort(descending=True).values
figure = Figure(figsize=(6.4, 3.6), layout="constrained")
axes = figure.add_subplot()
axes.bar(range(1, 21), found, color="0.8", label="singular values of ΔW")
axes.plot(range(1, 17), wanted, "o", color="C0", label="scaling · |lambda|")
axes.set(xlabel="number of the singular value", ylabel="singular value (dimensionless)")
axes.xaxis.get_major_locator().set_params(integer=True)
axes.legend()
figure

# %% [markdown]
# The whole circuit is stored with the adapter, so a checkpoint never depends on the file `mine.toml`. From here:
# tutorial 2 runs circuits on simulators, 3 and 4 measure entanglement, 5 trains, merges and ships.
