"""Factorizations: frames in, a weight update out. ``FACTORIZATIONS`` names them."""

from qcircuit_peft.factorizations.svd import SVD

FACTORIZATIONS = {"svd": SVD.of}
"""Each makes a factorization (``parts.Factorization``) from n_out, n_in, r, ``frame(n, k)``, scaling and options."""
