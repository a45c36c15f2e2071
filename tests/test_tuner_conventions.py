"""What PEFT's own test suite takes for granted of a tuner, beyond what its documentation asks for."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from tiny import adapted, base, both, config, each_model, layers, logits

from qcircuit_peft import QCircuitConfig
from qcircuit_peft.factorizations import FACTORIZATIONS


def dtypes(model: torch.nn.Module) -> set[torch.dtype]:
    return {p.dtype for name, p in model.named_parameters() if "qcircuit_" in name}


@both
def test_without_init_weights_an_adapter_does_something_at_once(model: str, entry: str) -> None:
    expected = logits(base(model), model)
    net = get_peft_model(base(model), config(model, entry, init_weights=False, seed=4)).eval()
    assert not torch.allclose(logits(net, model), expected, atol=1e-3)
    again = get_peft_model(base(model), config(model, entry, init_weights=False, seed=4)).eval()
    assert torch.equal(logits(again, model), logits(net, model))


@pytest.mark.parametrize("name", FACTORIZATIONS)
def test_init_weights_moves_every_factorization(name: str) -> None:
    settings: dict[str, Any] = {"r": 4, "alpha": 4, "factorization": name}
    for zero in (True, False):
        net = get_peft_model(base("llama"), config("llama", init_weights=zero, **settings))
        moved = [bool(layer.get_delta_weight("default").any()) for layer in layers(net)]
        assert moved == [not zero] * len(moved)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@each_model
def test_autocast_adapter_dtype(model: str, dtype: torch.dtype, tmp_path: Path) -> None:
    def half() -> Any:
        return base(model).to(dtype)

    assert dtypes(get_peft_model(half(), config(model))) == {torch.float32}
    net = get_peft_model(half(), config(model, init_weights=False), autocast_adapter_dtype=False).eval()
    net.add_adapter("wide", config(model))
    assert dtypes(net) == {dtype, torch.float32}
    net.save_pretrained(str(tmp_path), selected_adapters=["default"])
    loaded = PeftModel.from_pretrained(half(), str(tmp_path), is_trainable=True, autocast_adapter_dtype=False).eval()
    assert dtypes(loaded) == {dtype} and torch.equal(logits(loaded, model), logits(net, model))
    loaded(**{"input_ids": torch.arange(3, 9)[None]}).logits.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == dtype for p in loaded.parameters() if p.requires_grad)


def test_a_failed_safe_merge_says_what_peft_says() -> None:
    net = adapted("llama")
    layers(net)[0].qcircuit_u["default"].data[0] = torch.nan
    with pytest.raises(
        ValueError, match=r"NaNs detected in the merged weights. The adapter default seems to be broken"
    ):
        net.merge_and_unload(safe_merge=True)


def test_init_weights_is_a_switch() -> None:
    with pytest.raises(ValueError, match="init_weights is true or false, got 'pissa'"):
        QCircuitConfig(init_weights="pissa")  # type: ignore[arg-type]
