"""The command ``pyrovae generate``."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
from matplotlib.figure import Figure

from pyrovae.cli.data_options import add_run, load_run
from pyrovae.cli.parser import Parser
from pyrovae.cli.terminal import print_text, write_file
from pyrovae.report.image_figures import samples
from pyrovae.report.panels import is_image
from pyrovae.report.style import to_png


def generate(argv: Sequence[str]) -> None:
    """Draw data from a run."""
    usage, description = "pyrovae generate RUN [options]", "Draw data from the model of a run."
    parser = Parser(prog="pyrovae generate", usage=usage, description=description)
    group = parser.add_argument_group("generation")
    parser.add(group, "num", "number of draws", default=64)
    parser.add(group, "draws", "draw x from p(x | z) instead of its mean E[x | z]", action="store_true")
    parser.add(group, "seed", "seed of the draws", default=0)
    text = ".png for a picture, .npy for an array (default: samples.png or samples.npy in RUN)"
    parser.add(group, "out", text, metavar="FILE")
    add_run(parser)
    options = parser.options(argv)
    run = load_run(options)
    images = is_image(run.vae)
    out = Path(options["out"] or run.folder.path / ("samples.png" if images else "samples.npy"))
    if out.suffix not in (".png", ".npy"):
        raise ValueError(f"samples are written to a .png or a .npy file, but received {out}")
    if out.suffix == ".png" and not images:
        raise ValueError(f"data of shape {run.vae.likelihood.x_shape} are not images; write them to a .npy file")
    settings = {"seed": options["seed"], "mean": not options["draws"]}
    if out.suffix == ".npy":
        file = io.BytesIO()
        np.save(file, run.vae.generate(options["num"], **settings).numpy())
        content = file.getvalue()
    else:
        content = to_png(cast(Figure, samples(run.vae, num=options["num"], **settings)))
    write_file(out, content, "--out")
    print_text(f"{out}\n")
