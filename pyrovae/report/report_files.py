"""Reports of evaluations in run folders: write, read and compare them."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyro
import safetensors.torch
from torch import nn

from pyrovae import results
from pyrovae.data import fingerprint
from pyrovae.data.loader import Loader, Source
from pyrovae.evaluation.evaluator import weights_of
from pyrovae.importance.sampling import particles
from pyrovae.programs import Program, Unnormalized, find_modules
from pyrovae.programs.values import from_bytes
from pyrovae.report.arviz_tree import to_datatree, to_netcdf
from pyrovae.report.page import ReportContext, render
from pyrovae.results import Comparison, Evaluation, History
from pyrovae.results.record import tensors_of
from pyrovae.runtime.annotations import checked
from pyrovae.runtime.context import forked_random, stream_seed
from pyrovae.training.checkpoint import CONFIG, METRICS, MODEL, WEIGHTS, parse_progress, read_files
from pyrovae.training.run_folder import RunFolder
from pyrovae.vae import VAE

REPORT = "report"  # default name of a report
NUMBERS, VALUES = "evaluation.json", "per_datum.safetensors"
OTHER_WEIGHTS = (
    "the run has other weights now than were evaluated, as after more training; evaluate it anew with --overwrite"
)
NAME = re.compile(r"\w[\w.-]*")
NUM_DATA, NUM_PARTICLES, NUM_DRAWS = 100, 1000, 200  # in evaluation.nc
DIAGNOSTICS = ("khat", "ESS", "largest weight")  # in evaluation.nc


@checked
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
    """Write an evaluation into a run folder: one self-contained page, and its numbers beside it.

    The same evaluation of the same model and guide gives the same files, to the byte. If the call fails, an earlier
    report stays complete.

    Args:
        folder: run folder; it may be new.
        evaluation: estimates.
        model: evaluated model; figures of data need the model of a `VAE`.
        guide: evaluated guide.
        data: evaluated data.
        history: metrics of training, if known.
        settings: settings of the run, to be listed.
        modules: modules of the programs that cannot be found from them.
        name: name of the report and of its sub-folder.
        overwrite: whether to replace another evaluation of that name.

    Returns:
        The sub-folder: ``index.html``, ``evaluation.json``, ``per_datum.safetensors`` with the values per datum, and
        ``evaluation.nc``, draws from p(z | x) for the first data in the groups that ArviZ reads.

    Raises:
        ValueError: if the folder cannot be written to; if model, guide or data differ from the evaluation's; if the
            name is invalid or belongs to another evaluation.

    Example:
        >>> write_report("runs/first", evaluation, model=vae.model, guide=vae.guide, data=data.test)

    """
    run, rows = RunFolder(folder), Loader(data)
    check_report_name(name)
    if not overwrite:
        find_report(run, name, lambda found: replace(found, date=evaluation.date) == evaluation)
    weights, params = evaluation.settings.get("weights", ""), evaluation.settings.get("params", ())
    if all(name in pyro.get_param_store() for name in params):  # otherwise initial values were evaluated
        weights = weights_of(find_modules(model, guide, given=modules), params)["weights"]
    if "weights" in evaluation.settings and weights != evaluation.settings["weights"]:
        raise ValueError(
            "the report shows the model and guide that were evaluated, but their weights are others (the SHA-256 "
            "differ); give the model and guide that evaluate was given, or evaluate these"
        )
    x, *covariates = rows.fixed()
    if fingerprint(x, *covariates) != evaluation.data_hash:
        raise ValueError(
            f"the report shows the data that were evaluated, {evaluation.data}, but received others (their SHA-256 "
            "differ); give the split that evaluate was given"
        )
    owner = getattr(model, "__self__", None)
    context = ReportContext(
        evaluation,
        vae=owner if isinstance(owner, VAE) else None,
        x=x,
        covariates=tuple(covariates),
        labels=rows.split.labels if rows.split else None,
        history=history,
        settings=settings,
        other_reports={other: _is_of(run, other, weights) for other in report_names(folder) if other != name},
    )
    values = {name: tensor.clone() for name, tensor in tensors_of(evaluation).items()}  # names may share a tensor
    files = {
        "index.html": render(context).encode(),
        NUMBERS: evaluation.to_json().encode(),
        VALUES: safetensors.torch.save(values),
        "evaluation.nc": _draws(context, model, guide, modules),
    }
    run.write({f"{name}/{file}": content for file, content in files.items()})
    return run.path / name


def _is_of(run: RunFolder, name: str, weights: str) -> bool:
    """Return whether a report is of weights with this hash; one that cannot be read is not."""
    try:
        return read_report(run.path, name=name).settings.get("weights") == weights
    except ValueError:
        return False


def report_names(folder: str | Path) -> tuple[str, ...]:
    """Return the names of the reports in a run folder."""
    paths = map(Path, RunFolder(folder).manifest())
    return tuple(path.parent.name for path in paths if path.name == NUMBERS and len(path.parts) == 2)


def check_report_name(name: str) -> None:
    """Raise a ValueError if a report cannot have this name, which must name one visible sub-folder."""
    if not NAME.fullmatch(name):
        raise ValueError(
            f"the name of a report is one of a folder, of letters, digits, '.', '_' and '-', but received {name!r}; "
            f"choose one such as {REPORT}-2"
        )


def find_report(run: RunFolder, name: str, is_wanted: Callable[[Evaluation], bool]) -> Evaluation | None:
    """Return the evaluation of a report, or None if there is no report of that name.

    Raise a ValueError if the report holds another evaluation than the wanted one, or cannot be read.
    """
    if name not in report_names(run.path):
        return None
    content = "what this pyrovae cannot read, or was changed"
    try:
        evaluation = read_report(run.path, name=name)
    except ValueError:
        pass
    else:
        if is_wanted(evaluation):
            return evaluation
        content = (
            f"an evaluation of other weights, data or options: {evaluation.data}, {evaluation.num_data} data, up to "
            f"K = {evaluation.iwae[-1].num_particles}, of {evaluation.date[:10]}"
        )
    raise ValueError(
        f"{run.path / name} holds {content}; keep it and choose another name (name=, --report), or replace it "
        "(overwrite=True, --overwrite)"
    )


@checked
def read_report(folder: str | Path, *, name: str | None = None) -> Evaluation:
    """Return an evaluation from the files of `write_report`, with its values per datum.

    Args:
        folder: run folder.
        name: name of the report; if None, "report", or the only one.

    Raises:
        ValueError: if there is no report, or several and no name; if its files were changed, or another version of
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
    remedy = f"evaluate it: pyrovae evaluate {run.path} --overwrite"
    text, values = run.read_files([f"{name}/{file}" for file in (NUMBERS, VALUES)], remedy=remedy).values()
    try:
        return Evaluation.from_json(text.decode(), from_bytes(values, VALUES))
    except ValueError as error:
        raise ValueError(f"the report of {folder} cannot be read ({error.__cause__ or error}); {remedy}") from error


