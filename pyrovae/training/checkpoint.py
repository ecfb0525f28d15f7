"""Content of a run folder: how a run is saved, resumed and loaded."""

from __future__ import annotations

import io
import json
import logging
import math
from collections.abc import Collection, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from pyrovae.programs import Program
from pyrovae.programs.values import PARAM_PREFIX, from_bytes, restore, to_bytes
from pyrovae.results import Epoch, History
from pyrovae.results.record import TransformDescription, parse_json
from pyrovae.runtime.annotations import checked
from pyrovae.runtime.environment import versions
from pyrovae.runtime.errors import first_line
from pyrovae.runtime.serialization import Described, Description, agree, build, describe
from pyrovae.training.config import Training
from pyrovae.training.run_folder import RunFolder
from pyrovae.vae import VAE

logger = logging.getLogger("pyrovae")

CONFIG, MODEL, METRICS = "config.json", "model.json", "metrics.jsonl"
WEIGHTS, TRAINER = "model.safetensors", "trainer.pt"
KERNEL_OPTIONS = {"capturable", "differentiable", "foreach", "fused"}  # of optimizers; they do not change the numbers


class _Data(TypedDict):
    hash: str
    transform: TransformDescription | None


class _Settings(TypedDict):
    training: dict[str, Any]
    objective: dict[str, Any]
    optimizer: dict[str, Any]
    data: _Data
    command: dict[str, Any]


class Config(_Settings, total=False):
    """Content of ``config.json``."""

    versions: dict[str, str]


@dataclass
class Progress:
    """State of training after an epoch.

    Attributes:
        epochs: metrics of each epoch.
        values: a snapshot of all parameters and buffers.
        optimizer: its ``state_dict``; it and the values belong to the last save.
        best: the snapshot of the best epoch under early stopping; otherwise None.
        best_epoch: number of that epoch.
        best_validation: validation ELBO of that epoch, nats per datum.

    """

    epochs: tuple[Epoch, ...] = ()
    values: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    best: dict[str, Tensor] | None = None
    best_epoch: int = 0
    best_validation: float = -math.inf


