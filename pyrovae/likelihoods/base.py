"""Base classes of the likelihoods p(x | z)."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyrovae.data import Data, Split, transforms
from pyrovae.data.transforms import Form
from pyrovae.distributions import Elements
from pyrovae.distributions.conditional import ConditionalPart
from pyrovae.runtime.annotations import PositiveFloat, Range, Shape

LEVEL_CHANGING = (
    transforms.DynamicBinarization,
    transforms.StaticBinarization,
    transforms.Threshold,
    transforms.Grey,
    transforms.Dequantization,
    transforms.Standardization,
)  # transforms that change stored levels


class Likelihood(ConditionalPart):
    """Base class of the likelihoods: the distribution of a data point x given the decoder's output.

    To write your own, derive a class, set two class attributes, and define ``forward`` and ``initial_params``:

        >>> import pyro.distributions as dist
        >>> class Gumbel(Likelihood):
        ...     '''Independent Gumbel elements with mean m_i from the decoder and scale 1.'''
        ...
        ...     n_params = 1                # numbers that the decoder emits per element of x
        ...     form = "continuous"         # form of the data; others: binary, unit, levels, counts
        ...
        ...     def forward(self, params):  # (*batch, *x_shape, n_params)
        ...         (mean,) = self.split(params)  # n_params tensors (*batch, *x_shape)
        ...         return self.independent(dist.Gumbel(mean - 0.5772156649, 1.0))
        ...
        ...     def initial_params(self, mean):  # (*x_shape)
        ...         return mean.unsqueeze(-1)  # (*x_shape, n_params)

    A density with a location and one scale, fixed or learned, needs less:

        >>> from pyrovae.likelihoods import LocationLikelihood
        >>> class Cauchy(LocationLikelihood):
        ...     '''Independent Cauchy elements around the decoder's output.'''
        ...
        ...     def forward(self, params):
        ...         (location,) = self.split(params)
        ...         return self.independent(dist.Cauchy(location, self.scale))

    Loaders, encoder input, decoder shape, objectives, bounds and figures follow from these definitions. An option may
    decide ``n_params``: set it in the constructor. Constants are buffers, learned values parameters.
    ``testing.check(Gumbel((2,)))`` tests the class. (It reports that a Cauchy has no mean, which figures need.) To add
    it to the package, write one file in ``pyrovae/likelihoods/`` and add one import and one name to its
    ``__init__.py``: the command line offers it, and its tests run, from then on.

    Attributes:
        form: form of the data, by which loaders choose their transform: "binary" (0 or 1), "unit" (in [0, 1]),
            "continuous" (real numbers), "levels" (0 to levels - 1; derive from `LevelLikelihood`) or "counts" (integers
            from 0).
        base_measure: "counting" if log p(x | z) is a log-probability (binary, levels, counts), "Lebesgue" if it is a
            log-density (unit, continuous); by default decided by the form. Values in different measures are not
            comparable.
        n_params: numbers that the decoder emits per element of x.

    Args:
        x_shape: shape of one data point.

    """

    form: ClassVar[Form]
    base_measure: ClassVar[Literal["counting", "Lebesgue"]]
    _role = "likelihood"
    _measure_of_form: ClassVar[bool] = False  # true for classes whose base measure follows from the form

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Check the form of a class, which decides its base measure unless the class sets it.

        Raises:
            ValueError: if there is no such form.

        """
        super().__init_subclass__(**kwargs)
        form = getattr(cls, "form", None)
        if form is None:
            return
        if form not in get_args(Form):
            raise ValueError(f"`form` of {cls.__name__} must be one of {', '.join(get_args(Form))}, got {form!r}")
        if not any("base_measure" in vars(base) and not vars(base).get("_measure_of_form") for base in cls.__mro__):
            cls.base_measure = "Lebesgue" if form in ("unit", "continuous") else "counting"
            cls._measure_of_form = True

    def __init__(self, x_shape: Shape) -> None:
        super().__init__(x_shape)
        if not hasattr(self, "form"):
            raise TypeError(f"{type(self).__name__} must set form, one of {', '.join(get_args(Form))}")

    @classmethod
    def for_data(cls, data: Data | Split, **options: Any) -> Self:
        """Build the likelihood for data: with their shape and, for levels, their number of levels.

        Args:
            data: data in any form; train on ``data.for_form(likelihood.form)``.
            options: other arguments of the class.

        Raises:
            ValueError: if it scores levels and the number of levels of the data is unknown.

        """
        return cls(data.x_shape, **options)

    @property
    def x_shape(self) -> tuple[int, ...]:
        """Shape of one data point."""
        return self.event_shape

    @property
    def support(self) -> str:
        """Values that x can have, in words."""
        return _SUPPORTS[self.form]

    def encoder_input(self, x: Tensor) -> Tensor:
        """Return the encoder's input for x ``(*batch, *x_shape)``: log(1 + x) for counts, otherwise x itself."""
        return x.clamp(min=0).log1p() if self.form == "counts" else x  # negative values raise an error in log_prob

    @abstractmethod
    def initial_params(self, mean: Tensor) -> Tensor:
        """Return the parameters ``(*x_shape, n_params)`` at which x has about the given mean ``(*x_shape)``.

        `fit` starts the decoder there, so that the first epochs are not spent on the average data point.
        """

    def start(self, x: Tensor, mean: Tensor) -> Tensor:
        """Set learned scales at their default to the spread of data, and return initial decoder parameters.

        Args:
            x: data, ``(N, *x_shape)``.
            mean: mean of all data, ``(*x_shape)``.

        Returns:
            ``(*x_shape, n_params)``, by default `initial_params`.

        """
        return self.initial_params(mean)

    def require_form(self, split: Split) -> None:
        """Check that a density is not given discrete values: it would have no upper bound.

        Raises:
            ValueError: if this is a density, and the split yields stored integers or binarized data.

        """
        discrete = split.transform.random or not split.stored.is_floating_point()
        if self.base_measure == "Lebesgue" and split.transform.base_measure == "counting" and discrete:
            raise ValueError(
                f"{type(self).__name__} is a density of {self.form} data, but {split.name} gives discrete values "
                f"({split.transform}), whose density has no upper bound; use "
                f"data.for_form({self.form!r})"
            )

    def independent(self, elements: TorchDistribution) -> TorchDistribution:
        """Return the distribution of x for a distribution ``(*batch, *x_shape)`` of independent elements.

        It is ``elements.to_event(len(x_shape))`` with an error for data outside the support that names the remedy.
        """
        description = f"{type(self).__name__} scores {self.support}"
        return Elements(elements, len(self.x_shape), description=description, hint=_HINTS[self.form])


