"""The generator by itself: probabilities, features, mapping network, chunks and counts."""

import math
from itertools import product

import numpy as np
import pytest
import reference
import torch
from bounds import close, rounding
from peft import LoraConfig
from transformers import GPT2Config, GPT2LMHeadModel

from qcircuit_peft import Noise, QPAConfig, load, parameter_count
from qcircuit_peft.ansatz import names
from qcircuit_peft.generator import Generator, Recipe, generator_count
from qcircuit_peft.generator.network import EPS, features
from qcircuit_peft.generator.recipe import ACTIVATIONS, CONTROLS, FEATURES

NUMPY_ACTIVATIONS = {
    None: lambda x: x,
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x * np.vectorize(lambda t: (1 + math.erf(t / math.sqrt(2))) / 2)(x),
}


# Of a generated number: two each in some hundred gates and terms, and a feature of a probability adds as many again.
ROUNDINGS = 400


def by_hand(generator: Generator, group: int = 0) -> np.ndarray:
    """One group, chunk by chunk and state by state, from the numpy reference of circuits."""
    recipe, m = generator.recipe, generator.sizes[group]
    chunks = math.ceil(m / recipe.chunk_size)
    n = max(1, math.ceil(math.log2(chunks)))
    row = [k for k, size in enumerate(generator.sizes) if recipe.qubits(size) == n and k <= group].__len__() - 1
    own = {
        name: p[row].double().detach().numpy()
        for name, p in generator.state_dict().items()
        if name.startswith(f"n{n}_")
    }
    circuit = load(recipe.ansatz).circuit(qubits=n, layers=recipe.layers)
    p = np.abs(reference.matrix(circuit, own[f"n{n}_angles"])[:, 0]) ** 2
    p = np.maximum(p, EPS)
    if recipe.features == "paper":
        f = (0.60 * np.tanh(0.1 * 2 ** (n - 1) * p)) ** 0.15
    else:
        f = {"log": np.log, "identity": lambda x: x}[recipe.features](2**n * p)
    f = f - f.mean()
    out = []
    for chunk, state in zip(range(chunks), product([1.0, -1.0], repeat=n), strict=False):
        x = np.array([*state, f[chunk]])
        for k in range(len(recipe.widths) + 1):
            x = x @ own[f"n{n}_weight{k}"] + own[f"n{n}_bias{k}"]
            if k < len(recipe.widths):
                x = NUMPY_ACTIVATIONS[recipe.activation](x)
        out.append(x)
    values = np.concatenate(out)[:m]
    return values - values.mean()


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
def test_it_computes_what_the_description_says(feature: str, activation: str | None) -> None:
    recipe = Recipe(5, 2, features=feature, activation=activation, widths=(6, 7), init="paper")
    generator = Generator([33, 40, 9, 3], recipe).double()
    for group, vector in enumerate(generator()):
        close(vector, by_hand(generator, group), ROUNDINGS)
        close(vector.mean(), 0.0, ROUNDINGS, vector.abs().max())


@pytest.mark.parametrize("name", names())
def test_any_ansatz_generates(name: str) -> None:
    generator = Generator([40], Recipe(5, 2, ansatz=name, widths=(6,), init="paper")).double()
    close(generator()[0], by_hand(generator), ROUNDINGS)


def test_the_published_counts() -> None:
    """GPT-2's lm_head: 52.06 % of LoRA's parameters; 256000 x 2048: 16.846 %."""
    gpt2 = generator_count(4 * (50257 + 768), Recipe(2048, 8))
    assert (gpt2.qubits, gpt2.network, gpt2.features, gpt2.total) == (7, 106_208, 56, 106_264)
    assert round(100 * gpt2.total / 204_100, 2) == 52.06
    gemma = generator_count(4 * (256_000 + 2048), Recipe(4096, 8))
    assert (gemma.qubits, gemma.total, round(100 * gemma.total / 1_032_192, 3)) == (8, 173_888, 16.846)


def test_the_published_count_on_the_model_itself() -> None:
    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config(tie_word_embeddings=False))
    lora = LoraConfig(r=4, target_modules=["lm_head"])
    assert parameter_count(lora, model) == 204_100
    assert parameter_count(QPAConfig(base=lora, chunk_size=2048, layers=8), model) == 106_264


@pytest.mark.parametrize("control", [None, *CONTROLS])
def test_controls_count_and_differ_in_the_feature_alone(control: str | None) -> None:
    recipe = Recipe(16, 3, control=control, init="paper")
    generator = Generator([500], recipe)
    count = generator_count(500, recipe)
    assert sum(p.numel() for p in generator.parameters()) == count.total
    assert count.features == {None: 15, "scalars": 32, "zero": 0, "frozen": 0, "classical": 15}[control]
    plain = Generator([500], Recipe(16, 3, init="paper"))
    same = {
        name: torch.equal(value, plain.state_dict()[name])
        for name, value in generator.state_dict().items()
        if "weight" in name
    }
    assert same and all(same.values())
    vector, other = generator()[0], plain()[0]
    bound = rounding(torch.float32, ROUNDINGS, other.abs().max())
    assert ((vector - other).abs().max() <= bound) == (control in (None, "scalars", "frozen"))
    generator()[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in generator.parameters())


def test_the_control_without_a_feature_depends_on_no_angle() -> None:
    zero = Generator([500], Recipe(16, 3, control="zero", init="paper"))()[0]
    generator = Generator([500], Recipe(16, 3, init="paper"))
    generator.n5_weight0.data[:, -1] = 0  # what the feature is multiplied with
    close(generator()[0], zero, ROUNDINGS)


