"""What a checkpoint brings in means what it meant when it was saved, whatever it is loaded onto."""

import json
from dataclasses import fields
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from bounds import close
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils import load_peft_weights
from test_qpa import adapted as generated
from test_qpa import config as generator
from test_qpa import steps
from tiny import CHAIN, adapted, base, logits, shake

from qcircuit_peft import BottleneckConfig, QCircuitConfig
from qcircuit_peft.factorizations import FACTORIZATIONS
from qcircuit_peft.generator import Recipe
from qcircuit_peft.methods import UpdateConfig
from qcircuit_peft.tuner.config import _CIRCUIT_KEYS

pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning")

START: dict[str, Any] = {"r": 4, "seed": 1, "init": "uniform", "target_modules": ["q_proj"]}
# For every field: settings that stay, and a change that keeps the shapes wherever there is one that does.
FIELDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ansatz": ({}, {"ansatz": "ring_ry_cz", "layers": 2}),
    "layers": ({"ansatz": "ring_ry_cz", "layers": 2}, {"layers": 3}),
    "width": ({}, {"width": "qudit"}),
    "backend": ({}, {"backend": "pennylane"}),
    "frame": ({"frame": "cayley"}, {"frame": "taylor"}),
    "frame_options": ({"frame": "taylor", "frame_options": {"order": 18}}, {"frame_options": {"order": 16}}),
    "intrinsic_rank_pattern": ({"frame": "cayley"}, {"intrinsic_rank_pattern": {"q_proj": 3}}),
    "factorization": ({"factorization": "cp"}, {"factorization": "tucker"}),
    "factorization_options": (
        {"factorization": "quanta", "factorization_options": {"seed": 1}},
        {"factorization_options": {"seed": 2}},
    ),
    "share": ({}, {"share": "kind"}),
    "init": ({}, {"init": "normal"}),
    "seed": ({}, {"seed": 2}),
    "train_angles": ({}, {"train_angles": False}),
    "quantization": ({}, {"quantization": {"bits": 3, "packed": False}}),
    "r": ({}, {"r": 5, "alpha": 160.0}),
    "alpha": ({}, {"alpha": 32.0}),
    "rank_pattern": ({}, {"rank_pattern": {"layers.0.*q_proj": 2}}),
    "alpha_pattern": ({}, {"alpha_pattern": {".*layers.1.*q_proj": 3.0}}),
    "modules_to_save": ({}, {"modules_to_save": ["lm_head"]}),
    "bias": ({}, {"bias": "all"}),
    # Where layers share all, no name tells which they are.
    "layers_to_transform": (
        {"factorization": "rotation", "share": "kind", "layers_to_transform": [0]},
        {"layers_to_transform": [0, 1]},
    ),
    "target_modules": (
        {"factorization": "rotation", "share": "shape", "target_modules": ["q_proj"]},
        {"target_modules": ["q_proj", "o_proj"]},
    ),
}
TOLD_BY_KEYS = ("bias", "modules_to_save")  # of a state dict
MEANT_THE_SAME = ("backend", "init", "seed", "train_angles")


def test_the_table_has_every_field_of_a_stored_circuit() -> None:
    assert {*_CIRCUIT_KEYS, "r", "alpha", "rank_pattern", "alpha_pattern"} <= set(FIELDS)


def net_of(settings: dict[str, Any], seed: int) -> PeftModel:
    net = get_peft_model(base("llama"), QCircuitConfig(**settings)).eval()
    random = torch.Generator().manual_seed(seed)
    for name, parameter in net.named_parameters():
        if "qcircuit_" in name:
            parameter.data += torch.randn(parameter.shape, generator=random) / 20
    return net


def pickled(state: Any) -> Any:
    """A state dict as torch saves and loads it."""
    file = BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("field", FIELDS)
