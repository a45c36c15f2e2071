"""The matrices of blocks of wires, of all levels at once: angles in, batches of small matrices out.

A block is the Kronecker product of two groups of wires. Every entry of a group's matrix is a product of entries of the
table, one for each wire, so one gather and one product make all groups of all blocks, and their derivatives with them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from qcircuit_peft.backends.native import plan
from qcircuit_peft.backends.native.arrays import Array, Constants, added, bmm, cast, cat, conj, pieces, real_part, take
from qcircuit_peft.backends.native.table import Table, make_table, turns_of
from qcircuit_peft.circuit import Circuit

Job = tuple[int, tuple[int, ...]]  # a level, and neighbouring wires: the Kronecker product of their matrices
Wanted = tuple[Job, plan.Gather | None]  # and what follows it


@dataclass(frozen=True)
class Batch:
    """Blocks of one padded shape (n, n), n = a b, for one or both sides of a cut, ``count`` a side.

    A block is the product of a group (a, a) and a group (b, b), then a signed permutation, then transposed. It has
    ``1 + more_a`` rows of a^2 numbers, then ``1 + more_b`` rows of b^2: the group itself, then what it is with the
    derivative of one of its qubits instead of that qubit, or with 1 instead of a wire of dimension d > 2.
    """

    sides: int
    count: int
    a: int
    b: int
    more_a: int
    more_b: int
    wires: int
    factors: Array  # (wires ...): where the numbers stand in the table
    spread: Array  # (sides, a, count, n) entries of the left, (sides, b, count, n) of the right groups
    pairs: Array  # (sides, a, b, count, n) -> (sides, count, a, a, b, b)
    weights: Array | None  # (sides, 1, 1, count n)

    @property
    def n(self) -> int:
        """The dimension of a block."""
        return self.a * self.b

    def rows(self, entries: Array) -> Array:
        """(F, entries of the table) -> (F, numbers of all blocks)."""
        rows = take(entries, self.factors)
        return rows if self.wires == 1 else rows.reshape(len(rows), self.wires, -1).prod(1)

    def __call__(self, rows: Array) -> Array:
        """(F sides, n, count n): the transposed blocks side by side."""
        f, width = len(rows), self.count * self.n
        left, right = pieces(take(rows, self.spread), [self.sides * d * width for d in (self.a, self.b)], 1)
        left = left.reshape(f, self.sides, self.a, 1, width)
        left = left if self.weights is None else left * self.weights
        return (left * right.reshape(f, self.sides, 1, self.b, width)).reshape(-1, self.n, width)

    def undo(self, rows: Array, g: Array, wanted: tuple[int, int]) -> tuple[Array, Array | None]:
        """From the gradient g (F sides, n, count n) of the blocks: what those of the angles and of other wires are in.

        The first is (F, blocks (1 + more_a) (1 + more_b)), with a row's derivative where the other group stands as it
        is. The second (F, ...) is the gradient of the left groups, then of the right: if 1 row is ``wanted``, as it is,
        if all are, times each of them, if none, left out.
        """
        f, a, b = len(rows), self.a, self.b
        if self.weights is not None:
            g = g.reshape(f, self.sides, a, b, -1) * conj(self.weights)
        g = take(g.reshape(f, -1), self.pairs).reshape(-1, a * a, b * b)
        rows = conj(rows.reshape(len(g), -1))
        left, right = pieces(rows, [(1 + self.more_a) * a * a, (1 + self.more_b) * b * b], 1)
        left, right = left.reshape(-1, 1 + self.more_a, a * a), right.reshape(-1, 1 + self.more_b, b * b)
        slopes = bmm(bmm(left, g), right.mT)
        others = []
        if wanted[0]:
            own = bmm(right[:, :1], g.mT)
            others.append((own if wanted[0] == 1 else left * own).reshape(f, -1))
        if wanted[1]:
            own = bmm(left[:, :1], g)
            others.append((own if wanted[1] == 1 else right * own).reshape(f, -1))
        return slopes.reshape(f, -1), cat(others, 1) if others else None


@dataclass(frozen=True)
class Blocks:
    """The matrices of many jobs in a few batches, as a function of the angles."""

    table: Table
    batches: tuple[Batch, ...]
    wanted: tuple[tuple[int, int], ...]  # for each batch, how many rows its left and right groups' gradients take
    slopes: Array  # which of the batches' slopes count
    angles: Array  # for the angles at these positions; then the positions of the angles of the other wires
    entries: Array | None  # of the matrices of the wires of d > 2, to which the groups' gradients add; one is for none

    def rows(self, angles: Array) -> tuple[Array | None, tuple[Array, ...]]:
        """(F, n_angles) -> what ``matrices`` and ``undo`` start from: the table's skews, and the rows of each batch."""
        turns, skews = self.table.turns(angles)
        entries = self.table(turns, skews)
        return skews, tuple(batch.rows(entries) for batch in self.batches)

    def matrices(self, rows: tuple[Array, ...]) -> tuple[Array, ...]:
        """The blocks of each batch, (F sides, n, count n)."""
        return tuple(batch(own) for batch, own in zip(self.batches, rows, strict=True))

    def undo(self, angles: Array, skews: Array | None, rows: tuple[Array, ...], gradients: Sequence[Array]) -> Array:
        """The gradient of the angles from those of the matrices."""
        each = zip(self.batches, rows, gradients, self.wanted, strict=True)
        found = [batch.undo(*arguments) for batch, *arguments in each]  # type: ignore[arg-type]
        slopes = take(real_part(cat([slopes for slopes, _ in found], 1)), self.slopes)
        if skews is not None and self.entries is not None:
            others = real_part(cat([other for _, other in found if other is not None], 1))
            total = added(others, self.entries, skews.shape[1] + 1)
            slopes = cast(cat((slopes, self.table.pull(skews, total)), 1), angles)
        return added(slopes, self.angles, angles.shape[1])


