"""The whole search: filters, updates, batches, settings, bad input."""

import logging

import numpy as np
import pytest

from gr_components.decoding.config import SearchConfig
from gr_components.decoding.engine import GenerativeEngine
from gr_components.decoding.grammar import BODY, Grammar, View
from gr_components.decoding.sources import source_ids
from gr_components.errors import ConfigError, ModelError, NumericsError, TokenizerMismatchError
from gr_components.indexes.suffix_index import SuffixIndex

QUERIES = ["fox eel", "gnus ant ?", "hen henling bee cat"]


@pytest.fixture
def engine(real_decoder, tokenizer, grammar):
    return GenerativeEngine(real_decoder, tokenizer, grammar, SearchConfig(beams=4))


def plain(results):
    """Hits as plain values; scores rounded, since other batch sizes add in another order."""
    return [
        [(h.number, float(f"{h.score:.4g}"), [(i.text, i.view, i.count) for i in h.identifiers]) for h in result.hits]
        for result in results
    ]


def test_hits_are_ordered_and_explained(engine, make_index, corpus):
    for result in engine.search(QUERIES, make_index(), top_k=5):
        scores = [hit.score for hit in result.hits]
        assert len(scores) == 5
        assert scores == sorted(scores, reverse=True)
        for hit in result.hits:
            assert sum(i.contribution for i in hit.identifiers) == pytest.approx(hit.score)
            contributions = [i.contribution for i in hit.identifiers]
            assert contributions == sorted(contributions, reverse=True)
            title, text, queries = corpus[hit.number]
            for identifier in hit.identifiers:
                own = {"title": [title], "body": [text], "query": queries}[identifier.view]
                assert any(identifier.text in entry for entry in own), (identifier, own)
                assert identifier.log_probability < 0
                assert identifier.count > 0


def test_batches_equal_single_queries(real_decoder, tokenizer, grammar, make_index):
    index, queries = make_index(), [*QUERIES, "", "cat"]
    engines = [GenerativeEngine(real_decoder, tokenizer, grammar, batch_size=size) for size in (1, 2, 8)]
    one, two, eight = (plain(engine.search(queries, index, top_k=5)) for engine in engines)
    assert one == two == eight
    assert one[3] == []


def test_segments_do_not_change_results(engine, make_index):
    whole = plain(engine.search(QUERIES, make_index(), top_k=20))
    assert plain(engine.search(QUERIES, make_index(cuts=[3, 11]), top_k=20)) == whole


def test_deleted_documents_are_as_if_never_indexed(engine, make_index, corpus):
    kept = [n for n in range(20) if n % 3]
    deleted = engine.search(QUERIES, make_index(cuts=[7], live=kept), top_k=20)
    without = engine.search(QUERIES, make_index(documents=[corpus[n] for n in kept]), top_k=20)
    renumbered = [[(kept[number], *rest) for number, *rest in hits] for hits in plain(without)]
    assert all(renumbered)
    assert plain(deleted) == renumbered


def test_a_filtered_search_equals_one_over_the_allowed_documents(engine, make_index, corpus):
    index, chosen = make_index(cuts=[7]), [1, 4, 9, 13, 18]
    filtered = engine.search(QUERIES, index, top_k=20, allowed=index.document_set(chosen))
    small = engine.search(QUERIES, make_index(documents=[corpus[n] for n in chosen]), top_k=20)
    assert plain(filtered) == [[(chosen[number], *rest) for number, *rest in hits] for hits in plain(small)]
    assert all(plain(filtered))


def test_counts_may_stay_global_under_a_filter(engine, make_index):
    index = make_index()
    few = index.document_set([1, 4, 9])
    local = engine.search(QUERIES, index, top_k=3, allowed=few)
    everywhere = engine.search(QUERIES, index, top_k=3, allowed=few, config=SearchConfig(beams=4, global_counts=True))
    assert {h.number for r in everywhere for h in r.hits} <= {1, 4, 9}
    assert sum(r.keys.counts_K.sum() for r in everywhere) > sum(r.keys.counts_K.sum() for r in local)


