"""Each dimension of z moved alone, two moved together, and arithmetic with codes.

    python examples/traversals.py                  the digits that come with scikit-learn; about a minute
    python examples/traversals.py --data mnist     MNIST; about twenty minutes on two cores

prints the bounds, in nats per datum, and a row for each dimension of z: the mean KL it costs, whether it is active, and
the mean change of a pixel of E[x | z] as it moves from -2.5 to 2.5. The picture has four panels of E[x | z]:

- One dimension moved at a time, from the code of one image, those with the largest KL first. Dimensions that cost
  little KL change little. Nothing in the ELBO asks that one of them be the label or the slant alone.
- The first two moved together at quantiles of the prior, all others at zero.
- Arithmetic: the code of an image plus the difference of the mean codes of two labels, for five pairs where it works
  well. The last line printed is of all test images and all 90 pairs.
- Interpolation: the straight line between the codes of two images of different labels. Some lines pass another digit
  (on the digits a 6 between 0 and 1), and none is a cross-fade of the two.
"""

import argparse
import itertools

import torch
from sklearn.linear_model import LogisticRegression

import pyrovae
from pyrovae import VAE, Training, diagnostics, likelihoods, networks, posteriors, priors, report
from pyrovae.report.panels import draw_tiles
from pyrovae.report.style import blank, to_png
from pyrovae.results import Number, Table

parser = argparse.ArgumentParser()
parser.add_argument("--data", default="digits")
parser.add_argument("--smoke", action="store_true", help="run for a few seconds, as a test")
parser.add_argument("--picture", type=pyrovae.report.picture_file, default="runs/traversals.png", help="PNG file")
options = parser.parse_args()

latent_dim = 8
epochs = 2 if options.smoke else 200 if options.data == "digits" else 20
training = Training(epochs=epochs, batch_size=64, final_learning_rate=1e-4)
ks = (1, 50) if options.smoke else (1, 50, 5000)  # each a divisor of the next
changes = [(0, 6), (6, 4), (7, 5), (8, 0), (5, 6)]  # labels of the arithmetic, from and to
steps = torch.linspace(0, 1, 7)

takes = "A few seconds" if options.smoke else "A minute" if options.data == "digits" else "Twenty minutes"
print(f"{takes} on two cores: {epochs} epochs.", flush=True)

data = pyrovae.data.load_or_exit(
    options.data, form="binary", images=True, labels=True, first=1500 if options.smoke else None
)
torch.manual_seed(0)
likelihood = likelihoods.Bernoulli(data.x_shape)
posterior = posteriors.DiagonalNormal(latent_dim)
vae = VAE(
    prior=priors.StandardNormal(latent_dim),
    decoder=networks.MLPDecoder(latent_dim, likelihood.param_shape),
    likelihood=likelihood,
    encoder=networks.MLPEncoder(data.x_shape, posterior.param_shape),
    posterior=posterior,
)
pyrovae.fit(vae, data, training=training)
test = data.test.first(300)
x, labels = test.fixed(), test.labels
print(pyrovae.evaluate(vae, test, ks=ks).tables()[0])

rows = []
for unit in diagnostics.latents(vae.model, vae.guide, x).units:  # active units first, then by their KL
    dim = int(unit.name.removeprefix("z[").removesuffix("]"))
    ends = vae.traverse(x[0], dims=[dim], values=torch.tensor([-2.5, 2.5]))[0]
    change = (ends[1] - ends[0]).abs().mean().item()
    rows.append((unit.name, Number(unit.kl), "yes" if unit.active else "no", Number(change)))
header = ("", "KL (nats)", "active", "change of a pixel")
print(f"\n{Table(header, tuple(rows), title=('Dimensions of z, mean KL in nats per datum',))}")
first, second = (int(name[2:-1]) for name, *_ in rows[:2])

with torch.no_grad():
    codes = vae.encode(x).mean  # (N, latent_dim)
    means = torch.stack([codes[labels == label].mean(0) for label in range(10)])
    moved = []
    for start, end in changes:
        code = codes[labels == start][0]
        moved.append(vae.decode(code + steps[:, None] * (means[end] - means[start])).mean)  # (steps, *x_shape)
    train = data.train.first(2000)
    classifier = LogisticRegression(max_iter=1000).fit(train.fixed().flatten(1), train.labels)
    own, reached = classifier.score(x.flatten(1), labels), []
    for start, end in itertools.permutations(range(10), 2):
        results = vae.decode(codes[labels == start] + means[end] - means[start]).mean.flatten(1)
        reached.append((classifier.predict(results) == end).mean())
shares = f"{own:.0%} of the test images and the new label of {sum(reached) / len(reached):.0%} of the results"
print(f"\nArithmetic: a logistic regression finds the label of {shares}.")

figure = blank(9, 6.9)
panels = figure.subplots(2, 2, height_ratios=(8, 5))
report.traversals(vae, x, num_dims=latent_dim, num_values=7, ax=panels[0, 0])
report.manifold(vae, dims=(first, second), num_values=9, ax=panels[0, 1])
draw_tiles(
    torch.stack(moved),
    limits=(0, 1),
    title="",
    row_labels=[f"{start} + mean {end} - mean {start}".replace("-", "\N{MINUS SIGN}") for start, end in changes],
    column_labels=[f"{step:.2f}" for step in steps],
    note="Part of the difference",
    ax=panels[1, 0],
)
ends = torch.stack([x[labels == label][0] for label in (0, 1, 2, 7, 3, 4, 5, 6, 8, 9)])  # each two in turn
report.interpolations(vae, ends, num=5, num_steps=7, ax=panels[1, 1])
titles = "One dimension moved at a time", "Two dimensions moved together", "Arithmetic with mean codes", "Interpolation"
for panel, title in zip(panels.flat, titles, strict=True):
    panel.set_title(title)

options.picture.write_bytes(to_png(figure, 100, num_colors=256))
print(f"picture: {options.picture}")
