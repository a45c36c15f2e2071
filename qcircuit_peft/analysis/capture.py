"""How much of a task's gradient an adapter can follow: the share of its energy in the directions that it can move in.

G is the gradient of the loss with respect to the matrix that an adapted layer multiplies its inputs with. The gradient
of an adapter's parameters is J^T G, with the Jacobian J of that matrix; what they see of G is its projection on the
span of J.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qcircuit_peft.checks import whole_number
from qcircuit_peft.factorizations.parts import Vector
from qcircuit_peft.precision import no_autocast
from qcircuit_peft.text import shown
from qcircuit_peft.tuner.layer import QCircuitLinear
from qcircuit_peft.tuner.maps import is_linear
from qcircuit_peft.tuner.names import tuner_layers

Loss = Callable[[nn.Module, Any], Tensor]
_ENTRIES = 1 << 24  # of a Jacobian that are held at a time


@dataclass(frozen=True)
class ModuleCapture:
    """The energy ||G||^2 of one adapted module, and what its adapter holds of it, as in ``GradientCapture``."""

    energy: float
    share: float
    full_share: float
    nuclear: float


@dataclass(frozen=True)
class GradientCapture:
    """The shares of the energy of all modules' gradients, from 0 to 1, and by the name of each in ``modules``.

    share: what the plain numbers of a factorization hold, such as lambda, whose directions for "svd" are u_i v_i^T: the
    sum of (u_i^T G v_i)^2 over ||G||^2. full_share: what all trained parameters hold; parameters that modules share
    move all of them at once. At the start of an adapter that multiplies by lambda = 0 both are the same; for methods
    without such a part they are. nuclear: what Adam feels, whose steps are equally long for every number, of the same
    numbers as share: for "svd", the sum of |u_i^T G v_i| over the sum of nuclear norms ||G||_*, which is 1 for G's own
    singular vectors; of other directions, each of length 1, it may be more.
    """

    share: float
    full_share: float
    nuclear: float
    modules: Mapping[str, ModuleCapture]


class _Span:
    """The span of columns that come in blocks of rows, and a vector beside them: the triangle of their QR is enough."""

    def __init__(self) -> None:
        self.triangle = torch.empty(0, 0, dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        """Some rows of the columns, the vector last: (rows, columns + 1)."""
        kept = self.triangle if len(self.triangle) else rows[:0]
        self.triangle = torch.linalg.qr(torch.cat([kept, rows]), mode="r")[1]

    def captured(self, eps: float) -> float:
        """The squared norm of the vector's projection on the span."""
        columns, vector = self.triangle[:, :-1], self.triangle[:, -1]
        if not columns.numel():
            return 0.0
        columns = columns / columns.norm(dim=0).clamp_min(torch.finfo(columns.dtype).tiny)
        left, sizes, _ = torch.linalg.svd(columns, full_matrices=False)
        return float((left[:, sizes > eps * sizes[0]].mT @ vector).square().sum()) if sizes[0] > 0 else 0.0

    def felt(self) -> float:
        """The sum of the vector's parts along each of the columns, without signs."""
        columns, vector = self.triangle[:, :-1], self.triangle[:, -1]
        lengths = columns.norm(dim=0)
        return float((columns.mT @ vector)[lengths > 0].abs().div(lengths[lengths > 0]).sum())


def check_task(batches: Any, loss: Any = None) -> None:
    """Raise ValueError unless batches come one after another, and a loss that is given is a function."""
    several = hasattr(type(batches), "__iter__") or hasattr(type(batches), "__getitem__")
    if not several or isinstance(batches, Mapping | str | bytes):
        raise ValueError(f"batches come in a list or a loader, of one too, got {shown(type(batches).__name__)}")
    if loss is not None and not callable(loss):
        raise ValueError(f"a loss is a function of a model and a batch, got {shown(loss)}")


