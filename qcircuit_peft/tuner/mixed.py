"""Batches in which every input has an adapter of its own; what is wrong with one is said in PEFT's words."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from qcircuit_peft.text import printable, shortened

BASE = "__base__"  # among adapter_names: no adapter


@contextmanager
def handed_out(tuner: BaseTuner, layer_cls: type[BaseTunerLayer], call: dict[str, Any]) -> Iterator[None]:
    """Hand ``adapter_names`` of a call to every layer of this class, and every head, of a tuner.

    Raises ValueError in training, and for a name that no adapter has.
    """
    names = call.pop("adapter_names", None)
    if names is None:
        yield
        return
    if tuner.training:
        raise ValueError("Cannot pass `adapter_names` when the model is in training mode.")
    if unknown := sorted(set(names) - {*tuner.peft_config, BASE}):
        raise ValueError(f"Trying to infer with non-existing adapter(s): {shortened(printable(', '.join(unknown)))}")
    beams = call.get("num_beams")
    repeated = [name for name in names for _ in range(beams)] if isinstance(beams, int) and beams > 1 else list(names)
    model: Any = tuner.model
    is_pair = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    encoder = model.get_encoder() if is_pair else None
    in_encoder = set(encoder.modules()) if encoder is not None else set()

    def hand(module: nn.Module, args: Any, kwargs: dict[str, Any], given: list[str]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "adapter_names": given}

    hooks = [
        module.register_forward_pre_hook(
            partial(hand, given=list(names) if module in in_encoder else repeated), with_kwargs=True, prepend=True
        )
        for module in tuner.modules()
        if isinstance(module, layer_cls | AuxiliaryTrainingWrapper)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def rows_of(layer: BaseTunerLayer, x: Tensor, names: Sequence[str]) -> dict[str, list[int]]:
    """Which rows of a batch each adapter has; raises ValueError if a row has no name, or an adapter is merged."""
    if len(names) != len(x):
        raise ValueError(
            "Length of `adapter_names` should be the same as the number of inputs, but got "
            f"{len(names)} and {len(x)} respectively."
        )
    if layer.merged:
        raise ValueError(
            "Cannot pass `adapter_names` when there are merged adapters, please call `unmerge_adapter` first."
        )
    return {name: [row for row, other in enumerate(names) if other == name] for name in sorted({*names} - {BASE})}
