"""Names that a user gives to modules, heads, parameters and adapters do not collide with the library's own."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from bounds import close
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from qcircuit_peft import BottleneckConfig, QCircuitConfig, QPAConfig

pytestmark = [
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning"),
    pytest.mark.filterwarnings("ignore:Found missing adapter keys:UserWarning"),  # PEFT, of frozen ones of such names
    pytest.mark.filterwarnings("ignore:Adapter name .* should not be contained in the prefix:UserWarning"),
]

# Names with a meaning in this library, in PEFT, or for the adapters of the test.
ALL = ("weight", "bias", "base_layer", "original_module", "modules_to_save")
NAMES = {
    "circuit": (
        *("qcircuit_", "qcircuit_u", "qcircuit_lambda", "qpa_generators", "bottleneck_up", "u", "lambda", "angles"),
        *("base_model", "model", "default", "mine", "lora_A", "0", "encodings", "generated", *ALL),
    ),
    "qpa": ("qpa_", "qpa_generators", "qcircuit_u", "lora_A", "base_model", "default", "mine", *ALL),
    "bottleneck": ("bottleneck_down", "qcircuit_u", "base_model", "default", "mine", *ALL),
}


class Head(nn.Module):
    """A head of several layers with a buffer, and a parameter of its own."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.add_module(name, nn.Linear(8, 8))
        self.norm = nn.BatchNorm1d(8)
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
        self.register_parameter(f"{name}_scale", nn.Parameter(torch.ones(8)))
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.get_submodule(self.name)(x)) * self.get_parameter(f"{self.name}_scale")


