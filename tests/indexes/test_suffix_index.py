"""The suffix index against counting and decoding by brute force."""

import itertools
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr_components.errors import SearchIndexError, TokenizerMismatchError
from gr_components.indexes.suffix import SuffixSegment
from gr_components.indexes.suffix_index import SuffixIndex

BOUNDARY, V = 1, 8
FIELDS = ("body", "title")
entry = st.lists(st.integers(2, V - 1), max_size=9)
document = st.fixed_dictionaries({"body": st.lists(entry, max_size=2), "title": st.lists(entry, max_size=3)})


class Naive:
    """Entries of live, allowed documents as plain lists; a sequence occurs where it starts inside one of them."""

    def __init__(self, documents, numbers):
        self.documents = {number: documents[number] for number in numbers}

    def occurrences(self, field, sequence):
        """All (document number, position), positions counted with one boundary before each entry."""
        sequence, found = list(sequence), []
        for number, entries in self.documents.items():
            flat = [token for e in entries[field] if e for token in (BOUNDARY, *e)] + [BOUNDARY]
            found += [(number, i) for i in range(len(flat) - 1) if flat[i : i + len(sequence)] == sequence]
        return found

    def step(self, field, prefixes_R, log_probs_RV, scores_R, num, blocked_V):
        """The best continuations of one query's beams."""
        candidates = []
        for beam, prefix in enumerate(prefixes_R):
            for token in range(V):
                score = np.float32(scores_R[beam] + log_probs_RV[beam, token])
                if not blocked_V[token] and score > -np.inf and self.occurrences(field, [*prefix, token]):
                    candidates.append((-score, beam, token))
        return [(beam, token, -negative) for negative, beam, token in sorted(candidates)[:num]]


def make(folder, documents, cuts, threshold, vocabulary=V, live=None):
    """Segments over `documents`, numbered 0, 1, ..., cut at the given places."""
    edges = [0, *sorted(cut % (len(documents) + 1) for cut in cuts), len(documents)]
    segments = []
    for s, (a, b) in enumerate(itertools.pairwise(edges)):
        tokenized = [SimpleNamespace(number=i, entries=documents[i]) for i in range(a, b)]
        segments.append(
            SuffixSegment.build(
                Path(folder) / f"s{s}", tokenized, fields=FIELDS, boundary=BOUNDARY, hot_threshold=threshold,
                tokenizer_fingerprint="t", vocabulary_size=vocabulary,
            )
        )  # fmt: skip
    masks = None if live is None else [np.isin(segment.numbers_D, list(live)) for segment in segments]
    return SuffixIndex(segments, masks)


@st.composite
def worlds(draw):
    documents = draw(st.lists(document, min_size=1, max_size=7))
    numbers = range(len(documents))
    live = set(draw(st.lists(st.sampled_from(numbers), unique=True))) if draw(st.booleans()) else None
    allowed = draw(st.lists(st.sampled_from([*numbers, 99]), unique=True)) if draw(st.booleans()) else None
    sets = [set(numbers), *(set(chosen) for chosen in (live, allowed) if chosen is not None)]
    return SimpleNamespace(
        documents=documents, live=live, allowed=allowed, visible=set.intersection(*sets),
        cuts=draw(st.lists(st.integers(0, 7), max_size=2)), threshold=draw(st.sampled_from([0, 1, 3, 1000])),
        field=draw(st.sampled_from(FIELDS)), seed=draw(st.integers(0, 999)),
    )  # fmt: skip


@pytest.fixture(scope="module")
def scratch():
    memory = Path("/dev/shm")  # thousands of small files
    folder = tempfile.mkdtemp(dir=memory if memory.is_dir() else None)
    yield folder
    shutil.rmtree(folder)


def build(world, scratch):
    folder = tempfile.mkdtemp(dir=scratch)
    index = make(folder, world.documents, world.cuts, world.threshold, live=world.live)
    return index, index.document_set(world.allowed), Naive(world.documents, world.visible)


@settings(deadline=None, max_examples=60)
@given(
    world=worlds(),
    # Identifiers may begin or end with a boundary; it is never inside one, and none on its own.
    sequences=st.lists(
        st.builds(
            lambda before, inside, after: before + inside + after,
            st.sampled_from([[], [BOUNDARY]]),
            st.lists(st.integers(2, V - 1), min_size=1, max_size=2),
            st.sampled_from([[], [BOUNDARY]]),
        ),
        min_size=1,
        max_size=8,
    ),
)
def test_counts_and_places_equal_substring_search(scratch, world, sequences):
    index, allowed, naive = build(world, scratch)
    padded = np.array([sequence + [-1] * (4 - len(sequence)) for sequence in sequences])
    states = index.extend(world.field, padded)
    counts = index.count(states, allowed)
    found = index.locate(states, allowed)
    for n, sequence in enumerate(sequences):
        wanted = naive.occurrences(world.field, sequence)
        assert counts[n] == len(wanted)
        own = found.owners_N == n
        numbers = index.numbers_D[found.documents_N[own]]
        assert sorted(zip(numbers, found.positions_N[own], strict=True)) == sorted(wanted)


