"""Several evaluations side by side, those that may not be compared being refused or kept apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from pyrovae.results.block import Block, Row
from pyrovae.results.comparable import groups, require_comparable
from pyrovae.results.evaluation import Evaluation
from pyrovae.results.pairing import STORED, block_of
from pyrovae.results.table import Table, Tabled

SEPARATE = (
    "Nats compare models within a block only: blocks are of different data, of different parts of them, or of "
    "different measures (the logarithm of a probability is not one of a density)."
)
BITS = "Bits per dimension compare these blocks too, being code lengths of the same stored values:"


@dataclass(frozen=True)
class Comparison(Tabled):
    """Several evaluations side by side.

    Attributes:
        blocks: of those that may be compared, in the order in which they were given; one where all may.

    """

    blocks: tuple[Block, ...]

    @property
    def rows(self) -> tuple[Row, ...]:
        """One for each model, block by block."""
        return tuple(row for block in self.blocks for row in block.rows)

    def tables(self) -> tuple[Table, ...]:
        """Return the tables of each block, the last of them saying why there are several."""
        *first, last = (table for block in self.blocks for table in block.tables())
        return (*first, replace(last, notes=(*last.notes, *self._between())))

    def to_csv(self) -> str:
        """Return one table for each block as comma-separated values, an empty line between them."""
        return "\n".join(block.wide().to_csv() for block in self.blocks)

    def _between(self) -> list[str]:
        shared: dict[str, list[str]] = {}
        for block in self.blocks:
            if block.bits_of == STORED:
                shared.setdefault(block.stored, []).append(block.title.split(", sha256")[0])
        bits = [line for titles in shared.values() if len(titles) > 1 for line in (BITS, *titles)]
        return [SEPARATE, *bits] if len(self.blocks) > 1 else []


def compare(evaluations: Mapping[str, Evaluation], *, reference: str | None = None, blocks: bool = False) -> Comparison:
    """Put evaluations on the same data side by side, each paired datum by datum with a reference.

    ``difference = mean over data of L_K(x) - L_K of the reference(x)``, with its standard error and 95 % interval

    Evaluations of other data, of data transformed or observed otherwise, or in another base measure are refused: a
    model that masks half of x, or observes ``2 * x``, scores something else (see `Observed`). In blocks they
    stand in separate tables instead, where dequantized data and stored levels have a common unit: with the change of
    variables ``log P(u) >= E log p(x) + log |dx/du|`` both are code lengths of the stored values, in bits per
    dimension.

    L_K bounds log p(x) from below, by a gap that may differ between models. Where all have annealed importance sampling
    on as many of the data, a second table compares that.

    Args:
        evaluations: by the name of the model.
        reference: name of the model that the others are compared to; the first if None. Blocks that do not hold it
            have their own first.
        blocks: whether what may not be compared is put in separate tables, not refused.

    Returns:
        The comparison: printing it gives the table, and it has ``to_markdown``, ``to_latex`` and ``to_csv``.

    Raises:
        ValueError: if there is nothing to compare, evaluations differ in data, transform, measure, covariates or what
            they observe, those of a block have no K in common, or one does not hold its values per datum.
        TypeError: if these are not evaluations by name.

    Example:
        >>> print(compare({"N(0, I)": first, "mixture": second}))

    """
    _check(evaluations, reference)
    if not blocks:
        require_comparable(evaluations)
    return Comparison(tuple(block_of(group, reference) for group in groups(evaluations)))


def _check(evaluations: Mapping[str, Evaluation], reference: str | None) -> None:
    """Refuse what is not a mapping from names to evaluations."""
    if not isinstance(evaluations, Mapping):
        raise TypeError(
            "compare takes evaluations by the name of their model, but received a "
            f"{type(evaluations).__name__}; give for instance {{'first': a, 'second': b}}"
        )
    if not evaluations:
        raise ValueError("there is nothing to compare; give evaluations by name")
    for name, evaluation in evaluations.items():
        if not isinstance(evaluation, Evaluation):
            raise TypeError(
                f"compare takes what pyrovae.evaluate returns, but {name!r} is a {type(evaluation).__name__}; run "
                "folders are compared by pyrovae.report.compare"
            )
    if reference is not None and reference not in evaluations:
        raise ValueError(f"the reference is one of {', '.join(evaluations)}, but received {reference!r}")
