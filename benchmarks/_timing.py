"""What the benchmarks measure with: process time, peak memory of a fresh process, dispatched torch operations."""

import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch starts; more threads only add noise to a ratio

import torch  # after the number of threads

torch.set_num_threads(1)
sys.path.append(str(Path(__file__).parent.parent / "tests"))

from dispatched import Dispatched  # noqa: E402, F401  what the tests count with


def medians(runs: dict[str, Callable[[], Any]], repeats: int, warmups: int = 2) -> dict[str, float]:
    """The median process time (seconds) of each run; the runs take turns, so that a busy machine slows all of them."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(warmups + repeats):
        for name, run in runs.items():
            start = time.process_time()
            result = run()
            if turn >= warmups:
                taken[name].append(time.process_time() - start)
            del result
    return {name: statistics.median(times) for name, times in taken.items()}


def memory() -> tuple[int, int]:
    """Resident bytes of this process: now, and at most so far.

    From /proc where there is one. Elsewhere both are the peak of ``getrusage``, which on Linux would start at the
    peak of the parent process.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        now, peak = (int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
        return now, peak
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return peak, peak


def in_fresh_process(*arguments: str) -> str:
    """What the calling script prints when it runs with these arguments in a process of its own."""
    return subprocess.run([sys.executable, sys.argv[0], *arguments], check=True, capture_output=True, text=True).stdout