def _shape(sides: frozenset[tuple[int, ...]]) -> tuple[float, int, int]:
    """``(cost, a, b)`` of blocks on wires of these dimensions in one batch: the right groups are equally large.

    The cost counts the numbers that one block takes. What fills up a smaller left group is 0.
    """
    found = []
    ends = [{prod(side[cut:]): cut for cut in range(len(side), -1, -1)} for side in sides]
    for b in set.intersection(*map(set, ends)):
        a = max(prod(side[: end[b]]) for side, end in zip(sides, ends, strict=True))
        w = max(max(end[b], len(side) - end[b], 1) for side, end in zip(sides, ends, strict=True))
        found.append((w * (1 + w) * (a * a + b * b) + (2 * a * a * b * b if b > 1 else 0), a, b))
    return min(found)


def together(sides: Sequence[tuple[int, ...]]) -> bool:
    """Whether blocks on wires of these dimensions are worth one batch: what fills them up costs less than calls do."""
    one = len(sides) * _shape(frozenset(sides))[0]
    return one <= 1.5 * sum(_shape(frozenset([side]))[0] for side in sides) + 100_000


class Places:
    """Where the entries of each wire's matrix in each level stand in the table."""

    def __init__(self, circuit: Circuit, jobs: Sequence[Job]) -> None:
        levels, dims = plan.levels(circuit), circuit.dims
        self.dims = dims
        wanted = dict.fromkeys((level, w) for level, wires in jobs for w in wires)
        gates = {at: levels[at[0]].factors[at[1]] for at in wanted}
        turn = next((g.gate for at in wanted if dims[at[1]] == 2 for g in gates[at] if g.angles), "RY")
        self.qubits = {at: turns_of(gates[at], turn) for at in wanted if dims[at[1]] == 2}
        self.qudits = {d: {at: gates[at] for at in wanted if dims[at[1]] == d} for d in sorted({*dims} - {2})}
        self.qudits = {d: each for d, each in self.qudits.items() if each}
        self.all = [*self.qubits.values(), turns_of((), turn)]
        self.variants = 1 + max(map(len, self.all))
        self.one = 4 * self.variants * len(self.qubits)
        self.zero = self.one + 1
        self.start = {at: 4 * self.variants * place for place, at in enumerate(self.qubits)}
        start = self.first = 4 * self.variants * len(self.all)
        for d, each in self.qudits.items():
            for at in each:
                self.start[at] = start
                start += d * d
        self.end = start

    def of(self, job: Job) -> tuple[int, ...]:
        """The dimensions of a job's wires."""
        return tuple(self.dims[w] for w in job[1])

    def numbers(self, job: Job, size: int, w: int) -> NDArray:
        """(rows, w, size, size): the entries that are multiplied, for a group itself, then for what replaces a wire."""
        (level, wires), dims = job, self.of(job)
        n = prod(dims)
        digits = np.indices(dims).reshape(len(dims), n)

        def product(replaced: int | None = None, variant: int = 0) -> NDArray:
            numbers = np.full((w, size, size), self.one)
            numbers[0] = self.zero
            numbers[0, :n, :n] = self.one
            for i, (wire, d) in enumerate(zip(wires, dims, strict=True)):
                if i != replaced or d == 2:
                    shift = 4 * variant if i == replaced else 0
                    numbers[i, :n, :n] = self.start[level, wire] + shift + digits[i][:, None] * d + digits[i]
            return numbers

        rows = [product()]
        for i, d in enumerate(dims):
            rows += [product(i, v) for v in (range(1, self.variants) if d == 2 else (0,))]
        return np.stack(rows)

    def turned(self, job: Job) -> Iterator[tuple[int, int]]:
        """``(row, position of the angle)`` for each rotation of a qubit in a group."""
        row = 1
        for wire, d in zip(job[1], self.of(job), strict=True):
            if d == 2:
                yield from ((row + r, t.angle) for r, t in enumerate(self.qubits[job[0], wire]) if t.scale)
            row += self.variants - 1 if d == 2 else 1

    def others(self, job: Job, size: int, rows: int) -> NDArray:
        """(rows size size): to which entry of the wires' matrices a number of a group's gradient adds."""
        dims, row = self.of(job), 1
        n = prod(dims)
        digits = np.indices(dims).reshape(len(dims), n)
        ends = np.full((rows, size, size), self.end - self.first)
        for i, (wire, d) in enumerate(zip(job[1], dims, strict=True)):
            if d > 2:
                own = digits[i][:, None] * d + digits[i]
                ends[0 if rows == 1 else row, :n, :n] = self.start[job[0], wire] - self.first + own
            row += self.variants - 1 if d == 2 else 1
        return ends.ravel()