def test_an_adapter_takes_what_means_the_same_and_refuses_the_rest_by_the_field(field: str, tmp_path: Path) -> None:
    stay, change = FIELDS[field]
    saved = net_of({**START, **stay, **change}, seed=1)
    saved.save_pretrained(tmp_path)
    expected = logits(saved, "llama")
    mine = QCircuitConfig(**START | stay)
    other = net_of(START | stay, seed=2)
    before = logits(other, "llama")
    if field in MEANT_THE_SAME:
        other.load_adapter(tmp_path, "default")
        close(logits(other, "llama"), expected, CHAIN)
        again = net_of(START | stay, seed=2)
        set_peft_model_state_dict(again, get_peft_model_state_dict(saved))
        close(logits(again, "llama"), expected, CHAIN)
        again.load_state_dict(net_of(START | stay, seed=3).state_dict())
        again.load_state_dict(saved.state_dict())
        close(logits(again, "llama"), expected, CHAIN)
        close(logits(PeftModel.from_pretrained(base("llama"), tmp_path, config=mine), "llama"), expected, CHAIN)
        return
    named = "layers|ansatz" if field == "ansatz" else "alpha|r" if field == "r" else field
    says = rf"^the checkpoint was made with ({named}) = .*, but .* has .*; load it under another name"
    model = base("llama")
    state = get_peft_model_state_dict(saved)
    stored = pickled(state)
    ways = {
        "a state dict": lambda: set_peft_model_state_dict(other, state),
        "a state dict from a file": lambda: set_peft_model_state_dict(other, stored),
        "a state dict of the whole model": lambda: other.load_state_dict(saved.state_dict()),
        "a state dict of the whole model from a file": lambda: other.load_state_dict(pickled(saved.state_dict())),
        "weights of a folder": lambda: set_peft_model_state_dict(other, load_peft_weights(str(tmp_path))),
        "a state dict given to transformers": lambda: model.load_adapter(peft_config=mine, adapter_state_dict=state),
        "onto the name": lambda: other.load_adapter(tmp_path, "default"),
        "given to PEFT": lambda: PeftModel.from_pretrained(model, tmp_path, config=mine),
        "given to transformers": lambda: model.load_adapter(str(tmp_path), peft_config=mine),
    }
    for way, load_it in ways.items():
        if field == "bias" and way in ("a state dict", "a state dict from a file", "weights of a folder"):
            continue  # biases are taken as they come
        if field in TOLD_BY_KEYS and "whole model" in way:
            continue
        if field == "modules_to_save" and "given" in way:
            continue  # PEFT adds heads to a configuration that is given
        with pytest.raises(ValueError, match=says):
            load_it()
    assert torch.equal(logits(other, "llama"), before) and not hasattr(model, "peft_config")
    other.load_adapter(tmp_path, "second")
    other.set_adapter("second")
    assert torch.equal(logits(other, "llama"), expected)


def test_the_same_adapter_is_loaded_onto_its_name_again(tmp_path: Path) -> None:
    net = adapted("llama", "patterns")
    net.save_pretrained(tmp_path)
    expected = logits(net, "llama")
    shake(net, seed=9)
    net.load_adapter(tmp_path, "default")
    assert torch.equal(logits(net, "llama"), expected)


def test_quantized_adapters_are_loaded_to_be_packed(tmp_path: Path) -> None:
    net = net_of({**START, "quantization": {"bits": 3, "packed": False}}, seed=1)
    net.save_pretrained(tmp_path)
    packed = QCircuitConfig(**START, quantization={"bits": 3})
    loaded = PeftModel.from_pretrained(base("llama"), tmp_path, config=packed)
    assert torch.equal(logits(loaded, "llama"), logits(net, "llama"))


def test_another_method_of_the_name_and_other_doors_are_refused(tmp_path: Path) -> None:
    net = adapted("llama")
    net.save_pretrained(tmp_path)
    before = logits(net, "llama")
    lora = get_peft_model(base("llama"), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="of type QCIRCUIT, but the adapter 'default' is of type LORA"):
        lora.load_adapter(tmp_path, "default")
    model = base("llama")
    model.load_adapter(str(tmp_path))
    for option in (True, "auto"):
        with pytest.raises(ValueError, match=r"only supported for LoRA|already exists"):
            model.load_adapter(str(tmp_path), adapter_name="default", hotswap=option)
    assert torch.equal(logits(net, "llama"), before) and torch.equal(logits(model, "llama"), before)


