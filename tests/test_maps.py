"""Every kind of module that circuits adapt: outputs, gradients, merging, saving, plain LoRA."""

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from bounds import close
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import base, layers, logits, shake
from torch import nn
from transformers.pytorch_utils import Conv1D

from qcircuit_peft import QCircuitConfig, calibrate, parameter_count
from qcircuit_peft.analysis import entanglement_report, gradient_capture
from qcircuit_peft.factorizations import FACTORIZATIONS
from qcircuit_peft.tuner.maps import LINEAR_MAPS


class Scaled(nn.Embedding):
    """An embedding as Gemma's: what it looks up is scaled."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.register_buffer("embed_scale", torch.tensor(3.0, dtype=torch.float64))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return super().forward(ids) * self.embed_scale


class Shifted(nn.Embedding):
    """An embedding that looks up something else than it is given, as some position embeddings do."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return super().forward(ids + 2)


class Followed(nn.Linear):
    """A linear layer of its own words, as Falcon's, which gives what torch's gives."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape, "it reads the shape"
        return x @ self.weight.mT + self.bias


class Counting(nn.Linear):
    """A linear layer that reads a value, and so cannot be asked what it gives without arithmetic."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if x.abs().sum().item() >= 0 else x


class Router(nn.Linear):
    """A router as Llama 4's: scores of some, and all."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = super().forward(x)
        return logits.topk(2, -1).values.sigmoid(), logits


class Wider(nn.Linear):
    """A linear layer that puts something behind its outputs, as Idefics's."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([super().forward(x), x], -1)


