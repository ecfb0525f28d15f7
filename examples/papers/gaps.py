"""Cremer, Li, Duvenaud 2018: amortization gap, approximation gap and a refit of the encoder.

    python examples/papers/gaps.py --cells vae-1

*Inference suboptimality in variational autoencoders*, https://arxiv.org/abs/1801.03558, splits the distance from the
ELBO to log p(x) of VAEs on MNIST. The compared numbers are the parts for the models of burda.py on 200 test images,
which are trained first if their runs are not there: the gain of a diagonal Gaussian that is optimized for each image,
the distance left to AIS or L_5000, whichever is higher, and the gain of the encoder refitted to these images.

The values of the paper are not in the table, since its text was not at hand when the table was made.
"""

import burda
from common import Row, parse_options, run_cell

from pyrovae import Checks

CELLS = {"vae-1": "VAE, k = 1", "iwae-5": "IWAE, k = 5"}
PARTS = ("amortization gap", "approximation gap", "gain of a refit")
ROWS = [Row(f"gaps-{cell}", label, None, of=part) for cell, label in CELLS.items() for part in PARTS]

if __name__ == "__main__":
    options = parse_options(__doc__, cells=list(CELLS))
    for cell in options.cells:
        run_cell(
            options,
            f"gaps-{cell}",
            burda.make_vae,
            burda.load_data(),
            training=burda.TRAININGS[cell],
            objective=burda.OBJECTIVES[cell],
            run=f"burda-{cell}",
            num_data=200,
            checks=Checks(num_annealed=200, num_simulated=0, num_refined=200, num_encoded=0),
        )
