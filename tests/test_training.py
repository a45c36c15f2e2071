"""The training loop and the demo on a tiny vision model: all methods, what is saved, what an interruption leaves."""

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from qcircuit_peft import methods
from qcircuit_peft.demo import report, run
from qcircuit_peft.methods import METHODS
from qcircuit_peft.tasks import TASKS, Classifier, Split, Splits, Task, pretrained
from qcircuit_peft.training import BATCH, Result, accuracy, adapter_bytes, batches, train, trained

NAMES = ("dark", "light")


def brightness(n: int) -> Split:
    """Noisy images (n, 3, 14, 14), half of them brighter."""
    labels = torch.arange(n) % 2
    return Split(torch.randn(n, 3, 14, 14) + 4 * labels.view(-1, 1, 1, 1), labels, NAMES)


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> Task:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny")
    config = Dinov2Config(hidden_size=96, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=1, image_size=14)
    Dinov2Model(config).save_pretrained(folder)
    splits = Splits(brightness(24 * BATCH), brightness(100), brightness(101))
    digits = TASKS["digits"]
    return Task("tiny", lambda: folder, lambda: splits, digits.targets, digits.lora_targets, 1, 1.0, False)


def test_a_batch_has_inputs_of_similar_length_and_an_epoch_every_input():
    lengths = [i * 7919 % 60 for i in range(1000)]
    plan = list(batches(lengths, seed=1))
    assert sorted(i for batch in plan for i in batch) == list(range(1000))
    assert plan == list(batches(lengths, seed=1)) != list(batches(lengths, seed=2))
    spreads = [max(lengths[i] for i in batch) - min(lengths[i] for i in batch) for batch in plan]
    assert sum(spreads) / len(spreads) < 10


@pytest.mark.parametrize("name", METHODS)
def test_a_method_trains_and_its_adapter_is_read_back(name, task, tmp_path):
    steps = []
    result = train(task, METHODS[name], tmp_path, progress=lambda *at: steps.append(at[:2]))
    assert steps == [(step, 24) for step in range(1, 25)] and result.finished
    assert 0.7 < result.accuracy <= 1 and 0 <= result.interval < 0.1
    written = [path for path in tmp_path.iterdir() if path.name in ("adapter_model.safetensors", "adapter_config.json")]
    assert result.checkpoint_bytes == sum(len(path.read_bytes()) for path in written)
    adapted = METHODS[name].config is not None
    assert len(written) == 2 * adapted and (result.parameters > 0) == adapted
    net, encode = trained(task, tmp_path)
    assert accuracy(net, encode, task.splits().test) == result.accuracy


def test_an_interruption_leaves_a_checkpoint(task, tmp_path):
    def interrupt(step: int, steps: int, loss: float) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("signal.signal", lambda *args: None)
        result = train(task, METHODS["circuit"], tmp_path, progress=interrupt)
    assert not result.finished and result.checkpoint_bytes == adapter_bytes(tmp_path) > 0
    net, _ = trained(task, tmp_path)
    assert any(p.any() for name, p in net.named_parameters() if "qcircuit_lambda" in name)


def test_a_method_starts_from_the_pretrained_model(task):
    images = {"pixel_values": task.splits().test.inputs[:4]}
    with torch.no_grad():
        wanted = pretrained(task).eval()(**images).last_hidden_state
        for name in ("circuit", "frozen", "lora"):
            got = METHODS[name].attach(task).eval()(**images).last_hidden_state
            assert torch.equal(got, wanted), name


def test_shared_circuits_are_counted_once_and_trained_at_their_own_rate(task):
    for share, vectors in ((None, 8), ("kind", 4)):  # (query, value) x (U, V), in each of two blocks
        method = methods.circuit("", 8, share=share, rate=0.1, angle_rate=0.3)
        groups = method.groups(method.attach(task))
        assert sorted((group["lr"], len(group["params"])) for group in groups) == [(0.1, 4), (0.3, vectors)]


def test_fourierft_has_the_parameters_asked_for(task):
    for all_layers, layers in ((False, 4), (True, 12)):
        model = methods.fourier("", 250, all_layers=all_layers).attach(task)
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) == -(-250 // layers) * layers
    like = methods.circuit("", 8)
    counts = [
        sum(p.numel() for p in method.attach(task).parameters() if p.requires_grad)
        for method in (like, methods.fourier("", like))
    ]
    assert 0 <= counts[1] - counts[0] < 4


def test_the_table_shows_counts_and_intervals():
    results = {
        "a": Result("linear probe", 0, 0.7, 0.028, 0.001, 0, True),
        "b": Result("circuit", 2520, 0.857, 0.0217, 0.454, 23384, True),
    }
    table = report.table(results)
    rows = list(zip(*(column.cells for column in table.columns), strict=True))
    assert rows[0] == ("linear probe", "0", "70.0 ± 2.8 %", "0.00", "-")
    assert rows[1] == ("circuit", "2,520", "85.7 ± 2.2 %", "0.45", "23,384")


def test_padding_does_not_count():
    class Echo(torch.nn.Module):
        config = Dinov2Config(hidden_size=8)

        def forward(self, states, attention_mask):
            return type("Output", (), {"last_hidden_state": states})

    net = Classifier(TASKS["trec"], Echo(), 2)
    states, mask = torch.randn(2, 5, 8), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    found = net.features(states=states, attention_mask=mask)
    torch.testing.assert_close(found[1], 4.0 * states[1, :2].mean(0))


def test_the_main_process_is_quiet_and_says_where_checkpoints_lie(tmp_path, monkeypatch, capsys):
    hushed = []
    stopped = Result("linear probe", 0, float("nan"), float("nan"), 0.0, 0, False)
    monkeypatch.setattr(run, "_train_all", lambda *args: {"probe": stopped})
    monkeypatch.setattr(run, "quiet", lambda: hushed.append(True))
    with pytest.raises(SystemExit) as stop:
        run.main("trec", tmp_path, None, "probe,lora", 1)
    assert stop.value.code == 130 and hushed == [True]
    assert str(tmp_path / "trec" / "probe") in capsys.readouterr().out.replace("\n", "")
