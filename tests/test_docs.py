"""The generated pages of docs/ say what the tables of the code say."""

import importlib.util
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location("docs_build", Path(__file__).parent.parent / "docs" / "build.py")
assert SPEC is not None and SPEC.loader is not None
build = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(build)

LONG = {"parameters.md", "factorizations.md"}  # they adapt whole models, and count operations


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[pytest.mark.slow] if page in LONG else []) for page in build.PAGES]
)
def test_a_page_is_what_make_docs_writes(page: str) -> None:
    assert not build.is_stale(page), f"docs/{page} is stale: run make docs"


def test_the_table_of_factorizations_has_every_row() -> None:
    text = (build.HERE / "factorizations.md").read_text(encoding="utf-8")
    for name, kind in build.FACTORIZATIONS.items():
        assert f"| `{name}` | {kind.about} | {kind.update} | {kind.count} |" in text, name
