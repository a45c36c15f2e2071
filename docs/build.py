"""Writes the generated pages of docs/: ``make docs``."""

import csv
import re
import tempfile
import textwrap
import warnings
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModel,
    BertConfig,
    DebertaV2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    ViTConfig,
)

from qcircuit_peft import QCircuitConfig, columns, load, parameter_count, parameter_groups
from qcircuit_peft.analysis import METRICS, Metric
from qcircuit_peft.analysis.tables import from_csv
from qcircuit_peft.ansatz import WIRINGS, names
from qcircuit_peft.backends import BACKENDS
from qcircuit_peft.drawing import draw
from qcircuit_peft.factorizations import FACTORIZATIONS
from qcircuit_peft.factorizations.parts import Factorization, sizes, trained_sizes
from qcircuit_peft.factorizations.parts import make as make_parts
from qcircuit_peft.frames import FRAMES
from qcircuit_peft.gates import GATES, Gate, Part
from qcircuit_peft.lie import directions
from qcircuit_peft.methods import METHODS
from qcircuit_peft.study import front
from qcircuit_peft.study.field import Field, Outcome

HERE = Path(__file__).parent

_DEBERTA = {"relative_attention": True, "position_buckets": 256, "norm_rel_ebd": "layer_norm", "share_att_key": True}
_GROUPED = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 14336}
_LLAMA = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 11008}

# model, its configuration, the modules that the papers adapt
MODELS: dict[str, tuple[Callable[[], PretrainedConfig], list[str]]] = {
    "DeBERTaV3-base": (
        lambda: DebertaV2Config(
            vocab_size=128100, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072,
            type_vocab_size=0, max_relative_positions=-1, pos_att_type=["p2c", "c2p"], **_DEBERTA,
        ),
        ["query_proj", "key_proj", "value_proj", "attention.output.dense", "intermediate.dense", "output.dense"],
    ),
    "GPT-2 medium": (lambda: GPT2Config(n_embd=1024, n_layer=24, n_head=16), ["c_attn"]),
    "ViT-base": (lambda: ViTConfig(), ["q_proj", "v_proj"]),
    "Mistral-7B": (
        lambda: MistralConfig(num_key_value_heads=8, **_GROUPED), ["q_proj", "k_proj", "v_proj", "gate_proj"]
    ),
    "Llama-2-7B": (lambda: LlamaConfig(**_LLAMA), ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]),
}  # fmt: skip


