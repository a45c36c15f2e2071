"""The family that a circuit belongs to: its layers found in what repeats, its steps in the table of wirings."""

from collections.abc import Iterator, Sequence
from itertools import islice, product, zip_longest

import numpy as np

from qcircuit_peft.ansatz import MAX_GATES, WIRINGS, Ansatz, Step
from qcircuit_peft.circuit import Circuit, Op
from qcircuit_peft.gates import GATES
from qcircuit_peft.text import shown

_MOST = 256  # readings of one circuit
_LONGEST = 1 << 8  # gates of what is read as steps: a layer, not a circuit
_WIRES = range(2, 13)  # on which two readings are compared

Key = tuple[str, tuple[int, ...]]
Steps = tuple[Step, ...]


def family_of(circuit: Circuit, *others: Circuit, name: str = "circuit") -> Ansatz:
    """The family of circuits, free in width and number of layers, in which a circuit is, named ``name``.

    What repeats, twice at least and as often as can be, is its layer; what is before and after, its first and last
    gates. All have to be gates on the wirings of the table ``WIRINGS``. Few wires may fit several families: with
    ``others``, circuits of the same family on other numbers of wires, those are left that all of them belong to: read
    is the one on most wires.

    Raises ValueError for a circuit whose gates are adjoint or do not have an angle each of their own in time order,
    without a pattern that repeats, with gates on other wires, or of several families.

    >>> from qcircuit_peft import load
    >>> family = family_of(load("ring_ry_cz").circuit(qubits=5, layers=3), name="mine")
    >>> family.circuit(qubits=8, layers=1) == load("ring_ry_cz").circuit(qubits=8, layers=1)
    True
    """
    for one in (circuit, *others):
        _check(one)
    widest, *rest = sorted((circuit, *others), key=lambda one: -len(one.dims))
    n = len(widest.dims)
    readings = [family for family in islice(_readings(widest, name), _MOST) if all(_has(family, one) for one in rest)]
    if not readings and next(_readings(widest, name), None):
        raise ValueError(
            f"the circuits on {', '.join(str(len(one.dims)) for one in (circuit, *others))} wires are of "
            "no common family"
        )
    if not readings:
        raise ValueError(
            f"a family is read from layers that repeat, but this circuit on {n} wires has no pattern of gates on the "
            f"wirings {', '.join(WIRINGS)} that is there twice or more"
        )
    first, *more = readings
    for family in more:
        if (where := _differ(first, family, n)) is not None:
            raise ValueError(
                f"a circuit on {n} wires fits several families, with {_told(first, family)}, which differ on other "
                f"numbers of wires; give a circuit on {where} wires as well"
            )
    return first


def _check(circuit: Circuit) -> None:
    """Raise ValueError for what no step can say."""
    if not isinstance(circuit, Circuit):
        raise ValueError(f"a family is read from a Circuit, got {shown(circuit)}")
    if len(circuit.ops) > MAX_GATES:
        raise ValueError(f"a family is read from at most {MAX_GATES} gates, got {len(circuit.ops)}")
    if circuit != Circuit(circuit.dims, [Op(op.gate, op.wires) for op in circuit.ops]):
        raise ValueError(
            "a family is read from a circuit whose gates have an angle each of their own, in time order, and of which "
            "none is adjoint"
        )


def _readings(circuit: Circuit, name: str) -> Iterator[Ansatz]:
    """Every family with this circuit, the layer that repeats on most gates and is shortest, as late as can be."""
    keys, n = [(op.gate, op.wires) for op in circuit.ops], len(circuit.dims)
    found = _repeats(keys)
    if found is None:
        return
    start, free, period, times = found
    about = f"As in a circuit on {n} wires with {times} layers."
    for at in range(start + free, start - 1, -1):
        end, any_here = at + period * times, False
        parts = keys[:at], keys[at : at + period], keys[end:]
        first, layer, last = (list(islice(_steps(part, n), _MOST)) for part in parts)
        for steps in product(first, layer, last):
            any_here = True
            yield Ansatz(name, about, "", *steps)
        if any_here:
            return


