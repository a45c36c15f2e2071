"""Parameters by kind, their rates, the way into Trainer, and the warning of a rate at which circuits do not move."""

import gc
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import adapted, base, config, inputs
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from qcircuit_peft import QCircuitConfig, QPAConfig, optimizer_cls_and_kwargs, parameter_groups
from qcircuit_peft.factorizations import FACTORIZATIONS
from qcircuit_peft.frames import FRAMES
from qcircuit_peft.rates import _LOOKS, OTHERS, RATES, kinds


def counted(model, **options):
    return {group["kind"]: (group["lr"], len(group["params"])) for group in parameter_groups(model, **options)}


def trained(model):
    return [p for p in model.parameters() if p.requires_grad]


def test_every_kind_of_a_circuit_adapter_has_its_rate():
    settings = config("bert", "shared", modules_to_save=["classifier"])
    model = get_peft_model(base("bert"), settings)
    found = counted(model)
    assert found == {"angles": (5e-2, 12), "lambdas": (2e-2, 11), "heads": (2e-3, 2)}
    groups = parameter_groups(model, {"angles": 1e-2, "qcircuit_u": 3e-2})
    assert [(g["kind"], g["lr"]) for g in groups] == [
        ("angles", 3e-2), ("angles", 1e-2), ("lambdas", 2e-2), ("heads", 2e-3),
    ]  # fmt: skip
    listed = [id(p) for group in groups for p in group["params"]]
    assert sorted(listed) == sorted(map(id, trained(model)))


@pytest.mark.parametrize("frame", FRAMES)
def test_frames_of_every_map_are_angles_or_frames(frame):
    model = get_peft_model(base("bert"), QCircuitConfig(r=4, frame=frame, target_modules=["query"]))
    circuit = any(True for _ in FRAMES[frame].spec(32, 4).circuits())
    assert set(counted(model)) == {"angles" if circuit else "frames", "lambdas"}


@pytest.mark.parametrize("factorization", FACTORIZATIONS)
def test_parts_of_every_factorization_have_a_kind(factorization):
    model = get_peft_model(base("bert"), QCircuitConfig(r=4, factorization=factorization, target_modules=["query"]))
    found = kinds(model)
    assert len(found) == len(trained(model)) and OTHERS not in {kind for _, kind in found.values()}
    for name, (_, kind) in found.items():
        part = name.split("qcircuit_")[1].split(".")[0]
        if part == "lambda" or part.startswith(("core", "bond", "gates")):
            assert kind == ("lambdas" if part == "lambda" else "cores"), name


def test_a_generator_learns_at_its_own_rate():
    model = get_peft_model(base("bert"), QPAConfig(base=LoraConfig(r=2, target_modules=["query"]), chunk_size=16))
    assert counted(model) == {"generators": (RATES["generators"], len(trained(model)))}


def test_other_methods_take_the_rates_that_are_given():
    model = get_peft_model(base("bert"), LoraConfig(r=2, target_modules=["query"], modules_to_save=["classifier"]))
    with pytest.raises(ValueError, match=r"no learning rate is known for the parameter .*lora_A"):
        parameter_groups(model)
    groups = parameter_groups(model, {"lora_B": 1e-3, "others": 2e-4}, weight_decay=0.1)
    assert [(g["kind"], g["lr"], g["weight_decay"], len(g["params"])) for g in groups] == [
        ("others", 2e-4, 0.1, 2), ("others", 1e-3, 0.1, 2), ("heads", 2e-3, 0.1, 1), ("heads", 2e-3, 0.0, 1),
    ]  # fmt: skip


def test_what_is_no_vector_of_a_circuit_decays_alone():
    groups = parameter_groups(adapted("bert", modules_to_save=["classifier"]), weight_decay=0.5)
    assert {(g["kind"], g["weight_decay"]) for g in groups} == {
        ("angles", 0.0), ("lambdas", 0.0), ("heads", 0.5), ("heads", 0.0),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"angels": 0.1}, "rates has 'angels', which is no kind and in no trained name; did you mean one of angles"),
        ({"angles": -1.0}, "the rate of 'angles' is"),
        ({"angles": float("nan")}, "the rate of 'angles' is"),
        ({"lambdas": True}, "the rate of 'lambdas' is"),
    ],
)
def test_a_wrong_rate_is_one_sentence(rates, message):
    with pytest.raises(ValueError, match=message):
        parameter_groups(adapted("bert"), rates)


def test_a_model_in_which_nothing_trains_is_refused():
    with pytest.raises(ValueError, match="nothing trains in this model"):
        parameter_groups(base("bert").requires_grad_(False))


class Rows(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, k):
        found = inputs("bert", 4)
        return {key: value[k] for key, value in found.items()}


def trainer(folder, model, **more):
    args = TrainingArguments(
        str(folder), max_steps=2, report_to="none", disable_tqdm=True, save_strategy="no", warmup_steps=1, use_cpu=True
    )
    return Trainer(model, args, train_dataset=Rows(), **more)


def test_trainer_takes_the_groups_and_schedules_each(tmp_path):
    model = adapted("bert", modules_to_save=["classifier"])
    run = trainer(tmp_path, model, optimizer_cls_and_kwargs=optimizer_cls_and_kwargs(model, {"angles": 0.1}))
    before = [p.detach().clone() for p in trained(model)]
    run.train()
    assert {(g["kind"], g["initial_lr"]) for g in run.optimizer.param_groups} == {
        ("angles", 0.1), ("lambdas", 2e-2), ("heads", 2e-3),
    }  # fmt: skip
    assert all(not torch.equal(old, new) for old, new in zip(before, trained(model), strict=True))


def test_a_trainer_at_its_default_rate_warns_once(tmp_path):
    model = adapted("bert", modules_to_save=["classifier"])
    with pytest.warns(
        UserWarning, match="trains angles at 5e-05 and lambdas at 5e-05, .*the usual one is 0.05"
    ) as said:
        trainer(tmp_path, model).train()
    assert len([w for w in said if "hardly move" in str(w.message)]) == 1
    trainer(tmp_path, model).train()  # a second warning would be an error


@pytest.mark.parametrize("settings", [{"lr": 1e-3}, {"lr": 0.0}])
def test_a_rate_that_moves_or_means_to_stay_is_not_warned_of(settings):
    model = adapted("bert")
    model(**inputs("bert")).loss.backward()
    torch.optim.AdamW(trained(model), **settings).step()


def test_only_normalized_steps_are_judged_by_their_rate():
    model = adapted("bert")
    model(**inputs("bert")).loss.backward()
    torch.optim.SGD(trained(model), lr=1e-5).step()
    with pytest.warns(UserWarning, match="hardly move"):
        again = adapted("bert")
        again(**inputs("bert")).loss.backward()
        torch.optim.RAdam([{"params": trained(again), "lr": 1e-5}]).step()


def test_a_step_may_end_the_looking_of_its_own_and_of_other_models():
    one, other = adapted("bert"), adapted("bert")  # both look; the first to find its parameters stops in the step
    for model in (one, other):
        made, options = optimizer_cls_and_kwargs(model)
        made(**options).step()
    assert other is not one


def test_nothing_is_left_behind():
    gc.collect()
    before = len(_LOOKS)
    model = adapted("bert")
    assert len(_LOOKS) == before + 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], lr=1e-6).step()  # not of this model
    assert len(_LOOKS) == before + 1
    del model
    gc.collect()
    assert len(_LOOKS) == before
