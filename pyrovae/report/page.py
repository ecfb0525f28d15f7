"""The pages of a report and of a comparison: HTML files that need no other file, run no script, repeat to the byte.

The template ``page.html`` holds the sentences of a report and the order of its sections, ``page.css`` the style. All
text is escaped.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from torch import Tensor

from pyrovae.report.bound_figures import kl_by_site, ladder, waterfall
from pyrovae.report.diagnostic_figures import khat_histogram, kl_per_unit, training_curves
from pyrovae.report.image_figures import interpolations, reconstructions, samples, traversals
from pyrovae.report.latent_figures import latent_space
from pyrovae.report.style import size_in_pixels, to_svg
from pyrovae.results import Comparison, Evaluation, History, Number
from pyrovae.results.tables import percent, printable_lines
from pyrovae.vae import VAE

DOUBTS = ("K is not enough", "K may not be enough", "not asymptotic")
SUBSCRIPT = re.compile(r"\bL_(\d+|K)\b")
HASH = re.compile(r"[0-9a-f]{12,}")


@dataclass(frozen=True)
class ReportContext:
    """Content of a report; the history and settings of training may be unknown."""

    evaluation: Evaluation
    vae: VAE | None  # for figures of data; None for a hand-written model and guide
    x: Tensor  # (N, *x_shape), the evaluated data
    covariates: tuple[Tensor, ...]  # (N, ...) each
    labels: Tensor | None  # (N,), which color points
    history: History | None
    settings: Mapping[str, Any] | None
    other_reports: Mapping[str, bool] = field(default_factory=dict)  # whether earlier reports are of these weights


class Headline(NamedTuple):
    """A number at the top of a report, with its unit or meaning; a doubtful one is highlighted."""

    name: str
    value: Number | str
    note: str
    doubtful: bool = False


def render(context: ReportContext) -> str:
    """Return a report as one HTML document."""
    evaluation = context.evaluation
    return _fill(
        "page.html",
        title=f"log {evaluation.density} of {evaluation.data}",
        evaluation=evaluation,
        doubt=_doubt(evaluation),
        headlines=headlines(evaluation),
        recommendation=evaluation.recommendation,
        pictures=pictures(context),
        history=context.history,
        configuration=_configuration(evaluation),
        settings=_without_unset(context.settings or {}),
        other_reports=context.other_reports,
    )


def render_comparison(comparison: Comparison) -> str:
    """Return the tables of a comparison as one HTML document."""
    return _fill("comparison.html", title="Comparison of models", comparison=comparison)


def _fill(template: str, **values: Any) -> str:
    """Return the text of a template with values in it."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pyrovae.report", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"signs": _signs, "pixels": size_in_pixels}
    environment.filters["base64"] = lambda figure: base64.b64encode(to_svg(figure)).decode()
    environment.tests["hash"] = lambda value: HASH.fullmatch(str(value)) is not None
    return printable_lines(environment.get_template(template).render(**values) + "\n")


def headlines(evaluation: Evaluation) -> list[Headline]:
    """Return the numbers at the top of a report."""
    weights, checked, last = evaluation.weights, evaluation.checked, evaluation.iwae[-1]
    doubt = _doubt(evaluation)
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


def pictures(context: ReportContext) -> dict[str, Figure | str]:
    """Return the figures of a report by name, or the reason why one cannot be drawn."""
    evaluation, vae, x, given = context.evaluation, context.vae, context.x, context.covariates
    weights, checked, per_datum = evaluation.weights, evaluation.checked, evaluation.per_datum
    last = evaluation.iwae[-1].label
    drawn: dict[str, Figure | str] = {}

    def add(name: str, draw: Callable[..., Figure | None], *args: Any, **options: Any) -> None:
        try:
            figure = draw(*args, **options)
        except ValueError as error:
            drawn[name] = next(iter(str(error).splitlines()), type(error).__name__).removesuffix(":")
            return
        if figure is not None:
            drawn[name] = figure

    if any(estimate.value is not None for estimate in (evaluation.elbo, *evaluation.iwae)):
        add("ladder", ladder, evaluation)
    add("sites", kl_by_site, evaluation)
    if checked and checked.gaps:
        add("waterfall", waterfall, checked.gaps)
    if weights and "khat" in per_datum:
        add("khat", khat_histogram, per_datum["khat"], threshold=weights.threshold)
    if checked and checked.latents:
        add("units", kl_per_unit, checked.latents)
    if vae is not None:
        gap = per_datum[last] - per_datum["ELBO"] if last in per_datum else None
        name = f"{last} \N{MINUS SIGN} ELBO (nats)"
        add("space", latent_space, vae, x, context.labels, covariates=given)
        add("reconstructions", reconstructions, vae, x, covariates=given, order=gap, what=name)
        add("samples", samples, vae, covariates=given)
        add("traversals", traversals, vae, x, covariates=given)
        add("interpolations", interpolations, vae, x, covariates=given)
    if context.history and context.history.epochs:
        add("training", training_curves, context.history)
    return drawn


def _doubt(evaluation: Evaluation) -> str | None:
    """Return the verdict on K if it is not favorable."""
    verdict = evaluation.weights.verdict if evaluation.weights else None
    return verdict if verdict in DOUBTS else None


def _configuration(evaluation: Evaluation) -> dict[str, Any]:
    return {
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


def _without_unset(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings without those that are None or empty."""
    inner = {name: _without_unset(value) if isinstance(value, Mapping) else value for name, value in settings.items()}
    return {name: value for name, value in inner.items() if value is not None and value not in ({}, [])}


def _signs(text: Any) -> Markup:
    """Return a text with plus-minus signs and subscripts; the underscore is hidden and can still be copied."""
    html = str(escape(text)).replace("+-", "±")
    return Markup(SUBSCRIPT.sub(r'L<sub><span class="joint">_</span>\1</sub>', html))