@pytest.mark.parametrize("top_k", [0, 1])
def test_top_k_is_respected(engine, make_index, top_k):
    assert [len(r.hits) for r in engine.search(QUERIES, make_index(), top_k=top_k)] == [top_k] * 3


def test_empty_index_and_empty_filter_find_nothing(engine, make_index):
    index = make_index()
    assert plain(engine.search(QUERIES, SuffixIndex([]), top_k=3)) == [[], [], []]
    assert plain(engine.search(QUERIES, index, top_k=3, allowed=index.document_set([]))) == [[], [], []]
    assert engine.search([], index, top_k=3) == []


def test_views_can_be_chosen(engine, make_index):
    results = engine.search(QUERIES, make_index(), top_k=20, config=SearchConfig(views=("title",)))
    assert {r.keys.views[v].name for r in results for v in r.keys.views_K} == {"title"}
    with pytest.raises(ConfigError, match="no view 'code'"):
        engine.search(QUERIES, make_index(), top_k=3, config=SearchConfig(views=("code",)))


def test_a_constant_replaces_every_log_probability(engine, make_index):
    index = make_index()
    constant = engine.search(QUERIES, index, top_k=20, config=SearchConfig(beams=4, constant_log_probability=-1.0))
    for result in constant:
        contributions = {}
        for hit in result.hits:
            first = hit.identifiers[0]  # nothing better has used its tokens, so its cover is 1
            contributions.setdefault((first.view, first.count), set()).add(round(first.contribution, 6))
        assert contributions
        assert all(len(values) == 1 for values in contributions.values()), "weight must depend on the count alone"


def test_query_words_are_identifiers_without_decoding(engine, make_index, corpus):
    config = SearchConfig(views=(), query_ngrams=2, constant_log_probability=-0.5)
    (result,) = engine.search(["fox eel [SEP]"], make_index(), top_k=20, config=config)
    assert {i.view for h in result.hits for i in h.identifiers} == {"words"}
    texts = {i.text for h in result.hits for i in h.identifiers}
    assert {"fox", "eel"} <= texts
    assert texts <= {"fox", "eel", "fox eel"}
    words = [("fox" in corpus[h.number][1]) or ("eel" in corpus[h.number][1]) for h in result.hits]
    assert all(words)
    assert len(words) == sum("fox" in text or "eel" in text for _, text, _ in corpus)


def test_query_words_get_the_models_log_probability(engine, make_index, tokenizer, grammar):
    (result,) = engine.search(["fox eel"], make_index(), top_k=20, config=SearchConfig(views=(), query_ngrams=2))
    decoder, body = engine.decoder, grammar.view("body")
    source = decoder.encode(np.array(tokenizer.encode(["fox eel"], special=True)), np.ones((1, 4), bool))
    wanted = decoder.score(source, result.keys.tokens_KT, body.decoder_start, np.zeros(len(result.keys), np.int64))
    np.testing.assert_allclose(result.keys.log_probs_K, wanted.sum(axis=1), atol=1e-5)


def test_capitalisation_variants_of_query_words_are_tried(make_index, table_decoder, tokenizer, grammar):
    engine = GenerativeEngine(table_decoder, tokenizer, grammar)
    index = make_index(documents=[("", "Ant bee", []), ("", "ant bee", [])])
    config = SearchConfig(views=(), query_ngrams=1, constant_log_probability=-0.5)
    for query in ("ant", "Ant"):
        (result,) = engine.search([query], index, top_k=5, config=config)
        assert sorted(h.number for h in result.hits) == [0, 1]


