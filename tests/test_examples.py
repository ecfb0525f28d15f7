"""Every example and benchmark runs; a new file is tested as soon as it exists."""

from __future__ import annotations

import importlib
import math
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from conftest import MNIST_ROOT, needs_mnist
from PIL import Image

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
PAPERS = ROOT / "examples" / "papers"
RECIPES = sorted(path for path in PAPERS.glob("*.py") if path.name not in ("common.py", "table.py"))
BENCHMARKS = sorted(path for path in (ROOT / "examples" / "benchmarks").glob("*.py") if path.name != "contenders.py")
LARGEST_PICTURE = LARGEST_RESULT = 100_000  # bytes
WITHOUT_LADDER: set[str] = set()  # examples that print no L_K
REPRESENTATIVES = {"vae", "from_torch", "conditional"}  # examples of the default test set


@pytest.mark.parametrize(
    "path", [pytest.param(path, marks=() if path.stem in REPRESENTATIVES else pytest.mark.slow) for path in EXAMPLES],
    ids=lambda path: path.name,
)  # fmt: skip
def test_example(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.set_default_dtype(torch.float32)
    monkeypatch.chdir(tmp_path)
    picture = tmp_path / "made" / "picture.png"
    monkeypatch.setattr(sys, "argv", [str(path), "--smoke", "--picture", str(picture)])
    runpy.run_path(str(path), run_name="__main__")
    out = capsys.readouterr().out
    assert re.match(r"[A-Z].*\b(seconds|minutes?|hours?)\b", out), "the first line says what it takes"
    assert path.stem in WITHOUT_LADDER or re.search(r"\bL_\d+ ", out)
    assert "nats per datum" in out
    content = picture.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) <= LARGEST_PICTURE
    assert len(np.unique(np.asarray(Image.open(picture)))) > 10, "the picture is not empty"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_one_page_and_its_docstring_says_how_to_run_it(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) <= 110
    assert lines[2].split()[:2] == ["python", f"examples/{path.name}"]
    assert re.search(r"\b(seconds|minutes?|hours?)\b", lines[2])


def run_smoke(path: Path, folder: Path) -> str:
    """Return the output of a script that runs in a folder."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYROVAE_DATA": str(MNIST_ROOT)}
    command = [sys.executable, str(path), "--smoke"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.name)
def test_benchmark(path: Path, tmp_path: Path) -> None:
    rows = [line.split("|") for line in run_smoke(path, tmp_path).splitlines() if line.startswith("| ")]
    assert len(rows) > 1, "a benchmark prints a table of a header and its rows"
    assert all(float(row[-2]) > 0 for row in rows[1:]), "a row ends with a ratio"
    assert path.read_text().splitlines()[2].split()[:2] == ["python", f"examples/benchmarks/{path.name}"]


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the module that makes the page of the papers."""
    monkeypatch.syspath_prepend(PAPERS)
    return importlib.import_module("table")


@needs_mnist
@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipe_of_a_paper(path: Path, tmp_path: Path, table: ModuleType) -> None:
    run_smoke(path, tmp_path)
    results = tmp_path / "runs" / "papers" / "results"
    assert all(file.stat().st_size < LARGEST_RESULT for file in results.rglob("*.json"))
    rows = importlib.import_module(path.stem).ROWS
    assert {f"{row.run}-0" for row in rows} == {folder.name for folder in results.iterdir()}
    numbers = [row[3] for row in table.comparison(rows, table.load_runs(results)).rows]
    assert all(math.isfinite(number.value) for number in numbers)
    assert path.read_text().splitlines()[2].split()[:2] == ["python", f"examples/papers/{path.name}"]


def test_page_of_the_papers_is_made_of_the_saved_evaluations(table: ModuleType) -> None:
    page = table.make_page(table.RESULTS)
    assert page == table.README.read_text(), "run python examples/papers/table.py"
    assert all(file.stat().st_size < LARGEST_RESULT for file in table.RESULTS.rglob("*.json"))


def test_a_row_of_the_papers_has_the_spread_over_seeds_and_the_epochs_that_were_cut(table: ModuleType) -> None:
    fixed = {"epochs": 5, "planned_epochs": 5, "recipe_epochs": 10, "training_minutes": 1.0, "evaluation_minutes": 1.0}
    fixed |= {"device": "cpu", "commit": ""}
    records = [table.Record(seed=seed, training_elbo=elbo, **fixed) for seed, elbo in enumerate((-100.2, -99.8))]
    row = table.Row("run", "label", -100.3, of="training ELBO")
    (cells,) = table.comparison([row], {"run": [(None, record) for record in records]}).rows
    both = ("-100.00 +- 0.28", "2", "", "`[#####.....]` cut", "+0.30 of 0.57", "5 of 10")
    assert tuple(map(str, cells[3:])) == both
    (cells,) = table.comparison([row], {"run": [(None, records[0])]}).rows
    assert cells[3:7] == (table.Number(-100.2, 2), "one", "", "`[###.......]` cut")
    assert table.draw_bar(-0.5, 0.3, is_cut=False) == "`[##########]#######` lower"
    assert table.draw_bar(0.1, 0.3, is_cut=False) == "`[###.......]` within"
