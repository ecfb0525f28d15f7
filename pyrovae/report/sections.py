"""What a report of an evaluation says, section by section."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from pyrovae.report.bounds import ladder
from pyrovae.report.content import Caution, Definitions, Headline, Part, Picture, Section
from pyrovae.report.curves import training_curves
from pyrovae.report.gaps import waterfall
from pyrovae.report.hardest import thumbnails
from pyrovae.report.images import interpolations, reconstructions, samples, traversals
from pyrovae.report.latents import latent_space
from pyrovae.report.units import kl_per_unit
from pyrovae.report.weights import weight_histograms
from pyrovae.results import Evaluation, History, Number
from pyrovae.results.tables import percent
from pyrovae.vae import VAE

DOUBTS = ("K is not enough", "K may not be enough", "not asymptotic")


@dataclass(frozen=True)
class ReportContext:
    """What a report is about.

    Attributes:
        evaluation: the numbers.
        vae: the model, for pictures of data; None for a pair that was written by hand.
        x: ``(N, *x_shape)``, the data that were evaluated.
        covariates: ``(N, ...)`` each.
        labels: ``(N,)``, which only color points.
        history: of training, where that is known.
        settings: of the run, where they are known.

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
    loose = weights is not None and weights.verdict in DOUBTS
    found = [
        Headline("ELBO", Number(evaluation.elbo.value, error=evaluation.elbo.se_data), "nats per datum"),
        Headline(
            last.label,
            Number(last.value, error=last.se_data),
            weights.verdict if loose and weights else "nats per datum",
            doubtful=loose,
        ),
    ]
    higher = checked.higher if checked is not None else None
    if higher is not None:
        name = f"AIS \N{MINUS SIGN} {last.label}"
        note = f"nats, on the same {higher.num_data} data"
        found.append(Headline(name, Number(higher.value, signed=True, error=higher.se), note))
    if weights is not None and weights.share_above is not None:
        note = f"of the data, above {weights.threshold:.2f}"
        found.append(
            Headline(
                "k-hat too high", percent(weights.share_above), note, doubtful=loose and weights.share_above > 0.05
            )
        )
    if evaluation.bits_per_dimension is not None:
        found.append(Headline("bits per dimension", Number(evaluation.bits_per_dimension, 4), f"at {last.label}"))
    if checked is not None and checked.latents is not None:
        units = checked.latents
        note = f"{units.num_unknown} unknown" if units.num_unknown else "by the variance of their means"
        found.append(Headline("active units", f"{units.num_active} of {len(units.units)}", note))
    return found


def sections(shown: ReportContext) -> list[Section]:
    """Return the sections of a report, those that apply."""
    writers: tuple[Callable[[ReportContext], Section | None], ...] = (
        _bounds,
        _sandwich,
        _gaps,
        _weights,
        _latents,
        _pictures,
        _training,
        _provenance,
    )
    found = [section for section in (write(shown) for write in writers) if section is not None]
    warnings = [Caution(warning) for warning in shown.evaluation.warnings]
    return [replace(section, parts=(*warnings, *section.parts)) for section in found]


def _bounds(shown: ReportContext) -> Section:
    evaluation = shown.evaluation
    last, weights = evaluation.iwae[-1].label, evaluation.weights
    parts: list[Part] = [evaluation.bounds_table()]
    if weights is not None and weights.verdict in DOUBTS:
        higher = evaluation.checked.higher if evaluation.checked else None
        parts.append(Caution(f"{weights.verdict}: {weights.reason}." + (f" {higher}." if higher else "")))
    annealing = evaluation.checked.annealing if evaluation.checked else None
    whole = annealing is not None and annealing.num_data == evaluation.num_data
    extra = [annealing.bound] if annealing is not None and whole else []
    known = any(estimate.value is not None for estimate in (evaluation.elbo, *evaluation.iwae))
    parts += _picture(
        lambda: ladder(evaluation, extra) if known else None,
        alt=f"The ELBO and the IWAE bounds up to {last} over the number of particles, with standard errors.",
        caption="All rungs come from the same draws. Thin bars are the standard error over draws at fixed data, "
        "broad ones that over the data; the paired gain has the standard error of differences.",
    )
    prose = (
        f"Every row but the KL is a lower bound on the mean of log {evaluation.density}, or a part of one, in nats per "
        "datum; larger is better. L_K is the importance-weighted bound with K particles."
    )
    return Section("Bounds", prose, parts)


def _sandwich(shown: ReportContext) -> Section | None:
    checked = shown.evaluation.checked
    if checked is None or (checked.annealing is None and checked.sandwich is None and not checked.left_out):
        return None
    parts: list[Part] = [checked.annealed()] if checked.annealing is not None else []
    parts += checked.sandwich.tables() if checked.sandwich is not None else ()
    parts += [Caution(f"{name} was left out: {why}") for name, why in checked.left_out.items()]
    prose = (
        "Annealed importance sampling walks from the guide to the posterior and often comes closer to log p(x) than "
        "L_K at the same cost, though it need not. How close can be told for data that the model itself makes: there "
        "the reversed walk gives an upper bound."
    )
    return Section("Sandwich", prose, parts)


