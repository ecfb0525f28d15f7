"""Files that are written whole or not at all."""

from pyrovae.storage.atomic import open_regular, replacing, write_new

__all__ = ["open_regular", "replacing", "write_new"]
