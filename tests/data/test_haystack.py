import subprocess
import sys

import pytest
from haystack import Document

from gr_components.data import Passage
from gr_components.data.haystack import to_document, to_passage
from gr_components.errors import DataError


def test_a_passage_becomes_a_document_and_comes_back():
    passage = Passage("p1", "Title", "Text", ("q?",), {"year": 1999})
    document = to_document(passage)
    assert (document.id, document.content) == ("p1", "Text")
    assert document.meta == {"title": "Title", "queries": ["q?"], "year": 1999}
    assert to_passage(document) == passage


def test_pseudo_queries_are_never_content_and_absent_without_any():
    assert "q?" not in (to_document(Passage("p", "", "Text", ("q?",))).content or "")
    assert to_document(Passage("p", "", "Text")).meta == {"title": ""}


def test_documents_that_are_no_passages_are_refused():
    with pytest.raises(DataError, match="Document 'x' has no text content"):
        to_passage(Document(id="x"))
    with pytest.raises(DataError, match="must be a text and meta"):
        to_passage(Document(id="x", content="c", meta={"queries": "one?"}))


def test_reading_files_loads_no_haystack():
    code = "import gr_components.data, sys; sys.exit('haystack' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
