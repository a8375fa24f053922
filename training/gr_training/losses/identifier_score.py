"""
The score of a passage as a differentiable function of the log-probabilities of its identifiers ("keys").

The same formula as at inference (`gr_components.decoding`): with P(n|q) the model's probability of key n and P(n) its
frequency in the corpus, as in SEAL (https://arxiv.org/abs/2204.10628, equations 2 to 4),

    w(n, q) = max(0, log [ P(n|q) (1 - P(n)) / (P(n) (1 - P(n|q))) ])
    s(q, d) = sum over the keys n of d: w(n, q)^alpha * cover(n, d)

Which keys a passage has, their frequencies and their covers are constants; the log-probabilities carry the gradient
(LTRGR, https://arxiv.org/abs/2306.15222).

Shapes: B questions, D passages of each list, N keys of each passage, K distinct keys of each question.
"""

from collections.abc import Hashable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Float64 = npt.NDArray[np.float64]

# As at inference (gr_components.decoding.weights).
_LARGEST_FREQUENCY = 0.999
_SMALLEST_DEFICIT = 1e-6
_LOG_HALF = -0.6931471805599453


def log1mexp(x: Tensor) -> Tensor:
    """
    log(1 - exp(x)) to full precision for all x < 0 (Maechler, 2012), with a gradient that is finite wherever it is.

    :param x: Negative numbers.
    """
    small = x > _LOG_HALF
    # Each branch is fed harmless numbers where the other one is taken: NaN would get through the gradient of `where`.
    near = torch.log(-torch.expm1(torch.where(small, x, _LOG_HALF)))
    far = torch.log1p(-torch.exp(torch.where(small, _LOG_HALF, x)))
    return torch.where(small, near, far)


def identifier_weights(log_probs: Tensor, prior: Tensor, *, alpha: float = 2.0, clamp: float = 1e-4) -> Tensor:
    """
    Weigh identifiers: the log-odds of P(n|q) against P(n), in nats, not below 0, to the power of alpha.

    Values equal those of inference. The gradient is exact while P(n|q) is below 1 - `clamp`; above that its slope stays
    at what it is there, so that it is bounded by alpha * weight / clamp (in the logits it fades away like 1 - P(n|q)).
    It is zero where the weight is 0: a key that the question makes less likely has nothing to say.

    :param log_probs: Log-probabilities log P(n|q) (nats), <= 0; minus infinity has weight 0 and no gradient.
    :param prior: Frequencies P(n), above 0 and below 1; above .999 they count as .999. No gradient.
    :param alpha: Exponent, above 0.
    :param clamp: Where the slope stops growing; above 0 and below 1.
    :returns: Weights >= 0, float32 or wider.
    :raises ValueError: If `alpha` or `clamp` is out of range.
    """
    if alpha <= 0 or not 0 < clamp < 1:
        msg = f"alpha must be > 0 and clamp between 0 and 1, got alpha={alpha}, clamp={clamp}."
        raise ValueError(msg)
    wide = torch.promote_types(log_probs.dtype, torch.float32)
    finite = torch.isfinite(log_probs)
    log_p = torch.where(finite, log_probs, -1.0).to(wide)
    prior = prior.detach().to(wide).clamp(torch.finfo(wide).tiny, _LARGEST_FREQUENCY)
    # Straight through the limit: the slope of the limit, not of what is beyond it.
    limited = log_p - (log_p - log_p.clamp(max=-clamp)).detach()
    odds = limited - log1mexp(limited)
    exact = log_p.detach().clamp(max=-_SMALLEST_DEFICIT)
    odds = odds + torch.where(log_p > -clamp, exact - log1mexp(exact) - odds, 0.0).detach()
    odds = odds + torch.log1p(-prior) - torch.log(prior)
    return _power(torch.where(finite, odds, 0.0), alpha)


def as_searched(log_probs_BK: Tensor, bias_BK: Tensor, cap_BK: Tensor) -> Tensor:
    """
    Log-probabilities as the search counts them: min(log P(n|q) + bias, cap); bias and cap are for pseudo-queries.

    The gradient is that of the minimum: none where the cap holds, since there the key's weight no longer changes.

    :param log_probs_BK: Log-probabilities of each question's distinct keys (nats).
    :param bias_BK: Added to them (nats); 0 for other views.
    :param cap_BK: Upper limits (nats), <= 0; infinite for other views.
    """
    return torch.minimum(log_probs_BK + bias_BK, cap_BK)


def passage_scores(
    log_probs_BK: Tensor, keys_BDN: Tensor, prior_BDN: Tensor, cover_BDN: Tensor, mask_BDN: Tensor, *,
    alpha: float = 2.0, clamp: float = 1e-4, normalised: bool = False,
) -> Tensor:  # fmt: skip
    """
    Score passages by their identifiers.

    :param log_probs_BK: Log-probabilities of each question's distinct keys (nats); the only input with a gradient.
    :param keys_BDN: Where in K each key stands.
    :param prior_BDN: Frequency P(n) of each key in the corpus.
    :param cover_BDN: Cover of each key in its passage, 0 to 1.
    :param mask_BDN: True for real keys; the other entries may hold anything and add nothing.
    :param alpha: Exponent of the weights.
    :param clamp: See `identifier_weights`.
    :param normalised: Divide by the list's `mean_cover` and take the alpha-th root, see `normalise`.
    :returns: scores_BD >= 0, float32 or wider: hundreds for a good passage with alpha = 2, or nats if normalised.
    """
    batch, documents, keys = keys_BDN.shape
    places_BDN = torch.where(mask_BDN, keys_BDN, 0)
    if log_probs_BK.shape[1] == 0:
        return log_probs_BK.new_zeros(batch, documents, dtype=torch.promote_types(log_probs_BK.dtype, torch.float32))
    log_p_BDN = log_probs_BK.gather(1, places_BDN.reshape(batch, -1)).reshape(batch, documents, keys)
    log_p_BDN = torch.where(mask_BDN, log_p_BDN, -1.0)
    weights_BDN = identifier_weights(log_p_BDN, torch.where(mask_BDN, prior_BDN, 0.5), alpha=alpha, clamp=clamp)
    cover_BDN = torch.where(mask_BDN, cover_BDN, 0.0).detach().to(weights_BDN)
    scores_BD = (weights_BDN * cover_BDN).sum(-1)
    if not normalised:
        return scores_BD
    return normalise(scores_BD, mean_cover(cover_BDN, mask_BDN), alpha=alpha)


