"""The pages of docs/ say what the code says, and lead where they point, on GitHub and in the site."""

import pkgutil
import re
import types
from pathlib import Path

import pytest
from scripts import ROOT, of_docs

build = of_docs("build")

LONG = {"parameters.md", "factorizations.md"}  # they adapt whole models, and count operations
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RUNS = ("circuit_files.md", "start_quantum.md")  # whose examples need nothing but the library


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


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of headings."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\((?!\w+:)([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_examples_are_python(page: Path) -> None:
    examples = [code for kind, code in FENCE.findall(page.read_text(encoding="utf-8")) if kind == "python"]
    assert not RUNS.count(page.name) or examples
    for code in examples:
        compiled = compile(code, page.name, "exec")
        if page.name in RUNS:
            exec(compiled, {})


def test_what_has_moved_is_where_the_upgrade_notes_say() -> None:
    text = (ROOT / "docs" / "upgrading.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?) \| `(qcircuit_peft[\w.]+)` \|$", text, re.MULTILINE)
    assert len(rows) == 7
    for old, new in rows:
        assert pkgutil.resolve_name(new), new
        for name in re.findall(r"`(qcircuit_peft[\w.]+)`", old):
            with pytest.raises((ImportError, AttributeError)):
                pkgutil.resolve_name(name)


def test_results_that_moved_are_mentioned_where_they_are() -> None:
    """Files that name a page of docs/ name one that there is."""
    for folder in ("qcircuit_peft", "benchmarks", "studies", "tutorials", "tests"):
        for path in (ROOT / folder).rglob("*.*"):
            if path.suffix in (".py", ".toml"):
                for page in re.findall(r"\bdocs/[\w/]+\.md", path.read_text(encoding="utf-8")):
                    assert (ROOT / page).exists(), f"{path.name} names {page}"


hooks = of_docs("hooks")


@pytest.mark.parametrize(
    ("html", "fetches"),
    [
        ('<script src="https://cdn.example/x.js"></script>', True),
        ('<link rel="preconnect" href="//fonts.example">', True),
        ('<img alt="a" src="http://example/x.png">', True),
        ('<script type="module">import m from "https://example/x.mjs"</script>', True),
        ('<a href="https://example.org">a link is no fetch</a>', False),
        ('<script src="assets/x.js"></script>', False),
    ],
)
def test_a_site_that_fetches_is_refused(html: str, fetches: bool, tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(html)
    config = types.SimpleNamespace(site_dir=str(tmp_path))
    if fetches:
        with pytest.raises(hooks.PluginError, match=r"a\.html would fetch from the network"):
            hooks.on_post_build(config)
    else:
        hooks.on_post_build(config)


def test_links_of_github_are_those_of_the_site() -> None:
    links = {
        "docs/results/qpa.md": "[a](../../benchmarks/results/qpa.csv) [b](../qpa.md#limits) [c](a.md) [d](#here)",
        "docs/qpa.md": "[a](../tutorials/6_a.py) [b](../CHANGELOG.md) [c](https://example.org)",
        "CHANGELOG.md": "[a](docs/qpa.md) [b](tutorials/6_a.py)",
    }
    moved = {
        "docs/results/qpa.md": "[a](../benchmarks/results/qpa.csv) [b](../qpa.md#limits) [c](a.md) [d](#here)",
        "docs/qpa.md": "[a](tutorials/6_a.ipynb) [b](CHANGELOG.md) [c](https://example.org)",
        "CHANGELOG.md": "[a](qpa.md) [b](tutorials/6_a.ipynb)",
    }
    for path, text in links.items():
        file = types.SimpleNamespace(abs_src_path=str(ROOT / path), src_uri=hooks.site_path(path))
        found = hooks.on_page_markdown(text, types.SimpleNamespace(file=file), None, None)
        assert found == moved[path]


def test_examples_of_docstrings_are_code() -> None:
    text = "Shapes (*batch, N).\n\n>>> 1 + 1\n2\n\n`*args` stays."
    assert hooks.fenced(text) == "Shapes (\\*batch, N).\n\n```pycon\n>>> 1 + 1\n2\n```\n\n`*args` stays."


def test_a_page_says_what_every_command_takes() -> None:
    text = hooks._cli()
    for command in ("circuits draw", "compare", "entanglement", "study", "train", "predict"):
        assert f"qcircuit-peft {command}\n" in text, command
    assert "| `--qubits` |" in text
