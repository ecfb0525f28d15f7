"""Report of an evaluation: figures, each a function that returns a matplotlib figure, and files.

A figure displays itself in a notebook. Functions with ``ax`` draw into axes of your own, without title and legend.

- `training_curves`: the ELBO and its terms over the epochs;
- `ladder`: the ELBO beside the IWAE bounds and AIS, with both standard errors;
- `waterfall`: the gap between the ELBO and the tightest bound, step by step;
- `forest`: paired differences of several models, with their intervals;
- `khat_histogram`: k-hat over the data, and the share above its threshold;
- `reconstructions`, `samples`, `traversals`, `interpolations`: data and E[x | z];
- `latent_space`: posterior means against the prior;
- `manifold`: E[x | z] on a grid of two latent dimensions;
- `pixel_scale`: data, E[x | z] and the standard deviation of each pixel given z;
- `rate_distortion`: KL against reconstruction of several models, with lines of equal ELBO;
- `kl_by_site`: the KL of each latent site of a model with several;
- `kl_per_unit`: information in each latent unit, and which units are active;
- `write_report`: one page of figures and tables in a run folder, and `read_report` for its numbers;
- `compare`: numbers of several runs side by side;
- `picture_file`: the type of an option of argparse that names a PNG file;
- `to_datatree`: draws from p(z | x) for ArviZ.

No function uses pyplot or changes matplotlib's settings.
"""

from pyrovae.report.arviz_tree import to_datatree
from pyrovae.report.bound_figures import forest, kl_by_site, ladder, rate_distortion, waterfall
from pyrovae.report.diagnostic_figures import khat_histogram, kl_per_unit, training_curves
from pyrovae.report.image_figures import (
    interpolations,
    manifold,
    pixel_scale,
    reconstructions,
    samples,
    traversals,
)
from pyrovae.report.latent_figures import latent_space
from pyrovae.report.report_files import compare, read_report, write_report
from pyrovae.report.style import picture_file

__all__ = [
    "compare",
    "forest",
    "interpolations",
    "khat_histogram",
    "kl_by_site",
    "kl_per_unit",
    "ladder",
    "latent_space",
    "manifold",
    "picture_file",
    "pixel_scale",
    "rate_distortion",
    "read_report",
    "reconstructions",
    "samples",
    "to_datatree",
    "training_curves",
    "traversals",
    "waterfall",
    "write_report",
]
