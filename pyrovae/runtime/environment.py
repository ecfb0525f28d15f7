"""Devices of this machine, and versions of the libraries."""

from __future__ import annotations

import importlib.metadata
import platform

import torch


def choose_device(name: str) -> torch.device:
    """Return the device of that name, "auto" being CUDA if there is one.

    Raises:
        ValueError: if there is no such device here.

    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError("it must be of type cpu, cuda or mps")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"the device {name!r} cannot be used here ({reason}); choose auto or cpu") from None
    return device


def versions() -> dict[str, str]:
    """Return the versions of pyrovae, Python and the libraries that numbers may depend on."""
    libraries = {name: importlib.metadata.version(name) for name in ("torch", "pyro-ppl", "numpy")}
    return {"pyrovae": _own_version(), "python": platform.python_version(), **libraries}


def _own_version() -> str:
    try:
        return importlib.metadata.version("pyrovae")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
