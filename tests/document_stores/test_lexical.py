"""The lexical index of a store: always what the documents say, whatever happened to its files."""

import gzip
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from haystack import Document
from haystack.document_stores.types import DuplicatePolicy

from gr_components.document_stores.local import LocalDocumentStore
from gr_components.document_stores.local_lexical import Lexical
from gr_components.document_stores.local_lock import FileLock
from gr_components.errors import ConfigError, IndexFormatError
from gr_components.indexes.lexical import Analysis, LexicalIndex

OVERWRITE = DuplicatePolicy.OVERWRITE


@pytest.fixture
def store(tmp_path):
    store = LocalDocumentStore(str(tmp_path / "store"))
    store.write_documents([Document(id=str(n), content=f"common word{n}", meta={"n": n}) for n in range(20)])
    yield store
    store.close()


def found(store, query, **kwargs):
    hits = store.lexical_search([query], top_k=kwargs.pop("top_k", 100), **kwargs)[0]
    return [document.id for document in store.scored_documents(hits)]


def index_folder(store):
    (folder,) = (path for path in Path(store.path, "indexes").glob("lexical-*/*") if path.is_dir())
    return folder


def check(store):
    everything = {document.id for document in store.filter_documents()}
    assert set(found(store, "common")) == everything
    for n in range(25):
        assert found(store, f"word{n}") == ([str(n)] if str(n) in everything else [])


def test_writes_updates_and_deletes_are_seen(store):
    check(store)
    store.delete_documents(["3", "4"])
    store.write_documents([Document(id="21", content="common word21")])
    check(store)
    store.write_documents([Document(id="5", content="other")], OVERWRITE)
    assert found(store, "word5") == []
    assert found(store, "other") == ["5"]
    store.update_by_filter({"field": "meta.n", "operator": "==", "value": 6}, {"title": "Capital"})
    assert found(store, "capital") == ["6"]
    store.delete_all_documents()
    assert found(store, "common") == []
    store.write_documents([Document(id="1", content="common word1")])
    check(store)


def test_changes_that_do_not_matter_do_not_commit(store):
    check(store)
    (before,) = store.indexes()
    store.update_by_filter({"field": "meta.n", "operator": "<", "value": 5}, {"n": 7})
    store.write_documents([Document(id="1", content="common word1", embedding=[1.0])], OVERWRITE)
    check(store)
    assert {state.name: state.generation for state in store.indexes()}["lexical"] == before.generation


def test_ties_by_number_and_any_cut(store):
    whole = store.lexical_search(["common"], top_k=100)[0]
    assert [number for number, _ in whole] == sorted(number for number, _ in whole)
    store.write_documents([Document(id=f"x{n}", content="common " + "long " * (n % 5)) for n in range(300)])
    whole = store.lexical_search(["common"], top_k=1000)[0]
    assert whole == sorted(whole, key=lambda hit: (-hit[1], hit[0]))
    assert len(whole) == 320
    for top_k in (1, 2, 7, 50, 319, 320, 321):
        assert store.lexical_search(["common"], top_k=top_k)[0] == whole[:top_k]
    assert store.lexical_search(["common"], top_k=0) == [[]]
    assert store.lexical_search([], top_k=5) == []


def test_filters_are_exact(store, monkeypatch):
    store.write_documents([Document(id=f"x{n}", content="common " * (n % 3), meta={"n": n}) for n in range(300)])
    whole = store.lexical_search(["common word7"], top_k=1000)[0]
    for limit in (0, 1, 5, 150, 400):
        filters = {"field": "meta.n", "operator": "<", "value": limit}
        allowed = set(store.allowed_numbers(filters).tolist())
        expected = [hit for hit in whole if hit[0] in allowed]
        for selective in (0, 10_000):  # over-fetching, and a set of numbers
            monkeypatch.setattr("gr_components.indexes.lexical._SELECTIVE", selective)
            for top_k in (3, 1000):
                assert store.lexical_search(["common word7"], top_k=top_k, filters=filters)[0] == expected[:top_k]


@pytest.mark.parametrize("damage", ["remove", "empty", "meta", "cut", "old"])
def test_damaged_files_are_built_again(store, damage, caplog):
    check(store)
    folder = index_folder(store)
    old = folder.with_name("backup")
    shutil.copytree(folder, old)
    store.write_documents([Document(id="20", content="common word20")])
    check(store)
    store.close()
    if damage == "remove":
        shutil.rmtree(folder)
    elif damage == "empty":
        for path in folder.iterdir():
            path.unlink()
    elif damage == "meta":
        (folder / "meta.json").write_text("{")
    elif damage == "cut":
        for path in folder.glob("*.idx"):
            path.write_bytes(path.read_bytes()[:20])
    else:
        shutil.rmtree(folder)
        shutil.copytree(old, folder)
    shutil.rmtree(old)
    check(store)
    assert "index" in caplog.text
    assert index_folder(store) != folder, "a new generation, and the old files are gone"


def test_damage_that_only_a_search_finds(store, capfd):
    check(store)
    for path in index_folder(store).glob("*.fast"):
        path.write_bytes(bytes(255 - byte for byte in path.read_bytes()[:-40]) + path.read_bytes()[-40:])
    store.close()
    check(store)
    capfd.readouterr()  # tantivy reports its panic on standard error


