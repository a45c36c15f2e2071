"""Where circuits start: angles that are fitted to the directions which a task asks for, before training.

An adapter multiplies by numbers that are zero at the start, between frames that are drawn at random. What these numbers
can do at first is what the task's gradient holds in the directions of the frames. So the frames' parameters are fitted
to hold as much of it as they can: no number is trained that would not be trained anyway, and none more is stored.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qcircuit_peft.analysis.adapters import measured_adapters
from qcircuit_peft.analysis.capture import Loss, check_dense, task_gradients, task_outputs
from qcircuit_peft.checks import boolean, number, one_of, whole_number
from qcircuit_peft.factorizations.network import Network
from qcircuit_peft.factorizations.parts import Built, Factorization, Kept, Vector, frames
from qcircuit_peft.precision import no_autocast
from qcircuit_peft.tuner.encoding import Encoding
from qcircuit_peft.tuner.layer import QCircuitLinear

GOALS = {"gradient": task_gradients, "activations": task_outputs}
_LEADING = 64  # singular directions that are kept of a module's matrix


@dataclass(frozen=True)
class Calibration:
    """The share of the energy of all modules' matrices that an adapter's plain numbers hold, before and after.

    modules: (before, after) of each module by name. For the goal "gradient" they are the ``share`` of
    ``gradient_capture``, but for what lies beyond a matrix's 64 leading singular directions.
    """

    before: float
    after: float
    modules: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class _Target:
    """A matrix (out, in): its leading singular vectors, left and right, their sizes where it has energy 1, its energy.

    The energy is the sum of all squared entries.
    """

    left: Tensor
    sizes: Tensor
    right: Tensor
    energy: float

    @classmethod
    def of(cls, matrix: Tensor, like: Tensor, least: int) -> "_Target":
        """The leading singular directions of a matrix, ``least`` or more; the same each time."""
        size = float(matrix.norm())
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)  # of CPUs alone, where the matrix is
            left, sizes, right = torch.svd_lowrank(
                matrix / (size or 1.0), q=min(max(_LEADING, least), *matrix.shape), niter=4
            )
        dtype = torch.promote_types(like.dtype, torch.float32)
        left, sizes, right = (part.to(like.device, dtype) for part in (left, sizes, right))
        return cls(left, sizes, right, size**2)


@dataclass(frozen=True)
class _Fit:
    """An adapted module: what its update is made of, its parameters by part, its target."""

    factors: Factorization
    parameters: Mapping[str, Tensor]
    encodings: Mapping[str, Encoding]
    target: _Target

    def share(self, leaves: Mapping[int, Tensor], made: dict[Hashable, Tensor]) -> Tensor:
        """What the plain numbers hold of the target's energy, where the frames' parameters are ``leaves``, by id.

        ``made`` keeps the frames that modules share.
        """
        parts, left, right = {}, self.target.left * self.target.sizes, self.target.right
        for name, part in self.factors.parts.items():
            if isinstance(part, Built):
                leaf = leaves[id(self.parameters[name])]
                key = id(leaf), part.frame
                if key not in made:
                    with no_autocast(leaf):
                        made[key] = part.frame.columns(self.encodings[name].used(leaf))
                parts[name] = made[key]
            elif isinstance(part, Vector):
                parts[name] = left.new_full((part.size,), part.start)
            elif isinstance(part, Kept):
                parts[name] = self.encodings[name].used(self.parameters[name].detach().to(left))
        numbers = parts[_numbers(self.factors)].requires_grad_()
        with no_autocast(left):
            a, b = self.factors.lora(parts)
            slope = torch.autograd.grad(((b.mT @ left) * (a @ right)).sum(), numbers, create_graph=True)[0]
        return slope.square().sum() / self.factors.scaling**2

    @torch.no_grad()
    def keep_directions(self) -> None:
        """Let what is kept be the leading directions of the target."""
        for name, part in self.factors.parts.items():
            if isinstance(part, Kept):
                whole = self.target.left if part.side == "left" else self.target.right
                self.parameters[name].copy_(whole[:, : part.columns].flatten())


def _numbers(factors: Factorization) -> str | None:
    """The part between the frames whose numbers' directions are orthonormal; None for a factorization without one."""
    zero = [name for name, part in factors.parts.items() if isinstance(part, Vector) and not part.start]
    closed = isinstance(factors, Network) and factors.loop > 1
    return (
        None if closed or len(zero) != 1 or not any(isinstance(p, Built) for p in factors.parts.values()) else zero[0]
    )


