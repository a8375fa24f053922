"""
The published constants of LTRGR and DGR, in one table.

`code` is the released code (https://github.com/liyongqi67/MINDER), `paper` what the paper prints; they differ. All
margins belong to scores that are sums of squared log-odds (alpha = 2), that is hundreds for a good passage.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Published:
    """
    Constants of one method.

    :param margin: Of the (top) pair, or DGR's base margin.
    :param random_extra: LTRGR: added to the margin of the random pair.
    :param pair_weights: LTRGR: weights of the top pair and the random pair.
    :param increment: DGR: added to the margin for each rank between two passages.
    :param head_weight: DGR: weight of pairs with the head of the list; the others have 1 / (rank + 1).
    :param likelihood_factor: Multiplies the likelihood term.
    :param likelihood_weights: Weights of body, title and query view in it.
    :param keys: Identifiers of each passage.
    :param length: Passages of each list.
    :param learning_rate: Peak rate of AdamW; linear decay.
    :param weight_decay: Of AdamW.
    :param clip: Largest norm of the gradient.
    :param warmup_share: Share of the steps in which the rate grows.
    :param epochs: Passes over the lists.
    :param batch: Questions per step, all devices together (DGR) or per device (LTRGR).
    :param hits: Passages mined for each question of NQ and TriviaQA.
    :param alpha: Exponent of the identifier weights.
    :param beta: Of the cover.
    :param smoothing: Added to counts and their total.
    """

    margin: float
    random_extra: float = 0.0
    pair_weights: tuple[float, float] = (0.5, 0.5)
    increment: float = 0.0
    head_weight: float = 1.0
    likelihood_factor: float
    likelihood_weights: tuple[float, float, float] = (0.33, 0.33, 0.33)
    keys: int = 40
    length: int
    learning_rate: float = 1e-5
    weight_decay: float = 0.0
    clip: float = 1.0
    warmup_share: float = 0.1
    epochs: int = 3
    batch: int
    hits: int = 200
    alpha: float = 2.0
    beta: float = 0.8
    smoothing: float = 5.0


_LTRGR_CODE = Published(margin=300.0, random_extra=100.0, likelihood_factor=1000.0, length=4, batch=8)

PUBLISHED = {
    ("ltrgr", "code"): _LTRGR_CODE,
    ("ltrgr", "paper"): replace(_LTRGR_CODE, margin=500.0, random_extra=0.0, pair_weights=(1.0, 1.0)),
    ("dgr", "code"): Published(
        margin=300.0,
        increment=100.0,
        head_weight=3.0,
        likelihood_factor=500.0,
        likelihood_weights=(0.5, 0.5, 0.0),
        length=6,
        batch=4,
    ),
}
"""By method and source. There is no entry for DGR's paper: where it differs from its code is not known."""
