"""What training showed."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass

from pyrovae.results.tables import align, number


@dataclass(frozen=True)
class Epoch:
    """What one epoch of training showed, in nats per datum; larger is better.

    Attributes:
        epoch: its number, from 1.
        steps: gradient steps so far.
        elbo: training ELBO, the mean over the epoch; it lags behind, since the parameters move meanwhile.
        reconstruction: its first part, None where the objective does not tell.
        kl: its second part.
        validation: the same three on the validation data at the end of the epoch, and ``L_K`` where training maximizes
            it; None without such data.
        learning_rate: at the end of the epoch.
        seconds: that the epoch took.
        objective: minus the loss, the mean over the epoch; with beta, annealing or free bits it is no bound.

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


@dataclass(frozen=True)
class History:
    """What training showed, epoch by epoch, and why it ended.

    Attributes:
        epochs: one record each.
        best_epoch: the epoch whose weights the modules now hold; the last one without early stopping.
        why_stopped: in words.

    """

    epochs: tuple[Epoch, ...]
    best_epoch: int
    why_stopped: str

    def __str__(self) -> str:
        """Return a table of at most a dozen epochs."""
        watched = next((name for epoch in self.epochs for name in epoch.validation or () if name[:2] == "L_"), "elbo")
        rows = [("epoch", "ELBO", "reconstruction", "KL", f"validation {watched.replace('elbo', 'ELBO')}", "seconds")]
        stride = math.ceil(len(self.epochs) / 12) or 1
        for epoch in self.epochs[::-stride][::-1]:
            rows.append(
                (
                    str(epoch.epoch),
                    number(epoch.elbo, 3),
                    number(epoch.reconstruction, 3),
                    number(epoch.kl, 3),
                    number(epoch.validation[watched] if epoch.validation else None, 3),
                    f"{epoch.seconds:.1f}",
                )
            )
        return "\n".join([*align(rows), "", f"{self.why_stopped}; the weights are those of epoch {self.best_epoch}"])

    def to_json_lines(self) -> str:
        """Return one line of strict JSON for each epoch."""
        return "".join(json.dumps(asdict(epoch), allow_nan=False) + "\n" for epoch in self.epochs)

    @staticmethod
    def epochs_from_json_lines(text: str) -> tuple[Epoch, ...]:
        """Read what `to_json_lines` wrote."""
        return tuple(Epoch(**json.loads(line)) for line in text.splitlines())
