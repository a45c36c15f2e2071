"""Circuits as OpenQASM text: exact, with a definition on top for every gate that the standard library lacks.

Wire w is ``q[w]``. Wire 0 is the most significant digit here, while Qiskit takes ``q[0]`` as the least
significant (``reverse_bits`` converts). OpenQASM fixes the size of a register, so it does not say a family.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qcircuit_peft.circuit import Affine, Circuit, Op
from qcircuit_peft.gates import GATES, Gate

Angles = Tensor | NDArray | Sequence[float]


@dataclass(frozen=True)
class _Version:
    """A version of OpenQASM: its first line, its standard library, and the form of a register of n qubits."""

    number: int
    head: str
    library: str
    register: str

    def standard(self, gate: Gate) -> str:
        """The name of a gate in the standard library, empty if it is not there."""
        return gate.names.qasm2 if self.number == 2 else gate.names.qasm3

    def name(self, gate: Gate, adjoint: bool) -> str:
        """The name of a gate, or of its inverse where no sign of an angle makes it one."""
        name, matrix = self.standard(gate), None if gate.angles else gate.matrix()
        if not adjoint or matrix is None or np.array_equal(matrix, matrix.conj().T):
            return name or gate.name.lower()
        return gate.names.dagger if name and gate.names.dagger else f"{name or gate.name.lower()}dg"


_VERSIONS = {
    2: _Version(2, "OPENQASM 2.0;", 'include "qelib1.inc";', "qreg q[{}];"),
    3: _Version(3, "OPENQASM 3.0;", 'include "stdgates.inc";', "qubit[{}] q;"),
}


def to_qasm(circuit: Circuit, angles: Angles | None = None, version: int = 3, include: bool = True) -> str:
    """The circuit as OpenQASM 3 text, or 2, which leaves the global phase to its reader.

    ``angles`` is one vector, (n_angles,), in radians, written with 17 significant digits. Without it the text declares
    an input for every angle, ``theta0``, ``theta1``, ... or from eleven on ``theta00``, ``theta01``, ..., so that the
    order of the names is theirs; version 2 has no inputs. ``include=False`` leaves out the standard library and
    declares a qubit ``q0``, ``q1``, ... for each wire, for readers that know the standard gates and neither ``include``
    nor registers, such as ``pennylane.from_qasm3(text, {"q0": 0, "q1": 1})``. Raises ValueError for a wire that is not
    a qubit, angles of another shape or not finite, or a version that is not 2 or 3.

    >>> print(to_qasm(Circuit((2, 2), [Op("RY", (0,)), Op("GIVENS", (0, 1))]), [0.5, 1.0]))
    OPENQASM 3.0;
    include "stdgates.inc";
    gate givens(t) a, b { cx b, a; ry(-0.5*t) b; cz a, b; ry(0.5*t) b; cz a, b; cx b, a; }
    qubit[2] q;
    ry(0.5) q[0];
    givens(1.0) q[0], q[1];
    """
    if version not in _VERSIONS:
        raise ValueError(f"OpenQASM is written in version 2 or 3, got {version!r}")
    if not include and version == 2:
        raise ValueError("OpenQASM 2 has no gates without qelib1.inc: use version 3 for a text without an include")
    for wire, d in enumerate(circuit.dims):
        if d != 2:
            raise ValueError(
                f"OpenQASM has wires of dimension 2 only, but wire {wire} has dimension {d}; "
                "interop.lower puts it on qubits"
            )
    form, n = _VERSIONS[version], len(circuit.dims)
    if angles is not None:
        vector, names, inputs = vector_of(circuit, angles), [], []
        values = [Affine(shift=one(vector)) for one in circuit.made]
    elif version == 3 or not circuit.n_angles:
        names = names_of(circuit)
        inputs, values = [f"input float[64] {name};" for name in names], circuit.made
    else:
        raise ValueError(f"OpenQASM 2 has no inputs: give the {circuit.n_angles} angles or use version 3")
    definitions: dict[str, str] = {}
    for op in circuit.ops:
        _define(GATES[op.gate], op.adjoint, form, definitions)
    wires = [f"q[{w}]" if include else f"q{w}" for w in range(n)]
    qubits = [form.register.format(n)] if include else [f"qubit {wire};" for wire in wires]
    head = [form.head, form.library] if include else [form.head]
    calls = [_call(op, values, names, wires, form) for op in circuit.ops]
    return "\n".join([*head, *definitions.values(), *inputs, *qubits, *calls, ""])


def names_of(circuit: Circuit) -> list[str]:
    """Names of the angles whose order as text is theirs: theta0, or theta00 if there are eleven or more."""
    digits = len(str(circuit.n_angles - 1))
    return [f"theta{position:0{digits}}" for position in range(circuit.n_angles)]


def vector_of(circuit: Circuit, angles: Angles) -> list[float]:
    """One vector of angles as numbers; raises ValueError for another shape or one that is not finite."""
    vector = torch.as_tensor(angles, dtype=torch.float64)
    if vector.shape != (circuit.n_angles,):
        wanted = (circuit.n_angles,)
        raise ValueError(f"angles have shape {wanted} for this circuit, got {tuple(vector.shape)}")
    for position, value in enumerate(vector.tolist()):
        if not isfinite(value):
            raise ValueError(f"angles are finite numbers in radians, but angle {position} is {value}")
    return vector.tolist()


def _number(value: float) -> str:
    """17 significant digits, with the decimal point that OpenQASM 2 asks for.

    >>> _number(1.0), _number(-1e-30), _number(0.1)
    ('1.0', '-1.0000000000000001e-30', '0.10000000000000001')
    """
    digits, e, exponent = f"{value:.17g}".partition("e")
    return (digits if "." in digits else f"{digits}.0") + e + exponent


def _statement(name: str, angles: Sequence[str], wires: Sequence[str]) -> str:
    return f"{name}{'(' + ', '.join(angles) + ')' if angles else ''} {', '.join(wires)}"


def _call(op: Op, values: Sequence[Affine], names: Sequence[str], wires: Sequence[str], form: _Version) -> str:
    taken = [-values[a] if op.adjoint else values[a] for a in op.angles or ()]
    angles = [one.text(names, _number) if one.terms else _number(one.shift) for one in taken]
    return _statement(form.name(GATES[op.gate], op.adjoint), angles, [wires[w] for w in op.wires]) + ";"


def _define(gate: Gate, adjoint: bool, form: _Version, found: dict[str, str]) -> None:
    """Put the definition of a gate that is not a standard one behind those of its parts."""
    name = form.name(gate, adjoint)
    if name in (form.standard(gate), gate.names.dagger) or name in found:
        return
    if not gate.parts:
        raise ValueError(f"OpenQASM {form.number} has no gate {gate.name}, which is not made of parts either")
    steps = []
    for part, inverse in gate.steps(adjoint and not gate.angles):
        _define(GATES[part.gate], inverse, form, found)
        angle = [] if part.scale is None else [f"{_number(part.scale)}*t"]
        steps.append(_statement(form.name(GATES[part.gate], inverse), angle, ["ab"[w] for w in part.wires]))
    found[name] = f"gate {_statement(name, ['t'] * gate.angles, list('ab'[: gate.wires]))} {{ {'; '.join(steps)}; }}"
