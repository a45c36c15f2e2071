"""A trained adapter as noisy hardware with finite shots would make it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qcircuit_peft.backends import estimated_columns
from qcircuit_peft.backends.noise import Noise
from qcircuit_peft.tuner.layer import QCircuitLayer


@dataclass(frozen=True)
class Perturbed:
    """A weight update as it was measured, (out, in), and its Frobenius distance to the exact one, of norm ``norm``."""

    delta: Tensor
    distance: float
    norm: float


@torch.no_grad()
def evaluate_under_noise(
    model: nn.Module,
    noise: Noise | None = None,
    *,
    shots: int | None = None,
    generator: torch.Generator | None = None,
    adapter: str | None = None,
) -> dict[str, Perturbed]:
    """The weight update of every adapted module, from columns that Hadamard tests find, by the module's name.

    The columns of U and V are those of ``estimated_columns``: ``shots`` for each column (None: without end), with
    ``noise``. lambda is exact, and the model is left as it is. ``adapter`` picks an adapter; left out, those that are
    active. Raises ValueError for a module whose width is not a power of two, or shots below 1.

    >>> from peft import get_peft_model
    >>> from qcircuit_peft import QCircuitConfig
    >>> net = torch.nn.Sequential(torch.nn.Linear(16, 8))
    >>> model = get_peft_model(net, QCircuitConfig(r=2, target_modules=["0"]))
    >>> evaluate_under_noise(model, shots=100)["base_model.model.0"].delta.shape
    torch.Size([8, 16])
    """
    found: dict[str, Perturbed] = {}
    settings: dict[str, Any] = {"noise": noise, "shots": shots, "generator": generator}
    for name, module in model.named_modules():
        if not isinstance(module, QCircuitLayer):
            continue
        for chosen in module.active_adapters if adapter is None else [adapter]:
            if chosen not in module.factors:
                continue
            svd, (u, v, lam) = module.factors[chosen], module.circuit_parameters(chosen)
            measured, exact = [], []
            for frame, angles in ((svd.u, u.float()), (svd.v, v.float())):
                parts = list(frame.circuits())
                if any(part for part, _, _ in parts) or any(d != 2 for _, circuit, _ in parts for d in circuit.dims):
                    raise ValueError(
                        f"{name}: columns are measured on qubits, whose number makes the width a power of two, "
                        f"but a width is {frame.n}"
                    )
                exact.append(frame.columns(angles))
                measured.append(estimated_columns(parts[0][1], angles, frame.k, **settings)[0])
            delta, true = (svd.delta(svd.weighted(left, lam.float()), right) for left, right in (measured, exact))
            found[name] = Perturbed(delta, float((delta - true).norm()), float(true.norm()))
    return found