RECIPES: dict[str, Any] = {
    "chunk_size": {"chunk_size": 33},
    "layers": {"layers": 3},
    "ansatz": {"ansatz": "ring_ry_cz"},
    "features": {"features": "log"},
    "widths": {"widths": [8, 17]},
    "activation": {"activation": "tanh"},
    "control": {"control": "frozen"},
    "init": {"init": "paper"},
    "seed": {"seed": 7},
    "backend": {"backend": "pennylane"},
    "shots": {"shots": 10_000},
    "noise": {"noise": {"depolarizing": 0.01}},
    "scope": {"scope": "model"},
    "base.lora_alpha": {"base": LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_alpha=3)},
    "base.use_rslora": {"base": LoraConfig(r=4, target_modules=["q_proj", "v_proj"], use_rslora=True)},
    "base.peft_type": {"base": QCircuitConfig(r=4, target_modules=["q_proj", "v_proj"])},
}


def test_the_table_has_every_field_of_a_recipe() -> None:
    assert {field.name for field in fields(Recipe)} <= set(RECIPES)


@pytest.mark.parametrize("field", RECIPES)
def test_a_generated_adapter_too(field: str, tmp_path: Path) -> None:
    changed = generator()
    for name, value in RECIPES[field].items():
        setattr(changed, name, value)
    changed.__post_init__()
    saved = get_peft_model(base("llama"), changed).eval()
    steps(saved, 1)
    saved.save_pretrained(tmp_path)
    other = generated()
    before = logits(other, "llama")
    if field == "backend":
        other.load_adapter(tmp_path, "default")
        close(logits(other, "llama"), logits(saved, "llama"), 10 * CHAIN)
        return
    with pytest.raises(ValueError, match=rf"made with (base\.\w+|generator\.{field}) = .*, but the adapter 'default'"):
        other.load_adapter(tmp_path, "default")
    with pytest.raises(ValueError, match="but the configuration that is given has"):
        PeftModel.from_pretrained(base("llama"), tmp_path, config=generator())
    for state in (get_peft_model_state_dict(saved), load_peft_weights(str(tmp_path))):
        with pytest.raises(
            ValueError, match=rf"made with (base\.\w+|generator\.{field}) = .*, but the adapter 'default'"
        ):
            set_peft_model_state_dict(other, state)
    with pytest.raises(ValueError, match=rf"made with (base\.\w+|generator\.{field}) = .*, but the adapter 'default'"):
        other.load_state_dict(saved.state_dict())
    assert torch.equal(logits(other, "llama"), before)


@pytest.mark.parametrize("name", FACTORIZATIONS)
def test_names_of_parameters_tell_the_layers_that_share_or_the_configuration_does(name: str) -> None:
    settings = {"r": 4, "factorization": name, "share": "kind", "target_modules": ["q_proj"]}
    if name == "quanta":
        with pytest.raises(ValueError, match="has no circuit or other frame to share"):
            get_peft_model(base("llama"), QCircuitConfig(**settings))
        return
    keys = [
        set(get_peft_model_state_dict(get_peft_model(base("llama"), QCircuitConfig(**settings, layers_to_transform=n))))
        for n in ([0], [0, 1])
    ]
    assert (keys[0] != keys[1]) == FACTORIZATIONS[name].own


def test_state_dicts_of_models_in_transformers_and_of_unloaded_ones() -> None:
    one, other = base("llama"), base("llama")
    one.add_adapter(QCircuitConfig(**START))
    other.add_adapter(QCircuitConfig(**START, alpha=3.0))
    with pytest.raises(ValueError, match=r"made with alpha = 128.0, but the adapter 'default' has 3"):
        other.load_state_dict(one.state_dict())
    merged = [net_of({**START, **change}, seed=1).merge_and_unload() for change in ({}, {"alpha": 3.0})]
    merged[0].load_state_dict(pickled(merged[1].state_dict()))
    assert torch.equal(logits(merged[0], "llama"), logits(merged[1], "llama"))
    update = UpdateConfig(update="svf", size=4, target_modules=["q_proj"])
    merged += [get_peft_model(base("llama"), update).unload(), get_peft_model(base("llama"), update).merge_and_unload()]
    assert not [name for model in merged for name in (*model._state_dict_hooks, *model._load_state_dict_pre_hooks)]


