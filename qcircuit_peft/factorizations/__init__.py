"""Factorizations: frames in, a weight update out. ``FACTORIZATIONS`` names them."""

from functools import partial

from qcircuit_peft.factorizations.cp import cp
from qcircuit_peft.factorizations.network import network
from qcircuit_peft.factorizations.parts import Kind
from qcircuit_peft.factorizations.quanta import quanta
from qcircuit_peft.factorizations.rotation import rotation
from qcircuit_peft.factorizations.shared_core import shared_core
from qcircuit_peft.factorizations.subspace import subspace
from qcircuit_peft.factorizations.svd import SVD
from qcircuit_peft.factorizations.tensor_ring import tensor_ring
from qcircuit_peft.factorizations.tensor_train import std, tensor_train
from qcircuit_peft.factorizations.tucker import tucker

_AXES = ("axes", "order")

FACTORIZATIONS: dict[str, Kind] = {
    "svd": Kind(
        SVD.of,
        "two frames with a diagonal between them",
        update="U diag(λ) Vᵀ",
        count="f(N, r) + f(M, r) + r",
    ),
    "cp": Kind(
        partial(network, cp, wide=True),
        "a sum of r outer products of vectors, one for each axis",
        update="Σₖ λₖ (u1ₖ ⊗ u2ₖ)(v1ₖ ⊗ v2ₖ)ᵀ",
        count="Σ f(nₘ, r) + r",
        options=_AXES,
    ),
    "tucker": Kind(
        partial(network, tucker),
        "a small core of numbers with a frame on every axis",
        update="(U1 ⊗ U2) G (V1 ⊗ V2)ᵀ",
        count="Σ f(nₘ, rₘ) + r²",
        options=_AXES,
    ),
    "tensor_train": Kind(
        partial(network, tensor_train),
        "a chain of cores around one diagonal",
        update="(u1 u2) diag(λ) (v1 v2)ᵀ",
        count="Σ f(bₘ₋₁ nₘ, bₘ) + r",
        options=_AXES,
    ),
    "tensor_ring": Kind(
        partial(network, tensor_ring),
        "a closed chain of cores with a diagonal on every bond",
        update="tr(D u1 D u2 diag(λ) v2 D v1)",
        count="Σ f(bₘ₋₁ nₘ, bₘ) + Σ bₘ",
        options=_AXES,
    ),
    "std": Kind(
        partial(network, std),
        "a chain of cores with a diagonal on every bond",
        update="(u1 D u2) diag(λ) (v1 D v2)ᵀ",
        count="Σ f(bₘ₋₁ nₘ, bₘ) + Σ bₘ",
        options=_AXES,
    ),
    "shared_core": Kind(
        partial(network, shared_core, order=1),
        "two frames that layers share, with a full core of numbers for each layer",
        update="U G Vᵀ",
        count="f(N, r) + f(M, r) + r²",
        share="kind",
    ),
    "subspace": Kind(
        subspace,
        "small frames inside the first singular directions of the weight, which are kept as they start",
        update="A U diag(λ) Vᵀ Bᵀ or A U G Vᵀ Bᵀ",
        count="2 f(m, r) + r or r², and (N + M) m kept",
        options=("size", "core", "start"),
    ),
    "quanta": Kind(
        quanta,
        "gates of plain numbers on all pairs of axes, trained ones minus frozen ones",
        update="∏(Sⱼ + Dⱼ) − ∏ Sⱼ over pairs of axes",
        count="Σ (nᵢ nⱼ)² over pairs",
        options=("axes", "order", "seed"),
    ),
    "rotation": Kind(
        rotation,
        "an orthogonal circuit that turns what a layer gives or takes",
        update="(R − 1) W or W (R − 1)",
        count="f(N, N)",
        options=("side",),
        own=False,
    ),
}

__all__ = ["FACTORIZATIONS", "Kind"]
