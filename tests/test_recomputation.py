"""Checkpoints run modules again in the backward pass: with the adapters of the forward pass, or not at all."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from typing import Any

import peft
import pytest
import torch
from bounds import close
from peft import IA3Config, LoraConfig, get_peft_model
from test_qpa import adapted as generated
from test_qpa import config as generated_config
from tiny import inputs
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from qcircuit_peft import BottleneckConfig, QCircuitConfig, QPAConfig
from qcircuit_peft.tuner.layer import QCircuitLayer

pytestmark = [
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning"),
    pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True:UserWarning"),
    pytest.mark.filterwarnings("ignore:Unmerge result can be inaccurate:UserWarning"),  # PEFT, of (IA)^3
    pytest.mark.filterwarnings("ignore:Adapter one was active which is now deleted:UserWarning"),
]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin, self.out, self.norm = nn.Linear(8, 8), nn.Linear(8, 8), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.out(self.lin(x).tanh()))


class Net(nn.Module):
    """Two blocks and a head, each of which ``run`` runs."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleList([Block(), Block()]), nn.Linear(8, 3)
        self.run: Any = None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = self.run(block, x)
        return self.run(self.head, x)


class Offloaded(torch.autograd.Function):
    """Checkpointing as other libraries write it."""

    @staticmethod
    def forward(context: Any, part: nn.Module, x: Tensor) -> Tensor:  # type: ignore[override]
        with torch.no_grad():
            out = part(x)
        context.save_for_backward(x)
        context.part = part
        return out

    @staticmethod
    def backward(context: Any, grad: Tensor) -> Any:  # type: ignore[override]
        (x,) = context.saved_tensors
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            out = context.part(x)
        torch.autograd.backward(out, grad)
        return None, x.grad


def plainly(part: nn.Module, x: Tensor) -> Tensor:
    return part(x)


def policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op == torch.ops.aten.tanh.default else CheckpointPolicy.PREFER_RECOMPUTE


def nested(part: nn.Module, x: Tensor) -> Tensor:
    once = partial(checkpoint, part, use_reentrant=False)
    return checkpoint(once, x, use_reentrant=False)


def nested_reentrant(part: nn.Module, x: Tensor) -> Tensor:
    return checkpoint(partial(checkpoint, part, use_reentrant=True), x, use_reentrant=True)


CHECKPOINTS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "without re-entry": partial(checkpoint, use_reentrant=False),
    "unchecked": partial(checkpoint, use_reentrant=False, determinism_check="none"),
    "to the end": partial(checkpoint, use_reentrant=False, early_stop=False),
    "selective": partial(
        checkpoint, use_reentrant=False, context_fn=partial(create_selective_checkpoint_contexts, policy)
    ),
    "nested": nested,
    "re-entrant": partial(checkpoint, use_reentrant=True),
    "re-entrant, nested": nested_reentrant,
    "a function of one's own": Offloaded.apply,
}


def config(kind: str, seed: int, head: bool = True) -> Any:
    where: dict[str, Any] = {"target_modules": ["lin", "out"], "modules_to_save": ["head"] if head else None}
    if kind == "circuit":
        return QCircuitConfig(r=4, seed=seed, init_weights=False, **where)
    if kind == "bottleneck":
        return BottleneckConfig(r=4, **where)
    base = {
        "generated lora": lambda: LoraConfig(r=2, **where),
        "generated circuit": lambda: QCircuitConfig(r=4, seed=seed, init_weights=False, **where),
        "generated bottleneck": lambda: BottleneckConfig(r=4, **where),
        "generated ia3": lambda: IA3Config(feedforward_modules=[], **where),
    }[kind]()
    return QPAConfig(base=base, chunk_size=16, layers=1, widths=[4], seed=seed)


KINDS = ("circuit", "bottleneck", "generated lora", "generated circuit", "generated ia3")


@cache
def _made(kind: str, head: bool) -> Any:
    torch.manual_seed(0)
    net = get_peft_model(Net(), config(kind, 1, head), adapter_name="one")
    net.add_adapter("two", config(kind, 2, head))
    for name in ("two", "one"):
        net.set_adapter(name)
        with torch.no_grad():
            for parameter in (p for p in net.parameters() if p.requires_grad):
                parameter += torch.randn_like(parameter) / 5
    return net


def made(kind: str, head: bool = True) -> Any:
    """A net with two adapters that differ, of which "one" is active; a copy, as it were of a user's."""
    return copy.deepcopy(_made(kind, head))


def scale_one(net: Any, scale: float) -> None:
    """Multiply the strength of the active adapter."""
    for module in net.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer | QCircuitLayer):
            module.scale_layer(scale)


def again(net: Any) -> None:
    net.delete_adapter("one")
    net.add_adapter("one", config("circuit", 1))
    net.set_adapter("one")


def there_and_back(net: Any) -> None:
    net.set_adapter("two")
    net.set_adapter("one")
    for scale in (2.0, 0.5):
        scale_one(net, scale)
    with net.disable_adapter(), torch.no_grad():  # a reference, as preferences are trained with
        net(X)