def own_loss(model: nn.Module, batch: Any) -> Tensor:
    """The model's own loss of a batch with labels; raises ValueError for a batch that is no table, or has none."""
    loss = getattr(model(**batch), "loss", None) if isinstance(batch, Mapping) else None
    if loss is None:
        found = sorted(map(str, batch)) if isinstance(batch, Mapping) else type(batch).__name__
        raise ValueError(f"a batch is a table of arguments with labels unless a loss is given, got {shown(found)}")
    return loss


@contextmanager
def _measuring(model: nn.Module, modules: Mapping[str, nn.Module], hook: Callable[..., Any]) -> Iterator[None]:
    """Within it the model is in eval mode, and ``hook(name, x, output)`` may replace what a module gives.

    x has a row for each input.
    """

    def watch(name: str) -> Callable[..., Any]:
        return lambda _, args, output: hook(name, torch.atleast_2d(args[0].detach()).flatten(0, -2), output)

    handles = [module.register_forward_hook(watch(name)) for name, module in modules.items()]
    try:
        with evaluating(model), torch.compiler.set_stance("force_eager"):  # compiled, a model would not see the hooks
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within it every module is in eval mode; then each in its own again."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _add(found: dict[str, Tensor], name: str, rows: Tensor, x: Tensor) -> None:
    """Add the sum of outer products of rows, (*n, out), and inputs, (n, in)."""
    dtype = torch.promote_types(rows.dtype, torch.float32)
    with no_autocast(rows):
        step = (torch.atleast_2d(rows.detach()).flatten(0, -2).to(dtype).mT @ x.to(dtype)).double().cpu()
    found[name] = found[name] + step if name in found else step


def _complete(found: Mapping[str, Tensor], modules: Iterable[str], missing: str, what: str) -> None:
    """Raise ValueError if a module is not found, or not finite."""
    for name in modules:
        if name not in found:
            raise ValueError(missing.format(repr(name)))
        if not found[name].isfinite().all():
            raise ValueError(f"{what} of module {name!r} has entries that are NaN or infinite")


def task_gradients(
    model: nn.Module, modules: Mapping[str, nn.Module], batches: Iterable[Any], loss: Loss | None = None
) -> dict[str, Tensor]:
    """The gradient of the summed loss with respect to the matrix of every linear module, (out, in), in float64.

    Changes neither the model nor the gradients of its parameters. Raises ValueError for no batches, batches without
    labels where no loss is given, a loss that is no number or does not reach a module, or a gradient that is not
    finite.
    """
    check_task(batches, loss)
    found: dict[str, Tensor] = {}
    probes: list[Tensor] = []

    def probe(name: str, x: Tensor, output: Tensor) -> Tensor:
        probes.append(output.new_zeros(()).requires_grad_())
        seen = output + probes[-1]
        seen.register_hook(lambda gradient: _add(found, name, gradient, x))
        return seen

    with _measuring(model, modules, probe), torch.enable_grad():
        for batch in batches:
            value = (loss or own_loss)(model, batch)
            if not isinstance(value, Tensor) or value.numel() != 1:
                raise ValueError(f"a loss is one number for a batch, got {shown(value)}")
            if value.requires_grad:
                torch.autograd.grad(value.sum(), probes, allow_unused=True)
            probes.clear()
    missing = "the loss does not depend on module {} in any batch, so it has no gradient there"
    _complete(found, modules, missing, "the gradient")
    return found


def task_outputs(
    model: nn.Module, modules: Mapping[str, nn.Module], batches: Iterable[Any], loss: Loss | None = None
) -> dict[str, Tensor]:
    """The sum of outer products of outputs and inputs of every linear module, (out, in), in float64.

    ``loss(model, batch)`` runs the model; left out, it is called with each batch, or with its entries if it is a table.
    Changes nothing. Raises ValueError for no batches, a module that is not run, or outputs that are not finite.
    """
    check_task(batches, loss)
    found: dict[str, Tensor] = {}
    with _measuring(model, modules, lambda name, x, output: _add(found, name, output, x)), torch.no_grad():
        for batch in batches:
            if loss is not None:
                loss(model, batch)
            elif isinstance(batch, Mapping):
                model(**batch)
            else:
                model(batch)
    _complete(found, modules, "module {} is not run in any batch, so it has no inputs", "the output")
    return found