class Net(nn.Module):
    """One name wherever a model can have one: a layer, a block with a layer, a head and what is in it."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.add_module(name, nn.Linear(8, 8))
        self.block = nn.ModuleDict({name: nn.Sequential(nn.Linear(8, 8))})
        self.add_module(f"{name}_block", nn.ModuleDict({"lin": nn.Linear(8, 8), name: nn.Linear(8, 8)}))
        self.add_module(f"{name}_head", Head(name))
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        inner = self.get_submodule(f"{self.name}_block")
        x = self.block[self.name](self.get_submodule(self.name)(x))  # type: ignore[operator]
        return self.get_submodule(f"{self.name}_head")(inner[self.name](inner["lin"](x).relu()))  # type: ignore


def made(name: str) -> Net:
    torch.manual_seed(0)
    return Net(name).eval()


def config(name: str, kind: str, seed: int, where: str = "") -> Any:
    targets: dict[str, Any] = {
        "target_modules": rf"{where}({name}|block\.{name}\.0|{name}_block\.lin)",
        "modules_to_save": [f"{where}{name}_head"],
    }
    if kind == "circuit":
        return QCircuitConfig(r=4, seed=seed, **targets)
    if kind == "bottleneck":
        return BottleneckConfig(r=2, **targets)
    return QPAConfig(base=peft.LoraConfig(r=2, **targets), chunk_size=16, layers=1, widths=[4], seed=seed)


def changed(net: Any, adapter: str, seed: int) -> Any:
    """All that an adapter trains is something else."""
    net.set_adapter(adapter)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in (p for p in net.parameters() if p.requires_grad):
            parameter += torch.randn(parameter.shape, generator=random) / 10
    for path, module in net.named_modules():
        if isinstance(module, nn.BatchNorm1d) and f".modules_to_save.{adapter}." in path:
            module.running_mean += seed + 1  # type: ignore[operator]
    return net


class Odd(PreTrainedModel):
    """The same in a model of transformers."""

    config_class = PreTrainedConfig

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.inner = Net(config.name)
        self.post_init()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)

    def _init_weights(self, module: nn.Module) -> None:
        """As torch made them."""


def made_of_transformers(name: str) -> Odd:
    torch.manual_seed(0)
    return Odd(PreTrainedConfig(name=name)).eval()


X = torch.randn(3, 8, generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def out(net: nn.Module) -> Tensor:
    return net.eval()(X)


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in NAMES.items() for name in names])
def test_modules_of_any_name(kind: str, name: str, tmp_path: Path) -> None:
    plain = out(made(name))
    net = changed(get_peft_model(made(name), config(name, kind, 1), adapter_name="default"), "default", 1)
    first = out(net)
    net.add_adapter("mine", config(name, kind, 2))
    second = out(changed(net, "mine", 2))
    assert not torch.equal(first, plain) and not torch.equal(second, first)
    with net.disable_adapter():
        assert torch.equal(out(net), plain)
    net.save_pretrained(tmp_path)
    for folder, expected, options in (
        (tmp_path, first, {"adapter_name": name}),
        (tmp_path / "mine", second, {"low_cpu_mem_usage": True}),
    ):
        assert torch.equal(out(PeftModel.from_pretrained(made(name), folder, **options)), expected), options
    net.load_adapter(tmp_path / "mine", "third")
    net.set_adapter("third")
    assert torch.equal(out(net), second)
    net.set_adapter("default")
    net.delete_adapter("third")
    assert torch.equal(out(net), first) and not [key for key in net.state_dict() if "third" in key]
    if kind != "bottleneck":
        merged = net.merge_and_unload()
        close(out(merged), first, 100)
        assert list(merged.state_dict()) == list(made(name).state_dict())
    unloaded = PeftModel.from_pretrained(made(name), tmp_path).unload()
    assert list(unloaded.state_dict()) == list(made(name).state_dict())


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in ("circuit", "bottleneck") for name in NAMES[kind]])
def test_modules_of_any_name_in_transformers(kind: str, name: str, tmp_path: Path) -> None:
    for adapter in ("default", "weight", name):
        net, other = made_of_transformers(name), made_of_transformers(name)
        net.add_adapter(config(name, kind, 1, "inner."), adapter)
        with torch.no_grad():
            for parameter in (p for p in net.parameters() if p.requires_grad):
                parameter += torch.randn(parameter.shape) / 10
        assert not torch.equal(out(net), out(other))
        net.save_pretrained(tmp_path / adapter)
        other.load_adapter(str(tmp_path / adapter), adapter_name=adapter)
        by_peft = PeftModel.from_pretrained(made_of_transformers(name), tmp_path / adapter)
        assert torch.equal(out(other), out(net)) and torch.equal(out(by_peft), out(net))
    net = changed(get_peft_model(made_of_transformers(name), config(name, kind, 1, "inner.")), "default", 1)
    net.save_pretrained(tmp_path)
    loaded = made_of_transformers(name)
    loaded.load_adapter(str(tmp_path))
    assert torch.equal(out(loaded), out(net))


@pytest.mark.parametrize("kind", ["circuit", "bottleneck", "qpa"])
def test_a_state_dict_that_is_given_is_what_is_saved(kind: str, tmp_path: Path) -> None:
    """Also where names of modules are those of other adapters."""
    net = changed(get_peft_model(made("mine"), config("mine", kind, 1)), "default", 1)
    net.add_adapter("mine", config("mine", kind, 2))
    expected, given = out(net), {key: value.clone() for key, value in net.state_dict().items()}
    with torch.no_grad():
        for tensor in (*net.parameters(), *net.buffers()):
            tensor.zero_()
    net.save_pretrained(tmp_path, state_dict=given)
    assert torch.equal(out(PeftModel.from_pretrained(made("mine"), tmp_path)), expected)


REFUSED = (
    "keys",
    "items",
    "values",
    "pop",
    "type",
    "forward",
    "training",
    "_parameters",
    "a.b",
    "a\\1",
    "/a",
    "",
    "__base__",
)


@pytest.mark.parametrize("kind", NAMES)
def test_adapters_of_names_that_torch_cannot_hold_are_refused_and_others_are_not(kind: str, tmp_path: Path) -> None:
    for name in REFUSED:
        model, net = made("x"), get_peft_model(made("x"), config("x", kind, 1))
        before, also = set(model.state_dict()), set(net.state_dict())
        for add in (
            lambda name=name, model=model: get_peft_model(model, config("x", kind, 1), adapter_name=name),
            lambda name=name, net=net: net.add_adapter(name, config("x", kind, 1)),
        ):
            with pytest.raises(
                ValueError, match=r"an adapter's name has no dot or backslash, .* and is no attribute of"
            ):
                add()
        assert (
            set(model.state_dict()) == before and set(net.state_dict()) == also and list(net.peft_config) == ["default"]
        )
    for name in ("u", "lambda", "weight", "base_layer", "block", "a b", "\u00e9", "modules_to_save", "factors"):
        net = changed(get_peft_model(made("x"), config("x", kind, 1), adapter_name=name), name, 1)
        net.save_pretrained(tmp_path)
        assert torch.equal(out(PeftModel.from_pretrained(made("x"), tmp_path / name, adapter_name=name)), out(net))
        expected = out(net)
        plain = net.unload() if kind == "bottleneck" else net.merge_and_unload()
        assert list(plain.state_dict()) == list(made("x").state_dict())
        if kind != "bottleneck":
            close(out(plain), expected, 100)


@pytest.mark.parametrize("kind", NAMES)
def test_attributes_of_modules_that_are_called_as_ours(kind: str) -> None:
    model = made("x")
    for module in model.modules():
        module.encodings, module.generated, module.scales, module.factors = {"a": 1}, 3, None, "b"  # type: ignore
    net = changed(get_peft_model(model, config("x", kind, 1)), "default", 1)
    expected = out(net)
    net.load_state_dict(net.state_dict())
    set_peft_model_state_dict(net, get_peft_model_state_dict(net))
    assert torch.equal(out(net), expected)
    assert out(net.unload()).shape == expected.shape


@pytest.mark.parametrize("kind", ["circuit", "bottleneck"])
def test_an_adapter_named_as_a_module_is_not_in_anothers_file(kind: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"r": 2, "target_modules": ["q"]}
    make = QCircuitConfig if kind == "circuit" else BottleneckConfig
    model = get_peft_model(nn.ModuleDict({"q": nn.Linear(8, 8)}), make(**settings, init_weights=False))
    model.add_adapter("q", make(**settings, init_weights=False))
    state = get_peft_model_state_dict(model, adapter_name="default")
    assert len(state) == (3 if kind == "circuit" else 4)
    before = {
        name: p.clone()
        for name, p in model.named_parameters()
        if name.split(".")[-1 if kind == "circuit" else -2] == "q"
    }
    model.save_pretrained(tmp_path, selected_adapters=["default"])
    with torch.no_grad():
        for p in model.parameters():
            p += 1
    after = {name: p.clone() for name, p in model.named_parameters() if name in before}
    model.load_adapter(tmp_path, "default")
    assert before and all(torch.equal(p, after[name]) for name, p in model.named_parameters() if name in before)
