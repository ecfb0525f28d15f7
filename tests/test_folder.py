"""A run folder holds the old files or the new ones, whole, whenever a process dies, and beside any other process."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
from conftest import make_vae
from kills import State, restore, state_of, states

import pyrovae
from pyrovae import Training, likelihoods
from pyrovae.cli import main
from pyrovae.data import Data, fingerprint, from_arrays, transforms
from pyrovae.evaluation import evaluate
from pyrovae.report import folder as report_folder
from pyrovae.report import read_report, write_report
from pyrovae.results import Epoch
from pyrovae.runtime import locked
from pyrovae.training.checkpoint import Checkpoint, Progress
from pyrovae.training.run_folder import MANIFEST, RunFolder

OLD = {"a": b"old a", "b": b"old b", "report/c": b"old c"}
NEW = {"a": b"new a", "report/c": b"new c", "d": b"new d"}


def written(folder: Path) -> RunFolder:
    run = RunFolder(folder)
    run.write(OLD)
    return run


def read(run: RunFolder) -> dict[str, bytes]:
    return run.read_files(run.manifest())


def test_a_killed_write_leaves_the_old_files_or_the_new(tmp_path: Path) -> None:
    run = written(tmp_path / "run")
    found = states(run.path, lambda: run.write(NEW))
    assert len(found) > 15
    seen = []
    for state in found:
        again = RunFolder(restore(state, tmp_path / "again"))
        seen.append(read(again))
        assert seen[-1] in (OLD, OLD | NEW)
        assert [again.read(name) for name in seen[-1]] == list(seen[-1].values())
        again.write({"e": b"new e"})
        assert read(again) == seen[-1] | {"e": b"new e"}
        again.write(NEW)
        assert read(again) == OLD | NEW | {"e": b"new e"}
        assert {path.name for path in again.path.rglob("*")} == {"a", "b", "d", "e", "report", "c", MANIFEST}
    assert [OLD, OLD | NEW] == [value for number, value in enumerate(seen) if value not in seen[:number]]
    assert seen == sorted(seen, key=len)  # once the new files are there, they stay


def test_the_first_write_leaves_nothing_or_all(tmp_path: Path) -> None:
    for state in states(tmp_path, lambda: written(tmp_path / "run")):
        again = RunFolder(restore(state, tmp_path.with_name("again")) / "run")
        assert again.manifest() == {} or read(again) == OLD
        again.write(OLD)
        assert read(again) == OLD


def test_lost_files_of_a_set_leave_the_old_one(tmp_path: Path) -> None:
    """As after a power failure, or by another hand."""
    run = written(tmp_path / "run")
    committed = next(state for state in states(run.path, lambda: run.write(NEW)) if _committed(state))
    for name in NEW:
        again = RunFolder(restore(committed, tmp_path / "again"))
        path = again.path_of(name)
        path.with_name(f".{path.name}.new").write_bytes(b"")
        if name in OLD:
            assert again.read_files(OLD) == OLD
        again.write({"e": b"new e"})
        assert read(again) == OLD | {"e": b"new e"}


def _committed(state: State) -> bool:
    content = state.get(f".{MANIFEST}.new")
    return bool(content) and content.endswith(b"}\n")


# training


def small() -> Data:
    x = torch.rand(40, 4, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    return from_arrays(x, validation=8, test=8).with_transform(transforms.DynamicBinarization())


def train(folder: Path, epochs: int, *, resume: bool = False, seed: int = 0) -> list[float]:
    """Train a small VAE in a folder, and return the ELBO of each epoch."""
    torch.manual_seed(seed)
    vae = make_vae(2, likelihoods.Bernoulli((4,)))
    training = Training(epochs=epochs, batch_size=16, device="cpu")
    history = pyrovae.fit(
        vae.model, vae.guide, small(), training=training, folder=folder, resume=resume, show_progress=False
    )
    return [epoch.elbo for epoch in history.epochs]


def loaded(folder: Path) -> tuple[int, str] | None:
    """Return the epoch of a run and the fingerprint of its weights, both of training's state too."""
    run = None
    with contextlib.suppress(ValueError):
        state = Checkpoint(RunFolder(folder)).read()  # before a load finishes anything
        run = pyrovae.load(folder)
    if run is None:
        return None
    weights = run.vae.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in state.values.items())
    assert len(state.epochs) == len(run.history.epochs)
    return len(state.epochs), fingerprint(*weights.values())


