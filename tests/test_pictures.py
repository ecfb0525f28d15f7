"""The pictures of diagnostics show the numbers they are given: bars, counts, orders, levels and texts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import matplotlib
import numpy as np
import pyro.distributions as dist
import pytest
import torch
from conftest import make_vae
from matplotlib._pylab_helpers import Gcf
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from test_report import bars, binary_images, drawn, line, make_evaluation, pixel, transparent_vae
from torch import Tensor

from pyrovae import likelihoods, networks, posteriors, priors, report
from pyrovae.report import codes, dimensions, images, tiles
from pyrovae.report.style import FIRST, PALETTE, SECOND
from pyrovae.report.units import INACTIVE
from pyrovae.results import ComparisonTable, Difference, Estimate, Row
from pyrovae.vae import VAE

NAN, INF, MINUS = math.nan, math.inf, "\N{MINUS SIGN}"


@pytest.fixture(autouse=True)
def _no_trace() -> Iterator[None]:
    before, managers = dict(matplotlib.rcParams), len(Gcf.get_all_fig_managers())
    yield
    assert dict(matplotlib.rcParams) == before
    assert len(Gcf.get_all_fig_managers()) == managers


def texts(labels: object) -> list[str]:
    return [label.get_text() for label in labels]  # type: ignore[attr-defined]


def columns_of(axes: Axes) -> list[str]:
    return texts(axes.get_xticklabels())


def counts(axes: Axes, color: str) -> list[tuple[float, float, float]]:
    """Return left edge, right edge and height of the bars of a color that are not empty."""
    return [
        (bar.get_x(), bar.get_x() + bar.get_width(), bar.get_height())
        for bar in axes.patches
        if to_hex(bar.get_facecolor()) == color and bar.get_height()
    ]


# --- which dimensions, and where the prior has them


def shifted(vae: VAE, loc: Tensor, scale: Tensor) -> VAE:
    prior = priors.DiagonalNormal(len(loc))
    with torch.no_grad():
        prior.loc.copy_(loc)
        prior.log_scale.copy_(scale.log())
    vae.prior = prior
    return vae


PARAMS = torch.tensor([[0.1, 0.0], [-2.0, 0.0], [0.5, -2.0]], dtype=torch.float64)
LOC, SCALE = torch.tensor([3.0, -2.0, 0.5], dtype=torch.float64), torch.tensor([2.0, 1.0, 0.1], dtype=torch.float64)


def test_the_kl_is_to_the_prior_that_the_model_has() -> None:
    vae = shifted(transparent_vae(PARAMS), LOC, SCALE)
    found = dimensions.carried(vae, *codes.codes(vae, torch.zeros(4, 1, 1, 3)))
    q = torch.distributions.Normal(PARAMS[:, 0], (PARAMS[:, 1] / 2).exp())
    expected = torch.distributions.kl_divergence(q, torch.distributions.Normal(LOC, SCALE))
    assert torch.allclose(found.values, expected, rtol=0, atol=1e-12)
    assert found.ranked == [2, 0, 1]
    assert found.text(0) == f"{expected[0]:.2f} nats"


def test_under_another_prior_dimensions_rank_by_what_varies() -> None:
    vae = make_vae(3)
    vae.prior = priors.MixtureOfGaussians(3, num_components=2)
    mean, stddev = torch.randn(50, 3) * torch.tensor([0.1, 3.0, 1.0]), torch.rand(50, 3) + 0.1
    found = dimensions.carried(vae, mean, stddev)
    expected = mean.var(0, correction=0) / stddev.square().mean(0)
    assert torch.allclose(found.values, expected)
    assert found.ranked == [1, 2, 0]
    assert "variance" in found.name


def test_traversals_go_through_the_values_of_the_prior() -> None:
    vae, x = shifted(transparent_vae(PARAMS), LOC, SCALE), torch.zeros(4, 1, 1, 3)
    figure = report.traversals(vae, x, num_values=3)
    assert figure is not None
    drawn(figure)
    (axes,) = figure.axes
    assert columns_of(axes) == [f"{MINUS}2.50", "0.00", "2.50"]
    assert [label.split("  ")[:2] for label in texts(axes.get_yticklabels())] == [
        ["z[2]", "0.50 ± 0.10"],
        ["z[0]", "3.00 ± 2.00"],
        ["z[1]", f"{MINUS}2.00 ± 1.00"],
    ]
    assert axes.get_xlabel().startswith("Standard deviations of the prior from its mean")
    for row, moved in enumerate([2, 0, 1]):
        for column, step in enumerate([-2.5, 0.0, 2.5]):
            for dim in range(3):
                expected = (LOC[dim] + step * SCALE[dim]).item() if dim == moved else PARAMS[dim, 0].item()
                assert pixel(figure, (1, 3), (row, column), (0, dim)) == pytest.approx(expected)


def test_the_spread_of_a_prior_is_that_of_its_draws() -> None:
    vae = make_vae(2)
    vae.prior = priors.MixtureOfGaussians(2, num_components=2)
    with torch.no_grad():
        vae.prior.locs.copy_(torch.tensor([[4.0, 1.0], [0.0, 1.0]]))
    loc, scale = dimensions.prior_spread(vae)
    assert torch.allclose(loc, torch.tensor([2.0, 1.0]), atol=0.05)
    assert torch.allclose(scale, torch.tensor([5.0**0.5, 1.0]), atol=0.04)
    vae.prior = priors.StudentT(2, df=1.0)  # without a mean
    loc, scale = dimensions.prior_spread(vae)
    assert loc.abs().max() < 1
    assert scale.max() < 30


class Given(priors.Prior):
    """N(c, 0.5^2), c being the first covariate."""

    conditional = True

    def forward(self, c: Tensor) -> dist.TorchDistribution:
        mean = c[..., :1].expand(*c.shape[:-1], self.latent_dim)
        return dist.Normal(mean, torch.full_like(mean, 0.5)).to_event(1)


def conditional_vae(latent_dim: int = 2, num_covariates: int = 2) -> VAE:
    likelihood, posterior = likelihoods.Bernoulli((1, 8, 8)), posteriors.DiagonalNormal(latent_dim)
    arguments = {"covariate_dim": num_covariates, "hidden": (8,)}
    return VAE(
        prior=Given(latent_dim),
        decoder=networks.MLPDecoder(latent_dim, likelihood.param_shape, **arguments),
        likelihood=likelihood,
        encoder=networks.MLPEncoder((1, 8, 8), posterior.param_shape, **arguments),
        posterior=posterior,
    )


def test_a_conditional_prior_is_taken_given_the_datum_or_each_of_the_data() -> None:
    vae, x, c = conditional_vae(), binary_images(20), torch.arange(40.0).reshape(20, 2)
    loc, scale = dimensions.prior_spread(vae, [c[3:4]])
    assert loc.tolist() == [6.0, 6.0]
    assert scale.tolist() == [0.5, 0.5]
    mean, stddev = codes.codes(vae, x, [c])
    q, p = torch.distributions.Normal(mean, stddev), torch.distributions.Normal(c[:, :1], 0.5)
    expected = torch.distributions.kl_divergence(q, p).mean(0)
    assert torch.allclose(dimensions.carried(vae, mean, stddev, [c]).values, expected)


def test_pictures_say_what_a_conditional_model_is_given() -> None:
    vae, x = conditional_vae(num_covariates=3), binary_images(20)
    c = torch.eye(3)[torch.arange(20) % 3]
    figure = report.reconstructions(vae, x, covariates=[c], num=4)
    assert figure is not None
    assert "z, c" in str(figure.get_suptitle())
    assert columns_of(figure.axes[0]) == ["class 0", "class 1", "class 2", "class 0"]
    figure = report.traversals(vae, x[1:], covariates=[c[1:]])
    assert figure is not None
    assert "given c of the first datum, class 1" in figure.get_suptitle()
    assert all("  0.00 ± 0.50  " in label for label in texts(figure.axes[0].get_yticklabels()))  # not 1, as of class 0
    figure = report.samples(vae, covariates=[c])
    assert figure is not None
    assert "p(z | c)" in figure.get_suptitle()
    assert "given their covariates" in report.latent_space(vae, x, covariates=[c]).axes[0].get_title("left")
    figure = report.thumbnails(vae, x, torch.arange(20.0), covariates=[c], num=2)
    assert figure is not None
    assert columns_of(figure.axes[0]) == ["19.00\n#19\nclass 1", "18.00\n#18\nclass 0"]


def test_conditions_in_words() -> None:
    rows = torch.tensor([[0.0, 1.0, 0.0], [-0.5, 2.0, 0.0], [1.0, 1.0, 0.0]])
    assert [codes.condition([rows], i) for i in range(3)] == ["class 1", f"({MINUS}0.5, 2, ...)", "(1, 1, ...)"]
    assert codes.condition([rows[:, :1]], 1) == f"c = {MINUS}0.5"
    assert codes.condition([rows[:, :1], rows[:, 1:2]], 1) == f"({MINUS}0.5, 2)"


# --- latent space


def color_of(figure: Figure, label: str) -> tuple[object, ...]:
    (axes,) = figure.axes
    (key,) = (c for c in axes.collections if c.get_label() == label)
    return (*key.get_facecolor()[0][:3], key.get_paths()[0].vertices.tobytes())


def test_a_label_looks_the_same_whatever_others_there_are() -> None:
    vae, x = make_vae(2), binary_images(40)
    several = report.latent_space(vae, x, torch.tensor([3, 7, 13, 25]).repeat(10))
    alone = report.latent_space(vae, x, torch.tensor([7, 25]).repeat(20))
    assert color_of(several, "7") == color_of(alone, "7")
    assert color_of(several, "25") == color_of(alone, "25")
    assert len({color_of(several, label) for label in ("3", "7", "13", "25")}) == 4
    assert to_hex(color_of(several, "7")[:3]) == PALETTE[7]  # type: ignore[arg-type]
    (axes,) = report.latent_space(vae, x, torch.tensor([3, 53]).repeat(20)).axes  # would look alike
    assert axes.get_legend() is None
    vae = make_vae(1)
    (axes,) = report.latent_space(vae, x, torch.tensor([2, 9]).repeat(20)).axes
    assert {to_hex(bar.get_facecolor()) for bar in axes.patches} == {PALETTE[2], PALETTE[9]}
    (axes,) = report.latent_space(vae, x, torch.tensor([2, 12]).repeat(20)).axes
    assert axes.get_legend() is None


def test_regions_hold_their_shares_of_the_draws() -> None:
    vae, x = make_vae(2), binary_images()
    vae.prior = priors.MixtureOfGaussians(2, num_components=2)
    with torch.no_grad():
        vae.prior.locs.copy_(torch.tensor([[-9.0, 0.0], [9.0, 4.0]]))
    figure = report.latent_space(vae, x)
    drawn(figure)
    (axes,) = figure.axes
    outlines = [entry.get_xydata() for entry in axes.lines]
    assert len(outlines) == 4  # two levels of two components
    draws = dimensions.prior_draws(vae).numpy()
    inside = np.array([matplotlib.path.Path(np.asarray(outline)).contains_points(draws).mean() for outline in outlines])
    small, large = sorted(np.argsort(inside)[:2]), sorted(np.argsort(inside)[2:])
    assert inside[small].sum() == pytest.approx(1 - math.exp(-0.5), abs=0.02)
    assert inside[large].sum() == pytest.approx(1 - math.exp(-2), abs=0.02)
    assert {round(np.mean(outline, 0)[0] / 9) for outline in map(np.asarray, outlines)} == {-1, 1}


# --- data in an order


def test_reconstructions_in_the_order_of_a_value() -> None:
    vae, x = make_vae(2), binary_images(41)
    order = torch.randperm(41).double()
    order[order == 20] = NAN
    figure = report.reconstructions(vae, x, order=order, num=4, what="gap (nats)")
    assert figure is not None
    drawn(figure)
    values = sorted(v for v in order.tolist() if v == v)
    chosen = [values[i] for i in (0, 13, 26, 39)]
    assert columns_of(figure.axes[0]) == [f"{value:.2f}" for value in chosen]
    assert figure.axes[0].get_xlabel() == (
        "gap (nats): 4 data from the smallest to the largest of 40; 1 without a finite one left out"
    )
    for column, value in enumerate(chosen):
        datum = x[order.tolist().index(value)]
        mean = vae.reconstruct(datum.unsqueeze(0))[0]
        assert pixel(figure, (8, 8), (0, column), (3, 4)) == datum[0, 3, 4]
        assert pixel(figure, (8, 8), (1, column), (3, 4)) == pytest.approx(mean[0, 3, 4].item())
    assert report.reconstructions(vae, x, order=torch.full((41,), NAN)) is None
    assert images.spread(torch.tensor([2.0, INF, 1.0]), 10).tolist() == [2, 0]


def test_tabular_data_with_the_largest_values_are_told_from_the_others() -> None:
    vae, x = make_vae(2, likelihoods.Gaussian((2,))), torch.randn(30, 2)
    figure = report.reconstructions(vae, x, order=torch.arange(30.0), what="gap")
    assert figure is not None
    drawn(figure)
    assert texts(figure.legends[0].get_texts()) == ["The others", "The 3 data with the largest gap"]
    others, largest = figure.axes[1].collections
    assert len(others.get_offsets()) == 27
    assert sorted(largest.get_offsets()[:, 0]) == pytest.approx(sorted(x[27:, 1].tolist()))
    assert to_hex(largest.get_facecolor()[0]) == SECOND
    below = figure.legends[0].get_window_extent()
    assert all(axes.xaxis.label.get_window_extent().y0 > below.y1 for axes in figure.axes)


def test_thumbnails_show_the_worst_and_count_what_has_no_value() -> None:
    vae, x = make_vae(2), binary_images(12)
    values = torch.tensor([0.5, NAN, -INF, 1.25, 0.1, NAN, 0.7, 0.2, 0.3, 0.4, INF, -0.6])
    figure = report.thumbnails(vae, x, values, num=3)
    assert figure is not None
    drawn(figure)
    assert columns_of(figure.axes[0]) == ["\N{INFINITY}\n#10", "1.25\n#3", "0.70\n#6"]
    assert figure.axes[0].get_xlabel() == "2 data without k-hat left out"
    for column, row in enumerate((10, 3, 6)):
        assert pixel(figure, (8, 8), (0, column), (5, 2)) == x[row, 0, 5, 2]
    figure = report.thumbnails(vae, x, values, num=20)
    assert figure is not None
    assert columns_of(figure.axes[0])[-2:] == [f"{MINUS}0.60\n#11", f"{MINUS}\N{INFINITY}\n#2"]
    assert report.thumbnails(vae, x, torch.full((12,), NAN)) is None
    with pytest.raises(ValueError, match="received num=0"):
        report.thumbnails(vae, x, values, num=0)


def test_tabular_thumbnails_are_a_table() -> None:
    vae, x = make_vae(2, likelihoods.Gaussian((12,))), torch.randn(40, 12)
    x[:, 3] = 2.0
    x[7, 0] = 50.0
    values = torch.zeros(40)
    values[7], values[9] = 2.0, 1.0
    figure = report.thumbnails(vae, x, values, num=2)
    assert figure is not None
    drawn(figure)
    (axes,) = figure.axes
    assert texts(axes.get_yticklabels()) == ["#7  2.00", "#9  1.00"]
    expected = [f"{x[row, column]:.3g}".replace("-", MINUS) for row in (7, 9) for column in range(9)]
    assert texts(axes.texts) == expected
    assert "3 more columns not shown" in axes.get_xlabel()
    far = axes.patches[0]
    assert (to_hex(far.get_facecolor()), far.get_alpha()) == (SECOND, pytest.approx(0.6))
    assert axes.patches[3].get_alpha() == 0  # a constant column


# --- interpolations


def test_interpolations_go_from_datum_to_datum() -> None:
    vae, x = make_vae(3), binary_images(9)
    figure = report.interpolations(vae, x, num=2, num_steps=4)
    assert figure is not None
    drawn(figure)
    assert columns_of(figure.axes[0]) == ["Data", "0.00", "0.33", "0.67", "1.00", "Data"]
    between = vae.interpolate(x[:4:2], x[1:4:2], num_steps=4)
    for row in range(2):
        assert pixel(figure, (8, 8), (row, 0), (2, 6)) == x[2 * row, 0, 2, 6]
        assert pixel(figure, (8, 8), (row, 5), (2, 6)) == x[2 * row + 1, 0, 2, 6]
        for step in range(4):
            expected = between[row, step, 0, 2, 6].item()
            assert pixel(figure, (8, 8), (row, 1 + step), (2, 6)) == pytest.approx(expected)
    assert report.interpolations(vae, x[:1]) is None
    assert report.interpolations(make_vae(2, likelihoods.Gaussian((3,))), torch.randn(5, 3)) is None


def test_interpolations_of_a_conditional_model_stay_within_a_condition() -> None:
    vae, x = conditional_vae(), binary_images(5)
    c = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    figure = report.interpolations(vae, x, covariates=[c], num_steps=2)
    assert figure is not None
    drawn(figure)
    assert texts(figure.axes[0].get_yticklabels()) == ["class 1", "class 0"]
    for row, (first, second) in enumerate([(1, 2), (0, 3)]):
        assert pixel(figure, (8, 8), (row, 0), (4, 4)) == x[first, 0, 4, 4]
        assert pixel(figure, (8, 8), (row, 3), (4, 4)) == x[second, 0, 4, 4]
        mean = vae.reconstruct(x[second : second + 1], c[second : second + 1])
        assert pixel(figure, (8, 8), (row, 2), (4, 4)) == pytest.approx(mean[0, 0, 4, 4].item())
    assert report.interpolations(vae, x[:2], covariates=[c[:2]]) is None


# --- weights


def test_weight_histograms_count_the_data() -> None:
    khat = torch.tensor([0.1, 0.3, 0.69, 0.71, 0.9, 1.2, -INF, NAN, NAN])
    ess, largest = torch.tensor([1.0, 3.0, 1000.0]), torch.tensor([0.2, 0.6, NAN])
    figure = report.weight_histograms(
        {"khat": khat, "ESS": ess, "largest weight": largest}, threshold=0.7, num_particles=1000
    )
    assert figure is not None
    drawn(figure)
    first, second, third = figure.axes
    assert first.get_title("left") == "k-hat: 43 % above 0.70"  # 3 of the 7 that have one
    assert first.get_xlabel() == f"not available for 2, {MINUS}\N{INFINITY} for 1 data"
    for color, values in ((FIRST, khat[:3]), (SECOND, khat[3:6])):
        assert sum(height for *_, height in counts(first, color)) == 3
        for value in values.tolist():
            assert sum(left <= value <= right for left, right, _ in counts(first, color)) == 1
    assert max(right for _, right, _ in counts(first, FIRST)) <= 0.7 + 1e-9
    assert min(left for left, *_ in counts(first, SECOND)) >= 0.7 - 1e-9
    assert first.lines[0].get_xdata() == [0.7, 0.7]
    assert second.get_xscale() == "log"
    assert columns_of(second) == ["1", "10", "100", "1,000"]
    assert second.get_xlabel() == "Median 3.0"
    assert sum(height for *_, height in counts(second, FIRST)) == 3
    assert third.get_xlabel() == "Median 0.4\nnot available for 1 data"
    assert [height for *_, height in counts(third, FIRST)] == [1, 1]


@pytest.mark.parametrize(
    "values",
    [torch.tensor([0.4]), torch.full((30,), 0.4), torch.full((3,), NAN), torch.full((3,), -INF), torch.tensor([INF])],
)
@pytest.mark.parametrize("threshold", [None, 0.3])
def test_weight_histograms_of_one_datum_or_equal_or_no_values(values: Tensor, threshold: float | None) -> None:
    names = ("khat", "ESS", "largest weight")
    figure = report.weight_histograms(dict.fromkeys(names, values), threshold=threshold, num_particles=1)
    assert figure is not None
    drawn(figure)
    for axes in figure.axes:
        found = sum(height for color in (FIRST, SECOND) for *_, height in counts(axes, color))
        assert found == int(values.isfinite().sum())
        assert texts(axes.texts) == ([] if found else ["no finite value"])
        low, high = axes.get_xlim()
        assert low < high
    assert report.weight_histograms({}, threshold=threshold, num_particles=1) is None
    assert report.weight_histograms({"ESS": values[:0]}, threshold=threshold, num_particles=1) is None


# --- units


def test_bars_of_units_are_sorted() -> None:
    kl, active = torch.tensor([0.5, NAN, 2.0, 0.001]), torch.tensor([True, True, True, False])
    figure = report.kl_per_unit(["z[0]", "z[1]", "z[2]", "z[3]"], kl, active)
    assert figure is not None
    drawn(figure)
    (axes,) = figure.axes
    assert columns_of(axes) == ["z[2]", "z[0]", "z[3]"]
    heights = {round(bar.get_x() + bar.get_width() / 2): bar.get_height() for bar in axes.patches}
    assert heights == {1: 2.0, 2: 0.5, 3: pytest.approx(0.001)}
    assert [to_hex(bar.get_facecolor()) for bar in axes.patches] == [FIRST, FIRST, INACTIVE]
    assert texts(figure.legends[0].get_texts()) == ["Active (2)", "Inactive (1)"]
    assert (
        axes.get_title("left")
        == "3 latent units by mean KL (nats), 2.50 nats together; 1 without a finite value left out"
    )
    assert report.kl_per_unit(["z[0]"], torch.tensor([NAN]), torch.tensor([True])) is None
    assert report.kl_per_unit(["z[0]"], None, torch.tensor([True])) is None


def test_without_a_kl_bars_are_variances() -> None:
    variance = torch.tensor([1e-6, 0.5, 0.02, 0.0])
    names = [f"h[{i}]" for i in range(4)]
    figure = report.kl_per_unit(names, None, variance > 0.01, variance=variance, threshold=0.01)
    assert figure is not None
    drawn(figure)
    (axes,) = figure.axes
    assert axes.get_yscale() == "log"
    tops = [bar.get_y() + bar.get_height() for bar in axes.patches]
    assert tops == pytest.approx([0.5, 0.02, 1e-6, axes.get_ylim()[0]])
    assert columns_of(axes) == ["h[1]", "h[2]", "h[0]", "h[3]"]
    assert line(axes, "Threshold 0.01")[:, 1].tolist() == [0.01, 0.01]
    assert "variance of the posterior mean" in axes.get_title("left")


@pytest.mark.parametrize("num", [1, 3, 24, 25, 200])
def test_few_units_and_many(num: int) -> None:
    kl = torch.rand(num)
    figure = report.kl_per_unit([f"z[{i}]" for i in range(num)], kl, kl > 0.5)
    assert figure is not None
    drawn(figure)
    (axes,) = figure.axes
    assert len(axes.patches) == num
    labels = [label for label in axes.get_xticklabels() if label.get_text()]
    assert (labels[0].get_text() == f"z[{int(kl.argmax())}]") == (num <= 24)
    spans = sorted((box.x0, box.x1) for box in (label.get_window_extent() for label in labels))
    assert all(left[1] < right[0] for left, right in zip(spans, spans[1:], strict=False))


# --- bounds


def test_annealing_stands_at_its_own_place_beside_the_ladder() -> None:
    evaluation = make_evaluation()
    annealed = Estimate("AIS", 16, -20.0, 0.33, 0.07)
    figure = report.ladder(replace(evaluation, num_covariates=2), [annealed])
    drawn(figure)
    first, second = figure.axes
    assert first.get_title("left") == "Lower bounds on log p(x | c) (nats per datum)"
    ((place, value),) = line(first, "AIS")
    assert value == -20.0
    assert place > 500
    ticks = dict(zip(columns_of(first), first.get_xticks(), strict=True))
    assert ticks["AIS"] == pytest.approx(place)
    assert [place, -20.33, -19.67] == pytest.approx(bars(first, "Standard error over the data")[1].tolist())
    assert [place, -20.07, -19.93] == pytest.approx(bars(first, "Monte Carlo standard error")[1].tolist())
    assert "AIS" in texts(figure.legends[0].get_texts())
    assert "AIS" not in columns_of(second)
    assert line(first, "IWAE bound $L_K$")[:, 0].tolist() == [1, 5, 50, 500]
    low, high = first.get_xlim()
    assert low < place < high


def test_the_ladder_draws_no_estimate_that_is_no_bound() -> None:
    evaluation = make_evaluation()
    with pytest.raises(ValueError, match="only other lower bounds .* received 'jackknife'; report it in a table"):
        report.ladder(evaluation, [Estimate("jackknife", 500, -20.0, 0.3, None)])
    figure = report.ladder(evaluation, [Estimate("AIS", 16, None, None, None, why="not finite")])
    drawn(figure)
    assert "AIS" not in texts(figure.legends[0].get_texts())
    assert "AIS" not in columns_of(figure.axes[0])
    assert "log p(x) " in figure.axes[0].get_title("left")


def make_block(differences: dict[str, Difference | None]) -> ComparisonTable:
    bound = make_evaluation().iwae[-1]
    rest = {"rank": 1, "elbo": None, "bound": bound, "largest_k": 500, "bits_per_dimension": None}
    rows = tuple(
        Row(name=name, difference=difference, kl_methods={}, version="0", **rest)
        for name, difference in differences.items()
    )
    return ComparisonTable(
        title="t", num_particles=500, reference="first", bits_of=None, stored="s", rows=rows, steps=()
    )


def test_forest_shows_paired_differences() -> None:
    differences = {
        "first": None,
        "better": Difference(0.5, 0.05, 0.4, 0.6),
        "odd_$name": Difference(-0.05, 0.1, -0.25, 0.15),
        "one": Difference(0.3, None, None, None, "a single datum"),
        "none": Difference(None, None, None, None, "not finite"),
    }
    figure = report.forest(make_block(differences))
    assert figure is not None
    drawn(figure)
    (axes,) = figure.axes
    assert texts(axes.get_yticklabels()) == ["better", "odd_$name", "one"]
    intervals = [entry.get_xydata().tolist() for entry in axes.lines if entry.get_label() == "Interval"]
    assert intervals == [[[0.4, 0.0], [0.6, 0.0]], [[-0.25, 1.0], [0.15, 1.0]]]
    dots = [entry for entry in axes.lines if entry.get_label() == "Difference"]
    assert [dot.get_xydata()[0].tolist() for dot in dots] == [[0.5, 0.0], [-0.05, 1.0], [0.3, 2.0]]
    assert [to_hex(dot.get_markerfacecolor()) == FIRST for dot in dots] == [True, False, False]
    assert texts(axes.texts) == ["+0.500  [+0.400, +0.600]", f"{MINUS}0.050  [{MINUS}0.250, +0.150]", "+0.300"]
    assert axes.get_xlabel() == "Difference to first"
    assert axes.get_title("left").startswith("$L_{500}$ minus")
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first model on top
    assert report.forest(make_block({"first": None})) is None


# --- everything is inside its frame


def test_nothing_leaves_the_figure() -> None:
    vae, x = make_vae(3), binary_images(6)
    vae.prior = priors.MixtureOfGaussians(3, num_components=2)
    tabular = make_vae(2, likelihoods.Gaussian((1,)))
    figures = [
        report.reconstructions(vae, x, num=1),
        report.reconstructions(vae, x, order=torch.arange(6.0)),
        report.traversals(vae, x, num_values=5),
        report.thumbnails(vae, x, torch.arange(6.0)),
        report.interpolations(vae, x),
        report.latent_space(vae, x),
        report.thumbnails(tabular, torch.randn(6, 1), torch.arange(6.0)),
        report.samples(vae),
        report.weight_histograms({"khat": torch.rand(9)}, threshold=0.7, num_particles=10),
    ]
    for figure in figures:
        assert figure is not None
        drawn(figure)
        box, page = figure.get_tightbbox(), figure.get_size_inches()
        assert min(box.x0, box.y0) > -0.01, figure.get_suptitle()
        assert box.x1 < page[0] + 0.01, figure.get_suptitle()
        assert box.y1 < page[1] + 0.01, figure.get_suptitle()


def test_tall_images_stay_on_a_page() -> None:
    grid = torch.rand(2, 10, 28, 7)
    figure = tiles.draw_tiles(grid, limits=(0.0, 1.0), title="Tall")
    drawn(figure)
    assert figure.get_size_inches()[1] < 2 * tiles.TALL + 1
