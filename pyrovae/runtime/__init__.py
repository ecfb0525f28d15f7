"""Services of the process: random streams, precision, memory, ranks, progress, atomic files; parts as JSON."""

from pyrovae.runtime.atomic_files import locked, open_regular, replacing, write_new

__all__ = ["locked", "open_regular", "replacing", "write_new"]