def _repeats(keys: Sequence[Key]) -> tuple[int, int, int, int] | None:
    """Where what repeats starts, how much later it may as well, its length and how often it is there; None if once."""
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    x, best = np.array([numbers[key] for key in keys], np.int64), None
    for period in range(1, len(x) // 2 + 1):
        ends = np.flatnonzero(np.diff(np.concatenate([[False], x[period:] == x[:-period], [False]]).astype(np.int8)))
        for start, end in zip(ends[::2].tolist(), ends[1::2].tolist(), strict=True):
            times = (end - start) // period + 1
            if times > 1 and (best is None or times * period > best[2] * best[3]):
                best = (start, (end - start) % period, period, times)
    return best


def _steps(keys: Sequence[Key], n: int) -> Iterator[Steps]:
    """All lists of steps that are these gates on n wires."""
    after: dict[int, list[tuple[Step, int]]] = {len(keys): []}  # steps from a place on, with which the end is reached

    def read(start: int) -> bool:
        if start not in after:
            after[start] = [(step, end) for step, end in _next(keys, start, n) if read(end)]
        return start == len(keys) or bool(after[start])

    def all_from(start: int) -> Iterator[Steps]:
        if start == len(keys):
            yield ()
        for step, end in after[start]:
            yield from ((step, *rest) for rest in all_from(end))

    return all_from(0) if len(keys) <= _LONGEST and read(0) else iter(())


def _next(keys: Sequence[Key], start: int, n: int) -> Iterator[tuple[Step, int]]:
    """The steps that are the next gates, and where each ends."""
    for wiring, groups_of in WIRINGS.items():
        groups = groups_of(n)
        gates: list[str] = []
        at = start
        while groups and (more := _gate_on(keys[at : at + 2], groups[0])) is not None:
            gates.append(more[0])
            at += more[1]
            step = Step(gates[0] if len(gates) == 1 else tuple(gates), wiring)
            ops = [(op.gate, op.wires) for op in step.ops(n)]
            if list(keys[start : start + len(ops)]) == ops:
                yield step, start + len(ops)


def _gate_on(keys: Sequence[Key], group: tuple[int, ...]) -> tuple[str, int] | None:
    """The gate that these begin with if it is on this group of wires, and how many of them it takes."""
    if not keys:
        return None
    gate = keys[0][0]
    ons = [group] if GATES[gate].wires == len(group) else [(wire,) for wire in group]
    return (gate, len(ons)) if list(keys[: len(ons)]) == [(gate, on) for on in ons] else None


def _has(family: Ansatz, circuit: Circuit) -> bool:
    """Whether a circuit is of a family, with any number of layers."""
    n = len(circuit.dims)
    first, layer, last = (sum(step.count(n) for step in part) for part in (family.first, family.layer, family.last))
    layers, left = divmod(len(circuit.ops) - first - last, layer) if layer else (1, 0)
    return layers >= 0 and not left and family.circuit(dims=circuit.dims, layers=layers) == circuit


def _differ(one: Ansatz, other: Ansatz, n: int) -> int | None:
    """A number of wires, above n if there is one, on which two families are not the same; None for the same."""

    def made(family: Ansatz, wires: int, layers: int) -> Circuit:
        return family.circuit(qubits=wires, layers=layers)

    wires = sorted(_WIRES, key=lambda wires: (wires < n, wires))
    return next((w for w, layers in product(wires, range(3)) if made(one, w, layers) != made(other, w, layers)), None)


def _told(one: Ansatz, other: Ansatz) -> str:
    """Where two families differ first."""
    steps = ([f"{'+'.join(step.gates)} on {step.on}" for step in (*f.first, *f.layer, *f.last)] for f in (one, other))
    return " or ".join(next(pair for pair in zip_longest(*steps, fillvalue="nothing") if pair[0] != pair[1]))
