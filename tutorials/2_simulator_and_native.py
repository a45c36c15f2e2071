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
# # 2. Simulator and native
#
# A circuit of this library is plain data. The native backend turns it into a matrix quickly; PennyLane, TorchQuantum
# and Qiskit do the same gate by gate, with gates of their own. Here one circuit is drawn, compiled by all four, run
# with finite shots and noise, and exported to OpenQASM 3, from which Qiskit reads it back.

# %%
import torch

from qcircuit_peft import Noise, columns, estimated_columns, load, matrix, probabilities
from qcircuit_peft.drawing import draw
from qcircuit_peft.qasm import to_qasm

circuit = load("simplified_two_design").circuit(qubits=4, layers=1)
angles = 2 * torch.pi * torch.rand(circuit.n_angles, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
print(draw(circuit))

# %% [markdown]
# ## One circuit, four backends
#
# Wire 0 is the most significant digit, and column k of the matrix is U|k>. Qiskit counts its qubits the other way; its
# backend turns them round.

# %%
native = matrix(circuit, angles)
for backend in ("pennylane", "torchquantum", "qiskit", "pennylane:lightning.qubit"):
    other = matrix(circuit, angles, backend=backend)
    print(f"{backend:26} differs by {(other - native).abs().max():.0e}")

# %% [markdown]
# The circuit has real gates, so its matrix is real and orthogonal. That is what a weight update is made of: its first
# few columns. Gradients flow through `native`, `pennylane` and `torchquantum` alike.

# %%
for backend in ("native", "pennylane", "torchquantum"):
    leaf = angles.clone().requires_grad_()
    columns(circuit, leaf, 2, backend=backend)[3].sum().backward()
    print(f"{backend:13}", leaf.grad[:4].numpy().round(12))

# %% [markdown]
# ## What a quantum computer would show
#
# Measurements give frequencies, not amplitudes, and only so many of them.

# %%
exact = probabilities(circuit, angles)
for shots in (100, 10_000):
    found = probabilities(circuit, angles, shots=shots, generator=torch.Generator().manual_seed(1))
    print(f"{shots:6} shots: largest error {(found - exact).abs().max():.3f}")
noisy = probabilities(circuit, angles, noise=Noise(depolarizing=0.01, readout=0.02))
print(f"1 % depolarizing after every gate, 2 % readout: largest error {(noisy - exact).abs().max():.3f}")

# %% [markdown]
# Frequencies do not tell the sign of an entry. A Hadamard test does: it lets the column interfere with a column that
# is known.

# %%
found, error = estimated_columns(circuit, angles, 1, shots=10_000, generator=torch.Generator().manual_seed(1))
for i in range(4):
    print(f"entry {i}: {native[i, 0]:+.3f} exactly, {found[i, 0]:+.3f} +- {error[i, 0]:.3f} from 10,000 shots")

# %% [markdown]
# ## Out and back through OpenQASM 3

# %%
from qiskit import qasm3
from qiskit.quantum_info import Operator

text = to_qasm(circuit, angles)
print("\n".join(text.splitlines()[:8]), "\n...")
read = torch.from_numpy(Operator(qasm3.loads(text).reverse_bits()).data)
print(f"read back by Qiskit, differs by {(read - native).abs().max():.0e}")
assert (read - native).abs().max() < 1e-12
