"""Models that have some of their layers more than once, as LoRA's ``layer_replication`` has it; and trained tokens."""

from collections.abc import Iterable, Mapping
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer, replicate_layers
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from qcircuit_peft.text import shown

_DONE = "_qcircuit_layers"  # an attribute of the model: the ranges of the layers that it has


def replicated(model: Any, ranges: list[tuple[int, int]] | None) -> list[tuple[int, int]] | None:
    """Give a model these ranges of its layers in the place of all of them; those that come twice share their weights.

    The ranges that the model has then, None for a model as it was; one whose layers were replaced so for another
    adapter keeps them. Raises ValueError for a range beyond the layers, a model in which PEFT finds none, and one whose
    layers are others' already or have adapters.
    """
    done = vars(model).get(_DONE)
    if not ranges:
        return done
    if done is not None:
        if done != ranges:
            raise ValueError(
                f"layer_replication is {shown(ranges)}, but the layers of this model were replicated as {shown(done)}; "
                "all adapters of a model have the same"
            )
        return done
    if any(isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper) for module in model.modules()):
        raise ValueError(
            "layer_replication makes other layers of a model, in which there is no adapter yet, but this one has some; "
            "add the adapter with layer_replication first, or to a model of its own"
        )
    try:
        replicate_layers(model, ranges)
    except IndexError:
        largest = max(end for _, end in ranges)
        raise ValueError(f"layer_replication has a range up to {largest}, but the model has fewer layers") from None
    setattr(model, _DONE, ranges)
    return ranges


def check_tokens(model: Any, config: Any, others: Iterable[Any], targets: Mapping[str, nn.Module]) -> None:
    """Raise ValueError unless what ``config`` trains of embeddings are rows that the model has.

    ``others`` are the configurations of other adapters: PEFT saves trained tokens of all or of none. ``targets`` are
    the modules that are adapted: PEFT would wrap rows inside of them.
    """
    tokens = config.trainable_token_indices
    if any(bool(getattr(other, "trainable_token_indices", None)) != bool(tokens) for other in others):
        raise ValueError(
            "either all adapters of a model have trainable_token_indices or none has, since PEFT saves them together; "
            "put this adapter into a model of its own"
        )
    if not tokens:
        return
    if not isinstance(tokens, dict):
        embedding = getattr(model, "get_input_embeddings", lambda: None)()
        name = next((name for name, module in model.named_modules() if module is embedding), "embed_tokens")
        tokens = {name: tokens}
    adapted = {id(getattr(_inner(module), "weight", None)): name for name, module in targets.items()}
    for name, indices in tokens.items():
        found = [_inner(module) for path, module in model.named_modules() if f".{path}".endswith(f".{name}")]
        if not found:
            raise ValueError(f"trainable_token_indices names {shown(name)}, but the model has no such module")
        if len(set(indices)) < len(indices):
            raise ValueError(f"trainable_token_indices names every token of {shown(name)} once, got {shown(indices)}")
        for module in found:
            weight = getattr(module, "weight", None)
            rows = None if weight is None or weight.dim() != 2 else len(weight)
            if rows is None or max(indices) >= rows:
                raise ValueError(
                    f"trainable_token_indices has token {max(indices)} of {shown(name)}, which has "
                    f"{'no rows of tokens' if rows is None else f'{rows} tokens'}"
                )
            if id(weight) in adapted:
                raise ValueError(
                    f"trainable_token_indices trains rows of the weight of {shown(name)}, which is also that of "
                    f"{shown(adapted[id(weight)])}, a module that is adapted; leave it out of one of both"
                )


def _inner(module: Any) -> Any:
    """What PEFT has wrapped."""
    while isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
        module = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module.original_module
    return module
