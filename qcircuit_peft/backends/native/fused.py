"""The first columns and their gradient on a GPU in a few launches: two kernels forward, three back, in Triton.

A circuit that is a short sum of Kronecker products over a cut of the wires (``prefix.py``) writes many numbers that are
made of few: N k of about sqrt(N) k a product. One kernel makes the two halves of every product, small enough for the
registers, one joins them and writes the result, at the speed of the memory. Backward, one makes the halves again, one
reads the gradient of the result and makes that of the halves, one goes back through the levels. Everything else is the
torch form's: other circuits, dtypes and devices, second derivatives, and the exponentials for wires of more levels.
"""

import os
import shutil
import sysconfig
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from itertools import product
from math import ceil, prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qcircuit_peft.backends.native import plan
from qcircuit_peft.backends.native.arrays import added, tensors
from qcircuit_peft.backends.native.matrices import Places, completed
from qcircuit_peft.backends.native.prefix import is_deep, split
from qcircuit_peft.backends.native.table import Table, Turn, make_table, turns_of
from qcircuit_peft.circuit import Circuit

DEVICES = {"cuda"}  # kinds on which the kernels run; "cpu" too while Triton interprets them, as in tests
CAPABILITY = (8, 0)  # the least of a GPU
_TERMS, _ROWS = 32, 256  # most products, and most rows of a side, that are made here
_LEVELS = 64  # most levels of a wire, whose matrix every number goes through
_OPS = 1024  # most gates, each of which is made anew for every one before it on the way back
_TILE = 1024  # numbers of a tile of a side
_LEFT, _RIGHT = 16, 256  # the tile of the result


