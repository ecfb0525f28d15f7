"""A function with a gradient of its own."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import torch


class Function(torch.autograd.Function):
    """`torch.autograd.Function` whose forward takes its arguments by position, without defaults.

    torch looks at the signature and binds the arguments at every call, which takes as long as everything else that a
    call costs. Here the signature is looked at once, and arguments are left as they are.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        """Note the signature where `inspect.signature` looks first."""
        super().__init_subclass__(**options)
        if "forward" in vars(cls):
            parameters = inspect.signature(cls.forward).parameters.values()
            cls.forward.__signature__ = _ByPosition(list(parameters))  # type: ignore[attr-defined]


class _Bound(NamedTuple):
    """What binding returns."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def apply_defaults(self) -> None:
        """Do nothing: there are none."""


class _ByPosition(inspect.Signature):
    """A signature that binds arguments as they come."""

    def bind(self, *args: Any, **kwargs: Any) -> Any:
        """Return the arguments."""
        return _Bound(args, kwargs)
