"""OpenQASM, read: version 2 checked as text, 3 on the syntax tree of ``openqasm3``; built by Qiskit's own readers."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from typing import Any
from warnings import catch_warnings, simplefilter

from qcircuit_peft.checks import boolean
from qcircuit_peft.circuit import Circuit
from qcircuit_peft.interop.qiskit import read
from qcircuit_peft.interop.reading import MAX_QUBITS, check_size, needed, said
from qcircuit_peft.interop.scan import LIBRARIES, Text, acts_after, check_deep, check_total, no_gate, no_library

MAX_TEXT = 1 << 20  # characters
Qubits = Sequence[int | str]  # in the order of their declaration; a name that is not declared
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
    "IODeclaration": "an output, or an input that is not a float or angle",
    "ExternDeclaration": "a subroutine",
    "ClassicalDeclaration": "a variable",
    "CompoundStatement": "a block",
    "EndStatement": "an end",
    "Pragma": "a pragma",
    "CalibrationGrammarDeclaration": "a calibration",
    "CalibrationDefinition": "a calibration",
}


def from_qasm(text: str, drop_measurements: bool = False) -> Circuit:
    """A circuit from OpenQASM 2 or 3: wires in the order of the declared qubits, angles in that of the declared inputs.

    Registers, gate definitions, broadcasts, ``pi``, ``inv`` and ``ctrl`` are understood, barriers and declared bits
    passed over. ``U`` is Qiskit's, without the phase that OpenQASM 3 gives it. ``drop_measurements`` leaves out those
    at the end, after which no gate but identities acts on their qubits. Raises ValueError with the line for any
    other measurement, reset, classical control and what else is not a gate, for an angle that is not a sum of multiples
    of inputs, more than 1,048,576 characters, 1,024 qubits or 100,000 gates; ModuleNotFoundError without Qiskit's
    readers.

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
    drop = boolean("drop_measurements", drop_measurements)
    text = text.removeprefix("\ufeff")  # as editors begin a file
    seen = Text(text)
    names: list[str] = []
    if seen.version.startswith("2"):
        qasm2 = needed("qiskit.qasm2", "from_qasm", "qiskit")
        declared = seen.names_of_2(drop)
        known = [one for one in qasm2.LEGACY_CUSTOM_INSTRUCTIONS if one.name not in declared]
        with _qiskit_reads():
            made = qasm2.loads(text, include_path=(), custom_instructions=known)
    else:
        tree = needed("openqasm3", "from_qasm", "qiskit")
        converter = needed("qiskit_qasm3_import", "from_qasm", "qiskit")
        try:
            with redirect_stderr(StringIO()):  # where the parser prints
                program = tree.parse(text)
        except Exception as error:  # the errors of the parser have no class in common
            raise ValueError(f"this is not OpenQASM: {_place(error)}") from None
        names = _checked(tree.ast, program, drop)
        with _qiskit_reads(), catch_warnings():
            simplefilter("ignore", DeprecationWarning)  # of Qiskit, on what its own reader does
            made = converter.convert(program)
    if drop:
        whole, made = made, made.copy_empty_like()
        for instruction in whole.data:
            if instruction.operation.name != "measure":
                made.append(instruction)
    inputs = {parameter.name: parameter for parameter in made.parameters}
    return read(made, [inputs.get(name, name) for name in names])


@contextmanager
def _qiskit_reads() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        message = str(getattr(error, "message", error))
        where = re.match(r"(?:<input>:)?(\d+),\d+: ", message)
        line = where[1] if where else _line(error)
        what = said(message[where.end() :] if where else message)
        raise ValueError(f"Qiskit does not read this OpenQASM: {line and f'line {line}: '}{what}") from None


def _line(error: Exception) -> str:
    """The line that a reader was at, which it keeps in what it was reading."""
    trace, line = error.__traceback__, ""
    while trace:
        here = trace.tb_frame.f_locals
        for at in (getattr(here.get("node"), "span", None), getattr(here.get("ctx"), "start", None)):
            line = getattr(at, "start_line", getattr(at, "line", line))
        trace = trace.tb_next
    return line


def _place(error: Exception) -> str:
    """Where a text stops being OpenQASM, which the parser tells by the cause of its error only."""
    cause = error.__cause__
    token = getattr(cause.args[0] if cause and cause.args else cause, "offendingToken", None)
    if token:
        return f"line {token.line} has {said(token.text[:50])!r} out of place"
    if isinstance(error, AttributeError):  # as no token has a line
        return "there is no statement in it"
    line = _line(error)
    what = "an expression of too many parts" if isinstance(error, RecursionError) else said(error)
    return re.sub(r"^L(\d+):C\d+", r"line \1", f"{line and f'line {line}: '}{what}")


