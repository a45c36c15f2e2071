"""Files: written whole or not at all, and read within bounds.

All that the package itself writes is written by ``STEPS``, called by their names in this module, so that a test can
stop the work before any of them, as a crash would.
"""

import io
import json
import os
import re
import secrets
import shutil
import stat
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from qcircuit_peft.text import printable, shortened, shown

fcntl: Any = import_module("fcntl") if find_spec("fcntl") else None  # Windows locks no folders
STEPS = ("make_folder", "write_bytes", "link", "replace", "remove", "sync_folder")
DRAFT = ".writing-"  # how the names begin of what is not yet in its place
_MAX_DOTS, _MAX_DEPTH = 1000, 32
_PATIENCE = 60.0  # seconds that one waits for another process, which may have been stopped
_PICTURES = ("png", "pdf", "svg")
# What a TOML or JSON file may hold of dots and brackets that mean nothing: texts and comments.
# A text that does not end goes to the end, so that each character is read once.
_TOML_TEXTS = re.compile(
    r"""
    \"{3} (?:[^"\\]+ | \\. | "(?!""))*+ (?:"{3,5})?
    | '{3} (?:[^']+ | '(?!''))*+ (?:'{3,5})?
    | " (?:[^"\\\n]+ | \\.)*+ "?
    | ' [^'\n]*+ '?
    | \# [^\n]*+
    """,
    re.DOTALL | re.VERBOSE,
)
_JSON_TEXTS = re.compile(r'"(?:[^"\\]+|\\.)*+"?', re.DOTALL)


