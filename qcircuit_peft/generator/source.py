"""Generated tensors in the place of a module's parameters: made once for a forward pass, and never stale.

A module keeps its parameters in the dict ``_parameters``. Here some of them are taken out of it, and ``Slots`` answers
for their names: the module finds a tensor as ever, but does not list it, so that optimizers, state dicts and devices
know only the generator.
"""

from collections.abc import Sequence
from contextlib import nullcontext, suppress
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from qcircuit_peft.generator.network import Generator
from qcircuit_peft.generator.targets import Target


class Slots(dict):
    """The parameters of a module, and names for which a ``Source`` has the tensor. What is written there is dropped."""

    generated: Any = MappingProxyType({})  # name -> (Source, index); this one is there while a copy is made

    def __contains__(self, name: object) -> bool:
        return name in self.generated or super().__contains__(name)

    def __missing__(self, name: str) -> Tensor:
        source, index = self.generated[name]
        return source.tensor(index)

    def __setitem__(self, name: str, value: Any) -> None:
        if name not in self.generated:
            super().__setitem__(name, value)

    def __delitem__(self, name: str) -> None:
        if self.generated.pop(name, None) is None:
            super().__delitem__(name)


class _Shared(torch.autograd.Function):
    """What a generator makes, cut off from its graph, which is kept aside.

    So several backward passes may go through one generation: accumulated gradients, or nested passes of re-entrant
    gradient checkpointing.
    """

    @staticmethod
    def forward(ctx: Any, source: "Source", *parameters: Tensor) -> Tensor:  # type: ignore[override]
        ctx.leaves = [p.detach().requires_grad_(p.requires_grad) for p in parameters]
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
            ctx.made = source.made(ctx.leaves)
        return ctx.made.detach()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        wanted = [leaf for leaf in ctx.leaves if leaf.requires_grad]
        found = iter(torch.autograd.grad(ctx.made, wanted, cotangent, retain_graph=True, allow_unused=True))
        return None, *(next(found) if leaf.requires_grad else None for leaf in ctx.leaves)


class Source:
    """The tensors that a generator makes for the targets, which are in the order and of the sizes of its groups.

    ``begin`` and ``end`` are called around a forward pass. Within one, all requests get the tensors of one generation;
    at its beginning, and outside of it, they are made anew if a parameter of the generator has changed.
    """

    def __init__(self, generator: Generator, targets: list[Target], saved: bool = False) -> None:
        self.generator, self.targets = generator, targets
        self.dtypes = [target.start.dtype for target in targets]
        self.generations = 0  # how many there have been, for tests and curiosity
        self.passing = False
        start = torch.cat([target.start.detach().flatten().float() for target in targets])
        self.restart(start, saved)
        for target in targets:
            target.start = nn.Parameter(target.start.detach().to("meta"), requires_grad=False)  # its shape stays
        self.put()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "passing": False, "_made": None, "_values": []}

    def put(self) -> None:
        """Take the parameters out of their modules and answer for them."""
        for index, target in enumerate(self.targets):
            for module, name in target.places:
                slots = module._parameters
                if not isinstance(slots, Slots):
                    slots = Slots(slots)
                    slots.generated = {}
                    module.__dict__["_parameters"] = slots
                dict.pop(slots, name, None)
                slots.generated[name] = self, index

    def settle(self) -> None:
        """Give the modules parameters of their own again, with the values that are generated now."""
        for index, target in enumerate(self.targets):
            value = nn.Parameter(self.tensor(index).detach().clone())
            for module, name in target.places:
                with suppress(KeyError):  # a module whose adapter was deleted
                    del module._parameters[name]
                    module._parameters[name] = value

    def restart(self, start: Tensor, saved: bool) -> None:
        """Add what is generated to these initial values, (m,), which are ``saved`` in checkpoints or drawn again."""
        self.generator.register_buffer("start", start, persistent=saved)
        self.forget()

    def values(self) -> Tensor:
        """What the modules have in the places of the targets, (m,)."""
        places = [target.places[0] for target in self.targets]
        return torch.cat([getattr(module, name).detach().flatten().float() for module, name in places])

    def forget(self) -> None:
        """Drop the tensors that are held."""
        self._made: list[Tensor] | None = None
        self._values: list[Tensor] = []
        self._trained: list[bool] = []
        self._grad = False

    def begin(self) -> None:
        """A forward pass begins."""
        self.passing = False
        if self.generator.recipe.is_random:
            self.forget()
        self._refresh()
        self.passing = True

    def end(self) -> None:
        """A forward pass has ended."""
        self.passing = False

    @torch.compiler.disable()
    def tensor(self, index: int) -> Tensor:
        """The tensor of a target, of its shape and dtype."""
        trusted = self.passing or torch._C._current_graph_task_id() != -1  # a checkpoint recomputes the same pass
        if self._made is None or not trusted or (self._wants_grad() and not self._grad):
            self._refresh()
        assert self._made is not None
        return self._made[index]

    def made(self, parameters: Sequence[Tensor]) -> Tensor:
        """All targets behind each other, (m,), from these values of the generator's parameters."""
        generator = self.generator
        values = [p if p.dtype == torch.float64 else p.float() for p in parameters]
        given = dict(zip(dict(generator.named_parameters()), values, strict=True))
        buffers = {name: b if b.dtype == torch.float64 else b.float() for name, b in generator.named_buffers()}
        kind: str = generator.start.device.type  # type: ignore[assignment,union-attr]
        with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
            flat = torch.cat(functional_call(generator, {**given, **buffers}, ()))
            return flat + buffers["start"] if generator.recipe.init == "zero" else flat

    def _wants_grad(self) -> bool:
        return torch.is_grad_enabled() and any(p.requires_grad for p in self.generator.parameters())

    def _is_current(self) -> bool:
        """Whether the generator has the values that the tensors were made of, which are read, and is as trainable."""
        trained = [p.requires_grad for p in self.generator.parameters()]
        return (
            self._made is not None
            and trained == self._trained
            and all(
                now.device == then.device and now.dtype == then.dtype and (now.is_meta or torch.equal(now, then))
                for now, then in zip(self.generator.state_dict().values(), self._values, strict=True)
            )
        )

    def _refresh(self) -> None:
        wants_grad = self._wants_grad()
        if wants_grad <= self._grad and self._is_current():
            return
        parameters = list(self.generator.parameters())
        with torch.inference_mode(False):
            with torch.no_grad():
                self._values = [value.clone() for value in self.generator.state_dict().values()]
            if wants_grad:
                with torch.enable_grad():
                    flat: Tensor = _Shared.apply(self, *parameters)  # type: ignore[assignment]
                    self._made = self._cut(flat)
            else:
                with torch.no_grad():
                    self._made = self._cut(self.made(parameters))
        self._grad, self._trained = wants_grad, [p.requires_grad for p in parameters]
        self.generations += 1

    def _cut(self, flat: Tensor) -> list[Tensor]:
        parts = flat.split([target.start.numel() for target in self.targets])
        rows = zip(parts, self.targets, self.dtypes, strict=True)
        return [part.view(target.start.shape).to(dtype) for part, target, dtype in rows]
