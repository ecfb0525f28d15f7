"""Every example and benchmark runs; a new file is tested as soon as it exists."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
BENCHMARKS = sorted(path for path in (ROOT / "examples" / "benchmarks").glob("*.py") if path.name != "contenders.py")
LARGEST_PICTURE = 100_000  # bytes
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


@pytest.mark.slow
@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.name)
def test_benchmark(path: Path, tmp_path: Path) -> None:
    command, environment = [sys.executable, str(path), "--smoke"], os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    rows = [line.split("|") for line in done.stdout.splitlines() if line.startswith("| ")]
    assert len(rows) > 1, "a benchmark prints a table of a header and its rows"
    assert all(float(row[-2]) > 0 for row in rows[1:]), "a row ends with a ratio"
    assert path.read_text().splitlines()[2].split()[:2] == ["python", f"examples/benchmarks/{path.name}"]
