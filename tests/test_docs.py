"""Code and commands of the documentation run as they are printed."""

from __future__ import annotations

import dataclasses
import re
import runpy
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from conftest import make_vae
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

import pyrovae
from pyrovae import likelihoods, networks, posteriors, priors

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = sorted((ROOT / "examples" / "docs").glob("*.md"))
SLOW = {"pyro_tutorial", "reports", "your_model"}  # pages that run all checks


def python_blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)


class Page:
    """Runs the code of a page block by block, in one module: classes are found by its name."""

    def __init__(self, path: Path, patch: pytest.MonkeyPatch) -> None:
        torch.set_default_dtype(torch.float32)
        pyro.clear_param_store()
        script = types.ModuleType("script")
        patch.setitem(sys.modules, "script", script)
        self.path, self.names = path, script.__dict__

    def run(self, *blocks: str) -> None:
        for block in blocks:
            exec(compile(block.replace("epochs=100", "epochs=1"), self.path.name, "exec"), self.names)


@pytest.fixture(autouse=True)
def _few_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Leave the first digits of each split, and run in an empty folder."""
    whole = pyrovae.data.digits()
    parts = {name: getattr(whole, name).first(num) for name, num in (("train", 128), ("validation", 4), ("test", 4))}
    few = dataclasses.replace(whole, **parts)
    monkeypatch.setattr(pyrovae.data, "digits", lambda: few)
    monkeypatch.setattr("pyrovae.training.step.has_compiler", lambda: False)
    monkeypatch.chdir(tmp_path)


def own_data(folder: Path) -> dict[str, Any]:
    """Return the objects that the README loads, of 20 data each, and write its file and its folder."""
    array = np.random.default_rng(0).integers(256, size=(20, 4, 4)).astype(np.uint8)
    np.savez(folder / "table.npz", x=array)
    images = [Image.fromarray(pixels) for pixels in array]
    (folder / "folder").mkdir()
    for index, image in enumerate(images):
        image.save(folder / "folder" / f"{index}.png")
    dataset = TensorDataset(torch.from_numpy(array), torch.arange(20))
    loader = DataLoader(dataset, batch_size=6)
    frame = pd.DataFrame(array.reshape(20, -1))
    return {"array": array, "frame": frame, "images": images, "dataset": dataset, "loader": loader}


def test_code_of_the_readme_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert len(README.splitlines()) <= 180
    use, own, swap, write = python_blocks(README)
    assert len([line for line in use.splitlines() if line]) <= 12
    page = Page(ROOT / "README.md", monkeypatch)
    page.run(use)
    assert "Estimates of log p(x)" in capsys.readouterr().out
    page.names |= own_data(tmp_path)
    for line in own.splitlines():
        page.run(line)
        data = page.names["data"]
        assert sum(map(len, (data.train, data.validation, data.test))) == 20, line
    page.run(swap)
    assert page.names["data"].train.transform == pyrovae.data.transforms.Dequantization()
    assert len([line for line in write.split("\n\n\n")[1].splitlines() if line]) <= 15
    page.run(write)
    assert "Logistic passes all checks" in capsys.readouterr().out


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=pytest.mark.slow if path.stem in SLOW else ())
        for path in PAGES
        if python_blocks(path.read_text())
    ],
    ids=lambda path: path.stem,
)
def test_code_of_a_page_runs(path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    page = Page(path, monkeypatch)
    page.run(*python_blocks(path.read_text()))
    assert capsys.readouterr().out, "a page shows a result"


def test_links_of_the_readme_and_the_pages_lead_to_files() -> None:
    for path in (ROOT / "README.md", ROOT / "examples" / "README.md", *PAGES):
        for link in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
            assert (path.parent / link).exists(), f"{path.name}: {link}"


def test_commands_of_the_readme_are_those_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for line in ("pyrovae train --folder runs/demo --epochs 100", "pyrovae evaluate runs/demo", "python -m pytest"):
        assert line in README
        assert line in makefile
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_the_gallery_is_what_its_script_writes() -> None:
    gallery = runpy.run_path(str(ROOT / "examples" / "docs" / "gallery.py"))
    written = (ROOT / "examples" / "README.md").read_text()
    without_commits = [re.sub(r" \(commit .*\)", "", text) for text in (written, gallery["page"]())]
    assert without_commits[0] == without_commits[1], "run: python examples/docs/gallery.py"
    pictures = {path.stem for path in (ROOT / "examples" / "gallery").glob("*.png")}
    assert pictures == {path.stem for path in (ROOT / "examples" / "gallery").glob("*.txt")}
    for path in (ROOT / "examples" / "gallery").glob("*.png"):
        assert path.stat().st_size <= 100_000, path.name


FORMATS = (  # first words of a printed record, and words that are printed with it
    ("Estimates of log", "K nats se data se MC over the ELBO", "with 95 % confidence over the draws"),
    ("Weights behind", "5 % median 95 %", "To report: ", "a referee would ask"),
    ("difference: L_", "at the 5 % level", "(one training seed each)"),
)


def test_the_outputs_of_the_gallery_have_the_format_that_is_printed_now() -> None:
    data = pyrovae.data.digits().for_form("binary")
    evaluation = pyrovae.evaluate(make_vae(), data, ks=(1, 5, 50), show_progress=False)
    now = " ".join(f"{evaluation} {pyrovae.compare({'a': evaluation, 'b': evaluation})}".split())
    for path in sorted((ROOT / "examples" / "gallery").glob("*.txt")):
        text = " ".join(path.read_text().split())
        for first, *others in FORMATS:
            for words in others:
                assert now.count(words) >= now.count(first) > 0, words
                assert text.count(words) >= text.count(first), f"run {path.stem}.py again: {words!r} is missing"


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("furo")
    pytest.importorskip("myst_parser")
    (command,) = re.findall(r"-m (sphinx .*)", (ROOT / "Makefile").read_text())
    command = command.replace("build/docs", str(tmp_path / "site")).replace("build/doctrees", str(tmp_path / "trees"))
    done = subprocess.run(
        [sys.executable, "-m", *command.split()], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def examples_of(docstring: str | None) -> str:
    return "\n".join(re.findall(r"^\s*(?:>>>|\.\.\.) ?(.*)$", docstring or "", re.M))


def test_the_map_of_the_package_runs() -> None:
    torch.set_default_dtype(torch.float32)
    code = examples_of(pyrovae.__doc__).replace("vae.guide, data)", "vae.guide, data.test.first(20))")
    code = code.replace("pyrovae.fit(vae.model, vae.guide, data.test.first(20))", "None")
    names: dict[str, object] = {}
    exec(compile(code, "pyrovae", "exec"), names)
    assert isinstance(names["vae"], pyrovae.VAE)


def test_docstring_example_of_the_vae() -> None:
    torch.set_default_dtype(torch.float32)
    names = {"VAE": pyrovae.VAE, "likelihoods": likelihoods, "posteriors": posteriors, "priors": priors}
    *lines, last = examples_of(pyrovae.VAE.__doc__).splitlines()
    exec(compile("\n".join(lines), "VAE", "exec"), names | {"networks": networks}, names)
    assert eval(last, names) == torch.Size([3, 1, 8, 8])
