"""Files that are written whole or not at all, and locks between processes."""

from pyrovae.storage.atomic import open_regular, replacing, write_new
from pyrovae.storage.lock import locked

__all__ = ["locked", "open_regular", "replacing", "write_new"]
