"""``python -m qcircuit_peft.cli``."""

from qcircuit_peft.cli import app

app()