def _draws(context: ReportContext, model: Program, guide: Program, modules: Iterable[nn.Module]) -> bytes:
    """Return the content of ``evaluation.nc``."""
    evaluation, labels = context.evaluation, context.labels
    x, *covariates = (tensor[:NUM_DATA] for tensor in (context.x, *context.covariates))
    model = Unnormalized()(model) if evaluation.unnormalized else model
    k = min(NUM_PARTICLES, evaluation.iwae[-1].num_particles)
    with forked_random(stream_seed(evaluation.seed, "draws"), x.device):
        record = particles(model, guide, x, *covariates, num_particles=k, modules=modules)
    tree = to_datatree(
        record,
        x,
        covariates=covariates,
        labels=None if labels is None else labels[:NUM_DATA],
        per_datum={name: value[:NUM_DATA] for name, value in evaluation.per_datum.items() if name in DIAGNOSTICS},
        attributes={
            **{estimate.label: estimate.value for estimate in evaluation.estimates},
            "data": evaluation.data,
            "data_hash": evaluation.data_hash,
            "base_measure": evaluation.base_measure,
            "seed": evaluation.seed,
            **{f"{name} version": version for name, version in evaluation.versions.items()},
        },
        num_draws=NUM_DRAWS,
        seed=evaluation.seed,
    )
    return to_netcdf(tree)


def compare(
    runs: Mapping[str, Any] | Iterable[str | Path],
    *,
    reference: str | Path | None = None,
    blocks: bool = False,
    name: str | None = None,
    group_seeds: bool = True,
) -> Comparison:
    """Compare evaluated runs on the same data, each paired datum by datum with a reference, as `pyrovae.compare` does.

    Args:
        runs: run folders; or by the name of the model a folder, an evaluation, or a list of these, one for each
            training seed. A folder without a name is named by as many of its last parts as distinguish it from the
            others.
        reference: name or folder of the run to which the others are compared; the first if None.
        blocks: whether to put evaluations that may not be compared in separate tables.
        name: name of the report in each folder; if None, the one that all have in common ("report" if they have
            several), else the only one of each.
        group_seeds: whether folders of VAEs that differ only in their training seed are one row, the mean over seeds
            with errors over data and seeds; models with a name of their own are not grouped.

    Returns:
        The comparison, which prints as a table and has ``to_markdown``, ``to_latex`` and ``to_csv``.

    Raises:
        ValueError: if a folder is not a run, was not evaluated, was changed, or is given twice; if the report is
            ambiguous without a name; or if the runs may not be compared, see `pyrovae.compare`.
        TypeError: if runs are neither folders nor evaluations by name.

    Example:
        >>> print(compare(["runs/digits-1", "runs/digits-2"]))

    """
    named = runs if isinstance(runs, Mapping) else _by_name(runs)
    models = {str(model): list(v) if isinstance(v, (list, tuple)) else [v] for model, v in named.items()}
    folders = [source for sources in models.values() for source in sources if not isinstance(source, Evaluation)]
    if name is None:
        name = _common_report(folders)
    evaluations = {folder: read_report(folder, name=name) for folder in folders}
    if group_seeds and not isinstance(runs, Mapping):
        models = _group_by_recipe(named, evaluations)
    if reference is not None and reference not in models:
        wanted = os.path.realpath(named.get(str(reference), reference))
        paths = {os.path.realpath(v): model for model, sources in models.items() for v in sources if v in folders}
        reference = paths.get(wanted, str(reference))
    comparison = results.compare(
        {
            model: [v if isinstance(v, Evaluation) else evaluations[v] for v in sources]
            for model, sources in models.items()
        },
        reference=None if reference is None else str(reference),
        blocks=blocks,
    )
    changed = [str(folder) for folder, evaluation in evaluations.items() if _has_other_weights(folder, evaluation)]
    return replace(comparison, notes=(f"{', '.join(changed)}: {OTHER_WEIGHTS}",) if changed else ())


