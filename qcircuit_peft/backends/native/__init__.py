"""The native engine: plan a circuit once, run it as a few batched products, keep only the angles for the backward pass.

``columns`` cuts the wires into two halves. As long as that pays, the circuit is a short sum of Kronecker products
(``plan.halves``), so each half runs on its own space of dimension about sqrt(N) and one product joins them. The levels
left over, and ``apply``, run on the whole state: a product for each block of wires, then a sign or a permutation.

The backward pass recomputes. The short sum is small and is differentiated as it stands; the levels on the whole state
are undone one by one, since their matrices are unitary. What is kept in between does not grow with the depth.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from types import SimpleNamespace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._guards import detect_fake_mode
from torch.utils._python_dispatch import _disable_current_modes

from qcircuit_peft.backends.native.differentiation import run_prefix, run_whole
from qcircuit_peft.backends.native.prefix import Prefix, make_prefix, split
from qcircuit_peft.backends.native.whole import Whole, make_whole
from qcircuit_peft.circuit import Circuit


@lru_cache(maxsize=256)
def _cached(
    circuit: Circuit, k: int | None, dtype: torch.dtype, device: torch.device
) -> tuple[Prefix | None, Whole | None]:
    """What to run for ``columns`` (k columns) or ``apply`` (k is None), with its constants on the device."""
    complex_dtype = torch.complex64 if dtype is torch.float32 else torch.complex128
    work_dtype = dtype if circuit.is_real else complex_dtype

    def real(array: NDArray) -> Tensor:
        return torch.tensor(array, dtype=dtype, device=device)

    def work(array: NDArray) -> Tensor:
        return torch.tensor(np.real(array) if circuit.is_real else array, dtype=work_dtype, device=device)

    def index(array: NDArray) -> Tensor:
        return torch.tensor(array, dtype=torch.int64, device=device)

    # plain tensors, whoever asks for them first
    with torch.inference_mode(False), torch._C._DisableFuncTorch():
        if k is None:
            return None, make_whole(circuit, None, real, work, index)
        done = split(circuit, k)[1]
        rest = make_whole(circuit, done, real, work, index)
        return make_prefix(circuit, k, real, work, index), rest if rest.steps else None


_COMPILED = SimpleNamespace()  # the programs in compiled graphs: a compiler can read attributes, but not a cache
_NAMES: dict[tuple, str] = {}


@torch.compiler.assume_constant_result
def _name(circuit: Circuit, k: int | None, dtype: torch.dtype, device: torch.device) -> str:
    name = _NAMES.setdefault((circuit, k, dtype, device), f"program_{len(_NAMES)}")
    with _disable_current_modes():
        setattr(_COMPILED, name, _cached(circuit, k, dtype, device))
    return name


def _program(circuit: Circuit, k: int | None, angles: Tensor) -> tuple[Prefix | None, Whole | None]:
    """The program, made once; under a fake mode it is made anew, since its constants would be fake."""
    if torch.compiler.is_compiling():
        return getattr(_COMPILED, _name(circuit, k, angles.dtype, angles.device))
    make = _cached if detect_fake_mode() is None else _cached.__wrapped__
    return make(circuit, k, angles.dtype, angles.device)


def _flat(circuit: Circuit, angles: Tensor, batch: Sequence[int]) -> Tensor:
    """(*batch, n_angles) -> (F, n_angles), with an angle that nothing uses if there is none."""
    if circuit.n_angles == 0:
        return angles.new_zeros(prod(batch), 1)
    return angles.expand(*batch, circuit.n_angles).reshape(prod(batch), circuit.n_angles)


def columns(circuit: Circuit, angles: Tensor, k: int) -> Tensor:
    """The first k columns of the circuit's matrix, (*batch, N, k)."""
    prefix, whole = _program(circuit, k, angles)
    assert prefix is not None
    flat = _flat(circuit, angles, angles.shape[:-1])
    out = run_prefix(prefix, flat)
    if whole is not None:
        out = run_whole(whole, flat, out)
    return out.reshape(*angles.shape[:-1], circuit.dim, k)


def apply(circuit: Circuit, angles: Tensor, x: Tensor) -> Tensor:
    """U x for the columns of x, (*batch, N, K)."""
    _, whole = _program(circuit, None, angles)
    assert whole is not None
    batch = torch.broadcast_shapes(angles.shape[:-1], x.shape[:-2])
    dtype = (
        angles.dtype if circuit.is_real and not x.is_complex() else torch.promote_types(angles.dtype, torch.complex64)
    )
    x = x.to(dtype).expand(*batch, *x.shape[-2:]).reshape(prod(batch), *x.shape[-2:])
    flat = _flat(circuit, angles, batch)
    if x.is_complex() and circuit.is_real:  # a real circuit acts on real and imaginary parts as on more columns
        parts = run_whole(whole, flat, torch.cat((x.real, x.imag), -1))
        out = torch.complex(*parts.split(x.shape[-1], -1))
    else:
        out = run_whole(whole, flat, x)
    return out.reshape(*batch, circuit.dim, x.shape[-1])