@pytest.mark.parametrize("feature", FEATURES)
def test_features_and_gradients_are_finite_where_a_probability_is_zero(feature: str) -> None:
    p = torch.tensor([[0.5, 0.5, 0.0, 0.0]], requires_grad=True)
    f = features(p, feature)
    close(f.mean(), 0.0, f.numel(), f.abs().max())
    f.square().sum().backward()
    assert f.isfinite().all() and p.grad is not None and p.grad.isfinite().all()


def test_zero_at_the_start_and_trainable_from_there() -> None:
    generator = Generator([300, 70], Recipe(16, 3))
    assert all(not vector.any() for vector in generator())
    target = torch.randn(300) / 10
    optimizer = torch.optim.Adam(generator.parameters(), lr=1e-2)
    before = {name: p.detach().clone() for name, p in generator.named_parameters()}
    losses = []
    for _ in range(30):
        loss = (generator()[0] - target).square().mean() + generator()[1].sum() ** 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    assert not torch.equal(generator.n5_angles, before["n5_angles"])  # the circuit learns too


def test_a_seed_fixes_everything_whatever_the_global_state() -> None:
    first = Generator([300, 70], Recipe(16, 3, init="paper", seed=4)).state_dict()
    torch.manual_seed(99)
    again = Generator([300, 70], Recipe(16, 3, init="paper", seed=4)).state_dict()
    other = Generator([300, 70], Recipe(16, 3, init="paper", seed=5)).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_shots_and_noise_go_through_the_one_door() -> None:
    exact = Generator([300], Recipe(16, 3, init="paper"))()[0].detach()
    means, draws = [], []
    for shots in (100, 100_000):
        generator = Generator([300], Recipe(16, 3, init="paper", shots=shots))
        torch.manual_seed(5)
        drawn = torch.stack([generator()[0].detach() for _ in range(5)])
        assert not torch.equal(drawn[0], drawn[1])  # every generation draws anew
        means.append(float((drawn - exact).abs().mean()))
        draws.append(drawn)
    assert means[1] < means[0] / 5
    again = Generator([300], Recipe(16, 3, init="paper", shots=100_000))
    torch.manual_seed(5)
    assert torch.equal(torch.stack([again()[0].detach() for _ in range(5)]), draws[1])  # but from torch's state
    again()[0].square().sum().backward()
    assert again.n5_angles.grad.abs().max() > 0  # parameter-shift
    noisy = Generator([300], Recipe(16, 3, init="paper", noise=Noise(depolarizing=0.1, readout=0.05)))()[0]
    assert (noisy - exact).abs().max() > 1e-4
    simulator = Generator([300], Recipe(16, 3, init="paper", backend="pennylane"))()[0]
    close(simulator, exact, ROUNDINGS)


def test_the_affine_map_has_rank_n_plus_two() -> None:
    """Without an activation, chunks are an affine function of n bits and one feature, as in the authors' code."""
    generator = Generator([64 * 32], Recipe(32, 3, init="paper")).double()
    chunks = generator()[0].unflatten(0, (64, 32))
    assert int(torch.linalg.matrix_rank(chunks, rtol=1e-10)) <= 6 + 2
    bent = Generator([64 * 32], Recipe(32, 3, init="paper", activation="tanh")).double()
    assert int(torch.linalg.matrix_rank(bent()[0].unflatten(0, (64, 32)), rtol=1e-10)) > 6 + 2


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"chunk_size": 0}, "chunk_size is a whole number >= 1, got 0"),
        ({"chunk_size": 2.0}, "chunk_size is a whole number"),
        ({"layers": 0}, "layers is a whole number 1 to 1000, got 0"),
        ({"seed": -1}, "seed is a whole number"),
        ({"widths": 5}, "widths is a list of at most 100 whole numbers, got 5"),
        ({"widths": [8] * 100_000}, "widths is a list of at most 100 whole numbers, got 100,000 entries"),
        ({"widths": [8, 0]}, "a width is a whole number >= 1, got 0"),
        ({"features": "sqrt"}, "features is one of paper, log, identity, got 'sqrt'"),
        ({"features": None}, "features is one of"),
        ({"activation": "sigmoid"}, "activation is one of tanh, relu, gelu"),
        ({"control": "zeros"}, "control is one of .*zero.*, got 'zeros'$"),
        ({"init": "ones"}, "init is one of zero, paper"),
        ({"ansatz": "nothing"}, "there is no circuit named 'nothing'"),
        ({"backend": "abacus"}, "unknown backend 'abacus'"),
        ({"shots": 0}, "shots is a whole number 1 to 9007199254740992, got 0"),
        ({"noise": 0.1}, "noise is a Noise or a table of its rates, got 0.1"),
        ({"noise": {"depolarising": 0.1}}, "noise: unknown key 'depolarising'"),
        ({"noise": {"depolarizing": 2}}, "noise: the probability depolarizing is a number from 0 to 1, got 2"),
    ],
)
def test_bad_recipes_are_refused_in_one_sentence(settings: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        Recipe(**settings)
    assert "\n" not in str(error.value)


def test_more_bytes_than_are_free_are_refused_before_anything_is_allocated() -> None:
    with pytest.raises(ValueError, match=r"take 40 qubits and [\d,]+ bytes a generation, .* are free"):
        Generator([1 << 40], Recipe(1))
    with pytest.raises(ValueError, match=r"take 20 qubits and [\d,]+ bytes"):
        Generator([1 << 26], Recipe(64, noise=Noise(depolarizing=0.1)))
    with pytest.raises(ValueError, match=r"groups of one or more parameters, got sizes \[3, 0\]"):
        Generator([3, 0], Recipe())
