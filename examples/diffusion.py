"""A diffusion model as a deep VAE: T latent variables, and the KL of each.

    python examples/diffusion.py     the digits, T = 100; 5 minutes on two cores (--data mnist takes hours)

The guide draws x_T given x_0, then x_(t-1) given x_t and x_0, as the model does: each KL has a closed form. The network
predicts v, from which the noise in x_t follows; the decoder is q(x_1 | x_0), normalized over the levels of x_0.
`OneStep` draws one t per datum and calls the network once, for any T. Its simple loss, the squared error of the noise,
gives the better test ELBO here, perhaps because its gradients have less noise and it spends more on noisy x_t. The
picture shows the KL of each x_t; below, four samples of the last model (cosine, simple) from x_T to x_1, in rows.
"""

import argparse

import pyro
import torch
from pyro.distributions import Normal, TorchDistribution
from torch import Tensor, nn

import pyrovae
from pyrovae import objectives, report

# alpha_bar at s = t / T, of https://arxiv.org/abs/2006.11239 and https://arxiv.org/abs/2102.09672
SCHEDULES = {"linear": lambda s: (-0.1 * s - 9.95 * s**2).exp(), "cosine": lambda s: (torch.pi / 2 * s).cos() ** 2}


class Diffusion(nn.Module):
    """Model and guide of levels x ``(B, C, H, W)``; x_0 is x scaled to [-1, 1], and x_t are latent."""

    def __init__(self, likelihood: pyrovae.likelihoods.Categorical, schedule: str, num_steps: int) -> None:
        super().__init__()
        self.likelihood, self.T, shape = likelihood, num_steps, torch.Size(likelihood.x_shape)
        below = 1 - SCHEDULES[schedule](torch.linspace(0, 1, 100_001)) < (2 / (likelihood.levels - 1)) ** 2
        alpha_bar = 1e-5 + (1 - 1e-5) * SCHEDULES[schedule](torch.linspace(below.sum() / 1e5, 1, num_steps))
        self.register_buffer("alpha_bar", torch.cat([torch.ones(1), alpha_bar]).view(-1, 1, 1, 1))  # of t = 0, ..., T
        self.embedding = nn.Embedding(num_steps + 1, 32)  # of t
        self.network = pyrovae.networks.MLPDecoder(shape.numel() + 32, shape, hidden=(256,) * 3, activation=nn.SiLU)

    def forward_step(self, x_0: Tensor, t: int | Tensor, x_t: Tensor) -> TorchDistribution:  # q(x_(t-1) | x_t, x_0)
        now, before, alpha = self.alpha_bar[t], self.alpha_bar[t - 1], self.alpha_bar[t] / self.alpha_bar[t - 1]
        mean = (alpha.sqrt() * (1 - before) * x_t + before.sqrt() * (1 - alpha) * x_0) / (1 - now)
        return Normal(mean, ((1 - alpha) * (1 - before) / (1 - now)).sqrt()).to_event(3)

    def reverse_step(self, t: int | Tensor, x_t: Tensor) -> TorchDistribution:  # p(x_(t-1) | x_t)
        now, time = self.alpha_bar[t], self.embedding.weight[t].expand(*x_t.shape[:-3], -1)
        noise = (1 - now).sqrt() * x_t + now.sqrt() * self.network(torch.cat([x_t.flatten(-3), time], -1))
        return self.forward_step((x_t - (1 - now).sqrt() * noise) / now.sqrt(), t, x_t)

    def decode(self, x_1: Tensor) -> TorchDistribution:  # p(x | x_1), from logits (*batch, C, H, W, levels)
        x_0, now = torch.linspace(-1, 1, self.likelihood.levels).to(x_1), self.alpha_bar[1]
        return self.likelihood(Normal(now.sqrt() * x_0, (1 - now).sqrt()).log_prob(x_1[..., None]))

    def times(self, x: Tensor, u: Tensor | None) -> list:  # T, ..., 2; or, for a number u, one t of each datum
        share = None if u is None else (u + torch.arange(len(x)).to(u) / len(x)) % 1
        return [*range(self.T, 1, -1)] if share is None else [2 + (share * (self.T - 1)).long()]

    def model(self, x: Tensor, u: Tensor | None = None) -> None:
        pyro.module("diffusion", self)
        with pyro.plate("data", len(x)):
            x_t = pyro.sample(f"x_{self.T}", Normal(torch.zeros_like(x), 1.0).to_event(3))
            for i, t in enumerate(self.times(x, u), 1):
                x_t = pyro.sample(f"x_{self.T - i}", self.reverse_step(t, x_t))
            pyro.sample("x", self.decode(x_t), obs=x)

    def guide(self, x: Tensor, u: Tensor | None = None) -> None:
        x_0, first = 2 * x / (self.likelihood.levels - 1) - 1, self.alpha_bar[self.times(x, u)[0]]
        with pyro.plate("data", len(x)):
            x_t = pyro.sample(f"x_{self.T}", Normal(first.sqrt() * x_0, (1 - first).sqrt()).to_event(3))
            for i, t in enumerate(self.times(x, u), 1):
                x_t = pyro.sample(f"x_{self.T - i}", self.forward_step(x_0, t, x_t))


