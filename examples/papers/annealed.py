"""Wu, Burda, Salakhutdinov, Grosse 2017: the distance of L_10000 from annealed importance sampling.

    python examples/papers/annealed.py --cells vae-1

*On the quantitative analysis of decoder-based generative models*, https://arxiv.org/abs/1611.04273, prints -85.62 by
AIS and -86.90 by L_10000 for a model trained on an IWAE bound, a distance of 1.28 nats. The compared number is the same
distance on 1,000 test images, for the models of burda.py, which are trained first if their runs are not there. The
model of the row IWAE, k = 50 is the closest to the paper's; how loose L_K is depends on the model.

The recipe differs from the paper's: 16 chains start from the encoder, with 30 temperatures of 5 leapfrog steps, instead
of the prior with 10,000 temperatures.
"""

import burda
from common import Row, parse_options, run_cell

from pyrovae import Checks

CELLS = ("vae-1", "iwae-5", "iwae-50")
ROWS = (
    Row("annealed-vae-1", "VAE, k = 1", None, of="AIS over L_K"),
    Row("annealed-iwae-5", "IWAE, k = 5", None, of="AIS over L_K"),
    Row("annealed-iwae-50", "IWAE, k = 50", 1.28, of="AIS over L_K", tolerance=0.4),
)

if __name__ == "__main__":
    options = parse_options(__doc__, cells=list(CELLS))
    for cell in options.cells:
        run_cell(
            options,
            f"annealed-{cell}",
            burda.make_vae,
            burda.load_data(),
            training=burda.TRAININGS[cell],
            objective=burda.OBJECTIVES[cell],
            run=f"burda-{cell}",
            ks=(1, 100, 10_000),
            num_data=1000,
            checks=Checks(num_annealed=1000, num_simulated=0, num_refined=0, num_encoded=0),
        )
