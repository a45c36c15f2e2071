"""Random adapter configurations, drawn by hypothesis from the library's own tables, and a small model to adapt."""

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import torch
from hypothesis import strategies as st
from peft import PeftConfig
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from qcircuit_peft import Ansatz, BottleneckConfig, Circuit, Op, QPAConfig, Step, load
from qcircuit_peft.ansatz import WIRINGS, names
from qcircuit_peft.factorizations import FACTORIZATIONS
from qcircuit_peft.frames import FRAMES, INITS
from qcircuit_peft.gates import GATES
from qcircuit_peft.generator.bottleneck import ACTIVATIONS as BOTTLENECK_ACTIVATIONS
from qcircuit_peft.generator.recipe import ACTIVATIONS, CONTROLS, FEATURES, SCOPES
from qcircuit_peft.generator.recipe import INITS as RECIPE_INITS
from qcircuit_peft.methods import METHODS, Adapter

Draw = Callable[[st.SearchStrategy[Any]], Any]
WIDTH, INSIDE = 24, 16  # 24 = 3 * 8 has a wire of three levels


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.v = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)
        self.up, self.down, self.norm = nn.Linear(WIDTH, INSIDE), Conv1D(WIDTH, INSIDE), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(self.norm(self.q(x) * torch.tanh(self.v(x))))))


