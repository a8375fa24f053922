"""The beam search against one written with lists, over documents as plain token lists."""

import numpy as np
import pytest

from gr_components.decoding.beam_search import Blocked, beam_search
from gr_components.decoding.engine import GenerativeEngine
from gr_components.decoding.grammar import layout_documents
from gr_components.errors import NumericsError


def entries(corpus, numbers, view, grammar, tokenizer):
    titles, texts, queries = zip(*(corpus[n] for n in numbers), strict=True)
    documents = layout_documents(numbers, titles, texts, queries, grammar, tokenizer)
    return [[*entry, grammar.boundary] for d in documents for entry in d.entries.get(view.field, []) if entry]


def occurrences(texts, sequence):
    width = len(sequence)
    return sum(text[i : i + width] == sequence for text in texts for i in range(len(text) - width + 1))


def brute_force(decoder, source, texts, view, beams, blocked):
    """Every candidate of every step: {tokens: (log-probability, count)}."""
    live, keys = [(np.float32(0), ())], {}
    for step in range(view.max_tokens):
        blocked_V = blocked.later_V if step else blocked.first_V
        candidates = []
        for beam, (score, tokens) in enumerate(live):
            log_probs_V = decoder.log_probs(source, (*view.decoder_start, *tokens))
            for token in np.nonzero(~blocked_V)[0].tolist():
                if occurrences(texts, [*view.index_prefix, *tokens, token]):
                    candidates.append((-np.float32(score + log_probs_V[token]), beam, token))
        live_after = []
        for negative, beam, token in sorted(candidates)[: 2 * beams]:
            tokens = (*live[beam][1], token)
            finished = token == view.stop
            if finished or not view.complete_only:
                keys[tokens] = (-negative, occurrences(texts, [*view.index_prefix, *tokens]))
            if not finished and len(live_after) < beams:
                live_after.append((-negative, tokens))
        live = live_after
    return keys


def found(generated, query=0):
    keys = generated.keys
    own = np.nonzero(keys.owners_K == query)[0]
    return {
        tuple(token for token in keys.tokens_KT[k].tolist() if token >= 0): (keys.log_probs_K[k], keys.counts_K[k])
        for k in own
    }


def search(decoder, index, sources, view, grammar, tokenizer, beams, **sets):
    blocked = GenerativeEngine(decoder, tokenizer, grammar)._blocked[view.name]
    ids = np.array(sources)
    generated = beam_search(decoder, index, decoder.encode(ids, np.ones_like(ids, bool)), view, num_queries=len(ids),
                            beams=beams, blocked=blocked, **sets)  # fmt: skip
    return generated, blocked


@pytest.mark.parametrize("name", ["body", "title", "query"])
@pytest.mark.parametrize("beams", [1, 3])
def test_equals_brute_force(name, beams, make_index, corpus, table_decoder, tokenizer, grammar):
    view = grammar.view(name)
    allowed = [0, 2, 3, 4, 7, 9, 11, 12, 13, 16, 19]
    visible = [n for n in allowed if n not in (3, 12)]
    index = make_index(cuts=[6, 11], live=[n for n in range(20) if n not in (3, 12)])
    sources = [[2, 9, 3], [2, 10, 3], [2, 11, 3]]
    generated, blocked = search(table_decoder, index, sources, view, grammar, tokenizer, beams,
                                allowed=index.document_set(allowed), counted=index.document_set(allowed))  # fmt: skip
    texts = entries(corpus, visible, view, grammar, tokenizer)
    number_of_keys = 0
    for b, source in enumerate(sources):
        wanted = brute_force(table_decoder, source, texts, view, beams, blocked)
        assert found(generated, b) == wanted
        assert len(found(generated, b)) == (generated.keys.owners_K == b).sum(), "a key was listed twice"
        number_of_keys += len(wanted)
    assert number_of_keys > 1
    assert generated.keys.counts_K.min() > 0, "an identifier that does not occur"


def test_every_candidate_is_kept_not_only_the_beams(make_index, table_decoder, tokenizer, grammar):
    generated, _ = search(table_decoder, make_index(), [[2, 9, 3]], grammar.view("body"), grammar, tokenizer, 2)
    per_step = np.bincount(generated.keys.lengths_K)
    assert per_step[1] == 4
    assert per_step.sum() > 2 * grammar.view("body").max_tokens


