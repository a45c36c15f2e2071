"""The circuits of an adapted model, with their angles, for who takes them elsewhere."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from qcircuit_peft.factorizations.parts import frames
from qcircuit_peft.text import shown
from qcircuit_peft.tuner.layer import adapters


def circuits(model: nn.Module, adapter: str | None = None) -> Iterator[tuple[str, Any, Tensor]]:
    """Every circuit in an adapted model: its name, the ``Circuit``, and a detached copy of its angles (radians).

    The name is the module's, then the frame's part, for "svd" "u" or "v"; where a width is reached by the cosine-sine
    recursion, one part of it such as "u1.v2" follows for each circuit. A circuit that modules share comes once for
    each. ``adapter`` picks an adapter; left out, those that are active.

    >>> import torch
    >>> from peft import get_peft_model
    >>> from qcircuit_peft import QCircuitConfig
    >>> model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(64, 32)), QCircuitConfig(r=4, target_modules=["0"]))
    >>> [(name, circuit.dim, len(angles)) for name, circuit, angles in circuits(model)]
    [('base_model.model.0.u', 32, 13), ('base_model.model.0.v', 64, 16)]
    """
    for name, module, chosen in adapters(model, adapter):
        factors, values = module.factors[chosen], module.values(chosen)
        for part, frame in frames(factors).items():
            for leaf, circuit, where in frame.circuits():
                named = ".".join(filter(None, (name, part, leaf)))
                yield named, circuit, values[part].detach()[where].clone()


def circuit_of(model: nn.Module, module: str, adapter: str | None = None) -> tuple[Any, Tensor]:
    """One circuit of an adapted model and its angles, by its name in ``circuits`` or the end of it after a dot.

    With it a trained circuit goes out: ``interop.to_qiskit(*circuit_of(model, "3.query.u"))``; ``to_pennylane``,
    ``lower`` and ``qasm.to_qasm`` take the same. Raises ValueError if no circuit has this name, or several have.

    >>> import torch
    >>> from peft import get_peft_model
    >>> from qcircuit_peft import QCircuitConfig
    >>> model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(64, 32)), QCircuitConfig(r=4, target_modules=["0"]))
    >>> circuit, angles = circuit_of(model, "0.u")
    >>> circuit.dim, angles.shape
    (32, torch.Size([13]))
    """
    found = list(circuits(model, adapter))
    named = [one for one in found if f".{one[0]}".endswith(f".{module}")] if module else []
    exact = [one for one in named if one[0] == module] or named
    if len(exact) != 1:
        known = [name for name, _, _ in exact or found]
        near = "they are" if exact else "there are"
        told = f"{', '.join(known[:8])}{', ...' if known[8:] else ''}" or "none"
        raise ValueError(f"{shown(module)} is the name of {len(exact) or 'no'} circuits of this model; {near} {told}")
    return exact[0][1:]
