"""Figures show the numbers they are given, whatever is missing, and leave matplotlib as it was."""

from __future__ import annotations

import argparse
import io
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import PIL.Image
import pyro.distributions as dist
import pytest
import torch
from conftest import make_vae
from matplotlib._pylab_helpers import Gcf
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from test_comparison import annealed, evaluation
from torch import Tensor, nn

from pyrovae import likelihoods, networks, posteriors, priors, report
from pyrovae.report import latent_figures, panels
from pyrovae.report.image_figures import spread
from pyrovae.report.style import FIRST, PALETTE, SECOND, to_png
from pyrovae.results import (
    CheckResults,
    ComparisonTable,
    Difference,
    Epoch,
    Estimate,
    Evaluation,
    Gaps,
    History,
    Latents,
    Row,
)
from pyrovae.results.latent_record import Unit
from pyrovae.vae import VAE

KS = (1, 5, 50, 500)
NAN, INF, MINUS = math.nan, math.inf, "\N{MINUS SIGN}"
OVER_DATA, MONTE_CARLO = "Standard error over the data", "Monte Carlo standard error"


@pytest.fixture(autouse=True)
def _unchanged() -> Iterator[None]:
    """Require of every test here that matplotlib's settings and pyplot's figures are as before."""
    before, managers = dict(matplotlib.rcParams), len(Gcf.get_all_fig_managers())
    yield
    assert dict(matplotlib.rcParams) == before
    assert len(Gcf.get_all_fig_managers()) == managers


def binary_images(num: int = 40) -> Tensor:
    return torch.randint(2, (num, 1, 8, 8)).to(torch.get_default_dtype())


