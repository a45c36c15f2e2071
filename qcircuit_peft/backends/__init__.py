"""The one door to every backend, where what comes in is checked once: exact columns, and what shots tell of them."""

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

import psutil
import torch
from torch import Tensor

from qcircuit_peft.backends import native
from qcircuit_peft.backends.hadamard import estimates, hadamard_test
from qcircuit_peft.backends.noise import Noise, read
from qcircuit_peft.backends.noise import density as native_density
from qcircuit_peft.backends.noise import interference as noisy_interference
from qcircuit_peft.backends.shots import check_shots, differentiable, draw, interference, seed_of, signed
from qcircuit_peft.backends.simulator import check, plain, simulate
from qcircuit_peft.backends.table import BACKENDS, Backend, check_gates, check_wires, find_backend, having
from qcircuit_peft.checks import one_of, whole_number
from qcircuit_peft.circuit import Circuit
from qcircuit_peft.text import shown

__all__ = [
    "BACKENDS", "MITIGATIONS", "Backend", "apply", "check_gates", "check_wires", "columns", "density",
    "estimated_columns", "find_backend", "matrix", "measured_columns", "plain", "probabilities", "state",
]  # fmt: skip

MITIGATIONS = ("readout", "zne")  # of devices
_SMALL = 1 << 28  # bytes for which there is memory, without asking the system


def _check(circuit: Circuit, angles: Tensor) -> None:
    if not isinstance(circuit, Circuit):
        raise ValueError(
            f"a Circuit is wanted, got {type(circuit).__name__}; an Ansatz gives one with .circuit(dim=..., layers=...)"
        )
    if not isinstance(angles, Tensor) or angles.dtype not in (torch.float32, torch.float64):
        found = angles.dtype if isinstance(angles, Tensor) else type(angles).__name__
        raise ValueError(f"angles are a float32 or float64 tensor, got {found}")
    if angles.ndim < 1 or angles.shape[-1] != circuit.n_angles:
        raise ValueError(f"angles have shape (*batch, {circuit.n_angles}) for this circuit, got {tuple(angles.shape)}")


def _check_columns(circuit: Circuit, k: int) -> None:
    whole_number("the number of columns", k, 1, circuit.dim)


def _check_noise(noise: object) -> None:
    if not isinstance(noise, Noise):
        raise ValueError(f"noise is a Noise, got {type(noise).__name__}")


def _checked_mitigation(names: object) -> tuple[str, ...]:
    if not isinstance(names, list | tuple | set):
        raise ValueError(f"mitigation is a list, of {' and '.join(MITIGATIONS)}, got {shown(names)}")
    return tuple(one_of("mitigation", name, MITIGATIONS) for name in names)


def _check_memory(circuit: Circuit, angles: Tensor, batch: tuple[int, ...], k: int) -> None:
    """Raise ValueError if the result alone is larger than the free memory; a compiler cannot ask."""
    if torch.compiler.is_compiling():
        return
    needed = prod(batch) * circuit.dim * k * angles.element_size() * (1 if circuit.is_real else 2)
    if needed <= _SMALL or angles.device.type not in ("cpu", "cuda"):
        return
    on_cpu = angles.device.type == "cpu"
    free = psutil.virtual_memory().available if on_cpu else torch.cuda.mem_get_info(angles.device)[0]
    if needed > free:
        shape = " x ".join(map(str, (*batch, circuit.dim, k)))
        raise ValueError(
            f"the result, {shape}, takes {needed:,} bytes, but {free:,} are free on {angles.device}; "
            "ask for fewer columns or wires"
        )


def _check_exact(row: Backend) -> Backend:
    if row.measures:
        raise ValueError(f"backend {row.called!r} measures: give shots, to probabilities or estimated_columns")
    return row


def _simulated(row: Backend, circuit: Circuit, angles: Tensor, x: Tensor) -> Tensor:
    module = row.module()
    return simulate(lambda *given: module.run(*given, *row.on), row, circuit, angles, x)


def columns(circuit: Circuit, angles: Tensor, k: int, *, backend: Any = "native") -> Tensor:
    """The first ``k`` columns of the circuit's matrix, (*batch, N, k); orthonormal, real if the circuit is.

    ``angles`` is (*batch, n_angles), float32 or float64, in radians. Differentiable any number of times.
    Raises ValueError for a wrong shape or dtype, or k outside 1..N.

    >>> import torch
    >>> from qcircuit_peft import load
    >>> circuit = load("simplified_two_design").circuit(dim=96, layers=1)
    >>> columns(circuit, torch.zeros(24, circuit.n_angles), 8).shape
    torch.Size([24, 96, 8])
    """
    _check(circuit, angles)
    _check_columns(circuit, k)
    row = _check_exact(find_backend(backend))
    _check_memory(circuit, angles, angles.shape[:-1], k)
    circuit, angles = plain(circuit, angles)
    if row.name == "native":
        return native.columns(circuit, angles, k)
    return _simulated(row, circuit, angles, torch.eye(circuit.dim, k, dtype=angles.dtype, device=angles.device))


