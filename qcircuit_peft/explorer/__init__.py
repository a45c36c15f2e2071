"""The explorer: one page for a browser, without server and network, in which a circuit is chosen, edited and looked at.

What it shows it computes itself, from tables that are made here; ``core.js`` is the computation, which tests compare
with the library.
"""

import base64
import hashlib
import json
from functools import cache
from importlib.resources import files as resources
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined

from qcircuit_peft.ansatz import WIRINGS, Ansatz, load, names
from qcircuit_peft.gates import GATES, Gate
from qcircuit_peft.text import printable, shown

MAX_QUBITS = 8


def _resource(name: str) -> str:
    return (resources("qcircuit_peft.explorer") / name).read_text(encoding="utf-8")


def _parts(matrix: np.ndarray) -> list[list[float]]:
    """Real and imaginary parts, row by row, exact where they are a half or a whole."""
    return [[round(float(x), 15) + 0.0 for x in part.ravel()] for part in (np.real(matrix), np.imag(matrix))]


def _gate(gate: Gate) -> dict[str, Any]:
    """A gate as C0 + C1 cos(f t) + C2 sin(f t), read off at three angles."""
    zero, half, quarter = (
        np.asarray(gate.matrix((x / gate.frequency,) * gate.angles), dtype=complex) for x in (0, np.pi, np.pi / 2)
    )
    constant, cosine = (zero + half) / 2, (zero - half) / 2
    ports = False  # whether a box has to say which of its wires is the first
    if gate.wires == 2:
        somewhere = gate.matrix((0.7,) * gate.angles).reshape(2, 2, 2, 2)
        ports = not np.allclose(somewhere, somewhere.transpose(1, 0, 3, 2))
    marks, _, box = gate.drawing.partition(" ")
    return {
        "name": gate.name, "wires": gate.wires, "angles": gate.angles, "real": gate.real, "frequency": gate.frequency,
        "constant": _parts(constant), "cosine": _parts(cosine), "sine": _parts(quarter - constant),
        "marks": marks, "box": box or gate.name, "ports": ports, "about": gate.about,
    }  # fmt: skip


@cache
def tables() -> dict[str, Any]:
    """The gates, the wirings on 1 to 8 qubits, and mean Q of random states there, as plain data."""
    sizes = range(1, MAX_QUBITS + 1)
    return {
        "gates": [_gate(gate) for gate in GATES.values()],
        "wirings": {name: [wiring(n) for n in sizes] for name, wiring in WIRINGS.items()},
        "random": {
            "real": [(2**n - 2) / (2**n + 2) for n in sizes],
            "complex": [(2**n - 2) / (2**n + 1) for n in sizes],
        },
    }


def page(own: Ansatz | None = None) -> str:
    """The page as HTML; ``own`` is a family beside those of the library, and the one that is shown first.

    Raises ValueError for one circuit in the place of a family. Nothing in the page is fetched or sent: its policy
    allows the scripts that it holds and nothing else, and what comes from a file is text in it.

    >>> page().startswith("<!doctype html>")
    True
    """
    if own is not None and own.fixed is not None:
        raise ValueError(f"the explorer takes a family, made of steps, but {shown(own.name)} is one circuit")
    families = [load(name) for name in names()]
    plain = [{"shipped": True, **_plain(family)} for family in families]
    if own is not None:
        plain.insert(0, {"shipped": own in families, **_plain(own)})
    start = 0 if own is not None else names().index("simplified_two_design")
    data = json.dumps({**tables(), "families": plain, "start": start}, separators=(",", ":"), ensure_ascii=True)
    scripts = [_resource("core.js"), _resource("page.js")]
    policy = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in scripts
    )
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(_resource("page.html"))
    return template.render(
        style=_resource("page.css"), scripts=scripts, policy=policy, data=data.replace("<", "\\u003c")
    )


def _plain(family: Ansatz) -> dict[str, Any]:
    found = {key: value for key, value in family.to_dict().items() if key != "version"}
    return found | {key: printable(found[key]) for key in ("about", "cite")}
