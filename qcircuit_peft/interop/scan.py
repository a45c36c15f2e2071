"""OpenQASM looked over as text, in time and memory of its length: for what no parser should begin with, and version 2.

The parser of version 3 takes a millisecond for a token, Qiskit's of version 2 a millionth of a second. So of version 2
all that is asked of a text is asked here, on its statements.
"""

import re
from collections.abc import Iterator
from itertools import islice

from qcircuit_peft.interop.reading import MAX_DEPTH, MAX_GATES, MAX_QUBITS, check_size, said

LIBRARIES = ("qelib1.inc", "stdgates.inc")
_MOST_NESTED, _MOST_DIGITS, _MOST_DEFINED = 50, 300, 4096
_ASIDE = re.compile(r"//[^\r\n]*|/\*.*?(?:\*/|\Z)|\"[^\"\n]*\"?|'[^'\n]*'?", re.DOTALL)
_TOO_MUCH = re.compile(rf"(?P<signs>(?:[-~!]\s*){{{_MOST_NESTED},}})|\d{{{_MOST_DIGITS + 1},}}|[()\[\]{{}}]", re.ASCII)
_STATEMENT = re.compile(r"[^;{}]*(?:[;{}]|\Z)")
_HEAD = re.compile(r"\s*(?P<word>[A-Za-z_]\w*)(?P<rest>.*)", re.DOTALL | re.ASCII)
_REGISTER = re.compile(r"\s*(?P<name>[A-Za-z_]\w*)\s*\[\s*(?P<size>\d+)\s*\]\s*", re.ASCII)
_REFUSED = {"measure": "measurement", "reset": "reset", "if": "classical control"}


def no_gate(line: int, kind: str) -> ValueError:
    """What is said of a statement that is no gate."""
    return ValueError(f"line {line} has {kind}: a circuit that is read is gates only")


def no_library(line: int, name: str) -> ValueError:
    """What is said of a file that is not one of the two standard libraries."""
    return ValueError(f"line {line} includes {said(name[:50])!r}; only {' and '.join(LIBRARIES)} are read")


def acts_after(line: int, measured: int) -> ValueError:
    """What is said of a gate behind a measurement that was to be left out."""
    return ValueError(
        f"line {line} acts on what line {measured} measured: only measurements at the end can be left out"
    )


def check_deep(name: str, line: int, deep: int) -> None:
    """Raise ValueError if a gate is defined by others too deep."""
    if deep > MAX_DEPTH:
        raise ValueError(f"gate {name[:50]} on line {line} is defined more than {MAX_DEPTH} deep")


def check_total(total: int, line: int) -> None:
    """Raise ValueError if there are too many gates up to this line."""
    if total > MAX_GATES:
        raise ValueError(f"a circuit that is read has at most {MAX_GATES:,} gates, but line {line} goes beyond")