class Checkpoint:
    """The run that `fit` saves after each epoch.

    ``config.json`` holds settings, data hash and versions, ``model.json`` the parts, ``model.safetensors`` the weights
    to use, ``trainer.pt`` the state of training (read with ``weights_only=True``), ``metrics.jsonl`` a line for each
    epoch, ``manifest.json`` the hash of each file.
    """

    def __init__(self, folder: RunFolder, settings: Mapping[str, Any], model: Program) -> None:
        self.folder, self.settings, self.model = folder, json.loads(_json(settings)), model
        self._is_saved = False  # whether the folder has the settings

    def open(self, stack: ExitStack, *, resume: bool) -> Progress | None:
        """Lock the folder until the stack ends, and return the state of a run to be resumed, None for a new run.

        Raises:
            ValueError: if the folder holds a run already, or the run to be resumed does not fit (see `_check`).

        """
        if not resume:
            self.folder.create()
        stack.enter_context(self.folder.lock("trained"))
        if resume:
            contents = read_files(self.folder)
            config = parse_config(contents[CONFIG])
            self._check(config, _parse_model(contents))
            self.settings = {**config, **self.settings}
            return parse_progress(contents)
        if TRAINER in self.folder:
            raise ValueError(f"{self.folder.path} holds a run already; resume it, or choose another folder")
        self.settings["versions"] = versions()
        return None

    def _check(self, config: Config, description: Description) -> None:
        """Check that training goes on with the same numbers as without the interruption.

        Raises:
            ValueError: if the model or the settings differ. All but ``epochs``, ``patience``, ``device`` and ``engine``
                must be the same, and ``epochs`` too if the learning rate decays. The learning rate and ``clip_norm``
                may be lowered, with a warning, since a run that diverged is resumed with other values.

        """
        free = {"epochs", "patience", "device", "engine"}
        if self.settings["training"]["final_learning_rate"] is not None:
            free.remove("epochs")
        defaults = {"training": asdict(Training())}  # for options that the run is too old to have
        for group in ("training", "objective", "optimizer", "data"):
            before = defaults.get(group, {}) | config[group]
            for name, value in self.settings[group].items():
                old = before.get(name)
                is_number = isinstance(old, (int, float))
                if name in ("learning_rate", "clip_norm") and value and (old is None or (is_number and value < old)):
                    logger.warning("the run %s resumes with %s = %g instead of %s", self.folder.path, name, value, old)
                elif name not in free and old != value:
                    raise ValueError(
                        f"the run {self.folder.path} was made with {group}.{name} = {old!r}, but received "
                        f"{value!r}; resume with the same settings, or start another run"
                    )
        if (precision := config["training"].get("precision", "float32")) != "float32":  # an option of earlier versions
            raise ValueError(f"the run {self.folder.path} was trained in {precision}, not float32; start another run")
        if description and not agree(description, _described(self.model)):
            raise ValueError(
                f"the run {self.folder.path} has another model: its {MODEL} describes other parts, or other options of "
                "them; resume with the same model, or start another run"
            )

    def save(self, progress: Progress) -> None:
        """Save the state after an epoch; the first time, also the settings."""
        trainer = {
            "epoch": len(progress.epochs),
            "values": progress.values,
            "optimizer": progress.optimizer,
            "best_epoch": progress.best_epoch,
            "best_validation": progress.best_validation,
            "has_best": progress.best is not None,
        }
        buffer = io.BytesIO()
        torch.save(trainer, buffer)
        files = {
            WEIGHTS: to_bytes(progress.values if progress.best is None else progress.best),
            TRAINER: buffer.getvalue(),
            METRICS: History(progress.epochs, 0, "").to_json_lines().encode(),
        }
        if not self._is_saved:
            files[CONFIG] = _json(self.settings)
            if description := _described(self.model):
                files[MODEL] = _json(description)
        self.folder.write(files)
        self._is_saved = True


def read_files(folder: RunFolder) -> dict[str, bytes]:
    """Return the files of a run, all of the same epoch.

    Raises:
        ValueError: if a file is missing or changed.

    """
    remedy = "train with this folder if it holds reports alone, or else again"
    return folder.read_files((CONFIG, TRAINER, WEIGHTS, METRICS), optional=(MODEL,), remedy=remedy)


def parse_config(content: bytes) -> Config:
    """Return the settings of a run."""
    return parse_json(Config, content, source=CONFIG)


def _parse_model(contents: Mapping[str, bytes]) -> Description:
    """Return the description of the model of a run; an empty dictionary if there is none."""
    return parse_json(dict[str, Any], contents.get(MODEL, b"{}"), source=MODEL)


def parse_progress(contents: Mapping[str, bytes]) -> Progress:
    """Return the state of training in the files of a run."""
    epochs = History.epochs_from_json_lines(contents[METRICS])
    try:
        trainer = torch.load(io.BytesIO(contents[TRAINER]), weights_only=True, map_location="cpu")
        state = {name: trainer[name] for name in ("values", "optimizer", "best_epoch", "best_validation")}
        best = from_bytes(contents[WEIGHTS]) if trainer["has_best"] else None
    except Exception as error:  # torch raises errors of several types
        raise ValueError(f"{TRAINER} is not a state of training ({first_line(error)}); train again") from None
    return Progress(epochs, best=best, **state)