def test_rescoring_agrees_with_the_beam_search(engine, make_index, monkeypatch):
    index = make_index()
    monkeypatch.setattr("gr_components.decoding.engine._floor", lambda *_: -np.inf)
    plain_keys = [r.keys for r in engine.search(QUERIES, index, top_k=3)]
    again = [r.keys for r in engine.search(QUERIES, index, top_k=3, config=SearchConfig(beams=4, rescore=True))]
    without_stop = SearchConfig(beams=4, rescore=True, rescore_stop=False)
    shorter = [r.keys for r in engine.search(QUERIES, index, top_k=3, config=without_stop)]
    for a, b, c in zip(plain_keys, again, shorter, strict=True):
        np.testing.assert_allclose(a.log_probs_K, b.log_probs_K, atol=1e-4)
        complete = np.array([view.complete_only for view in a.views])[a.views_K]
        assert complete.any()
        assert (c.log_probs_K[complete] > b.log_probs_K[complete]).all()
        np.testing.assert_allclose(c.log_probs_K[~complete], b.log_probs_K[~complete], atol=1e-4)


def test_seal_and_minder_settings_run(engine, make_index):
    index = make_index()
    for config in (SearchConfig.seal(beams=3), SearchConfig.minder(beams=3)):
        for result in engine.search(QUERIES, index, top_k=5, config=config):
            assert len(result.hits) == 5
            sequences = [tuple(row) for row in np.column_stack([result.keys.views_K, result.keys.tokens_KT]).tolist()]
            assert len(set(sequences)) == len(sequences)


def test_bias_and_cap_apply_to_the_query_view_only(engine, make_index):
    index = make_index()
    low = SearchConfig(views=("body", "query"), beams=4, query_view_cap=-40.0)
    assert {
        i.view for r in engine.search(QUERIES, index, top_k=20, config=low) for h in r.hits for i in h.identifiers
    } == {"body"}


def test_nan_from_the_model_raises(make_index, real_decoder, tokenizer, grammar):
    import torch

    weights = next(p for p in real_decoder.model.parameters() if p.dim() == 1)
    original = weights.detach().clone()
    try:
        with torch.no_grad():
            weights.fill_(float("nan"))
        with pytest.raises(NumericsError, match="returned NaN"):
            GenerativeEngine(real_decoder, tokenizer, grammar).search(QUERIES, make_index(), top_k=3)
    finally:
        with torch.no_grad():
            weights.copy_(original)


def test_an_index_of_another_tokenizer_or_grammar_is_refused(real_decoder, tokenizer, grammar, make_index):
    other = View(name=BODY, field="text", decoder_start=(5,), max_tokens=3)
    alone = Grammar(layout="reserved", views=(other,), boundary=grammar.boundary)
    with pytest.raises(TokenizerMismatchError, match="fields"):
        GenerativeEngine(real_decoder, tokenizer, alone).search(QUERIES, make_index(), top_k=3)
    index = make_index()
    index.segments[0].tokenizer_fingerprint = "0" * 64
    with pytest.raises(TokenizerMismatchError, match="built with the tokenizer 000000000000, the model uses"):
        GenerativeEngine(real_decoder, tokenizer, grammar).search(QUERIES, index, top_k=3)


def test_long_queries_lose_their_end_and_say_so(engine, make_index, tokenizer, grammar, caplog):
    query = " ".join(["ant", "bees"] * 60)
    ids = source_ids([query, "fox"], "", tokenizer, grammar)
    assert len(ids[0]) == grammar.max_source
    assert (ids[0][0], ids[0][-1]) == (tokenizer.special["cls"], tokenizer.special["sep"])
    assert ids[0][:-1] == tokenizer.encode([query], special=True)[0][: grammar.max_source - 1]
    assert ids[1] == tokenizer.encode(["fox"], special=True)[0]
    with caplog.at_level(logging.WARNING):
        results = engine.search([query, "fox", "bees " + query, "ant"], make_index(), top_k=3)
        assert all(result.hits for result in results)
        (record,) = caplog.records
        assert record.message.startswith(f"2 of 4 queries are longer than the {grammar.max_source} tokens that")
        assert record.message.endswith(f"The first is: {query[:60].strip()}")
        caplog.clear()
        engine.search(["fox", "ant " * (grammar.max_source - 2)], make_index(), top_k=3)
        assert not caplog.records


