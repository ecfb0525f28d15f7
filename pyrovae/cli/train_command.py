"""The command ``pyrovae train``."""

from __future__ import annotations

import inspect
import itertools
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pyrovae import likelihoods, networks, objectives, posteriors, priors
from pyrovae.cli.data_options import add_data, load_data, saved_options
from pyrovae.cli.parser import Parser
from pyrovae.cli.signatures import classes, make
from pyrovae.cli.terminal import file_name, print_error, print_text
from pyrovae.data import Data, datasets
from pyrovae.objectives import schedules
from pyrovae.runtime.context import forked_random, stream_seed
from pyrovae.runtime.distributed import Group, init_distributed
from pyrovae.runtime.environment import choose_device
from pyrovae.training import Training, fit
from pyrovae.training.checkpoint import CONFIG, parse_config
from pyrovae.training.run_folder import RunFolder
from pyrovae.vae import VAE

# Classes for each role, the base class of a class of the user, and the default
MENUS: dict[str, tuple[dict[str, type], type, str]] = {
    "likelihood": (classes(likelihoods), likelihoods.Likelihood, "Bernoulli"),
    "prior": (classes(priors), priors.Prior, "StandardNormal"),
    "posterior": (classes(posteriors), posteriors.Posterior, "DiagonalNormal"),
    "encoder": (classes(networks, networks.Encoder), networks.Encoder, "MLPEncoder"),
    "decoder": (classes(networks, networks.Decoder), networks.Decoder, "MLPDecoder"),
    "objective": (classes(objectives, objectives.Objective), objectives.Objective, "ELBO"),
    "annealing": (classes(schedules), schedules.Schedule, "Constant"),
}
HIDDEN = ("covariate_dim", "max_plate_nesting", "vectorize_particles")  # arguments without a use for a plain VAE
MAX_PSEUDO_INPUTS = 10_000  # data points from which a prior may take its pseudo-inputs


def train(argv: Sequence[str]) -> None:
    """Fit a VAE and save it in a run folder."""
    parser = Parser(prog="pyrovae train", description="Fit a VAE by SVI and save it in a run folder.")
    run = parser.add_argument_group("run")
    parser.add(run, "folder", "run folder (default: the next free runs/DATA-NUMBER)", metavar="DIR")
    parser.add(run, "resume", "resume the run in this folder, with the options it was made with", metavar="DIR")
    add_training(parser, run)
    options = absolute_data(_resumed(parser, argv))
    with init_distributed(options["device"]) as group:
        run_training(parser, options, group)


def add_training(parser: Parser, run: Any) -> None:
    """Add the options of data, model and training, and ``--allow`` to the group of the run."""
    add_data(parser)
    model = parser.add_argument_group("model")
    parser.add(model, "latent_dim", "latent dimensions", default=16)
    for role, (menu, base, default) in MENUS.items():
        parser.add_part(role, menu, default, base=base, hidden=HIDDEN)
    parser.add_record("training", Training)
    text = "packages beside pyrovae from which a file or a run may import classes (default: none)"
    run.add_argument("--allow", nargs="+", default=[], metavar="PACKAGE", help=text)


