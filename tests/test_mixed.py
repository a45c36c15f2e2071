"""Batches in which every input has an adapter of its own: the rows of each, and PEFT's words for what is wrong."""

import re
from typing import Any

import peft
import pytest
import torch
from bounds import close
from test_recomputation import X, made, plainly
from torch import Tensor, nn

KINDS = ("circuit", "bottleneck", "generated lora", "generated circuit", "generated bottleneck")
pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning")


def ready(kind: str) -> Any:
    net = made(kind).eval()
    net.get_base_model().run = plainly
    return net


@torch.no_grad()
def out(net: nn.Module, **how: Any) -> Tensor:
    return net(X, **how)


@pytest.mark.parametrize("kind", KINDS)
def test_every_input_has_its_own_adapter_and_head(kind: str) -> None:
    net = ready(kind)
    one = out(net)
    net.set_adapter("two")
    two = out(net)
    with net.disable_adapter():
        plain = out(net)
    assert not torch.allclose(one, two) and not torch.allclose(one, plain)
    for names in (["one", "two", "__base__"], ["two", "two", "one"], ["__base__"] * 3):
        rows = {"one": one, "two": two, "__base__": plain}
        expected = torch.stack([rows[name][row] for row, name in enumerate(names)])
        close(out(net, adapter_names=names), expected, 3 * 8 * 8)
        with net.disable_adapter():
            assert torch.equal(out(net, adapter_names=names), plain)
    assert torch.equal(out(net), two)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_wrong_is_said_in_the_words_of_peft(kind: str) -> None:
    net = ready(kind)
    for names, told in {
        ("one",) * 4: "Length of `adapter_names` should be the same as the number of inputs, but got 4 and 3 respect",
        ("one",): "Length of `adapter_names` should be the same as the number of inputs, but got 1 and 3 respectively.",
        ("one", "x", "y"): "Trying to infer with non-existing adapter(s): x, y",
    }.items():
        with pytest.raises(ValueError, match=re.escape(told)):
            net(X, adapter_names=list(names))
    with pytest.raises(ValueError, match="Cannot pass `adapter_names` when the model is in training mode"):
        net.train()(X, adapter_names=["one"] * 3)
    if "bottleneck" not in kind:
        net.eval().merge_adapter()
        told = "^Cannot pass `adapter_names` when there are merged adapters, please call `unmerge_adapter` first"
        with pytest.raises(ValueError, match=told):
            net(X, adapter_names=["one"] * 3)


def test_peft_has_these_words_and_methods_that_cannot_are_named() -> None:
    net = peft.get_peft_model(nn.Sequential(nn.Linear(8, 8)), peft.LoraConfig(target_modules=["0"]))
    for names, told in (
        (["x", "y"], "non-existing adapter"),
        (["default"] * 2, "training"),
        (["default"], "Length of"),
    ):
        net.train(told == "training")
        with pytest.raises(ValueError, match=told):
            net(X, adapter_names=names)
    with pytest.raises(TypeError, match=r"IA3 does not support mixed adapter batches\."):
        ready("generated ia3")(X, adapter_names=["one"] * 3)
