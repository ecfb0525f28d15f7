"""Structure of the package: imports between packages, and the map in its docstring."""

from __future__ import annotations

import ast
import inspect
import pydoc
import re
from pathlib import Path

import pyrovae

PACKAGE = Path(pyrovae.__file__).parent
ROOMS = (
    ("runtime",),
    ("compile",),
    ("data",),
    ("results",),
    ("distributions",),
    ("priors", "likelihoods", "posteriors", "networks"),
    ("vae",),
    ("programs",),
    ("importance",),
    ("bounds",),
    ("objectives",),
    ("training",),
    ("diagnostics",),
    ("evaluation",),
    ("testing",),
    ("report",),
    ("cli",),
    ("__init__", "__main__"),
)
FLOOR = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms}
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module == "pyrovae":
            names = [f"pyrovae.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        rooms |= {name.split(".")[1] for name in names if name.startswith("pyrovae.")}
    return rooms


def test_rooms_import_only_from_above() -> None:
    """Networks, likelihoods, priors and posteriors are on one floor, so they do not import each other."""
    assert {room_of(path) for path in FILES} == set(FLOOR)
    for path in FILES:
        room = room_of(path)
        below = {other for other in imported_rooms(path) - {room} if FLOOR[other] >= FLOOR[room]}
        below -= {"evaluation", "report"} if room == "vae" else set()  # VAE.report is a shortcut
        assert not below or room == "__init__", f"{path.relative_to(PACKAGE)} imports {below} from below"


def test_networks_are_torch_only() -> None:
    for path in (PACKAGE / "networks").glob("*.py"):
        assert "pyro." not in path.read_text().replace("pyrovae.", "")


def test_the_map_names_rooms_and_parts() -> None:
    entries: list[str] = []
    for line in (pyrovae.__doc__ or "").split("\n\n")[2].splitlines():
        if line.startswith(" "):  # continues the entry above
            entries[-1] += line
        else:
            entries.append(line)
    assert {entry.split()[0].lower() for entry in entries} == set(FLOOR) - {"__init__", "__main__"}
    for name in ("priors", "likelihoods", "posteriors", "networks"):
        room = getattr(pyrovae, name)
        (entry,) = (entry for entry in entries if entry.split()[0] == name)
        named = set(re.findall(r"\b[A-Z]\w+", entry))
        assert named <= set(room.__all__)
        assert {part for part in room.__all__ if not inspect.isabstract(getattr(room, part))} <= named


def test_public_names_are_documented_and_help_of_the_package_is_short() -> None:
    for name in pyrovae.__all__:
        assert (getattr(pyrovae, name).__doc__ or "").strip()
    assert len(pydoc.render_doc(pyrovae).splitlines()) <= 120
