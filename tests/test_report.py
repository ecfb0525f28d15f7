"""The pictures show the numbers they are given, whatever is missing, and leave matplotlib as it was."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pyro.distributions as dist
import pytest
import torch
from conftest import make_vae
from matplotlib._pylab_helpers import Gcf
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure
from matplotlib.image import imread
from torch import Tensor, nn

from pyrovae import likelihoods, networks, posteriors, priors, report
from pyrovae.data import Split
from pyrovae.report import codes, columns, dimensions
from pyrovae.report.style import to_png
from pyrovae.results import Epoch, Estimate, Evaluation, History
from pyrovae.vae import VAE

KS = (1, 5, 50, 500)


@pytest.fixture(autouse=True)
def _no_trace() -> Iterator[None]:
    """Require of every test here that matplotlib's settings and pyplot's figures are as before."""
    before = dict(matplotlib.rcParams)
    managers = len(Gcf.get_all_fig_managers())
    yield
    assert dict(matplotlib.rcParams) == before
    assert len(Gcf.get_all_fig_managers()) == managers


def binary_images(num: int = 40) -> Tensor:
    return torch.randint(2, (num, 1, 8, 8)).to(torch.get_default_dtype())


class Coded(nn.Module):
    """An encoder with the same posterior for every datum, given by means and log-variances ``(D, 2)``."""

    def __init__(self, params: Tensor) -> None:
        super().__init__()
        self.register_buffer("params", params)

    def forward(self, x: Tensor) -> Tensor:
        return self.params.expand(len(x), *self.params.shape)


class ReportContext(nn.Module):
    """A decoder that shows z itself as an image of one row of pixels, ``(B, 1, 1, D, 1)``."""

    def forward(self, z: Tensor) -> Tensor:
        return z[..., None, None, :, None]


def transparent_vae(params: Tensor) -> VAE:
    """Return a model with the given posterior whose E[x | z] is z."""
    dim = len(params)
    return VAE(
        prior=priors.StandardNormal(dim),
        decoder=ReportContext(),
        likelihood=likelihoods.Gaussian((1, 1, dim), learn_scale=True),
        encoder=Coded(params),
        posterior=posteriors.DiagonalNormal(dim),
    )


PARAMS = torch.tensor([[0.1, 0.0], [-2.0, 0.0], [0.0, 0.0], [0.3, -2.0], [0.5, 0.0]], dtype=torch.float64)
KL = torch.distributions.kl_divergence(
    torch.distributions.Normal(PARAMS[:, 0], (PARAMS[:, 1] / 2).exp()),
    torch.distributions.Normal(torch.zeros(5, dtype=torch.float64), 1.0),
)
RANKED = [1, 3, 4, 0, 2]


def make_history(num: int = 30, *, validation: bool = True, terms: bool = True, best: int | None = None) -> History:
    epochs = tuple(
        Epoch(
            epoch=i,
            steps=10 * i,
            elbo=-20 - 1 / i,
            reconstruction=-15 - 2 / i if terms else None,
            kl=5 - 1 / i if terms else None,
            validation={"elbo": -21 - 1 / i, "reconstruction": -16 - 2 / i, "kl": 5.5 - 1 / i} if validation else None,
            learning_rate=1e-3,
            seconds=0.1,
        )
        for i in range(1, num + 1)
    )
    return History(epochs, best or num, "all epochs done")


def make_evaluation() -> Evaluation:
    bounds = [Estimate("IWAE", k, -22 + 0.4 * i, 0.31 + 0.01 * i, 0.05 / (i + 1)) for i, k in enumerate(KS)]
    return Evaluation(
        elbo=Estimate("ELBO", 500, -22.1, 0.3, 0.01),
        reconstruction=Estimate("reconstruction", 500, -14.1, 0.3, 0.01),
        kl=Estimate("KL", 500, 8.0, 0.1, 0.0),
        iwae=tuple(bounds),
        kl_methods={"z": "closed form"},
        gains={b.label: (b.value + 22.1, 0.02) for b in bounds if b.value is not None},
        num_data=300,
        data="odd $name_$/test",
        data_hash="ab" * 32,
        data_transform=None,
        base_measure="counting",
        log_abs_det_jacobian=None,
        bits_per_dimension=None,
        seed=0,
        settings={},
        versions={},
        date="2026-01-01",
    )


def drawn(figure: Figure) -> np.ndarray:
    """Render a figure, as saving it does; the pixels ``(height, width, 4)``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def line(axes: Axes, label: str) -> np.ndarray:
    (found,) = (drawn for drawn in axes.lines if drawn.get_label() == label)
    return np.asarray(found.get_xydata(), dtype=float)


