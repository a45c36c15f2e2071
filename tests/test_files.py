"""Files are written whole or not at all and read within bounds; what messages repeat is short and harmless."""

import os
import stat
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from qcircuit_peft import checks, files
from qcircuit_peft.text import printable, shortened, shown


class Crash(BaseException):
    """What stops the work at a step, as a kill would: no handler of errors catches it."""


def crashing(monkeypatch: pytest.MonkeyPatch, at: int, before: bool) -> list[str]:
    """Lets the step of ``files`` with this number be the last, or never begin; the list of those that were called."""
    begun: list[str] = []
    for name in files.STEPS:
        step = getattr(files, name)

        def stopped(*args, name=name, step=step):
            begun.append(name)
            if before and len(begun) > at:
                raise Crash
            step(*args)
            if len(begun) > at:
                raise Crash

        monkeypatch.setattr(files, name, stopped)
    return begun


def write_over(folder: Path) -> None:
    files.write(folder / "a", "new" * 1000)


def fill(folder: Path) -> None:
    with files.new_folder(folder / "b") as draft:
        files.write(draft / "x", "new")
        files.write(draft / "y", "new")


def found(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and files.DRAFT not in str(path.relative_to(folder))
    }


@pytest.mark.parametrize("work", [write_over, fill])
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_a_crash_at_any_step_leaves_the_old_or_the_new(
    work: Callable[[Path], None], before: bool, tmp_path: Path
) -> None:
    seen = []
    for at in range(100):
        folder = tmp_path / str(at)
        folder.mkdir()
        (folder / "a").write_text("old")
        with pytest.MonkeyPatch.context() as patch:
            begun = crashing(patch, at, before)
            with suppress(Crash):
                work(folder)
        seen.append(found(folder))
        files.clear_drafts(folder)
        assert sorted(path.name for path in folder.iterdir()) in (["a"], ["a", "b"])
        if len(begun) <= at:
            break
    old, new = seen[0], seen[-1]
    assert old == {"a": "old"} and new != old and len(seen) > 3
    assert all(state in (old, new) for state in seen)


def test_an_error_leaves_no_draft_and_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write(tmp_path / "a", "old")
    monkeypatch.setattr(files, "replace", lambda *paths: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        files.write(tmp_path / "a", "new")
    assert found(tmp_path) == {"a": "old"} and len(list(tmp_path.iterdir())) == 1


def test_links_modes_and_devices_stay_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    real, link = tmp_path / "folder" / "real", tmp_path / "link"
    real.write_text("old")
    real.chmod(0o640)
    link.symlink_to(real)
    files.write(link, "new")
    assert link.is_symlink() and real.read_text() == "new" and stat.S_IMODE(real.stat().st_mode) == 0o640
    files.write("/dev/null", "gone")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()))
    reader.start()
    files.write(pipe, "through")
    reader.join()
    assert got == ["through"] and stat.S_ISFIFO(pipe.stat().st_mode)
    with pytest.raises(IsADirectoryError):
        files.write(tmp_path / "folder", "new")


def test_a_folder_that_is_there_already_stays(tmp_path: Path) -> None:
    with files.new_folder(tmp_path / "a") as draft:
        (draft / "x").write_text("mine")
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "x").write_text("theirs")
    assert found(tmp_path) == {"a/x": "theirs"} and len(list(tmp_path.iterdir())) == 1


def test_texts_and_comments_may_hold_what_they_like(tmp_path: Path) -> None:
    marks = "." * 2000 + "[" * 100
    text = f'a = """{marks}"""\nb = \'\'\'{marks}\'\'\'\nc = "\\"{marks}"\nd = \'{marks}\'\n# {marks}\n'
    text += f'e = """"{marks}"""""\n'
    files.write(tmp_path / "x.toml", text)
    assert set(files.read_toml(tmp_path / "x.toml", "test", 1 << 20)) == set("abcde")
    files.write(tmp_path / "x.json", f'["\\"{marks}"]')
    assert files.read_json(tmp_path / "x.json", "test", 1 << 20) == [f'"{marks}']
    with pytest.raises(ValueError, match="at most 32 deep"):
        files.write(tmp_path / "x.json", "[" * 10**5)
        files.read_json(tmp_path / "x.json", "test", 1 << 20)