class _Groups:
    """The left or the right groups of the blocks of a batch, all filled up to one size."""

    def __init__(self, places: Places, jobs: list[Job], size: int) -> None:
        self.places, self.jobs, self.size = places, jobs, size
        self.more = max(sum(places.variants - 1 if d == 2 else 1 for d in places.of(job)) for job in jobs)

    def numbers(self, w: int) -> NDArray:
        """(w, blocks, numbers of a group with all its rows): the entries that are multiplied."""
        found = np.full((len(self.jobs), 1 + self.more, w, self.size, self.size), self.places.zero)
        for own, job in zip(found, self.jobs, strict=True):
            rows = self.places.numbers(job, self.size, w)
            own[: len(rows)] = rows
        return np.moveaxis(found, 2, 0).reshape(w, len(self.jobs), -1)

    @property
    def wanted(self) -> int:
        """How many rows of the groups' gradients other wires than qubits need: none, one, or all of them."""
        mixed = [dims for dims in map(self.places.of, self.jobs) if {*dims} - {2}]
        return 0 if not mixed else 1 if all(len(dims) == 1 for dims in mixed) else 1 + self.more

    def others(self) -> list[NDArray]:
        """To which entries of those wires' matrices these gradients add."""
        rows = self.wanted
        return [self.places.others(job, self.size, rows) for job in self.jobs] if rows else []


def _halves(places: Places, jobs: Sequence[Job]) -> tuple[_Groups, _Groups]:
    """The left and the right groups of blocks."""
    _, a, b = _shape(frozenset(map(places.of, jobs)))
    lefts, rights = [], []
    for level, wires in jobs:
        cut = next(c for c in range(len(wires) + 1) if prod(places.of((level, wires[c:]))) == b)
        lefts.append((level, wires[:cut]))
        rights.append((level, wires[cut:]))
    return _Groups(places, lefts, a), _Groups(places, rights, b)