def matrix(circuit: Circuit, angles: Tensor, *, backend: Any = "native") -> Tensor:
    """The whole matrix of the circuit, (*batch, N, N): column k is U|k>. Raises ValueError as ``columns`` does."""
    return columns(circuit, angles, circuit.dim, backend=backend)


def state(
    circuit: Circuit,
    angles: Tensor,
    *,
    shots: int | None = None,
    generator: torch.Generator | None = None,
    backend: Any = "native",
) -> Tensor:
    """The statevector U|0...0>, (*batch, N); with ``shots``, what can be measured of it: ``probabilities``.

    Raises ValueError as ``columns`` and ``probabilities`` do.
    """
    if shots is not None:
        return probabilities(circuit, angles, shots=shots, generator=generator, backend=backend)
    return columns(circuit, angles, 1, backend=backend)[..., 0]


def density(circuit: Circuit, angles: Tensor, noise: Noise, *, backend: Any = "native") -> Tensor:
    """The density matrix after the noisy circuit on |0...0>, (*batch, N, N), without the readout error.

    "native" is differentiable; "pennylane" (``default.mixed``) and "qiskit" (Aer) run forward only. N^2 numbers a row
    of angles limit the number of qubits. Raises ValueError as ``columns`` does, for a wire that is not a qubit (but on
    "native"), for a backend without noise, or if a gradient is asked of one that has none.

    >>> import torch
    >>> from qcircuit_peft import Circuit, Op
    >>> density(Circuit((2,), [Op("X", (0,))]), torch.zeros(0), Noise(amplitude_damping=0.25))
    tensor([[0.2500, 0.0000],
            [0.0000, 0.7500]])
    """
    _check(circuit, angles)
    _check_noise(noise)
    row = find_backend(backend)
    if not row.noise:
        raise ValueError(f"backend {row.called!r} has no noise; {having(lambda row: row.noise)}")
    _check_memory(circuit, angles, angles.shape[:-1], circuit.dim)
    circuit, angles = plain(circuit, angles)
    if row.name == "native":
        return native_density(circuit, angles, noise)
    module = row.module()

    def run(circuit: Circuit, rows: Tensor, _: Tensor) -> Tensor:
        return module.density(circuit, rows, noise)

    everywhere = angles.new_zeros(circuit.dim, circuit.dim)
    return simulate(run, replace(row, derivatives=0), circuit, angles, everywhere)


def probabilities(
    circuit: Circuit,
    angles: Tensor,
    *,
    shots: int | None = None,
    generator: torch.Generator | None = None,
    noise: Noise | None = None,
    backend: Any = "native",
) -> Tensor:
    """The probabilities |<i|U|0...0>|^2 of the basis states, (*batch, N), real; estimated if ``shots`` is given.

    With ``noise`` they are those of ``density``, read with its readout error. PennyLane and Qiskit's Aer draw shots
    without noise themselves, seeded from ``generator``; all others are drawn here. The gradient is the backend's, or
    with shots the parameter-shift rule with as many shots at every shifted angle. Raises ValueError as ``columns`` and
    ``density`` do, for shots below 1, or for a gradient with shots of a wire that is not a qubit.

    >>> import torch
    >>> from qcircuit_peft import Circuit, Op
    >>> coin = Circuit((2,), [Op("H", (0,))])
    >>> probabilities(coin, torch.zeros(0), shots=100, generator=torch.Generator().manual_seed(0)).sum()
    tensor(1.)
    """
    _check(circuit, angles)
    if shots is None:
        if noise is None:
            return state(circuit, angles, backend=backend).abs().square()
        populations = density(circuit, angles, noise, backend=backend).diagonal(dim1=-2, dim2=-1).real
        return read(populations.clamp(min=0), noise.readout, circuit.dims)
    check_shots(shots, generator)
    row = find_backend(backend)
    _check_memory(circuit, angles, angles.shape[:-1], 1)
    circuit, angles = plain(circuit, angles)

    def frequencies(circuit: Circuit, rows: Tensor) -> Tensor:
        if noise is None and len(rows) and row.shots:
            check(circuit, row)
            return row.module().frequencies(circuit, rows, shots, seed_of(generator), *row.on).to(rows)
        return draw(probabilities(circuit, rows, noise=noise, backend=backend), shots, generator)

    return differentiable(circuit, frequencies, angles)