def test_memory_running_out_halves_the_batch(engine, make_index, monkeypatch, caplog):
    queries, index = [*QUERIES, "ant", "fox bee", "dog"][:5], make_index()
    wanted = engine.search(queries, index, top_k=3)
    encode, sizes = engine.decoder.encode, []

    def limited(ids_BL, mask_BL):
        sizes.append(len(ids_BL))
        if sizes[-1] > limit:
            msg = "CUDA out of memory. Tried to allocate 2.00 GiB"
            raise RuntimeError(msg)
        return encode(ids_BL, mask_BL)

    monkeypatch.setattr(engine.decoder, "encode", limited)
    limit = 2
    with caplog.at_level(logging.WARNING):
        assert plain(engine.search(queries, index, top_k=3)) == plain(wanted)
    assert max(size for size in sizes if size <= limit) == limit
    assert [record.message for record in caplog.records] == ["Out of memory with 5 inputs in a batch; going on with 2."]
    limit = 0
    with pytest.raises(ModelError, match=r"Out of memory with \d+ beams for a single query, .*\. Set fewer beams\."):
        engine.search(queries[:1], index, top_k=3)


def test_leaving_out_what_counts_nothing_changes_no_result(engine, make_index, monkeypatch):
    index = make_index(cuts=[8])
    early = engine.search(QUERIES, index, top_k=20)
    monkeypatch.setattr("gr_components.decoding.engine._floor", lambda *_: -np.inf)
    full = engine.search(QUERIES, index, top_k=20)
    assert plain(early) == plain(full)
    assert all(r.hits for r in full)
    assert sum(len(r.keys) for r in early) < sum(len(r.keys) for r in full)


@pytest.mark.parametrize("settings", [{}, {"alpha": 1.5, "smoothing": 5.0, "query_ngrams": 2, "rescore": True}])
def test_matches_are_the_hits_as_arrays_and_explain_every_score(engine, make_index, settings):
    index, config = make_index(cuts=[7]), SearchConfig(beams=4, **settings)
    queries = [*QUERIES, ""]
    results = engine.search(queries, index, top_k=20, config=config)
    matches = engine.match(queries, index, config=config)
    assert [len(match.numbers_D) for match in matches][-1] == 0
    for result, match in zip(results, matches, strict=True):
        assert [hit.number for hit in result.hits] == match.numbers_D.tolist()
        assert [hit.score for hit in result.hits] == match.scores_D.tolist()
        for place, hit in enumerate(result.hits):
            keys_N, contributions_N, covers_N = match.identifiers(place)
            assert [i.text for i in hit.identifiers] == [engine.text(match.keys, int(k)) for k in keys_N]
            assert contributions_N.sum() == pytest.approx(hit.score)
            assert ((covers_N > 0.2 - 1e-9) & (covers_N < 1 + 1e-9)).all()
            # Log-probability, prior and cover are all that a training score needs.
            views = [match.keys.views[v].name for v in match.keys.views_K[keys_N]]
            log_p_N = match.keys.log_probs_K[keys_N].astype(np.float64)
            log_p_N = np.where(np.array(views) == "query", np.minimum(log_p_N, config.query_view_cap), log_p_N)
            priors_N = match.priors_K[keys_N]
            odds_N = log_p_N - np.log(-np.expm1(log_p_N)) + np.log1p(-priors_N) - np.log(priors_N)
            assert odds_N**config.alpha * covers_N == pytest.approx(contributions_N, rel=1e-6)


def test_matches_of_no_index(engine):
    assert [len(match.numbers_D) for match in engine.match(QUERIES, SuffixIndex([]))] == [0, 0, 0]
