"""Gain in ELBO from other priors, with encoder and decoder unchanged."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from pyrovae.results.estimates import Estimate
from pyrovae.results.tables import Number, Table, Tabled


@dataclass(frozen=True, repr=False)
class PriorGains(Tabled):
    """Gain in ELBO from each of several fitted priors, beside the limit of all gains.

    Attributes:
        gains: mean over the test data of E_q(z | x)[log p'(z) - log p(z)] for each fitted prior p', by name.
        validation: the same over the validation data, which chose the step at which each fit ends and the best prior.
        num_parameters: learned numbers of each prior.
        limit: KL(q(z) || p(z)) with q(z) over the test data, which the gain of no prior exceeds.
        best: name of the prior with the largest gain minus two standard errors on the validation data; None where none
            is finite.
        verdict: "gain" if the gain of the best prior exceeds two standard errors on validation and test data, otherwise
            "no gain".
        current: name of the class of the prior p.
        num_data: N, number of test data.
        num_draws: draws of z for each datum.
        seed: seed of all random streams.
        left_out: reasons why default priors were left out, by name.
        data: name of the test data.
        priors: the fitted priors, by name; not part of the JSON.
        per_datum: the gains of each prior ``(N,)``; not part of the JSON.

    """

    gains: dict[str, Estimate]
    validation: dict[str, Estimate]
    num_parameters: dict[str, int]
    limit: Estimate
    best: str | None
    verdict: str
    current: str
    num_data: int
    num_draws: int
    seed: int
    left_out: dict[str, str]
    data: str
    priors: Mapping[str, nn.Module] = field(repr=False, compare=False, default_factory=dict)
    per_datum: dict[str, Tensor] = field(repr=False, compare=False, default_factory=dict)

    @property
    def reason(self) -> str:
        """Reason for the verdict, a clause."""
        if self.best is None:
            return "no prior has finite gains on the validation data"
        gain = self.gains[self.best]
        value = Number(gain.value, signed=True, error=gain.se_data)
        text = f"the best prior on the validation data, {self.best}, changes the ELBO of the test data by {value}"
        if self.verdict == "gain":
            return text
        return f"{text}; a gain must exceed two standard errors on both parts of the data"

    def tables(self) -> tuple[Table, ...]:
        """Return the gains and their limit."""
        rows: list[tuple[Any, ...]] = []
        for name, gain in self.gains.items():
            checked = self.validation[name]
            on_validation = Number(checked.value, signed=True, error=checked.se_data)
            rows.append((name, *gain.cells(signed=True), on_validation, str(self.num_parameters[name])))
        rows.append(("limit: KL(q(z) || p(z))", *self.limit.cells(signed=True), "", ""))
        estimates = {"limit": self.limit} | self.gains
        return (
            Table(
                ("prior", "gain", "se data", "se MC", "on validation data", "parameters"),
                tuple(rows),
                title=(
                    f"Other priors in place of {self.current}, {self.data}: {self.num_data} data, seed {self.seed}",
                    "Gain in ELBO with the same encoder and decoder, nats per datum, larger is better.",
                    f"Would another prior help? {self.verdict}: {self.reason}.",
                ),
                notes=(
                    "limit: no prior gains more with this encoder; with q(z) over these data, the limit is loose where "
                    f"I(x; z) is near log {self.num_data} = {math.log(self.num_data):.3f}",
                    "training with another prior changes encoder and decoder too, and its gain may differ",
                    *(f"{name}: {estimate.why}" for name, estimate in estimates.items() if estimate.why),
                    *(f"{name} is left out: {why}" for name, why in self.left_out.items()),
                ),
            ),
        )
