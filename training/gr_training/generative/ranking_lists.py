"""
Lists for ranking losses: which of a question's mined passages a step sees, and everything about them as tensors.

A list starts with positives (the one that the retriever ranked highest, then random ones) and goes on with negatives
(the highest one, then others). LTRGR (https://arxiv.org/abs/2306.15222) reads four passages of it, DGR
(https://arxiv.org/abs/2402.10769) all six.

Shapes: B questions, D passages of each list, N keys of each passage, K distinct keys of each question.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from gr_components.decoding.grammar import QUERY
from gr_training.config import STRICT_KEYS, checked_dataclass
from gr_training.fitting import Count
from gr_training.mining.candidate_lists import CandidateList

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]


@checked_dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class ListsConfig:
    """
    Which passages and keys a list has.

    :param length: Passages.
    :param positives: How many of these are positives, at most; a question with fewer gets negatives in their place.
    :param negatives: `top` takes those that the retriever ranked highest, `random` draws from the `pool` highest, and
        `mixed` takes the highest and draws the others.
    :param pool: How many negatives there are to draw from.
    :param keys: Identifiers of each passage, those that contributed most.
    :param violating: Leave out questions whose best positive beats the best negative by more than this score, since
        they have nothing to teach; null takes all questions.
    """

    length: Annotated[int, Field(ge=2)] = 6
    positives: Count = 2
    negatives: Literal["mixed", "random", "top"] = "mixed"
    pool: Count = 14
    keys: Count = 40
    violating: float | None = None

    def __post_init__(self) -> None:
        if self.positives >= self.length:
            msg = f"lists.positives ({self.positives}) must be less than lists.length ({self.length})."
            raise ValueError(msg)


def violating(lists: Sequence[CandidateList], margin: float | None) -> list[int]:
    """
    Return the positions of the lists that a margin loss can learn from.

    :param lists: All lists.
    :param margin: The best positive must not beat the best negative by more than this; None keeps all lists.
    """
    if margin is None:
        return list(range(len(lists)))
    gaps = [each.scores_D[each.labels_D > 0].max() - each.scores_D[each.labels_D <= 0].max() for each in lists]
    return [place for place, gap in enumerate(gaps) if gap < margin]


def draw(each: CandidateList, config: ListsConfig, generator: np.random.Generator) -> Int64:
    """
    Draw the passages of a list.

    :param each: Everything mined for a question, best first.
    :param config: What to draw.
    :param generator: Source of randomness.
    :returns: Rows of the passages: positives, then negatives; fewer than `length` if there are no more.
    """
    positives, negatives = np.nonzero(each.labels_D > 0)[0], np.nonzero(each.labels_D <= 0)[0]
    good = _drawn(positives, config.positives, "mixed", len(positives), generator)
    bad = _drawn(negatives, config.length - len(good), config.negatives, config.pool, generator)
    return np.concatenate([good, bad])


def _drawn(rows: Int64, count: int, mode: str, pool: int, generator: np.random.Generator) -> Int64:
    """Rows come best first. A pool that is too small is widened."""
    rows = rows[: max(pool, count)]
    if mode == "top" or len(rows) <= count:
        return rows[:count]
    if mode == "random":
        return np.sort(generator.choice(rows, count, replace=False))
    others = generator.choice(rows[1:], count - 1, replace=False)
    return np.concatenate([rows[:1], np.sort(others)])


class ListBatch:
    """
    Collects the lists of a batch and pads them.

    :param config: Which keys.
    :param teachers: Names of the teachers whose scores are combined: each one's scores over all passages of the
        question, standardised, then averaged. Empty for a loss without a teacher.

    `keys` holds the distinct identifiers of each list so far, `documents` the rows of its passages.
    """

    def __init__(self, config: ListsConfig, teachers: Sequence[str] = ()) -> None:
        self._config, self._teachers = config, teachers
        self._rows: list[dict[str, Any]] = []
        self.keys: list[list[tuple[str, tuple[int, ...]]]] = []
        self.documents: list[Int64] = []

    def add(self, each: CandidateList, generator: np.random.Generator) -> None:
        """
        Draw the list of one question and add it.

        :param each: What was mined.
        :param generator: Source of randomness.
        """
        picks = draw(each, self._config, generator)
        self.documents.append(each.documents_D[picks])
        limit = self._config.keys
        used, place_DN = np.unique(each.keys_DN[picks, :limit], return_inverse=True)
        self.keys.append([each.keys[int(key)] for key in used])
        is_query_K = np.array([view == QUERY for view, _ in self.keys[-1]], dtype=bool)
        self._rows.append(
            {
                "bias_K": np.where(is_query_K, each.query_bias, 0.0),
                "cap_K": np.where(is_query_K, each.query_cap, np.inf),
                "keys_DN": place_DN.reshape(len(picks), -1),
                "prior_DN": each.prior_DN[picks, :limit],
                "cover_DN": each.cover_DN[picks, :limit],
                "mask_DN": each.mask_DN[picks, :limit],
                "mined_D": each.scores_D[picks],
                "labels_D": each.labels_D[picks],
                "teacher_D": self._teacher(each)[picks],
                "draws_2": generator.random(2),
            }
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        """
        Return the padded batch.

        :returns: `bias_BK`, `cap_BK`, `keys_BDN`, `prior_BDN`, `cover_BDN`, `mask_BDN`, `mined_BD`, `labels_BD`,
            `teacher_BD`, `real_BD`, and `draws_B2`, two random numbers for each question.
        """
        length, width = self._config.length, max((row["keys_DN"].shape[1] for row in self._rows), default=0)
        distinct = max(map(len, self.keys), default=0)
        batch = {
            "bias_BK": np.zeros((len(self._rows), distinct), dtype=np.float32),
            "cap_BK": np.full((len(self._rows), distinct), np.inf, dtype=np.float32),
            "keys_BDN": np.zeros((len(self._rows), length, width), dtype=np.int64),
            "prior_BDN": np.full((len(self._rows), length, width), 0.5, dtype=np.float32),
            "cover_BDN": np.zeros((len(self._rows), length, width), dtype=np.float32),
            "mask_BDN": np.zeros((len(self._rows), length, width), dtype=bool),
            "mined_BD": np.zeros((len(self._rows), length), dtype=np.float32),
            "labels_BD": np.zeros((len(self._rows), length), dtype=np.float32),
            "teacher_BD": np.zeros((len(self._rows), length), dtype=np.float32),
            "real_BD": np.zeros((len(self._rows), length), dtype=bool),
            "draws_B2": np.zeros((len(self._rows), 2), dtype=np.float32),
        }
        for b, row in enumerate(self._rows):
            for name, values in row.items():
                target = batch[name.replace("_", "_B", 1)]
                target[b][tuple(slice(size) for size in values.shape)] = values
            batch["real_BD"][b, : len(row["mined_D"])] = True
        return {name: torch.from_numpy(array) for name, array in batch.items()}

    def _teacher(self, each: CandidateList) -> Float64:
        if not self._teachers:
            return np.zeros(len(each.scores_D))
        return np.mean([_standardised(each.teachers[name]) for name in self._teachers], axis=0)


def _standardised(scores_D: npt.NDArray[np.floating[Any]]) -> Float64:
    spread = float(scores_D.std())
    return np.asarray((scores_D - scores_D.mean()) / (spread if spread > 1e-12 else 1.0), dtype=np.float64)
