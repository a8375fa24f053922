"""
Is a difference between two systems more than chance? Paired tests over questions.

Shape suffixes: Q questions, N random rounds, P pairs of systems.
"""

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from gr_components.errors import ConfigError

Floats = npt.NDArray[np.float64]

ROUNDS = 20_000
SEED = 13
_CHUNK = 1_000
_TOLERANCE = 1e-12


def paired_randomisation(
    first_Q: Sequence[float], second_Q: Sequence[float], *, rounds: int = ROUNDS, seed: int = SEED
) -> float:
    """
    Return the two-sided p value of the paired randomisation (sign-flip) test.

    Under the null hypothesis the two systems' values of a question are exchangeable. Where there are no more sign
    patterns than rounds, all of them are counted and the value is exact; otherwise it is (1 + hits) / (1 + rounds).

    :param first_Q: One system's value of each question.
    :param second_Q: The other's, in the same order.
    :param rounds: Random sign patterns.
    :param seed: Of these patterns.
    :returns: p in (0, 1]; 1 without questions or without any difference.
    :raises ConfigError: If the systems have different numbers of questions.
    """
    difference_Q = _differences(first_Q, second_Q)
    difference_Q = difference_Q[difference_Q != 0]  # flipping the sign of zero changes nothing
    questions = len(difference_Q)
    if questions == 0:
        return 1.0
    observed = abs(difference_Q.sum()) - _TOLERANCE
    if 2**questions <= rounds:
        patterns = np.arange(2**questions)[:, None] >> np.arange(questions) & 1
        sums_N = (2 * patterns - 1) @ difference_Q
        return float(np.mean(np.abs(sums_N) >= observed))
    draw = np.random.default_rng(seed)
    hits = 0
    for start in range(0, rounds, _CHUNK):
        signs_NQ = draw.integers(0, 2, size=(min(_CHUNK, rounds - start), questions), dtype=np.int8) * 2 - 1
        hits += int(np.count_nonzero(np.abs(signs_NQ @ difference_Q) >= observed))
    return (1 + hits) / (1 + rounds)


def bootstrap_interval(
    values_Q: Sequence[float],
    *,
    confidence: float = 0.95,
    rounds: int = 10_000,
    seed: int = SEED,
) -> tuple[float, float]:
    """
    Return the percentile bootstrap interval of a mean over questions.

    For an interval of a difference pass the differences.

    :param values_Q: One value a question.
    :param confidence: Coverage, in (0, 1).
    :param rounds: Resamples.
    :param seed: Of the resamples.
    :returns: Lower and upper end; (0, 0) without questions.
    :raises ConfigError: If `confidence` is out of range.
    """
    if not 0 < confidence < 1:
        msg = f"confidence must be between 0 and 1, got {confidence}."
        raise ConfigError(msg)
    array_Q = np.asarray(values_Q, dtype=np.float64)
    if array_Q.size == 0:
        return 0.0, 0.0
    draw = np.random.default_rng(seed)
    means: list[Floats] = []
    for start in range(0, rounds, _CHUNK):
        picks_NQ = draw.integers(0, array_Q.size, size=(min(_CHUNK, rounds - start), array_Q.size))
        means.append(array_Q[picks_NQ].mean(axis=1))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """
    Correct p values for the number of tests (Holm, 1979).

    :param p_values: One per test.
    :returns: Corrected values in the same order; each below alpha is significant at alpha in the whole family.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected = [0.0] * len(p_values)
    running = 0.0
    for place, index in enumerate(order):
        running = max(running, (len(p_values) - place) * p_values[index])
        corrected[index] = min(1.0, running)
    return corrected


def smallest_detectable_difference(
    differences_Q: Sequence[float],
    *,
    alpha: float = 0.05,
    power: float = 0.8,
) -> float:
    """
    Return the true difference that a two-sided paired test would find with the given power.

    Normal approximation with the observed spread of the differences: (z(1-alpha/2) + z(power)) * s / sqrt(Q).

    :param differences_Q: Difference of the two systems on each question.
    :param alpha: Level of the test.
    :param power: Chance of finding it.
    :returns: A difference of means, not negative; infinite with fewer than two questions.
    """
    array_Q = np.asarray(differences_Q, dtype=np.float64)
    if array_Q.size < 2:
        return float("inf")
    normal = NormalDist()
    factor = normal.inv_cdf(1 - alpha / 2) + normal.inv_cdf(power)
    return float(factor * array_Q.std(ddof=1) / np.sqrt(array_Q.size))


def _differences(first_Q: Sequence[float], second_Q: Sequence[float]) -> Floats:
    if len(first_Q) != len(second_Q):
        msg = f"A paired test needs the same questions on both sides, got {len(first_Q)} and {len(second_Q)}."
        raise ConfigError(msg)
    return np.asarray(first_Q, dtype=np.float64) - np.asarray(second_Q, dtype=np.float64)
