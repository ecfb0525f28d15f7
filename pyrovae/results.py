"""What the package reports: frozen records that carry their meaning, print as tables and go to JSON and back.

Every value is an estimate in nats per datum, larger being better, with two standard errors: over the data, which
contains the Monte Carlo noise, and over Monte Carlo draws at fixed data. They answer different questions and are never
added.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Particles:
    """Draws from a guide and their log-probabilities.

    Attributes:
        z: for each latent site ``(K, B, ...)``.
        log_prior: log p(z), ``(K, B)``, nats.
        log_likelihood: log p(x | z), ``(K, B)``, nats.
        log_guide: log q(z | x), ``(K, B)``, nats.

    """

    z: dict[str, Tensor]
    log_prior: Tensor
    log_likelihood: Tensor
    log_guide: Tensor

    @property
    def log_weights(self) -> Tensor:
        """Log p(x, z) - log q(z | x), ``(K, B)``, nats."""
        return self.log_prior + self.log_likelihood - self.log_guide

    @classmethod
    def concatenate(cls, parts: Sequence[Particles]) -> Particles:
        """Join particles of different data."""
        return cls(
            z={name: torch.cat([part.z[name] for part in parts], 1) for name in parts[0].z},
            log_prior=torch.cat([part.log_prior for part in parts], 1),
            log_likelihood=torch.cat([part.log_likelihood for part in parts], 1),
            log_guide=torch.cat([part.log_guide for part in parts], 1),
        )


@dataclass(frozen=True)
class Estimate:
    """A mean over data, in nats per datum, with its two standard errors.

    Attributes:
        name: "ELBO", "reconstruction", "KL" or "IWAE".
        num_particles: K, particles per datum inside the logarithm for an IWAE bound, in the average for the others.
        value: the estimate, or None where there is none.
        se_data: standard error over the data, None for a single datum.
        se_monte_carlo: standard error over the draws at fixed data, None for a single draw.
        why: the reason for a None.

    """

    name: str
    num_particles: int
    value: float | None
    se_data: float | None
    se_monte_carlo: float | None
    why: str | None = None

    @property
    def label(self) -> str:
        """The name in tables and pictures, such as ``L_50``."""
        return f"L_{self.num_particles}" if self.name == "IWAE" else self.name


@dataclass(frozen=True)
class Evaluation:
    """The ELBO beside the ladder of IWAE bounds on one data set, and everything needed to know what they mean.

    Attributes:
        elbo: the ELBO with closed-form KL terms where they are right.
        reconstruction: its first part, E_q log p(x | z).
        kl: its second part, which is subtracted.
        iwae: L_K for each K, from the Monte Carlo ELBO L_1 on.
        kl_methods: for each latent site how its KL was computed.
        gaps: for each L_K the paired mean difference to the ELBO and its standard error over the data, nats.
        num_data: how many data were evaluated.
        data: their name.
        data_hash: their SHA-256, transform included.
        data_transform: how stored values became the values that were scored.
        base_measure: of log p(x): "counting" or "Lebesgue"; None where the model does not say.
        bits_per_dimension: at the largest K, where that is defined.
        seed: of the draws.
        settings: batch size, device, dtype.
        versions: of the packages that were used.
        date: in ISO format.
        seconds: that it took.
        per_datum: for "ELBO", "reconstruction", "KL" and each "L_K" the values ``(N,)``; not part of the JSON.

    """

    elbo: Estimate
    reconstruction: Estimate
    kl: Estimate
    iwae: tuple[Estimate, ...]
    kl_methods: dict[str, str]
    gaps: dict[str, tuple[float | None, float | None]]
    num_data: int
    data: str
    data_hash: str
    data_transform: dict[str, Any] | None
    base_measure: str | None
    bits_per_dimension: float | None
    seed: int
    settings: dict[str, Any]
    versions: dict[str, str]
    date: str
    seconds: float
    per_datum: dict[str, Tensor] = field(repr=False, compare=False, default_factory=dict)

    @property
    def estimates(self) -> tuple[Estimate, ...]:
        """The ELBO, its two parts, and the ladder."""
        return (self.elbo, self.reconstruction, self.kl, *self.iwae)

    def __str__(self) -> str:
        """Return the table."""
        rows = [("", "K", "nats", "se data", "se MC", "over the ELBO")]
        for estimate in self.estimates:
            part = estimate in (self.reconstruction, self.kl)
            gap = self.gaps.get(estimate.label, (None, None))
            rows.append(
                (
                    ("  " if part else "") + estimate.label,
                    str(estimate.num_particles) if estimate.name == "IWAE" else "",
                    _number(estimate.value, 3),
                    _number(estimate.se_data, 3),
                    _number(estimate.se_monte_carlo, 4),
                    "" if gap[0] is None else f"{gap[0]:+.3f} +- {_number(gap[1], 3)}",
                )
            )
        methods = ", ".join(f"{site}: {_method(method)}" for site, method in self.kl_methods.items())
        lines = [
            f"{self.data}: {self.num_data} data, sha256 {self.data_hash[:12]}, seed {self.seed}",
            "Estimates of log p(x), nats per datum, larger is better.",
            "",
            *align(rows),
            "",
            f"{self.elbo.num_particles} particles per datum; KL of {methods}",
        ]
        if self.bits_per_dimension is not None:
            lines.append(f"{self.bits_per_dimension:.4f} bits per dimension at {self.iwae[-1].label}")
        lines += [f"{estimate.label}: {estimate.why}" for estimate in self.estimates if estimate.why]
        return "\n".join(lines)

    def to_json(self) -> str:
        """Return strict JSON, without the values per datum."""
        record = {name: value for name, value in asdict(self).items() if name != "per_datum"}
        return json.dumps(record, indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, per_datum: Mapping[str, Tensor] | None = None) -> Evaluation:
        """Read what `to_json` wrote.

        Raises:
            ValueError: if the text is no evaluation.

        """
        try:
            record = json.loads(text)
            for name in ("elbo", "reconstruction", "kl"):
                record[name] = Estimate(**record[name])
            record["iwae"] = tuple(Estimate(**estimate) for estimate in record["iwae"])
            record["gaps"] = {name: tuple(gap) for name, gap in record["gaps"].items()}
            return cls(**record, per_datum=dict(per_datum or {}))
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"this is not an evaluation that this version of pyrovae wrote: {error}") from None


@dataclass(frozen=True)
class Epoch:
    """What one epoch of training showed, in nats per datum; larger is better.

    Attributes:
        epoch: its number, from 1.
        steps: gradient steps so far.
        elbo: training ELBO, the mean over the epoch; it lags behind, since the parameters move meanwhile.
        reconstruction: its first part, None where the objective does not tell.
        kl: its second part.
        validation: the same three on the validation data at the end of the epoch, None without such data.
        learning_rate: at the end of the epoch.
        seconds: that the epoch took.

    """

    epoch: int
    steps: int
    elbo: float
    reconstruction: float | None
    kl: float | None
    validation: dict[str, float] | None
    learning_rate: float
    seconds: float


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
        rows = [("epoch", "ELBO", "reconstruction", "KL", "validation ELBO", "seconds")]
        stride = math.ceil(len(self.epochs) / 12) or 1
        for epoch in self.epochs[::-stride][::-1]:
            rows.append(
                (
                    str(epoch.epoch),
                    _number(epoch.elbo, 3),
                    _number(epoch.reconstruction, 3),
                    _number(epoch.kl, 3),
                    _number(epoch.validation["elbo"] if epoch.validation else None, 3),
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


def bits_per_dimension(nats: float, *, num_dimensions: int, log_abs_det_jacobian: float = 0.0) -> float:
    """Return the code length of a discrete datum in bits per dimension.

    ``-(log p(x) + log |dx/du|) / (D log 2)``

    Args:
        nats: log p(x), a log-probability, or the log-density of dequantized data.
        num_dimensions: D.
        log_abs_det_jacobian: of the map from stored values u to the values x that were scored, 0 for a probability.

    """
    return -(nats + log_abs_det_jacobian) / (num_dimensions * math.log(2))


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of cells as lines, the first column flush left and the others flush right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _method(method: str) -> str:
    return method if method == "closed form" else f"Monte Carlo ({method})"
