"""Weights and document scores against the formulas written out, and against a document-by-document oracle."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr_components.decoding.config import SearchConfig
from gr_components.decoding.keys import Keys, distinct, join
from gr_components.decoding.scoring import Unigrams, score_documents
from gr_components.decoding.weights import least_useful_log_probability, log_odds


@given(
    log_p=st.floats(-30, -1e-5),
    count=st.integers(1, 1000),
    extra=st.integers(1, 10**9),
    smoothing=st.sampled_from([0.0, 1.0, 5.0]),
)
def test_weight_is_the_log_odds_ratio(log_p, count, extra, smoothing):
    total = count + extra
    frequency = min((count + smoothing) / (total + smoothing), 0.999)
    p = math.exp(log_p)
    wanted = max(0.0, math.log(p / (1 - p)) - math.log(frequency / (1 - frequency)))
    got = log_odds(np.array([log_p]), np.array([count]), total, smoothing=smoothing)[0]
    assert got == pytest.approx(wanted, rel=1e-6, abs=1e-6)


def test_weight_by_hand():
    # P(n|q) = 1/2 and P(n) = 1/101: odds 1 against 1/100.
    assert log_odds(np.array([math.log(0.5)]), np.array([1]), 101)[0] == pytest.approx(math.log(100))
    assert log_odds(np.array([math.log(0.5)]), np.array([1]), 96, smoothing=5.0)[0] == pytest.approx(math.log(95 / 6))


@pytest.mark.parametrize(("total", "smoothing"), [(1000, 0.0), (1000, 5.0), (7, 1.0)])
def test_least_useful_log_probability_is_where_weights_begin(total, smoothing):
    edge = least_useful_log_probability(total, smoothing=smoothing)
    below, above = log_odds(np.array([edge - 1e-6, edge + 1e-6]), np.array([1, 1]), total, smoothing=smoothing)
    assert below == 0
    assert above > 0


def test_weights_at_the_edges_are_finite():
    log_probs = np.array([0.0, -1e-12, -np.inf, -800.0, -1.0, -1.0, -1.0])
    weights = log_odds(log_probs, np.array([1, 1, 1, 1, 0, 5, 1]), np.array([10, 10, 10, 10, 10, 5, 0]))
    assert np.isfinite(weights).all()
    assert (weights >= 0).all()
    assert weights[0] == weights[1] > 10
    assert not weights[[2, 3, 4]].any()


def keys_of(index, grammar, rows, counted=None):
    """Keys from (view, tokens, log-probability)."""
    longest = max((len(tokens) for _, tokens, _ in rows), default=0)
    parts = []
    for view, tokens, log_p in rows:
        view = grammar.view(view)
        states = index.extend(view.field, np.array([[*view.index_prefix, *tokens]]))
        padded = np.array([[*tokens, *[-1] * (longest - len(tokens))]])
        zero = np.zeros(1, np.int64)
        counts = index.count(states, counted)
        parts.append(Keys((view,), zero, zero, padded, np.array([log_p], np.float32), counts, states.nodes_SR3))
    return join(grammar.views, parts, len(index.segments))


def oracle(rows, weights, texts, config):
    """Scores by document number, with `texts[number][field]` a token list, entries preceded by the boundary."""
    order = sorted((k for k in range(len(rows)) if weights[k] > 0), key=lambda k: -weights[k])

    def score(number, chosen):
        taken, used, total = set(), set(), 0.0
        for k in chosen:
            field, sequence = rows[k]
            text, counted = texts[number][field], False
            for i in range(len(text) - len(sequence) + 1):
                places = {(field, p) for p in range(i, i + len(sequence))}
                if text[i : i + len(sequence)] == sequence and not places & taken:
                    taken |= places
                    if not counted:
                        new = set(sequence) - used
                        total += weights[k] ** config.alpha * (
                            1 - config.beta + config.beta * len(new) / len(set(sequence))
                        )
                        used |= set(sequence)
                        counted = True
        return total

    def count(k):
        field, sequence = rows[k]
        starts = (t[field][i : i + len(sequence)] == sequence for t in texts.values() for i in range(len(t[field])))
        return sum(starts)

    rare = [k for k in order if count(k) <= config.max_hits]
    scores = {number: score(number, rare if len(texts) > config.full_documents else order) for number in texts}
    if len(rare) < len(order) and len(texts) > config.full_documents:
        best = sorted((n for n in scores if scores[n] > 0), key=lambda n: (-scores[n], n))[: config.full_documents]
        scores = {number: score(number, order) for number in best or texts}
    return {number: value for number, value in scores.items() if value > 0}


def texts_of(index, numbers):
    places = {int(number): place for place, number in enumerate(index.numbers_D)}
    # The token after a document is the boundary of the next one; an identifier may end with it.
    return {
        number: {field: [*index.tokens(field, places[number]).tolist(), 3] for field in index.fields}
        for number in numbers
    }


@pytest.mark.parametrize("cuts", [(), (4, 13)])
def test_scores_equal_the_oracle(cuts, make_index, grammar):
    index = make_index(cuts=cuts, live=[n for n in range(20) if n != 8])

    @settings(deadline=None, max_examples=40)
    @given(data=st.data())
    def check(data):
        compare_with_oracle(data, index, grammar)

    check()


def compare_with_oracle(data, index, grammar):
    wanted = data.draw(st.sampled_from([None, list(range(0, 20, 2)), [3, 8, 18, 19]]))
    allowed = index.document_set(wanted)
    visible = [n for n in range(20) if n != 8 and (wanted is None or n in wanted)]
    texts = texts_of(index, visible)
    config = SearchConfig(
        alpha=data.draw(st.sampled_from([1.0, 2.0])), beta=data.draw(st.sampled_from([0.0, 0.8, 1.0])),
        max_hits=data.draw(st.sampled_from([1500, 6, 1])), full_documents=data.draw(st.sampled_from([1500, 3])),
    )  # fmt: skip
    rows = []
    for n in range(data.draw(st.integers(1, 12))):
        view = grammar.view(data.draw(st.sampled_from(["body", "body", "title", "query"])))
        pool = [e for e in (texts[d][view.field] for d in visible) if len(e) > 1]
        if not pool:
            continue
        text = data.draw(st.sampled_from(pool))
        if view.name == "body":
            start = data.draw(st.integers(1, len(text) - 1))
            tokens = [t for t in text[start : start + data.draw(st.integers(1, 4))] if t != grammar.boundary]
        else:
            end = text.index(grammar.boundary, 1)
            tokens = text[2 : end + 1]
        if tokens and (view.name, tokens) not in [(v, t) for v, t, _ in rows]:
            # Distinct log-probabilities, so that the order of keys is the same on both sides.
            rows.append((view.name, tokens, -0.01 - 0.37 * n))
    keys = keys_of(index, grammar, rows, allowed)
    weights = log_odds(keys.log_probs_K, keys.counts_K, 2000)
    sequences = [(grammar.view(v).field, [*grammar.view(v).index_prefix, *t]) for v, t, _ in rows]
    expected = oracle(sequences, weights, texts, config)
    scored = score_documents(keys, weights, index, allowed, config)
    got = dict(zip(index.numbers_D[scored.documents_D].tolist(), scored.scores_D.tolist(), strict=True))
    assert got == pytest.approx(expected)
    assert list(got) == sorted(got, key=lambda n: (-got[n], n))
    for place, score in enumerate(scored.scores_D):
        assert sum(value for _, value in scored.contributions(place)) == pytest.approx(score)


def only(index, number):
    return index.document_set([number])


def test_cover_on_repeated_tokens_by_hand(make_index, grammar):
    """Document 18 is "ant ant ant ant"."""
    index, ant = make_index(), 8
    keys = keys_of(index, grammar, [("body", [ant, ant], -0.1), ("body", [ant], -0.2)])
    scored = score_documents(keys, np.array([3.0, 2.0]), index, only(index, 18), SearchConfig())
    # Both places of "ant ant" are taken by it, it counts once, and no single "ant" is left.
    assert scored.contributions(0) == [(0, pytest.approx(9.0))]
    scored = score_documents(keys, np.array([3.0, 4.0]), index, only(index, 18), SearchConfig())
    assert scored.contributions(0) == [(1, pytest.approx(16.0))]


def test_cover_shrinks_what_repeats_used_tokens(tokenizer, make_index, grammar):
    a, b, c, d = (tokenizer.id(word) for word in ("ant", "bee", "cat", "dog"))
    index = make_index(documents=[("", "ant bee dog ant cat eel bee", [])])
    keys = keys_of(
        index, grammar, [("body", [a, b], -0.1), ("body", [a, c], -0.2), ("body", [b], -0.3), ("body", [d], -0.4)]
    )
    scored = score_documents(keys, np.array([4.0, 3.0, 2.0, 1.0]), index, index.live, SearchConfig(beta=0.8))
    wanted = [(0, 16.0), (1, 9 * (0.2 + 0.8 / 2)), (3, 1.0), (2, 4 * 0.2)]
    assert scored.contributions(0) == [(k, pytest.approx(value)) for k, value in wanted]


def test_views_share_tokens_but_not_positions(tokenizer, make_index, grammar):
    a, b = (tokenizer.id(word) for word in ("ant", "bee"))
    index = make_index(documents=[("ant bee", "ant bee", [])])
    keys = keys_of(index, grammar, [("title", [a, b, 3], -0.1), ("body", [a, b], -0.2)])
    scored = score_documents(keys, np.array([3.0, 2.0]), index, index.live, SearchConfig())
    assert scored.contributions(0) == [(0, pytest.approx(9.0)), (1, pytest.approx(4 * 0.2))]


def test_single_tokens_fill_what_identifiers_leave_free(tokenizer, make_index, grammar):
    a, b, c = (tokenizer.id(word) for word in ("ant", "bee", "cat"))
    index = make_index(documents=[("", "ant bee cat cat bee", []), ("", "cat", [])])
    keys = keys_of(index, grammar, [("body", [a, b], -0.1)])
    weights_V = np.zeros(tokenizer.vocabulary_size)
    weights_V[[a, b, c]] = 1.0, 2.0, 4.0
    scored = score_documents(
        keys, np.array([3.0]), index, index.live, SearchConfig(beta=0.8), Unigrams("body", weights_V)
    )
    # "ant" is taken; "cat" counts once in full; the second "bee" is free but used. Document 1 has no identifier.
    assert scored.documents_D.tolist() == [0]
    assert scored.scores_D[0] == pytest.approx(9 + 4 + 2 * 0.2)


def test_no_keys_no_documents(make_index, grammar):
    index = make_index()
    scored = score_documents(join(grammar.views, [], 1), np.empty(0), index, index.live, SearchConfig())
    assert len(scored.documents_D) == 0


def test_ties_go_by_document_number(tokenizer, make_index, grammar):
    index = make_index(documents=[("", "ant", []), ("", "bee", []), ("", "ant", []), ("", "ant bee", [])])
    keys = keys_of(index, grammar, [("body", [tokenizer.id("ant")], -0.1)])
    scored = score_documents(keys, np.array([2.0]), index, index.live, SearchConfig())
    assert index.numbers_D[scored.documents_D].tolist() == [0, 2, 3]


def test_distinct_keeps_the_likelier_twin(make_index, grammar):
    index = make_index()
    keys = keys_of(
        index, grammar, [("body", [8], -3.0), ("body", [8, 9], -2.0), ("body", [8], -1.0), ("title", [8, 3], -4.0)]
    )
    kept = distinct(keys)
    assert sorted(zip(kept.lengths_K.tolist(), kept.log_probs_K.tolist(), strict=True)) == [
        (1, -1.0),
        (2, -4.0),
        (2, -2.0),
    ]