def _check(name: str, module: QCircuitLinear, adapter: str, directions: bool) -> None:
    """Raise ValueError for an adapter that has no frames, or ``directions``, to fit, or is not at its start."""
    check_dense(name, module)
    here = f"adapter {adapter!r} of module {name!r}"
    if module.merged or module.disable_adapters:
        raise ValueError(f"{here} is merged or disabled; unmerge or enable it, then fit it")
    factors, parameters = module.factors[adapter], module.intrinsic_parameters(adapter)
    if (numbers := _numbers(factors)) is None or not factors.scaling:
        raise ValueError(
            f"{here} has no frames around plain numbers with a scaling: svd, cp, tucker, tensor_train, std, "
            "shared_core and subspace with alpha above 0 do"
        )
    if adapter not in module.active_adapters:
        raise ValueError(f"{here} is not active; call set_adapter, then fit it")
    for part, kind in factors.parts.items():
        if isinstance(kind, Vector):
            continue
        if not isinstance(parameters[part], nn.Parameter):
            raise ValueError(f"{here} has its part {part!r} generated, which is not fitted")
        if parameters[part].is_meta:
            raise ValueError(f"{here} has its part {part!r} kept elsewhere (offloaded or on 'meta'); fit it in memory")
        if not parameters[part].requires_grad and isinstance(kind, Built) and not directions:
            raise ValueError(f"{here} does not train its part {part!r}; fit it first, then freeze it")
    if directions and not any(isinstance(kind, Kept) for kind in factors.parts.values()):
        raise ValueError(f"{here} keeps no directions; factorization='subspace' does")
    if parameters[numbers].any():
        raise ValueError(f"{here} is not at its start, where {numbers} is zero; fit it before it is trained")


def _targets(
    model: nn.Module,
    modules: Mapping[str, QCircuitLinear],
    least: Mapping[str, int],
    measure: Callable[..., dict[str, Tensor]],
    batches: Iterable[Any],
    loss: Loss | None,
    memory: int,
) -> dict[str, _Target]:
    """The target of every module, of ``least`` directions, measured for as many at a time as fit into ``memory``."""
    some: list[dict[str, QCircuitLinear]] = []
    room = 0
    for name, module in modules.items():
        size = 8 * module.in_features * module.out_features
        if room < size:
            some.append({})
            room = memory
        some[-1][name] = module
        room -= size
    if len(some) > 1 and isinstance(batches, Iterator):
        raise ValueError(
            f"batches are gone through {len(some)} times with {memory} bytes of memory, so they have to be a list or a "
            f"loader, got {type(batches).__name__}"
        )
    found = {}
    for few in some:
        for name, matrix in measure(model, few, batches, loss).items():
            like = next(iter(few[name].parameters()))
            found[name] = _Target.of(matrix, like, least[name])
    return found