class Routed(nn.Module):
    """An ordinary layer and one of the two above."""

    def __init__(self, kind: type[nn.Linear]) -> None:
        super().__init__()
        self.into, self.router = nn.Linear(12, 12), kind(12, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.router(self.into(x))
        return torch.cat(found, -1) if isinstance(found, tuple) else found


IDS = torch.tensor([[1, 5, 0, 19], [2, 2, 7, 3]])
# A module and inputs of it, two rows each.
MODULES: dict[str, tuple[Any, torch.Tensor]] = {
    "Linear": (lambda: nn.Linear(12, 20), torch.randn(2, 3, 12)),
    "Linear of its own words": (lambda: Followed(12, 20), torch.randn(2, 3, 12)),
    "Linear that reads values": (lambda: Counting(12, 20), torch.randn(2, 3, 12)),
    "Conv1D": (lambda: Conv1D(20, 12), torch.randn(2, 3, 12)),
    "Embedding": (lambda: nn.Embedding(20, 12), IDS),
    "Embedding with padding": (lambda: nn.Embedding(20, 12, padding_idx=2), IDS),
    "scaled Embedding": (lambda: Scaled(20, 12), IDS),
    "Conv1d": (lambda: nn.Conv1d(4, 10, 3, padding=1), torch.randn(2, 4, 9)),
    "Conv2d": (lambda: nn.Conv2d(4, 10, (3, 2), stride=2, padding=1, dilation=2), torch.randn(2, 4, 9, 8)),
    "reflecting Conv2d": (lambda: nn.Conv2d(4, 10, 3, padding=2, padding_mode="reflect"), torch.randn(2, 4, 9, 8)),
    "Conv2d, strided": (lambda: nn.Conv2d(4, 10, (3, 2), stride=2, padding=1), torch.randn(2, 4, 9, 8)),
    "Conv2d in groups": (lambda: nn.Conv2d(4, 10, 3, groups=2), torch.randn(2, 4, 9, 8)),
    "depthwise Conv1d": (lambda: nn.Conv1d(6, 12, 4, groups=6, padding=1), torch.randn(2, 6, 9)),
    "Conv2d, same": (lambda: nn.Conv2d(4, 10, 3, padding="same", bias=False), torch.randn(2, 4, 9, 8)),
    "Conv3d": (lambda: nn.Conv3d(2, 10, 2), torch.randn(2, 2, 5, 4, 6)),
}
every = pytest.mark.parametrize("name", MODULES)


def plain(name):
    torch.manual_seed(4)
    module, x = MODULES[name]
    return nn.Sequential(module()).double(), x.double() if x.is_floating_point() else x


def adapter(name, factorization="svd", **settings):
    model, x = plain(name)
    config = QCircuitConfig(**({"r": 3, "target_modules": ["0"], "factorization": factorization, "seed": 1} | settings))
    model = get_peft_model(model, config)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += torch.randn(p.shape, dtype=p.dtype) / 3
    return model, x


def test_every_kind_is_here():
    assert {type(plain(name)[0][0]) for name in MODULES} - {Scaled, Followed, Counting} == {*LINEAR_MAPS}


@every
@pytest.mark.parametrize("factorization", [n for n in FACTORIZATIONS if n not in ("rotation", "quanta")])
def test_the_update_is_that_of_the_merged_weight(name, factorization):
    model, x = adapter(name, factorization)
    before = plain(name)[0]
    with torch.no_grad():
        found = model(x)
        assert not torch.allclose(found, before(x))
        model.merge_adapter()
        close(model(x), found, 64, size=float(found.abs().max()))
        model.unmerge_adapter()
        close(model(x), found, 64, size=float(found.abs().max()))
        close(model.merge_and_unload()(x), found, 64, size=float(found.abs().max()))
    assert parameter_count(QCircuitConfig(r=3, target_modules=["0"]), before) > 0


@pytest.mark.parametrize("name", [name for name in MODULES if name != "Embedding with padding"])
def test_gradients_are_those_through_the_whole_weight(name):
    model, x = adapter(name, "shared_core")
    layer = layers(model)[0]
    weights = torch.randn(model(x).shape, dtype=torch.float64)
    trained = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad((model(x) * weights).sum(), trained)
    core = layer.get_base_layer()
    delta = layer.map.weight(core, layer.factors["default"].delta(layer.made_now("default")))
    whole = torch.func.functional_call(core, {"weight": core.weight.detach() + delta}, x)
    expected = torch.autograd.grad((whole * weights).sum(), trained)
    for one, other in zip(found, expected, strict=True):
        close(one, other, 1e3, size=float(other.abs().max()))


def test_the_padding_row_of_a_frame_has_no_gradient():
    rows = torch.zeros(20, 3, dtype=torch.float64, requires_grad=True)
    model, x = adapter("Embedding with padding")
    layer = layers(model)[0]
    made = {**layer.made_now("default"), "v": rows}
    layer.map.update(layer.get_base_layer(), x, layer.factors["default"], made, lambda z: z).sum().backward()
    assert rows.grad.any(1).nonzero().flatten().tolist() == sorted({*IDS.flatten().tolist()} - {2})


@every
def test_saved_loaded_swapped_and_mixed(name, tmp_path):
    model, x = adapter(name, dropout=0.2)
    model.add_adapter("other", QCircuitConfig(r=2, target_modules=["0"], seed=5))
    shake(model, "other")
    model.eval()
    with torch.no_grad():
        expected = model(x)
        model.set_adapter("other")
        other = model(x)
        mixed = model(x, adapter_names=["other", "default"])
        close(mixed[0], other[0], 64, size=float(other.abs().max()))
        close(mixed[1], expected[1], 64, size=float(expected.abs().max()))
        with model.disable_adapter():
            assert torch.equal(model(x), plain(name)[0](x))
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(plain(name)[0], tmp_path)
        assert torch.equal(loaded(x), expected)
    model.set_adapter("default")
    assert model.train()(x).shape == expected.shape
    assert list(entanglement_report(model))


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
@every
def test_a_plain_lora_is_the_same_or_not_written(name, tmp_path):
    model, x = adapter(name)
    if name in ("Conv2d", "reflecting Conv2d", "Conv2d in groups", "depthwise Conv1d"):
        with pytest.raises(ValueError, match="no dilation, no groups and padding by zeros, but a module here has"):
            peft.save_as_lora(tmp_path / "out", model, 3)
        assert not (tmp_path / "out").exists()
        return
    peft.save_as_lora(tmp_path, model, 3)
    lora = PeftModel.from_pretrained(plain(name)[0], tmp_path)
    assert not any("qcircuit" in key for key, _ in lora.named_parameters())
    expected = model(x).detach()
    close(lora(x).detach(), expected, 1e3, size=float(expected.abs().max()), dtype=torch.float32)


@every
def test_autocast_and_half_precision(name):
    model, x = plain(name)
    x = x.bfloat16() if x.is_floating_point() else x
    for whole in (False, True):
        net = model.bfloat16() if whole else copy.deepcopy(model).float()
        net = get_peft_model(copy.deepcopy(net), QCircuitConfig(r=3, target_modules=["0"]))
        given = x if whole or not x.is_floating_point() else x.float()
        with torch.autocast("cpu", enabled=not whole):
            out = net(given)
        out.float().square().sum().backward()
        trained = [p for p in net.parameters() if p.requires_grad]
        assert all(p.grad is not None and p.grad.isfinite().all() and p.dtype == torch.float32 for p in trained)


def test_what_is_not_a_map_is_refused_with_what_is():
    def refuses(said, module, **settings):
        model = nn.Sequential(module)
        with pytest.raises(ValueError, match=said):
            get_peft_model(model, QCircuitConfig(**({"r": 2, "target_modules": ["0"]} | settings)))
        assert type(model[0]) is type(module)

    takes = "a circuit adapter takes Linear, Conv1D, Embedding, Conv1d, Conv2d, Conv3d"
    refuses(takes, nn.ConvTranspose2d(4, 8, 3))
    refuses(takes, nn.EmbeddingBag(8, 4))
    refuses("and without max_norm", nn.Embedding(16, 8, max_norm=1.0))
    refuses("torch's own forward", Shifted(16, 8))
    for factorization in ("rotation", "quanta"):
        refuses("is a Conv2d, for which an update has a rank", nn.Conv2d(4, 8, 3), factorization=factorization)
        refuses("is a Embedding, for which an update has a rank", nn.Embedding(16, 8), factorization=factorization)


@pytest.mark.parametrize("kind", [Router, Wider])
def test_a_layer_that_gives_more_than_its_product_is_adapted_by_its_weight(kind):
    def made():
        torch.manual_seed(2)
        return Routed(kind).double()

    model, x = made(), torch.randn(5, 12, dtype=torch.float64)
    for targets in (["router"], ["into", "router"]):
        with pytest.raises(ValueError, match=r"or adapt its weight by target_parameters=\['router.weight'\]"):
            get_peft_model(model, QCircuitConfig(r=3, target_modules=targets))
    random = torch.get_rng_state()
    with pytest.warns(UserWarning, match=rf"leaves 1 modules .* 'router': {kind.__name__} gives something else"):
        model = get_peft_model(model, QCircuitConfig(r=3, target_modules="all-linear", seed=1))
    assert model.base_model.targeted_module_names == ["into"] and torch.equal(random, torch.get_rng_state())
    for more in ({"target_parameters": ["router.weight"]}, {"exclude_modules": ["router"]}):
        model = get_peft_model(made(), QCircuitConfig(r=3, target_modules="all-linear", seed=1, **more))
        found = shake(model)(x).detach()
        merged = model.merge_and_unload()
        close(merged(x), found, 64, size=float(found.abs().max()))
        assert torch.equal(merged.router.weight, made().router.weight) == ("exclude_modules" in more)


@pytest.mark.parametrize("name", ["Embedding", "Conv2d"])
def test_gradients_are_measured_of_linear_layers(name):
    model, x = adapter(name)
    for measure in (gradient_capture, calibrate):
        with pytest.raises(ValueError, match=r"gradients are measured of linear layers, but .* is a "):
            measure(model, [x], lambda model, x: model(x).sum())


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
def test_the_embedding_of_a_language_model(tmp_path: Path) -> None:
    targets = ["embed_tokens", "q_proj"]
    model = shake(get_peft_model(base("llama"), QCircuitConfig(r=4, target_modules=targets, share="shape"))).eval()
    expected = logits(model, "llama")
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(base("llama"), tmp_path), "llama"), expected)
    lora = get_peft_model(base("llama"), LoraConfig(r=4, target_modules=targets))
    assert {n for n, _ in lora.named_modules() if n.endswith(("embed_tokens", "q_proj"))} == {
        n for n, _ in model.named_modules() if n.endswith(("embed_tokens", "q_proj"))
    }
    close(logits(model.merge_and_unload(), "llama"), expected, 1e3)