def parameters() -> str:
    """Trainable parameters on published models, on the meta device: no weights are needed."""
    lines = [
        "# Trainable parameters",
        "",
        "Counted by `parameter_count(config, model)` on meta-device models; regenerate with `make docs`.",
        "The adapter is the default ansatz (`simplified_two_design`). These are our own counts: the totals published",
        "for Quantum-PEFT do not follow from its formula for this ansatz.",
        "",
        "| model | modules | L = 1, r = 4 | L = 1, r = 64 | L = 3, r = 64 | `shannon`, L = 1, r = 64 | LoRA r = 4 |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, (make, targets) in MODELS.items():
        with torch.device("meta"):
            model = AutoModel.from_config(make())
        counts = [
            parameter_count(QCircuitConfig(target_modules=targets, **options), model)
            for options in ({"r": 4}, {"r": 64}, {"r": 64, "layers": 3}, {"r": 64, "width": "shannon"})
        ]
        lora = get_peft_model(model, LoraConfig(r=4, target_modules=targets)).get_nb_trainable_parameters()[0]
        row = " | ".join(f"{count:,}" for count in (*counts, lora))
        lines.append(f"| {name} | {', '.join(f'`{t}`' for t in targets)} | {row} |")
    return "\n".join([*lines, *_bytes_of_a_large_model()]) + "\n"


def _bytes_of_a_large_model() -> list[str]:
    """What ``benchmarks/large.py`` measured."""
    lines = [
        "",
        "## Bytes on Llama-2-7B",
        "",
        "Measured by `python benchmarks/large.py` on a model of its shapes and module tree whose weights take no",
        "memory: adapters in float32 on the CPU, the two moments that AdamW keeps, the file of `save_pretrained`, and",
        "what attaching takes (one thread of a busy machine; memory is that of the process, above the base).",
        "",
        "| adapter | modules | parameters | adapter | AdamW's state | checkpoint | attached in | memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    with (HERE.parent / "benchmarks" / "results" / "large.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            held = [_size(int(row[key])) for key in ("adapter bytes", "AdamW bytes", "file bytes")]
            taken = f"{float(row['attach s']):.1f} s | {float(row['attach MB']):.0f} MB"
            numbers = f"{int(row['numbers']):,}"
            lines.append(f"| {row['adapter']} | {row['modules']} | {numbers} | {' | '.join(held)} | {taken} |")
    return lines


def _size(count: int) -> str:
    """Bytes in thousands or millions."""
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.0f} kB"


def _number(z: complex) -> str:
    """A number that occurs in the matrix of a gate."""
    known = {1: "1", 0.5: "1/2", 0.5**0.5: "1/√2", 1j: "i", 0.5j: "i/2", np.exp(0.25j * np.pi): "e^(iπ/4)"}
    for value, text in known.items():
        for sign, mark in ((1, ""), (-1, "-")):
            if abs(z - sign * value) < 1e-12:
                return mark + text
    return f"{z:.4g}"


def _entry(constant: complex, cosine: complex, sine: complex, t: str) -> str:
    """constant + cosine cos(t) + sine sin(t), which is an exponential if the two belong together."""
    if abs(cosine) > 1e-12 and abs(abs(cosine - 1j * sine) * abs(cosine + 1j * sine)) < 1e-12:
        sign = "" if abs(sine - 1j * cosine) < 1e-12 else "-"
        terms = [(constant, ""), (cosine, f"e^({sign}i{t})")]
    else:
        terms = [(constant, ""), (cosine, f"cos {t}"), (sine, f"sin {t}")]
    shown = []
    for factor, function in terms:
        if abs(factor) > 1e-12:
            number = _number(factor)
            shown.append({"1": "", "-1": "-"}.get(number, number + " ") + function if function else number)
    return " + ".join(shown) or "0"


def _matrix(gate: Gate) -> str:
    """The matrix of a gate, read off at three angles: its entries have one frequency."""
    at = [gate.matrix((x / gate.frequency,) * gate.angles) for x in (0, np.pi, np.pi / 2)]
    constant = (at[0] + at[1]) / 2
    t = {0.5: "t/2", 1.0: "t"}[gate.frequency]
    parts = (constant, (at[0] - at[1]) / 2, at[2] - constant)
    rows = zip(*parts, strict=True)
    return "; ".join(" ".join(f"`{_entry(*entry, t)}`" for entry in zip(*row, strict=True)) for row in rows)


def _part(part: Part) -> str:
    angle = "" if part.scale is None else f"({'' if part.scale == 1 else f'{part.scale:g} '}t)".replace("-1 ", "-")
    return f"{part.gate}{angle} {' '.join('ab'[wire] for wire in part.wires)}"


def _wiring_picture(name: str) -> str:
    """A wiring on five wires as SVG, in time order: a dot is a pair's first wire, a ring its second."""
    groups = WIRINGS[name](5)
    free, columns = [0] * 5, []
    for wires in groups:
        span = range(min(wires), max(wires) + 1)
        columns.append(max(free[wire] for wire in span))
        for wire in span:
            free[wire] = columns[-1] + 1
    width, height = 22 * max(free) + 30, 5 * 18 + 6
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">',
        f"<title>{name} on five wires</title>",
        f'<rect width="{width}" height="{height}" fill="white"/>',
        '<g stroke="#222" stroke-width="1.2" fill="none" font-family="sans-serif" font-size="9">',
    ]
    for wire in range(5):
        y = 18 * wire + 12
        lines.append(f'<text x="3" y="{y + 3}" fill="#222" stroke="none">{wire}</text>')
        lines.append(f'<path d="M14 {y}H{width - 4}"/>')
    for wires, column in zip(groups, columns, strict=True):
        x, first, last = 22 * column + 27, 18 * wires[0] + 12, 18 * wires[-1] + 12
        if len(wires) == 1:
            lines.append(f'<rect x="{x - 6}" y="{first - 6}" width="12" height="12" fill="#d9e6f5"/>')
        else:
            lines.append(f'<path d="M{x} {first}V{last}"/><circle cx="{x}" cy="{first}" r="3" fill="#222"/>')
            lines.append(f'<circle cx="{x}" cy="{last}" r="5" fill="white"/>')
            lines.append(f'<path d="M{x - 5} {last}h10M{x} {last - 5}v10"/>')
    return "\n".join([*lines, "</g>", "</svg>", ""])


