"""Which bound of an evaluation to report, as a sentence, and the questions that a referee would ask next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyrovae.results.observed_data import DRAWN, WHOLE
from pyrovae.results.tables import Number, Table, Tabled, percent
from pyrovae.results.tightness import ENOUGH, FEW

if TYPE_CHECKING:
    from pyrovae.results.evaluation_record import Evaluation

MOST_QUESTIONS = 3
VERDICTS = {
    ENOUGH: "K is enough as far as the guide's draws reach",
    "unknown": "whether K is enough is not known",
    "not asymptotic": "the gap above L_K does not fall as 1 / K yet, so that its size is not known",
}
TRANSFORMED = {  # words for transforms of the evaluated data; noise is drawn once
    "Identity": "",
    "DynamicBinarization": ", binarized at random",
    "StaticBinarization": ", binarized at random once for training too",
    "Threshold": ", binarized by a threshold",
    "Grey": ", as grey values in [0, 1]",
    "Dequantization": ", dequantized",
    "Standardization": ", standardized",
}


@dataclass(frozen=True, repr=False)
class Recommendation(Tabled):
    """The number of an evaluation to report.

    Attributes:
        bound: label of the bound, such as "L_5000"; None if no number is a bound on log p(x).
        sentence: text to paste, with the number, its errors and its data; without a bound the reason why there is none.
        reason: known facts about the gap between this bound and log p(x).
        questions: what a referee would ask next, the most important first; at most three.

    """

    bound: str | None
    sentence: str
    reason: str
    questions: tuple[str, ...]

    def tables(self) -> tuple[Table, ...]:
        """Return the questions, below the sentence and the reason."""
        lines = (f"To report: {self.sentence}", *filter(None, [self.reason]))
        return (Table(("a referee would ask",), tuple((question,) for question in self.questions), title=lines),)


def recommend(evaluation: Evaluation) -> Recommendation:
    """Return which bound to report, by rule, from the record alone.

    The bound is L_K at the largest K: it is of all data, and holds for any guide. If AIS of the same data is higher by
    more than the tolerance of the weights, by two Monte Carlo standard errors, AIS takes its place if it is of all
    data; else the reason says by how much it is higher. The number is called an estimate of log p(x) only if K is
    enough, AIS is not higher by that much, and BDMC - AIS plus two standard errors is within the tolerance: only data
    simulated from the model show whether the guide misses a mode.

    Args:
        evaluation: a result of `pyrovae.evaluate`.

    """
    rung, weights, gain = evaluation.iwae[-1], evaluation.weights, _gain_of_annealing(evaluation)
    if (fault := _fault(evaluation)) is not None:
        why, question = fault
        sentence = f"nothing: no number of this evaluation is a bound on log {evaluation.density}, since {why}."
        return Recommendation(None, sentence, "", (question,))
    annealing = evaluation.checked.annealing if evaluation.checked else None
    on_all = annealing is not None and annealing.num_data == evaluation.num_data
    bound = annealing.bound if annealing is not None and on_all and gain is not None else rung
    enough = weights is not None and weights.verdict == ENOUGH
    is_density = evaluation.base_measure == "Lebesgue"
    relation = "is estimated as" if enough and gain is None and _is_sandwiched(evaluation) else "is at least"
    details = [bound.label]
    details += [] if bound.se_data is None else [f"standard error {bound.se_data:.3f} over the data"]
    details += [] if bound.se_monte_carlo is None else [f"{bound.se_monte_carlo:.4f} over the draws"]
    details += [] if evaluation.elbo.value is None else [f"ELBO {evaluation.elbo.value:.3f}"]
    if evaluation.bits_per_dimension is not None and bound is rung:
        of_stored = " of the stored values" if is_density else ""
        details.append(f"{evaluation.bits_per_dimension:.4f} bits per dimension{of_stored}")
    data = f"{evaluation.num_data:,} {'datum' if evaluation.num_data == 1 else 'data'} of {evaluation.data}"
    if evaluation.num_distinct is not None:
        data += f", {evaluation.num_distinct:,} distinct"
    if evaluation.data_transform is not None:
        name = evaluation.data_transform["class"]
        data += TRANSFORMED.get(name, f", transformed by {name}")
    if evaluation.observed is not None and evaluation.observed.what != WHOLE:
        data += f"; observed: {evaluation.observed}"
    return Recommendation(
        bound.label,
        f"{'the log-density ' if is_density else ''}log {evaluation.density} {relation} {bound.value:.3f} nats per "
        f"datum ({data}; {', '.join(details)}).",
        _reason(evaluation, gain, "all" if on_all else f"the first {annealing.num_data:,}" if annealing else ""),
        tuple(_questions(evaluation, gain, on_all=on_all)[:MOST_QUESTIONS]),
    )


def _fault(evaluation: Evaluation) -> tuple[str, str] | None:
    """Return the reason why there is no bound to report, and the question that follows; None if there is one."""
    density = evaluation.density
    if evaluation.unnormalized is not None:
        return f"{density} is not normalized ({evaluation.unnormalized})", f"What is {density}? Normalize the model."
    if evaluation.observed is not None and evaluation.observed.what == DRAWN:
        why = "the model draws its observations itself, other ones in each run"
        return why, f"What is log {density} of the data? Give them to the model, as obs=x."
    rung = evaluation.iwae[-1]
    if rung.value is None:
        return (
            f"{rung.label} has no value ({rung.why})",
            f"Which data are not finite? Look at per_datum['{rung.label}'].",
        )
    return None


def _gain_of_annealing(evaluation: Evaluation) -> float | None:
    """Return by how much AIS is higher than L_K on the same data; None if not clearly higher than the tolerance."""
    higher = evaluation.checked.higher if evaluation.checked else None
    return higher.value if higher is not None and higher.exceeds(_tolerance(evaluation)) else None


def _is_sandwiched(evaluation: Evaluation) -> bool:
    """Return whether AIS and BDMC differ by less than the tolerance on simulated data; BDMC below AIS is a fault."""
    sandwich = evaluation.checked.sandwich if evaluation.checked else None
    if sandwich is None or sandwich.gap.value is None or sandwich.gap.se_data is None:
        return False
    return abs(sandwich.gap.value) + 2 * sandwich.gap.se_data <= _tolerance(evaluation)


def _tolerance(evaluation: Evaluation) -> float:
    return evaluation.weights.tolerance if evaluation.weights else 0.0


def _reason(evaluation: Evaluation, gain: float | None, annealed: str) -> str:
    """Return the known facts about the gap between the bound and log p(x)."""
    rung, weights, checked = evaluation.iwae[-1], evaluation.weights, evaluation.checked
    higher = checked.higher if checked is not None else None
    if gain is not None:
        text = f"AIS is higher than {rung.label} by {gain:.3f} nats on {annealed} of these data."
    elif weights is not None:
        verdict = VERDICTS.get(weights.verdict, weights.verdict)
        text = f"{verdict[0].upper()}{verdict[1:]}."
    else:
        text = f"The gap between {rung.label} and log {evaluation.density} is not known."
    if gain is None and higher is not None and higher.value is not None:
        by = f"higher by {Number(higher.value, error=higher.noise)} nats" if higher.value > 0 else "not higher"
        text += f" On {annealed} of these data AIS is {by}."
    gap = checked.sandwich.gap if checked is not None and checked.sandwich is not None else None
    if gap is not None and gap.value is not None:
        text += f" On simulated data BDMC - AIS is {Number(gap.value, error=gap.se_data)} nats."
    return text


def _questions(evaluation: Evaluation, gain: float | None, *, on_all: bool) -> list[str]:
    """Return the questions that the record leaves open."""
    rung, weights, checked = evaluation.iwae[-1], evaluation.weights, evaluation.checked
    questions = ["Why training data? Evaluate the test data."] if "/train" in evaluation.data else []
    if "/validation" in evaluation.data:
        questions.append("Was the validation split used for early stopping? Report the test split.")
    if gain is not None and not on_all:
        questions.append(f"What is AIS on all data? Evaluate with num_annealed={evaluation.num_data}.")
    elif gain is not None:
        questions.append("Is AIS tight? Evaluate with more temperatures, or with data simulated from the model.")
    elif weights is not None and weights.verdict != ENOUGH:
        questions.append(f"How much higher is log {evaluation.density}? Evaluate with K above {rung.num_particles}.")
    if evaluation.cautions:
        questions.insert(0, "Is the model as it was meant? Read the caution below the table of bounds.")
    if (gain is None or not on_all) and weights is not None and (weights.share_above or 0.0) > FEW:
        share = percent(weights.share_above or 0.0)
        questions.append(f"Are the weights reliable? k-hat is above {weights.threshold:.2f} for {share} of the data.")
    if checked is None or checked.annealing is None:
        questions.append("Does an independent method agree? Evaluate with checks, AIS and BDMC among them.")
    elif checked.sandwich is None and gain is None:
        questions.append("Does the guide miss a mode? Evaluate with BDMC, num_simulated=100.")
    if evaluation.observed is not None and evaluation.observed.discreteness is not None:
        questions.append("Is a density of discrete values meant? Dequantize them, or use a likelihood of levels.")
    if "[:" in evaluation.data:
        questions.append("Why only the first data? Evaluate the whole test set.")
    questions.append("How much does it vary between training seeds? Train several, and use pyrovae compare.")
    return questions
