"""Few bits for the intrinsic parameters: the grid, the loading of bits, and the packed bytes."""

import itertools
import struct
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qcircuit_peft.quantization import Quantization, bits_per_parameter, loaded_bits, pack, quantized, unpack

EXAMPLES = [
    (n, Quantization(bits, group, adaptive))
    for n, group in ((1, 128), (29, 128), (29, 4), (256, 64), (300, 128), (7, 1))
    for bits in (0, 1, 2, 3, 4, 7, 8, 16)
    for adaptive in (False, True)
]


def vector(n: int, seed: int = 0) -> Tensor:
    """Entries whose scale differs from group to group."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(n, generator=draw) * torch.exp(torch.randn(n // 16 + 1, generator=draw)).repeat(16)[:n]


def read(data: bytes, n: int, bits: int, group: int, adaptive: bool) -> list[tuple[float, float, int]]:
    """(value, scale, width) of each entry of a packed vector: the format of the module's docstring, bit by bit."""
    group = min(n, group)
    groups = -(-n // group)
    widths = list(data[:groups]) if adaptive else [bits] * groups
    at = groups if adaptive else 0
    used = [k for k in range(groups) if widths[k]]
    halves = [struct.unpack("<f", b"\0\0" + data[at + 2 * k : at + 2 * k + 2])[0] for k in range(2 * len(used))]
    zeros = dict(zip(used, halves[: len(used)], strict=True))
    scales = dict(zip(used, halves[len(used) :], strict=True))
    stream = int.from_bytes(data[at + 4 * len(used) :], "little")
    found = []
    for k in range(n):
        g = k // group
        code, stream = stream & ((1 << widths[g]) - 1), stream >> widths[g]
        value = np.float32(zeros[g]) + np.float32(scales[g]) * np.float32(code) if widths[g] else np.float32(0)
        found.append((float(value), scales.get(g, 0.0), widths[g]))
    assert stream == 0
    return found


@pytest.mark.parametrize(("n", "quantization"), EXAMPLES)
def test_a_file_holds_what_training_used(n: int, quantization: Quantization) -> None:
    x = vector(n)
    seen = quantized(x, quantization)
    data = pack(x, quantization)
    assert torch.equal(unpack(data, n, quantization), seen)
    q = quantization
    for entry, used, (value, scale, width) in zip(
        x.tolist(), seen.tolist(), read(data.numpy().tobytes(), n, q.bits, q.group, q.adaptive), strict=True
    ):
        assert used == value
        if width:
            assert abs(entry - used) <= scale * 0.5001 + 1e-6 * abs(entry)


@given(
    entries=st.lists(st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False), min_size=1, max_size=40),
    bits=st.integers(0, 16),
    group=st.integers(1, 40),
    adaptive=st.booleans(),
)
def test_any_vector_is_packed_and_unpacked_bit_for_bit(
    entries: list[float], bits: int, group: int, adaptive: bool
) -> None:
    x, quantization = torch.tensor(entries), Quantization(bits, group, adaptive)
    seen = quantized(x, quantization)
    assert torch.isfinite(seen).all()
    assert torch.equal(unpack(pack(x, quantization), len(x), quantization), seen)
    found = read(pack(x, quantization).numpy().tobytes(), len(x), bits, group, adaptive)
    for entry, used, (value, scale, width) in zip(entries, seen.tolist(), found, strict=True):
        assert used == value
        assert not width or abs(entry - used) <= 0.5001 * scale + 1e-6 * abs(entry)


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_batch_is_its_rows_and_gradients_pass_straight_through(adaptive: bool) -> None:
    quantization = Quantization(2, 32, adaptive)
    x = torch.stack([vector(100, seed) for seed in range(6)]).view(2, 3, 100).requires_grad_()
    seen = quantized(x, quantization)
    for rows in itertools.product(range(2), range(3)):
        assert torch.equal(seen[rows], quantized(x[rows], quantization))
    weights = torch.randn(2, 3, 100)
    (seen * weights).sum().backward()
    assert torch.equal(x.grad, weights)  # type: ignore[arg-type]
    wide = quantized(x.detach().double(), quantization)
    assert wide.dtype == torch.float64
    assert torch.equal(wide.float(), seen)


def test_zeros_stay_zero_and_nothing_is_nothing() -> None:
    for bits, adaptive in itertools.product((0, 1, 8), (False, True)):
        quantization = Quantization(bits, 4, adaptive)
        assert torch.equal(quantized(torch.zeros(10), quantization), torch.zeros(10))
        assert quantized(torch.zeros(3, 0), quantization).shape == (3, 0)
        assert len(unpack(pack(torch.zeros(0), quantization), 0, quantization)) == 0


