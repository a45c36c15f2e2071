"""The scripts of docs/ as modules."""

import importlib.util
import sys
import types
from pathlib import Path

ROOT = Path(__file__).parent.parent


def of_docs(name: str) -> types.ModuleType:
    """docs/NAME.py, which is no part of a package."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
