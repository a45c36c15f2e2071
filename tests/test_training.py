"""The training loop and the demo on a tiny vision model: all methods, what is saved, what an interruption leaves."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tiny import brightness_task
from transformers import Dinov2Config, TrainerCallback

from qcircuit_peft.demo import report, run
from qcircuit_peft.methods import DEMO, METHODS, Chosen, trained_numbers
from qcircuit_peft.tasks import TASKS, Classifier, Task, pretrained
from qcircuit_peft.training import BATCH, Result, accuracy, adapter_bytes, fit, train, trained


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> Task:
    return brightness_task(tmp_path_factory.mktemp("tiny"), [24 * BATCH, 100, 101], width=96, blocks=2)


@pytest.mark.parametrize("name", DEMO)
def test_a_method_trains_and_its_adapter_is_read_back(name, task, tmp_path):
    steps = []
    result = train(task, DEMO[name], tmp_path, progress=lambda *at: steps.append(at[:2]))
    assert steps == [(step, 24) for step in range(1, 25)] and result.finished
    assert 0.7 < result.accuracy <= 1 and 0 <= result.interval < 0.1
    written = [path for path in tmp_path.iterdir() if path.name in ("adapter_model.safetensors", "adapter_config.json")]
    assert result.checkpoint_bytes == sum(len(path.read_bytes()) for path in written)
    adapted = name != "probe"
    assert len(written) == 2 * adapted and (result.parameters > 0) == adapted
    net, encode = trained(task, tmp_path)
    assert accuracy(net, encode, task.splits().test) == result.accuracy


@pytest.mark.parametrize("name", ["bitfit", "lisa"])
def test_what_is_no_adapter_is_read_back_by_its_method_and_callbacks_run(name, task, tmp_path):
    called = []

    class Seen(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            called.append(True)

    row = METHODS[name]
    own = row.callbacks
    method = Chosen(replace(row, callbacks=lambda model, steps: [*own(model, steps), Seen()]))
    result = train(task, method, tmp_path)
    assert len(called) == 24 and result.checkpoint_bytes > 0
    with pytest.raises(ValueError, match="name the method that trained them"):
        trained(task, tmp_path)
    with pytest.raises(ValueError, match="is a checkpoint of another model or method"):
        trained(task, tmp_path, Chosen(METHODS["full"]))
    net, encode = trained(task, tmp_path, method)
    assert accuracy(net, encode, task.splits().test) == result.accuracy


class Line(torch.nn.Module):
    """y = w x, with a second weight that does not train."""

    def __init__(self):
        super().__init__()
        self.w, self.still = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, x, labels):
        return {"loss": ((self.w * x - labels) ** 2).mean()}


def line(folder, net, **more):
    x = torch.linspace(1, 2, 12)
    rows = [{"x": value, "labels": 3 * value} for value in x]
    collate = lambda rows: {key: torch.stack([row[key] for row in rows]) for key in rows[0]}  # noqa: E731
    groups = [{"params": [net.w], "lr": 0.3}]
    return fit(net, groups, rows, folder, collate=collate, **{"batch": 4, "epochs": 4, "seed": 1} | more)


def test_the_best_epoch_is_kept(tmp_path):
    seen, scores = [], iter([0.2, 0.9, 0.9, 0.1])
    net = Line()

    def measure() -> float:
        seen.append(net.w.item())
        return next(scores)

    done = line(tmp_path, net, measure=measure)
    assert done.finished and len(done.seconds) == 12 and len(set(seen)) == 4
    assert net.w.item() == seen[1]
    told = [(row["epoch"], row["eval_measure"]) for row in done.history if "eval_measure" in row]
    assert told == [(1, 0.2), (2, 0.9), (3, 0.9), (4, 0.1)]
    assert sum("loss" in row for row in done.history) == 4


def test_a_resumed_training_ends_where_a_whole_one_does(tmp_path):
    def stop(step, steps, loss):
        if step == 8:
            raise KeyboardInterrupt

    whole, cut, again = Line(), Line(), Line()
    line(tmp_path / "whole", whole, measure=lambda: 0.0)
    assert not line(tmp_path / "cut", cut, measure=lambda: 0.0, progress=stop).finished
    assert [path.name for path in sorted((tmp_path / "cut").glob("checkpoint-*"))] == ["checkpoint-3", "checkpoint-6"]
    assert set(load_file(tmp_path / "cut" / "checkpoint-6" / "trained.safetensors")) == {"w"}
    done = line(tmp_path / "cut", again, measure=lambda: 0.0, resume=True)
    assert done.finished and len(done.seconds) == 6 and again.w.item() != cut.w.item()
    assert again.w.item() == whole.w.item()  # both keep the first epoch, so look at the last checkpoints, too
    last = [load_file(tmp_path / run / "checkpoint-12" / "trained.safetensors")["w"] for run in ("whole", "cut")]
    assert torch.equal(*last)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    line(tmp_path, Line(), measure=lambda: 0.0)
    other = Line()
    other.still.requires_grad_(True)
    with pytest.raises(ValueError, match="is a checkpoint of another model or method"):
        line(tmp_path, other, measure=lambda: 0.0, resume=True)


def test_an_interruption_leaves_a_checkpoint(task, tmp_path):
    def interrupt(step: int, steps: int, loss: float) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("signal.signal", lambda *args: None)
        result = train(task, DEMO["circuit"], tmp_path, progress=interrupt)
    assert not result.finished and result.checkpoint_bytes == adapter_bytes(tmp_path) > 0
    net, _ = trained(task, tmp_path)
    assert any(p.any() for name, p in net.named_parameters() if "qcircuit_lambda" in name)


def test_a_method_starts_from_the_pretrained_model(task):
    images = {"pixel_values": task.splits().test.inputs[:4]}
    with torch.no_grad():
        wanted = pretrained(task).eval()(**images).last_hidden_state
        for name in ("circuit", "frozen", "lora"):
            got = DEMO[name].attach(task).eval()(**images).last_hidden_state
            assert torch.equal(got, wanted), name


def test_shared_circuits_are_counted_once_and_trained_at_their_own_rate(task):
    for name, vectors in (("circuit_own", 8), ("circuit", 4)):  # (query, value) x (U, V), in each of two blocks
        method = Chosen(replace(METHODS[name], rates_of={"lambdas": 1.0, "angles": 3.0}), 8, rate=0.1)
        groups = method.groups(method.attach(task))
        assert sorted((group["lr"], len(group["params"])) for group in groups) == [
            (pytest.approx(0.1), 4),
            (pytest.approx(0.3), vectors),
        ]


def test_fourierft_has_the_parameters_asked_for(task):
    for all_layers, layers in ((False, 4), (True, 12)):
        model = Chosen(METHODS["fourierft"], numbers=250, all_layers=all_layers).attach(task)
        assert abs(trained_numbers(model) - 250) <= layers / 2
    with pytest.raises(ValueError, match="has a size or numbers that it fits, got both"):
        Chosen(METHODS["lora"], size=1, numbers=100)


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
