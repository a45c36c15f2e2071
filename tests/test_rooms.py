"""Each fact has one room: what is written in one module is written in no other."""

import re
from pathlib import Path

import pytest

import qcircuit_peft

ROOT = Path(qcircuit_peft.__file__).parent
MODULES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in ROOT.rglob("*.py")}

# How it is written, an example, and where it may be.
ROOMS = {
    "a truth is no number": (
        r"not isinstance\([^()]+, bool\) (and|or)|isinstance\([^()]+, bool\) or",
        "isinstance(version, bool) or version != 1",
        "checks.py",
    ),
    "types of plain values": (r"type\([^()]+\) is (int|float|bool|str)\b", "type(mark) is float", "checks.py"),
    "TOML is read": (r"\btomllib\b", "import tomllib", "files.py"),
    "files are replaced": (
        r"\bos\.(replace|rename)\(|\.write_bytes\(|NamedTemporaryFile|mkstemp",
        "os.replace(draft, path)",
        "files.py",
    ),
    "JSON files are read": (
        r"json\.loads?\([^()]*(read_bytes|read_text|open)\(",
        "json.loads(config.read_bytes())",
        "files.py",
    ),
    "autocast is turned off": (
        r"autocast\([^()]*enabled=False",
        "torch.autocast(kind, enabled=False)",
        "precision.py",
    ),
    "layers of tuners are found": (
        r"named_modules\(\) if isinstance\(\w+, BaseTunerLayer\)",
        "for name, m in model.named_modules() if isinstance(m, BaseTunerLayer)",
        "tuner/names.py",
    ),
}


@pytest.mark.parametrize("fact", ROOMS)
def test_a_fact_has_one_room(fact: str) -> None:
    written, example, room = ROOMS[fact]
    assert re.search(written, example)
    assert {name for name, text in MODULES.items() if re.search(written, text)} <= {room}
