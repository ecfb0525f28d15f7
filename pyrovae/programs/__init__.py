"""The contract with a Pyro model/guide pair: what is read off one run of it, and what is refused.

One plate must hold all latent and observed sites; a datum is one row of it. Its length is that of the data that the
pair is called with (``plate("data", len(x))``, with or without a larger full size), or the pair draws its own rows from
the whole data (``plate("data", N, subsample_size=B) as i: x[i]``), and then the rows are chosen for it. Plates inside
the data plate are summed over.
"""

from pyrovae.programs.inspection import inspect_programs, run
from pyrovae.programs.link_warnings import warn_of_links
from pyrovae.programs.model_guide import PARTICLE_PLATE, ChosenRows, Latent, ModelGuide, Program, take_rows
from pyrovae.programs.modules import find_modules
from pyrovae.programs.support import Unnormalized
from pyrovae.programs.validation import nan_at, run_validated, unwrap_own_error

__all__ = [
    "PARTICLE_PLATE",
    "Unnormalized",
    "ChosenRows",
    "Latent",
    "ModelGuide",
    "Program",
    "find_modules",
    "inspect_programs",
    "nan_at",
    "run",
    "run_validated",
    "take_rows",
    "unwrap_own_error",
    "warn_of_links",
]
