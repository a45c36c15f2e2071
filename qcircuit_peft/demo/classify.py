"""``python -m qcircuit_peft.demo.classify TASK FOLDER [QUESTION ...]``: a saved adapter at work, from its folder."""

import sys
from pathlib import Path

import torch

from qcircuit_peft.tasks import TASKS, quiet
from qcircuit_peft.training import trained

QUESTIONS = ("How far is it from Denver to Aspen ?", "Who wrote the Declaration of Independence ?")
SENTENCES = ("A warm , funny and moving film .", "Two hours of my life that I shall never get back .")


@torch.no_grad()
def main(task: str, folder: Path, questions: tuple[str, ...]) -> None:
    """Print the class of each question, of two texts that suit the task, or of the first two test images."""
    quiet()
    net, encode = trained(TASKS[task], folder)
    test = TASKS[task].splits().test
    texts = questions or (SENTENCES if task == "movies" else QUESTIONS)
    inputs = texts if TASKS[task].text else test.inputs[:2]
    for number, scores in enumerate(net(**encode(inputs))):
        shown = inputs[number] if TASKS[task].text else f"test image {number} (a {test.names[test.numbers[number]]})"
        print(f"  {shown!s:<48} -> {test.names[int(scores.argmax())]}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), tuple(sys.argv[3:]))
