"""What surrounds PEFT at work on a model: a random state from a seed, and a model that is left as it was."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's global random state from a seed, and as it was afterwards."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


@contextmanager
def whole_or_nothing(model: nn.Module) -> Iterator[None]:
    """The model is as it was, its modules in their places and as trainable, if what is done within fails."""
    attributes = dict(vars(model))
    places = [(module, dict(module._modules)) for module in model.modules()]
    trainable = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        yield
    except Exception:
        vars(model).clear()
        vars(model).update(attributes)
        for module, children in places:
            module._modules.update(children)
        for parameter, wanted in trainable.items():
            parameter.requires_grad_(wanted)
        raise
