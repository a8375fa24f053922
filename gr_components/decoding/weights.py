"""
How much an identifier says about a document: log-odds of its probability given the query against its frequency.

With P(n|q) the model's probability of identifier n and P(n) its frequency in the corpus, SEAL
(https://arxiv.org/abs/2204.10628, equation 2) weighs it by

    w(n, q) = max(0, log [ P(n|q) (1 - P(n)) / (P(n) (1 - P(n|q))) ])

so that frequent identifiers need a confident model, and those that the query makes less likely count nothing.

Shapes: K identifiers.
"""

import numpy as np
import numpy.typing as npt

from gr_components.indexes.candidates import Float32, Int64

Float64 = npt.NDArray[np.float64]

# Keeps both logarithms finite; far from any real value.
_LARGEST_FREQUENCY = 0.999
_SMALLEST_DEFICIT = 1e-6


def log_odds(
    log_probs_K: Float32 | Float64, counts_K: Int64, totals_K: npt.NDArray[np.integer] | int, *, smoothing: float = 0.0
) -> Float64:
    """
    Weight identifiers.

    :param log_probs_K: Log-probabilities given the query (nats).
    :param counts_K: Occurrences; an identifier that does not occur has weight 0.
    :param totals_K: What counts are divided by: tokens or entries.
    :param smoothing: Added to counts and totals.
    :returns: Weights in nats, >= 0.
    """
    log_p_K = np.minimum(log_probs_K.astype(np.float64), -_SMALLEST_DEFICIT)
    occurs_K = (counts_K > 0) & np.isfinite(log_p_K)
    frequency_K = np.where(occurs_K, frequencies(counts_K, totals_K, smoothing=smoothing), 0.5)
    log_p_K = np.where(occurs_K, log_p_K, -1.0)
    odds_K = log_p_K - np.log(-np.expm1(log_p_K)) + np.log1p(-frequency_K) - np.log(frequency_K)
    return np.where(occurs_K, np.maximum(odds_K, 0.0), 0.0)


def frequencies(counts_K: Int64, totals_K: npt.NDArray[np.integer] | int, *, smoothing: float = 0.0) -> Float64:
    """
    Return P(n): the share of a corpus that identifiers are.

    :param counts_K: Occurrences.
    :param totals_K: What counts are divided by: tokens or entries.
    :param smoothing: Added to counts and totals.
    :returns: Shares, at most .999.
    """
    totals = np.maximum(np.asarray(totals_K, dtype=np.float64) + smoothing, 1.0)
    return np.minimum((counts_K + smoothing) / totals, _LARGEST_FREQUENCY)


def least_useful_log_probability(total: int, *, smoothing: float = 0.0) -> float:
    """
    Log-probability at and below which even an identifier that occurs only once has weight 0.

    :param total: What counts are divided by.
    :param smoothing: Added to counts and totals.
    """
    frequency = (1.0 + smoothing) / max(total + smoothing, 1.0)
    return float(np.log(min(frequency, _LARGEST_FREQUENCY)))
