"""Adaptive rank: scores, the budget, what comes back, checkpoints, the Trainer."""

import base64
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora.conversion import save_as_lora
from safetensors.torch import load_file, save_file
from tiny import FRESH, adapted, base, close_logits, config, inputs, layers, logits, told_by_a_fresh_process
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from qcircuit_peft import AdaptiveRank, AdaptiveRankCallback, Allocator, QCircuitConfig, load
from qcircuit_peft.factorizations import FACTORIZATIONS
from qcircuit_peft.factorizations.parts import frames
from qcircuit_peft.frames import FRAMES
from qcircuit_peft.tuner.adaptive import choose
from qcircuit_peft.tuner.pruning import pack, unpack

FRAME_OPTIONS = {name: {"intrinsic_rank": 3} for name, kind in FRAMES.items() if "intrinsic_rank" in kind.options}
CASES = {f"svd of {name}": {"frame": name} for name in FRAMES} | {
    name: {"factorization": name, "layers": 2} for name in FACTORIZATIONS
}
CASES["shared, Shannon"] = {"width": "shannon", "layers": 2, "share": "kind"}
CASES["frozen"] = {"train_angles": False}
EXTRA = {"quanta": {"order": 2}}


def net_of(case: str = "svd of circuit", **change: Any) -> Any:
    """Two linear layers, 12 to 12, with an adapter in each."""
    settings = {"r": 3, "layers": 3, "seed": 1, "target_modules": ["a"], **CASES[case], **change}
    settings["frame_options"] = FRAME_OPTIONS.get(settings.get("frame", ""), {})
    settings["factorization_options"] = EXTRA.get(settings.get("factorization", ""), {})
    torch.manual_seed(0)
    blocks = nn.Sequential(*(nn.Sequential() for _ in range(2)))
    for block in blocks:
        block.add_module("a", nn.Linear(12, 12))
    return get_peft_model(blocks, QCircuitConfig(**settings))


def trained(net: Any) -> list[Tensor]:
    return [p for p in net.parameters() if p.requires_grad]


def run(net: Any, settings: AdaptiveRank, steps: int, watch: Any = lambda allocator: None) -> Allocator:
    """A training of some steps on fixed data."""
    allocator = Allocator(net, settings, steps)
    optimizer = torch.optim.Adam(trained(net), lr=0.05)
    x, y = (torch.randn(16, 12, generator=torch.Generator().manual_seed(k)) for k in range(2))
    for _ in range(steps):
        (net(x) - y).square().mean().backward()
        optimizer.step()
        allocator.step()
        optimizer.zero_grad()
        watch(allocator)
    return allocator


def entries_left(net: Any) -> int:
    """The parameters that are not zero."""
    return sum(int((p != 0).sum()) for p in trained(net))


def greedy(scores: list[float], sizes: list[int], budget: int) -> list[bool]:
    kept = [False] * len(scores)
    for index in sorted(range(len(scores)), key=lambda index: -scores[index]):
        if sizes[index] <= budget:
            kept[index], budget = True, budget - sizes[index]
    return kept


def test_groups_are_taken_by_falling_score() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        sizes = random.integers(1, 9, 12)
        scores = random.integers(0, 6, 12).astype(float)  # with equals
        budget = int(random.integers(0, sizes.sum() + 1))
        found = choose(torch.tensor(scores), torch.tensor(sizes), budget)
        assert found.tolist() == greedy(scores.tolist(), sizes.tolist(), budget)


