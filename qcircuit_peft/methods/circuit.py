"""Our own methods: circuits, and the controls that take them apart."""

import re
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import combinations
from typing import Any

from peft import PeftConfig
from torch import nn
from transformers.pytorch_utils import Conv1D

from qcircuit_peft.ansatz import load, without_entanglers
from qcircuit_peft.factorizations.quanta import quanta
from qcircuit_peft.frames import CircuitFrame
from qcircuit_peft.methods.looking import by_activations, by_gradient
from qcircuit_peft.methods.method import MAX_SIZE, Adapter, Attach, Count, Look, Method, Shape, shapes
from qcircuit_peft.methods.rivals import by_config, per_layer, up_to_width
from qcircuit_peft.methods.updates import UpdateConfig
from qcircuit_peft.tuner import QCircuitConfig
from qcircuit_peft.tuner.plan import kind_of

ANSATZ, SCALE = "simplified_two_design", 8
INSIDE = 16  # directions of a layer, where circuits act inside them
_BASES = ("qcircuit_basis_out", "qcircuit_basis_in")  # which are saved, although the base model has them
_RATES = (5e-3, 2e-2, 5e-2)  # of lambda, and of cores inside directions that were not chosen for the task
_ANGLES = {"lambdas": 1.0, "angles": 2.5}
_SOURCE = "Koike-Akino et al. 2025, Quantum-PEFT, arXiv 2503.05431"