def added(net: Any) -> None:
    net.add_adapter("three", copy.deepcopy(net.peft_config["one"]))


# What is done between forward and backward, and what the backward pass then is.
HARMLESS: dict[str, Callable[[Any], None]] = {
    "nothing": lambda net: None,
    "there and back": there_and_back,
    "one more": added,
}
SWITCHED: dict[str, tuple[Callable[[Any], None], str, str]] = {
    "another": (lambda net: net.set_adapter("two"), "'two'", "'one'"),
    "deleted": (lambda net: net.delete_adapter("one"), "'two'", "'one'"),
    "disabled": (lambda net: net.base_model.disable_adapter_layers(), "none", "'one'"),
    "merged": (lambda net: net.merge_adapter(), "'one' merged", "'one'"),
}
X = torch.randn(3, 8, generator=torch.Generator().manual_seed(3))


def gradients(net: Any, run: Any, between: Callable[[Any], None], during: AbstractContextManager[Any]) -> Any:
    """Those of the input and of all parameters, after a forward pass, what comes between, and the backward pass."""
    net.get_base_model().run = run
    x = X.clone().requires_grad_()
    with during:
        loss = net(x).square().sum()
    between(net)
    parameters = dict(net.named_parameters())
    loss.backward()
    return {"x": x.grad, **{name: parameter.grad for name, parameter in parameters.items()}}


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_the_forward_pass(kind: str) -> None:
    for case, between in HARMLESS.items():
        expected = gradients(made(kind), plainly, between, nullcontext())
        for name, run in CHECKPOINTS.items():
            found = gradients(made(kind), run, between, nullcontext())
            for key, grad in expected.items():
                if grad is not None and grad.any():
                    close(found[key], grad, 3 * 8 * 8, where=(case, name, key))
                else:
                    assert found[key] is None or not found[key].any()


