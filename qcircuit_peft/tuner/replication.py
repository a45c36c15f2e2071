"""Models that have some of their layers more than once, as LoRA's ``layer_replication`` has it; and trained tokens."""

from typing import Any

from peft.tuners.tuners_utils import replicate_layers
from torch import nn

from qcircuit_peft.text import shown

_DONE = "_qcircuit_layers"  # an attribute of the model: the ranges of the layers that it has


def replicated(model: Any, ranges: list[tuple[int, int]]) -> None:
    """Give a model these ranges of its layers in the place of all of them; those that come twice share their weights.

    A model whose layers were replaced so for another adapter is left as it is. Raises ValueError for a range beyond the
    layers, a model in which PEFT finds none, or one whose layers are others' already.
    """
    done = vars(model).get(_DONE)
    if done is not None:
        if done != ranges:
            raise ValueError(
                f"layer_replication is {shown(ranges)}, but the layers of this model were replicated as {shown(done)}; "
                "all adapters of a model have the same"
            )
        return
    try:
        replicate_layers(model, ranges)
    except IndexError:
        largest = max(end for _, end in ranges)
        raise ValueError(f"layer_replication has a range up to {largest}, but the model has fewer layers") from None
    setattr(model, _DONE, ranges)


def check_tokens(model: Any, tokens: list[int] | dict[str, list[int]] | None) -> None:
    """Raise ValueError unless these are rows of embeddings that the model has."""
    if tokens is None:
        return
    if not isinstance(tokens, dict):
        embedding = getattr(model, "get_input_embeddings", lambda: None)()
        name = next((name for name, module in model.named_modules() if module is embedding), "embed_tokens")
        tokens = {name: tokens}
    for name, indices in tokens.items():
        found = [module for path, module in model.named_modules() if f".{path}".endswith(f".{name}")]
        if not found:
            raise ValueError(f"trainable_token_indices names {shown(name)}, but the model has no such module")
        if len(set(indices)) < len(indices):
            raise ValueError(f"trainable_token_indices names every token of {shown(name)} once, got {shown(indices)}")
        for module in found:
            rows = _rows(module)
            if rows is None or max(indices) >= rows:
                raise ValueError(
                    f"trainable_token_indices has token {max(indices)} of {shown(name)}, which has "
                    f"{'no rows of tokens' if rows is None else f'{rows} tokens'}"
                )


def _rows(module: Any) -> int | None:
    """The number of tokens of an embedding or a head, wrapped or not."""
    while not isinstance(module, nn.Embedding | nn.Linear) and hasattr(module, "original_module"):
        module = module.original_module
    weight = getattr(module, "weight", None)
    return None if weight is None or weight.dim() != 2 else len(weight)
