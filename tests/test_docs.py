"""Code and commands of the documentation run as they are printed."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pyro
import pytest
import torch
from torch import nn

import pyrovae
from pyrovae import likelihoods, networks, posteriors, priors

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def python_blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)


def test_library_use_of_the_readme_is_15_lines_and_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_default_dtype(torch.float32)
    use, swap, own, prior, hand, step = python_blocks()
    assert len([line for line in use.splitlines() if line]) <= 15
    script = types.ModuleType("script")  # a module for the classes, which are found by name
    monkeypatch.setitem(sys.modules, "script", script)
    names: dict[str, object] = script.__dict__
    names |= {"pyrovae": pyrovae, "likelihoods": likelihoods, "torch": torch, "pyro": pyro}
    quick = use.replace("epochs=100", "epochs=1").replace("vae, data))", "vae, data, ks=(1, 5)))")
    exec(compile(quick, "README.md", "exec"), names)
    assert "Estimates of log p(x)" in capsys.readouterr().out
    monkeypatch.setattr("pyrovae.training.step.has_compiler", lambda: False)
    exec(compile(step, "README.md", "exec"), names)
    assert len(re.findall(r"tensor\(-?\d", capsys.readouterr().out)) == 3
    exec(compile(swap, "README.md", "exec"), names)
    assert names["data"].train.transform == pyrovae.data.transforms.Dequantization()  # type: ignore[attr-defined]
    assert len([line for line in own.split("\n\n\n")[1].splitlines() if line]) <= 15
    exec(compile(own, "README.md", "exec"), names)
    assert "Logistic passes all checks" in capsys.readouterr().out
    exec(compile(prior, "README.md", "exec"), names)
    assert names["testing"].check(names["LaplacePrior"](2), show_progress=False)  # type: ignore[attr-defined,operator]
    exec(compile(hand, "README.md", "exec"), names)
    names["decoder"] = nn.Linear(8, 4)
    pyro.poutine.trace(names["model"]).get_trace(torch.zeros(3, 4))


def test_commands_of_the_readme_are_those_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for line in ("pyrovae train --folder runs/demo --epochs 100", "pyrovae evaluate runs/demo", "python -m pytest"):
        assert line in README
        assert line in makefile
    assert "make test" in (ROOT / ".ci" / "run").read_text()


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
