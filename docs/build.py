"""Writes the generated pages of docs/: ``make docs``."""

from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModel,
    DebertaV2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    ViTConfig,
)

from qcircuit_peft import QCircuitConfig, load, parameter_count
from qcircuit_peft.ansatz import names
from qcircuit_peft.drawing import draw
from qcircuit_peft.gates import GATES

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
    return "\n".join(lines) + "\n"


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
    lines += ["| gate | wires | angles | real | |", "|---|---|---|---|---|"]
    for gate in GATES.values():
        lines.append(
            f"| `{gate.name}` | {gate.wires} | {gate.angles} | {'yes' if gate.real else 'no'} | {gate.about} |"
        )
    lines += ["", "## Circuits", "", "Drawn on four qubits with one layer.", ""]
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
            "```",
            draw(circuit).rstrip(),
            "```",
            "",
        ]
    return "\n".join(lines)


PAGES = {"parameters.md": parameters, "circuits.md": circuits}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (HERE / name).write_text(page(), encoding="utf-8")
        print(f"docs/{name}")