class Net(nn.Module):
    """Two blocks of linear layers, one of them transformers' Conv1D, and a head of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Module()
        self.body.layers = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 5))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.body.layers:
            x = block(x)
        return self.head(x)


def net() -> Net:
    torch.manual_seed(1)
    return Net().eval()


TARGETS = ("q", "v", "up", "down")
REAL = [name for name in names() if all(GATES[gate].real for gate in load(name).gates)]
TWO_WIRES = [name for name in WIRINGS if name != "each"]


@st.composite
def ansatzes(draw: Draw) -> Ansatz | str | Circuit:
    """A family of ``circuits/``, one of random steps, or a circuit for layers of one width."""
    kind = draw(st.sampled_from(["named", "random", "circuit"]))
    if kind == "named":
        return draw(st.sampled_from([*3 * REAL, *names()]))
    gates = [name for name, gate in GATES.items() if gate.real]
    if kind == "circuit":
        ops = [Op("RY", (0,))]
        for name in draw(st.lists(st.sampled_from([name for name in gates if GATES[name].wires <= 2]), max_size=5)):
            ops.append(Op(name, tuple(draw(st.permutations([1, 2, 3]))[: GATES[name].wires])))
        return Circuit((3, 2, 2, 2), ops)
    steps = []
    for name in draw(st.lists(st.sampled_from(gates), min_size=1, max_size=3)):
        steps.append(Step(name, "each" if GATES[name].wires == 1 else draw(st.sampled_from(TWO_WIRES))))
    return Ansatz("drawn", first=[Step("RY", "each")], layer=steps)


# How the options of frames and factorizations are drawn, by their names.
OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "intrinsic_rank": st.integers(1, 3),
    "order": st.integers(2, 20),
    "orders": st.sampled_from([1, 2, 3, [1, 2], [3, 2]]),
    "node": st.sampled_from(["signs", "real"]),
    "splits": st.sampled_from([{}, {"24": 16}]),
    "axes": st.sampled_from([{"24": [4, 6], "16": [4, 4]}, {"16": [2, 8]}]),
    "seed": st.integers(0, 9),
    "side": st.sampled_from(["out", "in"]),
    "size": st.sampled_from([4, 6, 8]),
    "core": st.sampled_from(["diagonal", "full"]),
    "start": st.sampled_from(["svd", "random"]),
}
OF_CONFIG = ("ansatz", "layers", "width", "backend")  # options that are fields of the configuration


def _some(draw: Draw, table: Any, names: Any) -> dict[str, Any]:
    chosen = draw(st.sets(st.sampled_from(sorted(names)))) if names else ()
    return {name: draw(table[name]) for name in sorted(chosen)}


def _maybe(draw: Draw, strategy: st.SearchStrategy[Any]) -> Any:
    """Mostly None."""
    return draw(strategy) if draw(st.integers(0, 2)) == 0 else None


@st.composite
def circuits(draw: Draw, names: Sequence[str] = TARGETS, several: bool = False, **fixed: Any) -> dict[str, Any]:
    """Fields of a QCircuitConfig for modules of these names, in blocks 0 and 1; of one of several adapters."""
    given: dict[str, Any] = {
        "frame": draw(st.sampled_from([*["circuit"] * 4, *FRAMES])),
        "factorization": draw(st.sampled_from([*["svd"] * 4, *FACTORIZATIONS])),
    } | fixed
    frame, factorization = FRAMES[given["frame"]], FACTORIZATIONS[given["factorization"]]
    given |= {
        "layers": draw(st.integers(0, 3)),
        "r": draw(st.integers(1, 6)),
        "alpha": draw(st.sampled_from([8, 1.5, 16.0, -3])),
        "dropout": draw(st.sampled_from([0.0, 0.1])),
        "width": draw(st.sampled_from(["auto", "auto", "qudit", "shannon"])),
        "init": draw(st.sampled_from(INITS)),
        "seed": draw(st.none() | st.integers(0, 3)),
        "share": draw(st.sampled_from([None, None, "kind", "shape"])),
        "train_angles": draw(st.sampled_from([True, True, True, False])),
        "bias": "none" if several else draw(st.sampled_from(["none", "none", "all", "qcircuit_only"])),
        "modules_to_save": _maybe(draw, st.sampled_from([["head"], ["head", "norm"]])) if names is TARGETS else None,
        "frame_options": _some(draw, OPTIONS, set(frame.options) - set(OF_CONFIG)),
        "factorization_options": _some(draw, OPTIONS, factorization.options),
    }
    if "ansatz" not in given:
        given["ansatz"] = draw(ansatzes())
    targets = draw(st.sets(st.sampled_from(names), min_size=1))
    given["target_modules"] = draw(st.sampled_from([sorted(targets), rf".*\.({'|'.join(sorted(targets))})"]))
    optional = {
        "exclude_modules": st.sampled_from([["layers.1.q"], rf".*\.0\..*{names[1]}"]),
        "rank_pattern": st.dictionaries(st.sampled_from([r".*\.0\..*", names[1], names[-1]]), st.integers(1, 5)),
        "alpha_pattern": st.dictionaries(st.sampled_from([r".*\.0\..*", names[1]]), st.sampled_from([4, 2.5])),
        "intrinsic_rank_pattern": st.dictionaries(
            st.sampled_from([r".*\.0\..*", names[0]]), st.integers(1, 2), min_size=1
        ),
        "quantization": quantizations(),
        "layers_to_transform": st.sampled_from([0, [1], [0, 1]]),
    }
    for name, strategy in optional.items():
        if (value := _maybe(draw, strategy)) is not None:
            given[name] = value
    if "intrinsic_rank" not in frame.options:
        given.pop("intrinsic_rank_pattern", None)
    if isinstance(given["target_modules"], str):
        given.pop("layers_to_transform", None)
    return given


@st.composite
def quantizations(draw: Draw) -> dict[str, Any]:
    given = {"bits": draw(st.integers(0, 8)), "group": draw(st.sampled_from([1, 5, 128]))}
    given |= {name: draw(st.booleans()) for name in ("adaptive", "packed")}
    given["parts"] = draw(st.sampled_from([{}, {}, {"lambda": 4}, {"u": None}]))
    return given


@st.composite
def bottlenecks(draw: Draw) -> BottleneckConfig:
    return BottleneckConfig(
        r=draw(st.integers(1, 5)),
        activation=draw(st.sampled_from(sorted(BOTTLENECK_ACTIVATIONS))),
        target_modules=draw(st.sampled_from([["down"], ["q", "v"], r".*\.up"])),
        exclude_modules=_maybe(draw, st.just(["layers.0.q"])),
        modules_to_save=_maybe(draw, st.just(["head"])),
    )


# Methods that PEFT attaches by a configuration, which QPA may generate.
BY_CONFIG = {name: row for name, row in METHODS.items() if isinstance(row.attach, Adapter)}


def of_method(name: str, **more: Any) -> PeftConfig:
    """The configuration by which a method of the table adapts the small model, at one of its least sizes."""
    row, model = BY_CONFIG[name], net()
    sizes = list(islice(row.sizes(model, ["q", "v"]), 4))
    size = min(row.default, sizes[-1]) if sizes else row.default
    return row.attach.config(model, ["q", "v"], size, **more)  # type: ignore[attr-defined]


@st.composite
def generators(draw: Draw, base: Callable[..., PeftConfig]) -> QPAConfig:
    return QPAConfig(
        base=base(**({"modules_to_save": ["head"]} if draw(st.booleans()) else {})),
        scope=draw(st.sampled_from(SCOPES)),
        chunk_size=draw(st.integers(8, 64)),
        layers=draw(st.integers(1, 2)),
        ansatz=draw(st.sampled_from(names())),
        features=draw(st.sampled_from(sorted(FEATURES))),
        widths=draw(st.lists(st.integers(1, 9), max_size=2)),
        activation=draw(st.none() | st.sampled_from(sorted(ACTIVATIONS))),
        control=draw(st.sampled_from([None, None, None, *CONTROLS])),
        init=draw(st.sampled_from(RECIPE_INITS)),
        seed=draw(st.integers(0, 9)),
        shots=_maybe(draw, st.just(100)),
        noise=_maybe(draw, st.just({"depolarizing": 0.01})),
    )
