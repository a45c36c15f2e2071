"""A frame and a factorization with exactly the members of their contracts work wherever the library's own do."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from qcircuit_peft import AdaptiveRank, Allocator, Circuit, QCircuitConfig, circuits, parameter_count
from qcircuit_peft.analysis import entanglement_report, evaluate_under_noise
from qcircuit_peft.factorizations import FACTORIZATIONS
from qcircuit_peft.factorizations.parts import Acting, Built, Factorization, Kind, Part, Vector, frames, sizes
from qcircuit_peft.frames import FRAMES
from qcircuit_peft.frames import Kind as FrameKind
from qcircuit_peft.frames.kind import Spec

PLAIN = ("svd", "shared_core", "tensor_train", "rotation")


class Turns:
    """Plane rotations of neighbouring rows, one after another: exactly the members of ``Spec``, and no dataclass."""

    def __init__(self, n: int, k: int) -> None:
        self.n, self.k = n, k

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Turns) and (self.n, self.k) == (other.n, other.k)

    def __hash__(self) -> int:
        return hash((self.n, self.k))

    n_parameters = property(lambda self: self.n - 1)
    groups = property(lambda self: (slice(0, self.n - 1),))
    family = property(lambda self: ("turns", self.n))

    def initial(self, init: str = "uniform", generator: Any = None) -> Tensor:
        return torch.zeros(self.n - 1) if init == "zeros" else torch.rand(self.n - 1, generator=generator)

    def columns(self, parameters: Tensor, /) -> Tensor:
        return self.apply(parameters, torch.eye(self.n, self.k, dtype=parameters.dtype))

    def apply(self, parameters: Tensor, x: Tensor) -> Tensor:
        rows = list(x.expand(*parameters.shape[:-1], *x.shape[-2:]).unbind(-2))
        for i in range(self.n - 1):
            c, s = torch.cos(parameters[..., i, None]), torch.sin(parameters[..., i, None])
            rows[i], rows[i + 1] = c * rows[i] - s * rows[i + 1], s * rows[i] + c * rows[i + 1]
        return torch.stack(rows, -2)

    def circuits(self) -> Iterator[tuple[str, Circuit, slice]]:
        return iter(())

    def flaw(self, parameters: Tensor, /) -> str | None:
        return None


@dataclass(frozen=True)
class Scaled:
    """One of each part: scaling * U diag(numbers) times the first columns of an acting frame; never said to be LoRA."""

    n_out: int
    n_in: int
    frame: Spec
    turn: Spec
    scaling: float = 1.0
    parts: dict[str, Part] = field(init=False, repr=False, compare=False)
    uses_base = False
    rank = None

    def __post_init__(self) -> None:
        parts = {"mine": Built(self.frame), "turned": Acting(self.turn), "numbers": Vector(self.frame.k)}
        object.__setattr__(self, "parts", parts)

    def forward(self, x: Tensor, made: Any, base: Any = None) -> Tensor:
        return x @ self.delta(made).mT

    def delta(self, made: Any, weight: Tensor | None = None) -> Tensor:
        assert self.turn.apply is not None
        right = self.turn.apply(made["turned"], torch.eye(self.n_in, self.frame.k, dtype=made["mine"].dtype))
        return made["mine"] * (made["numbers"] * self.scaling) @ right.mT

    def lora(self, made: Any) -> tuple[Tensor, Tensor]:
        raise ValueError("scaled: the update has full rank")


def scaled(n_out: int, n_in: int, r: int, frame: Any, scaling: float = 1.0) -> Factorization:
    return Scaled(n_out, n_in, frame(n_out, r), frame(n_in, n_in), scaling)


def members(protocol: type) -> set[str]:
    return {name for name in {*vars(protocol), *protocol.__annotations__} if not name.startswith("_")}


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FRAMES, "turns", FrameKind(Turns, "plane rotations of neighbouring rows"))
    monkeypatch.setitem(FACTORIZATIONS, "scaled", Kind(scaled, "two frames", update="U diag(l) V", count="f + f + r"))


def base() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))


def test_they_have_exactly_the_members_of_their_contracts() -> None:
    assert {name for name in dir(Turns(4, 2)) if not name.startswith("_")} == members(Spec)
    own = {name for name in dir(scaled(4, 4, 2, Turns)) if not name.startswith("_")}
    assert own == members(Factorization) | {"frame", "turn"}


@pytest.mark.parametrize("share", [None, "kind", "shape"])
@pytest.mark.parametrize(("frame", "name"), [*(("turns", name) for name in (*PLAIN, "scaled")), ("circuit", "scaled")])
def test_trained_saved_loaded_merged_measured(frame: str, name: str, share: str | None, tmp_path: Path) -> None:
    config = QCircuitConfig(
        r=2, frame=frame, factorization=name, share=share, seed=1, target_modules=["0", "2"], alpha=4
    )
    x = torch.randn(5, 8)
    net = get_peft_model(base(), config)
    assert torch.equal(net(x), base()(x))
    trained = [p for p in net.parameters() if p.requires_grad]
    assert parameter_count(config, base()) == sum(p.numel() for p in trained)
    optimizer = torch.optim.Adam(trained, lr=0.1)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = net(x).square().sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    found = net.eval()(x)
    net.save_pretrained(tmp_path)
    assert torch.equal(PeftModel.from_pretrained(base(), tmp_path).eval()(x), found)
    layer = net.base_model.model[0]
    factors = layer.factors["default"]
    assert set(frames(factors)) | {"lambda", "core", "numbers"} >= set(sizes(factors))
    assert len(list(circuits(net))) == (0 if frame == "turns" else 2 * len(frames(factors)))
    rows = entanglement_report(net)
    assert {row.part for row in rows} == {"delta", *frames(factors)}
    if frame == "turns":
        with pytest.raises(ValueError, match=r"columns of (one circuit|circuits)"):
            evaluate_under_noise(net)
    else:
        assert all(found.distance <= 1e-4 * found.norm for found in evaluate_under_noise(net).values())
    allocator = Allocator(net.train(), AdaptiveRank(sum(p.numel() for p in trained) - 1, 0.0, 0.5, 1), 2)
    net(x).square().sum().backward()
    allocator.step()
    assert allocator.n_kept < allocator.full
    found = net.eval()(x)
    torch.testing.assert_close(net.merge_and_unload()(x), found, rtol=0, atol=1e-4)


def test_an_option_that_a_row_does_not_name_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown option 'axes'"):
        FACTORIZATIONS["svd"](8, 8, 2, Turns, axes=[8])
    with pytest.raises(ValueError, match="factorization_options has 'axes'"):
        QCircuitConfig(factorization="scaled", factorization_options={"axes": [8]})
