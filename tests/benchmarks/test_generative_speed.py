"""
What generative search costs besides the model: constraint and beams per decoding step, scoring per query.

Over the demo's 1,048 documents, with about as many identifiers as a trained model writes. CPU time of this thread, so
that other work on the machine counts little; the bounds leave room for slow machines.
"""

import time
from types import SimpleNamespace

import numpy as np
import pytest

from gr_components.decoding.config import SearchConfig
from gr_components.decoding.engine import GenerativeEngine
from gr_components.decoding.grammar import layout_documents, reserved_grammar
from gr_components.decoding.scoring import score_documents
from gr_components.indexes.suffix import SuffixSegment
from gr_components.indexes.suffix_index import SuffixIndex
from gr_components.tokenization import TextTokenizer
from gr_pipelines.demo import data as demo

_SCORING_MS = 2.0
_STEP_MS = 0.5
_ROOM = 3.0  # for a busy or slow machine

pytestmark = pytest.mark.slow


class QueryWords:
    """The decoder protocol: half corpus frequencies, half the words of the query. Counts the time it takes itself."""

    def __init__(self, frequencies_V):
        self.vocabulary_size, self.frequencies_V = len(frequencies_V), frequencies_V / frequencies_V.sum()
        self.steps, self.seconds = 0, 0.0

    def encode(self, input_ids_BL, attention_mask_BL):
        mixed_BV = np.tile(self.frequencies_V * 0.5, (len(input_ids_BL), 1))
        for b, ids in enumerate(input_ids_BL):
            inside = ids[attention_mask_BL[b]][1:-1]
            np.add.at(mixed_BV[b], inside, 0.5 / len(inside))
        return np.log(mixed_BV + 1e-9).astype(np.float32)

    def start(self, source, beams):
        return SimpleNamespace(log_probs_RV=np.repeat(source, beams, axis=0))

    def step(self, tokens_R, rows_R, state):
        self.steps += 1
        return state.log_probs_RV


@pytest.fixture(scope="module")
def world(minilm, tmp_path_factory):
    tokenizer, passages = TextTokenizer.from_folder(minilm), demo.corpus(with_queries=True)
    grammar = reserved_grammar(tokenizer)
    documents = layout_documents(
        range(len(passages)), [p.title for p in passages], [p.text for p in passages], [p.queries for p in passages],
        grammar, tokenizer,
    )  # fmt: skip
    segment = SuffixSegment.build(
        tmp_path_factory.mktemp("index") / "segment", documents, fields=grammar.fields, boundary=grammar.boundary,
        tokenizer_fingerprint=tokenizer.fingerprint, vocabulary_size=tokenizer.vocabulary_size,
    )  # fmt: skip
    frequencies_V = np.bincount(segment.fields["body"].arrays.text_N, minlength=tokenizer.vocabulary_size) + 1.0
    decoder = QueryWords(frequencies_V)
    return GenerativeEngine(decoder, tokenizer, grammar, batch_size=1), SuffixIndex([segment])


def test_search_costs_little_besides_the_model(world):
    engine, index = world
    # With a constant no beam is given up early, so there are as many steps and identifiers as there can be.
    config = SearchConfig(constant_log_probability=-1.0)
    queries = [question.text for question in demo.sample("validation", 40)]
    engine.search(queries[:2], index, top_k=10, config=config)
    engine.decoder.steps = 0
    begin = time.thread_time()
    results = engine.search(queries, index, top_k=10, config=config)
    total = time.thread_time() - begin
    weights = [engine._weights(result.keys, index.live, SearchConfig()) for result in results]
    begin = time.thread_time()
    for result, weights_K in zip(results, weights, strict=True):
        score_documents(result.keys, weights_K, index, index.live, SearchConfig())
    scoring_ms = 1000 * (time.thread_time() - begin) / len(queries)
    step_ms = 1000 * total / engine.decoder.steps
    keys, steps = np.mean([len(result.keys) for result in results]), engine.decoder.steps / len(queries)
    print(f"\n{keys:.0f} identifiers, {steps:.0f} steps, scoring {scoring_ms:.2f} ms a query, {step_ms:.2f} ms a step")
    assert keys > 100
    assert scoring_ms < _SCORING_MS * _ROOM
    assert step_ms < _STEP_MS * _ROOM
