"""A function with a gradient of its own."""

from __future__ import annotations

import inspect
from typing import Any

import torch


class Function(torch.autograd.Function):
    """`torch.autograd.Function` whose forward is looked at once: torch asks for its signature at every call, which
    takes as long as everything else that a call costs.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        """Note the signature where `inspect.signature` looks first."""
        super().__init_subclass__(**options)
        if "forward" in vars(cls):
            cls.forward.__signature__ = inspect.signature(cls.forward)  # type: ignore[attr-defined]
