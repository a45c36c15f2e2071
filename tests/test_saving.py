"""A checkpoint is one thing: at every instant of a save a folder loads as the old or the new adapter."""

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from kills import failing, forked, killed
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.utils import load_peft_weights
from safetensors.torch import load_file, save_file
from test_qpa import adapted as generated
from test_qpa import steps
from tiny import adapted, base, config, logits, shake
from torch import Tensor

from qcircuit_peft import files
from qcircuit_peft.tuner.saving import COMMITTED

pytestmark = [*forked, pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning")]
WEIGHTS, CONFIG, BIN = "adapter_model.safetensors", "adapter_config.json", "adapter_model.bin"
NAMES = {WEIGHTS, CONFIG, "README.md"}


def circuit(alpha: float, seed: int) -> Any:
    return adapted("llama", alpha=alpha, seed=seed, target_modules=["q_proj"])


def injected(alpha: float, seed: int) -> Any:
    model = base("llama")
    model.add_adapter(config("llama", alpha=alpha, seed=seed, target_modules=["q_proj"]))
    return shake(model)


def generator(alpha: float, seed: int) -> Any:
    net = generated(seed=seed, noise={"depolarizing": alpha / 1000})
    steps(net, 1)
    return net


def named(alpha: float, seed: int) -> Any:
    net = circuit(3.0, 3)
    net.add_adapter("other", config("llama", alpha=alpha, seed=seed, target_modules=["q_proj"]))
    net.set_adapter("other")
    return shake(net, "other").eval()


def by_peft(folder: Path) -> Tensor:
    return logits(PeftModel.from_pretrained(base("llama"), folder).eval(), "llama")


def by_config(folder: Path) -> Tensor:
    """As the Auto classes of PEFT do."""
    read = PeftConfig.from_pretrained(str(folder))
    return logits(PeftModel.from_pretrained(base("llama"), folder, config=read).eval(), "llama")


def by_transformers(folder: Path) -> Tensor:
    model = base("llama")
    model.load_adapter(str(folder))
    return logits(model, "llama")


def by_subfolder(folder: Path) -> Tensor:
    model = base("llama")
    model.load_adapter(str(folder), adapter_kwargs={"subfolder": "other"})
    net = PeftModel.from_pretrained(base("llama"), folder, subfolder="other")
    assert torch.equal(logits(model, "llama"), logits(net, "llama"))
    return logits(net, "llama")


WAYS = {
    "auto": (circuit, by_config),
    "transformers": (injected, by_transformers),
    "qpa": (generator, by_peft),
    "subfolder": (named, by_subfolder),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_kill_at_any_step_leaves_the_old_or_the_new_and_nothing_after_the_next_save(way: str, tmp_path: Path) -> None:
    make, loaded = WAYS[way]
    old, new = make(48.0, 1), make(7.0, 2)
    old.save_pretrained(tmp_path / "old")
    before, after = loaded(tmp_path / "old"), logits(new, "llama")
    assert not torch.equal(before, after)
    seen = []
    for at in range(100):
        folder = tmp_path / str(at)
        shutil.copytree(tmp_path / "old", folder)
        going = killed(lambda folder=folder: new.save_pretrained(folder), at)
        found = loaded(folder)
        seen.append(torch.equal(found, after))
        assert seen[-1] or torch.equal(found, before), at
        clean = {path.name for path in (tmp_path / "old").rglob("*")}
        if going:
            old.save_pretrained(folder)
            assert all(
                (folder / name).read_bytes() == (tmp_path / "old" / name).read_bytes() for name in (WEIGHTS, CONFIG)
            )
        assert {path.name for path in folder.rglob("*")} == clean
        if not going:
            break
    assert len(seen) > 12 and seen == sorted(seen) and seen.count(True) > 5


def _in_a_process(work: Callable[[], None]) -> Callable[[], bool]:
    """Begin it; what is returned waits for its end, and says whether it was a good one."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return lambda: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _in_a_thread(pool: ThreadPoolExecutor, work: Callable[[], None]) -> Callable[[], bool]:
    found = pool.submit(work)
    return lambda: found.exception() is None


@pytest.mark.skipif(files.fcntl is None, reason="this system locks no folders")
@pytest.mark.parametrize("kind", ["processes", "threads"])
def test_those_who_save_into_one_folder_and_load_from_it_take_turns(kind: str, tmp_path: Path) -> None:
    nets = [circuit(48.0, 1), circuit(7.0, 2), named(5.0, 4)]
    nets[2].set_adapter("default")
    whole = [logits(net, "llama") for net in nets]
    nets[0].save_pretrained(tmp_path)

    def saves(net: Any) -> None:
        for _ in range(4):
            net.save_pretrained(tmp_path)

    with ThreadPoolExecutor(len(nets)) as pool:
        begin = _in_a_process if kind == "processes" else partial(_in_a_thread, pool)
        ends = [begin(partial(saves, net)) for net in nets]
        for _ in range(12):
            found = by_peft(tmp_path)
            assert any(torch.equal(found, expected) for expected in whole)
        assert all([end() for end in ends])
    found = by_peft(tmp_path)
    assert any(torch.equal(found, expected) for expected in whole)
    assert {path.name for path in tmp_path.iterdir()} == {*NAMES, "other"}


@pytest.mark.skipif(files.fcntl is None, reason="this system locks no folders")
def test_who_holds_a_folder_for_ever_is_not_waited_for_so_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = circuit(7.0, 2)
    monkeypatch.setattr(files, "_PATIENCE", 0.1)
    theirs = files.draft_of(tmp_path / "anything")
    with files.turn(tmp_path):
        theirs.mkdir()
        net.save_pretrained(tmp_path)
        assert torch.equal(by_peft(tmp_path), logits(net, "llama"))
        assert theirs.is_dir()  # who holds the folder may be amid a save
    net.save_pretrained(tmp_path)
    assert not theirs.exists()


def test_where_a_system_locks_nothing_debris_goes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "fcntl", None)
    debris = files.draft_of(tmp_path / "anything")
    debris.mkdir()
    circuit(7.0, 2).save_pretrained(tmp_path)
    assert not debris.exists()


@pytest.mark.parametrize(
    ("way", "lasting"), [("auto", False), ("transformers", True), ("qpa", False), ("subfolder", True)]
)
def test_an_error_at_any_step_leaves_the_old_or_the_new_and_nothing_after_the_next_save(
    way: str, lasting: bool, tmp_path: Path
) -> None:
    """Of a disk that fails once, or is full from then on."""
    make, loaded = WAYS[way]
    old, new = make(48.0, 1), make(7.0, 2)
    old.save_pretrained(tmp_path / "old")
    before, after = loaded(tmp_path / "old"), logits(new, "llama")
    clean = {path.name for path in (tmp_path / "old").rglob("*")}
    seen = []
    for at in range(100):
        folder = tmp_path / str(at)
        shutil.copytree(tmp_path / "old", folder)
        with failing(at, lasting) as begun:
            try:
                new.save_pretrained(folder)
            except OSError as error:
                assert "on purpose" in str(error)
        found = loaded(folder)
        seen.append(torch.equal(found, after))
        assert seen[-1] or torch.equal(found, before), at
        new.save_pretrained(folder)
        assert torch.equal(loaded(folder), after)
        assert {path.name for path in folder.rglob("*")} == clean
        if len(begun) <= at:
            break
    assert len(seen) > 12 and False in seen and seen[-1]


@pytest.fixture
def interrupted(tmp_path: Path) -> tuple[Path, Tensor, Tensor]:
    """A folder in the middle of a save, and the outputs of the old and the new adapter."""
    old, new = circuit(48.0, 1), circuit(7.0, 2)
    old.save_pretrained(tmp_path)
    for at in range(100):
        assert killed(lambda: new.save_pretrained(tmp_path), at)
        if (tmp_path / COMMITTED).is_dir():
            break
    return tmp_path, logits(old, "llama"), logits(new, "llama")


def test_a_save_of_another_method_or_of_a_configuration_ends_what_was_interrupted(
    interrupted: tuple[Path, Tensor, Tensor], tmp_path: Path
) -> None:
    folder, _, after = interrupted
    shutil.copytree(folder, tmp_path / "copy")
    PeftConfig.from_pretrained(str(tmp_path / "copy")).save_pretrained(str(tmp_path / "copy"))
    assert torch.equal(by_peft(tmp_path / "copy"), after) and not (tmp_path / "copy" / COMMITTED).exists()
    lora = get_peft_model(base("llama"), LoraConfig(target_modules=["q_proj"], init_lora_weights=False)).eval()
    lora.save_pretrained(folder)
    assert torch.equal(by_peft(folder), logits(lora, "llama"))


def on_the_hub(cache: Path, folder: Path) -> Path:
    """A cache of the Hub's as it is after the repository "a/b" was downloaded, with what a folder holds."""
    repository = cache / "models--a--b"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    shutil.copytree(folder, repository / "snapshots" / ("0" * 40))
    return cache


def test_an_adapter_is_loaded_from_the_hub(tmp_path: Path) -> None:
    net = circuit(48.0, 1)
    net.save_pretrained(tmp_path / "a")
    cache = str(on_the_hub(tmp_path / "hub", tmp_path / "a"))
    model = base("llama")
    model.load_adapter("a/b", adapter_kwargs={"cache_dir": cache})
    for loaded in (model, PeftModel.from_pretrained(base("llama"), "a/b", cache_dir=cache)):
        assert torch.equal(logits(loaded.eval(), "llama"), logits(net, "llama"))


def test_weights_of_one_save_are_refused_with_the_configuration_of_another(tmp_path: Path) -> None:
    for number, net in enumerate((circuit(48.0, 1), circuit(7.0, 2), generator(1, 1), generator(2, 1))):
        net.save_pretrained(tmp_path / str(number))
        net.save_pretrained(tmp_path / f"{number}bin", safe_serialization=False)
    for mine, other, name in (("0", "1", WEIGHTS), ("2", "3", WEIGHTS), ("0bin", "1bin", BIN), ("2bin", "3bin", BIN)):
        folder = tmp_path / f"mixed{mine}"
        shutil.copytree(tmp_path / mine, folder)
        shutil.copy(tmp_path / other / name, folder)
        model = base("llama")
        cached = {"cache_dir": str(on_the_hub(tmp_path / f"hub{mine}", folder))}
        ways = [
            lambda f=folder, m=model: PeftModel.from_pretrained(m, f),
            lambda c=cached, m=model: PeftModel.from_pretrained(m, "a/b", **c),
            lambda f=folder: load_peft_weights(str(f)),
        ]
        if mine.startswith("0"):
            ways.append(lambda c=cached, m=model: m.load_adapter("a/b", adapter_kwargs=c))
            ways.append(lambda f=folder, m=model: m.load_adapter(str(f)))
        for load_it in ways:
            with pytest.raises(ValueError, match=r"was not saved with this adapter_config\.json; copy both from one"):
                load_it()
        assert not hasattr(model, "peft_config")
        if name == BIN:  # as version 0.1 saved, without a digest
            torch.save(dict(torch.load(folder / BIN)), folder / BIN)
        else:
            save_file(load_file(folder / WEIGHTS), folder / WEIGHTS)
        by_peft(folder)


@pytest.mark.parametrize("safe", [True, False])
def test_weights_without_their_configuration_are_compared_with_the_one_at_hand(safe: bool, tmp_path: Path) -> None:
    net, other = circuit(48.0, 1), circuit(7.0, 2)
    net.save_pretrained(tmp_path, safe_serialization=safe)
    (tmp_path / CONFIG).unlink()
    mine, theirs = (model.peft_config["default"] for model in (net, other))
    model = base("llama")
    with pytest.raises(ValueError, match="another configuration than that of the configuration that is given"):
        PeftModel.from_pretrained(model, tmp_path, config=theirs)
    assert not hasattr(model, "peft_config")
    states = [load_peft_weights(str(tmp_path))] + ([] if safe else [torch.load(tmp_path / BIN, weights_only=True)])
    for state in states:
        before = {name: value.clone() for name, value in other.state_dict().items()}
        with pytest.raises(ValueError, match="another configuration than that of the adapter 'default'"):
            set_peft_model_state_dict(other, state)
        assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
        set_peft_model_state_dict(circuit(48.0, 3), state)
    PeftModel.from_pretrained(base("llama"), tmp_path, config=mine)


@pytest.mark.parametrize("net", [circuit, generator], ids=["circuit", "generator"])
def test_a_state_dict_that_lacks_entries_is_not_saved(net: Callable[..., Any], tmp_path: Path) -> None:
    model = net(1, 1)
    model.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    whole = model.state_dict()
    last = [key for key in whole if "qcircuit_lambda" in key or "qpa_" in key][-1]
    for state in ({}, {key: value for key, value in whole.items() if key != last}):
        with pytest.raises(ValueError, match=r"the state dict lacks .*nothing was changed"):
            model.save_pretrained(tmp_path, state_dict=state)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    model.save_pretrained(tmp_path, state_dict=whole)


def test_what_changes_no_number_may_be_edited_by_hand(tmp_path: Path) -> None:
    net = circuit(48.0, 1)
    net.save_pretrained(tmp_path)
    text = (tmp_path / CONFIG).read_text()
    edited = text.replace('"seed": 1', '"seed": 2').replace('"base_model_name_or_path": null', '"revision": "main"')
    assert edited != text
    (tmp_path / CONFIG).write_text(edited)
    assert torch.equal(by_peft(tmp_path), logits(net, "llama"))


def test_weights_in_another_format_take_the_place_of_the_old_ones(tmp_path: Path) -> None:
    old, new = circuit(48.0, 1), circuit(7.0, 2)
    for net, form in ((old, True), (new, False), (old, True)):
        net.save_pretrained(tmp_path, safe_serialization=form)
        assert torch.equal(by_peft(tmp_path), logits(net, "llama"))
        assert {path.name for path in tmp_path.iterdir()} == NAMES - {WEIGHTS} | {
            WEIGHTS if form else "adapter_model.bin"
        }


def test_what_version_0_1_left_is_removed_and_what_is_not_ours_stays(tmp_path: Path) -> None:
    for name in (".saving-abcd1234", ".replaced-abcd1234", ".git", "notes"):
        (tmp_path / name).mkdir()
        (tmp_path / name / WEIGHTS).write_bytes(b"x")
    circuit(7.0, 2).save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == NAMES | {".git", "notes"}


@pytest.mark.parametrize(
    "how", ["a folder for weights", "for a configuration", "for other weights", "for a card", "a file"]
)
def test_what_is_in_the_way_is_named_and_nothing_is_changed(how: str, tmp_path: Path) -> None:
    net = named(5.0, 5)  # two adapters, one of them in a folder of its own
    names = {"a folder for weights": WEIGHTS, "for a configuration": CONFIG, "for other weights": BIN}
    blocked = tmp_path / names.get(how, "README.md" if how == "for a card" else "other")
    if how == "a file":
        blocked.write_text("mine")
    else:
        blocked.mkdir()
        (blocked / "mine").write_text("mine")
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=rf"{blocked.name} is a (folder|file), where a (file|folder) is to be saved"):
        net.save_pretrained(tmp_path)
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before
