"""A trained adapter as noisy hardware with finite shots would make it, or as a device does."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qcircuit_peft.analysis.adapters import measured_adapters
from qcircuit_peft.backends import Backend, estimated_columns, find_backend, measured_columns
from qcircuit_peft.backends.noise import Noise
from qcircuit_peft.circuit import Circuit
from qcircuit_peft.factorizations.parts import Built, make
from qcircuit_peft.frames.kind import made_of, whole_circuit
from qcircuit_peft.frames.stacked import Stacked
from qcircuit_peft.interop import lower, places
from qcircuit_peft.tuner.layer import QCircuitLinear


@dataclass(frozen=True)
class Perturbed:
    """A weight update as it was measured, (out, in), and its Frobenius distance to the exact one, of norm ``norm``.

    Of fused experts it is the stack of all updates.
    """

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
    backend: Any = "native",
    mitigation: Sequence[str] = (),
) -> dict[str, Perturbed]:
    """The weight update of every adapted module, from columns that Hadamard tests find, by the module's name.

    The columns of its frames are those of ``estimated_columns``: ``shots`` for each column (None: without end), with
    ``noise``. Plain numbers, such as lambda, are exact, and the model is left as it is. ``adapter`` picks an adapter;
    left out, the one that is active. float64 parameters are measured in float64, all others in float32.

    With a ``backend`` that is a device (``backends.find_backend``: ``FakeManilaV2()``, "qiskit:fake_manila", a device
    of PennyLane) the circuits of the tests run on it, transpiled to its gates and coupling, with its noise; wires of
    several levels as qubits. It takes shots and no ``noise``, and ``mitigation``, of "readout" and "zne".

    Raises ValueError if the model has no such adapter or several of a module are active, for a frame that is not the
    columns of one circuit, a factorization that builds no frames, a noise that is not a ``Noise``, shots below 1, or
    what a device cannot run.

    >>> from peft import get_peft_model
    >>> from qcircuit_peft import QCircuitConfig
    >>> net = torch.nn.Sequential(torch.nn.Linear(16, 8))
    >>> model = get_peft_model(net, QCircuitConfig(r=2, target_modules=["0"]))
    >>> evaluate_under_noise(model, shots=100)["base_model.model.0"].delta.shape
    torch.Size([8, 16])
    """
    chosen = measured_adapters(model, adapter)
    active: dict[str, list[str]] = {}
    for name, _, key in chosen:
        active.setdefault(name, []).append(key)
    for name, keys in active.items():
        if len(keys) > 1:
            raise ValueError(f"{name}: one adapter is measured, but {', '.join(keys)} are active; choose with adapter=")
    row = find_backend(backend)
    if row.is_object and noise is not None:
        raise ValueError(f"backend {row.called!r} has the noise of its device, and takes no other")
    settings: dict[str, Any] = {"noise": noise, "shots": shots, "generator": generator, "mitigation": mitigation}
    settings["backend"] = row if row.is_object else backend
    return {name: _perturbed(name, module, key, settings) for name, module, key in chosen}


def _perturbed(name: str, module: QCircuitLinear, adapter: str, settings: dict[str, Any]) -> Perturbed:
    factors = module.factors[adapter]
    values = {part: p.to(torch.promote_types(p.dtype, torch.float32)) for part, p in module.values(adapter).items()}
    built = {part: kind.frame for part, kind in factors.parts.items() if isinstance(kind, Built)}
    if not built:
        raise ValueError(
            f"{name}: what is measured are columns of circuits, but its factorization builds none; adapt with another, "
            f"such as 'svd'"
        )
    measured = {}
    for part, whole in built.items():
        frame = whole.frame if isinstance(whole, Stacked) else whole
        circuit = whole_circuit(frame)
        if circuit is None:
            raise ValueError(
                f"{name}: what is measured are the columns of one circuit, but {part!r} of width {frame.n} is made of "
                f"{made_of(frame)}; adapt with frame='circuit' and width='qudit'"
            )
        if circuit.dim != frame.n:
            raise ValueError(
                f"{name}: signs are estimated for real circuits only, but {part!r} is the real form of a complex one; "
                "adapt with a real circuit"
            )
        on = settings["backend"]
        estimate = _on_device if isinstance(on, Backend) else estimated_columns
        each = values[part].unflatten(0, (whole.count, -1)) if isinstance(whole, Stacked) else values[part][None]
        found = [estimate(circuit, angles, frame.k, **settings)[0] for angles in each]
        measured[part] = torch.stack(found) if isinstance(whole, Stacked) else found[0]
    delta, true = factors.delta({**values, **measured}), factors.delta(make(factors, values))
    return Perturbed(delta, float((delta - true).norm()), float(true.norm()))


def _on_device(
    circuit: Circuit,
    angles: Tensor,
    k: int,
    noise: None,
    shots: int | None,
    generator: torch.Generator | None,
    backend: Backend,
    mitigation: Sequence[str],
) -> tuple[Tensor, Tensor]:
    """The first columns as a device measures them; of wires with several levels, those rows that are used."""
    if set(circuit.dims) == {2}:
        return measured_columns(circuit, angles, range(k), shots, generator, backend, mitigation)
    used, none = places(circuit.dims), angles.new_zeros(0)
    columns = used[:k].tolist()
    found = measured_columns(lower(circuit, angles), none, columns, shots, generator, backend, mitigation)
    return found[0][used], found[1][used]