def bars(axes: Axes, label: str) -> np.ndarray:
    """Return x, bottom and top of the error bars with a label, ``(number, 3)``."""
    if label == "Monte Carlo standard error":
        collections = [container.lines[2][0] for container in axes.containers if container.get_label() == label]
    else:
        collections = [c for c in axes.collections if isinstance(c, LineCollection) and c.get_label() == label]
    ends = np.array([collection.get_segments()[0] for collection in collections]).reshape(-1, 2, 2)
    return np.column_stack([ends[:, 0, 0], ends[:, :, 1]])


def pixel(figure: Figure, size: tuple[int, int], tile: tuple[int, int], at: tuple[int, int]) -> float:
    """Return the value shown at pixel `at` of images of a size in the tile in row and column `tile`."""
    (image,) = figure.axes[0].images
    canvas = np.ma.filled(image.get_array(), np.nan)
    columns, rows = image.get_extent()[1:3]
    place = [(t + 0.03 + 0.94 * (p + 0.5) / s) for t, p, s in zip(tile, at, size, strict=True)]
    return canvas[int(place[0] / rows * canvas.shape[0]), int(place[1] / columns * canvas.shape[1])]


FILES = {"index.html", "evaluation.json", "per_datum.safetensors", "evaluation.nc"}


def written(folder: Path, vae: VAE, split: Split, history: History | None = None) -> tuple[Path, Evaluation]:
    """Write a report of made-up numbers of a split."""
    evaluation = replace(make_evaluation(), data_hash=split.hash())
    path = report.write_report(folder, evaluation, model=vae.model, guide=vae.guide, data=split, history=history)
    return path, evaluation


@pytest.mark.parametrize("latent_dim", [1, 2, 5])
def test_every_picture_of_images_renders(latent_dim: int, tmp_path: Path) -> None:
    vae, x = make_vae(latent_dim), binary_images()
    labels = torch.arange(len(x)) % 10
    figures = {
        "training": report.training_curves(make_history()),
        "ladder": report.ladder(make_evaluation()),
        "reconstructions": report.reconstructions(vae, x),
        "samples": report.samples(vae),
        "latent_space": report.latent_space(vae, x, labels),
        "traversals": report.traversals(vae, x),
        "interpolations": report.interpolations(vae, x),
        "thumbnails": report.thumbnails(vae, x, torch.rand(len(x))),
    }
    for figure in figures.values():
        assert figure is not None
        picture = imread(io.BytesIO(to_png(figure)))
        assert min(picture.shape[:2]) > 150
        assert picture[..., :3].std() > 0.02
    folder, _ = written(tmp_path / "new" / "run", vae, Split(x, labels=labels, name="tiny/test"), make_history())
    assert set(os.listdir(folder)) == FILES
    assert (folder / "index.html").read_text().count("<figure ") == 7  # no thumbnails without k-hat


def test_training_curves_show_the_history() -> None:
    history = make_history(best=12)
    figure = report.training_curves(history)
    drawn(figure)
    assert [axes.get_title("left") for axes in figure.axes] == [
        f"{term} (nats per datum)" for term in ("ELBO", "Reconstruction", "KL")
    ]
    for axes, term in zip(figure.axes, ("elbo", "reconstruction", "kl"), strict=True):
        trained = [(epoch.epoch, getattr(epoch, term)) for epoch in history.epochs]
        watched = [(epoch.epoch, (epoch.validation or {})[term]) for epoch in history.epochs]
        assert np.array_equal(line(axes, "Training"), trained)
        assert np.array_equal(line(axes, "Validation"), watched)
        assert (line(axes, "Weights kept (epoch 12)")[:, 0] == 12).all()
    assert "Weights kept (epoch 12)" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_training_curves_without_validation_terms_or_a_second_epoch() -> None:
    figure = report.training_curves(make_history(1, validation=False, terms=False))
    drawn(figure)
    (axes,) = figure.axes
    assert [entry.get_label() for entry in axes.lines] == ["Training"]
    assert axes.lines[0].get_marker() == "o"  # a line through one point is invisible
    figure = report.training_curves(make_history(terms=False))
    drawn(figure)
    assert [len(axes.lines) for axes in figure.axes] == [2, 1, 1]
    with pytest.raises(ValueError, match="one epoch or more, but the history has none"):
        report.training_curves(History((), 0, "interrupted"))


