"""The axes that a width is split into for a tensor network: 768 as 32 x 24, 4096 as 16 x 8 x 8 x 4."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from math import isqrt, log, prod
from typing import Any

from qcircuit_peft.checks import whole_number


@lru_cache(maxsize=4096)
def _divisors(n: int) -> tuple[int, ...]:
    small = [d for d in range(1, isqrt(n) + 1) if n % d == 0]
    return tuple(sorted({*small, *(n // d for d in small)}))


def _products(n: int, count: int, least: int, most: int) -> Iterator[tuple[int, ...]]:
    """``n`` as a product of ``count`` factors from ``least`` to ``most``, largest first; balanced ones come first."""
    if count == 1:
        if least <= n <= most:
            yield (n,)
        return
    for d in _divisors(n):
        if least <= d <= most:
            yield from ((d, *rest) for rest in _products(n // d, count - 1, least, d))


@lru_cache(maxsize=4096)
def balanced(n: int, order: int, least: int = 2) -> tuple[int, ...]:
    """``n`` as a product of ``order`` factors of at least ``least``, the largest as small as can be and first.

    Where there is no such product it has fewer factors, (n,) in the end.

    >>> balanced(768, 2), balanced(4096, 4), balanced(768, 2, least=30), balanced(97, 2)
    ((32, 24), (8, 8, 8, 8), (768,), (97,))
    """
    for count in range(order, 1, -1):
        found = next(_products(n, count, least, n), None)
        if found is not None:
            return found
    return (n,)


def nearest(n: int, axes: Sequence[int]) -> tuple[int, ...]:
    """The product for ``n`` whose factors are nearest to ``axes`` by ratio, as many and in the same order if possible.

    >>> nearest(768, [16, 50]), nearest(768, [3, 16, 16, 2])
    ((16, 48), (3, 16, 8, 2))
    """
    for count in range(len(axes), 1, -1):
        wanted = sorted(axes, reverse=True)[:count]
        away = {
            product: sum(abs(log(a / b)) for a, b in zip(product, wanted, strict=True))
            for product in _products(n, count, 2, n)
        }
        if away:
            best = min(away, key=lambda product: away[product])
            places = sorted(range(len(axes)), key=lambda i: -axes[i])[:count]
            return tuple(a for _, a in sorted(zip(places, best, strict=True)))
    return (n,)


def given(name: str, widths: Sequence[int], axes: Any) -> tuple[int, ...]:
    """``axes`` as a tuple; raises ValueError unless they are whole numbers whose product is one of ``widths``."""
    if not isinstance(axes, list | tuple) or not axes:
        raise ValueError(f"{name}: the axes of a width are a list of whole numbers, got {axes!r}")
    for axis in axes:
        whole_number(f"{name}: an axis", axis, 1, 1 << 31)
    if prod(axes) not in widths:
        raise ValueError(
            f"{name}: axes multiply to the width, but {_times(axes)} is {prod(axes)} and the width {widths[0]}; "
            f"nearest is {_times(nearest(widths[0], axes))}"
        )
    return tuple(axes)


def _times(axes: Sequence[int]) -> str:
    return " x ".join(map(str, axes))


def split(name: str, n: int, side: int, axes: Any, order: int, least: int = 2) -> tuple[int, ...]:
    """The axes of width ``n``, of the outputs for ``side`` 0 and of the inputs for 1.

    ``axes`` is None for ``balanced`` ones, a pair of lists for outputs and inputs, or a table from a width to a list,
    in which widths that are not named get balanced axes. Raises ValueError if they do not multiply to the width.

    >>> split("cp", 768, 0, None, 2), split("cp", 768, 1, [[12], [48, 16]], 2), split("cp", 64, 1, {"64": [4, 16]}, 2)
    ((32, 24), (48, 16), (4, 16))
    """
    whole_number(f"{name}: order", order, 1, 12)
    if isinstance(axes, dict):
        axes = {str(width): value for width, value in axes.items()}
        return given(name, (n,), axes[str(n)]) if str(n) in axes else balanced(n, order, least)
    if axes is None:
        return balanced(n, order, least)
    if not isinstance(axes, list | tuple) or len(axes) != 2:
        raise ValueError(
            f"{name}: axes are a pair of lists, for outputs and inputs, or a table from widths to lists, got {axes!r}"
        )
    return given(name, (n,), axes[side])
