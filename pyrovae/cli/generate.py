"""The command ``pyrovae generate``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pyrovae.cli.options import Parser
from pyrovae.report import samples
from pyrovae.report.folder import to_png
from pyrovae.training import load


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
