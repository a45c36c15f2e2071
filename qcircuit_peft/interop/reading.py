"""What every reader of circuits shares: its limits, and how the gates that it finds become a circuit."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib import import_module
from math import isclose, pi, remainder
from types import ModuleType

from qcircuit_peft.circuit import Affine, Circuit, Op
from qcircuit_peft.text import printable, shortened

MAX_QUBITS, MAX_GATES = 1024, 100_000  # of a circuit that comes in, its gates counted in the gates of ``GATES``
MAX_DEPTH = 64  # of definitions within definitions


def said(text: object) -> str:
    """What comes from elsewhere, on one line and short, without what a terminal would obey."""
    return shortened(printable(" ".join(str(text).split()))) or type(text).__name__


def needed(module: str, what: str, extra: str) -> ModuleType:
    """A module of another package; raises ModuleNotFoundError with the command that installs it."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
        message = f"{what} needs {missing}, which is not installed; run: pip install 'qcircuit-peft[{extra}]'"
        raise ModuleNotFoundError(message, name=error.name) from error


def check_size(qubits: int, gates: int) -> None:
    """Raise ValueError if a circuit has no qubit, or more qubits or gates than are read."""
    if not 1 <= qubits <= MAX_QUBITS:
        raise ValueError(f"a circuit that is read has 1 to {MAX_QUBITS} qubits, got {qubits}")
    if gates > MAX_GATES:
        raise ValueError(f"a circuit that is read has at most {MAX_GATES} gates, got {gates} or more")


class Reading:
    """Gates in time order, each with what its angles are made of; one slot for every different angle."""

    def __init__(self, qubits: int) -> None:
        self.qubits, self.ops, self.slots = qubits, list[Op](), dict[Affine, int]()

    def add(self, gate: str, wires: Iterable[int], angles: Iterable[Affine] = (), adjoint: bool = False) -> None:
        """Add a gate."""
        positions = tuple(self.slots.setdefault(angle, len(self.slots)) for angle in angles)
        self.ops.append(Op(gate, tuple(wires), positions, adjoint))

    def add_u(self, wire: int, theta: Affine, phi: Affine, lam: Affine) -> None:
        """Add U(theta, phi, lambda) = P(phi) RY(theta) P(lambda)."""
        for gate, angle in (("P", lam), ("RY", theta), ("P", phi)):
            if angle != Affine():
                self.add(gate, [wire], [angle])

    def add_phase(self, phase: Affine) -> None:
        """Multiply by e^(i phase), with gates on wire 0: P X P X, or Z X Z X for -1, which is real."""
        turn = abs(remainder(phase.shift, 2 * pi))
        near = 1e-15 * (1 + abs(phase.shift))
        if not phase.terms and turn <= near:
            return
        gate, angles = ("Z", ()) if not phase.terms and isclose(turn, pi, rel_tol=0, abs_tol=near) else ("P", (phase,))
        for _ in range(2):
            self.add(gate, [0], angles)
            self.add("X", [0])

    def circuit(self, parameters: Sequence[str]) -> Circuit:
        """The circuit of these gates; raises ValueError if it is too large, or one of the parameters turns no gate."""
        check_size(self.qubits, len(self.ops))
        taken = {position for angle in self.slots for position, _ in angle.terms}
        for position, name in enumerate(parameters):
            if position not in taken:
                raise ValueError(f"{said(name[:50])} is a parameter of the circuit, but turns none of its gates")
        dims, own = (2,) * self.qubits, {slot: _own(angle) for angle, slot in self.slots.items()}
        if None in own.values():
            return Circuit(dims, self.ops, self.slots)
        # every angle is one of the circuit's: the ops name it themselves
        return Circuit(dims, (replace(op, angles=tuple(own[a] for a in op.angles or ())) for op in self.ops))


def _own(angle: Affine) -> int | None:
    """The position of the one angle that it is, None if it is more than that."""
    return angle.terms[0][0] if angle.shift == 0 and [scale for _, scale in angle.terms] == [1.0] else None
