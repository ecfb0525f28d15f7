"""Measurements of the package: size, structure and language.

Run ``python tests/house.py``. Goals are from the plan of the project; a line without a goal is for information.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import torch
from conftest import make_vae

import pyrovae

PACKAGE = Path(pyrovae.__file__).parent
TESTS = Path(__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
PHRASES = {  # largest number in 1,000 words of docstrings
    r"what (is|are|was|it|they)": 0.2,
    r"(that|those) of": 0.1,
    r"tells?|told": 0.1,
    r"of which": 0.5,
}
OPTIONS = 8  # largest number of arguments of a function
PARTS = {"likelihoods", "priors", "posteriors", "distributions"}  # packages that may share base names


def main() -> None:
    """Print the table."""
    lines = sum(len(path.read_text().splitlines()) for path in FILES)
    _line("package: lines", lines, goal=16_000)
    _line("package: files", len(FILES), goal=150)
    _line("package: rooms", len(rooms()), goal=20)
    _line("tests: lines", sum(len(path.read_text().splitlines()) for path in TESTS.glob("*.py")), goal=11_000)
    repeated = repeated_names()
    _line("base names of files that occur more than once", len(repeated), goal=0, names=repeated)
    hidden = hidden_modules()
    _line("public functions that hide their module", len(hidden), goal=0, names=hidden)
    private = private_users()
    _line("files that use private names of torch or Pyro", len(private), goal=4, names=private)
    for function in (pyrovae.evaluate, pyrovae.fit, pyrovae.bounds.ais, pyrovae.diagnostics.gaps):
        _line(f"arguments of {function.__name__}", len(inspect.signature(function).parameters), goal=OPTIONS)
    runs, functions, files = cost_of_evaluate()
    _line("runs of model and guide before the first particles", runs, goal=6)
    _line("functions that evaluate calls around the programs", functions, goal=60)
    _line("files of these functions", files, goal=18)
    words = " ".join(docstrings()).split()
    _line("docstrings: share of lines, percent", round(100 * docstring_lines() / lines))
    text = " ".join(words)
    for phrase, most in PHRASES.items():
        rate = 1000 * len(re.findall(rf"\b({phrase})\b", text, re.IGNORECASE)) / len(words)
        _line(f"docstrings: {phrase!r} in 1,000 words", round(rate, 2), goal=most)


def rooms() -> list[str]:
    """Return the top-level modules and packages."""
    return sorted({path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES} - {"__init__", "__main__"})


def repeated_names() -> list[str]:
    """Return the base names of more than one file; a part and its distribution may have the same."""
    places = {(path.stem, "parts" if path.parent.name in PARTS else str(path.parent)) for path in FILES}
    counts = Counter(stem for stem, _ in places)
    return sorted(name for name, count in counts.items() if count > 1 and name not in ("__init__", "base"))


def hidden_modules() -> list[str]:
    """Return the modules that a function of the same name hides."""
    hidden = []
    for path in FILES:
        names = path.relative_to(PACKAGE.parent).with_suffix("").parts
        if names[-1] in ("__init__", "__main__"):
            names = names[:-1]
        if len(names) > 1:
            parent = importlib.import_module(".".join(names[:-1]))
            importlib.import_module(".".join(names))
            if not isinstance(getattr(parent, names[-1]), ModuleType):
                hidden.append(".".join(names[1:]))
    return hidden


def private_users() -> list[str]:
    """Return the files that import or read a private name of torch or Pyro."""
    users = []
    for path in FILES:
        tree = ast.parse(path.read_text())
        names = [
            f"{node.module}.{alias.name}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module
            for alias in node.names
        ]
        names += [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
        names = [name for name in names if re.match(r"(torch|pyro)\.", name)]
        if any(re.search(r"\._[a-z]", name) for name in names):
            users.append(str(path.relative_to(PACKAGE)))
    return users


def docstrings() -> Iterator[str]:
    """Yield all docstrings."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                yield ast.get_docstring(node) or ""


def docstring_lines() -> int:
    """Return the number of lines of all docstrings."""
    return sum(len(text.splitlines()) for text in docstrings())


def cost_of_evaluate() -> tuple[int, int, int]:
    """Evaluate a small VAE; return the runs before the first particles, the functions called around the programs, and
    the files of these functions.
    """
    data = pyrovae.data.digits().for_form("binary")
    vae = make_vae(2)
    runs = 0
    running = False
    before_particles = 0
    called: set[tuple[str, str]] = set()

    def counted(program: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> None:
            nonlocal runs, running
            runs, running = runs + 1, True
            try:
                program(*args)
            finally:
                running = False

        return run

    def note(frame: FrameType, event: str, arg: object) -> None:
        nonlocal before_particles
        code = frame.f_code
        if (
            event == "call"
            and not running
            and code.co_filename.startswith(str(PACKAGE))
            and not code.co_name.startswith("<")
        ):
            called.add((code.co_filename, code.co_qualname))
            if code.co_name == "draw_guide" and not before_particles:
                before_particles = runs

    sys.setprofile(note)
    try:
        with torch.no_grad():
            pyrovae.evaluate(
                counted(vae.model), counted(vae.guide), data.test, ks=(1, 2), modules=[vae], show_progress=False
            )
    finally:
        sys.setprofile(None)
    return before_particles, len(called), len({file for file, _ in called})


def _line(name: str, value: float, *, goal: float | None = None, names: list[str] | None = None) -> None:
    """Print one measurement, and the names behind it if it exceeds its goal."""
    verdict = "" if goal is None else f"goal {goal:g}" + ("" if value <= goal else "  <-")
    print(f"{name:56}{value:>9}   {verdict}")
    if names and goal is not None and value > goal:
        print(f"    {', '.join(names)}")


if __name__ == "__main__":
    main()
