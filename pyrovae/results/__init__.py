"""What the package reports: frozen records that carry their meaning, print as tables and go to JSON and back.

Every value is an estimate in nats per datum, larger being better, with two standard errors: over the data, which
contains the Monte Carlo noise, and over Monte Carlo draws at fixed data. They answer different questions and are never
added.
"""

from pyrovae.results.comparison import Block, Comparison, Row, compare
from pyrovae.results.estimate import Estimate, mean_and_error
from pyrovae.results.evaluation import Evaluation, bits_per_dimension
from pyrovae.results.history import Epoch, History
from pyrovae.results.particles import Particles
from pyrovae.results.table import Number, Table, Tabled

__all__ = [
    "Block",
    "Comparison",
    "Epoch",
    "Estimate",
    "Evaluation",
    "History",
    "Number",
    "Particles",
    "Row",
    "Table",
    "Tabled",
    "bits_per_dimension",
    "compare",
    "mean_and_error",
]