def test_scores_are_those_of_adalora() -> None:
    net = net_of("svd of taylor")
    allocator = Allocator(net, AdaptiveRank(100, beta1=0.7, beta2=0.6), 50)
    random = np.random.default_rng(0)
    smoothed = {id(p): [np.zeros(len(p)), np.zeros(len(p))] for p in trained(net)}
    for _ in range(4):
        for p in trained(net):
            value, grad = random.normal(size=len(p)), random.normal(size=len(p))
            with torch.no_grad():
                p.copy_(torch.tensor(value))
            p.grad = torch.tensor(grad, dtype=p.dtype)
            mean, uncertainty = smoothed[id(p)]
            sensitivity = np.abs(value * grad)
            mean = 0.7 * mean + 0.3 * sensitivity
            smoothed[id(p)] = [mean, 0.6 * uncertainty + 0.4 * np.abs(sensitivity - mean)]
        allocator.step()
    expected = []
    rows = np.concatenate([np.full(11 - j, j) for j in range(3)])  # column j of B has 12 - 1 - j entries
    for layer in layers(net):
        for part, p in layer.intrinsic_parameters("default").items():
            entries = np.multiply(*smoothed[id(p)])
            expected += entries.tolist() if part == "lambda" else [entries[rows == j].mean() for j in range(3)]
    assert np.allclose(allocator.scores().numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.parametrize("n", [12, 13, 16])
def test_groups_of_frames_are_columns_and_layers(name: str, n: int) -> None:
    spec = FRAMES[name].spec(n, 3, **({"layers": 2} if "layers" in FRAMES[name].options else {}))
    if hasattr(spec, "lower"):
        for j, where in enumerate(spec.groups):
            b = spec.lower(torch.zeros(spec.n_parameters).index_fill_(0, torch.arange(spec.n_parameters)[where], 1.0))
            assert torch.equal(b, torch.ones(n, 3).tril(-1) * (torch.arange(3) == j))
        return
    if name == "compound":  # a matrix each
        assert list(spec.groups) == [where for _, _, where in spec.circuits()]
        return
    ansatz, expected = load("simplified_two_design"), []
    for leaf, circuit, where in spec.circuits():
        if leaf.startswith("outer"):  # of the diagonal frame: rotations only
            continue
        once = len([op for step in ansatz.first for op in step.ops(len(circuit.dims))])
        layer = len([op for step in ansatz.layer for op in step.ops(len(circuit.dims))])
        for index in range(2):
            ops = circuit.ops[once + index * layer : once + (index + 1) * layer]
            expected.append([where.start + angle for op in ops for angle in op.angles or ()])
    found = [list(range(where.start, where.stop)) for where in spec.groups]
    assert found == [angles for angles in expected if angles]


@pytest.mark.filterwarnings("ignore:the . angles of .* on 2 qubits:UserWarning")  # of the leaves of Shannon's
@pytest.mark.parametrize("case", CASES)
def test_the_budget_is_kept_and_used(case: str) -> None:
    net = net_of(case)
    full = sum(p.numel() for p in trained(net))
    probe = Allocator(net_of(case), AdaptiveRank(full), 1)
    never, sizes = probe.n_kept - int(probe._sizes.sum()), probe._sizes
    assert probe.full == full == probe.n_kept
    settings, counts = AdaptiveRank(never + (full - never) // 2, 0.2, 0.3, 2), []
    allocator = run(net, settings, 12, lambda allocator: counts.append((allocator.n_kept, entries_left(net))))
    for step, (kept, left) in enumerate(counts, 1):
        last = max((at for at in (4, 6, 8, 9) if at <= step), default=0)
        assert kept <= settings.at(last, 12, full) if last else kept == full
        assert left <= kept or step in (5, 7)  # pruned groups go on learning between two allocations
    assert [kept for kept, _ in counts[8:]] == 4 * [allocator.n_kept]
    pruned = sizes[~allocator._kept]
    assert settings.budget - allocator.n_kept < pruned.min()
    assert entries_left(net) <= allocator.n_kept <= settings.budget
    for layer in layers(net):
        for part, frame in frames(layer.factors["default"]).items():
            columns = frame.columns(layer.values("default")[part].double())
            if case != "svd of neumann":  # a truncated series, which this training drives too far
                assert torch.allclose(columns.mT @ columns, torch.eye(frame.k).double(), atol=1e-5)
    x = torch.randn(2, 12)
    seen = net(x)
    net.base_model.bank.clear()
    assert torch.equal(net(x), seen)


def test_a_pruned_group_comes_back() -> None:
    net = net_of("svd of taylor")
    allocator = Allocator(net, AdaptiveRank(30, 0.0, 0.3, 2), 80)
    first, _ = layers(net)
    u, v = first.qcircuit_u["default"], first.qcircuit_v["default"]
    for step in range(1, 57):
        for p in trained(net):
            p.grad = torch.full_like(p, 1e-3 if p is u or p is v else 2e-3)
            with torch.no_grad():
                p.add_(0.1)
        (v if step <= 28 else u).grad.fill_(1.0)
        allocator.step()
        if step in (28, 56):
            found = {part: all(kept) for part, kept in allocator.kept().items()}
            assert (found["0.a.u"], found["0.a.v"]) == (step == 56, step == 28)
            assert (bool(u.all()), bool(u.any())) == ((True, True) if step == 56 else (False, False))
            assert (bool(v.all()), bool(v.any())) == ((True, True) if step == 28 else (False, False))


def test_a_step_with_infinite_gradients_is_not_scored() -> None:
    net = net_of()
    allocator = Allocator(net, AdaptiveRank(60), 20)
    for grad in (1.0, float("inf"), float("nan")):
        for p in trained(net):
            p.grad = torch.full_like(p, grad)
        allocator.step()
        scores = allocator.scores() if grad == 1.0 else scores
    assert torch.equal(allocator.scores(), scores)
    assert scores.any()


def test_a_layer_without_gradients_scores_zero() -> None:
    net = net_of()
    allocator = Allocator(net, AdaptiveRank(60), 20)
    with pytest.raises(ValueError, match="no parameter of adapter 'default' has a gradient"):
        allocator.step()
    assert allocator.steps == 0
    layers(net)[1].qcircuit_u["default"].grad = torch.ones_like(layers(net)[1].qcircuit_u["default"])
    allocator.step()
    parts = [part for part, kept in allocator.kept().items() for _ in kept]
    assert {part for part, score in zip(parts, allocator.scores(), strict=True) if score > 0} == {"1.a.u"}


def test_the_report_counts_what_is_there() -> None:
    net = net_of("svd of taylor")
    allocator = run(net, AdaptiveRank(60), 12)
    first, *rows = str(allocator).splitlines()
    assert first == f"step 12: {allocator.n_kept} of 126 parameters"
    for layer, row in zip(layers(net), rows, strict=True):
        left = {part: p for part, p in layer.intrinsic_parameters("default").items()}
        b = {part: frames(layer.factors["default"])[part].lower(left[part].detach()) for part in "uv"}
        told = [f"{part} {int(b[part].any(0).sum())}/3" for part in "uv"]
        told.append(f"lambda {int((left['lambda'] != 0).sum())}/3")
        assert ", ".join(told) in row
        assert row.endswith(f"; {sum(int((p != 0).sum()) for p in left.values())} parameters")


class Rows(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids = torch.randint(3, 64, (9,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": ids, "labels": ids}


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = control.should_save = state.global_step == self.step


def trainer(folder: Path, *callbacks: Any, **options: Any) -> Trainer:
    torch.manual_seed(0)
    settings = {"max_steps": 8, "save_steps": 4, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    settings |= {"seed": 1, "learning_rate": 0.03, "lr_scheduler_type": "constant"}
    quiet = {"report_to": "none", "disable_tqdm": True, "logging_strategy": "no", "dataloader_pin_memory": False}
    net = get_peft_model(base("llama"), config("llama", seed=2, layers=2))
    arguments = TrainingArguments(str(folder), **settings | options, **quiet)
    return Trainer(net, arguments, train_dataset=Rows(), callbacks=list(callbacks))


SCHEDULE = AdaptiveRank(200, 0.0, 0.25, 2)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, AdaptiveRankCallback]:
    callback = AdaptiveRankCallback(SCHEDULE)
    found = trainer(tmp_path_factory.mktemp("straight"), callback)
    found.train()
    return found, callback


@pytest.mark.parametrize(("step", "restore"), [(3, False), (7, True)])
def test_a_resumed_training_goes_on_exactly(step: int, restore: bool, straight: Any, tmp_path: Path) -> None:
    whole, callback = straight
    trainer(tmp_path, AdaptiveRankCallback(SCHEDULE), StopAt(step)).train()
    again = AdaptiveRankCallback(SCHEDULE)
    second = trainer(tmp_path, again, restore_callback_states_from_checkpoint=restore)
    second.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert entries_left(whole.model) <= callback.allocator.n_kept <= 200 < callback.allocator.full
    for ours, theirs in zip(trained(second.model), trained(whole.model), strict=True):
        assert torch.equal(ours, theirs)
    stored = json.loads((tmp_path / "checkpoint-8" / "trainer_state.json").read_text())
    assert stored["stateful_callbacks"]["AdaptiveRankCallback"] == callback.state()
    restored = AdaptiveRankCallback.from_state(callback.state())
    assert restored.settings == SCHEDULE


def test_checkpoints_of_another_training_are_refused(straight: Any, tmp_path: Path) -> None:
    whole, _ = straight
    source = Path(whole.args.output_dir) / "checkpoint-4"

    def refused(told: str, callback: Any = None, state: Any = None, **options: Any) -> None:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        subprocess.run(["cp", "-r", str(source), str(folder)], check=True)
        if state is not None:
            whole_state = json.loads((folder / "trainer_state.json").read_text())
            whole_state["stateful_callbacks"]["AdaptiveRankCallback"] = state
            (folder / "trainer_state.json").write_text(json.dumps(whole_state))
        with pytest.raises(ValueError, match=told):
            trainer(tmp_path / "out", callback or AdaptiveRankCallback(SCHEDULE), **options).train(
                resume_from_checkpoint=str(folder)
            )

    def text(data: bytes) -> dict[str, Any]:
        return {"args": {}, "attributes": {"stored": base64.b64encode(data).decode()}}

    refused("of step 4 of 8 with a budget of 200, but this training has 9 steps", max_steps=9)
    refused("a budget of 201", AdaptiveRankCallback(AdaptiveRank(201, 0.0, 0.25, 2)))
    refused("no whole state of adaptive rank", state={"args": {}, "attributes": {}})
    refused("no whole state of adaptive rank", state=[])
    refused("no whole state of adaptive rank", state=text(b"\xff" * 64))


def test_a_state_that_lies_is_refused_and_changes_nothing() -> None:
    net = net_of()
    allocator = run(net, AdaptiveRank(60), 10)
    state = allocator.state_dict()
    lies: list[tuple[dict[str, Any], str]] = [
        ({"mean": state["mean"][:-1]}, "has mean of torch.float32"),
        ({"kept": state["kept"].long()}, "has kept of torch.bool"),
        ({"uncertainty": None}, "has uncertainty of torch.float32 .* got NoneType"),
        ({"mean": -state["mean"] - 1}, "negative or not finite"),
        ({"mean": torch.full_like(state["mean"], torch.nan)}, "negative or not finite"),
        ({"progress": state["progress"] + torch.tensor([1, 0, 0])}, "of step 11 of 10"),
    ]
    fresh = Allocator(net_of(), AdaptiveRank(60), 10)
    before = fresh.state_dict()
    for change, told in lies:
        with pytest.raises(ValueError, match=told):
            fresh.load_state_dict(state | change)
        assert all(torch.equal(value, before[key]) for key, value in fresh.state_dict().items())
    fresh.load_state_dict(state)
    assert all(torch.equal(value, state[key]) for key, value in fresh.state_dict().items())
    assert str(fresh) == str(allocator)


BAD = {
    "too small": (AdaptiveRank(19), {}, r"from 20 \(never pruned\) to 98 \(all\), got 19"),
    "too large": (AdaptiveRank(99), {}, "got 99"),
    "another adapter": (AdaptiveRank(60), {"adapter": "other"}, r"adapter='other'; the model has \['default'\]"),
    "no steps": (AdaptiveRank(60), {"total_steps": 0}, "total_steps is a whole number >= 1"),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_makes_no_sense_is_refused(bad: str) -> None:
    settings, options, told = BAD[bad]
    net = net_of()
    with pytest.raises(ValueError, match=told):
        Allocator(net, settings, **{"total_steps": 5} | options)
    assert not any(encoding.pruned for layer in layers(net) for encoding in layer.encodings["default"].values())


def test_models_without_a_trained_adapter_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the model has \[\]"):
        Allocator(nn.Linear(3, 3), AdaptiveRank(3), 5)
    with pytest.raises(ValueError, match="nothing that trains"):
        Allocator(net_of().requires_grad_(False), AdaptiveRank(3), 5)
    with pytest.raises(ValueError, match=r"0\.a\.u of adapter 'default' is quantized"):
        Allocator(net_of(quantization={"bits": 3}), AdaptiveRank(60), 5)
    net = net_of()
    net.add_adapter("other", QCircuitConfig(r=2, target_modules=["a"]))
    net.base_model.set_adapter(["default", "other"])
    with pytest.raises(ValueError, match=r"of which .* are active"):
        Allocator(net, AdaptiveRank(60), 5)
    Allocator(net, AdaptiveRank(60), 5, adapter="default")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"budget": 0}, "budget is a whole number >= 1"),
        ({"every": 0}, "every is a whole number"),
        ({"warmup": -0.1}, "warmup is a number from 0 to below 1"),
        ({"beta1": 1.0}, "beta1 is a number"),
        ({"warmup": 0.5, "final": 0.5}, "a sum below 1"),
    ],
)
def test_bad_settings_are_refused(given: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        AdaptiveRank(**{"budget": 10} | given)


def file_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def pruned_llama(**change: Any) -> Any:
    """A model that was pruned to a third of its parameters."""
    net = adapted("llama", **{"frame": "taylor", "frame_options": {"intrinsic_rank": 4}} | change)
    full = sum(p.numel() for p in trained(net))
    allocator = Allocator(net, AdaptiveRank(full // 3), 1)
    net(**inputs("llama")).loss.backward()
    allocator.step()
    net.zero_grad()
    return net


def test_in_a_fresh_process(tmp_path: Path) -> None:
    base("llama").save_pretrained(tmp_path / "base")
    net = pruned_llama()
    net.save_pretrained(tmp_path / "adapter")
    torch.save((inputs("llama")["input_ids"], logits(net, "llama")), tmp_path / "expected.pt")
    told_by_a_fresh_process(FRESH, tmp_path)


@pytest.mark.parametrize("change", [{}, {"frame": "circuit", "frame_options": {}, "layers": 4, "share": "kind"}])
def test_what_is_pruned_is_not_stored(change: dict[str, Any], tmp_path: Path) -> None:
    net = pruned_llama(**change)
    plain = sum(4 * p.numel() for p in trained(net))
    net.save_pretrained(tmp_path / "first")
    stored = file_of(tmp_path / "first")
    left, groups = 4 * entries_left(net), sum(map(len, Allocator(net, AdaptiveRank(plain // 4), 1).kept().values()))
    assert left <= sum(data.nbytes for data in stored.values()) <= left + groups // 8 + 2 * len(stored) < plain / 2
    loaded = PeftModel.from_pretrained(base("llama"), tmp_path / "first", is_trainable=True)
    other = get_peft_model(base("llama"), net.peft_config["default"]).eval()
    set_peft_model_state_dict(other, get_peft_model_state_dict(net))
    again = base("llama")
    again.load_adapter(str(tmp_path / "first"))
    for model in (loaded.eval(), other, again):
        assert torch.equal(logits(model, "llama"), logits(net, "llama"))
    loaded.save_pretrained(tmp_path / "second")
    assert all(torch.equal(data, stored[key]) for key, data in file_of(tmp_path / "second").items())
    save_as_lora(tmp_path / "lora", net, rank=6)
    lora = PeftModel.from_pretrained(base("llama"), tmp_path / "lora")
    merged = loaded.merge_and_unload()
    for model in (lora, merged):
        close_logits(model, "llama", logits(net, "llama"))


def test_adapters_that_were_never_pruned_are_stored_as_ever(tmp_path: Path) -> None:
    get_peft_model(base("llama"), config("llama")).save_pretrained(tmp_path)
    assert {data.dtype for data in file_of(tmp_path).values()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_bytes_stand_for_the_vector(dtype: torch.dtype) -> None:
    owner = torch.tensor([-1, -1, *(k for k in range(9) for _ in range(3)), -1])
    x = torch.arange(1.0, 31.0, dtype=dtype)
    assert pack(x, owner) is x
    x[[0, 29]] = 0
    x[(owner == 0) | (owner == 8) | (owner == 4)] = 0
    x[5] = 0  # in a group that is kept
    data = pack(x, owner)
    assert data.dtype == torch.uint8 and len(data) == 1 + 2 + dtype.itemsize * (3 + 6 * 3)
    assert torch.equal(unpack(data, owner), x) and unpack(data, owner).dtype == dtype
    assert torch.equal(unpack(pack(torch.zeros(30, dtype=dtype), owner), owner), torch.zeros(30, dtype=dtype))


LIES = {
    "shorter": lambda data: data[:-1],
    "longer": lambda data: torch.cat([data, data]),
    "empty": lambda data: data[:0],
    "folded": lambda data: data[:, None],
    "another dtype": lambda data: torch.cat([data.new_tensor([9]), data[1:]]),
    "more groups": lambda data: torch.cat([data[:1], data[1:2] | 1, data[2:]]),
    "another group": lambda data: torch.cat([data[:1], data[1:2] ^ 128, data[2:]]),
    "not finite": lambda data: torch.cat([data[:-4], data.new_tensor([0, 0, 192, 127])]),
    "signed": lambda data: data.to(torch.int8),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_file_that_lies_is_refused_before_anything_changes(lie: str, tmp_path: Path) -> None:
    net = pruned_llama()
    net.save_pretrained(tmp_path)
    stored = file_of(tmp_path)
    key = next(key for key, data in stored.items() if data.dtype == torch.uint8 and len(data) > 40)
    changed = {**stored, key: LIES[lie](stored[key]).contiguous()}
    save_file(changed, tmp_path / "adapter_model.safetensors", {"format": "pt"})
    model = base("llama")
    before = [name for name, _ in model.named_modules()]
    for attempt in (
        lambda: PeftModel.from_pretrained(model, tmp_path),
        lambda: model.load_adapter(str(tmp_path)),
        lambda: set_peft_model_state_dict(net, changed),
    ):
        expected = logits(net, "llama")
        with pytest.raises(ValueError, match=r"qcircuit_\w+"):
            attempt()
        assert torch.equal(logits(net, "llama"), expected)
    assert [name for name, _ in model.named_modules()] == before
