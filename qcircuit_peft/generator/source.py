"""Generated tensors in the place of a module's parameters; ``generation`` says when they are made.

A module keeps its parameters in the dict ``_parameters``. Here some of them are taken out of it, and ``Slots`` answers
for their names: the module finds a tensor as ever, but does not list it, so that optimizers, state dicts and devices
know only the generator.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import accumulate
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from qcircuit_peft.generation import Batch, Pass, Passes, replayed
from qcircuit_peft.generator.network import Generator
from qcircuit_peft.generator.targets import Target
from qcircuit_peft.precision import no_autocast
from qcircuit_peft.recomputation import unhooked


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


class Source:
    """The tensors that a generator makes for the targets, which are in the order and of the sizes of its groups.

    Within a pass of ``passes``, all requests get the tensors of one generation; outside of it each looks whether a
    parameter of the generator has changed.
    """

    def __init__(self, generator: Generator, targets: list[Target], passes: Passes, saved: bool = False) -> None:
        self.generator, self.targets, self.passes = generator, targets, passes
        self.dtypes = [target.start.dtype for target in targets]
        start = torch.cat([target.start.detach().flatten().float() for target in targets])
        self.restart(start, saved)
        for target in targets:
            target.start = nn.Parameter(target.start.detach().to("meta"), requires_grad=False)  # its shape stays
        self.put()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.join()  # the copied model

    def join(self) -> None:
        """Be among what a compiled pass of the model makes at its beginning."""
        self.passes.makers[id(self)] = self.traced

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
        self.passes.clear()

    def tensor(self, index: int) -> Tensor:
        """The tensor of a target, of its shape and dtype."""
        if torch.compiler.is_compiling() and (made := self.passes.traced(id(self)) or self.traced()):
            return made[index]
        return self._found(index)

    @torch.compiler.disable()
    def _found(self, index: int) -> Tensor:
        values = list(self.generator.values().values())
        if any(value.is_meta for value in values) or replayed():
            with unhooked():
                return self._alone()[index]
        now, key = self.passes.under_way() or Pass(), id(self)
        found = self.passes.kept(key, now)
        wants_grad = torch.is_grad_enabled() and any(value.requires_grad for value in values)
        if found is None or wants_grad > found.grad or not found.knows(values):
            make = partial(_made, self.generator)
            batch = Batch([[value] for value in values], make, finish=self._cut(), random=self._is_random)
            found = self.passes.make(key, batch, now if isinstance(now, Pass) else Pass())
        return found.made[index]

    def _alone(self) -> tuple[Tensor, ...]:
        values = [value.unsqueeze(0) for value in self.generator.values().values()]
        with no_autocast(values[0]):
            return self._cut()((_made(self.generator, values)[0][0],))

    def _cut(self) -> Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]:
        kinds = [(target.start.shape, dtype) for target, dtype in zip(self.targets, self.dtypes, strict=True)]
        return partial(_cut, kinds)

    def traced(self) -> tuple[Tensor, ...] | None:
        """All tensors, by operations that a compiler follows; None where a simulator or a measurement makes them."""
        recipe = self.generator.recipe
        return self._alone() if recipe.backend == "native" and recipe.noise is None and not self._is_random else None

    @property
    def _is_random(self) -> bool:
        return self.generator.recipe.is_random


# What a batch calls knows no ``Source``: the graph of what it made holds the batch, and a source, by its passes, what
# was made; Python does not find such a circle through torch's graph, and never frees it.
def _made(generator: Generator, leaves: Sequence[Tensor]) -> list[Tensor]:
    """All targets behind each other, (1, m), from leaves (1, ...), the generator's parameters and buffers."""
    values = {name: leaf.squeeze(0) for name, leaf in zip(generator.values(), leaves, strict=True)}
    flat = torch.cat(generator(values))
    return [(flat + values["start"] if generator.recipe.init == "zero" else flat).unsqueeze(0)]


def _cut(kinds: Sequence[tuple[torch.Size, torch.dtype]], rows: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Tensors of these shapes and dtypes from the one row that holds them all, (m,)."""
    sizes = [shape.numel() for shape, _ in kinds]
    if torch.compiler.is_compiling():  # what a split gives cannot be saved for a checkpoint
        parts = [rows[0].narrow(0, end - size, size) for size, end in zip(sizes, accumulate(sizes), strict=True)]
    else:
        parts = rows[0].split(sizes)
    return tuple(part.view(shape).to(dtype) for part, (shape, dtype) in zip(parts, kinds, strict=True))
