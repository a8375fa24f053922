"""No validation, test or unseen question is in any segment of the demo's generative index."""

from dataclasses import replace

import pytest
from haystack.document_stores.types import DuplicatePolicy

from gr_components.data import leaks
from gr_components.data.haystack import to_document
from gr_components.document_stores.local import LocalDocumentStore
from gr_components.models.resolve import resolve_model
from gr_components.progress import Silent
from gr_components.tokenization import TextTokenizer
from gr_pipelines.demo import data
from gr_pipelines.demo.prepare import build_stores
from gr_pipelines.indexing import GENERATIVE_MODEL, IndexOptions, update_indexes

OPTIONS = IndexOptions(indexes=("lexical", "generative"))


@pytest.fixture(scope="module")
def tokenizer():
    return TextTokenizer.from_folder(resolve_model(GENERATIVE_MODEL))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    stores = build_stores(tmp_path_factory.mktemp("demo"), OPTIONS)
    store = LocalDocumentStore(str(stores.full))
    yield store
    store.close()


def texts_of(store, tokenizer):
    """Everything that the index holds, read back from its files."""
    snapshot = store.suffix_index("generative")
    assert snapshot.lag == 0
    index = snapshot.index
    return [
        tokenizer.decode(index.tokens(field, document), skip_special=False)
        for field in index.fields
        for document in range(len(index.numbers_D))
    ]


def held_out(tokenizer):
    """Held-out questions as the tokenizer writes them, so that a word it does not know cannot hide one."""
    questions = [q.text for split in ("validation", "test", "unseen") for q in data.questions(split)]
    return [tokenizer.decode(ids) for ids in tokenizer.encode(questions)]


def test_the_index_holds_all_training_questions_and_no_held_out_one(store, tokenizer):
    texts = texts_of(store, tokenizer)
    training = [tokenizer.decode(ids) for ids in tokenizer.encode([q.text for q in data.questions("train")[:50]])]
    assert {leak.question for leak in leaks(training, texts)} == set(training)
    assert leaks(held_out(tokenizer), texts) == []


def test_a_planted_question_would_be_seen(store, tokenizer):
    passage = replace(data.corpus()[0], queries=(data.questions("test")[3].text,))
    store.write_documents([to_document(passage)], policy=DuplicatePolicy.OVERWRITE)
    update_indexes(store, OPTIONS, Silent())
    assert len(leaks(held_out(tokenizer), texts_of(store, tokenizer))) == 1