class Text:
    """A text without comments and strings, every line in its place, and the strings in it with their lines.

    Raises ValueError with the line for what is nested more than 50 deep, 50 signs in a row, a number of more than 300
    digits, more than 4,096 definitions of gates, or a physical qubit beyond $1023.
    """

    def __init__(self, text: str) -> None:
        self.quoted: list[tuple[int, str]] = []
        line, last = 1, 0

        def aside(found: re.Match) -> str:
            nonlocal line, last
            line, last = line + text.count("\n", last, found.start()), found.start()
            if found[0][0] in "\"'":
                self.quoted.append((line, found[0].strip("\"'")))
                return '""'
            return " " + "\n" * found[0].count("\n")

        self.bare = _ASIDE.sub(aside, text)
        for position, what in self._too_much():
            raise ValueError(f"line {self.line(position)} has {what}, which is not read")

    def _too_much(self) -> Iterator[tuple[int, str]]:
        depth = 0
        for found in _TOO_MUCH.finditer(self.bare):
            depth = max(0, depth + (found[0] in "([{") - (found[0] in ")]}"))
            if found["signs"]:
                yield found.start(), f"signs, {_MOST_NESTED} or more in a row"
            elif found[0].isdigit():
                yield found.start(), f"a number of more than {_MOST_DIGITS} digits"
            elif depth > _MOST_NESTED:
                yield found.start(), f"what is nested more than {_MOST_NESTED} deep"
        for found in islice(re.finditer(r"\b(?:gate|opaque)\b", self.bare), _MOST_DEFINED, None):
            yield found.start(), f"a definition after {_MOST_DEFINED:,} others"
        for found in re.finditer(r"\$(\d+)", self.bare, re.ASCII):
            if int(found[1]) >= MAX_QUBITS:
                yield found.start(), f"a qubit beyond ${MAX_QUBITS - 1}"

    def line(self, position: int) -> int:
        """The line of a position of ``bare``, from 1."""
        return 1 + self.bare.count("\n", 0, position)

    @property
    def version(self) -> str:
        """The version that the text says, else that whose library it includes, else 3; raises ValueError for others."""
        found = re.match(r"\s*OPENQASM\s+([\w.]+)", self.bare, re.ASCII)
        said_here = found[1] if found else "2" if any(name == LIBRARIES[0] for _, name in self.quoted) else "3"
        if said_here.partition(".")[0] not in ("2", "3"):
            raise ValueError(f"OpenQASM is read in version 2 or 3, got {said(said_here[:50])}")
        return said_here

    def statements(self) -> Iterator[tuple[int, str, str, bool]]:
        """Of every statement of version 2 its line, its first word, the rest, and whether it is within a gate."""
        line, within = 1, False
        for found in _STATEMENT.finditer(self.bare):
            piece, lines = found[0], found[0].count("\n")
            head = _HEAD.match(piece)
            if head:
                yield line + piece.count("\n", 0, head.start("word")), head["word"], head["rest"].rstrip(";{}"), within
            if piece[-1:] == "{" and (within or not head or head["word"] != "gate"):
                raise ValueError(f"line {line + lines} has a block that is no gate's")
            within = piece[-1:] == "{" or (within and piece[-1:] != "}")
            line += lines

    def names_of_2(self, drop: bool) -> set[str]:
        """All names that a text of version 2 declares; refuses what is no circuit, or is too large."""
        for line, file in self.quoted:
            if file not in LIBRARIES:
                raise no_library(line, file)
        qubits, bits, total = 0, 0, 0
        registers: dict[str, range] = {}
        names: set[str] = set()
        gates: dict[str, tuple[int, int]] = {}  # how many gates a definition is, and how deep
        name = ""
        measured: dict[int, int] = {}  # qubits, and the line
        for line, word, rest, within in self.statements():
            if within:
                (count, deep), (more, under) = gates[name], gates.get(word, (int(word != "barrier"), 0))
                gates[name] = count + more, max(deep, under + 1)
                check_deep(name, line, gates[name][1])
            elif word in ("qreg", "creg"):
                found = _REGISTER.fullmatch(rest)
                if not found:
                    raise ValueError(
                        f"the size of a register is a whole number that is written out, but not on line {line}"
                    )
                size = int(found["size"])
                names.add(found["name"])
                if word == "creg":
                    bits += size
                    check_size(max(bits, 1), total)
                else:
                    registers[found["name"]] = range(qubits, qubits + size)
                    qubits += size
                    check_size(qubits, total)
            elif word in ("gate", "opaque"):
                name = (re.findall(r"[A-Za-z_]\w*", rest, re.ASCII) or [""])[0]
                names.add(name)
                gates[name] = (int(word == "opaque"), 1)
            elif word not in ("OPENQASM", "include", "barrier"):
                if word in _REFUSED and not (word == "measure" and drop):
                    raise no_gate(line, _REFUSED[word])
                operands = rest.partition("->")[0] if word == "measure" else rest.rpartition(")")[2]
                meant = [_meant(one, registers) for one in operands.split(",")]
                total += max(map(len, meant)) * max(1, gates.get(word, (1, 0))[0])  # Qiskit keeps empty ones, too
                check_total(total, line)
                if word == "measure":
                    measured.update((qubit, line) for qubit in meant[0])
                elif word != "id" or "id" in names:
                    for qubit in (qubit for one in meant if measured for qubit in one if qubit in measured):
                        raise acts_after(line, measured[qubit])
        found = re.search(r"\[\s*\d{10,}", self.bare)
        if found:  # where Qiskit panics
            raise ValueError(f"line {self.line(found.start())} has an index of ten digits or more")
        return names


def _meant(operand: str, registers: dict[str, range]) -> range:
    """The qubits of an operand of version 2, none if it is not one, which Qiskit says better."""
    name, _, index = operand.partition("[")
    found, index = registers.get(name.strip(), range(0)), index.strip(" \t\r\n]")
    if not index:
        return found
    position = int(index) if index.isdecimal() and index.isascii() else len(found)
    return found[position : position + 1]
