"""What only a GPU can tell: compiled programs in CUDA graphs, streams, memory, an adapted model; and the benchmark."""

import inspect
from pathlib import Path

import bounds
import pytest
import torch
from test_fused import interpreted
from test_native import draw, normal
from torch import nn

from qcircuit_peft import QCircuitConfig, columns, load
from qcircuit_peft.backends.native import fused, kernels

cuda = pytest.mark.cuda
FAMILY = load("simplified_two_design")
CIRCUITS = {
    "qubits": FAMILY.circuit(qubits=6, layers=1),
    "odd wires": FAMILY.circuit(dim=24, layers=1),
    "deep": FAMILY.circuit(qubits=4, layers=30),
}
every_circuit = pytest.mark.parametrize("circuit", CIRCUITS.values(), ids=list(CIRCUITS))


def expected(circuit, angles, g):
    """Values and gradient in float64 on a CPU."""
    exact = angles.detach().cpu().double().requires_grad_()
    value = columns(circuit, exact, g.shape[-1])
    return value, *torch.autograd.grad(value, exact, g.cpu().double())


def close(circuit, found, angles, g):
    for own, exact, size in zip(found, expected(circuit, angles, g), (1, g.norm()), strict=True):
        bounds.close(own.detach().cpu(), exact, bounds.gates(circuit), size=size)


def on_gpu(circuit, factors=3, k=5):
    angles = draw(circuit, factors, dtype=torch.float32).cuda().requires_grad_()
    return angles, normal(factors, circuit.dim, k, dtype=torch.float32).cuda()


@cuda
def test_the_kernels_are_chosen():
    """On a machine with Triton, a C compiler and a GPU of capability 8.0 or more."""
    angles, _ = on_gpu(CIRCUITS["qubits"])
    assert fused.serves(angles, CIRCUITS["qubits"], 5)


@cuda
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@every_circuit
def test_compiled(circuit, mode):
    """Many passes, each with other angles, and what is kept of a circuit made while a graph is being warmed up."""
    kernels._program.cache_clear()
    kernels._fused.cache_clear()
    torch._dynamo.reset()
    plain = inspect.unwrap(columns)
    run = torch.compile(lambda a: plain(circuit, a, 5) * 1.0, fullgraph=True, mode=mode)
    for seed in range(6):
        angles, g = on_gpu(circuit)
        angles.data.copy_(draw(circuit, 3, seed=seed, dtype=torch.float32))
        torch.compiler.cudagraph_mark_step_begin()
        value = run(angles)
        slope = torch.autograd.grad(value, angles, g)[0]
        close(circuit, (value.clone(), slope.clone()), angles, g)


@cuda
@every_circuit
def test_in_a_cuda_graph(circuit):
    angles, g = on_gpu(circuit)

    def run():
        value = columns(circuit, angles, 5)
        return value, *torch.autograd.grad(value, angles, g)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run()
    for seed in range(3):
        angles.data.copy_(draw(circuit, 3, seed=seed, dtype=torch.float32))
        graph.replay()
        close(circuit, found, angles, g)


@cuda
@every_circuit
def test_first_on_another_stream(circuit):
    """What is kept of a circuit is there for whoever comes first."""
    kernels._program.cache_clear()
    kernels._fused.cache_clear()
    angles, g = on_gpu(circuit)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        value = columns(circuit, angles, 5)
        found = value, *torch.autograd.grad(value, angles, g)
    torch.cuda.synchronize()
    close(circuit, found, angles, g)


@cuda
def test_the_same_bits_every_time():
    """No sum depends on which program comes first."""
    for circuit in (CIRCUITS["qubits"], FAMILY.circuit(qubits=12, layers=2)):
        angles, g = on_gpu(circuit, factors=24, k=8)
        first, *others = (torch.autograd.grad(columns(circuit, angles, 8), angles, g)[0] for _ in range(5))
        assert all(torch.equal(first, other) for other in others)


@cuda
def test_memory_is_that_of_the_result_and_a_quarter():
    circuit = FAMILY.circuit(qubits=12, layers=1)
    angles, _ = on_gpu(circuit, factors=24, k=8)
    columns(circuit, angles, 64)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    value = columns(circuit, angles, 64)
    assert torch.cuda.max_memory_allocated() - before <= 1.25 * value.nbytes


@cuda
def test_large_frames():
    """More numbers than 32 bits count, and a block of columns of the left half."""
    circuit = FAMILY.circuit(qubits=12, layers=1)
    angles, _ = on_gpu(circuit, factors=550, k=1)
    with torch.no_grad():
        found = columns(circuit, angles, 1024)
        assert found.numel() > 1 << 31
        exact = columns(circuit, angles[-1].cpu().double(), 1024)
    bounds.close(found[-1].cpu(), exact, bounds.gates(circuit), size=1)


@cuda
def test_a_model_trains_as_on_a_cpu():
    from peft import get_peft_model

    found = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        net = get_peft_model(
            nn.Sequential(nn.Linear(24, 32), nn.Tanh(), nn.Linear(32, 8)),
            QCircuitConfig(r=4, target_modules=["0", "2"], seed=0),
        ).to(device)
        loss = net(normal(5, 24, dtype=torch.float32).to(device)).square().sum()
        loss.backward()
        found.append([loss, *(p.grad for p in net.parameters() if p.grad is not None)])
    for ours, theirs in zip(*found, strict=True):
        operations = 2 * torch.pi * (24 * 32 * 200) ** 0.5  # of the layers and their circuits
        bounds.close(theirs.cpu(), ours, operations, size=max(1.0, float(ours.abs().max())))


# --- the benchmark ------------------------------------------------------------------------------------------

TABLES = ["Machine", "Agreement", "Frames", "4 columns", "Steps"]


@pytest.fixture
def gpu(monkeypatch):
    """benchmarks/gpu.py."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    import gpu

    return gpu


@pytest.mark.filterwarnings("ignore")  # of what is compared
@pytest.mark.parametrize("triton", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_benchmark_runs_with_tiny_sizes(triton, gpu, capsys, monkeypatch):
    """Every part has its rows, and none failed; where there is no GPU, its Triton form is interpreted."""
    if triton and not torch.cuda.is_available():
        pytest.importorskip("triton", reason="Triton is not installed")
        interpreted(monkeypatch)
    gpu.main(tiny=True, limit=1e9)
    told = capsys.readouterr().out
    assert [title for title in TABLES if f"\n## {title}" in told] == TABLES
    assert "Error" not in told and "Warning" not in told, told
    rows = [line.split("|")[1].strip() for line in told.splitlines() if line.startswith("| ")]
    assert {"MiniLM", "GPT-2 medium", "Llama-2-7B", "PennyLane, 1 factor", "TorchQuantum, 1 factor"} <= {*rows}
    assert not triton or told.count("| Triton |") >= 6 or torch.cuda.is_available()  # agreement and frames


@pytest.mark.filterwarnings("ignore")
def test_what_fails_in_the_benchmark_is_a_row(gpu, capsys, monkeypatch):
    def broken(*_):
        raise RuntimeError("out of memory\non several lines")

    monkeypatch.setattr(gpu, "pennylane", broken)
    report = gpu.Report(1e9)
    gpu.simulators(report, gpu.TINY)
    told = capsys.readouterr().out
    assert "| PennyLane, 1 factor: RuntimeError: out of memory |" in told
    assert "| TorchQuantum, 1 factor | " in told
    gpu.steps(gpu.Report(-1.0), gpu.TINY)
    assert capsys.readouterr().out.count("left out, the time was over") == 3
