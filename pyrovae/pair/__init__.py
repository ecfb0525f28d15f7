"""The contract with a Pyro model/guide pair: what is read off one run of it, and what is refused.

One plate must hold all latent and observed sites; a datum is one row of it. Its length is that of the data that the
pair is called with (``plate("data", len(x))``, with or without a larger full size), or the pair draws its own rows from
the whole data (``plate("data", N, subsample_size=B) as i: x[i]``), and then the rows are chosen for it. Plates inside
the data plate are summed over.
"""

from pyrovae.pair.checked import nan_at, run_checked, told_by_us
from pyrovae.pair.inspection import inspect_pair, run
from pyrovae.pair.links import warn_of_links
from pyrovae.pair.modules import find_modules
from pyrovae.pair.structure import PARTICLE_PLATE, ChosenRows, Latent, Pair, Program, take_rows
from pyrovae.pair.support import Unnormalized

__all__ = [
    "PARTICLE_PLATE",
    "Unnormalized",
    "ChosenRows",
    "Latent",
    "Pair",
    "Program",
    "find_modules",
    "inspect_pair",
    "nan_at",
    "run",
    "run_checked",
    "take_rows",
    "told_by_us",
    "warn_of_links",
]
