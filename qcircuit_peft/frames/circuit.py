"""Q_P of Quantum-PEFT: the first K columns of a parameterized circuit, at any width N."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from jaxtyping import Float
from torch import Generator, Tensor

from qcircuit_peft import backends
from qcircuit_peft.ansatz import Ansatz, Step, adapter_gates, load, wire_dims
from qcircuit_peft.checks import whole_number
from qcircuit_peft.circuit import Circuit
from qcircuit_peft.frames import shannon
from qcircuit_peft.frames.kind import check_count, draw_angles
from qcircuit_peft.gates import GATES

WIDTHS = ("auto", "qudit", "shannon")
MAX_LAYERS = 4096
_MAX_ANGLES = 1 << 24
_FEW = 4  # "auto" never minds fewer parameters than this many times the width


def check_real(ansatz: Ansatz) -> None:
    """Raise ValueError if a gate of the ansatz is complex: a weight update is real, so its circuit has to be."""
    names = sorted(gate for gate in ansatz.gates if not GATES[gate].real)
    if names:
        real = ", ".join(name for name, gate in GATES.items() if gate.real)
        raise ValueError(
            f"an adapter needs a real circuit, but ansatz {ansatz.name!r} has the complex gates {', '.join(names)}; "
            f"real gates: {real}"
        )


@lru_cache(maxsize=4096)
def _qudit_circuit(n: int, ansatz: Ansatz, layers: int) -> Circuit:
    return ansatz.circuit(dim=n, layers=layers, max_gates=adapter_gates())


@lru_cache(maxsize=4096)
def qudit_parameters(n: int, ansatz: Ansatz, layers: int) -> int | None:
    """The number of angles on wires whose dimensions multiply to ``n``; None if the ansatz has no such circuit.

    >>> from qcircuit_peft import load
    >>> [qudit_parameters(n, load("simplified_two_design"), 1) for n in (768, 97, 1)]
    [29, 4656, None]
    """
    if n < 2:
        return None
    if ansatz.fixed is not None:
        return ansatz.circuit(dim=n, layers=layers).n_angles
    dims = wire_dims(n)
    ansatz.check_gates(len(dims), layers, adapter_gates())
    total = 0
    parts = ((ansatz.first, 1), (ansatz.layer, layers), (ansatz.last, 1))
    for op, times in ((op, times) for steps, times in parts if times for step in steps for op in step.ops(len(dims))):
        gate, on = GATES[op.gate], tuple(dims[w] for w in op.wires)
        if gate.qudit_matrix is None and any(d != 2 for d in on):
            return None
        total += times * gate.n_angles(on)
    return total


def choose_width(n: int, k: int, ansatz: Ansatz, layers: int) -> str:
    """The way with fewer parameters, "qudit" or "shannon", to make ``k`` columns of width ``n``.

    An odd part of several primes or a small one favours "qudit" (768: 29 against 350 at L = 1), a large prime
    "shannon" (97: 4656 against 119). Raises ValueError if even the smaller number, at no more than one layer (depth
    is the user's own wish), is above the n k entries of the plain factor that LoRA would train, and above 4 n: then
    the circuit saves nothing. A larger k lifts that, since the parameters do not grow with k.
    """

    if ansatz.fixed is not None:
        return "qudit"

    def counts(layers: int) -> dict[str, int]:
        found = {
            "qudit": qudit_parameters(n, ansatz, layers),
            "shannon": shannon.n_parameters(n, ansatz, layers),
        }
        return {way: count for way, count in found.items() if count is not None}

    shallow = counts(min(layers, 1))
    if min(shallow.values()) > max(_FEW, k) * n:
        told = " and ".join(f"{count} ({way})" for way, count in shallow.items())
        raise ValueError(
            f"width {n} does not suit ansatz {ansatz.name!r}: {k} columns would take {told} parameters at one layer, "
            f"more than {max(_FEW, k) * n} plain numbers; take a larger r, another module, or name the width"
        )
    found = counts(layers)
    return min(found, key=lambda way: found[way])


@dataclass(frozen=True)
class CircuitFrame:
    """The first ``k`` columns of a real circuit of width ``n``: an orthonormal (n, k) matrix.

    ``ansatz`` is what ``load`` takes: a name, a path, plain data, a ``Circuit`` of this width or an ``Ansatz``, as
    which it is kept. ``width`` says how an n that is not a power of two is reached: "qudit" puts its odd primes on
    wires of their own, "shannon" is the paper's cosine-sine recursion, "auto" becomes the one with fewer parameters
    (``choose_width``), "qudit" for a ``Circuit``.
    ``splits``, for "shannon" only, maps widths N of the recursion to their larger part N1, such as {768: 384}.
    Raises ValueError for a complex ansatz, an unknown width or backend, k outside 1..n, splits that do not fit, or a
    width that does not suit the ansatz or the backend.
    Source: Quantum-PEFT (arXiv 2503.05431), Eqs. (2) and (4); the wires of other dimensions are ours.

    >>> import torch
    >>> frame = CircuitFrame(768, 8)
    >>> frame.width, frame.n_parameters
    ('qudit', 29)
    >>> frame.columns(torch.zeros(24, 29)).shape
    torch.Size([24, 768, 8])
    """

    n: int
    k: int
    ansatz: Any = "simplified_two_design"
    layers: int = 1
    width: str = "auto"
    backend: str = "native"
    splits: Any = ()

    def __post_init__(self) -> None:
        whole_number("frame: n", self.n, 1)
        whole_number("frame: k", self.k, 1, self.n)
        whole_number("frame: layers", self.layers, 0, MAX_LAYERS)
        object.__setattr__(self, "ansatz", load(self.ansatz))
        if self.width not in WIDTHS:
            raise ValueError(f"frame: width is one of {', '.join(WIDTHS)}, got {self.width!r}")
        backend = backends.find_backend(self.backend)
        check_real(self.ansatz)
        backends.check_gates(self.ansatz.gates, backend)
        if self.width == "auto":
            object.__setattr__(self, "width", choose_width(self.n, self.k, self.ansatz, self.layers))
        if self.width == "shannon":
            object.__setattr__(self, "splits", shannon.read_splits(self.n, self.splits))
        elif self.splits:
            raise ValueError(f"frame: splits are for width='shannon', got {self.splits!r} with width={self.width!r}")
        else:
            count = qudit_parameters(self.n, self.ansatz, self.layers)
            if count is None:
                raise ValueError(
                    f"ansatz {self.ansatz.name!r} has no circuit of width {self.n}; width='shannon' uses qubits only"
                )
            if count > _MAX_ANGLES:
                raise ValueError(
                    f"a frame has at most {_MAX_ANGLES} angles, but width {self.n} on qudit wires takes {count}; "
                    f"width='shannon' takes {shannon.n_parameters(self.n, self.ansatz, self.layers)}"
                )
            backends.check_wires(self._circuit.dims, backend)

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[Any, ...]:  # without what is cached: a hash is not the same in another process
        return CircuitFrame, (self.n, self.k, self.ansatz, self.layers, self.width, self.backend, self.splits)

    def __deepcopy__(self, memo: dict[int, Any]) -> "CircuitFrame":
        return self

    @cached_property
    def _hash(self) -> int:
        return hash((self.n, self.k, self.ansatz, self.layers, self.width, self.backend, self.splits))

    @cached_property
    def _recursion(self) -> shannon.Recursion:
        return shannon.Recursion(self.ansatz, self.layers, self.splits, self.backend)

    @cached_property
    def _circuit(self) -> Circuit:
        return _qudit_circuit(self.n, self.ansatz, self.layers)

    @property
    def n_parameters(self) -> int:
        """The number of parameters, all angles in radians; it does not depend on ``k``."""
        if self.width == "shannon":
            return self._recursion.n_parameters(self.n)
        return self._circuit.n_angles

    @property
    def groups(self) -> tuple[slice, ...]:
        """The repeated layers of every circuit, in time order; first and last gates and Shannon's angles are in none.

        At zero angles the rotations of a layer are identities, its other gates stay.
        """
        found = []
        for _, circuit, where in self.circuits():
            start = where.start + _angles(self.ansatz.first, circuit)
            if size := _angles(self.ansatz.layer, circuit):
                found += [slice(start + index * size, start + (index + 1) * size) for index in range(self.layers)]
        return tuple(found)

    @cached_property
    def family(self) -> "CircuitFrame":
        """The same for all frames that can be generated in one call: those that differ in ``k`` only."""
        return _family(self.n, self.ansatz, self.layers, self.width, self.backend, self.splits)

    def initial(self, init: str = "uniform", generator: Generator | None = None) -> Float[Tensor, "P"]:
        """Fresh angles in radians: "uniform" in [0, 2 pi), standard "normal" or "zeros"."""
        return draw_angles(init, self.n_parameters, generator)

    def columns(self, angles: Float[Tensor, "*batch P"]) -> Float[Tensor, "*batch n k"]:
        """The frame of each row of angles (radians), orthonormal; raises ValueError for a wrong number of angles."""
        check_count(angles, self.n_parameters)
        if self.width == "shannon":
            return self._recursion.columns(self.n, angles, self.k)
        return backends.columns(self._circuit, angles, self.k, backend=self.backend)

    def apply(self, angles: Float[Tensor, "*batch P"], x: Float[Tensor, "... n m"]) -> Float[Tensor, "... n m"]:
        """The whole orthogonal matrix, whose first ``k`` columns the frame is, on the columns of ``x``."""
        check_count(angles, self.n_parameters)
        if self.width == "shannon":
            return self._recursion.apply(self.n, angles, x)
        return backends.apply(self._circuit, angles, x, backend=self.backend)

    def flaw(self, angles: Float[Tensor, "P"]) -> None:
        """None: a circuit is orthogonal at any angles."""

    def circuits(self) -> Iterator[tuple[str, Circuit, slice]]:
        """The circuits of the frame: a name (empty if there is one only), the circuit, its part of the parameters."""
        if self.width == "shannon":
            yield from self._recursion.leaves(self.n)
        else:
            yield "", self._circuit, slice(0, self._circuit.n_angles)


def _angles(steps: tuple[Step, ...], circuit: Circuit) -> int:
    """How many angles steps take on the wires of a circuit."""
    ops = (op for step in steps for op in step.ops(len(circuit.dims)))
    return sum(GATES[op.gate].n_angles(tuple(circuit.dims[w] for w in op.wires)) for op in ops)


@lru_cache(maxsize=4096)
def _family(n: int, ansatz: Ansatz, layers: int, width: str, backend: str, splits: shannon.Splits) -> CircuitFrame:
    return CircuitFrame(n, 1, ansatz, layers, width, backend, splits)
