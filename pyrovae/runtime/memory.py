"""Memory: checks before an allocation, and reuse of freed memory."""

from __future__ import annotations

import psutil
import torch


def available(device: torch.device | str = "cpu") -> int:
    """Return the bytes that are free on a device; for MPS, which shares it, of the machine's memory."""
    device = torch.device(device)
    if device.type == "cuda":  # torch caches freed memory for its next allocations
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    return int(psutil.virtual_memory().available)


def require(size: float, *, what: str, hint: str, device: torch.device | str = "cpu") -> None:
    """Require enough free memory.

    Args:
        size: the estimate, in bytes.
        what: the subject of the error, which needs the memory.
        hint: the remedy, as an imperative.
        device: of the memory.

    Raises:
        ValueError: if the estimate exceeds the free memory.

    """
    free = available(device)
    if size > free:
        raise ValueError(
            f"{what} needs about {in_words(size)} on {torch.device(device)}, but {in_words(free)} are free; {hint}"
        )


def keep_freed() -> None:
    """Make glibc keep about 60 MiB of freed memory for the next allocations.

    glibc returns an allocation to the system if it is larger than all that were freed before. Temporary large tensors
    then cost a page fault per 4 KiB, up to a third of the time of scoring particles. Freeing 31 MiB raises that
    threshold. Other C libraries are not affected.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


def in_words(size: float) -> str:
    """Return a number of bytes with a unit, such as 1.5 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} PiB"
