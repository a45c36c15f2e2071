"""A model whose adapters are generated: where it starts, the plain adapter, and measuring as hardware would."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from qcircuit_peft.generator.model import QPAModel
from qcircuit_peft.generator.targets import SAVED
from qcircuit_peft.tuner.names import PREFIX


def _tuner(model: nn.Module, adapter: str) -> QPAModel:
    tuner = getattr(model, "base_model", None)
    if not isinstance(tuner, QPAModel):
        raise ValueError(f"a model adapted with QPAConfig is wanted, got {type(model).__name__}")
    if adapter not in tuner.peft_config:
        raise ValueError(f"there is no adapter {adapter!r}; there are {', '.join(tuner.peft_config)}")
    return tuner


def save_base_adapter(
    model: nn.Module, folder: str | os.PathLike[str], adapter: str = "default", **options: Any
) -> None:
    """Write the adapter of the base method with the values that are generated now, in PEFT's own format.

    Stock PEFT loads it without this library. As PEFT does, an adapter that is not named "default" is written into a
    folder of its name. ``options`` go to PEFT's ``save_pretrained``, which saves a whole adapted head or embedding too
    unless ``save_embedding_layers=False``. Raises ValueError if the model has no such generated adapter.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from peft import LoraConfig, get_peft_model
    >>> from qcircuit_peft import QPAConfig
    >>> net = nn.Sequential(nn.Linear(16, 8))
    >>> model = get_peft_model(net, QPAConfig(base=LoraConfig(r=2, target_modules=["0"]), chunk_size=16))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_base_adapter(model, folder)
    ...     sorted(path.name for path in Path(folder).iterdir())
    ['README.md', 'adapter_config.json', 'adapter_model.safetensors']
    """
    with _tuner(model, adapter).settled() as wrapped:
        wrapped.save_pretrained(str(folder), selected_adapters=[adapter], **options)


@contextmanager
def started_from(model: nn.Module, adapter: str = "default") -> Iterator[PeftModel]:
    """Within it, the model as PEFT adapts it by the base method: values written to its parameters are a new start.

    For initial values that come from data, such as a prefix that is the keys and values of a text. They are no longer
    drawn from the seed but saved with the adapter. Raises ValueError if the model has no such generated adapter, or one
    with init="paper", which starts from nothing; and if a parameter of a circuit was written to that is not trained, of
    which checkpoints have none: it has its value again, and the adapter starts where it did.

    >>> from peft import LoraConfig, get_peft_model
    >>> from qcircuit_peft import QPAConfig
    >>> net = nn.Sequential(nn.Linear(16, 8))
    >>> model = get_peft_model(net, QPAConfig(base=LoraConfig(r=2, target_modules=["0"]), chunk_size=16))
    >>> with started_from(model) as plain:
    ...     _ = nn.init.ones_(plain.base_model.model[0].lora_B["default"].weight)
    >>> model.base_model.model[0].lora_B["default"].weight[0].tolist()
    [1.0, 1.0]
    """
    tuner = _tuner(model, adapter)
    source, config = tuner.sources[adapter], tuner.peft_config[adapter]
    if config.init != "zero":
        raise ValueError(f"an adapter with init='zero' starts from other values, got init={config.init!r}")
    with tuner.settled() as wrapped:
        made = source.values() - source.generator.get_buffer("start")
        still = {name: p for name, p in wrapped.named_parameters() if PREFIX in name and not p.requires_grad}
        before = {name: p.detach().clone() for name, p in still.items()}
        try:
            yield wrapped
            start = source.values() - made
        finally:
            with torch.no_grad():
                written = [name for name, p in still.items() if not torch.equal(p, before[name])]
                for name in written:
                    still[name].copy_(before[name])
        if written:
            raise ValueError(
                f"what is not trained is not saved with a generated adapter, but {written[0]} was written to"
            )
    source.restart(start, saved=True)
    config.layout["start"] = SAVED


@contextmanager
def measured_with(model: nn.Module, adapter: str = "default", **settings: Any) -> Iterator[None]:
    """Within it, the adapter's probabilities are measured with other ``shots``, ``noise`` or ``backend``.

    Raises ValueError if the model has no such generated adapter, or for settings that ``probabilities`` does not take.
    """
    source = _tuner(model, adapter).sources[adapter]
    if unknown := sorted(set(settings) - {"shots", "noise", "backend"}):
        raise ValueError(f"what is measured with is shots, noise or backend, got {unknown[0]!r}")
    before = source.generator.recipe
    source.generator.recipe = replace(before, **settings)
    source.forget()
    try:
        yield
    finally:
        source.generator.recipe = before
        source.forget()