def refused(net: Any, run: Any, between: Callable[[Any], None], now: str, then: str, **how: Any) -> None:
    how_much = r"( scaled by [\d., ]+)?"  # of a generated LoRA
    told = rf"again .* with other adapters, {now}{how_much}, than those of its forward pass, {then}{how_much}; call"
    with pytest.raises(RuntimeError, match=told):
        gradients(net, run, between, how.get("during", nullcontext()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_switched_adapters_are_refused(kind: str, name: str) -> None:
    run = CHECKPOINTS[name]

    def blocks(part: nn.Module, x: Tensor) -> Tensor:
        return run(part, x) if isinstance(part, Block) else part(x)

    def head(part: nn.Module, x: Tensor) -> Tensor:
        return part(x) if isinstance(part, Block) else run(part, x)

    for case, (between, now, then) in SWITCHED.items():
        if case != "merged":
            refused(made(kind), head, between, now, then)
        elif kind == "bottleneck":
            continue
        refused(made(kind), blocks, between, now, then)
    net = made(kind)
    refused(net, blocks, lambda net: None, "'one'", "none", during=net.disable_adapter())
    net = made(kind, head=False)  # with a head there is one at a time
    refused(net, run, lambda net: net.base_model.set_adapter(["one", "two"]), "'one', 'two'", "'one'")
    if kind != "bottleneck":
        net = made(kind)
        net.merge_adapter()
        refused(net, blocks, lambda net: net.unmerge_adapter(), "'one'", "'one' merged")
    if kind == "circuit":
        refused(made(kind), blocks, again, "another 'one'", "'one'")
        refused(made(kind), head, again, "another 'one'", "'one'")
        refused(made(kind), blocks, lambda net: scale_one(net, 3.0), r"'one' scaled by 3\.0", "'one'")
    if kind == "generated lora":
        refused(made(kind), blocks, lambda net: scale_one(net, 3.0), r"'one' scaled by 12\.0", r"'one' scaled by 4\.0")


@pytest.mark.parametrize("kind", ["circuit", "generated lora", "generated circuit"])
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_an_adapter_for_every_input(kind: str, name: str) -> None:
    net = made(kind).eval()
    for part in (Block, nn.Module):
        net.get_base_model().run = lambda module, x, part=part: (
            CHECKPOINTS[name](module, x) if isinstance(module, part) else module(x)
        )
        out = net(X.clone().requires_grad_(), adapter_names=["one", "two", "one"])
        with pytest.raises(
            RuntimeError,
            match=r"adapters, 'one'.*, than .*, 'one', 'two', 'one' for every input( scaled by [\d., ]+)?; call",
        ):
            out.sum().backward()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["without re-entry", "re-entrant"])
def test_two_forward_passes_with_an_adapter_each(kind: str, name: str) -> None:
    net = made(kind)
    net.get_base_model().run = CHECKPOINTS[name]
    losses = []
    for adapter in ("one", "two"):
        net.set_adapter(adapter)
        losses.append(net(X.clone().requires_grad_()).sum())
    losses[1].backward()
    with pytest.raises(RuntimeError, match=r"other adapters, 'two'.*, than those of its forward pass, 'one'"):
        losses[0].backward()


@pytest.mark.parametrize("name", [name for name in CHECKPOINTS if name != "selective"])
def test_a_region_that_is_the_whole_model_and_a_copy_of_it(name: str) -> None:
    run: Any = CHECKPOINTS[name]
    for kind in KINDS:
        for net in (_made(kind, True), made(kind)):
            net.get_base_model().run = plainly
            loss = run(net, X.clone().requires_grad_()).sum()
            net.set_adapter("two")
            with pytest.raises(RuntimeError, match=r"other adapters, 'two'.*, than those of its forward pass, 'one'"):
                loss.backward()
            net.set_adapter("one")


@pytest.mark.parametrize("name", ["without re-entry", "re-entrant", "a function of one's own"])
@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_prompts(method: str, name: str) -> None:
    net, run = generated(method), CHECKPOINTS[name]
    net.add_adapter("two", generated_config(method, seed=1))

    def whole(on: Tensor) -> Tensor:
        return on * net(inputs("llama")["input_ids"]).logits.sum()

    for switch, now in ((lambda: net.set_adapter("two"), "'two'"), (net.base_model.disable_adapter_layers, "none")):
        net.set_adapter("default")
        loss = run(whole, torch.ones(1, requires_grad=True))  # type: ignore[arg-type]
        switch()
        with pytest.raises(RuntimeError, match=f"other adapters, {now}, than those of its forward pass, 'default'"):
            loss.backward()


def test_hooks_on_saved_tensors_may_hold_names_without_a_value() -> None:
    model = get_peft_model(nn.Sequential(nn.Linear(8, 8)), QCircuitConfig(r=2, target_modules=["0"]))
    x = torch.randn(2, 8)

    def pack(tensor: Tensor) -> Tensor:
        return tensor if tensor.numel() else never

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(x).sum().backward()
    if x is None:
        never = x  # pack's, without a value


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_region_may_run_a_module_in_several_ways(reentrant: bool) -> None:
    model = get_peft_model(
        nn.Sequential(nn.Linear(8, 8)), QCircuitConfig(r=2, target_modules=["0"], init_weights=False)
    )
    x = torch.randn(2, 8, requires_grad=True)

    def both(x: Tensor) -> Tensor:
        h = model(x).tanh()
        with model.disable_adapter():
            return h * model(x)

    trained = [x, *(p for p in model.parameters() if p.requires_grad)]
    expected = torch.autograd.grad(both(x).sum(), trained)
    if reentrant:
        checkpoint(both, x, use_reentrant=True).sum().backward()
        found = [p.grad for p in trained]
    else:
        found = torch.autograd.grad(checkpoint(both, x, use_reentrant=False).sum(), trained)
    for one, other in zip(found, expected, strict=True):
        close(one, other, 64)


def test_a_pass_that_runs_twice_first_without_a_graph() -> None:
    """Self-distillation, or recycling: all layers under no_grad, then again with a graph, in one pass."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = self.b(self.a(x).tanh())
            return self.b(self.a(x).tanh())

    config = QCircuitConfig(r=2, target_modules=["a", "b"], init_weights=False, seed=0)
    model = get_peft_model(Twice(), config)
    x = torch.randn(2, 8)
    trained = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(model(x).sum(), trained)
    net = model.base_model.model  # by itself it makes its frames for every layer anew
    for one, other in zip(found, torch.autograd.grad(net.forward(x).sum(), trained), strict=True):
        close(one, other, 64)


@pytest.mark.parametrize("reentrant", [True, False])
def test_the_strength_of_an_adapter_for_every_input(reentrant: bool) -> None:
    config = QCircuitConfig(r=2, target_modules=["0"], init_weights=False)
    model = get_peft_model(nn.Sequential(nn.Linear(8, 8)), config).eval()
    x, names = torch.randn(2, 8, requires_grad=True), ["default", "__base__"]
    found = checkpoint(lambda z: model(z, adapter_names=names).tanh(), x, use_reentrant=reentrant)
    next(module for module in model.modules() if isinstance(module, QCircuitLayer)).set_scale("default", 5)
    with pytest.raises(RuntimeError, match=r"other adapters, .* scaled by 5\.0, than those of its forward pass"):
        found.sum().backward()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_region_in_a_pass_that_began_without_a_graph(kind: str, name: str) -> None:
    made_here: list[Tensor] = []

    def run(part: nn.Module, x: Tensor) -> Tensor:
        with torch.enable_grad():
            made_here.append(CHECKPOINTS[name](part, x.requires_grad_()))
        return made_here[-1]

    net = made(kind)
    net.get_base_model().run = run
    with torch.no_grad():
        net(X.clone())
    net.set_adapter("two")
    with pytest.raises(RuntimeError, match=r"other adapters, 'two'.*, than those of its forward pass, 'one'"):
        made_here[1].sum().backward()
