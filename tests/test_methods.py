"""The table of methods: where they start, what they train, that all of it learns, and that it is read back."""

from itertools import islice
from pathlib import Path
from statistics import mean

import pytest
import torch
from bounds import close
from safetensors.torch import load_file
from tiny import CHAIN
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, BertModel, LlamaConfig, LlamaModel

from qcircuit_peft.analysis import best_capture, gradient_capture
from qcircuit_peft.methods import METHODS, UpdateConfig, load, save, stored, trained_numbers
from qcircuit_peft.methods.base import Lisa
from qcircuit_peft.methods.looking import loss_of, trained_for_a_while
from qcircuit_peft.methods.method import MAX_SIZE, blocks
from qcircuit_peft.methods.reft import LoReFT
from qcircuit_peft.text import shown

TARGETS = ["query", "value"]
SIZES = {"mora": 6, "quanta": 3, "randlora": 8, "fourierft": 9, "waveft": 9, "svf": 5, "nola": 9, "oft": 4}
HEADED = ("prefix", "prompt")


def bert(name: str = "") -> nn.Module:
    torch.manual_seed(1)
    config = BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        vocab_size=64,
        max_position_embeddings=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return (BertForSequenceClassification if name in HEADED else BertModel)(config).eval()


def out(model: nn.Module) -> torch.Tensor:
    ids = torch.randint(0, 64, (3, 9), generator=torch.Generator().manual_seed(0))
    return model(input_ids=ids, attention_mask=torch.ones_like(ids))[0]


def size(name: str) -> int:
    method = METHODS[name]
    return SIZES.get(name, min(method.default, 16))


def attached(name: str) -> nn.Module:
    model = bert(name)
    torch.manual_seed(3)
    return METHODS[name].attach(model, TARGETS, size(name)).eval()


@pytest.mark.parametrize("name", METHODS)
def test_it_starts_at_the_base_models_output(name):
    with torch.no_grad():
        wanted, found = out(bert(name)), out(attached(name))
    if METHODS[name].at_base:
        close(found, wanted, CHAIN)
    else:
        assert not torch.equal(found, wanted)


@pytest.mark.parametrize("name", METHODS)
def test_its_count_is_its_formula(name):
    model = bert(name)
    expected = METHODS[name].count(model, TARGETS, size(name))
    torch.manual_seed(3)
    assert trained_numbers(METHODS[name].attach(model, TARGETS, size(name))) == expected


def step(model: nn.Module, name: str) -> dict[str, torch.Tensor]:
    """A step of AdamW with the method's groups; the gradients by name."""
    groups = METHODS[name].groups(model)
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    optimizer.zero_grad()
    target = torch.randn(out(model).shape, generator=torch.Generator().manual_seed(5))
    (out(model) - target).square().mean().backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad and p.grad is not None}
    optimizer.step()
    return found


# What a loss of hidden states does not reach: BERT's pooler, the key's bias, by which no softmax changes.
UNREACHED = ("pooler", "key.bias", "token_type")


@pytest.mark.parametrize("name", [name for name in METHODS if name != "probe"])
def test_gradients_reach_every_parameter_in_two_steps(name):
    model = attached(name).train()
    before = [step(model, name) for _ in range(2)]
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    for parameter in trained:
        if not any(part in parameter for part in UNREACHED):
            assert any(parameter in grads and grads[parameter].any() for grads in before), parameter


@pytest.mark.parametrize("name", METHODS)
def test_what_it_trained_is_read_back(name, tmp_path):
    model = attached(name)
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += 0.02 * torch.randn(p.shape, generator=draw)
        wanted = out(model)
    save(model, tmp_path)
    found = load(METHODS[name], bert(name), TARGETS, size(name), tmp_path).eval()
    with torch.no_grad():
        close(out(found), wanted, CHAIN)
        assert name == "probe" or not torch.allclose(wanted, out(bert(name)))
    numbers, size_in_bytes = stored(METHODS[name], tmp_path)
    on_disk = sum(path.stat().st_size for path in tmp_path.glob("*") if path.suffix in (".safetensors", ".json"))
    assert size_in_bytes == on_disk and (numbers >= trained_numbers(model) or name == "vblora" or name == "probe")


