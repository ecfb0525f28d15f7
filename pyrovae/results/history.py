"""Records of training."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

from pyrovae.results.record import parse_json
from pyrovae.results.tables import Cell, Number, Table, Tabled

ROWS = 12  # epochs in a table


@dataclass(frozen=True)
class Epoch:
    """Metrics of one epoch of training, in nats per datum; larger is better.

    Attributes:
        epoch: number of the epoch, from 1.
        steps: gradient steps so far.
        elbo: training ELBO, the mean over the epoch; it lags behind, since the parameters change meanwhile.
        reconstruction: first term of the ELBO; None if the objective does not report it.
        kl: second term of the ELBO.
        validation: the same three on the validation data at the end of the epoch, and ``L_K`` where training maximizes
            it; None without validation data.
        learning_rate: learning rate at the end of the epoch.
        seconds: duration of the epoch.
        objective: minus the loss, the mean over the epoch; with beta, annealing or free bits it is not a bound.

    """

    epoch: int
    steps: int
    elbo: float
    reconstruction: float | None
    kl: float | None
    validation: dict[str, float] | None
    learning_rate: float
    seconds: float
    objective: float | None = None


@dataclass(frozen=True, repr=False)
class History(Tabled):
    """Metrics of training, epoch by epoch, and the reason for its end.

    Attributes:
        epochs: one record per epoch.
        best_epoch: epoch of the weights that the modules hold; the last one without early stopping.
        why_stopped: reason in words.

    """

    epochs: tuple[Epoch, ...]
    best_epoch: int
    why_stopped: str

    @property
    def best(self) -> Epoch:
        """Metrics of the epoch whose weights the modules hold.

        Raises:
            IndexError: if no epoch ended.

        """
        return self.epochs[self.best_epoch - 1] if self.best_epoch else self.epochs[0]

    def tables(self) -> tuple[Table, ...]:
        """Return a table of at most a dozen epochs."""
        names = (name for epoch in self.epochs for name in epoch.validation or () if name[:2] == "L_")
        watched = next(names, "elbo")
        stride = math.ceil(len(self.epochs) / ROWS) or 1
        rows: list[tuple[Cell, ...]] = []
        for epoch in self.epochs[::-stride][::-1]:
            validation = (epoch.validation or {}).get(watched)
            terms = map(Number, (epoch.elbo, epoch.reconstruction, epoch.kl, validation))
            rows.append((str(epoch.epoch), *terms, Number(epoch.seconds, 1)))
        watched = watched.replace("elbo", "ELBO")
        header = ("epoch", "ELBO", "reconstruction", "KL", f"validation {watched}", "seconds")
        notes = [f"{self.why_stopped}; the weights are those of epoch {self.best_epoch}"]
        if self.epochs and self.best.elbo < 2 * min(self.epochs[0].elbo, -1.0):  # more than noise
            notes.append("its ELBO is far below that of the first epoch; a lower learning rate or clip_norm may help")
        return (Table(header, tuple(rows), notes=tuple(notes)),)

    def to_json_lines(self) -> str:
        """Return one line of strict JSON per epoch."""
        return "".join(json.dumps(asdict(epoch), allow_nan=False) + "\n" for epoch in self.epochs)

    @staticmethod
    def epochs_from_json_lines(text: str | bytes) -> tuple[Epoch, ...]:
        """Return the epochs from the lines of `to_json_lines`."""
        lines: list[Any] = list(text.splitlines())
        return tuple(parse_json(Epoch, line, source=f"metrics.jsonl, line {n},") for n, line in enumerate(lines, 1))
