"""Every way to write to a parameter, followed by every way to call a model, against a copy that never shares."""

import copy
import gc
import threading
from collections.abc import Callable
from itertools import cycle
from typing import Any

import pytest
import torch
from bounds import rounding
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from qcircuit_peft import QCircuitConfig, QPAConfig, columns, load
from qcircuit_peft.generator.model import QPAModel
from qcircuit_peft.tuner import QCircuitLayer

pytestmark = pytest.mark.filterwarnings("ignore:.*use_reentrant.*:UserWarning")

N = 8
X = torch.cos(torch.arange(3.0 * N)).view(3, N)


class Broken(Exception):
    """Raised amid a pass."""


class Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(N, N), nn.Linear(N, N)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(torch.tanh(self.a(x)))


class Net(nn.Module):
    """Two parts that can be called by themselves; ``depth`` times over, and with something done between them."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Part(), Part()
        self.reentrant: bool | None = None

    def forward(self, x: Tensor, depth: int = 0, between: Callable[[], None] | None = None) -> Tensor:
        x = self._run(self.encoder, x)
        if between is not None:
            between()
        if depth:
            x = self(x, depth - 1)
        return self._run(self.decoder, x)

    def _run(self, part: nn.Module, x: Tensor) -> Tensor:
        return part(x) if self.reentrant is None else checkpoint(part, x, use_reentrant=self.reentrant)


CIRCUIT = {"r": 4, "alpha": 4, "seed": 1, "target_modules": ["a", "b"]}
CONFIGS: dict[str, Callable[[], Any]] = {
    "svd": lambda: QCircuitConfig(**CIRCUIT),
    "frozen angles": lambda: QCircuitConfig(**CIRCUIT, train_angles=False),
    "shared": lambda: QCircuitConfig(**CIRCUIT, share="shape"),
    "rotation": lambda: QCircuitConfig(**CIRCUIT, factorization="rotation"),
    "train of taylor": lambda: QCircuitConfig(**CIRCUIT, factorization="tensor_train", frame="taylor"),
    "quantized": lambda: QCircuitConfig(**CIRCUIT, quantization={"bits": 6}),
    "qpa": lambda: QPAConfig(  # the other features are ill-conditioned where a probability is near 0
        base=LoraConfig(r=2, target_modules=["a", "b"]),
        **{"chunk_size": 16, "layers": 1, "widths": [4], "scope": "model", "features": "identity"},
    ),
}
each_config = pytest.mark.parametrize("kind", CONFIGS)
FEW = ("svd", "shared", "qpa")  # the others take the same ways
each_way = pytest.mark.parametrize(
    "kind", [k if k in FEW else pytest.param(k, marks=pytest.mark.slow) for k in CONFIGS]
)


def adapted(kind: str = "svd") -> Any:
    torch.manual_seed(0)
    net = get_peft_model(Net(), CONFIGS[kind]())
    with torch.no_grad():
        for p in ours(net).values():
            p.add_(torch.randn(p.shape) / 4)
    return net


def ours(net: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of the adapters; a tied one comes once."""
    return {name: p for name, p in net.named_parameters() if "qcircuit_" in name or "qpa_" in name}


def unshared(net: Any) -> Any:
    """A copy that makes everything anew, each time it is asked for."""
    other = copy.deepcopy(net)
    for layer in (module for module in other.modules() if isinstance(module, QCircuitLayer)):
        layer.bank.made = lambda *_: None
    if isinstance(other.base_model, QPAModel):
        for source in other.base_model.sources.values():
            source.passes.kept = lambda *_: None
    return other


def near(found: Tensor, wanted: Tensor) -> bool:
    """Equal up to rounding: some layers of width N, with angles of a few circuits of tens of operations."""
    size = float(wanted.detach().abs().max()) + 1
    return torch.allclose(found, wanted, rtol=0, atol=rounding(torch.float32, 400 * N, size))


def moved(p: Tensor) -> Tensor:
    """Other values, of the size of the old ones and different from each other."""
    return p.detach() * 0.9 + torch.cos(torch.arange(p.numel(), dtype=p.dtype)).view_as(p) / 10


def _swap(net: Any) -> None:
    for p in ours(net).values():
        torch.utils.swap_tensors(p, nn.Parameter(moved(p), requires_grad=p.requires_grad))


def _optimize(net: Any, **options: bool) -> None:
    trained = [p for p in ours(net).values() if p.requires_grad]
    for p in trained:
        p.grad = torch.ones_like(p)
    torch.optim.AdamW(trained, lr=0.1, **options).step()
    for p in trained:
        p.grad = None


def _load(net: Any, assign: bool) -> None:
    state = {name: moved(value) if name in ours(net) else value for name, value in net.state_dict().items()}
    net.load_state_dict(state, assign=assign)


def _in_place(net: Any) -> None:
    with torch.no_grad():
        for p in ours(net).values():
            p.copy_(moved(p))


