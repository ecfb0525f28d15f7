"""Reports of evaluations in a run folder, each a sub-folder with a name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import nn

from pyrovae.data import Split
from pyrovae.data.loader import Loader, Source
from pyrovae.evaluation.evaluator import weights_hash
from pyrovae.importance.sampling import particles
from pyrovae.programs import Program, Unnormalized
from pyrovae.report.page import render
from pyrovae.report.sections import ReportContext, headlines, sections
from pyrovae.report.tree import to_datatree, to_netcdf
from pyrovae.results import Evaluation, History
from pyrovae.results.record import tensors_of
from pyrovae.runtime.context import forked_random, stream_seed
from pyrovae.training.checkpoint import versions
from pyrovae.training.run_folder import RunFolder
from pyrovae.vae import VAE

REPORT = "report"  # default name of a report
NUMBERS, VALUES = "evaluation.json", "per_datum.safetensors"
NAME = re.compile(r"\w[\w.-]*")
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
    name: str = REPORT,
    overwrite: bool = False,
) -> Path:
    """Write an evaluation into a run folder as one page that needs nothing else, and its numbers beside it.

    The same evaluation of the same pair gives the same files, to the byte. If anything fails, the report that was there
    before is whole.

    Args:
        folder: of the run; it need not hold one yet.
        evaluation: the estimates.
        model: that was evaluated; pictures of data take that of a `VAE`.
        guide: that was evaluated.
        data: that were evaluated.
        history: what training showed, None where that is not known.
        settings: of the run, to be listed.
        modules: those used by the programs that cannot be found from them.
        name: of the report, the sub-folder that it is written to.
        overwrite: whether it replaces another evaluation of that name.

    Returns:
        The sub-folder: ``index.html``, ``evaluation.json``, ``per_datum.safetensors`` with the values
        per datum, and ``evaluation.nc``, draws from p(z | x) for the first data in the groups that ArviZ reads.

    Raises:
        ValueError: if the folder cannot be written to, the data are not those that were evaluated, or the name is that
            of another evaluation, or invalid.

    Example:
        >>> write_report("runs/first", evaluation, model=vae.model, guide=vae.guide, data=data.test)

    """
    run, rows = RunFolder(folder), Loader(data)
    check_report_name(name)
    if not overwrite:
        find_report(run, name, lambda found: replace(found, date=evaluation.date) == evaluation)
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
    shown = ReportContext(
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
        NUMBERS: evaluation.to_json().encode(),
        VALUES: safetensors.torch.save(values),
        "evaluation.nc": _draws(shown, model, guide, modules),
    }
    run.write({f"{name}/{file}": content for file, content in files.items()})
    return run.path / name


def report_names(folder: str | Path) -> tuple[str, ...]:
    """Return the names of the reports in a run folder."""
    found = (Path(name) for name in RunFolder(folder).manifest())
    return tuple(path.parent.name for path in found if path.name == NUMBERS and len(path.parts) == 2)


def check_report_name(name: str) -> None:
    """Check that a report's name is one visible sub-folder.

    Raises:
        ValueError: if it is not.

    """
    if not NAME.fullmatch(name):
        raise ValueError(
            f"the name of a report is one of a folder, of letters, digits, '.', '_' and '-', but received {name!r}; "
            f"choose one such as {REPORT}-2"
        )


def find_report(run: RunFolder, name: str, is_same: Callable[[Evaluation], bool]) -> Evaluation | None:
    """Return the evaluation that a report holds, None if there is no report of that name.

    Args:
        run: folder.
        name: of the report.
        is_same: whether an evaluation is the one that is to be written.

    Raises:
        ValueError: if it is another evaluation, or cannot be read.

    """
    if name not in report_names(run.path):
        return None
    what = "what this pyrovae cannot read, or was changed"
    try:
        found = read_report(run.path, name=name)
    except ValueError:
        pass
    else:
        if is_same(found):
            return found
        what = (
            f"an evaluation of other weights, data or options: {found.data}, {found.num_data} data, up to "
            f"K = {found.iwae[-1].num_particles}, of {found.date[:10]}"
        )
    raise ValueError(
        f"{run.path / name} holds {what}; keep it and choose another name (name=, --report), or replace it "
        "(overwrite=True, --overwrite)"
    )


def read_report(folder: str | Path, *, name: str | None = None) -> Evaluation:
    """Read an evaluation that `write_report` wrote into a run folder, values per datum included.

    Args:
        folder: of the run.
        name: of the report; if None, "report", or the only one there is.

    Raises:
        ValueError: if there is none, or several and none is named; if its files were changed, or another version of
            pyrovae wrote them.

    """
    run = RunFolder(folder)
    if name is None:
        names = report_names(folder)
        name = REPORT if REPORT in names or not names else names[0]
        if len(names) > 1 and name != REPORT:
            raise ValueError(
                f"the run {folder} has several reports, {', '.join(names)}; name one of them (name=, --report)"
            )
    remedy = f"evaluate it again: pyrovae evaluate {run.path} --overwrite"
    contents = run.read_files([f"{name}/{file}" for file in (NUMBERS, VALUES)], remedy=remedy)
    text, values = contents.values()
    try:
        return Evaluation.from_json(text.decode(), safetensors.torch.load(values))
    except ValueError as error:
        theirs, ours = _version(text), versions()["pyrovae"]
        wrote = f"another version of pyrovae ({theirs}, this is {ours})" if theirs != ours else "another pyrovae"
        raise ValueError(f"the report of {folder} was written by {wrote} and cannot be read; {remedy}") from error


def _version(text: bytes) -> str:
    """Return the version of pyrovae that a report names."""
    try:
        return str(json.loads(text)["versions"]["pyrovae"])
    except (ValueError, KeyError, TypeError):
        return "not known"


def _draws(shown: ReportContext, model: Program, guide: Program, modules: Iterable[nn.Module]) -> bytes:
    """Return the content of ``evaluation.nc``."""
    evaluation = shown.evaluation
    first = slice(0, DATA)
    args = tuple(tensor[first] for tensor in (shown.x, *shown.covariates))
    model = Unnormalized()(model) if evaluation.unnormalized else model
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
