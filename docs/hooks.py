"""How docs/ becomes the site: ``make docs``.

Pages are written for GitHub. What they link to outside of docs/ comes into the site with them, tutorials as notebooks;
the reference of functions and of the command is made here and stored nowhere; and a site that would fetch anything
from the network is no site.
"""

import importlib
import inspect
import posixpath
import re
from pathlib import Path
from typing import Any

import griffe
import typer.main
from mkdocs.exceptions import PluginError
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

REPOSITORY = Path(__file__).parent.parent
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")
FETCHES = re.compile(
    r"<(?:script|link|img|iframe)\b[^>]*?\b(?:src|href)=[\"']?(?:https?:)?//|\bimport\b[^;]{,80}https?://"
)
FOREIGN = re.compile(  # what nbconvert adds for formulas and diagrams, of which there are none
    r"<script[^>]*\bsrc=\"https?://[^>]*></script>|<script type=\"module\">\s*document.addEventListener.*?</script>"
    r"|<!-- Load mathjax -->|<!-- MathJax configuration -->\s*<script.*?</script>",
    re.DOTALL,
)
MODULES = (
    *("ansatz", "circuit", "gates", "drawing", "qasm", "interop", "backends", "lie"),
    *("frames", "factorizations", "quantization", "tuner", "generator", "calibration", "rates"),
    *("analysis", "tasks", "methods", "training", "fine_tuning", "study", "compare"),
)


def site_path(path: str) -> str:
    """Where a file of the repository is in the site, whose README is that of docs/."""
    return re.sub(r"^(tutorials/.*)\.py$", r"\1.ipynb", path.removeprefix("docs/"))


def repository_path(file: File) -> str:
    """Where a file of the site is in the repository."""
    source = Path(file.abs_src_path or "")
    return source.relative_to(REPOSITORY).as_posix() if source.is_relative_to(REPOSITORY) else ""


def _linked(text: str, path: str) -> set[str]:
    return {posixpath.normpath(posixpath.join(posixpath.dirname(path), link)) for link in LINK.findall(text)}


def _api(module: str) -> str:
    """The page of a module: what it names in ``__all__``, else all that is public."""
    name = f"qcircuit_peft.{module}" if module else "qcircuit_peft"
    exported = hasattr(importlib.import_module(name), "__all__")
    members = [] if exported else ["    options:", "      filters: ['!^_']"]
    return "\n".join([f"# {name}", "", f"::: {name}", *members, ""])


def _command(command: Any, path: str, level: int) -> list[str]:
    """A command and those below it, as Markdown."""
    below = sorted(getattr(command, "commands", {}).items())
    lines = [f"{'#' * level} {path}", "", inspect.cleandoc(command.help or ""), ""]
    if not below:
        lines += ["```text", " ".join([path, *command.collect_usage_pieces(command.context_class(command))]), "```", ""]
    shown = [p for p in command.params if not getattr(p, "hidden", False) and "--help" not in p.opts]
    if shown:
        lines += ["| argument or option | what it is | default |", "|---|---|---|"]
    for parameter in shown:
        plain = isinstance(parameter.default, str | int | float) and not isinstance(parameter.default, bool)
        told = " ".join((getattr(parameter, "help", None) or "").split()).replace("|", "\\|")
        names = ", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])
        lines.append(f"| {names} | {told} | {f'`{parameter.default}`' if plain else ''} |")
    for name, sub in below:
        lines += ["", *_command(sub, f"{path} {name}", level + 1)]
    return lines


def _cli() -> str:
    from qcircuit_peft.cli import app

    return "\n".join(_command(typer.main.get_command(app), "qcircuit-peft", 1))


@event_priority(100)  # before notebooks are looked for
def on_files(files: Files, config: Any) -> Files:
    """Add the tutorials, what pages link to outside of docs/, and the reference."""
    found, todo = set(), [file for file in files if file.is_documentation_page()]
    for path in sorted(REPOSITORY.glob("tutorials/*.ipynb")):
        found |= {f"tutorials/{path.name}", f"tutorials/{path.stem}.py"}
        files.append(File(f"tutorials/{path.name}", str(REPOSITORY), config.site_dir, config.use_directory_urls))
    while todo:
        file = todo.pop()
        for path in sorted(_linked(file.content_string, repository_path(file)) - found):
            found.add(path)
            if path == "README.md" or path.startswith(("docs/", "../")) or not (REPOSITORY / path).is_file():
                continue
            added = File(path, str(REPOSITORY), config.site_dir, config.use_directory_urls)
            files.append(added)
            if added.src_uri.endswith(".md"):
                todo.append(added)
    for module in ("", *MODULES):
        page = f"reference/{module or 'qcircuit_peft'}.md"
        files.append(File.generated(config, page, content=_api(module)))
    files.append(File.generated(config, "reference/command.md", content=_cli()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links that work on GitHub work in the site."""
    path = repository_path(page.file)
    if not path:
        return markdown
    here = posixpath.dirname(page.file.src_uri)

    def moved(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), match[1]))
        return posixpath.relpath(site_path(target), here)

    return LINK.sub(moved, markdown)


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Nothing comes from the network."""
    return FOREIGN.sub("", output) if page.file.src_uri.endswith(".ipynb") else output


@event_priority(-200)
def on_post_build(config: Any) -> None:
    """Raise PluginError for a page that would fetch something."""
    for page in Path(config.site_dir).rglob("*.html"):
        if match := FETCHES.search(page.read_text(encoding="utf-8")):
            raise PluginError(f"{page.name} would fetch from the network: {match[0]!r}")


class Doctests(griffe.Extension):
    """Examples in docstrings are code."""

    def on_instance(self, *, obj: griffe.Object | griffe.Alias, **kwargs: Any) -> None:
        """Put a fence around each."""
        if not obj.is_alias and obj.docstring:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(text: str) -> str:
    """A docstring whose doctests are fenced code, and whose stars are stars."""
    blocks = []
    for block in text.split("\n\n"):
        if block.lstrip().startswith(">>>"):
            blocks.append(f"```pycon\n{block}\n```")
        else:
            blocks.append(re.sub(r"(?<![\w*`])\*(?=\w)", r"\\*", block))
    return "\n\n".join(blocks)