def fitting_state(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return a saved state with the kernel options of an optimizer, for its ``load_state_dict``.

    A run may continue on another device or with another version of torch: options of the kernel, and options that the
    run lacks, are taken from the optimizer. Fused kernels check neither shapes nor strides, so that the state is copied
    to tensors like the parameters.

    Args:
        optimizer: of the parameters; it is not changed.
        saved: its ``state_dict`` in the run.

    Raises:
        RuntimeError: if a tensor of the state has more or fewer elements than its parameter.

    """
    groups = [
        own | {name: value for name, value in theirs.items() if name in own.keys() - KERNEL_OPTIONS}
        for own, theirs in zip(optimizer.state_dict()["param_groups"], saved["param_groups"], strict=True)
    ]
    states = {number: dict(state) for number, state in saved["state"].items()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number in (number for group in groups if group.get("fused") for number in group["params"]):
        for name, value in states.get(number, {}).items():
            if isinstance(value, Tensor) and name != "step":
                states[number][name] = torch.empty_like(parameters[number]).copy_(value.view_as(parameters[number]))
    return {"state": states, "param_groups": groups}


@dataclass(frozen=True)
class Run:
    """A loaded run.

    Attributes:
        vae: with the trained weights, in their dtype, in evaluation mode, on the CPU.
        history: metrics of training.
        config: settings, data hash and versions.
        folder: from which the run was loaded.

    """

    vae: VAE
    history: History
    config: dict[str, Any]
    folder: RunFolder

    def __repr__(self) -> str:
        return f"Run({str(self.folder.path)!r}, {len(self.history.epochs)} epochs)"


@checked
def load(path: str | Path, *, allow: Collection[str] = ()) -> Run:
    """Load a VAE that was trained with a folder.

    Args:
        path: of the run folder.
        allow: packages beside ``pyrovae`` from which the run's parts may be imported.

    Returns:
        The run, all files checked against the manifest.

    Raises:
        ValueError: if a file is missing or changed (the text names it), or the parts cannot be rebuilt, for example
            because another version of pyrovae wrote the run.

    """
    folder = RunFolder(path)
    contents = read_files(folder)
    config = parse_config(contents[CONFIG])
    if MODEL not in contents:
        raise ValueError(f"the run {path} does not describe its model; build the model and use training.load_weights")
    try:
        vae = build(_parse_model(contents), allow=allow)
    except Exception as error:  # of any type, if another program wrote the description
        reason = error if isinstance(error, ValueError) else first_line(error)
        raise ValueError(f"{MODEL} of the run {path} cannot be used: {reason}") from error
    progress = parse_progress(contents)
    if not isinstance(vae, VAE):
        raise ValueError(f"{MODEL} describes a {type(vae).__name__}, but `load` loads a VAE; use training.load_weights")
    weights = from_bytes(contents[WEIGHTS])
    dtypes = {value.dtype for value in weights.values() if value.is_floating_point()}
    if len(dtypes) == 1:  # the dtype of training, whatever the default is now
        vae.to(dtypes.pop())
    restore([vae], (), weights)
    return Run(vae.eval(), History(progress.epochs, progress.best_epoch, "loaded"), dict(config), folder)


@checked
def load_weights(path: str | Path, modules: Iterable[nn.Module]) -> None:
    """Load the weights of a run into modules that were built by hand, and its ``pyro.param`` values into Pyro's store.

    Args:
        path: of the run folder.
        modules: of the model and guide, in the order in which `fit` received or found them.

    Raises:
        ValueError: if a file is missing or changed, the weights belong to other modules, or Pyro's store does not know
            a ``pyro.param`` of the run.

    """
    values = from_bytes(RunFolder(path).read(WEIGHTS))
    params = [name.removeprefix(PARAM_PREFIX) for name in values if name.startswith(PARAM_PREFIX)]
    restore(list(modules), params, values)


def _described(model: Program) -> dict[str, Any] | None:
    """Return the description of the object that has the model as a method, None if it has none."""
    owner = getattr(model, "__self__", None)
    if not isinstance(owner, Described):
        return None
    try:
        return describe(owner)
    except TypeError as error:
        logger.warning("the run can be loaded only by load_weights, into a model built by hand: %s", error)
        return None


def _json(record: object) -> bytes:
    return (json.dumps(record, indent=2, allow_nan=False) + "\n").encode()
