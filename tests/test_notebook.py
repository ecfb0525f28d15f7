"""Results in a notebook: tables or short lines, and no warnings where ipywidgets is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("ipykernel")
nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")

SETUP = """
import sys
sys.modules["ipywidgets"] = None  # as if it were not installed
import torch, pyrovae
from pyrovae import VAE, likelihoods, networks, posteriors, priors
likelihood, posterior = likelihoods.Bernoulli((6,)), posteriors.DiagonalNormal(2)
vae = VAE(
    prior=priors.StandardNormal(2),
    decoder=networks.MLPDecoder(2, likelihood.param_shape, hidden=8),
    likelihood=likelihood,
    encoder=networks.MLPEncoder((6,), posterior.param_shape, hidden=8),
    posterior=posterior,
)
data = pyrovae.data.load(torch.rand(200, 6).round())
def stop(record):
    raise KeyboardInterrupt
try:
    pyrovae.fit(vae, data, epochs=3, on_epoch=stop)
except KeyboardInterrupt as interrupt:
    history = interrupt.history
pyrovae.fit(vae, data, epochs=2, folder="run")
evaluation = pyrovae.evaluate(vae, data, ks=(1, 5), checks=pyrovae.Checks(num_annealed=5))
"""
TABLES = ("history", "evaluation", "evaluation.weights", "evaluation.checked", "pyrovae.compare({'a': evaluation})")
LINES = {
    "data": "160 + 20 + 20",
    "data.test": "Split(",
    "evaluation.elbo": "nats per datum (se data",
    "evaluation.checked.higher": "is higher than",
    "pyrovae.load('run')": "Run('run', 2 epochs)",
    "pyrovae.particles(vae.model, vae.guide, data.test.fixed(), num_particles=3)": "Particles(3 of 20 data",
    "pyrovae.bounds.elbo(vae.model, vae.guide, data.test.fixed())": "ElboTerms(shape (20,)",
    "pyrovae.testing.check(likelihoods.Bernoulli((1,)), show_progress=False)": "Bernoulli passes all checks",
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the notebook's own packages
def test_results_in_a_notebook_are_tables_or_lines(tmp_path: Path) -> None:
    cells = [nbformat.v4.new_code_cell(source) for source in (SETUP, *TABLES, *LINES)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    setup, *shown = [cell.outputs for cell in notebook.cells]
    assert "training" in setup[0].text
    assert "Warning" not in "".join(output.get("text", "") for output in setup)
    results = [outputs[0].data for outputs in shown]
    for source, result in zip(TABLES, results, strict=False):
        assert result["text/html"].count("<table>") >= 1, source
    for (source, text), result in zip(LINES.items(), results[len(TABLES) :], strict=True):
        assert text in result["text/plain"], source
        assert len(result["text/plain"]) < 160, source
