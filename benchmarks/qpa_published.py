"""The two published configurations of Quantum Parameter Adaptation, for those who have the weights.

    python benchmarks/qpa_published.py gpt2 /path/to/gpt2 wiki.train.txt wiki.test.txt
    python benchmarks/qpa_published.py gemma /path/to/gemma-2-2b wiki.train.txt wiki.test.txt

Both generate a LoRA of rank 4 (alpha = 8, dropout 0.05) of the language model head, L = 8, with AdamW at 1e-5, a linear
schedule, three epochs, batch 1. Two things differ from the published code, on purpose: the perplexity is that of real
tokens (theirs counts padding), and the update starts at 0 (``--init paper`` is theirs). The head of both models is
tied to the embedding: train and save it as an adapter; a merge is refused.
"""

import math
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from qcircuit_peft import QPAConfig, save_base_adapter

HEAD = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.05, target_modules=["lm_head"], task_type="CAUSAL_LM")

# 106,264 trained numbers for a head of 50257 x 768, where LoRA has 204,100; 173,888 for 256000 x 2304, where it has
# 1,033,216 (the paper's 0.033 % is that of a hidden size of 2048).
PUBLISHED = {
    "gpt2": QPAConfig(base=HEAD, chunk_size=2048, layers=8),
    "gemma": QPAConfig(base=HEAD, chunk_size=4096, layers=8),
}


def rows(tokenizer: Any, path: Path, length: int) -> Tensor:
    """A text as rows of tokens, (n, length), without padding."""
    ids = torch.tensor(tokenizer(path.read_text("utf-8"), verbose=False)["input_ids"])
    return ids[: len(ids) // length * length].view(-1, length)


@torch.no_grad()
def perplexity(model: Any, text: Tensor) -> float:
    """exp of the mean negative log-likelihood of a token."""
    return math.exp(sum(float(model(input_ids=row, labels=row).loss) for row in text.split(1)) / len(text))


def main(
    published: Annotated[str, typer.Argument(help=f"one of {', '.join(PUBLISHED)}")],
    weights: Annotated[str, typer.Argument(help="a folder or a name on the Hub")],
    train: Path,
    test: Path,
    init: str = "zero",
    epochs: int = 3,
    length: int = 512,
    seed: int = 2025,
    out: Path = Path("qpa"),
) -> None:
    """Train, print the perplexity before and after, and save the generator and the plain LoRA."""
    config = PUBLISHED[published]
    config.init, config.seed = init, seed
    torch.manual_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(weights).to(device), config)
    model.print_trainable_parameters()
    tokenizer = AutoTokenizer.from_pretrained(weights)
    learn, held_out = (rows(tokenizer, path, length).to(device) for path in (train, test))
    print(f"perplexity {perplexity(model.eval(), held_out):.3f}")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    total = epochs * len(learn)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / total)
    for _ in range(epochs):
        model.train()
        for index in torch.randperm(len(learn)):
            row = learn[index : index + 1]
            loss = model(input_ids=row, labels=row).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"perplexity {perplexity(model.eval(), held_out):.3f}")
    model.save_pretrained(out / "generator")
    save_base_adapter(model, out / "lora", save_embedding_layers=False)


if __name__ == "__main__":
    typer.run(main)
