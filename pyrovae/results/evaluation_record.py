"""Estimates of log p(x), and what they were computed from."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from pyrovae.results.annealed_bounds import Annealing, Sandwich
from pyrovae.results.estimates import Estimate, PairedDifference
from pyrovae.results.latent_record import Latents
from pyrovae.results.observed_data import WHOLE, ObservedData
from pyrovae.results.record import from_plain, to_plain
from pyrovae.results.tables import Cell, Number, Table, Tabled
from pyrovae.results.tightness import Gaps, Weights


@dataclass(frozen=True)
class Evaluation(Tabled):
    """The ELBO beside the ladder of IWAE bounds on one data set, and everything needed to know what they mean.

    Attributes:
        elbo: the ELBO with closed-form KL terms where they are right.
        reconstruction: its first part, E_q log p(x | z).
        kl: its second part, which is subtracted.
        iwae: L_K for each K, from the Monte Carlo ELBO L_1 on.
        kl_methods: for each latent site how its KL was computed.
        gains: for each L_K the paired mean difference to the ELBO and its standard error over the data, nats.
        num_data: how many data were evaluated.
        data: their name.
        data_hash: their SHA-256, transform included.
        stored_hash: SHA-256 of the values as they are stored, before any transform; None where that is not known.
        num_covariates: elements per datum of the arguments that the model is given and does not observe.
        data_transform: how stored values became the values that were scored.
        base_measure: of log p(x): "counting" or "Lebesgue"; None where the model does not say.
        log_abs_det_jacobian: log |dx/du| of the map from stored values u to the values x that were scored, nats per
            datum: added to log p(x) it gives the log-density of u (for dequantized u a lower bound of its
            log-probability). What is masked does not count, a mean over the data where masks differ. None for a
            counting measure, or where there is no such map, or none is known of what is observed.
        bits_per_dimension: at the largest K, where that is defined: the code length of all data over the number of all
            elements that are scored, so that masks which differ between data are weighed by what they leave.
        seed: of the draws.
        settings: batch size, device, dtype, SHA-256 of the weights of the modules, and the checks that were asked for.
        versions: of the packages that were used.
        date: in ISO format.
        weights: how heavy the weights behind the largest K are, and whether K is enough.
        checked: what was found out beside the bounds, on some of the data; None where it was not asked for.
        observed: the values that the model scores, which need not be all of x; None where that is not known.
        unnormalized: the reason why the model is not a normalized distribution; None if it is.
        per_datum: for "ELBO", "reconstruction", "KL" and each "L_K" the values ``(N,)``, and the diagnostics of the
            weights at the largest K; not part of the JSON.

    """

    elbo: Estimate
    reconstruction: Estimate
    kl: Estimate
    iwae: tuple[Estimate, ...]
    kl_methods: dict[str, str]
    gains: dict[str, tuple[float | None, float | None]]
    num_data: int
    data: str
    data_hash: str
    data_transform: dict[str, Any] | None
    base_measure: str | None
    log_abs_det_jacobian: float | None
    bits_per_dimension: float | None
    seed: int
    settings: dict[str, Any]
    versions: dict[str, str]
    date: str
    stored_hash: str | None = None
    num_covariates: int = 0
    weights: Weights | None = None
    checked: CheckResults | None = None
    observed: ObservedData | None = None
    unnormalized: str | None = None
    per_datum: dict[str, Tensor] = field(repr=False, compare=False, default_factory=dict)

    @property
    def estimates(self) -> tuple[Estimate, ...]:
        """The ELBO, its two parts, and the ladder."""
        return (self.elbo, self.reconstruction, self.kl, *self.iwae)

    @property
    def density(self) -> str:
        """The estimated density by its observed sites: ``p(x)``, or ``p(x | c)`` given covariates c."""
        if self.observed is not None and self.observed.sites:
            return self.observed.density
        return "p(x | c)" if self.num_covariates else "p(x)"

    def tables(self) -> tuple[Table, ...]:
        """Return the table of the bounds, then those of the weights and the checks."""
        others = (table for record in (self.weights, self.checked) if record for table in record.tables())
        return (self.bounds_table(), *(replace(table, notes=(*table.notes, *self.warnings)) for table in others))

    @property
    def warnings(self) -> tuple[str, ...]:
        """The line that stands in every table of an unnormalized model; nothing for other models."""
        if self.unnormalized is None:
            return ()
        return (f"NOT a log-probability: {self.density} is not normalized ({self.unnormalized})",)

    def bounds_table(self) -> Table:
        """Return the ELBO, its parts and the ladder."""
        rows: list[tuple[Cell, ...]] = []
        for estimate in self.estimates:
            part = estimate in (self.reconstruction, self.kl)
            gain, error = self.gains.get(estimate.label, (None, None))
            rows.append(
                (
                    ("  " if part else "") + estimate.label,
                    str(estimate.num_particles) if estimate.name == "IWAE" else "",
                    *estimate.cells(),
                    "" if gain is None else Number(gain, signed=True, error=error),
                )
            )
        methods = ", ".join(f"{site}: {_method(method)}" for site, method in self.kl_methods.items())
        transform = f", {self.data_transform['class']}" if self.data_transform else ""
        measure = {"counting": ", a log-probability", "Lebesgue": ", a log-density"}.get(self.base_measure or "", "")
        measure = "" if self.unnormalized else measure
        notes = [*self.warnings, f"{self.elbo.num_particles} particles per datum; KL of {methods}"]
        if self.observed is not None and self.observed.what != WHOLE:
            caution = self.observed.caution(self.base_measure)
            notes.append(f"observed: {self.observed}{f'; {caution}' if caution else ''}")
        if self.observed is not None and self.observed.discreteness:
            notes.append(self.observed.discreteness)
        if self.bits_per_dimension is not None:
            notes.append(f"{self.bits_per_dimension:.4f} bits per dimension at {self.iwae[-1].label}")
        if self.log_abs_det_jacobian:
            notes.append(f"for the stored values instead of x add {self.log_abs_det_jacobian:.3f} nats")
        whys: dict[str, list[str]] = {}
        for estimate in self.estimates:
            if estimate.why:
                whys.setdefault(estimate.why, []).append(estimate.label)
        return Table(
            header=("", "K", "nats", "se data", "se MC", "over the ELBO"),
            rows=tuple(rows),
            title=(
                f"{self.data}: {self.num_data} data{transform}, sha256 {self.data_hash[:12]}, seed {self.seed}",
                f"Estimates of log {self.density}{measure}, nats per datum, larger is better.",
            ),
            notes=(*notes, *(f"{', '.join(labels)}: {why}" for why, labels in whys.items())),
        )

    def to_json(self) -> str:
        """Return strict JSON, without the values per datum."""
        return json.dumps(to_plain(self), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, per_datum: Mapping[str, Tensor] | None = None) -> Evaluation:
        """Read what `to_json` wrote.

        Args:
            text: JSON.
            per_datum: values per datum, by the names that `tensors_of` gives them.

        Raises:
            ValueError: if the text is no evaluation, or one of another version of pyrovae.

        """
        try:
            return from_plain(cls, json.loads(text, parse_constant=_refuse), dict(per_datum or {}))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"this is not an evaluation that this version of pyrovae wrote ({error}); evaluate the run again"
            ) from None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def bits_per_dimension(nats: float, *, num_dimensions: float, log_abs_det_jacobian: float = 0.0) -> float:
    """Return the code length of a discrete datum, or the mean one of several, in bits per dimension.

    ``-(log p(x) + log |dx/du|) / (D log 2)``

    Args:
        nats: log p(x), a log-probability, or the log-density of dequantized data.
        num_dimensions: D, the elements that are scored, or their mean over the data.
        log_abs_det_jacobian: of the map from stored values u to the values x that were scored, 0 for a probability.

    """
    return -(nats + log_abs_det_jacobian) / (num_dimensions * math.log(2))


def _method(method: str) -> str:
    return method if method == "closed form" else f"Monte Carlo ({method})"


@dataclass(frozen=True)
class CheckResults(Tabled):
    """What checks of an evaluation found: None where one was not asked for, or could not be had.

    Attributes:
        annealing: AIS on the first data.
        same_data: L_K on these data, at the largest K.
        higher: which of the two is higher.
        sandwich: AIS and BDMC on data simulated from the model.
        gaps: where the gap between the ELBO and the tightest bound comes from, on the first data.
        latents: what the latent variables of the first data carry.
        left_out: why a check that was asked for could not be had, by its name.

    """

    annealing: Annealing | None
    same_data: Estimate | None
    higher: PairedDifference | None
    sandwich: Sandwich | None
    gaps: Gaps | None
    latents: Latents | None
    left_out: dict[str, str]

    def tables(self) -> tuple[Table, ...]:
        """Return the tables of all checks, AIS beside L_K on the same data."""
        records = (self.sandwich, self.gaps, self.latents)
        found = [self.annealed()] if self.annealing else []
        found += [table for record in records if record is not None for table in record.tables()]
        if self.left_out:
            notes = tuple(f"{name}: {why}" for name, why in self.left_out.items())
            found.append(Table(("left out",), tuple((name,) for name in self.left_out), notes=notes))
        return tuple(found)

    def annealed(self) -> Table:
        """Return the table of AIS with L_K on the same data below it, and which is higher."""
        assert self.annealing is not None
        (table,) = self.annealing.tables()
        if self.same_data is None or self.higher is None:
            return table
        cells = (f"{self.same_data.label}, same data", *self.same_data.cells())
        empty = ("",) * (len(table.header) - len(cells))
        return replace(table, rows=(*table.rows, (*cells, *empty)), notes=(f"{self.higher}.", *table.notes))
