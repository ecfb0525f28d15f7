"""What is known of a model/guide pair once it has been inspected."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import RelaxedBernoulliStraightThrough, RelaxedOneHotCategoricalStraightThrough
from pyro.distributions.relaxed_straight_through import QuantizeBernoulli, QuantizeCategorical
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyrovae.data.transform import BaseMeasure

Program = Callable[..., Any]

PARTICLE_PLATE = "pyrovae particles"
_STRAIGHT_THROUGH = (RelaxedBernoulliStraightThrough, RelaxedOneHotCategoricalStraightThrough)


@dataclass(frozen=True)
class Latent:
    """One latent site.

    Attributes:
        plate_dims: batch dimensions of the plates that it lies in, negative.
        event_dim: number of its event axes.
        num_elements: its elements per datum.
        quantize: rounding of z by a straight-through distribution of Pyro: the programs see the result, and z itself,
            which has the density, is the value before. None for other distributions.

    """

    plate_dims: tuple[int, ...]
    event_dim: int
    num_elements: int
    quantize: type[torch.autograd.Function] | None = None

    @property
    def ndim(self) -> int:
        """Number of axes of one draw for B data."""
        return len(self.plate_dims) + self.event_dim


@dataclass(frozen=True)
class ModelGuide:
    """What one run of a model and its guide shows.

    Attributes:
        model: the generative program.
        guide: the inference program.
        modules: the modules found in the two programs, then others that ran and hold tensors which Pyro's store does
            not have.
        all_modules: these, and the others that ran.
        params: names of the ``pyro.param`` values that they use and that belong to none of these modules.
        plate: name of the data plate.
        dim: its dimension among the batch axes, counted from the right, negative.
        num_rows: rows of the plate in one run; for a pair that draws its own rows this number is fixed.
        plate_size: full size of the plate: Pyro multiplies log-probabilities by ``plate_size / num_rows``.
        draws_rows: whether the pair takes all data and draws rows by itself.
        nesting: number of batch axes that plates take up.
        latents: the latent sites by name, in the guide's order.
        observed: names of the observed sites.
        num_elements: observed elements per datum, or parameters of their distribution if those are more.
        num_units: the same, or elements of the largest output of a module in the model, if those are more.
        base_measure: of what is observed, "counting" or "Lebesgue"; None where sites differ or do not say.
        factors: names of the observed sites that are a `pyro.factor`.
        unnormalized: the reason why the model is not a normalized distribution of its data, None if it is.
        kl: for each latent site, `CLOSED_FORM` or the reason why its KL is estimated by Monte Carlo.
        broadcasts: whether it can be run with an axis of particles to the left of its plates.
        nan: in words what was NaN in that run, if anything was.

    """

    model: Program
    guide: Program
    modules: tuple[nn.Module, ...]
    params: tuple[str, ...]
    plate: str
    dim: int
    num_rows: int
    plate_size: int
    draws_rows: bool
    nesting: int
    latents: dict[str, Latent]
    observed: tuple[str, ...]
    num_elements: int
    num_units: int
    base_measure: BaseMeasure | None
    factors: tuple[str, ...]
    unnormalized: str | None
    kl: dict[str, str]
    all_modules: tuple[nn.Module, ...] = ()
    broadcasts: bool = True
    nan: str | None = None

    @property
    def max_rows(self) -> int:
        """The most rows that one run can take."""
        return self.plate_size if self.plate_size > self.num_rows else sys.maxsize

    def bind(self, args: tuple[Any, ...], rows: Tensor) -> tuple[Program, Program]:
        """Return model and guide without arguments, run on the given rows ``(R,)`` of the data."""
        if self.draws_rows:
            return tuple(
                functools.partial(ChosenRows(self.plate, rows)(program), *args) for program in (self.model, self.guide)
            )  # type: ignore[return-value]
        taken = take_rows(args, rows)
        return functools.partial(self.model, *taken), functools.partial(self.guide, *taken)


def straight_through(fn: Any) -> type[torch.autograd.Function] | None:
    """Return the rounding of a straight-through distribution, None for any other."""
    while hasattr(fn, "base_dist") and not isinstance(fn, _STRAIGHT_THROUGH):
        fn = fn.base_dist
    for kind, quantize in zip(_STRAIGHT_THROUGH, (QuantizeBernoulli, QuantizeCategorical), strict=True):
        if isinstance(fn, kind):
            return quantize
    return None


def take_rows(args: tuple[Any, ...], rows: Tensor) -> tuple[Any, ...]:
    """Return the given rows of every tensor that is as long as the first one; other arguments stay as they are."""
    length = len(args[0])
    return tuple(a[rows.to(a.device)] if isinstance(a, Tensor) and a.ndim and len(a) == length else a for a in args)


class ChosenRows(Messenger):
    """Makes a plate that draws its own rows take the given ones.

    Args:
        plate: its name.
        rows: ``(R,)``.

    """

    def __init__(self, plate: str, rows: Tensor) -> None:
        super().__init__()
        self.plate, self.rows = plate, rows

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == self.plate and msg["value"] is None:
            msg["value"] = self.rows
