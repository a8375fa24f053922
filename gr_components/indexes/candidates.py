"""
What a constraint hands to the beam search: plain arrays, no behaviour.

Shapes: B queries, K beams of each, R = B * K rows, M candidates of each query, S index segments, V vocabulary.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class BeamStates:
    """
    Where beams stand in a constraint; opaque to the beam search, which only selects and reorders.

    :param field: The index field that is searched.
    :param depth: Tokens consumed so far, prefix included; the same for all beams, or -1 where it differs.
    :param nodes_SR3: Suffix range (first row, end row) and hot node (-1: none) of every beam in every segment.
    """

    field: str
    depth: int
    nodes_SR3: Int64

    def select(self, rows_N: Int64) -> "BeamStates":
        """
        Return the states of some rows.

        :param rows_N: Row numbers, repeats allowed.
        """
        return BeamStates(self.field, self.depth, np.ascontiguousarray(self.nodes_SR3[:, rows_N]))


@dataclass(frozen=True)
class Candidates:
    """
    The best continuations of each query's beams, best first; equal scores are ordered by beam, then by token.

    :param scores_BM: Log-probability of the whole sequence, -inf where there are fewer than M candidates.
    :param beams_BM: The beam (0 to K - 1 within the query) that is continued; -1 where there is no candidate.
    :param tokens_BM: The token that continues it; 0 where there is no candidate.
    :param states: States after the token, row b * M + m.
    """

    scores_BM: Float32
    beams_BM: Int64
    tokens_BM: Int64
    states: BeamStates


@dataclass(frozen=True)
class Occurrences:
    """
    Where sequences occur in live and allowed documents.

    :param owners_N: Which of the given sequences.
    :param documents_N: Places of the documents in the index; `numbers_D` of the index gives the store's numbers.
    :param positions_N: Offset in tokens from the start of the document's text in the field.
    """

    owners_N: Int64
    documents_N: Int64
    positions_N: Int64
