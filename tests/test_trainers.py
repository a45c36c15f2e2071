"""docs/trainers.md runs, block after block, on small models: TRL, sentence-transformers and diffusers train them."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from bounds import close
from peft import PeftModel, get_peft_model_state_dict
from tiny import CHAIN
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from qcircuit_peft import parameter_groups
from qcircuit_peft.tasks.models import minilm

PAGE = (Path(__file__).parent.parent / "docs/trainers.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
WORDS = ["<pad>", "<s>", "</s>", "<unk>", "one", "two", "three", "four", "five", "six", "seven", "plus", "is"]
QUIET = 'use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no", logging_steps=1'

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


def run(word: str, steps: int, batch: int, **given: Any) -> dict[str, Any]:
    """Run the block in which a word stands, for a few steps; what it has made."""
    (block,) = (block for block in BLOCKS if word in block)
    some = f"max_steps={steps}, per_device_train_batch_size={batch}, {QUIET}"
    exec(compile(block.replace("num_train_epochs=3", some), word, "exec"), given)
    return given


def language_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokens = {"vocab_size": len(WORDS), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, **tokens, max_position_embeddings=64, initializer_range=0.2))


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, **special)


def trained(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def logged(trainer: Any, key: str) -> list[float]:
    return [float(row[key]) for row in trainer.state.log_history if key in row]


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def dataset(**columns: list[str]) -> Any:
    from datasets import Dataset

    return Dataset.from_dict({key: 8 * values for key, values in columns.items()})


def test_supervised_fine_tuning() -> None:
    texts = dataset(text=["one plus two is three", "two plus two is four"])
    made = run("SFTTrainer", 30, 8, model=language_model(), tokenizer=tokenizer(), texts=texts)
    losses, adapted = logged(made["trainer"], "loss"), made["adapted"]
    assert losses[-1] < 0.7 * losses[0] and trained(adapted) == 84
    assert {group["kind"] for group in made["trainer"].optimizer.param_groups} == {"angles", "lambdas"}
    again = get_peft_model_state_dict(PeftModel.from_pretrained(language_model(), "adapter"))
    assert all(torch.equal(value, again[name]) for name, value in get_peft_model_state_dict(adapted).items())


def test_preferences() -> None:
    answers = {"chosen": [" three", " four"], "rejected": [" four", " one"]}
    asked = dataset(prompt=["one plus two is", "two plus two is"], **answers)
    made = run("DPOTrainer", 10, 8, model=language_model(), tokenizer=tokenizer(), preferences=asked)
    assert logged(made["trainer"], "loss")[0] == pytest.approx(torch.tensor(2.0).log().item(), abs=1e-5)
    assert logged(made["trainer"], "rewards/accuracies")[-1] == 1 and trained(made["adapted"]) == 84


def test_rewards() -> None:
    asked = dataset(prompt=["one plus two is", "two plus two is"])
    made = run("GRPOTrainer", 80, 32, model=language_model(), tokenizer=tokenizer(), prompts=asked)
    rewards = logged(made["trainer"], "reward")
    assert sum(rewards[:3]) / 3 < 0.5 and sum(rewards[-5:]) / 5 > 0.85 and trained(made["adapted"]) == 84


def test_sentence_transformers() -> None:
    anchors = ["what is a quark", "who wrote hamlet", "where is rome", "how old is the sun"]
    pairs = dataset(anchor=anchors, positive=["a particle", "shakespeare", "italy", "four billion years"])
    made = run("SentenceTransformer(", 6, 4, name=str(minilm()), pairs=pairs)
    assert trained(made["encoder"]) == 200
    found = made["encoder"].encode(anchors, convert_to_tensor=True)
    assert torch.equal(made["again"].encode(anchors, convert_to_tensor=True), found)
    made["encoder"].disable_adapters()
    assert not torch.allclose(made["encoder"].encode(anchors, convert_to_tensor=True), found, atol=1e-3)


def test_diffusers() -> None:
    from diffusers import UNet2DConditionModel

    def unet() -> Any:
        torch.manual_seed(0)
        blocks = {
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        }
        sizes = {"block_out_channels": (32, 64), "sample_size": 8, "cross_attention_dim": 32, "norm_num_groups": 8}
        return UNet2DConditionModel(**blocks, **sizes, layers_per_block=1, attention_head_dim=8).eval()

    inputs = torch.randn(2, 4, 8, 8), torch.tensor(3), torch.randn(2, 5, 32)

    def train(adapted: nn.Module) -> None:
        optimizer = torch.optim.AdamW(parameter_groups(adapted), weight_decay=0.0)
        for _ in range(3):
            optimizer.zero_grad()
            adapted(*inputs).sample.square().mean().backward()
            optimizer.step()

    def output(model: nn.Module) -> Tensor:
        with torch.no_grad():
            return model(*inputs).sample

    made = run("load_lora_adapter", 0, 0, unet=unet(), fresh=unet(), train=train)
    assert not torch.allclose(output(made["adapted"]), output(unet()), atol=1e-2)
    close(output(made["fresh"]), output(made["adapted"]), CHAIN)
