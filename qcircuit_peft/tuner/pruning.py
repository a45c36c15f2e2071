"""A pruned parameter as bytes: its dtype, a bit for each of its groups, and the entries of those that are not all 0.

The first byte numbers the dtype in ``DTYPES``. Bits follow, the first group in the highest bit, unused ones 0; then the
entries that are kept, in their order, little-endian: all that are in no group, and those of the groups marked.
"""

import numpy as np
import torch
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def pack(x: Tensor, owner: Tensor) -> Tensor:
    """A vector as bytes, or itself if those were not fewer; ``owner`` has the group of every entry, -1 for none.

    >>> pack(torch.tensor([1.0, 0.0, 0.0, 2.0]), torch.tensor([-1, 0, 0, 1]))
    tensor([  2,  64,   0,   0, 128,  63,   0,   0,   0,  64], dtype=torch.uint8)
    """
    flat = x.detach().cpu()
    marks = torch.zeros(_count(owner) + 1, dtype=torch.bool).index_fill_(0, owner[flat != 0] + 1, True)[1:]
    head = torch.tensor([DTYPES.index(x.dtype)], dtype=torch.uint8)
    bits = torch.from_numpy(np.packbits(marks.numpy()))
    data = torch.cat([head, bits, flat[_kept(marks, owner)].view(torch.uint8)])
    return data if data.nbytes < x.nbytes else x


def unpack(data: Tensor, owner: Tensor) -> Tensor:
    """The vector that bytes stand for; raises ValueError unless they are exactly one of this length and these groups.

    >>> unpack(torch.tensor([2, 64, 0, 0, 128, 63, 0, 0, 0, 64], dtype=torch.uint8), torch.tensor([-1, 0, 0, 1]))
    tensor([1., 0., 0., 2.])
    """
    count = _count(owner)
    start = 1 + -(-count // 8)
    if data.dim() != 1 or len(data) < start or int(data[0]) >= len(DTYPES):
        raise ValueError(f"a pruned parameter is a vector of {start} bytes or more, the first below {len(DTYPES)}")
    data = data.cpu()
    dtype = DTYPES[int(data[0])]
    marks = torch.from_numpy(np.unpackbits(data[1:start].numpy())).bool()
    if marks[count:].any():
        raise ValueError(f"a pruned parameter of {count} groups marks others")
    kept = _kept(marks[:count], owner)
    wanted = int(kept.sum()) * dtype.itemsize
    if len(data) - start != wanted:
        raise ValueError(f"a pruned parameter has {wanted} bytes of entries here, got {len(data) - start}")
    found = torch.zeros(len(owner), dtype=dtype)
    found[kept] = data[start:].clone().view(dtype)
    if not found.isfinite().all():
        raise ValueError("a pruned parameter has entries that are NaN or infinite")
    return found


def _count(owner: Tensor) -> int:
    return max(owner.tolist(), default=-1) + 1


def _kept(marks: Tensor, owner: Tensor) -> Tensor:
    """Which entries are stored: -1, the last, stands for those in no group."""
    return torch.cat([marks, torch.tensor([True])])[owner]
