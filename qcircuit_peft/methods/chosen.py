"""A method with its size and rate chosen, as the training takes it, and those of the demo."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from qcircuit_peft.methods.base import BASE
from qcircuit_peft.methods.circuit import CIRCUITS
from qcircuit_peft.methods.method import Method, load
from qcircuit_peft.methods.rivals import RIVALS
from qcircuit_peft.rates import RATES
from qcircuit_peft.tasks import Task, pretrained

HEAD_RATE = RATES["heads"]


@dataclass(frozen=True)
class Chosen:
    """A method, how large and how fast: what is left out is as the method says.

    size: as in ``Method``; or numbers, about how many it trains. rate: AdamW's, of the group that has the factor 1.
    all_layers: the task's linear layers in all, not only those LoRA usually takes. settings: more for ``attach``.
    """

    method: Method
    size: int | None = None
    numbers: int | None = None
    rate: float | None = None
    all_layers: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    title: str = ""

    def __post_init__(self) -> None:
        if self.size is not None and self.numbers is not None:
            raise ValueError(f"{self.name} has a size or numbers that it fits, got both")

    @property
    def name(self) -> str:
        """In tables and figures."""
        return self.title or self.method.name

    def targets(self, task: Task) -> list[str]:
        """The names of the layers that are adapted."""
        return list(task.targets if self.all_layers else task.lora_targets)

    def size_on(self, task: Task) -> int:
        """The size, found from the numbers if need be."""
        if self.numbers is not None:
            return self.method.fit(pretrained(task), self.targets(task), self.numbers)
        return self.method.default if self.size is None else self.size

    def attach(self, task: Task) -> nn.Module:
        """The task's pretrained model with a fresh adapter, drawn from torch's global random state."""
        return self.method.attach(pretrained(task), self.targets(task), self.size_on(task), **self.settings)

    def restored(self, task: Task, folder: Path) -> nn.Module:
        """The task's pretrained model as ``save`` left it in a folder."""
        return load(self.method, pretrained(task), self.targets(task), self.size_on(task), folder)

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """The parameters of an adapted model that train, as AdamW takes them."""
        return self.method.groups(model, self.rate)


# Query and value are adapted. The cheap ones come first: the demo starts with the last.
DEMO: dict[str, Chosen] = {
    "probe": Chosen(BASE["probe"]),
    "frozen": Chosen(CIRCUITS["frozen"], size=73, title="circuits frozen at random angles, r = 73"),
    "lora": Chosen(RIVALS["lora"], size=1, title="LoRA, r = 1"),
    "fourier": Chosen(RIVALS["fourierft"], size=73, title="FourierFT"),
    "circuit": Chosen(CIRCUITS["circuit"], size=64, title="circuits shared by all blocks, r = 64"),
}
