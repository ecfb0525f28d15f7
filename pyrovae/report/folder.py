"""The report of an evaluation as files in a run folder."""

from __future__ import annotations

import io
from pathlib import Path

import safetensors.torch
from matplotlib.figure import Figure

from pyrovae.data.splits import Split
from pyrovae.report.bounds import ladder
from pyrovae.report.curves import training_curves
from pyrovae.report.images import reconstructions, samples, traversals
from pyrovae.report.latents import latent_space
from pyrovae.report.style import styled
from pyrovae.results import Evaluation, History
from pyrovae.training.folder import RunFolder
from pyrovae.vae import VAE

REPORT = "report"
DOTS_PER_INCH = 150


def write_report(folder: str | Path, *, history: History | None, evaluation: Evaluation, vae: VAE, data: Split) -> Path:
    """Write the numbers and pictures of an evaluation into a run folder, and their hashes into its manifest.

    Args:
        folder: of the run; it need not hold one yet.
        history: what training showed, None where that is not known.
        evaluation: the estimates.
        vae: the model.
        data: what pictures are drawn of, in its fixed form.

    Returns:
        The folder ``report`` inside it: ``evaluation.json``, ``per_datum.safetensors``, and of ``training.png``,
        ``ladder.png``, ``reconstructions.png``, ``samples.png``, ``latent_space.png``, ``traversals.png`` what applies.

    Raises:
        ValueError: if the folder cannot be written to.

    """
    files = {
        "evaluation.json": evaluation.to_json().encode(),
        "per_datum.safetensors": safetensors.torch.save(evaluation.per_datum),
    }
    for name, figure in draw_report(history=history, evaluation=evaluation, vae=vae, data=data).items():
        files[f"{name}.png"] = to_png(figure)
    run = RunFolder(folder)
    run.write({f"{REPORT}/{name}": content for name, content in files.items()})
    return run.path / REPORT


def read_report(folder: str | Path) -> Evaluation:
    """Read the evaluation that `write_report` wrote into a run folder, values per datum included.

    Raises:
        ValueError: if there is none, or its files were changed.

    """
    run = RunFolder(folder)
    values = safetensors.torch.load(run.read(f"{REPORT}/per_datum.safetensors"))
    return Evaluation.from_json(run.read(f"{REPORT}/evaluation.json").decode(), values)


def draw_report(*, history: History | None, evaluation: Evaluation, vae: VAE, data: Split) -> dict[str, Figure]:
    """Draw every picture that applies, by name; the arguments are those of `write_report`."""
    x = data.fixed()
    figures = {
        "training": training_curves(history) if history and history.epochs else None,
        "ladder": ladder(evaluation),
        "reconstructions": reconstructions(vae, x, covariates=data.given),
        "samples": samples(vae, covariates=data.given),
        "latent_space": latent_space(vae, x, data.labels, covariates=data.given),
        "traversals": traversals(vae, x, covariates=data.given),
    }
    return {name: figure for name, figure in figures.items() if figure is not None}


@styled
def to_png(figure: Figure) -> bytes:
    """Return a picture as the content of a PNG file."""
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=DOTS_PER_INCH)
    return image.getvalue()
