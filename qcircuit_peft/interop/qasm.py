"""OpenQASM 2 and 3, read: checked on the syntax tree of ``openqasm3``, built by Qiskit's own readers."""

from collections.abc import Iterator
from contextlib import redirect_stderr
from io import StringIO
from typing import Any
from warnings import catch_warnings, simplefilter

from qcircuit_peft.checks import boolean
from qcircuit_peft.circuit import Circuit
from qcircuit_peft.interop.qiskit import read
from qcircuit_peft.interop.reading import MAX_GATES, check_size, needed
from qcircuit_peft.text import printable, shortened

MAX_TEXT, MAX_DEPTH = 1 << 20, 64  # characters; definitions within definitions
_LIBRARIES = ("qelib1.inc", "stdgates.inc")
_REFUSED = {
    "QuantumMeasurementStatement": "measurement",
    "QuantumReset": "reset",
    "BranchingStatement": "classical control",
    "SwitchStatement": "classical control",
    "ForInLoop": "a loop",
    "WhileLoop": "a loop",
    "SubroutineDefinition": "a subroutine",
    "ClassicalAssignment": "classical computation",
    "ConstantDeclaration": "a constant",
    "DelayInstruction": "timing",
    "Box": "timing",
    "CalibrationDefinition": "a calibration",
}


def from_qasm(text: str, drop_measurements: bool = False) -> Circuit:
    """A circuit from OpenQASM 2 or 3: wires in the order of the declared qubits, angles in that of the declared inputs.

    Registers, gate definitions, broadcasts, ``pi``, ``inv`` and ``ctrl`` are understood, barriers and declared bits
    passed over. ``U`` is Qiskit's, without the phase that OpenQASM 3 gives it. ``drop_measurements`` leaves out those
    at the end, after which nothing acts on their qubits. Raises ValueError with the line for any other measurement,
    reset, classical control and what else is not a gate, for an angle that is not a sum of multiples of inputs, more
    than 1,048,576 characters, 1,024 qubits or 100,000 gates; ModuleNotFoundError without Qiskit's readers.

    >>> print(from_qasm('''OPENQASM 3.0;
    ... include "stdgates.inc";
    ... input float[64] theta;
    ... qubit[2] q;
    ... ry(2*theta + 0.5) q;
    ... cx q[0], q[1];'''))
    wires 2 2
    RY[0] 0
    RY[0] 1
    CX 0 1
    [0] = 2*t0 + 0.5
    """
    if not isinstance(text, str):
        raise ValueError(f"OpenQASM is text, got {type(text).__name__}")
    if len(text) > MAX_TEXT:
        raise ValueError(f"a text of OpenQASM that is read has at most {MAX_TEXT:,} characters, got {len(text):,}")
    needed("qiskit", "from_qasm", "qiskit")
    tree = needed("openqasm3", "from_qasm", "qiskit")
    converter = needed("qiskit_qasm3_import", "from_qasm", "qiskit")
    qasm2 = needed("qiskit.qasm2", "from_qasm", "qiskit")
    try:
        with redirect_stderr(StringIO()):  # where the parser prints
            program = tree.parse(text)
    except Exception as error:  # the errors of the parser have no class in common
        raise ValueError(f"this is not OpenQASM: {_said(_place(error) or error)}") from None
    names, declared = _checked(tree.ast, program, boolean("drop_measurements", drop_measurements))
    old = any(isinstance(one, tree.ast.Include) and one.filename == _LIBRARIES[0] for one in program.statements)
    try:
        if str(program.version or (2 if old else 3)).startswith("2"):
            known = [one for one in qasm2.LEGACY_CUSTOM_INSTRUCTIONS if one.name not in declared]
            made = qasm2.loads(text, include_path=(), custom_instructions=known)
        else:
            with catch_warnings():
                simplefilter("ignore", DeprecationWarning)  # of Qiskit, on what its own reader does
                made = converter.convert(program)
    except Exception as error:
        raise ValueError(f"Qiskit does not read this OpenQASM: {_said(error)}") from None
    if drop_measurements:
        made = made.remove_final_measurements(inplace=False)
    inputs = {parameter.name: parameter for parameter in made.parameters}
    return read(made, [inputs.get(name, name) for name in names])


def _place(error: Exception) -> str:
    """Where a text stops being OpenQASM, which the parser tells by the cause of its error only."""
    cause = error.__cause__
    token = getattr(cause.args[0] if cause and cause.args else cause, "offendingToken", None)
    return f"line {token.line} has {token.text[:50]!r} out of place" if token else ""


def _said(error: object) -> str:
    """What a reader says, on one line, without what a terminal would obey."""
    return shortened(printable(" ".join(str(error).split()))) or type(error).__name__


