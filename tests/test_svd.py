"""The factorization U diag(lambda) V^T: its parts, its start, its update in three ways."""

import pytest
import torch
from bounds import close

from qcircuit_peft.factorizations import FACTORIZATIONS
from qcircuit_peft.factorizations.parts import initial, make, sizes
from qcircuit_peft.factorizations.svd import SVD
from qcircuit_peft.frames import FRAMES


def test_svd_applies_what_it_builds() -> None:
    svd = FACTORIZATIONS["svd"](24, 40, 5, FRAMES["circuit"].spec, scaling=3.0)
    drawn = {part: torch.Generator().manual_seed(seed) for seed, part in enumerate(("u", "v", "lambda"))}
    start = initial(svd, generators=drawn)
    assert {part: value.numel() for part, value in start.items()} == sizes(svd)
    assert not start["lambda"].any() and start["u"].min() >= 0 and 3 < start["u"].max() < 6.2832
    lam, x = torch.randn(5), torch.randn(2, 3, 40)
    made = make(svd, start | {"lambda": lam})
    u, v = svd.u.columns(start["u"]), svd.v.columns(start["v"])
    assert all(torch.equal(made[part], wanted) for part, wanted in (("u", u), ("v", v), ("lambda", lam)))
    delta = svd.delta(made)
    close(delta, 3.0 * u @ torch.diag(lam) @ v.T, 5)
    close(svd.forward(x, made), x @ delta.T, 40**0.5 + 5)
    a, b = svd.lora(made)
    assert (a.shape, b.shape) == ((5, 40), (24, 5))
    close(b @ a, delta, 5)
    close(torch.linalg.svdvals(delta)[:5], (3 * lam).abs().sort(descending=True).values, 40**0.5 + 5)
    with pytest.raises(ValueError, match="init is one of"):
        initial(svd, "ones")
    with pytest.raises(ValueError, match="same number of columns"):
        SVD(svd.u, FRAMES["circuit"].spec(40, 4))
