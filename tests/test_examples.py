"""Every example and benchmark runs; a new file is tested as soon as it exists."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
BENCHMARKS = sorted(path for path in (ROOT / "examples" / "benchmarks").glob("*.py") if path.name != "contenders.py")
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
    monkeypatch.setattr(sys, "argv", [str(path), "--smoke"])
    runpy.run_path(str(path), run_name="__main__")
    out = capsys.readouterr().out
    assert "L_50 " in out
    assert "nats per datum" in out
    assert path.read_text().splitlines()[2].split()[:2] == ["python", f"examples/{path.name}"]


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
