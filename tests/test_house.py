"""Structure of the package: imports between packages, the map in its docstring, and a new part in one file."""

from __future__ import annotations

import ast
import inspect
import os
import pydoc
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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


CAUCHY = '''
"""Cauchy likelihood for real data."""

import pyro.distributions as dist
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyrovae.likelihoods.location import LocationLikelihood


class Cauchy(LocationLikelihood):
    """Independent Cauchy elements around the decoder's output."""

    n_params = 1
    form = "continuous"
    base_measure = "Lebesgue"

    def forward(self, params: Tensor) -> TorchDistribution:
        """Turn locations into a distribution over x."""
        (location,) = self.split(params)
        return self.independent(dist.Cauchy(location, self.scale))

    def initial_params(self, mean: Tensor) -> Tensor:
        """Return the mean as the location."""
        return mean.unsqueeze(-1)
'''
USE = """
import pyrovae
from pyrovae import VAE, cli, likelihoods, networks, posteriors, priors
data = pyrovae.data.digits().for_form(likelihoods.Cauchy.form)
likelihood = likelihoods.Cauchy.for_data(data, learn_scale=True)
posterior = posteriors.DiagonalNormal(2)
vae = VAE(
    prior=priors.StandardNormal(2),
    decoder=networks.MLPDecoder(2, likelihood.param_shape, hidden=(8,)),
    likelihood=likelihood,
    encoder=networks.MLPEncoder(data.x_shape, posterior.param_shape, hidden=(8,)),
    posterior=posterior,
)
before = likelihood.scale.item()
pyrovae.fit(vae.model, vae.guide, data, training=pyrovae.Training(epochs=1, device="cpu"))
print(pyrovae.__file__, likelihood.scale.item() != before)
cli.main(["train", "--help"])
"""


@pytest.mark.slow
def test_a_new_likelihood_is_one_file_and_two_lines(tmp_path: Path) -> None:
    """The library trains a class of its package and the command line lists it; no other file has its name."""
    shutil.copytree(PACKAGE, tmp_path / "pyrovae", ignore=shutil.ignore_patterns("__pycache__"))
    room = tmp_path / "pyrovae" / "likelihoods"
    (room / "cauchy.py").write_text(CAUCHY.lstrip())
    menu = (room / "__init__.py").read_text()
    menu = menu.replace("\n__all__ = [", '\nfrom pyrovae.likelihoods.cauchy import Cauchy\n\n__all__ = ["Cauchy",')
    (room / "__init__.py").write_text(menu)
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "COLUMNS": "100"}
    done = subprocess.run(
        [sys.executable, "-c", USE], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path / 'pyrovae' / '__init__.py'} True" in done.stdout
    assert "Cauchy: Independent Cauchy elements around the decoder's output" in " ".join(done.stdout.split())


def test_public_names_are_documented_and_help_of_the_package_is_short() -> None:
    for name in pyrovae.__all__:
        assert (getattr(pyrovae, name).__doc__ or "").strip()
    assert len(pydoc.render_doc(pyrovae).splitlines()) <= 120