def test_what_is_no_plain_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero"), tmp_path / ("x" * 300), tmp_path / "a\0b"):
        with pytest.raises(ValueError, match=r"no such test file|cannot be read"):
            files.read(path, "test", 10)


HOSTILE = "\x1b]0;title\x07\x9b31m\u202e\u2066\u200f\ud800\ue000\n\r\x00"


def test_no_control_character_comes_through() -> None:
    assert printable(HOSTILE).isprintable() and shown(HOSTILE).isprintable() and printable("né ±") == "né ±"
    assert all(printable(chr(c)).isprintable() for c in range(0x110000))


LONG = ["x" * 10**6, [["y" * 10**5] * 9] * 9, {i: "z" * 10**5 for i in range(99)}, 10**9999]


@pytest.mark.parametrize("value", LONG, ids=["text", "lists", "table", "number"])
def test_what_a_message_repeats_is_short(value: object) -> None:
    assert len(shown(value)) <= 200 and len(shortened("x" * 999, 50)) == 49
    with pytest.raises(ValueError) as error:
        checks.one_of("a name", value, ["b"])
    assert len(str(error.value)) < 300


CHECKS = {
    "whole_number": (lambda x: checks.whole_number("n", x, 1, 5), [1, 5], [0, 6, True, 1.0, "1", None, float("nan")]),
    "whole_numbers": (lambda x: checks.whole_numbers("n", x, 1), [[1], (2, 3)], [[], 1, [0], [True], "12", None, {1}]),
    "number": (lambda x: checks.number("n", x, 0, 1), [0, 0.5, 1], [-0.1, 1.1, True, "0", None, float("nan"), 10**400]),
    "below": (lambda x: checks.number("n", x, 0, below=1), [0, 0.999], [1, 1.0, -1, float("inf")]),
    "any number": (lambda x: checks.number("n", x), [-1e38, 1 << 100], [float("inf"), -float("inf"), 10**39, 1j]),
    "boolean": (lambda x: checks.boolean("n", x), [True, False], [0, 1, "true", None]),
    "one_of": (lambda x: checks.one_of("n", x, ["a", "b"]), ["a"], ["", "c", None, ["a"], 0]),
    "text": (lambda x: checks.text("n", x), ["", "a"], [None, 1, ["a"], b"a"]),
    "texts": (lambda x: checks.texts("n", x), [None, [], ["a"], {"a"}], ["a", [1], 1, {"a": 1}]),
    "a text": (lambda x: checks.texts("n", x, single=True), ["a", ["a"]], [1, [None]]),
    "pattern": (lambda x: checks.pattern("n", x), ["", "a.*"], ["(", "a{2,1}", "[", "a" * 10 + "{99999999999999}"]),
    "options": (
        lambda x: checks.options("n", "x", x, ["a"]),
        [{}, {"a": [1]}],
        [None, [], {"b": 1}, {1: 1}, {"a": {1, 2}}, {"a": float("nan")}],
    ),
    "keys": (
        lambda x: checks.keys("n", x, ["a", "b"], ["a"]),
        [{"a": 1}, {"a": 1, "b": 2}],
        [{}, {"b": 1}, {"a": 1, "c": 1}],
    ),
}


@pytest.mark.parametrize("check, right, wrong", CHECKS.values(), ids=CHECKS)
def test_every_check_takes_the_right_and_refuses_the_wrong(check, right, wrong) -> None:
    for value in right:
        assert check(value) in (value, None, tuple(value) if isinstance(value, list) else value)
    for value in wrong:
        with pytest.raises(ValueError, match=r"^n") as error:
            check(value)
        assert "\n" not in str(error.value)


def test_all_that_is_written_is_written_by_the_steps() -> None:
    words = ["write_text(", "write_bytes(", "os.replace(", ".rename(", ".savefig(", "mkstemp(", '"w"', '"wb"']
    allowed = {
        "files.py",
        "compare/worker.py",  # resets a counter of the kernel
        "study/front.py",  # draws into memory
        "study/report.py",  # likewise
    }
    root = Path(files.__file__).parent
    others = [
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        if any(word in path.read_text(encoding="utf-8") for word in words)
    ]
    assert set(others) <= allowed
