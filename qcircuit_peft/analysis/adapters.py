"""Which adapters of a trained model are measured."""

from torch import nn

from qcircuit_peft.text import shown
from qcircuit_peft.tuner.layer import QCircuitLinear, adapted_layers, adapters


def measured_adapters(model: nn.Module, adapter: str | None) -> list[tuple[str, QCircuitLinear, str]]:
    """Name, module and adapter of every layer with this adapter, or, left out, with an active one.

    Raises ValueError if the model has no circuit adapter, or none of this name.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"what is measured is a model with a circuit adapter, got {shown(model)}")
    known = sorted({key for _, module in adapted_layers(model) for key in module.factors})
    if not known or (adapter is not None and adapter not in known):
        wanted = "a circuit adapter" if adapter is None else f"the circuit adapter {shown(adapter)}"
        raise ValueError(f"what is measured is a model with {wanted}, got one with {', '.join(known) or 'none'}")
    return list(adapters(model, adapter))
