"""What each module of a model gets by a configuration, before anything in the model is changed."""

from collections.abc import Iterable
from functools import cache, partial
from typing import Any, NamedTuple

from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from qcircuit_peft.ansatz import Ansatz
from qcircuit_peft.factorizations import FACTORIZATIONS
from qcircuit_peft.factorizations.combined import Combined, part_of
from qcircuit_peft.factorizations.fused import Fused
from qcircuit_peft.factorizations.parts import Factorization, FrameOf, frames
from qcircuit_peft.frames import FRAMES
from qcircuit_peft.lie import told_surplus
from qcircuit_peft.tuner.config import CIRCUIT_FIELDS, QCircuitConfig
from qcircuit_peft.tuner.encoding import Encoding, encodings


class Planned(NamedTuple):
    """What a module gets: its factorization, and how the parameters of the parts are encoded."""

    factors: Factorization
    encodings: dict[str, Encoding]


class Plans:
    """What modules get by one configuration; what is alike is made once."""

    def __init__(self, config: QCircuitConfig) -> None:
        self.config = config
        self._frames: dict[int | None, FrameOf] = {}
        self._factors: dict[tuple[Any, ...], Factorization] = {}
        self._terms = [(term, Plans(term)) for term in config.term_configs()]

    def plan(self, name: str, n_in: int, n_out: int, experts: int | None = None) -> Planned:
        """What the module, or stack of ``experts``, of this name and these widths gets.

        Raises ValueError if it cannot have it.
        """
        if self._terms:
            return self._sum(name, n_in, n_out)
        config, of_module = self.config, partial(_of_module, name=name)
        r, alpha = of_module(config.rank_pattern, config.r), of_module(config.alpha_pattern, config.alpha)
        asked = n_in, n_out, r, alpha, of_module(config.intrinsic_rank_pattern, None), experts
        if asked not in self._factors:
            self._factors[asked] = self._make(name, *asked)
        factors = self._factors[asked]
        return Planned(factors, encodings(factors.parts, config.quantization))  # type: ignore[arg-type]

    def _sum(self, name: str, n_in: int, n_out: int) -> Planned:
        """The sum of what the terms have for a module."""
        found = {
            at: plans.plan(name, n_in, n_out)
            for at, (term, plans) in enumerate(self._terms)
            if check_target_module_exists(term, name)
        }
        if not found:
            raise ValueError(f"module {name!r} is targeted, but none of the terms of the adapter has an update for it")
        factors = Combined(tuple((at, planned.factors) for at, planned in found.items()))
        encodings = {part_of(part, at): own for at, planned in found.items() for part, own in planned.encodings.items()}
        return Planned(factors, encodings)

    def _make(
        self, name: str, n_in: int, n_out: int, r: int, alpha: float, intrinsic: int | None, experts: int | None
    ) -> Factorization:
        config = self.config
        if r > min(n_in, n_out):
            raise ValueError(
                f"r is at most the smaller width of a module, {min(n_in, n_out)} for {name!r} ({n_in} in, {n_out} "
                f"out), got {r}; name the module in exclude_modules, or give it a smaller r in rank_pattern"
            )
        make = FACTORIZATIONS[config.factorization]
        try:
            factors = make(n_out, n_in, r, self._frame_of(intrinsic), scaling=alpha / r, **config.factorization_options)
            if experts is not None:
                factors = Fused(factors, experts, shared=config.share is not None)
        except ValueError as error:
            raise ValueError(f"module {name!r}: {error}") from None
        if not config.train_angles and len(frames(factors)) == len(factors.parts):
            raise ValueError(f"module {name!r}: train_angles=False leaves nothing to train in {config.factorization!r}")
        return factors

    def _frame_of(self, intrinsic: int | None) -> FrameOf:
        """What makes the frames, those of one size once."""
        if intrinsic not in self._frames:
            config, kind = self.config, FRAMES[self.config.frame]
            known = [key for key in CIRCUIT_FIELDS if key in kind.options]
            options = {key: getattr(config, key) for key in known} | config.frame_options
            own = {} if intrinsic is None else {"intrinsic_rank": intrinsic}
            self._frames[intrinsic] = cache(partial(kind.spec, **options | own))
        return self._frames[intrinsic]


def _of_module(pattern: dict[str, Any], otherwise: Any, name: str) -> Any:
    return pattern.get(get_pattern_key(list(pattern), name), otherwise)


def surplus_of(ansatz: Ansatz, all_factors: Iterable[Factorization]) -> str | None:
    """What is to be said of the first circuit that has more angles than directions to move in, if one has."""
    found = {
        circuit for factors in all_factors for frame in frames(factors).values() for _, circuit, _ in frame.circuits()
    }
    return next(filter(None, (told_surplus(ansatz, circuit) for circuit in found)), None)


def kind_of(name: str) -> str:
    """The name of a module without the numbers of blocks: the same for, say, all query projections."""
    return ".".join(part for part in name.split(".") if not part.isdigit())


class Sharing:
    """Which layer holds a part that layers share: the first that asks for it."""

    def __init__(self, config: QCircuitConfig) -> None:
        self._share = None if config.share == "experts" else config.share
        self._terms = [Sharing(term) for term in config.term_configs()]
        self._holders: dict[tuple[Any, ...], Any] = {}

    def lenders(self, name: str, factors: Factorization, holder: Any) -> dict[str, Any]:
        """The holders of the parts of a module that others hold; for the rest ``holder`` is one from now on."""
        if isinstance(factors, Combined):
            each = ((at, self._terms[at].lenders(name, term, holder)) for at, term in factors.terms)
            return {part_of(part, at): other for at, lenders in each for part, other in lenders.items()}
        if self._share is None:
            return {}
        group = kind_of(name) if self._share == "kind" else ""
        shared = frames(factors)
        if not shared:
            raise ValueError(f"share={self._share!r}: module {name!r} has no circuit or other frame to share")
        keys = {part: (group, part, frame.family) for part, frame in shared.items()}
        found = {part: self._holders.setdefault(key, holder) for part, key in keys.items()}
        return {part: other for part, other in found.items() if other is not holder}
