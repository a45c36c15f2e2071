# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 5 · Fine-tune, merge and ship
#
# From a pretrained model to files that others can use: train an adapter made of circuits, save it, load it, and ship it
# in three forms that need nothing of this library: a merged model, a plain LoRA, and circuits in OpenQASM 3.
#
# *If you know circuits and not fine-tuning*: MiniLM makes vectors of a sentence with 22.7 million trained numbers, its
# *weights*. They stay as they are; an *adapter* adds a small update to some of its matrices, and only that is trained.
# *If you know fine-tuning and not circuits*: a circuit is here a way to write an orthogonal matrix with few numbers,
# its *angles*. The update is U diag(lambda) Vᵀ, and U and V are the first columns of such matrices (tutorial 1).

# %%
# %matplotlib inline
import tempfile
import warnings
from pathlib import Path

import torch
from matplotlib.figure import Figure

warnings.filterwarnings("ignore", "IProgress not found")  # tqdm would like ipywidgets for its bars
torch.set_num_threads(1)

from peft import PeftModel, get_peft_model, save_as_lora
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import AutoModel, AutoTokenizer, DataCollatorWithPadding, PrinterCallback, Trainer, TrainingArguments

from qcircuit_peft import QCircuitConfig, circuits, matrix
from qcircuit_peft.qasm import to_qasm
from qcircuit_peft.tasks import quiet
from qcircuit_peft.tasks.data import trec
from qcircuit_peft.tasks.models import minilm

quiet()
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## The task
#
# What kind of answer does a question ask for? TREC has six kinds. To stay within a minute we train on 640 of the
# 3,881 questions, one pass, and test on 200.

# %%
splits = trec(fine=False)
tokenizer = AutoTokenizer.from_pretrained(minilm())


def rows(split, n):
    ids = tokenizer(list(split.inputs[:n]), truncation=True, max_length=32)["input_ids"]
    return [{"input_ids": one, "labels": int(label)} for one, label in zip(ids, split.labels[:n], strict=True)]


train, test = rows(splits.train, 640), rows(splits.test, 200)
for question, label in list(zip(splits.train.inputs, splits.train.labels, strict=True))[:3]:
    print(f"{splits.train.names[label]:5} {question}")

# %% [markdown]
# ## The model, with circuits in it
#
# `get_peft_model` is PEFT's own call; only the configuration is ours. Query and value of all six blocks get circuits.
# Their width is 384 = 3 · 2⁷, and there are two ways to such a width. By default the 3 becomes one three-level wire
# beside seven qubits, with the fewest angles. Machines and OpenQASM have qubits only: `width="shannon"` puts the matrix
# together of circuits on eight and seven qubits, with one layer of plain rotations between them. We want to ship
# circuits, so we take that.


