"""Functions of tensors, recorded once as graphs of torch's operations and replayed without Python's part in them.

What a function does in Python is done while it is recorded, never again: numbers, branches and loops stay as they were.
What it reads from tensors is read at every replay.
"""

from pyrovae.compile.inductor import has_compiler
from pyrovae.compile.trace import NotRecordableError, Recording, is_recording, layout_of, record

__all__ = ["NotRecordableError", "Recording", "has_compiler", "is_recording", "layout_of", "record"]
