"""What an adapter costs on a model of Llama-2-7B's shape: time and memory to attach, optimizer state, checkpoint.

The base has the shapes, dtype and module tree of Llama-2-7B, but its weights are one number, seen at every place: they
take no memory, and adapters are real, on the CPU, in float32. Every row is a process of its own. Writes
benchmarks/results/large.csv anew.
"""

import gc
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from _rows import add_row, read_rows
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.optim import AdamW
from transformers import LlamaConfig, LlamaForCausalLM

from qcircuit_peft import QCircuitConfig

RESULTS = Path(__file__).parent / "results" / "large.csv"
COLUMNS = ("adapter", "modules", "numbers", "adapter bytes", "AdamW bytes", "file bytes", "attach s", "attach MB")
ADAPTERS: dict[str, Callable[[Any], Any]] = {
    "circuit r = 16": lambda targets: QCircuitConfig(r=16, target_modules=targets),
    "circuit r = 64": lambda targets: QCircuitConfig(r=64, target_modules=targets),
    "circuit r = 64, share = kind": lambda targets: QCircuitConfig(r=64, share="kind", target_modules=targets),
    "LoRA r = 8": lambda targets: LoraConfig(r=8, target_modules=targets),
    "LoRA r = 16": lambda targets: LoraConfig(r=16, target_modules=targets),
}
MODULES: dict[str, Any] = {"q_proj, v_proj": ["q_proj", "v_proj"], "all-linear": "all-linear"}


def base() -> nn.Module:
    """Llama-2-7B with weights that take no memory."""
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    one = torch.zeros((), dtype=torch.bfloat16)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(one.expand(parameter.shape), requires_grad=False))
    return model


def measured(adapter: str, modules: str) -> tuple[Any, ...]:
    """A row of the table."""
    warm = nn.Sequential(nn.Linear(64, 64))  # what is imported at the first use is no part of it
    get_peft_model(warm, ADAPTERS[adapter]("all-linear" if modules == "all-linear" else ["0"]))
    model, process = base(), psutil.Process()
    gc.collect()
    before, start = process.memory_info().rss, time.perf_counter()
    model = get_peft_model(model, ADAPTERS[adapter](MODULES[modules]))
    seconds, memory = time.perf_counter() - start, process.memory_info().rss - before
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer = AdamW(trained)
    optimizer.step()
    state = [value for held in optimizer.state.values() for value in held.values() if value.ndim]
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        written = Path(folder, "adapter_model.safetensors").stat().st_size
    held, moments = (sum(value.nbytes for value in values) for values in (trained, state))
    numbers = sum(parameter.numel() for parameter in trained)
    return adapter, modules, numbers, held, moments, written, round(seconds, 2), round(memory / 1e6, 1)


def main() -> None:
    if len(sys.argv) == 3:
        add_row(RESULTS, COLUMNS, measured(*sys.argv[1:]))
        return
    RESULTS.unlink(missing_ok=True)
    for modules in MODULES:
        for adapter in ADAPTERS:
            subprocess.run([sys.executable, __file__, adapter, modules], check=True)
            print(", ".join(read_rows(RESULTS)[-1].values()))


if __name__ == "__main__":
    main()
