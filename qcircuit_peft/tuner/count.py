"""How many numbers an adapter trains, without building it."""

import copy
from typing import Any

import torch
from peft import get_peft_model
from torch import nn


def parameter_count(config: Any, model: Any) -> int:
    """The number of parameters that ``get_peft_model(model, config)`` would train, ``modules_to_save`` included.

    ``config`` is any PEFT configuration; the two may come in the order of ``get_peft_model``. Takes no memory to
    speak of: it adapts a copy of the model on the meta device, and changes neither the model, the configuration nor the
    random state.

    >>> from qcircuit_peft import QCircuitConfig
    >>> parameter_count(QCircuitConfig(r=4, target_modules=["0"]), nn.Sequential(nn.Linear(64, 32)))
    33
    """
    if isinstance(config, nn.Module):
        config, model = model, config
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(
            torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad
        )
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    with torch.random.fork_rng(devices=[]):
        adapted = get_peft_model(copy.deepcopy(model, memo), copy.deepcopy(config))
    return sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