@settings(deadline=None, max_examples=60)
@given(world=worlds(), num=st.integers(1, 12), beams=st.integers(1, 3))
def test_decoding_equals_brute_force_and_never_leaves_the_documents(scratch, world, num, beams):
    index, allowed, naive = build(world, scratch)
    rng = np.random.default_rng(world.seed)
    states, scores_R = index.start(world.field, (), beams), np.array([0.0] + [-np.inf] * (beams - 1), dtype=np.float32)
    prefixes = [[] for _ in range(beams)]
    blocked_V = rng.random(V) < 0.15
    blocked_V[BOUNDARY] = True
    for _ in range(4):
        # Few distinct values, so that ties are common.
        log_probs_RV = -rng.integers(0, 4, (beams, V)).astype(np.float32)
        log_probs_RV[rng.random((beams, V)) < 0.05] = -np.inf
        got = index.step(log_probs_RV, scores_R, states, beams, num, blocked_V, allowed)
        wanted = naive.step(world.field, prefixes, log_probs_RV, scores_R, num, blocked_V)
        real = got.beams_BM[0] >= 0
        assert list(zip(got.beams_BM[0][real], got.tokens_BM[0][real], got.scores_BM[0][real], strict=True)) == wanted
        assert np.all(got.scores_BM[0][~real] == -np.inf)
        sequences = [[*prefixes[beam], token] for beam, token, _ in wanted]
        counts = index.count(got.states, allowed)
        assert counts[: len(wanted)].tolist() == [len(naive.occurrences(world.field, s)) for s in sequences]
        assert not counts[len(wanted) :].any()
        if not wanted:
            break
        keep = np.minimum(np.arange(beams), len(wanted) - 1)
        prefixes = [sequences[k] for k in keep]
        scores_R = np.where(np.arange(beams) < len(wanted), got.scores_BM[0][keep], -np.inf).astype(np.float32)
        states = got.states.select(keep)


def test_queries_of_a_batch_do_not_influence_each_other(tmp_path):
    rng = np.random.default_rng(3)
    documents = [{"body": [rng.integers(2, V, 12).tolist()], "title": []} for _ in range(20)]
    index = make(tmp_path, documents, [7, 12], 2)
    queries, beams, num = 5, 2, 6
    log_probs_RV = np.log(rng.dirichlet(np.ones(V), queries * beams)).astype(np.float32)
    scores_R = -rng.random(queries * beams).astype(np.float32)
    states = index.start("body", (4,), queries * beams)
    blocked_V = np.arange(V) == BOUNDARY
    together = index.step(log_probs_RV, scores_R, states, beams, num, blocked_V)
    for b in range(queries):
        rows = np.arange(b * beams, (b + 1) * beams)
        alone = index.step(log_probs_RV[rows], scores_R[rows], states.select(rows), beams, num, blocked_V)
        assert np.array_equal(alone.scores_BM[0], together.scores_BM[b])
        assert np.array_equal(alone.tokens_BM[0], together.tokens_BM[b])
        assert np.array_equal(alone.beams_BM[0], together.beams_BM[b])
    assert together.tokens_BM.max() > 1


def test_an_index_without_documents_or_segments_finds_nothing(tmp_path):
    for index in (make(tmp_path, [], [], 2), SuffixIndex([])):
        states = index.start("body", (), 2)
        step = index.step(np.zeros((2, V), np.float32), np.zeros(2, np.float32), states, 2, 3, np.arange(V) == BOUNDARY)
        assert (step.beams_BM == -1).all()
        assert index.count(index.extend("body", np.array([[2, 3]]))).tolist() == [0]
        assert len(index.locate(index.extend("body", np.array([[2, 3]]))).documents_N) == 0
        assert index.live.num_documents == 0


def test_wide_vocabularies_are_stored_in_four_bytes(tmp_path):
    documents = [{"body": [[70_000, 5, 70_000, 6]], "title": []}]
    index = make(tmp_path, documents, [], 0, vocabulary=70_001)
    assert index.segments[0].fields["body"].arrays.text_N.dtype == np.uint32
    assert index.count(index.extend("body", np.array([[70_000, -1], [70_000, 6], [70_000 & 0xFFFF, 5]]))).tolist() == [
        2,
        1,
        0,
    ]


def test_sizes_count_what_is_in_the_set(tmp_path):
    documents = [
        {"body": [[2, 3, 4]], "title": [[2]]},
        {"body": [[5]], "title": []},
        {"body": [[]], "title": [[2, 3], [4]]},
    ]
    index = make(tmp_path, documents, [1], 2, live={0, 2})
    assert index.live.size("body") == (3, 1)
    assert index.live.size("title") == (4, 3)
    assert index.document_set([1, 2]).size("title") == (3, 2)
    assert index.document_set([1, 2]).num_documents == 1
    assert index.tokens("title", 2).tolist() == [BOUNDARY, 2, 3, BOUNDARY, 4]


def test_segments_that_do_not_belong_together_are_refused(tmp_path):
    def segment(name, fingerprint="t", fields=FIELDS):
        return SuffixSegment.build(
            tmp_path / name, [], fields=fields, boundary=1, tokenizer_fingerprint=fingerprint, vocabulary_size=V
        )

    first = segment("a")
    with pytest.raises(TokenizerMismatchError, match="another tokenizer"):
        SuffixIndex([first, segment("b", fingerprint="other")])
    with pytest.raises(SearchIndexError, match="another layout"):
        SuffixIndex([first, segment("c", fields=("text",))])
    with pytest.raises(SearchIndexError, match="has shape"):
        SuffixIndex([first], [np.ones(3, bool)])
    with pytest.raises(SearchIndexError, match="no field 'query'"):
        SuffixIndex([first]).start("query", (), 1)
