"""Adapters that version 0.1 wrote (commit af733ab) load, mean the same numbers, and are written again bit for bit."""

import json
from pathlib import Path

import pytest
import torch
from bounds import close
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn

import qcircuit_peft  # noqa: F401  registers the method with PEFT

FIXTURES = Path(__file__).parent / "fixtures" / "v0_1"
KINDS = sorted(path.name for path in FIXTURES.iterdir())


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.value = nn.Linear(12, 16), nn.Linear(16, 12)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.value(torch.tanh(self.query(x)))


def base() -> nn.Sequential:
    """The model that the adapters were trained on, without a random number in it."""
    model = nn.Sequential(Block(), Block())
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(torch.sin(torch.arange(p.numel(), dtype=torch.float64) * 0.7 + i).view_as(p) / 4)
    return model


def adapted(folder: Path) -> PeftModel:
    return PeftModel.from_pretrained(base(), str(folder))


@pytest.mark.parametrize("kind", KINDS)
def test_the_updates_are_those_of_version_0_1(kind: str) -> None:
    model = adapted(FIXTURES / kind)
    expected = load_file(FIXTURES / kind / "delta.safetensors")
    plain = base()
    merged = model.merge_and_unload()
    for name, delta in expected.items():
        found = merged.get_submodule(name).weight.double() - plain.get_submodule(name).weight.double()
        # float32: an update of size 32 from products of at most 64 terms, added to a weight below 1
        close(found, delta, 16, 1 + delta.abs().max(), torch.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_written_again_bit_for_bit(kind: str, tmp_path: Path) -> None:
    adapted(FIXTURES / kind).save_pretrained(tmp_path)
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (FIXTURES / kind, tmp_path))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) and before[key].dtype == after[key].dtype for key in before)
    old, new = (json.loads((folder / "adapter_config.json").read_text()) for folder in (FIXTURES / kind, tmp_path))
    written = "circuit" if "circuit" in old else "generator"
    # where a generator starts from was drawn, by the arithmetic of that machine
    now, then = (data[written].get("layout", {}).pop("start", []) for data in (new, old))
    close(now, then, 1, dtype=torch.float32)
    assert new[written] == old[written]


SIGNED = FIXTURES.parent / "signed"


@pytest.mark.parametrize("kind", sorted(path.name for path in SIGNED.iterdir()))
def test_adapters_with_a_digest_of_their_configuration_load(kind: str) -> None:
    """Commit 0c1e978 wrote them: what a digest is made of does not change."""
    x = torch.linspace(-1, 1, 36).view(3, 12)
    expected = load_file(SIGNED / kind / "outputs.safetensors")["outputs"]
    close(adapted(SIGNED / kind)(x).detach(), expected, 64, size=float(expected.abs().max()))
