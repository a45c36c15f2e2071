"""Generated adapters under PEFT's contract: one mechanism, walked over base methods."""

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from bounds import close
from peft import PeftModel, get_peft_model
from peft.tuners.cartridge.utils import initialize_kv_prefix_from_past_key_values
from safetensors.torch import load_file
from test_tuner_io import Rows
from tiny import CHAIN, base, close_gradient, close_logits, inputs, logits
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from qcircuit_peft import BottleneckConfig, QCircuitConfig, QPAConfig, save_base_adapter
from qcircuit_peft.generator import QPAModel, measured_with, started_from

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",
    "ignore:`gradient_checkpointing` is deprecated:FutureWarning",
    "ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning",
    "ignore:.*use_reentrant.*:UserWarning",
    "ignore:.*pin_memory.*:UserWarning",
    "ignore:Could not find a config file:UserWarning",
    "ignore:Unsupported layer type .*RMSNorm:UserWarning",  # PEFT, of layer norms
    "ignore:Unmerge result can be inaccurate:UserWarning",  # PEFT, of (IA)^3
)

TWO = ["q_proj", "v_proj"]
CAUSAL = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 4}

BASES: dict[str, Callable[[], peft.PeftConfig]] = {
    "lora": lambda: peft.LoraConfig(r=4, target_modules=TWO),
    "dora": lambda: peft.LoraConfig(r=4, target_modules=TWO, use_dora=True),
    "vera": lambda: peft.VeraConfig(r=16, target_modules=["q_proj"]),
    "vblora": lambda: peft.VBLoRAConfig(num_vectors=8, vector_length=16, topk=2, target_modules=["q_proj"]),
    "ia3": lambda: peft.IA3Config(target_modules=TWO, feedforward_modules=[]),
    "oft": lambda: peft.OFTConfig(oft_block_size=8, target_modules=TWO),
    "ln": lambda: peft.LNTuningConfig(target_modules=["input_layernorm"]),
    "bottleneck": lambda: BottleneckConfig(r=4, target_modules=["down_proj"]),
    "prefix": lambda: peft.PrefixTuningConfig(**CAUSAL),
    "prompt": lambda: peft.PromptTuningConfig(**CAUSAL),
    "circuit": lambda: QCircuitConfig(r=4, target_modules=TWO, seed=1),
}
PROMPTS = ("prefix", "prompt")
NOT_MERGED = {"bottleneck": "a bottleneck adapter is not linear"} | dict.fromkeys(PROMPTS, "adds virtual tokens")
each = pytest.mark.parametrize("method", BASES)


def config(method: str = "lora", **more: Any) -> QPAConfig:
    return QPAConfig(base=BASES[method](), **({"chunk_size": 32, "layers": 2, "widths": [8, 16]} | more))


def adapted(method: str = "lora", **more: Any) -> Any:
    return get_peft_model(base("llama"), config(method, **more)).eval()


def steps(net: nn.Module, n: int = 4, rate: float = 3e-2) -> list[float]:
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=rate)
    losses = []
    for _ in range(n):
        loss = net(**inputs("llama")).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def tuner(net: Any) -> QPAModel:
    return net.base_model


def plain(method: str, seed: int = 0) -> Any:
    model = base("llama")
    torch.manual_seed(seed)
    return get_peft_model(model, BASES[method]()).eval()


@each
@pytest.mark.parametrize("scope", ["layer", "model"])
def test_it_starts_where_the_base_method_starts_and_trains_the_generator_alone(method: str, scope: str) -> None:
    net, reference = adapted(method, scope=scope), plain(method)
    close_logits(net, "llama", logits(reference, "llama"))
    m = sum(p.numel() for p in reference.parameters() if p.requires_grad)
    generator = net.base_model.qpa_generators["default"]
    assert sum(generator.sizes) == m and (len(generator.sizes) == 1) >= (scope == "model" or method in PROMPTS)
    trained = {name for name, p in net.named_parameters() if p.requires_grad}
    assert trained and all("qpa_generators.default" in name for name in trained)
    frozen = {name: p.clone() for name, p in net.named_parameters() if name not in trained}
    before = {name: p.clone() for name, p in net.named_parameters() if name in trained}
    losses = steps(net)
    assert losses[-1] < losses[0]
    now = dict(net.named_parameters())
    assert all(torch.equal(p, now[name]) for name, p in frozen.items())
    assert not any(torch.equal(p, now[name]) for name, p in before.items())


