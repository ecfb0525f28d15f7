"""Several evaluations side by side, in blocks of those that may be compared."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass

from pyrovae.results.estimate import mean_and_error
from pyrovae.results.evaluation import Evaluation
from pyrovae.results.table import align, number

SEPARATE = (
    "Nats compare models within a block only: blocks are of different data, or of different measures\n"
    "(the logarithm of a probability is not one of a density)."
)
BITS = "Bits per dimension compare these blocks too, being code lengths of the same stored values:"
STORED, MONTE_CARLO = "stored values", "Monte Carlo"
WIDTH = 120  # of lines
BINARIZED = ("DynamicBinarization", "StaticBinarization", "Threshold")


@dataclass(frozen=True)
class Row:
    """One model in a comparison, in nats per datum.

    Attributes:
        name: of the model.
        elbo: its value and standard error over the data.
        bound: the same of L_K, at the largest K that all models of the block have.
        difference: of L_K to the first model of the block, paired datum by datum, and its standard error over the data;
            None for the first.
        bits_per_dimension: at that bound, where that is defined.
        kl_methods: for each latent site how its KL was computed.

    """

    name: str
    elbo: tuple[float | None, float | None]
    bound: tuple[float | None, float | None]
    difference: tuple[float | None, float | None] | None
    bits_per_dimension: float | None
    kl_methods: dict[str, str]


@dataclass(frozen=True)
class Block:
    """Models that scored the same data in the same measure.

    Attributes:
        title: data, their number, transform, hash and measure in words.
        num_particles: K of the bound.
        bits_of: what bits per dimension are code lengths of, in words; None where they are not defined.
        stored: what tells the data before any transform, and whether they are given covariates, from others.
        rows: one for each model.

    """

    title: str
    num_particles: int
    bits_of: str | None
    stored: str
    rows: tuple[Row, ...]

    def __str__(self) -> str:
        """Return the table."""
        label = f"L_{self.num_particles}"
        bits_head = [] if self.bits_of is None else ["bits/dim"]
        table = [("", "ELBO", "se data", label, "se data", f"{label} over the first", *bits_head, "KL")]
        for row in self.rows:
            value, error = row.difference or (None, None)
            gap = "" if row.difference is None else "-" if value is None else f"{value:+.3f} +- {number(error, 3)}"
            how = {_method(method) for method in row.kl_methods.values()}
            values = [number(value, 3) for value in (*row.elbo, *row.bound)]
            bits = [] if self.bits_of is None else [number(row.bits_per_dimension, 4)]
            table.append((row.name, *values, gap, *bits, ", ".join(sorted(how))))
        return "\n".join([*_wrapped(self.title), "", *align(table), *self._reasons()])

    def _reasons(self) -> list[str]:
        """Return why Monte Carlo was used, a line for each reason."""
        models: dict[str, list[str]] = {}
        for row in self.rows:
            for site, method in row.kl_methods.items():
                if _method(method) == MONTE_CARLO:
                    models.setdefault(f"the KL of {site} is estimated by Monte Carlo, since {method}", []).append(
                        row.name
                    )
        lines = [line for reason, names in models.items() for line in _wrapped(f"{', '.join(names)}: {reason}")]
        return ["", *lines] if lines else []


@dataclass(frozen=True)
class Comparison:
    """Several evaluations side by side.

    Attributes:
        blocks: of those that may be compared, in the order in which they were given.

    """

    blocks: tuple[Block, ...]

    def __str__(self) -> str:
        """Return one table for each block, and why there are several."""
        parts = [str(block) for block in self.blocks]
        if len(parts) > 1:
            parts.append(SEPARATE)
        shared: dict[str, list[str]] = {}
        for block in self.blocks:
            if block.bits_of == STORED:
                shared.setdefault(block.stored, []).append(block.title.split(", sha256")[0])
        parts += ["\n".join([BITS, *titles]) for titles in shared.values() if len(titles) > 1]
        return "\n\n".join(parts)


def compare(evaluations: Mapping[str, Evaluation]) -> Comparison:
    """Put evaluations side by side, in blocks by data and base measure, each model paired with the first of its block.

    ``difference = mean over data of L_K(x) - L_K of the first model(x)``, with the standard error of that mean

    Dequantized data and stored levels are in different blocks: one is scored by a density, the other by a probability.
    With the change of variables ``log P(u) >= E log p(x) + log |dx/du|`` both are code lengths of the stored values, in
    bits per dimension.

    Args:
        evaluations: by the name of the model.

    Returns:
        The comparison; printing it gives the tables.

    Raises:
        ValueError: if there is nothing to compare, two evaluations of a block have no K in common, or one does not hold
            its values per datum.

    Example:
        >>> print(compare({"N(0, I)": first, "mixture": second}))

    """
    if not evaluations:
        raise ValueError("there is nothing to compare; give evaluations by name")
    groups: dict[tuple[str, str | None], dict[str, Evaluation]] = {}
    for name, evaluation in evaluations.items():
        groups.setdefault((evaluation.data_hash, evaluation.base_measure), {})[name] = evaluation
    return Comparison(tuple(_block(group) for group in groups.values()))


def _block(evaluations: dict[str, Evaluation]) -> Block:
    rungs = [{estimate.num_particles for estimate in evaluation.iwae} for evaluation in evaluations.values()]
    common = set.intersection(*rungs)
    if not common:
        raise ValueError(
            f"{', '.join(evaluations)} have no K in common; evaluate them with the same ks, so that L_K can be compared"
        )
    k = max(common)
    first_name, first = next(iter(evaluations.items()))
    rows = []
    for name, evaluation in evaluations.items():
        bound = next(estimate for estimate in evaluation.iwae if estimate.num_particles == k)
        rows.append(
            Row(
                name=name,
                elbo=(evaluation.elbo.value, evaluation.elbo.se_data),
                bound=(bound.value, bound.se_data),
                difference=None if name == first_name else _paired(evaluations, name, first_name, f"L_{k}"),
                bits_per_dimension=_bits_at(evaluation, bound.value),
                kl_methods=evaluation.kl_methods,
            )
        )
    measure = {"counting": "log-probabilities", "Lebesgue": "log-densities"}.get(first.base_measure or "", "log p(x)")
    transform = f", {first.data_transform['class']}" if first.data_transform else ""
    given = " given covariates" if first.num_covariates else ""
    data = f"{first.data}: {first.num_data} data{given}{transform}, sha256 {first.data_hash[:12]}"
    title = f"{data}; {measure}, nats per datum"
    bits_of = next((words for words in map(_bits_of, evaluations.values()) if words), None)
    stored = first.stored_hash or f"{first.data}: {first.num_data}"
    return Block(title, k, bits_of, f"{stored} {first.num_covariates} covariates", tuple(rows))


def _paired(
    evaluations: Mapping[str, Evaluation], name: str, first: str, label: str
) -> tuple[float | None, float | None]:
    """Return the mean difference of two models over the same data, and its standard error."""
    for each in (name, first):
        if label not in evaluations[each].per_datum:
            raise ValueError(
                f"models are paired datum by datum, but {each!r} holds no values of {label} per datum; its JSON does "
                "not: read the whole report by report.read_report"
            )
    ours, theirs = (evaluations[each].per_datum[label].double() for each in (name, first))
    return mean_and_error(ours - theirs)


def _bits_at(evaluation: Evaluation, nats: float | None) -> float | None:
    """Return bits per dimension at another bound of an evaluation, which holds those of its last."""
    last, volume = evaluation.iwae[-1].value, evaluation.log_abs_det_jacobian or 0.0
    if evaluation.bits_per_dimension is None or nats is None or last is None or last + volume == 0:
        return None
    return evaluation.bits_per_dimension * (nats + volume) / (last + volume)


def _method(method: str) -> str:
    return method if method == "closed form" else MONTE_CARLO


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _bits_of(evaluation: Evaluation) -> str | None:
    if evaluation.bits_per_dimension is None:
        return None
    transform = (evaluation.data_transform or {}).get("class")
    return "binary values" if transform in BINARIZED else STORED
