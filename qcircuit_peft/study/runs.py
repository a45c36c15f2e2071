"""The runs of a study: train, measure, and keep one result file each, here or on a Ray cluster."""

import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from qcircuit_peft.analysis.capacity import Capacity, capacity
from qcircuit_peft.analysis.expressibility import expressibility
from qcircuit_peft.analysis.report import LayerEntanglement, entanglement_report
from qcircuit_peft.checks import LARGEST, number, text, whole_number
from qcircuit_peft.methods import METHODS, Chosen
from qcircuit_peft.study.folder import arranged, begin, cut, keep, results, task_of
from qcircuit_peft.study.plan import Point, Study, run_key
from qcircuit_peft.tasks import TASKS, Task, pretrained
from qcircuit_peft.training import accuracy, train, trained
from qcircuit_peft.tuner import QCircuitConfig, parameter_count

_ROUNDING = 1e-6
_SHARES = ("validation", "test", "capacity", "haar")  # numbers from 0 to 1


@dataclass(frozen=True)
class Run:
    """What one run gave: accuracies are fractions, entropies in bits and at the half cut, divergences in nats.

    capacity, haar: the mean Meyer-Wallach Q of the family's circuit on the study's qubits, and of random states;
    capacity_samples is 0 where the mean is exact. expressibility: KL divergence, to which the finite sample adds about
    expressibility_bias. Means over the adapted layers: column_entropy of the frames' columns and operator_entropy of
    the circuits U and V before and after training, delta_entropy of the weight update, distance of a circuit from
    where it started. None is not defined: a prime width has no cut, a zero update no entropy.

    Raises ValueError for a number that none of this can be: below 0, not finite, an accuracy above 1.
    """

    ansatz: str
    control: str
    layers: int
    r: int
    seed: int
    parameters: int
    validation: float
    test: float
    seconds_per_step: float
    capacity: float
    capacity_samples: int
    haar: float
    expressibility: float
    expressibility_bias: float
    initial_column_entropy: float | None
    column_entropy: float | None
    initial_operator_entropy: float | None
    operator_entropy: float | None
    delta_entropy: float | None
    distance: float | None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is str:
                text(field.name, value)
            elif field.type is int:
                whole_number(field.name, value, 0, (1 << 63) - 1)
            elif value is not None or field.type is float:
                number(field.name, value, -_ROUNDING, 1 + _ROUNDING if field.name in _SHARES else LARGEST)

    @property
    def key(self) -> str:
        """The name of the run."""
        return run_key(self.ansatz, self.layers, self.r, self.control, self.seed)


Steps = Callable[[int, int, float], None]
Progress = Callable[[float, int, str], None]


def method(study: Study, point: Point) -> Chosen:
    """The method of a point: with equal seeds, equal sizes of circuits start from equal angles."""
    angles = study.angle_rate / study.rate if study.rate else 1.0
    settings = {
        "ansatz": point.family,
        "layers": point.layers,
        "seed": point.seed,
        "train_angles": point.control != "frozen",
    }
    row = replace(METHODS["circuit_own"], rates_of={"lambdas": 1.0, "angles": angles})
    return Chosen(row, point.r, rate=study.rate, all_layers=study.all_layers, settings=settings, title=point.key)


def work(study: Study, point: Point, task: Task, steps: Steps = lambda *at: None) -> Run:
    """Train one point on a task and measure it; ``steps(step, steps, loss)`` is called after every step."""
    splits = cut(study, task)
    short = replace(task, splits=lambda: splits)
    then = signal.getsignal(signal.SIGINT)
    with tempfile.TemporaryDirectory() as folder:
        result = train(short, method(study, point), Path(folder), epochs=study.epochs, seed=point.seed, progress=steps)
        if not result.finished:
            signal.signal(signal.SIGINT, then)  # the training loop caught Ctrl-C, and wants no more of them
            raise KeyboardInterrupt
        net, encode = trained(short, Path(folder))
    generator = torch.Generator().manual_seed(point.seed)
    q = _capacity(study, point, generator)
    spread = expressibility(point.family, study.qubits, point.layers, samples=study.samples, generator=generator)
    rows = entanglement_report(net.model)
    found = Run(
        ansatz=point.ansatz.name,
        control=point.control,
        layers=point.layers,
        r=point.r,
        seed=point.seed,
        parameters=result.parameters,
        validation=accuracy(net, encode, splits.validation),
        test=result.accuracy,
        seconds_per_step=result.seconds_per_step,
        capacity=q.mean,
        capacity_samples=q.samples,
        haar=q.haar,
        expressibility=spread.kl,
        expressibility_bias=spread.bias,
        initial_column_entropy=_mean(rows, "column_entropy", "uv", "initial"),
        column_entropy=_mean(rows, "column_entropy", "uv", "now"),
        initial_operator_entropy=_mean(rows, "operator_entropy", "uv", "initial"),
        operator_entropy=_mean(rows, "operator_entropy", "uv", "now"),
        delta_entropy=_mean(rows, "operator_entropy", "delta", "now"),
        distance=_mean(rows, "distance", "uv", "now"),
    )
    return replace(
        found, **{key: round(value, 9) + 0.0 for key, value in vars(found).items() if isinstance(value, float)}
    )


