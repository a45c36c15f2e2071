"""How much of a task adapters can see before they are trained: configurations beside each other.

Each is attached to the model, measured where it starts, at random and fitted, and taken off again.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from torch import nn

from qcircuit_peft import plotting
from qcircuit_peft.analysis.capture import GradientCapture, Loss, best_capture, check_task, gradient_capture
from qcircuit_peft.analysis.plateaus import task_gradient_variance
from qcircuit_peft.ansatz import Ansatz, load, without_entanglers
from qcircuit_peft.calibration import calibrate
from qcircuit_peft.checks import boolean, whole_number, whole_numbers
from qcircuit_peft.text import shown
from qcircuit_peft.tuner import QCircuitConfig
from qcircuit_peft.tuner.names import tuner_layers

if TYPE_CHECKING:
    import matplotlib.figure

RANDOM, FITTED, BEST = "random", "fitted", "best"
_LORA, _PLAIN = "LoRA, r = 1", ", no entanglers"


@dataclass(frozen=True)
class Reach:
    """What one adapter holds of a task's gradient at its start, as in ``GradientCapture``.

    start: "random", "fitted" by ``calibrate``, or "best", the gradient's own singular vectors, which no adapter of that
    rank exceeds. numbers: what is trained; None for the best. angles_scatter, numbers_scatter: the variances of
    ``task_gradient_variance``, where starts were drawn: of the loss's derivatives by angles, and by plain numbers.
    """

    name: str
    start: str
    numbers: int | None
    share: float
    full_share: float
    nuclear: float
    angles_scatter: float | None = None
    numbers_scatter: float | None = None

    @classmethod
    def of(cls, name: str, start: str, numbers: int | None, found: GradientCapture) -> "Reach":
        """From what was measured."""
        return cls(name, start, numbers, found.share, found.full_share, found.nuclear)


@contextmanager
def _attached(model: nn.Module, config: PeftConfig) -> Iterator[nn.Module]:
    """Within it the model has an adapter; after it, it is what it was."""
    trained = {name: p.requires_grad for name, p in model.named_parameters()}
    adapted: Any = None
    try:
        adapted = get_peft_model(model, config)  # type: ignore[arg-type]
        yield adapted
    finally:
        if adapted is not None:
            adapted.unload()
        for name, p in model.named_parameters():
            p.requires_grad_(trained[name])
        if hasattr(model, "peft_config"):
            del model.peft_config


def depths(
    targets: list[str] | str,
    r: int = 16,
    layers: Iterable[int] = (0, 1, 2, 4),
    ansatz: str | Ansatz = "simplified_two_design",
    **settings: Any,
) -> dict[str, QCircuitConfig]:
    """Circuits of each number of layers, with entangling gates and, at the same number of angles, without.

    ``settings`` are more of ``QCircuitConfig``. Raises ValueError as ``without_entanglers``.

    >>> list(depths(["query", "value"], layers=[0, 2]))
    ['L = 0', 'L = 2', 'L = 2, no entanglers']
    """
    family = load(ansatz)
    found = {}
    for depth in whole_numbers("layers", list(layers) if isinstance(layers, Iterable) else layers, 0):
        for title, chosen in ((f"L = {depth}", family), (f"L = {depth}{_PLAIN}", without_entanglers(family))):
            if depth or chosen is family:
                found[title] = QCircuitConfig(r=r, layers=depth, ansatz=chosen, target_modules=targets, **settings)
    return found


def compare_captures(
    model: nn.Module,
    configs: Mapping[str, PeftConfig],
    batches: Sequence[Any],
    loss: Loss | None = None,
    *,
    fit: bool = True,
    steps: int = 300,
    starts: int = 0,
    seed: int = 0,
    progress: Callable[[int, int, str], None] = lambda done, total, name: None,
) -> list[Reach]:
    """What each configuration of PEFT holds of a task's gradient at its start, beside LoRA and the best of their rank.

    model: pretrained, without an adapter; it stays as it is. Train a new head first. batches, loss: as in
    ``gradient_capture``. fit: measure circuits once more after ``calibrate`` with ``steps``. starts: how many random
    starts of circuits say how the loss's derivatives scatter (``task_gradient_variance``), a pass through all batches
    each; 0: none. seed: of what is drawn at random. For the layers that the first configuration adapts, LoRA of rank 1
    and the best of each rank stand beside them. Raises ValueError for a model with an adapter, no configurations, and
    what ``gradient_capture`` refuses.

    >>> model = nn.Sequential(nn.Linear(32, 16))
    >>> x = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    >>> rows = compare_captures(model, depths(["0"], 4, [2]), [x], lambda model, x: model(x).square().sum(), steps=50)
    >>> [(row.name, row.start) for row in rows][:3]
    [('L = 2', 'random'), ('L = 2', 'fitted'), ('L = 2, no entanglers', 'random')]
    >>> rows[0].share < rows[1].share < rows[-1].share
    True
    """
    boolean("fit", fit)
    whole_number("steps", steps, 1)
    if starts:
        whole_number("starts", starts, 2)
    whole_number("seed", seed, 0, 2**63 - 1)
    known = isinstance(configs, Mapping) and all(hasattr(config, "target_modules") for config in configs.values())
    if not known or not configs:
        raise ValueError(f"configs has one or more configurations of PEFT, of layers, by name, got {shown(configs)}")
    if not isinstance(model, nn.Module) or tuner_layers(model):
        got = "one that has them" if isinstance(model, nn.Module) else shown(model)
        raise ValueError(f"what is compared is attached to a model without adapters, got {got}")
    check_task(batches, loss)
    first = next(iter(configs.values()))
    every = {**configs, _LORA: LoraConfig(r=1, target_modules=first.target_modules)}  # type: ignore[attr-defined]
    rows: list[Reach] = []
    modules: list[str] = []
    for done, (name, config) in enumerate(every.items()):
        progress(done, len(every) + 1, name)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            with _attached(model, config) as adapted:
                modules = modules or [key.removeprefix("base_model.model.") for key in tuner_layers(adapted)]
                numbers = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
                row = Reach.of(name, RANDOM, numbers, gradient_capture(adapted, batches, loss))
                if starts and isinstance(config, QCircuitConfig):
                    found = task_gradient_variance(adapted, batches, loss, samples=starts, seed=seed)
                    scatter = {one.kind: one.variance for one in found}
                    plain = scatter.get("lambdas", scatter.get("cores"))
                    row = replace(row, angles_scatter=scatter.get("angles"), numbers_scatter=plain)
                rows.append(row)
                if fit and isinstance(config, QCircuitConfig) and config.train_angles:
                    calibrate(adapted, batches, loss, steps=steps)
                    rows.append(Reach.of(name, FITTED, numbers, gradient_capture(adapted, batches, loss)))
    progress(len(every), len(every) + 1, "the best")
    for r in sorted({r for config in configs.values() if isinstance(r := getattr(config, "r", None), int)}):
        rows.append(Reach.of(f"rank {r}", BEST, None, best_capture(model, modules, batches, r, loss)))
    return rows


@plotting.styled
def reach_figure(rows: Sequence[Reach], configs: Mapping[str, QCircuitConfig]) -> "matplotlib.figure.Figure":
    """The share against L, of circuits with entangling gates and without, random and fitted, below their limits."""
    figure, [axes] = plotting.panels()
    kinds: tuple[tuple[str, bool, dict[str, Any]], ...] = (
        (FITTED, False, plotting.series(0)),
        (FITTED, True, plotting.series(1)),
        (RANDOM, False, plotting.CONTROL | {"marker": "o"}),
        (RANDOM, True, plotting.CONTROL | {"marker": "s"}),
    )
    depths = sorted({config.layers for config in configs.values()})
    ends = []
    for start, plain, style in kinds:
        points = sorted(
            (configs[row.name].layers, row.share)
            for row in rows
            if row.start == start and row.name in configs and row.name.endswith(_PLAIN) == plain
        )
        if points:
            axes.plot(*zip(*points, strict=True), **style)
            ends.append((*points[-1], f"{start}{_PLAIN if plain else ''}", style["color"]))
    for row in rows:
        if row.name not in configs:
            axes.axhline(row.share, color=plotting.GREY, linestyle=":")
            name = f"best of {row.name}" if row.start == BEST else row.name
            ends.append((depths[-1], row.share, name, plotting.GREY))
    axes.set(xlabel="layers L", ylabel="share of the gradient's energy", yscale="log")
    plotting.ticks(axes.xaxis, depths)
    plotting.name_ends(axes, ends)
    return figure
