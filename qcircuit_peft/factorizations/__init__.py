"""Factorizations: frames in, a weight update out. ``FACTORIZATIONS`` names them."""

from qcircuit_peft.factorizations.cp import cp
from qcircuit_peft.factorizations.quanta import quanta
from qcircuit_peft.factorizations.rotation import rotation
from qcircuit_peft.factorizations.shared_core import shared_core
from qcircuit_peft.factorizations.svd import SVD
from qcircuit_peft.factorizations.tensor_ring import tensor_ring
from qcircuit_peft.factorizations.tensor_train import std, tensor_train
from qcircuit_peft.factorizations.tucker import tucker

FACTORIZATIONS = {
    "svd": SVD.of,
    "cp": cp,
    "tucker": tucker,
    "tensor_train": tensor_train,
    "tensor_ring": tensor_ring,
    "std": std,
    "shared_core": shared_core,
    "quanta": quanta,
    "rotation": rotation,
}
"""Each makes a factorization (``parts.Factorization``) from n_out, n_in, r, ``frame(n, k)``, scaling and options."""