def test_far_first_epochs_leave_the_frame_and_the_panel_says_so() -> None:
    epochs = make_history(30, validation=False, terms=False).epochs
    wild = History((replace(epochs[0], elbo=-28.0), replace(epochs[1], elbo=-24.0), *epochs[2:]), 30, "")
    (axes,) = report.training_curves(wild).axes
    low, high = axes.get_ylim()
    assert -22 < low < min(epoch.elbo for epoch in epochs[2:])
    assert max(epoch.elbo for epoch in epochs[2:]) < high < -19
    assert [text.get_text() for text in axes.texts] == ["First 2 epochs outside the frame"]
    steady = History(tuple(replace(epoch, elbo=-50.0 + epoch.epoch) for epoch in epochs), 30, "")
    (axes,) = report.training_curves(steady).axes
    assert axes.get_ylim()[0] < -49
    assert not axes.texts


def test_ladder_shows_the_evaluation() -> None:
    evaluation = make_evaluation()
    figure = report.ladder(evaluation)
    drawn(figure)
    bounds, gains = figure.axes
    assert figure.get_suptitle() == "odd $name_$/test, 300 data"
    values = np.array([bound.value for bound in evaluation.iwae])
    assert np.array_equal(line(bounds, "IWAE bound $L_K$"), np.column_stack([KS, values]))
    ((place, elbo),) = line(bounds, "ELBO")
    assert elbo == -22.1
    assert place < 1
    for label, name in ("Standard error over the data", "se_data"), ("Monte Carlo standard error", "se_monte_carlo"):
        errors = np.array([getattr(estimate, name) for estimate in (evaluation.elbo, *evaluation.iwae)])
        centers = np.array([elbo, *values])
        expected = np.column_stack([[place, *KS], centers - errors, centers + errors])
        assert np.allclose(bars(bounds, label), expected, rtol=0, atol=1e-12)
    assert np.allclose(line(gains, "Gain"), np.column_stack([KS, values + 22.1]), rtol=0, atol=1e-12)
    assert np.allclose(bars(gains, "Standard error over the data")[:, 2] - (values + 22.1), 0.02)
    assert bounds.get_xscale() == gains.get_xscale() == "log"
    assert [label.get_text() for label in gains.get_xticklabels()] == ["1", "5", "50", "500"]
    assert {label.get_text() for label in bounds.get_xticklabels()} == {"1", "5", "50", "500", "ELBO"}
    assert [text.get_text() for text in gains.texts] == ["+0.100", "+0.500", "+0.900", "+1.300"]


def test_ladder_leaves_out_what_is_none() -> None:
    evaluation = make_evaluation()
    bare = tuple(replace(bound, se_data=None, se_monte_carlo=None) for bound in evaluation.iwae)
    missing = replace(bare[1], value=None, why="not finite")
    figure = report.ladder(replace(evaluation, iwae=(bare[0], missing, *bare[2:]), gains={}))
    drawn(figure)
    (axes,) = figure.axes
    assert line(axes, "IWAE bound $L_K$")[:, 0].tolist() == [1, 50, 500]
    assert len(bars(axes, "Standard error over the data")) == len(bars(axes, "Monte Carlo standard error")) == 1
    nothing = Estimate("ELBO", 500, None, None, None, why="not finite")
    figure = report.ladder(replace(evaluation, elbo=nothing, iwae=(missing,), gains={missing.label: (None, None)}))
    drawn(figure)
    assert not any(len(entry.get_xydata()) for entry in figure.axes[0].lines)


def test_ladder_labels_many_particle_numbers_without_overlap() -> None:
    ks = [2**i for i in range(14)]
    bound = make_evaluation().iwae[0]
    figure = report.ladder(
        replace(make_evaluation(), iwae=tuple(replace(bound, num_particles=k) for k in ks), gains={})
    )
    drawn(figure)
    labels = [label for label in figure.axes[0].get_xticklabels() if label.get_text()]
    assert len(figure.axes[0].get_xticks()) == len(ks) + 1
    assert not len(figure.axes[0].xaxis.get_minorticklocs())
    assert {"ELBO", "8,192"} <= {label.get_text() for label in labels}
    spans = sorted((box.x0, box.x1) for box in (label.get_window_extent() for label in labels))
    assert all(left[1] < right[0] for left, right in zip(spans, spans[1:], strict=False))


