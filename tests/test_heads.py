"""Heads of several layers that were trained whole, when a model is unloaded: every model that has one, every method."""

import copy

import bounds
import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper

from qcircuit_peft import BottleneckConfig, QCircuitConfig, QPAConfig

SIZES = {
    "num_hidden_layers": 1,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "vocab_size": 64,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
MODELS = {
    "Roberta": {},
    "XLMRoberta": {},
    "Electra": {"embedding_size": 32},
    "Camembert": {},
    "BigBird": {"attention_type": "original_full"},
    "ConvBert": {"embedding_size": 32},
    "Esm": {"mask_token_id": 1},
    "Longformer": {"attention_window": [4]},
}
SEQ = {"task_type": "SEQ_CLS", "target_modules": ["query", "value"]}
METHODS = {
    "circuit": QCircuitConfig(r=4, seed=0, **SEQ),
    "bottleneck": BottleneckConfig(r=2, **SEQ),
    "generated": QPAConfig(base=LoraConfig(r=2, **SEQ), chunk_size=64, layers=1),
}


def tiny(name):
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SIZES, **MODELS[name])
    return getattr(transformers, f"{name}ForSequenceClassification")(config).eval()


@torch.no_grad()
def logits(model):
    ids = torch.arange(2, 18).view(2, 8)
    return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_a_head_that_was_trained_stays(name, method):
    net = get_peft_model(tiny(name), copy.deepcopy(METHODS[method])).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    head = net.base_model.model.classifier.modules_to_save["default"]
    trained = {key: value.clone() for key, value in head.state_dict().items()}
    adapted = logits(net)
    both = copy.deepcopy(net)
    if method == "bottleneck":
        with pytest.raises(ValueError, match="cannot be merged"):
            both.merge_and_unload()
        bounds.close(logits(both), adapted, 1)  # nothing was changed
    else:
        merged = both.merge_and_unload()
        bounds.close(logits(merged), adapted, 1000)
        check(merged, trained)
    check(net.unload(), trained)


def check(plain, trained):
    """Nothing of PEFT's is left, and the head is the trained one; the model runs."""
    assert not any(isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper) for module in plain.modules())
    found = plain.classifier.state_dict()
    assert found.keys() == trained.keys() and all(torch.equal(found[key], value) for key, value in trained.items())
    assert logits(plain).isfinite().all()


TASKS = {
    "DistilBertForSequenceClassification": ("SEQ_CLS", {"pre_classifier", "classifier"}),
    "BertForSequenceClassification": ("SEQ_CLS", {"classifier"}),
    "BertForTokenClassification": ("TOKEN_CLS", {"classifier"}),
    "BertForQuestionAnswering": ("QUESTION_ANS", {"qa_outputs"}),
}


@pytest.mark.parametrize("method", [QCircuitConfig, BottleneckConfig])
@pytest.mark.parametrize("targets", ["all-linear", ["classifier", "pre_classifier", "qa_outputs", "q_lin", "query"]])
@pytest.mark.parametrize("kind", TASKS)
def test_what_a_task_trains_whole_is_not_adapted(kind, targets, method, tmp_path):
    task, heads = TASKS[kind]

    def plain():
        torch.manual_seed(0)
        name = kind.partition("For")[0]
        sizes = {"dim": 32, "hidden_dim": 48, "n_layers": 1, "n_heads": 4} if name == "DistilBert" else {}
        config = getattr(transformers, f"{name}Config")(**SIZES | sizes)
        return getattr(transformers, kind)(config).eval()

    def out(model):
        with torch.no_grad():
            found = model(input_ids=torch.arange(2, 18).view(2, 8))
        return found.start_logits if task == "QUESTION_ANS" else found.logits

    net = get_peft_model(plain(), method(r=4, target_modules=targets, task_type=task, init_weights=False)).eval()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter += 0.1 if ".modules_to_save." in name else 0
    whole = {name.rpartition(".")[2] for name, m in net.named_modules() if isinstance(m, AuxiliaryTrainingWrapper)}
    adapted = {name for name, module in net.named_modules() if isinstance(module, BaseTunerLayer)}
    assert whole == heads and adapted and not any(head in name for name in adapted for head in heads)
    net.save_pretrained(tmp_path)
    assert torch.equal(out(PeftModel.from_pretrained(plain(), tmp_path).eval()), out(net))
    assert not torch.equal(out(net), out(plain()))
    by_itself = plain()  # transformers trains no head whole, whatever the task
    by_itself.add_adapter(method(r=2, target_modules=sorted(heads), task_type=task))
    assert heads & {n.rpartition(".")[2] for n, m in by_itself.named_modules() if isinstance(m, BaseTunerLayer)}


@pytest.mark.parametrize("method", METHODS)
def test_a_head_inside_another_one_is_refused(method):
    config = copy.deepcopy(METHODS[method])
    getattr(config, "base", config).modules_to_save = ["dense"]  # and PEFT adds the head of the task
    net, plain = get_peft_model(tiny("Roberta"), copy.deepcopy(METHODS[method])).eval(), tiny("Roberta")
    before = logits(net), logits(plain), [name for name, _ in net.named_parameters()]
    for add in (lambda: net.add_adapter("second", config), lambda: get_peft_model(plain, config)):
        with pytest.raises(ValueError, match=r"^'dense' is inside 'classifier', and only one of both is trained whole"):
            add()
    assert list(net.peft_config) == ["default"] and not hasattr(plain, "peft_config")
    assert torch.equal(logits(net), before[0]) and torch.equal(logits(plain), before[1])
    assert [name for name, _ in net.named_parameters()] == before[2]
