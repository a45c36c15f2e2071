"""The configuration of a generated adapter, and how it is stored in adapter_config.json."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar

from peft import MODEL_TYPE_TO_PEFT_MODEL_MAPPING, PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import PeftType

from qcircuit_peft.ansatz import Ansatz
from qcircuit_peft.backends.noise import Noise
from qcircuit_peft.checks import boolean, is_number, is_whole, keys, one_of, version
from qcircuit_peft.generator.recipe import SCOPES, Recipe
from qcircuit_peft.generator.targets import MARKS, SAVED, check_layout
from qcircuit_peft.text import shown
from qcircuit_peft.tuner.config import QCircuitConfig, read_config, write_config
from qcircuit_peft.tuner.meaning import INCIDENTAL, check_same, meaning

VERSION = 1
_RECIPE = tuple(f.name for f in fields(Recipe))
_LAYOUT = ("parameters", "digest", "start")
_MAX_SIZE = 1 << 16  # of a rank or another size of the base method: it is built before it can be counted
_INIT_OPTIONS = ("init_weights", "init_lora_weights", "init_ia3_weights")
_OF_BASE = ("target_modules", "exclude_modules")
_INITS = (True, False, "gaussian", "orthogonal", "mica")  # of LoRA; all others change the model or read data


def _unordered(names: Any) -> Any:
    return names if isinstance(names, str) else set(names)


class _OfBase:
    """A field that is the base method's: read there, and written to a copy of it."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, config: Any, owner: type | None = None) -> Any:
        return None if config is None else getattr(config.base, self.name, None)

    def __set__(self, config: Any, value: Any) -> None:
        is_made = "layout" in vars(config)
        if value is None and not is_made:
            return  # it is not given
        config.base = _as_base(config.base)
        if not hasattr(config.base, self.name):
            raise ValueError(
                f"{self.name} needs a base with such an option, but {config.base.peft_type.value} has none"
            )
        known = getattr(config.base, self.name)
        if not is_made and known is not None and _unordered(known) != _unordered(value):
            raise ValueError(
                f"{self.name} is {shown(value)}, but base has {shown(known)}; give it once, and None here with "
                "dataclasses.replace and another base"
            )
        config.base = replace(config.base, **{self.name: value})


@dataclass
class QPAConfig(PeftConfig):
    """What `get_peft_model` needs to generate the trainable parameters of a PEFT method by a circuit.

    base: the configuration of the method: LoRA, DoRA, VeRA, prefix tuning, ... or ``QCircuitConfig``.
    scope: "layer", a generator for each adapted layer, as published; or "model", one for all of them.
    chunk_size, layers, ansatz, features, widths, activation, control, init, seed, backend, shots, noise: the generator,
        as in ``Recipe``. With init="zero" the method starts where it starts by itself, and what is generated is added
        to its own initial values, which ``seed`` fixes. With "paper" there is nothing but what is generated, so that a
        method that is the identity at the start is so no more.
    init_weights: False has the base method start at random values that change the model, by its own option of that
        name, ``init_lora_weights`` or ``init_ia3_weights``: for tests, as PEFT's own.
    target_modules, exclude_modules: those of ``base``, for which they may be given here, too.
    generator: the stored form of all that, as found in adapter_config.json; it replaces those fields.

    Source: Liu et al., Quantum Parameter Adaptation, ICLR 2025, arXiv 2410.09846. Raises ValueError, in one sentence,
    for anything else.

    >>> from peft import LoraConfig
    >>> QPAConfig(base=LoraConfig(r=4, target_modules=["lm_head"]), chunk_size=2048, layers=8).recipe().qubits(204_100)
    7
    """

    base: Any = None
    scope: str = "layer"
    chunk_size: int = Recipe.chunk_size
    layers: int = Recipe.layers
    ansatz: str | Path | dict[str, Any] | Ansatz = "ry_cx"
    features: str = Recipe.features
    widths: tuple[int, ...] | list[int] = Recipe.widths
    activation: str | None = Recipe.activation
    control: str | None = Recipe.control
    init: str = Recipe.init
    seed: int = Recipe.seed
    backend: str = Recipe.backend
    shots: int | None = Recipe.shots
    noise: Noise | dict[str, float] | None = None
    generator: dict[str, Any] | None = None
    init_weights: bool = True
    library: str | None = field(default=None, compare=False)  # what a file says of who wrote it; it changes nothing
    target_modules: _OfBase = _OfBase()
    exclude_modules: _OfBase = _OfBase()

    incidental: ClassVar[set[str]] = {*INCIDENTAL, "backend", "layout"}  # layouts are compared on their own

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.QPA  # type: ignore[attr-defined]
        self.layout: dict[str, Any] | None = None  # what the adapter was made for, once it is in a model
        if self.generator is not None:
            self._restore(self.generator)
            self.generator = None
        self.base = _as_base(self.base)
        self.task_type = self.task_type or self.base.task_type
        if self.base.is_prompt_learning:
            one_of("the task_type of a prompt method", self.task_type, MODEL_TYPE_TO_PEFT_MODEL_MAPPING)
        one_of("scope", self.scope, SCOPES)
        if not boolean("init_weights", self.init_weights) and not self._init_options():
            raise ValueError(f"init_weights=False needs a base with such an option, but {self.base.peft_type} has none")
        recipe = self.recipe()
        self.ansatz, self.noise, self.widths = recipe.ansatz, recipe.noise, recipe.widths  # type: ignore[assignment]

    def recipe(self) -> Recipe:
        """How a generator is made; raises ValueError if it cannot be."""
        return Recipe(**{name: getattr(self, name) for name in _RECIPE})

    def _restore(self, stored: object) -> None:
        names = ("version", "scope", "layout", *_RECIPE)
        if not isinstance(stored, dict) or set(stored) != set(names):
            raise ValueError(f"the key 'generator' of an adapter configuration is a table of {', '.join(names)}")
        version("the generator", stored["version"], VERSION)
        layout = stored["layout"]
        if layout is not None and not _is_layout(layout):
            raise ValueError(f"the generator's layout is a table of {', '.join(_LAYOUT)}, got another")
        self.layout = layout
        for key in ("scope", *_RECIPE):
            setattr(self, key, stored[key])

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain data: that of the base method, and all about the generator under one key."""
        own = {"base", "scope", "generator", *_OF_BASE, *_RECIPE}
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in own}
        generator = {"version": VERSION, "scope": self.scope, "layout": self.layout, **self.recipe().to_dict()}
        return {**plain, "base": _plain(self.base.to_dict()), "generator": generator}

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write adapter_config.json."""
        data = self.to_dict()
        if (auto_mapping := kwargs.pop("auto_mapping_dict", None)) is not None:
            data["auto_mapping"] = auto_mapping
        write_config(save_directory, data)

    @classmethod
    def from_json_file(cls, path_json_file: str, **kwargs: Any) -> dict[str, Any]:
        """The contents of an adapter_config.json; raises ValueError if it is too large or not a JSON table."""
        return read_config(path_json_file)

    @classmethod
    def check_kwargs(cls, **kwargs: Any) -> dict[str, Any]:
        """Refuse stored keys that this class does not have: PEFT would drop them with a warning."""
        known = [f.name for f in fields(cls) if f.name not in _OF_BASE]
        keys("adapter configuration", kwargs, known, needed=["base", "generator"])
        return kwargs

    def check_takes(self, stored: "QPAConfig", adapter: str) -> None:
        """Raise ValueError, naming a field, if the numbers of a stored adapter mean something else in this one."""
        mine, theirs = (meaning(config.to_dict(), self.incidental) for config in (self, stored))
        check_same(adapter, mine, theirs)
        if isinstance(self.base, QCircuitConfig):
            self.base.check_takes(stored.base, adapter)
        if self.layout is not None and stored.layout is not None:
            check_layout(self.layout, stored.layout, self.init == "zero")

    def base_config(self) -> PeftConfig:
        """A copy of the base method's configuration that PEFT may change, with everything trainable."""
        config = copy.deepcopy(self.base)
        config.inference_mode, config.task_type = False, self.task_type
        for name in () if self.init_weights else self._init_options():
            setattr(config, name, False)
        return config

    def _init_options(self) -> list[str]:
        return [name for name in _INIT_OPTIONS if hasattr(self.base, name) and not self.base.is_prompt_learning]


