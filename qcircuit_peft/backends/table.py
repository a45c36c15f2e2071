"""One row per backend: what it can do, and how to get it. The door, messages, docs and tests read it here."""

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from importlib import import_module
from types import ModuleType
from typing import Any

from qcircuit_peft.gates import GATES, Gate
from qcircuit_peft.text import did_you_mean, shown


@dataclass(frozen=True)
class Backend:
    """A backend as a record.

    Its module ``qcircuit_peft.backends.NAME`` has ``run(circuit, angles, x, *device)``, angles (B, P) and complex x
    (B, N, K) in, U x (B, N, K) out; "native" has ``columns`` and ``apply`` of its own. It calls the gates by their
    ``Names`` in the field of its name.

    ``about``: what runs. ``precision``: inside it. ``derivatives``: how many times torch differentiates through it,
    None for any number. ``qudits``: whether wires have any dimension. ``shots``: whether it draws them itself, in
    ``frequencies(circuit, angles, shots, seed, *device)``, (B, P) -> (B, N). ``noise``: whether it has
    ``density(circuit, angles, noise)``, (B, P) -> (B, N, N). ``device``: the one it runs on, if it has several, a name
    that ``check_device(name)`` knows or an object; every other is forward only and without noise. ``measures``: whether
    all that it gives are counts; ``measured(circuits, angles, shots, seed, device, mitigation)`` of its module, (C, B,
    P) -> (C, B, N) and standard errors. ``install``: the command for that, where torch and numpy are not enough.
    """

    name: str
    about: str
    precision: str
    derivatives: int | None = 0
    qudits: bool = False
    shots: bool = False
    noise: bool = False
    device: Any = ""
    install: str = ""
    measures: bool = False

    @property
    def called(self) -> str:
        """The name that chooses it: "pennylane", "pennylane:lightning.qubit", "qiskit:fake_manila"."""
        if isinstance(self.device, str):
            return self.name if self.device == BACKENDS[self.name].device else f"{self.name}:{self.device}"
        return f"{self.name}:{self.device.name}"

    @property
    def is_object(self) -> bool:
        """Whether its device is an object with settings of its own, on which circuits are run as they are."""
        return not isinstance(self.device, str)

    @property
    def on(self) -> tuple[Any, ...]:
        """Its device as the last argument of its functions, if it has one."""
        return (self.device,) if self.is_object or self.device else ()

    def module(self) -> ModuleType:
        """Its module, imported when asked for; raises ModuleNotFoundError with the command that installs it."""
        try:
            return import_module(f"qcircuit_peft.backends.{self.name}")
        except ModuleNotFoundError as error:
            missing = str(error.name).partition(".")[0]
            message = f"backend {self.name!r} needs {missing}, which is not installed; run: {self.install}"
            raise ModuleNotFoundError(message, name=error.name) from error

    def has(self, gate: Gate) -> bool:
        """Whether it runs a gate: one that it has, or whose parts it has."""
        parts = (GATES[part.gate] for part in gate.parts)
        return self.name == "native" or bool(self.name_of(gate)) or (bool(gate.parts) and all(map(self.has, parts)))

    def name_of(self, gate: Gate) -> str:
        """The name of a gate there, empty if it has none."""
        return getattr(gate.names, self.name)


_ROWS = (
    Backend(
        "native", "[engine.md](engine.md)", "that of the angles, real if the gates are",
        derivatives=None, qudits=True, noise=True,
    ),
    Backend(
        "pennylane", "`default.qubit` with backpropagation; shots and `default.mixed` for noise", "complex128",
        derivatives=1, shots=True, noise=True, device="default.qubit", install="pip install 'qcircuit-peft[pennylane]'",
    ),
    Backend(
        "torchquantum", "its gates on its `QuantumDevice`", "complex64 or complex128, as the angles",
        derivatives=1, install="pip install --no-deps torchquantum==0.1.8",
    ),
    Backend(
        "qiskit", "`quantum_info`; shots and noise on Aer", "complex128",
        shots=True, noise=True, install="pip install 'qcircuit-peft[qiskit]'",
    ),
)  # fmt: skip

BACKENDS: dict[str, Backend] = {backend.name: backend for backend in _ROWS}


def find_backend(name: object) -> Backend:
    """The row of a backend by its name, with another device if the name has one, or of a device.

    Names of devices are PennyLane's, "pennylane:lightning.qubit", and for Qiskit "qiskit:aer_simulator" and the fake
    backends of qiskit_ibm_runtime, "qiskit:fake_manila". A device is PennyLane's, with its settings, or Qiskit's
    ``BackendV2``. Raises ValueError for a name that is not in ``BACKENDS``, a device where there are none, or anything
    else, ModuleNotFoundError with the command to install a missing package.

    >>> find_backend("native").qudits, find_backend("pennylane:lightning.qubit").derivatives
    (True, 0)
    """
    if not isinstance(name, str):
        return _of_device(name)
    base, colon, device = name.partition(":")
    if base not in BACKENDS:
        raise ValueError(f"unknown backend {shown(name)}; {did_you_mean(base, BACKENDS)}")
    backend = BACKENDS[base]
    if colon and base == "qiskit":
        return _of_device(backend.module().device_named(device))
    if colon and not backend.device:
        named = having(lambda row: row.device or row.name == "qiskit", "{}:NAME")
        raise ValueError(f"backend {base!r} has no devices to choose from, got {shown(name)}; {named}")
    if backend.install:  # not ours: is it there, and the device in it? (A compiler cannot look.)
        module = backend.module()
        if colon:
            module.check_device(device)
    return replace(backend, device=device, derivatives=0, noise=False) if colon else backend


def _of_device(device: Any) -> Backend:
    """The row of a device, which is known by its class; a package that nobody imported has none."""
    qml, providers = (sys.modules.get(name) for name in ("pennylane", "qiskit.providers"))
    if qml is not None and isinstance(device, qml.devices.Device):
        return replace(BACKENDS["pennylane"], device=device, derivatives=0, noise=False)
    if providers is not None and isinstance(device, providers.BackendV2):
        return replace(BACKENDS["qiskit"], device=device, noise=False, measures=True)
    raise ValueError(f"a backend is a name, a device of PennyLane or a BackendV2 of Qiskit, got {shown(device)}")


def having(what: Callable[[Backend], object], form: str = "{}") -> str:
    """Which backends have something, as the end of a sentence.

    >>> having(lambda row: row.qudits), having(lambda row: row.noise)
    ("'native' has", "'native', 'pennylane' and 'qiskit' have")
    """
    names = [repr(form.format(row.name)) for row in BACKENDS.values() if what(row)]
    return f"{' and '.join([', '.join(names[:-1]), names[-1]])} have" if names[1:] else f"{names[0]} has"


def check_wires(dims: tuple[int, ...], backend: Backend) -> None:
    """Raise ValueError, naming the wire, if a wire is not a qubit and the backend knows nothing else."""
    for wire, d in enumerate(() if backend.qudits else dims):
        if d != 2:
            raise ValueError(
                f"backend {backend.called!r} simulates qubits only, but wire {wire} has dimension {d}; "
                f"{having(lambda row: row.qudits)} wires of any dimension, and interop.lower puts them on qubits"
            )


def check_gates(gates: Iterable[str], backend: Backend) -> None:
    """Raise ValueError, naming the gate, if the backend has neither a gate nor its parts."""
    for gate in gates:
        if not backend.has(GATES[gate]):
            named = having(lambda row, gate=GATES[gate]: row.has(gate))
            raise ValueError(f"backend {backend.called!r} has no gate {gate}; {named} it")
