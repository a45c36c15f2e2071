"""Tasks: a pretrained model, labelled data, and how one becomes input of the other. ``TASKS`` names them.

The models and the data come inside PyPI packages, so that nothing is downloaded.
"""

from functools import partial

from qcircuit_peft.tasks.data import Split, Splits, digits, movies, speeches, trec
from qcircuit_peft.tasks.models import dinov2, minilm, smollm2
from qcircuit_peft.tasks.own import load_task, task_files
from qcircuit_peft.tasks.task import KINDS, Classifier, Encoder, Head, OwnHead, Rows, Task, network, pretrained, quiet

_BERT = ("query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense")
_LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_DINO = ("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2")

TASKS: dict[str, Task] = {
    "trec": Task("MiniLM, TREC questions, 50 classes", minilm, trec, _BERT, ("query", "value"), 3, 4.0, True),
    "trec6": Task(
        "MiniLM, TREC questions, 6 classes", minilm, partial(trec, False), _BERT, ("query", "value"), 3, 4.0, True
    ),
    "movies": Task("MiniLM, movie sentences, 2 classes", minilm, movies, _BERT, ("query", "value"), 1, 4.0, True),
    "digits": Task(
        "DINOv2-small, MNIST digits, 10 classes", dinov2, digits, _DINO, ("q_proj", "v_proj"), 3, 1.0, False
    ),
    "speeches": Task(
        "SmolLM2-135M, speeches of the 19th century, running text",
        *(smollm2, speeches, _LLAMA, ("q_proj", "v_proj"), 1, None, True),
        kind="language",
        max_length=96,
    ),
}

__all__ = [
    "KINDS",
    "TASKS",
    "Classifier",
    "Encoder",
    "Head",
    "OwnHead",
    "Rows",
    "Split",
    "Splits",
    "Task",
    "load_task",
    "network",
    "pretrained",
    "quiet",
    "task_files",
]
