"""Contract with a Pyro model and guide: the structure that their first runs show, and the checks of it.

One plate must hold all latent and observed sites; a datum is one row of it. The plate is as long as the data that the
programs are given: ``plate("data", len(x))``, ``plate("data", N, subsample_size=len(x))``, or ``plate("data")`` if
every site has a batch axis for it. A plate that draws other rows is refused. Plates inside the data plate are summed
over.

The guide draws the model's latent variables and no others. Its observed sites and `pyro.factor` terms reach no bound;
factors are part of the training loss, differentiated as they are.
"""

from pyrovae.programs.inspection import NO_PARTICLES, inspected_programs
from pyrovae.programs.link_warnings import warn_of_links
from pyrovae.programs.model_guide import (
    PARTICLE_PLATE,
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
    "NO_PARTICLES",
    "PARTICLE_PLATE",
    "Unnormalized",
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
