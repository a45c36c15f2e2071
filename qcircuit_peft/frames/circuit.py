"""Q_P of Quantum-PEFT: the first K columns of a parameterized circuit, at any width N."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from qcircuit_peft import backends
from qcircuit_peft.ansatz import Ansatz, Step, adapter_gates, load, wire_dims
from qcircuit_peft.backends.estimation import SWITCH
from qcircuit_peft.checks import whole_number
from qcircuit_peft.circuit import Circuit
from qcircuit_peft.frames import shannon
from qcircuit_peft.frames.kind import check_count, draw_angles
from qcircuit_peft.gates import GATES

WIDTHS = ("auto", "qudit", "shannon")
MAX_LAYERS = 4096
_MAX_ANGLES = 1 << 24
_FEW = 4  # "auto" never minds fewer parameters than this many times the width


def is_real(ansatz: Ansatz) -> bool:
    """Whether no gate of an ansatz is complex."""
    return all(GATES[gate].real for gate in ansatz.gates)


def circuit_width(n: int, ansatz: Ansatz) -> int:
    """The width of the circuit behind a frame of ``n`` rows; 0 for a complex one where n is odd."""
    if is_real(ansatz):
        return n
    return 0 if n % 2 else n // 2


@lru_cache(maxsize=4096)
def _qudit_circuit(n: int, ansatz: Ansatz, layers: int) -> Circuit:
    return ansatz.circuit(dim=circuit_width(n, ansatz), layers=layers, max_gates=adapter_gates())


def _real_columns(u: Tensor, k: int) -> Tensor:
    """The first k columns of [[Re U, -Im U], [Im U, Re U]], of which (*batch, n / 2, min(k, n / 2)) are U's."""
    first = torch.cat([u.real, u.imag], -2)
    rest = k - u.shape[-1]
    return torch.cat([first, torch.cat([-u.imag, u.real], -2)[..., :rest]], -1) if rest else first


@lru_cache(maxsize=4096)
def qudit_parameters(n: int, ansatz: Ansatz, layers: int) -> int | None:
    """The number of angles on wires whose dimensions multiply to ``n``; None if the ansatz has no such circuit.

    A complex circuit is on wires whose dimensions multiply to n / 2.

    >>> from qcircuit_peft import load
    >>> [qudit_parameters(n, load("simplified_two_design"), 1) for n in (768, 97, 1)]
    [29, 4656, None]
    """
    n = circuit_width(n, ansatz)
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

    if ansatz.fixed is not None or not is_real(ansatz):
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
    """The first ``k`` columns of a circuit of width ``n``: an orthonormal (n, k) matrix.

    A weight update is real. So a circuit with complex gates has the width n / 2, and its matrix U stands for the real
    orthogonal [[Re U, -Im U], [Im U, Re U]]: the same numbers, exactly, in twice the width.
    ``ansatz`` is what ``load`` takes: a name, a path, plain data, a ``Circuit`` of this width or an ``Ansatz``, as
    which it is kept. ``width`` says how an n that is not a power of two is reached: "qudit" puts its odd primes on
    wires of their own, "shannon" is the paper's cosine-sine recursion, "auto" becomes the one with fewer parameters
    (``choose_width``), "qudit" for a ``Circuit``.
    ``splits``, for "shannon" only, maps widths N of the recursion to their larger part N1, such as {768: 384}.
    Raises ValueError for a complex ansatz where n is odd or the width "shannon", an unknown width or backend, k outside
    1..n, splits that do not fit, or a width that does not suit the ansatz or the backend.
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
        backends.check_gates(self.ansatz.gates, backend)
        if not is_real(self.ansatz) and (self.n % 2 or self.width == "shannon"):
            raise ValueError(
                f"ansatz {self.ansatz.name!r} is complex: it serves even widths on wires of its own (width='qudit'), "
                f"got width {self.n} with {self.width!r}"
            )
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
        if SWITCH.estimator is not None:
            self._check_estimated()
            return SWITCH.estimator(self._circuit, angles, self.k)
        if self.width == "shannon":
            return self._recursion.columns(self.n, angles, self.k)
        circuit = self._circuit
        made = backends.columns(circuit, angles, min(self.k, circuit.dim), backend=self.backend)
        if is_real(self.ansatz):
            return made
        if not made.is_complex():  # no layer, and so no gate that is
            made = torch.complex(made, torch.zeros_like(made))
        return _real_columns(made, self.k)

    def apply(self, angles: Float[Tensor, "*batch P"], x: Float[Tensor, "... n m"]) -> Float[Tensor, "... n m"]:
        """The whole orthogonal matrix, whose first ``k`` columns the frame is, on the columns of ``x``."""
        check_count(angles, self.n_parameters)
        if SWITCH.estimator is not None:
            raise ValueError(
                "hardware estimates columns of circuits, but here a circuit acts on what it is given; adapt with a "
                "factorization such as 'svd'"
            )
        if self.width == "shannon":
            return self._recursion.apply(self.n, angles, x)
        if is_real(self.ansatz):
            return backends.apply(self._circuit, angles, x, backend=self.backend)
        both = torch.complex(*x.unflatten(-2, (2, -1)).unbind(-3))
        made = backends.apply(self._circuit, angles, both, backend=self.backend)
        return torch.cat([made.real, made.imag], -2)

    def _check_estimated(self) -> None:
        """Raise ValueError if hardware cannot estimate the columns with their signs."""
        if self.width == "shannon" or not is_real(self.ansatz):
            made = "several circuits" if self.width == "shannon" else "a complex one"
            raise ValueError(
                f"hardware estimates the columns of one real circuit, but those of width {self.n} are of {made}; adapt "
                "with a real circuit and width='qudit'"
            )

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
