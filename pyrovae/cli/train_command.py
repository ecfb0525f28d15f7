"""The command ``pyrovae train``."""

from __future__ import annotations

import inspect
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyrovae import likelihoods, networks, objectives, posteriors, priors
from pyrovae.cli.data_options import add_data, command_of, load_data
from pyrovae.cli.parser import Parser
from pyrovae.cli.signatures import classes, make
from pyrovae.cli.terminal import file_name, print_error, print_text
from pyrovae.data import Data, datasets
from pyrovae.objectives import schedules
from pyrovae.runtime.context import forked_random, stream_seed
from pyrovae.runtime.distributed import Group, init_distributed
from pyrovae.training import Training, fit
from pyrovae.training.checkpoint import CONFIG
from pyrovae.training.config import choose_device
from pyrovae.training.run_folder import RunFolder
from pyrovae.vae import VAE

HIDDEN = ("covariate_dim", "max_plate_nesting", "vectorize_particles")  # no choices for the pair that is trained here
PSEUDO_INPUTS = 10_000  # data that a prior may start at


def train(argv: Sequence[str]) -> None:
    """Fit a VAE and keep it in a run folder."""
    parser = Parser(prog="pyrovae train", description="Fit a VAE by SVI and keep it in a run folder.")
    run = parser.add_argument_group("run")
    run.add_argument("--folder", metavar="DIR", help="run folder (default: the next free runs/DATA-NUMBER)")
    run.add_argument(
        "--resume", metavar="DIR", help="go on with the run in this folder, with the options it was made with"
    )
    add_data(parser)
    model = parser.add_argument_group("model")
    model.add_argument("--latent_dim", type=int, default=16, metavar="N", help="latent dimensions (default: 16)")
    for role, (menu, base, default) in _menus().items():
        parser.add_part(role, menu, default, base=base, hidden=HIDDEN)
    parser.add_record("training", Training)
    run.add_argument(
        "--allow", nargs="+", default=[], metavar="PACKAGE",
        help="packages beside pyrovae from which the options of a file or of a run may name classes (default: none)",
    )  # fmt: skip
    options = _resumed(parser, argv)
    objective = _objective(parser, options)
    for name in ("data", "data.root"):  # a run must find its data from any folder
        if options[name] is not None and options[name] not in datasets.NAMES and Path(options[name]).exists():
            options[name] = str(Path(options[name]).resolve())
    settings = Training(**{name: options[name] for name in Training.__dataclass_fields__})
    with init_distributed(settings.device) as group:
        _train(parser, options, objective, settings, group)


def _train(
    parser: Parser, options: dict[str, Any], objective: objectives.Objective, settings: Training, group: Group
) -> None:
    """Fit a VAE in this process, or in one of several that do so together."""
    choose_device(settings.device)
    likelihood, _ = parser.chosen("likelihood", options)
    data = group.main_process_first(lambda: load_data(options, likelihood.form))
    with forked_random(stream_seed(settings.seed, "initialize")):
        vae = _build(parser, options, data)
    given = options["resume"] or options["folder"]
    folder = Path(given or group.from_first(lambda: _next_folder(data.name)))
    again = _words_to_load(parser, options, folder)
    together = f" in each of {group.size} processes" if group.size > 1 else ""
    print_text(f"{data}\non {choose_device(settings.device)}{together}\n")
    try:
        history = fit(
            vae.model,
            vae.guide,
            data,
            objective=objective,
            training=settings,
            folder=folder,
            resume=options["resume"] is not None,
            command=parser.to_save(options),
        )
    except KeyboardInterrupt:
        print_error(f"\nTo go on: pyrovae train --resume {again}\n")
        raise
    print_text(f"\n{history}\n\nrun: {folder}\nnext: pyrovae evaluate {again}\n")


def _menus() -> dict[str, tuple[dict[str, type], type, str]]:
    """Return for each role its menu, the base class of its classes, and the default."""
    return {
        "likelihood": (classes(likelihoods), likelihoods.Likelihood, "Bernoulli"),
        "prior": (classes(priors), priors.Prior, "StandardNormal"),
        "posterior": (classes(posteriors), posteriors.Posterior, "DiagonalNormal"),
        "encoder": (classes(networks, networks.Encoder), networks.Encoder, "MLPEncoder"),
        "decoder": (classes(networks, networks.Decoder), networks.Decoder, "MLPDecoder"),
        "objective": (classes(objectives, objectives.Objective), objectives.Objective, "ELBO"),
        "annealing": (classes(schedules), schedules.Schedule, "Constant"),
    }


def _objective(parser: Parser, options: dict[str, Any]) -> objectives.Objective:
    """Make the objective; only an ELBO can be annealed."""
    annealing = make(*parser.chosen("annealing", options), {})
    part, arguments = parser.chosen("objective", options)
    if not isinstance(annealing, schedules.Constant) and "annealing" not in inspect.signature(part).parameters:
        raise ValueError(f"{options['objective']} cannot be annealed; leave out --annealing, or take --objective ELBO")
    return make(part, arguments, {"annealing": annealing})


def _build(parser: Parser, options: dict[str, Any], data: Data) -> VAE:
    """Make the parts in the order in which each asks for others."""
    latent_dim = options["latent_dim"]
    make_likelihood, arguments = parser.chosen("likelihood", options)
    likelihood = make_likelihood.for_data(data, **arguments)
    posterior = make(*parser.chosen("posterior", options), {"latent_dim": latent_dim})
    shapes = {"x_shape": data.x_shape, "out_shape": posterior.param_shape}
    encoder = make(*parser.chosen("encoder", options), shapes)
    make_prior, arguments = parser.chosen("prior", options)
    context = {"latent_dim": latent_dim, "encoder": encoder, "posterior": posterior}
    if "data" in inspect.signature(make_prior).parameters:
        context["data"] = likelihood.encoder_input(data.train.first(PSEUDO_INPUTS).fixed())
    prior = make(make_prior, arguments, context)
    make_decoder, arguments = parser.chosen("decoder", options)
    context = {"latent_dim": latent_dim, "out_shape": likelihood.param_shape}
    if options["start_at_data"] and make_decoder.output_layer is networks.Decoder.output_layer:  # fit cannot set it
        context["initial_params"] = likelihood.initial_params(data.train.mean())
    decoder = make(make_decoder, arguments, context)
    return VAE(prior=prior, decoder=decoder, likelihood=likelihood, encoder=encoder, posterior=posterior)


def _resumed(parser: Parser, argv: Sequence[str]) -> dict[str, Any]:
    """Return the options, those of the run to be resumed standing in for what is not given."""
    typed = parser.typed(argv)
    if typed["resume"] is None:
        return parser.options(argv)
    if typed["folder"] is not None:
        raise ValueError("--resume goes on in its own folder; leave out --folder")
    config = json.loads(RunFolder(typed["resume"]).read(CONFIG))
    return parser.options(argv, saved=command_of(config, typed["resume"]) | {"folder": None})


def _words_to_load(parser: Parser, options: dict[str, Any], folder: Path) -> str:
    """Return the words by which a command takes up the run, with what its parts need to be imported."""
    paths = [options[role] for role in parser.roles if "." in options[role]]
    packages = sorted({path.partition(".")[0] for path in paths} - {"pyrovae"})
    path = f"./{folder}" if str(folder).startswith("-") else str(folder)  # else it would be read as an option
    return shlex.join([path, *(["--allow", *packages] if packages else [])])


def _next_folder(name: str) -> Path:
    numbers = iter(range(1, sys.maxsize))
    name = file_name(name)
    return next(folder for number in numbers if not (folder := Path("runs") / f"{name}-{number}").exists())
