"""Images from files, as a model was trained on them: resized, as red, green and blue, normalized."""

import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor
from transformers import AutoConfig
from transformers.utils import cached_file

from qcircuit_peft import files
from qcircuit_peft.checks import is_number, is_whole
from qcircuit_peft.text import printable, shortened, shown

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
_MOST_PIXELS, _MOST_SIDE = 1 << 26, 4096


class Pictures:
    """Reads image files for a model: the size, mean and deviation of its preprocessor_config.json, if it has one.

    Else the size is the model's ``image_size``, with ImageNet's mean and deviation. Raises ImportError without pillow,
    ValueError for values in that file that no image can have.
    """

    def __init__(self, model: Path | str) -> None:
        found: dict[str, Any] = {}
        path = cached_file(
            str(model), "preprocessor_config.json",
            _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False,
        )  # fmt: skip
        if path is not None:
            found = files.read_json(path, "preprocessor", 1 << 16)
        size = found.get("crop_size") or found.get("size") or {}
        size = size if isinstance(size, dict) else {"height": size, "width": size}
        side = size.get("shortest_edge") or getattr(AutoConfig.from_pretrained(model), "image_size", 224)
        self.size = (size.get("height", side), size.get("width", side))
        mean, std = found.get("image_mean", _MEAN), found.get("image_std", _STD)
        whole = all(is_whole(n, 1, _MOST_SIDE) for n in self.size)
        three = all(isinstance(v, list | tuple) and len(v) == 3 and all(map(is_number, v)) for v in (mean, std))
        if not whole or not three or min(std) <= 0:
            raise ValueError(f"{shown(str(model))}: its images have a size, a mean and a deviation that none can have")
        self.mean, self.std = (torch.tensor(v, dtype=torch.float32).view(3, 1, 1) for v in (mean, std))

    def __call__(self, path: str | Path | bytes) -> Float32[Tensor, "3 height width"]:
        """The pixels of a file, or of its bytes; raises ValueError if it is no image or has over 2^26."""
        try:
            from PIL import Image
        except ImportError:
            raise ImportError("images are read by pillow, which is not installed; run: pip install pillow") from None
        name = "an image" if isinstance(path, bytes) else shortened(printable(str(path)))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of sizes, which are looked at here
                with Image.open(BytesIO(path) if isinstance(path, bytes) else path) as image:
                    if image.width * image.height > _MOST_PIXELS:
                        raise ValueError(
                            f"it has {image.width} x {image.height} pixels, at most {_MOST_PIXELS} are read"
                        )
                    small = image.convert("RGB").resize(self.size[::-1], Image.Resampling.BICUBIC)
        except FileNotFoundError:
            raise ValueError(f"{name}: there is no such image") from None
        except Exception as error:  # pillow's readers raise whatever a broken file makes them
            raise ValueError(f"{name}: this image cannot be read: {shortened(printable(str(error)))}") from None
        pixels = torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 255
        return (pixels - self.mean) / self.std
