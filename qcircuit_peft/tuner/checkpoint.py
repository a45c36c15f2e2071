"""Checks of saved adapters that run before a model is changed, and saving that never leaves half a checkpoint."""

import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from torch import Tensor

PREFIX = "qcircuit_"


def is_ours(key: str) -> bool:
    """Whether a key of a state dict is a parameter of a circuit adapter."""
    return any(part.startswith(PREFIX) for part in key.split("."))


def check_finite(name: str, value: Tensor) -> None:
    """Raise ValueError if a tensor has NaN or infinite entries (meta tensors have none)."""
    if not value.is_meta and not torch.isfinite(value).all():
        raise ValueError(
            f"{name} has {int((~torch.isfinite(value)).sum())} entries that are NaN or infinite; all must be finite"
        )


def check_shapes(found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ValueError, naming a key, unless a checkpoint has exactly the wanted adapter parameters and shapes."""
    for key, shape in wanted.items():
        if key not in found:
            raise ValueError(f"the checkpoint lacks {key} of shape {shape}, which its circuit and this model need")
        if tuple(found[key]) != tuple(shape):
            raise ValueError(
                f"the checkpoint's {key} has shape {tuple(found[key])}, but its circuit and this model need {shape}"
            )
    extra = sorted(key for key in found if is_ours(key) and key not in wanted)
    if extra:
        raise ValueError(f"the checkpoint has {extra[0]}, but no adapted module of this model takes it")


def read_shapes(folder: Path) -> dict[str, tuple[int, ...]] | None:
    """The shapes of the adapter parameters saved in a folder; None if there is no safetensors file.

    Raises ValueError if the file is not a whole safetensors file, or a parameter is not finite.
    """
    path = folder / SAFETENSORS_WEIGHTS_NAME
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            values = {key: file.get_tensor(key) for key in file.keys() if is_ours(key)}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error}); save or copy the checkpoint again") from None
    for key, value in values.items():
        if not value.is_floating_point():
            raise ValueError(f"{path}: {key} holds {value.dtype}, but a parameter is floating point")
        check_finite(f"{path}: {key}", value)
    return {key: tuple(value.shape) for key, value in values.items()}


def whole_or_not(save: Callable[..., None], applies: Callable[[PeftModel], bool]) -> Callable[..., None]:
    """``PeftModel.save_pretrained``, writing into a folder of its own first and moving the files when all is written.

    A save that fails leaves what was in the folder as it was. Models to which it does not apply are saved as ever.
    """

    @functools.wraps(save)
    def save_pretrained(self: PeftModel, save_directory: str, *args: Any, **kwargs: Any) -> None:
        is_main = kwargs.get("is_main_process", args[3] if len(args) > 3 else True)
        if not applies(self) or not is_main or os.path.isfile(save_directory):
            return save(self, save_directory, *args, **kwargs)
        target = Path(save_directory)
        target.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".saving-", dir=target))
        try:
            if (target / "README.md").is_file():  # PEFT updates the model card that it finds
                shutil.copy2(target / "README.md", draft)
            save(self, str(draft), *args, **kwargs)
            written = [path for path in draft.rglob("*") if path.is_file()]
            for path in written:
                (target / path.relative_to(draft)).parent.mkdir(parents=True, exist_ok=True)
            for path in written:
                os.replace(path, target / path.relative_to(draft))
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return None

    return save_pretrained