def mean_cover(cover_BDN: Tensor, mask_BDN: Tensor) -> Tensor:
    """
    Summed cover of a passage's keys, averaged over the passages of a list that have keys; 1 for a list without any.

    :param cover_BDN: Cover of each key, 0 to 1.
    :param mask_BDN: True for real keys.
    :returns: (B, 1), > 0.
    """
    total_B1 = torch.where(mask_BDN, cover_BDN, 0.0).sum((1, 2))[:, None]
    mean_B1 = total_B1 / mask_BDN.any(-1).sum(-1, keepdim=True).clamp(min=1)
    return torch.where(mean_B1 > 0, mean_B1, 1.0)


def normalise(scores_BD: Tensor, reference: Tensor | float, *, alpha: float) -> Tensor:
    """
    Put scores on a scale on which margins mean the same for every alpha and every number of keys.

    (score / reference)^(1 / alpha): of first order in the log-odds, whatever alpha is. All passages of a question are
    divided by the same number, so their order stays that of inference (a mean over each passage's own keys would rank
    a passage with one good key above a passage with the same key and weaker ones).

    - With `mean_cover` as reference the unit is nats: a passage whose keys all have log-odds w scores w times the root
      of its share of keys. A margin of 1 asks for one nat more, averaged over the keys.
    - With a typical score (say the median over questions of the first positive's) the scale has no unit: that passage
      scores 1, and a margin of .1 asks for ten per cent more log-odds.

    :param scores_BD: Scores >= 0.
    :param reference: A number > 0, or one per question (B, 1); no gradient.
    :param alpha: The exponent the scores were made with, > 0.
    :returns: Normalised scores >= 0; zero, without gradient, where the score is zero.
    """
    if isinstance(reference, Tensor):
        reference = reference.detach().to(scores_BD)
    return _power(scores_BD / reference, 1.0 / alpha)


def covers(
    keys: Sequence[Sequence[int]],
    weights_N: Sequence[float] | Float64,
    *,
    beta: float = 0.8,
    mode: Literal["inference", "released"] = "inference",
    places: Sequence[Sequence[tuple[Hashable, int]]] | None = None,
) -> Float64:
    """
    Cover of each key of one passage: 1 - beta + beta * (share of its distinct tokens that no key before it has).

    :param keys: Token ids of each key, with the prefix that it has in the index.
    :param weights_N: Log-odds weight of each key; best first is the order of `inference`, ties in the order given.
    :param beta: How much a key loses whose tokens are all used, 0 to 1.
    :param mode: `inference`: as documents are scored. `released`: as the published training code of LTRGR and DGR does,
        in the order given and wherever the keys stand.
    :param places: `inference`: field and position of every occurrence of each key in the passage. A key all of whose
        occurrences overlap better keys then has cover 0 and uses no tokens, as at inference. None if no keys overlap.
    :returns: N covers; 0 for keys of weight 0, which inference leaves out.
    :raises ValueError: If the mode is unknown.
    """
    if mode not in ("inference", "released"):
        msg = f"mode must be 'inference' or 'released', got {mode!r}."
        raise ValueError(msg)
    weights = np.asarray(weights_N, dtype=np.float64)
    order = np.argsort(-weights, kind="stable") if mode == "inference" else np.arange(len(keys))
    used: set[int] = set()
    taken: set[tuple[Hashable, int]] = set()
    covers_N = np.zeros(len(keys))
    for n in order.tolist():
        if weights[n] <= 0 or not keys[n]:
            continue
        if mode == "inference" and places is not None and not _take(places[n], len(keys[n]), taken):
            continue
        tokens = set(keys[n])
        covers_N[n] = 1 - beta + beta * len(tokens - used) / len(tokens)
        used |= tokens
    return covers_N


def _take(places: Sequence[tuple[Hashable, int]], length: int, taken: set[tuple[Hashable, int]]) -> bool:
    """Take the positions of all occurrences that overlap nothing; whether there was one."""
    found = False
    for field, position in sorted(places, key=lambda place: place[1]):
        span = {(field, p) for p in range(position, position + length)}
        if not span & taken:
            taken |= span
            found = True
    return found


def _power(x: Tensor, exponent: float) -> Tensor:
    """max(0, x)^exponent; the gradient is finite, and zero where x <= 0, for every exponent."""
    tiny = torch.finfo(x.dtype).eps ** 2
    positive = x > tiny
    return torch.where(positive, torch.where(positive, x, 1.0) ** exponent, 0.0)