class Function(nn.Module):
    """A network given as a function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.forward = function


def transparent_vae(params: Tensor, prior: priors.Prior | None = None) -> VAE:
    """Return a model with E[x | z] = z, and one posterior, of means and log-variances ``(D, 2)``, for every datum."""
    dim = len(params)
    return VAE(
        prior=prior or priors.StandardNormal(dim),
        decoder=Function(lambda z: z[..., None, None, :, None]),  # (B, 1, 1, D, 1)
        likelihood=likelihoods.Gaussian((1, 1, dim), learn_scale=True),
        encoder=Function(lambda x: params.expand(len(x), *params.shape)),
        posterior=posteriors.DiagonalNormal(dim),
    )


class Given(priors.Prior):
    """N(c, 0.5^2) for the first covariate c."""

    conditional = True

    def forward(self, c: Tensor) -> dist.TorchDistribution:
        mean = c[..., :1].expand(*c.shape[:-1], self.latent_dim)
        return dist.Normal(mean, torch.full_like(mean, 0.5)).to_event(1)


def conditional_vae(latent_dim: int = 2, num_covariates: int = 2) -> VAE:
    likelihood, posterior = likelihoods.Bernoulli((1, 8, 8)), posteriors.DiagonalNormal(latent_dim)
    arguments: dict[str, Any] = {"covariate_dim": num_covariates, "hidden": (8,)}
    return VAE(
        prior=Given(latent_dim),
        decoder=networks.MLPDecoder(latent_dim, likelihood.param_shape, **arguments),
        likelihood=likelihood,
        encoder=networks.MLPEncoder((1, 8, 8), posterior.param_shape, **arguments),
        posterior=posterior,
    )


def mixture_vae() -> VAE:
    """Return a model whose prior has two components far apart."""
    vae = make_vae(2)
    vae.prior = priors.MixtureOfGaussians(2, num_components=2)
    with torch.no_grad():
        vae.prior.locs.copy_(torch.tensor([[-9.0, 0.0], [9.0, 4.0]]))
    return vae


def make_history(num: int = 30, *, bare: bool = False, best: int | None = None) -> History:
    """Return a history; a bare one has no validation and no terms of the ELBO."""
    validation = None if bare else {"elbo": -21.0, "reconstruction": -16.0, "kl": 5.5}
    epochs = []
    for i in range(1, num + 1):
        terms = (None, None) if bare else (-15 - 2 / i, 5 - 1 / i)
        epochs.append(Epoch(i, 10 * i, -20 - 1 / i, *terms, validation, learning_rate=1e-3, seconds=0.1))
    return History(tuple(epochs), best or num, "all epochs done")


def make_evaluation(**changes: Any) -> Evaluation:
    bounds = [Estimate("IWAE", k, -22 + 0.4 * i, 0.31 + 0.01 * i, 0.05 / (i + 1)) for i, k in enumerate(KS)]
    made = evaluation(
        {1: [0.0]},
        elbo=Estimate("ELBO", 500, -22.1, 0.3, 0.01),
        reconstruction=Estimate("reconstruction", 500, -14.1, 0.3, 0.01),
        kl=Estimate("KL", 500, 8.0, 0.1, 0.0),
        iwae=tuple(bounds),
        gains={b.label: (b.value + 22.1, 0.02) for b in bounds if b.value is not None},
        num_data=300,
        data="odd $name_$/test",
    )
    return replace(made, **changes)


def make_gaps(amortization: float = 0.5) -> Gaps:
    def estimate(name: str, value: float) -> Estimate:
        return Estimate(name, 1, value, 0.05, 0.01)

    refined = -22.0 + amortization
    bounds = [estimate(n, v) for n, v in (("ELBO", -22.0), ("refitted", -21.8), ("refined", refined), ("L_50", -20.0))]
    steps = {"amortization": amortization, "overfitting": 0.2, "approximation": -20.0 - refined, "total": 2.0}
    return Gaps(*bounds, *(estimate(name, value) for name, value in steps.items()), num_data=9, seed=0, settings={})


def make_latents(kls: list[float | None], active: list[bool]) -> Latents:
    units = tuple(
        Unit(f"z[{i}]", 0.5, 0.1, a, 0.5, k, None, "") for i, (k, a) in enumerate(zip(kls, active, strict=True))
    )
    estimate = Estimate("KL", 1, 2.5, 0.1, 0.1)
    return Latents(9, 2, 0, units, *[estimate] * 4, 9, 9, math.log(9), None, "undecided", "", 0)


def make_annealing(num_data: int, value: float | None) -> CheckResults:
    checked = annealed(make_evaluation(), [0.0]).checked
    bound = Estimate("AIS", 16, value, 0.33, 0.07)
    return replace(checked, annealing=replace(checked.annealing, bound=bound, num_data=num_data))


def make_block(differences: dict[str, Difference | None], **p_values: float) -> ComparisonTable:
    bound = make_evaluation().iwae[-1]
    rows = (
        Row(name=name, rank=1, bound=bound, difference=change, p_value=p_values.get(name))
        for name, change in differences.items()
    )
    return ComparisonTable("t", 500, "first", num_data=9, rows=tuple(rows), steps=())


DIFFERENCES = {
    "first": None,
    "better": Difference(0.5, 0.05, 0.4, 0.6),
    "odd_$name": Difference(-0.05, 0.1, -0.25, 0.15),
    "one": Difference(0.3, None, None, None, "a single datum"),
    "none": Difference(None, None, None, None, "not finite"),
}


def drawn(figure: Figure | None) -> Figure:
    """Render a figure, as saving it does; require that it is not empty and that nothing leaves its frame."""
    assert figure is not None
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    assert np.asarray(canvas.buffer_rgba())[..., :3].std() > 4
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    margin = 2 / 96  # inches by which the layout may miss the frame
    assert min(box.x0, box.y0) > -margin
    assert box.x1 < width + margin
    assert box.y1 < height + margin
    return figure


def texts(labels: Any) -> list[str]:
    return [label.get_text() for label in labels]


def columns_of(axes: Axes) -> list[str]:
    return texts(axes.get_xticklabels())


def line(axes: Axes, label: str) -> np.ndarray:
    (found,) = (entry for entry in axes.lines if entry.get_label() == label)
    return np.asarray(found.get_xydata(), dtype=float)


def bars(axes: Axes, label: str) -> np.ndarray:
    """Return x, bottom and top of the error bars with a label, ``(number, 3)``."""
    if label == MONTE_CARLO:
        collections = [container.lines[2][0] for container in axes.containers if container.get_label() == label]
    else:
        collections = [c for c in axes.collections if isinstance(c, LineCollection) and c.get_label() == label]
    ends = np.array([collection.get_segments()[0] for collection in collections]).reshape(-1, 2, 2)
    return np.column_stack([ends[:, 0, 0], ends[:, :, 1]])


def counts(axes: Axes, color: str) -> list[tuple[float, float, float]]:
    """Return left edge, right edge and height of the bars of a color that are not empty."""
    filled = [bar for bar in axes.patches if to_hex(bar.get_facecolor()) == color and bar.get_height()]
    return [(bar.get_x(), bar.get_x() + bar.get_width(), bar.get_height()) for bar in filled]


def pixel(figure: Figure | None, size: tuple[int, int], tile: tuple[int, int], at: tuple[int, int]) -> Any:
    """Return the value shown at pixel `at` of images of a size in the tile in row and column `tile`."""
    assert figure is not None
    (image,) = figure.axes[0].images
    canvas = np.ma.filled(image.get_array(), np.nan)
    columns, rows = image.get_extent()[1:3]
    place = [(t + 0.03 + 0.94 * (p + 0.5) / s) for t, p, s in zip(tile, at, size, strict=True)]
    return canvas[int(place[0] / rows * canvas.shape[0]), int(place[1] / columns * canvas.shape[1])]


def all_figures(vae: VAE, x: Tensor, c: tuple[Tensor, ...] = ()) -> dict[str, Figure | None]:
    values = torch.rand(len(x))
    return {
        "reconstructions": report.reconstructions(vae, x, covariates=c, order=values),
        "samples": report.samples(vae, covariates=c),
        "traversals": report.traversals(vae, x, covariates=c),
        "manifold": report.manifold(vae, covariates=c, num_values=4),
        "interpolations": report.interpolations(vae, x, covariates=c),
        "latent space": report.latent_space(vae, x, torch.arange(len(x)) % 10, covariates=c),
    }


def test_figures_are_full_and_inside_their_frames() -> None:
    drawn(report.training_curves(make_history(1, bare=True)))
    drawn(report.kl_per_unit(make_latents(torch.rand(200).tolist(), (torch.rand(200) > 0.5).tolist())))
    drawn(report.reconstructions(make_vae(2), binary_images(), num=1))


@pytest.mark.parametrize("num_covariates", [0, 3])
def test_figures_of_images_are_full_and_inside_their_frames(num_covariates: int) -> None:
    given = (torch.eye(3)[torch.arange(20) % 3],) if num_covariates else ()
    figures = all_figures(conditional_vae(num_covariates=3) if given else make_vae(2), binary_images(20), given)
    for figure in figures.values():
        drawn(figure)
    if given:
        for name in ("traversals", "manifold"):
            assert "given c of the first datum" in figures[name].get_suptitle()
        assert all("  1.00 ± 0.50  " in label for label in texts(figures["traversals"].axes[0].get_yticklabels()))


def test_figures_of_tabular_data() -> None:
    vae, x = make_vae(2, likelihoods.Gaussian((12,))), torch.randn(40, 12)
    figures = all_figures(vae, x)
    for name in ("samples", "traversals", "manifold", "interpolations"):
        assert figures.pop(name) is None
    assert all(map(drawn, figures.values()))
    assert len(figures["reconstructions"].axes) == panels.COLUMNS
    (dots,) = report.reconstructions(vae, x, order=torch.arange(40.0)).axes[1].collections
    assert np.array_equal(dots.get_offsets(), np.column_stack([x[:, 1], vae.reconstruct(x)[:, 1]]))


def test_figures_have_a_style_of_their_own_and_leave_the_random_stream() -> None:
    vae, x = mixture_vae(), torch.zeros(4, 1, 8, 8)
    before = torch.get_rng_state()
    plain = to_png(report.latent_space(vae, x))
    with matplotlib.rc_context({"axes.facecolor": "black", "text.color": "white", "axes.grid": True}):
        assert to_png(report.latent_space(vae, x)) == plain
    report.samples(vae)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_figure_shows_itself_in_a_notebook() -> None:
    figure = report.samples(make_vae(2), num=4)
    png, shown = figure._repr_png_()
    assert PIL.Image.open(io.BytesIO(png)).size == pytest.approx((2 * shown["width"], 2 * shown["height"]), abs=1)
    assert PIL.Image.open(io.BytesIO(to_png(figure, 192, num_colors=256))).mode == "P"


def test_figures_draw_into_given_axes() -> None:
    vae, x, axes = make_vae(2), binary_images(6), (outer := Figure()).subfigures(1, 2)[1].subplots()
    of_data = (partial(draw, x=x) for draw in (report.traversals, report.interpolations, report.pixel_scale))
    for draw in (report.samples, *of_data):
        axes.clear()
        assert draw(vae, ax=axes) is outer
        assert len(axes.images) == 1
    units = partial(report.kl_per_unit, make_latents([0.5, 0.1], [True, False]))
    bounds = (
        partial(report.ladder, make_evaluation()),
        partial(report.waterfall, make_gaps()),
        partial(report.forest, make_block(DIFFERENCES)),
    )
    for draw in (*bounds, units):
        axes.clear()
        assert draw(ax=axes) is outer
        assert axes.lines or axes.patches
    assert not outer.legends
    assert not outer.get_suptitle()
    assert not axes.get_title("left")


def test_pixel_scales_are_drawn_from_white_to_black() -> None:
    vae = transparent_vae(torch.zeros(4, 2))
    vae.likelihood = likelihoods.HeteroscedasticGaussian((1, 1, 4))
    params = torch.stack([torch.zeros(4), torch.tensor([0.1, 0.2, 0.4, 0.8]).log()], -1)  # (4, 2)
    vae.decoder = Function(lambda z: params.expand(len(z), 1, 1, 4, 2))
    scales = vae.likelihood(params[None, None]).stddev.flatten().tolist()
    figure = report.pixel_scale(vae, torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1).expand(2, 1, 1, 4), limit=0.4)
    shades = [pixel(figure, (1, 4), (2, 1), (0, column)) for column in range(4)]
    assert shades == pytest.approx([scales[0] / 0.4, scales[1] / 0.4, 1.0, 1.0], abs=1e-6)
    assert [pixel(figure, (1, 4), (row, 1), (0, 0)) for row in (0, 1)] == [1.0, 0.0]
    assert f"{scales[0]:.3f} to {scales[3]:.3f}; black is 0.400 or more" in figure.axes[0].get_xlabel()


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (lambda vae, x: report.samples(vae, num=0), "`num` of samples must be an integer >= 1"),
        (lambda vae, x: report.manifold(vae, num_values=101), r"`num_values` .* must be an integer in \[1, 100\]"),
        (lambda vae, x: report.latent_space(vae, x, limits=[1.0]), "`limits` are two finite numbers"),
        (lambda vae, x: report.latent_space(vae, x, limits=(2.0, 1.0)), "`limits` are two finite numbers"),
        (
            lambda vae, x: report.latent_space(vae, x, dims=(0, 2)),
            r"different latent dimensions from 0 to 1, got \(0, 2",
        ),
        (lambda vae, x: report.latent_space(vae, x, torch.zeros(5)), r"one per datum, got 6 data and labels of \(5,\)"),
        (lambda vae, x: report.latent_space(vae, x[:0]), "`x` holds one datum or more"),
        (
            lambda vae, x: report.rate_distortion({"a": (-1.0, 2.0)}),
            "two finite numbers, rate >= 0 and distortion, got",
        ),
        (lambda vae, x: report.rate_distortion({"a": (1.0, INF)}), "two finite numbers, rate >= 0 and distortion, got"),
    ],
)
def test_wrong_options_are_refused_by_name(draw: Callable[[VAE, Tensor], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        draw(make_vae(2), binary_images(6))


# --- training


def test_training_curves_show_the_history() -> None:
    history = make_history(best=12)
    figure = drawn(report.training_curves(history))
    for axes, term in zip(figure.axes, ("elbo", "reconstruction", "kl"), strict=True):
        trained = [(epoch.epoch, getattr(epoch, term)) for epoch in history.epochs]
        assert np.array_equal(line(axes, "Training"), trained)
        assert np.array_equal(line(axes, "Validation"), [(e.epoch, e.validation[term]) for e in history.epochs])
        assert (line(axes, "Weights kept (epoch 12)")[:, 0] == 12).all()


def test_far_first_epochs_leave_the_frame_and_the_panel_says_so() -> None:
    epochs = make_history(bare=True).epochs
    wild = History((replace(epochs[0], elbo=-28.0), replace(epochs[1], elbo=-24.0), *epochs[2:]), 30, "")
    (axes,) = report.training_curves(wild).axes
    low, high = axes.get_ylim()
    assert -22 < low < min(epoch.elbo for epoch in epochs[3:])
    assert max(epoch.elbo for epoch in epochs[2:]) < high < -19
    assert texts(axes.texts) == ["3 of the first 3 epochs outside the frame"]


# --- bounds


def test_ladder_shows_the_evaluation_and_annealing_beside_it() -> None:
    shown = make_evaluation(num_covariates=2, checked=make_annealing(300, -20.0))
    bounds, gains = drawn(report.ladder(shown)).axes
    values = np.array([bound.value for bound in shown.iwae])
    assert np.array_equal(line(bounds, "IWAE bound $L_K$"), np.column_stack([KS, values]))
    ((first, elbo),), ((last, annealed),) = line(bounds, "ELBO"), line(bounds, "AIS")
    assert (elbo, annealed) == (-22.1, -20.0)
    assert first < 1
    assert last > 500
    for label, name, error in ((OVER_DATA, "se_data", 0.33), (MONTE_CARLO, "se_monte_carlo", 0.07)):
        errors = np.array([shown.elbo.__dict__[name], error, *(e.__dict__[name] for e in shown.iwae)])
        centers = np.array([elbo, annealed, *values])
        expected = np.column_stack([[first, last, *KS], centers - errors, centers + errors])
        assert np.allclose(bars(bounds, label), expected, rtol=0, atol=1e-12)
    assert np.allclose(line(gains, "Gain"), np.column_stack([KS, values + 22.1]), rtol=0, atol=1e-12)
    assert np.allclose(bars(gains, OVER_DATA)[:, 2] - (values + 22.1), 0.02)
    assert set(columns_of(bounds)) == {"1", "5", "50", "500", "ELBO", "AIS"}


def test_ladder_leaves_out_missing_numbers_and_annealing_of_other_data() -> None:
    whole = make_evaluation()
    bare = tuple(replace(bound, se_data=None, se_monte_carlo=None) for bound in whole.iwae)
    missing = replace(bare[1], value=None, why="not finite")
    changes = {"iwae": (bare[0], missing, *bare[2:]), "gains": {}, "checked": make_annealing(300, None)}
    (axes,) = drawn(report.ladder(replace(whole, **changes))).axes
    assert line(axes, "IWAE bound $L_K$")[:, 0].tolist() == [1, 50, 500]
    assert len(bars(axes, OVER_DATA)) == len(bars(axes, MONTE_CARLO)) == 1
    assert "AIS" not in columns_of(axes)
    (axes, _) = report.ladder(replace(whole, checked=make_annealing(299, -20.0))).axes
    assert "AIS" not in columns_of(axes), "of the first data only"


def test_forest_shows_paired_differences() -> None:
    differences = DIFFERENCES | {"adjusted": Difference(0.2, 0.1, 0.01, 0.39)}
    (axes,) = drawn(report.forest(make_block(differences, better=0.01, adjusted=0.06))).axes
    assert texts(axes.get_yticklabels()) == ["better", "odd_$name", "one", "adjusted"]
    intervals = [entry.get_xydata().tolist() for entry in axes.lines if entry.get_label() == "Interval"]
    assert intervals == [[[0.4, 0.0], [0.6, 0.0]], [[-0.25, 1.0], [0.15, 1.0]], [[0.01, 3.0], [0.39, 3.0]]]
    dots = [entry for entry in axes.lines if entry.get_label() == "Difference"]
    assert [to_hex(dot.get_markerfacecolor()) == FIRST for dot in dots] == [True, False, False, False]
    assert texts(axes.texts)[:3] == ["+0.500  [+0.400, +0.600]", f"{MINUS}0.050  [{MINUS}0.250, +0.150]", "+0.300"]
    assert report.forest(make_block({"first": None})) is None


@pytest.mark.parametrize("amortization", [0.5, -0.5])
def test_waterfall_goes_from_bound_to_bound(amortization: float) -> None:
    gaps = make_gaps(amortization)
    (axes,) = drawn(report.waterfall(gaps)).axes
    ends = [sorted((bar.get_y(), bar.get_y() + bar.get_height())) for bar in axes.patches[:3]]
    refined = -22.0 + amortization
    assert ends == [pytest.approx(sorted(pair)) for pair in ((-22.0, refined), (refined, -20.0), (-22.0, -20.0))]
    hatched = axes.patches[3].get_height()
    assert hatched == pytest.approx(0.2 if amortization > 0 else 0.0)
    steps = (f"{value:+.2f} ± 0.05".replace("-", MINUS) for value in (amortization, -20.0 - refined, 2.0))
    assert texts(axes.texts) == list(steps)
    nothing = replace(gaps, bound=Estimate("AIS", 1, None, None, None, "not finite"))
    assert report.waterfall(nothing) is None


def test_a_share_of_the_gap_needs_a_gap_above_its_noise() -> None:
    gaps = make_gaps(0.5)
    assert gaps.share(gaps.amortization) == pytest.approx(0.25)
    noisy = replace(gaps, total=replace(gaps.total, se_data=0.7))
    assert noisy.share(gaps.amortization) is None
    assert make_gaps(-0.5).share(gaps.approximation) is None, "a negative part"


# --- weights and units


def test_a_histogram_of_khat_counts_the_data() -> None:
    khat = torch.tensor([0.1, 0.3, 0.69, 0.71, 0.9, 1.2, -INF, NAN, NAN])
    (axes,) = drawn(report.khat_histogram(khat, threshold=0.7)).axes
    assert axes.get_title("left") == "k-hat: 43 % of the data above 0.70"  # 3 of the 7 that have one
    assert axes.get_xlabel() == f"k-hat (2 not available, 1 of {MINUS}\N{INFINITY})"
    for color, part in ((FIRST, khat[:3]), (SECOND, khat[3:6])):
        for value in part.tolist():
            assert [height for a, b, height in counts(axes, color) if a - 1e-9 < value < b + 1e-9] == [1]
    (axes,) = drawn(report.khat_histogram(torch.full((30,), 4.0), threshold=0.3)).axes
    assert [height for *_, height in counts(axes, SECOND)] == [30]
    assert axes.get_xlabel() == "k-hat (30 above 3 in the last bar)"
    for values, threshold in ((khat, None), (torch.full((3,), NAN), 0.3)):
        assert report.khat_histogram(values, threshold=threshold) is None


def test_bars_of_units_are_sorted() -> None:
    latents = make_latents([0.5, None, 2.0, 0.001], [True, True, True, False])
    figure = drawn(report.kl_per_unit(latents))
    (axes,) = figure.axes
    assert columns_of(axes) == ["z[2]", "z[0]", "z[3]"]
    heights = {round(bar.get_x() + bar.get_width() / 2): bar.get_height() for bar in axes.patches}
    assert heights == {1: 2.0, 2: 0.5, 3: pytest.approx(0.001)}
    assert texts(figure.legends[0].get_texts()) == ["Active (2)", "Inactive (1)"]
    title = "3 latent units by mean KL (nats), 2.50 nats together\n1 without a KL left out"
    assert axes.get_title("left") == title
    assert report.kl_per_unit(make_latents([None], [True])) is None


# --- data and the model


def test_reconstructions_stand_below_their_data_in_the_order_of_a_value() -> None:
    vae, x = make_vae(2), binary_images(41)
    order = torch.randperm(41).double()
    order[order == 20] = NAN
    values = sorted(value for value in order.tolist() if value == value)
    chosen = [values[i] for i in (0, 13, 26, 39)]
    figure = report.reconstructions(vae, x, order=order, num=4, what="gap (nats)")
    assert columns_of(figure.axes[0]) == [f"{value:.2f}" for value in chosen]
    assert figure.axes[0].get_xlabel().endswith("largest of 40; 1 without a finite one left out")
    for column, value in enumerate(chosen):
        datum = x[order.tolist().index(value)]
        mean = vae.reconstruct(datum.unsqueeze(0))[0]
        assert pixel(figure, (8, 8), (0, column), (3, 4)) == datum[0, 3, 4]
        assert pixel(figure, (8, 8), (1, column), (3, 4)) == pytest.approx(mean[0, 3, 4].item())
    assert report.reconstructions(vae, x, order=torch.full((41,), NAN)) is None
    assert spread(torch.tensor([2.0, INF, 1.0]), 10).tolist() == [2, 0]


def test_color_images_keep_their_colors() -> None:
    vae, x = make_vae(2, likelihoods.Gaussian((3, 4, 6))), torch.rand(3, 3, 4, 6)
    figure = drawn(report.reconstructions(vae, x))
    assert np.allclose(pixel(figure, (4, 6), (0, 1), (2, 5)), [*x[1, :, 2, 5], 1.0])
    assert figure.axes[0].images[0].get_array()[0, 0, 3] == 0  # the frame shows the ground, light or dark


def test_samples_are_means_given_draws_from_the_prior_and_repeated_covariates() -> None:
    vae = make_vae(2, likelihoods.Bernoulli((8, 5)))
    figure = report.samples(vae, num=7, seed=3)
    means = vae.generate(7, seed=3, mean=True)
    for index in range(7):
        assert pixel(figure, (8, 5), divmod(index, 3), (4, 2)) == pytest.approx(means[index, 4, 2].item())
    assert np.isnan(pixel(figure, (8, 5), (2, 1), (4, 2)))  # no eighth sample
    vae, c = conditional_vae(), torch.stack([torch.arange(21.0), torch.full((21,), -4.0)], 1)
    asked: list[Any] = []
    vae.decoder.register_forward_pre_hook(lambda module, args: asked.append(args))
    report.samples(vae, covariates=[c], num=25)
    z, given = asked[0]
    assert torch.equal(given, torch.cat([c, c[:4]]))
    assert (z - given[:, :1]).abs().max() < 0.5 * 5


PARAMS = torch.tensor([[0.1, 0.0], [-2.0, 0.0], [0.5, -2.0]], dtype=torch.float64)
LOC, SCALE = torch.tensor([3.0, -2.0, 0.5], dtype=torch.float64), torch.tensor([2.0, 1.0, 0.1], dtype=torch.float64)


def shifted_prior() -> priors.Prior:
    prior = priors.DiagonalNormal(3)
    with torch.no_grad():
        prior.loc.copy_(LOC)
        prior.log_scale.copy_(SCALE.log())
    return prior


@pytest.mark.parametrize("shifted", [False, True])
def test_traversals_rank_dimensions_by_their_kl_and_go_through_the_prior(*, shifted: bool) -> None:
    vae, x = transparent_vae(PARAMS, shifted_prior() if shifted else None), torch.zeros(4, 1, 1, 3)
    loc, scale = (LOC, SCALE) if shifted else (torch.zeros_like(LOC), torch.ones_like(SCALE))
    q = torch.distributions.Normal(PARAMS[:, 0], (PARAMS[:, 1] / 2).exp())
    kl = torch.distributions.kl_divergence(q, torch.distributions.Normal(loc, scale))
    importance = latent_figures.latent_importance(vae, *latent_figures.encode(vae, x))
    assert torch.allclose(importance.values, kl, rtol=0, atol=1e-12)
    assert importance.text(0) == f"{kl[0]:.2f} nats"
    ranked = [2, 0, 1] if shifted else [1, 2, 0]
    assert importance.ranked == ranked
    assert columns_of(report.traversals(vae, x, num_values=7).axes[0])[3] == "0.00"  # -1e-17 in floating point
    figure = report.traversals(vae, x, num_values=3)
    assert columns_of(figure.axes[0]) == [f"{MINUS}2.50", "0.00", "2.50"]
    labels = texts(figure.axes[0].get_yticklabels())
    assert [label.split("  ")[0] for label in labels] == [f"z[{dim}]" for dim in ranked]
    assert (labels[-1].split("  ")[1] == f"{MINUS}2.00 ± 1.00") == shifted
    for row, moved in enumerate(ranked):
        for column, step in enumerate([-2.5, 0.0, 2.5]):
            for dim in range(3):
                expected = (loc[dim] + step * scale[dim]).item() if dim == moved else PARAMS[dim, 0].item()
                assert pixel(figure, (1, 3), (row, column), (0, dim)) == pytest.approx(expected)


def test_importance_and_moments_under_other_priors() -> None:
    vae = mixture_vae()
    mean, stddev = torch.randn(50, 2) * torch.tensor([0.1, 3.0]), torch.rand(50, 2) + 0.1
    importance = latent_figures.latent_importance(vae, mean, stddev)
    assert torch.allclose(importance.values, mean.var(0, correction=0) / stddev.square().mean(0))
    loc, scale = latent_figures.prior_moments(vae)
    assert torch.allclose(loc, torch.tensor([0.0, 2.0]), atol=0.15)
    assert torch.allclose(scale, torch.tensor([82.0, 5.0]).sqrt(), atol=0.1)
    vae, x, c = conditional_vae(), binary_images(20), torch.arange(40.0).reshape(20, 2)
    assert [moment.tolist() for moment in latent_figures.prior_moments(vae, [c[3:4]])] == [[6.0, 6.0], [0.5, 0.5]]
    mean, stddev = latent_figures.encode(vae, x, [c])
    q, p = torch.distributions.Normal(mean, stddev), torch.distributions.Normal(c[:, :1], 0.5)
    kl = torch.distributions.kl_divergence(q, p).mean(0)
    assert torch.allclose(latent_figures.latent_importance(vae, mean, stddev, [c]).values, kl)


def test_modules_are_encoded_in_evaluation_mode() -> None:
    vae, x = make_vae(2), binary_images()
    vae.encoder = nn.Sequential(nn.Dropout(0.5), vae.encoder)
    mean, _ = latent_figures.encode(vae, x)
    assert torch.equal(mean, latent_figures.encode(vae, x)[0])
    assert vae.encoder.training


def test_interpolations_go_from_datum_to_datum_within_a_condition() -> None:
    vae, x = conditional_vae(), binary_images(5)
    c = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    figure = report.interpolations(vae, x, covariates=[c], num_steps=3)
    assert columns_of(figure.axes[0]) == ["Data", "0.00", "0.50", "1.00", "Data"]
    for row, (first, second) in enumerate([(1, 2), (0, 3)]):
        between = vae.interpolate(x[first : first + 1], x[second : second + 1], c[first : first + 1], num_steps=3)
        shown = [pixel(figure, (8, 8), (row, column), (4, 4)) for column in range(5)]
        assert shown == pytest.approx(
            [v.item() for v in (x[first, 0, 4, 4], *between[0, :, 0, 4, 4], x[second, 0, 4, 4])]
        )
    assert report.interpolations(vae, x[:2], covariates=[c[:2]]) is None
    assert report.interpolations(make_vae(3), x[:1]) is None


# --- latent space


@pytest.mark.parametrize(("latent_dim", "num_labels"), [(2, 10), (5, 11)])
def test_latent_space_scatters_the_means_that_carry_most(latent_dim: int, num_labels: int) -> None:
    vae, x = make_vae(latent_dim), binary_images(63)
    with torch.no_grad():
        vae.encoder.layers[-1].bias[2 * (latent_dim - 1)] = 3.0
    mean, stddev = latent_figures.encode(vae, x)
    dims = sorted(latent_figures.latent_importance(vae, mean, stddev).ranked[:2])
    (axes,) = drawn(report.latent_space(vae, x, torch.arange(63) % num_labels)).axes
    assert latent_dim - 1 in dims
    assert (axes.get_xlabel()[:4], axes.get_ylabel()[:4]) == (f"z[{dims[0]}]", f"z[{dims[1]}]")
    (scatter,) = (c for c in axes.collections if isinstance(c, PathCollection) and len(c.get_offsets()))
    points, expected = scatter.get_offsets(), mean[:, dims].numpy()
    order, rows = np.lexsort(points.T), np.lexsort(expected.T)
    assert np.allclose(points[order], expected[rows])
    shown = [to_hex(color) for color in scatter.get_facecolors()[order]]
    assert shown == [PALETTE[row % num_labels if num_labels == 10 else 0] for row in rows]
    assert axes.get_aspect() == 1
    legend = axes.get_legend()
    assert (texts(legend.get_texts()) if legend else None) == (
        None if num_labels == 11 else [str(i) for i in range(num_labels)]
    )


def test_the_prior_is_shown_where_it_lies() -> None:
    vae = transparent_vae(PARAMS, shifted_prior())
    (axes,) = report.latent_space(vae, torch.zeros(4, 1, 1, 3)).axes
    for circle, radius in zip(axes.lines, (1, 2), strict=True):  # around dimensions 0 and 2
        centered = (circle.get_xydata() - LOC[[0, 2]].numpy()) / SCALE[[0, 2]].numpy()
        assert np.allclose(np.hypot(*centered.T), radius)
    (axes,) = drawn(report.latent_space(mixture_vae(), binary_images())).axes
    (dots,) = (c.get_offsets() for c in axes.collections if len(c.get_offsets()) > 1000)
    for center in ((-9, 0), (9, 4)):  # two components with standard deviations of 1
        assert (np.hypot(*(dots - center).T) < 1).mean() == pytest.approx((1 - math.exp(-0.5)) / 2, abs=0.04)
    assert report.latent_space(make_vae(1), binary_images()) is None


def test_latent_spaces_of_two_models_share_dimensions_and_limits() -> None:
    x = torch.zeros(4, 1, 1, 3)
    figure = Figure()
    for axes, scale in zip(figure.subplots(1, 2), (1.0, 40.0), strict=True):
        vae = transparent_vae(PARAMS * torch.tensor([scale, 1.0]))
        assert report.latent_space(vae, x, dims=(2, 0), limits=(-4, 4), num_ellipses=1, ax=axes) is figure
        assert (axes.get_xlim(), axes.get_ylim(), axes.get_xlabel()[:4]) == ((-4, 4), (-4, 4), "z[2]")
        (ellipse,) = (entry for entry in axes.lines if entry.get_label() == "Posterior, one standard deviation")
        radii = (np.asarray(ellipse.get_xydata()) - scale * PARAMS[[2, 0], 0].numpy()) * [math.e, 1.0]
        assert np.allclose(np.hypot(*radii.T), 1)
        assert texts(axes.texts) == (["4 outside"] if scale > 1 else [])


@pytest.mark.parametrize("shifted", [False, True])
def test_a_manifold_goes_through_quantiles_of_the_prior(*, shifted: bool) -> None:
    vae = transparent_vae(PARAMS, shifted_prior() if shifted else None)
    loc, scale = (LOC, SCALE) if shifted else (torch.zeros_like(LOC), torch.ones_like(SCALE))
    figure = drawn(report.manifold(vae, dims=(2, 1), num_values=3))
    quantile = 0.9674215661017012  # of N(0, 1) at 5/6
    for row, up in enumerate((1, 0, -1)):
        for column, right in enumerate((-1, 0, 1)):
            z = loc + scale * quantile * torch.tensor([0.0, up, right])
            shown = [pixel(figure, (1, 3), (row, column), (0, dim)) for dim in range(3)]
            assert shown == pytest.approx(z.tolist())
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("z[2]", "z[1]")
    assert report.manifold(make_vae(1), num_values=4).axes[0].get_ylabel() == ""
    draws = latent_figures.prior_draws(mixture_vae())
    expected = draws.quantile(torch.tensor([0.25, 0.75]), dim=0)
    assert torch.equal(latent_figures.prior_quantiles(mixture_vae(), torch.tensor([0.25, 0.75])), expected)


def test_rate_distortion_shows_evaluations_and_pairs_between_lines_of_equal_elbo() -> None:
    points = {"curve": {"b": (16.0, 21.0), "a": (0.0, 27.0)}, "evaluated": make_evaluation()}
    figure = drawn(report.rate_distortion(points))
    (axes,) = figure.axes
    assert line(axes, "curve").tolist() == [[16.0, 21.0], [0.0, 27.0]]
    assert line(axes, "evaluated").tolist() == [[8.0, 14.1]]
    assert texts(figure.legends[0].get_texts()) == ["evaluated"]
    assert {"a", "b"} <= set(texts(axes.texts))
    second = drawn(report.rate_distortion(points | {"second": {"c": (1.0, 24.0)}}))
    assert texts(second.legends[0].get_texts()) == ["curve", "evaluated", "second"]
    (contours,) = (entry for entry in axes.collections if isinstance(entry, ContourSet))
    for elbo, path in zip(contours.levels, contours.get_paths(), strict=True):
        assert np.allclose(path.vertices.sum(1), -elbo)
    with pytest.raises(ValueError, match="compared on the same data"):
        report.rate_distortion({"a": make_evaluation(), "b": make_evaluation(data_hash="cd" * 32)})
    missing = replace(make_evaluation().kl, value=None, why="not finite")
    with pytest.raises(ValueError, match="'a' has no KL or no reconstruction: not finite"):
        report.rate_distortion({"a": make_evaluation(kl=missing)})


def test_the_path_of_a_picture_is_checked_before_anything_is_drawn(tmp_path: Path) -> None:
    assert report.picture_file(str(tmp_path / "new" / "x.png")) == tmp_path / "new" / "x.png"
    assert list((tmp_path / "new").iterdir()) == []
    with pytest.raises(argparse.ArgumentTypeError, match="ends in .png"):
        report.picture_file(str(tmp_path / "x.pdf"))
