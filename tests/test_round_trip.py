"""What is saved is what is loaded, for random adapters drawn from all tables; what cannot be made changes nothing."""

import os
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import drawn
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from tiny import base, inputs
from torch import Tensor, nn
from transformers import PreTrainedModel

from qcircuit_peft import BottleneckConfig, QCircuitConfig, QPAConfig
from qcircuit_peft.ansatz import names
from qcircuit_peft.factorizations import FACTORIZATIONS
from qcircuit_peft.frames import FRAMES
from qcircuit_peft.methods import UpdateConfig
from qcircuit_peft.tuner.meaning import is_kind

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::RuntimeWarning"
)  # of what was drawn, and PEFT's
ONE_ONLY = ("adalora",)  # PEFT has one trainable adapter of these in a model


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here outlives its process."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


@torch.no_grad()
def outputs(model: nn.Module) -> Tensor:
    torch.manual_seed(5)  # shots are drawn from the global state
    if isinstance(getattr(model, "base_model", model), drawn.Net) or not hasattr(model, "config"):
        return model.eval()(torch.randn(3, 2, drawn.WIDTH, generator=torch.Generator().manual_seed(0)))
    return model.eval()(**inputs("llama")).logits


@torch.no_grad()
def shake(model: Any, seed: int) -> Any:
    """Another value for everything that checkpoints of this model hold."""
    random = torch.Generator().manual_seed(seed)
    prefix = getattr(model.base_model, "prefix", "qcircuit_")
    for name, parameter in model.named_parameters():
        if f".{prefix}" in name or ".modules_to_save." in name:
            parameter += torch.randn(parameter.shape, generator=random) / 10
    return model


def looks(model: nn.Module) -> tuple[Any, ...]:
    """All that an adapter that is refused must not have changed."""
    modules = {
        name: (id(module), len(module._forward_hooks), len(module._forward_pre_hooks))
        for name, module in model.named_modules()
    }
    values = {name: (id(p), p.requires_grad, p._version) for name, p in model.named_parameters()}
    kinds = sorted(getattr(model, "peft_config", {}))
    return modules, values, kinds, outputs(model).tolist()


def check_refusal(error: ValueError) -> None:
    """One sentence; of PEFT's own words, one line."""
    told, place = str(error), traceback.extract_tb(error.__traceback__)[-1].filename
    assert told and "\n" not in told and len(told) < 1000, told
    assert "qcircuit_peft" not in place or not told.endswith("."), told


def saved(folder: Path, adapter: str = "default") -> dict[str, bytes]:
    inside = folder if adapter == "default" else folder / adapter
    return {path.name: path.read_bytes() for path in sorted(inside.glob("adapter_*"))}


def check(configs: list[Callable[[], PeftConfig]], model_of: Callable[[], Any] = drawn.net) -> str:
    """Whether adapters of these configurations are "made", and come back as they were, or one is "refused"."""
    model = model_of()
    torch.manual_seed(3)
    net: Any = model
    made: dict[str, PeftConfig] = {}
    for name, config in zip(("default", "second"), configs, strict=False):
        before = looks(net)
        try:
            made[name] = config()
            if net is model:
                net = get_peft_model(model, made[name], adapter_name=name)
            else:
                net.add_adapter(name, made[name])
        except ValueError as error:
            check_refusal(error)
            assert looks(net) == before, error
            made.pop(name, None)
    if not made:
        return "refused"
    expected = {}
    for k, name in enumerate(made):
        net.set_adapter(name)
        shake(net, k)
    for name in made:
        net.set_adapter(name)
        expected[name] = outputs(net)
        assert torch.isfinite(expected[name]).all()
    with TemporaryDirectory() as place:
        folder = Path(place, "a")
        net.save_pretrained(folder)
        first = {name: saved(folder, name) for name in made}
        net.save_pretrained(folder)
        assert {name: saved(folder, name) for name in made} == first
        for name, config in made.items():
            inside = folder if name == "default" else folder / name
            net.set_adapter(name)
            check_comes_back(net, name, config, inside, model_of, expected[name])
    return "made" if len(made) == len(configs) else "refused"