def circuit_files() -> str:
    """The table of wirings, within what people wrote."""
    lines = ["| wiring | on five wires | pairs on four |", "|---|---|---|"]
    for name, wiring in WIRINGS.items():
        words = ", ".join(" ".join(map(str, wires)) for wires in wiring(4))
        lines.append(f"| `{name}` | ![{name}](figures/wirings/{name}.svg) | {words} |")
    return _within("circuit_files.md", WIRINGS=lines)


def _tiny(**options: Any) -> PeftModel:
    """A small model with an adapter of circuits."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(), nn.Linear(8, 4))
    return get_peft_model(model, QCircuitConfig(**{"r": 2, "target_modules": ["0"], **options}))


def _slow() -> None:
    model = _tiny()
    model(torch.zeros(1, 8)).sum().backward()
    torch.optim.AdamW(model.parameters(), lr=5e-5).step()


def _loaded(adapter: PeftModel, load: Callable[[str], object]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        adapter.save_pretrained(folder)
        load(folder)


def _lora(model: nn.Module) -> PeftModel:
    return get_peft_model(model, LoraConfig(target_modules=["0"]))


# What provokes a message, and what to do about it. The messages are written by the code itself.
QUESTIONS: dict[str, tuple[Callable[[], object], str]] = {
    "The loss does not move": (
        _slow,
        "`Trainer`'s default rate is for whole weights. [Rates](fine_tuning.md#with-a-trainer-of-your-own).",
    ),
    "`lora_alpha` is refused": (
        lambda: QCircuitConfig(lora_alpha=16, target_modules=["0"]),
        "It would otherwise be dropped without a word. [What is different from LoRA](start_fine_tuning.md).",
    ),
    "More layers than can matter": (
        lambda: _tiny(ansatz="line_ry_cz", layers=12),
        "A warning; the adapter is made. Take the depth that it names, or a circuit that moves in all directions: "
        "[reach](reach.md).",
    ),
    "A width that a circuit does not have": (
        lambda: get_peft_model(nn.Sequential(nn.Linear(97, 97)), QCircuitConfig(ansatz="sim01", target_modules=["0"])),
        "A complex circuit serves twice its own width, so only even ones. Take a circuit of real gates, such as "
        "`simplified_two_design`: [frames](frames.md).",
    ),
    "A module that cannot be adapted": (
        lambda: _tiny(target_modules=["1"]),
        "[What circuits adapt](fine_tuning.md#what-circuits-adapt).",
    ),
    "An unknown circuit": (lambda: load("two_design"), "`qcircuit-peft circuits list` has the names."),
    "An unknown gate in a file": (
        lambda: load({"name": "mine", "layer": [{"gate": "CNOT", "on": "ring"}]}),
        "[Gates](circuits.md#gates) have one name here; what they are called elsewhere is in the second table.",
    ),
    "A wire that is not there": (
        lambda: load({"name": "mine", "layer": [{"gate": "CZ", "on": [[0, 3]]}]}).circuit(qubits=3),
        "Explicit wires fit registers that have them; a wiring fits all: [circuit files](circuit_files.md).",
    ),
    "A file of another shape": (
        lambda: load({"name": "mine", "layers": []}),
        "The parts of a file are `first`, `layer` and `last`: [circuit files](circuit_files.md).",
    ),
    "An adapter of another model": (
        lambda: _loaded(_tiny(), partial(PeftModel.from_pretrained, nn.Sequential(nn.Linear(16, 8)))),
        "An adapter fits the widths that it was made for.",
    ),
    "Two adapters of one name": (
        lambda: _loaded(_tiny(layers=2), lambda folder: _tiny().load_adapter(folder, "default")),
        '`load_adapter(folder, "other")` loads it beside the first.',
    ),
    "A dot in the name of an adapter": (
        lambda: _tiny().add_adapter("v1.2", QCircuitConfig(r=2, target_modules=["0"])),
        "Names of adapters are parts of names of parameters, in which dots part modules.",
    ),
    "Adapters are put together in a way that circuits do not have": (
        lambda: _tiny().add_weighted_adapter(["default"], [0.5], "half", "svd"),
        '`"cat"`, the default, adds adapters up exactly, and so does `"linear"` for adapters of the same circuits.',
    ),
    "No rate is known": (
        lambda: parameter_groups(_lora(nn.Sequential(nn.Linear(8, 8)))),
        'Rates are ours for circuits; for other methods, `optimizer_cls_and_kwargs(model, {"others": 1e-3})`.',
    ),
    "A circuit that a simulator cannot run": (
        lambda: columns(load("ring_ry_cz").circuit(dim=12), torch.zeros(1, 10), 2, backend="pennylane"),
        "Simulators know qubits only; `native` has wires of any dimension: [simulators](simulators.md).",
    ),
    "Angles of another shape": (
        lambda: columns(load("ring_ry_cz").circuit(qubits=3), torch.zeros(5), 2),
        "`circuit.n_angles` is their number; batch dimensions come first.",
    ),
}


def _said(provoke: Callable[[], object]) -> str:
    """The error, or the warning, that something gives."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            provoke()
        except (ValueError, NotImplementedError) as error:
            return f"{type(error).__name__}: {re.sub(r'/tmp/[^ :]+', 'adapter', str(error))}"
    (only,) = {str(warning.message) for warning in caught}
    return f"UserWarning: {only}"


