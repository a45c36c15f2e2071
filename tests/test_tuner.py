"""The tuner on tiny real models. Every test walks the table ``CONTRACT``: a new entry is tested by being added."""

import copy
import pickle
import re

import peft
import pytest
import torch
from bounds import close, rounding
from dispatched import Dispatched
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from tiny import (
    CHAIN,
    CONTRACT,
    MODELS,
    adapted,
    base,
    both,
    close_forward,
    config,
    each_model,
    inputs,
    layers,
    logits,
    made_together,
    shake,
)
from torch import Tensor, nn

from qcircuit_peft import QCircuitConfig, circuits, load, matrix, parameter_count
from qcircuit_peft.factorizations.parts import frames, sizes
from qcircuit_peft.tuner.layer import adapted_layers

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",
    "ignore:.*weights_only.*:FutureWarning",
    "ignore:Already found a `peft_config` attribute:UserWarning",  # PEFT, when it injects a second time
)


@both
def test_the_model_is_the_same_bit_for_bit_before_training(model: str, entry: str) -> None:
    before = base(model)
    expected = logits(before, model)
    assert torch.equal(logits(get_peft_model(before, config(model, entry)).eval(), model), expected)


@both
def test_training_lowers_the_loss_and_moves_every_parameter(model: str, entry: str) -> None:
    net = get_peft_model(base(model), config(model, entry)).train()
    start = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.02, weight_decay=0.0)
    losses = []
    for _ in range(12):
        loss = net(**inputs(model)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert min(losses[-3:]) < losses[0] - 1e-3
    for name, p in net.named_parameters():
        frozen = "qcircuit_" not in name or (entry == "frozen" and "lambda" not in name)
        assert torch.equal(p, start[name]) == frozen, name


@both
def test_delta_is_the_scaled_product_of_whole_circuit_matrices(model: str, entry: str) -> None:
    net = adapted(model, entry)
    settings = config(model, entry)
    for name, layer in adapted_layers(net):
        r = 2 if "rank_pattern" in CONTRACT[entry] and ".0." in name else settings.r
        alpha = 7 if "alpha_pattern" in CONTRACT[entry] and ".1." in name else settings.alpha
        values = {part: p.detach() for part, p in layer.values("default").items()}
        whole = {
            part: f.columns(values[part]) if f.width == "shannon" else matrix(next(iter(f.circuits()))[1], values[part])
            for part, f in frames(layer.factors["default"]).items()
        }
        u, v = whole["u"][:, :r], whole["v"][:, :r]
        delta = alpha / r * u @ torch.diag(values["lambda"]) @ v.T
        found = layer.get_delta_weight("default")
        close(
            found,
            delta.T if model == "gpt2" else delta,
            sum(1 + len(c.ops) for f in frames(layer.factors["default"]).values() for _, c, _ in f.circuits()),
        )
        x = torch.randn(2, 5, layer.in_features)
        close_forward(layer, x, x @ delta.T)


@each_model
def test_several_adapters(model: str) -> None:
    net = adapted(model)
    outputs = {"default": logits(net, model)}
    for number, entry in enumerate(["shannon", "patterns"], 1):
        net.add_adapter(entry, config(model, entry))
        shake(net, entry, number)
        assert torch.equal(logits(net, model), outputs["default"])  # not active yet
    for entry in ("shannon", "patterns"):
        net.set_adapter(entry)
        outputs[entry] = logits(net, model)
        assert all(p.requires_grad == (entry in name) for name, p in net.named_parameters() if "qcircuit" in name)
    assert len({tuple(out.flatten().tolist()) for out in outputs.values()}) == 3
    status = net.get_model_status()
    assert (status.active_adapters, status.peft_types["default"]) == (["patterns"], "QCIRCUIT")
    net.base_model.set_adapter(["default", "shannon"])
    layer, x = layers(net)[0], torch.randn(2, layers(net)[0].in_features)
    deltas = [layer.get_delta_weight(name) for name in ("default", "shannon")]
    close_forward(layer, x, sum(x @ (layer.map.matrix(delta).T) for delta in deltas))
    for names in (["default", "shannon"], ["default"]):  # frozen, so that nothing but their choice tells them apart
        net.base_model.set_adapter(names, inference_mode=True)
        assert torch.equal(logits(net, model), outputs["default"]) == (len(names) == 1)
    net.set_adapter("patterns")
    with net.disable_adapter():
        assert torch.equal(logits(net, model), logits(base(model), model))
    assert torch.equal(logits(net, model), outputs["patterns"])
    net.delete_adapter("shannon")
    assert not any("shannon" in name for name, _ in net.named_parameters()) and "shannon" not in net.peft_config
    assert torch.equal(logits(net, model), outputs["patterns"])
    with pytest.warns(UserWarning, match="Adapter patterns was active"):
        net.delete_adapter("patterns")
    assert torch.equal(logits(net, model), outputs["default"])


@each_model
def test_mixed_batches(model: str) -> None:
    net = adapted(model)
    net.add_adapter("other", config(model, "patterns"))
    shake(net, "other", 3)
    alone = {"default": logits(net, model)}
    net.set_adapter("other")
    alone |= {"other": logits(net, model), "__base__": logits(base(model), model)}
    names = ["other", "__base__", "default"]
    mixed = logits(net, model, adapter_names=names)
    for row, name in enumerate(names):
        close(mixed[row], alone[name][row], CHAIN)


@pytest.mark.parametrize("model", ["gpt2", "llama"])
def test_generate_also_with_beams_and_mixed_batches(model: str) -> None:
    net = adapted(model)
    ids = inputs(model)["input_ids"]
    wanted = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)}
    tokens = net.generate(input_ids=ids, **wanted)
    slow = ids
    for _ in range(tokens.shape[1] - ids.shape[1]):
        with torch.no_grad():
            slow = torch.cat([slow, net(input_ids=slow).logits[:, -1:].argmax(-1)], 1)
    ended = torch.cummax((tokens == net.config.eos_token_id)[:, 9:].int(), 1).values.bool()
    assert torch.equal(tokens[:, 9:][~ended], slow[:, 9:][~ended])
    beams = net.generate(input_ids=ids, num_beams=2, adapter_names=["default", "__base__", "default"], **wanted)
    alone = [
        net.generate(input_ids=ids[i : i + 1], num_beams=2, **wanted | {"attention_mask": torch.ones_like(ids[:1])})
        for i in (0, 2)
    ]
    with net.disable_adapter():
        plain = net.generate(input_ids=ids[1:2], num_beams=2, **wanted | {"attention_mask": torch.ones_like(ids[:1])})
    for row, own in zip(beams, (alone[0], plain, alone[1]), strict=True):
        assert torch.equal(row[: own.shape[1]], own[0])


