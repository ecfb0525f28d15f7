"""Services of the process: random streams, precision, memory, ranks, progress, atomic files; parts as JSON."""

from pyrovae.runtime.atomic_files import open_regular, replacing, write_new
from pyrovae.runtime.lock import locked

__all__ = ["locked", "open_regular", "replacing", "write_new"]
