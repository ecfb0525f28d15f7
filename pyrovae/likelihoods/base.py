"""The likelihood p(x | z), and how to write one."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Literal, Self

from pyro.distributions import TorchDistribution
from torch import Tensor

from pyrovae.data import Data, Split
from pyrovae.data.transforms import Form
from pyrovae.distributions import Elements
from pyrovae.distributions.conditional import ConditionalPart


class Likelihood(ConditionalPart):
    """The distribution of one datum x given the decoder's output.

    To write your own, copy `Bernoulli` (the shortest): state what is scored and in which measure, say how many numbers
    the decoder emits per element of x, turn them into a distribution, and say which of them give a wanted mean. The
    rest of the package (loaders, what the encoder sees, decoder, objectives, bounds, pictures) follows from that;
    `pyrovae.testing.check` tests it.

    Attributes:
        form: the form of data that is scored; loaders choose their transform by it.
        base_measure: counting measure for a probability, Lebesgue measure for a density. Values of log p(x) in
            different measures are not comparable.

    Args:
        x_shape: shape of one datum.

    """

    form: ClassVar[Form]
    base_measure: ClassVar[Literal["counting", "Lebesgue"]]
    _role = "likelihood"

    def __init__(self, x_shape: tuple[int, ...]) -> None:
        super().__init__(x_shape)

    @classmethod
    def for_data(cls, data: Data | Split, **options: Any) -> Self:
        """Make the likelihood of these data: of their shape and, where it scores levels, of their number of levels.

        Args:
            data: in any form; ``data.for_form(likelihood.form)`` is what the likelihood scores.
            options: of the class.

        Raises:
            ValueError: if it scores levels and the data do not say how many they have.

        """
        return cls(data.x_shape, **options)

    @property
    def x_shape(self) -> tuple[int, ...]:
        """Shape of one datum."""
        return self.event_shape

    @property
    def support(self) -> str:
        """What is scored, in words."""
        return _SUPPORTS[self.form]

    def encoder_input(self, x: Tensor) -> Tensor:
        """Return what the encoder sees of x ``(*batch, *x_shape)``: log(1 + x) of counts, otherwise x itself."""
        return x.clamp(min=0).log1p() if self.form == "counts" else x  # others are refused where they are scored

    @abstractmethod
    def initial_params(self, mean: Tensor) -> Tensor:
        """Return the parameters ``(*x_shape, n_params)`` at which x has about the given mean ``(*x_shape)``.

        A decoder that starts there need not spend its first epochs on learning the average datum.
        """

    def start(self, x: Tensor, mean: Tensor) -> Tensor:
        """Set learned scales that are at their default to the spread of data, and return the parameters to start at.

        Args:
            x: data, ``(N, *x_shape)``.
            mean: of all of them, ``(*x_shape)``.

        Returns:
            ``(*x_shape, n_params)``, the parameters of a decoder that ignores z: `initial_params`, if there is no scale
            among them.

        """
        return self.initial_params(mean)

    def require_form(self, split: Split) -> None:
        """Refuse a density of values that are discrete: it has no upper bound, and bounds no probability.

        Raises:
            ValueError: if this is a density, and the split gives integers as they are stored, or binarized data.

        """
        discrete = split.transform.random or not split.stored.is_floating_point()
        if self.base_measure == "Lebesgue" and split.transform.base_measure == "counting" and discrete:
            raise ValueError(
                f"{type(self).__name__} is a density of {self.form} data, but {split.name} gives discrete values "
                f"({split.transform}), of which a density can be made as large as one likes; take "
                f"data.for_form({self.form!r})"
            )

    def independent(self, elements: TorchDistribution) -> TorchDistribution:
        """Join a distribution ``(*batch, *x_shape)`` of independent elements into one of x.

        It is ``elements.to_event(len(x_shape))``, but data outside the support are refused with the cure.
        """
        description = f"{type(self).__name__} scores {self.support}"
        return Elements(elements, len(self.x_shape), description=description, hint=_CURES[self.form])


_SUPPORTS: dict[Form, str] = {
    "binary": "data that are 0 or 1",
    "unit": "data between 0 and 1",
    "continuous": "finite real numbers",
    "levels": "whole numbers from 0 on, below its number of levels",
    "counts": "whole numbers from 0 on",
}
_CURES: dict[Form, str] = {
    "binary": "binarize them, for instance with data.transforms.DynamicBinarization(), or choose a likelihood for grey "
    "values such as ContinuousBernoulli",
    "unit": "rescale them, for stored levels by data.for_form('unit')",
    "continuous": "remove or replace what is not finite",
    "levels": "hand it levels as they are stored (data.for_form('levels') does); for data of another kind choose "
    "a density such as Gaussian, or a likelihood of counts",
    "counts": "hand it counts as they are stored (data.for_form('counts') does); for data of another kind choose "
    "a density such as Gaussian",
}