def test_injection_shares_one_bank_also_for_a_second_adapter() -> None:
    model = base("llama")
    expected = logits(model, "llama")
    inject_adapter_in_model(config("llama", target_modules=["q_proj"]), model)
    inject_adapter_in_model(config("llama", "shannon", target_modules=["q_proj", "up_proj"]), model, "second")
    assert torch.equal(logits(model, "llama"), expected)
    assert len(layers(model)) == 4 and len({id(layer.bank) for layer in layers(model)}) == 1
    plain = shake(get_peft_model(nn.Sequential(nn.Linear(8, 8)), config("llama", target_modules=["0"])).eval())
    x = torch.randn(2, 8)
    mixed = plain(x, adapter_names=["default", "__base__"])
    close(mixed[0], plain(x)[0], 2 * 8**0.5)
    assert torch.equal(mixed[1], plain.base_model.model[0].base_layer(x)[1])
    assert not torch.equal(mixed[0], plain.base_model.model[0].base_layer(x)[0])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage:UserWarning")
def test_the_fast_path_of_torchs_own_encoder_does_not_pass_the_adapter_by() -> None:
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2)
    net = shake(get_peft_model(encoder, QCircuitConfig(target_modules=["linear1", "linear2"], r=4)).eval())
    x, padding = torch.randn(3, 5, 32), torch.arange(5).expand(3, 5) > torch.tensor([[2], [4], [3]])
    for mask in (None, padding):
        with torch.no_grad():
            fast = net(x, src_key_padding_mask=mask)
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            slow = net(x, src_key_padding_mask=mask)
        finally:
            torch.backends.mha.set_fastpath_enabled(True)
        trained = net(x, src_key_padding_mask=mask)
        kept = ~padding if mask is not None else torch.ones(3, 5, dtype=torch.bool)
        close(fast[kept], slow[kept], CHAIN)
        close(trained[kept], slow[kept], CHAIN)
        assert trained.requires_grad