def test_log_probabilities_are_over_the_full_vocabulary(make_index, table_decoder, tokenizer, grammar):
    generated, _ = search(table_decoder, make_index(), [[2, 9, 3]], grammar.view("body"), grammar, tokenizer, 3)
    keys = generated.keys
    source = table_decoder.encode(np.array([[2, 9, 3]]), np.ones((1, 3), bool))
    teacher = table_decoder.score(source, keys.tokens_KT, grammar.view("body").decoder_start, keys.owners_K)
    np.testing.assert_allclose(keys.log_probs_K, teacher.sum(axis=1), rtol=1e-5)


def test_body_identifiers_start_words_and_never_cross_documents(make_index, table_decoder, tokenizer, grammar):
    generated, _ = search(
        table_decoder, make_index(), [[2, 9, 3], [2, 8, 3]], grammar.view("body"), grammar, tokenizer, 8
    )
    keys = generated.keys
    assert not tokenizer.continuation_V[keys.tokens_KT[:, 0]].any()
    assert not np.isin(keys.tokens_KT, [grammar.boundary, *grammar.never]).any()


def test_complete_views_keep_whole_entries_only(make_index, corpus, table_decoder, tokenizer, grammar):
    view = grammar.view("title")
    generated, _ = search(table_decoder, make_index(), [[2, 9, 3]], view, grammar, tokenizer, 8)
    titles = {title for title, _, _ in corpus if title}
    texts = {tokenizer.decode(key[:-1]) for key in found(generated)}
    assert texts
    assert texts <= titles
    assert all(key[-1] == view.stop for key in found(generated))


def test_real_model_gives_the_log_probabilities_of_teacher_forcing(make_index, real_decoder, tokenizer, grammar):
    index, sources = make_index(cuts=[9]), [[2, 9, 10, 3], [2, 12, 8, 3]]
    for view in grammar.views:
        keys = search(real_decoder, index, sources, view, grammar, tokenizer, 4)[0].keys
        source = real_decoder.encode(np.array(sources), np.ones((2, 4), bool))
        teacher = real_decoder.score(source, keys.tokens_KT, view.decoder_start, keys.owners_K).sum(axis=1)
        assert len(keys) > 4
        assert set(keys.owners_K.tolist()) == {0, 1}
        np.testing.assert_allclose(keys.log_probs_K, teacher, atol=1e-4)


class Broken:
    """A decoder whose numbers are wrong in one place."""

    def __init__(self, inner, value):
        self.inner, self.value, self.vocabulary_size = inner, value, inner.vocabulary_size

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def step(self, tokens_R, rows_R, state):
        log_probs_RV = self.inner.step(tokens_R, rows_R, state)
        if len(state.tokens[0]) == 3:
            log_probs_RV[-1, -1] = self.value
        return log_probs_RV


@pytest.mark.parametrize(
    ("value", "message"), [(np.nan, "returned NaN while decoding the view 'body'"), (3.5, "log-probability of 3.5")]
)
def test_bad_numbers_raise(value, message, make_index, table_decoder, tokenizer, grammar):
    with pytest.raises(NumericsError, match=message):
        search(Broken(table_decoder, value), make_index(), [[2, 9, 3]], grammar.view("body"), grammar, tokenizer, 3)


def test_nothing_allowed_gives_no_keys(make_index, table_decoder, tokenizer, grammar):
    index = make_index()
    nothing = index.document_set([])
    generated, _ = search(
        table_decoder, index, [[2, 9, 3]], grammar.view("body"), grammar, tokenizer, 3, allowed=nothing
    )
    assert len(generated.keys) == 0
    assert generated.first_BV.shape == (1, tokenizer.vocabulary_size)


def test_blocked_tokens_are_not_generated(make_index, table_decoder, tokenizer, grammar):
    view, size = grammar.view("body"), tokenizer.vocabulary_size
    only = np.ones(size, bool)
    only[[8, 9]] = False
    source = table_decoder.encode(np.array([[2, 9, 3]]), np.ones((1, 3), bool))
    generated = beam_search(
        table_decoder, make_index(), source, view, num_queries=1, beams=3, blocked=Blocked(only, only)
    )
    tokens = generated.keys.tokens_KT
    assert set(tokens[tokens >= 0].tolist()) == {8, 9}
