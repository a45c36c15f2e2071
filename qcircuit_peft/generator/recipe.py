"""What a generator is made of: frozen, checked, and stored as plain data."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qcircuit_peft.ansatz import Ansatz, load
from qcircuit_peft.backends import find_backend
from qcircuit_peft.backends.noise import Noise
from qcircuit_peft.backends.shots import check_shots
from qcircuit_peft.checks import keys, one_of, whole_number
from qcircuit_peft.text import shown

# f(p) for the probabilities p of 2^n basis states; "paper" is the rescaling of the authors' code.
FEATURES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "paper": lambda p, n: (0.60 * torch.tanh(0.1 * 2 ** (n - 1) * p)) ** 0.15,
    "log": lambda p, n: torch.log(2**n * p),
    "identity": lambda p, n: 2**n * p,
}
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "gelu": torch.nn.functional.gelu,
}
CONTROLS = {
    "scalars": "a free scalar for each chunk, which starts at the circuit's feature",
    "zero": "no feature at all",
    "frozen": "the probabilities at the angles as they were drawn",
    "classical": "the mean of cos(w . bits) over as many weights w as the circuit has angles",
}
INITS = ("zero", "paper")
SCOPES = ("layer", "model")
WIDTHS = (32, 64, 128, 128, 64, 32, 32)  # of the authors' code; their Table 1 has one 32 less
MAX_LAYERS = 1000
MAX_WIDTHS = 100


@dataclass(frozen=True)
class Recipe:
    """How m numbers are generated: in chunks, one for each of the first basis states of a circuit.

    chunk_size: numbers for each basis state; ceil(log2(ceil(m / chunk_size))) qubits index the chunks.
    ansatz, layers: the circuit, as in ``load``, and its L. backend: as in ``probabilities``.
    features: f(p), a name in ``FEATURES``. widths, activation: hidden layers of the mapping network, and a name in
        ``ACTIVATIONS`` or, as published, None.
    control: a name in ``CONTROLS``: what takes the place of the circuit's feature; None leaves it.
    init: "zero" starts the network's last layer at 0, "paper" at nn.Linear's random values.
    seed: fixes all random values. shots, noise: how probabilities are estimated; None is exactly. Shots are drawn from
        torch's global random state, as dropout is, so that what restores it resumes a training exactly.

    Raises ValueError, in one sentence, for anything else.

    >>> Recipe(chunk_size=2048, layers=8).qubits(204_100)
    7
    """

    chunk_size: int = 1024
    layers: int = 8
    ansatz: str | Path | Mapping[str, Any] | Ansatz = "ry_cx"
    features: str = "paper"
    widths: tuple[int, ...] = WIDTHS
    activation: str | None = None
    control: str | None = None
    init: str = "zero"
    seed: int = 0
    backend: str = "native"
    shots: int | None = None
    noise: Noise | Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        whole_number("chunk_size", self.chunk_size, 1)
        whole_number("layers", self.layers, 1, MAX_LAYERS)
        whole_number("seed", self.seed, 0, (1 << 63) - 1)
        if not isinstance(self.widths, list | tuple) or len(self.widths) > MAX_WIDTHS:
            found = f"{len(self.widths):,} entries" if isinstance(self.widths, list | tuple) else shown(self.widths)
            raise ValueError(f"widths is a list of at most {MAX_WIDTHS} whole numbers, got {found}")
        for width in self.widths:
            whole_number("a width", width, 1)
        object.__setattr__(self, "widths", tuple(self.widths))
        object.__setattr__(self, "ansatz", load(self.ansatz))
        tables = {"features": FEATURES, "activation": ACTIVATIONS, "control": CONTROLS, "init": INITS}
        for name, allowed in tables.items():
            if getattr(self, name) is not None or name in ("features", "init"):
                one_of(name, getattr(self, name), allowed)
        find_backend(self.backend)
        if self.shots is not None:
            check_shots(self.shots, None)
        if isinstance(self.noise, Mapping):
            known = [f.name for f in fields(Noise)]
            keys("noise", self.noise, known)
            object.__setattr__(self, "noise", Noise(**self.noise))
        if self.control in ("scalars", "zero", "classical") and (self.shots is not None or self.noise is not None):
            raise ValueError(f"control={self.control!r} has no circuit, to which shots or noise could apply")
        if self.noise is not None and not isinstance(self.noise, Noise):
            raise ValueError(f"noise is a Noise or a table of its rates, got {shown(self.noise)}")

    def chunks(self, m: int) -> int:
        """The number of chunks that m numbers are cut into."""
        return -(-m // self.chunk_size)

    def qubits(self, m: int) -> int:
        """The number of qubits whose basis states index the chunks of m numbers; at least 1."""
        return max(1, (self.chunks(m) - 1).bit_length())

    @property
    def is_random(self) -> bool:
        """Whether every generation draws anew."""
        return self.shots is not None and self.control in (None, "frozen")

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain data, with the whole ansatz."""
        ansatz, noise = load(self.ansatz).to_dict(), None if self.noise is None else asdict(self.noise)  # type: ignore[call-overload]
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**plain, "ansatz": ansatz, "widths": list(self.widths), "noise": noise}
