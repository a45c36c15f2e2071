"""The one check that every layer makes of what it is given."""


def whole(name: str, value: object, low: int, high: int | None = None) -> int:
    """``value``; raises ValueError unless it is a whole number from ``low`` to ``high`` (None: any)."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        allowed = f">= {low}" if high is None else f"{low} to {high}"
        raise ValueError(f"{name} is a whole number {allowed}, got {value!r}")
    return value