class OneStep(objectives.Objective):
    """(T - 1) KL_t for one t of each datum, on average -ELBO but for constants; or the squared error of the noise."""

    def __init__(self, diffusion: Diffusion, loss: str) -> None:
        super().__init__()
        self.diffusion, self.simple = diffusion, "simple" in loss

    def terms(self, model: pyrovae.programs.Program, guide: pyrovae.programs.Program) -> objectives.Terms:
        name, alpha_bar = f"x_{self.diffusion.T - 1}", self.diffusion.alpha_bar.flatten()  # of x_(t-1)
        ((model_trace, guide_trace),) = self.traces(model, guide, u := torch.rand((), device=alpha_bar.device))
        kl, _ = objectives.closed_form_kl(name, model_trace, guide_trace)
        (t,), snr = self.diffusion.times(kl, u), alpha_bar / (1 - alpha_bar)
        weight = snr[t] / (snr[t - 1] - snr[t]) if self.simple else self.diffusion.T - 1
        loss = objectives.scaled_sum(weight * kl, guide_trace.nodes[name])
        return objectives.Terms(loss, kl.new_zeros(()), (self.diffusion.T - 1) * kl.sum().detach())


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="digits")
    parser.add_argument("--smoke", action="store_true", help="run for a few seconds, as a test")
    parser.add_argument("--picture", type=pyrovae.report.picture_file, default="runs/diffusion.png", help="PNG file")
    options = parser.parse_args()
    T, num_data, epochs, first = (20, 10, 1, 1500) if options.smoke else (100, 300, 500, None)
    takes = "A few seconds" if options.smoke else "About 5 minutes on two cores for the digits"
    print(f"{takes}: 2 schedules, 2 losses, {epochs} epochs each, T = {T}.")
    data, evaluations = pyrovae.data.load_or_exit(options.data, form="levels", images=True, first=first), {}
    for name in (f"{schedule}, {loss}" for schedule in SCHEDULES for loss in ("ELBO", "simple")):
        torch.manual_seed(0)
        vae = Diffusion(pyrovae.likelihoods.Categorical.for_data(data), name.split(",")[0], T)
        pyrovae.fit(vae, data.train, objective=OneStep(vae, name), epochs=epochs, final_learning_rate=1e-5)
        evaluations[name] = pyrovae.evaluate(vae, data.test, ks=(1, 5, 50), num_data=num_data)
        print(f"\n{name}\n{evaluations[name].bounds_table()}\n{evaluations[name].recommendation.reason}")
    sites = pyro.poutine.trace(pyro.poutine.uncondition(vae.model)).get_trace(data.test.fixed()[:4]).nodes
    x_t = {f"x_{t}": sites[f"x_{t}"]["value"].detach() for t in (*range(T, 1, -T // 10), 1)}
    upper, lower = report.style.blank(8.0, 6.0).subplots(2, 1)
    report.panels.draw_tiles(torch.stack([*x_t.values()], 1), limits=(-1, 1), title="", column_labels=[*x_t], ax=lower)
    report.kl_by_site(evaluations, ax=upper).savefig(options.picture, dpi=100, format="png")
    print(f"picture: {options.picture}")
