"""A run folder is whole before and after, whenever the writing process dies."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from conftest import make_vae

import pyrovae
from pyrovae.training import folder as module
from pyrovae.training.folder import MANIFEST, RunFolder

OLD = {"a": b"old a", "b": b"old b", "report/c": b"old c"}
NEW = {"a": b"new a", "report/c": b"new c", "d": b"new d"}


class Killed(BaseException):
    """What a killed process would not live to see."""


@pytest.mark.parametrize("renames", range(4))
def test_a_process_killed_while_renaming(tmp_path: Path, renames: int, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder(tmp_path / "run")
    run.write(OLD)
    replace, done = os.replace, []

    def dying(source: Path, target: Path) -> None:
        if len(done) == renames:
            raise Killed
        done.append(target)
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "replace", dying)
        with pytest.raises(Killed):
            run.write(NEW)
    again = RunFolder(tmp_path / "run")
    expected = OLD | NEW if renames else OLD  # nothing renamed: the folder is still the old one
    assert {name: again.read(name) for name in expected} == expected
    again.write({"e": b"new e"})
    assert {name: again.read(name) for name in OLD | NEW} == OLD | NEW
    assert not list(tmp_path.rglob(".*.new"))


@pytest.mark.parametrize("written", range(4))
def test_a_process_killed_while_writing(tmp_path: Path, written: int, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder(tmp_path / "run")
    run.write(OLD)
    write, done = Path.write_bytes, []

    def dying(path: Path, content: bytes) -> int:
        if len(done) == written:
            write(path, content[: len(content) // 2])
            raise Killed
        done.append(path)
        return write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", dying)
        with pytest.raises(Killed):
            run.write(NEW)
    again = RunFolder(tmp_path / "run")
    assert {name: again.read(name) for name in OLD} == OLD
    again.write(NEW)
    assert {name: again.read(name) for name in OLD | NEW} == OLD | NEW


def test_an_interrupt_waits_for_the_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder(tmp_path / "run")
    run.write(OLD)
    replace = os.replace

    def interrupted(source: Path, target: Path) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        replace(source, target)

    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(module.os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run.write(NEW)
    assert signal.getsignal(signal.SIGINT) == before
    assert {name: run.read(name) for name in OLD | NEW} == OLD | NEW


def test_a_changed_file_is_not_mistaken_for_an_unfinished_one(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.write(OLD)
    (run.path / "b").write_bytes(b"edited")
    with pytest.raises(ValueError, match="b is not the file that was written"):
        run.read("b")
    (run.path / MANIFEST).write_text("{")
    with pytest.raises(ValueError, match="manifest.json is damaged"):
        run.read("a")


def test_a_run_of_another_version_says_so(tmp_path: Path) -> None:
    vae = make_vae()
    data = pyrovae.data.digits().for_form("binary")
    training = pyrovae.Training(epochs=1, batch_size=1000, device="cpu")
    pyrovae.fit(vae.model, vae.guide, data, training=training, folder=tmp_path / "run", shown=False)
    run = RunFolder(tmp_path / "run")
    config, parts = (json.loads(run.read(name)) for name in ("config.json", "model.json"))
    parts["arguments"]["decoder"]["arguments"]["widths"] = parts["arguments"]["decoder"]["arguments"].pop("hidden")
    config["versions"]["pyrovae"] = "99.0"
    run.write({"config.json": json.dumps(config).encode(), "model.json": json.dumps(parts).encode()})
    with pytest.raises(ValueError, match=r"was written by pyrovae 99\.0 and cannot be read by this one, .*'widths'"):
        pyrovae.load(tmp_path / "run")
