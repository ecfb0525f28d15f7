"""The likelihood p(x | z), and how to write one."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Literal

from torch import Tensor

from pyrovae.data.transforms import Form
from pyrovae.part import ConditionalPart


class Likelihood(ConditionalPart):
    """The distribution of one datum x given the decoder's output.

    To write your own, copy `Bernoulli` (the shortest): state what is scored and in which measure, say how many numbers
    the decoder emits per element of x, turn them into a distribution, and say which of them give a wanted mean. The
    rest of the package (loaders, decoder, objectives, bounds, pictures) follows from that.

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

    @property
    def x_shape(self) -> tuple[int, ...]:
        """Shape of one datum."""
        return self.event_shape

    @abstractmethod
    def initial_params(self, mean: Tensor) -> Tensor:
        """Return the parameters ``(*x_shape, n_params)`` at which x has about the given mean ``(*x_shape)``.

        A decoder that starts there need not spend its first epochs on learning the average datum.
        """
