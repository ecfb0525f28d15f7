"""Content of a run folder: how a run is saved, resumed and loaded."""

from __future__ import annotations

import importlib.metadata
import io
import json
import logging
import platform
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from pyrovae.compile.trace import first_line
from pyrovae.programs import Program
from pyrovae.results import Epoch, History
from pyrovae.runtime.serialization import Described, build, describe
from pyrovae.training.config import Training
from pyrovae.training.run_folder import RunFolder
from pyrovae.training.state import from_bytes, params_of, restore, to_bytes
from pyrovae.vae import VAE

logger = logging.getLogger("pyrovae")

CONFIG, MODEL, METRICS = "config.json", "model.json", "metrics.jsonl"
WEIGHTS, TRAINER = "model.safetensors", "trainer.pt"


@dataclass
class Progress:
    """State of training after an epoch.

    Attributes:
        epochs: metrics of each epoch.
        values: a snapshot of all parameters and buffers.
        optimizer: its ``state_dict``.
        best: the snapshot of the best epoch under early stopping; otherwise None.
        best_epoch: number of that epoch.
        best_validation: validation ELBO of that epoch, nats per datum.

    """

    epochs: tuple[Epoch, ...]
    values: dict[str, Tensor]
    optimizer: dict[str, Any]
    best: dict[str, Tensor] | None
    best_epoch: int
    best_validation: float


STATE_TYPES = {
    "epoch": int,
    "values": dict,
    "optimizer": dict,
    "best_epoch": int,
    "best_validation": float,
    "has_best": bool,
}


