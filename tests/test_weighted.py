"""Weighted sums of adapters: exact, or refused in a sentence."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from bounds import close
from peft import PeftModel, get_peft_model
from tiny import CHAIN, adapted, base, config, inputs, logits, shake
from torch import Tensor, nn

from qcircuit_peft import QCircuitConfig, circuits
from qcircuit_peft.analysis import entanglement_report
from qcircuit_peft.factorizations import FACTORIZATIONS
from qcircuit_peft.tuner.layer import QCircuitLayer, adapted_layers

WEIGHTS = [0.5, -2.0]


def two(first: str = "default", second: str = "shared", **change: Any) -> PeftModel:
    net = adapted("llama", first, **change)
    net.add_adapter("other", config("llama", second, target_modules=["q_proj", "down_proj"]))
    return shake(net, "other", seed=3)


def deltas(net: nn.Module, adapter: str) -> dict[str, Tensor]:
    return {name: layer.get_delta_weight(adapter) for name, layer in adapted_layers(net, adapter)}


def check_sum(net: nn.Module, adapter: str, parts: dict[str, float]) -> None:
    found = deltas(net, adapter)
    expected: dict[str, Tensor] = {}
    for name, weight in parts.items():
        for path, delta in deltas(net, name).items():
            expected[path] = expected.get(path, 0) + weight * delta
    assert found.keys() == expected.keys()
    for path, delta in expected.items():
        close(found[path], delta, 64, size=float(delta.abs().max()) + 1, dtype=torch.float32)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
@pytest.mark.parametrize("second", ["shared", "quantized"])
def test_cat_is_the_sum_and_that_of_loras_own(second: str, tmp_path: Path) -> None:
    net = two(second=second)
    before = {name: p.requires_grad for name, p in net.named_parameters()}
    net.add_weighted_adapter(["default", "other"], WEIGHTS, "both")
    assert before == {name: p.requires_grad for name, p in net.named_parameters() if ".both" not in name}
    assert not any(p.requires_grad for name, p in net.named_parameters() if name.endswith(".both"))
    check_sum(net, "both", {"default": 0.5, "other": -2.0})
    net.set_adapter("both")
    expected = logits(net, "llama")
    for name in ("default", "other"):
        peft.save_as_lora(tmp_path / name, net, rank=6, adapter_name=name)
    lora = PeftModel.from_pretrained(base("llama"), tmp_path / "default")
    lora.load_adapter(tmp_path / "other", "other")
    lora.add_weighted_adapter(["default", "other"], WEIGHTS, "both", combination_type="cat")
    lora.set_adapter("both")
    close(logits(lora, "llama"), expected, 8 * CHAIN)
    net.save_pretrained(tmp_path / "saved")
    again = PeftModel.from_pretrained(base("llama"), tmp_path / "saved" / "both")
    assert torch.equal(logits(again, "llama"), expected)
    peft.save_as_lora(tmp_path / "plain", again, rank=again.peft_config["default"].r)
    close(logits(PeftModel.from_pretrained(base("llama"), tmp_path / "plain"), "llama"), expected, 8 * CHAIN)
    close(logits(again.merge_and_unload(), "llama"), expected, 8 * CHAIN)


def test_a_sum_of_a_sum_its_measures_and_its_training() -> None:
    net = two()
    net.add_weighted_adapter(["default", "other"], WEIGHTS, "both")
    net.add_weighted_adapter(["both", "other"], [3.0, 1.0], "more")
    net.delete_adapter("both")
    check_sum(net, "more", {"default": 1.5, "other": -5.0})
    assert net.peft_config["more"].r == 6 + 4 + 4
    names = {name.rpartition(".")[2] for name, _, _ in circuits(net, "more")}
    assert names == {f"{part}_of_{at}" for part in "uv" for at in range(3)}
    assert {row.part for row in entanglement_report(net, adapter="more")} == {*names, "delta"}
    net.set_adapter("more")
    net.train()(**inputs("llama")).loss.backward()
    assert all(p.grad.any() for name, p in net.named_parameters() if ".more" in name and "lambda" in name)


@pytest.mark.parametrize("factorization", [name for name in FACTORIZATIONS if name not in ("rotation", "quanta")])
def test_every_factorization_that_has_a_rank(factorization: str) -> None:
    net = get_peft_model(base("llama"), config("llama", factorization=factorization))
    net.add_adapter("other", config("llama", "patterns"))
    shake(net, "other")
    with torch.no_grad():
        for name, p in net.named_parameters():
            if name.endswith(".default"):
                p += torch.randn(p.shape) / 20
    net.add_weighted_adapter(["default", "other"], WEIGHTS, "both")
    check_sum(net, "both", {"default": 0.5, "other": -2.0})


def test_linear_adds_numbers_up_where_the_circuits_are_the_same() -> None:
    net = adapted("llama", "frozen", seed=7)
    net.add_adapter("other", config("llama", "frozen", seed=7, alpha=12))
    shake(net, "other", seed=2)
    net.add_weighted_adapter(["default", "other"], WEIGHTS, "sum", combination_type="linear")
    check_sum(net, "sum", {"default": 0.5, "other": -2.0})
    assert net.peft_config["sum"].r == net.peft_config["default"].r
    net.add_adapter("third", config("llama", "frozen", seed=8))
    for names, said in (
        (["default", "third"], "the same circuits and angles"),
        (["default", "few"], "have the same mod"),
    ):
        if "few" in names:
            net.add_adapter("few", config("llama", "frozen", seed=7, target_modules=["q_proj"]))
        with pytest.raises(ValueError, match=said):
            net.add_weighted_adapter(names, WEIGHTS, "x", combination_type="linear")
    assert "x" not in net.peft_config


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
def test_a_sum_that_is_interrupted_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    net = two()
    before = {name: p.clone() for name, p in net.named_parameters()}
    stock, calls = QCircuitLayer.own_parameters, iter(range(100))

    def interrupted(self: QCircuitLayer, adapter: str) -> dict[str, Tensor]:
        if adapter == "both" and next(calls) == 1:
            raise KeyboardInterrupt
        return stock(self, adapter)

    monkeypatch.setattr(QCircuitLayer, "own_parameters", interrupted)
    with pytest.raises(KeyboardInterrupt):
        net.add_weighted_adapter(["default", "other"], WEIGHTS, "both")
    assert list(net.peft_config) == ["default", "other"]
    assert before.keys() == dict(net.named_parameters()).keys()
    net.add_weighted_adapter(["default", "other"], WEIGHTS, "both")
    check_sum(net, "both", dict(zip(("default", "other"), WEIGHTS, strict=True)))


def test_what_has_no_exact_sum_is_refused() -> None:
    net = two()
    before = set(net.peft_config), {name for name, _ in net.named_parameters()}

    def refuses(
        said: str, names: tuple[str, ...] = ("default", "other"), weights: Any = WEIGHTS, name: str = "x", **how: Any
    ):
        with pytest.raises(ValueError, match=said):
            net.add_weighted_adapter(names, weights, name, **how)
        assert before == (set(net.peft_config), {name for name, _ in net.named_parameters()})

    for kind in ("svd", "ties", "dare_linear"):
        refuses(f"'cat', or 'linear' .*got '{kind}'.*take 'cat'", combination_type=kind)
    refuses("has no svd_rank", svd_rank=3)
    refuses("there is an adapter 'other' already", name="other")
    refuses("an adapter's name has no dot", name="a.b")
    refuses("a weight for every adapter, got 2 adapters and 1", weights=[1.0])
    refuses("a weight is .*number", weights=[1.0, float("nan")])
    refuses("'none' does not exist; there are 'default', 'other'", ("default", "none"))
    next(layer for _, layer in adapted_layers(net)).set_scale("default", 0.5)
    refuses("used at the strength 0.5; give that as a part of its weight")
    next(layer for _, layer in adapted_layers(net)).set_scale("default", 1.0)
    net.merge_adapter(["other"])
    refuses("'other' is merged; call unmerge_adapter")
    full = get_peft_model(
        nn.Sequential(nn.Linear(8, 8)), QCircuitConfig(r=2, factorization="rotation", target_modules=["0"])
    )
    with pytest.raises(ValueError, match="those of 'default' have the full one"):
        full.add_weighted_adapter(["default"], [1.0], "x")
    head = get_peft_model(base("bert"), config("bert", modules_to_save=["classifier"]))
    with pytest.raises(ValueError, match="trains modules whole"):
        head.add_weighted_adapter(["default"], [1.0], "x")
    biased = get_peft_model(base("bert"), config("bert", bias="all"))
    with pytest.raises(ValueError, match="trains biases"):
        biased.add_weighted_adapter(["default"], [1.0], "x")
    whole = nn.Sequential(nn.ModuleDict({"experts": nn.Bilinear(4, 4, 4)}))
    stack = get_peft_model(whole, QCircuitConfig(r=2, target_modules=[], target_parameters=["experts.weight"]))
    with pytest.raises(
        ValueError, match=r"does not support targeting nn\.Parameter, but 'default' adapts '0\.experts\.weight'"
    ):
        stack.add_weighted_adapter(["default"], [1.0], "x")


@pytest.mark.parametrize("terms", [[], "x", [{}], [{"r": 2}], ["x"]])
def test_terms_of_a_configuration_are_looked_at(terms: Any) -> None:
    with pytest.raises(ValueError, match=r"terms is a list of tables|a term of an adapter"):
        QCircuitConfig(target_modules=["0"], terms=terms)
