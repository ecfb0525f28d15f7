"""Every example runs, as its own process, and a new one is tested the moment it exists."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
BENCHMARKS = sorted(path for path in (ROOT / "examples" / "benchmarks").glob("*.py") if path.name != "contenders.py")


def test_there_are_examples() -> None:
    named = {
        "vae",
        "by_hand",
        "likelihoods",
        "priors",
        "posteriors",
        "objectives",
        "two_layers",
        "conditional",
        "bounds",
        "from_torch",
    }
    assert named <= {path.stem for path in EXAMPLES}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example(path: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error::UserWarning:pyrovae"}
    done = subprocess.run(
        [sys.executable, str(path), "--smoke"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "L_50 " in done.stdout
    assert "nats per datum" in done.stdout
    first_line = path.read_text().splitlines()[2].split()
    assert first_line[:2] == ["python", f"examples/{path.name}"], "an example opens with its command"


@pytest.mark.slow
@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.name)
def test_benchmark(path: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(path), "--smoke"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split("|") for line in done.stdout.splitlines() if line.startswith("| ")]
    assert len(rows) > 1, "a benchmark prints a table of a header and its rows"
    assert all(float(row[-2]) > 0 for row in rows[1:]), "a row ends with a ratio"
    first_line = path.read_text().splitlines()[2].split()
    assert first_line[:2] == ["python", f"examples/benchmarks/{path.name}"], "a benchmark opens with its command"
