"""Options for the data and the run of a command."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from pyrovae import data as data_package
from pyrovae.cli.parser import Parser
from pyrovae.cli.signatures import allow_working_directory, classes
from pyrovae.data import Data, transforms
from pyrovae.training import Run, load

REMOVED = {"precision"}  # options of earlier versions


def add_data(parser: Parser, default: str | None = "digits") -> None:
    """Add the options of the data; without a default, the run has the defaults."""
    group = parser.add_argument_group("data")
    add = functools.partial(parser.add, group)
    data = "digits" if default else "the data of the run"
    kinds = "digits, mnist, fashion_mnist, kmnist, or a path: .npz, .npy, .csv, folder of images"
    add("data", f"{kinds} (default: {data})")
    add("data.root", "folder of the named data sets (default: $PYROVAE_DATA, else a cache)", metavar="DIR")
    add("data.download", "download missing files (default: true)", choices=("true", "false"))
    add("data.levels", "number of values that integers can take (default: 2 or 256, if the data fit)", type=int)
    menu = tuple(classes(transforms))
    add("data.transform", f"{', '.join(menu)} (default: by the likelihood)", metavar="CLASS", choices=menu)
    add("data.seed", "seed of splits and of binarized test data (default: 0)", type=int)
    if default:
        parser.set_defaults(**{"data": default, "data.download": "true", "data.seed": 0})


def add_run(parser: Parser) -> None:
    """Add the run folder, and the packages that it may import."""
    parser.add_argument("run", metavar="RUN", help="run folder")
    text = "packages beside pyrovae from which parts of the run may be imported (default: none)"
    parser.add_argument_group("run").add_argument("--allow", nargs="+", default=[], metavar="PACKAGE", help=text)


def load_run(options: dict[str, Any]) -> Run:
    """Load the run; allowed packages may also lie in the working directory."""
    if options["allow"]:
        allow_working_directory()
    return load(options["run"], allow=options["allow"])


def load_data(options: dict[str, Any], form: transforms.Form) -> Data:
    """Return the data in the form that the likelihood scores, or under the transform of ``--data.transform``."""
    data = data_package.load(
        options["data"],
        root=options["data.root"],
        download=options["data.download"] != "false",
        seed=options["data.seed"],
        levels=options["data.levels"],
    )
    if options["data.transform"] is None:
        return data.for_form(form)
    transform = classes(transforms)[options["data.transform"]]
    if transform is transforms.Standardization:
        return data.with_transform(transforms.Standardization.fit(data.train.stored))
    return data.with_transform(transform())


def run_data(run: Run, options: dict[str, Any]) -> Data:
    """Return the data of a run; options that were given override its own."""
    own = {} if options["data"] else saved_options(run.config, run.folder.path)
    names = ("data", "data.root", "data.download", "data.transform", "data.levels", "data.seed")
    merged = {name: own.get(name) if options[name] is None else options[name] for name in names}
    data = load_data(merged | {"data.seed": merged["data.seed"] or 0}, run.vae.likelihood.form)
    trained = run.config["data"]["transform"]
    if trained is None or options["data.transform"] is not None:
        return data
    fields = {name: value for name, value in trained.items() if name != "class"}  # fitted to the data of training
    return data.with_transform(classes(transforms)[trained["class"]](**fields))


def saved_options(config: Mapping[str, Any], folder: object) -> dict[str, Any]:
    """Return the options with which a run was made; raise a ValueError if it was not made on the command line."""
    if not config["command"]:
        raise ValueError(
            f"the run {folder} was made with data of your own, not on the command line; name the data with --data"
        )
    return {name: value for name, value in config["command"].items() if name not in REMOVED}
