"""The entanglement report: it reads the right circuits, knows where they started, and changes nothing."""

import copy

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from torch import nn

from qcircuit_peft import QCircuitConfig, circuits, matrix
from qcircuit_peft.analysis import entanglement_report, plots, tables
from qcircuit_peft.analysis.entanglement import entropy
from qcircuit_peft.analysis.operators import operator_entropy, operator_rank
from qcircuit_peft.ansatz import wire_dims
from qcircuit_peft.factorizations import FACTORIZATIONS
from qcircuit_peft.factorizations.parts import frames as frames_of
from qcircuit_peft.frames import FRAMES

WIDTHS = {"a": (8, 12), "b": (12, 6)}  # in, out


def adapted(seed=0, widths=WIDTHS, **options):
    torch.manual_seed(0)
    base = nn.ModuleDict({name: nn.Linear(*sizes) for name, sizes in widths.items()})
    base.forward = lambda x: base["b"](base["a"](x).tanh())
    return get_peft_model(base, QCircuitConfig(r=3, layers=2, seed=seed, target_modules=["a", "b"], **options))


def train(model):
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(4, model.base_model.model["a"].in_features)).square().sum().backward()
        optimizer.step()
    return model


def cuts(n):
    return len(wire_dims(n)) - 1 if n > 1 else 0


def test_every_layer_part_stage_and_cut_has_its_row():
    rows = entanglement_report(train(adapted()))
    found = [(row.layer, row.part, row.stage, row.cut) for row in rows]
    wanted = []
    for layer, (n_in, n_out) in WIDTHS.items():
        for part, n in (("u", n_out), ("v", n_in)):
            wanted += [(layer, part, stage, k + 1) for stage in ("initial", "now") for k in range(cuts(n))]
        wanted += [(layer, "delta", "now", k + 1) for k in range(max(cuts(n_in), cuts(n_out)))]
    assert found == wanted


def test_the_numbers_are_those_of_the_trained_circuits():
    model = train(adapted())
    rows = {(row.layer, row.part, row.cut): row for row in entanglement_report(model) if row.stage == "now"}
    of_name = {name: (circuit, angles.double()) for name, circuit, angles in circuits(model)}
    for layer in WIDTHS:
        for part in ("u", "v"):
            circuit, angles = of_name[f"base_model.model.{layer}.{part}"]
            whole = matrix(circuit, angles)
            for cut in range(1, len(circuit.dims)):
                row = rows[layer, part, cut]
                states = entropy(whole[:, :3].mT.contiguous(), range(cut), circuit.dims)
                assert row.dims == circuit.dims
                assert row.column_entropy == pytest.approx(float(states.mean()), abs=1e-9)
                assert row.operator_entropy == pytest.approx(float(operator_entropy(whole, range(cut))), abs=1e-9)
                assert row.operator_rank == int(operator_rank(whole, range(cut)))
        delta = model.base_model.model[layer].get_delta_weight("default").double()
        row = rows[layer, "delta", 1]
        assert row.operator_entropy == pytest.approx(float(operator_entropy(delta, [0])), abs=1e-5)
        assert row.column_entropy is None and row.distance is None


def test_the_start_is_known_from_the_seed_or_from_a_copy():
    model = adapted(seed=5)
    fresh = entanglement_report(model)
    starts = {(row.layer, row.part, row.cut): row.column_entropy for row in fresh if row.stage == "now"}
    before = {key: value.clone() for key, value in get_peft_model_state_dict(model).items()}
    assert all(row.distance is None or row.distance < 1e-6 for row in fresh)
    assert all((row.operator_entropy, row.operator_rank) == (None, 0) for row in fresh if row.part == "delta")
    trained = entanglement_report(train(model))
    for row in trained:
        if row.stage == "initial":
            assert row.column_entropy == starts[row.layer, row.part, row.cut]
        elif row.part != "delta":
            assert 0.01 < row.distance < 1
    unknown = train(adapted(seed=None))
    assert {row.stage for row in entanglement_report(unknown)} == {"now"}
    assert entanglement_report(model, before=before) == trained
    assert entanglement_report(unknown, before=get_peft_model_state_dict(unknown))[0].distance < 1e-6


def test_distance_is_that_of_the_matrices():
    model = adapted()
    name, circuit, start = next(circuits(model))
    train(model)
    now = next(circuits(model))[2]
    a, b = matrix(circuit, start.double()), matrix(circuit, now.double())
    wanted = min(float(torch.linalg.matrix_norm(a - sign * b)) for sign in (1, -1)) / np.sqrt(2 * circuit.dim)
    row = next(row for row in entanglement_report(model) if row.stage == "now")
    assert name.endswith(f"{row.layer}.{row.part}") and row.distance == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("factorization", FACTORIZATIONS)
def test_any_factorization_has_rows_of_its_frames_and_of_its_update(factorization):
    model = train(adapted(widths={"a": (16, 24), "b": (24, 16)}, factorization=factorization))
    rows = entanglement_report(model)
    for name in "ab":
        module = model.base_model.model[name]
        factors, values = module.factors["default"], module.intrinsic_parameters("default")
        frames = {part: frame for part, frame in frames_of(factors).items() if cuts(frame.n)}
        delta = module.get_delta_weight("default").double()
        assert {row.part for row in rows if row.layer == name} == {*frames, "delta"}
        for row in (row for row in rows if row.layer == name and row.stage == "now"):
            if row.part == "delta":
                assert row.operator_entropy == pytest.approx(float(operator_entropy(delta, range(row.cut))), abs=1e-4)
                continue
            frame = frames[row.part]
            states = entropy(frame.columns(values[row.part].detach().double()).mT.contiguous(), range(row.cut))
            assert row.dims == wire_dims(frame.n) and row.column_entropy == pytest.approx(float(states.mean()))
            assert row.operator_entropy > 0 and 0 < row.distance <= 1


