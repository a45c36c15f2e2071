"""Saving that never leaves half a checkpoint, and where to find a whole one.

An adapter is several files, and no system replaces several at once. So all are written into a draft, and the draft is
renamed to ``COMMITTED``: that is the instant of the save, from which on the folder means what lies in there. Then every
file takes its place, and ``COMMITTED`` goes. Who loads looks there first; who saves next ends what was interrupted.
"""

import functools
import hashlib
import inspect
import io
import json
import shutil
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from importlib.metadata import PackageNotFoundError, version
from math import inf
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from safetensors import safe_open

from qcircuit_peft import files
from qcircuit_peft.text import printable, shortened
from qcircuit_peft.tuner.meaning import is_kind, meaning
from qcircuit_peft.tuner.names import complete

try:
    VERSION = version("qcircuit-peft")
except PackageNotFoundError:  # a source tree that was never installed
    VERSION = "of an unknown version"
LIBRARY = "library"  # the key in a configuration that says who wrote it, and what a reader without that has to do
COMMITTED = ".saved"
MAX_CONFIG = 1 << 20  # bytes of an adapter_config.json
DIGEST = "qcircuit_peft.configuration"  # the key in the metadata of weights, or an attribute of their table
_WEIGHTS = (SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME)
_waiting: ContextVar[list[Callable[[Path], Any]] | None] = ContextVar("waiting", default=None)
_OF_0_1 = (".saving-????????", ".replaced-????????")  # what a save that was killed left in version 0.1


def current(folder: Path, name: str = CONFIG_NAME) -> Path:
    """The folder with the files that are saved in a folder, such as one of this name: itself, but amid a save."""
    committed = folder / COMMITTED
    return committed if (committed / name).is_file() else folder


def where_it_is(load: Callable[..., Any]) -> Callable[..., Any]:
    """A function of PEFT or transformers that reads a checkpoint, and amid a save the whole one (``current``)."""
    signature = inspect.signature(load)
    names = ("model_id", "peft_model_id", "pretrained_model_name_or_path")
    source = next(name for name in names if name in signature.parameters)

    @functools.wraps(load)
    def loader(*args: Any, **kwargs: Any) -> Any:
        call = signature.bind(*args, **kwargs)
        given = call.arguments
        tables = [name for name in ("kwargs", "hf_hub_download_kwargs", "adapter_kwargs") if given.get(name)]
        holders = [table for table in (given, *(given[name] for name in tables)) if table.get("subfolder")]
        place, inside = given.get(source), holders[0]["subfolder"] if holders else ""
        if place is None:
            return load(*call.args, **call.kwargs)
        folder = Path(place, inside)
        with files.turn(folder, reads=True):
            if (found := current(folder)) != folder:
                given[source] = str(found)
                given.pop("subfolder", None)
                for name in tables:
                    given[name] = {key: value for key, value in given[name].items() if key != "subfolder"}
            return load(*call.args, **call.kwargs)

    return loader


def settle(folder: Path) -> None:
    """End a save into a folder that was interrupted, if one was: every file takes its place."""
    committed = folder / COMMITTED
    if not committed.is_dir():
        return
    names = [path.name for path in committed.iterdir() if path.is_file()]
    for name in sorted(names, key=lambda name: name not in _WEIGHTS):  # weights first
        spare = files.draft_of(folder / name)
        files.link(committed / name, spare)
        files.replace(spare, folder / name)
    if any(name in _WEIGHTS for name in names):
        for other in {*_WEIGHTS}.difference(names):  # weights of another format, which PEFT might prefer
            files.remove(folder / other)
    files.sync_folder(folder)
    gone = files.draft_of(committed)
    files.replace(committed, gone)
    files.remove(gone)


def _exchange(draft: Path, target: Path, alone: bool) -> None:
    """Put the files of a draft in the place of those that a folder has: all at once for who loads it.

    Debris of killed processes goes, unless it may be the draft of one who is at work: where one is not ``alone``.
    """
    settle(target)
    files.sync_folder(draft)
    files.replace(draft, target / COMMITTED)
    files.sync_folder(target)
    settle(target)
    if alone:
        files.clear_drafts(target)
    for path in [path for pattern in _OF_0_1 for path in target.glob(pattern)]:
        files.remove(path)


