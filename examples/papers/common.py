"""Training and evaluation of the rows of a table, seed by seed, and the records that the table is made of."""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

import pyrovae
from pyrovae import VAE, Checks, Training, objectives
from pyrovae.data import Data
from pyrovae.results import Difference
from pyrovae.training.step import MakeOptimizer, fused_adam

RESULTS = Path(__file__).parent / "results"
KS = (1, 5, 50, 500, 5000)  # numbers of particles, each a divisor of the next
TRAINING_ELBO = "training ELBO"  # mean over the last epoch, in which the weights still change


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        run: name of the run, without the seed.
        label: the row in words.
        published: nats per datum; None if there is no value to compare with.
        of: the compared number, such as "L_5000"; see `compared_number` in table.py for all.
        tolerance: smallest difference that counts, nats.
        note: observations and attempts; printed below the table once the row was run.

    """

    run: str
    label: str
    published: float | None
    of: str = "L_5000"
    tolerance: float = 0.3
    note: str = ""


@dataclass(frozen=True)
class Record:
    """Facts of a run that its evaluation does not have.

    Attributes:
        seed: seed of the weights, the minibatches and the noise.
        epochs: epochs run.
        planned_epochs: epochs after which training ends without early stopping.
        recipe_epochs: the same number in the recipe.
        training_elbo: mean over the last epoch, nats per datum.
        training_minutes: duration of the training.
        evaluation_minutes: duration of the evaluation.
        device: the processor, and the number of threads of a CPU.
        commit: commit of the source; empty if unknown.
        reference: run to which the run is compared; None if there is none.
        difference: mean over the data of the largest L_K minus that of the reference, nats.
        difference_error: its standard error over the data.

    """

    seed: int
    epochs: int
    planned_epochs: int
    recipe_epochs: int
    training_elbo: float
    training_minutes: float
    evaluation_minutes: float
    device: str
    commit: str
    reference: str | None = None
    difference: float | None = None
    difference_error: float | None = None


def parse_options(doc: str, *, cells: list[str]) -> argparse.Namespace:
    """Return the options that all tables have."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--cells", nargs="+", default=cells, choices=cells, help="rows of the table to run")
    parser.add_argument("--seeds", type=int, default=1, help="number of training seeds, counted from 0")
    parser.add_argument("--epochs", type=int, help="epochs instead of those of the recipe")
    parser.add_argument("--num_data", type=int, help="number of test images; all, or those of the recipe, by default")
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
    objective: objectives.Objective | None = None,
    optimizer: MakeOptimizer = fused_adam,
    ks: tuple[int, ...] = KS,
    num_data: int | None = None,
    checks: Checks | None = None,
    run: str | None = None,
    reference: str | None = None,
) -> None:
    """Train and evaluate a model with each seed, and save each evaluation without the values per datum.

    A seed with a saved evaluation is skipped, and a training run that was stopped resumes.

    Args:
        options: from `parse_options`.
        name: paper and row, such as "burda-iwae-5".
        make_vae: returns the model with fresh weights.
        data: MNIST or other data in the form of the likelihood.
        training: the recipe; its seed is replaced.
        objective: loss of the training; the ELBO by default.
        optimizer: makes the optimizer of the parameters.
        ks: numbers of particles of the bounds.
        num_data: number of test data; all by default.
        checks: diagnostics beside the bounds; AIS on 100 test data by default.
        run: name of the run, if another row trains the same model.
        reference: name of a run of a `VAE`, trained before, to whose largest L_K this one is compared.

    """
    checks = checks or Checks(num_annealed=100, num_simulated=0, num_refined=0, num_encoded=1000)
    num_data = options.num_data or num_data
    if options.smoke:
        data, num_data = data.first(256), 6
        checks = Checks(**{field: min(value, 3) for field, value in asdict(checks).items()})
    epochs = options.epochs or (1 if options.smoke else training.epochs)
    for seed in range(options.seeds):
        results = options.results / f"{name}-{seed}"
        if (results / "run.json").exists() and not options.smoke:
            continue
        torch.manual_seed(seed)
        vae, folder = make_vae(), options.folder / f"{run or name}-{seed}"
        print(f"{name}, seed {seed}: {epochs} epochs on {len(data.train):,} images", flush=True)
        history = pyrovae.fit(
            vae,
            data,
            objective=objective,
            training=replace(training, epochs=epochs, seed=seed, device=options.device),
            folder=folder,
            resume=(folder / "manifest.json").exists(),
            optimizer=optimizer,
        )
        started = time.perf_counter()
        evaluation = pyrovae.evaluate(vae, data.test, ks=ks, num_data=num_data, checks=checks)
        minutes = (time.perf_counter() - started) / 60
        difference = None
        if reference is not None:
            other = pyrovae.load(options.folder / f"{reference}-{seed}").vae
            label = evaluation.iwae[-1].label
            values = pyrovae.evaluate(other, data.test, ks=ks, num_data=num_data).per_datum[label]
            difference = Difference.over_data(evaluation.per_datum[label], values)
        record = Record(
            seed=seed,
            epochs=len(history.epochs),
            planned_epochs=epochs,
            recipe_epochs=training.epochs,
            training_elbo=history.epochs[-1].elbo,
            training_minutes=sum(epoch.seconds for epoch in history.epochs) / 60,
            evaluation_minutes=minutes,
            device=describe_device(next(vae.parameters()).device),
            commit=commit(),
            reference=reference,
            difference=difference and difference.mean,
            difference_error=difference and difference.se,
        )
        print(f"{evaluation}\n{record}", flush=True)
        results.mkdir(parents=True, exist_ok=True)
        (results / "evaluation.json").write_text(evaluation.to_json())
        (results / "run.json").write_text(json.dumps(asdict(record), indent=2) + "\n")


def describe_device(device: torch.device) -> str:
    """Return the name of a CUDA device, or the number of threads of the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type}, {threads} thread{'s' * (threads > 1)}"


def commit() -> str:
    """Return the commit of this file's repository, with "-dirty" if files were changed; empty if unknown."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=10", "--exclude", "*"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    return done.stdout.strip()
