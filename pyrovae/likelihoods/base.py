"""Base class of the likelihoods p(x | z)."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Literal, Self, get_args

from pyro.distributions import TorchDistribution
from torch import Tensor

from pyrovae.data import Data, Split
from pyrovae.data.transforms import Form
from pyrovae.distributions import Elements
from pyrovae.distributions.conditional import ConditionalPart
from pyrovae.runtime.annotations import Shape


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
    "binary": "binarize them, for instance with data.transforms.DynamicBinarization(), or choose a likelihood of grey "
    "values such as ContinuousBernoulli",
    "unit": "rescale them, for stored levels by data.for_form('unit')",
    "continuous": "remove or replace values that are not finite",
    "levels": "give levels as they are stored, data.for_form('levels'); for other data choose "
    "a density such as Gaussian, or a likelihood of counts",
    "counts": "give counts as they are stored, data.for_form('counts'); for other data choose "
    "a density such as Gaussian",
}