def _data_copy(net: Any) -> None:
    for p in ours(net).values():
        p.data.copy_(moved(p))


def _new_data(net: Any) -> None:
    for p in ours(net).values():
        p.data = moved(p)


def _set(net: Any) -> None:
    with torch.no_grad():
        for p in ours(net).values():
            p.set_(moved(p))


def _numpy(net: Any) -> None:
    for p in ours(net).values():
        p.detach().numpy()[...] = moved(p).numpy()


def _one_entry(net: Any) -> None:
    next(reversed(ours(net).values())).data.view(-1)[-1].add_(0.5)


def _freeze(net: Any) -> None:
    for p in list(ours(net).values())[::2]:
        p.requires_grad_(not p.requires_grad)


def _double_and_back(net: Any) -> None:
    net.double()
    _data_copy(net)
    net.float()


WRITES: dict[str, Callable[[Any], None]] = {
    "nothing": lambda net: None,
    "in place": _in_place,
    ".data.copy_": _data_copy,
    ".data =": _new_data,
    "one entry of .data": _one_entry,
    "set_": _set,
    "numpy": _numpy,
    "load_state_dict": lambda net: _load(net, assign=False),
    "assign": lambda net: _load(net, assign=True),
    "swap_tensors": _swap,
    "foreach": lambda net: _optimize(net, foreach=True),
    "fused": lambda net: _optimize(net, fused=True),
    "requires_grad": _freeze,
    "double and back": _double_and_back,
}


def _broken(net: Any) -> list[Tensor]:
    def between() -> None:
        raise Broken

    with pytest.raises(Broken):
        net(X, between=between)
    return [net.base_model.model.decoder(X)]


def _half_way(net: Any) -> list[Tensor]:
    """A generator that calls a part and is left."""

    def stream() -> Any:
        yield net.base_model.model.encoder(X)
        yield net(X)

    streaming = stream()
    return [next(streaming), net.base_model.model.decoder(X)]


def _inference(net: Any) -> list[Tensor]:
    with torch.inference_mode():
        return [net(X)]


def _no_grad(net: Any) -> list[Tensor]:
    with torch.no_grad():
        return [net(X), net.base_model.model.encoder(X)]


CALLS: dict[str, Callable[[Any], list[Tensor]]] = {
    "whole": lambda net: [net(X)],
    "part": lambda net: [net.base_model.model.encoder(X)],
    "part then whole": lambda net: [net.base_model.model.decoder(X), net(X)],
    "whole then part": lambda net: [net(X), net.base_model.model.decoder(X)],
    "recursive": lambda net: [net(X, depth=2)],
    "two passes": lambda net: [net(X), net(2 * X)],
    "the inner model": lambda net: [net.base_model.model(X)],
    "an exception": _broken,
    "a generator left": _half_way,
    "no_grad": _no_grad,
    "inference_mode": _inference,
    "eval": lambda net: [net.eval()(X), net.train()(X)],
    "evaluated between": lambda net: [*_no_grad(net), net(X)],
}


def outcome(net: Any, call: str) -> list[Tensor]:
    """Outputs and, where there is a graph, the gradients of a sum of them, through one backward pass for each."""
    outputs = CALLS[call](net)
    for output in outputs:
        if output.requires_grad:
            output.square().sum().backward()
    found = [output.detach() for output in outputs]
    for p in ours(net).values():
        found.append(torch.zeros_like(p) if p.grad is None else p.grad.clone())
        p.grad = None
    return found


@pytest.mark.parametrize("write", WRITES)
@each_way
def test_nothing_is_stale(kind: str, write: str) -> None:
    net = adapted(kind)
    twin = unshared(net)
    for before, call in zip(cycle(("whole", "part", "no_grad", "two passes")), CALLS, strict=False):
        outcome(net, before)
        WRITES[write](net)
        WRITES[write](twin)
        for found, wanted in zip(outcome(net, call), outcome(twin, call), strict=True):
            assert near(found, wanted), (before, call)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("write", WRITES)
@each_way
def test_nothing_is_stale_where_checkpoints_recompute(kind: str, write: str, reentrant: bool) -> None:
    net = adapted(kind)
    net.base_model.model.reentrant = reentrant
    twin = unshared(net)
    x = X.clone().requires_grad_()
    for _ in range(3):
        for model in (net, twin):
            (model(x).square().sum() + model(2 * x).sum()).backward()
        for p, q in zip(ours(net).values(), ours(twin).values(), strict=True):
            assert (p.grad is None) == (q.grad is None)
            assert p.grad is None or near(p.grad, q.grad)
            p.grad = q.grad = None
        WRITES[write](net)
        WRITES[write](twin)


