"""The README's Python runs, block after block, as a reader would paste it, on small models of the named kinds."""

import re
from pathlib import Path

import pytest
import torch
import transformers
from tiny import base

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
TOML = re.search(r"^```toml\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_a_block_runs(number, tmp_path, monkeypatch):
    def classifier(name, num_labels):
        config = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
        return transformers.RobertaForSequenceClassification(
            transformers.RobertaConfig(**config, num_attention_heads=2, num_labels=num_labels)
        )

    monkeypatch.chdir(tmp_path)
    Path("my_ring.toml").write_text(TOML[1])
    auto = transformers.AutoModelForSequenceClassification
    monkeypatch.setattr(auto, "from_pretrained", classifier)
    block = BLOCKS[number].replace('"out", num_train_epochs=3', '"out", use_cpu=True, report_to="none", max_steps=1')
    rows = [{"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1], "labels": at % 2} for at in range(8)]
    torch.manual_seed(0)
    exec(compile(block, f"README block {number}", "exec"), {"train": rows, "model": base("llama")})


def test_there_are_blocks_of_both_kinds():
    assert len(BLOCKS) >= 4 and TOML and "optimizer_cls_and_kwargs=" in BLOCKS[0]