@dataclass(frozen=True)
class Plan:
    """A circuit as the kernels read it. A level has at most one rotation a wire; sides 0 and 1 have ``wires`` places.

    ``strides``: (2, wires, 2), the stride and dimension of a wire. ``places``: (levels, 2, wires), the position of the
    rotation's angle, or of the matrix among the odd wires' entries, or -1 where nothing stands. ``turns``: (levels, 2,
    wires, 16), C0, C1, C2 and the scale of the angle. ``slots``: (levels, 2, wires), where the gradient of a rotation
    goes. ``paths``: (terms, levels), which permutation follows, or -1. ``gathers`` and ``weights``: (permutations, 2,
    2, rows), of a side and then of its adjoint.
    """

    k: int
    n_left: int
    k_left: int
    n_right: int
    k_right: int
    wires: int
    levels: int
    terms: int
    strides: Tensor
    places: Tensor
    turns: Tensor
    slots: Tensor
    paths: Tensor
    gathers: Tensor
    weights: Tensor
    positions: Tensor | None  # of the slots' angles, if they are not in the order of the angles themselves
    n_slots: int
    odd: Table | None  # makes the matrices of the wires of more than two levels
    skip: int  # entries of that table before theirs

    @property
    def sides(self) -> dict[str, int]:
        """The sizes of the halves."""
        return {name: getattr(self, name) for name in ("n_left", "k_left", "n_right", "k_right")}

    @property
    def tile(self) -> dict[str, Any]:
        """The tile of a side, and how many blocks of columns a side has."""
        rows = _power(max(self.n_left, self.n_right))
        cols = min(_power(max(self.k_left, self.k_right)), max(1, _TILE // rows))
        blocks = {"blocks_left": ceil(self.k_left / cols), "blocks_right": ceil(self.k_right / cols)}
        return blocks | {"WIRES": self.wires, "ODD": self.odd is not None, "ROWS": rows, "COLS": cols}

    @property
    def size(self) -> int:
        """The numbers of the two halves of a product."""
        return self.n_left * self.k_left + self.n_right * self.k_right


def _power(n: int) -> int:
    """The least power of two from n on."""
    return 1 << (n - 1).bit_length()


def serves(angles: Tensor, circuit: Circuit, k: int, *others: Tensor | None) -> bool:
    """Whether the kernels make k columns, and their gradient, of these tensors."""
    if angles.device.type not in DEVICES or angles.dtype != torch.float32 or not prod(angles.shape[:-1]):
        return False
    if not all(type(x) in (Tensor, nn.Parameter) for x in (angles, *others) if x is not None):
        return False
    return runs_on(angles.device) and _fits(circuit, k)


@lru_cache(maxsize=64)
def runs_on(device: torch.device) -> bool:
    """Whether Triton is there with the C compiler and Python's headers that it needs, and the device is one of its own.

    The environment variable ``QCIRCUIT_PEFT_TRITON=0``, read once, says no.
    """
    if os.environ.get("QCIRCUIT_PEFT_TRITON") == "0" or find_spec("triton") is None:
        return False
    if device.type == "cpu":
        return True
    if torch.version.hip is not None or torch.cuda.get_device_capability(device) < CAPABILITY:
        return False
    compilers = [os.environ["CC"]] if os.environ.get("CC") else ["gcc", "clang"]
    headers = Path(sysconfig.get_paths()["include"], "Python.h")
    return any(map(shutil.which, compilers)) and headers.is_file()


@lru_cache(maxsize=1024)
def _fits(circuit: Circuit, k: int) -> bool:
    """Whether the circuit is real, all of it a short sum of products, and its halves small."""
    if not circuit.is_real or len(circuit.ops) > _OPS or is_deep(circuit, k) or circuit.dim * k >= 1 << 31:
        return False
    if max(circuit.dims) > _LEVELS:
        return False
    (cut, done), levels = split(circuit, k), plan.levels(circuit)
    if max(prod(circuit.dims[:cut]), prod(circuit.dims[cut:])) > _ROWS:
        return False
    return prod(plan.n_terms(level.monomials, circuit.dims, cut, _TERMS) for level in levels[:done]) <= _TERMS


def make_plan(circuit: Circuit, k: int, device: torch.device) -> Plan:
    """What the kernels need to know of a circuit that ``serves`` lets through, on a device."""
    cut, done = split(circuit, k)
    dims, levels = circuit.dims, plan.levels(circuit)
    used = range(min(done + 1, len(levels)))
    sides = range(cut), range(cut, len(dims))
    n_left, n_right = prod(dims[:cut]), prod(dims[cut:])
    wires, rows = max(map(len, sides)), _power(max(n_left, n_right))
    make = tensors(torch.float32, True, device)
    places = Places(circuit, [(level, tuple(range(len(dims)))) for level in used])
    odd, skip = None, 0
    if places.qudits:
        odd = make_table(places.all[-1:], {d: [*each.values()] for d, each in places.qudits.items()}, make)
        skip = 4 * (1 + odd.length)

    # levels with at most one rotation a wire, each with the number of the level whose permutation follows it
    found: list[tuple[dict[int, Turn | int], int | None]] = []
    for level in used:
        own = {w: turns_of(levels[level].factors[w], "RY") for w in range(len(dims)) if dims[w] == 2}
        most = max((len(turns) for turns in own.values()), default=1)
        for r in range(most):
            here: dict[int, Turn | int] = {
                w: turns[r] for w, turns in own.items() if r < len(turns) and not _is_nothing(turns[r])
            }
            if r == 0:
                here |= {w: skip + places.start[level, w] - places.first for w, d in enumerate(dims) if d > 2}
            found.append((here, level if r == most - 1 else None))

    strides = np.ones((2, wires, 2), np.int64)
    at_place, slots = np.full((2, len(found), 2, wires), -1)
    turns = np.zeros((len(found), 2, wires, 16))
    positions: list[int] = []
    for side, own_wires in enumerate(sides):
        for i, w in enumerate(own_wires):
            strides[side, i] = prod(dims[w + 1 : own_wires.stop]), dims[w]
            for number, (here, _) in enumerate(found):
                match here.get(w):
                    case Turn() as turn:
                        at_place[number, side, i] = turn.angle
                        turns[number, side, i, :12] = np.real(turn.harmonics).ravel()
                        turns[number, side, i, 12] = turn.scale
                        if turn.scale:
                            slots[number, side, i] = len(positions)
                            positions.append(turn.angle)
                    case int(start):
                        at_place[number, side, i] = start
    in_order = odd is None and sorted(positions) == list(range(max(1, circuit.n_angles)))
    if in_order:  # every angle turns once: its gradient goes where it stands
        slots = np.where(slots < 0, -1, at_place)

    terms = [plan.halves(levels[level].monomials if level < done else (), dims, cut) for level in used]
    paths = np.array(list(product(*(range(len(of_level)) for of_level in terms))))
    numbers: dict[tuple[int, int], int] = {}
    pairs = []
    for level, of_level in enumerate(terms):
        for term, pair in enumerate(of_level):
            if not all(_is_identity(gather) for gather in pair):
                numbers[level, term] = len(pairs)
                pairs.append([_both_ways(gather, rows) for gather in pair])
    chosen = [[-1 if level is None else numbers.get((level, path[level]), -1) for _, level in found] for path in paths]
    made = np.array(pairs or [[_both_ways(plan.identity(rows), rows)] * 2], np.float64)
    return Plan(
        k=k,
        n_left=n_left,
        k_left=ceil(k / n_right),
        n_right=n_right,
        k_right=min(k, n_right),
        wires=wires,
        levels=len(found),
        terms=len(paths),
        strides=make.index(strides),
        places=make.index(at_place),
        turns=make.real(turns),
        slots=make.index(slots),
        paths=make.index(np.array(chosen)),
        gathers=make.index(made[:, :, :, 0].astype(np.int64)),
        weights=make.real(made[:, :, :, 1]),
        positions=None if in_order else make.index(np.array(positions, np.int64)),
        n_slots=len(positions),
        odd=odd,
        skip=skip,
    )


def _is_nothing(turn: Turn) -> bool:
    """Whether it is the identity."""
    return not turn.scale and np.array_equal(turn.harmonics[0] + turn.harmonics[1], np.eye(2))


def _is_identity(gather: plan.Gather) -> bool:
    return np.array_equal(gather[0], np.arange(len(gather[0]))) and bool((gather[1] == 1).all())


def _both_ways(gather: plan.Gather, rows: int) -> NDArray:
    """(2, 2, rows): a gather, filled up, and its adjoint, each as positions and weights."""
    index, weight = completed(gather, rows)
    back = np.argsort(index)
    return np.array([[index, np.real(weight)], [back, np.real(weight)[back]]])


def columns(own: Plan, rows: Tensor) -> Tensor:
    """(F, n_angles) -> (F, N, k), the first columns."""
    halves, _, _ = _halves(own, rows)
    out = rows.new_empty(len(rows), own.n_left * own.n_right, own.k)
    left, right = own.n_left * own.k_left, own.n_right * own.k_right
    tiles = ceil(left / _LEFT) * ceil(right / _RIGHT)
    sizes = {"size": out[0].numel(), "terms": own.terms, "k": own.k, "ONE": own.k_left == 1}
    _run("join", len(rows) * tiles, halves, out, **sizes, **own.sides, LEFT=_LEFT, RIGHT=_RIGHT)
    return out


def columns_backward(own: Plan, rows: Tensor, g: Tensor) -> Tensor:
    """The gradient of the angles (F, n_angles) from that of the columns (F, N, k)."""
    halves, odd, skews = _halves(own, rows)
    f, left, right = len(rows), own.n_left * own.k_left, own.n_right * own.k_right
    together = min(_power(own.terms), 4)
    strip = _RIGHT // max(1, together // 2)
    strips = ceil(right / strip)
    of_halves = rows.new_empty(f, own.terms * (strips * left + right))
    sizes = {"size": g[0].numel(), "terms": own.terms, "k": own.k, "ONE": own.k_left == 1}
    tile = {"TERMS": together, "LEFT": _LEFT, "RIGHT": strip}
    _run("part", f * strips * ceil(own.terms / together), g, halves, of_halves, **sizes, **own.sides, **tile)

    blocks = own.tile["blocks_left"], own.tile["blocks_right"]
    programs = own.terms * max(blocks)
    of_angles = rows.new_zeros(f, programs, own.n_slots)
    of_odd = rows.new_zeros(f, programs, odd.shape[1])
    sizes = {"n_angles": rows.shape[1], "n_odd": odd.shape[1], "n_slots": own.n_slots, "strips": strips}
    given = (rows, odd, *_constants(own), own.slots, of_halves, of_angles, of_odd)
    sizes |= {"levels": own.levels, "terms": own.terms}
    _run("slopes", f * own.terms * sum(blocks), *given, **sizes, **own.sides, **own.tile)
    found = of_angles.sum(1)
    if own.positions is None:
        return found
    found = added(found, own.positions, rows.shape[1])
    if own.odd is None:
        return found
    assert skews is not None
    turned = own.odd.angles[len(own.odd.radius) :]
    return found + added(own.odd.pull(skews, of_odd.sum(1)[:, own.skip :]).to(rows.dtype), turned, rows.shape[1])


def _constants(own: Plan) -> tuple[Tensor, ...]:
    return own.strides, own.places, own.turns, own.paths, own.gathers, own.weights


def _halves(own: Plan, rows: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """The halves (F, terms, size), the matrices of the odd wires, and what these are the exponentials of."""
    odd, skews = rows.new_empty(len(rows), 0), None
    if own.odd is not None:
        turns, skews = own.odd.turns(rows)
        odd = own.odd(turns, skews).contiguous()
    out = rows.new_empty(len(rows), own.terms, own.size)
    sizes = {"n_angles": rows.shape[1], "n_odd": odd.shape[1], "levels": own.levels, "terms": own.terms}
    programs = len(rows) * own.terms * (own.tile["blocks_left"] + own.tile["blocks_right"])
    _run("halves", programs, rows, odd, *_constants(own), out, **sizes, **own.sides, **own.tile)
    return out, odd, skews


@lru_cache(maxsize=8)
def _kernel(name: str) -> Any:
    from qcircuit_peft.backends.native import butterflies

    return getattr(butterflies, name)


def _run(name: str, programs: int, *tensors: Tensor, **sizes: Any) -> None:
    """Launch a kernel on the device of its tensors; a product and a sum may be fused, as torch's may."""
    with torch.cuda.device_of(tensors[0]):
        _kernel(name)[(programs,)](*tensors, **sizes, num_warps=4, enable_fp_fusion=True)
