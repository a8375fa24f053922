"""Compare systems on the same questions, with a correction for the number of comparisons."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from gr_components.errors import ConfigError
from gr_components.evaluation.retrieval import Evaluation
from gr_components.evaluation.significance import (
    bootstrap_interval,
    holm,
    paired_randomisation,
    smallest_detectable_difference,
)


@dataclass(frozen=True)
class Comparison:
    """
    Two systems on one measure.

    :param system: The system.
    :param baseline: What it is compared with.
    :param measure: Name of the measure.
    :param num_questions: How many questions both answered.
    :param value: Mean of the system.
    :param baseline_value: Mean of the baseline.
    :param difference: value - baseline_value.
    :param interval: 95 % bootstrap interval of the difference.
    :param p_value: Two-sided, of the paired randomisation test.
    :param p_corrected: The same after Holm's correction over all comparisons made together.
    :param detectable: Smallest true difference that this test finds with power .8 at level .05.
    """

    system: str
    baseline: str
    measure: str
    num_questions: int
    value: float
    baseline_value: float
    difference: float
    interval: tuple[float, float]
    p_value: float
    p_corrected: float
    detectable: float


def compare(
    systems: Mapping[str, Evaluation], pairs: Sequence[tuple[str, str]], measure: str = "nDCG@10"
) -> list[Comparison]:
    """
    Compare pairs of systems.

    :param systems: Evaluations by name.
    :param pairs: (system, baseline) by their names; all of them form one family for Holm's correction.
    :param measure: A measure that all of them have.
    :raises ConfigError: If a name or the measure is unknown, or two systems were measured on different questions.
    """
    comparisons = [_compare(systems, system, baseline, measure) for system, baseline in pairs]
    corrected = holm([comparison.p_value for comparison in comparisons])
    return [replace(comparison, p_corrected=p) for comparison, p in zip(comparisons, corrected, strict=True)]


def _compare(systems: Mapping[str, Evaluation], system: str, baseline: str, measure: str) -> Comparison:
    values, baseline_values = (_values(systems, name, measure) for name in (system, baseline))
    if values.keys() != baseline_values.keys():
        msg = f"'{system}' and '{baseline}' were measured on different questions; a paired test needs the same ones."
        raise ConfigError(msg)
    first = list(values.values())
    second = [baseline_values[question] for question in values]
    differences = [a - b for a, b in zip(first, second, strict=True)]
    p_value = paired_randomisation(first, second)
    return Comparison(
        system=system,
        baseline=baseline,
        measure=measure,
        num_questions=len(first),
        value=fmean(first) if first else 0.0,
        baseline_value=fmean(second) if second else 0.0,
        difference=fmean(differences) if differences else 0.0,
        interval=bootstrap_interval(differences),
        p_value=p_value,
        p_corrected=p_value,
        detectable=smallest_detectable_difference(differences),
    )


def _values(systems: Mapping[str, Evaluation], name: str, measure: str) -> dict[str, float]:
    if name not in systems:
        msg = f"There is no system '{name}' to compare; there are {', '.join(systems)}."
        raise ConfigError(msg)
    measured = systems[name].per_question
    if measure not in measured:
        msg = f"'{name}' was not measured by '{measure}', only by {', '.join(measured)}."
        raise ConfigError(msg)
    return measured[measure]
