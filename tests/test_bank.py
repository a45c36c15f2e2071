"""One generation serves a forward pass of all layers, is never stale, and gives the right gradients every way round."""

import copy
import gc
import os
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from bounds import close
from peft import get_peft_model
from tiny import CHAIN, CONTRACT, MODELS, adapted, close_gradient, config, inputs, layers, logits, shake
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from qcircuit_peft import QCircuitConfig
from qcircuit_peft.frames.circuit import CircuitFrame

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",
    "ignore:.*use_reentrant.*:UserWarning",
    "ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning",
)
each_model = pytest.mark.parametrize("model", MODELS)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rows of every call that generates frames."""
    seen: list[int] = []
    plain = CircuitFrame.columns

    def columns(self: CircuitFrame, angles: Tensor) -> Tensor:
        seen.append(angles.numel() // max(1, angles.shape[-1]))
        return plain(self, angles)

    monkeypatch.setattr(CircuitFrame, "columns", columns)
    return seen


def grads(net: nn.Module) -> dict[str, Tensor | None]:
    return {name: p.grad for name, p in net.named_parameters() if "qcircuit" in name}


def same(found: dict[str, Tensor | None], wanted: dict[str, Tensor | None], scale: float = 1.0) -> None:
    for name, grad in wanted.items():
        assert (found[name] is None) == (grad is None), name
        if grad is not None:
            close_gradient(found[name], scale * grad, name)


def unshared(net: Any) -> Any:
    """A model in which every layer makes its own frames, by autograd alone."""
    layers(net)[0].bank.made = lambda *_: None
    return net


def plain_grads(model: str, *seeds: int, **change: Any) -> dict[str, Tensor | None]:
    """The gradients of the summed losses, without the bank: every layer generates its own frames by autograd alone."""
    net = unshared(adapted(model, **change)).train()
    for seed in seeds or (0,):
        net(**inputs(model, seed=seed)).loss.backward()
    return {name: None if g is None else g.clone() for name, g in grads(net).items()}


@each_model
def test_one_call_for_each_family_of_frames(model: str, calls: list[int]) -> None:
    net = adapted(model).train()
    families = {f.family for layer in layers(net) for f in (layer.factors["default"].u, layer.factors["default"].v)}
    for step in range(1, 4):
        net(**inputs(model)).loss.backward()
        assert len(calls) == step * len(families) and sum(calls) == step * 2 * len(layers(net))
        shake(net, seed=step)  # of lambda nothing is made
        with torch.no_grad():
            layers(net)[step].qcircuit_u["default"].add_(0.1)


@pytest.mark.parametrize("entry", CONTRACT)
@each_model
def test_gradients_are_those_of_plain_autograd(model: str, entry: str) -> None:
    wanted = plain_grads(model, entry=entry, dropout=0.0)
    net = adapted(model, entry, dropout=0.0).train()
    net(**inputs(model)).loss.backward()
    same(grads(net), wanted)
    assert any(g is not None and g.abs().max() > 1e-4 for g in wanted.values())


def test_frozen_frames_are_kept_while_evaluating_and_never_stale(calls: list[int]) -> None:
    net = adapted("bert")
    bank = layers(net)[0].bank

    def fresh() -> Tensor:
        """What the model says when every layer makes its own frames."""
        return logits(unshared(copy.deepcopy(net)), "bert")

    def check(generations: int) -> None:
        before = bank.passes.generations
        for _ in range(3):
            found = logits(net, "bert")
        assert bank.passes.generations - before == generations
        close(found, fresh(), CHAIN)

    check(1)
    for _ in range(5):
        logits(net, "bert")
    check(0)
    last = layers(net)[-1]
    last.qcircuit_lambda["default"].data.mul_(2)
    check(0)
    layers(net)[0].qcircuit_v["default"].data.add_(0.1)
    check(1)
    with torch.no_grad():
        last.qcircuit_u["default"].add_(0.1)
    check(1)
    last.qcircuit_u["default"].data = last.qcircuit_u["default"].data + 0.1
    check(1)
    last.qcircuit_u["default"] = nn.Parameter(last.qcircuit_u["default"].detach() + 0.1)
    check(1)
    net.load_state_dict(adapted("bert", "default", seed=8).state_dict())
    check(1)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.5)
    net(**inputs("bert")).loss.backward()
    optimizer.step()
    check(1)
    net.add_adapter("other", config("bert", "ring"))
    shake(net, "other", 5)
    net.set_adapter("other")
    check(1)
    net.set_adapter("default")
    check(1)
    check(0)
    with torch.inference_mode():
        first = net(**inputs("bert")).logits
    close(first, fresh(), CHAIN)
    x = torch.randn(2, 5, 32, requires_grad=True)  # inference frames would refuse this
    net.requires_grad_(False)
    layers(net)[0](x).sum().backward()


def test_generate_generates_frames_once(calls: list[int]) -> None:
    net = adapted("gpt2")
    before = layers(net)[0].bank.passes.generations
    net.generate(
        input_ids=inputs("gpt2")["input_ids"], max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=0
    )
    assert layers(net)[0].bank.passes.generations - before == 1


@each_model
def test_two_forward_passes_before_two_backward_passes(model: str) -> None:
    wanted = plain_grads(model, 0, 1)
    net = adapted(model).train()
    first, second = net(**inputs(model, seed=0)).loss, net(**inputs(model, seed=1)).loss
    logits(net, model)  # an evaluation in between
    first.backward()
    second.backward()
    same(grads(net), wanted)
    assert layers(net)[0].bank.passes.generations == 1
    net.zero_grad()
    (net(**inputs(model, seed=0)).loss + net(**inputs(model, seed=1)).loss).backward()
    same(grads(net), wanted)
    net.zero_grad()
    for seed in (0, 1):
        net(**inputs(model, seed=seed)).loss.backward()
    same(grads(net), wanted)


def test_the_value_of_a_parameter_between_two_forward_passes_counts() -> None:
    net = adapted("llama").train()
    first = net(**inputs("llama")).loss
    for layer in layers(net):
        layer.qcircuit_lambda["default"].data.mul_(3)
    second = net(**inputs("llama")).loss
    other = adapted("llama").train()
    for layer in layers(other):
        layer.qcircuit_lambda["default"].data.mul_(3)
    assert first.item() != second.item() and second.item() == other(**inputs("llama")).loss.item()


def test_a_layer_used_twice_and_a_layer_not_used() -> None:
    def net() -> nn.Module:
        torch.manual_seed(0)
        made = nn.ModuleDict({name: nn.Linear(24, 24) for name in "abc"})
        return shake(get_peft_model(made, QCircuitConfig(r=4, target_modules=["a", "b", "c"], seed=1)))

    x = torch.randn(3, 24)
    shared, plain = net(), net()
    a, b, c = layers(shared)
    a(b(torch.tanh(a(x)))).square().sum().backward()
    expected = {}
    for layer in layers(plain):
        delta = layer.factors["default"].delta(layer.made_now("default"))
        expected[layer] = layer.base_layer.weight + delta, layer.base_layer.bias
    pa, pb, pc = layers(plain)
    linear = nn.functional.linear
    linear(linear(torch.tanh(linear(x, *expected[pa])), *expected[pb]), *expected[pa]).square().sum().backward()
    for layer, other in ((a, pa), (b, pb)):
        for p, q in zip(layer.parameters(), other.parameters(), strict=True):
            if p.requires_grad:
                close_gradient(p.grad, q.grad)
    assert all(p.grad is None for p in (*c.parameters(), *pc.parameters()))


def checkpointed(net: Any, reentrant: bool) -> Any:
    net.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    net.enable_input_require_grads()
    return net.train()


@pytest.mark.parametrize("reentrant", [True, False])
@each_model
def test_gradient_checkpointing(model: str, reentrant: bool) -> None:
    one, two = plain_grads(model), plain_grads(model, 0, 1)
    net = checkpointed(adapted(model), reentrant)
    net(**inputs(model)).loss.backward()
    same(grads(net), one)
    net.zero_grad()
    for seed in (0, 1):
        net(**inputs(model, seed=seed)).loss.backward()
    same(grads(net), two)
    net.zero_grad()
    (net(**inputs(model, seed=0)).loss + net(**inputs(model, seed=1)).loss).backward()
    same(grads(net), two)
    net.zero_grad()
    loss = net(**inputs(model)).loss
    logits(net.eval(), model)  # an evaluation between forward and backward
    net.train()
    loss.backward()
    same(grads(net), one)


@each_model
def test_checkpointing_without_reentry_generates_once(model: str) -> None:
    net = checkpointed(adapted(model), reentrant=False)
    bank = layers(net)[0].bank
    for step in range(1, 4):
        net(**inputs(model, seed=step)).loss.backward()
        assert bank.passes.generations == step
        with torch.no_grad():
            layers(net)[0].qcircuit_u["default"].add_(0.1)


class Blocks(nn.Module):
    """A linear layer in front, then blocks that may be recomputed; all are adapted."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.front, self.reentrant = nn.Linear(8, 8), reentrant
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.front(x).tanh()
        for block in self.blocks:
            x = block(x).tanh() if self.reentrant is None else checkpoint(block, x, use_reentrant=self.reentrant).tanh()
        return x