def test_a_whole_state_dict_of_which_no_adapter_is_taken_is_not_judged_by_its_adapters() -> None:
    one, other = net_of(START, seed=1), net_of({**START, "alpha": 3.0}, seed=2)
    before = logits(other, "llama")
    state = one.state_dict()
    for key in [key for key in state if "qcircuit_" in key]:
        del state[key]
    other.load_state_dict(state, strict=False)
    bottleneck = get_peft_model(base("llama"), BottleneckConfig(target_modules=["q_proj"]))
    other.load_state_dict(bottleneck.state_dict(), strict=False)
    assert torch.equal(logits(other, "llama"), before)


def test_a_state_dict_is_made_whatever_stands_in_the_configuration() -> None:
    net = net_of(START, seed=1)
    net.peft_config["default"].base_model_name_or_path = Path("anywhere")
    net.load_state_dict(net.state_dict())


@pytest.mark.parametrize("targets", [None, "all-linear", ["q_proj"]])
def test_shared_rotations_are_loaded_with_the_configuration_that_made_them(targets: Any, tmp_path: Path) -> None:
    settings = {"factorization": "rotation", "share": "kind", "target_modules": targets}
    net = net_of(settings, seed=1)
    net.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(base("llama"), tmp_path, config=QCircuitConfig(**settings))
    assert torch.equal(logits(again, "llama"), logits(net, "llama"))


def test_a_configuration_that_is_used_again_has_the_heads_of_its_task_once(tmp_path: Path) -> None:
    """PEFT adds them to the user's own configuration at every use."""
    settings = QCircuitConfig(r=4, seed=1, target_modules=["query"], task_type="SEQ_CLS")
    net = get_peft_model(base("bert"), settings).eval()
    net.save_pretrained(tmp_path)
    other = get_peft_model(base("bert"), settings).eval()
    other.load_adapter(tmp_path, "default")
    assert len(settings.modules_to_save or ()) > len(set(settings.modules_to_save or ()))
    assert torch.equal(logits(other, "bert"), logits(net, "bert"))


def test_a_state_dict_of_another_method_is_refused() -> None:
    net, lora = adapted("llama"), get_peft_model(base("llama"), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="of type QCIRCUIT, but the adapter 'default' is of type LORA"):
        set_peft_model_state_dict(lora, get_peft_model_state_dict(net))
    with pytest.raises(ValueError, match=r"^the checkpoint lacks "):
        set_peft_model_state_dict(net, get_peft_model_state_dict(lora))


BROKEN: dict[str, Any] = {
    "a head of another shape": lambda state: {**state, "base_model.model.classifier.weight": torch.zeros(5, 32)},
    "a bias of another shape": lambda state: {**state, "base_model.model.classifier.bias": torch.zeros(5)},
    "no head": lambda state: {key: value for key, value in state.items() if "classifier" not in key},
    "no numbers": lambda state: {key: value / 0 if "lambda" in key else value for key, value in state.items()},
    "a part too long": lambda state: {k: value.repeat(2) if "lambda" in k else value for k, value in state.items()},
}  # fmt: skip


@pytest.mark.parametrize("how", BROKEN)
def test_a_state_dict_is_taken_whole_or_not_at_all(how: str) -> None:
    settings = {"r": 4, "target_modules": ["query"], "task_type": "SEQ_CLS", "bias": "all"}
    nets = [get_peft_model(base("bert"), QCircuitConfig(**settings, seed=seed)).eval() for seed in (1, 2)]
    with torch.no_grad():
        for parameter in (p for p in nets[1].parameters() if p.requires_grad):
            parameter += 1
    before = logits(nets[0], "bert")
    state = BROKEN[how](get_peft_model_state_dict(nets[1]))
    with pytest.raises((ValueError, RuntimeError)):
        set_peft_model_state_dict(nets[0], state)
    assert torch.equal(logits(nets[0], "bert"), before)
    set_peft_model_state_dict(nets[0], get_peft_model_state_dict(nets[1]))
    assert torch.equal(logits(nets[0], "bert"), logits(nets[1], "bert"))