def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Loss | None = None,
    *,
    adapter: str | None = None,
    goal: str = "gradient",
    directions: bool = False,
    steps: int = 300,
    rate: float = 0.05,
    normalize: bool = True,
    memory: int = 1 << 31,
    progress: Callable[[int, int, float], None] = lambda step, steps, share: None,
) -> Calibration:
    """Fit the frames of an adapter that has not been trained to a task; the model's outputs stay what they are.

    Every adapted module has a matrix M, by ``goal``: "gradient", the gradient of the summed loss with respect to its
    weight; or "activations", for which no labels are needed, the sum of outer products of its outputs and inputs,
    whose leading directions are theirs. The frames' parameters climb, by ``steps`` of Adam at a ``rate`` that falls to
    zero, to where the plain numbers hold most of ||M||^2: sum_i (u_i^T M v_i)^2 for "svd", ||U^T M V||^2 with a full
    core. What is climbed is the mean of the modules' shares, since Adam trains the numbers of a module with small
    gradients as far as others'; or, without ``normalize``, the share of the sum. The best of all steps is kept.
    Circuits that modules share are fitted to all of them. With ``directions``, for "subspace", the leading singular
    directions of M come first in the place of those that are kept; ``init="zeros"`` leaves them unmixed, which holds
    the most that r directions can. Frames that are not trained stay as they are then.

    ``batches`` and ``loss`` are as in ``gradient_capture``. Train a new head first: the gradient through a random one
    tells nothing of the task. Batches are gone through once; several times, where all matrices, in float64, take more
    than ``memory`` bytes. ``adapter`` is one of the model's; left out, the active one. ``progress(step, steps, share)``
    is called after every step. Deterministic. Interrupted, it leaves the best so far, and another call goes on there.

    Raises ValueError, before anything is changed, for an adapter that is merged, whose frames are not trained (without
    ``directions``), or whose
    plain numbers are not zero any more, for a factorization without frames around such numbers, ``directions`` of one
    that keeps none, and what ``gradient_capture`` refuses.

    >>> from peft import get_peft_model
    >>> from qcircuit_peft import QCircuitConfig
    >>> config = QCircuitConfig(r=4, layers=4, target_modules=["0"], seed=0)
    >>> model = get_peft_model(nn.Sequential(nn.Linear(32, 16)), config)
    >>> x = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    >>> found = calibrate(model, [x], lambda model, x: model(x).square().sum(), steps=50)
    >>> found.after > 3 * found.before
    True
    """
    one_of("goal", goal, GOALS)
    whole_number("steps", steps, 1)
    number("rate", rate, 0)
    boolean("directions", directions)
    boolean("normalize", normalize)
    whole_number("memory", memory, 1)
    fitted = measured_adapters(model, adapter)
    if len(names := sorted({key for _, _, key in fitted})) > 1:
        raise ValueError(f"one adapter is fitted at a time, but {', '.join(names)} are active; name one of them")
    for name, module, key in fitted:
        _check(name, module, key, directions)
    least = {
        name: max([part.columns for part in module.factors[key].parts.values() if isinstance(part, Kept)], default=1)
        for name, module, key in fitted
    }
    modules = {name: module for name, module, _ in fitted}
    targets = _targets(model, modules, least, GOALS[goal], batches, loss, memory)
    energies = torch.tensor([targets[name].energy for name, _, _ in fitted], dtype=torch.float64)
    if not energies.any():
        raise ValueError(f"the matrices of the goal {goal!r} are zero in every module, so there is nothing to fit to")
    by_energy = energies / energies.sum()
    weights = torch.full_like(by_energy, 1 / len(fitted)) if normalize else by_energy
    fits = [
        _Fit(
            module.factors[key],
            module.intrinsic_parameters(key),
            {part: module.encoding(key, part) for part in module.factors[key].parts},
            targets[name],
        )
        for name, module, key in fitted
    ]
    free = {id(fit.parameters[part]): fit.parameters[part] for fit in fits for part in frames(fit.factors)}
    first = best = kept = None
    if directions:
        first = next(_climb(fits, free, weights, rate, steps))[0]
        for fit in fits:
            fit.keep_directions()
    try:
        for step, (shares, leaves) in enumerate(_climb(fits, free, weights, rate, steps)):
            first = shares if first is None else first
            if best is None or (weights @ shares > weights @ best and not _flawed(fits, leaves)):
                best, kept = shares, leaves
            if step:
                progress(step, steps, float(by_energy @ best))
    finally:
        with torch.no_grad():
            for key, value in (kept or {}).items():
                free[key].copy_(value)
    assert first is not None and best is not None
    each = {name: (float(old), float(new)) for (name, _, _), old, new in zip(fitted, first, best, strict=True)}
    return Calibration(float(by_energy @ first), float(by_energy @ best), each)


def _flawed(fits: list[_Fit], leaves: Mapping[int, Tensor]) -> bool:
    """Whether some frame would not be orthonormal: then what it holds is no share."""
    return any(
        frame.flaw(leaves[id(fit.parameters[part])]) for fit in fits for part, frame in frames(fit.factors).items()
    )


def _climb(
    fits: list[_Fit], free: Mapping[int, Tensor], weights: Tensor, rate: float, steps: int
) -> Iterator[tuple[Tensor, dict[int, Tensor]]]:
    """The shares of all modules and the frames' parameters, copied, at the start and after every step."""
    leaves = {key: p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True) for key, p in free.items()}
    fitted = [leaf.requires_grad_() for key, leaf in leaves.items() if free[key].requires_grad]
    if not fitted:
        with torch.enable_grad():
            shares = torch.stack([fit.share(leaves, {}).detach().cpu() for fit in fits])
        yield shares.to(weights), leaves
        return
    optimizer = torch.optim.Adam(fitted, lr=rate, maximize=True)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps + 1):
        made: dict[Hashable, Tensor] = {}
        with torch.enable_grad():
            shares = torch.stack([fit.share(leaves, made).cpu() for fit in fits])
            if step < steps:
                optimizer.zero_grad()
                (weights.to(shares) @ shares).backward()
        yield shares.detach().to(weights), {key: leaf.detach().clone() for key, leaf in leaves.items()}
        optimizer.step()
        falling.step()