def check_comes_back(
    net: Any, name: str, config: PeftConfig, folder: Path, model_of: Callable[[], Any], expected: Tensor
) -> None:
    read = partial(type(config).from_pretrained, str(folder))
    notes = {"inference_mode": False, "auto_mapping": None, "library": None}  # made when it saves
    stored = type(config)(**net.peft_config[name].to_dict())
    assert read().to_dict() | notes == stored.to_dict() | notes
    first = saved(folder)

    def check_same(model: Any, adapter: str, way: str) -> None:
        assert torch.equal(outputs(model), expected), way
        with TemporaryDirectory() as place:
            model.save_pretrained(place, selected_adapters=[adapter])
            assert saved(Path(place), adapter) == first, way

    shake(net, 7)
    net.load_adapter(folder, name)
    check_same(net, name, "the same model")
    fresh = PeftModel.from_pretrained(model_of(), folder)
    check_same(fresh, "default", "a fresh model")
    if getattr(config, "bias", "none") == "none" and getattr(config, "base", config).peft_type.lower() not in ONE_ONLY:
        shake(fresh, 8)
        fresh.load_adapter(folder, "third")
        fresh.set_adapter("third")
        check_same(fresh, "third", "beside another")
    other = shake(get_peft_model(model_of(), read()), 9)
    other.load_adapter(folder, "default")
    check_same(other, "default", "onto its name")
    state = get_peft_model_state_dict(net, adapter_name=name)
    by_state = shake(get_peft_model(model_of(), read()), 6)
    set_peft_model_state_dict(by_state, state)
    check_same(by_state, "default", "a state dict")
    if isinstance(model := model_of(), PreTrainedModel):
        model.load_adapter(str(folder))
        assert torch.equal(outputs(model), expected), "transformers"


def walked(
    strategy: Any, examples: int, configs: Callable[[Any], list[Callable[[], Any]]], **more: Any
) -> Counter[str]:
    """How often what was drawn was made, and how often it was refused."""
    found: Counter[str] = Counter()

    # A failure is told as it was drawn: to shrink it takes minutes.
    @settings(max_examples=examples, phases=[Phase.generate], suppress_health_check=list(HealthCheck), database=None)
    @given(strategy)
    def run(value: Any) -> None:
        found[check(configs(value), **more)] += 1

    run()
    return found


def circuit(fields: dict[str, Any]) -> list[Callable[[], Any]]:
    return [partial(QCircuitConfig, **fields)]


@pytest.mark.parametrize("frame", FRAMES)
def test_circuits_in_every_frame(frame: str) -> None:
    assert walked(drawn.circuits(frame=frame), 3, circuit)["made"]


@pytest.mark.parametrize("factorization", FACTORIZATIONS)
def test_circuits_in_every_factorization(factorization: str) -> None:
    assert walked(drawn.circuits(factorization=factorization), 3, circuit)["made"]


@pytest.mark.parametrize("ansatz", names())
def test_circuits_of_every_ansatz(ansatz: str) -> None:
    made = walked(drawn.circuits(frame="circuit", factorization="svd", ansatz=ansatz), 1, circuit)["made"]
    assert made or ansatz not in drawn.REAL  # complex ones have no gates for wires of three levels


def test_several_circuits_in_one_model() -> None:
    pairs = st.tuples(*2 * [drawn.circuits(several=True)])
    assert walked(pairs, 8, lambda pair: [*circuit(pair[0]), *circuit(pair[1])])["made"]


def test_circuits_in_a_model_of_transformers() -> None:
    llama = drawn.circuits(names=("q_proj", "v_proj", "up_proj"))
    assert walked(llama, 4, circuit, model_of=partial(base, "llama"))["made"]


