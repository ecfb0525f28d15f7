"""The house: a room imports only from rooms above it, and the map in the package's docstring is true."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import pyrovae

PACKAGE = Path(pyrovae.__file__).parent
ROOMS = (
    ("sandbox", "memory", "describe", "progress"),
    ("data",),
    ("results",),
    ("part", "distributions"),
    ("priors", "likelihoods", "posteriors", "networks"),
    ("vae",),
    ("kl",),
    ("pair",),
    ("scoring",),
    ("particles",),
    ("bounds",),
    ("objectives",),
    ("training",),
    ("evaluate",),
    ("report",),
    ("cli",),
    ("__init__", "__main__"),
)
FLOOR = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms}
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module == "pyrovae":
            names = [f"pyrovae.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        found |= {name.split(".")[1] for name in names if name.startswith("pyrovae.")}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_rooms_import_only_from_above(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        return
    for other in imported_rooms(path) - {room}:
        assert FLOOR[other] < FLOOR[room], f"{room} imports {other}, which lies below it"


def test_every_file_has_a_room_and_every_room_files() -> None:
    assert {room_of(path) for path in FILES} == set(FLOOR)


@pytest.mark.parametrize("name", ["networks", "likelihoods", "priors", "posteriors"])
def test_parts_do_not_know_each_other(name: str) -> None:
    parts = {"networks", "likelihoods", "priors", "posteriors"}
    for path in (PACKAGE / name).glob("*.py"):
        assert not (imported_rooms(path) & (parts - {name}))


def test_networks_are_torch_only() -> None:
    for path in (PACKAGE / "networks").glob("*.py"):
        assert "pyro." not in path.read_text().replace("pyrovae.", "")


def test_the_map_names_what_exists() -> None:
    lines = (pyrovae.__doc__ or "").split("\n\n")[2].splitlines()
    words = [line.split()[0] for line in lines]
    assert len(words) >= 15
    for word in words:
        assert word in FLOOR or hasattr(pyrovae, word)
    for room in ("priors", "likelihoods", "posteriors", "networks"):
        line = next(line for line in lines if line.startswith(room))
        for name in getattr(pyrovae, room).__all__:
            assert name in line or name in ("Prior", "Likelihood", "Posterior")


def test_public_names_are_documented() -> None:
    for name in pyrovae.__all__:
        assert (getattr(pyrovae, name).__doc__ or "").strip()