_SUPPORTS: dict[Form, str] = {
    "binary": "data that are 0 or 1",
    "unit": "values in [0, 1]",
    "continuous": "finite real numbers",
    "levels": "integers from 0 to its number of levels - 1",
    "counts": "integers >= 0",
}
_HINTS: dict[Form, str] = {
    "binary": "binarize them, for stored bytes by data.for_form('binary'), or choose a likelihood of grey values such "
    "as ContinuousBernoulli",
    "unit": "rescale them, for stored levels by data.for_form('unit')",
    "continuous": "remove or replace values that are not finite",
    "levels": "give levels as they are stored, data.for_form('levels'); for other data choose "
    "a density such as Gaussian, or a likelihood of counts",
    "counts": "give counts as they are stored, data.for_form('counts'); for other data choose "
    "a density such as Gaussian",
}


class LevelLikelihood(Likelihood):
    """Base of the likelihoods of integers from 0 to levels - 1, such as bytes.

    ``log p(u)`` of stored levels is a log-probability. A density of dequantized data bounds the same quantity,
    ``log P(u) >= E log p((u + U[0, 1)) / levels) - D log levels``, so that the two compare in bits per dimension.

    Args:
        x_shape: shape of one data point.
        levels: number of values of an element.

    Raises:
        ValueError: if levels < 2.

    """

    form = "levels"

    def __init__(self, x_shape: Shape, levels: Annotated[int, Range(2)] = 256) -> None:
        super().__init__(x_shape)
        self.levels = levels

    @classmethod
    def for_data(cls, data: Data | Split, **options: Any) -> Self:
        """Build the likelihood with the shape and the number of levels of data."""
        split = data.train if isinstance(data, Data) else data
        if split.levels is None:
            raise ValueError(
                f"{cls.__name__} needs the number of levels, but it is unknown for {split.name}; "
                "load integers with levels=, or choose a likelihood for another form of data"
            )
        return cls(split.x_shape, split.levels, **options)

    def require_form(self, split: Split) -> None:
        """Check that data have the right number of levels and are not transformed.

        Raises:
            ValueError: if the number differs, or a transform changes the levels.

        """
        super().require_form(split)
        name = type(self).__name__
        if isinstance(split.transform, LEVEL_CHANGING):
            raise ValueError(
                f"{name} scores levels as they are stored, but {split.name} gives them by {split.transform}; take "
                f"data.for_form('levels') and {name}.for_data(data), or a likelihood for transformed data"
            )
        if split.levels is not None and split.levels != self.levels:
            raise ValueError(
                f"{name} scores {self.levels} levels, but {split.name} has {split.levels}; build it by "
                f"{name}.for_data(data), or with levels={split.levels}"
            )
        largest = int(split.stored.max()) if split.levels is None else self.levels
        if 2 * (largest + 1) < self.levels:
            raise ValueError(
                f"{name} scores {self.levels} levels, but no value of {split.name} is above {largest}, so that "
                "probability is lost on the others; state the number of levels when the data are loaded (levels=, on "
                f"the command line --data.levels), and build it by {name}.for_data(data)"
            )

    @property
    def support(self) -> str:
        """Values that x can have, in words."""
        return f"integers from 0 to {self.levels - 1}"

    def encoder_input(self, x: Tensor) -> Tensor:
        """Return the encoder's input for x ``(*batch, *x_shape)``: x / (levels - 1), in [0, 1]."""
        return x / (self.levels - 1)

    def clipped(self, mean: Tensor) -> Tensor:
        """Return a mean clipped to the interior of the range, in float64."""
        top = self.levels - 1
        return mean.double().clamp(0.001 * top, 0.999 * top)


