"""
Generated identifiers ("keys") as arrays, one row each.

Shapes: K keys, T longest key, S index segments.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from gr_components.decoding.grammar import View
from gr_components.indexes.candidates import Bool, Float32, Int64


@dataclass(frozen=True)
class Keys:
    """
    Identifiers of one or several queries.

    :param views: What `views_K` points to.
    :param owners_K: Which query each key belongs to.
    :param views_K: Which view.
    :param tokens_KT: Generated tokens (stop token included, index prefix excluded), padded with -1.
    :param log_probs_K: Log-probability given the query, over the full vocabulary.
    :param counts_K: Occurrences in live and allowed documents.
    :param nodes_SK3: Where the key stands in every segment (`BeamStates.nodes_SR3`).
    """

    views: tuple[View, ...]
    owners_K: Int64
    views_K: Int64
    tokens_KT: Int64
    log_probs_K: Float32
    counts_K: Int64
    nodes_SK3: Int64

    def __len__(self) -> int:
        return len(self.owners_K)

    @property
    def lengths_K(self) -> Int64:
        """Number of generated tokens of each key."""
        return (self.tokens_KT >= 0).sum(axis=1)

    def select(self, which: Int64 | Bool) -> "Keys":
        """
        Return some of the keys.

        :param which: Indices or a mask.
        """
        return replace(
            self,
            owners_K=self.owners_K[which],
            views_K=self.views_K[which],
            tokens_KT=self.tokens_KT[which],
            log_probs_K=self.log_probs_K[which],
            counts_K=self.counts_K[which],
            nodes_SK3=np.ascontiguousarray(self.nodes_SK3[:, which]),
        )

    def sequences(self) -> Int64:
        """Return the tokens (K, P + T) as they stand in the index: with the prefix of each key's view."""
        longest = max((len(view.index_prefix) for view in self.views), default=0)
        sequences_KL = np.full((len(self), longest + self.tokens_KT.shape[1]), -1, dtype=np.int64)
        for v, view in enumerate(self.views):
            own = self.views_K == v
            prefix = len(view.index_prefix)
            sequences_KL[own, :prefix] = view.index_prefix
            sequences_KL[own, prefix : prefix + self.tokens_KT.shape[1]] = self.tokens_KT[own]
        return sequences_KL


def join(views: Sequence[View], parts: Sequence[Keys], segments: int) -> Keys:
    """
    Put the keys of several views together.

    :param views: All views; those of the parts are among them.
    :param parts: Keys.
    :param segments: Number of index segments S.
    """
    order = {view.name: v for v, view in enumerate(views)}
    longest = max((part.tokens_KT.shape[1] for part in parts), default=0)
    tokens = [np.pad(p.tokens_KT, ((0, 0), (0, longest - p.tokens_KT.shape[1])), constant_values=-1) for p in parts]
    renamed = [np.array([order[view.name] for view in part.views], dtype=np.int64)[part.views_K] for part in parts]
    empty, none = np.empty(0, dtype=np.int64), np.empty((segments, 0, 3), dtype=np.int64)
    return Keys(
        tuple(views),
        np.concatenate([empty, *(part.owners_K for part in parts)]),
        np.concatenate([empty, *renamed]),
        np.concatenate([np.empty((0, longest), dtype=np.int64), *tokens]),
        np.concatenate([np.empty(0, dtype=np.float32), *(part.log_probs_K for part in parts)]),
        np.concatenate([empty, *(part.counts_K for part in parts)]),
        np.concatenate([none, *(part.nodes_SK3 for part in parts)], axis=1),
    )


def distinct(keys: Keys) -> Keys:
    """
    Keep one of several keys with the same tokens in the same field: the one with the highest log-probability.

    :param keys: Keys of one query.
    """
    if len(keys) < 2:
        return keys
    fields = sorted({view.field for view in keys.views})
    field_K = np.array([fields.index(view.field) for view in keys.views])[keys.views_K]
    order_K = np.argsort(-keys.log_probs_K, kind="stable")
    rows_KL = np.concatenate([field_K[:, None], keys.sequences()], axis=1)[order_K]
    _, firsts = np.unique(rows_KL, axis=0, return_index=True)
    return keys.select(np.sort(order_K[firsts]))