def _check_room(draft: Path, target: Path) -> None:
    """Raise ValueError if there is a folder where a draft has a file, or weights in another format; or a file."""
    wanted = {path: path.is_dir() for path in sorted(draft.rglob("*"))}
    others = {path.with_name(name): False for path in wanted if path.name in _WEIGHTS for name in _WEIGHTS}
    for path, is_folder in (wanted | others).items():
        place = target / path.relative_to(draft)
        if place.exists() and place.is_dir() != is_folder:
            here, there = ("a file", "a folder") if is_folder else ("a folder", "a file")
            told = shortened(printable(str(place)))
            raise ValueError(f"{told} is {here}, where {there} is to be saved; move it away, nothing was changed")


@contextmanager
def replaced_at_once(target: Path) -> Iterator[Path]:
    """A folder to fill with files, which take the place of those that ``target`` has, all or none of them.

    Who saves into it meanwhile, or loads, waits.
    """
    files.make_folder(target)
    with files.turn(target) as alone:
        settle(target)
        draft = files.draft_of(target / COMMITTED)
        files.make_folder(draft)
        try:
            yield draft
            _check_room(draft, target)
            inside = [path.relative_to(draft) for path in draft.rglob("*") if path.is_dir()]
            for name in reversed(inside):  # the innermost first
                _sign(draft / name)
                files.make_folder(target / name)
                with files.turn(target / name) as here:
                    _exchange(draft / name, target / name, here)
            _sign(draft)
            _exchange(draft, target, alone)
        finally:
            files.remove(draft)


def whole_or_not(save: Callable[..., None], applies: Callable[[Any], bool]) -> Callable[..., None]:
    """A ``save_pretrained`` after which, and at every instant of which, a folder holds the old or the new adapter.

    Weights get a digest of their configuration. Models to which it does not apply are saved as ever.
    """
    signature = inspect.signature(save)

    @functools.wraps(save)
    def save_pretrained(self: Any, save_directory: str, *args: Any, **kwargs: Any) -> None:
        given = signature.bind(self, save_directory, *args, **kwargs).arguments
        is_main, target = given.get("is_main_process", True), Path(save_directory)
        if is_main and target.is_dir():
            with files.turn(target):
                settle(target)
        if not applies(self) or not is_main or target.is_file():
            return save(self, save_directory, *args, **kwargs)
        if given.get("push_to_hub", False):
            kwargs.setdefault("repo_id", target.name)  # as transformers does, but not by the name of the draft
        with replaced_at_once(target) as draft, complete(), _held_back() as uploads:
            if (target / "README.md").is_file():  # PEFT updates the model card that it finds
                shutil.copy2(target / "README.md", draft)
            save(self, str(draft), *args, **kwargs)
        for upload in uploads:
            upload(target)
        return None

    return save_pretrained


@contextmanager
def _held_back() -> Iterator[list[Callable[[Path], Any]]]:
    """Within it, nothing is uploaded; what would have been, given the folder where it lies in the end."""
    uploads: list[Callable[[Path], Any]] = []
    token = _waiting.set(uploads)
    try:
        yield uploads
    finally:
        _waiting.reset(token)


def uploaded_when_saved(upload: Callable[..., Any]) -> Callable[..., Any]:
    """transformers' ``_upload_modified_files``, which within a save waits until the files are whole and signed."""

    @functools.wraps(upload)
    def wait(self: Any, working_dir: Any, repo_id: str, files_timestamps: Any, *args: Any, **kwargs: Any) -> Any:
        waiting, names = _waiting.get(), {path.name for path in Path(working_dir).iterdir()}
        if waiting is None:
            return upload(self, working_dir, repo_id, files_timestamps, *args, **kwargs)

        def now(folder: Path) -> Any:
            others = {path.name: inf for path in folder.iterdir() if path.name not in names}  # as if never touched
            return upload(self, str(folder), repo_id, others, *args, **kwargs)

        waiting.append(now)
        return None

    return wait


