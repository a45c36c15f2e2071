"""Processes that are killed, and disks that fail, at a step of what writes: the library's own and its libraries'."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from transformers import TrainerState

import qcircuit_peft.methods.method
import qcircuit_peft.tasks.task
from qcircuit_peft import files

# What writes: an owner, a name, and which argument is the path of a file that is half written when it is cut short.
OURS = [(files, name, None) for name in files.STEPS]
OTHERS = [
    (peft.peft_model, "safe_save_file", 1),
    (transformers.modeling_utils, "safe_save_file", 1),
    (qcircuit_peft.methods.method, "save_file", 1),
    (qcircuit_peft.tasks.task, "save_file", 1),
    (torch, "save", 1),
    (TrainerState, "save_to_json", 1),
]
ENDS = ("replace", "remove", "sync_folder")  # which need no space

forked = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="kills are tried on a process that was forked"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning"),
]


def _half(path: Any) -> None:
    if isinstance(path, str | os.PathLike):
        Path(path).write_bytes(b'{"x": ')


def _watched(patch: pytest.MonkeyPatch, before: Callable[[str, Callable[[], None]], None]) -> None:
    """Let ``before`` be called before each step, with its name and what it leaves where it is cut short."""
    for owner, name, path in (*OURS, *OTHERS):
        step = getattr(owner, name)

        def run(*args: Any, step: Any = step, name: str = name, path: int | None = path, **kwargs: Any) -> Any:
            before(name, lambda: None if path is None else _half(args[path]))
            return step(*args, **kwargs)

        patch.setattr(owner, name, run)
    tree = shutil.rmtree

    def rmtree(folder: Any, *args: Any, **kwargs: Any) -> None:
        def one_less() -> None:
            for path in sorted(Path(folder).rglob("*")):
                if path.is_file():
                    return path.unlink()

        before("rmtree", one_less)
        tree(folder, *args, **kwargs)

    patch.setattr(shutil, "rmtree", rmtree)


def killed(work: Callable[[], Any], at: int) -> bool:
    """Whether a process that does this was killed before its step of this number, or had fewer."""
    pid = os.fork()
    if pid == 0:
        try:
            begun = 0

            def before(name: str, half: Callable[[], None]) -> None:
                nonlocal begun
                begun += 1
                if begun > at:
                    half()
                    os._exit(9)

            _watched(pytest.MonkeyPatch(), before)
            work()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, 9)
    return status == 9


def steps(work: Callable[[], Any]) -> list[str]:
    """The names of the steps of this work."""
    with failing(10**9, lasting=False) as begun:
        work()
    return begun


@contextmanager
def failing(at: int, lasting: bool) -> Iterator[list[str]]:
    """The step of this number fails; if it is ``lasting``, all that need space do from then on.

    The names of those that have begun.
    """
    begun: list[str] = []

    def before(name: str, half: Callable[[], None]) -> None:
        begun.append(name)
        if len(begun) == at + 1 if not lasting else len(begun) > at and name not in (*ENDS, "rmtree"):
            half()
            raise OSError(errno.ENOSPC if lasting else errno.EIO, "failed on purpose")

    with pytest.MonkeyPatch.context() as patch:
        _watched(patch, before)
        yield begun