def linear_layers(model: nn.Module) -> list[str]:
    """The names of all linear layers inside the blocks of a model, by what tells them from others."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    inside = [name for name in names if re.search(r"\.\d+\.", f".{name}")]
    return sorted({re.split(r"\.\d+\.", f".{name}")[-1] for name in inside})


def circuits_inside(size: int | None = None, **settings: Any) -> Adapter:
    """Attaches frames that act inside ``size`` directions of each layer, or r, with a full core between them."""

    def config(model: nn.Module, targets: Sequence[str], r: int, **more: Any) -> PeftConfig:
        options = {"size": _directions(model, targets, size, r), "core": "full"}
        inside = {"factorization": "subspace", "factorization_options": options, **settings}
        return QCircuitConfig(r=r, alpha=SCALE * r, target_modules=list(targets), **{**inside, **more})

    return Adapter(config)


def _directions(model: nn.Module, targets: Sequence[str], size: int | None, r: int) -> int:
    return r if size is None else min(size, *(min(shape.out, shape.into) for shape in shapes(model, targets)))


def _inside_count(size: int, layers: int) -> Count:
    """r x r numbers a layer, and the angles of circuits on ``size`` directions for each kind of layers."""

    def numbers(model: nn.Module, targets: Sequence[str], r: int) -> int:
        found = shapes(model, targets)
        kinds = {kind_of(shape.name) for shape in found}
        return 2 * len(kinds) * _angles(_directions(model, targets, size, r), layers) + r * r * len(found)

    return numbers


def circuits(all_layers: bool = False, **settings: Any) -> Adapter:
    """Attaches circuits of rank ``size`` with ``settings`` of QCircuitConfig; further ones may be given each time."""

    def config(model: nn.Module, targets: Sequence[str], size: int, **more: Any) -> PeftConfig:
        names = linear_layers(model) if all_layers else list(targets)
        return QCircuitConfig(r=size, alpha=SCALE * size, target_modules=names, **{**settings, **more})

    return Adapter(config)


@cache
def _angles(width: int, layers: int = 1) -> int:
    return load(ANSATZ).circuit(dim=width, layers=layers).n_angles


def circuit_count(share: bool, all_layers: bool = False, layers: int = 1, core: bool = False) -> Count:
    """r numbers lambda a layer, r x r with a core, and the angles of U and V, for every layer or every kind of them."""

    def numbers(model: nn.Module, targets: Sequence[str], size: int) -> int:
        found = shapes(model, linear_layers(model) if all_layers else targets)
        having = {kind_of(shape.name) if share else shape.name: shape for shape in found}
        angles = sum(_angles(shape.out, layers) + _angles(shape.into, layers) for shape in having.values())
        return angles + (size * size if core else size) * len(found)

    return numbers


def _all_ranks(model: nn.Module, targets: Sequence[str]) -> Iterator[int]:
    return up_to_width(model, linear_layers(model))


def _even(model: nn.Module, targets: Sequence[str]) -> Iterator[int]:
    return (r for r in up_to_width(model, targets) if r % 2 == 0)


def _up_to_inside(model: nn.Module, targets: Sequence[str]) -> Iterator[int]:
    return iter(range(1, _directions(model, targets, INSIDE, 0) + 1))


def _from_two(model: nn.Module, targets: Sequence[str]) -> Iterator[int]:
    return iter(range(2, MAX_SIZE + 1))


def _quanta(targets: list[str], size: int) -> PeftConfig:
    return QCircuitConfig(
        r=1, alpha=1, factorization="quanta", factorization_options={"order": size}, target_modules=targets
    )


def _quanta_numbers(shape: Shape, order: int) -> int:
    axes = quanta(shape.out, shape.into, 1, CircuitFrame, order=order).axes
    return sum((first * second) ** 2 for first, second in combinations(axes, 2))


def _update(name: str, scale: float = 1.0) -> Attach:
    return by_config(lambda targets, size: UpdateConfig(update=name, size=size, scale=scale, target_modules=targets))


def _lotr_count(model: nn.Module, targets: Sequence[str], r: int) -> int:
    found = shapes(model, targets)
    kinds = {kind_of(shape.name): shape for shape in found}
    return sum(r * (shape.out + shape.into) for shape in kinds.values()) + r * r * len(found)


UPDATED: dict[str, Method] = {  # what neither PEFT nor another kept library has
    "mora": Method(
        "MoRA",
        "one square r x r matrix a layer, between groups of inputs, each turned by angles of its own, and of outputs",
        "Jiang et al. 2024, arXiv 2405.12130, equation 9",
        (2e-3, 5e-3, 1e-2),
        _update("mora"),
        per_layer(lambda shape, r: r * r),
        default=8,
        sizes=_even,
    ),
    "quanta": Method(
        "QuanTA",
        "gates of plain numbers on all pairs of d axes into which the width is split",
        "Chen et al. 2024, arXiv 2406.00132",
        (1e-3, 4e-3, 1e-2),
        by_config(_quanta),
        per_layer(_quanta_numbers),
        size="axes d",
        default=4,
        sizes=lambda model, targets: iter(range(2, 9)),
        rates_of={"cores": 1.0},
    ),
    "lotr": Method(
        "LoTR",
        "A G B with A and B shared by all layers of a kind, and G, r x r and zero at first, for each layer",
        "Bershatsky et al. 2024, arXiv 2402.01376",
        (2e-3, 5e-3, 2e-2),
        _update("lotr"),
        _lotr_count,
    ),
    "nola": Method(
        "NOLA",
        "LoRA (r = 8) whose A and B are mixtures of random matrices: k numbers a layer, half of them for each",
        "Koohpayegani et al. 2024, arXiv 2310.02556",
        (5e-3, 2e-2, 5e-2),
        _update("nola"),
        per_layer(lambda shape, k: k),
        size="numbers k a layer",
        default=64,
        sizes=_from_two,
    ),
    "svf": Method(
        "SVF",
        "lambda on the first r singular vectors of W, scaled by 8: the control with W's own frames, too",
        "Sun et al. 2025, arXiv 2501.06252; cut to r",
        _RATES,
        _update("svf", SCALE),
        per_layer(lambda shape, r: r),
        default=64,
        sizes=up_to_width,
    ),
    "random_frames": Method(
        "random orthogonal frames",
        "the control: lambda between the first r columns of two random orthogonal matrices, scaled by 8",
        "",
        _RATES,
        _update("random_frames", SCALE),
        per_layer(lambda shape, r: r),
        default=64,
        sizes=up_to_width,
    ),
}


def _core(whose: str, directions: str, source: str, look: Look | None = None) -> Method:
    """A full core between directions that are found once and kept."""
    return Method(
        f"core inside {whose} directions",
        f"the control: U G V with a full r x r matrix G, zero at first, and U and V kept: {directions}",
        f"the form is LoRA-XS's, arXiv 2405.17604; the directions are {source}",
        (2e-3, 5e-3, 2e-2) if look else _RATES,
        circuits_inside(layers=0, init="zeros", train_angles=False),
        per_layer(lambda shape, r: r * r),
        default=8,
        sizes=up_to_width,
        rates_of={"cores": 1.0},
        given_back=() if look else _BASES,
        look=look,
    )


def _inside(whose: str, directions: str, source: str, look: Look | None = None) -> Method:
    """A full core between circuits that act inside such directions."""
    return Method(
        f"circuits inside {whose} directions",
        f"U G V with a full core between circuits of four layers, shared by kind, that act inside the {INSIDE} leading "
        f"{directions}, which are kept, and start at the first r of them",
        f"{_SOURCE}; the directions are {source}",
        (2e-3, 5e-3, 2e-2) if look else _RATES,
        circuits_inside(INSIDE, share="kind", layers=4, init="zeros"),
        _inside_count(INSIDE, 4),
        default=8,
        sizes=_up_to_inside,
        rates_of={"cores": 1.0, "angles": 5.0},
        given_back=() if look else _BASES,
        look=look,
    )


CORES: dict[str, Method] = {  # adapters of this package, without a circuit
    "weight_core": _core(
        "the weight's",
        "the leading singular directions of the weight",
        "its too, without their singular values",
    ),
    "activation_core": _core(
        "activations'",
        "the leading directions of a layer's outputs and inputs on 20 batches of the task",
        "CorDA's, arXiv 2406.05223",
        by_activations,
    ),
    "gradient_core": _core(
        "the gradient's",
        "the leading directions of the task's gradient on 20 batches, through a head that was trained on them first "
        "and then put back",
        "LoRA-GA's, arXiv 2407.05000",
        by_gradient,
    ),
}

CIRCUITS: dict[str, Method] = {
    "frozen": Method(
        "circuits, frozen",
        "the control: circuits as drawn, only the r numbers lambda of each layer are trained",
        "",
        _RATES,
        circuits(train_angles=False),
        per_layer(lambda shape, r: r),
        default=64,
        sizes=up_to_width,
        rates_of={"lambdas": 1.0},
    ),
    "no_entanglers": Method(
        "circuits without entanglers",
        "the control: circuits shared by kind without their gates on two wires, so products of rotations",
        "",
        _RATES,
        circuits(share="kind", ansatz=without_entanglers(load(ANSATZ))),
        circuit_count(share=True),
        default=64,
        sizes=up_to_width,
        rates_of=_ANGLES,
    ),
    "circuit_own": Method(
        "circuits",
        "U diag(lambda) V with circuits U and V of its own for every layer",
        _SOURCE,
        _RATES,
        circuits(),
        circuit_count(share=False),
        default=16,
        sizes=up_to_width,
        rates_of=_ANGLES,
    ),
    "circuit_all": Method(
        "circuits on all linear layers",
        "U diag(lambda) V on all linear layers of the blocks, whatever the targets; circuits shared by kind",
        _SOURCE,
        _RATES,
        circuits(all_layers=True, share="kind"),
        circuit_count(share=True, all_layers=True),
        default=16,
        sizes=_all_ranks,
        rates_of=_ANGLES,
    ),
    "circuit_core": Method(
        "circuits with a core",
        "U G V with a full r x r matrix G a layer, zero at first, between circuits of two layers shared by kind",
        "Koike-Akino et al. 2025, Quantum-PEFT, arXiv 2503.05431; the form is LoTR's, arXiv 2402.01376",
        (2e-3, 5e-3, 2e-2),
        circuits(share="kind", factorization="shared_core", layers=2),
        circuit_count(share=True, layers=2, core=True),
        default=8,
        sizes=up_to_width,
        rates_of={"cores": 1.0, "angles": 10.0},
    ),
    "circuit_svd": _inside("the weight's", "singular directions of the weight", "LoRA-XS's, arXiv 2405.17604"),
    "circuit_inside": _inside(
        "the gradient's", "directions of the task's gradient", "LoRA-GA's, arXiv 2407.05000", by_gradient
    ),
    "circuit_deep": Method(
        "circuits of four layers",
        "U diag(lambda) V with circuits of four layers for all layers of a kind; lambda is a layer's own",
        _SOURCE,
        _RATES,
        circuits(share="kind", layers=4),
        circuit_count(share=True, layers=4),
        default=48,
        sizes=up_to_width,
        rates_of=_ANGLES,
    ),
    "circuit": Method(
        "circuits, shared by kind",
        "U diag(lambda) V with circuits U and V for all layers of a kind, such as all queries; lambda is a layer's own",
        _SOURCE,
        _RATES,
        circuits(share="kind"),
        circuit_count(share=True),
        default=64,
        sizes=up_to_width,
        rates_of=_ANGLES,
    ),
}
