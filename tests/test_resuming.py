"""A training that was killed at any step of what it writes goes on from its last whole checkpoint."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from kills import forked, killed, steps
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from test_fine_tuning import QUESTIONS, bert, rows, table  # noqa: F401  # bert is a fixture
from test_training import Line, line
from tiny import base, config, logits
from transformers import Trainer, TrainingArguments

from qcircuit_peft.fine_tuning import Settings, fine_tune
from qcircuit_peft.training import last_checkpoint

pytestmark = [
    *forked,
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning", "ignore:Could not find a config file:UserWarning"),
]


def each_step(stride: int) -> pytest.MarkDecorator:
    """Kills at every step take minutes, at some of them seconds."""
    return pytest.mark.parametrize("stride", [stride, pytest.param(1, marks=pytest.mark.slow)])


class Rows(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids = torch.randint(3, 64, (9,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": ids, "labels": ids}


def trainer(folder: Path) -> Trainer:
    """Of three steps, each of which is saved; the last checkpoint is kept."""
    torch.manual_seed(0)
    arguments = TrainingArguments(
        str(folder),
        max_steps=3,
        save_steps=1,
        save_total_limit=1,
        per_device_train_batch_size=2,
        learning_rate=0.03,
        lr_scheduler_type="constant",
        seed=1,
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
    )
    net = get_peft_model(base("llama"), config("llama", seed=2, target_modules=["q_proj"]))
    return Trainer(net, arguments, train_dataset=Rows())


def every(work: Callable[[Path], Any], chosen: Iterable[int], tmp_path: Path) -> Iterator[Path]:
    """Folders in which the work was killed at these steps."""
    for at in chosen:
        folder = tmp_path / str(at)
        assert killed(lambda folder=folder: work(folder), at)
        yield folder


def saves(begun: list[str], first: int, last: int) -> range:
    """The steps from the end of this checkpoint, from 1 on, to a few after the end of another."""
    ends = [at for at, name in enumerate(begun) if name == "save_to_json"]
    return range(ends[first - 1] + 1, min(ends[last - 1] + 4, len(begun)))


@each_step(4)
def test_a_trainer_of_transformers_goes_on_from_the_last_whole_checkpoint(stride: int, tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole")
    begun = steps(whole.train)
    expected = logits(whole.model.eval(), "llama")
    starts = set()
    for folder in every(lambda folder: trainer(folder).train(), saves(begun, 1, 2)[::stride], tmp_path):
        last = last_checkpoint(folder) if folder.is_dir() else None
        for path in folder.glob("checkpoint-*"):  # what is there of an adapter is whole
            if (path / "adapter_config.json").is_file() or (path / ".saved").is_dir():
                PeftModel.from_pretrained(base("llama"), path)
        starts.add(last and last.name)
        again = trainer(folder)
        again.train(resume_from_checkpoint=last and str(last))
        assert torch.equal(logits(again.model.eval(), "llama"), expected), folder
    assert starts == {"checkpoint-1", "checkpoint-2"}


@each_step(3)
def test_fit_goes_on_and_leaves_no_half_checkpoints(stride: int, tmp_path: Path) -> None:
    scores = {3: 0.2, 6: 0.9, 9: 0.1}

    def run(folder: Path, resume: bool = False) -> Line:
        net, seen = Line(), []
        line(
            folder,
            net,
            epochs=3,
            measure=lambda: scores[seen[-1]],
            progress=lambda step, steps, loss: seen.append(step),
            resume=resume,
        )
        return net

    begun = steps(lambda: run(tmp_path / "whole"))
    expected = load_file(tmp_path / "whole" / "checkpoint-6" / "trained.safetensors")["w"].item()
    for folder in every(run, saves(begun, 1, 3)[::stride], tmp_path):
        assert run(folder, resume=True).w.item() == expected, folder
        assert {path.name for path in folder.iterdir()} >= {"checkpoint-6", "checkpoint-9"}, folder
        for path in folder.glob("checkpoint-*"):
            assert {inner.name for inner in path.iterdir()} >= {"trained.safetensors", "trainer_state.json"}


@each_step(5)
def test_a_fine_tuning_goes_on_or_says_what_to_do(stride: int, bert: str, tmp_path: Path) -> None:  # noqa: F811
    data = table(tmp_path / "q.csv", rows(24))
    settings = Settings(bert, QUESTIONS, rank=4, epochs=1, batch=8, validation=0.25)

    def run(folder: Path, resume: bool = False) -> None:
        fine_tune(data, folder, settings, resume=resume)

    begun = steps(lambda: run(tmp_path / "whole"))
    wanted = load_file(tmp_path / "whole" / "adapter_model.safetensors")
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    ways = set()
    for folder in every(run, [*range(0, len(begun) - 1, stride), len(begun) - 1], tmp_path):
        for resume in (True, False):
            try:
                run(folder, resume)
                ways.add(resume)
                break
            except ValueError as error:
                told = str(error)
        else:
            ways.add(told.rpartition("; ")[2])  # it had come to its end
        found = load_file(folder / "adapter_model.safetensors")
        assert all(torch.equal(value, found[name]) for name, value in wanted.items()), folder
        left = {path.name for path in folder.iterdir()}
        assert {name for name in left if not name.startswith(".writing-")} == names, folder
        assert left == names or "name another folder" in ways, folder
    assert ways == {True, False, "name another folder"}


@pytest.mark.parametrize("state", [None, "", "{", "[]", "{}", '{"global_step": 5}', '{"global_step": true}', "[" * 100])
def test_a_checkpoint_is_whole_with_the_state_of_its_step(state: str | None, tmp_path: Path) -> None:
    for name in ("checkpoint-2", "checkpoint-10"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "trainer_state.json").write_text(f'{{"global_step": {name[11:]}}}')
    for name in ("checkpoint-x", "checkpoint-", "checkpoint-11", "checkpoint-٣", "runs"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-12").write_text("")
    if state is not None:
        (tmp_path / "checkpoint-11" / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert last_checkpoint(tmp_path / "nowhere") is None