@pytest.mark.parametrize("name", METHODS)
def test_every_row_says_what_it_is(name):
    method = METHODS[name]
    assert method.name and method.about and list(method.rates) == sorted(set(method.rates))
    assert len(method.rates) >= 3 or name == "probe"


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].size])
def test_a_size_is_the_nearest_to_the_numbers_asked_for(name):
    method, model = METHODS[name], bert(name)
    choices = []
    for n in method.sizes(model, TARGETS):
        choices.append((method.count(model, TARGETS, n), n))
        if n >= 64:
            break
    for numbers in (min(choices)[0], int(mean(c for c, _ in choices)), choices[len(choices) // 2][0] + 1):
        best = min(abs(count - numbers) for count, _ in choices)
        found = method.fit(model, TARGETS, numbers)
        assert abs(method.count(model, TARGETS, found) - numbers) <= best
    least = min(choices)[0]
    if least > 8:
        with pytest.raises(ValueError, match=f"trains {least:,} numbers here at least, {least // 2:,} were asked"):
            method.fit(model, TARGETS, least // 2)


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].size])
def test_a_size_beyond_all_bounds_is_refused_before_it_is_looked_for(name):
    method, model = METHODS[name], bert(name)
    last = list(islice(method.sizes(model, TARGETS), MAX_SIZE + 1))[-1]
    assert last <= MAX_SIZE
    for size in (last + 1, 10**12, 10**5000):
        said = f"has no size {shown(size)} in this model; the next smaller one is {last}"
        with pytest.raises(ValueError, match=said):
            method.count(model, TARGETS, size)


def test_what_a_method_cannot_do_is_one_sentence():
    with pytest.raises(ValueError, match="has no size to choose"):
        METHODS["ia3"].fit(bert(), TARGETS, 100)
    with pytest.raises(ValueError, match="no linear layer whose name ends in one of"):
        METHODS["lora"].count(bert(), ["q_proj"], 1)
    with pytest.raises(ValueError, match="need a model with a head of its own"):
        METHODS["prompt"].attach(bert(), TARGETS, 2)
    for settings, said in (
        ({"update": "svd"}, "update is one of svf"),
        ({"size": 0}, "size is a whole number >= 1"),
        ({"update": "mora", "size": 3}, "an even number"),
        ({"seed": -1}, "seed is a whole number >= 0"),
    ):
        with pytest.raises(ValueError, match=said):
            UpdateConfig(target_modules=TARGETS, **settings)
    with pytest.raises(ValueError, match="at most as many numbers as the narrower side of a layer, 32"):
        METHODS["svf"].attach(bert(), TARGETS, 33)
    with pytest.raises(ValueError, match="is a BertEncoder, not a linear layer"):
        METHODS["svf"].attach(bert(), ["encoder"], 3)
    with pytest.raises(ValueError, match="at most, got 33"):
        METHODS["loreft"].attach(bert(), TARGETS, 33)


def weight(model: nn.Module, layer: int = 0) -> torch.Tensor:
    return model.encoder.layer[layer].attention.self.query.weight.detach()


def query(model: nn.Module, layer: int = 0) -> nn.Module:
    return model.base_model.model.encoder.layer[layer].attention.self.query


def filled(name: str, n: int) -> nn.Module:
    """An update with numbers of every kind that are not zero."""
    model = METHODS[name].attach(bert(), TARGETS, n)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += torch.randn(p.shape)
    return model


def test_svf_is_lambda_on_the_singular_vectors_of_w():
    model, w = filled("svf", 4), weight(bert())
    u, _, vh = torch.linalg.svd(w)
    layer = query(model)
    lam = layer.update_own["default"].detach()
    wanted = sum(8 * lam[i] * torch.outer(u[:, i], vh[i]) for i in range(4))
    close(layer.get_delta_weight("default").detach(), wanted, 32, 8 * lam.abs().max())


def test_random_frames_are_orthonormal_and_differ_between_layers():
    model = filled("random_frames", 6)
    first, second = (query(model, i).frozen["default"] for i in range(2))
    for frames in (first, second):
        for name in ("u", "v"):
            close(frames[name].T @ frames[name], torch.eye(6), 32)
    assert not torch.allclose(first["u"], second["u"])
    again = METHODS["random_frames"].attach(bert(), TARGETS, 6)
    assert torch.equal(query(again).frozen["default"]["u"], first["u"])  # of the seed, not of torch's state


def test_nola_mixes_random_matrices():
    layer = query(filled("nola", 7))
    own, frozen = layer.update_own["default"].detach(), layer.frozen["default"]
    a = sum(own[i] * frozen["a"][i] for i in range(4))
    b = sum(own[4 + j] * frozen["b"][j] for j in range(3))
    close(layer.get_delta_weight("default").detach(), b @ a, 64, (b @ a).abs().max() * 8)