@each
def test_saved_and_loaded_it_is_the_same_and_the_plain_adapter_too(method: str, tmp_path: Path) -> None:
    net = adapted(method)
    steps(net)
    expected = logits(net, "llama")
    net.save_pretrained(tmp_path / "generator")
    save_base_adapter(net, tmp_path / "plain")
    assert torch.equal(logits(net, "llama"), expected)  # still generated
    saved = load_file(tmp_path / "generator/adapter_model.safetensors")
    assert sum(value.numel() for value in saved.values()) == sum(p.numel() for p in net.parameters() if p.requires_grad)
    for options in ({}, {"adapter_name": "other"}, {"low_cpu_mem_usage": True}):
        torch.manual_seed(77)
        loaded = PeftModel.from_pretrained(base("llama"), tmp_path / "generator", **options)
        assert torch.equal(logits(loaded.eval(), "llama"), expected), options
        assert not any(p.requires_grad for p in loaded.parameters())
    stock = PeftModel.from_pretrained(base("llama"), tmp_path / "plain").eval()
    close_logits(stock, "llama", expected)
    assert json.loads((tmp_path / "plain/adapter_config.json").read_text())["peft_type"] != "QPA"
    again = PeftModel.from_pretrained(base("llama"), tmp_path / "generator", is_trainable=True)
    before, after = steps(again, 1), steps(net, 1)
    assert before == pytest.approx(after, abs=1e-6)


@each
def test_disabled_it_is_the_base_model_and_merged_it_is_itself(method: str) -> None:
    net = adapted(method)
    steps(net)
    expected, untouched = logits(net, "llama"), logits(base("llama"), "llama")
    with net.disable_adapter():
        assert torch.equal(logits(net, "llama"), untouched)
    assert torch.equal(logits(net, "llama"), expected)
    if method in NOT_MERGED:
        with pytest.raises(ValueError, match=NOT_MERGED[method]):
            net.merge_and_unload()
        assert torch.equal(logits(net, "llama"), expected)
        assert all("qpa_generators" in name for name, p in net.named_parameters() if p.requires_grad)
        steps(net, 1)
        assert not torch.equal(logits(net, "llama"), expected)
        unloaded = net.unload()
        assert torch.equal(logits(unloaded, "llama"), untouched)
        return
    net.merge_adapter()
    close_logits(net, "llama", expected)
    net.unmerge_adapter()
    close_logits(net, "llama", expected)
    merged = net.merge_and_unload()
    close_logits(merged, "llama", expected)
    assert set(merged.state_dict()) == set(base("llama").state_dict())
    steps(merged.requires_grad_(True), 1)  # nothing of ours is left in it


@pytest.mark.parametrize("method", ["lora", "vera", "prefix", "circuit"])
def test_several_adapters(method: str, tmp_path: Path) -> None:
    net = adapted(method)
    steps(net)
    first = logits(net, "llama")
    grads(net)  # so that tensors with a graph are in place while PEFT sets requires_grad on what it finds there
    net.add_adapter("second", config(method, chunk_size=16, seed=3))
    assert torch.equal(logits(net, "llama"), first)
    net.set_adapter("second")
    assert all(p.requires_grad == ("second" in name) for name, p in net.named_parameters())
    steps(net)
    second = logits(net, "llama")
    assert not torch.allclose(second, first, atol=1e-3)
    net.save_pretrained(tmp_path)
    net.set_adapter("default")
    assert torch.equal(logits(net, "llama"), first)
    net.load_adapter(tmp_path / "second", "third")
    net.set_adapter("third")
    assert torch.equal(logits(net, "llama"), second)
    net.delete_adapter("second")
    net.set_adapter("default")
    assert torch.equal(logits(net, "llama"), first)
    assert set(net.base_model.sources) == set(net.peft_config) == {"default", "third"}


