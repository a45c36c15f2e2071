"""Training with the noise and the shots of hardware in the forward pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from qcircuit_peft import backends
from qcircuit_peft.backends.estimation import by_shifts, estimating
from qcircuit_peft.backends.noise import Noise
from qcircuit_peft.backends.noise import interference as noisy_interference
from qcircuit_peft.backends.shots import check_shots
from qcircuit_peft.checks import one_of
from qcircuit_peft.circuit import Circuit
from qcircuit_peft.factorizations.parts import frames
from qcircuit_peft.text import shown
from qcircuit_peft.tuner.layer import adapted_layers, adapters

GRADIENTS = ("exact", "parameter-shift")


@contextmanager
def noise_aware(
    model: nn.Module,
    noise: Noise | None = None,
    *,
    shots: int | None = None,
    generator: torch.Generator | None = None,
    backend: Any = "native",
    gradients: str = "exact",
) -> Iterator[None]:
    """Within it, a model's circuits are what hardware would find of them: train in it, and the adapter bears noise.

    The columns of every frame that is one real circuit are those of ``estimated_columns``, with ``noise``, and with
    ``shots`` drawn anew whenever the frames are generated. ``gradients="exact"`` are those of the expected columns:
    through density matrices, N^2 numbers for each column, where there is noise. "parameter-shift" are what a device
    can find: two more estimates for every angle, with as many shots; a ``backend`` that is a device wants these.
    Nothing is merged within it, no other model is run, and compiled models are not for this.

    Raises ValueError for a model without a circuit adapter, frames that are made of no circuits, or bad input; frames
    of several circuits are refused where they are made.

    >>> from peft import get_peft_model
    >>> from qcircuit_peft import QCircuitConfig
    >>> config = QCircuitConfig(r=2, target_modules=["0"], init_weights=False)
    >>> model, x = get_peft_model(torch.nn.Sequential(torch.nn.Linear(8, 8)), config), torch.randn(4, 8)
    >>> with noise_aware(model, Noise(depolarizing=0.01), shots=1000):
    ...     model(x).square().mean().backward()
    """
    one_of("gradients", gradients, GRADIENTS)
    if not isinstance(model, nn.Module):
        raise ValueError(f"noise_aware is for a model with a circuit adapter, got {shown(model)}")
    layers = [module for _, module in adapted_layers(model)]
    if not layers:
        raise ValueError("noise_aware is for a model with a circuit adapter, got one with none")
    for name, module, key in adapters(model):
        for part, frame in frames(module.factors[key]).items():
            if not any(True for _ in frame.circuits()):
                raise ValueError(f"hardware estimates columns of circuits, but {part} of {name!r} is made of none")
    if shots is not None:
        check_shots(shots, generator)
    row = backends.find_backend(backend)
    if noise is not None and not isinstance(noise, Noise):
        raise ValueError(f"noise is a Noise, got {type(noise).__name__}")
    if row.is_object and (noise is not None or shots is None or gradients == "exact"):
        raise ValueError(f"{row.called!r} is a device: it takes shots and gradients='parameter-shift', and no noise")
    if noise is not None and row.name != "native":
        raise ValueError(f"columns under noise are estimated by 'native', got backend {row.called!r}")
    settings: dict[str, Any] = {"shots": shots, "generator": generator}
    settings["backend"] = row.device if row.is_object else backend  # a device is made once, not at every estimate

    def measured(circuit: Circuit, angles: Tensor, k: int) -> Tensor:
        return backends.estimated_columns(circuit, angles, k, noise=noise, **settings)[0]

    def expected(circuit: Circuit, angles: Tensor, k: int) -> Tensor:
        if noise is None:
            mean = backends.columns(circuit, angles, k, backend=backend)
        else:
            plus, minus = noisy_interference(*backends.plain(circuit, angles), k, noise).unbind(-2)
            mean = circuit.dim**0.5 * (plus - minus).mT
        if shots is None:
            return mean
        return mean + (measured(circuit, angles.detach(), k) - mean.detach())

    with estimating(expected if gradients == "exact" else by_shifts(measured)):
        for layer in layers:
            layer.bank.clear()
        try:
            yield
        finally:
            for layer in layers:
                layer.bank.clear()