def _capacity(study: Study, point: Point, generator: torch.Generator) -> Capacity:
    try:
        return capacity(point.family, study.qubits, point.layers, exact=True)[0]
    except ValueError:  # a gate that shares angles, or too large a tensor: Run.capacity_samples tells which it was
        return capacity(point.family, study.qubits, point.layers, samples=study.samples, generator=generator)[0]


def _mean(rows: Sequence[LayerEntanglement], quantity: str, parts: str, stage: str) -> float | None:
    """Over layers, at the half cut."""
    found = [
        value
        for row in rows
        if row.part in parts and row.stage == stage and row.cut == len(row.dims) // 2
        if (value := getattr(row, quantity)) is not None
    ]
    return fmean(found) if found else None


def run(
    study: Study,
    out: str | Path,
    *,
    resume: bool = False,
    executor: str = "local",
    progress: Progress = lambda done, total, what: None,
    tasks: Mapping[str, Task] = TASKS,
) -> list[Run]:
    """Do the runs of a study that ``out`` has no results of, and return all results in the order of the study.

    A result is a file of its own in ``out/runs``, written whole or not at all, so an interrupted study goes on with
    ``resume`` and repeats no finished run. ``executor``: "local", one run after the other, or "ray", on the
    cluster that Ray finds (RAY_ADDRESS) or starts. ``progress(done, total, what)`` counts runs, fractions included.

    Raises ValueError, before anything is trained or written, for an unknown task or executor, Ray missing, more inputs
    than the task has, an ansatz or r that does not suit its model, a folder of another study, or one with results where
    ``resume`` is not asked for.
    """
    if executor not in EXECUTORS:
        raise ValueError(f"the executor is one of {', '.join(EXECUTORS)}, got {executor!r}")
    if executor == "ray" and find_spec("ray") is None:
        raise ValueError("the executor 'ray' needs Ray, which is not installed; run: pip install 'qcircuit-peft[ray]'")
    out, task, points = Path(out), task_of(study, tasks), study.points
    done = finished(study, out)
    if done and not resume:
        raise ValueError(
            f"{out} has {len(done)} of {len(points)} results of this study; resume it, or name another folder"
        )
    waiting = [point for point in points if point.key not in done]
    cut(study, task)
    _check_models(study, waiting, task)
    begin(study, out)
    progress(len(done), len(points), "")

    def steps(step: int, steps: int, loss: float) -> None:
        progress(len(done) + step / (steps + 1), len(points), f"loss {loss:.2f}")

    for result in EXECUTORS[executor](study, waiting, task, steps):
        keep(out, result)
        done[result.key] = result
        progress(len(done), len(points), f"test accuracy {100 * result.test:.1f} %")
    return list(finished(study, out).values())


def finished(study: Study, out: Path) -> dict[str, Run]:
    """The results in a folder, by key, in the order of the study; none if there is no such folder.

    Raises ValueError for a folder of something else, and for a file that is not a result of this study.
    """
    return arranged(results(study, out, Run), (point.key for point in study.points), out)


def _check_models(study: Study, points: Sequence[Point], task: Task) -> None:
    """Adapt a weightless copy of the model in every way that could fail, which depends on the deepest and widest."""
    largest: dict[Any, Point] = {}
    for point in points:
        kind = (point.family, point.layers > 0)
        if kind not in largest or point.r > largest[kind].r:
            largest[kind] = point
    for point in largest.values():
        chosen = method(study, point)
        try:
            targets = chosen.targets(task)
            parameter_count(QCircuitConfig(r=point.r, target_modules=targets, **chosen.settings), pretrained(task))
        except ValueError as error:
            raise ValueError(f"the run {point.key} is not possible: {error}") from None


def _local(study: Study, points: Sequence[Point], task: Task, steps: Steps) -> Iterator[Run]:
    for point in points:
        yield work(study, point, task, steps)


def _ray(study: Study, points: Sequence[Point], task: Task, steps: Steps) -> Iterator[Run]:
    import ray

    if not ray.is_initialized():
        ray.init()
    job: Any = ray.remote(num_cpus=1)(work)
    common = ray.put(study), ray.put(task)
    waiting = [job.remote(common[0], point, common[1]) for point in points]
    while waiting:
        done, waiting = ray.wait(waiting)
        yield from ray.get(done)


EXECUTORS: dict[str, Callable[[Study, Sequence[Point], Task, Steps], Iterator[Run]]] = {"local": _local, "ray": _ray}
