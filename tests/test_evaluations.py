"""Evaluations in a run folder: each has a name, none replaces another, and what was computed is not lost."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from test_cli import FEW, HIDDEN, fails

from pyrovae.cli import main
from pyrovae.evaluation import batch_scoring as evaluation
from pyrovae.evaluation import checks
from pyrovae.report import compare, read_report
from pyrovae.training.run_folder import RunFolder

SMALL = ["evaluate", "run", "--num_data", "6", "--ks", "1", "4"]
UNCHECKED = [*SMALL, "--checks", "false"]
NAME = "report-first-6-K-1-4-no-checks"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder, and leave out the pictures of reports, which other tests look at."""
    torch.set_default_dtype(torch.float32)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pyrovae.report.page.pictures", lambda _: {})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run that is made once, on the digits."""
    folder = tmp_path_factory.mktemp("made") / "run"
    words = ["--epochs", "1", "--latent_dim", "2", "--device", "cpu", *HIDDEN]
    assert main(["train", "--folder", str(folder), *words]) == 0
    return folder


@pytest.fixture
def run(made: Path) -> Path:
    """Return a copy of it in the working directory."""
    shutil.copytree(made, "run")
    return Path("run")


def journals(run: Path) -> list[Path]:
    return list(run.rglob("unfinished*"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def nothing_computed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Refuse to draw particles or to run a check inside the block."""
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "iter_particles", lambda *_, **__: pytest.fail("particles are drawn anew"))
        for name in ("ais", "bdmc", "gaps", "latents"):
            patch.setattr(checks, name, lambda *_, **__: pytest.fail("a check runs anew"))
        yield


def test_another_evaluation_has_a_folder_of_its_own(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    others = {
        NAME: [],
        "report-validation-first-6-K-1-4-seed-3-no-checks": ["--split", "validation", "--seed", "3"],
        "report-first-3-K-1-4-no-checks": ["--num_data", "3"],
        "mine": ["--report", "mine"],
    }
    written: dict[str, dict[str, bytes]] = {}
    for name, words in others.items():
        assert main([*UNCHECKED, *words]) == 0
        assert f"report: {run / name / 'index.html'}\n" in capsys.readouterr().out
        assert all(contents(run / other) == before for other, before in written.items())
        written[name] = contents(run / name)
    assert read_report(run, name="mine").num_data == 6
    assert read_report(run, name="report-first-3-K-1-4-no-checks").num_data == 3
    with pytest.raises(ValueError, match=r"run has several reports, mine, report-first-3-.*; name one of them"):
        read_report(run)


@pytest.mark.usefixtures("run")
def test_a_finished_evaluation_is_shown_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(UNCHECKED) == 0
    first, before = capsys.readouterr().out, contents(Path("run"))
    with nothing_computed(monkeypatch):
        assert main(UNCHECKED) == 0
    again = capsys.readouterr().out
    assert again.startswith(first.lstrip("\n"))
    assert "; --overwrite evaluates anew\n" in again
    assert contents(Path("run")) == before
    for other in (["--seed", "1"], ["--num_data", "5"], ["--ks", "1", "8"], ["--checks", "true", *FEW]):
        line = fails(capsys, *UNCHECKED, *other, "--report", NAME)
        assert f"run/{NAME} holds an evaluation of other weights, data or options: " in line
        assert "digits/test[:6], 6 data, up to K = 4, of 20" in line
        assert "choose another name (name=, --report), or replace it (overwrite=True, --overwrite)" in line
    assert contents(Path("run")) == before
    assert main([*UNCHECKED, "--overwrite", "--seed", "1", "--report", NAME]) == 0
    assert read_report("run").seed == 1


@pytest.mark.usefixtures("run")
def test_a_report_of_other_weights_or_one_that_cannot_be_read_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    words = [*UNCHECKED, "--report", "report"]
    assert main(words) == 0
    changed = "run: the run has other weights now than were evaluated"
    assert changed not in str(compare(["run"]))
    assert main(["train", "--resume", "run", "--epochs", "3"]) == 0
    assert changed in str(compare(["run"]))
    assert main([*UNCHECKED, "--report", "later"]) == 0
    assert changed not in str(compare(["run"], name="later"))
    assert "report</a> (of other weights)" in Path("run/later/index.html").read_text()
    capsys.readouterr()
    assert "run/report holds an evaluation of other weights" in fails(capsys, *words)
    Path("run/report/evaluation.json").write_text("changed")
    assert "run/report holds what this pyrovae cannot read, or was changed; keep it" in fails(capsys, *words)
    assert main([*words, "--overwrite"]) == 0
    assert read_report("run").num_data == 6


@pytest.mark.usefixtures("run")
def test_names_of_reports_stay_in_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("../other", "a/b", "/tmp/x", "..", ".hidden", " ", "a\nb"):
        for more in ([], ["--overwrite"]):
            assert "the name of a report is one of a folder" in fails(capsys, *SMALL, "--report", name, *more)
    assert not Path("other").exists()
    Path("c.json").write_text(json.dumps({"overwrite": True}))
    assert "--overwrite is given on the command line only" in fails(capsys, *SMALL, "--config", "c.json")


class Killed(BaseException):
    """Stands for the death of the process."""


FAILURES: dict[str, tuple[str, BaseException]] = {
    "full disk": ("pyrovae.training.run_folder.os.replace", OSError(errno.ENOSPC, "No space left on device")),
    "interrupted": ("pyrovae.report.report_files.render", KeyboardInterrupt()),
    "killed before": ("pyrovae.cli.evaluate_command.write_report", Killed()),
    "killed after": ("pyrovae.evaluation.resume.Journal.remove", Killed()),
}
CHECKED = [*SMALL, *FEW, "--report", "report"]


def numbers(folder: str) -> str:
    found = read_report(folder, name="report")
    return found.to_json().replace(found.date, "")


@pytest.fixture(scope="module")
def expected(made: Path) -> str:
    """Return the numbers of an evaluation that nothing interrupts."""
    folder = str(shutil.copytree(made, made.parent / "whole"))
    assert main([word if word != "run" else folder for word in CHECKED]) == 0
    return numbers(folder)


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_after_the_last_check_loses_nothing(
    failure: str, run: Path, expected: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, error = FAILURES[failure]
    with monkeypatch.context() as patch:
        failing = mock.Mock(side_effect=error)
        if place.endswith("os.replace"):  # once the journal is whole
            write = RunFolder.write
            patch.setattr(RunFolder, "write", lambda *args: (patch.setattr(place, failing), write(*args)))
        else:
            patch.setattr(place, failing)
        if isinstance(error, Killed):
            with pytest.raises(Killed):
                main(CHECKED)
        else:
            assert main(CHECKED) == (130 if isinstance(error, KeyboardInterrupt) else 2)
    captured = capsys.readouterr()
    assert "Estimates of log p(x)" in captured.out, "the table is printed all the same"
    assert "To resume: the same command again" in captured.err
    assert "Traceback" not in captured.err
    assert journals(run)
    with nothing_computed(monkeypatch):
        assert main(CHECKED) == 0
    assert not journals(run)
    assert numbers("run") == expected


def test_no_evaluation_overwrites_the_progress_of_another(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even one that is written to the same place, or computed in other batches."""
    first = [*UNCHECKED, "--report", "mine"]
    with monkeypatch.context() as patch:
        patch.setattr("pyrovae.cli.evaluate_command.write_report", mock.Mock(side_effect=KeyboardInterrupt()))
        for number, words in enumerate(([], ["--seed", "1"], ["--batch_size", "2"], ["--seed", "2"])):
            assert main([*first, *words]) == 130
            assert len(journals(run)) == 1 + number
    assert main([*first, "--seed", "2"]) == 0
    assert len(journals(run)) == 3
    with nothing_computed(monkeypatch):
        assert main([*first, "--overwrite"]) == 0
    assert (read_report(run).seed, len(journals(run))) == (0, 2)


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_closed_output_loses_nothing(run: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("pyrovae.runtime.progress_bar.SECONDS_BETWEEN_LINES", 0.0)
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb", buffering=0) as raw, monkeypatch.context() as patch:
        stream = io.TextIOWrapper(io.BufferedWriter(raw), line_buffering=name == "stderr")
        patch.setattr(sys, name, stream)
        assert main(UNCHECKED) == 0
    assert read_report(run).num_data == 6
    assert not journals(run)


def test_names_and_outputs_of_any_encoding(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Data whose name is not ASCII, has an escape sequence, and is no text at all, on an output that is ASCII."""
    name = os.fsdecode(b"gr\xc3\xb6\xc3\x9fe \x1b[31m\xff $x_{$.npz")
    np.savez(name, x=np.random.default_rng(0).normal(size=(50, 3)))
    train = ["train", "--data", name, "--likelihood", "Gaussian", "--epochs", "1", "--device", "cpu", *HIDDEN]
    content = io.BytesIO()
    stream = io.TextIOWrapper(content, encoding="ascii", write_through=True)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        assert main(train) == 0
        (folder,) = Path("runs").iterdir()
        assert main(["evaluate", str(folder), "--ks", "1", "4", "--checks", "false"]) == 0
        assert main(["compare", str(folder), str(folder)]) == 2
    assert folder.name == "größe-31m-x_--1"
    printed = content.getvalue().decode("ascii")
    assert printed.replace("\n", "").isprintable()
    assert r"gr\xf6\xdfe \x1b[31m\udcff $x_{$/test" in printed
    assert read_report(folder).data == f"{name.removesuffix('.npz')}/test"
    error = capsys.readouterr().err
    assert "\x1b" not in error.splitlines()[-1]
