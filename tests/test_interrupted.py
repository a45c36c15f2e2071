"""Ctrl-C while adapters are put into a model, or loaded: the model is as it was, and takes the adapter later."""

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bounds import close
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTuner
from test_recomputation import Net, X, config, made, plainly

pytestmark = [
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning"),
]
KINDS = ("circuit", "bottleneck", "generated lora", "generated circuit")
STEPS = 12  # at which the work is interrupted, of some thousands


class Interrupt:
    """Raises KeyboardInterrupt at the n-th call of a Python function within a function; n = 0 counts them."""

    def __init__(self, within: Callable[..., Any], n: int) -> None:
        self.code, self.n, self.calls, self.depth = within.__code__, n, 0, 0

    def __call__(self, frame: Any, event: str, arg: Any) -> None:
        if event not in ("call", "return"):
            return
        if frame.f_code is self.code:
            self.depth += 1 if event == "call" else -1
        if self.depth and event == "call":
            self.calls += 1
            # A generator may be on its way out, where Python swallows exceptions.
            if 0 < self.n <= self.calls and not frame.f_code.co_flags & inspect.CO_GENERATOR:
                sys.setprofile(None)
                raise KeyboardInterrupt


def interrupted(work: Callable[[], Any], within: Callable[..., Any], n: int) -> int:
    """How many calls there were, after an interrupt at the n-th one if n is not 0."""
    profile, recorded = Interrupt(within, n), torch.is_grad_enabled()
    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
        torch.set_grad_enabled(recorded)  # the interrupt may come where torch is about to
    return profile.calls


def seen(model: Any) -> dict[str, Any]:
    """All that can be told of a model: modules, hooks, tensors, what is trained, adapters, what it gives."""
    net = model.get_base_model() if isinstance(model, PeftModel) else model
    net.run = plainly
    with torch.no_grad():
        out = model.eval()(X)
    named = dict(model.named_modules())
    return {
        "modules": {name: (id(module), list(module._modules)) for name, module in named.items()},
        "hooks": {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in named.items()},
        "trained": {name: p.requires_grad for name, p in model.named_parameters()},
        "adapters": (list(getattr(model, "peft_config", {})), getattr(model, "active_adapters", None)),
        "values": [value.tolist() for value in model.state_dict().values()] + [out.tolist()],
    }


def check(start: Callable[[], Any], work: Callable[[Any], Any], within: Callable[..., Any]) -> None:
    calls = [interrupted(lambda: work(start()), within, 0) for _ in range(2)][
        1
    ]  # what is imported is so the first time
    assert calls > 10 * STEPS
    for step in range(1, STEPS + 1):
        model = start()
        before = seen(model)
        with pytest.raises(KeyboardInterrupt):
            interrupted(lambda model=model: work(model), within, calls * step // (STEPS + 1))
        after = seen(model)
        assert {key: after[key] for key in before} == before, step
        work(model)
        assert seen(model) != before


@torch.no_grad()
def changed(net: Any) -> Any:
    """A net whose second adapter is something else than what was saved."""
    for name, parameter in net.named_parameters():
        if "two" in name.split("."):
            parameter += 1
    return net


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_is_put_in_whole_or_not_at_all(kind: str) -> None:
    check(lambda: Net().eval(), lambda net: get_peft_model(net, config(kind, 3)), BaseTuner.inject_adapter)
    check(lambda: made(kind).eval(), lambda net: net.add_adapter("more", config(kind, 3)), BaseTuner.inject_adapter)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_is_loaded_whole_or_not_at_all(kind: str, tmp_path: Path) -> None:
    made(kind).save_pretrained(tmp_path)
    load: Any = PeftModel.load_adapter
    while hasattr(load, "__wrapped__"):
        load = load.__wrapped__
    for name in ("more", "two"):  # a new one, and in the place of another
        check(lambda: changed(made(kind).eval()), lambda net, name=name: net.load_adapter(tmp_path / "two", name), load)


UNDONE: dict[str, Callable[[Any], Any]] = {
    "merge_adapter": lambda net: net.merge_adapter(),
    "unmerge_adapter": lambda net: net.unmerge_adapter(),
    "merge_and_unload": lambda net: net.merge_and_unload(),
    "unload": lambda net: net.unload(),
    "delete_adapter": lambda net: net.delete_adapter("two"),
}


CASES = [("circuit", how) for how in UNDONE] + [("bottleneck", "unload"), ("generated lora", "merge_and_unload")]


@pytest.mark.parametrize(("kind", "how"), CASES)
def test_a_model_is_merged_or_taken_apart_whole_or_not_at_all(kind: str, how: str) -> None:
    """Weights are as they were up to the rounding of an unmerged update; all else is."""
    work, unloads = UNDONE[how], "unload" in how

    def start() -> Any:
        net = made(kind).eval()
        if how == "unmerge_adapter":
            net.merge_adapter()
        return net

    def within(net: Any) -> Any:
        return getattr(type(net.base_model), "_unload_and_optionally_merge" if unloads else how)

    def end(net: Any) -> dict[str, Any]:
        found = work(net)
        return seen(found if unloads else net)

    def check_close(one: dict[str, Any], other: dict[str, Any]) -> None:
        for value, wanted in zip(one.pop("values"), other["values"], strict=True):
            close(torch.tensor(value), torch.tensor(wanted), 100)

    expected, stopped = end(start()), 0
    net = start()
    calls = interrupted(lambda: work(net), within(net), 0)
    for step in range(1, STEPS // 2 + 1):
        net = start()
        before = seen(net)
        try:
            interrupted(lambda net=net: work(net), within(net), calls * step // (STEPS // 2 + 1))
        except KeyboardInterrupt:
            stopped += 1
            after = seen(net)
            check_close(after, before)
            assert after == {key: value for key, value in before.items() if key != "values"}, step
            check_close(end(net), expected)
    assert stopped > 2  # Python swallows those in callbacks
