"""What the package reports: frozen records that carry their meaning, print as tables and go to JSON and back.

Every value is an estimate in nats per datum, larger being better, with two standard errors: over the data, which
contains the Monte Carlo noise, and over Monte Carlo draws at fixed data. They answer different questions and are never
added.
"""

from pyrovae.results.annealing import Annealing, AnnealingSettings, PairedDifference, Sandwich
from pyrovae.results.block import Block, Row
from pyrovae.results.checked import Checked
from pyrovae.results.comparison import Comparison, compare
from pyrovae.results.difference import Difference
from pyrovae.results.estimate import Estimate, mean_and_error
from pyrovae.results.evaluation import Evaluation, bits_per_dimension
from pyrovae.results.gaps import Gaps
from pyrovae.results.history import Epoch, History
from pyrovae.results.latents import Latents
from pyrovae.results.observed import Observed
from pyrovae.results.particles import Particles
from pyrovae.results.table import Interval, Number, Table, Tabled
from pyrovae.results.weights import Weights

__all__ = [
    "Annealing",
    "AnnealingSettings",
    "Block",
    "Checked",
    "Comparison",
    "Difference",
    "Epoch",
    "Estimate",
    "Evaluation",
    "Gaps",
    "History",
    "Interval",
    "Latents",
    "Number",
    "Observed",
    "PairedDifference",
    "Particles",
    "Row",
    "Sandwich",
    "Table",
    "Tabled",
    "Weights",
    "bits_per_dimension",
    "compare",
    "mean_and_error",
]
