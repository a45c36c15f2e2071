"""The configuration of a circuit adapter, and how it is stored in adapter_config.json."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from peft import PeftConfig
from peft.utils import CONFIG_NAME, INCLUDE_LINEAR_LAYERS_SHORTHAND, PeftType

from qcircuit_peft import backends, checks, files
from qcircuit_peft.ansatz import Ansatz, load
from qcircuit_peft.checks import boolean, number, one_of, texts, whole_number
from qcircuit_peft.circuit import Circuit
from qcircuit_peft.factorizations import FACTORIZATIONS
from qcircuit_peft.frames import FRAMES, INITS
from qcircuit_peft.frames.circuit import MAX_LAYERS, WIDTHS
from qcircuit_peft.quantization import Quantization
from qcircuit_peft.text import shown
from qcircuit_peft.tuner.meaning import INCIDENTAL, WHICH, check_same, meaning
from qcircuit_peft.tuner.saving import LIBRARY, MAX_CONFIG, VERSION, settle

# Rank costs one number per layer, so it is not LoRA's small r; the update is scaled by alpha / r = 8.
DEFAULT_R = 16
DEFAULT_ALPHA = 128.0

MAX_REPLICATED = 4096  # layers that a model has by layer_replication

CIRCUIT_VERSION = 1
_CIRCUIT_KEYS = (
    *("ansatz", "layers", "width", "backend", "frame", "frame_options", "intrinsic_rank_pattern"),
    *("factorization", "factorization_options", "share", "init", "seed", "train_angles", "quantization"),
)
CIRCUIT_FIELDS = ("ansatz", "layers", "width", "backend")  # options of the frame "circuit"
TERM = ("r", "alpha", "rank_pattern", "alpha_pattern", "target_modules", "circuit")  # what a term says
_SHARE = ("experts", "kind", "shape")
_BIAS = ("none", "all", "qcircuit_only")


_OF_LORA = {
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "init_lora_weights": "init, for the angles, or init_weights=False",
    "use_rslora": "alpha: the scaling is alpha / r, so that alpha = c * r ** 0.5 is rank-stabilized",
}


@dataclass
class QCircuitConfig(PeftConfig):
    """What `get_peft_model` needs to adapt a model with parameterized quantum circuits.

    By default every adapted weight gets delta W = (alpha / r) U diag(lambda) V^T, where U and V are the first r columns
    of circuits.

    ansatz: a name in ``circuits/``, the path of a TOML file, plain data, an ``Ansatz`` or a
        ``Circuit``, for layers of its width only; read now, stored whole.
    layers: the number L of times the ansatz's layer is repeated. Adapting a model warns where a circuit has more
        angles than directions to move in, with the depth from which nothing is gained (``analysis.lie_dimension``).
    r, alpha, rank_pattern, alpha_pattern: rank and scaling, for all modules and by module name, as in LoRA. Unlike
        there, r costs one number per adapted module.
    dropout: probability of zeroing an input of the update while training.
    frame, factorization: names in ``FRAMES`` and ``FACTORIZATIONS``; ``frame_options`` and ``factorization_options``
        hold the options of each. ansatz, layers, width and backend are for frames of circuits, and may be among their
        ``frame_options`` too.
    intrinsic_rank_pattern: the frame's option ``intrinsic_rank`` by module name, for frames that have it.
    share: None, each module has circuits of its own; "kind", modules whose names differ only in the numbers of blocks,
        such as all query projections, share theirs, and each keeps its own lambda; "shape", all modules of equal width
        do; "experts", those experts do that are in one parameter. Shared parameters are stored, generated and saved
        once. The factorization has to have frames. "shared_core" is for sharing: left out, it has "kind".
    backend: as in ``columns``.
    width: "qudit", "shannon" or "auto": how widths that are not a power of two are reached (``CircuitFrame``).
    init: how the angles start: "uniform" in [0, 2 pi), "normal" or "zeros". lambda starts at 0.
    init_weights: False has lambda, and what else makes the update zero, start at random: for tests, as PEFT's own.
    seed: fixes the initial angles of every module whatever the global random state; None draws from that state.
    train_angles: False freezes the angles, so that only lambda is trained (the control experiment).
    quantization: a ``Quantization`` or its fields: parameters are used with few bits, in training too, and saved
        packed. Loaded again they are those that were used; the full-precision ones are kept only with packed=False.
    target_parameters: parameters by the ends of their names, as in LoRA: fused experts, such as
        ["experts.gate_up_proj", "experts.down_proj"], each expert with circuits of its own unless they ``share``, and
        other matrices. exclude_modules and layers_to_transform hold for them, too; target_modules may be [].
    target_modules, exclude_modules, layers_to_transform, layers_pattern, modules_to_save, bias, task_type: as in LoRA;
        bias is "none", "all" or "qcircuit_only".
    terms: the adapters whose weighted sum this one is, as ``add_weighted_adapter`` makes it: what of a configuration
        says what an update is, and on which modules. All else that is said of updates here does not hold then.
    library: what a file says of who wrote it; it changes nothing.
    trainable_token_indices: the rows of the input embedding, or of embeddings by name, that are trained as they are.
    layer_replication: ranges [start, end) of layers that the model has instead of its own, which share their weights
        where a layer comes twice; each has adapters of its own. Such a model is not merged.
    ensure_weight_tying: a head that has the weight of the input embedding stays tied to it where modules_to_save names
        one of both. Tied weights in target_modules are not adapted together.
    fan_in_fan_out: accepted for LoRA's sake; the layer's type decides.
    circuit: the stored form of the update, as found in adapter_config.json; it replaces the fields that it holds.

    Raises ValueError, in one sentence, for anything else.

    >>> config = QCircuitConfig(r=8, target_modules=["query", "value"])
    >>> config.to_dict()["circuit"]["ansatz"]["name"]
    'simplified_two_design'
    """

    ansatz: str | Path | dict[str, Any] | Ansatz | Circuit = "simplified_two_design"
    layers: int = 1
    r: int = DEFAULT_R
    alpha: int | float = DEFAULT_ALPHA
    dropout: int | float = 0.0
    frame: str = "circuit"
    frame_options: dict[str, Any] = field(default_factory=dict)
    intrinsic_rank_pattern: dict[str, int] = field(default_factory=dict)
    factorization: str = "svd"
    factorization_options: dict[str, Any] = field(default_factory=dict)
    share: str | None = None
    width: str = "auto"
    backend: str = "native"
    init: str = "uniform"
    init_weights: bool = True
    seed: int | None = None
    train_angles: bool = True
    quantization: Quantization | dict[str, Any] | None = None
    target_modules: str | list[str] | set[str] | None = None
    exclude_modules: str | list[str] | set[str] | None = None
    target_parameters: list[str] | None = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: str | list[str] | None = None
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, int | float] = field(default_factory=dict)
    modules_to_save: list[str] | None = None
    trainable_token_indices: list[int] | dict[str, list[int]] | None = None
    layer_replication: list[tuple[int, int]] | None = None
    ensure_weight_tying: bool = False
    bias: str = "none"
    fan_in_fan_out: bool = False
    terms: list[dict[str, Any]] | None = None
    library: str | None = field(default=None, compare=False)  # what a file says of who wrote it
    circuit: dict[str, Any] | None = None

    # How an adapter starts, is trained and computed: numbers that are loaded mean the same whatever these are.
    incidental: ClassVar[set[str]] = {
        *("backend", "fan_in_fan_out", "init", "init_weights", "seed", "train_angles"),
        *INCIDENTAL,
    }

    def __new__(cls, *args: Any, **kwargs: Any) -> "QCircuitConfig":
        """Refuse the names of LoRA's options in a sentence that has ours."""
        for name in kwargs:
            if name in _OF_LORA:
                raise ValueError(f"{name} is an option of LoraConfig; of QCircuitConfig it is {_OF_LORA[name]}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.QCIRCUIT  # type: ignore[attr-defined]
        stored, self.circuit = self.circuit, None
        if stored is not None:
            self._restore(stored)
        for name, table in (("frame", FRAMES), ("factorization", FACTORIZATIONS)):
            one_of(name, getattr(self, name), table)
        if stored is None and self.share is None:
            self.share = FACTORIZATIONS[self.factorization].share
        self._take_circuit_options()
        self.ansatz = load(self.ansatz)
        whole_number("layers", self.layers, 0, MAX_LAYERS)
        whole_number("r", self.r, 1)
        number("alpha", self.alpha)
        number("dropout", self.dropout, 0, below=1)
        frame_options = set(FRAMES[self.frame].options) - set(CIRCUIT_FIELDS)
        checks.options("frame_options", self.frame, self.frame_options, frame_options)
        options = set(FACTORIZATIONS[self.factorization].options)
        checks.options("factorization_options", self.factorization, self.factorization_options, options)
        if self.intrinsic_rank_pattern and "intrinsic_rank" not in frame_options:
            having = [name for name, kind in FRAMES.items() if "intrinsic_rank" in kind.options]
            raise ValueError(
                f"intrinsic_rank_pattern is for the frames {', '.join(having)}, but the frame is {self.frame!r}"
            )
        if self.share is not None:
            one_of("share", self.share, _SHARE)
        if backends.find_backend(checks.text("backend", self.backend)).measures:
            raise ValueError(
                f"backend {shown(self.backend)} measures, which no adapter is made of; "
                "analysis.evaluate_under_noise(model, backend=...) runs a trained one on it"
            )
        one_of("width", self.width, WIDTHS)
        one_of("init", self.init, INITS)
        one_of("bias", self.bias, _BIAS)
        if self.seed is not None:
            whole_number("seed", self.seed, 0)
        for name in ("train_angles", "init_weights", "ensure_weight_tying"):
            boolean(name, getattr(self, name))
        if self.target_parameters and self.dropout:
            raise ValueError(
                "dropout is for inputs, of which target_parameters see none, so that it is 0 with them, "
                f"got {self.dropout}"
            )
        if self.quantization is not None:
            self.quantization = Quantization.from_dict(self.quantization)
        for name in ("rank_pattern", "intrinsic_rank_pattern", "alpha_pattern"):
            pattern = getattr(self, name) or {}
            if not isinstance(pattern, dict) or not all(isinstance(key, str) for key in pattern):
                raise ValueError(f"{name} maps names or patterns of modules to numbers, got {shown(pattern)}")
            for key, value in pattern.items():
                checks.pattern(name, key)
                here = f"{name}[{shown(key)}]"
                number(here, value) if name == "alpha_pattern" else whole_number(here, value, 1)
            setattr(self, name, pattern)
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            texts(name, value, single=True)
            if isinstance(value, str):
                checks.pattern(name, value)
            elif value is not None:
                setattr(self, name, set(value))
        if isinstance(self.layers_to_transform, range | tuple):
            self.layers_to_transform = list(self.layers_to_transform)
        if self.layers_to_transform is not None:
            several = (
                self.layers_to_transform if isinstance(self.layers_to_transform, list) else [self.layers_to_transform]
            )
            for index in several:
                whole_number("an entry of layers_to_transform", index, 0)
        for name in ("layers_pattern", "modules_to_save", "target_parameters"):
            texts(name, getattr(self, name), single=name == "layers_pattern")
        for value in [self.layers_pattern] if isinstance(self.layers_pattern, str) else self.layers_pattern or ():
            checks.pattern("layers_pattern", value)
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError(
                f"layers_pattern needs layers_to_transform, got layers_pattern={self.layers_pattern!r} alone"
            )
        for name in ("layers_to_transform", "layers_pattern"):
            if getattr(self, name) is not None and isinstance(self.target_modules, str):
                raise ValueError(f"{name} works with a list of target_modules, got the pattern {self.target_modules!r}")

        self._check_tokens_and_layers()
        if self.terms is not None:
            if not isinstance(self.terms, list) or not self.terms:
                raise ValueError(f"terms is a list of tables, got {shown(self.terms)}")
            self.term_configs()

    def _check_tokens_and_layers(self) -> None:
        tokens = self.trainable_token_indices
        if isinstance(tokens, dict):
            texts("the names in trainable_token_indices", list(tokens))
        elif tokens is not None:
            tokens = {"": tokens}
        for indices in (tokens or {}).values():
            checks.whole_numbers("trainable_token_indices", indices, 0)
        if self.layer_replication is None:
            return
        ranges = self.layer_replication
        if not isinstance(ranges, list | tuple) or not ranges:
            raise ValueError(f"layer_replication is a list of ranges [start, end), got {shown(ranges)}")
        for found in ranges:
            start, end = checks.whole_numbers("a range of layer_replication", found, 0, least=2)[:2]
            if len(found) != 2 or start >= end:
                raise ValueError(f"a range of layer_replication is a start and an end above it, got {shown(found)}")
        self.layer_replication = [(start, end) for start, end in ranges]
        total = sum(end - start for start, end in ranges)
        whole_number("the number of layers of layer_replication", total, 1, MAX_REPLICATED)

    def term_configs(self) -> "list[QCircuitConfig]":
        """A configuration for each of ``terms``; raises ValueError for what is none."""
        for term in self.terms or ():
            checks.keys("a term of an adapter", term, TERM, needed=TERM)
            if term["circuit"] is None:
                raise ValueError("the circuit of a term of an adapter is a table, got None")
        return [QCircuitConfig(**term) for term in self.terms or ()]

    def _take_circuit_options(self) -> None:
        """Move ansatz, layers, width and backend from ``frame_options``, where they may be too, to their fields."""
        given = self.frame_options
        if not isinstance(given, dict):
            return  # refused below
        moved = [name for name in CIRCUIT_FIELDS if name in given and name in FRAMES[self.frame].options]
        for name in moved:
            old, new = getattr(self, name), given[name]
            if old not in (type(self).__dataclass_fields__[name].default, new):
                raise ValueError(f"{name} is given as {old!r}, and as {new!r} in frame_options; give it once")
            setattr(self, name, new)
        self.frame_options = {key: value for key, value in given.items() if key not in moved}

    def _restore(self, stored: object) -> None:
        if not isinstance(stored, dict):
            raise ValueError(f"the key 'circuit' of an adapter configuration is a table, got {shown(stored)}")
        checks.version("the adapter's circuit", stored.get("version"), CIRCUIT_VERSION)
        unknown = sorted(map(str, set(stored) - {"version", *_CIRCUIT_KEYS}))
        missing = [key for key in _CIRCUIT_KEYS if key not in stored]
        if unknown or missing:
            raise ValueError(
                f"the adapter's circuit has the keys version, {', '.join(_CIRCUIT_KEYS)}, but "
                + (f"{shown(unknown[0])} was found" if unknown else f"{missing[0]!r} is missing")
            )
        if not isinstance(stored["ansatz"], dict):
            raise ValueError(f"the adapter's circuit holds its ansatz as a table, got {shown(stored['ansatz'])}")
        for key in _CIRCUIT_KEYS:
            setattr(self, key, stored[key])

    def check_takes(self, stored: PeftConfig, adapter: str) -> None:
        """Raise ValueError, naming a field, if the numbers of a stored adapter mean something else in this one."""
        mine, theirs = self.to_dict(), stored.to_dict()
        incidental = self.incidental
        if self.share is not None and not FACTORIZATIONS[self.factorization].own and _are_named(mine, theirs):
            incidental = incidental - WHICH  # of layers that share all, names of parameters do not tell
        check_same(adapter, meaning(mine, incidental), meaning(theirs, incidental))

    def wants_all_linear(self) -> bool:
        """Whether the targets are PEFT's "all-linear"."""
        return isinstance(self.target_modules, str) and self.target_modules.lower() == INCLUDE_LINEAR_LAYERS_SHORTHAND

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain data, all about the circuit under the one key ``circuit``."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in (*_CIRCUIT_KEYS, "circuit")}
        if self.terms is not None:
            plain["terms"] = [_plain_term(term) for term in self.terms]
        circuit = {key: getattr(self, key) for key in _CIRCUIT_KEYS}
        circuit["ansatz"] = load(self.ansatz).to_dict()
        circuit["quantization"] = self.quantization and asdict(Quantization.from_dict(self.quantization))
        return {**plain, "circuit": {"version": CIRCUIT_VERSION, **circuit}}

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Write adapter_config.json; the file that was there stays whole if that fails."""
        auto_mapping = kwargs.pop("auto_mapping_dict", None)
        data = {key: sorted(value) if isinstance(value, set) else value for key, value in self.to_dict().items()}
        if auto_mapping is not None:
            data["auto_mapping"] = auto_mapping
        write_config(save_directory, data)

    @classmethod
    def from_json_file(cls, path_json_file: str, **kwargs: Any) -> dict[str, Any]:
        """The contents of an adapter_config.json; raises ValueError if it is too large or not a JSON table."""
        return read_config(path_json_file)

    @classmethod
    def check_kwargs(cls, **kwargs: Any) -> dict[str, Any]:
        """Refuse stored keys that this class does not have: PEFT would drop them with a warning."""
        checks.keys("adapter configuration", kwargs, [f.name for f in fields(cls)], needed=["circuit"])
        return kwargs


def _plain_term(term: dict[str, Any]) -> dict[str, Any]:
    return {key: sorted(value) if isinstance(value, set) else value for key, value in term.items()}


def write_config(folder: str | os.PathLike[str], data: dict[str, Any]) -> None:
    """Write adapter_config.json whole or not at all; raises ValueError for what ``read_config`` would not read."""
    data = {**data, LIBRARY: f"qcircuit_peft {VERSION}; import it before PEFT loads this adapter"}
    text = json.dumps(dict(sorted(data.items())), indent=2)  # of patterns the first that matches counts
    if len(text.encode()) > MAX_CONFIG:
        raise ValueError(f"an adapter configuration has at most {MAX_CONFIG} bytes, this has {len(text.encode())}")
    if os.path.isfile(folder):
        raise ValueError(f"an adapter is saved in a folder, but {folder} is a file")
    files.make_folder(Path(folder))
    with files.turn(Path(folder)):
        settle(Path(folder))
        files.write(Path(folder) / CONFIG_NAME, text)


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """An adapter_config.json as plain data; raises ValueError if it is too large or not a JSON table."""
    data = files.read_json(Path(path), "configuration", MAX_CONFIG)
    if not isinstance(data, dict):
        raise ValueError(f"{path}: an adapter configuration is a table, got {type(data).__name__}")
    return data


def _are_named(*configs: Mapping[str, Any]) -> bool:
    """Whether all name the modules that they adapt: PEFT writes names in the place of none, and of "all-linear"."""
    return all(isinstance(config["target_modules"], list | set) for config in configs)
