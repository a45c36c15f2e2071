"""Factorizations: frames in, a weight update out. ``FACTORIZATIONS`` names them."""

from qcircuit_peft.factorizations.svd import SVD

FACTORIZATIONS = {"svd": SVD}
