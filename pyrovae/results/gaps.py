"""Where the gap between the ELBO and log p(x) comes from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pyrovae.results.estimate import Estimate
from pyrovae.results.table import Table, Tabled


@dataclass(frozen=True)
class Gaps(Tabled):
    """Three bounds on log p(x) of the same data, and the steps between them, nats per datum.

    ``bound - ELBO = (refined - ELBO) + (bound - refined)``, the amortization gap and the approximation gap

    Steps are differences datum by datum, and so are their standard errors over the data.

    *Inference suboptimality in variational autoencoders (Cremer, Li, Duvenaud 2018)*, https://arxiv.org/abs/1801.03558

    Attributes:
        elbo: of the guide, with closed-form KL terms where they are right.
        refitted: the ELBO of the guide after its own parameters were fitted to these data.
        refined: the ELBO of a diagonal Gaussian over the unconstrained latent vector, found for each datum by itself.
        bound: the tightest bound, an estimate of log p(x) from below; its name is the label.
        amortization: refined - ELBO: what one encoder for all data costs; negative where the guide has a wider family
            than the diagonal Gaussian.
        overfitting: refitted - ELBO, the part of the amortization gap that an encoder fitted to these data would not
            have.
        approximation: bound - refined: what a diagonal Gaussian costs.
        total: bound - ELBO.
        num_data: how many data there are.
        seed: of all random streams.
        settings: draws, steps, epochs, batch size, device and dtype.
        notes: sentences on how the bounds were found, and on what should not be read off them.
        data: their name.
        per_datum: "ELBO", "refitted", "refined" and "bound", each ``(N,)``; not part of the JSON.

    """

    elbo: Estimate
    refitted: Estimate
    refined: Estimate
    bound: Estimate
    amortization: Estimate
    overfitting: Estimate
    approximation: Estimate
    total: Estimate
    num_data: int
    seed: int
    settings: dict[str, Any]
    notes: tuple[str, ...] = ()
    data: str = "the given data"
    per_datum: dict[str, Tensor] = field(repr=False, compare=False, default_factory=dict)

    @property
    def estimates(self) -> tuple[Estimate, ...]:
        """The bounds, then the steps between them."""
        bounds = (self.elbo, self.refitted, self.refined, self.bound)
        return (*bounds, self.amortization, self.overfitting, self.approximation, self.total)

    def tables(self) -> tuple[Table, ...]:
        """Return the bounds, and the steps between them."""
        rows = [(self.elbo, ""), (self.refitted, "  "), (self.refined, ""), (self.bound, "")]
        bounds = Table(
            header=("", "nats", "se data", "se MC"),
            rows=tuple(
                (indent + bound.label, *bound.cells())
                for bound, indent in rows
                if bound.value is not None or not indent
            ),
            title=(
                f"Where the gap comes from, on {self.data}: {self.num_data} data, seed {self.seed}",
                "Bounds on log p(x) from below, nats per datum, larger is better.",
            ),
        )
        rows = [(self.amortization, ""), (self.overfitting, "  "), (self.approximation, ""), (self.total, "")]
        steps = Table(
            header=("gap", "nats", "se data", "se MC", "share"),
            rows=tuple(
                (indent + step.name, *step.cells(signed=True), self._share(step))
                for step, indent in rows
                if step.value is not None or not indent
            ),
            title=("Steps between them; standard errors are of differences datum by datum.",),
            notes=(*self.notes, *self._whys()),
        )
        return bounds, steps

    def share(self, step: Estimate) -> float | None:
        """Return the part of the total gap that a step is, None where that gap is not resolved or a part negative."""
        parts = [self.amortization.value, self.approximation.value, self.total.value, step.value]
        if any(part is None or part < 0 for part in parts) or not self.total.value or step.value is None:
            return None
        noise = max(self.total.se_data or 0.0, self.total.se_monte_carlo or 0.0)
        return None if self.total.value < 3 * noise else step.value / self.total.value

    def _share(self, step: Estimate) -> str:
        share = self.share(step)
        return "-" if share is None else f"{100 * share:.0f} %"

    def _whys(self) -> list[str]:
        """Return the reasons for numbers that are missing, each once."""
        whys: dict[str, list[str]] = {}
        for estimate in self.estimates:
            if estimate.why and estimate is not self.refitted:  # whose reason is that of the over-fitting
                whys.setdefault(estimate.why, []).append(estimate.label)
        return [why if len(names) > 3 else f"{', '.join(names)}: {why}" for why, names in whys.items()]
