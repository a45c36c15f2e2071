"""The kernels of ``fused.py``, in Triton; imported only where Triton runs.

A side of the cut is a tile (rows of the side, a block of its columns) in registers. A gate on one wire mixes the rows
that differ in that wire's digit, a butterfly: ``tl.gather`` brings the other rows. Sides are 0, left, and 1, right;
``path`` numbers the Kronecker products, one choice of a term a level. The arguments are described in ``fused.Plan``.
"""

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def _rotation(angle, turn, SLOPE: tl.constexpr):
    """The entries of ``C0 + C1 cos(x t) + C2 sin(x t)``, or of its derivative by t."""
    scale = tl.load(turn + 12)
    t = scale * tl.load(angle)
    one, cos, sin = 1.0, tl.cos(t), tl.sin(t)
    if SLOPE:
        one, cos, sin = 0.0, -scale * sin, scale * cos
    m00 = one * tl.load(turn) + cos * tl.load(turn + 4) + sin * tl.load(turn + 8)
    m01 = one * tl.load(turn + 1) + cos * tl.load(turn + 5) + sin * tl.load(turn + 9)
    m10 = one * tl.load(turn + 2) + cos * tl.load(turn + 6) + sin * tl.load(turn + 10)
    m11 = one * tl.load(turn + 3) + cos * tl.load(turn + 7) + sin * tl.load(turn + 11)
    return m00, m01, m10, m11


@triton.jit
@no_type_check
def _rows(x, source):
    """x[source[i], :]."""
    return tl.gather(x, tl.broadcast_to(source[:, None], x.shape), 0)


