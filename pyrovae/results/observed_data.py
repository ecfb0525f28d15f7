"""Values of the data that a model scores."""

from __future__ import annotations

from dataclasses import dataclass, field

WHOLE = "x"
MASKED = "x where it is not masked"
PART = "a part of x, or x and values made of it"
MADE = "values made of x"
DRAWN = "values that the model draws itself"
TOTAL = "total"  # name of the sum of the counts of a multinomial
MANY_SITES = 5  # number of observed sites from which their names are abbreviated
GIVEN_TOTAL = (
    "a multinomial is normalized for each total of its counts, and the totals differ between data: these are "
    "log p(x | total); for log p(x) observe the total too, pyro.sample('total', dist.Poisson(...), obs=x.sum(-1))"
)
DISCRETE = (
    "the data look discrete (distinct values: {}): a density of discrete values can be made as large as one likes; "
    "dequantize them (data.transforms.Dequantization) or choose a likelihood of levels"
)


@dataclass(frozen=True)
class ObservedData:
    """The values that the likelihood scores, by which evaluations of the same data are distinguished.

    Two models observe the same if they score the same numbers of each datum under the same masks, whatever the names,
    shapes, order, plates and distributions of their sites. A model that draws its observations or its masks, or makes
    them depend on z, scores other values in each run.

    Attributes:
        what: "x", "x where it is not masked", "a part of x, or x and values made of it", "values made of x", or
            "values that the model draws itself".
        num_elements: number of scored elements per datum, a mean over the data; masked elements do not count.
        hash: SHA-256 of all values of each element that is ever scored, independent of the order of the elements.
        sites: names of the observed sites.
        given: names of the arguments that the model receives and does not observe, with their elements per datum; and
            `TOTAL` if multinomial counts have other totals in each datum.
        only_data: whether all values come from the data, none from a further argument such as labels.
        num_values: number of distinct values; None if there are more than 256 or few repetitions.
        fault: the reason why the product of the densities is no density of x; None if none was found.

    """

    what: str
    num_elements: float
    hash: str
    sites: tuple[str, ...] = field(default=(), compare=False)
    given: dict[str, int] = field(default_factory=dict)
    only_data: bool = True
    num_values: int | None = None
    fault: str | None = None

    @property
    def density(self) -> str:
        """The estimated density, such as ``p(x, y)`` or ``p(y | x)``; ``p(x)`` if no site is known.

        ``p(observed x)`` is one of values made of x, such as x / 255.
        """
        sites = self.sites if len(self.sites) < MANY_SITES else (self.sites[0], "...", self.sites[-1])
        given = f" | {', '.join(self.given)}" if self.given else ""
        return f"p({'observed ' * (self.what == MADE)}{', '.join(sites) or 'x'}{given})"

    def __str__(self) -> str:
        return f"{self.what}, {round(self.num_elements, 2):.12g} elements of a datum"

    def caution(self, base_measure: str | None) -> str | None:
        """Return a limit of the numbers on a base measure, or None."""
        if self.what == DRAWN:
            return "these are others in each run, so that they have no bits per dimension"
        if self.what in (PART, MADE) and base_measure == "Lebesgue":
            return "log |dx/du| of these is not known, so that they have no bits per dimension"
        return None

    @property
    def discreteness(self) -> str | None:
        """A caution where a density scores values that look discrete, or None."""
        return None if self.num_values is None else DISCRETE.format(self.num_values)
