"""From the probabilities of a circuit to the parameters of a model: circuits and mapping networks, batched."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import pi, sqrt
from typing import Any

import psutil
import torch
from jaxtyping import Float
from torch import Tensor, nn

from qcircuit_peft.ansatz import adapter_gates, load
from qcircuit_peft.backends import probabilities
from qcircuit_peft.circuit import Circuit
from qcircuit_peft.generator.recipe import ACTIVATIONS, FEATURES, Recipe

EPS = 1e-7  # probabilities are clamped here: the derivative of "paper" and "log" is infinite at 0


@dataclass(frozen=True)
class Count:
    """What a generator trains: numbers in the mapping network and, beside it, those that make the features."""

    qubits: int
    network: int
    features: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.network + self.features


def generator_count(m: int, recipe: Recipe) -> Count:
    """The numbers that one generator of m parameters trains, without building it.

    The two published sizes, GPT-2's lm_head and one of 256000 x 2048, both under LoRA with r = 4:

    >>> generator_count(4 * (50257 + 768), Recipe(chunk_size=2048, layers=8))
    Count(qubits=7, network=106208, features=56)
    >>> generator_count(4 * (256000 + 2048), Recipe(chunk_size=4096, layers=8)).total
    173888
    """
    n = recipe.qubits(m)
    sizes = (n + 1, *recipe.widths, recipe.chunk_size)
    network = sum((into + 1) * out for into, out in pairwise(sizes))
    angles = circuit_of(recipe, n).n_angles
    features = {"scalars": recipe.chunks(m), "zero": 0, "frozen": 0}.get(recipe.control or "", angles)
    return Count(n, network, features)


@torch.compiler.assume_constant_result
def circuit_of(recipe: Recipe, n: int) -> Circuit:
    """The circuit on n qubits; raises ValueError for more gates than an adapter may have."""
    return load(recipe.ansatz).circuit(qubits=n, layers=recipe.layers, max_gates=adapter_gates())


def bits(n: int, device: torch.device | None = None) -> Float[Tensor, "states {n}"]:
    """The basis states of n qubits in order, wire 0 first, as +1 for 0 and -1 for 1.

    >>> bits(2).tolist()
    [[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]
    """
    states = torch.arange(1 << n, device=device).unsqueeze(1)
    return 1.0 - 2.0 * ((states >> torch.arange(n - 1, -1, -1, device=device)) & 1)


def features(p: Float[Tensor, "*batch states"], name: str) -> Float[Tensor, "*batch states"]:
    """f(p) of the probabilities of all basis states, less its mean over them; finite, and so is its gradient."""
    f = FEATURES[name](p.clamp(min=EPS), p.shape[-1].bit_length() - 1)
    return f - f.mean(-1, keepdim=True)


def check_memory(sizes: Sequence[int], recipe: Recipe) -> None:
    """Raise ValueError, naming the bytes, if networks and what a generation keeps are larger than the free memory."""
    needed = 0
    for m in sizes:
        states = 1 << recipe.qubits(m)
        needed += 4 * (states * (2 + recipe.qubits(m)) + recipe.chunks(m) * (sum(recipe.widths) + recipe.chunk_size))
        needed += 8 * states**2 if recipe.noise is not None else 0
        needed += 4 * generator_count(m, recipe).total
    free = psutil.virtual_memory().available
    if needed > free:
        most = max(sizes)
        raise ValueError(
            f"{most:,} parameters in chunks of {recipe.chunk_size} take {recipe.qubits(most)} qubits and "
            f"{needed:,} bytes a generation, networks included, but {free:,} are free; "
            "choose a larger chunk_size or smaller widths"
        )


class Generator(nn.Module):
    """Generates groups of parameters, (m,) for each m of ``sizes``: one circuit and one mapping network for each group.

    Groups whose circuits have as many qubits are a family: their parameters are stacked, (groups, ...), and generated
    in one batch. ``n7_angles`` are the angles (radians) of the family on 7 qubits, ``n7_weight0``, ``n7_bias0`` and so
    on its networks. Raises ValueError for an empty group, or more bytes than are free.

    >>> generate = Generator([300, 500], Recipe(chunk_size=64, init="paper"))
    >>> [vector.shape for vector in generate()], {name: tuple(p.shape) for name, p in generate.named_parameters()}
    ([torch.Size([300]), torch.Size([500])], {'n3_angles': (2, 24), 'n3_weight0': (2, 4, 32), ...})
    """

    def __init__(self, sizes: Sequence[int], recipe: Recipe) -> None:
        super().__init__()
        if not sizes or min(sizes) < 1:
            raise ValueError(f"a generator makes groups of one or more parameters, got sizes {list(sizes)}")
        check_memory(sizes, recipe)
        self.sizes, self.recipe = tuple(sizes), recipe
        self.families: dict[int, list[int]] = defaultdict(list)
        for group, m in enumerate(sizes):
            self.families[recipe.qubits(m)].append(group)
        source = torch.Generator().manual_seed(recipe.seed)
        for n, groups in self.families.items():
            self._add_features(n, len(groups), max(recipe.chunks(sizes[group]) for group in groups), source)
            widths = (n + 1, *recipe.widths, recipe.chunk_size)
            for k, (into, out) in enumerate(pairwise(widths)):
                zero = recipe.init == "zero" and k == len(recipe.widths)
                for name, shape in ((f"n{n}_weight{k}", (into, out)), (f"n{n}_bias{k}", (out,))):
                    value = torch.empty(len(groups), *shape).uniform_(-1, 1, generator=source) / sqrt(into)
                    self.register_parameter(name, nn.Parameter(torch.zeros_like(value) if zero else value))

    def circuit(self, n: int) -> Circuit:
        """The circuit on n qubits."""
        return circuit_of(self.recipe, n)

    def _add_features(self, n: int, groups: int, chunks: int, source: torch.Generator) -> None:
        """What the features of a family are made of: angles, frozen or not, or scalars, or nothing."""
        control, name = self.recipe.control, f"n{n}_angles"
        angles = torch.empty(groups, self.circuit(n).n_angles).uniform_(-pi, pi, generator=source)
        if control == "frozen":
            self.register_buffer(name, angles)
        elif control == "scalars":
            start = features(probabilities(self.circuit(n), angles), self.recipe.features)
            self.register_parameter(f"n{n}_scalars", nn.Parameter(start[:, :chunks].clone()))
        elif control != "zero":
            self.register_parameter(name, nn.Parameter(angles))

    def _features(self, n: int, groups: int, values: Mapping[str, Tensor]) -> Tensor:
        """One number for each basis state, (groups, chunks at least)."""
        recipe = self.recipe
        if recipe.control == "scalars":
            return values[f"n{n}_scalars"]
        if recipe.control == "zero":
            return torch.zeros(groups, 1 << n, device=values[f"n{n}_weight0"].device)
        angles = values[f"n{n}_angles"]
        if recipe.control == "classical":
            weights = nn.functional.pad(angles, (0, -angles.shape[-1] % n)).unflatten(-1, (-1, n))
            f = torch.cos(weights @ bits(n, angles.device).to(angles.dtype).mT).mean(-2)
            return f - f.mean(-1, keepdim=True)
        how: dict[str, Any] = {"shots": recipe.shots, "noise": recipe.noise, "backend": recipe.backend}
        return features(probabilities(self.circuit(n), angles, **how), recipe.features)

    def kinds_of_parameters(self) -> Iterator[tuple[Tensor, str]]:
        """Its parameters, and how they learn, a key of ``RATES``."""
        for parameter in self.parameters():
            yield parameter, "generators"

    def values(self) -> dict[str, Tensor]:
        """Its parameters and buffers by name, of which it generates."""
        return {**dict(self.named_parameters()), **dict(self.named_buffers())}

    def forward(self, values: Mapping[str, Tensor] | None = None) -> list[Tensor]:
        """The parameters of every group, (m,), with mean 0; of other ``values`` than its own, if they are given."""
        values = self.values() if values is None else values
        made: dict[int, Tensor] = {}
        activation = ACTIVATIONS.get(self.recipe.activation or "")
        for n, groups in self.families.items():
            weights = [values[f"n{n}_weight{k}"] for k in range(len(self.recipe.widths) + 1)]
            f = self._features(n, len(groups), values)
            chunks = max(self.recipe.chunks(self.sizes[group]) for group in groups)
            states = bits(n, f.device).to(f.dtype).expand(len(groups), -1, -1)
            x = torch.cat([states[:, :chunks], f[:, :chunks].unsqueeze(-1)], -1)
            for k, weight in enumerate(weights):
                x = torch.baddbmm(values[f"n{n}_bias{k}"].unsqueeze(1), x, weight)
                x = activation(x) if activation is not None and k < len(weights) - 1 else x
            for row, group in zip(x.flatten(1), groups, strict=True):
                vector = row[: self.sizes[group]]
                made[group] = vector - vector.mean()
        return [made[group] for group in range(len(self.sizes))]
