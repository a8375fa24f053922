from pathlib import Path
from typing import Any

import pytest
from haystack import Document

from gr_components.decoding.grammar import reserved_grammar
from gr_components.document_stores.local import LocalDocumentStore
from gr_components.errors import TokenizerMismatchError
from gr_components.models.description import write_description
from gr_components.models.seq2seq.building import cut_vocabulary
from gr_components.testing import ComponentContract
from gr_components.writers.generative import GenerativeIndexer

TEXTS = ["Ada Lovelace wrote the first program.", "Goethe wrote Faust.", "Volcanoes of Java are active."]


def model(folder: Path, minilm: Path, texts: list[str]) -> str:
    """What indexing reads of a generator: tokenizer and grammar."""
    tokenizer, _ = cut_vocabulary(minilm, texts)
    folder.mkdir()
    tokenizer.save(folder)
    grammar = reserved_grammar(tokenizer)
    write_description(folder, {"task": "generative-retrieval", "grammar": grammar.to_dict()})
    return str(folder)


@pytest.fixture
def store(tmp_path: Path) -> LocalDocumentStore:
    store = LocalDocumentStore(str(tmp_path / "store"))
    store.write_documents([Document(id=str(n), content=text) for n, text in enumerate(TEXTS)])
    return store


class TestContract(ComponentContract):
    expected_type = "gr_components.writers.generative.GenerativeIndexer"

    @pytest.fixture
    def component(self, store: LocalDocumentStore, tmp_path: Path, minilm: Path) -> GenerativeIndexer:
        return GenerativeIndexer(document_store=store, model=model(tmp_path / "model", minilm, TEXTS))

    @pytest.fixture
    def run_arguments(self) -> dict[str, Any]:
        return {"documents_written": 3}

    @pytest.fixture
    def empty_run_arguments(self, store: LocalDocumentStore) -> dict[str, Any]:
        store.delete_all_documents()
        return {"documents_written": 0}

    def comparable(self, output: dict[str, Any]) -> Any:
        return sorted(output)  # the second of two runs finds nothing left to do

    def assert_empty(self, output: dict[str, Any]) -> None:
        assert output == {"documents_indexed": 0}


def test_it_indexes_what_is_missing_and_nothing_twice(store: LocalDocumentStore, tmp_path: Path, minilm: Path) -> None:
    indexer = GenerativeIndexer(document_store=store, model=model(tmp_path / "model", minilm, TEXTS))
    assert indexer.run() == {"documents_indexed": 3}
    assert indexer.run() == {"documents_indexed": 0}
    store.write_documents([Document(id="new", content="Volcanoes wrote Faust.")])
    assert indexer.run() == {"documents_indexed": 1}
    (state,) = [state for state in store.indexes() if state.name == "generative"]
    assert state.lag == 0
    assert state.config["grammar"]["layout"] == "reserved"


def test_another_tokenizer_is_refused(store: LocalDocumentStore, tmp_path: Path, minilm: Path) -> None:
    GenerativeIndexer(document_store=store, model=model(tmp_path / "a", minilm, TEXTS)).run()
    with pytest.raises(TokenizerMismatchError, match="'generative' was made with the tokenizer"):
        GenerativeIndexer(document_store=store, model=model(tmp_path / "b", minilm, TEXTS[:1])).run()