def _gaps(shown: ReportContext) -> Section | None:
    gaps = shown.evaluation.checked.gaps if shown.evaluation.checked else None
    if gaps is None:
        return None
    picture = _picture(
        lambda: waterfall(gaps),
        alt="Steps from the ELBO of the guide over a refined diagonal Gaussian to the tightest bound.",
        caption="Each step is a mean of differences datum by datum, with its standard error over the data.",
    )
    prose = (
        "The amortization gap is what one encoder for all data costs against a diagonal Gaussian found for each datum "
        "by itself, the approximation gap what the diagonal Gaussian costs against the tightest bound."
    )
    return Section("Where the gap comes from", prose, [*picture, *gaps.tables()])


def _weights(shown: ReportContext) -> Section | None:
    evaluation = shown.evaluation
    weights = evaluation.weights
    if weights is None:
        return None
    spread, missing = weights.tables()
    parts: list[Part] = [spread]
    parts += _picture(
        lambda: weight_histograms(
            evaluation.per_datum, threshold=weights.threshold, num_particles=weights.num_particles
        ),
        alt="Histograms over the data of k-hat, of the effective sample size and of the largest weight.",
        caption=f"Of the {weights.num_particles:,} weights of each datum. A k-hat above its threshold says that their "
        "mean is decided by weights that were hardly ever drawn, so that L_K cannot be relied on for that datum.",
    )
    parts.append(missing)
    khat = evaluation.per_datum.get("khat")
    vae = shown.vae
    if vae is not None and khat is not None:
        parts += _picture(
            lambda: thumbnails(vae, shown.x, khat, covariates=shown.covariates),
            alt="The ten data with the largest k-hat.",
            caption="The data whose posterior the guide fits worst, by k-hat.",
        )
    prose = (
        "L_K is as good as the weights p(x, z) / q(z | x) that it averages. k-hat is the shape of the tail of a "
        "datum's weights, by Pareto smoothed importance sampling: above a threshold that depends on K their mean "
        "cannot be trusted. The effective sample size says how many of the K particles count, the largest weight what "
        "share of the sum one of them has."
    )
    return Section("Is the guide any good?", prose, parts)


def _latents(shown: ReportContext) -> Section | None:
    latents = shown.evaluation.checked.latents if shown.evaluation.checked else None
    vae = shown.vae
    parts: list[Part] = []
    if latents is not None:
        kls = [unit.kl for unit in latents.units]
        split, units = latents.tables()
        parts += [split]
        parts += _picture(
            lambda: kl_per_unit(
                [unit.name for unit in latents.units],
                torch.tensor([kl for kl in kls if kl is not None]) if None not in kls else None,
                torch.tensor([bool(unit.active) for unit in latents.units]),
                variance=torch.tensor([math.nan if unit.activity is None else unit.activity for unit in latents.units]),
                threshold=0.01,
            ),
            alt="Bars of what each latent unit carries, active ones apart from inactive ones.",
            caption="Units that are active have a posterior mean that varies by more than 0.01 over the data.",
        )
        parts.append(units)
    if vae is not None:
        parts += _picture(
            lambda: latent_space(vae, shown.x, shown.labels, covariates=shown.covariates),
            alt="Posterior means of the data in two latent dimensions, against the prior.",
            caption="Posterior means of the data in the latent dimensions that carry most, against the prior.",
        )
    prose = (
        "What the code z says of x: the KL is the mutual information of the two and the distance of the codes of all "
        "data together, q(z), from the prior. A unit collapses where different x get the same code; a small KL alone "
        "may be a prior that fits."
    )
    return Section("Latent units", prose, parts) if parts else None


def _pictures(shown: ReportContext) -> Section | None:
    vae, x, given = shown.vae, shown.x, shown.covariates
    if vae is None:
        return None
    per_datum, last = shown.evaluation.per_datum, shown.evaluation.iwae[-1].label
    gap = per_datum[last] - per_datum["ELBO"] if last in per_datum else None
    what = f"{last} \N{MINUS SIGN} ELBO (nats)"
    parts = [
        *_picture(
            lambda: reconstructions(vae, x, covariates=given, order=gap, what=what),
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
            alt="Rows of images between pairs of data.",
            caption="E[x | z] on straight lines between the codes of two data, which stand at the ends.",
        ),
    ]
    return Section("Data and the model", "", parts) if parts else None


def _training(shown: ReportContext) -> Section | None:
    history = shown.history
    if history is None or not history.epochs:
        return None
    picture = _picture(
        lambda: training_curves(history),
        alt="The ELBO and its terms over the epochs, for training and validation data.",
        caption=f"The weights that were evaluated are those of epoch {history.best_epoch}.",
    )
    return Section("Training", "", [*picture])


def _provenance(shown: ReportContext) -> Section:
    evaluation = shown.evaluation
    numbers = {
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
    run = [] if shown.settings is None else [Definitions(_said(shown.settings), title="Run")]
    parts = [Definitions(numbers, title="Evaluation"), Definitions(evaluation.versions, title="Versions"), *run]
    return Section("Configuration, versions, hashes", "", parts)


def _picture(draw: Callable[[], Figure | None], *, alt: str, caption: str) -> Iterator[Part]:
    """Yield a picture, if there is one to be drawn, or the reason why it cannot be."""
    try:
        figure = draw()
    except ValueError as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        yield Caution(f"A picture is left out: {reason.removesuffix(':')}.")
        return
    if figure is not None:
        yield Picture(figure, alt=alt, caption=caption)


def _said(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what settings say, without those that are not set."""
    found = {}
    for name, value in settings.items():
        inner = _said(value) if isinstance(value, Mapping) else value
        if inner is not None and inner != {} and inner != []:
            found[name] = inner
    return found
