"""A model and a guide in plain Pyro, fitted by a plain `pyro.infer.SVI` loop.

    python examples/by_hand.py                  about half a minute

Only the data, the objective and the evaluation come from pyrovae, which evaluates any Pyro model and guide. Prints the
training ELBO every ten epochs, and at the end the ELBO and the IWAE bounds, in nats per datum. The picture
shows these bounds and their paired differences to the ELBO.
"""

import argparse

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI
from torch import nn

import pyrovae

parser = argparse.ArgumentParser()
parser.add_argument("--smoke", action="store_true", help="run for a few seconds, as a test")
parser.add_argument("--picture", type=pyrovae.report.picture_file, default="runs/by_hand.png", help="PNG file")
options = parser.parse_args()

epochs = 2 if options.smoke else 60
ks = (1, 5, 50) if options.smoke else (1, 5, 50, 500, 5000)

takes = "A few seconds" if options.smoke else "About half a minute"
print(f"{takes}: {epochs} epochs of SVI, then bounds with K up to {ks[-1]}.", flush=True)

torch.manual_seed(0)
decoder = nn.Sequential(nn.Linear(8, 200), nn.Tanh(), nn.Linear(200, 64))
encoder = nn.Sequential(nn.Linear(64, 200), nn.Tanh(), nn.Linear(200, 16))


def model(x: torch.Tensor) -> None:  # (B, 64)
    pyro.module("decoder", decoder)
    spread = pyro.param("spread", torch.ones(8), constraint=dist.constraints.positive)  # a learned prior
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(8), spread).to_event(1))  # (B, 8)
        pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)


def guide(x: torch.Tensor) -> None:  # (B, 64)
    pyro.module("encoder", encoder)
    with pyro.plate("data", len(x)):
        loc, log_scale = encoder(x).chunk(2, -1)  # (B, 8) each
        pyro.sample("z", dist.Normal(loc, log_scale.clamp(-5, 5).exp()).to_event(1))


data = pyrovae.data.digits().for_form("binary")
objective = pyrovae.objectives.ELBO()
svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), loss=objective)

for epoch in range(1, epochs + 1):
    losses = [svi.step(data.train.draw(rows).flatten(1)) for rows in torch.randperm(len(data.train)).split(128)]
    if epoch % 10 == 0 or epoch == epochs:
        print(f"epoch {epoch:3d}  ELBO {-sum(losses) / len(data.train):.2f}")

evaluation = pyrovae.evaluate(model, guide, data.test.fixed().flatten(1), ks=ks)
print(f"\n{evaluation}")

figure = pyrovae.report.ladder(evaluation)
figure.savefig(options.picture, dpi=100, format="png")
print(f"picture: {options.picture}")