def _is_layout(stored: object) -> bool:
    """Whether it is a count, a digest, and some initial values, or None or the word that all of them are saved."""
    if not isinstance(stored, dict) or set(stored) != set(_LAYOUT):
        return False
    parameters, digest, start = (stored[key] for key in _LAYOUT)
    marks = isinstance(start, list) and len(start) <= MARKS and all(is_number(mark) for mark in start)
    return is_whole(parameters, 0) and isinstance(digest, str) and (start in (None, SAVED) or marks)


def _plain(value: Any) -> Any:
    """Sets as sorted lists, also inside tables."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return sorted(value) if isinstance(value, set) else value


def _as_base(base: Any) -> Any:
    """The configuration of a base method, which may be stored; raises ValueError if it is none."""
    if isinstance(base, Mapping):
        kind = base.get("peft_type")
        one_of("the peft_type of base", kind, [str(known.value) for known in PEFT_TYPE_TO_CONFIG_MAPPING])
        try:
            base = PeftConfig.from_peft_type(**base)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"base is not a configuration of {kind}: {error}") from None
    _check_base(base)
    return base


def _check_base(base: Any) -> None:
    """Raise ValueError unless it is a method whose adapters PEFT puts into a model, or before its inputs."""
    kind = getattr(base, "peft_type", None)
    if PeftConfig not in type(base).__mro__ or kind is None:
        raise ValueError(f"base is the configuration of a PEFT method, such as LoraConfig(...), got {shown(base)}")
    if kind == "QPA":
        raise ValueError("base is a method whose parameters are generated, but QPA's are those of a generator itself")
    if not base.is_prompt_learning and not issubclass(PEFT_TYPE_TO_TUNER_MAPPING[kind], BaseTuner):
        raise ValueError(f"base is a method on PEFT's BaseTuner or a prompt method, got {kind.value}")
    if getattr(base, "kasa_config", None) is not None:
        raise ValueError("base has a kasa_config, which would change the model's own weights for good")
    init = getattr(base, "init_lora_weights", True)
    if init not in _INITS:
        raise ValueError(
            f"base has init_lora_weights={init!r}, which changes the model's own weights for good or needs data; "
            f"it is one of {', '.join(map(repr, _INITS))}"
        )
    for name, value in vars(base).items():
        several = value.values() if isinstance(value, dict) else [value]
        largest = max((v for v in several if isinstance(v, int)), default=0)
        if largest > _MAX_SIZE and not any(word in name for word in ("seed", "key", "step")):
            raise ValueError(f"base has {name}={shown(largest)}, but a size is at most {_MAX_SIZE}")
    if getattr(base, "bias", "none") != "none":
        raise ValueError(f"base has bias={base.bias!r}, but biases of the model itself are not generated; use 'none'")
