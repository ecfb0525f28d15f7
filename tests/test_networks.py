"""Conformance of every encoder and decoder; new ones are tested as soon as they are exported."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from pyrovae import VAE, Training, evaluate, fit, likelihoods, load, networks, posteriors, priors
from pyrovae.data import Data, digits
from pyrovae.networks import Decoder, Encoder
from pyrovae.networks.base import fold
from pyrovae.networks.resnet import BatchNorm
from pyrovae.runtime.serialization import build, describe

SMALL = {"MLP": {"hidden": (6, 5)}, "GatedMLP": {"hidden": (6, 5)}, "Conv": {"channels": (3, 4)}, "ResNet": {}}
SMALL_DECODER = SMALL | {"ResNet": {"channels": (3, 4)}}
FAMILIES = sorted({name.removesuffix("Encoder").removesuffix("Decoder") for name in networks.__all__} - {""})
FAST = [pytest.param(name, marks=pytest.mark.slow) if name == "ResNet" else name for name in FAMILIES]


def encoder_of(family: str, x_shape: tuple[int, ...] = (1, 7, 5), **options: int) -> Encoder:
    return getattr(networks, f"{family}Encoder")(x_shape, (3, 2), **SMALL[family], **options)


def decoder_of(
    family: str, out_shape: tuple[int, ...] = (1, 7, 5, 2), *, params: Tensor | None = None, **options: int
) -> Decoder:
    return getattr(networks, f"{family}Decoder")(
        3, out_shape, **SMALL_DECODER[family], initial_params=params, **options
    )


def networks_of(family: str, **options: int) -> list[tuple[Encoder | Decoder, tuple[int, ...], tuple[int, ...]]]:
    """Return both networks in evaluation mode, each with the shapes of its input and output."""
    return [
        (encoder_of(family, **options).eval(), (1, 7, 5), (3, 2)),
        (decoder_of(family, **options).eval(), (3,), (1, 7, 5, 2)),
    ]


def one_by_one(network: nn.Module, x: Tensor, in_shape: tuple[int, ...], *covariates: Tensor) -> Tensor:
    rows = zip(x.reshape(-1, *in_shape), *(c.reshape(-1, c.shape[-1]) for c in covariates), strict=True)
    return torch.stack([network(*row) for row in rows])


@pytest.mark.parametrize("family", FAST)
def test_batch_axes_covariates_and_description(family: str) -> None:
    assert {f"{family}Encoder", f"{family}Decoder"} <= set(networks.__all__)
    for network, in_shape, out_shape in networks_of(family, covariate_dim=4):
        for batch in ((), (4,), (2, 3)):
            x, label, age = torch.randn(*batch, *in_shape), torch.randn(*batch, 3), torch.randn(*batch, 1)
            out = network(x, label, age)
            assert out.shape == (*batch, *out_shape)
            assert torch.allclose(out.reshape(-1, *out_shape), one_by_one(network, x, in_shape, label, age))
            assert (network(x, label, age + 1) - out).abs().flatten(len(batch)).amax(-1).min() > 1e-6
        shared = network(x, torch.cat([label, age], -1)[0])  # covariates of the last batch axis alone
        repeated = [c[:1].expand(2, -1, -1) for c in (label, age)]
        assert torch.allclose(shared, one_by_one(network, x, in_shape, *repeated).reshape(out.shape))
        network.train()(x, label, age)  # changes the statistics of batch normalization
        again = build(json.loads(json.dumps(describe(network))))
        again.load_state_dict(network.state_dict())
        assert torch.equal(again.eval()(x, label, age), network.eval()(x, label, age))
    described = describe(decoder_of(family, params=torch.randn(1, 7, 5, 2)))
    assert "initial_params" not in described["arguments"]


def test_resnet_encoder_is_built_from_its_description() -> None:
    encoder = encoder_of("ResNet", (4, 4), covariate_dim=2).float()
    again = build(describe(encoder)).float().eval()
    again.load_state_dict(encoder.state_dict())
    x, c = torch.randn(2, 3, 4, 4, dtype=torch.float32), torch.randn(3, 2, dtype=torch.float32)
    assert again(x, c).shape == (2, 3, 3, 2)
    assert torch.equal(again(x, c), encoder.eval()(x, c))


def test_class_paths_of_earlier_versions_are_found() -> None:
    described = describe(encoder_of("GatedMLP")) | {"class": "pyrovae.networks.gated_mlp.GatedMLPEncoder"}
    assert type(build(described)) is networks.GatedMLPEncoder


@pytest.mark.parametrize("family", FAST)
@pytest.mark.parametrize("x_shape", [(1, 7, 5), (3, 8, 8), (28, 28)])
def test_sizes(family: str, x_shape: tuple[int, ...]) -> None:
    assert encoder_of(family, x_shape).eval()(torch.randn(2, *x_shape)).shape == (2, 3, 2)
    for n_params in (1, 10):
        out = decoder_of(family, (*x_shape, n_params)).eval()(torch.randn(2, 3))
        assert out.shape == (2, *x_shape, n_params)
        assert out.is_contiguous() or x_shape[0] == 3


@pytest.mark.parametrize("family", FAST)
@pytest.mark.parametrize("n_params", [2, 10])
def test_gradients_reach_every_parameter_and_dtype_follows(family: str, n_params: int) -> None:
    for network, in_shape in ((encoder_of(family), (1, 7, 5)), (decoder_of(family, (1, 7, 5, n_params)), (3,))):
        network.float()
        out = network(torch.randn(6, *in_shape, dtype=torch.float32))
        assert out.dtype == torch.float32
        (out * torch.randn(out.shape)).sum().backward()
        for name, parameter in network.named_parameters():
            assert (parameter.grad != 0).any(), name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("out_shape", [(1, 7, 5, 2), (3, 8, 8, 2), (6, 4, 12)])
def test_decoders_start_at_the_given_parameters(family: str, out_shape: tuple[int, ...]) -> None:
    params, other = torch.randn(2, *out_shape)
    torch.manual_seed(1)
    given = decoder_of(family, out_shape, params=params)
    torch.manual_seed(1)
    later, frozen = decoder_of(family, out_shape), decoder_of(family, out_shape)
    assert later.start(params)
    assert not later.start(other), "it is set already"
    assert not frozen.requires_grad_(requires_grad=False).start(params)
    assert all(torch.equal(later.state_dict()[name], value) for name, value in given.state_dict().items())
    given.eval()
    assert torch.allclose(given(torch.zeros(2, 3)), params.expand(2, *out_shape), atol=1e-12)
    assert not torch.allclose(given(torch.ones(3)), params)
    with pytest.raises(ValueError, match=r"shape of the decoder's output, \(.*\), but received \(4,\)"):
        decoder_of(family, out_shape, params=torch.zeros(4))


@pytest.mark.parametrize("family", FAST)
def test_expanded_axes_are_run_once(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for network, in_shape, out_shape in networks_of(family, covariate_dim=2):
        rows: list[int] = []
        run = network.run
        monkeypatch.setattr(network, "run", lambda x, c, run=run, rows=rows: rows.append(len(x)) or run(x, c))
        x, c = torch.randn(4, *in_shape), torch.randn(4, 2)
        out = network.train()(x.expand(5, 4, *in_shape), c)
        assert rows == [4]
        assert out.shape == (5, 4, *out_shape)
        assert out.stride(0) == 0
        tracked = {norm.num_batches_tracked.item() for norm in network.modules() if isinstance(norm, BatchNorm)}
        assert tracked == ({1} if family == "ResNet" else set())
        network.eval()
        assert torch.allclose(network(x.expand(5, 4, *in_shape), c)[3], network(x, c))
        network(x.expand(5, 4, *in_shape), torch.randn(5, 4, 2))
        assert rows == [4, 4, 4, 20]


def test_fold_on_axes_that_are_expanded_or_not() -> None:
    seen = []

    def net(x: Tensor) -> Tensor:
        seen.append(tuple(x.shape))
        return 2 * x.sum(-1, keepdim=True)

    x = torch.randn(3, 1, 2)
    for view in (x.expand(4, 3, 5, 2), x, x.transpose(0, 1), x[:0], x[0, 0], x[0, 0].expand(6, 2)):
        assert torch.equal(fold(net, [view], [1]), 2 * view.sum(-1, keepdim=True))
    assert seen == [(3, 2), (3, 2), (3, 2), (0, 2), (1, 2), (1, 2)]


def test_gates() -> None:
    encoder = networks.GatedMLPEncoder((4,), (3, 2), hidden=(5,))
    first, _, last = encoder.layers
    w1, w2 = first.weight.chunk(2)
    first.bias.data.normal_()
    b1, b2 = first.bias.chunk(2)
    x = torch.randn(7, 4)
    by_hand = last((x @ w1.T + b1) * (x @ w2.T + b2).sigmoid())
    assert torch.allclose(encoder(x).flatten(1), by_hand)
    assert [layer.out_features for layer in networks.GatedMLPEncoder((4,), (3, 2)).layers[::2]] == [600, 600, 6]
    wide = networks.GatedMLPEncoder((400,), (3, 2)).layers[0].weight
    assert wide.std().item() == pytest.approx(math.sqrt(2 / 400), rel=0.02)


def test_many_parameters_share_one_map() -> None:
    out_shape = (1, 8, 8, 256)
    decoder = networks.MLPDecoder(3, out_shape, hidden=(5,), features=4)
    shapes = {name: tuple(parameter.shape) for name, parameter in decoder.named_parameters()}
    assert list(shapes.values())[2:] == [(64 * 4, 5), (64 * 4,), (256, 4), (64, 256)]
    z = torch.randn(2, 3)
    features = decoder.layers[:-1](z)
    features = decoder.layers[-1][:2](features).unflatten(1, (64, 4))  # (2, 64, 4)
    shared = decoder.layers[-1][-1]
    by_hand = features @ shared.weight.T + shared.bias
    assert torch.allclose(decoder(z), by_hand.reshape(2, *out_shape))
    with pytest.raises(ValueError, match="1 feature or more, but received features=0"):
        networks.MLPDecoder(3, out_shape, features=0)


def test_head_holds_one_tensor_of_its_output_size() -> None:
    torch.set_default_dtype(torch.float32)
    for family in ("MLP", "Conv"):
        decoder, z = decoder_of(family, (28, 28, 64)), torch.randn(16, 3)
        size = 16 * 28 * 28 * 64 * 4
        gradient = torch.ones(16, 28, 28, 64)
        cpu = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=cpu, profile_memory=True, acc_events=True) as profile:
            decoder(z).backward(gradient)
        taken = [event.nbytes() for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
        assert sum(number >= size / 2 for number in taken) == 1
        assert max(taken) <= size + 64


def test_invalid_covariates_are_refused() -> None:
    encoder, decoder = encoder_of("MLP", covariate_dim=3), decoder_of("Conv", covariate_dim=3)
    x, z = torch.randn(4, 1, 7, 5), torch.randn(4, 3)
    with pytest.raises(
        ValueError, match=r"encoder takes covariates of shape \(\*batch, 3\), but received none; .*with_"
    ):
        encoder(x)
    with pytest.raises(
        ValueError, match=r"last axes sum to 3, but received \(4, 2\) of torch.float64; build it with cov"
    ):
        decoder(z, torch.randn(4, 2))
    with pytest.raises(
        ValueError, match=r"dtype of the encoder, .*received \(4,\) of torch.int64; .*one_hot\(labels, 3\)"
    ):
        encoder(x, torch.arange(4))
    with pytest.raises(ValueError, match="the data are torch.float32 and the encoder torch.float64"):
        encoder(x.float(), torch.randn(4, 3))  # which joining would turn into float64
    with pytest.raises(ValueError, match=r"batch axes of the latent variables, \(4,\).*received \(5, 3\)"):
        decoder(z, torch.randn(5, 3))
    with pytest.raises(
        ValueError, match="the decoder takes no covariates, but received .*; build it with covariate_dim="
    ):
        decoder_of("MLP")(z, torch.randn(4, 3))
    with pytest.raises(ValueError, match="0 covariates or more, but received covariate_dim=-1"):
        encoder_of("MLP", covariate_dim=-1)


def test_invalid_input_is_refused() -> None:
    encoder, decoder = encoder_of("Conv"), decoder_of("MLP")
    with pytest.raises(ValueError, match=r"data of shape \(\*batch, 1, 7, 5\), but received \(2, 5, 7\)"):
        encoder(torch.zeros(2, 5, 7))
    with pytest.raises(ValueError, match="floating-point data, but received torch.uint8; pyrovae.data.load"):
        encoder(torch.zeros(2, 1, 7, 5, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"the data are torch.float32 and the encoder torch.float64; convert"):
        encoder(torch.zeros(2, 1, 7, 5, dtype=torch.float32))
    with pytest.raises(ValueError, match=r"latent variables of shape \(\*batch, 3\), but received \(2, 4\)"):
        decoder(torch.zeros(2, 4))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: networks.MLPEncoder((4,), (3, 2), hidden=(5, 0)), r"one unit, but received widths \(4, 5, 0\)"),
        (lambda: networks.GatedMLPDecoder(2, (4, 1), hidden=(0,)), r"one unit, but received widths \(2, 0\)"),
        (lambda: networks.MLPDecoder(0, (4, 1)), "at least 1 dimension, but received latent_dim=0"),
        (lambda: networks.MLPEncoder((), (3, 2)), r"one element or more, but received x_shape=\(\)"),
        (
            lambda: networks.MLPEncoder((4,), ()),
            r"received out_shape=\(\); build it with out_shape=posterior.param_shape",
        ),
        (lambda: networks.ConvEncoder((64,), (3, 2)), r"images of shape \(C, H, W\) or .* received \(64,\); choose"),
        (lambda: networks.ConvDecoder(2, (1, 3, 8, 1)), r"4 x 4 pixels or more, but received \(1, 3, 8\)"),
        (
            lambda: networks.ResNetEncoder((2, 1, 8, 8), (3, 2)),
            r"ResNetEncoder takes images .* received \(2, 1, 8, 8\)",
        ),
        (lambda: networks.ResNetDecoder(2, (8, 1)), r"ResNetDecoder takes images .* received \(8,\)"),
        (lambda: networks.ConvEncoder((8, 8), (3, 2), channels=()), r"one stage or more, .* received \(\)"),
        (lambda: networks.ConvDecoder(2, (8, 8, 1), channels=(4, 0)), "one channel or more"),
    ],
)
def test_invalid_options_are_refused(make: Callable[[], nn.Module], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()


def test_batch_norm_of_one_value_uses_running_statistics() -> None:
    norm, usual = BatchNorm(3), nn.BatchNorm2d(3)
    x = torch.randn(4, 3, 2, 2)
    assert torch.equal(norm(x), usual(x))
    before = norm.running_mean.clone()
    one = torch.randn(1, 3, 1, 1)
    assert torch.equal(norm(one), usual.eval()(one))
    assert torch.equal(norm.running_mean, before)
    assert decoder_of("ResNet", (4, 4, 2))(torch.randn(3)).shape == (4, 4, 2)


@pytest.mark.slow
def test_pretrained_weights_come_from_torchvision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from torchvision.models import ResNet18_Weights, resnet18

    given = resnet18().state_dict()
    monkeypatch.setattr(ResNet18_Weights, "get_state_dict", lambda self, **options: given)
    encoder = networks.ResNetEncoder((8, 8), (3, 2), pretrained=True)
    state = encoder.resnet.state_dict()
    differ = {
        name for name in given if given[name].shape != state[name].shape or not torch.equal(given[name], state[name])
    }
    assert differ == {"conv1.weight", "fc.weight", "fc.bias"}
    monkeypatch.undo()

    def refuse(*args: object, **kwargs: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr("torch.hub.urlopen", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert build(describe(encoder)).resnet.state_dict().keys() == state.keys()  # needs no network
    with pytest.raises(
        ValueError, match=rf"{tmp_path}/hub/checkpoints, .* could not be fetched .* use pretrained=False"
    ):
        networks.ResNetEncoder((8, 8), (3, 2), pretrained=True)


def few_digits(num: int = 150) -> Data:
    torch.set_default_dtype(torch.float32)
    data = digits().for_form("binary")
    return Data(train=data.train.first(num), validation=data.validation.first(40), test=data.test.first(40), name="few")


def labeled(data: Data) -> Data:
    return data.with_covariates(lambda split: one_hot(split.labels, 10).float())


def vae_of(family: str, data: Data, *, covariate_dim: int = 0, latent_dim: int = 3) -> VAE:
    likelihood, posterior = likelihoods.Bernoulli(data.x_shape), posteriors.DiagonalNormal(latent_dim)
    return VAE(
        prior=priors.StandardNormal(latent_dim),
        decoder=getattr(networks, f"{family}Decoder")(
            latent_dim,
            likelihood.param_shape,
            covariate_dim=covariate_dim,
            initial_params=likelihood.initial_params(data.train.mean()),
            **SMALL_DECODER[family],
        ),
        likelihood=likelihood,
        encoder=getattr(networks, f"{family}Encoder")(
            data.x_shape, posterior.param_shape, covariate_dim=covariate_dim, **SMALL[family]
        ),
        posterior=posterior,
    )


@pytest.mark.parametrize("family", ["MLP", *(pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES if f != "MLP")])
def test_training_evaluation_and_a_saved_run(family: str, tmp_path: Path) -> None:
    data = labeled(few_digits())
    vae = vae_of(family, data, covariate_dim=10)
    before = evaluate(vae.model, vae.guide, data.train, ks=(1,), show_progress=False)
    rate = 1e-3 if family == "ResNet" else 0.01
    training = Training(epochs=2, batch_size=50, learning_rate=rate, device="cpu", patience=None)
    history = fit(vae.model, vae.guide, data, training=training, folder=tmp_path / "run", show_progress=False)
    after = evaluate(vae.model, vae.guide, data.train, ks=(1,), show_progress=False)
    if family == "ResNet":  # running statistics lag behind the weights for the first few steps
        assert history.epochs[1].elbo > history.epochs[0].elbo
        assert math.isfinite(after.elbo.value)
    else:
        assert after.elbo.value > before.elbo.value
    evaluation = evaluate(vae.model, vae.guide, data, ks=(1, 4), show_progress=False)
    again = load(tmp_path / "run").vae
    state = vae.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())
    if family == "ResNet":
        assert again.encoder.resnet.bn1.num_batches_tracked.item() == 6
    other = evaluate(again.model, again.guide, data, ks=(1, 4), show_progress=False)
    assert other.elbo == evaluation.elbo
    assert other.iwae == evaluation.iwae


class LabelOnly(Decoder):
    """A decoder that ignores z: one table of parameters over labels."""

    def __init__(self, latent_dim: int, out_shape: tuple[int, ...]) -> None:
        super().__init__(latent_dim, out_shape, covariate_dim=10)
        self.table = nn.Linear(10, math.prod(out_shape), bias=False)

    def run(self, x: Tensor, covariates: Tensor | None) -> Tensor:
        return self.table(covariates).unflatten(-1, self.out_shape)


@pytest.mark.slow
def test_a_decoder_that_ignores_z_learns_p_of_x_given_label() -> None:
    data = labeled(few_digits(400))
    vae = vae_of("MLP", data, covariate_dim=10)
    vae.decoder = LabelOnly(3, vae.likelihood.param_shape)
    training = Training(
        epochs=60, batch_size=100, learning_rate=0.1, final_learning_rate=1e-3, patience=None, device="cpu"
    )
    fit(vae.model, vae.guide, data, training=training, show_progress=False)
    grey = data.train.stored.float() / (data.train.levels - 1)
    for label in range(10):
        p_x = vae.decode(torch.zeros(3), one_hot(torch.tensor(label), 10).float())
        assert (p_x.mean - grey[data.train.labels == label].mean(0)).abs().mean() < 0.05
    right = evaluate(vae.model, vae.guide, data, ks=(1,), show_progress=False)
    wrong = data.with_covariates(lambda split: one_hot((split.labels + 1) % 10, 10).float())
    mistaken = evaluate(vae.model, vae.guide, wrong, ks=(1,), show_progress=False)
    assert right.reconstruction.value > mistaken.reconstruction.value + 5


def test_interpolation_and_traversal_take_covariates() -> None:
    data = labeled(few_digits())
    vae = vae_of("Conv", data, covariate_dim=10).eval()
    x, c = data.test.fixed()[:4], data.test.covariates[:4]
    means = vae.reconstruct(x, c)
    line = vae.interpolate(x[:2], x[2:], c[:2], num_steps=3)
    assert line.shape == (2, 3, *data.x_shape)
    assert torch.allclose(line[:, 0], means[:2], atol=1e-6)
    assert not torch.allclose(line[:, -1], means[2:], atol=1e-6)  # which have other labels
    code = vae.encode(x[:1], c[:1]).mean[0]
    moved = vae.traverse(x[0], c[0], dims=[1, 0], values=torch.stack([code[1], code[0] + 2]))
    assert moved.shape == (2, 2, *data.x_shape)
    assert torch.allclose(moved[0, 0], means[0], atol=1e-6)