def make_folder(path: Path) -> None:
    """A step: the folder is there, with those above it."""
    path.mkdir(parents=True, exist_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """A step: a new file with these bytes, on the disk when the step is done."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def link(source: Path, target: Path) -> None:
    """A step: a file has a second name; where the disk knows no such thing, it is copied."""
    try:
        os.link(source, target)
    except OSError:
        with open(source, "rb") as old, open(target, "xb") as new:
            shutil.copyfileobj(old, new)
            new.flush()
            os.fsync(new.fileno())


def replace(source: Path, target: Path) -> None:
    """A step: a file or folder has another name, at once; a file of that name is gone."""
    os.replace(source, target)


def remove(path: Path) -> None:
    """A step: a file or folder is gone, if it was there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync_folder(path: Path) -> None:
    """A step: the names in a folder are on the disk, where the system can say so."""
    with suppress(OSError):  # Windows, and some network disks
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def draft_of(path: Path) -> Path:
    """A new name in the same folder, and so on the same disk."""
    return path.with_name(f"{DRAFT}{secrets.token_hex(8)}")


def write(path: str | Path, data: str | bytes) -> None:
    """Write a file whole or not at all: at every instant it holds what it held, or all of ``data``.

    A link stays one, a device or pipe is written to as it is. Raises OSError as ``open`` does.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     write(Path(folder, "a.txt"), "new")
    ...     [path.name for path in Path(folder).iterdir()]
    ['a.txt']
    """
    target = Path(os.path.realpath(path))
    raw = data.encode("utf-8") if isinstance(data, str) else data
    if target.exists() and not target.is_file():
        with open(target, "wb") as file:  # a device, a pipe; a folder is refused by ``open``
            file.write(raw)
        return
    draft = draft_of(target)
    try:
        write_bytes(draft, raw)
        if target.exists():
            os.chmod(draft, stat.S_IMODE(target.stat().st_mode))
        replace(draft, target)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def write_figure(path: str | Path, figure: Any) -> None:
    """Write a figure of matplotlib as PNG, PDF or SVG by its ending: all is drawn before the file is touched.

    Raises ValueError for another ending, OSError as ``write``.
    """
    kind = Path(path).suffix.lower().removeprefix(".")
    if kind not in _PICTURES:
        raise ValueError(f"a picture's name ends in .{', .'.join(_PICTURES)}, got {shown(str(path))}")
    drawn = io.BytesIO()
    figure.savefig(drawn, format=kind, dpi=150)
    write(path, drawn.getvalue())


@contextmanager
def turn(folder: Path, reads: bool = False) -> Iterator[bool]:
    """Within it, other processes and threads that take turns on a folder wait; those that read do with each other.

    The lock is the system's, on the folder itself: it goes with a process that is killed, and leaves nothing behind.
    Where a system or a disk has none, and after a minute, the work is done without. It gives False after that minute:
    another one is at work.
    """
    handle, alone = None, True
    try:
        if fcntl is not None and folder.is_dir():
            kind, end = fcntl.LOCK_SH if reads else fcntl.LOCK_EX, time.monotonic() + _PATIENCE
            with suppress(OSError):
                handle = os.open(folder, os.O_RDONLY)
                while alone := time.monotonic() < end:
                    try:
                        fcntl.flock(handle, kind | fcntl.LOCK_NB)
                        break
                    except BlockingIOError:
                        time.sleep(0.01)
        yield alone
    finally:
        if fcntl is not None and handle is not None:
            with suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_UN)  # also for processes that were forked meanwhile
            os.close(handle)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which becomes ``path`` in one step; if another process was faster, its folder stays.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     with new_folder(Path(folder, "a")) as draft:
    ...         write(draft / "b.txt", "new")
    ...     [path.name for path in Path(folder, "a").iterdir()]
    ['b.txt']
    """
    make_folder(path.parent)
    draft = draft_of(path)
    make_folder(draft)
    try:
        yield draft
        sync_folder(draft)
        try:
            replace(draft, path)
        except OSError:
            if not path.is_dir():
                raise
    finally:
        remove(draft)
    sync_folder(path.parent)


def clear_drafts(folder: Path) -> None:
    """Remove the drafts that killed processes left in a folder; for one who knows that no other is at work there."""
    for path in folder.glob(f"{DRAFT}*"):
        remove(path)


def read(path: str | Path, what: str, most: int) -> bytes:
    """The bytes of a regular file of at most ``most`` bytes; no more than these are read, and no device or pipe.

    Raises ValueError, naming the file and ``what`` it should be, if it is not there, too large, or cannot be read.
    """
    path, name = Path(path), shortened(printable(str(path)))
    try:
        if not path.is_file():
            raise ValueError(f"{name}: there is no such {what} file")
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise ValueError(f"{name}: cannot be read: {error.strerror}") from None
    if len(data) > most:
        raise ValueError(f"{name}: a {what} file has at most {most} bytes, this has {path.stat().st_size}")
    return data


def read_toml(path: str | Path, what: str, most: int) -> dict[str, Any]:
    """A TOML file as plain data; raises ValueError as ``read`` does, and for what is not TOML.

    Before it is parsed: at most 1,000 dots outside of texts (a dotted key costs the square of its length), and
    brackets at most 32 deep.
    """
    return _parsed(path, what, read(path, what, most), tomllib.loads, "TOML", _TOML_TEXTS, _MAX_DOTS)


def read_json(path: str | Path, what: str, most: int) -> Any:
    """A JSON file as plain data; raises ValueError as ``read`` does, and for brackets more than 32 deep."""
    return parse_json(path, what, read(path, what, most))


def parse_json(path: str | Path, what: str, data: bytes) -> Any:
    """What ``read_json`` makes of the bytes of a file."""
    return _parsed(path, what, data, json.loads, "JSON", _JSON_TEXTS, None)


def _parsed(
    path: str | Path, what: str, data: bytes, loads: Any, kind: str, texts: re.Pattern[str], dots: int | None
) -> Any:
    try:
        content = data.decode("utf-8")
        bare = re.sub(r"[^.\[\]{}]+", "", texts.sub("", content))
        if dots is not None and bare.count(".") > dots:
            raise ValueError(f"it has at most {dots} dots outside of texts, got {bare.count('.')}")
        depth = 0
        for mark in bare.replace(".", ""):
            depth += 1 if mark in "[{" else -1
            if depth > _MAX_DEPTH:
                raise ValueError(f"its brackets are at most {_MAX_DEPTH} deep, got more")
        return loads(content)
    except (ValueError, RecursionError) as error:  # of the format, of UTF-8, and numbers too long to read
        raise ValueError(f"{shortened(printable(str(path)))}: not a {kind} file in UTF-8: {error}") from None