def test_reconstructions_stand_below_their_data() -> None:
    vae, x = make_vae(2), binary_images()
    figure = report.reconstructions(vae, x, num=7)
    drawn(figure)
    means = vae.reconstruct(x[:7])
    assert figure.axes[0].images[0].get_clim() == (0, 1)
    assert figure.axes[0].images[0].get_cmap().name == "gray_r"
    assert figure.axes[0].images[0].get_extent() == [0, 7, 2, 0]
    for i, j, column in [(0, 0, 0), (3, 5, 2), (7, 7, 6)]:
        assert pixel(figure, (8, 8), (0, column), (i, j)) == x[column, 0, i, j]
        assert pixel(figure, (8, 8), (1, column), (i, j)) == pytest.approx(means[column, 0, i, j].item())
    with pytest.raises(ValueError, match="received num=0"):
        report.reconstructions(vae, x, num=0)


def test_color_images_keep_their_colors() -> None:
    vae = make_vae(2, likelihoods.Gaussian((3, 4, 6)))
    x = torch.rand(3, 3, 4, 6)
    figure = report.reconstructions(vae, x)
    drawn(figure)
    show_progress = pixel(figure, (4, 6), (0, 1), (2, 5))
    assert np.allclose(show_progress, [*x[1, :, 2, 5], 1.0])
    (image,) = figure.axes[0].images
    assert image.get_array()[0, 0, 3] == 0  # the frame lets the ground through, light or dark


def test_samples_are_means_given_draws_from_the_prior() -> None:
    vae = make_vae(2, likelihoods.Bernoulli((8, 5)))
    figure = report.samples(vae, num=7, seed=3)
    assert figure is not None
    drawn(figure)
    means = vae.generate(7, seed=3, mean=True)
    for index in range(7):
        assert pixel(figure, (8, 5), divmod(index, 3), (4, 2)) == pytest.approx(means[index, 4, 2].item())
    assert np.isnan(pixel(figure, (8, 5), (2, 1), (4, 2)))  # no eighth sample


def test_traversals_rank_dimensions_by_their_kl() -> None:
    vae, x = transparent_vae(PARAMS), torch.zeros(4, 1, 1, 5)
    assert torch.allclose(dimensions.kl_of_normals(*codes.codes(vae, x)), KL, rtol=0, atol=1e-12)
    figure = report.traversals(vae, x, num_dims=3, num_values=5)
    assert figure is not None
    drawn(figure)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == [f"z[{dim}]  ({KL[dim]:.2f} nats)" for dim in RANKED[:3]]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == [
        text.replace("-", "\N{MINUS SIGN}") for text in ("-2.50", "-1.25", "0.00", "1.25", "2.50")
    ]
    for row, moved in enumerate(RANKED[:3]):
        for column, value in enumerate([-2.5, -1.25, 0.0, 1.25, 2.5]):
            for dim in range(5):
                expected = value if dim == moved else PARAMS[dim, 0].item()
                assert pixel(figure, (1, 5), (row, column), (0, dim)) == pytest.approx(expected)


def test_traversals_refuse_to_show_nothing() -> None:
    with pytest.raises(ValueError, match="received num_values=0; give num_values >= 1"):
        report.traversals(make_vae(2), binary_images(), num_values=0)


def points(axes: Axes) -> np.ndarray:
    """Return the scattered points in order, ``(N, 2)``."""
    found = [c for c in axes.collections if isinstance(c, PathCollection)]
    together = np.concatenate([np.asarray(c.get_offsets()).reshape(-1, 2) for c in found])
    return together[np.lexsort(together.T)]


