"""Options of training, defined once for `fit`, the command line and the saved configuration."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pyrovae.compile import Engine
from pyrovae.runtime.annotations import CheckedFields, NonNegativeInt, PositiveFloat, PositiveInt


@dataclass(frozen=True)
class Training(CheckedFields):
    """Options of training with Adam on the loss per datum.

    The texts below are also the help of ``pyrovae train``.

    Attributes:
        epochs: passes over the training data.
        batch_size: data points per gradient step.
        learning_rate: of Adam; at the start if it decays.
        final_learning_rate: end of a cosine decay over all epochs (default: constant).
        clip_norm: largest norm of the gradient of the loss per datum (default: no clipping).
        patience: epochs without a better validation ELBO after which training stops, with the weights of the best
            epoch (default: it runs all epochs and keeps the last weights).
        seed: of initialization, shuffling, binarization and the guide's draws.
        device: auto (CUDA if there is one, else the CPU), cpu, cuda, cuda:1 or mps.
        engine: captured traces a step once, compiles it with Inductor if there is a compiler, and replays it, on a GPU
            as one CUDA graph; eager runs model and guide in each step, with the same numbers up to rounding; auto
            chooses by the number of steps.
        start_at_data: start the output of a VAE at the mean of the training data, and a learned scale at their spread
            around it, unless these were trained or set before.

    Raises:
        ValueError: if an option is out of range.

    """

    epochs: NonNegativeInt = 100
    batch_size: PositiveInt = 128
    learning_rate: PositiveFloat = 1e-3
    final_learning_rate: PositiveFloat | None = None
    clip_norm: PositiveFloat | None = None
    patience: PositiveInt | None = None
    seed: int = 0
    device: str = "auto"
    engine: Engine = "auto"
    start_at_data: bool = True

    def rate(self, epoch: int) -> float:
        """Return the learning rate of an epoch, counted from 1."""
        if self.final_learning_rate is None:
            return self.learning_rate
        share = (epoch - 1) / max(1, self.epochs - 1)
        low, high = self.final_learning_rate, self.learning_rate
        return low + (high - low) * (1 + math.cos(math.pi * share)) / 2
