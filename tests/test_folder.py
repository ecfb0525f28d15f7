"""A run folder holds the old files or the new ones, complete, whenever a process dies and beside other processes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import make_vae
from kills import restore, state_of, states

import pyrovae
import pyrovae.cli
from pyrovae import Training, likelihoods
from pyrovae.data import Data, fingerprint, from_arrays, transforms
from pyrovae.evaluation import evaluate
from pyrovae.report import read_report, report_files, write_report
from pyrovae.results import Epoch
from pyrovae.runtime import locked, replace_file
from pyrovae.training.checkpoint import Checkpoint, Progress, parse_progress, read_files
from pyrovae.training.run_folder import MANIFEST, RunFolder

OLD = {"a": b"old a", "b": b"old b", "report/c": b"old c"}
NEW = {"a": b"new a", "report/c": b"new c", "d": b"new d"}
LOCK = ".writing.lock"


def written(folder: Path) -> RunFolder:
    run = RunFolder(folder)
    run.write(OLD)
    return run


def read(run: RunFolder) -> dict[str, bytes]:
    return run.read_files(run.manifest())


# kills


def test_a_killed_write_leaves_the_old_files_or_the_new(tmp_path: Path) -> None:
    first = states(tmp_path, lambda: written(tmp_path / "run"))
    for state in first:
        again = RunFolder(restore(state, tmp_path.with_name("again")) / "run")
        assert again.manifest() == {} or read(again) == OLD
        again.write(OLD)
        assert read(again) == OLD
    run = RunFolder(tmp_path / "run")
    second = states(run.path, lambda: run.write(NEW))
    assert len(second) > 12
    seen = []
    for state in second:
        again = RunFolder(restore(state, tmp_path / "again"))
        seen.append(read(again))
        assert seen[-1] in (OLD, OLD | NEW)
        again.write({"e": b"new e"})
        assert read(again) == seen[-1] | {"e": b"new e"}
        again.write(NEW)
        assert read(again) == OLD | NEW | {"e": b"new e"}
        assert {path.name for path in again.path.rglob("*")} == {"a", "b", "d", "e", "report", "c", MANIFEST, LOCK}
    assert seen == sorted(seen, key=len), "once the new files are there, they stay"
    assert (seen[0], seen[-1]) == (OLD, OLD | NEW)


def test_lost_files_of_a_set_leave_the_old_one(tmp_path: Path) -> None:
    """A power failure may lose files."""
    run = written(tmp_path / "run")
    pending = f".{MANIFEST}.new"
    committed = next(
        state for state in states(run.path, lambda: run.write(NEW)) if (state.get(pending) or b"").endswith(b"}\n")
    )
    for name in NEW:
        again = RunFolder(restore(committed, tmp_path / "again"))
        path = again.path_of(name)
        path.with_name(f".{path.name}.new").write_bytes(b"")
        if name in OLD:
            assert again.read_files(OLD) == OLD
        again.write({"e": b"new e"})
        assert read(again) == OLD | {"e": b"new e"}


def small() -> Data:
    x = torch.rand(40, 4, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    return from_arrays(x, validation=8, test=8).with_transform(transforms.DynamicBinarization())


def train(folder: Path, epochs: int, *, resume: bool = False) -> list[float]:
    """Train a small VAE in a folder, and return the ELBO of each epoch."""
    torch.manual_seed(0)
    vae = make_vae(2, likelihoods.Bernoulli((4,)))
    training = Training(epochs=epochs, batch_size=16, device="cpu")
    history = pyrovae.fit(
        vae.model, vae.guide, small(), training=training, folder=folder, resume=resume, show_progress=False
    )
    return [epoch.elbo for epoch in history.epochs]


def loaded(folder: Path) -> tuple[int, str] | None:
    """Return the number of epochs of a run and the fingerprint of its weights, which the state of training has too."""
    try:
        state = parse_progress(read_files(RunFolder(folder)))
        run = pyrovae.load(folder)
    except ValueError:
        return None
    weights = run.vae.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in state.values.items())
    assert len(state.epochs) == len(run.history.epochs)
    return len(state.epochs), fingerprint(*weights.values())


def test_killed_training_is_resumed_or_begun_anew_to_the_same_numbers(tmp_path: Path) -> None:
    """The next write makes the folder equal to one without a kill, from which the numbers are the same."""
    uninterrupted = train(tmp_path / "uninterrupted", 2)
    path, folder = tmp_path / "run", tmp_path / "again"
    killed = states(path, lambda: train(path, 1)) + states(path, lambda: train(path, 2, resume=True))
    killed = [{name: content for name, content in state.items() if not name.endswith(".lock")} for state in killed]
    runs = [loaded(restore(state, folder)) for state in killed]
    assert runs == sorted(runs, key=lambda run: -1 if run is None else run[0])
    clean = {}  # the last state of each run without temporary files
    for run, state in zip(runs, killed, strict=True):
        if not any(name.endswith(".new") for name in state):
            clean[run] = state
    assert [run and run[0] for run in clean] == [None, 0, 1, 2]
    targets = [state for run, state in clean.items() if run]
    for run, state in zip(runs, killed, strict=True):
        target = clean[run] if run else targets[0]
        RunFolder(restore(state, folder)).write({name: target[name] or b"" for name in target if name != MANIFEST})
        assert state_of(folder) == target | {LOCK: b""}
    begun = [state for run, state in zip(runs, killed, strict=True) if run is None]
    with pytest.raises(ValueError, match="it has no manifest.json; train one with pyrovae train --folder"):
        train(restore(begun[-1], folder), 2, resume=True)
    assert train(folder, 2) == uninterrupted
    for state in targets:
        assert train(restore(state, folder), 2, resume=True) == uninterrupted


def test_a_new_run_may_take_the_folder_of_one_without_a_checkpoint(tmp_path: Path) -> None:
    RunFolder(tmp_path).write({"config.json": b"{}"})
    with pytest.raises(ValueError, match="has no trainer.pt; train with this folder"):
        train(tmp_path, 1, resume=True)
    train(tmp_path, 1)
    assert len(pyrovae.load(tmp_path).history.epochs) == 1


def evaluated(folder: Path, seed: int) -> None:
    """Evaluate a run as the command does."""
    run = pyrovae.load(folder)
    programs = {"model": run.vae.model, "guide": run.vae.guide, "data": small().test}
    journal = run.folder.path_of("report/unfinished.safetensors")
    evaluation = evaluate(**programs, ks=(1, 2), batch_size=4, seed=seed, journal=journal, show_progress=False)
    write_report(folder, evaluation, history=run.history, overwrite=True, **programs)


def test_a_killed_evaluation_leaves_the_old_report_or_the_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_files, "render", lambda context: "page of " + context.evaluation.date * 9)
    monkeypatch.setattr(report_files, "_draws", lambda *args: b"draws")
    path, folder, seeds = tmp_path / "run", tmp_path / "again", []
    train(path, 1)
    run = loaded(path)
    for state in states(path, lambda: evaluated(path, 0)) + states(path, lambda: evaluated(path, 1)):
        seeds.append(None)
        with contextlib.suppress(ValueError):
            seeds[-1] = read_report(restore(state, folder)).seed
        assert loaded(folder) == run
        RunFolder(folder).write({})
        assert read(RunFolder(folder)).keys() == RunFolder(folder).manifest().keys()
    assert seeds == sorted(seeds, key=lambda seed: -1 if seed is None else seed)
    assert set(seeds) == {None, 0, 1}


def test_a_killed_replacement_leaves_the_old_file_or_the_new(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"old")
    contents = [state["x"] for state in states(tmp_path, lambda: replace_file(tmp_path / "x", b"new content"))]
    assert contents == sorted(contents, key=lambda content: content != b"old")
    assert set(contents) == {b"old", b"new content"}
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


# other processes


def progress(number: int) -> Progress:
    """Return a state of training all of whose entries equal the number of epochs."""
    value = {"w": torch.full((50,), float(number))}
    epochs = tuple(Epoch(epoch, epoch, 0.0, None, None, None, 0.1, 0.0) for epoch in range(1, number + 1))
    return Progress(epochs, value, {"state": {0: value}, "param_groups": []}, value, number, float(number))


def test_a_reader_beside_a_writer_reads_one_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda file: None)
    checkpoint, ended, count = Checkpoint(RunFolder(tmp_path), {}, small), threading.Event(), 0
    checkpoint.save(progress(0))

    def write() -> None:
        nonlocal count
        while not ended.is_set():
            count += 1
            checkpoint.save(progress(count % 50))

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    try:
        for _ in range(100):
            state = parse_progress(read_files(RunFolder(tmp_path)))
            assert state.best is not None
            tensors = (state.values["w"], state.best["w"], state.optimizer["state"][0]["w"])
            numbers = [len(state.epochs), state.best_epoch, state.best_validation]
            assert len({*numbers, *(float(value) for tensor in tensors for value in tensor.unique())}) == 1
            seen.add(state.best_epoch)
    finally:
        ended.set()
        writer.join()
    assert count > 10
    assert len(seen) > 3


def test_the_same_run_is_not_trained_twice_at_once(tmp_path: Path) -> None:
    train(tmp_path, 1)
    before = state_of(tmp_path)
    words = "is being trained by another process; wait until it has ended"
    with RunFolder(tmp_path).lock("trained"):
        for resume in (True, False):
            with pytest.raises(ValueError, match=words):
                train(tmp_path, 2, resume=resume)
        assert loaded(tmp_path)
        with RunFolder(tmp_path).lock("evaluated"):
            RunFolder(tmp_path).write({"report/a": b"a"})
    train(tmp_path, 2, resume=True)
    assert state_of(tmp_path).keys() == before.keys() | {"report", "report/a", ".evaluated.lock"}


# locks


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / ".trained.lock").write_text("left")
    with RunFolder(tmp_path).lock("trained"), pytest.raises(ValueError, match="by another process"):
        RunFolder(tmp_path).lock("trained").__enter__()


def test_without_locks_of_the_system_the_work_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path / ".lock", "it is being tried"):
        RunFolder(tmp_path).write(OLD)
    assert RunFolder(tmp_path).read("a") == OLD["a"]


def test_a_lock_is_waited_for(tmp_path: Path) -> None:
    path, held = tmp_path / ".lock", threading.Event()

    def hold() -> None:
        with locked(path, "it is being tried"):
            held.set()
            time.sleep(0.1)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    with locked(path, "it is being tried", patience=10.0):
        holder.join()


# links, damage, full disks


def test_temporary_names_do_not_follow_links(tmp_path: Path) -> None:
    victim, folder = tmp_path / "victim", tmp_path / "run"
    victim.write_text("precious")
    folder.mkdir()
    for name in ("config.json", "model.json", "trainer.pt", "model.safetensors", "metrics.jsonl", MANIFEST):
        (folder / f".{name}.new").symlink_to(victim)
        (folder / name).symlink_to(victim)
    (folder / MANIFEST).unlink()
    train(folder, 1)
    assert loaded(folder)
    assert victim.read_text() == "precious"
    assert not any(path.is_symlink() for path in folder.iterdir())


def test_a_folder_that_is_a_link_inside_a_run_is_an_error(tmp_path: Path) -> None:
    train(tmp_path / "run", 1)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run" / "report").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="cannot be written \\(report is a link, which is not followed\\)"):
        evaluated(tmp_path / "run", 0)
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("name", ["../../victim", "/victim", "report/../../victim", ".hidden"])
@pytest.mark.parametrize("manifest", [MANIFEST, f".{MANIFEST}.new"])
def test_a_manifest_that_names_files_outside_is_an_error(tmp_path: Path, name: str, manifest: str) -> None:
    folder, victim = tmp_path / "runs" / "run", tmp_path / "victim"
    run = written(folder)
    victim.write_text("precious")
    (tmp_path / ".victim.new").write_text("new")
    digest = "11507a0e2f5e69d5dfa40a62a1bd7b6ee57e6bcd85c67c9b8431b36fff21c437"  # of "new"
    (folder / manifest).write_text(json.dumps({"files": run.manifest() | {name: digest}}))
    for call in (run.manifest, lambda: run.read("a"), lambda: run.write(NEW)):
        with pytest.raises(ValueError, match="is damaged: it names .*, which is not a file of the run; do not use"):
            call()
    assert victim.read_text() == "precious"
    with pytest.raises(ValueError, match="files of a run have names like report/index.html, but received"):
        run.write({name: b""})


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_only_a_regular_file_is_read_or_replaced(tmp_path: Path, kind: str) -> None:
    run = written(tmp_path / "run")
    victim, path = tmp_path / "victim", run.path / "a"
    victim.write_text("precious")
    path.unlink()
    {"link": path.symlink_to, "pipe": lambda target: os.mkfifo(path), "folder": lambda target: path.mkdir()}[kind](
        victim
    )
    with pytest.raises(ValueError, match="a is not the file that was written" if kind == "link" else "a is missing"):
        run.read("a")
    with pytest.raises(OSError, match="it is a link, a device or a folder"):
        replace_file(path, b"new")
    assert victim.read_text() == "precious"
    assert {path.name for path in run.path.glob(".*")} == {LOCK}


@pytest.mark.parametrize("nth", range(1, 6))
def test_a_full_disk_leaves_the_old_files_alone(tmp_path: Path, nth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    run = written(tmp_path)
    before, calls = state_of(tmp_path), []

    def full(file: int) -> None:
        calls.append(file)
        if len(calls) >= nth:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    if nth == 5:  # three files and a manifest
        run.write(NEW)
        assert read(run) == OLD | NEW
        return
    with pytest.raises(ValueError, match=r"cannot be written \(No space left on device\); choose another folder"):
        run.write(NEW)
    left = [".a.new", "report/.c.new", ".d.new"][: nth - 1]
    assert state_of(tmp_path).keys() == before.keys() | set(left)
    assert read(run) == OLD


def test_a_changed_file_is_not_an_unfinished_one(tmp_path: Path) -> None:
    run = written(tmp_path / "run")
    (run.path / "b").write_bytes(b"edited")
    with pytest.raises(ValueError, match="b is not the file that was written"):
        run.read("b")
    for text in ("{", "[" * 100_000):
        (run.path / MANIFEST).write_text(text)
        with pytest.raises(ValueError, match="manifest.json is damaged"):
            run.read("a")


# other versions


def test_a_run_of_the_version_before_the_redesign_is_loaded_resumed_and_evaluated(tmp_path: Path) -> None:
    """The numbers are those of the version that wrote the folder."""
    torch.set_default_dtype(torch.float32)
    folder = Path(shutil.copytree(Path(__file__).parent / "data" / "run_before", tmp_path / "run"))
    run = pyrovae.load(folder)
    assert run.vae.generate(3, seed=0, mean=True).sum().item() == pytest.approx(58.848363, abs=1e-4)
    data = pyrovae.data.digits().for_form("binary")
    evaluation = evaluate(run.vae.model, run.vae.guide, data.test, ks=(1, 5), device="cpu", show_progress=False)
    assert evaluation.elbo.value == pytest.approx(-27.342952, abs=1e-4)
    assert [bound.value for bound in evaluation.iwae] == pytest.approx([-27.348760, -27.169812], abs=1e-4)
    parts = RunFolder(folder).read("model.json").replace(b"pyrovae.networks.mlp.", b"pyrovae.networks.renamed.")
    RunFolder(folder).write({"model.json": parts})  # as of a version with other files
    assert pyrovae.cli.main(["train", "--resume", str(folder), "--epochs", "3"]) == 0
    elbos = [epoch.elbo for epoch in pyrovae.load(folder).history.epochs]
    assert elbos == pytest.approx([-27.392777, -27.350503, -27.338526], abs=1e-4)
