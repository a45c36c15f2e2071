"""A study: which adapters are trained on which task, as a text file and as the list of runs it stands for.

A TOML file has ``name``, ``task``, ``seeds`` and one or more ``[[grid]]``; the runs are all combinations of what a grid
lists, for every seed. ``runs`` does the work.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any

from qcircuit_peft import checks
from qcircuit_peft.ansatz import Ansatz, load, without_entanglers
from qcircuit_peft.checks import whole_number, whole_numbers
from qcircuit_peft.frames.circuit import MAX_LAYERS
from qcircuit_peft.study.folder import check_keys, read_plan
from qcircuit_peft.text import shown

CONTROLS = ("trained", "no_entanglers", "frozen")
_MAX_RUNS = 10_000


def run_key(ansatz: str, layers: int, r: int, control: str, seed: int) -> str:
    """The name of a run, which no two runs of a study share."""
    return f"{ansatz}-L{layers}-r{r}-{control}-s{seed}"


@dataclass(frozen=True)
class Point:
    """One run of a study. ``control``: all is trained, or without entangling gates, or the angles stay as drawn."""

    ansatz: Ansatz
    layers: int
    r: int
    control: str
    seed: int

    @property
    def key(self) -> str:
        """The name of the run."""
        return run_key(self.ansatz.name, self.layers, self.r, self.control, self.seed)

    @property
    def family(self) -> Ansatz:
        """The circuits that are trained, after what the control does to them."""
        return without_entanglers(self.ansatz) if self.control == "no_entanglers" else self.ansatz


@dataclass(frozen=True)
class Grid:
    """All combinations of families, numbers of layers, ranks and controls; an ansatz is anything ``load`` takes.

    Raises ValueError for an empty list, a value out of range, a complex circuit, or a control that cannot be made.
    """

    ansatz: tuple[Ansatz, ...]
    layers: tuple[int, ...]
    r: tuple[int, ...]
    control: tuple[str, ...] = ("trained",)

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, list | tuple) or not value:
                raise ValueError(f"{field.name} is a list with one or more entries, got {shown(value)}")
        object.__setattr__(self, "ansatz", tuple(load(source) for source in self.ansatz))
        for family in self.ansatz:
            if not re.fullmatch(r"[\w.]{1,64}", family.name, re.ASCII):
                raise ValueError(f"an ansatz in a study is named by letters, digits, _ and ., got {shown(family.name)}")
        object.__setattr__(self, "layers", whole_numbers("layers", self.layers, 0, MAX_LAYERS))
        object.__setattr__(self, "r", whole_numbers("r", self.r, 1))
        if unknown := [name for name in self.control if name not in CONTROLS]:
            raise ValueError(f"control is a list of some of {', '.join(CONTROLS)}, got {shown(unknown[0])}")
        object.__setattr__(self, "control", tuple(self.control))
        if "no_entanglers" in self.control:
            for family in self.ansatz:
                without_entanglers(family)


@dataclass(frozen=True)
class Study:
    """What is trained, how, and how it is measured.

    task: a name in ``TASKS``. seeds: each draws the angles, the head and the order of the data.
    train, validation, test: how many inputs of each split are used, the first ones; None is all. epochs: passes over
    the data. all_layers: adapt all linear layers, not only those LoRA usually takes. rate, angle_rate: of AdamW, for
    lambda and for the angles. qubits: capacity and expressibility are those of the family's circuit on this many
    qubits, the latter from ``samples`` pairs of states.

    Raises ValueError, in one sentence, for anything else, and for more than 10,000 runs.

    >>> study = Study("small", "digits", seeds=[0, 1], grid=[Grid(["tree"], layers=[1, 2], r=[4])])
    >>> [point.key for point in study.points][:3]
    ['tree-L1-r4-trained-s0', 'tree-L2-r4-trained-s0', 'tree-L1-r4-trained-s1']
    """

    name: str
    task: str
    seeds: tuple[int, ...]
    grid: tuple[Grid, ...]
    about: str = ""
    train: int | None = None
    validation: int | None = None
    test: int | None = None
    epochs: int = 1
    all_layers: bool = False
    rate: float = 2e-2
    angle_rate: float = 5e-2
    qubits: int = 8
    samples: int = 2000

    def __post_init__(self) -> None:
        checks.label("name", self.name)
        for key in ("task", "about"):
            checks.text(key, getattr(self, key))
        object.__setattr__(self, "seeds", whole_numbers("seeds", self.seeds, 0, 2**32 - 1))
        for key in ("train", "validation", "test"):
            if getattr(self, key) is not None:
                whole_number(key, getattr(self, key), 1)
        for key, low, high in (("epochs", 1, None), ("qubits", 2, 8), ("samples", 2, 1_000_000)):
            whole_number(key, getattr(self, key), low, high)
        for key in ("rate", "angle_rate"):
            checks.number(key, getattr(self, key), 0, 10)
        checks.boolean("all_layers", self.all_layers)
        if not isinstance(self.grid, list | tuple) or not all(isinstance(grid, Grid) for grid in self.grid):
            raise ValueError(f"grid is a list of grids, got {shown(self.grid)}")
        object.__setattr__(self, "grid", tuple(self.grid))
        size = sum(len(g.ansatz) * len(g.layers) * len(g.r) * len(g.control) for g in self.grid) * len(self.seeds)
        if not 1 <= size <= _MAX_RUNS:
            raise ValueError(f"a study has 1 to {_MAX_RUNS} runs, this has {size}")
        families = {family for grid in self.grid for family in grid.ansatz}
        if len({family.name for family in families}) < len(families):
            raise ValueError("two different ansatz of one study have the same name")
        for grid in self.grid:
            for family in grid.ansatz:
                family.circuit(qubits=self.qubits, layers=max(grid.layers))

    @property
    def points(self) -> list[Point]:
        """The runs, each once, seed by seed: an interrupted study has whole grids."""
        found = [
            Point(*values, seed)
            for seed in self.seeds
            for grid in self.grid
            for values in product(grid.ansatz, grid.layers, grid.r, grid.control)
        ]
        return list(dict.fromkeys(found))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "study") -> "Study":
        """A study from plain data; ``where`` names the source in errors. Raises ValueError for unknown keys too."""
        try:
            check_keys("study", cls, data)
            grids = data["grid"]
            if not isinstance(grids, list | tuple) or not all(isinstance(grid, Mapping) for grid in grids):
                raise ValueError(f"grid is a list of tables [[grid]], got {shown(grids)}")
            for grid in grids:
                check_keys("grid", Grid, grid)
            return cls(**{**data, "grid": tuple(Grid(**grid) for grid in grids)})
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None

    @classmethod
    def from_file(cls, path: str | Path) -> "Study":
        """A study from a TOML file of at most 64 KiB; raises ValueError naming the file and what is wrong."""
        return cls.from_dict(*read_plan(path))

    def to_json(self) -> str:
        """The study as text, circuits included: equal for equal studies, and read back by ``from_dict``."""
        grids = [{**asdict(grid), "ansatz": [family.to_dict() for family in grid.ansatz]} for grid in self.grid]
        return json.dumps({**asdict(self), "grid": grids}, indent=1) + "\n"
