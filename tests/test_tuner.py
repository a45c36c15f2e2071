"""The tuner on tiny real models. Every test walks the table ``CONTRACT``: a new entry is tested by being added."""

import copy
import pickle
import re
from collections import Counter
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
from peft.tuners.lora.conversion import convert_to_lora
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from qcircuit_peft import QCircuitConfig, circuits, load, matrix, parameter_count
from qcircuit_peft.tuner import QCircuitLayer, QCircuitLinear

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",
    "ignore:.*weights_only.*:FutureWarning",
    "ignore:Already found a `peft_config` attribute:UserWarning",  # PEFT, when it injects a second time
)

# Configurations, each valid for every model below.
CONTRACT: dict[str, dict[str, Any]] = {
    "default": {"r": 6, "alpha": 48},
    "shannon": {"r": 4, "width": "shannon", "layers": 2, "seed": 5},
    "ring": {"r": 3, "alpha": 30.0, "ansatz": "ring_ry_cz", "width": "qudit", "init": "normal"},
    "frozen": {"r": 8, "train_angles": False},
    "patterns": {"r": 4, "rank_pattern": {r".*\.0\..*": 2}, "alpha_pattern": {r".*\.1\..*": 7}, "dropout": 0.1},
}


def gpt2(**change: Any) -> GPT2LMHeadModel:
    sizes = {
        "n_layer": 2,
        "n_embd": 48,
        "n_head": 4,
        "vocab_size": 64,
        "n_positions": 32,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return GPT2LMHeadModel(GPT2Config(**(sizes | rates | change)))


def llama(**change: Any) -> LlamaForCausalLM:
    sizes = {
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "vocab_size": 64,
    }
    rest = {
        "num_key_value_heads": 2,
        "max_position_embeddings": 32,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    return LlamaForCausalLM(LlamaConfig(**(sizes | rest | change)))


def bert(**change: Any) -> BertForSequenceClassification:
    sizes = {
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "intermediate_size": 56,
        "num_attention_heads": 4,
        "vocab_size": 64,
    }
    rates = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
    return BertForSequenceClassification(BertConfig(**(sizes | rates | {"max_position_embeddings": 32} | change)))


MODELS = {
    "gpt2": (gpt2, ["c_attn", "c_proj"]),  # Conv1D
    "llama": (llama, ["q_proj", "v_proj", "up_proj"]),
    "bert": (bert, ["query", "value", "dense"]),
}
both = pytest.mark.parametrize(("model", "entry"), [(m, c) for m in MODELS for c in CONTRACT])
each_model = pytest.mark.parametrize("model", MODELS)
each_entry = pytest.mark.parametrize("entry", CONTRACT)


def base(model: str, **change: Any) -> Any:
    torch.manual_seed(1)
    return MODELS[model][0](**change).eval()


def config(model: str, entry: str = "default", **change: Any) -> QCircuitConfig:
    return QCircuitConfig(**({"target_modules": MODELS[model][1]} | CONTRACT[entry] | change))


def inputs(model: str, rows: int = 3, seed: int = 0) -> dict[str, Tensor]:
    ids = torch.randint(3, 64, (rows, 9), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "labels": torch.arange(rows) % 2 if model == "bert" else ids}


def shake(model: nn.Module, adapter: str = "default", seed: int = 0) -> Any:
    """Give an adapter a lambda that is not zero."""
    for k, module in enumerate(module for module in model.modules() if isinstance(module, QCircuitLayer)):
        if adapter in module.factors:
            lam = module.qcircuit_lambda[adapter]
            with torch.no_grad():
                lam.copy_(torch.randn(lam.shape, generator=torch.Generator().manual_seed(100 * seed + k)) / 20)
    return model


def adapted(model: str, entry: str = "default", **change: Any) -> PeftModel:
    """A model with an adapter that does something."""
    return shake(get_peft_model(base(model), config(model, entry, **change))).eval()


@torch.no_grad()
def logits(model: nn.Module, name: str, **more: Any) -> Tensor:
    return model(**inputs(name), **more).logits


def layers(model: nn.Module) -> list[QCircuitLinear]:
    return [module for module in model.modules() if isinstance(module, QCircuitLinear)]


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
    for name, layer in net.named_modules():
        if not isinstance(layer, QCircuitLinear):
            continue
        r = 2 if "rank_pattern" in CONTRACT[entry] and ".0." in name else settings.r
        alpha = 7 if "alpha_pattern" in CONTRACT[entry] and ".1." in name else settings.alpha
        u, v = (
            (matrix(next(iter(f.circuits()))[1], a.detach()) if f.width == "qudit" else f.columns(a.detach()))[:, :r]
            for f, a in (
                (layer.factors["default"].u, layer.qcircuit_u["default"]),
                (layer.factors["default"].v, layer.qcircuit_v["default"]),
            )
        )
        delta = alpha / r * u @ torch.diag(layer.qcircuit_lambda["default"].detach()) @ v.T
        found = layer.get_delta_weight("default")
        assert torch.allclose(found, delta.T if model == "gpt2" else delta, atol=1e-5)
        x = torch.randn(2, 5, layer.in_features)
        with torch.no_grad():
            assert torch.allclose(layer(x) - layer.base_layer(x), x @ delta.T, atol=1e-4)


@both
def test_merge_and_unmerge(model: str, entry: str) -> None:
    net = adapted(model, entry)
    expected, plain = logits(net, model), logits(base(model), model)
    assert (expected - plain).abs().max() > 1e-3
    for safe in (False, True):
        net.merge_adapter(safe_merge=safe)
        assert all(layer.merged for layer in layers(net))
        assert torch.allclose(logits(net, model), expected, atol=2e-5)
        net.unmerge_adapter()
        assert not any(layer.merged for layer in layers(net))
        assert torch.allclose(logits(net, model), expected, atol=2e-5)
    net.merge_adapter()
    with net.disable_adapter():
        assert torch.allclose(logits(net, model), plain, atol=2e-5)
    assert torch.allclose(logits(net, model), expected, atol=2e-5)
    merged = net.merge_and_unload(safe_merge=True)
    assert not layers(merged) and type(merged) is type(base(model))
    assert torch.allclose(logits(merged, model), expected, atol=2e-5)


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
    with torch.no_grad():
        deltas = [layer.get_delta_weight(name) for name in ("default", "shannon")]
        summed = sum(x @ (delta if layer.fan_in_fan_out else delta.T) for delta in deltas)
        assert torch.allclose(layer(x) - layer.base_layer(x), summed, atol=1e-4)
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
        assert torch.allclose(mixed[row], alone[name][row], atol=1e-5)


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
    assert beams.shape[0] == 3


def test_injection_shares_one_bank_also_for_a_second_adapter() -> None:
    model = base("llama")
    expected = logits(model, "llama")
    inject_adapter_in_model(config("llama", target_modules=["q_proj"]), model)
    inject_adapter_in_model(config("llama", "shannon", target_modules=["q_proj", "up_proj"]), model, "second")
    assert torch.equal(logits(model, "llama"), expected)
    assert len(layers(model)) == 4 and len({id(layer.bank) for layer in layers(model)}) == 1
    plain = get_peft_model(nn.Sequential(nn.Linear(8, 8)), config("llama", target_modules=["0"])).eval()
    x = torch.randn(2, 8)
    assert torch.equal(plain(x, adapter_names=["default", "__base__"]), plain(x))


@both
def test_parameter_count_agrees_and_changes_nothing(model: str, entry: str) -> None:
    net, settings = base(model), config(model, entry, modules_to_save=["classifier"] if model == "bert" else None)
    told, state = (settings.to_dict(), repr(net)), torch.random.get_rng_state()
    count = parameter_count(settings, net)
    assert (settings.to_dict(), repr(net)) == told and torch.equal(torch.random.get_rng_state(), state)
    assert all(not p.is_meta and p.requires_grad for p in net.parameters())
    made = get_peft_model(net, settings)
    assert count == made.get_nb_trainable_parameters()[0]
    per_layer = [layer.factors["default"].sizes for layer in layers(made)]
    adapter = sum(sizes["lambda"] if entry == "frozen" else sum(sizes.values()) for sizes in per_layer)
    assert count == adapter + (2 * 32 + 2 if model == "bert" else 0)
    with torch.device("meta"):
        assert parameter_count(settings, MODELS[model][0]()) == count


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
    assert first["base_model.model.model.layers.0.self_attn.q_proj.u"][:3] == pytest.approx(SEED_3, abs=1e-6)
    assert start(None, 0) == start(None, 0) != start(None, 1)
    assert min(map(min, first.values())) >= 0 and 6.1 < max(map(max, first.values())) < 6.2832


@both
def test_circuits_names_every_factor_and_gives_copies(model: str, entry: str) -> None:
    net = adapted(model, entry)
    before = logits(net, model)
    found = list(circuits(net))
    names = [name for name, _, _ in found]
    assert len(set(names)) == len(names)
    adapted_names = {name: layer for name, layer in net.named_modules() if isinstance(layer, QCircuitLinear)}
    assert {re.sub(r"\.[uv](\.[uv][12])*$", "", name) for name in names} == set(adapted_names)
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
    assert [name for name, m in net.named_modules() if isinstance(m, QCircuitLinear)] == [
        "base_model.model.bert.encoder.layer.1.attention.self.query"
    ]
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
        current = layer.bank._current[torch.device("cpu"), torch.bfloat16]
        v = layer.factors["default"].v.columns(layer.qcircuit_v["default"].detach())
        assert torch.allclose(current.of(layer)["default"][1], v.to(torch.bfloat16), rtol=1e-2, atol=1e-6)
    output.loss.backward()
    reference = adapted(model).train()
    reference(**inputs(model)).loss.backward()
    for (name, p), (_, q) in zip(net.named_parameters(), reference.named_parameters(), strict=True):
        if p.requires_grad:
            assert p.grad.dtype == torch.float32 and (p.grad - q.grad).norm() < 0.1 * q.grad.norm() + 1e-6, name


def test_a_quantized_base_is_read_and_written_through_its_backend() -> None:
    class Halved:
        """Stores half the weight, as a stand-in for a quantizer."""

        backend_name, written = "halved", 0

        def get_base_weight(self, layer: nn.Module) -> Tensor:
            return layer.weight.data * 2

        def set_base_weight(self, layer: QCircuitLinear, weight: Tensor) -> None:
            self.written += 1
            layer.get_base_layer().weight.data = weight / 2

        def maybe_clone_base_result(self, x: Tensor) -> Tensor:
            return x.clone()

    net = adapted("llama")
    layer = layers(net)[0]
    layer.quantization_backend = backend = Halved()
    before = layer.base_layer.weight.clone()
    delta = layer.get_delta_weight("default")
    layer.merge(safe_merge=True)
    assert backend.written == 1 and torch.allclose(layer.base_layer.weight, before + delta / 2)
    layer.unmerge()
    assert torch.allclose(layer.base_layer.weight, before, atol=1e-6)
    assert "halved" in repr(layer) and logits(net, "llama").isfinite().all()


@each_model
def test_copies_and_pickles_share_nothing_with_the_original(model: str) -> None:
    net = adapted(model)
    expected = logits(net, model)
    net.train()(**inputs(model)).loss.backward()  # a graph is alive in the bank
    for made in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        made.eval()
        assert torch.equal(logits(made, model), expected)
        assert len({id(layer.bank) for layer in layers(made)} - {layers(net)[0].bank}) == 1
        assert layers(made)[0].bank is not layers(net)[0].bank and layers(made)[0].bank.generations == 1
        shake(made, seed=9)
        assert not torch.equal(logits(made, model), expected)
    assert torch.equal(logits(net.eval(), model), expected)
    one = copy.deepcopy(layers(net)[0])
    x = torch.randn(2, one.in_features)
    with torch.no_grad():
        assert torch.equal(one(x), layers(net)[0](x))


@each_entry
def test_the_factors_for_lora_are_exact(entry: str) -> None:
    net = adapted("llama", entry)
    for layer in layers(net):
        a, b = layer.factors["default"].lora(*layer._frames_now("default"))
        assert torch.allclose(b @ a, layer.get_delta_weight("default"), atol=1e-6)
    lora, state = convert_to_lora(net, rank=8)
    assert isinstance(lora, LoraConfig) and net.base_model.supports_lora_conversion()
    for name, layer in net.named_modules():
        if isinstance(layer, QCircuitLinear):
            product = state[f"{name}.lora_B.weight"] @ state[f"{name}.lora_A.weight"]
            assert torch.allclose(product, layer.get_delta_weight("default"), atol=1e-6)


class Dispatched(TorchDispatchMode):
    """Counts the operations that torch dispatches."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(function)] += 1
        return function(*args, **(kwargs or {}))


def dispatched(settings: peft.PeftConfig) -> int:
    net = get_peft_model(base("bert", num_hidden_layers=12), settings).train()
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], foreach=True)
    for _ in range(3):
        with Dispatched() as mode:
            net(**inputs("bert")).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return sum(mode.counts.values())


def test_a_training_step_dispatches_at_most_600_operations_more_than_lora() -> None:
    targets = ["query", "value"]
    more = dispatched(QCircuitConfig(r=8, target_modules=targets)) - dispatched(LoraConfig(r=8, target_modules=targets))
    print(f"\n{more} more operations than LoRA")
    assert more <= 600


def test_reading_an_ansatz_from_plain_data_gives_the_same_adapter() -> None:
    stored = load("simplified_two_design").to_dict()
    assert config("llama", ansatz=stored) == config("llama")
