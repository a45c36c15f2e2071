"""``python -m qcircuit_peft.demo [TASK]``: adapt a real model with circuits, beside a probe, FourierFT and LoRA."""

import typer

from qcircuit_peft.demo.run import main

if __name__ == "__main__":  # the training processes import run.py, not this file
    typer.run(main)
