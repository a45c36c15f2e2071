"""``python -m qcircuit_peft.cli``."""

from qcircuit_peft.cli import app

if __name__ == "__main__":
    app()
