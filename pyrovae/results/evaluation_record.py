"""Estimates of log p(x), the settings behind them, and the checks beside them."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from pyrovae.results.annealed_bounds import Annealing, Sandwich
from pyrovae.results.estimates import (
    NOT_NORMALIZED,
    Estimate,
    PairedDifference,
    certified_text,
    copies_text,
    reasons,
    unnormalized_text,
)
from pyrovae.results.latent_record import Latents
from pyrovae.results.observed_data import GIVEN_TOTAL, TOTAL, WHOLE, ObservedData
from pyrovae.results.recommendation import Recommendation, recommend
from pyrovae.results.record import TransformDescription, from_plain, parse_json, to_plain
from pyrovae.results.tables import Cell, Number, Table, Tabled
from pyrovae.results.tightness import Gaps, Weights

RECOMMENDATION = "recommendation"  # key of the JSON that is computed from the others
KL_OF = "KL of "  # name of an estimate, before the name of a latent site
MOST_SITES, SITES_AT_AN_END = 8, 3  # latent sites with a row each; rows of the first and of the last of more sites


@dataclass(frozen=True, repr=False)
class CheckResults(Tabled):
    """Results of the checks of an evaluation; None for a check that was not requested or not possible.

    Attributes:
        annealing: AIS on the first data.
        same_data: L_K on the same data, at the largest K.
        higher: the higher of the two.
        sandwich: AIS and BDMC on data simulated from the model.
        gaps: the steps from the ELBO to the tightest bound, on the first data.
        latents: information of the latent variables of the first data.
        left_out: reasons why requested checks were not possible, by name.

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
        tables = [self.annealing_table()] if self.annealing else []
        tables += [table for record in records if record is not None for table in record.tables()]
        if self.left_out:
            notes = tuple(f"{name}: {why}" for name, why in self.left_out.items())
            tables.append(Table(("left out",), tuple((name,) for name in self.left_out), notes=notes))
        return tuple(tables)

    def annealing_table(self) -> Table:
        """Return the table of AIS with L_K on the same data below it."""
        assert self.annealing is not None
        (table,) = self.annealing.tables()
        if self.same_data is None or self.higher is None:
            return table
        cells = (f"{self.same_data.label}, same data", *self.same_data.cells())
        empty = ("",) * (len(table.header) - len(cells))
        return replace(table, rows=(*table.rows, (*cells, *empty)), notes=(f"{self.higher}.", *table.notes))


