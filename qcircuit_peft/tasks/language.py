"""What a language model is given: prompts and completions, or running text, as tokens; its losses, and what it writes.

Only completions have labels, and of running text all tokens. transformers pads, computes and generates.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import DataCollatorForSeq2Seq

from qcircuit_peft.tasks.data import Split

_UNLABELLED = -100  # as transformers has it
_AT_ONCE = 8  # rows whose scores, one for every word there is, are in memory


def token_losses(
    scores: Float[Tensor, "n length words"], labels: Int64[Tensor, "n length"]
) -> tuple[Float[Tensor, ""], int]:
    """The summed cross-entropy, in nats, of the next tokens that have a label, and how many they are."""
    wanted = labels[:, 1:].flatten()
    loss = cross_entropy(scores[:, :-1].flatten(0, 1).float(), wanted, ignore_index=_UNLABELLED, reduction="sum")
    return loss, int((wanted != _UNLABELLED).sum())


class TokenRows(Sequence[dict[str, Any]]):
    """The rows of a split as lists of tokens, "input_ids", and "labels"."""

    def __init__(self, tokens: Sequence[Sequence[int]], unlabelled: Sequence[int]) -> None:
        self.tokens, self.unlabelled = tokens, unlabelled

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return [self[k] for k in range(*at.indices(len(self)))]
        ids, before = list(self.tokens[at]), self.unlabelled[at]
        return {"input_ids": ids, "labels": [_UNLABELLED] * before + ids[before:]}

    def length(self, at: int) -> int:
        """The number of tokens of a row."""
        return len(self.tokens[at])


class Writing:
    """Turns texts into tokens for a causal language model, at most ``max_length`` of them.

    A completion ends with the tokenizer's end of text and has half of ``max_length`` at most; a prompt that is too long
    loses its beginning. Running text is cut into blocks. What the tokenizer puts before a text stands before all.
    """

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self.tokenizer, self.max_length, self.most = tokenizer, max_length, max_length // 2
        self.end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        bare = tokenizer("")["input_ids"][:1]
        self.begin = bare if bare == [tokenizer.bos_token_id] else []
        self._collate = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=_UNLABELLED)

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        return self.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []

    def prompts(self, texts: Sequence[str], room: int) -> list[list[int]]:
        """The tokens of prompts, each in a room of so many tokens."""
        kept = room - len(self.begin)
        return [self.begin + ids[max(0, len(ids) - kept) :] for ids in self._ids(texts)]

    def rows(self, split: Split) -> TokenRows:
        """A row for every completion of every prompt, or for every block of running text."""
        texts: Any = split.inputs
        several: Any = split.labels
        pairs = [(text, end) for text, ends in zip(texts, several, strict=True) for end in ends]
        if not pairs:
            return self._blocks(texts)
        written = [(ids + self.end)[: self.most] for ids in self._ids([end for _, end in pairs])]
        given = [
            self.prompts([text], self.max_length - len(ids))[0] for (text, _), ids in zip(pairs, written, strict=True)
        ]
        return TokenRows([a + b for a, b in zip(given, written, strict=True)], list(map(len, given)))

    def _blocks(self, texts: Sequence[str]) -> TokenRows:
        tokens = [at for ids in self._ids([f"{text}\n" for text in texts]) for at in ids]
        size = self.max_length - len(self.begin)
        blocks = [self.begin + tokens[at : at + size] for at in range(0, len(tokens), size)]
        blocks = [block for block in blocks if len(block) > 1]  # of one token nothing is predicted
        return TokenRows(blocks, [0] * len(blocks))

    def collate(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Some rows as one batch, padded to the longest; padding has no label."""
        return dict(self._collate(list(rows)))


@torch.no_grad()
def losses(net: nn.Module, writing: Writing, rows: TokenRows) -> tuple[list[float], list[int]]:
    """Of every batch the summed loss and the number of tokens that were predicted, as the metric perplexity takes them.

    ``net`` gives scores (n, length, words), or what holds them as ``logits``.
    """
    net.eval()
    device = next(net.parameters()).device
    order = sorted(range(len(rows)), key=rows.length)
    found = []
    for start in range(0, len(order), _AT_ONCE):
        batch = writing.collate([rows[at] for at in order[start : start + _AT_ONCE]])
        labels = batch.pop("labels").to(device)
        given = net(**{key: value.to(device) for key, value in batch.items()})
        loss, count = token_losses(given if isinstance(given, Tensor) else given.logits, labels)
        found.append((loss.item(), count))
    return [loss for loss, _ in found], [count for _, count in found]


@torch.no_grad()
def completions(model: Any, writing: Writing, prompts: Sequence[str], beams: int = 1) -> list[str]:
    """What a model of transformers writes behind each prompt, the likeliest by a search with so many beams."""
    model.eval()
    device = next(model.parameters()).device
    tokens = writing.prompts(prompts, writing.max_length - writing.most)
    order = sorted(range(len(tokens)), key=lambda at: len(tokens[at]))
    found = [""] * len(tokens)
    tokenizer = writing.tokenizer
    for start in range(0, len(order), _AT_ONCE):
        at = order[start : start + _AT_ONCE]
        batch = tokenizer.pad({"input_ids": [tokens[k] for k in at]}, padding_side="left", return_tensors="pt")
        ids = model.generate(
            **{key: value.to(device) for key, value in batch.items()},
            max_new_tokens=writing.most,
            do_sample=False,
            num_beams=beams,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        texts = tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        for k, text in zip(at, texts, strict=True):
            found[k] = text.strip()
    return found