def unlocked(state: State) -> State:
    return {name: content for name, content in state.items() if not name.endswith(".lock")}


def test_killed_training_is_resumed_or_begun_anew_to_the_same_numbers(tmp_path: Path) -> None:
    """The next write makes the folder what it is without a kill, from where the numbers are those of a whole run."""
    whole = train(tmp_path / "whole", 2)
    path, folder = tmp_path / "run", tmp_path / "again"
    found = states(path, lambda: train(path, 1)) + states(path, lambda: train(path, 2, resume=True))
    seen = [loaded(restore(state, folder)) for state in found]
    assert seen == sorted(seen, key=lambda each: -1 if each is None else each[0])
    named = list(zip(seen, map(unlocked, found), strict=True))
    clean = {each: state for each, state in named if not any(name.endswith(".new") for name in state)}
    assert [each and each[0] for each in clean] == [None, 0, 1, 2]
    for each, state in zip(seen, found, strict=True):
        target = clean[each] if each else next(state for each, state in clean.items() if each)
        run = RunFolder(restore(state, folder))
        run.write({name: content for name, content in target.items() if name != MANIFEST})
        assert unlocked(state_of(folder)) == target
    begun = next(state for each, state in zip(seen[::-1], found[::-1], strict=True) if each is None)
    for state in (clean[None], begun):
        with pytest.raises(ValueError, match="it has no manifest.json; train one with pyrovae train --folder"):
            train(restore(state, folder), 2, resume=True)
        assert train(folder, 2) == whole
    for state in list(clean.values())[1:]:
        assert train(restore(state, folder), 2, resume=True) == whole


def test_a_new_run_may_take_a_folder_that_another_left_at_its_start(tmp_path: Path) -> None:
    """Also one of an earlier version, which kept a mark there and wrote the settings first."""
    (tmp_path / ".claimed").touch()
    RunFolder(tmp_path).write({"config.json": b"{}"})
    for call in (lambda: pyrovae.load(tmp_path), lambda: train(tmp_path, 1, resume=True)):
        with pytest.raises(
            ValueError, match=r"has no trainer.pt: it ended before its first checkpoint; train anew, in "
        ):
            call()
    train(tmp_path, 1)
    assert len(pyrovae.load(tmp_path).history.epochs) == 1


# evaluation, pictures, comparisons


def evaluated(folder: Path, seed: int) -> None:
    """Evaluate a run as the command does."""
    run = pyrovae.load(folder)
    programs = {"model": run.vae.model, "guide": run.vae.guide, "data": small().test}
    journal = run.folder.path_of("report/unfinished.safetensors")
    evaluation = evaluate(**programs, ks=(1, 2), batch_size=4, seed=seed, journal=journal, show_progress=False)
    write_report(folder, evaluation, history=run.history, overwrite=True, **programs)


