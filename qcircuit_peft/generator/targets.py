"""Which parameters of a model are generated, and what a checkpoint remembers of them."""

import hashlib
from dataclasses import dataclass, field
from math import isclose
from typing import Any

import torch
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from qcircuit_peft.tuner.names import tuner_layers


@dataclass
class Target:
    """A parameter that is generated: its value at the start, and every (module, name) where it is found."""

    name: str
    start: nn.Parameter
    places: list[tuple[nn.Module, str]] = field(default_factory=list)


def find_targets(model: nn.Module, known: set[int]) -> tuple[list[Target], list[int]]:
    """The trainable parameters that are not ``known``, by adapted layer, and how many numbers each layer has."""
    found: dict[int, tuple[str, Target]] = {}
    inside = [name for name, m in model.named_modules() if isinstance(m, AuxiliaryTrainingWrapper)]
    layers = tuner_layers(model)
    for path, module in model.named_modules(remove_duplicate=False):
        if any(path == name or path.startswith(f"{name}.") for name in inside):
            continue  # modules_to_save are trained as they are
        for name, parameter in module._parameters.items():
            if parameter is None or id(parameter) in known or not parameter.requires_grad:
                continue
            if isinstance(module, nn.RNNBase):
                raise ValueError(f"{path!r} is a {type(module).__name__}, whose parameters cannot be generated")
            layer = max((own for own in layers if path.startswith(f"{own}.")), key=len, default="")
            full = f"{path}.{name}"
            _, target = found.setdefault(id(parameter), (layer, Target(full, parameter)))
            if (module, name) not in target.places:
                target.places.append((module, name))
    sizes: dict[str, int] = {}
    ordered = sorted(found.values(), key=lambda row: row[0])  # stable: the parameters of a layer stay together
    for layer, target in ordered:
        sizes[layer] = sizes.get(layer, 0) + target.start.numel()
    return [target for _, target in ordered], list(sizes.values())


MARKS = 16
SAVED = "saved"  # in the place of marks: the checkpoint has all the initial values


def layout_of(targets: list[Target]) -> dict[str, Any]:
    """What an adapter was made for: the number of parameters, a digest of shapes, some of the initial values."""
    shapes = ";".join(str(tuple(target.start.shape)) for target in targets)
    start = torch.cat([target.start.detach().flatten().double() for target in targets])
    marks = None
    if not start.is_meta:
        random = start[start != 0]
        marks = random[torch.linspace(0, max(0, len(random) - 1), min(MARKS, len(random))).long()].tolist()
    digest = hashlib.blake2b(shapes.encode(), digest_size=8).hexdigest()
    return {"parameters": start.numel(), "digest": digest, "start": marks}


def check_layout(now: dict[str, Any], then: dict[str, Any], starts: bool) -> None:
    """Raise ValueError if an adapter was made for another layout, or if it ``starts`` from other values than then."""
    if (now["parameters"], now["digest"]) != (then["parameters"], then["digest"]):
        raise ValueError(
            f"the adapter was made to generate {then['parameters']:,} parameters of a base method, but in this model "
            f"it would be {now['parameters']:,}"
            + (", of other shapes" if now["parameters"] == then["parameters"] else "")
        )
    mine, theirs = now["start"], then["start"]
    if not starts or mine is None or theirs in (None, SAVED):
        return
    near = (isclose(a, b, rel_tol=0.02) for a, b in zip(mine, theirs, strict=True))  # bfloat16 has rounded them
    if len(mine) != len(theirs) or not all(near):
        raise ValueError(
            "the base method's initial values, to which the generated ones are added, differ from those that the "
            "adapter was trained with; load it with its own base model and versions of peft and torch"
        )