def _turned(left: _Groups, right: _Groups, before: int) -> Iterator[tuple[int, int]]:
    """``(slope, position of the angle)`` for each rotation of a qubit, behind the slopes ``before`` this batch."""
    for j, jobs in enumerate(zip(left.jobs, right.jobs, strict=True)):
        start = before + j * (1 + left.more) * (1 + right.more)
        for job, step in zip(jobs, (1 + right.more, 1), strict=True):
            for row, angle in left.places.turned(job):
                yield start + row * step, angle


def _batch(left: _Groups, right: _Groups, sides: int, gathers: Sequence[plan.Gather | None], make: Constants) -> Batch:
    """The blocks of these groups, each with what follows it."""
    count, a, b = len(gathers) // sides, left.size, right.size
    n = a * b
    of_left, of_right = (1 + left.more) * a * a, (1 + right.more) * b * b
    w = max(1, *(len(wires) for _, wires in left.jobs + right.jobs))
    complete = [completed(gather or (np.arange(n), np.ones(n)), n) for gather in gathers]
    source = np.array([rows for rows, _ in complete]).reshape(sides, 1, count, n)
    starts = (of_left + of_right) * np.arange(len(gathers)).reshape(sides, 1, count, 1)
    spread_left = starts + source // b * a + np.arange(a)[:, None, None]
    spread_right = starts + of_left + source % b * b + np.arange(b)[:, None, None]
    inverse = np.argsort(source, -1).reshape(sides, count, a, 1, b, 1)
    side, j, _, column_a, _, column_b = np.indices((sides, count, a, a, b, b), sparse=True)
    weights = np.array([weights for _, weights in complete]).reshape(sides, 1, 1, count * n)
    return Batch(
        sides=sides,
        count=count,
        a=a,
        b=b,
        more_a=left.more,
        more_b=right.more,
        wires=w,
        factors=make.index(np.concatenate((left.numbers(w), right.numbers(w)), 2).ravel()),
        spread=make.index(np.concatenate((spread_left.ravel(), spread_right.ravel()))),
        pairs=make.index(((((side * a + column_a) * b + column_b) * count + j) * n + inverse).ravel()),
        weights=None if (weights == 1).all() else make.work(weights),
    )


def make_blocks(circuit: Circuit, batches: Sequence[Sequence[Sequence[Wanted]]], make: Constants) -> Blocks:
    """The blocks of these batches, each a list of sides, each a list of what is wanted."""
    places = Places(circuit, [job for sides in batches for side in sides for job, _ in side])
    made, wanted, entries, slopes = [], [], [], []
    before = 0
    for sides in batches:
        own = [one for side in sides for one in side]
        left, right = _halves(places, [job for job, _ in own])
        made.append(_batch(left, right, len(sides), [gather for _, gather in own], make))
        slopes += _turned(left, right, before)
        before += len(own) * (1 + left.more) * (1 + right.more)
        wanted.append((left.wanted, right.wanted))
        entries += left.others() + right.others()
    table = make_table(places.all, {d: [*each.values()] for d, each in places.qudits.items()}, make)
    turned = table.angles[len(table.radius) :]
    of_slopes, of_angles = np.array(slopes, np.int64).reshape(-1, 2).T
    return Blocks(
        table=table,
        batches=tuple(made),
        wanted=tuple(wanted),
        slopes=make.index(of_slopes),
        angles=cat((make.index(of_angles), turned), 0),
        entries=make.index(np.concatenate(entries)) if entries else None,
    )


def completed(gather: plan.Gather, n: int) -> plan.Gather:
    """A gather with n rows that takes every row once: what has coefficient 0 may come from anywhere."""
    m = len(gather[0])
    source, coefficient = np.full(n, -1), np.zeros(n, gather[1].dtype)
    source[:m], coefficient[:m] = np.where(gather[1] == 0, -1, gather[0]), gather[1]
    free, open_ = np.setdiff1d(np.arange(n), source), np.flatnonzero(source < 0)
    stay = np.intersect1d(free, open_)
    source[stay] = stay
    source[np.setdiff1d(open_, stay)] = np.setdiff1d(free, stay)
    return source, coefficient