def test_rows_with_adapters_of_their_own() -> None:
    net = adapted()
    steps(net)
    one = logits(net, "llama")
    net.add_adapter("second", config(seed=3))
    net.set_adapter("second")
    steps(net)
    two = logits(net, "llama")
    mixed = logits(net, "llama", adapter_names=["second", "default", "__base__"])
    close(mixed, torch.stack([two[0], one[1], logits(base("llama"), "llama")[2]]), CHAIN)


def grads(net: nn.Module) -> list[Tensor]:
    net.zero_grad()
    net(**inputs("llama")).loss.backward()
    return [p.grad.clone() for p in net.parameters() if p.requires_grad]


@pytest.mark.parametrize("method", ["lora", "dora", "circuit"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(method: str, reentrant: bool) -> None:
    net = adapted(method, scope="model")
    steps(net, 2)
    net.train()
    expected = grads(net)
    net.enable_input_require_grads()
    net.gradient_checkpointing_enable({"use_reentrant": reentrant})
    for _ in range(2):
        for found, wanted in zip(grads(net), expected, strict=True):
            close_gradient(found, wanted)


def test_one_generation_a_step_and_none_that_is_stale() -> None:
    net = adapted()
    source = tuner(net).sources["default"]
    for _ in range(3):
        logits(net, "llama")
    assert source.passes.generations == 1
    steps(net, 3)
    assert source.passes.generations == 4  # with a graph, then after each of two steps
    for _ in range(3):
        logits(net, "llama")
    assert source.passes.generations == 5
    for _ in range(2):  # accumulated gradients share a generation
        net(**inputs("llama")).loss.backward()
    assert source.passes.generations == 6
    weight = next(p for name, p in net.named_parameters() if "weight2" in name and p.requires_grad)
    for write in (lambda: weight.data.mul_(2), lambda: setattr(weight, "data", weight.data / 3)):
        before = logits(net, "llama")
        write()  # past the version counter
        assert not torch.equal(logits(net, "llama"), before)
    layer = net.base_model.model.model.layers[0].self_attn.q_proj
    before = layer.lora_B["default"].weight.clone()
    weight.data.mul_(2)
    assert not torch.equal(layer.lora_B["default"].weight, before)  # also outside of a forward pass


def test_a_generator_that_is_frozen_gets_no_gradient() -> None:
    net = adapted()
    grads(net)
    net.zero_grad()
    net.requires_grad_(False)
    assert not net(**inputs("llama")).loss.requires_grad


def test_two_backward_passes_through_one_generation_add_up() -> None:
    net = adapted()
    steps(net, 2)
    once = grads(net)
    net.zero_grad()
    losses = [net(**inputs("llama")).loss for _ in range(2)]
    for loss in losses:
        loss.backward()
    twice = [p.grad for p in net.parameters() if p.requires_grad]
    for a, b in zip(once, twice, strict=True):
        close_gradient(b, 2 * a)


def test_gradients_are_those_of_plain_autograd() -> None:
    net = adapted(init="paper")
    found = grads(net)
    generator = tuner(net).qpa_generators["default"]
    with tuner(net).settled() as wrapped:
        wrapped.zero_grad()
        wrapped(**inputs("llama")).loss.backward()
        cotangents = [
            m._parameters[name].grad for t in tuner(net).sources["default"].targets for m, name in t.places[:1]
        ]
    flat = torch.cat(generator())
    expected = torch.autograd.grad(flat, list(generator.parameters()), torch.cat([g.flatten() for g in cotangents]))
    for a, b in zip(found, expected, strict=True):
        close_gradient(a, b)


def test_a_task_type_may_be_given_outside(tmp_path: Path) -> None:
    prefix = peft.PrefixTuningConfig(num_virtual_tokens=4)
    net = get_peft_model(base("llama"), QPAConfig(base=prefix, task_type="CAUSAL_LM", chunk_size=64, widths=[8]))
    assert prefix.task_type is None  # the user's own
    steps(net, 1)
    net.save_pretrained(tmp_path / "generator")
    save_base_adapter(net, tmp_path / "plain")
    for folder in ("generator", "plain"):
        loaded = PeftModel.from_pretrained(base("llama"), tmp_path / folder).eval()
        close_logits(loaded, "llama", logits(net.eval(), "llama"))


def test_a_prefix_may_start_at_the_keys_and_values_of_a_text(tmp_path: Path) -> None:
    net, ids = adapted("prefix"), inputs("llama")["input_ids"]
    text = torch.tensor([[5, 9, 2, 7]])
    with started_from(net) as plain:
        cache = base("llama")(input_ids=text, use_cache=True).past_key_values
        initialize_kv_prefix_from_past_key_values(plain, past_key_values=cache)
    with torch.no_grad():
        behind = base("llama")(torch.cat([text.expand(len(ids), -1), ids], 1)).logits[:, 4:]
        close(net(input_ids=ids).logits, behind, CHAIN)
    losses = steps(net)
    assert losses[-1] < losses[0]
    expected = logits(net, "llama")
    net.save_pretrained(tmp_path / "generator")
    save_base_adapter(net, tmp_path / "plain")
    for folder in ("generator", "plain"):
        loaded = PeftModel.from_pretrained(base("llama"), tmp_path / folder).eval()
        close_logits(loaded, "llama", expected)
    steps(again := PeftModel.from_pretrained(base("llama"), tmp_path / "generator", is_trainable=True))
    expected = logits(again.eval(), "llama")
    again.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(PeftModel.from_pretrained(base("llama"), tmp_path / "again").eval(), "llama"), expected)
    with started_from(again) as plain:  # as it is now, trained: nothing changes
        pass
    close_logits(again, "llama", expected)
    with (
        pytest.raises(ValueError, match="starts from other values, got init='paper'"),
        started_from(adapted(init="paper")),
    ):
        pass


def test_a_start_that_checkpoints_cannot_hold_is_refused() -> None:
    inside = QCircuitConfig(r=2, factorization="subspace", target_modules=["q_proj"])
    net = get_peft_model(base("llama"), QPAConfig(base=inside, chunk_size=16))
    before = {name: p.clone() for name, p in net.named_parameters()}
    refused = pytest.raises(ValueError, match=r"not saved with a generated adapter, but .*basis_out.* was written to")
    with refused, torch.no_grad(), started_from(net) as plain:
        for name, p in plain.named_parameters():
            if "qcircuit_" in name:
                p += 1
    with pytest.raises(KeyboardInterrupt), torch.no_grad(), started_from(net) as plain:
        for name, p in plain.named_parameters():
            if "qcircuit_" in name:
                p += 1
        raise KeyboardInterrupt
    after = dict(net.named_parameters())
    assert set(after) == set(before) and all(torch.equal(p, before[name]) for name, p in after.items())


def test_paper_init_generates_everything_and_is_not_the_identity(tmp_path: Path) -> None:
    net = adapted(init="paper")
    expected = logits(net, "llama")
    assert not torch.allclose(expected, logits(base("llama"), "llama"), atol=1e-3)
    layer = net.base_model.model.model.layers[0].self_attn.q_proj
    values = torch.cat([layer.lora_A["default"].weight.flatten(), layer.lora_B["default"].weight.flatten()])
    assert abs(float(values.mean().detach())) < 1e-6  # nothing is added to what is generated
    net.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(base("llama"), tmp_path).eval(), "llama"), expected)


