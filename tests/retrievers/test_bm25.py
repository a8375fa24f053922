import pytest
from haystack import Document
from haystack.components.retrievers.types import TextRetriever
from haystack.document_stores.types import FilterPolicy

from gr_components.document_stores.local import LocalDocumentStore
from gr_components.errors import ConfigError
from gr_components.retrievers.bm25 import BM25Retriever
from gr_components.testing import ComponentContract


@pytest.fixture
def store(tmp_path):
    store = LocalDocumentStore(str(tmp_path / "store"))
    texts = ["the cat sat on the mat", "dogs chase cats", "a bird sings", "the dog sleeps", ""]
    store.write_documents(
        [Document(id=str(i), content=text, meta={"even": i % 2 == 0}) for i, text in enumerate(texts)]
    )
    yield store
    store.close()


EVEN = {"field": "meta.even", "operator": "==", "value": True}
ODD = {"field": "meta.even", "operator": "==", "value": False}


class TestBM25Retriever(ComponentContract):
    expected_type = "gr_components.retrievers.bm25.BM25Retriever"

    @pytest.fixture
    def component(self, store):
        return BM25Retriever(document_store=store)

    @pytest.fixture
    def run_arguments(self):
        return {"query": "Where is the cat?"}

    @pytest.fixture
    def more_run_arguments(self):
        return [{"query": query} for query in ("cat", "dog", "bird", "nothing", "cats and dogs", "cat")]

    @pytest.fixture
    def other_init_arguments(self):
        return {"filters": EVEN, "top_k": 3, "scale_score": True, "filter_policy": FilterPolicy.MERGE}

    def test_finds_by_stem_and_orders_by_score(self, component):
        documents = component.run(query="the cat chasing")["documents"]
        assert [document.id for document in documents] == ["1", "0"]
        assert documents[0].score > documents[1].score > 0
        assert documents[0].embedding is None

    def test_query_text_is_no_syntax(self, component):
        wanted = [d.id for d in component.run(query="dog bird")["documents"]]
        assert wanted
        for query in ('+dog -"bird', "dog AND (bird", "text:dog bird^", "dog* /bird/ ~", "number:1 dog bird [a TO b}"):
            assert set(wanted) == {d.id for d in component.run(query=query)["documents"]}, query

    @pytest.mark.parametrize("query", ["", "  ", "?!", "the of and"])
    def test_a_query_without_words_finds_nothing(self, component, query):
        assert component.run(query=query) == {"documents": []}

    def test_run_time_values_override(self, store):
        retriever = BM25Retriever(document_store=store, top_k=1, scale_score=True, filters=EVEN)
        assert [d.id for d in retriever.run(query="cat")["documents"]] == ["0"]
        assert retriever.run(query="cat", top_k=0)["documents"] == []
        scaled = retriever.run(query="cat")["documents"][0].score
        raw = retriever.run(query="cat", scale_score=False)["documents"][0].score
        assert 0.5 < scaled < 1
        assert scaled != raw
        assert [d.id for d in retriever.run(query="cat", filters=ODD, top_k=5)["documents"]] == ["1"]

    def test_filter_policies(self, store):
        merge = BM25Retriever(document_store=store, filters=EVEN, filter_policy=FilterPolicy.MERGE)
        assert merge.run(query="cat", filters={"field": "id", "operator": "==", "value": "1"})["documents"] == []
        assert merge.run(query="cat", filters={"field": "id", "operator": "!=", "value": "1"})["documents"]
        assert [d.id for d in merge.run(query="cat")["documents"]] == ["0"]

    def test_bad_settings(self, store):
        with pytest.raises(ConfigError, match="top_k must be a whole number of at least 1, got 0"):
            BM25Retriever(document_store=store, top_k=0)
        with pytest.raises(ConfigError, match="got str"):
            BM25Retriever(document_store="store")
        with pytest.raises(ConfigError, match="got -1"):
            BM25Retriever(document_store=store).run(query="x", top_k=-1)

    def test_is_a_text_retriever(self, component):
        retriever: TextRetriever = component
        assert retriever.run("cat", None, 1)["documents"]
