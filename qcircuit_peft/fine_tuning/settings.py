"""How a model is adapted to a table, and what that gave."""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from qcircuit_peft import checks
from qcircuit_peft.methods import CIRCUITS, CORES, RIVALS, Adapter
from qcircuit_peft.tasks.examples import Columns
from qcircuit_peft.text import did_you_mean, shown
from qcircuit_peft.training import BATCH

TASK, CHECKPOINTS, SETTINGS, CARD, PLOT = "task.json", "checkpoints", "settings.json", "README.md", "training.png"
MOST_TASK = 1 << 20  # bytes of task.json
FORMS = ("lora", "merged")

# Those that PEFT attaches to linear layers, and reads again where qcircuit_peft is imported. AdaLoRA is not among them:
# PEFT warns when it saves and loads what has been pruned to rank 0.
OURS = {**CORES, **CIRCUITS}
ADAPTERS = {
    name: row for name, row in {**OURS, **RIVALS}.items() if isinstance(row.attach, Adapter) and name != "adalora"
}
LOW_RANK = (*OURS, "lora")  # of which a plain LoRA is an exact copy


@dataclass(frozen=True)
class Settings:
    """How a model is adapted and trained; what is left out is as the method and the model say.

    model: a folder, or a name on the hub. method: a key of ``ADAPTERS``. rank: its size, which for most is the rank.
    layers: L of circuits. targets: the names of the linear layers that are adapted. validation: a share of the rows, or
    another table. batch: inputs a step. max_length: of a text in tokens.

    Raises ValueError for a value out of range, an unknown method, and layers for a method without circuits.
    """

    model: str
    columns: Columns
    regression: bool = False
    method: str = "circuit"
    rank: int | None = None
    layers: int | None = None
    targets: tuple[str, ...] = ()
    epochs: int = 3
    validation: float | str = 0.1
    batch: int = BATCH
    max_length: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        place_of(checks.text("model", self.model))
        if self.method not in ADAPTERS:
            raise ValueError(f"there is no method {shown(self.method)}; {did_you_mean(self.method, ADAPTERS)}")
        if self.rank is not None:
            checks.whole_number("rank", self.rank, 1)
        if self.layers is not None:
            checks.whole_number("layers", self.layers, 0)
            if self.method not in CIRCUITS:
                raise ValueError(f"layers are of circuits, but the method is {self.method!r}")
        for name, most in (("epochs", 10_000), ("batch", 1 << 16), ("max_length", 1 << 20)):
            checks.whole_number(name, getattr(self, name), 1, most)
        checks.whole_number("seed", self.seed, 0, 2**32 - 1)
        if not isinstance(self.validation, str):
            checks.number("validation", self.validation, 0, below=1)
        if self.regression and self.columns.kind != "classification":
            raise ValueError(f"a regression reads texts and a column of numbers, got columns for {self.columns.kind}")
        if self.columns.language:
            checks.whole_number("max_length", self.max_length, 4)

    @property
    def kind(self) -> str:
        """A key of ``KINDS``."""
        return "regression" if self.regression else self.columns.kind


@dataclass(frozen=True)
class Figures:
    """What a training gave, as the model card has it.

    metric: its name. value: of the epoch that was kept, on the validation rows. trained: numbers in the adapter.
    history: a row an epoch, with its "loss" (mean, of a batch) and "value". bytes: of adapter and head on the disk.
    """

    kind: str
    metric: str
    value: float
    epoch: int
    history: tuple[dict[str, float], ...]
    train: int
    validation: int
    rows: int
    disputed: int
    classes: tuple[str, ...]
    trained: int
    head: int
    bytes: int
    seconds_per_step: float


def place_of(model: str) -> str:
    """A folder by its whole path, so that an adapter finds it from wherever it is used; a name on the hub as it is.

    Raises ValueError for what is neither.
    """
    if Path(model).is_dir():
        return str(Path(model).resolve())
    try:
        validate_repo_id(model)
    except HFValidationError:
        raise ValueError(
            f"a model is a folder, or a name on the hub such as 'owner/name', but {shown(model)} is neither"
        ) from None
    return model
