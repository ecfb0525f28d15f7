"""Content of the report of an evaluation, section by section."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from pyrovae.report.bound_figures import ladder, waterfall
from pyrovae.report.diagnostic_figures import kl_per_unit, training_curves, weight_histograms
from pyrovae.report.image_figures import interpolations, reconstructions, samples, thumbnails, traversals
from pyrovae.report.latent_figures import latent_space
from pyrovae.report.page import Caution, Definitions, Headline, Part, Picture, Section
from pyrovae.results import Evaluation, History, Number
from pyrovae.results.tables import percent
from pyrovae.vae import VAE

DOUBTS = ("K is not enough", "K may not be enough", "not asymptotic")


@dataclass(frozen=True)
class ReportContext:
    """Everything that a report shows.

    Attributes:
        evaluation: estimates.
        vae: model, for figures of data; None for a hand-written model and guide.
        x: ``(N, *x_shape)``, the evaluated data.
        covariates: ``(N, ...)`` each.
        labels: ``(N,)``, which color points.
        history: metrics of training, if known.
        settings: settings of the run, if known.

    """

    evaluation: Evaluation
    vae: VAE | None
    x: Tensor
    covariates: tuple[Tensor, ...]
    labels: Tensor | None
    history: History | None
    settings: Mapping[str, Any] | None


def headlines(evaluation: Evaluation) -> list[Headline]:
    """Return the numbers at the top of a report."""
    weights, checked, last = evaluation.weights, evaluation.checked, evaluation.iwae[-1]
    doubt = weights.verdict if weights is not None and weights.verdict in DOUBTS else None
    lines = [
        Headline("ELBO", Number(evaluation.elbo.value, error=evaluation.elbo.se_data), "nats per datum"),
        Headline(last.label, Number(last.value, error=last.se_data), doubt or "nats per datum", doubt is not None),
    ]
    if checked is not None and (higher := checked.higher) is not None:
        value = Number(higher.value, signed=True, error=higher.se)
        note = f"nats, on the same {higher.num_data} data"
        lines.append(Headline(f"AIS \N{MINUS SIGN} {last.label}", value, note))
    if weights is not None and weights.share_above is not None:
        doubtful = doubt is not None and weights.share_above > 0.05
        note = f"of the data, above {weights.threshold:.2f}"
        lines.append(Headline("k-hat too high", percent(weights.share_above), note, doubtful))
    if evaluation.bits_per_dimension is not None:
        lines.append(Headline("bits per dimension", Number(evaluation.bits_per_dimension, 4), f"at {last.label}"))
    if checked is not None and (latents := checked.latents) is not None:
        note = f"{latents.num_unknown} unknown" if latents.num_unknown else "by the variance of their means"
        lines.append(Headline("active units", f"{latents.num_active} of {len(latents.units)}", note))
    return lines


def report_sections(context: ReportContext) -> list[Section]:
    """Return the sections of a report that apply."""
    writers: tuple[Callable[[ReportContext], Section | None], ...] = (
        *(_bounds, _sandwich, _gaps, _weights, _latents, _data, _training, _provenance),
    )
    sections = [section for write in writers if (section := write(context)) is not None]
    warnings = [Caution(warning) for warning in context.evaluation.warnings]
    return [replace(section, parts=(*warnings, *section.parts)) for section in sections]


def _bounds(context: ReportContext) -> Section:
    evaluation = context.evaluation
    weights, checked, last = evaluation.weights, evaluation.checked, evaluation.iwae[-1].label
    parts: list[Part] = [evaluation.bounds_table()]
    if weights is not None and weights.verdict in DOUBTS:
        higher = f" {checked.higher}." if checked is not None and checked.higher is not None else ""
        parts.append(Caution(f"{weights.verdict}: {weights.reason}.{higher}"))
    annealing = checked.annealing if checked is not None else None
    extra = [annealing.bound] if annealing is not None and annealing.num_data == evaluation.num_data else []
    known = any(estimate.value is not None for estimate in (evaluation.elbo, *evaluation.iwae))
    parts += _picture(
        lambda: ladder(evaluation, extra) if known else None,
        alt=f"The ELBO and the IWAE bounds up to {last} over the number of particles, with standard errors.",
        caption="All rungs come from the same draws. Thin bars are the standard error over draws at fixed data, "
        "broad ones the standard error over the data; the paired gain has the standard error of differences.",
    )
    prose = (
        f"Every row but the KL is a lower bound on the mean of log {evaluation.density}, or a part of one, in nats per "
        "datum; larger is better. L_K is the importance-weighted bound with K particles."
    )
    return Section("Bounds", prose, parts)


def _sandwich(context: ReportContext) -> Section | None:
    checked = context.evaluation.checked
    if checked is None or (checked.annealing is None and checked.sandwich is None and not checked.left_out):
        return None
    parts: list[Part] = [checked.annealing_table()] if checked.annealing is not None else []
    parts += checked.sandwich.tables() if checked.sandwich is not None else ()
    parts += [Caution(f"{name} was left out: {why}") for name, why in checked.left_out.items()]
    prose = (
        "Annealed importance sampling moves from the guide to the posterior in small steps. It often comes closer to "
        "log p(x) than L_K at the same cost, but not always. For data simulated from the model, the reversed steps "
        "give an upper bound, so that the distance to log p(x) is known there."
    )
    return Section("Sandwich", prose, parts)


def _gaps(context: ReportContext) -> Section | None:
    gaps = context.evaluation.checked.gaps if context.evaluation.checked else None
    if gaps is None:
        return None
    picture = _picture(
        lambda: waterfall(gaps),
        alt="Steps from the ELBO of the guide over a refined diagonal Gaussian to the tightest bound.",
        caption="Each step is a mean of differences datum by datum, with its standard error over the data.",
    )
    prose = (
        "The amortization gap is the cost of one encoder for all data, compared with a diagonal Gaussian optimized for "
        "each datum. The approximation gap is the cost of the diagonal Gaussian, compared with the tightest bound."
    )
    return Section("Where the gap comes from", prose, [*picture, *gaps.tables()])


def _weights(context: ReportContext) -> Section | None:
    evaluation, weights = context.evaluation, context.evaluation.weights
    if weights is None:
        return None
    quantiles, gap = weights.tables()
    k, threshold = weights.num_particles, weights.threshold
    parts: list[Part] = [quantiles]
    parts += _picture(
        lambda: weight_histograms(evaluation.per_datum, threshold=threshold, num_particles=k),
        alt="Histograms over the data of k-hat, of the effective sample size and of the largest weight.",
        caption=f"Of the {k:,} weights of each datum. Where k-hat is above its threshold, the mean of the weights "
        "depends on weights that were hardly ever drawn, and L_K is unreliable for that datum.",
    )
    parts.append(gap)
    khat, vae = evaluation.per_datum.get("khat"), context.vae
    if vae is not None and khat is not None:
        parts += _picture(
            lambda: thumbnails(vae, context.x, khat, covariates=context.covariates),
            alt="The ten data with the largest k-hat.",
            caption="The data whose posterior the guide fits worst, by k-hat.",
        )
    prose = (
        "L_K is as good as the weights p(x, z) / q(z | x) that it averages. k-hat is the shape of the tail of a "
        "datum's weights, by Pareto smoothed importance sampling: above a threshold that depends on K their mean is "
        "unreliable. The effective sample size is the number of the K particles that count, the largest weight is the "
        "share of the sum that one particle has."
    )
    return Section("Is the guide any good?", prose, parts)


def _latents(context: ReportContext) -> Section | None:
    latents = context.evaluation.checked.latents if context.evaluation.checked else None
    vae = context.vae
    parts: list[Part] = []
    if latents is not None:
        split, units = latents.tables()
        kls = [unit.kl for unit in latents.units]
        activities = [math.nan if unit.activity is None else unit.activity for unit in latents.units]
        figure = _picture(
            lambda: kl_per_unit(
                [unit.name for unit in latents.units],
                None if None in kls else torch.tensor(kls),
                torch.tensor([bool(unit.active) for unit in latents.units]),
                variance=torch.tensor(activities),
                threshold=0.01,
            ),
            alt="Bars of the information in each latent unit, active units apart from inactive ones.",
            caption="Units that are active have a posterior mean that varies by more than 0.01 over the data.",
        )
        parts += [split, *figure, units]
    if vae is not None:
        parts += _picture(
            lambda: latent_space(vae, context.x, context.labels, covariates=context.covariates),
            alt="Posterior means of the data in two latent dimensions, against the prior.",
            caption="Posterior means of the data in the latent dimensions that carry most, against the prior.",
        )
    prose = (
        "The KL is the mutual information of the code z and x, plus the distance of the codes of all data together, "
        "q(z), from the prior. A unit collapses where different x get the same code; a small KL alone may be a prior "
        "that fits."
    )
    return Section("Latent units", prose, parts) if parts else None


def _data(context: ReportContext) -> Section | None:
    vae, x, given = context.vae, context.x, context.covariates
    if vae is None:
        return None
    per_datum, last = context.evaluation.per_datum, context.evaluation.iwae[-1].label
    gap = per_datum[last] - per_datum["ELBO"] if last in per_datum else None
    name = f"{last} \N{MINUS SIGN} ELBO (nats)"
    parts = [
        *_picture(
            lambda: reconstructions(vae, x, covariates=given, order=gap, what=name),
            alt="Data above their reconstructions, ordered by the gap between the bounds.",
            caption=f"Data and E[x | z] at the mean of the posterior, from the smallest to the largest {last} - ELBO.",
        ),
        *_picture(
            lambda: samples(vae, covariates=given),
            alt="A grid of samples from the model.",
            caption="E[x | z] for z from the prior.",
        ),
        *_picture(
            lambda: traversals(vae, x, covariates=given),
            alt="Rows of images in which one latent dimension is moved.",
            caption="E[x | z] while one dimension of z moves through its prior.",
        ),
        *_picture(
            lambda: interpolations(vae, x, covariates=given),
            alt="Rows of images between two data.",
            caption="E[x | z] on straight lines between the codes of two data, which stand at the ends.",
        ),
    ]
    return Section("Data and the model", "", parts) if parts else None


def _training(context: ReportContext) -> Section | None:
    history = context.history
    if history is None or not history.epochs:
        return None
    picture = _picture(
        lambda: training_curves(history),
        alt="The ELBO and its terms over the epochs, for training and validation data.",
        caption=f"The weights that were evaluated are those of epoch {history.best_epoch}.",
    )
    return Section("Training", "", picture)


def _provenance(context: ReportContext) -> Section:
    evaluation = context.evaluation
    entries = {
        "data": evaluation.data,
        "number of data": evaluation.num_data,
        "transform": evaluation.data_transform or "none",
        "sha256 of the data": evaluation.data_hash,
        "sha256 as stored": evaluation.stored_hash or "not known",
        "observed": vars(evaluation.observed) if evaluation.observed else "not known",
        "base measure": evaluation.base_measure or "not known",
        "seed": evaluation.seed,
        "particles": [estimate.num_particles for estimate in evaluation.iwae],
        **evaluation.settings,
    }
    parts = [Definitions(entries, title="Evaluation"), Definitions(evaluation.versions, title="Versions")]
    if context.settings is not None:
        parts.append(Definitions(_without_unset(context.settings), title="Run"))
    return Section("Configuration, versions, hashes", "", parts)


def _picture(draw: Callable[[], Figure | None], *, alt: str, caption: str) -> list[Part]:
    """Return a figure if there is one, or a caution with the error of the function that draws it."""
    try:
        figure = draw()
    except ValueError as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        return [Caution(f"A picture is left out: {reason.removesuffix(':')}.")]
    return [] if figure is None else [Picture(figure, alt=alt, caption=caption)]


def _without_unset(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings without those that are None or empty."""
    inner = {name: _without_unset(value) if isinstance(value, Mapping) else value for name, value in settings.items()}
    return {name: value for name, value in inner.items() if value is not None and value not in ({}, [])}