@pytest.mark.parametrize("bias", ["all", "qcircuit_only"])
def test_biases_find_their_place_whatever_other_adapters_are_there(bias: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"r": 4, "seed": 1, "target_modules": ["query"], "task_type": "SEQ_CLS", "bias": bias}
    other = QCircuitConfig(r=4, target_modules=["value"])
    net = get_peft_model(base("bert"), QCircuitConfig(**settings)).eval()
    net.add_adapter("second", other)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in (p for p in net.parameters() if p.requires_grad):
            parameter += torch.randn(parameter.shape, generator=random) / 10
    expected = logits(net, "bert")
    net.save_pretrained(tmp_path / "beside")
    net.delete_adapter("second")
    assert torch.equal(logits(net, "bert"), expected)
    net.save_pretrained(tmp_path / "alone")
    for folder in (tmp_path / "beside", tmp_path / "alone"):
        assert torch.equal(logits(PeftModel.from_pretrained(base("bert"), folder), "bert"), expected)
        of_transformers = base("bert")
        of_transformers.load_adapter(str(folder))
        assert torch.equal(logits(of_transformers, "bert"), expected)
        beside = get_peft_model(base("bert"), other, adapter_name="second").eval()
        beside.load_adapter(folder, "default")
        beside.set_adapter("default")
        assert torch.equal(logits(beside, "bert"), expected)
        by_state = get_peft_model(base("bert"), QCircuitConfig(**settings)).eval()
        set_peft_model_state_dict(by_state, load_peft_weights(str(folder)))
        assert torch.equal(logits(by_state, "bert"), expected)
    state = load_peft_weights(str(tmp_path / "alone"))
    last = next(key for key in state if key.endswith("query.base_layer.bias"))
    with pytest.raises(ValueError, match=rf"^the checkpoint lacks {last}, which this model trains whole$"):
        set_peft_model_state_dict(net, {key: value for key, value in state.items() if key != last})
    assert torch.equal(logits(net, "bert"), expected)


def test_biases_are_taken_where_the_adapter_trains_none_itself() -> None:
    nets = [
        get_peft_model(base("bert"), QCircuitConfig(r=4, target_modules=["query"], bias=b)) for b in ("all", "none")
    ]
    with torch.no_grad():
        for parameter in (p for p in nets[0].parameters() if p.requires_grad):
            parameter += 0.1
    set_peft_model_state_dict(nets[1], get_peft_model_state_dict(nets[0]))
    assert torch.equal(logits(nets[1].eval(), "bert"), logits(nets[0].eval(), "bert"))


@pytest.mark.parametrize("kind", ["NOPE", "qcircuit", None, 3, ["QCIRCUIT"], {}, "x" * 5000])
def test_a_type_that_nobody_knows_is_said_on_every_way(kind: Any, tmp_path: Path) -> None:
    net = adapted("llama")
    net.save_pretrained(tmp_path)
    data = json.loads((tmp_path / "adapter_config.json").read_text())
    ways: list[Any] = [
        lambda: PeftModel.from_pretrained(base("llama"), tmp_path),
        lambda: net.load_adapter(tmp_path, "other"),
        lambda: base("llama").load_adapter(str(tmp_path)),
        lambda: PeftConfig.from_pretrained(tmp_path),
    ]
    for content, told in (
        (data | {"peft_type": kind}, r"^PEFT knows no adapters of type .{1,250}, which an adapter_config.json says"),
        ([kind], "an adapter configuration is a table, got list"),
    ):
        (tmp_path / "adapter_config.json").write_text(json.dumps(content))
        for load in ways:
            with pytest.raises(ValueError, match=told):
                load()