@dataclass(frozen=True, repr=False)
class Evaluation(Tabled):
    """The ELBO beside the ladder of IWAE bounds on one data set, with their settings.

    Attributes:
        elbo: the ELBO, with closed-form KL terms where they are right.
        reconstruction: first term of the ELBO, E_q log p(x | z).
        kl: second term of the ELBO, which is subtracted.
        iwae: L_K for each K, from the Monte Carlo ELBO L_1 on.
        kl_methods: method of the KL of each latent site, in the order in which the guide draws them.
        gains: paired mean difference of each L_K to the ELBO and its standard error over the data, nats.
        num_data: number of data.
        data: name of the data.
        data_hash: SHA-256 of the data after the transform.
        stored_hash: SHA-256 of the stored values, before any transform; None if unknown.
        num_covariates: elements per datum of the arguments that the model receives and does not observe.
        data_transform: transform from stored values to scored values.
        base_measure: base measure of log p(x), "counting" or "Lebesgue"; None if unknown.
        log_abs_det_jacobian: ``log |dx/du|`` of the map from stored values u to scored values x, nats per datum: added
            to log p(x) it gives the log-density of u (for dequantized u a lower bound on its log-probability). Masked
            elements do not count; a mean over the data where masks differ. None for a counting measure, or if unknown.
        bits_per_dimension: code length at the largest K per scored element, the mean over all elements of all data;
            None where undefined.
        seed: seed of the draws.
        settings: batch size, device, dtype, SHA-256 of the weights, and requested checks.
        versions: versions of the packages.
        date: date in ISO format.
        weights: tails of the weights behind the largest K, and whether K is enough.
        checked: results of the checks on some of the data; None if none was requested.
        kl_by_site: the KL of each latent site, in the order of the guide; empty for a single site.
        observed: the values that the model scores; None if unknown.
        unnormalized: reason why the model is not a normalized distribution; None if it is.
        certified: lower bound on the mean of log p(x) of these data that holds with 95 % confidence over the draws, for
            any guide; see `pyrovae.results.certified_margin`. None for an unnormalized model, for scoring in fewer bits
            than float32, for a model that draws x itself, or if L_K is missing.
        cautions: reasons to doubt the numbers: a network that returns probabilities where logits belong, or scoring in
            fewer bits than float32.
        num_distinct: number of distinct data, covariates included; None if all differ.
        per_datum: for "ELBO", "reconstruction", "KL", each "KL of SITE" and each "L_K" the values ``(N,)``, and the
            diagnostics of the weights at the largest K; not part of the JSON.

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
    data_transform: TransformDescription | None
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
    kl_by_site: dict[str, Estimate] = field(default_factory=dict)
    observed: ObservedData | None = None
    unnormalized: str | None = None
    certified: float | None = None
    cautions: tuple[str, ...] = ()
    num_distinct: int | None = None
    per_datum: dict[str, Tensor] = field(repr=False, compare=False, default_factory=dict)

    @property
    def estimates(self) -> tuple[Estimate, ...]:
        """The ELBO, its two terms, and the ladder."""
        return (self.elbo, self.reconstruction, self.kl, *self.iwae)

    @property
    def density(self) -> str:
        """The estimated density by its observed sites: ``p(x)``, or ``p(x | c)`` given covariates c."""
        if self.observed is not None and self.observed.sites:
            return self.observed.density
        return "p(x | c)" if self.num_covariates else "p(x)"

    @property
    def warnings(self) -> tuple[str, ...]:
        """A warning for every table of an unnormalized model; empty for other models."""
        if self.unnormalized is None:
            return ()
        return (unnormalized_text(self.density, self.unnormalized),)

    @property
    def recommendation(self) -> Recommendation:
        """Which bound to report, as a sentence, and what a referee would ask next."""
        return recommend(self)

    def tables(self) -> tuple[Table, ...]:
        """Return the tables of bounds, weights and checks, and of the number to report if the model is normalized."""
        others = (table for record in (self.weights, self.checked) if record for table in record.tables())
        warned = (  # tables of AIS and BDMC have a warning of their own
            replace(
                table, notes=(*(note for note in table.notes if not note.startswith(NOT_NORMALIZED)), *self.warnings)
            )
            for table in others
        )
        if self.warnings:
            return (self.bounds_table(), *warned)
        return (self.bounds_table(), *others, *self.recommendation.tables())

    def bounds_table(self) -> Table:
        """Return the ELBO, its terms and the ladder."""
        rows: list[tuple[Cell, ...]] = []
        for estimate in self.estimates:
            label = f"  {estimate.label}" if estimate in (self.reconstruction, self.kl) else estimate.label
            num_particles = str(estimate.num_particles) if estimate.name == "IWAE" else ""
            gain, error = self.gains.get(estimate.label, (None, None))
            over = "" if gain is None else Number(gain, signed=True, error=error)
            rows.append((label, num_particles, *estimate.cells(), over))
            if estimate is self.kl:
                rows += self._site_rows()
        transform = f", {self.data_transform['class']}" if self.data_transform else ""
        measures = {"counting": ", a log-probability", "Lebesgue": ", a log-density"}
        measure = "" if self.unnormalized else measures.get(self.base_measure or "", "")
        return Table(
            header=("", "K", "nats", "se data", "se MC", "over the ELBO"),
            rows=tuple(rows),
            title=(
                f"{self.data}: {self.num_data} data{transform}, sha256 {self.data_hash[:12]}, seed {self.seed}",
                f"Estimates of log {self.density}{measure}, nats per datum, larger is better.",
            ),
            notes=(*self.warnings, *(f"Caution: {caution}." for caution in self.cautions), *self._notes()),
        )

    def _site_rows(self) -> list[tuple[Cell, ...]]:
        """Return a row for the KL of each latent site; of many sites the first and the last, and the others' sum, which
        has no standard error.
        """
        sites = list(self.kl_by_site.items())
        folded = sites[SITES_AT_AN_END:-SITES_AT_AN_END] if len(sites) > MOST_SITES else []
        rows: list[tuple[Cell, ...]] = [(f"    {name}", "", *estimate.cells(), "") for name, estimate in sites]
        if folded:
            values = [estimate.value for _, estimate in folded if estimate.value is not None]
            total = Number(sum(values) if len(values) == len(folded) else None)
            label = f"    {folded[0][0]} to {folded[-1][0]} ({len(folded)} sites)"
            rows[SITES_AT_AN_END:-SITES_AT_AN_END] = [(label, "", total, "", "", "")]
        return rows

    def _notes(self) -> list[str]:
        methods = {
            site: method if method == "closed form" else f"Monte Carlo ({method})"
            for site, method in self.kl_methods.items()
        }
        of_sites = [f"{site}: {method}" for site, method in methods.items()]
        if len(methods) > MOST_SITES:
            of_sites = [f"{count} sites: {method}" for method, count in Counter(methods.values()).items()]
        notes = [f"{self.elbo.num_particles} particles per datum; KL of {', '.join(of_sites)}"]
        if self.observed is not None and self.observed.what != WHOLE:
            caution = self.observed.caution(self.base_measure)
            notes.append(f"observed: {self.observed}{f'; {caution}' if caution else ''}")
        if self.observed is not None and TOTAL in self.observed.given:
            notes.append(GIVEN_TOTAL)
        if self.observed is not None and self.observed.discreteness:
            notes.append(self.observed.discreteness)
        if self.bits_per_dimension is not None:
            notes.append(f"{self.bits_per_dimension:.4f} bits per dimension at {self.iwae[-1].label}")
        if self.certified is not None:
            notes.append(certified_text(self.density, self.certified))
        if self.num_distinct is not None:
            notes.append(copies_text(self.num_data, self.num_distinct))
        if self.log_abs_det_jacobian:
            notes.append(f"for the stored values instead of x add {self.log_abs_det_jacobian:.3f} nats")
        return notes + [f"{', '.join(labels)}: {why}" for why, labels in reasons(self.estimates).items()]

    def to_json(self) -> str:
        """Return strict JSON, with the recommendation and without the values per datum."""
        plain = {**to_plain(self), RECOMMENDATION: to_plain(self.recommendation)}
        return json.dumps(plain, indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, per_datum: Mapping[str, Tensor] | None = None) -> Evaluation:
        """Return the evaluation from the text of `to_json`.

        Args:
            text: JSON.
            per_datum: values per datum, by the names of `tensors_of`.

        Raises:
            ValueError: if the text is not an evaluation, or was written by an incompatible version of pyrovae.

        """
        try:
            plain = parse_json(dict[str, Any], text, source="evaluation.json")
            plain.pop(RECOMMENDATION, None)  # it follows from the rest
            record = from_plain(cls, plain, dict(per_datum or {}), source="evaluation.json")
            wrong = [name for name, values in record.per_datum.items() if values.shape != (record.num_data,)]
            if wrong or not record.iwae:
                raise ValueError(f"there must be num_data = {record.num_data} values of {wrong[0] if wrong else 'L_1'}")
            return record
        except ValueError as error:
            raise ValueError(
                f"this is not an evaluation that this version of pyrovae wrote ({error}); evaluate the run again"
            ) from error


def bits_per_dimension(nats: float, *, num_dimensions: float, log_abs_det_jacobian: float = 0.0) -> float:
    """Return the code length of discrete data in bits per dimension.

    ``-(log p(x) + log |dx/du|) / (D log 2)``

    Args:
        nats: log p(x) of a datum or the mean over data: a log-probability, or the log-density of dequantized data.
        num_dimensions: D, number of scored elements, or their mean over the data.
        log_abs_det_jacobian: ``log |dx/du|`` of the map from stored values u to scored values x; 0 for a probability.

    """
    return -(nats + log_abs_det_jacobian) / (num_dimensions * math.log(2))
