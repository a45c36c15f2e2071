"""Adapted models whose parameters are not all here: sharded over processes, offloaded; and models that are compiled."""

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from accelerate import cpu_offload, disk_offload, dispatch_model, infer_auto_device_map
from bounds import close
from test_generation import CONFIGS, N, Part, X, adapted
from tiny import adapted as adapted_model
from tiny import logits, told_by_a_fresh_process
from torch import Tensor
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

STEPS, RATE = 3, 1e-4


def batch(rank: int, step: int) -> Tensor:
    return X + step + rank / 2


def losses_alone(kind: str) -> list[float]:
    """What one process sees that has the batches of both."""
    net = adapted(kind)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=RATE)
    seen = []
    for step in range(STEPS):
        loss = sum(net(batch(rank, step)).square().mean() for rank in range(2)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    return seen


def _train_sharded(rank: int, folder: str, version: int, kinds: list[str]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1"}
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous{version}", rank=rank, world_size=2)
    found: dict[str, Any] = {}
    for kind in kinds:
        net: Any = adapted(kind)
        try:
            if version == 2:
                for part in (net.base_model.model.encoder, net.base_model.model.decoder):
                    fully_shard(part)
                fully_shard(net)
            else:
                net = FullyShardedDataParallel(
                    net,
                    auto_wrap_policy=ModuleWrapPolicy({Part}),
                    use_orig_params=True,
                    device_id=torch.device("cpu"),
                )
            optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=RATE)
            seen = []
            for step in range(STEPS):
                loss = net(batch(rank, step)).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                both = loss.detach().clone()
                dist.all_reduce(both)
                seen.append(both.item() / 2)
            found[kind] = seen
        except ValueError as error:
            found[kind] = str(error)
    if rank == 0:
        torch.save(found, f"{folder}/seen{version}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("version", [2, 1])
def test_sharded_training_is_that_of_one_process(version: int, tmp_path: Path) -> None:
    kinds = [kind for kind in CONFIGS if kind != "quantized"]
    mp.spawn(_train_sharded, (str(tmp_path), version, kinds), nprocs=2)
    found = torch.load(tmp_path / f"seen{version}.pt")
    for kind in kinds:
        if kind == "shared":  # the holder of the angles is in another unit
            assert "share circuits among layers of one FSDP unit only" in found[kind]
        else:  # sums over 12 outputs of either process, in another order
            close(torch.tensor(found[kind]), torch.tensor(losses_alone(kind)), 12 * N, where=kind)


OFFLOADS = {
    "cpu": lambda net, folder: cpu_offload(net, execution_device=torch.device("cpu")),
    "disk": lambda net, folder: disk_offload(net, str(folder), execution_device=torch.device("cpu")),
    "device_map": lambda net, folder: dispatch_model(
        net,
        infer_auto_device_map(net, {"cpu": 200_000, "disk": 1 << 30}, no_split_module_classes=["LlamaDecoderLayer"]),
        main_device="cpu",
        offload_dir=str(folder),
        force_hooks=True,
    ),
}


@pytest.mark.parametrize("entry", ["default", "shared", "quantized"])
@pytest.mark.parametrize("kind", OFFLOADS)
def test_offloaded_parameters_are_brought_back(kind: str, entry: str, tmp_path: Path) -> None:
    net = adapted_model("llama", entry)
    expected = logits(net, "llama")
    away = OFFLOADS[kind](copy.deepcopy(net), tmp_path)
    assert any(p.is_meta for name, p in away.named_parameters() if "qcircuit_" in name)
    for _ in range(2):
        assert torch.equal(logits(away, "llama"), expected)
    assert any(p.is_meta for name, p in away.named_parameters() if "qcircuit_" in name)


COMPILED = """
import sys
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from tiny import adapted, compare_compiled
for entry in ("default", "shannon", "quantized"):
    compare_compiled(adapted("llama", entry, dropout=0.0).train(), "llama")
    print(entry)
"""


def test_a_compiled_model_is_one_graph() -> None:
    assert told_by_a_fresh_process(COMPILED, Path(__file__).parent).count("\n") == 3


# Whose parameters are generated: once for a call, however many modules ask for them.
GENERATED = """
import copy
import sys
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from bounds import close
from test_qpa import adapted, config
from tiny import CHAIN, compare_compiled, inputs
count = []
def backend(graph, given):
    count.append(sum("qcircuit_peft" in str(node.target) for node in graph.graph.nodes))
    return torch._dynamo.lookup_backend("aot_eager")(graph, given)
def a_copy_without_another():
    net = adapted("lora")
    net.add_adapter("second", config("lora", seed=1))
    net.delete_adapter("second")
    return copy.deepcopy(net)
CASES = {
    "lora": lambda: adapted("lora"),
    "classical": lambda: adapted("lora", control="classical"),
    "prefix": lambda: adapted("prefix"),
    "circuit": lambda: adapted("circuit"),
    "copy": a_copy_without_another,
}
for case, make in CASES.items():
    count.clear()
    net = make().train()
    with torch.no_grad():
        for p in (p for p in net.parameters() if p.requires_grad):
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    compare_compiled(net, "llama", backend)
    print(case, count)
    if case == "lora":  # transformers' own hooks break a graph with checkpoints
        torch._dynamo.reset()
        net.zero_grad()
        net(**inputs("llama")).loss.backward()
        trained = {name: p for name, p in net.named_parameters() if p.requires_grad}
        wanted = {name: p.grad for name, p in trained.items()}
        net.zero_grad()
        net.config.use_cache = False
        net.base_model.model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.compile(net, backend="aot_eager")(**inputs("llama")).loss.backward()
        for name, p in trained.items():
            close(p.grad, wanted[name], 2 * CHAIN, where=name)
"""


def test_a_compiled_model_of_generated_parameters_is_one_graph_that_generates_once() -> None:
    told = told_by_a_fresh_process(GENERATED, Path(__file__).parent)
    counts = dict(line.rsplit(" ", 1) for line in told.splitlines())
    assert len(counts) == 5 and counts["lora"] == counts["copy"] == counts["prefix"] == "[1]", counts
    assert counts["classical"] == "[0]", counts