def seed_of_report(folder: Path) -> int | None:
    with contextlib.suppress(ValueError):
        return read_report(folder).seed
    return None


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[State]]:
    """Return a run that was evaluated twice, and the states of its folder meanwhile."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    path = tmp_path_factory.mktemp("evaluated") / "run"
    train(path, 1)
    with pytest.MonkeyPatch.context() as patch:  # of what takes seconds to make
        patch.setattr(report_folder, "sections", lambda show_progress: [])
        patch.setattr(report_folder, "render", lambda *args, **options: "page of " + options["date"] * 9)
        patch.setattr(report_folder, "_draws", lambda *args: b"draws")
        found = states(path, lambda: evaluated(path, 0)) + states(path, lambda: evaluated(path, 1))
    torch.set_default_dtype(default)
    return path, found


def test_a_killed_evaluation_leaves_the_old_report_or_the_new(
    evaluation: tuple[Path, list[State]], tmp_path: Path
) -> None:
    path, found = evaluation
    folder, run = tmp_path / "again", loaded(path)
    seeds = []
    for state in found:
        seeds.append(seed_of_report(restore(state, folder)))
        assert loaded(folder) == run
        RunFolder(folder).write({})
        assert seed_of_report(folder) == seeds[-1]
        listed = RunFolder(folder).manifest()
        assert read(RunFolder(folder)).keys() == listed.keys()
    assert seeds == sorted(seeds, key=lambda seed: -1 if seed is None else seed)
    assert set(seeds) == {None, 0, 1}


def test_a_killed_command_leaves_the_old_samples_and_the_old_table_or_the_new(
    evaluation: tuple[Path, list[State]], tmp_path: Path
) -> None:
    runs = [str(evaluation[0]), str(restore(evaluation[1][-1], tmp_path / "other"))]
    out = tmp_path / "out"
    out.mkdir()
    for name, words in {
        "x.npy": ["generate", runs[0], "--num", "3", "--out", str(out / "x.npy")],
        "table.csv": ["compare", *runs, "--output", str(out / "table.csv")],
    }.items():
        (out / name).write_bytes(b"old")
        found = [state[name] for state in states(out, lambda: main(words))]  # noqa: B023
        new = (out / name).read_bytes()
        assert len(new) > 50
        assert found == sorted(found, key=lambda content: content != b"old")
        assert set(found) == {b"old", new}
    assert sorted(path.name for path in out.iterdir()) == ["table.csv", "x.npy"]


# other processes


def progress(number: int) -> Progress:
    """Return a state of training all of whose parts say the number of the epoch."""
    value = {"w": torch.full((50,), float(number))}
    epochs = tuple(Epoch(each, each, 0.0, None, None, None, 0.1, 0.0) for each in range(1, number + 1))
    return Progress(epochs, value, {"state": {0: value}, "param_groups": []}, value, number, float(number))


def test_a_reader_beside_a_writer_reads_one_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda file: None)
    checkpoint, ended = Checkpoint(RunFolder(tmp_path)), threading.Event()
    checkpoint.folder.write({"config.json": b"{}"})
    checkpoint.save(progress(0))
    written = [0]

    def write() -> None:
        while not ended.is_set():
            written[0] += 1
            checkpoint.save(progress(written[0] % 50))

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    try:
        for _ in range(300):
            found = Checkpoint(RunFolder(tmp_path)).read()
            numbers = [len(found.epochs), found.best_epoch, found.best_validation]
            assert found.best is not None
            numbers += [
                *found.values["w"].unique(),
                *found.best["w"].unique(),
                *found.optimizer["state"][0]["w"].unique(),
            ]
            assert len({int(number) for number in numbers}) == 1
            seen.add(found.best_epoch)
    finally:
        ended.set()
        writer.join()
    assert written[0] > 20
    assert len(seen) > 5


def test_writers_beside_each_other_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda file: None)
    failures: list[BaseException] = []

    def write(name: str) -> None:
        try:
            for number in range(30):
                RunFolder(tmp_path).write({f"{name}{number}": name.encode(), "last": name.encode()})
        except BaseException as error:
            failures.append(error)

    writers = [threading.Thread(target=write, args=(name,)) for name in "abc"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert not failures
    assert len(read(RunFolder(tmp_path))) == 91
    assert not list(tmp_path.glob(".*"))


def test_the_same_run_is_not_trained_twice_at_once(tmp_path: Path) -> None:
    train(tmp_path, 1)
    before = state_of(tmp_path)
    words = f"is being trained by the process {os.getpid()} on the host {socket.gethostname()}; wait until it has ended"
    with RunFolder(tmp_path).lock("trained"):
        for resume in (True, False):
            with pytest.raises(ValueError, match=words):
                train(tmp_path, 2, resume=resume)
        assert loaded(tmp_path)
        with RunFolder(tmp_path).lock("evaluated"):
            RunFolder(tmp_path).write({"report/a": b"a"})
    train(tmp_path, 2, resume=True)
    assert state_of(tmp_path).keys() == before.keys() | {"report", "report/a"}


HERE = {"process": os.getppid(), "host": socket.gethostname(), "started": psutil.Process(os.getppid()).create_time()}
DEAD = HERE | {"started": 1.0}


@pytest.mark.parametrize("content", [json.dumps(HERE), json.dumps(DEAD), "", "{", "[]", '{"process": 1}'])
def test_a_lock_that_a_killed_process_left_is_taken(tmp_path: Path, content: str) -> None:
    (tmp_path / ".trained.lock").write_text(content)
    with RunFolder(tmp_path).lock("trained"), pytest.raises(ValueError, match=f"by the process {os.getpid()}"):
        RunFolder(tmp_path).lock("trained").__enter__()
    assert not list(tmp_path.iterdir())


def test_without_locks_of_the_kernel_a_holder_that_runs_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    path = tmp_path / ".lock"
    for holder, text in (
        (HERE, f"by the process {os.getppid()} on"),
        (HERE | {"host": "moon"}, "on the host moon; wait"),
    ):
        path.write_text(json.dumps(holder))
        with pytest.raises(ValueError, match=text), locked(path, "it is being tried"):
            pass
    for holder in (DEAD, HERE | {"process": 2**22 + 1}, HERE | {"process": "x"}, {}):
        path.write_text(json.dumps(holder))
        with locked(path, "it is being tried"):
            assert json.loads(path.read_text())["process"] == os.getpid()
        assert not path.exists()


def test_where_no_file_can_be_made_nothing_is_locked(tmp_path: Path) -> None:
    with locked(tmp_path / "no" / ".lock", "it is being tried"):
        assert not list(tmp_path.iterdir())


def test_a_lock_of_another_user_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file may be opened for reading only."""
    path, system = tmp_path / ".lock", os.open

    def refuse(name: Path, flags: int, *args: int) -> int:
        if flags & os.O_RDWR:
            raise PermissionError(errno.EACCES, "denied")
        return system(name, flags, *args)

    with locked(path, "it is being tried"):
        monkeypatch.setattr(os, "open", refuse)
        with pytest.raises(ValueError, match=f"by the process {os.getpid()} on"), locked(path, "it is being tried"):
            pass
        monkeypatch.undo()


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
    assert not path.exists()


