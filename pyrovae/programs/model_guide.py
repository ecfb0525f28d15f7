"""Structure of a model and its guide, as inspection finds it."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pyro import poutine
from torch import Tensor, nn

from pyrovae.data.transforms import BaseMeasure

Program = Callable[..., Any]

PARTICLE_PLATE = "pyrovae particles"


@dataclass(frozen=True)
class Latent:
    """One latent site.

    Attributes:
        plate_dims: batch dimensions of its plates, negative.
        event_dim: number of its event axes.
        num_elements: its elements per datum.

    """

    plate_dims: tuple[int, ...]
    event_dim: int
    num_elements: int


@dataclass(frozen=True)
class ModelGuide:
    """A model and its guide, with the structure that their first runs show.

    Attributes:
        model: the generative program.
        guide: the inference program.
        modules: the modules found in the two programs, then others that ran and hold tensors outside Pyro's store.
        all_modules: these, and the others that ran.
        params: names of the ``pyro.param`` values that the programs use and that belong to none of these modules.
        plate: name of the data plate.
        dim: its dimension among the batch axes, counted from the right, negative.
        full_size: N of a plate with ``subsample_size=len(x)``, for which Pyro multiplies log-probabilities by
            ``N / len(x)``; None for other plates.
        nesting: number of batch axes that plates take up.
        latents: the latent sites by name, in the guide's order.
        observed: names of the observed sites.
        observed_in_guide: names of the observed sites and factors of the guide, which no bound contains.
        num_elements: observed elements per datum, or parameters of their distribution if those are more.
        num_units: the same, or elements of the largest output of a module in the model, if those are more.
        base_measure: measure of the observed values, "counting" or "Lebesgue"; None where sites differ or declare none.
        factors: names of the observed sites that are a `pyro.factor`.
        multinomials: range of observed elements of a datum, and number of categories, of each observed multinomial.
        dimension_size: observed elements that are one dimension of x: the categories of a one-hot distribution, or else
            1; None where dimensions are undefined, for a multinomial or one-hot sites of several sizes.
        unnormalized: the reason why the model is not a normalized distribution of its data, None if it is.
        kl: for each latent site, `CLOSED_FORM` or the reason why its KL is estimated by Monte Carlo.
        broadcasts: whether the programs run with an axis of particles to the left of their plates.
        nan: description of the first NaN of the first run, None if there was none.
        link_warnings: descriptions of networks that return probabilities or scales where logits or logarithms belong.

    """

    model: Program
    guide: Program
    modules: tuple[nn.Module, ...]
    params: tuple[str, ...]
    plate: str
    dim: int
    full_size: int | None
    nesting: int
    latents: dict[str, Latent]
    observed: tuple[str, ...]
    observed_in_guide: tuple[str, ...]
    num_elements: int
    num_units: int
    base_measure: BaseMeasure | None
    factors: tuple[str, ...]
    multinomials: tuple[tuple[int, int, int], ...]
    dimension_size: int | None
    unnormalized: str | None
    kl: dict[str, str]
    all_modules: tuple[nn.Module, ...] = ()
    broadcasts: bool = True
    nan: str | None = None
    link_warnings: tuple[str, ...] = ()

    @property
    def max_rows(self) -> int:
        """Largest number of rows of one run."""
        return self.full_size or sys.maxsize

    def bind(self, args: tuple[Any, ...], rows: Tensor | None = None) -> tuple[Program, Program]:
        """Return model and guide without arguments, run on the given rows ``(R,)`` of the data, or on all."""
        args = args if rows is None else take_rows(args, rows)
        return functools.partial(self.model, *args), functools.partial(self.guide, *args)


def run(
    model: Program, guide: Program, guide_trace: poutine.Trace | None = None
) -> tuple[poutine.Trace, poutine.Trace]:
    """Return the trace of the guide, or the given one, and the trace of the model replayed against it."""
    guide_trace = guide_trace or poutine.trace(guide).get_trace()
    return guide_trace, poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace()


def take_rows(args: tuple[Any, ...], rows: Tensor) -> tuple[Any, ...]:
    """Return the given rows of every tensor that is as long as the first one; other arguments are unchanged."""
    length = len(args[0])
    return tuple(a[rows.to(a.device)] if isinstance(a, Tensor) and a.ndim and len(a) == length else a for a in args)


def replace_draws(program: Program, draws: Mapping[str, Tensor]) -> Program:
    """Return a program with its draws replaced, its sites still latent."""
    trace = poutine.Trace()
    for name, value in draws.items():
        trace.add_node(name, name=name, type="sample", value=value, is_observed=False, infer={}, fn=None)
    return poutine.replay(program, trace=trace)