@each_config
def test_a_functional_call_uses_what_it_is_given(kind: str) -> None:
    net = adapted(kind)
    net(X)
    given = {name: moved(p).requires_grad_() for name, p in ours(net).items()}
    found = torch.func.functional_call(net, given, (X,))
    after = net(X)
    wanted = copy.deepcopy(net)
    with torch.no_grad():
        for p, value in zip(ours(wanted).values(), given.values(), strict=True):
            p.copy_(value)
    assert near(found, unshared(wanted)(X)) and near(after, unshared(net)(X)) and not near(found, after)


def test_a_parametrization_is_seen() -> None:
    class Half(nn.Module):
        def forward(self, value: Tensor) -> Tensor:
            return value / 2

    net = adapted()
    net(X)
    wanted = copy.deepcopy(net)
    for model in (net, wanted):
        layer = model.base_model.model.encoder.a
        if model is net:
            parametrize.register_parametrization(layer.qcircuit_u, "default", Half())
        else:
            layer.qcircuit_u["default"].data.div_(2)
    assert near(net(X), wanted(X))


@each_config
def test_adapters_are_switched(kind: str) -> None:
    net = adapted(kind)
    first = net(X)
    net.add_adapter("other", CONFIGS[kind]())
    net.set_adapter("other")
    assert near(net(X), unshared(net)(X)) and not near(net(X), first)
    with net.disable_adapter():
        assert near(net(X), Net.forward(copy.deepcopy(unshared(net)).unload(), X))
    net.set_adapter("default")
    assert near(net(X), first)
    net.delete_adapter("other")
    assert near(net(X), first)


@each_config
def test_one_thread_trains_while_another_evaluates(kind: str) -> None:
    steps = 40

    def train(net: Any) -> list[Tensor]:
        trained = [p for p in ours(net).values() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=1e-5)
        seen = []
        for step in range(steps):
            loss = net(X + step / steps).square().sum()
            optimizer.zero_grad()
            loss.backward()
            assert all(p.grad is not None for p in trained)
            optimizer.step()
            seen.append(loss.detach())
        return seen

    expected = train(adapted(kind))
    net = adapted(kind)
    failed: list[BaseException] = []
    done = threading.Event()

    def evaluate() -> None:
        try:
            while not done.is_set():
                with torch.no_grad():
                    net(X)
                    net.base_model.model.encoder(X)
        except BaseException as error:
            failed.append(error)

    other = threading.Thread(target=evaluate)
    other.start()
    try:
        found = train(net)
    finally:
        done.set()
        other.join()
    assert not failed
    assert all(torch.equal(a, b) and a.isfinite() for a, b in zip(found, expected, strict=True))


@each_config
def test_training_leaves_nothing_behind(kind: str) -> None:
    net = adapted(kind)
    trained = [p for p in ours(net).values() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-3)

    def run(steps: int) -> int:
        for _ in range(steps):
            optimizer.zero_grad()
            net(X).square().sum().backward()
            optimizer.step()
        gc.collect()
        return len(gc.get_objects())

    run(20)
    before = run(20)
    assert run(200) - before < 50  # a leak of one object a step would be 200


def test_a_copy_in_threads_of_data_parallel_makes_its_own() -> None:
    """What nn.DataParallel calls is a replica, whose tensors are not the parameters of the model."""
    net = adapted()
    replica = net._replicate_for_data_parallel()
    assert getattr(replica, "_is_replica", False)
    assert near(replica(X), net(X))


def test_unloading_leaves_no_hook() -> None:
    for kind in CONFIGS:
        inner = adapted(kind).unload()
        assert not any(module._forward_pre_hooks or module._forward_hooks for module in inner.modules()), kind


def test_several_backward_passes_go_through_one_pass() -> None:
    net = adapted()
    a, b = net.base_model.model.encoder.a, net.base_model.model.encoder.b
    passes = a.bank.passes
    passes.begin()
    first, second = a(X).sum(), b(X).sum()
    passes.end()
    first.backward()
    assert a.qcircuit_u["default"].grad.any() and b.qcircuit_u["default"].grad is None
    second.backward()
    assert b.qcircuit_u["default"].grad.any() and passes.generations == 1


def test_frozen_frames_are_made_once() -> None:
    net = adapted("frozen angles")
    lambdas = [p for p in ours(net).values() if p.requires_grad]
    for _ in range(5):
        net(X).square().sum().backward()
        with torch.no_grad():
            for p in lambdas:
                p.sub_(0.1 * p.grad)
    assert net.base_model.bank.passes.generations == 1


def test_a_generator_with_a_circuit_is_flat_under_hooks() -> None:
    """Hooks on saved tensors and a retained graph: what leaked in version 0.1."""
    circuit = load("simplified_two_design").circuit(qubits=4)
    angles = torch.rand(2, circuit.n_angles, requires_grad=True)

    def run(times: int) -> int:
        for _ in range(times):
            with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
                out = columns(circuit, angles, 4)
            torch.autograd.grad(out.sum(), angles, retain_graph=True)
        del out
        gc.collect()
        return len(gc.get_objects())

    run(10)
    before = run(10)
    assert run(100) - before < 50