@both
def test_parameter_count_agrees_and_changes_nothing(model: str, entry: str) -> None:
    net, settings = base(model), config(model, entry, modules_to_save=["classifier"] if model == "bert" else None)
    told, state = (settings.to_dict(), repr(net)), torch.random.get_rng_state()
    count = parameter_count(settings, net)
    assert (settings.to_dict(), repr(net)) == told and torch.equal(torch.random.get_rng_state(), state)
    assert all(not p.is_meta and p.requires_grad for p in net.parameters())
    made = get_peft_model(net, settings)
    assert count == made.get_nb_trainable_parameters()[0]
    per_layer = [
        {part: size for part, size in sizes(layer.factors["default"]).items() if part not in layer.lenders["default"]}
        for layer in layers(made)
    ]
    adapter = sum(found["lambda"] if entry == "frozen" else sum(found.values()) for found in per_layer)
    assert count == adapter + (2 * 32 + 2 if model == "bert" else 0)
    with torch.device("meta"):
        assert parameter_count(settings, MODELS[model][0]()) == count == parameter_count(MODELS[model][0](), settings)


def test_counts_of_two_widths() -> None:
    """384 -> 26 and 1536 -> 32 angles at L = 1, plus r, by hand from q + 2 L (q - 1) on wires 3, 2, ..., 2."""
    net = nn.Sequential(nn.Linear(384, 1536), nn.Linear(1536, 384, bias=False))
    assert parameter_count(QCircuitConfig(r=8, target_modules=["0", "1"]), net) == 2 * (26 + 32 + 8)


SEED_3 = [5.1886515617, 1.5696069002, 2.5653789043]  # as drawn first: the same on every machine and in every version


def angles_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: angles for name, _, angles in circuits(model)}


def test_a_seed_fixes_the_angles_of_each_layer() -> None:
    def start(seed: int | None, state: int) -> dict[str, list[float]]:
        model = base("llama")
        torch.manual_seed(state)
        return {name: a.tolist() for name, a in angles_of(get_peft_model(model, config("llama", seed=seed))).items()}

    first = start(3, 0)
    assert first == start(3, 99) and len({tuple(a) for a in first.values()}) == len(first)
    assert not any(first[name] == other for name, other in start(4, 0).items())
    close(first["base_model.model.model.layers.0.self_attn.q_proj.u"][:3], SEED_3, 1, dtype=torch.float32)
    assert start(None, 0) == start(None, 0) != start(None, 1)
    assert min(map(min, first.values())) >= 0 and 6.1 < max(map(max, first.values())) < 6.2832


@both
def test_circuits_names_every_factor_and_gives_copies(model: str, entry: str) -> None:
    net = adapted(model, entry)
    before = logits(net, model)
    found = list(circuits(net))
    names = [name for name, _, _ in found]
    assert len(set(names)) == len(names)
    assert {re.sub(r"\.[uv](\.[uv][12])*$", "", name) for name in names} == set(dict(adapted_layers(net)))
    for _, circuit, angles in found:
        assert circuit.is_real and angles.shape == (circuit.n_angles,)
        assert not angles.requires_grad
        angles.zero_()
    assert torch.equal(logits(net, model), before)
    assert list(circuits(net, adapter="nobody")) == []