@triton.jit
@no_type_check
def _on_qubit(x, m00, m01, m10, m11, stride, n):
    """A matrix on the digit of this stride; rows from n on, which fill up the tile, stay among themselves."""
    row = tl.arange(0, x.shape[0])
    digit = (row // stride) % 2
    other = tl.where(row < n, row + (1 - 2 * digit) * stride, row)
    return tl.where(digit == 0, m00, m11)[:, None] * x + tl.where(digit == 0, m01, m10)[:, None] * _rows(x, other)


@triton.jit
@no_type_check
def _on_odd(x, matrix, stride, d, n, ADJOINT: tl.constexpr):
    """A d x d matrix, or its transpose, on the digit of this stride."""
    row = tl.arange(0, x.shape[0])
    digit = (row // stride) % d
    total = tl.zeros_like(x)
    for j in range(d):
        entry = j * d + digit if ADJOINT else digit * d + j
        source = tl.where(row < n, row + (j - digit) * stride, row)
        total += tl.load(matrix + entry, mask=row < n, other=0.0)[:, None] * _rows(x, source)
    return total


@triton.jit
@no_type_check
def _permuted(x, chosen, gathers, weights, side, ADJOINT: tl.constexpr):
    """The signed permutation that a path takes behind a level, on one side, or its adjoint."""
    number = tl.load(chosen)
    if number >= 0:
        at = ((number * 2 + side) * 2 + ADJOINT) * x.shape[0] + tl.arange(0, x.shape[0])
        x = tl.load(weights + at)[:, None] * _rows(x, tl.load(gathers + at))
    return x


@triton.jit
@no_type_check
def _columns(
    angles, odd, wires, places, turns, chosen, gathers, weights, side, first, last, n,
    WIRES: tl.constexpr, ODD: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Columns from ``first`` on of a side, behind the matrices of level ``last`` and before its permutation."""
    column = first + tl.arange(0, COLS)
    x = tl.where(tl.arange(0, ROWS)[:, None] == column[None, :], 1.0, 0.0)
    for level in range(last + 1):
        for w in range(WIRES):
            at = (level * 2 + side) * WIRES + w
            place = tl.load(places + at)
            if place >= 0:
                stride = tl.load(wires + (side * WIRES + w) * 2)
                d = tl.load(wires + (side * WIRES + w) * 2 + 1)
                if ODD:
                    if d > 2:
                        x = _on_odd(x, odd + place, stride, d, n, False)
                    else:
                        m00, m01, m10, m11 = _rotation(angles + place, turns + at * 16, False)
                        x = _on_qubit(x, m00, m01, m10, m11, stride, n)
                else:
                    m00, m01, m10, m11 = _rotation(angles + place, turns + at * 16, False)
                    x = _on_qubit(x, m00, m01, m10, m11, stride, n)
        if level < last:
            x = _permuted(x, chosen + level, gathers, weights, side, False)
    return x


@triton.jit
@no_type_check
def halves(
    angles, odd, wires, places, turns, paths, gathers, weights, out, n_angles, n_odd, levels, terms,
    n_left, k_left, n_right, k_right, blocks_left, blocks_right,
    WIRES: tl.constexpr, ODD: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """A block of columns of one side of one product: ``out`` (F, terms, n_left k_left + n_right k_right)."""
    blocks = blocks_left + blocks_right
    f, path = tl.program_id(0) // (terms * blocks), tl.program_id(0) // blocks % terms
    block = tl.program_id(0) % blocks
    side = (block >= blocks_left).to(tl.int32)
    first = (block - side * blocks_left) * COLS
    n, k = n_left + side * (n_right - n_left), k_left + side * (k_right - k_left)
    f = f.to(tl.int64)
    chosen = paths + path * levels
    x = _columns(
        angles + f * n_angles, odd + f * n_odd, wires, places, turns, chosen, gathers, weights, side, first,
        levels - 1, n, WIRES, ODD, ROWS, COLS,
    )  # fmt: skip
    x = _permuted(x, chosen + levels - 1, gathers, weights, side, False)
    row, column = tl.arange(0, ROWS)[:, None], first + tl.arange(0, COLS)[None, :]
    start = (f * terms + path) * (n_left * k_left + n_right * k_right) + side * n_left * k_left
    tl.store(out + start + row * k + column, x, mask=(row < n) & (column < k))


@triton.jit
@no_type_check
def _place(left, right, n_left, k_left, n_right, k_right, k, ONE: tl.constexpr):
    """The place in the result of an entry of the left half times one of the right, and whether there is one."""
    there = (left < n_left * k_left)[:, None] & (right < n_right * k_right)[None, :]
    if ONE:  # the left half has one column, and the result is written as it stands
        at = left[:, None] * (n_right * k) + right[None, :]
    else:
        column = (left % k_left * n_right)[:, None] + (right % k_right)[None, :]
        at = ((left // k_left * n_right)[:, None] + (right // k_right)[None, :]) * k + column
        there = there & (column < k)
    return at, there


@triton.jit
@no_type_check
def join(
    halves, out, size, terms, n_left, k_left, n_right, k_right, k,
    ONE: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr,
):  # fmt: skip
    """A tile of the sum of the products of the halves: ``out`` (F, N, k), ``size`` = N k."""
    sl, sr = n_left * k_left, n_right * k_right
    across, down = tl.cdiv(sr, RIGHT), tl.cdiv(sl, LEFT)
    f = (tl.program_id(0) // (across * down)).to(tl.int64)
    left = tl.program_id(0) // across % down * LEFT + tl.arange(0, LEFT)
    right = tl.program_id(0) % across * RIGHT + tl.arange(0, RIGHT)
    total = tl.zeros((LEFT, RIGHT), tl.float32)
    for path in range(terms):
        start = halves + (f * terms + path) * (sl + sr)
        a = tl.load(start + left, mask=left < sl, other=0.0)
        total += a[:, None] * tl.load(start + sl + right, mask=right < sr, other=0.0)[None, :]
    at, there = _place(left, right, n_left, k_left, n_right, k_right, k, ONE)
    tl.store(out + f * size + at, total, mask=there)


@triton.jit
@no_type_check
def part(
    g, halves, out, size, terms, n_left, k_left, n_right, k_right, k,
    ONE: tl.constexpr, TERMS: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr,
):  # fmt: skip
    """From a strip of the gradient g (F, N, k): that of the right halves there, and what it adds to that of the left.

    ``out`` is (F, strips terms n_left k_left + terms n_right k_right). g is read once for each ``TERMS`` products.
    """
    sl, sr = n_left * k_left, n_right * k_right
    across, chunks = tl.cdiv(sr, RIGHT), tl.cdiv(terms, TERMS)
    f = (tl.program_id(0) // (across * chunks)).to(tl.int64)
    strip = tl.program_id(0) // chunks % across
    path = tl.program_id(0) % chunks * TERMS + tl.arange(0, TERMS)
    right = strip * RIGHT + tl.arange(0, RIGHT)
    own = halves + f * terms * (sl + sr) + (path * (sl + sr))[:, None]
    to_left = out + f * ((across * sl + sr) * terms) + ((strip * terms + path) * sl)[:, None]
    to_right = out + f * ((across * sl + sr) * terms) + across * terms * sl + (path * sr)[:, None] + right[None, :]
    here = (path < terms)[:, None] & (right < sr)[None, :]
    b = tl.load(own + sl + right[None, :], mask=here, other=0.0)
    total = tl.zeros((TERMS, RIGHT), tl.float32)
    for start in range(0, sl, LEFT):
        left = start + tl.arange(0, LEFT)
        at, there = _place(left, right, n_left, k_left, n_right, k_right, k, ONE)
        tile = tl.load(g + f * size + at, mask=there, other=0.0)
        mine = (path < terms)[:, None] & (left < sl)[None, :]
        a = tl.load(own + left[None, :], mask=mine, other=0.0)
        total += tl.sum(a[:, :, None] * tile[None, :, :], 1)
        tl.store(to_left + left[None, :], tl.sum(b[:, None, :] * tile[None, :, :], 2), mask=mine)
    tl.store(to_right, total, mask=here)


@triton.jit
@no_type_check
def slopes(
    angles, odd, wires, places, turns, paths, gathers, weights, slots, g, of_angles, of_odd,
    n_angles, n_odd, n_slots, levels, terms, strips, n_left, k_left, n_right, k_right, blocks_left, blocks_right,
    WIRES: tl.constexpr, ODD: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """What a block of columns of one side of one product adds to the gradients.

    ``of_angles`` is (F, terms max(blocks), n_slots), ``of_odd`` likewise with n_odd. The matrices of a level are undone
    by their transposes; what stood before its permutation, which need not be invertible alone, is made again.
    """
    blocks = blocks_left + blocks_right
    f, path = tl.program_id(0) // (terms * blocks), tl.program_id(0) // blocks % terms
    block = tl.program_id(0) % blocks
    side = (block >= blocks_left).to(tl.int32)
    block -= side * blocks_left
    first = block * COLS
    n, k = n_left + side * (n_right - n_left), k_left + side * (k_right - k_left)
    f = f.to(tl.int64)
    chosen = paths + path * levels
    program = (f * terms + path) * tl.maximum(blocks_left, blocks_right) + block
    of_angles += program * n_slots
    of_odd += program * n_odd
    angles += f * n_angles
    odd += f * n_odd

    row, column = tl.arange(0, ROWS)[:, None], first + tl.arange(0, COLS)[None, :]
    there = (row < n) & (column < k)
    g += f * ((strips * n_left * k_left + n_right * k_right) * terms)
    g += side * strips * terms * n_left * k_left + path * n * k + row * k + column
    slope = tl.load(g, mask=there, other=0.0)
    for strip in range(1, tl.where(side == 0, strips, 1)):
        slope += tl.load(g + strip * terms * n_left * k_left, mask=there, other=0.0)

    digits = tl.arange(0, ROWS)
    for back in range(levels):
        level = levels - 1 - back
        x = _columns(
            angles, odd, wires, places, turns, chosen, gathers, weights, side, first, level, n, WIRES, ODD, ROWS, COLS
        )
        slope = _permuted(slope, chosen + level, gathers, weights, side, True)
        for w in range(WIRES):
            at = (level * 2 + side) * WIRES + w
            place = tl.load(places + at)
            if place >= 0:
                stride = tl.load(wires + (side * WIRES + w) * 2)
                d = tl.load(wires + (side * WIRES + w) * 2 + 1)
                if ODD:
                    if d > 2:
                        x = _on_odd(x, odd + place, stride, d, n, True)
                        digit = (digits // stride) % d
                        for j in range(d):
                            source = tl.where(digits < n, digits + (j - digit) * stride, digits)
                            own = tl.sum(slope * _rows(x, source), 1)
                            entry = tl.where(digits[:, None] == digit[None, :], own[None, :], 0.0)
                            tl.store(of_odd + place + digits * d + j, tl.sum(entry, 1), mask=digits < d)
                        slope = _on_odd(slope, odd + place, stride, d, n, True)
                    else:
                        x, slope = _undone(x, slope, angles, turns, slots, of_angles, place, at, stride, n)
                else:
                    x, slope = _undone(x, slope, angles, turns, slots, of_angles, place, at, stride, n)


@triton.jit
@no_type_check
def _undone(x, slope, angles, turns, slots, of_angles, place, at, stride, n):
    """A rotation taken back from x and its gradient; the gradient of its angle is stored."""
    m00, m01, m10, m11 = _rotation(angles + place, turns + at * 16, False)
    x = _on_qubit(x, m00, m10, m01, m11, stride, n)
    slot = tl.load(slots + at)
    if slot >= 0:
        d00, d01, d10, d11 = _rotation(angles + place, turns + at * 16, True)
        tl.store(of_angles + slot, tl.sum(tl.sum(slope * _on_qubit(x, d00, d01, d10, d11, stride, n), 1), 0))
    return x, _on_qubit(slope, m00, m10, m01, m11, stride, n)