def test_a_crash_between_the_two_commits_is_repeated(store, monkeypatch):
    check(store)
    store.delete_documents(["1"])
    store.write_documents([Document(id="22", content="common word22")])
    monkeypatch.setattr(Lexical, "_publish", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        found(store, "common")
    monkeypatch.undo()
    again = LocalDocumentStore(store.path)
    check(again)
    assert len(found(again, "word22")) == 1
    again.close()


def test_another_process_is_building(store, caplog):
    check(store)
    store.write_documents([Document(id="23", content="common word23")])
    store.delete_documents(["2"])
    impatient = LocalDocumentStore(store.path, lock_timeout_s=0.05)
    check(store)
    check(impatient)
    store.write_documents([Document(id="24", content="common word24")])
    store.delete_documents(["3"])
    with FileLock(index_folder(store).parent / "lock").hold(1):
        assert found(impatient, "word24") == [], "it lags"
        assert "lags 1 documents" in caplog.text
        assert found(impatient, "word3") == [], "but it does not find what is gone"
        assert len(found(impatient, "common")) == 19
    check(impatient)
    impatient.close()


def test_settings_are_fixed_by_the_first_write(tmp_path):
    german = LocalDocumentStore(str(tmp_path / "s"), language="german", lexical_queries=True)
    german.write_documents([Document(id="1", content="viele Häuser", meta={"title": "Titel", "queries": ["Frage"]})])
    default = LocalDocumentStore(str(tmp_path / "s"))
    for store in (german, default):
        assert found(store, "Haus") == found(store, "titel") == found(store, "frage") == ["1"]
    english = LocalDocumentStore(str(tmp_path / "s"), language="english")
    with pytest.raises(ConfigError, match=r"made with language='german', not 'english'.*delete_index\('lexical'\)"):
        found(english, "Haus")
    default.delete_index("lexical")
    assert found(english, "Haus") == []
    assert found(english, "Häuser") == ["1"]
    assert found(english, "Frage") == [], "pseudo-queries are not part of the text by default"
    for store in (german, default, english):
        store.close()


def test_languages_without_spaces(tmp_path):
    store = LocalDocumentStore(str(tmp_path / "s"))
    texts = ["我住在北京大学附近", "東京タワー", "京 大"]
    store.write_documents([Document(id=str(n + 1), content=text) for n, text in enumerate(texts)])
    assert found(store, "北京大学") == ["1"]
    assert found(store, "タワー") == ["2"]
    assert found(store, "大") == ["3"], "a single character is a term where it stands alone"
    store.close()


def test_analysis():
    index = LexicalIndex.create(None, Analysis(language="none", stop_words=False, cjk_ngrams=0))
    index.apply([], [(1, "The Runners"), (2, "runner"), (5, "北京大学")])
    assert [n for n, _ in index.search(["THE"], top_k=9)[0]] == [1]
    assert [n for n, _ in index.search(["runner"], top_k=9)[0]] == [2]
    assert index.search(["北京"], top_k=9) == [[]]
    with pytest.raises(IndexFormatError, match="no lexical index"):
        LexicalIndex.open(Path("nowhere"), Analysis())


def test_bm25_scores_are_those_of_the_formula(store):
    texts = ["apple banana apple", "banana cherry", "cherry cherry apple banana date"]
    index = LexicalIndex.create(None, Analysis(language="none"))
    index.apply([], enumerate(texts))
    terms = [text.split() for text in texts]
    mean = sum(map(len, terms)) / 3

    def score(d):
        total = 0.0
        for term in ["apple", "apple", "cherry"]:
            df, tf = sum(term in t for t in terms), terms[d].count(term)
            idf = math.log(1 + (3 - df + 0.5) / (df + 0.5))
            total += idf * tf * 2.2 / (tf + 1.2 * (0.25 + 0.75 * len(terms[d]) / mean))
        return total

    hits = dict(index.search(["apple cherry apple"], top_k=3)[0])
    assert hits == pytest.approx({d: score(d) for d in range(3)}, rel=1e-5)


def test_demo_corpus_ndcg():
    """BM25 through the product is not more than .01 below bm25s (.8681 over all questions of the corpus)."""
    gr_pipelines = pytest.importorskip("gr_pipelines")
    folder = Path(gr_pipelines.__file__).parent / "demo"
    with gzip.open(folder / "corpus.jsonl.gz", "rt") as file:
        passages = [json.loads(line) for line in file]
    with gzip.open(folder / "questions.jsonl.gz", "rt") as file:
        questions = [json.loads(line) for line in file][::4]
    with gzip.open(folder / "qrels.tsv.gz", "rt") as file:
        gold = dict(line.split("\t")[:2] for line in file)
    index = LexicalIndex.create(None, Analysis())
    index.apply([], ((n, f"{p['title']} {p['text']}".strip()) for n, p in enumerate(passages)))
    ids = [p["id"] for p in passages]
    gains = []
    for question, hits in zip(questions, index.search([q["text"] for q in questions], top_k=10), strict=True):
        ranks = [rank for rank, (number, _) in enumerate(hits) if ids[number] == gold[question["id"]]]
        gains.append(1 / math.log2(ranks[0] + 2) if ranks else 0.0)
    assert np.mean(gains) >= 0.8681 - 0.01