def estimated_columns(
    circuit: Circuit,
    angles: Tensor,
    k: int,
    *,
    shots: int | None,
    generator: torch.Generator | None = None,
    noise: Noise | None = None,
    backend: Any = "native",
    mitigation: Sequence[str] = (),
) -> tuple[Tensor, Tensor]:
    """The first ``k`` columns with their signs as a Hadamard test finds them, and the standard errors, (*batch, N, k).

    ``shots`` are spent on each column, drawn from the distribution of the test; None is the limit of many. Without
    noise the squared error of an entry u is (1 + N u^2 - 2 u^2) / (2 shots), taken at the estimate; with noise it comes
    from the counts, on a device with what mitigation adds. ``noise`` needs "native". A ``backend`` that is a device
    (``find_backend``) runs the circuits of the tests, seeded from ``generator``; ``mitigation``, a list of "readout"
    and "zne", is for it. Raises ValueError as ``columns`` does, for a complex circuit, shots below 1, or what a device
    cannot run.

    >>> import torch
    >>> from qcircuit_peft import load
    >>> circuit = load("simplified_two_design").circuit(qubits=3)
    >>> found, error = estimated_columns(circuit, torch.zeros(circuit.n_angles), 1, shots=10_000)
    >>> bool((found[:, 0] - torch.eye(8)[0]).abs().max() < 0.1)
    True
    """
    _check(circuit, angles)
    _check_columns(circuit, k)
    if shots is not None:
        check_shots(shots, generator)
    if not circuit.is_real:
        raise ValueError("signs are estimated for real circuits only, but this one has complex gates")
    row, mitigation = find_backend(backend), _checked_mitigation(mitigation)
    if row.is_object:
        if noise is not None:
            raise ValueError(f"backend {row.called!r} has the noise of its device, and takes no other")
        return measured_columns(circuit, angles, range(k), shots, generator, row, mitigation)
    if mitigation:
        raise ValueError(f"mitigation is for devices, got {mitigation!r} with backend {row.called!r}")
    if noise is None:
        return signed(interference(columns(circuit, angles, k, backend=backend)), shots, generator)
    _check_noise(noise)
    if backend != "native":
        raise ValueError(f"columns under noise are estimated by 'native', got backend {backend!r}")
    _check_memory(circuit, angles, (*angles.shape[:-1], k), circuit.dim)
    test = noisy_interference(*plain(circuit, angles.detach()), k, noise)
    return signed(test, shots, generator, noisy=True)


def measured_columns(
    circuit: Circuit,
    angles: Tensor,
    positions: Sequence[int],
    shots: int | None,
    generator: torch.Generator | None,
    row: Backend,
    mitigation: Sequence[str] = (),
) -> tuple[Tensor, Tensor]:
    """These columns as Hadamard tests on a device find them, and standard errors, (*batch, N, K); see ``hadamard``.

    The standard errors are those of the counts, of the circuits and of what calibrates their readout.
    """
    shots = whole_number("shots, on a device,", shots, 1, 1 << 31)
    check_shots(shots, generator)
    mitigation = _checked_mitigation(mitigation)
    check_wires(circuit.dims, row)
    tests = [hadamard_test(circuit, column) for column in positions]
    rows = angles.detach().reshape(prod(angles.shape[:-1]), angles.shape[-1]).expand(len(tests), -1, -1)
    circuits = [test for test, _ in tests]
    counted, spread = row.module().measured(circuits, rows, shots, seed_of(generator), row.device, mitigation)
    found = torch.stack([estimates(one, signs) for one, (_, signs) in zip(counted, tests, strict=True)], -1)
    error = circuit.dim**0.5 * spread.movedim(0, -1)
    shape = (*angles.shape[:-1], circuit.dim, len(tests))
    return found.reshape(shape).to(angles), error.reshape(shape).to(angles)


def apply(circuit: Circuit, angles: Tensor, x: Tensor, *, backend: Any = "native") -> Tensor:
    """U x for the columns of ``x``, (*batch, N, K); batch dimensions of angles and x broadcast, their dtypes promote.

    Raises ValueError for a wrong shape or dtype of the angles, or an x that is not (*batch, N, K).

    >>> import torch
    >>> from qcircuit_peft import Circuit, Op
    >>> apply(Circuit((2,), [Op("X", (0,))]), torch.zeros(0), torch.tensor([[1.0], [2.0]])).squeeze(-1)
    tensor([2., 1.])
    """
    _check(circuit, angles)
    if not isinstance(x, Tensor) or x.ndim < 2 or x.shape[-2] != circuit.dim:
        found = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"x has shape (*batch, {circuit.dim}, K) for this circuit, got {found}")
    try:
        batch = torch.broadcast_shapes(angles.shape[:-1], x.shape[:-2])
    except RuntimeError:
        found = f"{tuple(angles.shape[:-1])} and {tuple(x.shape[:-2])}"
        raise ValueError(f"the batch dimensions of angles and x broadcast, but they are {found}") from None
    if x.dtype in (torch.float64, torch.complex128):
        angles = angles.double()
    row = _check_exact(find_backend(backend))
    _check_memory(circuit, angles, batch, x.shape[-1])
    circuit, angles = plain(circuit, angles)
    return native.apply(circuit, angles, x) if row.name == "native" else _simulated(row, circuit, angles, x)
