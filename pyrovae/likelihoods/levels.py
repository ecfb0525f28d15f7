"""Base class of the likelihoods of levels."""

from __future__ import annotations

from typing import Annotated, Any, Self

from torch import Tensor

from pyrovae.data import Data, Split, transforms
from pyrovae.likelihoods.base import Likelihood
from pyrovae.runtime.annotations import Range, Shape

LEVEL_CHANGING = (
    transforms.DynamicBinarization,
    transforms.StaticBinarization,
    transforms.Threshold,
    transforms.Grey,
    transforms.Dequantization,
    transforms.Standardization,
)  # transforms that change stored levels


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