def test_lora_users_options() -> None:
    net = get_peft_model(
        base("bert"),
        config(
            "bert",
            target_modules="all-linear",
            exclude_modules=["pooler.dense"],
            bias="qcircuit_only",
            task_type="SEQ_CLS",
        ),
    )
    assert len(layers(net)) == 12 and all(layer.bias.requires_grad for layer in layers(net))
    net = get_peft_model(
        base("bert"), config("bert", target_modules=["query"], layers_to_transform=[1], layers_pattern="layer")
    )
    assert list(dict(adapted_layers(net))) == ["base_model.model.bert.encoder.layer.1.attention.self.query"]
    net = get_peft_model(base("bert"), QCircuitConfig(r=2, task_type="SEQ_CLS"))  # LoRA's default targets, and the head
    assert len(layers(net)) == 4 and net.base_model.model.classifier.modules_to_save["default"].weight.requires_grad
    net = get_peft_model(base("bert"), config("bert", bias="all"))
    assert all(p.requires_grad for name, p in net.named_parameters() if name.endswith("bias"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@each_model
def test_dtypes(model: str, dtype: torch.dtype) -> None:
    net = adapted(model)
    expected = logits(net, model)
    state = {name: p for name, p in net.named_parameters() if "qcircuit" in name}
    cast = get_peft_model(base(model).to(dtype), config(model)).eval()
    for name, p in cast.named_parameters():
        if "qcircuit" in name:
            assert p.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            with torch.no_grad():
                p.copy_(state[name])
    assert logits(cast, model).dtype == dtype
    error = (logits(cast, model) - expected).abs().max() / expected.abs().max()
    assert error < (1e-5 if dtype == torch.float64 else 0.06)
    if dtype == torch.bfloat16:
        cast.train()(**inputs(model)).loss.backward()
        grads = {p.grad.dtype for name, p in cast.named_parameters() if "qcircuit" in name}
        assert grads == {torch.float32}
        injected = inject_adapter_in_model(config(model), base(model).to(dtype))
        assert all(p.dtype == torch.float32 for name, p in injected.named_parameters() if "qcircuit" in name)
        with torch.no_grad():
            cast.to(dtype)  # adapter and all, as .bfloat16() on the whole model does
        assert torch.isfinite(logits(cast, model)).all()


@each_model
def test_autocast(model: str) -> None:
    net = adapted(model)
    expected = logits(net, model)
    net.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = net(**inputs(model))
    assert (output.logits.float() - expected).abs().max() / expected.abs().max() < 0.06
    for layer in layers(net):  # generated in float32, cast once
        v = layer.factors["default"].v.columns(layer.qcircuit_v["default"].detach())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = made_together(layer, "default")["default"]["v"]
        assert torch.allclose(found, v.to(torch.bfloat16), rtol=1e-2, atol=rounding(torch.float32, 16))
    output.loss.backward()
    reference = adapted(model).train()
    reference(**inputs(model)).loss.backward()
    for (name, p), (_, q) in zip(net.named_parameters(), reference.named_parameters(), strict=True):
        if p.requires_grad:
            assert p.grad.dtype == torch.float32 and (p.grad - q.grad).norm() < 0.1 * q.grad.norm() + 1e-6, name


@each_model
def test_copies_and_pickles_share_nothing_with_the_original(model: str) -> None:
    net = adapted(model)
    expected = logits(net, model)
    net.train()(**inputs(model)).loss.backward()  # a graph is alive in the bank
    for made in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        made.eval()
        assert torch.equal(logits(made, model), expected)
        assert len({id(layer.bank) for layer in layers(made)} - {layers(net)[0].bank}) == 1
        assert layers(made)[0].bank is not layers(net)[0].bank and layers(made)[0].bank.passes.generations == 1
        shake(made, seed=9)
        assert not torch.equal(logits(made, model), expected)
    assert torch.equal(logits(net.eval(), model), expected)
    one = copy.deepcopy(layers(net)[0])
    x = torch.randn(2, one.in_features)
    with torch.no_grad():
        assert torch.equal(one(x), layers(net)[0](x))


def dispatched(settings: peft.PeftConfig) -> int:
    net = get_peft_model(base("bert", num_hidden_layers=12), settings).train()
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], foreach=True)
    for _ in range(3):
        with Dispatched() as mode:
            net(**inputs("bert")).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return mode.count


def test_a_training_step_dispatches_at_most_600_operations_more_than_lora() -> None:
    targets = ["query", "value"]
    more = dispatched(QCircuitConfig(r=8, target_modules=targets)) - dispatched(LoraConfig(r=8, target_modules=targets))
    print(f"\n{more} more operations than LoRA")
    assert more <= 600


def test_reading_an_ansatz_from_plain_data_gives_the_same_adapter() -> None:
    stored = load("simplified_two_design").to_dict()
    assert config("llama", ansatz=stored) == config("llama")


@pytest.mark.parametrize("frame", ["circuit", "shannon", "diagonal"])
def test_options_of_circuits_may_be_among_those_of_the_frame(frame: str) -> None:
    options = {"ansatz": "ring_ry_cz", "layers": 2, "backend": "native"}
    given = config("llama", frame=frame, frame_options=options)
    assert given.to_dict() == config("llama", frame=frame, **options).to_dict()
    assert given.frame_options == {} and given.layers == 2
    assert config("llama", frame=frame, layers=2, frame_options=options).to_dict() == given.to_dict()