@pytest.mark.parametrize("frame", FRAMES)
def test_any_frame_has_column_entropies_and_circuits_have_operators_too(frame):
    model = adapted(frame=frame)
    fresh, rows = entanglement_report(model), entanglement_report(train(model))
    made_of_circuits = any(True for _ in circuits(model))
    of_frames = [row for row in rows if row.part != "delta"]
    assert len(of_frames) == 2 * sum(cuts(n) for sizes in WIDTHS.values() for n in sizes)
    assert all(row.column_entropy >= 0 for row in of_frames)
    for quantity in ("operator_entropy", "operator_rank", "distance"):
        assert all((getattr(row, quantity) is not None) is made_of_circuits for row in of_frames)
    start = [row.column_entropy for row in rows if row.stage == "initial"]
    assert start == [row.column_entropy for row in fresh if row.stage == "now" and row.part != "delta"]


def test_shared_circuits_started_where_their_holder_did():
    torch.manual_seed(0)
    base = nn.ModuleDict({name: nn.Linear(8, 8) for name in "ab"})
    base.forward = lambda x: base["b"](base["a"](x).tanh())
    model = get_peft_model(base, QCircuitConfig(r=3, seed=0, share="shape", target_modules=["a", "b"]))
    before = {key: value.clone() for key, value in get_peft_model_state_dict(model).items()}
    assert max(row.distance for row in entanglement_report(model) if row.part != "delta") < 1e-6
    rows = entanglement_report(train(model))
    far = {(row.layer, row.part): row.distance for row in rows if row.part != "delta" and row.stage == "now"}
    assert 0.01 < far["a", "u"] == far["b", "u"] and far["a", "v"] == far["b", "v"]
    assert entanglement_report(model, before=before) == rows


def test_reading_changes_nothing():
    model = train(adapted())
    modules = {name: id(module) for name, module in model.named_modules()}
    values = copy.deepcopy(model.state_dict())
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    flags = [(p.requires_grad, p._version, id(p)) for p in model.parameters()]
    random, output = torch.get_rng_state(), model(torch.ones(1, 8))
    entanglement_report(model)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
    assert [(p.requires_grad, p._version, id(p)) for p in model.parameters()] == flags
    assert {name: id(module) for name, module in model.named_modules()} == modules
    assert all(torch.equal(p.grad, grads[name]) for name, p in model.named_parameters() if name in grads)
    assert torch.equal(model(torch.ones(1, 8)), output)


def test_without_whole_matrices_and_with_several_adapters():
    model = adapted()
    model.add_adapter("other", QCircuitConfig(r=2, seed=1, target_modules=["a"]))
    rows = entanglement_report(model, operators=False)
    assert rows and all(row.operator_entropy is None and row.distance is None for row in rows)
    assert {row.part for row in rows} == {"u", "v"}
    assert {(row.adapter, row.layer) for row in entanglement_report(model, "other")} == {("other", "a")}


def test_heat_map_and_tables(tmp_path):
    rows = entanglement_report(train(adapted()))
    for quantity in ("column_entropy", "operator_entropy", "operator_rank"):
        plots.heat_map(rows, quantity).savefig(tmp_path / "map.png")
    figure = plots.heat_map(rows, "operator_entropy", "delta")
    image = figure.axes[0].images[0].get_array()
    wanted = [[row.operator_entropy for row in rows if (row.layer, row.part) == (name, "delta")] for name in WIDTHS]
    np.testing.assert_allclose(image.filled(np.nan), wanted)
    assert figure.axes[1].get_ylabel() == "operator entropy (bits)"
    assert len(tables.to_csv(rows).splitlines()) == len(tables.to_text(rows).splitlines()) == len(rows) + 1
    with pytest.raises(ValueError, match="column_entropy, operator_entropy, operator_rank, got 'rank'"):
        plots.heat_map(rows, "rank")
    with pytest.raises(ValueError, match="no row of the report has 'column_entropy' of part 'delta'"):
        plots.heat_map(rows, part="delta")


def test_bad_input_is_one_sentence():
    with pytest.raises(ValueError, match="a model with a circuit adapter, got one with none"):
        entanglement_report(get_peft_model(nn.ModuleDict({"a": nn.Linear(4, 4)}), LoraConfig(target_modules=["a"])))
    with pytest.raises(ValueError, match="the circuit adapter 'mine', got one with default"):
        entanglement_report(adapted(), "mine")
    with pytest.raises(ValueError, match=r"before has the 17 parameters .*a\.qcircuit_u., got none"):
        entanglement_report(adapted(), before={})
    with pytest.raises(ValueError, match="one or more rows"):
        tables.to_csv([])


def test_a_product_circuit_of_complex_gates_has_no_entanglement():
    model = get_peft_model(
        nn.Sequential(nn.Linear(16, 16)), QCircuitConfig(ansatz="sim01", r=12, layers=2, target_modules=["0"])
    )
    rows = [row for row in entanglement_report(model) if row.part in ("u", "v")]
    assert {row.dims for row in rows} == {(2, 2, 2)} and len(rows) == 4
    assert all(row.column_entropy < 1e-9 and row.operator_entropy < 1e-9 and row.operator_rank == 1 for row in rows)
