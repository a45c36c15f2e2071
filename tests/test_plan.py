"""What modules of a model get is made once, and what is alike among them only once for all."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel, get_peft_model
from tiny import adapted, base, config, inputs, layers

from qcircuit_peft.factorizations import FACTORIZATIONS
from qcircuit_peft.factorizations.parts import Kind as Factorizations
from qcircuit_peft.frames import FRAMES
from qcircuit_peft.frames.circuit import CircuitFrame
from qcircuit_peft.frames.kind import Kind as Frames


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> dict[str, Counter[Any]]:
    """How often each factorization and each frame has been made, by their sizes."""
    found: dict[str, Counter[Any]] = {"factorizations": Counter(), "frames": Counter()}
    factorize, frame = Factorizations.__call__, Frames.spec

    def counted(self: Any, n_out: int, n_in: int, r: int, *args: Any, **options: Any) -> Any:
        found["factorizations"][n_out, n_in, r] += 1
        return factorize(self, n_out, n_in, r, *args, **options)

    def counted_frame(self: Any, n: int, k: int, **options: Any) -> Any:
        found["frames"][n, k] += 1
        return frame(self, n, k, **options)

    monkeypatch.setattr(Factorizations, "__call__", counted)
    monkeypatch.setattr(Frames, "spec", counted_frame)
    return found


@pytest.mark.parametrize("factorization", FACTORIZATIONS)
def test_attaching_and_loading_make_everything_once_and_nothing_else_makes_any(
    factorization: str, made: dict[str, Counter[Any]], tmp_path: Path
) -> None:
    settings = config("llama", factorization=factorization)
    net = get_peft_model(base("llama"), settings).eval()
    adapted_modules = layers(net)
    shapes = {(layer.out_features, layer.in_features) for layer in adapted_modules}
    assert {key[:2] for key in made["factorizations"]} == shapes and len(adapted_modules) > len(shapes)
    assert set(made["factorizations"].values()) == {1} and set(made["frames"].values()) <= {1}
    before = {kind: count.copy() for kind, count in made.items()}
    net.train()
    net(**inputs("llama")).loss.backward()
    net.eval().save_pretrained(tmp_path)
    assert made == before
    loaded = PeftModel.from_pretrained(base("llama"), tmp_path)
    twice = {kind: count + count for kind, count in before.items()}
    assert made == twice
    loaded.load_adapter(tmp_path, "default")
    loaded.merge_and_unload()
    assert made == twice


@pytest.mark.parametrize("name", FRAMES)
def test_a_frame_makes_no_other_twice(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found: Counter[Any] = Counter()
    start = CircuitFrame.__post_init__

    def counted(self: Any) -> None:
        start(self)
        found[self] += 1

    monkeypatch.setattr(CircuitFrame, "__post_init__", counted)
    frame = FRAMES[name].spec(24, 3)
    assert (frame.n_parameters, len(frame.groups)) and frame.columns(frame.initial()).shape == (24, 3)
    assert set(found.values()) <= {1}


def test_modules_that_differ_in_rank_or_scaling_have_factorizations_of_their_own() -> None:
    net = adapted("llama", rank_pattern={"layers.0.*q_proj": 3}, alpha_pattern={"layers.1.*q_proj": 5.0})
    found = {(layer.factors["default"].rank, layer.factors["default"].scaling) for layer in layers(net)}
    assert len(found) >= 3
