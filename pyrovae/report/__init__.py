"""Pictures of a run, each a function that returns a matplotlib figure.

- `training_curves`: the ELBO and its terms over the epochs;
- `ladder`: the ELBO beside the IWAE bounds, with both standard errors;
- `reconstructions`, `samples`, `traversals`: data and E[x | z];
- `latent_space`: posterior means against the prior;
- `write_report`: all of them as files beside the numbers, and `read_report` reads the numbers back;
- `to_datatree`: draws from p(z | x) for ArviZ.

Nothing here touches pyplot or leaves a trace in matplotlib's settings.
"""

from pyrovae.report.bounds import ladder
from pyrovae.report.curves import training_curves
from pyrovae.report.folder import read_report, write_report
from pyrovae.report.images import reconstructions, samples, traversals
from pyrovae.report.latents import latent_space
from pyrovae.report.tree import to_datatree

__all__ = [
    "ladder",
    "latent_space",
    "read_report",
    "reconstructions",
    "samples",
    "to_datatree",
    "training_curves",
    "traversals",
    "write_report",
]
