"""Training and evaluation of one cell of a table: a recipe with one seed."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch

import pyrovae
from pyrovae import VAE, Checks, Training, objectives
from pyrovae.data import Data

RESULTS = Path(__file__).parent / "results"
KS = (1, 5, 50, 500, 5000)  # numbers of particles, each a divisor of the next


def parse_options(doc: str, *, cells: list[str]) -> argparse.Namespace:
    """Return the options that all tables have."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--cells", nargs="+", default=cells, choices=cells, help="rows of the table to run")
    parser.add_argument("--seeds", type=int, default=1, help="number of training seeds, counted from 0")
    parser.add_argument("--epochs", type=int, help="epochs instead of those of the recipe")
    parser.add_argument("--folder", type=Path, default=Path("runs/papers"), help="folder of the run folders")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--smoke", action="store_true", help="run for a few seconds, as a test")
    options = parser.parse_args()
    options.results = options.folder / "results" if options.smoke else RESULTS
    return options


def run_cell(
    options: argparse.Namespace,
    name: str,
    make_vae: Callable[[], VAE],
    data: Data,
    *,
    training: Training,
    objective: objectives.Objective,
    ks: tuple[int, ...] = KS,
    num_data: int | None = None,
    checks: Checks | None = None,
) -> None:
    """Train and evaluate a model with each seed, and save each evaluation without the values per datum.

    A seed with a saved evaluation is skipped, and a training run that was stopped resumes.

    Args:
        options: from `parse_options`.
        name: paper and row, such as "burda-iwae-5".
        make_vae: returns the model with fresh weights.
        data: MNIST or other data in the form of the likelihood.
        training: the recipe; its seed is replaced.
        objective: loss of the training.
        ks: numbers of particles of the bounds.
        num_data: number of test data; all by default.
        checks: diagnostics beside the bounds; AIS on 100 test data by default.

    """
    if options.smoke:
        parts = {"train": data.train.first(256), "validation": data.validation.first(20), "test": data.test.first(10)}
        data, ks, num_data = Data(**parts, name=data.name), (1, 5), None
        checks = Checks(num_annealed=2, num_simulated=0, num_refined=0, num_encoded=0, num_temperatures=3)
    checks = checks or Checks(num_annealed=100, num_simulated=0, num_refined=0, num_encoded=1000)
    epochs = options.epochs or (1 if options.smoke else training.epochs)
    for seed in range(options.seeds):
        file = options.results / f"{name}-{seed}.json"
        if file.exists() and not options.smoke:
            continue
        recipe = {**vars(training), "epochs": epochs, "seed": seed, "device": options.device}
        torch.manual_seed(seed)
        vae, folder = make_vae(), options.folder / f"{name}-{seed}"
        print(f"{name}, seed {seed}: {epochs} epochs on {len(data.train):,} images", flush=True)
        resume = (folder / "manifest.json").exists()
        history = pyrovae.fit(vae, data, objective=objective, training=Training(**recipe), folder=folder, resume=resume)
        started = time.perf_counter()
        evaluation = pyrovae.evaluate(vae, data.test, ks=ks, num_data=num_data, checks=checks)
        minutes = [sum(epoch.seconds for epoch in history.epochs) / 60, (time.perf_counter() - started) / 60]
        print(f"{evaluation}\n{minutes[0]:.1f} and {minutes[1]:.1f} minutes of training and evaluation", flush=True)
        options.results.mkdir(parents=True, exist_ok=True)
        file.write_text(evaluation.to_json())
