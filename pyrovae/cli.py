"""The command line: ``pyrovae train | evaluate | generate``, thin over the library."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyrovae import data as data_room
from pyrovae import likelihoods, networks, posteriors, priors
from pyrovae.data import Data, fingerprint, transforms
from pyrovae.evaluate import evaluate
from pyrovae.objectives import ELBO
from pyrovae.options import Parser, chosen, classes
from pyrovae.report.folder import to_png, write_report
from pyrovae.report.images import samples
from pyrovae.sandbox import forked_random, stream_seed
from pyrovae.training import Run, Training, fit, load
from pyrovae.training.checkpoint import CONFIG, versions
from pyrovae.training.folder import RunFolder
from pyrovae.training.options import choose_device
from pyrovae.vae import VAE

USAGE = """usage: pyrovae COMMAND [options]

Variational autoencoders as Pyro programs, judged by bounds on log p(x).

  pyrovae train       fit a VAE and keep it in a run folder
  pyrovae evaluate    report its ELBO beside its IWAE bounds, with pictures
  pyrovae generate    draw data from it

pyrovae COMMAND --help lists the options. A first round, without any network:

  pyrovae train --epochs 100
  pyrovae evaluate runs/digits-1
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code: 0, 2 after an error, 130 after an interrupt."""
    words = list(sys.argv[1:] if argv is None else argv)
    commands = {"train": train, "evaluate": evaluate_run, "generate": generate}
    if not words or words[0] in ("-h", "--help", "help"):
        sys.stdout.write(USAGE)
        return 0 if words else 2
    if words[0] == "--version":
        sys.stdout.write(json.dumps(versions(), indent=2) + "\n")
        return 0
    if words[0] not in commands:
        return _fail(f"there is no command {words[0]!r}; choose from {', '.join(commands)}")
    try:
        commands[words[0]](words[1:])
    except KeyboardInterrupt:
        sys.stderr.write("pyrovae: interrupted; what was written stays\n")
        return 130
    except (ValueError, TypeError, torch.OutOfMemoryError) as error:
        return _fail(_first_cause(error))
    return 0


def train(argv: Sequence[str]) -> None:
    """Fit a VAE and keep it in a run folder."""
    parser = Parser(prog="pyrovae train", description="Fit a VAE by SVI on the ELBO and keep it in a run folder.")
    run = parser.add_argument_group("run")
    run.add_argument("--folder", metavar="DIR", help="run folder (default: the next free runs/DATA-NUMBER)")
    run.add_argument(
        "--resume", metavar="DIR", help="go on with the run in this folder, with the options it was made with"
    )
    _add_data(parser)
    model = parser.add_argument_group("model")
    model.add_argument("--latent_dim", type=int, default=16, metavar="N", help="latent dimensions (default: 16)")
    model.add_argument(
        "--hidden", type=int, nargs="+", default=[200, 200], metavar="N",
        help="widths of the hidden layers of encoder and, in reverse, decoder (default: 200 200)",
    )  # fmt: skip
    parser.add_part("likelihood", likelihoods, likelihoods.Bernoulli)
    parser.add_part("prior", priors, priors.StandardNormal)
    parser.add_part("posterior", posteriors, posteriors.DiagonalNormal)
    training = "training"
    parser.add_record(training, Training)
    parser.add_argument_group("objective").add_argument(
        "--beta", type=float, default=1.0, metavar="NUMBER", help="factor of the KL in the loss (default: 1.0)"
    )
    options = _resumed(parser, argv)
    settings = Training(**{name: options[name] for name in Training.__dataclass_fields__})
    choose_device(settings.device)
    data = _load_data(options, classes(likelihoods)[options["likelihood"]].form)
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
        sys.stderr.write(f"\nTo go on: pyrovae train --resume {folder}\n")
        raise
    sys.stdout.write(f"\n{history}\n\nrun: {folder}\nnext: pyrovae evaluate {folder}\n")


def evaluate_run(argv: Sequence[str]) -> None:
    """Report the bounds of a run."""
    parser = Parser(
        prog="pyrovae evaluate",
        usage="pyrovae evaluate RUN [options]",
        description="Report the ELBO of a run beside its IWAE bounds, on its test data, with pictures.",
    )
    parser.add_argument("run", metavar="RUN", help="run folder")
    _add_data(parser, default=None)
    group = parser.add_argument_group("evaluation")
    group.add_argument(
        "--split", choices=("train", "validation", "test"), default="test", help="part of the data (default: test)"
    )
    group.add_argument("--num_data", type=int, metavar="N", help="evaluate only the first N (default: all)")
    group.add_argument(
        "--ks", type=int, nargs="+", default=[1, 5, 50, 500, 5000], metavar="K",
        help="numbers of particles of the IWAE bounds, each dividing the next (default: 1 5 50 500 5000)",
    )  # fmt: skip
    group.add_argument(
        "--batch_size", type=int, metavar="N", help="data whose particles are drawn together (default: by K)"
    )
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws (default: 0)")
    group.add_argument(
        "--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps (default: auto)"
    )
    options = parser.options(argv)
    run = load(options["run"])
    vae = run.vae.to(choose_device(options["device"]))
    data = _data_of(run, options)
    if fingerprint(data.train.stored) != run.config["data"]["hash"]:
        sys.stdout.write("note: these are not the data that the run was trained on\n")
    split = getattr(data, options["split"])
    split = split if options["num_data"] is None else split.first(options["num_data"])
    evaluation = evaluate(
        vae.model,
        vae.guide,
        split,
        ks=tuple(options["ks"]),
        batch_size=options["batch_size"],
        seed=options["seed"],
        device=options["device"],
    )
    folder = write_report(run.folder.path, history=run.history, evaluation=evaluation, vae=vae.cpu(), data=split)
    sys.stdout.write(f"{evaluation}\n\nreport: {folder}\n")


def generate(argv: Sequence[str]) -> None:
    """Draw data from a run."""
    parser = Parser(
        prog="pyrovae generate",
        usage="pyrovae generate RUN [options]",
        description="Draw data from the model of a run.",
    )
    parser.add_argument("run", metavar="RUN", help="run folder")
    group = parser.add_argument_group("generation")
    group.add_argument("--num", type=int, default=64, metavar="N", help="how many (default: 64)")
    group.add_argument("--draws", action="store_true", help="draw x itself instead of showing E[x | z]")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws (default: 0)")
    group.add_argument(
        "--out",
        metavar="FILE",
        help="a .png for a picture, a .npy for the numbers (default: samples.png or samples.npy in RUN)",
    )
    options = parser.options(argv)
    run = load(options["run"])
    mean = not options["draws"]
    figure = samples(run.vae, num=options["num"], seed=options["seed"], mean=mean)
    out = Path(options["out"] or run.folder.path / ("samples.npy" if figure is None else "samples.png"))
    if out.suffix not in (".png", ".npy"):
        raise ValueError(f"samples are written to a .png or a .npy file, but received {out}")
    if out.suffix == ".png" and figure is None:
        raise ValueError(f"data of shape {run.vae.likelihood.x_shape} are not images; write them to a .npy file")
    try:
        if out.suffix == ".npy":
            np.save(out, run.vae.generate(options["num"], seed=options["seed"], mean=mean).numpy())
        elif figure is not None:
            out.write_bytes(to_png(figure))
    except OSError as error:
        raise ValueError(f"{out} cannot be written: {error.strerror}") from None
    sys.stdout.write(f"{out}\n")


def _add_data(parser: Parser, default: str | None = "digits") -> None:
    group = parser.add_argument_group("data")
    shown = "digits" if default else "that of the run"
    group.add_argument(
        "--data", default=default, metavar="NAME",
        help=f"digits, mnist, fashion_mnist, kmnist, or a path: .npz, .npy, .csv, folder of images (default: {shown})",
    )  # fmt: skip
    group.add_argument(
        "--data.root", metavar="DIR", help="folder of the named data sets (default: $PYROVAE_DATA, else a cache)"
    )
    group.add_argument(
        "--data.download",
        choices=("true", "false"),
        default="true" if default else None,
        help="fetch what is missing (default: true)",
    )
    names = ", ".join(classes(transforms))
    group.add_argument("--data.transform", metavar="CLASS", help=f"{names} (default: what the likelihood scores)")
    group.add_argument(
        "--data.seed",
        type=int,
        default=0 if default else None,
        metavar="N",
        help="of splits and of binarized test data (default: 0)",
    )


def _load_data(options: dict[str, Any], form: transforms.Form) -> Data:
    """Return the data as the likelihood scores them, or as the transform that was asked for makes them."""
    data = data_room.load(
        options["data"],
        root=options["data.root"],
        download=options["data.download"] != "false",
        seed=options["data.seed"],
    )
    if options["data.transform"] is None:
        return data.for_form(form)
    menu = classes(transforms)
    if options["data.transform"] not in menu:
        raise ValueError(f"there is no transform {options['data.transform']!r}; choose from {', '.join(menu)}")
    transform = menu[options["data.transform"]]
    if transform is transforms.Standardization:
        return data.with_transform(transforms.Standardization.fit(data.train.stored))
    return data.with_transform(transform())


def _data_of(run: Run, options: dict[str, Any]) -> Data:
    """Return the data of a run, with the options that were given in place of its own."""
    own = {} if options["data"] else _command(run.config, run.folder.path)
    names = ("data", "data.root", "data.download", "data.transform", "data.seed")
    merged = {name: own.get(name) if options[name] is None else options[name] for name in names}
    return _load_data(merged | {"data.seed": merged["data.seed"] or 0}, run.vae.likelihood.form)


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
    return parser.options(argv, saved=_command(config, options["resume"]) | {"folder": None})


def _command(config: dict[str, Any], folder: object) -> dict[str, Any]:
    """Return the options with which a run was made."""
    if not config["command"]:
        raise ValueError(f"the run {folder} was not made on the command line, which must therefore be told its data")
    return config["command"]


def _next_folder(name: str) -> Path:
    numbers = iter(range(1, sys.maxsize))
    return next(folder for number in numbers if not (folder := Path("runs") / f"{name}-{number}").exists())


def _first_cause(error: BaseException) -> str:
    """Return what went wrong without the frame that Pyro puts around it."""
    while str(error).startswith("Error while computing") and isinstance(error.__cause__, ValueError):
        error = error.__cause__
    return " ".join(str(error).split())


def _fail(message: str) -> int:
    sys.stderr.write(f"pyrovae: error: {message}\n")
    return 2
