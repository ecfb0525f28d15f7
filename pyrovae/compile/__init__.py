"""Tracing a function of tensors once, compiling the graph and replaying it without Python.

Python control flow and Python numbers are frozen when the function is traced; values of tensors are read at each
replay.
"""

from typing import Literal, get_args

from pyrovae.compile.inductor import has_compiler
from pyrovae.compile.trace import NotRecordableError, Recording, is_recording, layout_of, record

Engine = Literal["auto", "eager", "captured"]  # how a step or a batch of an evaluation runs
ENGINES = get_args(Engine)

__all__ = [
    "ENGINES",
    "Engine",
    "NotRecordableError",
    "Recording",
    "has_compiler",
    "is_recording",
    "layout_of",
    "record",
]