def test_patterns_keep_their_order_since_the_first_that_matches_counts() -> None:
    orders = [{"q": 2.0, r".*\.0\..*": 7.0}, {r".*\.0\..*": 7.0, "q": 2.0}]
    nets = []
    for pattern in orders:
        fields = {"r": 2, "seed": 1, "target_modules": ["q"], "alpha_pattern": pattern}
        assert check(circuit(fields)) == "made"
        nets.append(shake(get_peft_model(drawn.net(), QCircuitConfig(**fields)), 0))
    assert not torch.equal(*map(outputs, nets))
    with TemporaryDirectory() as folder:
        nets[0].save_pretrained(folder)
        with pytest.raises(ValueError, match=r"^the checkpoint was made with alpha_pattern = .*'q', 2\.0"):
            nets[1].load_adapter(folder, "default")


def test_bottlenecks() -> None:
    assert walked(drawn.bottlenecks(), 4, lambda config: [lambda: config])["made"]


@pytest.mark.parametrize("method", drawn.BY_CONFIG)
def test_every_method_and_what_generates_it(method: str) -> None:
    found = walked(st.data(), 2, lambda data: [lambda: data.draw(drawn.generators(partial(drawn.of_method, method)))])
    if is_kind(drawn.of_method(method).peft_type):
        found += walked(st.just(method), 1, lambda name: [partial(drawn.of_method, name)])
    assert found["made"]


@pytest.mark.parametrize(
    "kind",
    [{"frame": name} for name in FRAMES] + [{"factorization": name} for name in FACTORIZATIONS],
    ids=lambda kind: next(iter(kind.values())),
)
def test_generated_circuits_of_every_kind(kind: dict[str, str]) -> None:
    def generated(data: Any) -> list[Callable[[], Any]]:
        fields = data.draw(drawn.circuits(**kind))
        fields.pop("modules_to_save", None)
        return [lambda: data.draw(drawn.generators(partial(QCircuitConfig, **fields)))]

    assert walked(st.data(), 3, generated)["made"]


# Adapters whose first target fits, but not the last one.
MISFITS: dict[str, Callable[[], PeftConfig]] = {
    "circuit": lambda: QCircuitConfig(target_modules=["q", "norm"]),
    "a rank above a width": lambda: QCircuitConfig(r=20, target_modules=["q", "up"]),
    "bottleneck": lambda: BottleneckConfig(target_modules=["q", "norm"]),
    "update": lambda: UpdateConfig(update="svf", size=4, target_modules=["q", "norm"]),
    "a size above a width": lambda: UpdateConfig(update="svf", size=20, target_modules=["q", "up"]),
    "generated": lambda: QPAConfig(base=LoraConfig(target_modules=["q", "norm"])),
    "a generated circuit": lambda: QPAConfig(base=QCircuitConfig(r=20, target_modules=["q", "up"])),
    "a generated bottleneck": lambda: QPAConfig(base=BottleneckConfig(target_modules=["q", "norm"])),
}
FITS: dict[type, Callable[[], PeftConfig]] = {
    QCircuitConfig: lambda: QCircuitConfig(r=2, target_modules=["v"]),
    BottleneckConfig: lambda: BottleneckConfig(target_modules=["v"]),
    UpdateConfig: lambda: UpdateConfig(update="lotr", size=2, target_modules=["v"]),
    LoraConfig: lambda: LoraConfig(target_modules=["v"]),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_what_does_not_fit_in_the_end_has_changed_nothing(misfit: str) -> None:
    config = MISFITS[misfit]()
    fit = FITS[type(getattr(config, "base", config))]
    assert check([MISFITS[misfit]]) == "refused"
    first = (lambda: QPAConfig(base=fit())) if isinstance(config, QPAConfig) else fit
    assert check([first, MISFITS[misfit]]) == "refused"
