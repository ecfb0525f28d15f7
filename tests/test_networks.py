"""Conformance of every encoder and decoder; new ones are tested as soon as they are exported."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pyrovae import VAE, likelihoods, networks, posteriors, priors
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


def decoder_of(family: str, out_shape: tuple[int, ...] = (1, 7, 5, 2), **options: int) -> Decoder:
    return getattr(networks, f"{family}Decoder")(3, out_shape, **SMALL_DECODER[family], **options)


def networks_of(family: str, **options: int) -> list[tuple[Encoder | Decoder, tuple[int, ...], tuple[int, ...]]]:
    """Return both networks in evaluation mode, each with the shapes of its input and output."""
    return [
        (encoder_of(family, **options).eval(), (1, 7, 5), (3, 2)),
        (decoder_of(family, **options).eval(), (3,), (1, 7, 5, 2)),
    ]


@pytest.mark.parametrize("family", FAST)
def test_covariates_matter_and_broadcast(family: str) -> None:
    assert {f"{family}Encoder", f"{family}Decoder"} <= set(networks.__all__)
    for network, in_shape, _ in networks_of(family, covariate_dim=4):
        x, label, age = torch.randn(2, 3, *in_shape), torch.randn(2, 3, 3), torch.randn(2, 3, 1)
        out = network(x, label, age)
        assert (network(x, label, age + 1) - out).abs().flatten(2).amax(-1).min() > 1e-6
        repeated = [c[:1].expand(2, -1, -1) for c in (label, age)]
        assert torch.allclose(network(x, torch.cat([label, age], -1)[0]), network(x, *repeated))


@pytest.mark.parametrize("family", FAST)
@pytest.mark.parametrize("x_shape", [(1, 7, 5), (3, 8, 8), (12, 9)])
def test_sizes_and_dtypes_and_gradients_of_every_parameter(family: str, x_shape: tuple[int, ...]) -> None:
    for n_params in (1, 10):
        encoder, decoder = encoder_of(family, x_shape).float(), decoder_of(family, (*x_shape, n_params)).float()
        for network, in_shape, out_shape in ((encoder, x_shape, (3, 2)), (decoder, (3,), (*x_shape, n_params))):
            out = network(torch.randn(6, *in_shape, dtype=torch.float32))
            assert (out.shape, out.dtype) == ((6, *out_shape), torch.float32)
            assert out.is_contiguous() or x_shape[0] == 3
            (out * torch.randn(out.shape)).sum().backward()
            for name, parameter in network.named_parameters():
                assert (parameter.grad != 0).any(), name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("out_shape", [(1, 7, 5, 2), (3, 8, 8, 2), (6, 4, 12)])
def test_decoders_start_at_the_given_parameters(family: str, out_shape: tuple[int, ...]) -> None:
    params, other = torch.randn(2, *out_shape)
    decoder, frozen = decoder_of(family, out_shape).eval(), decoder_of(family, out_shape)
    assert decoder.start(params)
    assert not decoder.start(other), "it is set already"
    assert not frozen.requires_grad_(requires_grad=False).start(params)
    assert torch.allclose(decoder(torch.zeros(2, 3)), params.expand(2, *out_shape), atol=1e-12)
    assert not torch.allclose(decoder(torch.ones(3)), params)


@pytest.mark.parametrize("family", FAST)
def test_expanded_axes_are_run_once(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for network, in_shape, out_shape in networks_of(family, covariate_dim=2):
        rows: list[int] = []
        run = network.run
        monkeypatch.setattr(network, "run", lambda x, c, run=run, rows=rows: rows.append(len(x)) or run(x, c))
        x, c = torch.randn(4, *in_shape), torch.randn(4, 2)
        out = network.train()(x.expand(5, 4, *in_shape), c)
        assert out.shape == (5, 4, *out_shape)
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
    wide = networks.GatedMLPEncoder((400,), (3, 2)).layers[0].weight
    assert wide.std().item() == pytest.approx(math.sqrt(2 / 400), rel=0.02)


def test_many_parameters_share_one_map() -> None:
    out_shape = (1, 8, 8, 256)
    decoder = networks.MLPDecoder(3, out_shape, hidden=(5,), features=4)
    shapes = [tuple(parameter.shape) for parameter in decoder.parameters()]
    assert shapes[2:] == [(64 * 4, 5), (64 * 4,), (256, 4), (64, 256)]
    z = torch.randn(2, 3)
    features = decoder.layers[-1][:2](decoder.layers[:-1](z)).unflatten(1, (64, 4))  # (2, 64, 4)
    shared = decoder.layers[-1][-1]
    by_hand = features @ shared.weight.T + shared.bias
    assert torch.allclose(decoder(z), by_hand.reshape(2, *out_shape))


def called(part: Callable[..., Tensor], *tensors: Tensor) -> Callable[[], object]:
    return lambda: part(*tensors)


ENCODER, DECODER = encoder_of("MLP", covariate_dim=3).double(), decoder_of("Conv", covariate_dim=3).double()
X, Z = torch.zeros(4, 1, 7, 5).double(), torch.zeros(4, 3).double()


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (called(ENCODER, X), r"encoder takes covariates .* sum to 3 .*, but received none; .*with_covariates"),
        (called(DECODER, Z, Z[:, :2]), r"last axes sum to 3 .*, but received \(4, 2\) of torch.float64"),
        (called(ENCODER, X, torch.arange(4)), r"received \(4,\) of torch.int64; .*one_hot\(labels\)"),
        (called(ENCODER, X.float(), Z), "the data are torch.float32 and the encoder torch.float64"),
        (called(DECODER, Z, torch.zeros(5, 3).double()), r"broadcast to \(4,\), .*latent variables, .*\(5, 3\)"),
        (
            called(decoder_of("MLP"), Z.float(), Z),
            "takes no covariates, but received .*; leave out labels .* or build it",
        ),
        (lambda: encoder_of("MLP", covariate_dim=-1), "`covariate_dim` of MLPEncoder must be an integer >= 0"),
        (called(ENCODER, X.mT), r"data of shape \(\*batch, 1, 7, 5\), but received \(4, 1, 5, 7\)"),
        (called(ENCODER, X.byte()), "floating-point data, but received torch.uint8; give x.float"),
        (lambda: networks.GatedMLPDecoder(2, (4, 1), hidden=(5, 0)), "`hidden` of .* must be integers >= 1, got .5,"),
        (lambda: networks.MLPDecoder(0, (4, 1), features=0), "`latent_dim` of MLPDecoder must be an integer >= 1, got"),
        (lambda: networks.ConvEncoder((64,), (3, 2)), r"images of shape \(C, H, W\) or .* received \(64,\); choose"),
        (lambda: networks.ConvDecoder(2, (1, 3, 8, 1)), r"4 x 4 pixels or more, but received \(1, 3, 8\)"),
        (lambda: networks.ResNetEncoder((2, 1, 8, 8), (3, 2)), r"ResNetEncoder takes images .*\(2, 1, 8, 8\)"),
        (lambda: networks.ResNetDecoder(2, (8, 1)), r"ResNetDecoder takes images .* received \(8,\)"),
        (lambda: networks.ConvDecoder(2, (8, 8, 1), channels=(4, 0)), "`channels` of .* must be integers >= 1"),
    ],
)
def test_invalid_networks_and_input_are_refused(make: Callable[[], object], match: str) -> None:
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


@pytest.mark.slow
def test_pretrained_weights_come_from_torchvision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from torchvision.models import ResNet18_Weights, resnet18

    given = resnet18().state_dict()
    with monkeypatch.context() as local:
        local.setattr(ResNet18_Weights, "get_state_dict", lambda self, **options: given)
        encoder = networks.ResNetEncoder((8, 8), (3, 2), pretrained=True)
    state = encoder.resnet.state_dict()
    same = {name for name in given if given[name].shape == state[name].shape and torch.equal(given[name], state[name])}
    assert given.keys() - same == {"conv1.weight", "fc.weight", "fc.bias"}

    monkeypatch.setattr("torch.hub.urlopen", lambda *args, **options: pytest.fail("it needs the network"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert build(describe(encoder)).resnet.state_dict().keys() == state.keys()


def test_reconstruct_interpolate_and_traverse_take_covariates() -> None:
    shape = (1, 7, 5)
    vae = VAE(
        prior=priors.StandardNormal(3),
        decoder=decoder_of("Conv", (*shape, 1), covariate_dim=10),
        likelihood=likelihoods.Bernoulli(shape),
        encoder=encoder_of("Conv", covariate_dim=10),
        posterior=posteriors.DiagonalNormal(3),
    )
    x, c = torch.rand(4, *shape).round(), torch.eye(10)[:4]
    means, codes = vae.reconstruct(x, c), vae.encode(x, c).mean
    assert torch.allclose(means, vae.decode(codes, c).mean)
    line = vae.interpolate(x[:2], x[2:], c[:2], num_steps=3)
    assert line.shape == (2, 3, *shape)
    assert torch.allclose(line[:, 0], means[:2])
    assert torch.allclose(line[:, -1], vae.reconstruct(x[2:], c[:2]))  # with the labels of the start
    moved = vae.traverse(x[0], c[0], dims=[1, 0], values=torch.stack([codes[0, 1], codes[0, 0] + 2]))
    assert moved.shape == (2, 2, *shape)
    assert torch.allclose(moved[0, 0], means[0])
    assert torch.allclose(moved[1, 1], vae.decode(codes[0] + torch.tensor([2.0, 0.0, 0.0]), c[0]).mean)
