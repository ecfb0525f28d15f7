"""Whole numbers as options: one check, and one sentence for those that are none."""

from __future__ import annotations


def require_integer(value: object, *, name: str, least: int = 1) -> None:
    """Refuse what is not a whole number of at least so much.

    Args:
        value: of the option.
        name: of the option, the beginning of the sentence.
        least: that is allowed.

    Raises:
        ValueError: with the name, the least and what was received.

    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} is a whole number of at least {least}, but received {value!r}")
