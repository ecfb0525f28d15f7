"""The options that say which data a command works on."""

from __future__ import annotations

from typing import Any

from pyrovae import data as data_room
from pyrovae.cli.parser import Parser
from pyrovae.cli.signatures import allow_working_directory, classes
from pyrovae.data import Data, transforms
from pyrovae.training import Run, load


def add_data(parser: Parser, default: str | None = "digits") -> None:
    """Add the options; without a default, those that are not given are the run's own."""
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
    group.add_argument(
        "--data.levels",
        type=int,
        metavar="N",
        help="values that integers take (default: 2 or 256, if they show it)",
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


def add_run(parser: Parser) -> None:
    """Add the run to be read, and what it may import."""
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument_group("run").add_argument(
        "--allow", nargs="+", default=[], metavar="PACKAGE",
        help="packages beside pyrovae from which the run's parts may be imported (default: none)",
    )  # fmt: skip


def load_run(options: dict[str, Any]) -> Run:
    """Load the run; what the user allows is also looked for in the working directory."""
    if options["allow"]:
        allow_working_directory()
    return load(options["run"], allow=options["allow"])


def load_data(options: dict[str, Any], form: transforms.Form) -> Data:
    """Return the data as the likelihood scores them, or as the transform that was asked for makes them."""
    data = data_room.load(
        options["data"],
        root=options["data.root"],
        download=options["data.download"] != "false",
        seed=options["data.seed"],
        levels=options["data.levels"],
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


def data_of(run: Run, options: dict[str, Any]) -> Data:
    """Return the data of a run, with the options that were given in place of its own."""
    own = {} if options["data"] else command_of(run.config, run.folder.path)
    names = ("data", "data.root", "data.download", "data.transform", "data.levels", "data.seed")
    merged = {name: own.get(name) if options[name] is None else options[name] for name in names}
    data = load_data(merged | {"data.seed": merged["data.seed"] or 0}, run.vae.likelihood.form)
    trained = run.config["data"]["transform"]
    if trained is None or options["data.transform"] is not None:
        return data
    return data.with_transform(_from_description(trained))


def _from_description(description: dict[str, Any]) -> transforms.Transform:
    """Return the transform of training itself: one that is fitted to data is not fitted again."""
    fields = {name: value for name, value in description.items() if name != "class"}
    return classes(transforms)[description["class"]](**fields)


def command_of(config: dict[str, Any], folder: object) -> dict[str, Any]:
    """Return the options with which a run was made."""
    if not config["command"]:
        raise ValueError(
            f"the run {folder} was not made on the command line and does not say what its data are; "
            "name them with --data"
        )
    return config["command"]