class LocationLikelihood(Likelihood):
    """Base of the likelihoods of real numbers around the decoder's output, with one scale for all of them.

    Args:
        x_shape: shape of one data point.
        scale: in units of x; its initial value if learned.
        learn_scale: whether to train the scale.

    Raises:
        ValueError: if scale is not positive and finite.

    """

    n_params = 1
    form = "continuous"

    def __init__(self, x_shape: Shape, *, scale: PositiveFloat = 1.0, learn_scale: bool = False) -> None:
        super().__init__(x_shape)
        log_scale = torch.tensor(math.log(scale))
        if learn_scale:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    @property
    def scale(self) -> Tensor:
        """The scale, in units of x."""
        return self.log_scale.exp()

    def initial_params(self, mean: Tensor) -> Tensor:
        """Return the mean itself."""
        return mean.unsqueeze(-1)

    def start(self, x: Tensor, mean: Tensor) -> Tensor:
        """Set a learned scale of 1 to the spread of data ``(N, *x_shape)`` around their mean, and return the mean."""
        scale = self.scale_of(x - mean)
        if self.log_scale.requires_grad and not self.log_scale.any() and scale > 0:
            with torch.no_grad():
                self.log_scale.copy_(scale.log())
        return self.initial_params(mean)

    def scale_of(self, residuals: Tensor) -> Tensor:
        """Return the scale of residuals of any shape, 0-dim; by default their root mean square."""
        return residuals.square().mean().sqrt()
