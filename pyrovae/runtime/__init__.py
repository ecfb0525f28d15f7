"""Services of the process: random streams, precision, memory, ranks, progress, atomic files; parts as JSON."""

from pyrovae.runtime.atomic_files import locked, replace_file, write_new

__all__ = ["locked", "replace_file", "write_new"]
