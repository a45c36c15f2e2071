"""Circuits from and to Qiskit and PennyLane, and from OpenQASM, to which ``qcircuit_peft.qasm.to_qasm`` is the way.

Wire w is Qiskit's qubit w and PennyLane's wire w. Bound numbers become gates with fixed angles, free parameters the
circuit's angles; an angle may be a sum of multiples of parameters and a number, and parameters may be shared. A global
phase is kept, as gates on wire 0. Wires of more than two levels go out on qubits, by ``lower``.
"""

from qcircuit_peft.interop.lowering import lower, places
from qcircuit_peft.interop.pennylane import from_pennylane, to_pennylane
from qcircuit_peft.interop.qasm import from_qasm
from qcircuit_peft.interop.qiskit import from_qiskit, to_qiskit

__all__ = ["from_pennylane", "from_qasm", "from_qiskit", "lower", "places", "to_pennylane", "to_qiskit"]
