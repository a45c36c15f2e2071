"""Everything that is to be known of a GPU, in one run that begins nothing new after 220 seconds.

Agreement with float64 on a CPU; the time of frames against that of writing them; other simulators on the same GPU;
training steps, their memory and kernels beside LoRA, VeRA and FourierFT; generation. Weights are random, of the models'
shapes. Tables in Markdown go to standard output as they are made; what fails is a row, and the rest goes on.

    python benchmarks/gpu.py            # on a GPU
    python benchmarks/gpu.py --tiny     # on a CPU, tiny sizes: shows that it runs, and nothing else
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
import typer
from _timing import Dispatched  # first: it sets the number of threads
from native import pennylane, torchquantum
from peft import FourierFTConfig, LoraConfig, VeraConfig, get_peft_model
from torch import Tensor, nn
from torch.optim import AdamW
from torch.profiler import ProfilerActivity, profile
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from qcircuit_peft import Circuit, QCircuitConfig, columns, load
from qcircuit_peft.backends.native import fused

SECONDS = 220  # after which nothing new is begun
TWO_DESIGN = load("simplified_two_design")


@dataclass(frozen=True)
class Sizes:
    """What is measured: on a GPU, or tiny on a CPU."""

    device: torch.device
    copy: int  # numbers that are copied to find the rate
    agree: tuple[tuple[dict[str, int], int, int], ...]  # width, layers, columns
    qubits: int
    factors: tuple[int, ...]
    columns: tuple[int, ...]
    repeats: int
    tokens: int


GPU = Sizes(
    torch.device("cuda"), 1 << 28,
    (({"qubits": 12}, 1, 64), ({"qubits": 12}, 3, 200), ({"dim": 768}, 1, 16), ({"dim": 11008}, 1, 8),
     ({"qubits": 6}, 12, 8)),
    12, (24, 448), (8, 64, 256), 20, 48,
)  # fmt: skip
TINY = Sizes(torch.device("cpu"), 1 << 12, (({"qubits": 2}, 1, 3), ({"dim": 6}, 1, 2)), 2, (2,), (1, 3), 1, 2)


class Report:
    """Tables as they are made."""

    def __init__(self, seconds: float) -> None:
        self.until = time.monotonic() + seconds

    def table(self, title: str, *names: str) -> None:
        """Begin a table."""
        print(f"\n## {title}\n\n| {' | '.join(names)} |\n|{'---|' * len(names)}", flush=True)

    def row(self, *cells: object) -> None:
        """Add a row."""
        print(f"| {' | '.join(map(str, cells))} |", flush=True)

    def in_time(self) -> None:
        """Raise TimeoutError where nothing more is to begin."""
        if time.monotonic() > self.until:
            raise TimeoutError("left out, the time was over")

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A part that may fail alone; raises nothing."""
        try:
            yield
        except Exception as error:
            first = str(error).strip().partition("\n")[0][:200].replace("|", "/")
            self.row(f"{name}: {type(error).__name__}: {first}")
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def seconds(run: Callable[[], Any], sizes: Sizes, most: float = 1.0) -> float:
    """The median time of a run that was warmed up: of the device, or of the process on a CPU."""
    on_gpu, taken, end = sizes.device.type == "cuda", [], 0.0
    warm = 3 if on_gpu else 1
    for turn in range(warm + sizes.repeats):
        if on_gpu:
            marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            torch.cuda.synchronize()
            marks[0].record()
            result = run()
            marks[1].record()
            torch.cuda.synchronize()
            took = marks[0].elapsed_time(marks[1]) / 1000
        else:
            start = time.perf_counter()
            result = run()
            took = time.perf_counter() - start
        del result
        if turn == warm - 1:
            end = time.monotonic() + most
        if turn >= warm:
            taken.append(took)
            if time.monotonic() > end:
                break
    return statistics.median(taken)