def absolute_data(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options with absolute paths of data, so that a run finds them from any folder."""
    for name in ("data", "data.root"):
        if options[name] is not None and options[name] not in datasets.NAMES and Path(options[name]).exists():
            options[name] = str(Path(options[name]).resolve())
    return options


def prepare(parser: Parser, options: dict[str, Any], group: Group) -> tuple[VAE, Data, objectives.Objective, Training]:
    """Make everything that the options of a run describe."""
    objective = _objective(parser, options)
    training = Training(**{name: options[name] for name in Training.__dataclass_fields__})
    choose_device(training.device)
    likelihood, _ = parser.chosen("likelihood", options)
    data = group.main_process_first(lambda: load_data(options, likelihood.form))
    with forked_random(stream_seed(training.seed, "initialize")):
        return _build(parser, options, data), data, objective, training


def run_training(
    parser: Parser, options: dict[str, Any], group: Group, *, output: Callable[[str], None] = print_text
) -> None:
    """Fit a VAE on one of the ranks, or resume the run that the options name; ``output`` takes the results as text."""
    vae, data, objective, training = prepare(parser, options, group)
    given = options["resume"] or options["folder"]
    folder = Path(given or group.from_first(lambda: _next_folder(data.name)))
    words = _words_to_load(parser, options, folder)
    ranks = f" in each of {group.size} processes" if group.size > 1 else ""
    output(f"{data}\non {choose_device(training.device)}{ranks}\n")
    try:
        history = fit(
            vae.model,
            vae.guide,
            data,
            objective=objective,
            training=training,
            folder=folder,
            resume=options["resume"] is not None,
            command=parser.to_save(options),
        )
    except KeyboardInterrupt:
        print_error(f"\nTo resume: pyrovae train --resume {words}\n")
        raise
    output(f"\n{history}\n\nrun: {folder}\nnext: pyrovae evaluate {words}\n")


def _objective(parser: Parser, options: dict[str, Any]) -> objectives.Objective:
    """Make the objective; only an ELBO can be annealed."""
    annealing = make(*parser.chosen("annealing", options), {})
    part, arguments = parser.chosen("objective", options)
    if not isinstance(annealing, schedules.Constant) and "annealing" not in inspect.signature(part).parameters:
        name = options["objective"]
        raise ValueError(f"{name} cannot be annealed; leave out --annealing, or choose --objective ELBO")
    return make(part, arguments, {"annealing": annealing})


def _build(parser: Parser, options: dict[str, Any], data: Data) -> VAE:
    """Build the parts in the order in which they depend on each other."""
    latent_dim = options["latent_dim"]
    make_likelihood, arguments = parser.chosen("likelihood", options)
    likelihood = make_likelihood.for_data(data, **arguments)
    posterior = make(*parser.chosen("posterior", options), {"latent_dim": latent_dim})
    shapes = {"x_shape": data.x_shape, "out_shape": posterior.param_shape}
    encoder = make(*parser.chosen("encoder", options), shapes)
    make_prior, arguments = parser.chosen("prior", options)
    context = {"latent_dim": latent_dim, "encoder": encoder, "posterior": posterior}
    if "data" in inspect.signature(make_prior).parameters:
        context["data"] = likelihood.encoder_input(data.train.first(MAX_PSEUDO_INPUTS).fixed())
    prior = make(make_prior, arguments, context)
    context = {"latent_dim": latent_dim, "out_shape": likelihood.param_shape}
    decoder = make(*parser.chosen("decoder", options), context)
    return VAE(prior=prior, decoder=decoder, likelihood=likelihood, encoder=encoder, posterior=posterior)


def _resumed(parser: Parser, argv: Sequence[str]) -> dict[str, Any]:
    """Return the options; with ``--resume``, the run has the defaults."""
    typed = parser.typed(argv)
    if typed["resume"] is None:
        return parser.options(argv)
    if typed["folder"] is not None:
        raise ValueError("--resume continues in the folder of the run; leave out --folder")
    config = parse_config(RunFolder(typed["resume"]).read(CONFIG))
    return parser.options(argv, saved=saved_options(config, typed["resume"]) | {"folder": None})


def _words_to_load(parser: Parser, options: dict[str, Any], folder: Path) -> str:
    """Return the words that name the run on the command line, with the packages that its parts need."""
    paths = [options[role] for role in parser.roles if "." in options[role]]
    packages = sorted({path.partition(".")[0] for path in paths} - {"pyrovae"})
    return shlex.join([str(folder), *(["--allow", *packages] if packages else [])])


def _next_folder(name: str) -> Path:
    """Return the first ``runs/NAME-NUMBER`` that does not exist."""
    folders = (Path("runs") / f"{file_name(name)}-{number}" for number in itertools.count(1))
    return next(folder for folder in folders if not folder.exists())
