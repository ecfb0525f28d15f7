"""What a model observes of the data: the values that its likelihood scores."""

from __future__ import annotations

from dataclasses import dataclass

WHOLE = "x"
MASKED = "x where it is not masked"
OTHER = "a part of x, or values made of it"
DRAWN = "values that the model draws itself"


@dataclass(frozen=True)
class Observed:
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

    """

    what: str
    num_elements: float
    hash: str

    def __str__(self) -> str:
        """Return what is observed, and how much, in words."""
        return f"{self.what}, {round(self.num_elements, 2):.12g} elements of a datum"

    def caution(self, base_measure: str | None) -> str | None:
        """Return what is not known of such values on a base measure, None where nothing is missing."""
        if self.what == DRAWN:
            return "these are others in each run, so that they have no bits per dimension"
        if self.what == OTHER and base_measure == "Lebesgue":
            return "log |dx/du| of these is not known, so that they have no bits per dimension"
        return None
