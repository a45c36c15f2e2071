"""What a model card says of adapters of this library: how to load them, which circuits they are, how many numbers."""

import functools
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peft
import torch
from huggingface_hub import ModelCard

from qcircuit_peft.drawing import draw
from qcircuit_peft.factorizations.parts import frames
from qcircuit_peft.rates import RATES, kinds
from qcircuit_peft.text import printable, shortened
from qcircuit_peft.tuner.layer import adapted_layers
from qcircuit_peft.tuner.meaning import is_kind
from qcircuit_peft.tuner.saving import VERSION

TAGS = ("qcircuit-peft", "quantum-circuits")
BEGIN, END = "<!-- qcircuit_peft: written when the adapter was saved -->", "<!-- qcircuit_peft: end -->"
_DRAWN = 4000  # characters of a drawing


def _plain(text: str) -> str:
    return shortened(printable(text)).replace("`", "'").replace("|", "/").replace("<", "(")


def _numbers(model: Any, adapter: str) -> Iterator[str]:
    """Counts of an adapter of circuits beside those of LoRA on the same modules, and its widest circuit, drawn."""
    layers = [layer for _, layer in adapted_layers(model, adapter)]
    if not layers:
        return
    sides = sum(
        getattr(layer.factors[adapter], "experts", 1) * (layer.in_features + layer.out_features) for layer in layers
    )
    own = sum(p.numel() for layer in layers for p in layer.own_parameters(adapter).values())
    yield from ["| on the same modules | numbers |", "|---|---|", f"| this adapter | {own:,} |"]
    yield from (f"| LoRA, r = {r} | {r * sides:,} |" for r in (1, 8, 16))
    yield ""
    drawn = {circuit.dim: circuit for layer in layers for f in frames(layer.factors[adapter]).values()
             for _, circuit, _ in f.circuits()}  # fmt: skip
    if drawn:
        widest = max(drawn)
        picture = draw(drawn[widest])
        yield f"The circuit of width {widest}, with its angles in radians:"
        yield ""
        if len(picture) <= _DRAWN:
            yield from ["```text", picture, "```", ""]
        else:
            yield f"{len(drawn[widest].ops):,} gates, too many to be drawn here; `qcircuit_peft.drawing.draw` does."
            yield ""


def section(model: Any) -> str:
    """What a card says of the adapters of this library in a model, in Markdown."""
    ours = {name: config for name, config in model.peft_config.items() if is_kind(config.peft_type)}
    place = next((str(c.base_model_name_or_path) for c in ours.values() if c.base_model_name_or_path), "")
    lines = [
        BEGIN,
        "# An adapter of quantum circuits" if any(True for _ in adapted_layers(model)) else "# An adapter",
        "",
        "Made with `qcircuit_peft`, which has to be imported before PEFT loads it; without the import PEFT ends in "
        "`KeyError: 'QCIRCUIT'` or another name of a method.",
        "",
        "```python",
        "import qcircuit_peft  # registers the method; pip install . in its repository",
        "from peft import PeftModel",
        "",
        f"base = ...  # {_plain(place) or 'the model that was adapted'}",
        'model = PeftModel.from_pretrained(base, "FOLDER")  # or the name of this repository',
        "```",
        "",
        "A plain LoRA for those who do not have it: `peft.save_as_lora(path, model, rank=r)`, after the import.",
        "",
    ]
    for name, config in ours.items():
        kind = getattr(config.peft_type, "value", config.peft_type)
        lines += [f"## `{_plain(name)}`: {kind}", "", *_numbers(model, name)]
    of = {kind for _, kind in kinds(model).values()} & RATES.keys()
    if of:
        rates = ", ".join(f"{kind} {RATES[kind]:g}" for kind in sorted(of))
        lines += [f"Learning rates that the library takes where nothing else is said: {rates}.", ""]
    lines += [
        f"Versions: qcircuit_peft {VERSION}, PEFT {peft.__version__}, torch {torch.__version__}, Python "
        f"{platform.python_version()}. The library is under Apache-2.0; the licence of these weights is for those to "
        "say who made them, within that of the base model (`license:` above).",
        END,
    ]
    return "\n".join(lines)


def _has_ours(model: Any) -> bool:
    return any(is_kind(config.peft_type) for config in model.peft_config.values())


def _told(stock: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(stock)
    def create_or_update_model_card(self: Any, output_dir: str) -> None:
        stock(self, output_dir)
        if not _has_ours(self):
            return
        path = Path(output_dir, "README.md")
        card = ModelCard.load(path)
        card.data["tags"] = sorted({*(card.data.get("tags") or ()), *TAGS})
        before, found, rest = card.text.partition(BEGIN)
        if found:
            _, _, after = rest.partition(END)
            card.text = f"{before}{section(self)}{after}"
        else:
            card.text = f"\n{section(self)}\n{card.text}"
        card.save(path)

    return create_or_update_model_card


def _privately(stock: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(stock)
    def push_to_hub(self: Any, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        if _has_ours(self) and kwargs.get("private") is None:
            kwargs["private"] = True
        return stock(self, repo_id, *args, **kwargs)

    return push_to_hub


def _carded(stock: Callable[..., Any]) -> Callable[..., Any]:
    """What uploads a folder, in which transformers has put a card of its own in the place of PEFT's."""

    @functools.wraps(stock)
    def upload(self: Any, working_dir: Any, *args: Any, **kwargs: Any) -> Any:
        if _has_ours(self):
            self.create_or_update_model_card(str(working_dir))
        return stock(self, working_dir, *args, **kwargs)

    return upload


def hook_cards(model_cls: Any) -> None:
    """Let PEFT's models say in their cards how adapters of ours are loaded, and push these as private repositories."""
    model_cls.create_or_update_model_card = _told(model_cls.create_or_update_model_card)
    model_cls._upload_modified_files = _carded(model_cls._upload_modified_files)
    model_cls.push_to_hub = _privately(model_cls.push_to_hub)
