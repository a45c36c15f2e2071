"""The process in which ``compare`` measures a backend: cases come in as lines of JSON, and rows go out."""

import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from qcircuit_peft import backends
from qcircuit_peft.ansatz import Ansatz
from qcircuit_peft.circuit import Circuit, Op


def _seconds(run: Callable[[], Any]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def _spread(name: str, seconds: list[float]) -> dict[str, float]:
    """The median and the quartiles; a single time is all three."""
    low, middle, high = statistics.quantiles(seconds, method="inclusive") if len(seconds) > 1 else seconds * 3
    return {name: middle, f"{name}_low": low, f"{name}_high": high}


def _memory() -> tuple[int, int] | None:
    """Resident bytes of this process: now, and the peak since the last call; None where the system does not say."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    try:
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        reset.write_text("5")
    except OSError:
        return None
    now, peak = (int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return now, peak


def _circuit(case: dict[str, Any]) -> Circuit:
    return Ansatz.from_dict(case["ansatz"]).circuit(qubits=case["qubits"], layers=case["layers"])


def _passes(case: dict[str, Any]) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """The forward pass, and forward and backward, at fixed random angles."""
    circuit, columns = _circuit(case), case["columns"]
    torch.manual_seed(0)
    lead = () if case["batch"] == 1 else (case["batch"],)
    angles = (2 * torch.pi * torch.rand(*lead, circuit.n_angles)).requires_grad_()
    dtype = torch.float32 if circuit.is_real else torch.complex64
    cotangent = torch.randn(*lead, circuit.dim, columns, dtype=dtype)

    def forward() -> Tensor:
        with torch.no_grad():
            return backends.columns(circuit, angles, columns, backend=case["backend"])

    def both() -> Tensor:
        out = backends.columns(circuit, angles, columns, backend=case["backend"])
        return torch.autograd.grad(out, angles, cotangent)[0]

    return forward, both


def _differentiates(backend: str) -> bool:
    circuit, angles = Circuit((2,), [Op("RY", (0,))]), torch.ones(1, requires_grad=True)
    try:
        backends.columns(circuit, angles, 1, backend=backend).sum().backward()
    except ValueError:
        return False
    return True


def measured(case: dict[str, Any], begun: Callable[[], None]) -> dict[str, Any]:
    """The measured part of a row of ``compare``; calls ``begun`` when everything is imported."""
    differentiates = _differentiates(case["backend"]) and _circuit(case).n_angles > 0
    begun()
    start = time.process_time()
    forward, both = _passes(case)
    gc.collect()
    before = _memory()
    times: dict[str, list[float]] = {"forward": [_seconds(forward)]}
    if differentiates:
        times["both"] = [_seconds(both)]
    after = _memory()
    once = time.process_time() - start
    for turn in range(case["repeats"]):
        if time.process_time() - start + once > case["budget"] / 2:
            break
        for name, run in (("forward", forward), ("both", both))[: len(times)]:
            times[name] = ([] if turn == 0 else times[name]) + [_seconds(run)]
    row = {"status": "ok", "peak_bytes": max(0, after[1] - before[0]) if before and after else None}
    for name, seconds in times.items():
        row |= _spread(name, seconds)
    native, _ = _passes(case | {"backend": "native"})
    return row | {"agreement": float((forward() - native()).abs().max())}


def main() -> None:
    """Answer every case on standard input with two lines: ``begun``, and the row."""
    torch.set_num_threads(1)
    out, sys.stdout = sys.stdout, sys.stderr
    process = psutil.Process()
    if hasattr(process, "rlimit"):  # Linux: fail by itself before the system has to choose a process to end
        most, hard = process.memory_info().vms + psutil.virtual_memory().available, process.rlimit(psutil.RLIMIT_AS)[1]
        if hard == psutil.RLIM_INFINITY or most < hard:  # nobody may raise it
            process.rlimit(psutil.RLIMIT_AS, (most, most))
    for line in sys.stdin:
        case = json.loads(line)
        try:
            row = measured(case, lambda: print("begun", file=out, flush=True))
        except ValueError as error:
            row = {"status": str(error)}
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "alloc" not in str(error):
                raise
            row = {"status": "out of memory"}
        print(json.dumps(row), file=out, flush=True)


if __name__ == "__main__":
    main()
