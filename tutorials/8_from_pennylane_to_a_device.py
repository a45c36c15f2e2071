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
# # 8. From PennyLane to an adapter and back to a device
#
# A circuit that was written for PennyLane becomes an adapter, learns in a model, and goes back to where it came from:
# to PennyLane, to Qiskit, and onto a copy of a real device with its noise.
#
# It takes about half a minute on two cores. `pip install 'qcircuit-peft[pennylane,devices,demo]'` brings what it
# needs.

# %%
import warnings

import pennylane as qml
import torch

warnings.filterwarnings("ignore", "IProgress not found")  # tqdm would like ipywidgets for its bars

from peft import get_peft_model
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from qcircuit_peft import Noise, QCircuitConfig, circuit_of, noise_aware, probabilities
from qcircuit_peft.analysis import capacity, evaluate_under_noise, resources, search
from qcircuit_peft.interop import from_pennylane, to_pennylane, to_qiskit

_ = torch.manual_seed(0)

# %% [markdown]
# ## 1. In
# Four qubits, RY and CNOT in a ring, one angle shared by two gates. Every real number among the arguments is a free
# angle.


# %%
def mine(weights, shared):
    for layer in weights:
        for wire in range(4):
            qml.RY(layer[wire], wires=wire)
        for wire in range(4):
            qml.CNOT(wires=[wire, (wire + 1) % 4])
    qml.RY(shared, wires=0)
    qml.RY(2 * shared + 0.3, wires=2)


circuit = from_pennylane(mine, torch.zeros(2, 4), 0.0)
print(circuit.n_angles, "angles on wires of dimension", circuit.dims)
print("\n".join(str(circuit).splitlines()[-2:]))

# %% [markdown]
# ## 2. Measured in one's own way
# A metric is a name or a function of states. Here it is how much of a state the likeliest outcome holds: 1 for a basis
# state. Beside it are circuits that come with the library, ranked by how near they come to random states.


# %%
def likeliest(states):
    return states.abs().square().amax(-1)


row = capacity(circuit, metric=likeliest, samples=300, generator=torch.Generator().manual_seed(0))[0]
print(f"mine: {row.mean:.3f}, random states {row.haar:.3f}")
for one in search(4, 1, likeliest, ["ring_ry_cz", "simplified_two_design", "sim15", "compound_brickwall"], samples=300):
    print(f"{one.circuit:22} {one.capacity:.3f}  {one.independent} independent angles, {one.two_qubit} two-qubit gates")

# %% [markdown]
# ## 3. An adapter
# A small network knows digits. The circuit serves layers of its width, 16: an adapter on one of them is to teach it
# other names, 1 for 0 and 0 for 1, 3 for 2 and 2 for 3, ...

# %%
images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
renamed = y ^ 1
train, test = slice(0, 900), slice(900, None)


def learn(net, y, steps, rate):
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], rate)
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(net(x[train]), y[train]).backward()
        optimizer.step()


@torch.no_grad()
def accuracy(net, y):
    return 100 * (net(x[test]).argmax(-1) == y[test]).float().mean().item()


net = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 10))
learn(net, y, 300, 1e-2)
print(f"the network: {accuracy(net, y):.1f} % by their names, {accuracy(net, renamed):.1f} % by the others")

config = QCircuitConfig(ansatz=circuit, r=16, target_modules=["2"], seed=0)
model = get_peft_model(net, config)
learn(model, renamed, 300, 5e-2)
count = sum(p.numel() for p in model.parameters() if p.requires_grad)
print(f"with the adapter of {count} numbers: {accuracy(model, renamed):.1f} % by the others")

# %% [markdown]
# ## 4. Out
# `circuit_of` finds a trained circuit by the module's name; every way out takes what it returns. PennyLane runs it and
# finds the same probabilities.

# %%
trained, angles = circuit_of(model, "2.u")


@qml.qnode(qml.device("lightning.qubit", wires=4))
def theirs():
    to_pennylane(trained, angles.numpy())
    return qml.probs(wires=range(4))


print("largest difference:", float((torch.as_tensor(theirs()) - probabilities(trained, angles.double())).abs().max()))
print(to_qiskit(trained, angles).count_ops())

# %% [markdown]
# ## 5. What it costs on a device
# `fake_manila` is a copy of a device with five qubits: four for the circuit, one for the Hadamard test that finds the
# signs of a column.

# %%
cost = resources(trained, error=0.1, columns=16, backend="qiskit:fake_manila")
print(f"{cost.two_qubit} two-qubit gates in {cost.two_qubit_depth} steps, {cost.seconds * 1e6:.0f} microseconds a run")
print(f"{cost.shots:,} shots a column for an error of 10 %: {cost.seconds_in_all:.2f} s without noise")

# %% [markdown]
# ## 6. On it
# The weight update as the device would find it, and what the model then makes of the digits. Mitigation undoes errors
# of reading, and extrapolates the noise of the gates to none. Without noise 1,500 shots find most of it; with that of
# so many gates, little is left.


# %%
def with_updates(found):
    changed = {f"{name}.base_layer.weight": one.delta for name, one in found.items()}
    weights = {name: p + changed.get(name, 0) for name, p in model.named_parameters()}
    with model.disable_adapter():
        return accuracy(lambda given: torch.func.functional_call(model, weights, (given,)), renamed)


for device, names in (
    ("qiskit:aer_simulator", ()),
    ("qiskit:fake_manila", ()),
    ("qiskit:fake_manila", ("readout", "zne")),
):
    found = evaluate_under_noise(
        model, backend=device, shots=1500, mitigation=names, generator=torch.Generator().manual_seed(0)
    )
    (one,) = found.values()
    named = f"{device.partition(':')[2]} {'with ' + ' and '.join(names) if names else ''}"
    print(f"{named:40} delta W is off by {one.distance / one.norm:.0%}, accuracy {with_updates(found):.1f} %")

# %% [markdown]
# ## 7. Trained for noise
# Within `noise_aware` the model sees what noisy hardware would make of its circuits. Two adapters, one trained with
# depolarizing noise, both measured with it. One run: seeds differ by some points.

# %%
noise = Noise(depolarizing=0.01)
for name in ("without", "with"):
    model.add_adapter(name, config)
    model.set_adapter(name)
    if name == "without":
        learn(model, renamed, 150, 5e-2)
    else:
        with noise_aware(model, noise):
            learn(model, renamed, 150, 5e-2)
    print(f"trained {name} noise: {with_updates(evaluate_under_noise(model, noise)):.1f} % under noise")
