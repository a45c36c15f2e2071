"""The one door to every backend: ``columns``, ``matrix``, ``state`` and ``apply``, checked here once."""

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from qcircuit_peft.backends import native
from qcircuit_peft.circuit import Circuit
from qcircuit_peft.gates import did_you_mean

# A backend is a module with ``apply(circuit, angles, x)`` and ``columns(circuit, angles, k)``, imported when asked for.
BACKENDS: dict[str, Callable[[], ModuleType]] = {"native": lambda: native}


def backend_module(name: str) -> ModuleType:
    """The module of a backend; raises ValueError for a name that is not in ``BACKENDS``."""
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}; {did_you_mean(name, BACKENDS)}")
    return BACKENDS[name]()


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


def columns(circuit: Circuit, angles: Tensor, k: int, *, backend: str = "native") -> Tensor:
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
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= circuit.dim:
        raise ValueError(f"the number of columns is 1 to {circuit.dim} for this circuit, got {k!r}")
    return backend_module(backend).columns(circuit, angles, k)


def matrix(circuit: Circuit, angles: Tensor, *, backend: str = "native") -> Tensor:
    """The whole matrix of the circuit, (*batch, N, N): column k is U|k>. Raises ValueError as ``columns`` does."""
    return columns(circuit, angles, circuit.dim, backend=backend)


def state(circuit: Circuit, angles: Tensor, *, backend: str = "native") -> Tensor:
    """The statevector U|0...0>, (*batch, N). Raises ValueError as ``columns`` does."""
    return columns(circuit, angles, 1, backend=backend)[..., 0]


def apply(circuit: Circuit, angles: Tensor, x: Tensor, *, backend: str = "native") -> Tensor:
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
        torch.broadcast_shapes(angles.shape[:-1], x.shape[:-2])
    except RuntimeError:
        found = f"{tuple(angles.shape[:-1])} and {tuple(x.shape[:-2])}"
        raise ValueError(f"the batch dimensions of angles and x broadcast, but they are {found}") from None
    if x.dtype in (torch.float64, torch.complex128):
        angles = angles.double()
    return backend_module(backend).apply(circuit, angles, x)