@pytest.mark.slow
def test_a_process_that_is_killed_now_and_then_comes_to_the_same_numbers(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", 300)
    folder, lock, refused = tmp_path / "run", tmp_path / "run" / ".trained.lock", 0
    code = (
        "import sys, torch; sys.path.insert(0, {tests!r}); torch.set_default_dtype(torch.float64); import test_folder; "
        "test_folder.train(test_folder.Path({folder!r}), 300, resume={resume})"
    )
    for seconds in (0.0, 0.01, 0.1, 0.3, 0.5, 0.7):
        resume = loaded(folder) is not None
        words = code.format(tests=str(Path(__file__).parent), folder=str(folder), resume=resume)
        process = subprocess.Popen([sys.executable, "-c", words], stderr=subprocess.PIPE, text=True)
        while process.poll() is None and not (lock.exists() and str(process.pid) in lock.read_text()):
            time.sleep(0.001)
        time.sleep(seconds)
        if process.poll() is None:
            with pytest.raises(ValueError, match=f"by the process {process.pid} on"):
                train(folder, 300, resume=resume)
            refused += 1
        process.kill()
        assert not process.communicate()[1]
    assert refused > 3
    resume = loaded(folder) is not None
    assert train(folder, 300, resume=resume) == whole


# folders from elsewhere


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


def test_a_folder_that_is_a_link_inside_a_run_is_refused(tmp_path: Path) -> None:
    train(tmp_path / "run", 1)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run" / "report").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="cannot be written \\(report is a link, which is not followed\\)"):
        evaluated(tmp_path / "run", 0)
    assert not list((tmp_path / "elsewhere").iterdir())
    (tmp_path / "link").symlink_to(tmp_path / "run")  # a run folder itself may be one
    assert train(tmp_path / "link", 2, resume=True)


@pytest.mark.parametrize(
    "name", ["../../victim", "/victim", "report/../../victim", "..", ".hidden", "", "a//b", "a\\b"]
)
@pytest.mark.parametrize("manifest", [MANIFEST, f".{MANIFEST}.new"])
def test_a_manifest_that_names_files_outside_is_refused(tmp_path: Path, name: str, manifest: str) -> None:
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


@pytest.mark.parametrize("kind", ["link", "hard link", "folder"])
def test_a_lock_is_a_file_of_its_own(tmp_path: Path, kind: str) -> None:
    victim, path = tmp_path / "victim", tmp_path / ".trained.lock"
    victim.write_text("precious")
    {"link": path.symlink_to, "hard link": path.hardlink_to, "folder": lambda target: path.mkdir()}[kind](victim)
    with pytest.raises(ValueError, match="must be a lock file of its own, but is a link or not a regular file; remove"):
        RunFolder(tmp_path).lock("trained").__enter__()
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("kind", ["link", "device", "folder"])
def test_what_is_no_file_is_not_replaced(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path / "run", 1)
    victim, path = tmp_path / "victim", tmp_path / "run" / "samples.npy"
    victim.write_text("precious")
    {"link": path.symlink_to, "device": lambda target: os.mkfifo(path), "folder": lambda target: path.mkdir()}[kind](
        victim
    )
    assert main(["generate", str(tmp_path / "run"), "--num", "3"]) == 2
    assert "samples.npy cannot be written (it is a link, a device or a folder)" in capsys.readouterr().err
    assert victim.read_text() == "precious"
    assert path.is_symlink() or path.is_fifo() or path.is_dir()
    assert not list((tmp_path / "run").glob(".*"))


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
    left = {".a.new", ".d.new", "report/.c.new"} if nth == 4 else set()
    assert state_of(tmp_path).keys() == before.keys() | left
    assert read(run) == OLD


def test_a_pipe_in_a_run_folder_is_no_file(tmp_path: Path) -> None:
    run = written(tmp_path)
    (tmp_path / "a").unlink()
    os.mkfifo(tmp_path / "a")
    with pytest.raises(ValueError, match="a is missing"):
        run.read("a")


def test_an_interrupt_waits_for_the_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = written(tmp_path / "run")
    rename = os.replace

    def interrupted(source: Path, target: Path) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        rename(source, target)

    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run.write(NEW)
    assert signal.getsignal(signal.SIGINT) == before
    assert read(run) == OLD | NEW
    assert not list(run.path.glob(".*"))


def test_a_changed_file_is_not_mistaken_for_an_unfinished_one(tmp_path: Path) -> None:
    run = written(tmp_path / "run")
    (run.path / "b").write_bytes(b"edited")
    with pytest.raises(ValueError, match="b is not the file that was written"):
        run.read("b")
    (run.path / MANIFEST).write_text("{")
    with pytest.raises(ValueError, match="manifest.json is damaged"):
        run.read("a")


def test_a_run_of_another_version_says_so(tmp_path: Path) -> None:
    train(tmp_path, 1)
    run = RunFolder(tmp_path)
    config, parts = (json.loads(run.read(name)) for name in ("config.json", "model.json"))
    parts["arguments"]["decoder"]["arguments"]["widths"] = parts["arguments"]["decoder"]["arguments"].pop("hidden")
    config["versions"]["pyrovae"] = "99.0"
    run.write({"config.json": json.dumps(config).encode(), "model.json": json.dumps(parts).encode()})
    with pytest.raises(ValueError, match=r"was written by pyrovae 99\.0 and cannot be read by this one, .*'widths'"):
        pyrovae.load(tmp_path)