def _common_report(folders: Iterable[str | Path]) -> str | None:
    """Return the name of the report that all folders have: "report", or the only one; None if there is none."""
    names = [set(report_names(folder)) for folder in folders]
    common = set.intersection(*names) if names else set()
    return REPORT if REPORT in common else common.pop() if len(common) == 1 else None


def _has_other_weights(folder: str | Path, evaluation: Evaluation) -> bool:
    """Return whether the VAE in a run folder now has other weights than were evaluated; False if it has none."""
    run = RunFolder(folder)
    if MODEL not in run:
        return False
    try:
        contents = read_files(run)
        names, weights = parse_progress(contents).values, from_bytes(contents[WEIGHTS])
    except ValueError:  # an evaluation may be kept without its weights
        return False
    return fingerprint(*(weights[name] for name in names)) != evaluation.settings.get("weights")


def _group_by_recipe(
    named: Mapping[str, str | Path], evaluations: Mapping[str | Path, Evaluation]
) -> dict[str, list[str | Path]]:
    """Return the folders of runs that differ only in their training seed, by a name without the seed."""
    groups: dict[str, dict[Any, str]] = {}
    for name, folder in named.items():
        recipe, seed = _recipe_and_seed(folder)
        key = name if recipe is None else f"{recipe} {evaluations[folder].data_hash}"
        key = name if seed in groups.get(key, {}) else key
        groups.setdefault(key, {})[seed] = name
    members = [list(seeds.values()) for seeds in groups.values()]
    starts = [re.sub(r"[-_./ ]*seed[-_./ =]*[0-9]+$", "", names[0]) for names in members]
    taken = {*named, "", *(start for start in starts if starts.count(start) > 1)}
    grouped = {}
    for start, names in zip(starts, members, strict=True):
        several = f"{names[0]} and {len(names) - 1} more" if start in taken else start
        grouped[several if len(names) > 1 else names[0]] = [named[name] for name in names]
    return grouped


def _recipe_and_seed(folder: str | Path) -> tuple[str | None, int | None]:
    """Return the model and settings of a run without its seed, and the seed; None if the model is not known.

    The recipe contains the number of epochs that were trained, so that a stopped run is apart. Runs with early stopping
    end by themselves after different numbers.
    """
    files = RunFolder(folder).read_files([], optional=[CONFIG, MODEL, METRICS])
    if MODEL not in files:
        return None, None
    config = json.loads(files[CONFIG])
    seed = config["training"].pop("seed")
    command = {name: value for name, value in config["command"].items() if name not in ("seed", "folder")}
    recipe = {name: config[name] for name in ("training", "objective", "optimizer", "data")}
    num_epochs = None if config["training"].get("patience") else files.get(METRICS, b"").count(b"\n")
    model = json.loads(files[MODEL], object_hook=_without_none)  # earlier versions wrote arguments that are None
    return json.dumps([recipe, command, num_epochs, model], sort_keys=True), seed


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _by_name(folders: Iterable[str | Path]) -> dict[str, str | Path]:
    """Return folders by as many of the last parts of their paths as distinguish them."""
    if isinstance(folders, (str, Path)):
        raise TypeError(
            f"compare takes a list of run folders, but received {folders!r}; give evaluations by name, for instance "
            "{'first': a, 'second': b}"
        )
    folders = list(folders)
    for path, count in Counter(map(os.path.realpath, folders)).items():
        if count > 1:
            raise ValueError(f"a model is compared with others, but {path} is given {count} times; name each run once")
    named = {}
    paths = [Path(os.path.abspath(folder)).parts for folder in folders]  # a link keeps its own name
    for parts, folder in zip(paths, folders, strict=True):
        depth = next(d for d in range(1, len(parts) + 1) if sum(other[-d:] == parts[-d:] for other in paths) == 1)
        named["/".join(parts[-depth:])] = folder
    return named
