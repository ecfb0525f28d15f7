"""What a model observes of the data: the values that its likelihood scores."""

from __future__ import annotations

from dataclasses import dataclass, field

WHOLE = "x"
MASKED = "x where it is not masked"
OTHER = "a part of x, or values made of it"
MANY_SITES = 5  # names of observed sites that are abbreviated
DISCRETE = (
    "the data look discrete (distinct values: {}): a density of discrete values can be made as large as one likes; "
    "dequantize them (data.transforms.Dequantization) or choose a likelihood of levels"
)
DRAWN = "values that the model draws itself"


@dataclass(frozen=True)
class ObservedData:
    """The values that a likelihood scores, by which evaluations of the same data are told apart.

    They are the same for two models that observe the same numbers of each datum under the same masks, whatever their
    sites are called, of which shape and in which order and plates they stand, and which distributions score them. They
    are others where one scores fewer elements, masks others, or scales them first.

    A model that draws what it observes, or its masks, scores other values in each run, and so does one where they
    depend on z: it is like another one only if both observe the same from the same random stream.

    Attributes:
        what: "x", "x where it is not masked", "a part of x, or values made of it", or "values that the model draws
            itself".
        num_elements: that are scored, a mean over the data; what is masked does not count.
        hash: SHA-256 of all values of each element that is ever scored, the elements in no order.
        sites: names of the observed sites.
        given: names of the arguments that the model is given and does not observe, with their elements per datum.
        only_data: whether all values come from the data, none from an argument beside them, such as labels.
        num_values: number of distinct values, None where there are more than 256 or few repetitions.

    """

    what: str
    num_elements: float
    hash: str
    sites: tuple[str, ...] = field(default=(), compare=False)
    given: dict[str, int] = field(default_factory=dict)
    only_data: bool = True
    num_values: int | None = None

    @property
    def density(self) -> str:
        """The estimated density, such as ``p(x, y)`` or ``p(y | x)``; ``p(x)`` where no site is known."""
        sites = self.sites if len(self.sites) < MANY_SITES else (self.sites[0], "...", self.sites[-1])
        given = f" | {', '.join(self.given)}" if self.given else ""
        return f"p({', '.join(sites) or 'x'}{given})"

    def __str__(self) -> str:
        """Return what is observed, and how much, in words."""
        return f"{self.what}, {round(self.num_elements, 2):.12g} elements of a datum"

    def caution(self, base_measure: str | None) -> str | None:
        """Return a limit of the numbers on a base measure, None where there is none."""
        if self.what == DRAWN:
            return "these are others in each run, so that they have no bits per dimension"
        if self.what == OTHER and base_measure == "Lebesgue":
            return "log |dx/du| of these is not known, so that they have no bits per dimension"
        return None

    @property
    def discreteness(self) -> str | None:
        """A caution where a density scores values that look discrete, None otherwise."""
        return None if self.num_values is None else DISCRETE.format(self.num_values)
