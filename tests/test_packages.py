"""The circuits come along in every form in which the library is installed."""

import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import yaml

import qcircuit_peft

ROOT = Path(__file__).parent.parent
LOADS = """
import importlib.metadata, qcircuit_peft, sys
from qcircuit_peft.ansatz import names
assert qcircuit_peft.__file__.startswith(sys.argv[1]), qcircuit_peft.__file__
assert importlib.metadata.version("qcircuit-peft") == qcircuit_peft.__version__
circuits = [qcircuit_peft.load(name).circuit(qubits=4, layers=1) for name in names()]
print(len(circuits), "circuits")
"""


def test_the_citation_is_of_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (cited["version"], cited["license"]) == (qcircuit_peft.__version__, project["license"])
    assert f"## [{qcircuit_peft.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_wheel_made_from_the_sdist_loads_every_circuit_from_any_folder(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True)  # the sdist first, then the wheel from it
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as sdist:
        assert sum("/circuits/" in name and name.endswith(".toml") for name in sdist.getnames()) == 32
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        assert "qcircuit_peft/py.typed" in wheel.namelist()
        assert {Path(name).parts[0].split("-")[0] for name in wheel.namelist()} == {"qcircuit_peft"}
        wheel.extractall(tmp_path / "site")
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOADS, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site"), "HF_HUB_OFFLINE": "1"},
    )
    assert run.stdout == "32 circuits\n", run.stderr[-2000:]