@pytest.mark.parametrize("method", ["lora", "prefix"])
def test_a_base_in_bfloat16(method: str, tmp_path: Path) -> None:
    model = base("llama").to(torch.bfloat16)
    net = get_peft_model(model, config(method))
    assert all(p.dtype == torch.float32 for p in net.parameters() if p.requires_grad)
    losses = steps(net)
    assert losses[-1] < losses[0]
    expected = logits(net.eval(), "llama")
    net.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base("llama").to(torch.bfloat16), tmp_path).eval()
    assert torch.equal(logits(loaded, "llama"), expected)


@pytest.mark.parametrize("method", ["lora", "prefix"])
def test_generate_and_copies(method: str, tmp_path: Path) -> None:
    net = adapted(method, **({} if method == "prefix" else {"task_type": "CAUSAL_LM"}))
    steps(net)
    expected, ids = logits(net, "llama"), inputs("llama")["input_ids"]
    words = net.generate(input_ids=ids, max_new_tokens=3, do_sample=False)
    again = copy.deepcopy(net)
    torch.save(net, tmp_path / "whole.pt")
    for other in (again, torch.load(tmp_path / "whole.pt", weights_only=False)):
        assert torch.equal(logits(other, "llama"), expected)
        assert torch.equal(other.generate(input_ids=ids, max_new_tokens=3, do_sample=False), words)
        steps(other, 1)
        assert not torch.equal(logits(other, "llama"), expected)
    assert torch.equal(logits(net, "llama"), expected)