def graphed(run: Callable[[], Any]) -> Callable[[], Any]:
    """The run as a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = run()
    return lambda: (graph.replay(), kept)[0]


@contextmanager
def form(name: str) -> Iterator[None]:
    """The torch form, or the fused kernels, in all that is made within."""
    before = fused.DEVICES
    fused.DEVICES = {"cuda", "cpu"} if name == "Triton" else set()
    try:
        yield
    finally:
        fused.DEVICES = before


def forms(sizes: Sizes) -> list[str]:
    """What frames can be made by here; on a CPU Triton is there where it interprets."""
    runs = fused.runs_on(sizes.device) and (sizes.device.type == "cuda" or _triton().knobs.runtime.interpret)
    return ["torch", "Triton"] if runs else ["torch"]


def _triton() -> Any:
    try:
        return import_module("triton")
    except ModuleNotFoundError:
        return None


def drawn(circuit: Circuit, *batch: int) -> Tensor:
    return torch.rand(*batch, circuit.n_angles) * 2 * torch.pi


def rate_of_copies(report: Report, sizes: Sizes) -> float:
    """Bytes read and written a second."""
    report.table("Machine", "what", "value")
    rate = float("nan")
    with report.part("copy"):
        report.in_time()
        name = torch.cuda.get_device_name() if sizes.device.type == "cuda" else "CPU, tiny sizes: nothing is measured"
        report.row("device", name)
        report.row("torch, Triton", f"{torch.__version__}, {getattr(_triton(), '__version__', 'none')}")
        report.row("frames are made by", " and ".join(forms(sizes)))
        source = torch.zeros(sizes.copy, device=sizes.device)
        target = torch.empty_like(source)
        rate = 2 * source.nbytes / seconds(lambda: target.copy_(source), sizes)
        report.row("copies, GB/s read and written", f"{rate / 1e9:,.0f}")
    return rate


def agreement(report: Report, sizes: Sizes) -> None:
    """The farthest that float32 on the device is from float64 on a CPU, in units of its precision."""
    report.table(
        "Agreement with float64 on a CPU, in units of float32's precision",
        "circuit", "made by", "values", "gradient, of its largest entry",
    )  # fmt: skip
    eps = torch.finfo(torch.float32).eps
    for width, layers, k in sizes.agree:
        circuit = TWO_DESIGN.circuit(**width, layers=layers)
        what = f"{circuit.dim:,}, L = {layers}, {k} columns"
        angles, g = drawn(circuit, 2), torch.randn(2, circuit.dim, k)
        exact = angles.double().requires_grad_()
        value = columns(circuit, exact, k)
        (slope,) = torch.autograd.grad(value, exact, g.double())
        for name in forms(sizes):
            with report.part(f"{what}, {name}"), form(name):
                report.in_time()
                given = angles.to(sizes.device).requires_grad_()
                by = name if name == "torch" or fused.serves(given, circuit, k) else f"{name} does not serve it: torch"
                found = columns(circuit, given, k)
                (own,) = torch.autograd.grad(found, given, g.to(sizes.device))
                apart = (found.detach().cpu().double() - value).abs().max() / eps
                beside = (own.cpu().double() - slope).abs().max() / slope.abs().max() / eps
                report.row(what, by, f"{float(apart):.1f}", f"{float(beside):.1f}")


def frames(report: Report, sizes: Sizes, rate: float) -> None:
    """Frames of one layer against the time that their bytes take."""
    circuit = TWO_DESIGN.circuit(qubits=sizes.qubits, layers=1)
    report.table(
        f"Frames of {circuit.dim:,} rows, microseconds; forward writes them, back reads their gradient as well",
        "factors x columns", "MB", "pass", "made by", "floor", "eager", "to it", "CUDA graph", "to it",
    )  # fmt: skip
    for factors in sizes.factors:
        for k in sizes.columns:
            angles = drawn(circuit, factors).to(sizes.device)
            size = factors * circuit.dim * k * 4
            trained = angles.clone().requires_grad_()
            for name in forms(sizes):
                for back in (False, True):
                    what = f"{factors} x {k}", f"{size / 1e6:,.1f}", "and back" if back else "forward", name
                    with report.part(", ".join(what)), form(name):
                        report.in_time()
                        g = torch.randn(factors, circuit.dim, k, device=sizes.device) if back else None

                        def run(g: Tensor | None = g, k: int = k, trained: Tensor = trained, a: Tensor = angles) -> Any:
                            if g is None:
                                return columns(circuit, a, k)
                            return torch.autograd.grad(columns(circuit, trained, k), trained, g)

                        floor = size * (2 if back else 1) / rate
                        eager = seconds(run, sizes, 0.5)
                        cells = [floor, eager, eager / floor]
                        if sizes.device.type == "cuda":
                            replay = seconds(graphed(run), sizes, 0.5)
                            cells += [replay, replay / floor]
                        report.row(*what, *_cells(cells))


def _cells(cells: list[float]) -> list[str]:
    """Floor, time, ratio, and time and ratio of a graph if there is one."""
    micro = [f"{1e6 * x:,.1f}" if at in (0, 1, 3) else f"{x:.2f}" for at, x in enumerate(cells)]
    return micro + ["-"] * (5 - len(micro))


def simulators(report: Report, sizes: Sizes) -> None:
    """Forward and backward of the first columns on the same device, for one set of angles."""
    q, k = sizes.qubits, min(8, 1 << sizes.qubits)
    circuit = TWO_DESIGN.circuit(qubits=q, layers=1)
    report.table(f"{k} columns of {q} qubits, forward and back, microseconds a factor", "by", "time", "to ours")
    ours = float("nan")
    peers: dict[str, tuple[int, Callable[[], Any]]] = {
        "ours, 24 factors": (24, lambda: lambda angles: columns(circuit, angles, k)),
        "ours, 1 factor": (1, lambda: lambda angles: columns(circuit, angles, k)),
        "PennyLane, 1 factor": (1, lambda: pennylane(q, 1, k)),
        "TorchQuantum, 1 factor": (1, lambda: torchquantum(q, 1, k)),
    }
    for name, (factors, make) in peers.items():
        with report.part(name), torch.device(sizes.device):
            report.in_time()
            columns_of = make()
            angles = drawn(circuit, *((factors,) if factors > 1 else ())).requires_grad_()
            g = torch.randn(*angles.shape[:-1], circuit.dim, k)
            took = seconds(lambda of=columns_of, a=angles, g=g: torch.autograd.grad(of(a).real, a, g), sizes, 3.0)
            ours = took if name == "ours, 1 factor" else ours
            ratio = f"{took / factors / ours:.1f}" if ours == ours else "-"
            report.row(name, f"{1e6 * took / factors:,.1f}", ratio)


Attached = Callable[[Any], Any]
METHODS: dict[str, Attached] = {
    "LoRA r = 16": lambda targets: LoraConfig(r=16, target_modules=targets),
    "circuits r = 16": lambda targets: QCircuitConfig(r=16, target_modules=targets),
    "VeRA r = 256": lambda targets: VeraConfig(r=256, target_modules=targets),
    "FourierFT n = 1000": lambda targets: FourierFTConfig(n_frequency=1000, target_modules=targets),
}
TINY_METHODS: dict[str, Attached] = {
    "LoRA r = 2": lambda targets: LoraConfig(r=2, target_modules=targets),
    "circuits r = 2": lambda targets: QCircuitConfig(r=2, target_modules=targets),
    "VeRA r = 4": lambda targets: VeraConfig(r=4, target_modules=targets),
    "FourierFT n = 5": lambda targets: FourierFTConfig(n_frequency=5, target_modules=targets),
}


@dataclass(frozen=True)
class Model:
    """A base of random weights, what is adapted in it, and its batch."""

    name: str
    make: Callable[[], nn.Module]
    targets: tuple[Any, ...]
    rows: int
    length: int
    checkpointed: bool = False
    writes: bool = True


def models(sizes: Sizes) -> list[Model]:
    if sizes.device.type == "cpu":
        bert = BertConfig(
            vocab_size=32, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        )
        small = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
        llama = LlamaConfig(**small, vocab_size=32, max_position_embeddings=32)
        gpt2 = GPT2Config(vocab_size=32, n_embd=8, n_layer=1, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=0)
        dtype, batches = torch.float32, ((2, 4), (2, 4), (2, 4))
    else:
        bert = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
        llama = LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32)
        gpt2 = GPT2Config(n_embd=1024, n_layer=24, n_head=16)
        dtype, batches = torch.bfloat16, ((32, 16), (8, 512), (4, 512))

    def made(kind: type, config: Any, dtype: torch.dtype) -> Callable[[], nn.Module]:
        def make() -> nn.Module:
            before = torch.get_default_dtype()
            torch.set_default_dtype(dtype)
            try:
                with torch.device(sizes.device):
                    return kind(config)
            finally:
                torch.set_default_dtype(before)

        return make

    return [
        Model("MiniLM", made(BertModel, bert, torch.float32), (["query", "value"],), *batches[0], writes=False),
        Model("GPT-2 medium", made(GPT2LMHeadModel, gpt2, dtype), (["c_attn"],), *batches[1]),
        Model(
            "Llama-2-7B", made(LlamaForCausalLM, llama, dtype), (["q_proj", "v_proj"], "all-linear"), *batches[2], True
        ),
    ]


def steps(report: Report, sizes: Sizes) -> None:
    """Training steps of AdamW, and generation, on the shape of every model."""
    report.table(
        "Steps of training (forward, back, AdamW) and 48 tokens of generation, weights random",
        "model", "adapted", "batch", "method", "trained", "ms a step", "to LoRA", "MB at most", "kernels a step",
        "generate ms", "to LoRA",
    )  # fmt: skip
    for model in models(sizes):
        with report.part(model.name):
            report.in_time()
            base = model.make()
            for targets in model.targets:
                first: list[float] = []
                for name, method in (TINY_METHODS if sizes.device.type == "cpu" else METHODS).items():
                    with report.part(f"{model.name}, {targets}, {name}"):
                        report.in_time()
                        base = _measured(report, sizes, model, base, targets, name, method, first)


def _measured(
    report: Report, sizes: Sizes, model: Model, base: nn.Module, targets: Any, name: str, method: Attached,
    first: list[float],
) -> nn.Module:  # fmt: skip
    """A row; ``first`` has the numbers of the first method. Gives the base back without the adapter."""
    torch.manual_seed(0)
    net: Any = get_peft_model(base, method(targets)).train()
    try:
        ids = torch.randint(0, base.config.vocab_size, (model.rows, model.length), device=sizes.device)
        if model.checkpointed:
            net.gradient_checkpointing_enable({"use_reentrant": False})
        trained = [p for p in net.parameters() if p.requires_grad]
        optimizer = AdamW(trained, lr=1e-4)

        def step() -> None:
            found = net(ids, labels=ids).loss if model.writes else net(ids).last_hidden_state.square().mean()
            optimizer.zero_grad()
            found.backward()
            optimizer.step()

        if sizes.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        took = seconds(step, sizes, 3.0)
        most = torch.cuda.max_memory_allocated() / 1e6 if sizes.device.type == "cuda" else float("nan")
        kernels = _kernels(step, sizes)
        wrote = float("nan")
        if model.writes and targets != "all-linear":
            net.eval()
            if model.checkpointed:
                net.gradient_checkpointing_disable()
            prompt = ids[:1, :4]

            def write() -> Tensor:
                with torch.no_grad():
                    length = {"max_new_tokens": sizes.tokens, "min_new_tokens": sizes.tokens}
                    return net.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=False,
                                        pad_token_id=0, **length)  # fmt: skip

            wrote = seconds(write, Sizes(**{**vars(sizes), "repeats": 2}), 3.0)
        if name.startswith("LoRA"):
            first += [took, wrote]
        to_step, to_write = (took / first[0], wrote / first[1]) if first else (float("nan"), float("nan"))
        report.row(
            model.name, targets if isinstance(targets, str) else ", ".join(targets), f"{model.rows} x {model.length}",
            name, f"{sum(p.numel() for p in trained):,}", f"{1000 * took:,.2f}", _shown(to_step, "{:.3f}"),
            _shown(most, "{:,.0f}"), f"{kernels:,}", _shown(1000 * wrote, "{:,.1f}"),
            _shown(to_write, "{:.3f}"),
        )  # fmt: skip
    finally:
        base = net.unload()
    return base


def _shown(number: float, form: str) -> str:
    """The number, or what stands for one that was not measured."""
    return form.format(number) if number == number else "-"


def _kernels(step: Callable[[], None], sizes: Sizes) -> int:
    """Kernels and copies that a step launches; on a CPU torch operations."""
    if sizes.device.type == "cpu":
        with Dispatched() as counted:
            step()
        return counted.count
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        step()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in seen.events())


def main(
    tiny: bool = typer.Option(False, help="tiny sizes on a CPU: shows that it runs, and nothing else"),
    limit: float = typer.Option(SECONDS, help="seconds, after which nothing new is begun"),
) -> None:
    """Print what a GPU does with circuits."""
    if not tiny and not torch.cuda.is_available():
        raise typer.BadParameter("a GPU is wanted, and torch finds none; --tiny runs tiny sizes on a CPU")
    sizes, report = TINY if tiny else GPU, Report(limit)
    torch.manual_seed(0)
    rate = rate_of_copies(report, sizes)
    agreement(report, sizes)
    frames(report, sizes, rate)
    simulators(report, sizes)
    steps(report, sizes)


if __name__ == "__main__":
    typer.run(main)
