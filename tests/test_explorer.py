"""The page of the explorer computes what the library computes, and text from files is text in it."""

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from qcircuit_peft import Ansatz, Circuit, Op, Step, load, matrix, state
from qcircuit_peft.analysis.entanglement import meyer_wallach
from qcircuit_peft.ansatz import names
from qcircuit_peft.explorer import page, tables
from qcircuit_peft.lie import independent_angles

CORE = Path(__file__).parent.parent / "qcircuit_peft" / "explorer" / "core.js"
NODE, CHROMIUM = shutil.which("node"), shutil.which("chromium")
EVIL = Ansatz("</script><img src=x onerror=alert(1)>", "<b>&amp;</b>\u2028", layer=[Step(["CZ", "RY"], [[0, 1]])])

RUN = """
const core = require(process.argv[1]), { tables, cases } = JSON.parse(require("fs").readFileSync(0));
const C = core(tables);
console.log(JSON.stringify(cases.map(({ family, n, layers, angles }) => {
  const f = C.checked(family), c = C.circuit(f, n, layers), s = C.state(c, angles);
  return { ...C.counts(c), ops: c.ops.map((op) => [op.gate.name, op.wires]), re: [...s.re], im: [...s.im],
    q: C.meyerWallach(s, n), rank: Math.max(C.independent(c, 1), C.independent(c, 2)), phases: C.phases(c, angles),
    toml: C.toml(f), mean: C.entanglement(f, n, 1, 400)[1] };
})));
"""


@pytest.mark.skipif(NODE is None, reason="needs node")
def test_the_page_computes_what_the_library_computes() -> None:
    from qcircuit_peft.analysis import capacity

    torch.manual_seed(0)
    families = [
        *map(load, names()),
        Ansatz("mine \u00e4\x7f", last=[Step("H", [[0], [1]])], layer=[Step("CRX", "ring")]),
    ]
    cases, wanted = [], []
    for family in families:
        for n in (3, 4):
            try:
                circuit = family.circuit(qubits=n, layers=2)
            except ValueError:
                continue
            angles = 2 * torch.pi * torch.rand(circuit.n_angles, dtype=torch.float64)
            plain = {key: value for key, value in family.to_dict().items() if key != "version"}
            cases.append({"family": plain, "n": n, "layers": 2, "angles": angles.tolist()})
            wanted.append((family, n, circuit, angles))
    assert NODE is not None
    given = json.dumps({"tables": tables(), "cases": cases})
    done = subprocess.run([NODE, "-e", RUN, str(CORE)], input=given, capture_output=True, text=True, check=True)
    for found, (family, n, circuit, angles) in zip(json.loads(done.stdout), wanted, strict=True):
        name = f"{family.name}, {n}"
        assert [[op.gate, list(op.wires)] for op in circuit.ops] == found["ops"], name
        assert (found["angles"], found["depth"]) == (circuit.n_angles, circuit.depth), name
        assert found["two"] == sum(len(op.wires) == 2 for op in circuit.ops), name
        made = state(circuit, angles)
        np.testing.assert_allclose(np.array(found["re"]) + 1j * np.array(found["im"]), made.numpy(), atol=1e-12)
        assert found["q"] == pytest.approx(float(meyer_wallach(made)), abs=1e-12), name
        assert found["rank"] == independent_angles(circuit), name
        own = np.linalg.eigvals(matrix(circuit, angles).numpy())
        theirs = np.exp(1j * np.array(found["phases"]))
        assert len(theirs) == 2**n
        for power in (1, 2, 3):  # the sums of powers of the eigenvalues name them, with how often each occurs
            assert (theirs**power).sum() == pytest.approx((own**power).sum(), abs=1e-9), name
        assert found["toml"] == family.to_toml(), name
        if n == 3:
            [exact] = capacity(family, n, [1], samples=2000, generator=torch.Generator().manual_seed(1))
            spread = 5 * (found["mean"]["error"] ** 2 + (exact.std or 0) ** 2 / 2000) ** 0.5
            assert abs(found["mean"]["mean"] - exact.mean) < spread + 1e-9, name


def test_text_from_a_file_is_text() -> None:
    text = page(EVIL)
    assert "<img" not in text and text.count("</script>") == 3
    data = json.loads(re.findall(r'id="data">(.*?)</script>', text, re.DOTALL)[0])
    assert data["families"][0]["name"] == EVIL.name and data["start"] == 0


def test_the_policy_allows_the_scripts_of_the_page_and_nothing_else() -> None:
    text = page()
    policy = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)[0]
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    hashes = {base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts}
    assert set(re.findall(r"sha256-([^']+)'", policy)) == hashes and len(hashes) == 2
    assert policy.startswith("default-src 'none'") and "unsafe-inline'; script" in policy
    assert not re.search(r"(src|href)=|https?://(?!www\.w3\.org/2000/svg)", text)


def test_one_circuit_is_no_family() -> None:
    with pytest.raises(ValueError, match="takes a family, made of steps, but 'circuit' is one circuit"):
        page(load(Circuit((2, 2), [Op("CZ", (0, 1))])))


def shown(text: str, folder: Path, act: str = "") -> str:
    """What a browser makes of the page after something was done to it."""
    body = re.sub(r"<meta http-equiv[^>]*>", "", text) if act else text  # the policy would stop the test, too
    (folder / "page.html").write_text(body.replace("</body>", f"<script>{act}</script></body>"), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    flags += [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=8000", "--dump-dom"]
    assert CHROMIUM is not None
    done = subprocess.run(
        [CHROMIUM, *flags, f"file://{folder / 'page.html'}"], capture_output=True, text=True, timeout=120, check=True
    )
    return html.unescape(done.stdout)


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_shows_what_was_chosen_and_edited(tmp_path: Path) -> None:
    act = """
    const set = (id, value, kind) => {
      const x = document.querySelector(id);
      x.value = value;
      x.dispatchEvent(new Event(kind));
    };
    const names = [...document.querySelector("#family").options].map((o) => o.text);
    set("#family", names.indexOf("line_ry_cz"), "change"); set("#qubits", 4, "input"); set("#layers", 8, "input");
    set('[aria-label="wires of layer 1"]', "ring", "change");
    """
    text = shown(page(), tmp_path, act)
    family = load("line_ry_cz")
    edited = Ansatz(
        "my_line_ry_cz", family.about, "", family.first, (Step(family.layer[0].gate, "ring"), *family.layer[1:])
    )
    circuit = edited.circuit(qubits=4, layers=8)
    assert edited.to_toml() in text and 'load("my_line_ry_cz.toml")' in text
    assert f"<td>angles</td><td>{circuit.n_angles}</td>" in text
    assert f'<td id="independent">{independent_angles(circuit)}</td>' in text
    assert text.count('class="box turn"') == circuit.n_angles and "of them different" in text


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_runs_nothing_from_a_file(tmp_path: Path) -> None:
    text = shown(page(EVIL), tmp_path)
    assert f'name  = "{EVIL.name}"' in text and "of them different" in text  # the page works under its policy
    assert "onerror" in text and not re.search(r"<img[^>]*onerror[^>]*>(?!\"|</option>|\n)", text.split("<header>")[0])