@pytest.mark.parametrize("bits", range(5))
def test_loaded_bits_are_the_best_of_their_mean(bits: int) -> None:
    draw = torch.Generator().manual_seed(bits)
    spread = torch.exp(2 * torch.randn(20, 4, generator=draw))
    found = loaded_bits(spread, spread / 2, bits)
    assert torch.equal(found.sum(-1), torch.full((20,), 4 * bits))
    every = torch.tensor([w for w in itertools.product(range(4 * bits + 1), repeat=4) if sum(w) == 4 * bits])
    every = every[(every <= 16).all(-1)]

    def cost(widths: Tensor) -> Tensor:
        return (spread.unsqueeze(1) ** 2 * 4.0**-widths).sum(-1)

    assert torch.allclose(cost(found.unsqueeze(1))[:, 0], cost(every).amin(-1), rtol=1e-5)


def test_adaptive_bits_have_the_mean_asked_for_and_a_smaller_error() -> None:
    for bits in (1, 2, 3, 4, 8):
        x = vector(1300) * torch.exp(torch.arange(1300) // 128 / 3)
        plain, adaptive = Quantization(bits), Quantization(bits, adaptive=True)
        widths = [width for _, _, width in read(pack(x, adaptive).numpy().tobytes(), 1300, bits, 128, True)]
        assert sum(widths) == 1300 * bits
        assert len(set(widths)) > 1
        errors = [(quantized(x, q) - x).square().mean() for q in (plain, adaptive)]
        assert errors[1] < errors[0]


def test_a_constant_group_is_not_pruned_for_having_no_range() -> None:
    x = torch.cat([torch.full((8,), 5.0), 0.001 * torch.randn(8)])
    seen = quantized(x, Quantization(1, 8, adaptive=True))
    assert torch.allclose(seen[:8], x[:8], atol=0.05)


@pytest.mark.parametrize("bits", [8, 4, 3, 2, 1])
def test_bits_per_parameter_are_those_published_and_those_measured(bits: int) -> None:
    assert bits_per_parameter(bits) == Quantization(bits).bits_per_parameter == bits + 0.25
    assert 8 * len(pack(torch.randn(12800), Quantization(bits))) == 12800 * (bits + 0.25)
    pruned = 8 * len(pack(torch.randn(12800), Quantization(bits, adaptive=True))) / 12800
    assert bits + 0.0625 <= pruned <= bits_per_parameter(bits, adaptive=True) == bits + 0.3125


def altered(data: Tensor, at: int, value: int) -> Tensor:
    data = data.clone()
    data[at] = value
    return data


def lies(adaptive: bool) -> dict[str, Any]:
    """Packed forms of 21 values, in groups of 8 at 3 bits, that are not what they say."""
    data = pack(vector(21), Quantization(3, 8, adaptive))
    grid = 3 if adaptive else 0
    found = {
        "need": [data[:-1], torch.cat([data, data[-1:]]), data[:0], data[:2]],
        "a vector of bytes": [data.float(), data.view(1, -1), data.to(torch.int8), torch.tensor(1, dtype=torch.uint8)],
        "positive scales": [
            altered(altered(data, grid + 1, 0x7F), grid, 0xC0),  # a zero that is nan
            altered(altered(data, grid + 7, 0xFF), grid + 6, 0x80),  # a scale that is -inf
            altered(altered(data, grid + 7, 0), grid + 6, 0),
        ],
        "spare bit": [altered(data, -1, int(data[-1]) | 0x80)],
    }
    if adaptive:
        found["widths"] = [altered(data, 0, 17), altered(data, 0, 255), altered(data, 2, 4), altered(data, 2, 0)]
        found["widths"].append(altered(data, 0, int(data[0]) + 1))
    return found


@pytest.mark.parametrize("adaptive", [False, True])
def test_bytes_that_lie_are_refused(adaptive: bool) -> None:
    for told, several in lies(adaptive).items():
        for data in several:
            with pytest.raises(ValueError, match=told):
                unpack(data, 21, Quantization(3, 8, adaptive))
    with pytest.raises(ValueError, match="widths" if adaptive else "need"):
        unpack(pack(vector(21), Quantization(3, 8, adaptive)), 29, Quantization(3, 8, adaptive))
    with pytest.raises(ValueError, match="NaN or infinite"):
        pack(torch.tensor([1.0, float("nan")]), Quantization(3, 8, adaptive))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"bits": 17}, "bits is a whole number 0 to 16, got 17"),
        ({"bits": -1}, "got -1"),
        ({"bits": 2.0}, "got 2.0"),
        ({"bits": True}, "got True"),
        ({"group": 0}, "group is a whole number 1 to"),
        ({"group": 2**30}, "group"),
        ({"adaptive": 1}, "adaptive is true or false, got 1"),
        ({"packed": "no"}, "packed is true or false"),
        ({"parts": {"u": 32}}, r"parts\['u'\] is a whole number 0 to 16, got 32"),
        ({"parts": {3: 2}}, "names of parts"),
        ({"parts": [3]}, "names of parts"),
    ],
)
def test_bad_settings_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Quantization(**options)