# %%
class Sorter(nn.Module):
    """The mean of the encoder's token vectors, and a linear layer that gives one score for each kind of question."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(384, len(splits.train.names))

    def forward(self, input_ids, attention_mask, labels=None):
        states, mask = self.encoder(input_ids, attention_mask).last_hidden_state, attention_mask[..., None]
        scores = self.head(4 * (states * mask).sum(1) / mask.sum(1))
        return {"logits": scores} if labels is None else {"loss": cross_entropy(scores, labels), "logits": scores}


def pretrained():
    return AutoModel.from_pretrained(minilm(), hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


torch.manual_seed(0)
config = QCircuitConfig(r=16, layers=1, width="shannon", seed=0, target_modules=["query", "value"])
model = Sorter(get_peft_model(pretrained(), config))
model.encoder.print_trainable_parameters()

# %% [markdown]
# ## Train it with transformers' Trainer
#
# Angles and lambdas want a far larger learning rate than the Trainer's default 5e-5, since they turn and scale whole
# matrices; so the optimizer is given.

# %%
adapter = [p for p in model.encoder.parameters() if p.requires_grad]
groups = [{"params": adapter, "lr": 2e-2}, {"params": model.head.parameters(), "lr": 1e-2}]
trainer = Trainer(
    model,
    TrainingArguments(
        str(folder / "trainer"),
        per_device_train_batch_size=32,
        per_device_eval_batch_size=50,
        num_train_epochs=1,
        warmup_steps=2,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    ),
    train_dataset=train,
    eval_dataset=test,
    data_collator=DataCollatorWithPadding(tokenizer),
    optimizers=(torch.optim.AdamW(groups, weight_decay=0.0), None),
    compute_metrics=lambda found: {"accuracy": (found.predictions.argmax(-1) == found.label_ids).mean()},
)
trainer.pop_callback(PrinterCallback)
before = trainer.evaluate()["eval_accuracy"]
trainer.train()
after = trainer.evaluate()["eval_accuracy"]
print(f"test accuracy {before:.0%} before training, {after:.0%} after {trainer.state.global_step} steps")

# %%
losses = [(row["step"], float(row["loss"])) for row in trainer.state.log_history if "loss" in row]
figure = Figure(figsize=(6.4, 3.6), layout="constrained")
axes = figure.add_subplot()
axes.plot(*zip(*losses, strict=True), marker="o", markersize=4)
axes.axhline(torch.tensor(6.0).log().item(), color="0.4", linestyle="--", label="equal scores for all six kinds")
axes.set(xlabel="step (32 questions each)", ylabel="training loss: cross-entropy (nats)", ylim=(0, None))
axes.xaxis.get_major_locator().set_params(integer=True)
axes.legend()
figure

# %% [markdown]
# ## Save, and load again
#
# `save_pretrained` writes angles and lambdas, and the whole circuit in `adapter_config.json`; the head is an ordinary
# layer of ours. To load, `import qcircuit_peft` is enough: it registers the method with PEFT.

# %%
model.encoder.save_pretrained(folder / "adapter")
batch = DataCollatorWithPadding(tokenizer)(test[:20])
batch.pop("labels")


@torch.no_grad()
def scores(encoder):
    other = Sorter(encoder).eval()
    other.head = model.head
    return other(**batch)["logits"]


wanted = scores(model.encoder)
loaded = PeftModel.from_pretrained(pretrained(), folder / "adapter")
assert torch.equal(scores(loaded), wanted)
print("the loaded adapter gives the same scores, bit for bit")

# %% [markdown]
# ## Ship 1: a merged model
#
# The updates are added to the weights, and the circuits are gone: a MiniLM like any other, as fast as before.

# %%
merged = PeftModel.from_pretrained(pretrained(), folder / "adapter").merge_and_unload(safe_merge=True)
merged.save_pretrained(folder / "merged")
merged = AutoModel.from_pretrained(folder / "merged")
print(f"largest difference of scores {(scores(merged) - wanted).abs().max():.0e}")

# %% [markdown]
# ## Ship 2: a plain LoRA
#
# Servers that know LoRA only get the same update as LoRA's two factors, exactly: it has rank r = 16.

# %%
save_as_lora(folder / "lora", loaded, rank=16)
lora = PeftModel.from_pretrained(pretrained(), folder / "lora")
print(f"{lora.peft_config['default'].peft_type.value}, rank {lora.peft_config['default'].r}")
print(f"largest difference of scores {(scores(lora) - wanted).abs().max():.0e}")

# %% [markdown]
# ## Ship 3: circuits in OpenQASM 3
#
# `circuits(model)` yields every circuit of the adapter with a copy of its trained angles. Any quantum tool reads the
# files. lambda and the rotations between the circuits are no circuits on qubits; they stay in the adapter.

# %%
(folder / "qasm").mkdir()
for name, circuit, angles in circuits(model.encoder):
    (folder / "qasm" / f"{name}.qasm").write_text(to_qasm(circuit, angles))
files = sorted((folder / "qasm").iterdir())
print(f"{len(files)} files, among them {files[0].name}:")
print("\n".join(files[0].read_text().splitlines()[:6]), "\n...")

# %% [markdown]
# Qiskit reads them back, and finds the matrix that the adapter uses. (Qiskit counts qubits from the other end.)

# %%
from qiskit import qasm3
from qiskit.quantum_info import Operator

name, circuit, angles = next(circuits(model.encoder))
read = qasm3.loads((folder / "qasm" / f"{name}.qasm").read_text())
theirs = torch.from_numpy(Operator(read.reverse_bits()).data)
print(f"{read.num_qubits} qubits, differs by {(theirs - matrix(circuit, angles.double())).abs().max():.0e}")

# %% [markdown]
# ## What each form weighs

# %%
forms = {
    form: sum(p.stat().st_size for p in (folder / form).iterdir()) for form in ("adapter", "qasm", "lora", "merged")
}
figure = Figure(figsize=(6.4, 2.6), layout="constrained")
axes = figure.add_subplot()
bars = axes.barh(list(forms), list(forms.values()))
axes.bar_label(bars, [f"{size:,}" for size in forms.values()], padding=3)
axes.set(xscale="log", xlabel="size on disk (bytes)", ylabel="form", xlim=(1e3, 1e10))
axes.invert_yaxis()
figure

# %% [markdown]
# The adapter is what to keep: the other forms follow from it, and only in it are there still angles to train. For a
# model of your own, the ten lines of the README are all there is; `make demo` trains for longer and compares with LoRA.