class Checkpoint:
    """The run that `fit` saves after each epoch.

    ``config.json`` holds settings, data hash and versions, ``model.json`` the parts, ``model.safetensors`` the weights
    to use, ``trainer.pt`` the state of training (read with ``weights_only=True``), ``metrics.jsonl`` a line for each
    epoch, ``manifest.json`` the hash of each file.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self._unsaved: dict[str, bytes] = {}  # files of a new run, saved with its first state

    def create(self, settings: Mapping[str, Any], model: Program) -> None:
        """Start a run; its settings are saved with its first state.

        Raises:
            ValueError: if the folder holds a run already.

        """
        if TRAINER in self.folder:
            raise ValueError(f"{self.folder.path} holds a run already; resume it, or choose another folder")
        self._unsaved = {CONFIG: _json({**settings, "versions": versions()})}
        description = _described(model)
        if description is not None:
            self._unsaved[MODEL] = _json(description)

    def resume(self, settings: Mapping[str, Any], model: Program) -> Progress:
        """Return the state of a run after the last complete epoch, if the settings give the same numbers.

        Raises:
            ValueError: if there is no complete run, or its settings differ. All but ``epochs``, ``patience``,
                ``device`` and ``engine`` must be the same, and ``epochs`` too if the learning rate decays.

        """
        contents, path = _read(self.folder), self.folder.path
        config = json.loads(contents[CONFIG])
        free = {"epochs", "patience", "device", "engine"}  # settings that may change
        if settings["training"]["final_learning_rate"] is not None:
            free.remove("epochs")
        defaults = {"training": asdict(Training())}  # for options that the run is too old to have
        for group in ("training", "objective", "optimizer", "data"):
            before = defaults.get(group, {}) | config[group]
            for name, value in _plain(settings[group]).items():
                if name not in free and before.get(name) != value:
                    raise ValueError(
                        f"the run {path} was made with {group}.{name} = {before.get(name)!r}, but received "
                        f"{value!r}; resume with the same settings, or start another run"
                    )
        written = json.loads(contents[MODEL]) if MODEL in contents else None
        if written is not None and written not in (_described(model), _described(model, complete=False)):
            raise ValueError(
                f"the run {path} has another model: its {MODEL} describes other parts, or other options of them; "
                "resume with the same model, or start another run"
            )
        return _progress(contents)

    def update_settings(self, settings: Mapping[str, Any]) -> None:
        """Replace some settings of the run; the settings of a new run are saved with its first state."""
        before = self._unsaved[CONFIG] if self._unsaved else self.folder.read(CONFIG)
        content = _json({**json.loads(before), **settings})
        if self._unsaved:
            self._unsaved[CONFIG] = content
        else:
            self.folder.write({CONFIG: content})

    def save(self, progress: Progress) -> None:
        """Save the state after an epoch."""
        values, optimizer = tree_map_only(Tensor, Tensor.cpu, (progress.values, progress.optimizer))
        trainer = {
            "epoch": len(progress.epochs),
            "values": values,
            "optimizer": optimizer,
            "best_epoch": progress.best_epoch,
            "best_validation": progress.best_validation,
            "has_best": progress.best is not None,
        }
        buffer = io.BytesIO()
        torch.save(trainer, buffer)
        self.folder.write(
            {
                **self._unsaved,
                WEIGHTS: to_bytes(progress.values if progress.best is None else progress.best),
                TRAINER: buffer.getvalue(),
                METRICS: History(progress.epochs, 0, "").to_json_lines().encode(),
            }
        )
        self._unsaved = {}

    def read(self) -> Progress:
        """Read the state after the last complete epoch."""
        return _progress(_read(self.folder))


def _read(folder: RunFolder) -> dict[str, bytes]:
    """Return the files of a run, all of the same epoch."""
    manifest = folder.manifest()
    if manifest and TRAINER not in manifest:
        raise ValueError(
            f"the run {folder.path} has no {TRAINER}: it ended before its first checkpoint; train anew, in this folder "
            "or another"
        )
    return folder.read_files((CONFIG, TRAINER, WEIGHTS, METRICS), optional=(MODEL,))


def _progress(contents: Mapping[str, bytes]) -> Progress:
    """Return the state of training in the files of a run."""
    try:
        trainer = torch.load(io.BytesIO(contents[TRAINER]), weights_only=True, map_location="cpu")
    except Exception as error:  # torch raises errors of several types
        raise ValueError(f"{TRAINER} is not a state of training ({first_line(error)}); train again") from None
    for name, type_ in STATE_TYPES.items():
        if not isinstance(trainer, dict) or not isinstance(trainer.get(name), type_):
            raise ValueError(f"{TRAINER} is not a state of training: {name!r} must be a {type_.__name__}; train again")
    weights = from_bytes(contents[WEIGHTS])
    epochs = History.epochs_from_json_lines(contents[METRICS].decode())
    if trainer["epoch"] != len(epochs):
        raise ValueError(
            f"{TRAINER} and {METRICS} must be of the same epoch, but are of {trainer['epoch']} and {len(epochs)}; "
            "train again"
        )
    return Progress(
        epochs=epochs,
        values=trainer["values"],
        optimizer=trainer["optimizer"],
        best=weights if trainer["has_best"] else None,
        best_epoch=trainer["best_epoch"],
        best_validation=trainer["best_validation"],
    )


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
    contents = _read(folder)
    config = json.loads(contents[CONFIG])
    try:
        return _load(folder, contents, config, allow)
    except (KeyError, TypeError, ValueError) as error:
        written = config.get("versions", {}).get("pyrovae", "of an unknown version")
        if written == _own_version():
            raise
        raise ValueError(
            f"the run {path} was written by pyrovae {written} and cannot be read by this one, {_own_version()} "
            f"({error}); install that version, or train again"
        ) from error


def _load(folder: RunFolder, contents: Mapping[str, bytes], config: dict[str, Any], allow: Collection[str]) -> Run:
    if MODEL not in contents:
        raise ValueError(
            f"the run {folder.path} does not describe its model; build the model and use training.load_weights"
        )
    vae = build(json.loads(contents[MODEL]), allow=allow)
    progress = _progress(contents)
    weights = from_bytes(contents[WEIGHTS])
    dtypes = {value.dtype for value in weights.values() if value.is_floating_point()}
    if len(dtypes) == 1:  # the dtype of training, whatever the default is now
        vae.to(*dtypes)
    restore([vae], (), weights)
    return Run(vae.eval(), History(progress.epochs, progress.best_epoch, "loaded"), config, folder)


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
    restore(list(modules), params_of(values), values)


def versions() -> dict[str, str]:
    """Return the versions of pyrovae, Python and the libraries that numbers may depend on."""
    libraries = {name: importlib.metadata.version(name) for name in ("torch", "pyro-ppl", "numpy")}
    return {"pyrovae": _own_version(), "python": platform.python_version(), **libraries}


def _own_version() -> str:
    try:
        return importlib.metadata.version("pyrovae")
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "not installed"


def _described(model: Program, *, complete: bool = True) -> dict[str, Any] | None:
    """Return the description of the object that has the model as a method, None if it has none."""
    owner = getattr(model, "__self__", None)
    if not isinstance(owner, Described):
        return None
    try:
        return _plain(describe(owner, complete=complete))
    except TypeError as error:
        logger.warning("the run can be loaded only by load_weights, into a model built by hand: %s", error)
        return None


def _json(record: object) -> bytes:
    return (json.dumps(record, indent=2, allow_nan=False) + "\n").encode()


def _plain(record: object) -> dict[str, Any]:
    """Return a record after a round trip through JSON."""
    return json.loads(_json(record))
