"""Few bits for the intrinsic parameters: quantization in training, straight-through, and the packed bytes of a file.

A vector is cut into groups of g consecutive entries; what g leaves over is a shorter last group. In a group of w bits
an entry is ``zero + scale * code`` with a code in 0..2**w - 1; zero and scale are bfloat16, rounded so that the grid
covers the group: no entry moves by more than scale / 2. A group of 0 bits is pruned: all its entries are 0.

The packed form, little-endian, has no header, since the length of the vector and the ``Quantization`` are known:
``widths`` (one byte for each group, adaptive only), ``zeros`` and ``scales`` (bfloat16, one for each group of more than
0 bits), then all codes, each in the bits of its group, lowest bit first, filled up with zero bits to a whole byte.
"""

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from qcircuit_peft import checks
from qcircuit_peft.checks import whole_number
from qcircuit_peft.text import shown

MAX_BITS = 16
_MAX_GROUP = 1 << 20
_KEPT = "lambda"  # full precision where nothing is said
_UNIT = 2**-8  # half the distance of neighbouring bfloat16, relative
_MARGIN = _UNIT * (1 + 2 * _UNIT)  # x + margin * |x|, rounded to bfloat16, is never below x
_TINY = 2.0**-100  # the least scale


@dataclass(frozen=True)
class Quantization:
    """How the parameters of an adapter are quantized.

    bits: 0 to 16 for each parameter. group: this many consecutive entries of a vector share a scale and a zero point.
    adaptive: the bits of a vector are loaded onto its groups by their range, at the same mean (``loaded_bits``).
    parts: bits of single parts, {"core": 8}; None leaves a part in full precision, as "lambda" is (it has few numbers,
        starts at 0, and the published runs quantize the Lie parameters) unless it is named here.
    packed: checkpoints hold the packed bits; False keeps the full-precision weights that training goes on from.

    Raises ValueError for bits outside 0..16 and a group outside 1..2**20.
    Source: Quantum-PEFT (arXiv 2503.05431), A.5; what it leaves open (rounding, formats, gradient) is ours.

    >>> quantization = Quantization(bits=3, parts={"core": 8})
    >>> quantization.of("u"), quantization.of("core").bits, quantization.of("lambda")
    (Quantization(bits=3, group=128, adaptive=False, parts={}, packed=True), 8, None)
    """

    bits: int = 4
    group: int = 128
    adaptive: bool = False
    parts: dict[str, int | None] = field(default_factory=dict, hash=False)
    packed: bool = True

    def __post_init__(self) -> None:
        whole_number("quantization: bits", self.bits, 0, MAX_BITS)
        whole_number("quantization: group", self.group, 1, _MAX_GROUP)
        for name in ("adaptive", "packed"):
            checks.boolean(f"quantization: {name}", getattr(self, name))
        if not isinstance(self.parts, dict) or not all(isinstance(part, str) for part in self.parts):
            raise ValueError(f"quantization: parts maps names of parts to bits, got {shown(self.parts)}")
        for part, bits in self.parts.items():
            if bits is not None:
                whole_number(f"quantization: parts[{shown(part)}]", bits, 0, MAX_BITS)
        object.__setattr__(self, "parts", dict(self.parts))

    def of(self, part: str) -> "Quantization | None":
        """What holds for one part: the same with that part's bits; None for full precision."""
        bits = self.parts.get(part, None if part == _KEPT else self.bits)
        return None if bits is None else replace(self, bits=bits, parts={})

    def check_parts(self, parts: Collection[str]) -> None:
        """Raise ValueError if it gives bits to a part that is not there."""
        for part in self.parts:
            if part not in parts:
                raise ValueError(
                    f"quantization gives bits to the part {shown(part)}, but the parts are {', '.join(parts)}"
                )

    @classmethod
    def from_dict(cls, fields: "Quantization | dict[str, Any]") -> "Quantization":
        """From the fields as plain data; raises ValueError for one that is unknown."""
        if isinstance(fields, Quantization):
            return fields
        if not isinstance(fields, dict) or not set(fields) <= set(cls.__dataclass_fields__):
            raise ValueError(f"quantization has the fields {', '.join(cls.__dataclass_fields__)}, got {shown(fields)}")
        return cls(**fields)

    @property
    def bits_per_parameter(self) -> float:
        """The bits that a parameter takes in a file, scale and zero point and the widths of groups included."""
        return bits_per_parameter(self.bits, self.group, self.adaptive)


