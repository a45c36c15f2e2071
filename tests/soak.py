"""A soak: `make soak`, ten minutes of work on every kind of adapter, after which nothing is lost, left or grown.

First every kind trains 2,000 steps, and memory and objects stay what they were. Then, until the time is over, kind by
kind one thread trains while another evaluates, what was trained is saved, loaded and merged, and processes are killed
while they save; last, random adapters are saved and loaded. Prints what it did and every deviation; exits with 1 if
there is one.
"""

import argparse
import gc
import os
import random
import signal
import sys
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import drawn
import psutil
import torch
from bounds import close
from hypothesis import HealthCheck, Phase, given, seed, settings
from peft import PeftModel, get_peft_model
from test_round_trip import check, circuit, outputs
from torch import Tensor

from qcircuit_peft import BottleneckConfig, QCircuitConfig, QPAConfig
from qcircuit_peft.factorizations import FACTORIZATIONS
from qcircuit_peft.frames import FRAMES

TARGETS = {"target_modules": ["q", "v"], "seed": 1}
SMALL = {"chunk_size": 32, "layers": 2, "widths": [8]}
KINDS: dict[str, Callable[[], Any]] = {
    **{f"frame {name}": partial(QCircuitConfig, r=3, frame=name, **TARGETS) for name in FRAMES},
    **{f"factorization {name}": partial(QCircuitConfig, r=3, factorization=name, **TARGETS) for name in FACTORIZATIONS},
    "shared": partial(QCircuitConfig, r=3, share="kind", **TARGETS),
    "quantized": partial(QCircuitConfig, r=3, quantization={"bits": 4}, **TARGETS),
    "frozen": partial(QCircuitConfig, r=3, train_angles=False, **TARGETS),
    "with a head": partial(QCircuitConfig, r=3, modules_to_save=["head"], **TARGETS),
    "bottleneck": partial(BottleneckConfig, r=3, target_modules=["down"]),
    **{
        f"generated {name}": lambda name=name: QPAConfig(base=drawn.of_method(name), **SMALL)
        for name in ("lora", "vera", "oft", "circuit_own")
    },
    "generated with shots": lambda: QPAConfig(base=drawn.of_method("lora"), shots=100, **SMALL),
}
MERGED = {kind for kind in KINDS if kind not in ("bottleneck", "generated with shots")}
OBJECTS, MEGABYTES = 30, 8  # what may come and go, of Python's and the allocator's own
CHAIN = 4 * drawn.WIDTH  # the products of a small model, one after the other


class Deviations(list[str]):
    """What was not as it should be."""

    def __call__(self, told: str) -> None:
        self.append(told)
        print(f"DEVIATION {told}", flush=True)


def size() -> tuple[int, float]:
    """The objects that Python knows, and the megabytes of the process."""
    gc.collect()
    return len(gc.get_objects()), psutil.Process().memory_info().rss / 2**20


def made(kind: str) -> Any:
    return get_peft_model(drawn.net(), KINDS[kind]())


