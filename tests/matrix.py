"""Installs the package as users do, on every Python found, with the oldest and newest versions allowed, and tests it.

    python tests/matrix.py [--python 3.11 3.12] [--ends oldest newest]

Each row is a fresh environment with the wheel, what the demo needs and pytest; its tests are those of fine-tuning,
which need nothing else. Prints a table in Markdown; the whole output of a row that fails comes after it. Gigabytes are
downloaded for torch.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
TESTS = (
    "bank", "calibration", "fixtures", "generation", "heads", "incoming", "maps", "names", "qpa", "rates",
    "round_trip", "saving", "share", "svd", "training", "tuner", "tuner_conventions", "tuner_errors",
    "tuner_factorizations", "tuner_io", "tuner_merge", "tuner_quantization", "weighted",
)  # fmt: skip
SHOWN = ("torch", "transformers", "peft", "numpy", "scipy")
OURS = ("-W", "ignore::DeprecationWarning", "-W", "ignore::FutureWarning")  # of releases about each other
TOOLS = ("pytest", "pytest-xdist", "hypothesis", "beartype")


def oldest() -> list[str]:
    """Constraints: of every dependency that has a lower bound, the releases that begin with it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = []
    for line in project["dependencies"]:
        name, bound = re.match(r"([\w-]+)>=([\d.]+)", line).groups()
        found.append(f"{name}=={bound if '.' in bound else f'{bound}.0'}.*")
    return found


def answers(python: str) -> bool:
    """Whether there is such a Python, and not only a name for one that is not chosen."""
    return bool(shutil.which(python)) and not subprocess.run([python, "-c", ""], capture_output=True).returncode


def quiet(*command: str | Path, **more: object) -> None:
    """Run a command; its output is shown if it fails."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, **more)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}")


def row(python: str, end: str, folder: Path) -> list[str]:
    """The cells of one environment, made in a folder: the versions, and what pytest said."""
    quiet(python, "-m", "venv", folder / "venv")
    pip = [folder / "venv/bin/python", "-m", "pip", "install", "-q", "--no-input", "-c", folder / "constraints.txt"]
    lines = ["torchvision<0", *(oldest() if end == "oldest" else [])]
    (folder / "constraints.txt").write_text("\n".join(lines) + "\n")
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "circuits", folder / "circuits")
    shutil.copy(ROOT / "pyproject.toml", folder)
    quiet(*pip, f"{ROOT}[demo]", *TOOLS)
    quiet(*pip, "--no-deps", "--require-hashes", "-r", ROOT / ".ci/packages.txt")
    code = f"from importlib.metadata import version; print(*map(version, {SHOWN}))"
    say = subprocess.run([folder / "venv/bin/python", "-c", code], capture_output=True, text=True, check=True)
    files = [f"tests/test_{name}.py" for name in TESTS]
    done = subprocess.run(
        [folder / "venv/bin/python", "-m", "pytest", "-q", "-n", "2", "-k", "not backend", *OURS, *files],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout.strip().splitlines()[-1].strip("= ") if done.stdout.strip() else done.stderr[-300:]
    if done.returncode:
        print(done.stdout[-20000:], done.stderr[-2000:], sep="\n", file=sys.stderr)
    return [*say.stdout.split(), said]


def main(pythons: list[str], ends: list[str]) -> None:
    print(f"| Python | versions | {' | '.join(SHOWN)} | tests |\n|{'---|' * (len(SHOWN) + 3)}", flush=True)
    good = True
    for version in pythons:
        for end in ends:
            with tempfile.TemporaryDirectory() as folder:
                try:
                    cells = row(f"python{version}", end, Path(folder))
                except (RuntimeError, subprocess.CalledProcessError) as error:
                    print(error, file=sys.stderr)
                    cells = [*["" for _ in SHOWN], "not installed"]
            print(f"| {version} | {end} | {' | '.join(cells)} |", flush=True)
            good &= "passed" in cells[-1] and not re.search("failed|error", cells[-1])
    sys.exit(not good)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    found = [f"3.{minor}" for minor in range(11, 20) if answers(f"python3.{minor}")]
    parser.add_argument("--python", nargs="+", default=found, dest="pythons")
    parser.add_argument("--ends", nargs="+", default=["oldest", "newest"], choices=["oldest", "newest"])
    given = parser.parse_args()
    main(given.pythons, given.ends)
