"""README.md of this folder, made of the saved evaluations.

python examples/papers/table.py
"""

from __future__ import annotations

import inspect
import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import annealed
import burda
import flow_prior
import gaps
import gated
import iaf
import kingma
from common import RESULTS, TRAINING_ELBO, Record, Row

from pyrovae.results import Evaluation
from pyrovae.results.tables import Number, Table

PAPERS = (burda, kingma, flow_prior, iaf, gated, annealed, gaps)
README = Path(__file__).parent / "README.md"
INTRO = """\
# Published results, run again

Each section is a file with a recipe, and the rows that it has run. `python examples/papers/table.py` makes this page of
the evaluations in `results`; a row that was not run is empty.

- All numbers are nats per datum; larger is better. **ours** is the mean over training seeds with their standard
  deviation. **se data** is the standard error over the test images, from one test set to another.
- The bar shows the difference to the published value. It is full, ten marks, at the tolerance: two standard deviations
  over seeds, but at least the number in the column. More marks are a miss, **lower** or **higher** than published.
- A row with **cut** ran fewer epochs than its recipe, as **epochs** says. Its bar compares a model that is not trained
  to its end, so it is no verdict.
- **L_K** and **AIS** are bounds on log p(x) of the test images; L_K is printed at the largest K, and once more for the
  images of AIS. **minutes** are of training + evaluation. **weights** is the start of the SHA-256 of the weights.
"""

Runs = dict[str, list[tuple[Evaluation, Record]]]


def load_runs(results: Path) -> Runs:
    """Return evaluations and records of all seeds, by the name of the run."""
    runs: Runs = {}
    for folder in sorted(results.glob("*-*")):
        evaluation = Evaluation.from_json((folder / "evaluation.json").read_text())
        record = Record(**json.loads((folder / "run.json").read_text()))
        runs.setdefault(folder.name.rpartition("-")[0], []).append((evaluation, record))
    return runs


def compared_number(row: Row, evaluation: Evaluation, record: Record) -> tuple[float | None, float | None]:
    """Return the number that a row compares, and its standard error over the data, nats per datum."""
    match row.of:
        case "training ELBO":
            return record.training_elbo, None
        case "difference":
            return record.difference, record.difference_error
        case "AIS over L_K":
            return evaluation.checked.higher.value, evaluation.checked.higher.se
        case "gain of a refit":
            return evaluation.checked.gaps.overfitting.value, evaluation.checked.gaps.overfitting.se_data
    gap_parts = evaluation.checked.gaps.estimates if evaluation.checked.gaps else ()
    (estimate,) = (e for e in (*evaluation.estimates, *gap_parts) if e.label == row.of)
    return estimate.value, estimate.se_data


def comparison(rows: Iterable[Row], runs: Runs) -> Table:
    """Return the table of published numbers and ours."""
    cells, notes = [], []
    for row in rows:
        published = "" if row.published is None else Number(row.published, 2)
        if row.run not in runs:
            cells.append((row.label, row.of, published, *[""] * 6))
            continue
        numbers = [compared_number(row, evaluation, record) for evaluation, record in runs[row.run]]
        values, errors = zip(*numbers, strict=True)
        mean, deviation = statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None
        se_data = "" if None in errors else Number(statistics.mean(errors), 2)
        tolerance = max(row.tolerance, 2 * (deviation or 0.0))
        difference = None if row.published is None else mean - row.published
        records = [record for _, record in runs[row.run]]
        is_cut = any(record.planned_epochs < record.recipe_epochs for record in records)
        bar = "" if difference is None else draw_bar(difference, tolerance, is_cut=is_cut)
        cells.append(
            (
                row.label,
                row.of,
                published,
                Number(mean, 2, error=deviation),
                "one" if len(values) == 1 else str(len(values)),
                se_data,
                bar,
                "" if difference is None else f"{difference:+.2f} of {tolerance:.2f}",
                ", ".join(dict.fromkeys(map(count_epochs, records))),
            )
        )
        if row.note:
            notes.append(f"{row.label}: {row.note}")
    header = ("", "number", "published", "ours", "seeds", "se data", "bar", "difference", "epochs")
    return Table(header, tuple(cells), notes=tuple(notes))


def draw_bar(difference: float, tolerance: float, *, is_cut: bool) -> str:
    """Return ten marks for a difference as large as the tolerance, at most thirty, and the verdict."""
    marks = round(10 * min(abs(difference) / tolerance, 3))
    verdict = "within" if abs(difference) <= tolerance else "higher" if difference > 0 else "lower"
    return f"`[{'#' * min(marks, 10):.<10}]{'#' * (marks - 10)}` {'cut' if is_cut else verdict}"


def count_epochs(record: Record) -> str:
    """Return the number of epochs, and that of the recipe if it was cut."""
    cut = record.planned_epochs < record.recipe_epochs
    return f"{record.epochs} of {record.recipe_epochs}" if cut else str(record.epochs)


def run_table(names: Iterable[str], runs: Runs) -> Table | None:
    """Return the table of the runs, one row for each seed; None if there are none."""
    cells = []
    for name in names:
        for evaluation, record in runs.get(name, ()):
            cells.append(
                (
                    f"{name}, seed {record.seed}",
                    count_epochs(record),
                    Number(record.training_elbo, 2),
                    f"{evaluation.num_data:,}",
                    Number(evaluation.elbo.value, 2),
                    f"{Number(evaluation.iwae[-1].value, 2)} (K = {evaluation.iwae[-1].num_particles})",
                    describe_annealing(evaluation),
                    f"{record.training_minutes:.1f} + {record.evaluation_minutes:.1f}",
                    record.device,
                    evaluation.settings["weights"][:10],
                    record.commit,
                )
            )
    header = (
        "run",
        "epochs",
        TRAINING_ELBO,
        "test images",
        "ELBO",
        "L_K",
        "AIS",
        "minutes",
        "device",
        "weights",
        "commit",
    )
    return Table(header, tuple(cells)) if cells else None


def describe_annealing(evaluation: Evaluation) -> str:
    """Return AIS, and L_K of the same images."""
    annealing, same_data = evaluation.checked.annealing, evaluation.checked.same_data
    if annealing is None:
        return ""
    return f"{annealing.bound.value:.2f}; L_K {same_data.value:.2f} ({annealing.num_data:,} images)"


def make_page(results: Path) -> str:
    """Return the page in Markdown."""
    runs = load_runs(results)
    return "\n".join([INTRO, *(section(paper, runs) for paper in PAPERS)])


def section(paper: ModuleType, runs: Runs) -> str:
    """Return the section of a paper: the docstring of its file, and its tables."""
    title, text = inspect.getdoc(paper).split("\n", 1)
    tables = [comparison(paper.ROWS, runs), run_table(dict.fromkeys(row.run for row in paper.ROWS), runs)]
    return "\n".join([f"## {title}", text, "", *(table.to_markdown() for table in tables if table is not None)])


if __name__ == "__main__":
    README.write_text(make_page(RESULTS))
