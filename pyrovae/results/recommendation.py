"""Which bound of an evaluation to report, as a sentence, and the questions that a referee would ask next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyrovae.results.observed_data import DRAWN
from pyrovae.results.tables import Number, Table, Tabled, percent

if TYPE_CHECKING:
    from pyrovae.results.evaluation_record import Evaluation

MANY_ABOVE = 0.05  # share of the data with a high k-hat from which the weights are in question
MOST_QUESTIONS = 3
ENOUGH = "K is enough"
VERDICTS = {"unknown": "whether K is enough is not known", "not asymptotic": "the gap does not fall as 1 / K yet"}
BINARIZED = {  # words for transforms of the evaluated data, which are drawn once in either case
    "DynamicBinarization": ", binarized at random",
    "StaticBinarization": ", binarized at random once for training too",
    "Threshold": ", binarized by a threshold",
}


@dataclass(frozen=True, repr=False)
class Recommendation(Tabled):
    """The number of an evaluation to report.

    Attributes:
        bound: label of the bound, such as "L_5000"; None if no number is a bound on log p(x).
        sentence: text to paste, with the number, its errors and its data; without a bound the reason.
        reason: known facts about the gap between this bound and log p(x).
        questions: what a referee would ask next, the most important first; at most three.

    """

    bound: str | None
    sentence: str
    reason: str
    questions: tuple[str, ...]

    def tables(self) -> tuple[Table, ...]:
        """Return the questions, below the sentence and the reason; nothing without a bound, whose tables say why."""
        if self.bound is None:
            return ()
        lines = (f"To report: {self.sentence}", *filter(None, [self.reason]))
        return (Table(("a referee would ask",), tuple((question,) for question in self.questions), title=lines),)


def recommend(evaluation: Evaluation) -> Recommendation:
    """Return which bound to report, by rule, from the record alone.

    The bound is L_K at the largest K: it is of all data, and holds for any guide. If AIS is higher by more than the
    tolerance of the weights and by two standard errors, AIS takes its place if it is of all data; else the reason says
    by how much it is higher. The number is called an estimate of log p(x) only if K is enough and AIS is not higher.

    Args:
        evaluation: a result of `pyrovae.evaluate`.

    """
    rung, weights, gain = evaluation.iwae[-1], evaluation.weights, _gain_of_annealing(evaluation)
    if (fault := _fault(evaluation)) is not None:
        sentence = f"no number of this evaluation, none being a bound on log {evaluation.density}: {fault}."
        return Recommendation(None, sentence, "", ())
    annealing = evaluation.checked.annealing if evaluation.checked else None
    on_all = annealing is not None and annealing.num_data == evaluation.num_data
    bound = annealing.bound if annealing is not None and on_all and gain is not None else rung
    enough = weights is not None and weights.verdict == ENOUGH
    relation = "is estimated as" if enough and gain is None else "is at least"
    details = [bound.label]
    details += [] if bound.se_data is None else [f"standard error {bound.se_data:.3f} over the data"]
    details += [] if bound.se_monte_carlo is None else [f"{bound.se_monte_carlo:.4f} over the draws"]
    details += [] if evaluation.elbo.value is None else [f"ELBO {evaluation.elbo.value:.3f}"]
    if evaluation.bits_per_dimension is not None and bound is rung:
        details.append(f"{evaluation.bits_per_dimension:.4f} bits per dimension")
    transform = BINARIZED.get((evaluation.data_transform or {"class": ""})["class"], "")
    return Recommendation(
        bound.label,
        f"log {evaluation.density} {relation} {bound.value:.3f} nats per datum ({evaluation.num_data:,} data of "
        f"{evaluation.data}{transform}; {', '.join(details)}).",
        _reason(evaluation, gain, "all" if on_all else f"the first {annealing.num_data if annealing else 0}"),
        tuple(_questions(evaluation, gain, on_all=on_all)[:MOST_QUESTIONS]),
    )


def _fault(evaluation: Evaluation) -> str | None:
    """Return the reason why there is no bound to report, or None."""
    if evaluation.unnormalized is not None:
        return evaluation.unnormalized
    if evaluation.observed is not None and evaluation.observed.what == DRAWN:
        return "the model draws its observations itself, other ones in each run"
    rung = evaluation.iwae[-1]
    return f"{rung.label} has no value ({rung.why})" if rung.value is None else None


def _gain_of_annealing(evaluation: Evaluation) -> float | None:
    """Return by how much AIS is higher than L_K; None if not by more than the tolerance and two standard errors."""
    higher = evaluation.checked.higher if evaluation.checked else None
    if higher is None or higher.value is None or higher.se is None:
        return None
    gain = higher.value if higher.first == "AIS" else -higher.value
    tolerance = evaluation.weights.tolerance if evaluation.weights else 0.0
    return gain if gain > max(tolerance, 2 * higher.se) else None


def _reason(evaluation: Evaluation, gain: float | None, annealed: str) -> str:
    """Return the known facts about the gap between the bound and log p(x)."""
    rung, weights, checked = evaluation.iwae[-1], evaluation.weights, evaluation.checked
    if gain is not None:
        text = f"AIS is higher than {rung.label} by {gain:.3f} nats on {annealed} of these data."
    elif weights is not None:
        verdict = VERDICTS.get(weights.verdict, weights.verdict)
        text = f"{verdict[0].upper()}{verdict[1:]}."
        text += " AIS is not higher." if checked is not None and checked.higher is not None else ""
    else:
        text = f"The gap between {rung.label} and log {evaluation.density} is not known."
    gap = checked.sandwich.gap if checked is not None and checked.sandwich is not None else None
    if gap is not None and gap.value is not None:
        text += f" On simulated data BDMC is above AIS by {Number(gap.value, error=gap.se_data)} nats."
    return text


def _questions(evaluation: Evaluation, gain: float | None, *, on_all: bool) -> list[str]:
    """Return the questions that the record leaves open."""
    rung, weights, checked = evaluation.iwae[-1], evaluation.weights, evaluation.checked
    questions = []
    if gain is not None and not on_all:
        questions.append(f"What is AIS on all data? Evaluate with num_annealed={evaluation.num_data}.")
    elif weights is not None and weights.verdict != ENOUGH:
        questions.append(f"How much higher is log {evaluation.density}? Evaluate with K above {rung.num_particles}.")
    if weights is not None and (weights.share_above or 0.0) > MANY_ABOVE:
        share = percent(weights.share_above or 0.0)
        questions.append(f"Are the weights reliable? k-hat is above {weights.threshold:.2f} for {share} of the data.")
    if checked is None or checked.annealing is None:
        questions.append("Does an independent method agree? Evaluate with checks, AIS among them.")
    if evaluation.observed is not None and evaluation.observed.discreteness is not None:
        questions.append("Is a density of discrete values meant? Dequantize them, or use a likelihood of levels.")
    if "[:" in evaluation.data:
        questions.append("Why only the first data? Evaluate the whole test set.")
    questions.append("How much does it vary between training seeds? Train several, and use pyrovae compare.")
    return questions
