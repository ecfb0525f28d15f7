"""The report of an evaluation as files in a run folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import nn

from pyrovae.data import Split
from pyrovae.data.batches import Rows, Source
from pyrovae.evaluate.evaluation import weights_hash
from pyrovae.pair import Program
from pyrovae.particles import particles
from pyrovae.report.page import render
from pyrovae.report.sections import Shown, headlines, sections
from pyrovae.report.tree import to_datatree, to_netcdf
from pyrovae.results import Evaluation, History
from pyrovae.results.record import tensors_of
from pyrovae.sandbox import forked_random, stream_seed
from pyrovae.training.folder import RunFolder
from pyrovae.vae import VAE

REPORT = "report"
UNFINISHED = f"{REPORT}/unfinished.safetensors"
DATA, PARTICLES, DRAWS = 100, 1000, 200  # of evaluation.nc
HARDNESS = ("khat", "ESS", "largest weight")


def write_report(
    folder: str | Path,
    evaluation: Evaluation,
    *,
    model: Program,
    guide: Program,
    data: Source,
    history: History | None = None,
    settings: Mapping[str, Any] | None = None,
    modules: Iterable[nn.Module] = (),
) -> Path:
    """Write an evaluation into a run folder as one page that needs nothing else, and its numbers beside it.

    The same evaluation of the same pair gives the same files, to the byte.

    Args:
        folder: of the run; it need not hold one yet.
        evaluation: the estimates.
        model: that was evaluated; pictures of data take that of a `VAE`.
        guide: that was evaluated.
        data: that were evaluated.
        history: what training showed, None where that is not known.
        settings: of the run, to be listed.
        modules: those used by the programs that cannot be found from them.

    Returns:
        The folder ``report`` inside it: ``index.html``, ``evaluation.json``, ``per_datum.safetensors`` with the values
        per datum, and ``evaluation.nc``, draws from p(z | x) for the first data in the groups that ArviZ reads.

    Raises:
        ValueError: if the folder cannot be written to, or the data are not those that were evaluated.

    Example:
        >>> write_report("runs/first", evaluation, model=vae.model, guide=vae.guide, data=data.test)

    """
    rows = Rows(data)
    weights = weights_hash(model, guide, modules)
    if weights != evaluation.settings.get("weights", weights):
        raise ValueError(
            "the report shows the model and guide that were evaluated, but their weights are others (the SHA-256 "
            "differ); give the pair that evaluate was given, or evaluate this one"
        )
    if rows.hash() != evaluation.data_hash:
        raise ValueError(
            f"the report shows the data that were evaluated, {evaluation.data}, but received others (their SHA-256 "
            "differ); give the split that evaluate was given"
        )
    x, *covariates = rows.fixed()
    owner = getattr(model, "__self__", None)
    shown = Shown(
        evaluation,
        vae=owner if isinstance(owner, VAE) else None,
        x=x,
        covariates=tuple(covariates),
        labels=data.labels if isinstance(data, Split) else None,
        history=history,
        settings=settings,
    )
    page = render(
        sections(shown),
        title=f"log {evaluation.density} of {evaluation.data}",
        date=evaluation.date,
        summary=headlines(evaluation),
    )
    values = {name: tensor.clone() for name, tensor in tensors_of(evaluation).items()}  # two of them may be the same
    files = {
        "index.html": page.encode(),
        "evaluation.json": evaluation.to_json().encode(),
        "per_datum.safetensors": safetensors.torch.save(values),
        "evaluation.nc": _draws(shown, model, guide, modules),
    }
    run = RunFolder(folder)
    run.write({f"{REPORT}/{name}": content for name, content in files.items()})
    return run.path / REPORT


def read_report(folder: str | Path) -> Evaluation:
    """Read the evaluation that `write_report` wrote into a run folder, values per datum included.

    Raises:
        ValueError: if there is none, its files were changed, or another version of pyrovae wrote them.

    """
    run = RunFolder(folder)
    names = (f"{REPORT}/per_datum.safetensors", f"{REPORT}/evaluation.json")
    contents = run.read_files(names, remedy=f"evaluate it again: pyrovae evaluate {run.path}")
    values, text = (contents[name] for name in names)
    return Evaluation.from_json(text.decode(), safetensors.torch.load(values))


def _draws(shown: Shown, model: Program, guide: Program, modules: Iterable[nn.Module]) -> bytes:
    """Return the content of ``evaluation.nc``."""
    evaluation = shown.evaluation
    first = slice(0, DATA)
    args = tuple(tensor[first] for tensor in (shown.x, *shown.covariates))
    with forked_random(stream_seed(evaluation.seed, "draws"), args[0].device):
        record = particles(
            model, guide, *args, num_particles=min(PARTICLES, evaluation.iwae[-1].num_particles), modules=modules
        )
    bounds = {estimate.label: estimate.value for estimate in evaluation.estimates}
    tree = to_datatree(
        record,
        args[0],
        covariates=args[1:],
        labels=None if shown.labels is None else shown.labels[first],
        per_datum={name: evaluation.per_datum[name][first] for name in HARDNESS if name in evaluation.per_datum},
        attributes={
            **bounds,
            "data": evaluation.data,
            "data_hash": evaluation.data_hash,
            "base_measure": evaluation.base_measure,
            "seed": evaluation.seed,
            **{f"{name} version": version for name, version in evaluation.versions.items()},
        },
        num_draws=DRAWS,
        seed=evaluation.seed,
        leave_out=True,
    )
    return to_netcdf(tree)