def test_a_classifier_keeps_its_head_beside_the_generator(tmp_path: Path) -> None:
    lora = peft.LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS")
    net = get_peft_model(base("bert"), QPAConfig(base=lora, chunk_size=32, layers=2, widths=[8]))
    kinds = {"classifier" if "classifier" in n else "qpa" for n, p in net.named_parameters() if p.requires_grad}
    assert kinds == {"classifier", "qpa"}
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        net(**inputs("bert")).loss.backward()
        optimizer.step()
    expected = logits(net.eval(), "bert")
    net.save_pretrained(tmp_path / "generator")
    save_base_adapter(net, tmp_path / "plain")
    for folder in ("generator", "plain"):
        loaded = PeftModel.from_pretrained(base("bert"), tmp_path / folder).eval()
        close_logits(loaded, "bert", expected)


def test_measured_with_shots_and_noise(tmp_path: Path) -> None:
    net = adapted(init="paper")
    exact = logits(net, "llama")
    errors = []
    for shots in (50, 50_000):
        with measured_with(net, shots=shots):
            drawn = [logits(net, "llama") for _ in range(2)]
            assert not torch.equal(*drawn)
            errors.append(float((drawn[0] - exact).abs().max()))
    assert errors[1] < errors[0] / 3
    with measured_with(net, noise={"depolarizing": 0.2}):
        noisy = logits(net, "llama")
        assert torch.equal(logits(net, "llama"), noisy) and not torch.allclose(noisy, exact, atol=1e-4)
    assert torch.equal(logits(net, "llama"), exact)
    with pytest.raises(ValueError, match="shots, noise or backend, got 'seed'"), measured_with(net, seed=3):
        pass


FRESH = """
import sys
from dataclasses import replace
import torch
torch.set_num_threads(1)
folder = sys.argv[1]
from peft import PeftModel
from transformers import AutoModelForCausalLM
ids, expected = torch.load(folder + "/expected.pt")
for kind, name in (("plain", "default"), ("generator", "default"), ("generator", "other")):
    if kind == "generator":
        assert "qcircuit_peft" not in sys.modules or name == "other"
        import qcircuit_peft
    base = AutoModelForCausalLM.from_pretrained(folder + "/base")
    model = PeftModel.from_pretrained(base, folder + "/" + kind, adapter_name=name).eval()
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, expected, atol=1e-6), kind
print("all agree")
"""