def test_mora_is_its_block_form():
    """Equation 9 entry by entry: group j of the inputs is turned by angles j * theta, then goes through M."""
    r, layer = 6, query(filled("mora", 6))
    m = layer.update_own["default"].detach().view(r, r)
    wanted = torch.zeros(36, 36)  # 32 is no multiple of 6: the first inputs come again
    for j in range(6):
        turn = torch.zeros(r, r)
        for i in range(r // 2):
            angle = torch.tensor(j * 10_000 ** (-2 * i / r))
            turn[i, i] = turn[i + r // 2, i + r // 2] = angle.cos()
            turn[i, i + r // 2], turn[i + r // 2, i] = -angle.sin(), angle.sin()
        wanted[j * r : (j + 1) * r, j * r : (j + 1) * r] = m @ turn
    wanted[:, :4] += wanted[:, 32:]
    close(layer.get_delta_weight("default").detach(), wanted[:32, :32], 32, m.abs().max() * 6)


def test_lotr_shares_its_outer_factors_by_kind():
    model = filled("lotr", 3)
    bank = model.base_model.update_common["default"]
    assert len(bank) == 2  # of queries and of values
    deltas = []
    for i in range(2):
        layer = query(model, i)
        (flat,) = (value for key, value in bank.items() if "query" in key)
        left, right = flat.detach()[: 32 * 3].view(32, 3), flat.detach()[32 * 3 :].view(32, 3)
        core = layer.update_own["default"].detach().view(3, 3)
        deltas.append(layer.get_delta_weight("default").detach())
        close(deltas[-1], left @ core @ right.T, 64, deltas[-1].abs().max() * 8)
    assert not torch.allclose(*deltas)


@pytest.mark.parametrize("name", ["svf", "random_frames", "nola", "mora", "lotr"])
def test_an_update_is_merged_and_taken_out_again(name):
    model = filled(name, 6).eval()
    with torch.no_grad():
        wanted = out(model)
        model.merge_adapter()
        close(out(model), wanted, 8 * CHAIN)
        model.unmerge_adapter()
        close(out(model), wanted, 8 * CHAIN)
        with model.disable_adapter():
            close(out(model), out(bert()), 8 * CHAIN)
        close(out(model.merge_and_unload()), wanted, 8 * CHAIN)


# PEFT takes adapter_names for these, and runs every row with the active adapter; README says so.
MIXES_WRONG = {
    *("lora_xs", "unilora", "tinylora", "vblora", "vera", "randlora", "c3a", "waveft", "fourierft"),
    *("oft", "lokr", "ia3", "miss"),
}
MIXES_NOT = {"adalora", "dora"}  # refused by PEFT
OTHERWISE = {"probe", "full", "bitfit", "lisa", "loreft", *HEADED}  # no adapter that a row could name


@pytest.mark.parametrize("name", [name for name in METHODS if name not in OTHERWISE])
def test_every_row_of_a_mixed_batch_has_its_own_adapter(name):
    model = attached(name)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += torch.randn(p.shape)
        ids = torch.randint(0, 64, (3, 9), generator=torch.Generator().manual_seed(0))
        call = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        ours, names = model(**call)[0], ["default", "__base__", "default"]
        with model.disable_adapter():
            plain = model(**call)[0]
        assert not torch.allclose(ours[1], plain[1], atol=1e-2)
        if name in MIXES_NOT:
            with pytest.raises((ValueError, TypeError), match="adapter_names"):
                model(**call, adapter_names=names)
            return
        found = model(**call, adapter_names=names)[0]
        right = torch.stack([ours[0], plain[1], ours[2]])
        if name in MIXES_WRONG:
            assert not torch.allclose(found, right, atol=1e-2)
        else:
            close(found, right, CHAIN)


def test_loreft_moves_within_its_directions():
    torch.manual_seed(0)
    loreft, h = LoReFT(16, 3), torch.randn(5, 16)
    close(loreft(h).detach(), h, 16)
    with torch.no_grad():
        loreft.source.weight += torch.randn(3, 16)
        loreft.source.bias += 1
        loreft.directions += torch.randn(16, 3)
    rotation = loreft.rotation().detach()
    close(rotation.T @ rotation, torch.eye(3), 16)
    wanted = h + (h @ loreft.source.weight.T + loreft.source.bias - h @ rotation).detach() @ rotation.T
    close(loreft(h).detach(), wanted, 32, 8)
    beyond = loreft(h).detach() - h
    close(beyond - beyond @ rotation @ rotation.T, torch.zeros(5, 16), 32, beyond.abs().max())


class State:
    def __init__(self) -> None:
        self.global_step = 0


def test_lisa_lets_few_blocks_train_at_a_time_and_all_in_the_end():
    model = METHODS["lisa"].attach(LlamaModel(llama(4)), [], 0)
    lisa, state, seen, before = Lisa(model, active=2, every=3), State(), set(), []
    for state.global_step in range(30):
        lisa.on_step_begin(None, state, None)
        now = [i for i, block in enumerate(blocks(model)[1]) if all(p.requires_grad for p in block.parameters())]
        assert len(now) == 2 and (state.global_step % 3 == 0 or now == before)
        before = now
        seen |= set(now)
    assert seen == {0, 1, 2, 3}
    lisa.on_train_end(None, state, None)
    assert trained_numbers(model) == METHODS["lisa"].count(model, [], 0)


def llama(layers: int) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        pad_token_id=0,
    )


def test_adalora_comes_down_to_its_rank():
    method = METHODS["adalora"]
    model = method.attach(bert(), TARGETS, 1).train()
    (allocate,), state = method.callbacks(model, 40), State()
    for state.global_step in range(40):
        step_with(model, allocate, state)
    ranks = [int((p != 0).sum()) for n, p in model.named_parameters() if "lora_E" in n]
    assert sum(ranks) == len(ranks) == 4


def step_with(model, callback, state) -> None:
    optimizer = torch.optim.AdamW(METHODS["adalora"].groups(model), weight_decay=0.0)
    out(model).square().mean().backward()
    optimizer.step()
    callback.on_optimizer_step(None, state, None)
    optimizer.zero_grad()


# Families whose names and widths differ: grouped keys, feed-forward layers of another width.
@pytest.mark.parametrize("name", [name for name in METHODS if name not in (*HEADED, "bitfit")])
def test_counts_hold_in_another_family_of_models(name):
    torch.manual_seed(1)
    model, method = LlamaModel(llama(2)), METHODS[name]
    targets = ["q_proj", "v_proj"]
    n = next((n for n in method.sizes(model, targets) if n >= min(method.default, 4)), 0) if method.size else 0
    expected = method.count(model, targets, n)
    assert trained_numbers(method.attach(model, targets, n)) == expected


def test_a_saved_adapter_of_ours_is_a_plain_peft_checkpoint(tmp_path: Path):
    save(filled("nola", 6), tmp_path)
    assert all(key.startswith("base_model.") for key in load_file(tmp_path / "adapter_model.safetensors"))


def test_an_update_is_merged_whole_or_not_and_switched_off_when_merged():
    model = attached("svf")
    with torch.no_grad():
        plain = out(bert())
        for p in model.parameters():
            if p.requires_grad:
                p += 1
        model.add_adapter("b", model.peft_config["default"])
        before = out(model)
        for name, p in model.named_parameters():
            if "update_own.b" in name:
                p.fill_(float("inf"))
        with pytest.raises(ValueError, match="'b' would make weights that are not finite"):
            model.merge_adapter(["default", "b"], safe_merge=True)
        assert torch.equal(out(model), before)
        model.merge_adapter(["default"])
        with model.disable_adapter():
            close(out(model), plain, 10 * CHAIN)


class Net(nn.Module):
    """A model and a head on it, as a task has them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.model, self.head = model, nn.Linear(32, 3)

    def forward(self, labels: torch.Tensor, **batch: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.head(self.model(**batch)[0].mean(1))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def batches() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(6)
    ids = [torch.randint(0, 64, (5, 9), generator=generator) for _ in range(3)]
    return [{"input_ids": some, "labels": torch.randint(0, 3, (5,), generator=generator)} for some in ids]


LOOKING = [name for name, row in METHODS.items() if row.look]


@pytest.mark.parametrize("name", LOOKING)
def test_a_look_at_the_task_moves_where_the_adapter_acts_and_nothing_else(name):
    net = Net(attached(name))
    before = {key: p.detach().clone() for key, p in net.named_parameters()}
    with torch.no_grad():
        wanted = out(net.model)
    METHODS[name].look(net, batches(), list(net.head.parameters()))
    with torch.no_grad():
        assert torch.equal(out(net.model), wanted)
    after = dict(net.named_parameters())
    moved = {key for key, p in after.items() if not torch.equal(p, before[key])}
    assert moved and all("qcircuit" in key for key in moved)
    assert all(p.grad is None for p in after.values())
    again = Net(attached(name))
    METHODS[name].look(again, batches(), list(again.head.parameters()))
    assert all(torch.equal(p, after[key]) for key, p in again.named_parameters())


def test_a_core_in_the_gradients_directions_holds_the_most_of_it():
    net = Net(attached("gradient_core"))
    heads, given = list(net.head.parameters()), batches()
    METHODS["gradient_core"].look(net, given, heads)
    with trained_for_a_while(net, given, heads):
        found = gradient_capture(net, given, loss_of)
        best = best_capture(net, found.modules, given, size("gradient_core"), loss_of)
    assert found.share == pytest.approx(best.share, rel=1e-4)  # whose singular vectors are float32
