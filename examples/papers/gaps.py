"""Cremer, Li, Duvenaud 2018: amortization gap, approximation gap and over-fitting of the encoder.

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

PARTS = {"amortization": "amortization gap", "approximation": "approximation gap", "overfitting": "over-fitting"}
ROWS = {
    f"{cell}-{part}": Row(f"{words}, {burda.ROWS[cell].label}", None, of=words)
    for cell in ("vae-1", "iwae-5")
    for part, words in PARTS.items()
}

if __name__ == "__main__":
    options = parse_options(__doc__, cells=["vae-1", "iwae-5"])
    for cell in options.cells:
        run_cell(
            options,
            f"gaps-{cell}",
            burda.make_vae,
            burda.load_data(),
            training=burda.TRAINING,
            objective=burda.OBJECTIVES[cell],
            run=f"burda-{cell}",
            num_data=200,
            checks=Checks(num_annealed=200, num_simulated=0, num_refined=200, num_encoded=0),
        )
