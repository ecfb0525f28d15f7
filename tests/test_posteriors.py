"""Posteriors: precision, particles, gradients at draws, closed forms of the KL."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable

import pyro.distributions as dist
import pytest
import torch
from conftest import menu
from torch import Tensor
from torch.distributions import kl_divergence

from pyrovae import posteriors
from pyrovae.distributions import FlowLayer, LowRankNormal, NormalFlow, TriangularNormal
from pyrovae.posteriors import Posterior
from pyrovae.posteriors.iaf import AutoregressiveLayer
from pyrovae.priors.flow import CouplingLayer


def moved(part: type[Posterior], latent_dim: int, **options: object) -> Posterior:
    """Return a posterior whose parameters, if it has any, are not where they start."""
    posterior = part(latent_dim, **options)
    with torch.no_grad():
        for parameter in posterior.parameters():
            parameter.add_(torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
    return posterior


@pytest.mark.parametrize("part", menu(posteriors))
def test_expanded_posteriors_are_the_same_for_every_particle(part: type[Posterior]) -> None:
    posterior = moved(part, 3)
    params = torch.randn(4, *posterior.param_shape)
    q_z = posterior(params)
    wide = q_z.expand([6, 4])
    assert type(wide) is type(q_z)
    z = wide.rsample()
    assert wide.rsample((2,)).shape == (2, 6, 4, 3)
    rows = torch.stack([torch.stack([posterior(params[b]).log_prob(z[k, b]) for b in range(4)]) for k in range(6)])
    for fn in (q_z, wide):
        assert torch.allclose(fn.log_prob(z), rows, atol=1e-11)
    assert wide.log_prob(z[0, 0]).shape == (6, 4)
    assert torch.allclose(wide.log_prob(z.unsqueeze(1)[:, :1]), q_z.log_prob(z).unsqueeze(1).expand(6, 6, 4))


@pytest.mark.parametrize("part", menu(posteriors))
def test_total_and_partial_gradients_of_log_q_at_a_draw(part: type[Posterior]) -> None:
    posterior = moved(part, 3)
    params = torch.randn(5, *posterior.param_shape, requires_grad=True)
    values = (params, *posterior.parameters())

    def gradients(of: Callable[[dist.TorchDistribution, Tensor], Tensor], draw: str = "rsample") -> list[Tensor]:
        torch.manual_seed(3)
        q_z = posterior(params)
        log_q = of(q_z, getattr(q_z, draw)()).sum()
        return list(torch.autograd.grad(log_q, values, allow_unused=True, materialize_grads=True))

    total = gradients(lambda q_z, z: q_z.log_prob(z))
    along_the_path = gradients(lambda q_z, z: q_z.log_prob(z.clone()))
    score = gradients(lambda q_z, z: q_z.log_prob(z.detach()))
    without_gradients = gradients(lambda q_z, z: q_z.log_prob(z), draw="sample")  # log q has the score all the same
    for pair in (*zip(total, along_the_path, strict=True), *zip(without_gradients, score, strict=True)):
        assert torch.allclose(*pair, atol=1e-10)
    assert any(value.abs().max() > 0.1 for value in score)


@pytest.mark.parametrize("part", menu(posteriors))
def test_nothing_is_left_of_an_earlier_state(part: type[Posterior]) -> None:
    posterior = moved(part, 3)
    params = torch.randn(5, *posterior.param_shape)
    q_z = posterior(params)
    z = q_z.sample()
    before = q_z.log_prob(z)
    copied = copy.deepcopy(posterior)
    assert torch.allclose(copied(params).log_prob(z), before, atol=1e-10)
    second = q_z.sample()
    assert torch.allclose(q_z.log_prob(z), before, atol=1e-10)  # not that of the latest draw
    with torch.no_grad():
        for parameter in posterior.parameters():
            parameter.mul_(1.3)
        assert torch.allclose(q_z.log_prob(second), q_z.log_prob(second.clone()), atol=1e-10)
        second.add_(1.0)  # the value itself, in place
        assert torch.allclose(q_z.log_prob(second), q_z.log_prob(second.clone()), atol=1e-10)
    assert torch.allclose(copied(params).log_prob(z), before, atol=1e-10)


@pytest.mark.parametrize("part", menu(posteriors))
def test_log_q_in_float32(part: type[Posterior]) -> None:
    posterior = part(50)
    params = torch.randn(20, *posterior.param_shape).float()
    narrow = copy.deepcopy(posterior).float()
    posterior = copy.deepcopy(narrow).double()
    exact = posterior(params.double())
    q_z = narrow(params)
    z = q_z.sample((100,))
    assert z.dtype == torch.float32
    for value in (z, z.clone()):  # a draw, and a value from elsewhere
        assert (q_z.log_prob(value) - exact.log_prob(z.double())).abs().max() < 5e-4


@pytest.mark.parametrize("part", menu(posteriors))
def test_clamp_cuts_the_value_and_passes_the_gradient(part: type[Posterior]) -> None:
    posterior = part(3, min_log_variance=-30.0, max_log_variance=20.0)
    params = torch.zeros(posterior.param_shape)
    places = (torch.arange(3), 1 + torch.arange(3)) if part is posteriors.FullNormal else (torch.arange(3), 1)
    params[places] = torch.tensor([-50.0, 1.5, 50.0])
    params.requires_grad_()
    q_z = posterior(params)
    log_variance = 2 * q_z.scale.log() if isinstance(q_z, NormalFlow) else q_z.variance.log()
    assert log_variance.tolist() == pytest.approx([-30.0, 1.5, 20.0])
    log_variance.sum().backward()
    assert params.grad[places].tolist() == pytest.approx([1.0, 1.0, 1.0])


def test_log_q_is_right_in_float32_at_the_default_bound() -> None:
    torch.set_default_dtype(torch.float32)
    mean = torch.linspace(-4, 4, 1000)
    q_z = posteriors.DiagonalNormal(1)(torch.stack([mean, torch.full_like(mean, -1e3)], -1).unsqueeze(-2))
    noise = torch.randn(1000, 1)
    z = q_z.mean + q_z.base_dist.scale * noise
    exact = dist.Normal(0.0, 1.0).log_prob(noise.double()) - q_z.base_dist.scale.double().log()
    assert (q_z.log_prob(z) - exact.squeeze(-1)).abs().max() < 2e-4  # 0.1 with min_log_variance=-30


# each against a covariance written down


def full_covariance(params: Tensor) -> Tensor:
    scale = torch.diag_embed((0.5 * params[..., 1:].diagonal(dim1=-2, dim2=-1)).exp())
    lower = torch.zeros(6, 4, 4)
    for i in range(4):
        for j in range(i):
            lower[:, i, j] = (params[:, i, 1 + j] + params[:, j, 1 + i]) / math.sqrt(8)
    tril = scale @ (torch.eye(4) + lower)
    return tril @ tril.mT


def low_rank_covariance(params: Tensor) -> Tensor:
    scale = torch.diag_embed((0.5 * params[..., 1]).exp())
    factors = params[..., 2:] / math.sqrt(3)
    return scale @ (torch.eye(4) + factors @ factors.mT) @ scale


@pytest.mark.parametrize(
    ("posterior", "covariance_of"),
    [(posteriors.FullNormal(4), full_covariance), (posteriors.LowRankNormal(4, rank=3), low_rank_covariance)],
)
def test_correlated_normals_against_their_formula(posterior: Posterior, covariance_of: Callable[..., Tensor]) -> None:
    params, z = torch.randn(6, 4, 5), torch.randn(3, 6, 4)
    q_z = posterior(params)
    exact = dist.MultivariateNormal(params[..., 0], covariance_matrix=covariance_of(params))
    assert torch.allclose(q_z.log_prob(z), exact.log_prob(z), atol=1e-10)
    assert torch.allclose(q_z.covariance_matrix, exact.covariance_matrix)
    assert torch.allclose(q_z.stddev, exact.stddev)
    assert torch.allclose(q_z.expand([2, 6]).entropy(), exact.entropy())


def test_low_rank_normal_does_not_cancel_in_float32() -> None:
    loc, factor = torch.randn(64, 50).float(), 0.5 * torch.randn(64, 50, 2).float()
    diagonal = torch.full((64, 50), 0.05**2).float()
    ours = LowRankNormal(loc, factor, diagonal)
    z = ours.sample((20,))
    theirs = dist.LowRankMultivariateNormal(loc, factor, diagonal)
    exact = dist.LowRankMultivariateNormal(loc.double(), factor.double(), diagonal.double()).log_prob(z.double())
    assert (ours.log_prob(z) - exact).abs().max() < 2e-4
    assert (theirs.log_prob(z) - exact).abs().max() > 2e-3


LAYERS: list[tuple[Callable[..., FlowLayer], int, tuple[int, ...]]] = [
    *itertools.product((AutoregressiveLayer,), (1, 5), ((64,), (7, 9))),
    *itertools.product((CouplingLayer,), (2, 5), ((64,), (7, 9))),
]


@pytest.mark.parametrize(("layer", "latent_dim", "hidden"), LAYERS)
@pytest.mark.parametrize("reverse", [False, True])
def test_flow_layers_against_their_jacobian(
    layer: Callable[..., FlowLayer], latent_dim: int, hidden: tuple[int, ...], *, reverse: bool
) -> None:
    is_autoregressive = layer is AutoregressiveLayer
    options = {"context_size": 4, "backwards": reverse} if is_autoregressive else {"swapped": reverse}
    flow = layer(latent_dim, hidden=hidden, **options)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(torch.randn_like(parameter))
    context, value = torch.randn(4), torch.randn(latent_dim)
    out, log_det = flow(value, context)
    jacobian = torch.autograd.functional.jacobian(lambda value: flow(value, context)[0], value)
    assert torch.linalg.slogdet(jacobian).logabsdet.item() == pytest.approx(log_det.item(), abs=1e-12)
    ordered = jacobian.mT if reverse else jacobian
    assert torch.equal(ordered.triu(1), torch.zeros_like(ordered))
    assert (ordered.tril(-1) != 0).any() == (latent_dim > 1)
    if is_autoregressive and hidden == (64,):
        assert (ordered.tril(-1) != 0).sum() == latent_dim * (latent_dim - 1) // 2
    back, same = flow.inverse(out, context)
    assert torch.allclose(back, value, atol=1e-9)
    assert torch.allclose(same, log_det, atol=1e-9)
    assert torch.allclose(flow(value, -context)[0], out) is not is_autoregressive


def test_iaf_starts_near_its_base_and_sees_its_context() -> None:
    posterior = posteriors.IAF(5)
    params = torch.randn(30, 5, 4)
    q_z, base = posterior(params), posteriors.DiagonalNormal(5)(params[..., :2])
    assert (q_z.mean - base.mean).abs().max() < 1.0
    assert (q_z.stddev / base.stddev - 0.78).abs().max() < 0.15  # the gates, 0.88^2
    params[..., 2:] += 1
    assert (posterior(params).mean - q_z.mean).abs().min() > 0


def test_moments_of_iaf_leave_the_stream_alone_and_do_not_cancel() -> None:
    q_z = posteriors.IAF(2)(torch.randn(4, 2, 4))
    state = torch.get_rng_state()
    assert torch.equal(q_z.stddev, q_z.expand([4]).stddev)
    assert torch.equal(torch.get_rng_state(), state)
    far = torch.tensor([[300.0, -9.0], [-300.0, -9.0]])
    posterior = posteriors.IAF(2, num_context=0)
    exact = posterior(far).stddev
    narrow = posterior.float()(far.float()).stddev
    assert (narrow / exact - 1).abs().max() < 0.2  # other draws; a difference of squares would be noise


# closed forms of the KL


def normals(latent_dim: int, batch: tuple[int, ...]) -> dict[str, dist.TorchDistribution]:
    loc, scale = torch.randn(*batch, latent_dim), torch.rand(*batch, latent_dim) + 0.5
    tril = torch.randn(*batch, latent_dim, latent_dim).tril(-1) + torch.diag_embed(scale)
    factor = torch.randn(*batch, latent_dim, 2)
    return {
        "diagonal": dist.Normal(loc, scale).to_event(1),
        "full": TriangularNormal(loc, scale_tril=tril),
        "full of Pyro": dist.MultivariateNormal(loc, scale_tril=tril),
        "low rank": LowRankNormal(loc, factor, scale),
        "low rank of Pyro": dist.LowRankMultivariateNormal(loc, factor, scale),
    }


def covariance(fn: dist.TorchDistribution) -> Tensor:
    return torch.diag_embed(fn.variance) if isinstance(fn, dist.Independent) else fn.covariance_matrix


def kl_by_formula(q: dist.TorchDistribution, p: dist.TorchDistribution) -> Tensor:
    """``(tr(P^-1 Q) + (m - mu)^T P^-1 (m - mu) - D + log det P - log det Q) / 2`` with covariances as matrices."""
    inverse = torch.linalg.inv(covariance(p))
    difference = (q.mean - p.mean).unsqueeze(-1)
    trace = (inverse @ covariance(q)).diagonal(dim1=-2, dim2=-1).sum(-1)
    squares = (difference.mT @ inverse @ difference).squeeze(-1).squeeze(-1)
    log_dets = torch.logdet(covariance(p)) - torch.logdet(covariance(q))
    return 0.5 * (trace + squares - q.event_shape[0] + log_dets)


PAIRS = [(q, p) for q in normals(1, ()) for p in normals(1, ())]


@pytest.mark.parametrize(("q_name", "p_name"), PAIRS)
def test_kl_of_normals_against_their_formula(q_name: str, p_name: str) -> None:
    for batches in [((), ()), ((4,), ()), ((), (4,)), ((3, 4), (4,)), ((3, 4), (3, 4))]:
        q, p = normals(3, batches[0])[q_name], normals(3, batches[1])[p_name]
        assert torch.allclose(kl_divergence(q, p), kl_by_formula(q, p), atol=1e-9)


def test_no_closed_form_where_there_is_none() -> None:
    laplace, plane = dist.Laplace(torch.zeros(3), 1.0).to_event(1), dist.Normal(torch.zeros(2, 3), 1.0).to_event(2)
    pairs = [(laplace, normals(3, ())["low rank"]), (normals(2, ())["diagonal"], normals(3, ())["low rank"])]
    for name in ("full", "low rank"):
        pairs += [(normals(3, ())[name], laplace), (normals(2, ())[name], normals(3, ())["diagonal"])]
        pairs.append((normals(3, (2,))[name], plane))
    for pair in pairs:
        with pytest.raises(NotImplementedError):
            kl_divergence(*pair)