def ours_in(config: Path) -> dict[str, Any] | None:
    """The configuration that a file holds, if it is one of an adapter of this package."""
    with suppress(ValueError):  # PEFT says what is wrong with others
        data = files.read_json(config, "configuration", MAX_CONFIG)
        if isinstance(data, dict) and is_kind(data.get("peft_type")):
            return data
    return None


def _digest(data: Mapping[str, Any]) -> str:
    """Of all in a configuration of ours that gives numbers their meaning."""
    told = meaning(data, PEFT_TYPE_TO_CONFIG_MAPPING[data["peft_type"]].incidental)  # type: ignore[attr-defined]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _sign(folder: Path) -> None:
    """Write the digest of a configuration into the weights beside it."""
    for weights in (folder / name for name in _WEIGHTS):
        data = ours_in(folder / CONFIG_NAME) if weights.is_file() else None
        if data is not None:
            digest = _digest(data)
            files.write(weights, _signed(weights, digest) if weights.suffix == ".bin" else _marked(weights, digest))


def _marked(weights: Path, digest: str) -> bytes:
    """A file of safetensors with a digest in its metadata."""
    raw = weights.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:end])
    header["__metadata__"] = {**header.get("__metadata__", {}), DIGEST: digest}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors stay aligned
    return len(text).to_bytes(8, "little") + text + raw[end:]


def _signed(weights: Path, digest: str) -> bytes:
    """A file of torch's with a digest as an attribute of its table."""
    table = OrderedDict(torch.load(weights, weights_only=True))
    setattr(table, DIGEST, digest)
    written = io.BytesIO()
    torch.save(table, written)
    return written.getvalue()


def _digest_in(weights: Path) -> str | None:
    """The digest that a file of weights has; older ones have none."""
    if weights.suffix == ".bin":
        with suppress(RuntimeError):  # in a format of torch's that cannot be mapped, which ours is not
            return getattr(torch.load(weights, weights_only=True, mmap=True, map_location="cpu"), DIGEST, None)
        return None
    with safe_open(weights, "pt") as opened:
        return (opened.metadata() or {}).get(DIGEST)


def located(source: str, hub: Mapping[str, Any]) -> tuple[Path | None, Path | None]:
    """The files with the configuration and the weights of a checkpoint, in a folder or in the cache of the Hub."""
    inside = hub.get("subfolder") or ""
    folder = current(Path(source, inside))

    def find(name: str) -> Path | None:
        if folder.is_dir():
            return folder / name if (folder / name).is_file() else None
        options = {key: hub[key] for key in ("cache_dir", "revision", "repo_type") if hub.get(key)}
        cached = try_to_load_from_cache(source, (PurePosixPath(inside) / name).as_posix(), **options)
        return Path(cached) if isinstance(cached, str) else None

    return find(CONFIG_NAME), next(filter(None, map(find, _WEIGHTS)), None)


def with_digest(state: Mapping[str, Any], weights: Path) -> Mapping[str, Any]:
    """What was read from a file of weights, and the digest that the file has, if any."""
    if (digest := _digest_in(weights)) is None:
        return state
    table = OrderedDict(state)
    setattr(table, DIGEST, digest)
    return table


def check_known(weights: Any, config: Any, whose: str) -> None:
    """Raise ValueError if weights, a file or a table read from one, know another configuration than this one."""
    known = _digest_in(weights) if isinstance(weights, Path) else getattr(weights, DIGEST, None)
    if known is not None and known != _digest(config.to_dict()):
        raise ValueError(
            f"the weights were saved with another configuration than that of {whose}; load them with their own "
            f"{CONFIG_NAME}, or under another name"
        )


def check_signed(config: Path, weights: Path) -> None:
    """Raise ValueError if weights know another configuration than that of this file; older ones know none."""
    known, data = _digest_in(weights), ours_in(config)
    if known is not None and known != (data and _digest(data)):
        if data is not None:  # what is wrong with the configuration itself is said first
            PEFT_TYPE_TO_CONFIG_MAPPING[data["peft_type"]].from_pretrained(str(config.parent))
        raise ValueError(
            f"{shortened(printable(str(weights.parent)))}: {weights.name} was not saved with this {CONFIG_NAME}; "
            "copy both from one save"
        )
