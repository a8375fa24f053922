"""Vector indexes of a store against brute force, whatever lies in shards, delta and deletions."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from haystack import Document
from haystack.document_stores.types import DuplicatePolicy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gr_components.document_stores import local_vectors
from gr_components.document_stores.local import LocalDocumentStore
from gr_components.errors import (
    ConfigError,
    DimensionError,
    IndexFormatError,
    IndexMissingError,
    NumericsError,
    SearchIndexError,
)
from gr_components.indexes import registry
from gr_components.indexes.vector import Part, VectorShard, make_part, search

SIMILARITIES = ("cosine", "dot", "l2")


def brute_force(vectors, query_E, top_k, similarity):
    """Numbers and scores from the definition, in float64."""
    scored = []
    for number, vector_E in vectors.items():
        a, b = np.float32(query_E).astype(float), np.float32(vector_E).astype(float)
        lengths = np.sqrt((a * a).sum() * (b * b).sum())
        score = {
            "dot": (a * b).sum(),
            "cosine": (a * b).sum() / lengths if lengths else 0.0,
            "l2": -np.sqrt(((a - b) ** 2).sum()),
        }[similarity]
        scored.append((number, score))
    return sorted(scored, key=lambda hit: (-hit[1], hit[0]))[:top_k]


def assert_same(found, expected, vectors, query_E, similarity):
    assert [score for _, score in found] == pytest.approx([score for _, score in expected], rel=1e-9, abs=1e-9)
    truth = dict(brute_force(vectors, query_E, len(vectors), similarity))
    for number, score in found:
        assert score == pytest.approx(truth[number], rel=1e-9, abs=1e-9)
    assert found == sorted(found, key=lambda hit: (-hit[1], hit[0]))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 10**6), count=st.integers(1, 60), dimension=st.integers(1, 5), distinct=st.integers(1, 60),
    similarity=st.sampled_from(SIMILARITIES), top_k=st.integers(1, 70), filtered=st.booleans(),
    few=st.sampled_from([0, 3, 99]),
)  # fmt: skip
def test_search_equals_brute_force(seed, count, dimension, distinct, similarity, top_k, filtered, few):
    """Also with equal vectors, vectors of length 0, several parts, dead vectors and filters."""
    rng = np.random.default_rng(seed)
    pool = rng.normal(size=(distinct, dimension)).round(1)
    vectors_NE = pool[rng.integers(0, distinct, count)].astype(np.float32)
    numbers_N = np.sort(rng.choice(1000, count, replace=False))
    live_N = rng.random(count) < 0.7
    cut = int(rng.integers(0, count + 1))
    first, second = make_part(numbers_N[:cut], vectors_NE[:cut]), make_part(numbers_N[cut:], vectors_NE[cut:])
    parts = [Part(first.numbers_N, first.vectors_NE, first.lengths_N, live_N[:cut]), second]
    counts_N = np.concatenate([live_N[:cut], np.ones(count - cut, bool)])
    live = {int(numbers_N[n]): vectors_NE[n] for n in np.flatnonzero(counts_N)}
    allowed = np.sort(rng.choice(1000, 500, replace=False)) if filtered else None
    if filtered:
        live = {number: vector for number, vector in live.items() if number in set(allowed.tolist())}
    queries_QE = rng.normal(size=(3, dimension)).round(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gr_components.indexes.vector._FEW", few)
        patch.setattr("gr_components.indexes.vector._EXTRA", 2)
        patch.setattr("gr_components.indexes.vector._BLOCK", 16)
        together = search(parts, queries_QE, top_k=top_k, similarity=similarity, allowed=allowed)
        for query_E, found in zip(queries_QE, together, strict=True):
            assert found == search(parts, query_E[None], top_k=top_k, similarity=similarity, allowed=allowed)[0]
            assert_same(found, brute_force(live, query_E, top_k, similarity), live, query_E, similarity)


def test_ties_by_number():
    vectors_NE = np.ones((500, 4), dtype=np.float32)
    parts = [make_part(np.arange(500)[::1], vectors_NE)]
    for similarity in SIMILARITIES:
        assert [n for n, _ in search(parts, vectors_NE[:1], top_k=7, similarity=similarity)[0]] == list(range(7))


def test_shard_files(tmp_path):
    numbers_N, vectors_NE = np.arange(10), np.eye(10, 4, dtype=np.float32) * 2
    batches = ((numbers_N[i : i + 3], vectors_NE[i : i + 3]) for i in range(0, 10, 3))
    VectorShard.write(tmp_path / "shard", batches, 10, 4, np.array([77]))
    shard = VectorShard.open(tmp_path / "shard", verify="full")
    assert shard.removed_N.tolist() == [77]
    assert np.array_equal(shard.part.vectors_NE, vectors_NE)
    assert shard.part.lengths_N.tolist() == [2, 2, 2, 2, 0, 0, 0, 0, 0, 0]
    file = tmp_path / "shard" / "vectors.npy"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(IndexFormatError, match=r"vectors\.npy"):
        VectorShard.open(tmp_path / "shard")


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(local_vectors, "SHARD_ROWS", 5)


@pytest.fixture
def store(tmp_path, small_shards):
    store = LocalDocumentStore(str(tmp_path / "store"))
    yield store
    store.close()


def truth(store):
    """The vectors by number, as the documents have them."""
    numbers = {document.id: number for number, document in store.pending("none")}
    return {numbers[d.id]: d.embedding for d in store.filter_documents() if d.embedding}


def check(store, seed=0):
    vectors = truth(store)
    query_E = np.random.default_rng(seed).normal(size=3)
    for similarity in SIMILARITIES:
        found = store.vector_search(query_E[None], top_k=100, similarity=similarity)[0]
        assert {number for number, _ in found} == set(vectors)
        assert_same(found, brute_force(vectors, query_E, 100, similarity), vectors, query_E, similarity)


def shards(store):
    return sorted(path.name for path in Path(store.path).glob("indexes/vector-*/*") if path.is_dir())


def test_writes_updates_deletes_and_compaction(store):
    rng = np.random.default_rng(1)
    most = 0
    for step in range(40):
        ids = [f"{n}" for n in rng.choice(60, 6, replace=False)]
        if step % 4 == 3:
            store.delete_documents(ids)
        else:
            texts = [f"text {rng.integers(3)}" for _ in ids]
            store.write_documents(
                [
                    Document(id=i, content=t, embedding=rng.normal(size=3).tolist())
                    for i, t in zip(ids, texts, strict=True)
                ],
                DuplicatePolicy.OVERWRITE,
            )
        if step % 2:
            check(store, step)
            most = max(most, len(shards(store)))
    assert 2 <= most <= 8, "there were several shards and they were merged"
    reader = LocalDocumentStore(store.path, read_only=True)
    check(reader)
    reader.close()
    store.delete_all_documents()
    assert store.vector_search(np.ones((1, 3)), top_k=5) == [[]]


def test_lost_and_damaged_shards(store, caplog):
    store.write_documents([Document(id=str(n), content="x", embedding=[n, 1.0, 2.0]) for n in range(12)])
    check(store)
    assert len(shards(store)) == 1
    store.close()
    for damage in (shutil.rmtree, lambda folder: (folder / "vectors.npy").write_bytes(b"x")):
        (folder,) = Path(store.path).glob("indexes/vector-*/*-*")
        damage(folder)
        check(store)
        assert "Reading vectors from the database" in caplog.text
        caplog.clear()
        check(store)
        assert shards(store) != [folder.name], "a new shard replaced it"
        store.close()


def test_a_snapshot_keeps_its_files(store):
    store.write_documents([Document(id=str(n), content="x", embedding=[n, 1.0, 2.0]) for n in range(12)])
    check(store)
    other = LocalDocumentStore(store.path)
    snapshot = other._vectors.snapshot("dense")
    held = shards(store)
    for n in range(12):
        store.write_documents([Document(id=f"{k}", content=f"new {n}", embedding=[k, 1.0, n]) for k in range(12)],
                              DuplicatePolicy.OVERWRITE)  # fmt: skip
        check(store)
    assert set(held) <= set(shards(store)), "the other store reads them"
    assert len(search(snapshot.parts, np.ones((1, 3)), top_k=99)[0]) == 12
    check(other)
    other.close()
    del snapshot
    store.write_documents([Document(id=f"{k}", content="last", embedding=[k, 1.0, n]) for k in range(12)],
                          DuplicatePolicy.OVERWRITE)  # fmt: skip
    check(store)
    assert not set(held) & set(shards(store)), "nobody reads them any more"


def test_named_indexes_live_side_by_side(store):
    store.write_documents([Document(id=str(n), content=f"t{n}") for n in range(8)] + [Document(id="blank")])
    for index, width in (("small", 2), ("large", 3)):
        for number, document in store.pending(index, batch_size=3):
            vector = np.full((1, width), float(document.id) + 1)
            assert store.write_vectors(index, [number], vector, model_fingerprint=f"model {width}") == 1
        assert list(store.pending(index)) == []
    states = {state.name: state for state in store.indexes()}
    assert states["small"].model_fingerprint == "model 2"
    assert states["large"].config == {"dimension": 3}
    assert {state.lag for state in states.values() if state.kind == "vector"} == {0}
    store.write_documents([Document(id="3", content="new")], DuplicatePolicy.OVERWRITE)
    assert [document.id for _, document in store.pending("small")] == ["3"]
    assert {state.name: state.lag for state in store.indexes()}["small"] == 1
    assert len(store.vector_search(np.ones((1, 2)), index="small", top_k=99)[0]) == 7
    store.delete_index("small")
    with pytest.raises(IndexMissingError, match=r"no index 'small'\. Its vector indexes are: large"):
        store.vector_search(np.ones((1, 2)), index="small", top_k=5)
    assert len(store.vector_search(np.ones((1, 3)), index="large", top_k=99)[0]) == 7
    assert store.write_vectors("small", [10_000], np.ones((1, 9))) == 0, "a document that is gone"


def test_filters(store):
    store.write_documents([Document(id=str(n), content="x", meta={"n": n}, embedding=[n, 1.0, 2.0]) for n in range(30)])
    whole = store.vector_search(np.ones((1, 3)), top_k=99)[0]
    for limit in (0, 1, 7, 29, 30):
        filters = {"field": "meta.n", "operator": "<", "value": limit}
        allowed = set(store.allowed_numbers(filters).tolist())
        for top_k in (1, 5, 99):
            expected = [hit for hit in whole if hit[0] in allowed][:top_k]
            assert store.vector_search(np.ones((1, 3)), top_k=top_k, filters=filters)[0] == expected


def test_bad_vectors(store):
    assert store.vector_search(np.ones((2, 7)), top_k=5) == [[], []], "an empty store"
    store.write_documents([Document(id="1", content="x")])
    with pytest.raises(IndexMissingError, match="It has no vector index yet"):
        store.vector_search(np.ones((1, 3)), top_k=5)
    store.write_vectors("dense", [1], np.ones((1, 3)), model_fingerprint="a")
    with pytest.raises(DimensionError, match=r"shape \(1, 2\), the index needs \(queries, 3\)"):
        store.vector_search(np.ones((1, 2)), top_k=5)
    with pytest.raises(NumericsError, match=r"Query vector\(s\) \[1\] hold NaN"):
        store.vector_search(np.array([[1, 1, 1], [1, np.nan, 1]]), top_k=5)
    with pytest.raises(ConfigError, match="similarity must be one of cosine, dot, l2, got 'manhattan'"):
        store.vector_search(np.ones((1, 3)), top_k=5, similarity="manhattan")
    with pytest.raises(NumericsError, match=r"1 vector\(s\) hold NaN or infinity, of document\(s\) 1"):
        store.write_vectors("dense", [1], np.full((1, 3), np.inf))
    with pytest.raises(DimensionError, match="holds vectors of 3 dimensions, got 4"):
        store.write_vectors("dense", [1], np.ones((1, 4)))
    with pytest.raises(DimensionError, match="do not fit 2 document numbers"):
        store.write_vectors("dense", [1, 2], np.ones((1, 3)))
    with pytest.raises(SearchIndexError, match="vectors of the model a, not b"):
        store.write_vectors("dense", [1], np.ones((1, 3)), model_fingerprint="b")
    with pytest.raises(SearchIndexError, match="is a lexical index, not a vector index"):
        store.write_vectors("lexical", [1], np.ones((1, 3)))
    assert len(store.vector_search(np.ones((1, 3)), top_k=0)[0]) == 0
    assert store.vector_search(np.ones((0, 3)), top_k=5) == []
    assert len(store.vector_search(np.ones((1, 3)), top_k=5)[0]) == 1


@pytest.mark.parametrize("similarity", ["dot", "l2"])
def test_one_vector_much_longer_than_those_that_were_fetched(similarity):
    """Its rough score is off by more than those of the others, so it may be the best although it seems not to be."""
    wrong = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        query_E = rng.normal(size=8).astype(np.float32)
        along_E = query_E / (query_E @ query_E)
        vectors_NE = np.outer(1 - rng.random(300) * 1e-5, along_E)  # all have a product of about 1 with the query
        across_E = np.cross(query_E[:3], [1.0, 2.0, 3.0])
        vectors_NE[7] = 1.000001 * along_E
        vectors_NE[7, :3] += 3e4 * across_E
        vectors_NE = vectors_NE.astype(np.float32)
        expected = brute_force(dict(enumerate(vectors_NE)), query_E, 1, similarity)
        found = search([make_part(np.arange(300), vectors_NE)], query_E[None], top_k=1, similarity=similarity)[0]
        wrong += [seed] if found[0][0] != expected[0][0] else []
    assert not wrong


def current_files(store):
    with store._database.reading() as connection:
        return registry.find(connection, "dense").files


def test_shards_of_former_generations_are_closed(store):
    reader = LocalDocumentStore(store.path, read_only=True)
    for n in range(20):
        store.write_documents([Document(id=f"{n}-{k}", content="x", embedding=[k, 1.0, n]) for k in range(6)])
        if n % 3 == 2:
            store.delete_by_filter({"field": "id", "operator": "in", "value": [f"{n - 1}-{k}" for k in range(6)]})
        check(store)
        check(reader)
        for each in (store, reader):
            assert {path.name for path in each._vectors._shards} == set(current_files(store))
    store.delete_index("dense")
    store.write_documents([Document(id="new", content="x", embedding=[1.0])])
    assert len(reader.vector_search(np.ones((1, 1)), top_k=5)[0]) == 1
    assert not reader._vectors._shards
    reader.close()


def deletions(store):
    with store._database.reading() as connection:
        return connection.execute("SELECT count(*) FROM deletions").fetchone()[0]


def test_deletions_are_forgotten_in_a_small_store(tmp_path):
    store = LocalDocumentStore(str(tmp_path / "store"))
    store.write_documents([Document(id=str(n), content="common", embedding=[n, 1.0, 2.0]) for n in range(9)])
    store.refresh()
    store.delete_documents(["1", "2"])
    assert deletions(store) == 2, "the lexical index needs them"
    store.refresh()
    assert deletions(store) == 0
    assert len(store.lexical_search(["common"], top_k=99)[0]) == 7
    check(store)
    store.close()


def test_documents_deleted_while_the_first_shard_is_written(store, monkeypatch):
    """Another store object sees to it that the deletion is forgotten before the shard is current."""
    store.write_documents([Document(id=str(n), content="common") for n in range(9)])
    other = LocalDocumentStore(store.path)
    other.refresh()
    real = local_vectors._write_shard

    def deleted_meanwhile(*arguments):
        real(*arguments)
        other.delete_documents(["3", "4"])
        other.lexical_search(["common"], top_k=1)

    store.write_vectors("dense", range(1, 10), np.eye(9, 3))
    monkeypatch.setattr(local_vectors, "_write_shard", deleted_meanwhile)
    assert store.vector_search(np.ones((1, 3)), top_k=0) == [[]]
    monkeypatch.undo()
    assert len(shards(store)) == 1
    check(store)
    other.close()