@pytest.mark.parametrize("reentrant", [True, False])
def test_an_adapted_layer_in_front_of_checkpointed_blocks(reentrant: bool) -> None:
    found = []
    for kind in (None, reentrant):
        torch.manual_seed(3)
        net = get_peft_model(Blocks(kind), QCircuitConfig(r=4, seed=0, target_modules=r"front|blocks\..*"))
        x = torch.randn(5, 8)
        shake(net)
        for _ in range(2):  # two accumulated batches
            net(x).square().sum().backward()
        found.append(grads(net))
    assert all(grad.any() for name, grad in found[0].items() if "lambda" in name)
    same(found[1], found[0])


def test_frames_of_frozen_adapters_are_served_in_recomputations_too() -> None:
    for reentrant in (True, False):
        net = checkpointed(adapted("llama"), reentrant)
        for layer in layers(net):
            layer.set_requires_grad("default", False)
        net(**inputs("llama")).loss.backward()
        assert layers(net)[0].bank.passes.generations == 1


def test_the_bank_keeps_nothing_alive() -> None:
    net = adapted("llama").train()
    net(**inputs("llama")).loss.backward()
    layer = weakref.ref(layers(net)[0])
    gc.collect()
    gc.disable()
    try:
        weight = weakref.ref(layer().base_layer.weight)
        del net
        assert layer() is None and weight() is None
    finally:
        gc.enable()


