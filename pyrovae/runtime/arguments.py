"""Check of integer arguments."""

from __future__ import annotations


def require_integer(value: object, *, name: str, least: int = 1) -> None:
    """Require an integer of at least ``least``.

    Args:
        value: of the argument.
        name: of the argument, which begins the error.
        least: smallest allowed value.

    Raises:
        ValueError: with the name, the smallest value and the received one.

    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} is a whole number of at least {least}, but received {value!r}")
