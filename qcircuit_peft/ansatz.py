"""A family of circuits, free in width and number of layers, and its text form in TOML.

A file in ``circuits/`` has ``name``, ``about`` and ``cite``, and three lists of steps: ``first`` (once), ``layer``
(repeated L times) and ``last`` (once). A step is a gate, or a list of gates, ``on`` a wiring.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

from qcircuit_peft import checks, files
from qcircuit_peft.checks import whole_number
from qcircuit_peft.circuit import Affine, Circuit, Op
from qcircuit_peft.gates import GATES
from qcircuit_peft.text import did_you_mean, printable, shortened, shown

FORMAT_VERSION = 1
CIRCUIT_VERSION = 2  # of what holds one circuit rather than a family, which version 0.1 does not know
_MAX_FILE_BYTES = 1 << 20
_MAX_DIM, _MAX_WIRES = 1 << 40, 1024  # of a circuit: what a file asks for is made only up to here
MAX_GATES, MAX_LAYERS = 1 << 18, 1 << 20
_adapter_gates: ContextVar[int] = ContextVar("adapter_gates", default=1 << 14)
_FOLDERS = (Path(__file__).parent / "_circuits", Path(__file__).parent.parent / "circuits")  # wheel, checkout

Wires = tuple[int, ...]


def adapter_gates() -> int:
    """The number of gates that a circuit of an adapter may have: 16,384 but in ``allow_adapter_gates``."""
    return _adapter_gates.get()


@contextmanager
def allow_adapter_gates(most: int) -> Iterator[None]:
    """Adapters are made and loaded with circuits of up to ``most`` gates: for files that one trusts.

    >>> with allow_adapter_gates(100_000):
    ...     adapter_gates()
    100000
    """
    token = _adapter_gates.set(whole_number("the number of gates", most, 1))
    try:
        yield
    finally:
        _adapter_gates.reset(token)


def _pairs(start: int) -> Callable[[int], list[Wires]]:
    return lambda n: [(w, w + 1) for w in range(start, n - 1, 2)]


def _line(n: int) -> list[Wires]:
    return [(w, w + 1) for w in range(n - 1)]


def _ring(n: int) -> list[Wires]:
    return _line(n) + ([(n - 1, 0)] if n > 2 else [])


def _ring_down(n: int) -> list[Wires]:
    return [(n - 1, n - 2), (0, n - 1), *((w, w - 1) for w in range(1, n - 1))] if n > 2 else _flip(_line)(n)


def _flip(wiring: Callable[[int], list[Wires]]) -> Callable[[int], list[Wires]]:
    return lambda n: [pair[::-1] for pair in wiring(n)]


def _butterfly(n: int) -> list[Wires]:
    strides = [1 << k for k in range(max(n - 1, 0).bit_length())]
    return [(w, w + s) for s in strides for w in range(n - s) if not w & s]


def _tree(n: int) -> list[Wires]:
    strides = [1 << k for k in range(max(n - 1, 0).bit_length())]
    return [(w, w + s) for s in strides for w in range(0, n - s, 2 * s)]


WIRINGS: dict[str, Callable[[int], list[Wires]]] = {
    "each": lambda n: [(w,) for w in range(n)],
    "even_pairs": _pairs(0),
    "odd_pairs": _pairs(1),
    "even_pairs_up": _flip(_pairs(0)),
    "odd_pairs_up": _flip(_pairs(1)),
    "line": _line,
    "reverse_linear": lambda n: _line(n)[::-1],
    "stair": lambda n: [(w, w - 1) for w in range(n - 1, 0, -1)],
    "ring": _ring,
    "circular": lambda n: _ring(n)[-1:] + _line(n) if n > 2 else _line(n),
    "ring_back": lambda n: _ring(n)[::-1],
    "ring_down": _ring_down,
    "all_pairs": lambda n: list(combinations(range(n), 2)),
    "all_to_all": lambda n: list(permutations(range(n - 1, -1, -1), 2)),
    "butterfly": _butterfly,
    "tree": _tree,
}


def _known(value: object, table: Mapping[str, object], what: str, where: str) -> None:
    if not isinstance(value, str) or value not in table:
        raise ValueError(f"{where}: unknown {what} {shown(value)}; {did_you_mean(value, table)}")


@lru_cache(maxsize=256)
def _count_groups(wiring: str, n_wires: int) -> tuple[int, int]:
    """How many groups of wires a wiring has, and of how many wires each is."""
    groups = WIRINGS[wiring](n_wires)
    return len(groups), len(groups[0]) if groups else 1


@dataclass(frozen=True)
class Step:
    """One gate, or several gates in turn, on every member of a wiring.

    ``on`` is a name in ``WIRINGS`` or explicit wires such as ``[[0, 3], [1, 2]]``. A one-wire gate on a pair acts on
    both its wires, first one first.

    Raises ValueError for an unknown gate or wiring, or wires that are not lists of whole numbers.

    >>> Step(["CZ", "RY"], "even_pairs")
    Step(gate=('CZ', 'RY'), on='even_pairs')
    """

    gate: str | tuple[str, ...]
    on: str | tuple[Wires, ...]

    def __post_init__(self) -> None:
        where = f"step {shown(self.gate)} on {shown(self.on)}"
        if not isinstance(self.gate, str | list | tuple):
            raise ValueError(f"'gate' is a gate or a list of gates, got {shown(self.gate)}")
        if isinstance(self.gate, list):
            object.__setattr__(self, "gate", tuple(self.gate))
        for gate in self.gates:
            _known(gate, GATES, "gate", where)
        if not self.gates:
            raise ValueError(f"{where}: a step has at least one gate")
        if isinstance(self.on, str):
            _known(self.on, WIRINGS, "wiring", where)
            return
        if (
            not isinstance(self.on, list | tuple)
            or not self.on
            or not all(
                isinstance(wires, list | tuple)
                and len(wires) in (1, 2)
                and all(checks.is_whole(w, 0) for w in wires)
                and len(set(wires)) == len(wires)
                for wires in self.on
            )
        ):
            raise ValueError(
                f"{where}: 'on' is a wiring or a list of one or two different wires each, such as [[0, 3], [1, 2]]"
            )
        object.__setattr__(self, "on", tuple(tuple(wires) for wires in self.on))

    @property
    def gates(self) -> tuple[str, ...]:
        """The gates as a tuple, also when there is only one."""
        return (self.gate,) if isinstance(self.gate, str) else tuple(self.gate)

    def count(self, n_wires: int) -> int:
        """The number of ops on a register, none of which is made."""
        if isinstance(self.on, str):
            groups, sizes = _count_groups(self.on, n_wires)
            return groups * sum(max(1, sizes // GATES[gate].wires) for gate in self.gates)
        return sum(max(1, len(wires) // GATES[gate].wires) for wires in self.on for gate in self.gates)

    def ops(self, n_wires: int) -> Iterator[Op]:
        """The ops of this step on a register, in time order; raises ValueError if it does not fit the register."""
        where = f"step {shown(self.gate)} on {shown(self.on)}"
        groups = WIRINGS[self.on](n_wires) if isinstance(self.on, str) else self.on
        for wires in groups:
            if max(wires) >= n_wires:
                raise ValueError(f"{where}: wire {max(wires)} is not one of the {n_wires} wires")
            for gate in self.gates:
                arity = GATES[gate].wires
                if arity > len(wires):
                    raise ValueError(f"{where}: {gate} acts on {arity} wires, got {wires}")
                for on in [wires] if arity == len(wires) else [(w,) for w in wires]:
                    yield Op(gate, on)

    def to_dict(self) -> dict[str, Any]:
        """The step as plain lists and strings."""
        plain = self.on if isinstance(self.on, str) else [list(wires) for wires in self.on]
        return {"gate": self.gate if isinstance(self.gate, str) else list(self.gate), "on": plain}


def wire_dims(dim: int) -> tuple[int, ...]:
    """Wire dimensions whose product is ``dim``: the odd prime factors, largest first, then qubits.

    Raises ValueError unless ``dim`` is a whole number >= 2.

    >>> wire_dims(768)
    (3, 2, 2, 2, 2, 2, 2, 2, 2)
    """
    whole_number("a circuit's dimension", dim, 2)
    if dim > _MAX_DIM:
        raise ValueError(f"a circuit's dimension is at most 2**40, got {dim}")
    primes, rest, p = [], dim, 2
    while rest > 1:
        if p * p > rest:
            p = rest
        while rest % p == 0:
            primes.append(p)
            rest //= p
        p += 1
    return tuple(sorted(primes, reverse=True))


@dataclass(frozen=True)
class Ansatz:
    """A family of circuits: steps that run once, L times, and once; or one circuit, ``fixed``, of one width.

    Raises ValueError if a part is not a sequence of steps or a text is not a string, or for steps beside ``fixed``.

    >>> ansatz = Ansatz("line", first=[Step("RY", "each")], layer=[Step(["CZ", "RY"], "line")])
    >>> ansatz.circuit(qubits=3, layers=2).n_angles
    11
    """

    name: str
    about: str = ""
    cite: str = ""
    first: tuple[Step, ...] = ()
    layer: tuple[Step, ...] = ()
    last: tuple[Step, ...] = ()
    fixed: Circuit | None = None

    def __post_init__(self) -> None:
        for key in ("name", "about", "cite"):
            checks.text(f"ansatz: {key!r}", getattr(self, key))
        for key in ("first", "layer", "last"):
            steps = getattr(self, key)
            if not isinstance(steps, list | tuple) or not all(isinstance(step, Step) for step in steps):
                raise ValueError(f"ansatz {shown(self.name)}: {key!r} is a list of steps, got {shown(steps)}")
            object.__setattr__(self, key, tuple(steps))
        if self.fixed is not None and (not isinstance(self.fixed, Circuit) or self.first or self.layer or self.last):
            raise ValueError(f"ansatz {shown(self.name)}: 'fixed' is a Circuit, and beside it there are no steps")

    @property
    def gates(self) -> frozenset[str]:
        """The names of all its gates."""
        if self.fixed is not None:
            return frozenset(op.gate for op in self.fixed.ops)
        return frozenset(gate for step in (*self.first, *self.layer, *self.last) for gate in step.gates)

    def circuit(
        self,
        *,
        dim: int | None = None,
        qubits: int | None = None,
        dims: tuple[int, ...] | None = None,
        layers: int = 1,
        max_gates: int = MAX_GATES,
    ) -> Circuit:
        """The member of the family with this width and ``layers`` repetitions.

        Give one of ``dim`` (its odd prime factors become the first wires), ``qubits`` or ``dims``; none is needed for
        a ``fixed`` circuit. Raises ValueError for none or several of them, negative layers, a gate that the wire
        dimensions do not allow, another width or other layers than 1 of a fixed circuit, or, before any is made, more
        than ``max_gates`` gates.

        >>> load("simplified_two_design").circuit(qubits=5, layers=1).n_angles
        13
        >>> load("simplified_two_design").circuit(dim=768, layers=1).dims
        (3, 2, 2, 2, 2, 2, 2, 2, 2)
        """
        if self.fixed is not None:
            wires = dims if qubits is None else (2,) * min(whole_number("qubits", qubits, 1), _MAX_WIRES + 1)
            self.check_gates(len(self.fixed.dims), layers, max_gates)
            return self._only(self.fixed, dim, wires, layers)
        if sum(width is not None for width in (dim, qubits, dims)) != 1:
            raise ValueError(f"give exactly one of dim, qubits and dims, got dim={dim}, qubits={qubits}, dims={dims}")
        whole_number("layers", layers, 0, MAX_LAYERS)
        if qubits is not None:
            dims = (2,) * min(whole_number("qubits", qubits, 1), _MAX_WIRES + 1)
        elif dim is not None:
            dims = wire_dims(dim)
        assert dims is not None
        n = len(dims)
        if n > _MAX_WIRES:
            raise ValueError(f"a circuit has at most {_MAX_WIRES} wires, got {qubits or n}")
        self.check_gates(n, layers, max_gates)
        first, layer, last = (
            [op for step in steps for op in step.ops(n)] for steps in (self.first, self.layer, self.last)
        )
        return Circuit(dims, (*first, *(layer * layers), *last))

    def _only(self, fixed: Circuit, dim: int | None, dims: tuple[int, ...] | None, layers: int) -> Circuit:
        name = shown(self.name)
        if layers != 1:
            raise ValueError(f"ansatz {name} is one circuit, so it has 1 layer, got {shown(layers)}")
        if dim not in (None, fixed.dim) or dims not in (None, fixed.dims):
            wanted = f"width {shown(dim)}" if dims is None else f"wires {shown(dims)}"
            raise ValueError(f"ansatz {name} is one circuit on wires {shown(fixed.dims)}, which has no {wanted}")
        return fixed

    def check_gates(self, n_wires: int, layers: int, max_gates: int) -> None:
        """Raise ValueError if the circuit on so many wires has more than ``max_gates`` gates, none of which is made."""
        first, layer, last = (sum(step.count(n_wires) for step in part) for part in (self.first, self.layer, self.last))
        total = first + layers * layer + last if self.fixed is None else len(self.fixed.ops)
        if total > max_gates:
            raise ValueError(
                f"a circuit has at most {max_gates} gates here, but {shown(self.name)} on {n_wires} wires with "
                f"{shown(layers)} layers has {shown(total)}"
            )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "ansatz") -> "Ansatz":
        """An ansatz from plain data, as read from TOML or JSON; ``where`` names the source in error messages.

        Raises ValueError for unknown or missing keys, a version this library does not know, or a bad step.
        """
        if not isinstance(data, Mapping):
            raise ValueError(f"{where}: an ansatz is a table, got {shown(data)}")
        if "circuit" in data:
            return cls(str(data.get("name", "circuit")), fixed=_read_circuit(data, where))
        checks.keys(where, data, ("version", "name", "about", "cite", "first", "layer", "last"), needed=["name"])
        checks.version(where, data.get("version", FORMAT_VERSION), FORMAT_VERSION)
        parts: dict[str, list[Step]] = {}
        for part in ("first", "layer", "last"):
            entries = data.get(part, [])
            if not isinstance(entries, list | tuple):
                raise ValueError(f"{where}: {part!r} is a list of tables [[{part}]], got {shown(entries)}")
            parts[part] = []
            for number, entry in enumerate(entries, 1):
                here = f"{where}: [[{part}]] entry {number}"
                if not isinstance(entry, Mapping) or set(entry) != {"gate", "on"}:
                    found = ", ".join(map(shown, list(entry)[:8])) if isinstance(entry, Mapping) else shown(entry)
                    raise ValueError(f"{here}: a step has the keys 'gate' and 'on', got {found}")
                try:
                    parts[part].append(Step(entry["gate"], entry["on"]))
                except ValueError as error:
                    raise ValueError(f"{here}: {error}") from None
        fields: dict[str, Any] = {key: data.get(key, "") for key in ("name", "about", "cite")}
        fields |= {part: tuple(steps) for part, steps in parts.items()}
        try:
            return cls(**fields)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None

    @classmethod
    def from_file(cls, path: str | Path) -> "Ansatz":
        """An ansatz from a TOML file of at most 1 MiB; raises ValueError naming the file and the entry at fault."""
        return cls.from_dict(files.read_toml(path, "circuit", _MAX_FILE_BYTES), shortened(printable(str(path))))

    def to_dict(self) -> dict[str, Any]:
        """The ansatz as plain data with its format version; ``from_dict`` reads it back."""
        if self.fixed is not None:
            return {"version": CIRCUIT_VERSION, "name": self.name, "circuit": _plain_circuit(self.fixed)}
        texts = {"name": self.name, "about": self.about, "cite": self.cite}
        parts = {part: [step.to_dict() for step in getattr(self, part)] for part in ("first", "layer", "last")}
        return {"version": FORMAT_VERSION, **texts, **parts}

    def to_toml(self) -> str:
        """The ansatz as the text of a circuit file; ``from_file`` reads it back."""
        if self.fixed is not None:
            plain = self.to_dict()
            table = [f"{key:<6} = {_toml(value)}" for key, value in plain["circuit"].items()]
            return "\n".join([f"version = {CIRCUIT_VERSION}", f"name = {_toml(self.name)}", "[circuit]", *table, ""])
        lines = [f"{key:<5} = {_toml(getattr(self, key))}" for key in ("name", "about", "cite")]
        for part in ("first", "layer", "last"):
            for step in getattr(self, part):
                lines += [
                    "",
                    f"[[{part}]]",
                    *(f"{key:<4} = {_toml(value)}" for key, value in step.to_dict().items()),
                ]
        return "\n".join(lines) + "\n"


def _plain_circuit(circuit: Circuit) -> dict[str, Any]:
    """A circuit as plain data: an op is a gate, its wires, its angles and whether it is the adjoint."""
    ops = [[op.gate, list(op.wires), list(op.angles or ()), op.adjoint] for op in circuit.ops]
    affine = [[[list(term) for term in one.terms], one.shift] for one in circuit.affine]
    return {"dims": list(circuit.dims), "ops": ops, "affine": affine}


def _read_circuit(data: Mapping[str, Any], where: str) -> Circuit:
    """The circuit of plain data; raises ValueError if it is not what ``_plain_circuit`` writes, or too large."""
    needed = ("version", "name", "circuit")
    checks.keys(where, data, needed, needed)
    checks.version(where, data["version"], CIRCUIT_VERSION)
    given = data["circuit"]
    keys = ("dims", "ops", "affine")
    if not isinstance(given, Mapping) or set(given) != set(keys) or not all(isinstance(given[k], list) for k in keys):
        raise ValueError(f"{where}: a circuit has the lists dims, ops and affine, got {shown(given)}")
    dims, ops, affine = (given[key] for key in keys)
    if len(dims) > _MAX_WIRES or max(len(ops), len(affine)) > MAX_GATES:
        raise ValueError(f"{where}: a circuit has at most {_MAX_WIRES} wires and {MAX_GATES} gates")
    try:
        circuit = Circuit(dims, [_read_op(op) for op in ops], [_read_affine(one) for one in affine])
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if circuit.dim > _MAX_DIM:
        raise ValueError(f"{where}: a circuit's dimension is at most 2**40, got wires {shown(circuit.dims)}")
    return circuit


def _read_op(entry: object) -> Op:
    if not isinstance(entry, list) or len(entry) != 4 or not isinstance(entry[3], bool):
        raise ValueError(f"an op is a gate, its wires, its angles and whether it is the adjoint, got {shown(entry)}")
    return Op(entry[0], entry[1], entry[2], entry[3])


def _read_affine(entry: object) -> Affine:
    if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[0], list):
        raise ValueError(f"an angle is a list of terms and a number, got {shown(entry)}")
    return Affine(tuple(entry[0]), entry[1])


def _toml(value: object) -> str:
    """A text, or lists of texts or numbers: there JSON is TOML. What is not printable is written by its number."""
    found = json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in found)


def _shipped() -> dict[str, Path]:
    return {path.stem: path for folder in _FOLDERS for path in folder.glob("*.toml")}


def names() -> list[str]:
    """The names of the ansatz files that come with the library, sorted."""
    return sorted(_shipped())


def load(source: "str | Path | Mapping[str, Any] | Ansatz | Circuit") -> Ansatz:
    """An ansatz from the name of a shipped file, a path, plain data, one circuit, or itself.

    A text with a path separator or the ending ``.toml`` is a path; any other is a name. Raises ValueError if there
    is no such file, or it is not an ansatz.

    >>> load("simplified_two_design").about
    'RY on all wires; each layer: CZ and RY on even pairs, then on odd pairs.'
    """
    if isinstance(source, Ansatz):
        return source
    if isinstance(source, Circuit):
        return Ansatz("circuit", fixed=source)
    if isinstance(source, Mapping):
        return Ansatz.from_dict(source)
    if not isinstance(source, str | Path):
        raise ValueError(f"an ansatz is a name, a path, a dict, an Ansatz or a Circuit, got {type(source).__name__}")
    if isinstance(source, Path) or source.endswith(".toml") or "/" in source or "\\" in source:
        return Ansatz.from_file(source)
    if source in _shipped():
        return Ansatz.from_file(_shipped()[source])
    raise ValueError(
        f"there is no circuit named {shown(source)}; {did_you_mean(source, names())}, or a path ending in .toml"
    )


def with_neighbours(ansatz: Ansatz) -> Ansatz:
    """The same family with RYN in the place of every RY: on a wire of d levels d - 1 angles, not d (d - 1) / 2.

    On qubits nothing changes. A width such as 11,008 = 43 x 2^8 has a wire of 43 levels.

    >>> two_design = load("simplified_two_design")
    >>> [family.circuit(dim=11008, layers=0).n_angles for family in (two_design, with_neighbours(two_design))]
    [911, 50]
    """
    if ansatz.fixed is not None:
        raise ValueError(f"RYN takes the place of RY in a family of circuits, but {ansatz.name!r} is one circuit")

    def turned(steps: tuple[Step, ...]) -> tuple[Step, ...]:
        return tuple(Step(tuple("RYN" if gate == "RY" else gate for gate in s.gates), s.on) for s in steps)

    return replace(ansatz, **{part: turned(getattr(ansatz, part)) for part in ("first", "layer", "last")})


def without_entanglers(ansatz: Ansatz) -> Ansatz:
    """The same family without its gates on two wires, so with the same angles; its circuits make product states only.

    Raises ValueError if a gate on two wires has angles, since the control would train fewer.

    >>> [step.gates for step in without_entanglers(load("simplified_two_design")).layer]
    [('RY',), ('RY',)]
    """
    if ansatz.fixed is not None:
        raise ValueError(f"the control no_entanglers is for a family of circuits, but {ansatz.name!r} is one circuit")
    parts = {}
    for part in ("first", "layer", "last"):
        kept = []
        for step in getattr(ansatz, part):
            if turned := [gate for gate in step.gates if GATES[gate].wires > 1 and GATES[gate].angles]:
                raise ValueError(
                    f"the control no_entanglers keeps the number of angles, but {ansatz.name!r} has angles in its "
                    f"gates on two wires, {', '.join(turned)}"
                )
            if gates := tuple(gate for gate in step.gates if GATES[gate].wires == 1):
                kept.append(Step(gates, step.on))
        parts[part] = tuple(kept)
    return replace(ansatz, **parts)
