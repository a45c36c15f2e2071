"""A comparison as experiments of PEFT's own ``method_comparison/MetaMathQA``, for someone with its card to run."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import LlamaConfig, LlamaForCausalLM

from qcircuit_peft import files
from qcircuit_peft.methods import METHODS
from qcircuit_peft.study.field import Field

MODEL, TARGETS = "llama-3.2-3B", ("q_proj", "v_proj")
_BLOCKS = 28


def _model(blocks: int, **more: Any) -> LlamaForCausalLM:
    """Llama-3.2-3B as far as its query and value projections go."""
    sizes = {"hidden_size": 3072, "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128}
    return LlamaForCausalLM(
        LlamaConfig(num_hidden_layers=blocks, intermediate_size=8, vocab_size=8, pad_token_id=0, **sizes, **more)
    )


def export_peft(field: Field, out: str | Path) -> list[Path]:
    """Write ``experiments/METHOD/llama-3.2-3B-...`` with adapter_config.json and training_params.json for each method.

    Sizes, and the numbers that they fit, are taken for query and value of the 28 blocks of Llama-3.2-3B, whatever the
    comparison's own task is; the rate is the method's middle one, one for all parameters, since that suite has one.
    Returns the folders. What the suite cannot run, since it is no PEFT adapter, is refused.

    Raises ValueError for such a method, for one that does not fit, and for a folder that is there.
    """
    out = Path(out)
    if (out / "experiments").exists():
        raise ValueError(f"{out / 'experiments'} is there already; name another folder")
    with torch.device("meta"):
        whole = _model(_BLOCKS)
    texts: dict[Path, tuple[Any, str]] = {}
    for entry in field.method:
        row = METHODS[entry.name]
        size = row.fit(whole, TARGETS, entry.numbers) if entry.numbers else entry.size or row.default
        adapted = row.attach(_model(1), list(TARGETS), size)
        if not isinstance(adapted, PeftModel):
            raise ValueError(f"the method {entry.name!r} is no PEFT adapter, and that suite runs no others")
        config = adapted.peft_config["default"]
        config.base_model_name_or_path, config.inference_mode = None, False
        folder = out / "experiments" / entry.name / f"{MODEL}{entry.key.removeprefix(entry.name) or '-default'}"
        parameters = {"optimizer_kwargs": {"lr": row.rate, "weight_decay": 0.0}}
        texts[folder] = config, json.dumps(parameters, indent=2) + "\n"
    for folder, (config, parameters) in texts.items():
        folder.mkdir(parents=True)
        config.save_pretrained(str(folder))
        files.write(folder / "training_params.json", parameters)
    return list(texts)
