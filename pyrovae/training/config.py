"""Options of training, defined once for `fit`, the command line and the saved configuration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from pyrovae.runtime.arguments import require_integer

ENGINES = ("auto", "eager", "captured")
PRECISIONS = ("float32", "bfloat16")


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Training:
    """Options of training with Adam on the loss per datum.

    Attributes:
        epochs: passes over the training data.
        batch_size: data points per gradient step.
        learning_rate: of Adam; at the start if it decays.
        final_learning_rate: end of a cosine decay over all epochs; constant if None.
        clip_norm: largest norm of the gradient of the loss per datum; no clipping if None.
        patience: epochs without a better validation ELBO after which training stops, with the weights of the best
            epoch; if None, training runs all epochs and keeps the last weights.
        seed: of shuffling, binarization and the guide's draws.
        device: "auto" (CUDA if there is one, else the CPU), "cpu", "cuda", "cuda:1", "mps".
        precision: "float32", or "bfloat16" for the arithmetic of networks in training.
        engine: "captured" traces a step once, compiles it with Inductor if there is a compiler, and replays it, on a
            GPU as one CUDA graph; "eager" runs model and guide in each step, with the same numbers up to rounding;
            "auto" chooses by the number of steps.
        start_at_data: whether the output of a VAE starts at the mean of the training data, and a learned scale at their
            spread around it, unless these were trained or set before.

    Raises:
        ValueError: if an option is out of range.

    """

    epochs: int = _option(100, "passes over the training data")
    batch_size: int = _option(128, "data points per gradient step")
    learning_rate: float = _option(1e-3, "of Adam; at the start if it decays")
    final_learning_rate: float | None = _option(None, "end of a cosine decay over all epochs (default: constant)")
    clip_norm: float | None = _option(None, "largest norm of the gradient of the loss per datum (default: no clipping)")
    patience: int | None = _option(None, "epochs without a better validation ELBO before it stops (default: never)")
    seed: int = _option(0, "of initialization, shuffling, binarization and the guide's draws")
    device: str = _option("auto", "auto, cpu, cuda, cuda:1 or mps; auto takes CUDA if there is one")
    precision: str = _option("float32", "float32, or bfloat16 for the arithmetic of networks in training")
    engine: str = _option(
        "auto", "captured (a step is traced once and replayed), eager, or auto: by the number of steps"
    )
    start_at_data: bool = _option(
        default=True, text="start the output at the mean of the training data, learned scales at their spread"
    )

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, least in (("epochs", 0), ("batch_size", 1), ("patience", 1)):
            value = getattr(self, name)
            if value is not None:
                require_integer(value, name=name, least=least)
        check_choice("engine", self.engine, ENGINES)
        check_choice("precision", self.precision, PRECISIONS)
        for name in ("learning_rate", "final_learning_rate", "clip_norm"):
            check_positive(name, getattr(self, name))

    def rate(self, epoch: int) -> float:
        """Return the learning rate of an epoch, counted from 1."""
        if self.final_learning_rate is None:
            return self.learning_rate
        share = (epoch - 1) / max(1, self.epochs - 1)
        low, high = self.final_learning_rate, self.learning_rate
        return low + (high - low) * (1 + math.cos(math.pi * share)) / 2


def check_positive(name: str, value: float | None) -> None:
    """Raise a ValueError unless a number is positive and finite; None is accepted."""
    if value is not None and not (isinstance(value, (int, float)) and value > 0 and math.isfinite(value)):
        raise ValueError(f"`{name}` must be positive and finite, got {value!r}")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise a ValueError unless a value is one of the choices."""
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {value!r}")


def check_engine(engine: str) -> None:
    """Raise a ValueError unless an engine exists."""
    check_choice("engine", engine, ENGINES)


def choose_device(name: str) -> torch.device:
    """Return the device of that name, "auto" being CUDA if there is one.

    Raises:
        ValueError: if there is no such device here.

    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError("it must be of type cpu, cuda or mps")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"the device {name!r} cannot be used here ({reason}); choose auto or cpu") from None
    return device
