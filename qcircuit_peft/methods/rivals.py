"""The methods that circuits are compared with and that PEFT has."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from math import ceil, gcd
from typing import Any

from peft import (
    AdaLoraConfig,
    C3AConfig,
    FourierFTConfig,
    IA3Config,
    LoKrConfig,
    LoraConfig,
    MissConfig,
    OFTConfig,
    PeftConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    PsoftConfig,
    RandLoraConfig,
    TinyLoraConfig,
    UniLoraConfig,
    VBLoRAConfig,
    VeraConfig,
    WaveFTConfig,
    get_peft_model,
)
from torch import nn
from transformers import TrainerCallback
from transformers.pytorch_utils import Conv1D

from qcircuit_peft.generator import BottleneckConfig
from qcircuit_peft.methods.method import Adapter, Attach, Count, Method, Shape, Sizes, shapes
from qcircuit_peft.text import shown

_ALPHA = 8  # times r, as for circuits
_LOKR_FACTOR, _MISS_R = 16, 8


def by_config(config: Callable[[list[str], int], PeftConfig]) -> Adapter:
    """Attaches what ``config(targets, size)`` describes; further fields of the configuration may be given each time."""

    def filled(model: nn.Module, targets: Sequence[str], size: int, **more: Any) -> PeftConfig:
        made: Any = config(list(targets), size)
        if hasattr(made, "fan_in_fan_out"):  # PEFT warns where it finds out itself
            made.fan_in_fan_out = all(isinstance(model.get_submodule(s.name), Conv1D) for s in shapes(model, targets))
        for key, value in more.items():
            setattr(made, key, value)
        return made

    return Adapter(filled)


def per_layer(numbers: Callable[[Shape, int], int]) -> Count:
    """The formula that adds up what each adapted layer trains."""
    return lambda model, targets, size: sum(numbers(shape, size) for shape in shapes(model, targets))


def _common(model: nn.Module, targets: Sequence[str], into: bool = True) -> int:
    found = shapes(model, targets)
    return gcd(*(shape.out for shape in found), *(shape.into for shape in found if into))


def divisors(least: int, into: bool = True) -> Sizes:
    """The common divisors of the widths of what layers give, and take too, from ``least`` on."""

    def sizes(model: nn.Module, targets: Sequence[str]) -> Iterator[int]:
        common = _common(model, targets, into)
        return (n for n in range(least, common + 1) if common % n == 0)

    return sizes


def _miss_sizes(model: nn.Module, targets: Sequence[str]) -> Iterable[int]:
    if any(shape.into % _MISS_R for shape in shapes(model, targets)):
        return iter(())
    return divisors(1, into=False)(model, targets)


# ---- low rank


def _ffa(model: nn.Module, targets: Sequence[str], size: int) -> nn.Module:
    adapted = by_config(lambda names, r: LoraConfig(target_modules=names, r=r, lora_alpha=_ALPHA * r))(
        model, targets, size
    )
    for name, parameter in adapted.named_parameters():
        if "lora_A" in name:
            parameter.requires_grad_(False)
    return adapted


class Allocate(TrainerCallback):
    """AdaLoRA's allocation of ranks after every step of the optimizer; Trainer does not know of it."""

    def __init__(self, model: nn.Module, steps: int) -> None:
        self.model: Any = model
        config = self.model.peft_config["default"]
        config.total_step, config.tinit, config.tfinal = steps, steps // 10, 3 * steps // 10
        config.deltaT = max(1, steps // 40)
        self.model.base_model.rankallocator.set_total_step(steps)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called when gradients are still there."""
        self.model.base_model.update_and_allocate(state.global_step + 1)


def _adalora(targets: list[str], r: int) -> PeftConfig:
    return AdaLoraConfig(target_modules=targets, init_r=2 * r, target_r=r, lora_alpha=32, total_step=1 << 40)


def _lokr_numbers(shape: Shape, r: int) -> int:
    (out, out_rest), (into, into_rest) = (_lokr_factors(width) for width in (shape.out, shape.into))
    first = r * (out + into) if r < max(out, into) / 2 else out * into
    second = r * (out_rest + into_rest) if r < max(out_rest, into_rest) / 2 else out_rest * into_rest
    return first + second


def _lokr_factors(width: int) -> tuple[int, int]:
    small = max(n for n in range(1, _LOKR_FACTOR + 1) if width % n == 0)
    return min(small, width // small), max(small, width // small)


def _vb_sizes(model: nn.Module, targets: Sequence[str]) -> Iterator[int]:
    return iter(range(2, 257))  # the two best of the bank are mixed


def _vb_count(model: nn.Module, targets: Sequence[str], size: int) -> int:
    length = _common(model, targets)
    return size * length + sum(size * (shape.out + shape.into) // length for shape in shapes(model, targets))


def _vb(model: nn.Module, targets: Sequence[str], size: int) -> nn.Module:
    length = _common(model, targets)
    config = VBLoRAConfig(target_modules=list(targets), r=1, num_vectors=size, vector_length=length, topk=2)
    return get_peft_model(model, config)  # type: ignore[arg-type]


def _randlora_numbers(shape: Shape, r: int) -> int:
    least = min(shape.out, shape.into)
    return ceil(least / r) * (r + least)


def _least_width(model: nn.Module, targets: Sequence[str]) -> int:
    return min(min(shape.out, shape.into) for shape in shapes(model, targets))


def up_to_width(model: nn.Module, targets: Sequence[str]) -> Iterator[int]:
    """Ranks up to the narrower side of every layer."""
    return iter(range(1, _least_width(model, targets) + 1))


def _randlora_sizes(model: nn.Module, targets: Sequence[str]) -> Iterator[int]:
    least = _least_width(model, targets)
    return (r for r in range(1, least + 1) if least % r == 0)


# ---- bottlenecks behind the blocks' parts

_OUTPUTS = {  # the last linear layers of a block's attention and of its feed-forward part, by model type
    "bert": ("attention.output.dense", "output.dense"),
    "roberta": ("attention.output.dense", "output.dense"),
    "deberta-v2": ("attention.output.dense", "output.dense"),
    "distilbert": ("attention.out_lin", "ffn.lin2"),
    "dinov2": ("o_proj", "fc2"),
    "vit": ("o_proj", "fc2"),
    "gpt2": ("attn.c_proj", "mlp.c_proj"),
    **dict.fromkeys(("llama", "mistral", "gemma2", "qwen2", "qwen3"), ("o_proj", "down_proj")),
}


def _outputs(model: nn.Module, both: bool) -> list[str]:
    """The names of those layers, each told from the other."""
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind not in _OUTPUTS:
        raise ValueError(f"bottleneck adapters know where to stand in {', '.join(_OUTPUTS)}, not in {shown(kind)}")
    attention, last = _OUTPUTS[kind]
    names = [shape.name for shape in shapes(model, (attention, last))]
    return names if both else [name for name in names if not name.endswith(f".{attention}")]


def _bottlenecks(both: bool) -> Attach:
    def attach(model: nn.Module, targets: Sequence[str], size: int) -> nn.Module:
        config = BottleneckConfig(r=size, activation="gelu", target_modules=_outputs(model, both))
        return get_peft_model(model, config)  # type: ignore[arg-type]

    return attach


def _bottleneck_count(both: bool) -> Count:
    def numbers(model: nn.Module, targets: Sequence[str], size: int) -> int:
        return sum(2 * shape.out * size + size + shape.out for shape in shapes(model, _outputs(model, both)))

    return numbers


# ---- tokens in front of the input

_HEADS = {"ForCausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM", "ForSequenceClassification": "SEQ_CLS"}


def _prompt(config_class: type[PeftConfig]) -> Attach:
    def attach(model: nn.Module, targets: Sequence[str], size: int) -> nn.Module:
        name = type(model).__name__
        kind = next((kind for end, kind in _HEADS.items() if name.endswith(end)), None)
        if kind is None:
            raise ValueError(
                f"tokens before the input need a model with a head of its own, one of {', '.join(_HEADS)}, got {name}"
            )
        config: Any = config_class(task_type=kind, num_virtual_tokens=size)  # type: ignore[call-arg]
        adapted = get_peft_model(model, config)  # type: ignore[arg-type]
        for name, parameter in adapted.named_parameters():
            parameter.requires_grad_("prompt_encoder" in name)  # the head is the task's to train
        return adapted

    return attach


def _prefix_count(model: Any, targets: Sequence[str], size: int) -> int:
    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return size * 2 * config.num_hidden_layers * heads * (config.hidden_size // config.num_attention_heads)


RIVALS: dict[str, Method] = {
    "houlsby": Method(
        "Houlsby adapters",
        "bottlenecks of width r behind the attention and the feed-forward part of every block",
        "Houlsby et al. 2019, arXiv 1902.00751",
        (1e-3, 3e-3, 1e-2),
        _bottlenecks(both=True),
        _bottleneck_count(both=True),
        size="width r",
        default=8,
    ),
    "pfeiffer": Method(
        "Pfeiffer adapters",
        "bottlenecks of width r behind the feed-forward part of every block",
        "Pfeiffer et al. 2021, arXiv 2005.00247",
        (1e-3, 3e-3, 1e-2),
        _bottlenecks(both=False),
        _bottleneck_count(both=False),
        size="width r",
        default=8,
    ),
    "lora": Method(
        "LoRA",
        "W + (alpha / r) B A with B at zero, alpha = 8 r",
        "Hu et al. 2022, arXiv 2106.09685",
        (2e-3, 4e-3, 1e-2),
        by_config(lambda names, r: LoraConfig(target_modules=names, r=r, lora_alpha=_ALPHA * r)),
        per_layer(lambda shape, r: r * (shape.out + shape.into)),
        default=4,
    ),
    "adalora": Method(
        "AdaLoRA",
        "P diag(e) Q of rank 2 r at first, pruned to r on average in training; those at first are counted",
        "Zhang et al. 2023, arXiv 2303.10512",
        (4e-3, 1e-2, 2e-2),
        by_config(_adalora),
        per_layer(lambda shape, r: 2 * r * (shape.out + shape.into + 1)),
        callbacks=lambda model, steps: [Allocate(model, steps)],
    ),
    "dora": Method(
        "DoRA",
        "LoRA on the direction of every row of W, and the length of the row",
        "Liu et al. 2024, arXiv 2402.09353",
        (2e-3, 4e-3, 1e-2),
        by_config(lambda names, r: LoraConfig(target_modules=names, r=r, lora_alpha=_ALPHA * r, use_dora=True)),
        per_layer(lambda shape, r: r * (shape.out + shape.into) + shape.out),
        default=4,
    ),
    "ffa": Method(
        "FFA-LoRA",
        "LoRA with A frozen as drawn",
        "Sun et al. 2024, arXiv 2403.12313",
        (4e-3, 1e-2, 2e-2),
        _ffa,
        per_layer(lambda shape, r: r * shape.out),
    ),
    "lora_xs": Method(
        "LoRA-XS",
        "a trained r x r matrix between the first singular vectors of W: PSOFT without orthogonality and magnitudes",
        "Bałazy et al. 2024, arXiv 2405.17604",
        (5e-3, 1e-2, 3e-2),
        by_config(
            lambda names, r: PsoftConfig(
                target_modules=names, r=r, psoft_alpha=r, psoft_orth=False, psoft_mag_a=False, psoft_mag_b=False
            )
        ),
        per_layer(lambda shape, r: r * r),
        default=9,
        sizes=up_to_width,
    ),
    "unilora": Method(
        "Uni-LoRA",
        "all entries of LoRA (r = 4) are gathered from one vector of d numbers",
        "Li et al. 2025, arXiv 2506.00799",
        (1e-2, 2e-2, 5e-2),
        by_config(lambda names, d: UniLoraConfig(target_modules=names, r=4, theta_d_length=d)),
        lambda model, targets, size: size,
        size="numbers d",
        default=256,
        at_base=False,
    ),
    "tinylora": Method(
        "TinyLoRA",
        "u numbers a layer mix random r x r matrices between the first singular vectors of W",
        "Morris et al. 2026, arXiv 2602.04118",
        (2e-3, 5e-3, 2e-2),
        by_config(lambda names, u: TinyLoraConfig(target_modules=names, r=max(2, ceil(u**0.5)), u=u)),
        per_layer(lambda shape, u: u),
        size="numbers u a layer",
        default=64,
        given_back=("tinylora_A", "tinylora_B", "tinylora_P"),
    ),
    "vblora": Method(
        "VB-LoRA",
        "LoRA (r = 1) whose parts are mixtures of h vectors that all layers share",
        "Li et al. 2024, arXiv 2405.15179",
        (5e-3, 1e-2, 3e-2),
        _vb,
        _vb_count,
        size="vectors h",
        default=2,
        sizes=_vb_sizes,
        rates_of={"vblora_vector_bank": 0.1, "vblora_logits_A": 1.0, "vblora_logits_B": 1.0},
        at_base=False,
    ),
    "vera": Method(
        "VeRA",
        "two trained vectors between two random matrices that all layers share",
        "Kopiczko et al. 2024, arXiv 2310.11454",
        (5e-3, 2e-2, 5e-2),
        by_config(lambda names, r: VeraConfig(target_modules=names, r=r)),
        per_layer(lambda shape, r: shape.out + r),
        default=256,
        given_back=("vera_A", "vera_B"),
    ),
    "randlora": Method(
        "RandLoRA",
        "a sum of random low-rank matrices with trained diagonals, of full rank",
        "Albert et al. 2025, arXiv 2502.00987",
        (1e-3, 5e-3, 2e-2),
        by_config(lambda names, r: RandLoraConfig(target_modules=names, r=r)),
        per_layer(_randlora_numbers),
        default=32,
        given_back=("randlora_A", "randlora_B"),
        sizes=_randlora_sizes,
    ),
    "c3a": Method(
        "C3A",
        "circular convolutions of blocks of b numbers, started at zero",
        "Chen et al. 2024, arXiv 2407.19342",
        (3e-2, 1e-1, 3e-1),
        by_config(lambda names, b: C3AConfig(target_modules=names, block_size=b, init_weights=True)),
        per_layer(lambda shape, b: shape.out * shape.into // b),
        size="block b",
        default=64,
        sizes=divisors(2),
    ),
    "waveft": Method(
        "WaveFT",
        "k trained coefficients of a layer's update in a wavelet basis",
        "Bilican et al. 2025, arXiv 2505.12532",
        (5e-4, 2e-3, 5e-3),
        by_config(lambda names, k: WaveFTConfig(target_modules=names, n_frequency=k, scaling=25.0)),
        per_layer(lambda shape, k: k),
        size="coefficients k a layer",
        default=64,
    ),
    "fourierft": Method(
        "FourierFT",
        "k trained coefficients of a layer's update in a Fourier basis, started at zero, not at random as published",
        "Gao et al. 2024, arXiv 2405.03003",
        (5e-2, 1e-1, 2e-1),
        by_config(
            lambda names, k: FourierFTConfig(target_modules=names, n_frequency=k, scaling=150.0, init_weights=True)
        ),
        per_layer(lambda shape, k: k),
        size="coefficients k a layer",
        default=64,
    ),
    "oft": Method(
        "OFT, shared block",
        "one rotation of b x b, the same for all blocks of a layer's input",
        "Qiu et al. 2023, arXiv 2306.07280",
        (5e-3, 2e-2, 5e-2),
        by_config(lambda names, b: OFTConfig(target_modules=names, r=0, oft_block_size=b, block_share=True)),
        per_layer(lambda shape, b: b * (b - 1) // 2),
        size="block b",
        default=12,
        sizes=divisors(2),
    ),
    "lokr": Method(
        "LoKr",
        f"a Kronecker product of two matrices of rank r, the first with widths up to {_LOKR_FACTOR}",
        "Yeh et al. 2024, arXiv 2309.14859",
        (5e-3, 1e-2, 3e-2),
        by_config(
            lambda names, r: LoKrConfig(
                target_modules=names, r=r, alpha=_ALPHA * r, decompose_both=True, decompose_factor=_LOKR_FACTOR
            )
        ),
        per_layer(_lokr_numbers),
        sizes=lambda model, targets: iter(range(1, 257)),
    ),
    "ia3": Method(
        "IA3",
        "a factor for every output of a layer",
        "Liu et al. 2022, arXiv 2205.05638",
        (5e-3, 2e-2, 5e-2),
        by_config(lambda names, size: IA3Config(target_modules=names, feedforward_modules=[])),
        per_layer(lambda shape, size: shape.out),
        size="",
    ),
    "miss": Method(
        "MiSS",
        f"a block of {_MISS_R} x k numbers, repeated along the outputs and summed over groups of inputs: its mini form",
        "Kang et al. 2024, arXiv 2409.15371",
        (2e-4, 1e-3, 5e-3),
        by_config(lambda names, k: MissConfig(target_modules=names, r=_MISS_R, mini_r=k, init_weights="mini")),
        per_layer(lambda shape, k: _MISS_R * k),
        size="width k",
        default=8,
        sizes=_miss_sizes,
    ),
    "prefix": Method(
        "prefix tuning",
        "k trained keys and values in front of every block's own",
        "Li and Liang 2021, arXiv 2101.00190",
        (1e-2, 3e-2, 1e-1),
        _prompt(PrefixTuningConfig),
        _prefix_count,
        size="tokens k",
        default=4,
        at_base=False,
    ),
    "prompt": Method(
        "prompt tuning",
        "k trained embeddings in front of the input's",
        "Lester et al. 2021, arXiv 2104.08691",
        (1e-2, 3e-2, 1e-1),
        _prompt(PromptTuningConfig),
        lambda model, targets, size: size * model.config.hidden_size,  # type: ignore[union-attr]
        size="tokens k",
        default=4,
        at_base=False,
    ),
}
