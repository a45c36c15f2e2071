"""One thread, fixed seeds, no network, no display; shapes in signatures are checked while the tests run."""

import os
import random
from typing import get_args

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"

import numpy as np
import pytest
import torch
from beartype import beartype
from hypothesis import settings
from jaxtyping import AbstractArray, install_import_hook

torch.set_num_threads(1)

settings.register_profile("fixed", deadline=None, derandomize=True)
settings.load_profile("fixed")


def has_shape(hint) -> bool:
    """Whether a jaxtyping shape occurs in an annotation."""
    return (isinstance(hint, type) and issubclass(hint, AbstractArray)) or any(map(has_shape, get_args(hint)))


def check_shapes(function):
    """Check the shapes in a signature at every call, and nothing else: the library judges bad input."""
    shapes = {name: hint for name, hint in function.__annotations__.items() if has_shape(hint)}
    if not shapes:
        return function
    function.__annotations__ = shapes
    return beartype(function)


install_import_hook("qcircuit_peft", f"{__name__}.check_shapes")


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Seed every generator before every test."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
