"""The command ``pyrovae train``."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyrovae import likelihoods, networks, posteriors, priors
from pyrovae.cli.data import add_data, command_of, load_data
from pyrovae.cli.options import Parser, chosen, classes
from pyrovae.data import Data, datasets
from pyrovae.objectives import ELBO
from pyrovae.sandbox import forked_random, stream_seed
from pyrovae.training import Training, fit
from pyrovae.training.checkpoint import CONFIG
from pyrovae.training.folder import RunFolder
from pyrovae.training.options import choose_device
from pyrovae.vae import VAE


def train(argv: Sequence[str]) -> None:
    """Fit a VAE and keep it in a run folder."""
    parser = Parser(prog="pyrovae train", description="Fit a VAE by SVI on the ELBO and keep it in a run folder.")
    run = parser.add_argument_group("run")
    run.add_argument("--folder", metavar="DIR", help="run folder (default: the next free runs/DATA-NUMBER)")
    run.add_argument(
        "--resume", metavar="DIR", help="go on with the run in this folder, with the options it was made with"
    )
    add_data(parser)
    model = parser.add_argument_group("model")
    model.add_argument("--latent_dim", type=int, default=16, metavar="N", help="latent dimensions (default: 16)")
    model.add_argument(
        "--hidden", type=int, nargs="+", default=[200, 200], metavar="N",
        help="widths of the hidden layers of encoder and, in reverse, decoder (default: 200 200)",
    )  # fmt: skip
    parser.add_part("likelihood", likelihoods, likelihoods.Bernoulli)
    parser.add_part("prior", priors, priors.StandardNormal)
    parser.add_part("posterior", posteriors, posteriors.DiagonalNormal)
    parser.add_record("training", Training)
    parser.add_argument_group("objective").add_argument(
        "--beta", type=float, default=1.0, metavar="NUMBER", help="factor of the KL in the loss (default: 1.0)"
    )
    options = _resumed(parser, argv)
    for name in ("data", "data.root"):  # a run must find its data from any folder
        if options[name] is not None and options[name] not in datasets.NAMES and Path(options[name]).exists():
            options[name] = str(Path(options[name]).resolve())
    settings = Training(**{name: options[name] for name in Training.__dataclass_fields__})
    choose_device(settings.device)
    data = load_data(options, classes(likelihoods)[options["likelihood"]].form)
    with forked_random(stream_seed(settings.seed, "initialize")):
        vae = _build(options, data)
    folder = Path(options["resume"] or options["folder"] or _next_folder(data.name))
    weights = sum(parameter.numel() for parameter in vae.parameters())
    sys.stdout.write(f"{data}\n{weights:,} parameters on {choose_device(settings.device)}\n")
    try:
        history = fit(
            vae.model,
            vae.guide,
            data,
            objective=ELBO(beta=options["beta"]),
            training=settings,
            folder=folder,
            resume=options["resume"] is not None,
            command=parser.to_save(options),
        )
    except KeyboardInterrupt:
        sys.stderr.write(f"\nTo go on: pyrovae train --resume {shlex.quote(str(folder))}\n")
        raise
    sys.stdout.write(f"\n{history}\n\nrun: {folder}\nnext: pyrovae evaluate {shlex.quote(str(folder))}\n")


def _build(options: dict[str, Any], data: Data) -> VAE:
    latent_dim, hidden = options["latent_dim"], tuple(options["hidden"])
    likelihood = chosen("likelihood", likelihoods, options)(data.x_shape)
    posterior = chosen("posterior", posteriors, options)(latent_dim)
    return VAE(
        prior=chosen("prior", priors, options)(latent_dim),
        decoder=networks.MLPDecoder(
            latent_dim,
            likelihood.param_shape,
            hidden=hidden[::-1],
            initial_params=likelihood.initial_params(data.train.mean()),
        ),
        likelihood=likelihood,
        encoder=networks.MLPEncoder(data.x_shape, posterior.param_shape, hidden=hidden),
        posterior=posterior,
    )


def _resumed(parser: Parser, argv: Sequence[str]) -> dict[str, Any]:
    """Return the options, those of the run to be resumed standing in for what is not given."""
    options = parser.options(argv)
    if options["resume"] is None:
        return options
    if options["folder"] is not None:
        raise ValueError("--resume goes on in its own folder; leave out --folder")
    config = json.loads(RunFolder(options["resume"]).read(CONFIG))
    return parser.options(argv, saved=command_of(config, options["resume"]) | {"folder": None})


def _next_folder(name: str) -> Path:
    numbers = iter(range(1, sys.maxsize))
    return next(folder for number in numbers if not (folder := Path("runs") / f"{name}-{number}").exists())