def check_dense(name: str, module: Any) -> None:
    """Raise ValueError for an adapted module that is no linear layer, whose inputs are not multiplied by its weight."""
    base = module.get_base_layer()
    dense = module.map.dense if isinstance(module, QCircuitLinear) else is_linear(base, quantized=True)
    if not dense:
        raise ValueError(f"gradients are measured of linear layers, but {name!r} is a {type(base).__name__}")


def _parameters(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The trained parameters of the active adapters of a module, shared ones too, and those that are plain numbers."""
    if not isinstance(module, QCircuitLinear):
        every = [p for p in module.parameters() if p.requires_grad]
        return every, every
    every, plain = [], []
    for adapter in [name for name in module.active_adapters if name in module.factors]:
        parts = module.factors[adapter].parts
        for part, parameter in module.intrinsic_parameters(adapter).items():
            if parameter.requires_grad:
                every.append(parameter)
                plain += [parameter] if isinstance(parts[part], Vector) else []
    return every, plain or every


def _blocks(module: Any, parameters: Sequence[nn.Parameter], gradient: Tensor) -> Iterator[Tensor]:
    """Rows of [J | G], in blocks of columns of the layer's matrix."""
    n_out, n_in = gradient.shape
    count = sum(p.numel() for p in parameters)
    step = max(1, _ENTRIES // (n_out * (count + 1)))
    like = parameters[0]
    for start in range(0, n_in, step):
        size = min(step, n_in - start)
        some = torch.zeros(size, n_in, dtype=like.dtype, device=like.device)
        some[range(size), range(start, start + size)] = 1
        made = module(some)
        free = torch.ones_like(made, requires_grad=True)
        slopes = torch.autograd.grad(made, parameters, free, create_graph=True, materialize_grads=True)
        rows = []
        for slope in slopes:  # the derivative of J^T f by f, entry by entry
            for entry in slope.flatten() if slope.requires_grad else ():
                moved = torch.autograd.grad(entry, free, retain_graph=True, materialize_grads=True)[0]
                rows.append(moved.detach().flatten().double().cpu())
            if not slope.requires_grad:
                rows += [torch.zeros(made.numel(), dtype=torch.float64)] * slope.numel()
        yield torch.stack([*rows, gradient[:, start : start + size].mT.flatten()], -1)


def gradient_capture(model: nn.Module, batches: Iterable[Any], loss: Loss | None = None) -> GradientCapture:
    """How much of the task's gradient the active adapter of a model holds, where it stands.

    ``loss(model, batch)`` is a number for each of ``batches``; left out, the model's own. Any PEFT method on linear
    layers; the model is in eval mode meanwhile, and stays as it is. Exact up to rounding: the projection on the span of
    the Jacobian, which is taken block by block. Raises ValueError for a model without adapted linear layers, a merged
    or disabled adapter, one without trained parameters, and what ``task_gradients`` refuses.

    >>> from peft import get_peft_model
    >>> from qcircuit_peft import QCircuitConfig
    >>> config = QCircuitConfig(r=4, target_modules=["0"], seed=0)
    >>> model = get_peft_model(nn.Sequential(nn.Linear(32, 16)), config)
    >>> x = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    >>> found = gradient_capture(model, [x], lambda model, x: model(x).square().sum())
    >>> 0 < found.share < 1 and abs(found.share - found.full_share) < 1e-9
    True
    """
    modules = tuner_layers(model) if isinstance(model, nn.Module) else {}
    if not modules:
        raise ValueError("what is measured is a model with an adapter of PEFT, got one without")
    parameters = {}
    for name, module in modules.items():
        check_dense(name, module)
        if module.merged or module.disable_adapters:
            raise ValueError(f"module {name!r} has a merged or disabled adapter; unmerge or enable it first")
        parameters[name] = _parameters(module)
        if not parameters[name][0]:
            raise ValueError(f"the adapter of module {name!r} has no trained parameters")
    gradients = task_gradients(model, modules, batches, loss)
    energies = {name: float(g.square().sum()) for name, g in gradients.items()}
    total = sum(energies.values())
    if not total:
        raise ValueError("the gradient is zero in every module, so no share of it is defined")
    spans: dict[str, Tensor] = {}
    nuclears = {name: float(torch.linalg.svdvals(g).sum()) for name, g in gradients.items()}
    found, plain_total, felt_total, eps = {}, 0.0, 0.0, 0.0
    with evaluating(model):
        for name, module in modules.items():
            every, plain = parameters[name]
            eps = max(eps, 1e2 * torch.finfo(every[0].dtype).eps)
            span, own = _Span(), _Span()
            chosen = torch.cat(
                [torch.full((p.numel(),), any(p is q for q in plain)) for p in every] + [torch.ones(1) > 0]
            )
            with torch.enable_grad():
                for rows in _blocks(module, every, gradients[name]):
                    span.add(rows)
            spans[name] = span.triangle
            own.add(span.triangle[:, chosen])
            held, all_held = own.captured(eps), span.captured(eps)
            felt = own.felt()
            plain_total, felt_total = plain_total + held, felt_total + felt
            energy, nuclear = energies[name] or 1.0, nuclears[name] or 1.0
            found[name] = ModuleCapture(energies[name], held / energy, all_held / energy, felt / nuclear)
    nuclear = felt_total / sum(nuclears.values())
    return GradientCapture(plain_total / total, _together(parameters, spans, eps) / total, nuclear, found)


def best_capture(
    model: nn.Module, modules: Iterable[str], batches: Iterable[Any], r: int, loss: Loss | None = None
) -> GradientCapture:
    """What the best r directions u_i v_i^T in each of these linear modules hold: the gradient's own singular vectors.

    ``modules`` are names within the model; the rest, and what is refused, is as in ``gradient_capture``.
    """
    whole_number("r", r, 1)
    inside = dict(model.named_modules())
    if absent := [name for name in modules if name not in inside]:
        raise ValueError(f"the model has no module {shown(absent[0])}")
    gradients = task_gradients(model, {name: inside[name] for name in modules}, batches, loss)
    sizes = {name: torch.linalg.svdvals(g) for name, g in gradients.items()}
    energy, nuclear = (sum(float(s.pow(p).sum()) for s in sizes.values()) for p in (2, 1))
    if not energy:
        raise ValueError("the gradient is zero in every module, so no share of it is defined")
    found = {}
    for name, s in sizes.items():
        own = float(s.square().sum())
        held, felt = float(s[:r].square().sum()) / (own or 1.0), float(s[:r].sum() / (s.sum() or 1.0))
        found[name] = ModuleCapture(own, held, held, felt)
    share = sum(float(s[:r].square().sum()) for s in sizes.values()) / energy
    return GradientCapture(share, share, sum(float(s[:r].sum()) for s in sizes.values()) / nuclear, found)


def _together(parameters: Mapping[str, Any], spans: Mapping[str, Tensor], eps: float) -> float:
    """What all parameters hold where modules share some: the columns of one parameter run through several modules."""
    groups: list[tuple[set[int], list[str]]] = []
    for name, (every, _) in parameters.items():
        ids, names = {id(p) for p in every}, [name]
        for other in [group for group in groups if group[0] & ids]:
            groups.remove(other)
            ids, names = ids | other[0], other[1] + names
        groups.append((ids, names))
    held = 0.0
    for _, names in groups:
        unique = {id(p): p for name in names for p in parameters[name][0]}
        starts, count = {}, 0
        for key, parameter in unique.items():
            starts[key], count = count, count + parameter.numel()
        span = _Span()
        for name in names:
            where = [range(starts[id(p)], starts[id(p)] + p.numel()) for p in parameters[name][0]]
            rows = torch.zeros(len(spans[name]), count + 1, dtype=torch.float64)
            rows[:, [at for some in where for at in some] + [count]] = spans[name]
            span.add(rows)
        held += span.captured(eps)
    return held