def bits_per_parameter(bits: int, group: int = 128, adaptive: bool = False) -> float:
    """``bits`` plus 32 / group for scale and zero point, plus 8 / group for the width of an adaptive group.

    Exact for a whole number of groups, none of which is pruned. Source: Quantum-PEFT, Table 7.

    >>> [bits_per_parameter(bits) for bits in (8, 4, 3, 2, 1, 0)], bits_per_parameter(4, adaptive=True)
    ([8.25, 4.25, 3.25, 2.25, 1.25, 0.0], 4.3125)
    """
    return bits + (32 * (bits > 0) + 8 * adaptive) / group


def quantized(x: Float[Tensor, "*batch n"], quantization: Quantization) -> Float[Tensor, "*batch n"]:
    """Each vector as its packed form would give it back; the gradient passes straight through (Bengio et al. 2013).

    >>> x = torch.tensor([0.0, 0.1, 0.8, 1.0], requires_grad=True)
    >>> y = quantized(x, Quantization(bits=1))
    >>> y.sum().backward()
    >>> [round(value, 1) for value in y.tolist()], x.grad
    ([0.0, 0.0, 1.0, 1.0], tensor([1., 1., 1., 1.]))
    """
    if not x.shape[-1]:
        return x
    codes, zeros, scales, widths = _encode(x.detach().float(), quantization)
    value = _decode(codes, zeros, scales, widths).flatten(-2)[..., : x.shape[-1]]
    return value.to(x.dtype) + (x - x.detach())  # the last term is 0: the value is exact


def loaded_bits(spread: Float[Tensor, "*batch G"], reach: Float[Tensor, "*batch G"], bits: int) -> Tensor:
    """Whole bits 0..16 for G groups, (*batch, G), with mean exactly ``bits``, by their ranges.

    ``spread`` is a group's range. They minimize the sum of (spread * 2**-w)**2, where the next bit of a group is always
    worth a quarter of the one before, so that the G * bits most valuable of all are taken. A group whose largest
    absolute value ``reach`` is above its range has a first bit worth that much, lest it be pruned for being constant.
    Not minimized is the squared error of rounding, by which a first bit can be worth nothing:
    docs/results/quantization.md.

    >>> loaded_bits(torch.tensor([8.0, 1.0, 1.0, 0.01]), torch.tensor([4.0, 0.5, 0.5, 0.005]), 2)
    tensor([5, 2, 1, 0])
    """
    steps = torch.arange(MAX_BITS, device=spread.device)
    priority = spread.log2().unsqueeze(-1) - steps
    first = torch.maximum(spread, reach).log2().unsqueeze(-1)
    priority = torch.cat([first, priority[..., 1:]], -1).flatten(-2)
    rank = priority.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    return (rank < bits * spread.shape[-1]).unflatten(-1, (-1, MAX_BITS)).sum(-1)


def _encode(x: Float32[Tensor, "*batch n"], quantization: Quantization) -> tuple[Tensor, Tensor, Tensor, Tensor | int]:
    """Codes (*batch, G, g) as floats, zeros, scales and widths (*batch, G, 1); the last group is filled up."""
    n = x.shape[-1]
    g = min(n, quantization.group)
    if rest := -n % g:
        x = torch.cat([x, x[..., -1:].expand(*x.shape[:-1], rest)], -1)
    x = x.unflatten(-1, (-1, g))
    low, high = x.aminmax(dim=-1, keepdim=True)
    widths: Tensor | int = quantization.bits
    if quantization.adaptive:
        full = n // g
        spread, reach = (t[..., :full, 0] for t in (high - low, torch.maximum(high.abs(), low.abs())))
        widths = loaded_bits(spread, reach, quantization.bits)
        if rest:
            widths = torch.cat([widths, torch.full_like(widths[..., :1], quantization.bits)], -1)
        widths = widths.unsqueeze(-1)
    levels: Any = ((1 << widths) - 1).clamp_min(1) if isinstance(widths, Tensor) else max((1 << widths) - 1, 1)
    zeros = torch.sub(low, low.abs(), alpha=_MARGIN).bfloat16().float()
    scales = ((high - zeros) * (1 + _MARGIN) / levels).clamp_min(_TINY).bfloat16().float()
    codes = ((x - zeros) / scales).round().clamp_min(0).clamp_max(levels)
    return codes, zeros, scales, widths


def _decode(codes: Tensor, zeros: Tensor, scales: Tensor, widths: Tensor | int) -> Tensor:
    value = zeros + scales * codes
    if isinstance(widths, int):
        return value if widths else torch.zeros_like(value)
    return torch.where(widths > 0, value, 0.0)


