"""Arguments of constructors and functions: conversions, and errors that name class and argument."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas
import pyro
import pytest
import torch
from conftest import make_vae
from PIL import Image
from pyro.infer import Trace_ELBO
from torch import nn

import pyrovae
from pyrovae import bounds, diagnostics, likelihoods, networks, objectives, posteriors, priors, report
from pyrovae.data import transforms
from pyrovae.results.record import from_plain, tensors_of, to_plain
from pyrovae.runtime.annotations import ArgumentError
from pyrovae.runtime.serialization import build

X = torch.bernoulli(torch.full((20, 5), 0.5), generator=torch.Generator().manual_seed(0)).double()


def vae(**parts: Any) -> pyrovae.VAE:
    return pyrovae.VAE(**make_vae(2, likelihoods.Bernoulli(5)).init_arguments | parts)


@pytest.mark.parametrize(
    ("attempt", "words"),
    [
        (lambda: vae(decoder=networks.MLPDecoder), "`decoder` of VAE .* got the class MLPDecoder; give an object"),
        (lambda: vae(likelihood=likelihoods.Bernoulli), "`likelihood` of VAE .* give an object"),
        (lambda: vae(size=3), "VAE: got an unexpected keyword argument 'size'; its arguments are prior, decoder"),
        (lambda: pyrovae.VAE(prior=priors.StandardNormal(2)), "VAE: missing a required argument: 'decoder'"),
        (lambda: priors.StandardNormal(2, 3), "StandardNormal: too many positional arguments"),
        (lambda: priors.StandardNormal(2.5), "`latent_dim` of StandardNormal must be an integer >= 1, got 2.5"),
        (lambda: priors.StandardNormal(latent_dim=True), "`latent_dim` of StandardNormal .* an integer >= 1, got True"),
        (lambda: networks.MLPDecoder(2, "abc"), "`out_shape` of MLPDecoder must be integers >= 1, got 'abc'"),
        (lambda: networks.MLPDecoder(2, 5, hidden=10**20), "`hidden` of MLPDecoder must be at most 1,000,000,000"),
        (lambda: networks.MLPDecoder(2, 5, activation=nn.ReLU()), "`activation` of MLPDecoder must be a class"),
        (lambda: likelihoods.Gaussian(5, learn_scale=0.1), "`learn_scale` of Gaussian must be True or False, got 0.1"),
        (lambda: likelihoods.Gaussian(5, scale=math.nan), "`scale` of Gaussian must be a finite number > 0, got nan"),
        (lambda: pyrovae.Training(seed=float("nan")), "`seed` of Training must be an integer, got nan"),
        (lambda: pyrovae.Training(epochs=10**20), "`epochs` of Training must be at most"),
        (lambda: pyrovae.evaluate(vae(), (X, 3)), "`data` of evaluate .* got .a Tensor of shape .20, 5., 3.; .*load_s"),
        (lambda: pyrovae.evaluate(vae(), X, ks=(10**20,)), "`ks` of evaluate must be at most"),
        (lambda: pyrovae.fit(vae(), np.ma.masked_array(X.numpy())), "`data` of fit .* got a MaskedArray of shape"),
        (lambda: pyrovae.fit(vae(), X, training={"epochs": 3}), "`training` of fit must be a Training"),
        (lambda: pyrovae.fit(vae(), X, epoch=3), "fit has the options .*epochs.* but received 'epoch'"),
        (lambda: pyrovae.evaluate(X, vae()), r"missing .*'data'; .*model, guide, data, .*; .* evaluate\(vae, data\)"),
        (lambda: pyrovae.Training(epochs=-1), "`epochs` of Training must be an integer >= 0, got -1"),
        (lambda: priors.Flow(2, hidden=(4, 0)), r"`hidden` of Flow must be integers >= 1, got \(4, 0\)"),
        (lambda: posteriors.IAF(2, num_layers=0), "integer >= 1, got 0; for 0 use DiagonalNormal"),
        (lambda: likelihoods.Gaussian(5, scale=math.inf), "`scale` of Gaussian must be a finite number > 0, got inf"),
        (lambda: objectives.ELBO(beta=math.inf), "`beta` of ELBO must be a finite number >= 0, got inf"),
        (lambda: pyrovae.fit(vae(), X, modules="abc"), "`modules` of fit must be several: a Module, got 'abc'"),
        (lambda: pyrovae.data.load(object()), "`source` must be a name, a path, an array, .* got object"),
        (lambda: likelihoods.StudentT(3, df=1.0), "`df` of StudentT must be a finite number > 1, got 1.0; a mean exis"),
        (lambda: likelihoods.HeteroscedasticGaussian(3, min_scale=0.0), "`min_scale` of .* must be a finite number > "),
        (lambda: likelihoods.NegativeBinomial(3, total_count=0.0), "`total_count` of .* must be a finite number > 0"),
        (lambda: likelihoods.DiscretizedLogisticMixture(3, num_components=0), "`num_components` of .* an integer >= 1"),
        (lambda: likelihoods.Categorical(3, levels=1), "`levels` of Categorical must be an integer >= 2, got 1"),
        (lambda: likelihoods.Gaussian(3)(torch.zeros(5, 3, 9)), r"received \(5, 3, 9\); .*=likelihood\.param_shape"),
        (lambda: posteriors.IAF(3)(torch.zeros(5, 3, 9)), r"received \(5, 3, 9\); .*=posterior\.param_shape"),
        (lambda: posteriors.FullNormal(0), "`latent_dim` of FullNormal must be an integer >= 1, got 0"),
        (lambda: posteriors.FullNormal(3, min_log_variance=1.0, max_log_variance=1.0), "must be below"),
        (lambda: posteriors.LowRankNormal(3, rank=0), "`rank` of LowRankNormal must be an integer >= 1, got 0"),
        (lambda: posteriors.IAF(3, hidden=()), "`hidden` of IAF must be one or more widths, got"),
        (lambda: posteriors.IAF(3, num_context=-1), "`num_context` of IAF must be an integer >= 0, got -1"),
        (lambda: priors.Flow(1), "`latent_dim` of a Flow must be >= 2, got 1"),
        (lambda: priors.MixtureOfGaussians(4, num_components=0), "`num_components` of .* must be an integer >= 1, got"),
        (lambda: priors.StudentT(2, df=0.0), "`df` of StudentT must be a finite number > 0, got 0.0"),
    ],
)
def test_errors_name_owner_argument_and_value(attempt: Callable[[], object], words: str) -> None:
    assert issubclass(ArgumentError, TypeError)
    assert issubclass(ArgumentError, ValueError)
    with pytest.raises((TypeError, ValueError), match=words):
        attempt()


def test_numbers_of_numpy_are_numbers_of_python() -> None:
    assert type(pyrovae.Training(seed=np.int64(3)).seed) is int
    assert type(pyrovae.Training(learning_rate=torch.tensor(1e-3)).learning_rate) is float  # type: ignore[arg-type]
    assert networks.MLPDecoder(np.int32(2), [5], hidden=np.array([4])).init_arguments["hidden"] == (4,)


@pytest.mark.parametrize("convert", [torch.Tensor.numpy, lambda x: pandas.DataFrame(x.numpy())])
def test_arrays_and_frames_are_data(convert: Callable[[torch.Tensor], Any]) -> None:
    v = vae()
    options = {"epochs": 2, "device": "cpu", "show_progress": False}
    assert pyrovae.fit(v, convert(X), **options).best.epoch == 2
    found = pyrovae.evaluate(v, convert(X), ks=(1, 5), num_data=10, show_progress=False)
    same = pyrovae.evaluate(v.model, v.guide, X[:10], ks=(1, 5), show_progress=False)
    assert found.per_datum["L_5"].equal(same.per_datum["L_5"])
    assert v.reconstruct(convert(X)).equal(v.reconstruct(X))


def test_a_list_of_images_and_a_frame_are_data() -> None:
    images = [Image.fromarray(np.full((4, 6), i, np.uint8)) for i in range(20)]
    assert pyrovae.data.load_split(images).stored[:, 0, 0, 0].tolist() == list(range(20))
    frame = pandas.DataFrame({"a": np.arange(20.0), "b": np.ones(20)})
    assert pyrovae.data.load_split(frame).stored[:, 0].tolist() == list(range(20))
    assert len(pyrovae.data.load(frame).train) == 16


def test_a_split_is_x() -> None:
    split = pyrovae.data.load_split(X)
    assert VAE.reconstruct(split).equal(VAE.reconstruct(X))
    labeled = split.with_covariates(X[:, :2])
    with pytest.raises(TypeError, match=r"must be a tensor .* got .*Split; give split.fixed\(\) and split.covariates"):
        VAE.reconstruct(labeled)
    with pytest.raises(TypeError, match="got .*Data; give one split, data.train"):
        VAE.reconstruct(pyrovae.data.digits())  # type: ignore[arg-type]


def test_rows_of_a_split() -> None:
    split = pyrovae.data.digits().for_form("binary").test
    assert split[:7].fixed().equal(split.fixed()[:7])
    assert split[3].equal(split[torch.tensor(3)])
    assert split[3].equal(split.fixed()[3])
    assert split[10:20:2].stored.equal(split.stored[10:20:2])
    assert len(list(split[:4])) == 4
    for rows in (np.arange(300) == 2, [2], np.array([2]), slice(2, 3), torch.tensor([2])):
        assert split[rows].labels.equal(split.labels[2:3])
    split = pyrovae.data.load_split(X)
    for rows in ([0, 3], range(0, 6, 3), slice(0, 6, 3), np.array([0, 3]), torch.tensor([0, 3])):
        assert split.draw(rows).equal(split.fixed()[[0, 3]])
    assert split.draw(3).equal(split[3])


def test_a_vae_writes_its_report(tmp_path: Any) -> None:
    v = make_vae()
    page = v.report(
        tmp_path / "run", torch.bernoulli(torch.full((12, *v.likelihood.x_shape), 0.5)), num_data=9, ks=(1, 2)
    )
    assert (page / "index.html").is_file()


def test_an_encoder_may_return_mean_and_log_variance() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mean, self.log_variance = nn.Linear(5, 2), nn.Linear(5, 2)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.mean(x), self.log_variance(x)

    encoder = Two()
    drawn = vae(encoder=encoder).encode(X)
    assert drawn.mean.equal(encoder.mean(X))
    assert drawn.variance.log().allclose(encoder.log_variance(X))


def test_the_encoder_of_vamp_is_that_of_the_vae() -> None:
    own, other = (networks.MLPEncoder(5, (2, 2), hidden=4) for _ in range(2))
    prior = priors.Vamp(own, posteriors.DiagonalNormal(2), num_components=3)
    vae(encoder=own, prior=prior)
    with pytest.raises(ValueError, match="another encoder; give the same object"):
        vae(encoder=other, prior=prior)


VAE = vae().double()
PROGRAMS = {"model": VAE.model, "guide": VAE.guide}
WEIGHTS = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
SIGNATURES: list[tuple[Callable[..., Any], dict[str, Any]]] = [
    *[(getattr(likelihoods, name), {"x_shape": (5,)}) for name in ("Bernoulli", "Gaussian", "StudentT", "Poisson")],
    *[(getattr(likelihoods, name), {"x_shape": (5,), "levels": 4}) for name in ("Categorical", "DiscretizedLogistic")],
    *[(getattr(priors, name), {"latent_dim": 2}) for name in ("StandardNormal", "MixtureOfGaussians", "Flow")],
    *[(getattr(posteriors, name), {"latent_dim": 2}) for name in ("DiagonalNormal", "LowRankNormal", "IAF")],
    (networks.MLPEncoder, {"x_shape": (5,), "out_shape": (2, 2)}),
    (networks.ConvDecoder, {"latent_dim": 2, "out_shape": (1, 8, 8, 1)}),
    *[(record, {}) for record in (pyrovae.Training, pyrovae.Checks, bounds.AnnealingOptions, diagnostics.GapOptions)],
    *[(make, {}) for make in (objectives.ELBO, objectives.DReG, objectives.schedules.Linear, transforms.Threshold)],
    (pyrovae.data.Split, {"stored": X, "name": "x"}),
    *[(function, {"log_weights": WEIGHTS}) for function in (bounds.iwae, bounds.log_mean_exp, diagnostics.pareto_khat)],
    *[
        (function, {"log_weights": WEIGHTS})
        for function in (diagnostics.largest_weight, diagnostics.weight_diagnostics)
    ],
    (bounds.elbo, {**PROGRAMS, "x": X[:3]}),
    *[(f, {**PROGRAMS, "x": X[:3], "num_chains": 1, "num_temperatures": 1}) for f in (bounds.ais, bounds.bdmc)],
    (diagnostics.latents, {**PROGRAMS, "x": X[:3]}),
    *[(f, {**PROGRAMS, "x": X[:3], "num_particles": 2}) for f in (pyrovae.log_weights, pyrovae.particles)],
    (pyrovae.fit, {**PROGRAMS, "data": X[:3], "epochs": 1, "device": "cpu", "show_progress": False}),
    (pyrovae.evaluate, {**PROGRAMS, "data": X[:3], "ks": (1, 2), "show_progress": False}),
    (report.traversals, {"vae": VAE, "x": X}),
    (VAE.generate, {"num_samples": 2}),
    (VAE.interpolate, {"start": X, "end": X}),
]
WRONG = (None, "abc", -1, 1.5, float("nan"), 10**20, [1, "a"], {"a": 1}, nn.Linear, np.zeros((2, 2)), object())


def test_wrong_arguments_end_in_errors_that_name_them(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a folder may be named "abc"
    failed, num_tried = [], 0
    for function, valid in SIGNATURES:
        names = list(inspect.signature(function).parameters)
        for name, value in itertools.product(names, WRONG):
            num_tried += 1
            try:
                function(**valid | {name: value})
            except (TypeError, ValueError) as error:
                if name.rstrip("s") not in str(error):
                    failed.append((function.__name__, name, value, error))
    assert num_tried > 1_400
    assert len(failed) <= 0.02 * num_tried, failed


def test_a_large_seed_is_read_from_files(tmp_path: Any) -> None:
    pyrovae.fit(vae(), X, epochs=1, seed=2**60, device="cpu", folder=tmp_path, show_progress=False)
    assert pyrovae.load(tmp_path).config["training"]["seed"] == 2**60  # type: ignore[index]
    checks = pyrovae.Checks(2, 2, 0, 0, num_chains=2, num_temperatures=2)
    found = pyrovae.evaluate(VAE, X, ks=(1,), seed=2**60, checks=checks, show_progress=False)
    assert found.checked is not None
    again = from_plain(pyrovae.results.Evaluation, to_plain(found), tensors_of(found))
    assert to_plain(again) == to_plain(found)


def test_the_form_of_a_likelihood_is_known_and_decides_its_measure() -> None:
    measures = {}
    for form in ("binary", "unit", "continuous", "levels", "counts"):
        measures[form] = type("Own", (likelihoods.Likelihood,), {"form": form}).base_measure  # type: ignore[attr-defined]
    assert [form for form, measure in measures.items() if measure == "Lebesgue"] == ["unit", "continuous"]
    with pytest.raises(ValueError, match="`form` of Own must be one of binary, unit, continuous, levels, counts"):
        type("Own", (likelihoods.Likelihood,), {"form": "numbers"})


def test_a_vae_is_taken_by_keyword() -> None:
    v = vae()
    assert pyrovae.evaluate(model=v, data=X, ks=(1,), show_progress=False).elbo.value


def test_a_forgotten_attribute_of_a_class_is_named() -> None:
    with pytest.raises(TypeError, match="NoForm must set form, one of binary"):
        type("NoForm", (likelihoods.Likelihood,), {"n_params": 1, "forward": 1, "initial_params": 1})(5)
    with pytest.raises(TypeError, match="NoNumber must set n_params"):
        _ = type("NoNumber", (posteriors.Posterior,), {"forward": 1})(5).param_shape


def test_an_unknown_option_names_the_nearest() -> None:
    with pytest.raises(TypeError, match="did you mean epochs?"):
        pyrovae.fit(vae(), X, max_epochs=3)


def test_allowed_packages_are_names_not_parts_of_names() -> None:
    with pytest.raises(ValueError, match="may import only from pyrovae"):
        build({"class": "os.PathLike", "arguments": {}}, allow="pandas.os")


def test_a_tensor_of_one_number_stays_a_tensor() -> None:
    beta = torch.tensor(0.5)
    assert objectives.ELBO(beta=beta).beta is beta


def test_an_own_base_measure_is_inherited() -> None:
    own = type("Own", (likelihoods.Likelihood,), {"form": "unit", "base_measure": "counting"})
    assert type("Derived", (own,), {"form": "unit"}).base_measure == "counting"  # type: ignore[attr-defined]


def test_other_forms_of_arguments() -> None:
    assert pyrovae.Training(device=torch.device("cpu")).device == "cpu"
    assert likelihoods.Bernoulli(n for n in (2, 3)).x_shape == (2, 3)
    frame = pandas.DataFrame(X.numpy().astype(np.float64))  # the usual dtype of pandas, and modules of the default one
    assert pyrovae.evaluate(vae(), frame, ks=(1,), show_progress=False).elbo.value
    with pytest.raises(TypeError, match="must not be a masked array"):
        pyrovae.data.from_arrays(np.ma.masked_array(X.numpy(), X.numpy() > 0))
    with pytest.raises(TypeError, match="DReG: too many positional arguments"):
        objectives.DReG(5)


def test_a_loss_of_pyro_with_observed_sites_of_the_guide_is_no_bound(caplog: pytest.LogCaptureFixture) -> None:
    v = vae()

    def guide(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", v.encode(x))
            pyro.factor("penalty", x.sum(-1), has_rsample=True)

    pyrovae.fit(v.model, guide, X, objective=Trace_ELBO(), epochs=1, device="cpu", show_progress=False)
    assert "contains the observed sites of the guide (penalty)" in caplog.text


def test_an_error_names_the_remedy_of_common_mistakes() -> None:
    vae, x = make_vae(2), torch.zeros(4, 1, 8, 8)
    mistakes = [
        (lambda: pyrovae.fit(vae, x, lr=1e-3), TypeError, "did you mean learning_rate"),
        (lambda: pyrovae.evaluate(vae, x, num_particles=5), TypeError, "did you mean ks"),
        (lambda: pyrovae.fit(vae, [x, x]), TypeError, r"got a list of 2 Tensors; give a tuple, \(x, labels\)"),
        (lambda: pyrovae.evaluate(vae, x[0]), ValueError, r"a batch axis is missing: give x\[None\]"),
        (lambda: pyrovae.evaluate(vae, (x, x)), ValueError, "leave out labels that are not meant"),
        (
            lambda: pyrovae.fit(vae, x, optimizer=torch.optim.Adam(vae.parameters())),
            TypeError,
            "`optimizer` of fit must be a function.*lambda parameters",
        ),
    ]
    for mistake, error, text in mistakes:
        with pytest.raises(error, match=text):
            mistake()
    z = torch.zeros(4, 2)
    assert torch.equal(pyrovae.log_joint(vae, x, z=z), pyrovae.log_joint(vae.model, x, z=z))