@pytest.mark.parametrize(("latent_dim", "num_labels"), [(2, 10), (5, 20), (5, 21)])
def test_latent_space_scatters_the_means_that_carry_most(latent_dim: int, num_labels: int) -> None:
    vae, x = make_vae(latent_dim), binary_images(63)
    with torch.no_grad():
        vae.encoder.layers[-1].bias[2 * (latent_dim - 1)] = 3.0
        mean, stddev = vae.encode(x).mean, vae.encode(x).stddev
    kl = dimensions.kl_of_normals(mean, stddev)
    figure = report.latent_space(vae, x, torch.arange(63) % num_labels)
    drawn(figure)
    (axes,) = figure.axes
    dims = sorted(kl.argsort()[-2:].tolist())
    assert latent_dim - 1 in dims
    name = "mean KL to the prior: " if latent_dim == 2 else ""
    assert axes.get_xlabel() == f"z[{dims[0]}]  ({name}{kl[dims[0]]:.2f} nats)"
    assert axes.get_ylabel() == f"z[{dims[1]}]  ({name}{kl[dims[1]]:.2f} nats)"
    assert ("the largest mean KL to the prior" in axes.get_title("left")) == (latent_dim > 2)
    expected = mean[:, dims].numpy()
    assert np.allclose(points(axes), expected[np.lexsort(expected.T)])
    assert axes.get_aspect() == 1
    legend = axes.get_legend()
    assert (legend is None) == (num_labels == 21)
    if legend is not None:
        assert [text.get_text() for text in legend.get_texts()] == [str(i) for i in range(num_labels)]


def test_latent_space_gives_each_datum_the_color_and_marker_of_its_label() -> None:
    vae, x = make_vae(2), binary_images(39)
    labels = torch.arange(39) % 13 + 4
    (axes,) = report.latent_space(vae, x, labels).axes
    mean = vae.encode(x).mean.detach().numpy()
    keys = dict(zip(range(4, 17), (c for c in axes.collections if not len(c.get_offsets())), strict=True))
    found = 0
    for scatter in (c for c in axes.collections if len(c.get_offsets())):
        for offset, color in zip(scatter.get_offsets(), scatter.get_facecolor(), strict=True):
            key = keys[int(labels[np.abs(mean - offset).sum(1).argmin()])]
            assert np.allclose(color[:3], key.get_facecolor()[0, :3])
            assert np.array_equal(scatter.get_paths()[0].vertices, key.get_paths()[0].vertices)
            found += 1
    assert found == 39


@pytest.mark.parametrize("labels", [None, torch.arange(40) % 4, torch.rand(40)])
def test_latent_space_of_one_dimension_is_a_histogram(labels: Tensor | None) -> None:
    figure = report.latent_space(make_vae(1), binary_images(40), labels)
    drawn(figure)
    (axes,) = figure.axes
    area = sum(patch.get_width() * patch.get_height() for patch in axes.patches)
    assert area == pytest.approx(1)
    prior = line(axes, "Prior N(0, 1)")
    assert np.trapezoid(prior[:, 1], prior[:, 0]) == pytest.approx(0.9973, abs=1e-3)
    assert (axes.get_legend() is not None) == (labels is not None and not labels.is_floating_point())


class Shifted(priors.Prior):
    """N(5, 1), as a stand-in for every prior that is not standard normal."""

    def forward(self) -> dist.TorchDistribution:
        return dist.Normal(torch.full((self.latent_dim,), 5.0), 1.0).to_event(1)


def test_a_normal_prior_is_shown_where_it_lies() -> None:
    vae = make_vae(3)
    vae.prior = Shifted(3)
    (axes,) = report.latent_space(vae, binary_images()).axes
    for circle, radius in zip(axes.lines, (1, 2), strict=True):
        assert np.allclose(np.hypot(*(circle.get_xydata() - 5).T), radius)
    vae = make_vae(1)
    vae.prior = Shifted(1)
    figure = report.latent_space(vae, binary_images())
    prior = line(figure.axes[0], "Prior")
    assert prior[prior[:, 1].argmax(), 0] == pytest.approx(5, abs=0.05)
    assert "Prior" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_pictures_leave_the_callers_random_stream() -> None:
    vae, x = make_vae(3), binary_images()
    vae.prior = Shifted(3)
    before = torch.get_rng_state()
    report.samples(vae)
    report.latent_space(vae, x)
    assert torch.equal(torch.get_rng_state(), before)


class Given(priors.Prior):
    """A prior whose mean is the sum of the covariates."""

    conditional = True

    def forward(self, c: Tensor) -> dist.TorchDistribution:
        mean = c.sum(-1, keepdim=True).expand(*c.shape[:-1], self.latent_dim)
        return dist.Normal(mean, torch.full_like(mean, 1e-3)).to_event(1)


