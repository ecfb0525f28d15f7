"""Pictures of a run, each a function that returns a matplotlib figure.

- `training_curves`: the ELBO and its terms over the epochs;
- `ladder`: the ELBO beside the IWAE bounds and AIS, with both standard errors;
- `waterfall`: the gap between the ELBO and the tightest bound, step by step;
- `forest`: paired differences of several models, with their intervals;
- `weight_histograms`: k-hat, effective sample size and largest weight over the data;
- `reconstructions`, `samples`, `traversals`, `interpolations`: data and E[x | z];
- `thumbnails`: the data that a diagnostic finds hardest;
- `latent_space`: posterior means against the prior;
- `kl_per_unit`: what each latent unit carries, and which are active;
- `write_report`: all of them as files beside the numbers, and `read_report` reads the numbers back;
- `compare`: the numbers of several runs side by side;
- `to_datatree`: draws from p(z | x) for ArviZ.

Nothing here touches pyplot or leaves a trace in matplotlib's settings.
"""

from pyrovae.report.bounds import ladder
from pyrovae.report.compare import compare
from pyrovae.report.curves import training_curves
from pyrovae.report.folder import read_report, write_report
from pyrovae.report.forest import forest
from pyrovae.report.gaps import waterfall
from pyrovae.report.hardest import thumbnails
from pyrovae.report.images import interpolations, reconstructions, samples, traversals
from pyrovae.report.latents import latent_space
from pyrovae.report.tree import to_datatree
from pyrovae.report.units import kl_per_unit
from pyrovae.report.weights import weight_histograms

__all__ = [
    "compare",
    "forest",
    "interpolations",
    "kl_per_unit",
    "ladder",
    "latent_space",
    "read_report",
    "reconstructions",
    "samples",
    "thumbnails",
    "to_datatree",
    "training_curves",
    "traversals",
    "waterfall",
    "weight_histograms",
    "write_report",
]
