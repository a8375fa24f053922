"""
Beam search in which every candidate of every step is kept as an identifier, as SEAL does (https://arxiv.org/abs/2204.10628).

The decoder's log-probabilities are over the full vocabulary; the constraint only selects, it never renormalises. So one
pass yields hundreds of n-grams of all lengths with their exact log-probabilities.

Shapes: B queries, K beams of each, R = B * K rows, M = 2 * K candidates of each query, V vocabulary, N keys, T tokens.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from gr_components.decoding.grammar import View
from gr_components.decoding.interfaces import BeamStates, Candidates, Constraint, Decoder
from gr_components.decoding.keys import Keys
from gr_components.errors import NumericsError
from gr_components.indexes.candidates import Bool, Float32, Int64
from gr_components.indexes.suffix_kernels import SLACK


@dataclass(frozen=True)
class Blocked:
    """
    Tokens that a view may not generate.

    :param first_V: At the first position.
    :param later_V: At later positions.
    """

    first_V: Bool
    later_V: Bool


@dataclass(frozen=True)
class ViewKeys:
    """
    What one view's search gives.

    :param keys: Every candidate of every step, or the complete ones where only these count.
    :param first_BV: Log-probabilities of the first token.
    """

    keys: Keys
    first_BV: Float32


@dataclass
class _Beams:
    """The live beams: K for each query, dead ones with score -inf."""

    scores_R: Float32
    tokens_R: Int64
    rows_R: Int64
    states: BeamStates
    history_RT: Int64


@dataclass(frozen=True)
class _Found:
    """Candidates of one step that become keys."""

    owners_N: Int64
    tokens_NT: Int64
    log_probs_N: Float32
    nodes_SN3: Int64


def beam_search(
    decoder: Decoder,
    constraint: Constraint,
    source: Any,
    view: View,
    *,
    num_queries: int,
    beams: int,
    blocked: Blocked,
    allowed: Any = None,
    counted: Any = None,
    floor: float = -np.inf,
) -> ViewKeys:
    """
    Generate the identifiers of one view for a batch of queries.

    A candidate that ends with the view's stop token is finished: it becomes a key and leaves the beam. The K best of
    the others go on, until they have `view.max_tokens` tokens or nothing continues them.

    :param decoder: Gives log-probabilities.
    :param constraint: Says what exists.
    :param source: The encoded queries (`decoder.encode`).
    :param view: What to generate.
    :param num_queries: B.
    :param beams: K.
    :param blocked: Tokens that may not be generated.
    :param allowed: Documents in which identifiers must occur, as the constraint makes them.
    :param counted: Documents in which they are counted.
    :param floor: Beams with a log-probability below this do not go on: it never rises again.
    :raises NumericsError: If the decoder returns NaN or values that are no log-probabilities.
    """
    rows = num_queries * beams
    state = decoder.start(source, beams)
    in_place_R = np.arange(rows)
    for token in view.decoder_start[:-1]:
        decoder.step(np.full(rows, token, dtype=np.int64), in_place_R, state)
    live = _Beams(
        scores_R=np.where(in_place_R % beams == 0, 0.0, -np.inf).astype(np.float32),
        tokens_R=np.full(rows, view.decoder_start[-1], dtype=np.int64),
        rows_R=in_place_R,
        states=constraint.start(view.field, view.index_prefix, rows),
        history_RT=np.empty((rows, 0), dtype=np.int64),
    )
    found: list[_Found] = []
    first_BV = np.empty((num_queries, 0), dtype=np.float32)
    for step in range(view.max_tokens):
        log_probs_RV = decoder.step(live.tokens_R, live.rows_R, state)
        _check(log_probs_RV, view)
        if step == 0:
            first_BV = log_probs_RV[::beams].copy()
        blocked_V = blocked.later_V if step else blocked.first_V
        candidates = constraint.step(log_probs_RV, live.scores_R, live.states, beams, 2 * beams, blocked_V, allowed)
        going_on_BM = _collect(candidates, live, beams, view, found) & (candidates.scores_BM > floor - SLACK)
        if step + 1 == view.max_tokens or not going_on_BM.any():
            break
        live = _next(candidates, going_on_BM, live, beams)
    return ViewKeys(_keys(found, view, constraint, counted), first_BV)


def _check(log_probs_RV: Float32, view: View) -> None:
    peak = float(log_probs_RV.max(initial=-np.inf))  # NaN if any value is
    if np.isnan(peak) or peak > SLACK:
        what = "NaN" if np.isnan(peak) else f"a log-probability of {peak:.3g}"
        msg = (
            f"The model returned {what} while decoding the view {view.name!r}. Its weights are damaged, or its number "
            "format is too small for it: try dtype='float32'."
        )
        raise NumericsError(msg)


def _collect(candidates: Candidates, live: _Beams, beams: int, view: View, found: list[_Found]) -> Bool:
    """Keep what counts as a key; return which candidates may go on."""
    real_BM = candidates.beams_BM >= 0
    finished_BM = np.zeros_like(real_BM) if view.stop is None else real_BM & (candidates.tokens_BM == view.stop)
    wanted_BM = finished_BM if view.complete_only else real_BM
    owners_N, places_N = np.nonzero(wanted_BM)
    if len(owners_N):
        rows_N = owners_N * beams + candidates.beams_BM[owners_N, places_N]
        tokens_N = candidates.tokens_BM[owners_N, places_N]
        nodes_SN3 = candidates.states.nodes_SR3[:, owners_N * wanted_BM.shape[1] + places_N]
        found.append(
            _Found(
                owners_N,
                np.concatenate([live.history_RT[rows_N], tokens_N[:, None]], axis=1),
                candidates.scores_BM[owners_N, places_N],
                nodes_SN3,
            )
        )
    return real_BM & ~finished_BM


def _next(candidates: Candidates, going_on_BM: Bool, live: _Beams, beams: int) -> _Beams:
    """Let the K best candidates of each query go on; the remaining rows are dead."""
    queries, num = going_on_BM.shape
    rank_BM = np.cumsum(going_on_BM, axis=1) - 1
    owners_N, places_N = np.nonzero(going_on_BM & (rank_BM < beams))
    targets_N = owners_N * beams + rank_BM[owners_N, places_N]
    rows = queries * beams
    scores_R = np.full(rows, -np.inf, dtype=np.float32)
    tokens_R = np.zeros(rows, dtype=np.int64)
    rows_R = np.arange(rows) // beams * beams  # dead rows repeat a row of their own query
    places_R = np.arange(rows) // beams * num
    scores_R[targets_N] = candidates.scores_BM[owners_N, places_N]
    tokens_R[targets_N] = candidates.tokens_BM[owners_N, places_N]
    rows_R[targets_N] = owners_N * beams + candidates.beams_BM[owners_N, places_N]
    places_R[targets_N] = owners_N * num + places_N
    history_RT = np.concatenate([live.history_RT[rows_R], tokens_R[:, None]], axis=1)
    return _Beams(scores_R, tokens_R, rows_R, candidates.states.select(places_R), history_RT)


def _keys(found: list[_Found], view: View, constraint: Constraint, counted: Any) -> Keys:
    longest = max((part.tokens_NT.shape[1] for part in found), default=0)
    nodes = [part.nodes_SN3 for part in found] or [constraint.start(view.field, (), 0).nodes_SR3]
    states = BeamStates(view.field, -1, np.ascontiguousarray(np.concatenate(nodes, axis=1)))
    padded = [
        np.pad(part.tokens_NT, ((0, 0), (0, longest - part.tokens_NT.shape[1])), constant_values=-1) for part in found
    ]
    owners_N = np.concatenate([np.empty(0, dtype=np.int64), *(part.owners_N for part in found)])
    return Keys(
        (view,),
        owners_N,
        np.zeros(len(owners_N), dtype=np.int64),
        np.concatenate([np.empty((0, longest), dtype=np.int64), *padded]),
        np.concatenate([np.empty(0, dtype=np.float32), *(part.log_probs_N for part in found)]),
        constraint.count(states, counted),
        states.nodes_SR3,
    )