def faq() -> str:
    """The messages that people meet, behind what people wrote."""
    lines = ["<!-- MESSAGES, written by `make docs` -->"]
    for question, (provoke, answer) in QUESTIONS.items():
        lines += [f"### {question}", "", "```text", *textwrap.wrap(_said(provoke), 80), "```", "", answer, ""]
    text = (HERE / "faq.md").read_text(encoding="utf-8")
    return text.partition(lines[0])[0] + "\n".join(lines)


def _within(page: str, **tables: list[str]) -> str:
    """The text of a page with the lines of each table behind its mark, up to the next empty line."""
    text = (HERE / page).read_text(encoding="utf-8")
    for table, lines in tables.items():
        before, mark, rest = text.partition(f"<!-- {table}, written by `make docs` -->\n")
        text = before + mark + "\n".join(lines) + rest[rest.index("\n\n") :]
    return text


def simulators() -> str:
    """The table of backends, within what people wrote."""
    lines = [
        "| backend | install | gradient | wires | shots | noise | precision inside | what runs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    times = {None: "any number of times", 1: "once", 0: "-"}
    for row in BACKENDS.values():
        cells = (
            f"`{row.name}`" + " (default)" * (row.name == "native"),
            f"`{row.install}`" if row.install else "-",
            times[row.derivatives],
            "any" if row.qudits else "qubits",
            "its own" if row.shots else "drawn here",
            "yes" if row.noise else "-",
            row.precision,
            row.about,
        )
        lines.append(f"| {' | '.join(cells)} |")
        if row.device:
            lines.append(
                f"| `{row.name}:DEVICE` | the same, and the device | - | qubits | its own | - | the device's | any |"
            )
    return _within("simulators.md", BACKENDS=lines)


def frames() -> str:
    """The table of frames, within what people wrote."""
    lines = ["| frame | what it is | options | P(768) | P(8192) |", "|---|---|---|---:|---:|"]
    for name, kind in FRAMES.items():
        counts = " | ".join(f"{kind.n_parameters(n, 8):,}" for n in (768, 8192))
        lines.append(f"| `{name}` | {kind.about} | {', '.join(f'`{option}`' for option in kind.options)} | {counts} |")
    return _within("frames.md", FRAMES=lines)


def methods() -> str:
    """The table of methods, within what people wrote."""
    sizes = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    with torch.device("meta"):
        model = AutoModel.from_config(BertConfig(vocab_size=30522, **sizes))
    targets = ["query", "value"]
    lines = [
        "| method | what it is | size | numbers | rates | base | source |",
        "|---|---|---|---:|---|---|---|",
    ]
    for key, method in METHODS.items():
        size = 0
        if method.size:
            try:
                size = method.fit(model, targets, 900)
            except ValueError:
                size = min(islice(method.sizes(model, targets), 400), key=lambda n: method.count(model, targets, n))
        cells = (
            f"`{key}`: {method.name}",
            method.about,
            f"{method.size} = {size}" if method.size else "-",
            f"{method.count(model, targets, size):,}",
            ", ".join(f"{rate:g}" for rate in method.rates) or "-",
            "yes" if method.at_base else "no",
            method.source or "-",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return _within("methods.md", METHODS=lines)


def _measured(metric: Metric, x: torch.Tensor) -> str:
    """The value of a measure on two qubits; of all pairs of wires that of the one pair."""
    try:
        found = np.asarray(metric.value(x), dtype=float)
    except ValueError:  # of more wires than two
        return "-"
    numbers = found[np.triu_indices(len(found), 1)] if found.ndim == 2 else np.atleast_1d(found)
    return ", ".join(f"{np.round(number, 9) + 0.0:.4g}" for number in numbers)


def measures() -> str:
    """The tables of measures, within what people wrote."""
    one = torch.eye(4, dtype=torch.float64)
    states = {"a product state": one[0], "a Bell pair": (one[0] + one[3]) / 2**0.5}
    matrices = {"CZ": torch.tensor(GATES["CZ"].matrix().real)}
    tables = {}
    for of, examples in (("state", states), ("matrix", matrices)):
        rows = {name: metric for name, metric in METRICS.items() if metric.of == of}
        exact = ["exact mean"] * any(metric.from_purities for metric in rows.values())
        head = [f"of a {of}", "what it is", "unit", *examples, *exact]
        lines = tables[f"{of}_METRICS"] = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
        for name, metric in rows.items():
            values = [_measured(metric, x) for x in examples.values()]
            known = ["yes" if metric.from_purities else "-"] * len(exact)
            lines.append(f"| {' | '.join([f'`{name}`', metric.about, metric.unit, *values, *known])} |")
    return _within("entanglement.md", **tables)


def circuits() -> str:
    """Every gate and every circuit file."""
    lines = [
        "# Gates and circuits",
        "",
        "Generated from `gates.py` and `circuits/` by `make docs`.",
        "",
        "## Gates",
        "",
    ]
    lines += ["| gate | wires | angles | real | | matrix on qubits, row by row |", "|---|---|---|---|---|---|"]
    for gate in GATES.values():
        about, real = gate.about.replace("|", "\\|"), "yes" if gate.real else "no"
        lines.append(f"| `{gate.name}` | {gate.wires} | {gate.angles} | {real} | {about} | {_matrix(gate)} |")
    elsewhere = {name: f"`{name}`" for name in BACKENDS if name != "native"}
    elsewhere |= {"qasm3": "OpenQASM 3", "qasm2": "OpenQASM 2"}
    lines += [
        "",
        "In a two-wire matrix the first wire is the more significant digit. What a gate is called elsewhere; where it",
        "has no name, its parts stand for it, in time order, on its first wire a and its second b:",
        "",
        f"| gate | {' | '.join(elsewhere.values())} | parts |",
        "|---|" + "---|" * len(elsewhere) + "---|",
    ]
    for gate in GATES.values():
        called = (getattr(gate.names, field) for field in elsewhere)
        there = " | ".join(f"`{name}`" if name else "" for name in called)
        lines.append(f"| `{gate.name}` | {there} | {'; '.join(map(_part, gate.parts))} |")
    lines += [
        "",
        "## Circuits",
        "",
        "Drawn on four qubits with one layer. Directions: the dimension of the Lie algebra on 2, 3 and 4 qubits at",
        "L = 12, which is the most angles that can matter. A real circuit has at most 6, 28, 120, a complex one 15,",
        "63, 255 (docs/reach.md).",
        "",
    ]
    for name in names():
        ansatz = load(name)
        circuit = ansatz.circuit(qubits=4, layers=1)
        lines += [
            f"### {name}",
            "",
            ansatz.about,
            "",
            f"Source: {ansatz.cite}",
            "",
            f"Directions: {', '.join(map(str, directions(ansatz).values()))}",
            "",
            "```",
            draw(circuit).rstrip(),
            "```",
            "",
        ]
    return "\n".join(lines)


def _products(factors: Factorization, rows: int) -> int:
    """Multiplications and additions in matrix products of ``forward``, without making frames and the base layer."""
    made = make_parts(factors, {part: torch.rand(size) for part, size in sizes(factors).items()})
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        factors.forward(torch.ones(rows, factors.n_in), made, lambda z: z)
    return counter.get_total_flops()


def factorizations() -> str:
    """The counts of each factorization, below what people wrote."""
    rows, n, r = 512, 768, 16
    page = HERE / "factorizations.md"
    lines = [page.read_text(encoding="utf-8").partition("## Counts")[0].rstrip(), ""]
    lines += [
        f"## Counts of one weight {n} x {n}, r = {r}",
        "",
        "Written by `make docs`. `circuit` is the simplified two-design at L = 1, `taylor` the Stiefel manifold (Q_T);",
        f"options are the defaults. Products: the floating-point operations of `forward` on {rows} rows, frames not",
        f"included, as a share of the base layer's own; LoRA of the same r has {2 * r / n:.2%}.",
        "",
        "| factorization | what it is | delta W / scaling | parameters | `circuit` | `taylor` | rank | products |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, kind in FACTORIZATIONS.items():
        made = [kind(n, n, r, FRAMES[frame].spec) for frame in ("circuit", "taylor")]
        counts = " | ".join(f"{sum(trained_sizes(factors).values()):,}" for factors in made)
        share = _products(made[0], rows) / (2 * rows * n * n)
        rank = "full" if made[0].rank is None else made[0].rank
        lines.append(f"| `{name}` | {kind.about} | {kind.update} | {kind.count} | {counts} | {rank} | {share:.2%} |")
    model = torch.nn.Sequential(torch.nn.Linear(n, n, bias=False))
    for method, config in {
        "LoRA": LoraConfig(r=r, target_modules=["0"]),
        "AdaLoRA": AdaLoraConfig(init_r=r, target_r=r, total_step=9, target_modules=["0"]),
    }.items():
        formula = {"LoRA": "2 N r", "AdaLoRA": "2 N r + r (PEFT adds 1)"}[method]
        lines.append(f"| {method} (PEFT) | | B A | {formula} | {parameter_count(config, model):,} | | {r} | |")
    published = FACTORIZATIONS["quanta"](4096, 4096, 1, FRAMES["circuit"].spec, axes=[16, 8, 8, 4])
    count = sum(sizes(published).values())
    lines += ["", f"QuanTA as published, 4096 x 4096 with axes 16-8-8-4: {count:,} parameters."]
    return "\n".join(lines) + "\n"


def compared() -> str:
    """The tables of the methods' comparisons in studies/, within what people wrote."""
    return _within("results/methods.md", TREC_900=_compared("trec_900"), DIGITS_900=_compared("digits_900"))


def _compared(study: str) -> list[str]:
    path = HERE.parent / "studies" / study
    runs = from_csv(path.with_suffix(".csv").read_text(encoding="utf-8"), Outcome)
    lines = [
        "| method | name, size | numbers | stored | file, kB | rate | validation | test (95 %) "
        "| to `circuit`, paired (95 %) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in front.lines(Field.from_file(path.with_suffix(".toml")), runs):
        over = "" if row.over is None else f"{100 * row.over:+.1f}{_between(row.over_low, row.over_high)}"
        name = f"`{row.entry.partition('-')[0]}`" + (f", {row.size}" if row.size else "")
        test = f"{100 * row.test:.1f}{_between(row.low, row.high)}"
        counts = f"{row.numbers:,} | {row.kept:,} | {row.checkpoint_bytes / 1e3:,.0f} | {row.rate:g}"
        lines.append(f"| {row.method} | {name} | {counts} | {100 * row.validation:.1f} | {test} | {over} |")
    return lines


def _between(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" ({100 * low:.1f} to {100 * high:.1f})"


PAGES = {
    "parameters.md": parameters, "circuits.md": circuits, "factorizations.md": factorizations,
    "simulators.md": simulators, "frames.md": frames, "methods.md": methods, "entanglement.md": measures,
    "circuit_files.md": circuit_files, "faq.md": faq, "results/methods.md": compared,
    **{f"figures/wirings/{name}.svg": partial(_wiring_picture, name) for name in WIRINGS},
}  # fmt: skip


def is_stale(name: str) -> bool:
    """Whether a page is not what ``make docs`` would write."""
    return (HERE / name).read_text(encoding="utf-8") != PAGES[name]()


if __name__ == "__main__":
    for name, page in PAGES.items():
        (HERE / name).write_text(page(), encoding="utf-8")
        print(f"docs/{name}")
