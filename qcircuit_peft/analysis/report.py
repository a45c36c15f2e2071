"""What training did to the circuits of an adapted model: their entanglement by layer and cut, and how far they went."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import repeat
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from qcircuit_peft.analysis.adapters import measured_adapters
from qcircuit_peft.analysis.entanglement import entropy_of, entropy_profile
from qcircuit_peft.analysis.operators import matrix_dims, operator_schmidt
from qcircuit_peft.ansatz import wire_dims
from qcircuit_peft.factorizations.fused import Fused
from qcircuit_peft.factorizations.parts import Acting, Factorization, frames, initial, make, sizes
from qcircuit_peft.frames.kind import Spec, whole_circuit
from qcircuit_peft.tuner.layer import QCircuitLinear, adapted_layers, generators

_PREFIX = "base_model.model."


@dataclass(frozen=True)
class LayerEntanglement:
    """One cut of one part of an adapted layer, "initial" or "now" (``stage``).

    ``part`` is a frame of the factorization ("u" and "v" for "svd"), or "delta", the weight update; ``cut`` is the
    number of wires before it, of those with dimensions ``dims``, the digits of the frame's row index (pairs of row and
    column dimensions for the update). ``column_entropy`` is the mean entanglement entropy of the frame's k columns as
    states, ``operator_entropy`` that of the whole N x N matrix the frame is cut from, or of the update, as an operator,
    both in bits; ``operator_rank`` the operator-Schmidt rank, a bond dimension of the tensor train. ``distance`` from
    the initial matrix is sqrt(1 - |Tr U0^T U| / N), 0 to 1, blind to a sign.

    None stands for what is not defined (the entropy of a zero update), not known, or not asked for. A frame with k < N
    that is not made of circuits, or cannot act, has no whole matrix, so column entropies only. A prime width is one
    wire, has no cut and so no row; a factorization of plain numbers ("quanta") has rows of its update only.
    """

    layer: str
    adapter: str
    part: str
    stage: str
    cut: int
    dims: tuple[Any, ...]
    column_entropy: float | None = None
    operator_entropy: float | None = None
    operator_rank: int | None = None
    distance: float | None = None


def entanglement_report(
    model: nn.Module, adapter: str | None = None, before: Mapping[str, Tensor] | None = None, operators: bool = True
) -> list[LayerEntanglement]:
    """Rows for every adapted layer, part, stage and cut of a PEFT model with circuit adapters; it is not changed.

    ``adapter``: left out, those that are active. The initial circuit comes from ``before``, a copy of
    ``get_peft_model_state_dict(model)`` made before training, or from the configuration's ``seed``; with neither,
    there are no "initial" rows and no distances. ``operators=False`` leaves out what needs whole N x N matrices, whose
    singular values take about N^3 steps a cut. Computed in float64 on copies. Raises ValueError if the model has no
    such adapter, or ``before`` does not belong to it.

    >>> from peft import get_peft_model
    >>> from qcircuit_peft import QCircuitConfig
    >>> config = QCircuitConfig(r=4, target_modules=["0"], seed=0)
    >>> rows = entanglement_report(get_peft_model(torch.nn.Sequential(torch.nn.Linear(16, 8)), config))
    >>> [(row.part, row.stage, row.cut) for row in rows][:4]
    [('u', 'initial', 1), ('u', 'initial', 2), ('u', 'now', 1), ('u', 'now', 2)]
    >>> max(row.distance for row in rows if row.distance is not None) < 1e-3
    True
    """
    wanted = measured_adapters(model, adapter)
    paths = {module: name.removeprefix(_PREFIX) for name, module in adapted_layers(model)}
    rows = []
    with torch.no_grad():
        for _, module, chosen in wanted:
            start, name = _initial(model, module, paths, chosen, before), module.named(paths[module])
            factors = module.factors[chosen]
            values = {part: p.detach().double() for part, p in module.values(chosen).items()}
            if isinstance(factors, Fused):
                starts = factors.each(start) if start is not None else repeat(None)
                for index, (now, then) in enumerate(zip(factors.each(values), starts, strict=False)):
                    rows += _layer_rows(module, factors.factors, now, f"{name}.{index}", chosen, then, operators)
            else:
                rows += _layer_rows(module, factors, values, name, chosen, start, operators)
    return rows


def _initial(
    model: Any, module: QCircuitLinear, paths: Mapping[Any, str], adapter: str, before: Mapping[str, Tensor] | None
) -> dict[str, Tensor] | None:
    """The parameters of the frames at the start, by part; None if nobody knows them."""
    config, found = model.peft_config[adapter], {}
    for part, frame in frames(module.factors[adapter]).items():
        holder = module.lenders[adapter].get(part, module)  # of a part that layers share
        path, factors = paths[holder], holder.factors[adapter]
        if before is None:
            drawn = generators(config.seed, holder.named(path), sizes(factors))
            if drawn is None:
                return None
            found[part] = initial(factors, config.init, drawn)[part]
            continue
        key = f"{_PREFIX}{path}.qcircuit_{part}"
        if key not in before or before[key].shape != (frame.n_parameters,):
            got = tuple(before[key].shape) if key in before else "none"
            raise ValueError(
                f"before has the {frame.n_parameters} parameters {key!r}, got {got}; copy PEFT's state dict"
            )
        found[part] = before[key]
    return found


def _layer_rows(
    module: Any,
    factors: Factorization,
    values: dict[str, Tensor],
    layer: str,
    adapter: str,
    before: dict[str, Tensor] | None,
    operators: bool,
) -> Iterator[LayerEntanglement]:
    for part, frame in frames(factors).items():
        now = values[part]
        own = whole_circuit(frame)
        dims = own.dims if own else wire_dims(frame.n) if frame.n > 1 else ()
        if len(dims) < 2 or (isinstance(factors.parts[part], Acting) and not operators):
            continue
        stages = {"now": now} if before is None else {"initial": before[part].detach().to(now), "now": now}
        matrix = _matrix(frame) if operators else None
        whole = {} if matrix is None else {stage: _of_circuit(matrix(t), dims) for stage, t in stages.items()}
        for stage, angles in stages.items():
            entropies = entropy_profile(_of_circuit(frame.columns(angles), dims).mT, dims).mean(0).tolist()
            found = _operator_values(whole[stage], (dims, dims)) if whole else [(None, None)] * len(entropies)
            far = _distance(whole["initial"], whole[stage]) if "initial" in whole else None
            for cut, (entropy, (operator, rank)) in enumerate(zip(entropies, found, strict=True), 1):
                yield LayerEntanglement(layer, adapter, part, stage, cut, dims, entropy, operator, rank, far)
    if operators:
        delta = factors.delta(make(factors, values), _weight(module) if factors.uses_base else None)
        pair = matrix_dims((len(delta), len(delta.mT)))
        for cut, (operator, rank) in enumerate(_operator_values(delta, pair), 1):
            dims = tuple(zip(*pair, strict=True))
            yield LayerEntanglement(layer, adapter, "delta", "now", cut, dims, None, operator, rank, None)


def _weight(module: Any) -> Tensor:
    """The adapted weight as it was before any merge, (out, in)."""
    return module.map.matrix(module._original()).double()


def _of_circuit(columns: Tensor, dims: tuple[int, ...]) -> Tensor:
    """A frame's columns as its circuit's on these wires: of twice the length, they are a complex one's real form."""
    n = prod(dims)
    if len(columns) == n:
        return columns
    return torch.complex(columns[:n, :n], columns[n:, :n])


def _matrix(frame: Spec) -> Callable[[Tensor], Tensor] | None:
    """What makes the whole matrix of a frame from its parameters, if there is one: circuits are whole matrices."""
    if frame.k == frame.n:
        return frame.columns
    act = frame.apply if any(True for _ in frame.circuits()) else None
    return None if act is None else lambda t: act(t, torch.eye(frame.n, dtype=t.dtype, device=t.device))


def _operator_values(
    matrix: Tensor, dims: tuple[tuple[int, ...], tuple[int, ...]]
) -> list[tuple[float | None, int | None]]:
    """Entropy and rank of every cut; a zero matrix has no entropy and rank 0."""
    cuts = range(1, len(dims[0]))
    if not matrix.any():
        return [(None, 0) for _ in cuts]
    limit = max(matrix.shape) * torch.finfo(matrix.dtype).eps
    spectra = [operator_schmidt(matrix, range(cut), dims) for cut in cuts]
    return [(float(entropy_of(s.square())), int((s > limit * s[0]).sum())) for s in spectra]


def _distance(a: Tensor, b: Tensor) -> float:
    return float((1 - (a.conj() * b).sum().abs() / len(a)).clamp_min(0).sqrt())
