"""Circuits as OpenQASM text: exact, with a definition on top for every gate that the standard library lacks.

Wire w is ``q[w]``. Wire 0 is the most significant digit here, while Qiskit takes ``q[0]`` as the least
significant (``reverse_bits`` converts). OpenQASM fixes the size of a register, so it is for export only.
"""

from collections.abc import Sequence
from math import isfinite

import torch
from numpy.typing import NDArray
from torch import Tensor

from qcircuit_peft.circuit import Circuit, Op
from qcircuit_peft.gates import GATES, Part

Angles = Tensor | NDArray | Sequence[float]

# Our gates in the standard libraries, by their names there; ``qelib1.inc`` is that of the OpenQASM 2 paper.
_BOTH = ("RX", "RY", "RZ", "H", "X", "Y", "Z", "S", "T", "CZ", "CX", "CRZ")
_QELIB1 = {name: name.lower() for name in _BOTH} | {"P": "u1"}
_STDGATES = _QELIB1 | {"P": "p", "SWAP": "swap", "CRX": "crx", "CRY": "cry"}
_VERSIONS = {
    2: ('OPENQASM 2.0;\ninclude "qelib1.inc";', "qreg q[{}];", _QELIB1),
    3: ('OPENQASM 3.0;\ninclude "stdgates.inc";', "qubit[{}] q;", _STDGATES),
}
_DAGGERS = {"S": "sdg", "T": "tdg"}  # a gate with an angle is undone by its negative, any other by itself
_SWAP = (Part("CX", (0, 1)), Part("CX", (1, 0)), Part("CX", (0, 1)))


def to_qasm(circuit: Circuit, angles: Angles | None = None, version: int = 3) -> str:
    """The circuit as OpenQASM 3 text, or 2, which leaves the global phase to its reader.

    ``angles`` is one vector, (n_angles,), in radians, written with 17 significant digits. Without it the text
    declares an input ``theta0``, ``theta1``, ... for every angle, which version 2 cannot. Raises ValueError
    for a wire that is not a qubit, angles of another shape or not finite, or a version that is not 2 or 3.

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
    for wire, d in enumerate(circuit.dims):
        if d != 2:
            raise ValueError(f"OpenQASM has wires of dimension 2 only, but wire {wire} has dimension {d}")
    head, register, standard = _VERSIONS[version]
    if angles is not None:
        values, inputs = [_number(value) for value in _vector(circuit, angles)], []
    elif version == 3 or not circuit.n_angles:
        values = [f"theta{a}" for a in range(circuit.n_angles)]
        inputs = [f"input float[64] {name};" for name in values]
    else:
        raise ValueError(f"OpenQASM 2 has no inputs: give the {circuit.n_angles} angles or use version 3")
    missing = dict.fromkeys(op.gate for op in circuit.ops if op.gate not in standard)
    definitions = [_definition(gate, standard) for gate in missing]
    calls = [_call(op, values, standard) for op in circuit.ops]
    return "\n".join([head, *definitions, *inputs, register.format(len(circuit.dims)), *calls, ""])


def _vector(circuit: Circuit, angles: Angles) -> list[float]:
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


def _call(op: Op, values: Sequence[str], standard: dict[str, str]) -> str:
    angles = [values[a] for a in op.angles or ()]
    name = standard.get(op.gate, op.gate.lower())
    if op.adjoint:
        angles = [value.removeprefix("-") if value.startswith("-") else f"-{value}" for value in angles]
        name = _DAGGERS.get(op.gate, name)
    return _statement(name, angles, [f"q[{wire}]" for wire in op.wires]) + ";"


def _definition(gate: str, standard: dict[str, str]) -> str:
    """The definition of a gate by its parts, which are all standard gates."""
    parts = _SWAP if gate == "SWAP" else GATES[gate].parts
    if not parts:
        raise ValueError(f"{gate} is neither a standard gate of OpenQASM nor made of parts that are")
    steps = []
    for part in parts:
        angle = [] if part.scale is None else [f"{_number(part.scale)}*t"]
        steps.append(_statement(standard[part.gate], angle, ["ab"[w] for w in part.wires]))
    signature = _statement(gate.lower(), ["t"] * GATES[gate].angles, list("ab"[: GATES[gate].wires]))
    return f"gate {signature} {{ {'; '.join(steps)}; }}"
