"""TorchQuantum, its gates and its ``QuantumDevice`` only, in complex64 or complex128, differentiable once.

TorchQuantum 0.1.8 imports torchvision, qiskit < 1 and more when it starts, although a statevector needs none of
these, and fixes one precision for the whole process. So each precision is a copy of its gates and its device of our
own, and nothing of it stays in ``sys.modules``: a later ``import torchquantum`` is the genuine one.
"""

import sys
import warnings
from functools import lru_cache
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from qcircuit_peft.backends.simulator import angles_of, calls
from qcircuit_peft.backends.table import BACKENDS
from qcircuit_peft.circuit import Circuit

_UNUSED = ("opt_einsum", "qiskit", "qiskit_ibm_runtime", "torchpack")  # imported by its gates, but not used in them


class _Placeholder:
    """Finds an empty module, whatever is imported from it, for every name that begins with one of ``_UNUSED``."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name.partition(".")[0] in _UNUSED:
            return ModuleSpec(name, _Placeholder, is_package=True)  # type: ignore[arg-type]
        return None

    @staticmethod
    def create_module(spec: ModuleSpec) -> None:
        return None

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        def anything(name: str) -> None:
            if name.startswith("__"):
                raise AttributeError(name)

        module.__getattr__ = anything  # type: ignore[method-assign]


def _set_aside(roots: tuple[str, ...]) -> dict[str, ModuleType]:
    return {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in roots}


@lru_cache(maxsize=2)
def _load(dtype: torch.dtype) -> tuple[ModuleType, type]:
    """TorchQuantum's gate functions and its ``QuantumDevice`` for complex64 or complex128."""
    spec = find_spec("torchquantum")
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError("No module named 'torchquantum'", name="torchquantum")
    roots = ("torchquantum", *_UNUSED)
    kept = _set_aside(roots)
    sys.meta_path.insert(0, _Placeholder)  # type: ignore[arg-type]
    try:
        package = ModuleType("torchquantum")  # its own __init__ would import all of it
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules["torchquantum"] = package
        macro: Any = import_module("torchquantum.macro")  # which the other modules copy from
        macro.C_DTYPE, macro.F_DTYPE = dtype, dtype.to_real()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in its docstrings
            return import_module("torchquantum.functional"), import_module("torchquantum.device").QuantumDevice
    finally:
        sys.meta_path.remove(_Placeholder)  # type: ignore[arg-type]
        _set_aside(roots)
        sys.modules.update(kept)


_load(torch.complex64)  # a package that is missing is told when this module is imported


def run(circuit: Circuit, angles: Tensor, x: Tensor) -> Tensor:
    """U x, (B, N, K)."""
    functions, make_device = _load(x.dtype)
    b, n, k = x.shape
    device = make_device(n_wires=len(circuit.dims), device=x.device)
    device.states = x.mT.reshape(b * k, *circuit.dims)
    rows = angles if b == 1 else angles.repeat_interleave(k, 0)
    for op in circuit.ops:
        for call in calls(op, angles_of(op, rows), BACKENDS["torchquantum"].name_of):
            params = call.angles[0][:, None] if call.angles else None
            getattr(functions, call.name)(device, wires=list(call.wires), params=params, inverse=call.adjoint)
    return device.states.reshape(b, k, n).mT