def _checked(ast: Any, program: Any, drop: bool) -> list[str]:
    """The names of the inputs in their order; refuses what is no circuit, or is too large."""
    inputs: list[str] = []
    qubits, bits = 0, 0
    registers: dict[str, Qubits] = {}  # and aliases
    gates: dict[str, tuple[int, int]] = {}  # how many gates a definition is, and how deep
    measured: dict[int | str, int] = {}  # qubits, and the line
    total = 0
    for statement in program.statements:
        line = statement.span.start_line
        match statement:
            case ast.Include(filename=name):
                if name not in LIBRARIES:
                    raise no_library(line, name)
            case ast.QubitDeclaration(qubit=qubit, size=size):
                before, qubits = qubits, qubits + _size(ast, size, line)
                check_size(qubits, total)
                registers[qubit.name] = range(before, qubits)
            case ast.ClassicalDeclaration(type=ast.BitType(size=size), init_expression=None):
                bits += _size(ast, size, line)
                check_size(max(bits, 1), total)
            case ast.AliasStatement(target=ast.Identifier(name=name), value=value):
                meant = _qubits(ast, value, registers)
                registers[name] = meant if len(meant) <= qubits else range(qubits)
            case ast.QuantumBarrier():
                pass
            case ast.IODeclaration(io_identifier=ast.IOKeyword.input, type=ast.FloatType() | ast.AngleType()):
                inputs.append(statement.identifier.name)
            case ast.QuantumGateDefinition(name=name, body=body):
                counts = [_calls(ast, one, gates, {}) for one in body]
                depth = 1 + max((depth for _, depth in counts), default=0)
                check_deep(name.name, line, depth)
                gates[name.name] = sum(count for count, _ in counts), depth
            case ast.QuantumMeasurementStatement(measure=ast.QuantumMeasurement(qubit=qubit)) if drop:
                meant = _qubits(ast, qubit, registers)
                total += len(meant)
                measured.update((one, line) for one in meant)
            case ast.QuantumGate() | ast.QuantumPhase():
                total += _calls(ast, statement, gates, registers)[0]
                idle = isinstance(statement, ast.QuantumGate) and statement.name.name == "id" and "id" not in gates
                for qubit in () if idle or not measured else statement.qubits:
                    for one in measured.keys() & _qubits(ast, qubit, registers):
                        raise acts_after(line, measured[one])
            case _:
                kind = type(statement).__name__
                raise no_gate(line, _REFUSED.get(kind, kind))
        check_total(total, line)
    return inputs


def _size(ast: Any, size: Any, line: int) -> int:
    if size is not None and not isinstance(size, ast.IntegerLiteral):
        raise ValueError(f"the size of a register is a whole number that is written out, but not on line {line}")
    return 1 if size is None else size.value


def _calls(ast: Any, call: Any, gates: dict[str, tuple[int, int]], registers: Mapping[str, Qubits]) -> tuple[int, int]:
    """How many gates a call is once definitions and broadcasts are written out, and how deep they lie."""
    line = call.span.start_line
    if isinstance(call, ast.QuantumBarrier):
        return 0, 0
    if not isinstance(call, ast.QuantumGate | ast.QuantumPhase):
        kind = type(call).__name__
        raise no_gate(line, _REFUSED.get(kind, kind))
    for modifier in call.modifiers:
        if modifier.modifier not in (ast.GateModifierName.inv, ast.GateModifierName.ctrl, ast.GateModifierName.negctrl):
            raise ValueError(f"line {line} has pow: of the modifiers inv and ctrl are read")
        if modifier.argument is not None and not isinstance(modifier.argument, ast.IntegerLiteral):
            raise ValueError(f"line {line} has ctrl of a number that is not written out")
        if modifier.argument is not None and modifier.argument.value > MAX_QUBITS:
            raise ValueError(f"line {line} has ctrl of more than {MAX_QUBITS} qubits")
    width = max((len(_qubits(ast, qubit, registers)) for qubit in call.qubits), default=1)
    count, depth = gates.get(call.name.name, (1, 0)) if isinstance(call, ast.QuantumGate) else (1, 0)
    return max(1, count) * width, depth  # Qiskit keeps empty ones, too


def _qubits(ast: Any, operand: Any, registers: Mapping[str, Qubits]) -> Qubits:
    """Which qubits an operand, or the value of an alias, means; all of a register where an index is no plain number."""
    match operand:
        case ast.Identifier(name=name):
            return registers.get(name, (name,))
        case ast.IndexedIdentifier(name=name, indices=groups):
            found = _qubits(ast, name, registers)
            for group in groups:
                found = _chosen(ast, found, group)
            return found
        case ast.IndexExpression(collection=collection, index=group):
            return _chosen(ast, _qubits(ast, collection, registers), group)
        case ast.Concatenation(lhs=left, rhs=right):
            return (*_qubits(ast, left, registers), *_qubits(ast, right, registers))
    return ()


def _chosen(ast: Any, qubits: Qubits, group: Any) -> Qubits:
    """Those of these qubits that a set, an index or a range with both ends chooses."""
    size = len(qubits)
    if isinstance(group, ast.DiscreteSet) or not isinstance(group[0], ast.RangeDefinition):
        indices = [_literal(ast, one, size) for one in getattr(group, "values", group)]
        found = [qubits[index] for index in indices if index is not None and 0 <= index < size]
        return found if len(found) == len(indices) else qubits
    start, end = _literal(ast, group[0].start, size, 0), _literal(ast, group[0].end, size, size - 1)
    step = _literal(ast, group[0].step, 0, 1)
    if start is None or end is None or not step or not (0 <= start < size and 0 <= end < size):
        return qubits
    return [qubits[index] for index in range(start, end + (1 if step > 0 else -1), step)]


def _literal(ast: Any, value: Any, size: int, otherwise: int | None = None) -> int | None:
    """A number that is written out; a negative one counts from ``size``, as the end of a register does."""
    match value:
        case None:
            return otherwise
        case ast.IntegerLiteral(value=number):
            return number
        case ast.UnaryExpression(op=ast.UnaryOperator() as op, expression=ast.IntegerLiteral(value=number)):
            return size - number if op.name == "-" else None
    return None