@pytest.mark.parametrize("latent_dim", [1, 2])
def test_pictures_of_a_conditional_model(latent_dim: int, tmp_path: Path) -> None:
    likelihood, posterior = likelihoods.Gaussian((1, 8, 8)), posteriors.DiagonalNormal(latent_dim)
    vae = VAE(
        prior=Given(latent_dim),
        decoder=networks.MLPDecoder(latent_dim, likelihood.param_shape, covariate_dim=2, hidden=(8,)),
        likelihood=likelihood,
        encoder=networks.MLPEncoder((1, 8, 8), posterior.param_shape, covariate_dim=2, hidden=(8,)),
        posterior=posterior,
    )
    c = torch.stack([torch.arange(21.0), torch.full((21,), -4.0)], 1)
    data = Split(binary_images(21), name="few", covariates=c)
    asked = []
    vae.decoder.register_forward_pre_hook(lambda module, args: asked.append(args))
    report.samples(vae, covariates=data.given, num=25)
    z, given = asked[0]
    assert torch.equal(given[:21], c)
    assert torch.equal(given[21:], c[:4])
    assert torch.allclose(z, given.sum(-1, keepdim=True).expand_as(z), atol=0.01)
    path, _ = written(tmp_path, vae, data)
    assert (path / "index.html").read_text().count("<figure ") == 5  # no data of the same covariates to go between


def test_modules_stay_in_their_mode_and_are_seen_in_evaluation_mode() -> None:
    vae, x = make_vae(2), binary_images()
    vae.encoder = nn.Sequential(nn.Dropout(0.5), vae.encoder)
    mean, _ = codes.codes(vae, x)
    assert torch.equal(mean, codes.codes(vae, x)[0])
    assert vae.training
    assert vae.encoder.training


def test_tabular_data_have_a_scatter_in_the_place_of_images(tmp_path: Path) -> None:
    vae, x = make_vae(2, likelihoods.Gaussian((3,))), torch.randn(50, 3)
    assert report.samples(vae) is None
    assert report.traversals(vae, x) is None
    figure = report.reconstructions(vae, x)
    drawn(figure)
    means = vae.reconstruct(x)
    assert [axes.get_title("left") for axes in figure.axes] == ["x[0]", "x[1]", "x[2]"]
    for column, axes in enumerate(figure.axes):
        (scatter,) = (c for c in axes.collections if isinstance(c, PathCollection))
        expected = np.column_stack([x[:, column], means[:, column]])
        assert np.array_equal(scatter.get_offsets(), expected)
    folder, _ = written(tmp_path, vae, Split(x, name="columns/test"))
    assert (folder / "index.html").read_text().count("<figure ") == 3
    assert (
        len(report.reconstructions(make_vae(2, likelihoods.Gaussian((11,))), torch.randn(5, 11)).axes)
        == columns.COLUMNS
    )


def test_the_numbers_come_back_and_a_changed_file_is_refused(tmp_path: Path) -> None:
    vae, x = make_vae(2, likelihoods.Gaussian((3,))), torch.randn(20, 3)
    folder, evaluation = written(tmp_path, vae, Split(x, name="columns/test"))
    back = report.read_report(tmp_path)
    assert back == evaluation
    assert back.per_datum.keys() == evaluation.per_datum.keys()
    (folder / "evaluation.json").write_text("{}")
    with pytest.raises(ValueError, match=r"evaluation\.json is not the file that was written"):
        report.read_report(tmp_path)


def test_pictures_look_the_same_under_the_callers_style() -> None:
    plain = drawn(report.training_curves(make_history()))
    dark = {"axes.facecolor": "black", "figure.facecolor": "black", "text.color": "white", "xtick.color": "white"}
    with matplotlib.rc_context(dark | {"axes.grid": True, "axes.spines.top": True, "xtick.direction": "in"}):
        assert np.array_equal(drawn(report.training_curves(make_history())), plain)


def test_curves_ignore_epochs_without_a_term() -> None:
    epochs = make_history(3).epochs
    gap = History((epochs[0], replace(epochs[1], kl=None), epochs[2]), 3, "")
    show_progress = line(report.training_curves(gap).axes[2], "Training")[:, 1]
    assert np.isnan(show_progress).tolist() == [False, True, False]
