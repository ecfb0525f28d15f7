"""Texts of errors."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """Return the class of an error and the first line of its text."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