def train(net: Any, steps: int) -> None:
    torch.manual_seed(2)
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-3)
    x = torch.randn(4, drawn.WIDTH, generator=torch.Generator().manual_seed(3))
    net.train()
    for _ in range(steps):
        net(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    net.eval()


def state(net: Any) -> list[Tensor]:
    return [p.detach().clone() for p in net.parameters() if p.requires_grad]


def grow(kind: str, steps: int, deviates: Deviations) -> str:
    """Train this many steps, and compare what there is at a tenth of them with what there is in the end."""
    net = made(kind)
    train(net, steps // 10)
    objects, megabytes = size()
    train(net, steps - steps // 10)
    more, larger = (now - then for now, then in zip(size(), (objects, megabytes), strict=True))
    if more > OBJECTS or larger > MEGABYTES:
        deviates(f"{kind}: {more} objects and {larger:.1f} MB more after {steps} steps")
    return f"{more:+d} objects, {larger:+.1f} MB"


def check_threads(kind: str, deviates: Deviations) -> None:
    """One thread trains, another evaluates: the first as it would alone, the second seeing finite outputs."""
    alone, net = made(kind), made(kind)
    train(alone, 20)
    over, seen = threading.Event(), []

    def evaluate() -> None:
        try:
            while not over.is_set():
                with torch.no_grad():
                    x = torch.ones(2, drawn.WIDTH)
                    seen.append(bool(net(x).isfinite().all()))
        except Exception:
            deviates(f"{kind}: evaluation beside training: {traceback.format_exc(limit=-2)}")

    thread = threading.Thread(target=evaluate)
    thread.start()
    try:
        train(net, 20)
    finally:
        over.set()
        thread.join()
    if not seen or not all(seen):
        deviates(f"{kind}: evaluated beside training, there is no output, or one that is not finite")
    if "shots" not in kind and not all(map(torch.equal, state(alone), state(net))):
        deviates(f"{kind}: trained beside an evaluation, parameters are others")


def check_saved_and_merged(kind: str, deviates: Deviations) -> None:
    net = made(kind)
    train(net, 5)
    expected = outputs(net)
    with TemporaryDirectory() as folder:
        net.save_pretrained(folder)
        if not torch.equal(outputs(PeftModel.from_pretrained(drawn.net(), folder)), expected):
            deviates(f"{kind}: loaded, outputs are others")
    if kind in MERGED:
        try:
            close(outputs(net.merge_and_unload()), expected, CHAIN)
        except AssertionError as error:
            deviates(f"{kind}: merged, outputs are others: {error}")


def check_kill(kind: str, choose: random.Random, deviates: Deviations) -> None:
    """Kill a process that saves two adapters in turn, and load what it left."""
    one, two = made(kind), made(kind)
    train(one, 2)
    train(two, 4)
    with TemporaryDirectory() as folder:
        one.save_pretrained(folder)
        pid = os.fork()
        if pid == 0:
            try:
                while True:
                    two.save_pretrained(folder)
                    one.save_pretrained(folder)
            finally:
                os._exit(1)
        time.sleep(choose.uniform(0, 0.1))
        os.kill(pid, signal.SIGKILL)
        if not os.WIFSIGNALED(os.waitpid(pid, 0)[1]):
            deviates(f"{kind}: the process that saves ended by itself")
        try:
            found = outputs(PeftModel.from_pretrained(drawn.net(), folder))
            if not any(torch.equal(found, outputs(net)) for net in (one, two)):
                deviates(f"{kind}: after a kill the folder is neither the one nor the other")
            one.save_pretrained(folder)
            if left := {path.name for path in Path(folder).iterdir() if path.name.startswith(".")}:
                deviates(f"{kind}: after a kill and a save there is {sorted(left)}")
        except Exception as error:
            deviates(f"{kind}: after a kill the folder cannot be loaded: {error}")


def check_random(number: int, deviates: Deviations) -> Counter[str]:
    """Save and load a few random circuits, which a number draws."""
    found: Counter[str] = Counter()

    @settings(
        max_examples=5, deadline=None, phases=[Phase.generate], database=None, suppress_health_check=[*HealthCheck]
    )
    @seed(number)
    @given(drawn.circuits())
    def run(fields: dict[str, Any]) -> None:
        found[check(circuit(fields))] += 1

    try:
        run()
    except Exception as error:
        deviates(f"random adapters of seed {number}: {type(error).__name__}: {error}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--steps", type=int, default=2000, help="of the training of every kind")
    parser.add_argument("--seed", type=int, default=0)
    given_ = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    start, choose, deviates, counts = time.monotonic(), random.Random(given_.seed), Deviations(), Counter[str]()
    size()
    for kind in KINDS:
        print(f"{given_.steps} steps, {kind}: {grow(kind, given_.steps, deviates)}", flush=True)
        counts["steps"] += given_.steps
    number, sizes = given_.seed, []
    while True:
        for kind in KINDS:
            check_threads(kind, deviates)
            check_saved_and_merged(kind, deviates)
            check_kill(kind, choose, deviates)
            counts.update({"trained beside an evaluation": 1, "saved, loaded, merged": 1, "kills": 1})
        sizes.append(size())
        over = time.monotonic() - start > 60 * given_.minutes
        if over and len(sizes) > 1:
            break
    for (objects, megabytes), when in ((sizes[0], "first"), (sizes[-1], "last")):
        print(f"after the {when} of {len(sizes)} rounds: {objects} objects, {megabytes:.0f} MB")
    more, larger = sizes[-1][0] - sizes[0][0], sizes[-1][1] - sizes[0][1]
    if more > OBJECTS * len(KINDS) or larger > MEGABYTES * 4:
        deviates(f"{more} objects and {larger:.1f} MB more after {len(sizes)} rounds")
    until = time.monotonic() + max(15.0, 6 * given_.minutes)  # a tenth of the time
    while time.monotonic() < until:
        number += 1
        counts.update({f"random adapters {told}": n for told, n in check_random(number, deviates).items()})
    minutes = (time.monotonic() - start) / 60
    print(f"{len(KINDS)} kinds, {minutes:.1f} minutes: " + ", ".join(f"{n:,} {told}" for told, n in counts.items()))
    print(f"{len(deviates)} deviations")
    return int(bool(deviates))


if __name__ == "__main__":
    sys.exit(main())
