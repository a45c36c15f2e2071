"""nn.MultiheadAttention: it reads its two weights and never calls a layer, so that they are adapted as parameters.

As in PEFT's LoRA both are, by the name of the module.
"""

from typing import Any

from torch import nn

from qcircuit_peft.tuner.config import QCircuitConfig
from qcircuit_peft.tuner.parameter import ParameterTarget, QCircuitParameter, layers_around, parameters_of

WEIGHTS = ("out_proj.weight", "in_proj_weight")  # the first is the innermost: LoRA's layer of the other is outside

# What torch's own layers, and others, read of an attention beside calling it.
_READ = {
    *("embed_dim", "kdim", "vdim", "num_heads", "head_dim", "dropout", "batch_first", "add_zero_attn", "merge_masks"),
    *("in_proj_weight", "in_proj_bias", "out_proj", "bias_k", "bias_v", "_qkv_same_embed_dim"),
}


class QCircuitAttention(QCircuitParameter):
    """An nn.MultiheadAttention that sees one of its weights with the updates of circuits added."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.base_layer, name) if name in _READ else super().__getattr__(name)

    def patterned(self, path: str) -> str:
        """That of the module, if both weights are adapted."""
        return self.placed(path) if self.is_whole else super().patterned(path)

    @property
    def is_whole(self) -> bool:
        """Whether both weights are adapted, by target_modules."""
        return self.parameter_name == WEIGHTS[0] or isinstance(self.base_layer, QCircuitAttention)


def is_attention(module: nn.Module) -> bool:
    """Whether a module, adapted or not, is an nn.MultiheadAttention."""
    chain = layers_around(module)
    return isinstance(chain[-1].base_layer if chain else module, nn.MultiheadAttention)


def attention_targets(config: QCircuitConfig, name: str, module: nn.Module) -> list[ParameterTarget]:
    """The weights of an attention that is targeted.

    Raises ValueError for a forward that is not torch's, if keys or values have a width of their own, for weights that
    are not the module's own parameters, for dropout, and if another adapter has one of the two weights only.
    """
    known = [layer.parameter_name for layer in reversed(layers_around(module))]
    if known and known != [*WEIGHTS]:
        raise ValueError(
            f"target module {name!r} has its parameter {known[0]!r} adapted; adapt it by target_parameters, or in a "
            "model of its own"
        )
    found = parameters_of(module, WEIGHTS, name, name)
    inner: Any = found[0].module
    own = [inner._parameters.get("in_proj_weight"), inner.out_proj._parameters.get("weight")]
    if type(inner).forward is not nn.MultiheadAttention.forward or any(weight is None for weight in own):
        raise ValueError(
            f"target module {name!r} is a {type(inner).__name__} with kdim={inner.kdim} and vdim={inner.vdim} beside "
            f"embed_dim={inner.embed_dim}; circuits adapt one with torch's own forward, whose widths are the same, and "
            "whose in_proj_weight and out_proj.weight are parameters of its own"
        )
    if config.dropout:
        raise ValueError(
            f"dropout is for inputs, of which the weights of {name!r}, a {type(inner).__name__}, see none, so that it "
            f"is 0 with it, got {config.dropout}"
        )
    return found