def test_in_a_fresh_process_the_plain_adapter_without_this_library(tmp_path: Path) -> None:
    base("llama").save_pretrained(tmp_path / "base")
    net = get_peft_model(type(base("llama")).from_pretrained(tmp_path / "base"), config("dora"))
    steps(net)
    ids = inputs("llama")["input_ids"]
    with torch.no_grad():
        torch.save((ids, net.eval()(ids).logits), tmp_path / "expected.pt")
    net.save_pretrained(tmp_path / "generator")
    save_base_adapter(net, tmp_path / "plain")
    command = [sys.executable, "-c", FRESH, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert "all agree" in done.stdout, done.stderr[-3000:]


@pytest.mark.parametrize(
    ("options", "shots"),
    [({}, None), ({}, 50), ({"gradient_checkpointing": True, "bf16": True, "use_cpu": True}, None)],
)
def test_trainer_saves_and_resumes(options: dict[str, Any], shots: int | None, tmp_path: Path) -> None:
    def trained(folder: str, last: int, resume: bool = False) -> nn.Module:
        torch.manual_seed(0)
        quiet = {"report_to": "none", "disable_tqdm": True, "logging_strategy": "no", "seed": 1, "learning_rate": 0.03}
        plan = {"max_steps": last, "save_steps": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
        arguments = TrainingArguments(str(tmp_path / folder), **plan, **quiet, lr_scheduler_type="constant", **options)
        trainer = Trainer(get_peft_model(base("llama"), config(shots=shots)), arguments, train_dataset=Rows())
        trainer.train(resume_from_checkpoint=resume or None)
        return trainer.model

    straight, _, resumed = trained("straight", 4), trained("broken", 2), trained("broken", 4, resume=True)
    for (name, p), q in zip(straight.named_parameters(), resumed.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-6), name
    assert (tmp_path / "broken/checkpoint-4/adapter_config.json").exists()


@each
def test_it_starts_at_random_for_tests(method: str, tmp_path: Path) -> None:
    if method in (*PROMPTS, "vblora", "ln"):
        with pytest.raises(ValueError, match=r"init_weights=False needs a base with such an option, but .* has none"):
            config(method, init_weights=False)
        return
    net, plain_logits = adapted(method, init_weights=False), logits(base("llama"), "llama")
    found = logits(net, "llama")
    assert not torch.allclose(found, plain_logits)
    net.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(base("llama"), tmp_path).eval(), "llama"), found)


@each
def test_targets_may_be_given_beside_the_base(method: str) -> None:
    base_config = config(method).base
    before = copy.deepcopy(base_config)
    if not hasattr(base_config, "target_modules"):
        with pytest.raises(ValueError, match=r"^target_modules needs a base with such an option, but .* has none$"):
            QPAConfig(base=base_config, target_modules=["q_proj"])
        return
    with pytest.raises(ValueError, match=r"^target_modules is \['o_proj', 'up_proj'\], but base has"):
        QPAConfig(base=base_config, target_modules=["o_proj", "up_proj"])
    given = QPAConfig(base=replace(base_config, target_modules=None), target_modules=["o_proj", "up_proj"])
    other = replace(base_config, target_modules=["k_proj"])
    with pytest.raises(ValueError, match="but base has"):  # not the targets of the old base around the new one
        replace(given, base=other)
    assert set(replace(given, base=other, target_modules=None).target_modules) == {"k_proj"}
    assert set(given.target_modules) == {"o_proj", "up_proj"}
    if hasattr(base_config, "exclude_modules"):
        also = QPAConfig(base=base_config, exclude_modules=["a"])
        assert set(also.exclude_modules) == {"a"} and set(also.target_modules) == set(before.target_modules)
    assert base_config == before  # the user's own
    assert "target_modules" not in given.to_dict() and set(given.base_config().target_modules) == {"o_proj", "up_proj"}
    given.target_modules = "v_proj"
    assert given.base.target_modules == "v_proj"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_generator_may_be_in_the_half_precision_of_its_base(dtype: torch.dtype, tmp_path: Path) -> None:
    net = get_peft_model(base("llama").to(dtype), config(), autocast_adapter_dtype=False)
    net.add_adapter("added", config(), autocast_adapter_dtype=False)
    net.save_pretrained(tmp_path)
    net.load_adapter(tmp_path, "loaded", autocast_adapter_dtype=False)
    assert {p.dtype for name, p in net.named_parameters() if "qpa_" in name} == {dtype}
    net.train()(**inputs("llama")).loss.backward()
    assert all(p.grad is not None and p.grad.dtype == dtype for p in net.parameters() if p.requires_grad)
    wide = get_peft_model(base("llama").to(dtype), config())
    assert {p.dtype for name, p in wide.named_parameters() if "qpa_" in name} == {torch.float32}
