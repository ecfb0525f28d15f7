"""Tracing a function of tensors once, compiling the graph and replaying it without Python.

Python control flow and Python numbers are frozen when the function is traced; values of tensors are read at each
replay.
"""

from pyrovae.compile.inductor import has_compiler
from pyrovae.compile.trace import NotRecordableError, Recording, is_recording, layout_of, record

__all__ = ["NotRecordableError", "Recording", "has_compiler", "is_recording", "layout_of", "record"]
