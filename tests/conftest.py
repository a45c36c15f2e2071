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

# Triton reads it when it is imported: without a GPU its interpreter runs the kernels of the engine, where a test asks.
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")

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


NO_GPU = "no CUDA device here"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked cuda where there is no such device."""
    for item in items:
        if item.get_closest_marker("cuda") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason=NO_GPU))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in one line how many these were."""
    reports = terminalreporter.stats.get("skipped", [])
    if count := sum(isinstance(report.longrepr, tuple) and NO_GPU in report.longrepr[2] for report in reports):
        terminalreporter.write_line(f"{count} tests marked cuda were skipped: {NO_GPU}")
