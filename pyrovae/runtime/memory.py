"""An estimate of what a call will need, before it is taken; and how freed memory is kept at hand."""

from __future__ import annotations

import psutil
import torch


def available(device: torch.device | str = "cpu") -> int:
    """Return the bytes that can still be taken on a device; on MPS, which shares it, the machine's memory."""
    device = torch.device(device)
    if device.type == "cuda":  # torch keeps what was freed, for what is asked for next
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    return int(psutil.virtual_memory().available)


def require(size: float, *, what: str, hint: str, device: torch.device | str = "cpu") -> None:
    """Refuse in words what cannot fit.

    Args:
        size: the estimate, in bytes.
        what: the thing that needs them, as the subject of the sentence.
        hint: what to change, as an imperative.
        device: where they are needed.

    Raises:
        ValueError: if more is needed than there is.

    """
    free = available(device)
    if size > free:
        raise ValueError(
            f"{what} needs about {in_words(size)} on {torch.device(device)}, but {in_words(free)} are free; {hint}"
        )


def keep_freed() -> None:
    """Let glibc keep some 60 MiB of what is freed for whatever is asked for next.

    It gives back at once what is larger than anything it has seen freed before, and large tensors that come and go then
    cost a page fault for every 4 KiB of theirs: up to a third of the time of scoring particles. Of what it has seen it
    takes note: here of 31 MiB that nobody touches. Other libraries of C take none.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


def in_words(size: float) -> str:
    """Return a number of bytes as people say it, such as 1.5 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} PiB"