@torch.no_grad()
def pack(x: Float[Tensor, "n"], quantization: Quantization) -> UInt8[Tensor, "bytes"]:
    """The packed form of a vector, on the CPU; raises ValueError for an entry that is NaN or infinite.

    >>> x = torch.randn(1280)
    >>> [8 * len(pack(x, Quantization(bits))) / 1280 for bits in (8, 4, 3, 2, 1)]
    [8.25, 4.25, 3.25, 2.25, 1.25]
    >>> quantization = Quantization(3, adaptive=True)
    >>> torch.equal(unpack(pack(x, quantization), 1280, quantization), quantized(x, quantization))
    True
    """
    if not torch.isfinite(x).all():
        raise ValueError("quantization: a vector to be packed holds an entry that is NaN or infinite")
    n = len(x)
    if not n:
        return torch.empty(0, dtype=torch.uint8)
    codes, zeros, scales, widths = (torch.as_tensor(t).cpu() for t in _encode(x.detach().float(), quantization))
    wide = widths.expand(len(codes), 1)
    bits = wide.expand(codes.shape).flatten()[:n].numpy()
    digits = codes.flatten()[:n].numpy().astype(np.uint16)[:, None] >> np.arange(MAX_BITS, dtype=np.uint16) & 1
    stream = np.packbits(digits[_used(bits)].astype(np.uint8), bitorder="little")
    grid = torch.cat([t[wide > 0] for t in (zeros, scales)]).bfloat16().view(torch.int16).numpy().astype("<i2")
    head = wide.flatten().numpy().astype(np.uint8) if quantization.adaptive else np.empty(0, np.uint8)
    return torch.from_numpy(np.concatenate([head, grid.view(np.uint8), stream]))


def unpack(data: Tensor, n: int, quantization: Quantization) -> Float32[Tensor, "n"]:
    """The n values of a packed form, bit for bit those of ``quantized``, on the CPU.

    Raises ValueError unless ``data`` is a vector of bytes of exactly the length that n, the quantization and its own
    widths ask for, with the right mean of widths, positive scales, finite values, and no spare bit set.
    """
    if data.dtype != torch.uint8 or data.ndim != 1:
        raise ValueError(f"packed parameters are a vector of bytes, got {data.dtype} of shape {tuple(data.shape)}")
    raw = data.detach().cpu().contiguous().numpy()
    g = min(n, quantization.group)
    groups = -(-n // g) if n else 0
    widths = np.full(groups, quantization.bits)
    if quantization.adaptive:
        _length(raw, groups, n, least=True)
        widths, raw = raw[:groups].astype(int), raw[groups:]
        full = n // g if n else 0
        total = quantization.bits * full
        if widths.max(initial=0) > MAX_BITS or widths[:full].sum() != total or any(widths[full:] != quantization.bits):
            raise ValueError(
                f"packed parameters: {full} whole groups have widths of at most {MAX_BITS} bits, {total} in all, "
                f"and a shorter last group has {quantization.bits}, got the widths {widths.tolist()[:8]}..."
            )
    used = widths > 0
    bits = np.repeat(widths, g)[:n]
    count, start = int(bits.sum()), 4 * int(used.sum())
    _length(raw, start + -(-count // 8), n)
    grid = torch.from_numpy(raw[:start].view("<i2").astype(np.int16)).view(torch.bfloat16).float().view(2, -1)
    stream = np.unpackbits(raw[start:], bitorder="little")
    if stream[count:].any():
        raise ValueError("packed parameters end in zero bits, but a spare bit is set")
    digits = np.zeros((n, MAX_BITS), dtype=np.float32)
    digits[_used(bits)] = stream[:count]
    codes = torch.from_numpy(digits @ np.exp2(np.arange(MAX_BITS, dtype=np.float32)))
    zeros, scales = torch.zeros(2, groups).masked_scatter(torch.from_numpy(used), grid).repeat_interleave(g, -1)[:, :n]
    values = zeros + scales * codes
    if not (torch.isfinite(values).all() and (grid[1] > 0).all()):
        raise ValueError("packed parameters have finite values and positive scales, got others")
    return values


def _used(bits: Any) -> Any:
    """Which of the 16 digits of each code are stored."""
    return np.arange(MAX_BITS) < bits[:, None]


def _length(raw: Any, wanted: int, n: int, least: bool = False) -> None:
    if len(raw) < wanted or (len(raw) > wanted and not least):
        raise ValueError(
            f"packed parameters: {n} values need {'at least ' if least else ''}{wanted} bytes here, got {len(raw)}"
        )