def _checked(ast: Any, program: Any, drop: bool) -> tuple[list[str], set[str]]:
    """The names of the inputs in their order, and all names declared; refuses what is no circuit, or is too large."""
    inputs: list[str] = []
    qubits, bits = 0, 0
    sizes: dict[str, int] = {}  # of registers; of an alias that of all of them, which it may be
    others: set[str] = set()
    gates: dict[str, tuple[int, int]] = {}  # how many gates a definition is, and how deep
    measured: dict[str, dict[int | None, int]] = {}  # of a register: its qubits, None for all, and the line
    total = 0
    for statement in program.statements:
        line = statement.span.start_line
        match statement:
            case ast.Include(filename=name):
                if name not in _LIBRARIES:
                    raise ValueError(
                        f"line {line} includes {_said(name[:50])!r}; only {' and '.join(_LIBRARIES)} are read"
                    )
            case ast.QubitDeclaration(qubit=qubit, size=size):
                sizes[qubit.name] = _size(ast, size, line)
                qubits += sizes[qubit.name]
                check_size(qubits, total)
            case ast.ClassicalDeclaration(type=ast.BitType(size=size), init_expression=None, identifier=name):
                others.add(name.name)
                bits += _size(ast, size, line)
                check_size(max(bits, 1), total)
            case ast.AliasStatement(target=ast.Identifier(name=name)):
                sizes[name] = qubits
            case ast.QuantumBarrier():
                pass
            case ast.IODeclaration(io_identifier=ast.IOKeyword.input, type=ast.FloatType() | ast.AngleType()):
                inputs.append(statement.identifier.name)
            case ast.QuantumGateDefinition(name=name, body=body):
                counts = [_calls(ast, one, gates, sizes) for one in body]
                depth = 1 + max((depth for _, depth in counts), default=0)
                if depth > MAX_DEPTH:
                    raise ValueError(f"gate {name.name[:50]} on line {line} is defined more than {MAX_DEPTH} deep")
                gates[name.name] = sum(count for count, _ in counts), depth
            case ast.QuantumMeasurementStatement(measure=ast.QuantumMeasurement(qubit=qubit)) if drop:
                name, index = _qubit(ast, qubit)
                measured.setdefault(name, {})[index] = line
            case ast.QuantumGate() | ast.QuantumPhase():
                total += _calls(ast, statement, gates, sizes)[0]
                for name, index in (_qubit(ast, qubit) for qubit in statement.qubits if measured):
                    before = measured.get(name, {})
                    for there in before if index is None else {index, None} & {*before}:
                        raise ValueError(
                            f"line {line} acts on what line {before[there]} measured: only measurements at the end "
                            "can be left out"
                        )
            case _:
                kind = type(statement).__name__
                raise ValueError(f"line {line} has {_REFUSED.get(kind, kind)}: a circuit that is read is gates only")
        if total > MAX_GATES:
            raise ValueError(f"a circuit that is read has at most {MAX_GATES:,} gates, but line {line} goes beyond")
    return inputs, {*gates, *sizes, *others}


def _size(ast: Any, size: Any, line: int) -> int:
    if size is not None and not isinstance(size, ast.IntegerLiteral):
        raise ValueError(f"the size of a register is a whole number that is written out, but not on line {line}")
    return 1 if size is None else size.value


def _calls(ast: Any, call: Any, gates: dict[str, tuple[int, int]], sizes: dict[str, int]) -> tuple[int, int]:
    """How many gates a call is once definitions and broadcasts are written out, and how deep they lie."""
    line = call.span.start_line
    if isinstance(call, ast.QuantumBarrier):
        return 0, 0
    if not isinstance(call, ast.QuantumGate | ast.QuantumPhase):
        kind = type(call).__name__
        raise ValueError(f"line {line} has {_REFUSED.get(kind, kind)}: a circuit that is read is gates only")
    for modifier in call.modifiers:
        if modifier.modifier not in (ast.GateModifierName.inv, ast.GateModifierName.ctrl, ast.GateModifierName.negctrl):
            raise ValueError(f"line {line} has pow: of the modifiers inv and ctrl are read")
        if modifier.argument is not None and not isinstance(modifier.argument, ast.IntegerLiteral):
            raise ValueError(f"line {line} has ctrl of a number that is not written out")
    width = max((sizes.get(name, 1) for name in _operands(ast, call)), default=1)
    count, depth = gates.get(call.name.name, (1, 0)) if isinstance(call, ast.QuantumGate) else (1, 0)
    return count * width, depth


def _operands(ast: Any, call: Any) -> Iterator[str]:
    for qubit in call.qubits:
        if isinstance(qubit, ast.Identifier):
            yield qubit.name
        elif isinstance(qubit, ast.IndexedIdentifier) and not _single(ast, qubit):
            yield qubit.name.name


def _qubit(ast: Any, qubit: Any) -> tuple[str, int | None]:
    """The name of a register and the number of its qubit that is meant; None for all of them, or some."""
    if isinstance(qubit, ast.Identifier):
        return qubit.name, None
    indices = qubit.indices[0] if _single(ast, qubit) else []
    one = len(indices) == 1 and isinstance(indices[0], ast.IntegerLiteral)
    return qubit.name.name, indices[0].value if one else None


def _single(ast: Any, qubit: Any) -> bool:
    return (
        len(qubit.indices) == 1
        and isinstance(qubit.indices[0], list)
        and not any(isinstance(index, ast.RangeDefinition) for index in qubit.indices[0])
    )