def _train_ddp(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1"}
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    found = {}
    for kind in (None, True, False):
        for model, targets in (("bert", ["query", "value", "dense"]), ("llama", MODELS["llama"][1])):
            net = adapted(model, target_modules=targets)
            if kind is not None:
                checkpointed(net, kind)
            net.train()
            parallel = DistributedDataParallel(net)
            steps = []
            for step in range(2):
                net.zero_grad()
                with parallel.no_sync():
                    parallel(**inputs(model, seed=10 * step + rank)).loss.backward()
                parallel(**inputs(model, seed=10 * step + 2 + rank)).loss.backward()
                steps.append({name: g.clone() for name, g in grads(net).items() if g is not None})
            found[kind, model] = steps
    if rank == 0:
        torch.save(found, f"{folder}/grads.pt")
    dist.destroy_process_group()


def test_two_processes_with_both_kinds_of_checkpointing(tmp_path: Path) -> None:
    mp.spawn(_train_ddp, (str(tmp_path),), nprocs=2)
    found = torch.load(tmp_path / "grads.pt")
    for (_, model), steps in found.items():
        for step, grad in enumerate(steps):
            wanted = plain_grads(model, *(10 * step + s for s in range(4)))
            same(grad, {name: g for name, g in wanted.items() if g is not None}, scale=0.5)
    assert len(found) == 6


def test_per_sample_gradients_by_functorch() -> None:
    """vmap of grad through a functional call, as private training and influence functions use it."""
    net = adapted("llama").train()
    net.base_model.model.set_attn_implementation("eager")  # torch has no batching rule for the other
    ours = {name: p.detach() for name, p in net.named_parameters() if "qcircuit" in name}
    batch = inputs("llama")

    def loss(parameters: dict[str, Tensor], ids: Tensor) -> Tensor:
        return torch.func.functional_call(net, parameters, (), {"input_ids": ids[None], "labels": ids[None]}).loss

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(ours, batch["input_ids"])
    for row in range(3):
        net.zero_grad()
        net(input_ids=batch["input_ids"][row : row + 1], labels=batch["labels"][row : row + 1]).loss.backward()
        same({name: grad[row] for name, grad in found.items()}, grads(net))


def test_frames_in_use_no_more_are_let_go() -> None:
    net = adapted("llama")
    bank = layers(net)[0].bank
    logits(net, "llama")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits(net, "llama")
    assert len(bank.passes._thread.kept) == 2
    net.double()
    logits(net, "llama")
    assert [dtype for *_, dtype, _ in bank.passes._thread.kept] == [torch.float64]


@pytest.mark.parametrize("entry", ["default", "shannon", "patterns"])
def test_a_penalty_on_the_gradient(entry: str) -> None:
    """Second derivatives, as gradient penalties and meta-learning take them, against plain autograd."""

    def penalized(net: Any) -> dict[str, Tensor | None]:
        net.base_model.model.set_attn_implementation("eager")  # the other has no second derivative
        ours = [p for name, p in net.named_parameters() if "qcircuit" in name]
        loss = net(**inputs("llama")).loss
        first = torch.autograd.grad(loss, ours, create_graph=True)
        second = torch.autograd.grad(loss + sum(g.square().sum() for g in first), ours)
        return {str(i): g for i, g in enumerate(second)}

    net = adapted("llama", entry, dropout=0.0).train()
    found = penalized(net)
    plain = unshared(adapted("llama", entry, dropout=0.0)).train()
    wanted = penalized(plain)
    same(found, wanted)
    net.zero_grad()
    net(**inputs("llama")).loss.backward()
    once = list(grads(net).values())
    assert all(not torch.allclose(g, second, rtol=1e-3) for g, second in zip(once, found.values(), strict=True))


def test_a_second_derivative_after_a_step_is_refused() -> None:
    net = adapted("llama").train()
    ours = [p for name, p in net.named_parameters() if "qcircuit" in name]
    loss = net(**inputs("llama")).loss
    with torch.no_grad():
        ours[0].add_(0.1)
    with pytest.raises(RuntimeError, match="a parameter of an adapter has changed since"):
        torch.autograd.grad(loss, ours, create_graph=True)


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.* is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_export_and_trace() -> None:
    net = shake(get_peft_model(Blocks(None), QCircuitConfig(r=4, target_modules=r"front|blocks\..*"))).eval()
    x = torch.randn(3, 8)
    for made in (torch.export.export(net.base_model.model, (x,)).module(), torch.jit.trace(net.base_model.model, (x,))):
        close(made(2 * x), net(2 * x), CHAIN)
