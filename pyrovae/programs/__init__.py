"""Contract with a Pyro model and guide: the structure that their first runs show, and the checks of it.

One plate must hold all latent and observed sites; a datum is one row of it. Either the plate is as long as the data
(``plate("data", len(x))``, with or without a larger full size, or ``plate("data")`` if every site has a batch axis for
it), or the programs draw their own rows from all data (``plate("data", N, subsample_size=B) as i: x[i]``); the rows are
then chosen for them. Plates inside the data plate are summed over.

The guide draws the model's latent variables and no others. Its observed sites and `pyro.factor` terms reach no bound;
factors are part of the training loss, differentiated as they are.
"""

from pyrovae.programs.inspection import inspected_programs
from pyrovae.programs.link_warnings import warn_of_links
from pyrovae.programs.model_guide import (
    PARTICLE_PLATE,
    ChosenRows,
    Latent,
    ModelGuide,
    Program,
    replace_draws,
    run,
    take_rows,
)
from pyrovae.programs.modules import find_modules
from pyrovae.programs.site_checks import Unnormalized, find_nan, run_validated, unmasked, unwrap_own_error

__all__ = [
    "PARTICLE_PLATE",
    "Unnormalized",
    "ChosenRows",
    "Latent",
    "ModelGuide",
    "Program",
    "find_modules",
    "inspected_programs",
    "find_nan",
    "unmasked",
    "replace_draws",
    "run",
    "run_validated",
    "take_rows",
    "unwrap_own_error",
    "warn_of_links",
]
