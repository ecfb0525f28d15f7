"""Comparison of run folders by their reports."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pyrovae import results
from pyrovae.report.report_files import REPORT, read_report, report_names
from pyrovae.results import Comparison, Evaluation
from pyrovae.training.run_folder import RunFolder

Run = str | Path | Evaluation


def compare(
    runs: Mapping[str, Run] | Iterable[str | Path],
    *,
    reference: str | Path | None = None,
    blocks: bool = False,
    name: str | None = None,
) -> Comparison:
    """Compare evaluated runs on the same data, each paired datum by datum with a reference, as `pyrovae.compare` does.

    Args:
        runs: run folders; or folders and evaluations by the name of the model. A folder without a name is named by as
            many of its last parts as distinguish it from the others.
        reference: name or folder of the run to which the others are compared; the first if None.
        blocks: whether to put evaluations that may not be compared in separate tables.
        name: name of the report in each folder; if None, the one that all have in common ("report" if they have
            several), else the only one of each.

    Returns:
        The comparison, which prints as a table and has ``to_markdown``, ``to_latex`` and ``to_csv``.

    Raises:
        ValueError: if a folder is not a run, was not evaluated, was changed, or is given twice; if the report is
            ambiguous without a name; or if the runs may not be compared, see `pyrovae.compare`.
        TypeError: if runs are neither folders nor evaluations by name.

    Example:
        >>> print(compare(["runs/digits-1", "runs/digits-2"]))

    """
    sources = dict(runs) if isinstance(runs, Mapping) else _named(runs)
    for source in sources.values():
        if not isinstance(source, (str, Path, Evaluation)):
            raise TypeError(f"compare takes run folders or evaluations, but received a {type(source).__name__}")
    names = [set(report_names(source)) for source in sources.values() if not isinstance(source, Evaluation)]
    common = set.intersection(*names) if names else set()
    if name is None and common and (REPORT in common or len(common) == 1):
        name = REPORT if REPORT in common else next(iter(common))
    evaluations = {
        model: source if isinstance(source, Evaluation) else _read(source, name) for model, source in sources.items()
    }
    named = None if reference is None else _name_of(reference, sources)
    return results.compare(evaluations, reference=named, blocks=blocks)


def _named(runs: Iterable[str | Path]) -> dict[str, Run]:
    """Return folders by names that distinguish them."""
    folders = [] if isinstance(runs, (str, Path)) or not isinstance(runs, Iterable) else list(runs)
    if not folders or not all(isinstance(folder, (str, Path)) for folder in folders):
        raise TypeError(
            f"compare takes a list of run folders, but received {runs!r}; give evaluations by name, for instance "
            "{'first': a, 'second': b}"
        )
    for path, count in Counter(map(os.path.realpath, folders)).items():
        if count > 1:
            raise ValueError(f"a model is compared with others, but {path} is given {count} times; name each run once")
    names = [*map(os.path.abspath, folders)]  # a link keeps its own name
    names = names if len(set(names)) == len(names) else [*map(os.path.realpath, folders)]
    paths = [Path(name).parts for name in names]
    return {_shortest_name(parts, paths): folder for parts, folder in zip(paths, folders, strict=True)}


def _shortest_name(parts: tuple[str, ...], paths: Sequence[tuple[str, ...]]) -> str:
    """Return as many of the last parts of a path as no other path ends with."""
    depths = range(1, len(parts) + 1)
    depth = next((d for d in depths if sum(other[-d:] == parts[-d:] for other in paths) == 1), len(parts))
    return "/".join(parts[-depth:])


def _name_of(reference: str | Path, sources: Mapping[str, Run]) -> str:
    """Return the name of the reference, given by its name or folder."""
    if reference in sources:
        return str(reference)
    wanted = os.path.realpath(reference)  # unlike Path.resolve it takes a loop of links
    for name, source in sources.items():
        if not isinstance(source, Evaluation) and os.path.realpath(source) == wanted:
            return name
    return str(reference)


def _read(folder: str | Path, name: str | None) -> Evaluation:
    """Return the evaluation of a run folder."""
    run, names = RunFolder(folder), report_names(folder)
    if not run.path.is_dir():
        raise ValueError(f"there is no run folder {folder}; train a model with pyrovae train")
    if run.manifest() and not names:
        raise ValueError(f"the run {folder} was never evaluated; evaluate it first: pyrovae evaluate {folder}")
    if name is not None and names and name not in names:
        raise ValueError(
            f"the run {folder} has no report {name!r}; choose from {', '.join(names)}, or evaluate it first"
        )
    return read_report(folder, name=name)
