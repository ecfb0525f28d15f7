"""Results: frozen records that print as tables and convert to JSON and back.

Every value is an estimate in nats per datum, larger being better, with two standard errors: over the data, which
contains the Monte Carlo noise, and over Monte Carlo draws at fixed data. They answer different questions and are never
added.
"""

from pyrovae.results.annealed_bounds import Annealing, AnnealingSettings, Sandwich
from pyrovae.results.comparison import Comparison, compare
from pyrovae.results.comparison_table import ComparisonTable, Row
from pyrovae.results.estimates import Difference, Estimate, PairedDifference, certified_margin, mean_and_error
from pyrovae.results.evaluation_record import CheckResults, Evaluation, bits_per_dimension
from pyrovae.results.history import Epoch, History
from pyrovae.results.latent_record import Latents, Particles
from pyrovae.results.observed_data import ObservedData
from pyrovae.results.tables import Interval, Number, Table, Tabled
from pyrovae.results.tightness import Gaps, Weights

__all__ = [
    "Annealing",
    "AnnealingSettings",
    "CheckResults",
    "Comparison",
    "ComparisonTable",
    "Difference",
    "Epoch",
    "Estimate",
    "Evaluation",
    "Gaps",
    "History",
    "Interval",
    "Latents",
    "Number",
    "ObservedData",
    "PairedDifference",
    "Particles",
    "Row",
    "Sandwich",
    "Table",
    "Tabled",
    "Weights",
    "bits_per_dimension",
    "certified_margin",
    "compare",
    "mean_and_error",
]
